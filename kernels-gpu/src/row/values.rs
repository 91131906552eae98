//! Arithmetic of eight neighbouring elements.

use super::WIDTH;
use cuda_std::math;

/// Eight neighbouring elements, as f32.
pub type Vector = [f32; 8];

/// log₂ e.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// ln 2.
pub const LN_2: f32 = core::f32::consts::LN_2;

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
