//! Arithmetic that Rust's operators do not name (PTX ISA 9.7.1, 9.7.3, 9.7.7.6, 9.7.9.7).
//!
//! Rust never contracts `a * b + c`: [`fma`] asks for it. The approximations flush subnormal inputs and results to
//! zero (`.ftz`), and their stated errors are the manual's.

use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.fma.f32"]
    safe fn fma_f32(a: f32, b: f32, c: f32) -> f32;
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f"]
    safe fn ex2_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.ftz.f"]
    safe fn lg2_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    safe fn rcp_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rsqrt.approx.ftz.f"]
    safe fn rsqrt_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sqrt.approx.ftz.f"]
    safe fn sqrt_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sqrt.rn.f"]
    safe fn sqrt_rn_f32(x: f32) -> f32;
    #[link_name = "llvm.nvvm.sin.approx.ftz.f"]
    safe fn sin_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.cos.approx.ftz.f"]
    safe fn cos_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.fmax.f"]
    safe fn fmax_f32(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmin.f"]
    safe fn fmin_f32(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmax.nan.f"]
    safe fn fmax_nan_f32(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmin.nan.f"]
    safe fn fmin_nan_f32(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.prmt"]
    safe fn prmt_b32(a: u32, b: u32, selector: u32) -> u32;
}

/// Functions of floats that are one instruction each.
macro_rules! float_functions {
    ($($(#[$doc:meta])* $name:ident($($argument:ident),*) = $intrinsic:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name($($argument: f32),*) -> f32 {
            $intrinsic($($argument),*)
        }
    )*};
}

float_functions! {
    /// `fma.rn.f32`: `a·b + c`, rounded once.
    fma(a, b, c) = fma_f32;
    /// `ex2.approx.ftz.f32`: `2^x`, relative error below 2⁻²².
    ex2(x) = ex2_approx_ftz;
    /// `lg2.approx.ftz.f32`: `log₂ x`; absolute error below 2⁻²² for `x` in 0.5 to 2, relative elsewhere.
    lg2(x) = lg2_approx_ftz;
    /// `rcp.approx.ftz.f32`: `1/x`, at most 1 unit in the last place.
    rcp(x) = rcp_approx_ftz;
    /// `rsqrt.approx.ftz.f32`: `1/√x`, relative error below 2⁻²².
    rsqrt(x) = rsqrt_approx_ftz;
    /// `sqrt.approx.ftz.f32`: `√x`, relative error below 2⁻²².
    sqrt(x) = sqrt_approx_ftz;
    /// `sqrt.rn.f32`: `√x`, correctly rounded.
    sqrt_rn(x) = sqrt_rn_f32;
    /// `sin.approx.ftz.f32`: absolute error below 2⁻²⁰ for `x` in −π to π; worse outside: reduce the argument first.
    sin(x) = sin_approx_ftz;
    /// `cos.approx.ftz.f32`: as [`sin`].
    cos(x) = cos_approx_ftz;
    /// `max.f32`: the greater; a NaN loses against a number.
    fmax(a, b) = fmax_f32;
    /// `min.f32`: the smaller; a NaN loses against a number.
    fmin(a, b) = fmin_f32;
    /// `max.NaN.f32`: the greater; NaN if either is (sm_80).
    fmax_nan(a, b) = fmax_nan_f32;
    /// `min.NaN.f32`: the smaller; NaN if either is (sm_80).
    fmin_nan(a, b) = fmin_nan_f32;
}

/// `tanh.approx.f32`: relative error below 2⁻¹¹ (sm_75).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let result: f32;
    // SAFETY: arithmetic only.
    unsafe { asm!("tanh.approx.f32 {0}, {1};", out(reg32) result, in(reg32) x, options(pure, nomem, nostack)) };
    result
}

/// `prmt.b32`: four bytes chosen from the eight of `b:a`; each nibble of `selector` names one, 0 to 3 in `a`, 4 to 7
/// in `b`; its top bit replicates the byte's sign.
#[inline(always)]
pub fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    prmt_b32(a, b, selector)
}

/// `lop3.b32`: any bitwise function of three words, given by its truth table
/// `f(0xF0, 0xCC, 0xAA)`.
#[inline(always)]
pub fn lop3<const TABLE: u32>(a: u32, b: u32, c: u32) -> u32 {
    const { assert!(TABLE < 256) };
    let result: u32;
    // SAFETY: arithmetic only.
    unsafe {
        asm!("lop3.b32 {0}, {1}, {2}, {3}, {4};", out(reg32) result, in(reg32) a, in(reg32) b, in(reg32) c,
            const TABLE, options(pure, nomem, nostack));
    }
    result
}

/// `bfe.u32`: `length` bits of `value` from bit `start`, zero-extended.
#[inline(always)]
pub fn bfe(value: u32, start: u32, length: u32) -> u32 {
    let result: u32;
    // SAFETY: arithmetic only.
    unsafe {
        asm!("bfe.u32 {0}, {1}, {2}, {3};", out(reg32) result, in(reg32) value, in(reg32) start, in(reg32) length,
            options(pure, nomem, nostack));
    }
    result
}
