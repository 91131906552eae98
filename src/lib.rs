//! FlashAttention-class GPU kernels in pure Rust, compiled to PTX by rustc's own NVPTX backend.
//!
//! No nvcc and no C++: kernels are Rust in `kernels-gpu`, their PTX travels with this crate, and one call runs them
//! on an NVIDIA GPU or, without one, on an emulator that executes the same PTX on the CPU.
//!
//! ```
//! use ferroflash::{Device, Tensor, vector_add};
//!
//! let device = Device::new()?; // the first usable GPU, else the emulator
//! let a = Tensor::from_slice(&device, &[1.0f32, 2.0, 3.0], &[3])?;
//! let b = Tensor::from_slice(&device, &[10.0f32, 20.0, 30.0], &[3])?;
//! let sum = vector_add(&a, &b)?.typed::<f32>("sum")?;
//! assert_eq!(sum.to_vec()?, [11.0, 22.0, 33.0]);
//! # Ok::<(), ferroflash::Error>(())
//! ```
//!
//! Semantics follow flash-attn where systems differ: causal masks are aligned bottom-right, LSE is a natural
//! logarithm, a softcap of 0 is off.

pub use host::{
    AnyTensor, DType, Device, DeviceKind, DeviceOptions, DeviceProperties, E4M3, Element, EmulatorOptions, Error,
    Event, Float, Graph, Result, Stream, Tensor, Tier, bf16, f16, images, kv, ops, ops::*,
};

pub mod inventory;
pub mod verify;

/// Language models on these kernels: checkpoints, tokenizers, generation.
pub use models;
