//! The operations of the sibling modules on host floats, for callers that hold values rather than bit patterns.
//! No `.ftz`, no `.sat`; NaN results are canonical.

use super::{Mode, Rounding, approx, convert, double, fp8::Fp8, half, half::Half, single, soft};

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $path:path, $mode:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name(a: $ty, b: $ty, rounding: Rounding) -> $ty {
            <$ty>::from_bits($path(a.to_bits(), b.to_bits(), $mode(rounding)))
        }
    )*};
}

#[inline(always)]
fn plain(rounding: Rounding) -> Mode {
    Mode::RN.rounding(rounding)
}

#[inline(always)]
fn same(rounding: Rounding) -> Rounding {
    rounding
}

binary! {
    /// `a + b`.
    f32_add: f32 = single::add, plain;
    /// `a · b`.
    f32_mul: f32 = single::mul, plain;
    /// `a / b`.
    f32_div: f32 = single::div, plain;
    /// `a + b`.
    f64_add: f64 = double::add, same;
    /// `a · b`.
    f64_mul: f64 = double::mul, same;
    /// `a / b`.
    f64_div: f64 = double::div, same;
}

macro_rules! approximations {
    ($($(#[$doc:meta])* $name:ident = $f:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        #[must_use]
        pub fn $name(x: f32) -> f32 {
            f32::from_bits($f(x.to_bits()))
        }
    )*};
}

approximations! {
    /// `2^x`.
    ex2_approx = |x| approx::ex2(x, false);
    /// `log2 x`.
    lg2_approx = |x| approx::lg2(x, false);
    /// `1 / x`.
    rcp_approx = |x| approx::rcp(x, false);
    /// `1 / √x`.
    rsqrt_approx = |x| approx::rsqrt(x, false);
    /// `√x`.
    sqrt_approx = |x| approx::sqrt(x, false);
    /// `sin x`.
    sin_approx = |x| approx::sin(x, false);
    /// `cos x`.
    cos_approx = |x| approx::cos(x, false);
    /// `tanh x`.
    tanh_approx = approx::tanh;
}

/// `a · b + c` with one rounding.
#[inline(always)]
#[must_use]
pub fn f32_fma(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    f32::from_bits(single::fma(a.to_bits(), b.to_bits(), c.to_bits(), plain(rounding)))
}

/// `a · b + c` with one rounding.
#[inline(always)]
#[must_use]
pub fn f64_fma(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    f64::from_bits(double::fma(a.to_bits(), b.to_bits(), c.to_bits(), rounding))
}

/// `√a`.
#[inline]
#[must_use]
pub fn f32_sqrt(a: f32, rounding: Rounding) -> f32 {
    f32::from_bits(single::sqrt(a.to_bits(), plain(rounding)))
}

/// `√a`.
#[inline]
#[must_use]
pub fn f64_sqrt(a: f64, rounding: Rounding) -> f64 {
    f64::from_bits(double::sqrt(a.to_bits(), rounding))
}

/// `1 / a`.
#[inline]
#[must_use]
pub fn f32_rcp(a: f32, rounding: Rounding) -> f32 {
    f32_div(1.0, a, rounding)
}

/// `1 / a`.
#[inline]
#[must_use]
pub fn f64_rcp(a: f64, rounding: Rounding) -> f64 {
    f64_div(1.0, a, rounding)
}

/// Exact.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(h: u16) -> f32 {
    f32::from_bits(half::f16_to_f32(h))
}

/// Exact.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(half::bf16_to_f32(h))
}

/// f32 to f16 bits.
#[inline(always)]
#[must_use]
pub fn f32_to_f16(x: f32, rounding: Rounding) -> u16 {
    half::f32_to_f16(x.to_bits(), rounding)
}

/// f32 to bf16 bits.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: f32, rounding: Rounding) -> u16 {
    half::f32_to_bf16(x.to_bits(), rounding)
}

/// f64 to f32.
#[inline]
#[must_use]
pub fn f64_to_f32(x: f64, rounding: Rounding) -> f32 {
    f32::from_bits(convert::f64_to_f32(x.to_bits(), rounding))
}

/// f64 to f16 bits.
#[inline]
#[must_use]
pub fn f64_to_f16(x: f64, rounding: Rounding) -> u16 {
    soft::convert(soft::F64, soft::F16, x.to_bits(), rounding) as u16
}

/// f32 to the register image of tf32.
#[inline]
#[must_use]
pub fn f32_to_tf32(x: f32, rounding: Rounding) -> u32 {
    convert::f32_to_tf32(x.to_bits(), rounding, false)
}

/// f32 to e4m3, saturating to finite.
#[inline]
#[must_use]
pub fn f32_to_e4m3(x: f32) -> u8 {
    Fp8::E4m3.from_f32(x.to_bits(), false)
}

/// f32 to e5m2, saturating to finite.
#[inline]
#[must_use]
pub fn f32_to_e5m2(x: f32) -> u8 {
    Fp8::E5m2.from_f32(x.to_bits(), false)
}

/// e4m3 to f16 bits, exact.
#[inline]
#[must_use]
pub fn e4m3_to_f16(x: u8) -> u16 {
    half::f32_to_f16(Fp8::E4m3.to_f32(x), Rounding::NearestEven)
}

/// e5m2 to f16 bits, exact.
#[inline]
#[must_use]
pub fn e5m2_to_f16(x: u8) -> u16 {
    half::f32_to_f16(Fp8::E5m2.to_f32(x), Rounding::NearestEven)
}

/// `a · b + c` on f16 bits with one rounding.
#[inline]
#[must_use]
pub fn f16_fma(a: u16, b: u16, c: u16) -> u16 {
    Half::F16.fma(a, b, c, Mode::RN)
}

/// `a · b + c` on bf16 bits with one rounding.
#[inline]
#[must_use]
pub fn bf16_fma(a: u16, b: u16, c: u16) -> u16 {
    Half::Bf16.fma(a, b, c, Mode::RN)
}
