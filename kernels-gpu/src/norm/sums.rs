//! Sums over a row that warps, blocks and clusters join by one exchange (sm_90).

use crate::row::*;
use cuda_std::{math, thread, warp};

/// What a group of threads knows of its elements of a row: sums relative to the group's own mean, which loses nothing
/// wherever that lies, and so one exchange joins all of them (Chan, Golub and LeVeque 1983).
#[derive(Clone, Copy)]
pub struct Sums {
    /// Of the elements; of RMSNorm, which has no mean, 0.
    pub total: f32,
    /// Of what the elements differ by from the mean: what its rounding left.
    pub left: f32,
    /// Of the squares of that.
    pub square: f32,
    /// Of its products with `g`.
    pub product: f32,
    /// Of `g`.
    pub through: f32,
}

impl Sums {
    pub const NONE: Sums = Sums {
        total: 0.0,
        left: 0.0,
        square: 0.0,
        product: 0.0,
        through: 0.0,
    };

    /// Those of all lanes together, each with `M` groups of `count` elements, `share` = 1/count; `whole` is 1 over the sum
    /// of all counts.
    #[inline(always)]
    pub unsafe fn join<const M: usize, const CENTERED: bool>(groups: [(Sums, Count); M], whole: f32) -> Sums {
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut all = Self::of_lane::<M, CENTERED>(groups, whole);
            if CENTERED {
                all.left = warp::reduce_sum::<32>(all.left);
                all.through = warp::reduce_sum::<32>(all.through);
            }
            all.square = warp::reduce_sum::<32>(all.square);
            all.product = warp::reduce_sum::<32>(all.product);
            all
        }
    }

    /// What a lane adds to the sums of all lanes, but for the total, which is that of all.
    #[inline(always)]
    unsafe fn of_lane<const M: usize, const CENTERED: bool>(groups: [(Sums, Count); M], whole: f32) -> Sums {
        let mut all = Sums::NONE;
        let mut i = 0;
        while i < M {
            all.total += groups[i].0.total;
            i += 1;
        }
        // SAFETY: forwarded to the caller.
        unsafe {
            if CENTERED {
                all.total = warp::reduce_sum::<32>(all.total);
            }
            let mut i = 0;
            while i < M {
                let (own, count) = groups[i];
                if CENTERED {
                    let off = own.total * count.share - all.total * whole;
                    let left = math::fma(count.elements, off, own.left);
                    all.left += left;
                    all.square += math::fma(off, own.left + left, own.square);
                    all.product += math::fma(off, own.through, own.product);
                    all.through += own.through;
                } else {
                    all.square += own.square;
                    all.product += own.product;
                }
                i += 1;
            }
        }
        all
    }
}

/// How many elements of a row a group of threads has.
#[derive(Clone, Copy)]
pub struct Count {
    pub elements: f32,
    /// 1 over that; 0 where there are none.
    pub share: f32,
}

impl Count {
    /// Of the threads of a team from `first` on, `threads` of them.
    #[inline(always)]
    pub fn of<T: Team, const N: usize>(columns: u32, first: u32, threads: u32) -> Count {
        let mut count = 0;
        let mut k = 0;
        while k < N {
            let begin = (first + k as u32 * T::lanes()) * WIDTH;
            let rest = if begin < columns { columns - begin } else { 0 };
            let most = threads * WIDTH;
            count += if rest < most { rest } else { most };
            k += 1;
        }
        let elements = count as f32;
        let share = if count > 0 { 1.0 / elements } else { 0.0 };
        Count { elements, share }
    }

    /// Of the warp whose slot is the `index`-th of those that this lane reads: slots are numbered block by block, as lanes are.
    #[inline(always)]
    pub fn of_slot<T: Team, const N: usize>(columns: u32, index: u32) -> Count {
        let slot = thread::lane_id() + index * 32;
        let there = slot < T::lanes() / 32;
        Count::of::<T, N>(if there { columns } else { 0 }, slot * 32, 32)
    }
}

impl Sums {
    /// Gives those of this warp to the team.
    #[inline(always)]
    pub unsafe fn publish<T: Team, const CENTERED: bool>(self, exchange: &Exchange) {
        let first = [self.square, self.product, self.total, self.through];
        // SAFETY: forwarded to the caller.
        unsafe {
            if CENTERED {
                exchange.publish::<T, 2>([first, [self.left, 0.0, 0.0, 0.0]]);
            } else {
                exchange.publish::<T, 1>([first]);
            }
        }
    }

    /// Those of the team. Each lane reads `M` slots, whose warps have `counts`; `whole` is 1 over the elements of the row.
    #[inline(always)]
    pub unsafe fn collect<T: Team, const M: usize, const CENTERED: bool>(
        exchange: &mut Exchange,
        counts: [Count; M],
        whole: f32,
    ) -> Sums {
        let mut groups = [(Sums::NONE, counts[0]); M];
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut rest = [[0.0; 4]; M];
            let mut firsts = [[0.0; 4]; M];
            if CENTERED {
                let slots = exchange.collect::<T, M, 2>([[0.0; 4]; 2]);
                let mut i = 0;
                while i < M {
                    [firsts[i], rest[i]] = slots[i];
                    i += 1;
                }
            } else {
                let slots = exchange.collect::<T, M, 1>([[0.0; 4]]);
                let mut i = 0;
                while i < M {
                    [firsts[i]] = slots[i];
                    i += 1;
                }
            }
            let mut i = 0;
            while i < M {
                let [square, product, total, through] = firsts[i];
                let sums = Sums {
                    total,
                    left: rest[i][0],
                    square,
                    product,
                    through,
                };
                groups[i] = (sums, counts[i]);
                i += 1;
            }
            Sums::join::<M, CENTERED>(groups, whole)
        }
    }
}
