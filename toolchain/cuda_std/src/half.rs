//! Half precision and 8-bit floats: conversions and packed arithmetic (PTX ISA 9.7.4, 9.7.9.21).
//!
//! A pair is a `u32`, its first (lower) element in the low half. For single f16 values the primitive `f16` is best:
//! `x as f32` and `x as f16` are one `cvt` each. bf16 has no primitive; its bits are a `u16`.

use core::arch::asm;

/// Functions of packed words that are one instruction each.
macro_rules! packed {
    ($options:tt $($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> u32 = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name($($argument: $type),*) -> u32 {
            let result: u32;
            // SAFETY: arithmetic only.
            unsafe {
                asm!($instruction, out(reg32) result, $(in(reg32) $argument,)* options $options);
            }
            result
        }
    )*};
}

packed! {
    (pure, nomem, nostack)
    /// `cvt.rn.f16x2.f32`: two f32 rounded to a pair of f16 (sm_80; [`f16x2_from_f32`] elsewhere).
    cvt_rn_f16x2_f32(low: f32, high: f32) -> u32 = "cvt.rn.f16x2.f32 {0}, {2}, {1};";
    /// `cvt.rn.bf16x2.f32`: two f32 rounded to a pair of bf16 (sm_80; [`bf16x2_from_f32`] elsewhere).
    cvt_rn_bf16x2_f32(low: f32, high: f32) -> u32 = "cvt.rn.bf16x2.f32 {0}, {2}, {1};";
    /// `cvt.rna.tf32.f32`: an f32 rounded to the 10 mantissa bits of tf32, ties away from zero (sm_80).
    cvt_rna_tf32_f32(x: f32) -> u32 = "cvt.rna.tf32.f32 {0}, {1};";
    /// `fma.rn.f16x2`: `a·b + c`, each pair rounded once.
    fma_rn_f16x2(a: u32, b: u32, c: u32) -> u32 = "fma.rn.f16x2 {0}, {1}, {2}, {3};";
    /// `add.rn.f16x2`.
    add_rn_f16x2(a: u32, b: u32) -> u32 = "add.rn.f16x2 {0}, {1}, {2};";
    /// `mul.rn.f16x2`.
    mul_rn_f16x2(a: u32, b: u32) -> u32 = "mul.rn.f16x2 {0}, {1}, {2};";
    /// `max.f16x2`: a NaN loses against a number (sm_80).
    max_f16x2(a: u32, b: u32) -> u32 = "max.f16x2 {0}, {1}, {2};";
    /// `ex2.approx.f16x2`: `2^x`, relative error below 2⁻⁹·⁹ (sm_75).
    ex2_approx_f16x2(x: u32) -> u32 = "ex2.approx.f16x2 {0}, {1};";
    /// `tanh.approx.f16x2`: absolute error below 2⁻¹⁰·⁹⁸⁷ (sm_75).
    tanh_approx_f16x2(x: u32) -> u32 = "tanh.approx.f16x2 {0}, {1};";
    /// `fma.rn.bf16x2`: `a·b + c`, each pair rounded once (sm_80).
    fma_rn_bf16x2(a: u32, b: u32, c: u32) -> u32 = "fma.rn.bf16x2 {0}, {1}, {2}, {3};";
    /// `add.rn.bf16x2` (sm_90; `fma` with 1 elsewhere).
    add_rn_bf16x2(a: u32, b: u32) -> u32 = "add.rn.bf16x2 {0}, {1}, {2};";
    /// `mul.rn.bf16x2` (sm_90; `fma` with −0 elsewhere).
    mul_rn_bf16x2(a: u32, b: u32) -> u32 = "mul.rn.bf16x2 {0}, {1}, {2};";
    /// `max.bf16x2`: a NaN loses against a number (sm_80).
    max_bf16x2(a: u32, b: u32) -> u32 = "max.bf16x2 {0}, {1}, {2};";
}

// Registers that feed a wgmma in flight must not be written before its wait, and nothing but its own result ties a
// conversion to a place: these are volatile.
packed! {
    (nomem, nostack)
    /// [`cvt_rn_f16x2_f32`] that stays where it is written, behind the waits before it (sm_80).
    cvt_rn_f16x2_f32_in_order(low: f32, high: f32) -> u32 = "cvt.rn.f16x2.f32 {0}, {2}, {1};";
    /// [`cvt_rn_bf16x2_f32`] that stays where it is written, behind the waits before it (sm_80).
    cvt_rn_bf16x2_f32_in_order(low: f32, high: f32) -> u32 = "cvt.rn.bf16x2.f32 {0}, {2}, {1};";
}

/// [`cvt_rn_f16x2_f32`] by two scalar conversions, on every architecture.
#[inline(always)]
pub fn f16x2_from_f32(low: f32, high: f32) -> u32 {
    (low as f16).to_bits() as u32 | ((high as f16).to_bits() as u32) << 16
}

/// The two f16 of a pair as f32, exactly.
#[inline(always)]
pub fn f32_from_f16x2(pair: u32) -> [f32; 2] {
    [f16::from_bits(pair as u16) as f32, f16::from_bits((pair >> 16) as u16) as f32]
}

/// The bits of `x` rounded to bf16, to nearest even, in integer arithmetic: on every architecture. NaNs become the
/// canonical `0x7FFF`, as in `cvt`.
#[inline(always)]
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = ((bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))) >> 16) as u16;
    if x.is_nan() { 0x7FFF } else { rounded }
}

/// [`cvt_rn_bf16x2_f32`] in integer arithmetic, on every architecture.
#[inline(always)]
pub fn bf16x2_from_f32(low: f32, high: f32) -> u32 {
    bf16_from_f32(low) as u32 | (bf16_from_f32(high) as u32) << 16
}

/// A bf16, given by its bits, as f32, exactly.
#[inline(always)]
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The two bf16 of a pair as f32, exactly.
#[inline(always)]
pub fn f32_from_bf16x2(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000)]
}

/// Functions from a pair of 8-bit floats to a pair of f16.
macro_rules! from_pairs_of_bytes {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(pair: u16) -> u32 {
            let result: u32;
            // SAFETY: arithmetic only.
            unsafe { asm!($instruction, out(reg32) result, in(reg16) pair, options(pure, nomem, nostack)) };
            result
        }
    )*};
}

from_pairs_of_bytes! {
    /// `cvt.rn.f16x2.e4m3x2`: two e4m3 as a pair of f16, exactly (sm_89).
    cvt_rn_f16x2_e4m3x2 = "cvt.rn.f16x2.e4m3x2 {0}, {1};";
    /// `cvt.rn.f16x2.e5m2x2`: two e5m2 as a pair of f16, exactly (sm_89).
    cvt_rn_f16x2_e5m2x2 = "cvt.rn.f16x2.e5m2x2 {0}, {1};";
}

/// `cvt.rn.satfinite.e4m3x2.f32`: two f32 rounded to a pair of e4m3; what is too large becomes ±448 (sm_89).
#[inline(always)]
pub fn cvt_rn_satfinite_e4m3x2_f32(low: f32, high: f32) -> u16 {
    let pair: u16;
    // SAFETY: arithmetic only.
    unsafe {
        asm!("cvt.rn.satfinite.e4m3x2.f32 {0}, {2}, {1};", out(reg16) pair, in(reg32) low, in(reg32) high,
            options(pure, nomem, nostack));
    }
    pair
}

/// `cvt.rn.satfinite.e5m2x2.f32`: two f32 rounded to a pair of e5m2; what is too large becomes ±57344 (sm_89).
#[inline(always)]
pub fn cvt_rn_satfinite_e5m2x2_f32(low: f32, high: f32) -> u16 {
    let pair: u16;
    // SAFETY: arithmetic only.
    unsafe {
        asm!("cvt.rn.satfinite.e5m2x2.f32 {0}, {2}, {1};", out(reg16) pair, in(reg32) low, in(reg32) high,
            options(pure, nomem, nostack));
    }
    pair
}
