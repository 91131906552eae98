//! Arithmetic of eight neighbouring elements.

use super::WIDTH;
use core::arch::asm;
use cuda_std::math;

/// Eight neighbouring elements, as f32.
pub type Vector = [f32; 8];

/// log₂ e.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// ln 2.
pub const LN_2: f32 = core::f32::consts::LN_2;

/// The value, about which the compiler knows nothing: what is computed from it is computed anew.
#[inline(always)]
pub fn anew(x: f32) -> f32 {
    let same: f32;
    // SAFETY: a move.
    unsafe { asm!("mov.b32 {0}, {1};", out(reg32) same, in(reg32) x, options(nomem, nostack)) };
    same
}

/// As [`anew`], of bits.
#[inline(always)]
pub fn anew_bits(x: u32) -> u32 {
    let same: u32;
    // SAFETY: a move.
    unsafe { asm!("mov.b32 {0}, {1};", out(reg32) same, in(reg32) x, options(nomem, nostack)) };
    same
}

/// `f` of each element.
#[inline(always)]
pub fn map(mut x: Vector, f: impl Fn(f32) -> f32) -> Vector {
    let mut i = 0;
    while i < 8 {
        x[i] = f(x[i]);
        i += 1;
    }
    x
}

/// `f` of each pair of elements.
#[inline(always)]
pub fn zip(mut a: Vector, b: Vector, f: impl Fn(f32, f32) -> f32) -> Vector {
    let mut i = 0;
    while i < 8 {
        a[i] = f(a[i], b[i]);
        i += 1;
    }
    a
}

/// `x · weight + bias`; either may be missing.
#[inline(always)]
pub fn affine(
    mut x: Vector,
    [weighted, biased]: [bool; 2],
    weight: impl FnOnce() -> Vector,
    bias: impl FnOnce() -> Vector,
) -> Vector {
    if weighted {
        let w = weight();
        if !biased {
            return zip(x, w, |x, w| x * w);
        }
        let b = bias();
        let mut i = 0;
        while i < 8 {
            x[i] = math::fma(x[i], w[i], b[i]);
            i += 1;
        }
    } else if biased {
        x = zip(x, bias(), |x, b| x + b);
    }
    x
}

/// The values with those beyond the row replaced by `fill`.
#[inline(always)]
pub fn inside(mut x: Vector, column: u32, columns: u32, fill: f32) -> Vector {
    if column + WIDTH > columns {
        let mut i = 0;
        while i < 8 {
            if column + i as u32 >= columns {
                x[i] = fill;
            }
            i += 1;
        }
    }
    x
}

/// The sum of a vector, as a tree.
#[inline(always)]
pub fn add_up(x: Vector) -> f32 {
    ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))
}

/// The maximum of a vector; a NaN loses against a number.
#[inline(always)]
pub fn greatest(x: Vector) -> f32 {
    let max = math::fmax;
    max(
        max(max(x[0], x[1]), max(x[2], x[3])),
        max(max(x[4], x[5]), max(x[6], x[7])),
    )
}

/// `e^x`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    math::ex2(x * LOG2_E)
}

/// Where a maximum may be subtracted: 0 in a row of −∞.
#[inline(always)]
pub fn finite(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// What exponentials relative to `max` are multiplied by to be relative to `base`; there are none where `max` is −∞.
#[inline(always)]
pub fn faded(max: f32, base: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { exp(max - base) }
}

/// The sum of the squares of a vector, as a tree.
#[inline(always)]
pub fn squares(x: Vector) -> f32 {
    let pair = |a: f32, b: f32| math::fma(b, b, a * a);
    (pair(x[0], x[1]) + pair(x[2], x[3])) + (pair(x[4], x[5]) + pair(x[6], x[7]))
}

/// The sum of the products of two vectors, as a tree.
#[inline(always)]
pub fn products(a: Vector, b: Vector) -> f32 {
    let pair = |i: usize| math::fma(a[i + 1], b[i + 1], a[i] * b[i]);
    (pair(0) + pair(2)) + (pair(4) + pair(6))
}

/// Adds the products of two vectors to sums, each rounded once.
#[inline(always)]
pub fn add_products(sums: &mut Vector, a: Vector, b: Vector) {
    let mut i = 0;
    while i < 8 {
        sums[i] = math::fma(a[i], b[i], sums[i]);
        i += 1;
    }
}

/// Adds what a vector gives to a sum, if the row has the vector.
#[inline(always)]
pub fn add_if(sum: f32, term: f32, inside: bool) -> f32 {
    if inside { sum + term } else { sum }
}

/// As [`faded`], of powers of 2 of differences times `factor`.
#[inline(always)]
pub fn faded_by(max: f32, base: f32, factor: f32) -> f32 {
    if max == f32::NEG_INFINITY {
        0.0
    } else {
        math::ex2((max - base) * factor)
    }
}
