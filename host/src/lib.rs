//! Loads and launches ferroflash's kernels: devices, tensors, launches, ops and their references.
//!
//! The same calls run on an NVIDIA GPU (through `cust` and the driver found at run time) and on the emulator, which
//! executes the exact PTX that the GPU would be given.

pub mod backend;
pub mod compare;
mod counter;
pub mod device;
pub mod element;
pub mod error;
pub mod graph;
pub mod images;
pub mod kv;
pub mod launch;
mod memory;
pub mod ops;
mod read_back;
pub mod reference;
pub mod stream;
pub mod tensor;
pub mod tensor_map;

pub use device::{Device, DeviceKind, DeviceOptions, DeviceProperties, EmulatorOptions};
pub use element::{DType, E4M3, Element, Float};
pub use error::{Error, Result};
pub use graph::Graph;
pub use half::{bf16, f16};
pub use images::Tier;
pub use read_back::ReadBack;
pub use stream::{Event, Stream};
pub use tensor::{AnyTensor, Tensor};
