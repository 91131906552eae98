//! ferroflash
