//! [`kernel!`](crate::kernel): a kernel entry together with the launch bounds it is compiled for, and the address of
//! its parameters.

/// Declares kernels: entries of the PTX image, and the annotations beside them that `cuda_builder` reads.
///
/// ```
/// # use cuda_std::kernel;
/// kernel! {
///     /// `y = a·x + y`.
///     ///
///     /// # Safety
///     /// - `params.x` and `params.y` hold `params.len` floats.
///     #[launch(threads = 256, min_blocks = 2)]
///     pub fn saxpy(params: SaxpyParams) {
///         // an unsafe fn's body, already inside `unsafe`
///     }
/// }
/// ```
///
/// A kernel exists on the device only; on the CPU the macro expands to nothing. Its arguments are one `#[repr(C)]`
/// struct, passed by value. `rustc` has no attribute for launch bounds, so the annotation travels as an assembly
/// comment, `// @kernel name=saxpy threads=256 min_blocks=2`, and the builder writes the directives. Values are
/// constant expressions of integer type:
///
/// | key | value | effect |
/// |---|---|---|
/// | `threads` | `x` or `[x, y, z]` | `.reqntid`; required, and first |
/// | `min_blocks` | `n` | `.minnctapersm` |
/// | `cluster` | `x` or `[x, y, z]` | `.reqnctapercluster` |
/// | `param_align` | `64` | alignment of the parameters in memory (a tensor map needs 64) |
/// | `barriers` | `n` | number of barrier instructions the lints must find |
/// | `wgmma` | `n` | number of `wgmma.mma_async` the lints must find |
/// | `tensor_core` | `1` | local memory is forbidden |
/// | `f64` | `1` | double precision is meant |
///
/// Attributes after `#[launch]`, such as `#[cfg(tier = "sm_90a")]`, hold for the kernel and its annotation.
///
/// # The address of the parameters
/// A tensor map may lie in the parameters themselves (a *grid constant*): a second parameter of type
/// [`ParamAddress`](crate::launch::ParamAddress) is no argument of the kernel but names the place of its first one.
///
/// ```
/// # use cuda_std::kernel;
/// kernel! {
///     /// Copies a tile.
///     #[launch(threads = 128, param_align = 64)]
///     pub fn copy_tile(params: CopyTileParams, address: ParamAddress) {
///         let map = address.tensor_map(core::mem::offset_of!(CopyTileParams, map));
///     }
/// }
/// ```
///
/// # Safety
/// The entry is an `unsafe fn`: the host promises what the kernel's documentation asks for.
#[macro_export]
macro_rules! kernel {
    ($(
        $(#[doc = $doc:expr])*
        #[launch(threads = $($annotation:tt)*)]
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident($params:ident: $type:ty $(, $address:ident: $address_type:ty)? $(,)?) $body:block
    )*) => {$(
        $crate::kernel!(@annotate [$(#[$attribute])*] $name [] [] threads = $($annotation)*);
        $(#[doc = $doc])*
        $(#[$attribute])*
        #[cfg(target_arch = "nvptx64")]
        #[unsafe(no_mangle)]
        $visibility unsafe extern "ptx-kernel" fn $name($params: $type) {
            $(let $address: $address_type = $crate::kernel!(@address $name);)?
            // SAFETY: the caller's promise covers the body.
            unsafe { $body }
        }
    )*};
    // The annotation is gathered as pieces of an assembly template and the constants that fill its holes.
    (@annotate $attributes:tt $name:ident [$($piece:expr,)*] [$($constant:expr,)*]
        $key:ident = [$first:expr $(, $value:expr)* $(,)?] $(, $($rest:tt)*)?) => {
        $crate::kernel!(@annotate $attributes $name
            [$($piece,)* " ", stringify!($key), "={}", $($crate::kernel!(@hole $value),)*]
            [$($constant,)* $first, $($value,)*] $($($rest)*)?);
    };
    (@annotate $attributes:tt $name:ident [$($piece:expr,)*] [$($constant:expr,)*]
        $key:ident = $value:expr $(, $($rest:tt)*)?) => {
        $crate::kernel!(@annotate $attributes $name
            [$($piece,)* " ", stringify!($key), "={}",] [$($constant,)* $value,] $($($rest)*)?);
    };
    (@annotate [$(#[$attribute:meta])*] $name:ident [$($piece:expr,)*] [$($constant:expr,)*]) => {
        $(#[$attribute])*
        #[cfg(target_arch = "nvptx64")]
        ::core::arch::global_asm!(
            concat!("// @kernel name=", stringify!($name), $($piece),*),
            $(const $constant),*
        );
    };
    (@hole $value:expr) => { ",{}" };
    (@address $name:ident) => {{
        let address: u64;
        // SAFETY: the symbol is this entry's own first parameter; taking its address reads and writes nothing.
        unsafe {
            ::core::arch::asm!(
                "{{",
                ".reg .b64 parameter;",
                concat!("mov.b64 parameter, ", stringify!($name), "_param_0;"),
                "cvta.param.u64 {0}, parameter;",
                "}}",
                out(reg64) address,
                options(pure, nomem, nostack),
            );
            $crate::launch::ParamAddress::new(address)
        }
    }};
}

/// The generic address of a kernel's parameters, see [`kernel!`](crate::kernel).
///
/// The parameters are constant for the whole grid, so a tensor map in them needs no fence before its first use.
/// `cvta.param` needs PTX 7.7 (PTX ISA 9.7.9.21).
#[derive(Clone, Copy, Debug)]
pub struct ParamAddress(u64);

impl ParamAddress {
    /// Wraps the address that [`kernel!`](crate::kernel) took.
    ///
    /// # Safety
    /// - `address` is the generic address of the running kernel's parameters.
    #[doc(hidden)]
    #[inline(always)]
    pub const unsafe fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address of the field `bytes` into the parameters.
    #[inline(always)]
    pub const fn offset(self, bytes: usize) -> *const u8 {
        (self.0 + bytes as u64) as *const u8
    }

    /// The tensor map `bytes` into the parameters, for the instructions of `tma`.
    /// `bytes` is a multiple of 64, and the kernel is declared with `param_align = 64`.
    #[inline(always)]
    pub const fn tensor_map(self, bytes: usize) -> *const u8 {
        self.offset(bytes)
    }
}
