//! Mean and variance of a row of 16-bit elements that registers hold, in one pass and one exchange.

use super::device::{Geometry, Statistics};
use crate::row::*;
use crate::tile::element::Element;
use cuda_std::{math, thread, warp};

/// What a warp knows of its elements of a row: sums of the differences from one of the values near them, and of their squares.
pub struct Moments {
    pivot: f32,
    left: f32,
    square: f32,
}

impl Moments {
    /// Around the mean of the first eight elements of the warp. That is one of so many elements of the row, so that what
    /// cancels later is no more than their number: 16 bits do not show it. A row of equal elements has no differences at all.
    ///
    /// # Safety
    /// - All lanes come here together; `part` is 0 beyond the row.
    #[inline(always)]
    pub unsafe fn of_warp<T: Team, E: Element, const N: usize, const WHOLE: bool>(
        columns: u32,
        part: &Part<E, N>,
    ) -> Moments {
        let first = E::unpack8(part[0]);
        let near = if WHOLE || columns >= WIDTH {
            add_up(first) * 0.125
        } else {
            first[0]
        };
        // SAFETY: forwarded to the caller.
        unsafe {
            let pivot = warp::shfl_idx(near, 0);
            let (mut left, mut square) = (0.0, 0.0);
            let mut k = 0;
            while k < N {
                let column = column_of::<T>(0, k);
                let mut d = map(E::unpack8(part[k]), |s| s - pivot);
                if !WHOLE {
                    d = inside(d, column, columns, 0.0);
                }
                left = add_if(left, add_up(d), column < columns);
                square = add_if(square, squares(d), column < columns);
                k += 1;
            }
            Moments {
                pivot,
                left: warp::reduce_sum::<32>(left),
                square: warp::reduce_sum::<32>(square),
            }
        }
    }

    /// As the warps exchange them.
    #[inline(always)]
    pub fn values(&self) -> [f32; 4] {
        [self.pivot, self.left, self.square, 0.0]
    }

    /// Of the row: those of its warps, `M` in each lane, that of warp `lane + 32i` at `i`, joined around the first warp's value.
    ///
    /// # Safety
    /// - All lanes come here together.
    #[inline(always)]
    pub unsafe fn join<T: Team, const N: usize, const M: usize>(p: &Geometry, values: [[f32; 4]; M]) -> Statistics {
        let (mut left, mut square) = (0.0, 0.0);
        // SAFETY: forwarded to the caller.
        unsafe {
            let mean = warp::shfl_idx(values[0][0], 0);
            let mut i = 0;
            while i < M {
                let [pivot, its_left, its_square, _] = values[i];
                let count = elements::<T, N>(p.columns, thread::lane_id() + i as u32 * 32);
                let off = if count > 0.0 { pivot - mean } else { 0.0 };
                let moved = count * off;
                left += its_left + moved;
                square += math::fma(off, 2.0 * its_left + moved, its_square);
                i += 1;
            }
            let rest = warp::reduce_sum::<32>(left) * p.reciprocal;
            let square = warp::reduce_sum::<32>(square) * p.reciprocal;
            Statistics::of(mean, rest, square - rest * rest, p.epsilon)
        }
    }
}

/// Elements of a row that warp `index` of a team has.
#[inline(always)]
fn elements<T: Team, const N: usize>(columns: u32, index: u32) -> f32 {
    if index >= T::lanes() / 32 {
        return 0.0;
    }
    let mut count = 0;
    let mut k = 0;
    while k < N {
        let begin = (index * 32 + k as u32 * T::lanes()) * WIDTH;
        let rest = if begin < columns { columns - begin } else { 0 };
        count += if rest < 32 * WIDTH { rest } else { 32 * WIDTH };
        k += 1;
    }
    count as f32
}
