//! Key/value caches on the device: what one looks like to a kernel, appending, reading back, copying pages.

mod checks;
mod pages;
mod tokens;
mod validate;
mod view;

pub(crate) use checks::{converts, expect_extent, expect_integers, expect_tokens, tokens_of};
pub use pages::{copy_pages, swap_pages};
pub(crate) use tokens::cache_append_in;
pub use tokens::{cache_append, cache_append_at, cache_read, cache_read_as};
pub(crate) use view::CheckedCache;
pub use view::{CacheView, PoolLayout};

/// Bytes of the widest unit that all rows start and end at a multiple of: each has kernels of its own.
fn widest_unit(places: &[u64]) -> u64 {
    let fits = |unit: &u64| places.iter().all(|place| place.is_multiple_of(*unit));
    [16, 4, 2, 1].into_iter().find(fits).unwrap_or(1)
}
