//! Gradients of rows of 16-bit elements, by clusters that take one row after the other (sm_90).
//!
//! As in the forward: one thread asks for rows, most warps take the sums of the next row and then finish the one before, one warp
//! meanwhile joins the sums of that next row. Sums of columns stay in registers.

use super::super::{
    device::Statistics,
    kept::Kept,
    moments::Count,
    turns::{BARRIER_BYTES, Barriers, Rows, parity, set, vectors},
};
use super::{NormBackwardParams, STREAM_AT};
use crate::row::*;
use cuda_std::{barrier::syncwarp, math, mbarrier, shared, thread, warp};

/// Sums of the block's warps, 32 bytes each.
#[inline(always)]
fn of_warps(turn: u32) -> u32 {
    shared::dynamic_base() + set(turn) * 256
}

/// Those of the cluster's blocks.
#[inline(always)]
fn of_blocks(turn: u32) -> u32 {
    shared::dynamic_base() + 512 + set(turn) * 256
}

/// What a row's gradient is made with.
#[inline(always)]
fn of_row(turn: u32) -> u32 {
    shared::dynamic_base() + 1024 + set(turn) * 32
}

#[inline(always)]
fn barriers() -> Barriers {
    const { assert!(1088 + BARRIER_BYTES <= STREAM_AT) };
    Barriers(shared::dynamic_base() + 1088)
}

/// Shared address of the ring.
#[inline(always)]
fn ring() -> u32 {
    shared::dynamic_base() + STREAM_AT
}

/// All rows of a cluster; `store` gets the sums of columns of each working thread.
///
/// # Safety
/// - The tensors have the extents that the parameters say; rows are whole vectors at multiples of 16 bytes, which the cluster
///   holds; dynamic shared memory of `stream_bytes`, of up to 8 stages; RMSNorm has no bias.
#[inline(always)]
pub unsafe fn gradients<E: Kept, T: Team, const N: usize>(
    p: &NormBackwardParams,
    store: impl Fn(&[Vector; N], &[Vector; N]) + Copy,
) {
    let warps = T::LANES / 32;
    // SAFETY: forwarded to the caller.
    unsafe {
        barriers().begin::<T>(p.stages);
        let warp = thread::warp_idx();
        if warp > warps {
            if thread::lane_id() == 0 {
                let rows = Rows {
                    matrices: [(p.x, p.x_stride), (p.dy, p.dy_stride)],
                    rows: p.rows,
                    columns: p.columns,
                    stages: p.stages,
                    ring: ring(),
                };
                rows.ask::<T, E, N>(barriers());
            }
        } else if p.centered != 0 {
            if warp == warps {
                join::<T, N, true>(p);
            } else {
                work::<T, E, N, true>(p, store);
            }
        } else if warp == warps {
            join::<T, N, false>(p);
        } else {
            work::<T, E, N, false>(p, store);
        }
    }
}

/// Sums of a row, of differences from a pivot.
#[derive(Clone, Copy)]
struct Sums {
    pivot: f32,
    /// Of the differences, and of their squares.
    left: f32,
    square: f32,
    /// Of the gradients through the weight, and of their products with the differences.
    through: f32,
    product: f32,
}

impl Sums {
    #[inline(always)]
    unsafe fn at(address: u32) -> Sums {
        // SAFETY: forwarded to the caller.
        unsafe {
            let [pivot, left, square, through]: [f32; 4] = shared::ld(address);
            Sums {
                pivot,
                left,
                square,
                through,
                product: shared::ld(address + 16),
            }
        }
    }

    /// Those of `L` groups, one a lane, together; around the mean of the first.
    #[inline(always)]
    unsafe fn join<const L: u32, const CENTERED: bool>(self, count: Count) -> Sums {
        let mut all = self;
        // SAFETY: forwarded to the caller.
        unsafe {
            if CENTERED {
                let near = warp::shfl_idx(math::fma(self.left, count.share, self.pivot), 0);
                let off = if count.elements > 0.0 { self.pivot - near } else { 0.0 };
                let moved = count.elements * off;
                all.pivot = near;
                all.left = warp::reduce_sum::<L>(self.left + moved);
                all.through = warp::reduce_sum::<L>(self.through);
                all.square = math::fma(off, 2.0 * self.left + moved, self.square);
                all.product = math::fma(off, self.through, self.product);
            }
            all.square = warp::reduce_sum::<L>(all.square);
            all.product = warp::reduce_sum::<L>(all.product);
            all
        }
    }
}

/// Joins the sums of one row after the other.
#[inline(always)]
unsafe fn join<T: Team, const N: usize, const CENTERED: bool>(p: &NormBackwardParams) {
    const NONE: Sums = Sums {
        pivot: 0.0,
        left: 0.0,
        square: 0.0,
        through: 0.0,
        product: 0.0,
    };
    let warps = const { T::LANES / 32 };
    const { assert!(T::LANES == 256) };
    let lane = thread::lane_id();
    let (of_warp, of_block) = (Count::of_warp::<T, N>(p.columns), Count::of_block::<T, N>(p.columns));
    let mut turn = 0;
    let mut row = T::first();
    // SAFETY: forwarded to the caller; sets of places are used in turn, and a row is begun when the one before is known.
    unsafe {
        while row < p.rows {
            let several = T::blocks() > 1;
            let joined = barriers().joined(turn);
            mbarrier::arrive_expect_tx_if(joined, T::blocks() * 32, several && lane == 0);
            mbarrier::wait_parity(barriers().summed(turn), parity(turn));
            let own = Sums::at(of_warps(turn) + (lane & (warps - 1)) * 32);
            let mut all = own.join::<8, CENTERED>(of_warp);
            if several {
                if lane < T::blocks() {
                    let slot = shared::mapa(of_blocks(turn) + T::rank() * 32, lane);
                    let there = shared::mapa(joined, lane);
                    shared::st_async_4(slot, [all.pivot, all.left, all.square, all.through], there);
                    shared::st_async_4(slot + 16, [all.product, 0.0, 0.0, 0.0], there);
                }
                mbarrier::wait_parity(joined, parity(turn));
                let mut other = NONE;
                if lane & 7 < T::blocks() {
                    other = Sums::at(of_blocks(turn) + (lane & 7) * 32);
                }
                all = other.join::<8, CENTERED>(of_block);
            }
            let square = all.square * p.reciprocal;
            let statistics = if CENTERED {
                let rest = all.left * p.reciprocal;
                Statistics::of(all.pivot, rest, square - rest * rest, p.epsilon)
            } else {
                Statistics::of(0.0, 0.0, square, p.epsilon)
            };
            let scale = statistics.scale;
            // Of g·x̂.
            let mut along = all.product * scale;
            if CENTERED {
                along += all.through * statistics.offset;
            }
            let slope = -(along * p.reciprocal) * scale;
            let flat = -(all.through * p.reciprocal) * scale;
            if lane == 0 {
                shared::st(of_row(turn), [statistics.mean, scale, statistics.offset, slope]);
                shared::st(of_row(turn) + 16, flat);
            }
            mbarrier::arrive_if(barriers().known(turn), lane == 0);
            turn += 1;
            row += T::step();
        }
    }
}

/// Sums over all lanes of four values, in fewer shuffles than one after the other: lane `i` has that of `values[i mod 4]`.
#[inline(always)]
unsafe fn over_warp([a, b, c, d]: [f32; 4]) -> f32 {
    let lane = thread::lane_id();
    let (odd, upper) = (lane & 1 != 0, lane & 2 != 0);
    let choose = |second: bool, a: f32, b: f32| if second { b } else { a };
    // SAFETY: forwarded to the caller.
    unsafe {
        let ab = choose(odd, a, b) + warp::shfl_bfly(choose(odd, b, a), 1);
        let cd = choose(odd, c, d) + warp::shfl_bfly(choose(odd, d, c), 1);
        let mut sum = choose(upper, ab, cd) + warp::shfl_bfly(choose(upper, cd, ab), 2);
        let mut lanes = 4;
        while lanes < 32 {
            sum += warp::shfl_bfly(sum, lanes);
            lanes *= 2;
        }
        sum
    }
}

/// Takes the sums of the next row, and finishes the one before.
#[inline(always)]
unsafe fn work<T: Team, E: Kept, const N: usize, const CENTERED: bool>(
    p: &NormBackwardParams,
    store: impl Fn(&[Vector; N], &[Vector; N]),
) {
    let size = size_of::<E>() as u64;
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    let mut weights = [E::ZEROS; N];
    let mut k = 0;
    while k < N {
        weights[k] = E::pack8([1.0; 8]);
        if p.weight != 0 && inside(k) {
            // SAFETY: the host gives a weight a column, aligned.
            weights[k] = unsafe { E::load8_packed_cached((p.weight as *const E).add(column_of::<T>(0, k) as usize)) };
        }
        k += 1;
    }
    let weight = #[inline(always)]
    |k: usize| E::unpack8(E::anew(weights[k]));
    let (mut dweight, mut dbias) = ([[0.0f32; 8]; N], [[0.0f32; 8]; N]);
    let lane = thread::lane_id();
    let (mut stage, mut behind) = (Stage::FIRST, Stage::FIRST);
    let mut turn = 0;
    let mut row = T::first();
    // SAFETY: forwarded to the caller; each element is one thread's.
    unsafe {
        loop {
            let more = row < p.rows;
            if more {
                mbarrier::wait_parity(barriers().filled(stage), stage.phase);
                let xs = vectors::<T, E, N, 2>(ring(), p.columns, stage, 0);
                let dys = vectors::<T, E, N, 2>(ring(), p.columns, stage, 1);
                let mut pivot = 0.0;
                if CENTERED {
                    pivot = warp::shfl_idx(add_up(E::unpack8(xs[0])) * 0.125, 0);
                }
                let (mut left, mut square, mut through, mut product) = (0.0, 0.0, 0.0, 0.0);
                let mut k = 0;
                while k < N {
                    // Beyond the row `dy` is 0, and with it `g`.
                    let g = zip(E::unpack8(dys[k]), weight(k), |dy, w| dy * w);
                    let mut d = E::unpack8(xs[k]);
                    if CENTERED {
                        d = map(d, |s| s - pivot);
                        left = add_if(left, add_up(d), inside(k));
                        square = add_if(square, squares(d), inside(k));
                        through += add_up(g);
                    } else {
                        square += squares(d);
                    }
                    product += products(g, d);
                    k += 1;
                }
                let slot = of_warps(turn) + thread::warp_idx() * 32;
                let sum = over_warp([left, square, through, product]);
                if lane < 5 {
                    let (at, value) = if lane == 4 { (0, pivot) } else { (lane + 1, sum) };
                    shared::st(slot + at * 4, value);
                }
                syncwarp(warp::FULL);
                mbarrier::arrive_if(barriers().summed(turn), lane == 0);
                stage = stage.next(p.stages);
            }
            if turn > 0 {
                let before = turn - 1;
                mbarrier::wait_parity(barriers().known(before), parity(before));
                let [mean, scale, offset, slope] = shared::ld(of_row(before));
                let flat: f32 = shared::ld(of_row(before) + 16);
                let xs = vectors::<T, E, N, 2>(ring(), p.columns, behind, 0);
                let dys = vectors::<T, E, N, 2>(ring(), p.columns, behind, 1);
                syncwarp(warp::FULL);
                mbarrier::arrive_if(barriers().emptied(behind), lane == 0);
                behind = behind.next(p.stages);
                let row = row - T::step();
                let dx = p.dx + row * p.dx_stride * size;
                let dsum = Row::new::<E>(p.dsum, row, p.dsum_stride, p.columns, 1);
                let mut k = 0;
                while k < N {
                    let column = column_of::<T>(0, k);
                    if inside(k) {
                        let dy = E::unpack8(dys[k]);
                        let g = zip(dy, weight(k), |dy, w| dy * w);
                        let unit = map(E::unpack8(xs[k]), |s| {
                            if CENTERED {
                                math::fma(s - mean, scale, offset)
                            } else {
                                s * scale
                            }
                        });
                        add_products(&mut dweight[k], dy, unit);
                        if CENTERED && p.dbias != 0 {
                            dbias[k] = zip(dbias[k], dy, |sum, term| sum + term);
                        }
                        // dx = ((g - mean) - x̂·along)·scale.
                        let mut out = zip(g, unit, |g, unit| {
                            let straight = if CENTERED { math::fma(g, scale, flat) } else { g * scale };
                            math::fma(unit, slope, straight)
                        });
                        if p.dsum != 0 {
                            out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                        }
                        E::store8((dx as *mut E).add(column as usize), out);
                    }
                    k += 1;
                }
            }
            if !more {
                break;
            }
            turn += 1;
            row += T::step();
        }
    }
    store(&dweight, &dbias);
}
