//! f32 arithmetic on bit patterns.

use super::{Mode, NAN_F32, Rounding, soft};

/// Replaces a subnormal by zero of the same sign.
#[inline(always)]
#[must_use]
pub fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// Whether `x` is a NaN.
#[inline(always)]
#[must_use]
pub fn is_nan(x: u32) -> bool {
    x & 0x7fff_ffff > 0x7f80_0000
}

#[inline(always)]
fn input(x: u32, mode: Mode) -> u32 {
    if mode.ftz { flush(x) } else { x }
}

#[inline(always)]
fn canonical(x: f32) -> u32 {
    if x.is_nan() { NAN_F32 } else { x.to_bits() }
}

/// Applies `.ftz` and `.sat` to a result.
#[inline(always)]
#[must_use]
pub fn finish(x: u32, mode: Mode) -> u32 {
    let x = input(x, mode);
    if !mode.sat {
        x
    } else if is_nan(x) || x & 0x8000_0000 != 0 {
        0
    } else {
        x.min(0x3f80_0000)
    }
}

#[cold]
fn directed(op: fn(soft::Format, u64, u64, Rounding) -> u64, a: u32, b: u32, rounding: Rounding) -> u32 {
    op(soft::F32, a.into(), b.into(), rounding) as u32
}

/// `add.f32`.
#[inline(always)]
#[must_use]
pub fn add(a: u32, b: u32, mode: Mode) -> u32 {
    let (a, b) = (input(a, mode), input(b, mode));
    let r = match mode.rounding {
        Rounding::NearestEven => canonical(f32::from_bits(a) + f32::from_bits(b)),
        other => directed(soft::add, a, b, other),
    };
    finish(r, mode)
}

/// `sub.f32`.
#[inline(always)]
#[must_use]
pub fn sub(a: u32, b: u32, mode: Mode) -> u32 {
    add(a, b ^ 0x8000_0000, mode)
}

/// `mul.f32`.
#[inline(always)]
#[must_use]
pub fn mul(a: u32, b: u32, mode: Mode) -> u32 {
    let (a, b) = (input(a, mode), input(b, mode));
    let r = match mode.rounding {
        Rounding::NearestEven => canonical(f32::from_bits(a) * f32::from_bits(b)),
        other => directed(soft::mul, a, b, other),
    };
    finish(r, mode)
}

/// `fma.f32` (and `mad.f32`, which is the same on every modelled target).
#[inline(always)]
#[must_use]
pub fn fma(a: u32, b: u32, c: u32, mode: Mode) -> u32 {
    let (a, b, c) = (input(a, mode), input(b, mode), input(c, mode));
    let r = match mode.rounding {
        Rounding::NearestEven => canonical(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c))),
        other => soft::fma(soft::F32, a.into(), b.into(), c.into(), other) as u32,
    };
    finish(r, mode)
}

/// `div.{rn,rz,rm,rp}.f32`.
#[inline]
#[must_use]
pub fn div(a: u32, b: u32, mode: Mode) -> u32 {
    let (a, b) = (input(a, mode), input(b, mode));
    let r = match mode.rounding {
        Rounding::NearestEven => canonical(f32::from_bits(a) / f32::from_bits(b)),
        other => directed(soft::div, a, b, other),
    };
    finish(r, mode)
}

/// `rcp.{rn,rz,rm,rp}.f32`.
#[inline]
#[must_use]
pub fn rcp(a: u32, mode: Mode) -> u32 {
    div(0x3f80_0000, a, mode)
}

/// `sqrt.{rn,rz,rm,rp}.f32`.
#[inline]
#[must_use]
pub fn sqrt(a: u32, mode: Mode) -> u32 {
    let a = input(a, mode);
    let r = match mode.rounding {
        Rounding::NearestEven => canonical(f32::from_bits(a).sqrt()),
        other => soft::sqrt(soft::F32, a.into(), other) as u32,
    };
    finish(r, mode)
}

/// Order of bit patterns as numbers, −0 below +0.
#[inline(always)]
fn key(x: u32) -> i32 {
    (x ^ ((x as i32 >> 31) as u32 >> 1)) as i32
}

/// `min.f32`, `max.f32` and their `.ftz`, `.NaN` and `.xorsign.abs` forms.
#[inline(always)]
fn pick(a: u32, b: u32, ftz: bool, nan: bool, max: bool) -> u32 {
    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
    let first = (key(a) < key(b)) != max;
    let r = if first { a } else { b };
    let r = if is_nan(a) { b } else { r };
    let r = if is_nan(b) { a } else { r };
    let none = if nan {
        is_nan(a) | is_nan(b)
    } else {
        is_nan(a) & is_nan(b)
    };
    if none { NAN_F32 } else { r }
}

/// `min{.ftz}{.NaN}.f32`: the number if one operand is NaN, unless `nan` is set; −0 is less than +0.
#[inline(always)]
#[must_use]
pub fn min(a: u32, b: u32, ftz: bool, nan: bool) -> u32 {
    pick(a, b, ftz, nan, false)
}

/// `max{.ftz}{.NaN}.f32`.
#[inline(always)]
#[must_use]
pub fn max(a: u32, b: u32, ftz: bool, nan: bool) -> u32 {
    pick(a, b, ftz, nan, true)
}

/// The `.xorsign.abs` form of a minimum or maximum: `op` of the magnitudes with the exclusive or of the signs.
#[inline(always)]
#[must_use]
pub fn xorsign_abs(a: u32, b: u32, op: impl Fn(u32, u32) -> u32) -> u32 {
    let r = op(a & 0x7fff_ffff, b & 0x7fff_ffff);
    if is_nan(r) {
        r
    } else {
        (r & 0x7fff_ffff) | ((a ^ b) & 0x8000_0000)
    }
}

/// `abs.f32`. A NaN becomes canonical.
#[inline(always)]
#[must_use]
pub fn abs(a: u32, ftz: bool) -> u32 {
    let a = if ftz { flush(a) } else { a } & 0x7fff_ffff;
    if is_nan(a) { NAN_F32 } else { a }
}

/// `neg.f32`. A NaN becomes canonical.
#[inline(always)]
#[must_use]
pub fn neg(a: u32, ftz: bool) -> u32 {
    let a = if ftz { flush(a) } else { a };
    if is_nan(a) { NAN_F32 } else { a ^ 0x8000_0000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RZ: Mode = Mode::RN.rounding(Rounding::Zero);

    #[test]
    fn rounding_ftz_sat_and_nan() {
        let f = f32::to_bits;
        let tiny = f(2f32.powi(-30));
        assert_eq!(add(f(1.0), tiny, Mode::RN), f(1.0));
        assert_eq!(add(f(1.0), tiny, Mode::RN.rounding(Rounding::Up)), f(1.0) + 1);
        assert_eq!(sub(f(1.0), tiny, RZ), f(1.0) - 1);
        assert_eq!(add(1, 1, Mode::RN), 2);
        assert_eq!(add(1, f(-0.0), Mode::RN.ftz(true)), 0);
        assert_eq!(mul(0x0080_0000, f(-0.5), Mode::RN.ftz(true)), 0x8000_0000);
        assert_eq!(mul(0x0080_0000, f(0.5), Mode::RN), 0x0040_0000);
        assert_eq!(add(f(0.75), f(0.75), Mode::RN.sat(true)), f(1.0));
        assert_eq!(add(f(-0.75), f(0.5), Mode::RN.sat(true)), 0);
        assert_eq!(add(f(f32::INFINITY), f(f32::NEG_INFINITY), Mode::RN), NAN_F32);
        assert_eq!(add(0x7fc0_1234, 0, Mode::RN.sat(true)), 0);
        assert_eq!(
            fma(
                f(1.0 + f32::EPSILON),
                f(1.0 + f32::EPSILON),
                f(-1.0 - 2.0 * f32::EPSILON),
                Mode::RN
            ),
            0x2880_0000
        );
        assert_eq!(div(f(1.0), f(3.0), RZ), 0x3eaa_aaaa);
        assert_eq!(div(f(1.0), f(3.0), Mode::RN), 0x3eaa_aaab);
        assert_eq!(sqrt(f(2.0), Mode::RN.rounding(Rounding::Up)), 0x3fb5_04f4);
        assert_eq!(sqrt(f(2.0), Mode::RN), 0x3fb5_04f3);
        assert_eq!(sqrt(f(-1.0), RZ), NAN_F32);
    }

    #[test]
    fn min_max() {
        let f = f32::to_bits;
        assert_eq!(min(f(0.0), f(-0.0), false, false), f(-0.0));
        assert_eq!(max(f(-0.0), f(0.0), false, false), f(0.0));
        assert_eq!(max(f(-3.0), f(-2.0), false, false), f(-2.0));
        assert_eq!(min(f(-3.0), f(2.0), false, false), f(-3.0));
        assert_eq!(max(f(f32::NEG_INFINITY), f(-2.0), true, false), f(-2.0));
        assert_eq!(max(0x7fc0_0000, f(1.0), false, false), f(1.0));
        assert_eq!(max(f(1.0), 0xffc0_0000, false, true), NAN_F32);
        assert_eq!(max(0xffc0_0000, 0x7f80_0001, false, false), NAN_F32);
        assert_eq!(max(1, f(-1.0), true, false), 0);
        assert_eq!(xorsign_abs(f(-3.0), f(2.0), |a, b| max(a, b, false, false)), f(-3.0));
    }
}
