//! Ops: validate, choose a kernel, launch. One file an op family, mirroring `kernels-gpu`.

mod linear;
mod reduce;
mod vector_add;

pub use linear::{Linear, LinearMode, linear};
pub use reduce::{ReduceAxis, ReduceKind, reduce};
pub use vector_add::vector_add;

pub use crate::reference::{activation::Activation, linear::WeightLayout};
