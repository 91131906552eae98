//! ferroflash's kernels, and the parameter structs that device, host and emulator share.
//!
//! The crate is compiled twice. For the GPU, `cuda_builder` compiles one *unit* of `units.toml` for one tier at a
//! time, so every module with kernels is gated by its unit. For the CPU, stable Rust compiles all modules without
//! the kernels in them: the host needs the parameter structs, and tests need the layout maths.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, f16, stmt_expr_attributes)
)]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(unused_features, reason = "not every unit uses every feature")
)]

pub mod activation;
pub mod angles;
pub mod paging;
pub mod params;
pub mod philox;
#[cfg(target_arch = "nvptx64")]
pub mod pipeline;
pub mod row;
pub mod tile;

#[cfg(any(
    not(target_arch = "nvptx64"),
    unit = "attention_backward_d64",
    unit = "attention_backward_d128",
    unit = "attention_backward_d256",
    unit = "attention_backward_delta",
    unit = "attention_backward_f32",
    unit = "attention_backward_tf32",
    unit = "attention_forward_d64",
    unit = "attention_forward_d96",
    unit = "attention_forward_d128",
    unit = "attention_forward_d192",
    unit = "attention_forward_d256",
    unit = "attention_forward_f32",
    unit = "attention_forward_tf32",
    unit = "decode"
))]
pub mod attention;
#[cfg(any(not(target_arch = "nvptx64"), unit = "cache"))]
pub mod cache;
#[cfg(any(not(target_arch = "nvptx64"), unit = "decode"))]
pub mod decode;
#[cfg(any(not(target_arch = "nvptx64"), unit = "device_tests"))]
pub mod device_tests;
#[cfg(any(not(target_arch = "nvptx64"), unit = "elementwise"))]
pub mod elementwise;
#[cfg(any(not(target_arch = "nvptx64"), unit = "embedding"))]
pub mod embedding;
#[cfg(any(not(target_arch = "nvptx64"), unit = "linear"))]
pub mod linear;
#[cfg(any(not(target_arch = "nvptx64"), unit = "loss"))]
pub mod loss;
#[cfg(any(not(target_arch = "nvptx64"), unit = "norm"))]
pub mod norm;
#[cfg(any(not(target_arch = "nvptx64"), unit = "optimizer"))]
pub mod optimizer;
#[cfg(any(not(target_arch = "nvptx64"), unit = "reduce"))]
pub mod reduce;
#[cfg(any(not(target_arch = "nvptx64"), unit = "rope"))]
pub mod rope;
#[cfg(any(not(target_arch = "nvptx64"), unit = "sampling"))]
pub mod sampling;
#[cfg(any(not(target_arch = "nvptx64"), unit = "softmax"))]
pub mod softmax;
#[cfg(any(not(target_arch = "nvptx64"), unit = "vector_add"))]
pub mod vector_add;

cuda_std::declare_dynamic_shared!();

/// No kernel panics. The compiler asks for a handler all the same, and this one calls what does not exist: a panic that
/// survives optimisation stays visible in the PTX as a call, and the builder's lints reject the image.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    unsafe extern "C" {
        fn panic_in_kernel() -> !;
    }
    // SAFETY: never runs: no image with this call in it leaves the builder.
    unsafe { panic_in_kernel() }
}
