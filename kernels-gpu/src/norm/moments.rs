//! Mean and variance of a row of 16-bit elements that registers hold, in one pass and one exchange.

use super::device::Statistics;
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
}

/// Elements of a row that `warps` warps of a team have, from warp `index` on; those are of one block.
#[inline(always)]
fn elements<T: Team, const N: usize>(columns: u32, index: u32, warps: u32) -> f32 {
    if index >= T::lanes() / 32 {
        return 0.0;
    }
    let most = warps * (32 * WIDTH);
    let mut count = 0;
    let mut k = 0;
    while k < N {
        let begin = (index * 32 + k as u32 * T::lanes()) * WIDTH;
        let rest = if begin < columns { columns - begin } else { 0 };
        count += if rest < most { rest } else { most };
        k += 1;
    }
    count as f32
}

/// How many elements of a row a group of threads has, and 1 over that: 0 where there are none.
#[derive(Clone, Copy)]
pub struct Count {
    pub elements: f32,
    pub share: f32,
}

impl Count {
    #[inline(always)]
    fn new(elements: f32) -> Count {
        let share = if elements > 0.0 { 1.0 / elements } else { 0.0 };
        Count { elements, share }
    }

    /// Of the warp of this block that has the number of this lane, from 0 again behind the last.
    #[inline(always)]
    pub fn of_warp<T: Team, const N: usize>(columns: u32) -> Count {
        let warps = T::LANES / 32;
        let index = T::rank() * warps + (thread::lane_id() & (warps - 1));
        Count::new(elements::<T, N>(columns, index, 1))
    }

    /// Of the block of the cluster that has the number of this lane modulo 8.
    #[inline(always)]
    pub fn of_block<T: Team, const N: usize>(columns: u32) -> Count {
        let warps = T::LANES / 32;
        Count::new(elements::<T, N>(columns, (thread::lane_id() & 7) * warps, warps))
    }
}

/// Joins what `L` groups know, one a lane: pivot, and sums around it. The result's pivot is the mean of the first group.
///
/// # Safety
/// - All lanes come here together.
#[inline(always)]
pub unsafe fn join_groups<const L: u32, const CENTERED: bool>(values: [f32; 4], count: Count) -> [f32; 4] {
    let [pivot, left, square, _] = values;
    // SAFETY: forwarded to the caller.
    unsafe {
        if !CENTERED {
            return [0.0, 0.0, warp::reduce_sum::<L>(square), 0.0];
        }
        let near = warp::shfl_idx(math::fma(left, count.share, pivot), 0);
        let off = if count.elements > 0.0 { pivot - near } else { 0.0 };
        let moved = count.elements * off;
        let square = math::fma(off, 2.0 * left + moved, square);
        [
            near,
            warp::reduce_sum::<L>(left + moved),
            warp::reduce_sum::<L>(square),
            0.0,
        ]
    }
}

/// Of a row of which all is known.
#[inline(always)]
pub fn statistics<const CENTERED: bool>(all: [f32; 4], reciprocal: f32, epsilon: f32) -> Statistics {
    let [mean, left, square, _] = all;
    let rest = left * reciprocal;
    let square = square * reciprocal;
    Statistics::of(
        mean,
        rest,
        if CENTERED { square - rest * rest } else { square },
        epsilon,
    )
}

/// What a warp gives to be joined.
///
/// # Safety
/// - All lanes come here together; `part` is 0 beyond the row.
#[inline(always)]
pub unsafe fn of_warp<T: Team, E: Element, const N: usize, const CENTERED: bool, const WHOLE: bool>(
    columns: u32,
    part: &Part<E, N>,
) -> [f32; 4] {
    // SAFETY: forwarded to the caller.
    unsafe {
        if CENTERED {
            return Moments::of_warp::<T, E, N, WHOLE>(columns, part).values();
        }
        let mut square = 0.0;
        let mut k = 0;
        while k < N {
            square += squares(E::unpack8(part[k]));
            k += 1;
        }
        [0.0, 0.0, warp::reduce_sum::<32>(square), 0.0]
    }
}
