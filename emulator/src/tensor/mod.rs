//! Pure functions behind the tensor and asynchronous instructions: fragment layouts and arithmetic of `mma` and
//! `wgmma`, `ldmatrix`/`stmatrix` layouts, shared-memory descriptors, swizzles, tensor maps and their box
//! iteration, and the `mbarrier` state word.
//!
//! Nothing in this module knows of warps, memory or scheduling: inputs are register values of the 32 lanes
//! (`[u64; 32]` per register, zero-extended) or bytes, outputs are the same.
//!
//! # Arithmetic of the tensor cores
//!
//! NVIDIA does not document in which order and at which width a tensor core adds. Here one `mma` instruction forms, for each
//! element of D, the sum over its k-block (4 to 32 products, each exact in f32) in f32 in order of increasing k, then
//! adds that to the accumulator with one more rounding (to f16 when the accumulator is f16). Integers are exact.
//! A kernel whose result depends on more than that is wrong on some GPU too.

pub mod descriptor;
pub mod element;
pub mod fragment;
pub mod map;
pub mod matmul;
pub mod mbarrier;
pub mod mma;
pub mod swizzle;
pub mod wgmma;

pub use descriptor::{Descriptor, Major};
pub use element::Element;
pub use map::{DataType, OobFill, TensorMap, TensorMapError, Tiled};
pub use mbarrier::{Mbarrier, MbarrierError};
pub use swizzle::Swizzle;
