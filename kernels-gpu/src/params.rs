//! Kernel arguments: one `#[repr(C)]` struct a kernel, passed by value.
//!
//! Device, host and emulator compile this same file, so the layout cannot drift apart. Addresses are plain `u64`s:
//! the host fills them from tensors, the kernel turns them into pointers. Extents and strides count elements.

/// A struct that a kernel takes as its only argument.
///
/// # Safety
/// - `#[repr(C)]`, no padding, every field an integer or a float or an array of them.
pub unsafe trait KernelParams: Copy + 'static {
    /// The argument buffer.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: by the trait's contract there is no padding, so every byte is initialised.
        unsafe { core::slice::from_raw_parts((self as *const Self).cast(), size_of::<Self>()) }
    }
}

/// Declares argument structs; one with padding does not compile.
#[macro_export]
macro_rules! kernel_params {
    ($($(#[$attribute:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty,)* })*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding in a kernel argument");
        // SAFETY: repr(C); the assertion above excludes padding; fields are plain data by convention of this file.
        unsafe impl $crate::params::KernelParams for $name {}
    )*};
}

/// A TMA tensor map as the driver (or the emulator) encodes it. Put it at an offset that is a multiple of 64 in a
/// struct whose kernel is annotated `param_align = 64`.
pub type TensorMap = [u64; 16];

kernel_params! {
    /// Arguments of [`vector_add`](crate::vector_add): `out[i] = a[i] + b[i]` for `i < len`.
    pub struct VectorAddParams {
        /// First summand, `len` elements.
        pub a: u64,
        /// Second summand, `len` elements.
        pub b: u64,
        /// Sum, `len` elements.
        pub out: u64,
        /// Number of elements.
        pub len: u64,
    }
}
