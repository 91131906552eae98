//! Linear layers: `y = act(alpha · x·W + bias) (+ residual)` in one launch, gated pairs (`act(gate) · up`) included.
//!
//! | kernels | for | product by |
//! |---|---|---|
//! | `linear_any_*` | every dtype, any strides | f32 FMA |
//! | `linear_tiled{64,128,256}_*` | 16-bit types, rows aligned to 16 bytes | `mma.sync` |
//! | `linear_hopper{128,256}_*` | 16-bit types that TMA can load, sm_90a | `wgmma` |
//! | `linear_cluster_{64,128,192}_*` | the same, where nothing is added to a 16-bit result that TMA can store | `wgmma` |
//! | `linear_cooperative_192_*` | the same for weights `[n, k]` with large k: the fewest bytes a product | `wgmma` |
//! | `linear_streaming_*` | up to 16 rows at a time: the weights pass once, at memory speed | `mma.sync`, FMA for f32 |
//! | `linear_rows{8,16,64}_*`, `linear_staying16_*` | the same on Hopper, of weights `[n, k]` in 16-bit types, up to 64 rows at a time; the norm in front of up to 8 | `mma.sync` |
//! | `linear_lanes{8,16}_*`, `linear_passing16_*` | the same for up to 16 rows where tiles and loads are whole: each lane copies its part of the weights | `mma.sync` |
//! | `linear_norm_*` | that norm where rows do not fit into one block | – |
//!
//! All accumulate in f32, each element over k in an order that depends on k alone: which rows are computed beside it
//! and how many there are does not change a bit. They share the `epilogue` and the arguments.

#[cfg(target_arch = "nvptx64")]
mod any;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod boxes;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod cluster_tile;
#[cfg(target_arch = "nvptx64")]
mod copies;
#[cfg(target_arch = "nvptx64")]
mod epilogue;
#[cfg(target_arch = "nvptx64")]
mod gemm_sm80;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod gemm_sm90;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod gemm_sm90_cluster;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod gemm_sm90_cooperative;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod lanes;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod lanes16;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod norm_rows;
mod params;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod passing16;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod rows64;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod rows8;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod slice_loads;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod staying16;
#[cfg(target_arch = "nvptx64")]
mod streaming;

pub use params::*;
