//! CUDA's device instructions as Rust functions, for rustc's NVPTX backend.
//!
//! One function is one instruction, named after it, with no policy of its own: what to load, when to wait and who
//! arrives is decided by the kernel. Section numbers are those of NVIDIA's *PTX ISA* manual, version 8.5.
//!
//! # Convergence
//! An `asm!` block is not `convergent` to LLVM, which may copy it into both arms of a divergent branch. So every
//! instruction that several threads execute *together* (barriers, shuffles, votes, matrix products, warpgroup
//! fences, register reallocation) is an LLVM intrinsic here, found by `link_name`; the exceptions have no intrinsic
//! that Rust can name (`wgmma.mma_async`, `ldmatrix`, `stmatrix`) and belong in straight-line code. An action of
//! *one* thread of many is predicated inside its assembly (`mbarrier::arrive_if`), not by a Rust `if`.
//!
//! # Memory
//! Memory that threads share is read and written through `shared::Shared`, `global` and `atomic` or raw pointers
//! only, never through references: `&mut T` promises the compiler that no other thread writes. Plain accesses through
//! a pointer out of the parameter struct are correct but *generic* (`ld.b32`, not `ld.global.b32`), since the compiler
//! cannot know the state space; the functions of `global` say it. Shared memory is named by its 32-bit address in
//! the shared state space, which is what the instructions take.
//!
//! # On the CPU
//! The crate compiles with stable Rust, without the instructions: the code around the kernels (parameter structs,
//! layout maths) is shared with the host.
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(
        abi_unadjusted,
        asm_experimental_arch,
        f16,
        link_llvm_intrinsics,
        repr_simd,
        simd_ffi
    )
)]
// `link_llvm_intrinsics` is how a convergent instruction is named at all: assembly blocks are not convergent.
// `repr_simd` and `simd_ffi` give `<2 x half>` its type.
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

pub mod launch;
pub mod shared;

#[cfg(target_arch = "nvptx64")]
mod access;

/// Declares the modules that exist on the device only.
macro_rules! device_modules {
    ($($name:ident),* $(,)?) => { $(#[cfg(target_arch = "nvptx64")] pub mod $name;)* };
}

device_modules! {
    atomic, barrier, bulk, cp_async, global, grid_dependency, half, math, matrix, mbarrier, register, thread, tma, trap,
    warp, wgmma,
}
