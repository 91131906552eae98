//! The `.approx` functions: computed in f64 and rounded once to f32, so the error is at most half an ulp, inside every bound that
//! the PTX ISA states. Hardware differs from these values within its documented bound.

use super::half::Half;
use super::{Mode, NAN_F32, convert, single};

#[inline(always)]
fn unary(x: u32, ftz: bool, f: impl Fn(f64) -> f64) -> u32 {
    let x = if ftz { single::flush(x) } else { x };
    let r = f(f64::from(f32::from_bits(x))) as f32;
    let r = if r.is_nan() { NAN_F32 } else { r.to_bits() };
    if ftz { single::flush(r) } else { r }
}

/// `ex2.approx{.ftz}.f32`: `2^x`.
#[inline]
#[must_use]
pub fn ex2(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, f64::exp2)
}

/// `lg2.approx{.ftz}.f32`: base-2 logarithm; −∞ at ±0, NaN below.
#[inline]
#[must_use]
pub fn lg2(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, f64::log2)
}

/// `rcp.approx{.ftz}.f32`.
#[inline]
#[must_use]
pub fn rcp(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, |v| 1.0 / v)
}

/// `sqrt.approx{.ftz}.f32`.
#[inline]
#[must_use]
pub fn sqrt(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, f64::sqrt)
}

/// `rsqrt.approx{.ftz}.f32`: −∞ at −0, +∞ at +0.
#[inline]
#[must_use]
pub fn rsqrt(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, |v| 1.0 / v.sqrt())
}

/// `sin.approx{.ftz}.f32`; NaN at ±∞.
#[inline]
#[must_use]
pub fn sin(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, f64::sin)
}

/// `cos.approx{.ftz}.f32`; NaN at ±∞.
#[inline]
#[must_use]
pub fn cos(x: u32, ftz: bool) -> u32 {
    unary(x, ftz, f64::cos)
}

/// `tanh.approx.f32`.
#[inline]
#[must_use]
pub fn tanh(x: u32) -> u32 {
    unary(x, false, f64::tanh)
}

/// `div.approx{.ftz}.f32`: for a divisor of magnitude in `[2^126, 2^128)` the quotient is 0, or NaN for an infinite dividend.
#[inline]
#[must_use]
pub fn div(a: u32, b: u32, ftz: bool) -> u32 {
    let magnitude = b & 0x7fff_ffff;
    if (0x7e80_0000..0x7f80_0000).contains(&magnitude) && !single::is_nan(a) {
        return if a & 0x7fff_ffff == 0x7f80_0000 {
            NAN_F32
        } else {
            (a ^ b) & 0x8000_0000
        };
    }
    div_full(a, b, ftz)
}

/// `div.full{.ftz}.f32`.
#[inline]
#[must_use]
pub fn div_full(a: u32, b: u32, ftz: bool) -> u32 {
    single::div(a, b, Mode::RN.ftz(ftz))
}

/// A 16-bit `.approx` function through f32: `ex2.approx.f16`, `tanh.approx.bf16` and so on.
#[inline]
#[must_use]
pub fn half(kind: Half, h: u16, ftz: bool, f: impl Fn(f64) -> f64) -> u16 {
    let h = if ftz { kind.flush(h) } else { h };
    let wide = f64::from(f32::from_bits(kind.widen(h)));
    // f64 → f32 → 16 bits rounds twice, far inside the approximation's bound.
    let r = kind.narrow(convert::f64_to_f32(f(wide).to_bits(), super::Rounding::NearestEven));
    if ftz { kind.flush(r) } else { r }
}

/// `rcp.approx.ftz.f64`: the low 32 bits of operand and result are ignored and zero.
#[inline]
#[must_use]
pub fn rcp_f64(x: u64) -> u64 {
    f64_high(x, |v| 1.0 / v)
}

/// `rsqrt.approx{.ftz}.f64`: as [`rcp_f64`].
#[inline]
#[must_use]
pub fn rsqrt_f64(x: u64) -> u64 {
    f64_high(x, |v| 1.0 / v.sqrt())
}

fn f64_high(x: u64, f: impl Fn(f64) -> f64) -> u64 {
    let flush = |b: u64| {
        if b & 0x7ff0_0000_0000_0000 == 0 { b & 1 << 63 } else { b }
    };
    let r = f(f64::from_bits(flush(x)));
    if r.is_nan() {
        return super::NAN_F64;
    }
    flush(r.to_bits()) & 0xffff_ffff_0000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_special_cases() {
        let f = f32::to_bits;
        let (inf, ninf) = (f(f32::INFINITY), f(f32::NEG_INFINITY));
        assert_eq!(ex2(ninf, true), 0);
        assert_eq!(ex2(inf, true), inf);
        assert_eq!(ex2(f(-0.0), true), f(1.0));
        assert_eq!(ex2(1, true), f(1.0));
        assert_eq!(ex2(f(-130.0), true), 0);
        assert_eq!(ex2(f(-130.0), false), f(2f32.powi(-130)));
        assert_eq!(ex2(f(10.0), false), f(1024.0));
        assert_eq!(lg2(f(-0.0), false), ninf);
        assert_eq!(lg2(1, true), ninf);
        assert_eq!(lg2(1, false), f(-149.0));
        assert_eq!(lg2(f(-1.0), false), NAN_F32);
        assert_eq!(rcp(f(-0.0), false), ninf);
        assert_eq!(rcp(1, true), inf);
        assert_eq!(rcp(ninf, false), f(-0.0));
        assert_eq!(rsqrt(f(-0.0), false), ninf);
        assert_eq!(rsqrt(f(-1.0), false), NAN_F32);
        assert_eq!(sqrt(f(-0.0), false), f(-0.0));
        assert_eq!(sin(inf, false), NAN_F32);
        assert_eq!(cos(1, true), f(1.0));
        assert_eq!(tanh(inf), f(1.0));
        assert_eq!(div(f(1.0), f(2f32.powi(126)), false), 0);
        assert_eq!(div(inf, f(2f32.powi(126)), false), NAN_F32);
        assert_eq!(div(f(6.0), f(3.0), false), f(2.0));
        assert_eq!(half(Half::F16, 0x4000, false, f64::exp2), 0x4400);
        assert_eq!(rcp_f64(4f64.to_bits()), 0.25f64.to_bits());
        assert_eq!(rcp_f64(3f64.to_bits()) as u32, 0);
    }
}
