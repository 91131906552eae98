//! CUDA's device instructions as Rust functions, for rustc's NVPTX backend.
//!
//! The crate is empty of instructions on the CPU: there it only lets the code around the kernels
//! (parameter structs, layout maths) compile with stable Rust.
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, stdarch_nvptx, asm_experimental_arch, link_llvm_intrinsics)
)]
// `link_llvm_intrinsics` is how a convergent instruction is named at all: assembly blocks are not convergent.
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

mod launch;
