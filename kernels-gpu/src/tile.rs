//! Tiles: where their elements lie in shared memory and in registers, and what their element types are.

#[cfg(target_arch = "nvptx64")]
pub mod element;
pub mod fragment;
pub mod layout;
