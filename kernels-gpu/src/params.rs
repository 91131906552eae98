//! Kernel arguments: one `#[repr(C)]` struct a kernel, passed by value.
//!
//! Device, host and emulator compile this same file, so the layout cannot drift apart.

/// Arguments of [`vector_add`](crate::vector_add): `out[i] = a[i] + b[i]` for `i < len`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VectorAddParams {
    /// First summand, `len` floats.
    pub a: *const f32,
    /// Second summand, `len` floats.
    pub b: *const f32,
    /// Sum, `len` floats.
    pub out: *mut f32,
    /// Number of elements.
    pub len: u64,
}

const _: () = assert!(size_of::<VectorAddParams>() == 32);
