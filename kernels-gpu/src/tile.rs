//! Tiles: where their elements lie in shared memory and in registers, and what their element types are.

#[cfg(target_arch = "nvptx64")]
pub mod copy;
pub mod division;
#[cfg(target_arch = "nvptx64")]
pub mod element;
pub mod fragment;
pub mod layout;
#[cfg(target_arch = "nvptx64")]
pub mod mma;
#[cfg(target_arch = "nvptx64")]
pub mod opaque;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
pub mod quantise;
