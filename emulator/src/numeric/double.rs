//! f64 arithmetic on bit patterns.
//!
//! A NaN operand comes out again, quiet, with its sign and payload, as on hardware (`docs/calibration.md`); of two the first does.

use super::{NAN_F64, Rounding, soft};

/// A result that no rounding in software made: a NaN is that of the first operand that is one, or new.
#[inline(always)]
fn finish<const N: usize>(x: f64, operands: [u64; N]) -> u64 {
    if x.is_nan() {
        propagated(operands).unwrap_or(NAN_F64)
    } else {
        x.to_bits()
    }
}

/// The first NaN among the operands, quiet.
#[inline]
fn propagated<const N: usize>(operands: [u64; N]) -> Option<u64> {
    operands.into_iter().find(|&x| is_nan(x)).map(quiet)
}

/// A NaN with its quiet bit set; other values as they are.
#[inline(always)]
#[must_use]
pub fn quiet(x: u64) -> u64 {
    if is_nan(x) { x | 1 << 51 } else { x }
}

/// Whether `x` is a NaN.
#[inline(always)]
#[must_use]
pub fn is_nan(x: u64) -> bool {
    x & (u64::MAX >> 1) > 0x7ff0_0000_0000_0000
}

/// `add.f64`.
#[inline(always)]
#[must_use]
pub fn add(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::NearestEven => finish(f64::from_bits(a) + f64::from_bits(b), [a, b]),
        other => propagated([a, b]).unwrap_or_else(|| soft::add(soft::F64, a, b, other)),
    }
}

/// `sub.f64`.
#[inline(always)]
#[must_use]
pub fn sub(a: u64, b: u64, rounding: Rounding) -> u64 {
    add(a, neg(b), rounding)
}

/// `neg.f64`; a NaN keeps its sign.
#[inline(always)]
#[must_use]
pub fn neg(a: u64) -> u64 {
    if is_nan(a) { quiet(a) } else { a ^ 1 << 63 }
}

/// `abs.f64`; a NaN keeps its sign.
#[inline(always)]
#[must_use]
pub fn abs(a: u64) -> u64 {
    if is_nan(a) { quiet(a) } else { a & !(1 << 63) }
}

/// `mul.f64`.
#[inline(always)]
#[must_use]
pub fn mul(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::NearestEven => finish(f64::from_bits(a) * f64::from_bits(b), [a, b]),
        other => propagated([a, b]).unwrap_or_else(|| soft::mul(soft::F64, a, b, other)),
    }
}

/// `fma.f64`.
#[inline(always)]
#[must_use]
pub fn fma(a: u64, b: u64, c: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::NearestEven => finish(
            f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)),
            [a, b, c],
        ),
        other => propagated([a, b, c]).unwrap_or_else(|| soft::fma(soft::F64, a, b, c, other)),
    }
}

/// `div.f64`.
#[inline]
#[must_use]
pub fn div(a: u64, b: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::NearestEven => finish(f64::from_bits(a) / f64::from_bits(b), [a, b]),
        other => propagated([a, b]).unwrap_or_else(|| soft::div(soft::F64, a, b, other)),
    }
}

/// `rcp.f64`.
#[inline]
#[must_use]
pub fn rcp(a: u64, rounding: Rounding) -> u64 {
    div(1f64.to_bits(), a, rounding)
}

/// `sqrt.f64`.
#[inline]
#[must_use]
pub fn sqrt(a: u64, rounding: Rounding) -> u64 {
    match rounding {
        Rounding::NearestEven => finish(f64::from_bits(a).sqrt(), [a]),
        other => propagated([a]).unwrap_or_else(|| soft::sqrt(soft::F64, a, other)),
    }
}

#[inline(always)]
fn key(x: u64) -> i64 {
    (x ^ ((x as i64 >> 63) as u64 >> 1)) as i64
}

#[inline(always)]
fn pick(a: u64, b: u64, max: bool) -> u64 {
    match (is_nan(a), is_nan(b)) {
        (true, true) => a,
        (true, false) => b,
        (false, true) => a,
        _ if (key(a) < key(b)) != max => a,
        _ => b,
    }
}

/// `min.f64`: the number if one operand is NaN; −0 is less than +0.
#[inline(always)]
#[must_use]
pub fn min(a: u64, b: u64) -> u64 {
    pick(a, b, false)
}

/// `max.f64`.
#[inline(always)]
#[must_use]
pub fn max(a: u64, b: u64) -> u64 {
    pick(a, b, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directed_and_special() {
        let f = f64::to_bits;
        assert_eq!(
            div(f(1.0), f(3.0), Rounding::Up),
            div(f(1.0), f(3.0), Rounding::Down) + 1
        );
        assert_eq!(add(f(f64::MAX), f(f64::MAX), Rounding::Zero), f(f64::MAX));
        assert_eq!(add(f(f64::MAX), f(f64::MAX), Rounding::Up), f(f64::INFINITY));
        assert_eq!(mul(f(0.0), f(f64::INFINITY), Rounding::NearestEven), NAN_F64);
        assert_eq!(min(f(0.0), f(-0.0)), f(-0.0));
        assert_eq!(max(f(f64::NAN), f(-5.0)), f(-5.0));
        assert_eq!(sqrt(f(2.0), Rounding::Down), f(2f64.sqrt()) - 1);
    }
}
