//! Ops: validate, choose a kernel, launch. One file an op family, mirroring `kernels-gpu`.

mod reduce;
mod vector_add;

pub use reduce::{ReduceAxis, ReduceKind, reduce};
pub use vector_add::vector_add;
