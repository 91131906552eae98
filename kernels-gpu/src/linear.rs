//! Linear layers: `y = act(alpha · x·W + bias) (+ residual)` in one launch, gated pairs (`act(gate) · up`) included.
//!
//! | kernels | for | product by |
//! |---|---|---|
//! | `linear_any_*` | every dtype, any strides | f32 FMA |
//! | `linear_tiled{64,128}_*` | 16-bit types, rows aligned to 16 bytes | `mma.sync` |
//! | `linear_hopper{128,256}_*` | 16-bit types that TMA can load, sm_90a | `wgmma` |
//! | `linear_streaming_*` | up to 16 rows at a time: the weights pass once, at memory speed | `mma.sync`, FMA for f32 |
//!
//! All accumulate in f32, each element over k in an order that depends on k alone: which rows are computed beside it
//! and how many there are does not change a bit. They share the `epilogue` and the arguments.

#[cfg(target_arch = "nvptx64")]
mod any;
#[cfg(target_arch = "nvptx64")]
mod epilogue;
#[cfg(target_arch = "nvptx64")]
mod gemm_sm80;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod gemm_sm90;
mod params;
#[cfg(target_arch = "nvptx64")]
mod streaming;

pub use params::*;
