//! [`kernel!`](crate::kernel): a kernel entry together with the launch bounds it is compiled for.

/// Declares a kernel: an entry of the PTX image, and the annotation beside it that `cuda_builder` reads.
///
/// ```ignore
/// kernel! {
///     /// `y = x + y`.
///     [threads = [256], min_blocks = 2]
///     unsafe fn saxpy(params: SaxpyParams) {
///         // …
///     }
/// }
/// ```
///
/// The kernel exists on the device only; on the CPU the macro expands to nothing. `rustc` has no attribute
/// for launch bounds, so the annotation travels as an assembly comment,
/// `// @kernel name=saxpy threads=256, min_blocks=2`, and the builder writes the directives. Values are constant
/// expressions. The keys (see `cuda_builder::annotation`) are:
///
/// | key | value | effect |
/// |---|---|---|
/// | `threads` | `[x]`, `[x, y]` or `[x, y, z]` | `.reqntid`; required |
/// | `min_blocks` | `n` | `.minnctapersm` |
/// | `cluster` | `[x, y, z]` | `.reqnctapercluster` |
/// | `param_align` | `64` | alignment of a parameter passed by value (a tensor map needs 64) |
/// | `barriers` | `n` | number of barrier instructions the lints must find |
/// | `wgmma` | `n` | number of `wgmma.mma_async` the lints must find |
/// | `tensor_core` | `1` | local memory is forbidden |
/// | `f64` | `1` | double precision is meant |
///
/// # Safety
/// The body is that of an `unsafe fn`: the host promises what the kernel's documentation asks for.
#[macro_export]
macro_rules! kernel {
    (
        $(#[$attribute:meta])*
        [$($annotation:tt)*]
        $visibility:vis unsafe fn $name:ident($($parameter:ident : $type:ty),* $(,)?) $body:block
    ) => {
        $crate::kernel!(@annotate $name [] [] $($annotation)*);
        $(#[$attribute])*
        #[cfg(target_arch = "nvptx64")]
        #[unsafe(no_mangle)]
        $visibility unsafe extern "ptx-kernel" fn $name($($parameter: $type),*) $body
    };
    // The annotation is gathered as pieces of an assembly template and the constants that fill its holes.
    (@annotate $name:ident [$($piece:expr,)*] [$($constant:expr,)*] $key:ident = [$($value:expr),+ $(,)?] $(, $($rest:tt)*)?) => {
        $crate::kernel!(@annotate $name
            [$($piece,)* " ", stringify!($key), "=", $($crate::kernel!(@hole $value),)+]
            [$($constant,)* $($value,)+] $($($rest)*)?);
    };
    (@annotate $name:ident [$($piece:expr,)*] [$($constant:expr,)*] $key:ident = $value:expr $(, $($rest:tt)*)?) => {
        $crate::kernel!(@annotate $name
            [$($piece,)* " ", stringify!($key), "={}",] [$($constant,)* $value,] $($($rest)*)?);
    };
    (@annotate $name:ident [$($piece:expr,)*] [$($constant:expr,)*]) => {
        #[cfg(target_arch = "nvptx64")]
        ::core::arch::global_asm!(
            concat!("// @kernel name=", stringify!($name), $($piece),*),
            $(const $constant),*
        );
    };
    (@hole $value:expr) => { "{}," };
}
