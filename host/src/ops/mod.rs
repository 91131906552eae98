//! Ops: validate, choose a kernel, launch. One file an op family, mirroring `kernels-gpu`.

mod vector_add;

pub use vector_add::vector_add;
