//! Norms of long rows of 16-bit elements, in the registers of the blocks of a cluster (sm_90).
//!
//! Small blocks, of which some share a multiprocessor, keep memory busy while others compute. The warps give each other
//! their sums by stores that complete on the receiver's own barrier: a barrier of the cluster would wait for all memory that
//! a block has under way, and empty L1, where the weights lie. The first weights are under way with the row: each that is asked
//! for later is one more wait.

use super::{NormParams, SPREAD_SLOTS, device::Statistics, held::Held, kept::Kept};
use crate::row::*;
use cuda_std::{
    barrier::{cluster_arrive_relaxed, cluster_wait},
    math, mbarrier, shared, thread, warp,
};

/// Completes when this block has the values of all warps of the cluster.
#[inline(always)]
fn gathered() -> u32 {
    shared::dynamic_base() + SPREAD_SLOTS * 16
}

/// Bytes that complete there.
#[inline(always)]
fn expected<T: Team>() -> u32 {
    T::lanes() / 32 * 8
}

/// The sums of two values over the lanes of a warp: even lanes get that of `a`, odd ones that of `b`.
#[inline(always)]
unsafe fn pair_over_warp([a, b]: [f32; 2]) -> f32 {
    let odd = thread::lane_id() & 1 != 0;
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut sum = if odd { b } else { a } + warp::shfl_bfly(if odd { a } else { b }, 1);
        let mut lanes = 2;
        while lanes < 32 {
            sum += warp::shfl_bfly(sum, lanes);
            lanes *= 2;
        }
        sum
    }
}

/// Sums of two values over all threads of the cluster, in one of two `turn`s.
///
/// # Safety
/// - All threads of the cluster come here together, once a turn; [`gathered`] expects the values, and the cluster has been told.
#[inline(always)]
unsafe fn gather<T: Team>(values: [f32; 2], turn: u32) -> [f32; 2] {
    let slots = shared::dynamic_base() + turn * (SPREAD_SLOTS * 8);
    let lane = thread::lane_id();
    let own = slots + (T::rank() * (T::LANES / 32) + thread::warp_idx()) * 8 + (lane & 1) * 4;
    // SAFETY: a slot a warp and turn, written once; the barrier comes between that and reading. No block ends before it has got all.
    unsafe {
        let sum = pair_over_warp(values);
        if turn == 0 {
            cluster_wait();
        }
        let to = lane / 2;
        if to < T::blocks() {
            shared::st_async_1(shared::mapa(own, to), sum, shared::mapa(gathered(), to));
        }
        mbarrier::wait_parity(gathered(), turn);
        let mut own = [0.0; 2];
        let mut slot = lane;
        while slot < T::lanes() / 32 {
            let other: [f32; 2] = shared::ld(slots + slot * 8);
            own = [own[0] + other[0], own[1] + other[1]];
            slot += 32;
        }
        let sum = pair_over_warp(own);
        [warp::shfl_idx(sum, 0), warp::shfl_idx(sum, 1)]
    }
}

/// Of sums as they are where the mean lies within two deviations of 0, else of differences from it, by a second exchange. Such a row has
/// the mean in `rest`, so that an element takes one operation less.
///
/// # Safety
/// - All threads of the cluster come here together, once.
#[inline(always)]
unsafe fn statistics<T: Team, E: Kept, const N: usize, const CENTERED: bool, const WHOLE: bool>(
    p: &NormParams,
    part: &Part<E, N>,
) -> Statistics {
    // SAFETY: forwarded to the caller.
    unsafe {
        // What lies beyond the row is 0.
        let (mut total, mut square) = ([0.0; 2], [0.0; 2]);
        let mut k = 0;
        while k < N {
            let s = E::unpack8(part[k]);
            let mut i = 0;
            while i < 8 {
                if CENTERED {
                    total[i & 1] += s[i];
                }
                square[i & 1] = math::fma(s[i], s[i], square[i & 1]);
                i += 1;
            }
            k += 1;
        }
        let [total, square] = gather::<T>([total[0] + total[1], square[0] + square[1]], 0);
        let square = square * p.reciprocal;
        if !CENTERED {
            return Statistics::of(0.0, 0.0, square, p.epsilon);
        }
        let mean = total * p.reciprocal;
        let variance = math::fma(-mean, mean, square);
        if mean * mean <= 4.0 * variance {
            return Statistics::of(0.0, mean, variance, p.epsilon);
        }
        mbarrier::arrive_expect_tx_if(gathered(), expected::<T>(), thread::thread_idx_x() == 0);
        let (mut left, mut square) = (0.0, 0.0);
        let mut k = 0;
        while k < N {
            let column = column_of::<T>(0, k);
            let mut d = map(E::unpack8(E::apart(part[k], p.reserved)), |s| s - mean);
            if !WHOLE {
                d = inside(d, column, p.columns, 0.0);
            }
            left = add_if(left, add_up(d), column < p.columns);
            square = add_if(square, squares(d), column < p.columns);
            k += 1;
        }
        let [left, square] = gather::<T>([left, square], 1);
        let rest = left * p.reciprocal;
        Statistics::of(mean, rest, square * p.reciprocal - rest * rest, p.epsilon)
    }
}

/// Vectors of weight and bias that are under way with the row.
const EARLY: usize = 2;

/// With any weights; with a weight, and a bias where there is a mean; so too, of as many elements as the cluster holds.
const ANY: u32 = 0;
const USUAL: u32 = 1;
const FULL: u32 = 2;

/// One row of a cluster.
///
/// # Safety
/// - The tensors have the extents that the parameters say; a thread holds `N` vectors of its row; dynamic shared memory of
///   `SPREAD_BYTES`, and at most `SPREAD_SLOTS` warps.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Kept, const N: usize, const RESIDUAL: bool, const WHOLE: bool>(p: NormParams) {
    let usual = WHOLE && p.weight != 0 && (p.bias != 0) == (p.centered != 0);
    let full = usual && !RESIDUAL && p.columns == T::lanes() * (N as u32 * WIDTH);
    // SAFETY: forwarded to the caller.
    unsafe {
        // From the start: where ways go on together, so do what each keeps in registers.
        match (p.centered != 0, usual, full) {
            (true, true, true) => one::<T, E, N, RESIDUAL, WHOLE, true, FULL>(&p),
            (true, true, false) => one::<T, E, N, RESIDUAL, WHOLE, true, USUAL>(&p),
            (true, false, _) => one::<T, E, N, RESIDUAL, WHOLE, true, ANY>(&p),
            (false, true, true) => one::<T, E, N, RESIDUAL, WHOLE, false, FULL>(&p),
            (false, true, false) => one::<T, E, N, RESIDUAL, WHOLE, false, USUAL>(&p),
            (false, false, _) => one::<T, E, N, RESIDUAL, WHOLE, false, ANY>(&p),
        }
    }
}

#[inline(always)]
unsafe fn one<
    T: Team,
    E: Kept,
    const N: usize,
    const RESIDUAL: bool,
    const WHOLE: bool,
    const CENTERED: bool,
    const KIND: u32,
>(
    p: &NormParams,
) {
    let size = size_of::<E>() as u64;
    let row = T::first();
    let two = RESIDUAL && p.residual != 0;
    let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, WHOLE as u32 | p.aligned);
    let (x, residual) = (matrix(p.x, p.x_stride), matrix(p.residual, p.residual_stride));
    let (y, stored) = (matrix(p.y, p.y_stride), matrix(p.sum, p.sum_stride));
    let (weight, bias) = (matrix(p.weight, 0), matrix(p.bias, 0));
    let held = Held::of::<T, E>(p.columns);
    let inside = |k: usize| KIND == FULL || held.has::<T>(k);
    // SAFETY: forwarded to the caller; each element is one thread's.
    unsafe {
        if thread::thread_idx_x() == 0 {
            mbarrier::init(gathered(), 1);
            mbarrier::arrive_expect_tx(gathered(), expected::<T>());
            mbarrier::fence_init();
        }
        cluster_arrive_relaxed();
        let load = #[inline(always)]
        |row: Row| held.load::<T, E, N, WHOLE>(row, inside);
        let shared = #[inline(always)]
        |row: Row, k: usize| load_in_order::<E>(held.at(row, k));
        let mut part = load(x);
        let (mut weights, mut biases) = ([E::ZEROS; N], [E::ZEROS; N]);
        let mut k = 0;
        while k < EARLY {
            if KIND != ANY && inside(k) {
                weights[k] = shared(weight, k);
                if CENTERED {
                    biases[k] = shared(bias, k);
                }
            }
            k += 1;
        }
        if two {
            let other = load(residual);
            add_parts::<E, N>(&mut part, &other);
        }
        // Of the residual no more is asked for: both together are slower.
        if WHOLE && row + (p.ahead as u64) < p.rows {
            matrix(p.x + p.ahead as u64 * p.x_stride * size, p.x_stride).prefetch::<T, E, N>();
        }
        let statistics = statistics::<T, E, N, CENTERED, WHOLE>(p, &part);
        // The mean of most rows is in `rest`: the difference from 0 is the element.
        if KIND != ANY && statistics.mean == 0.0 {
            let mut k = 0;
            while k < N {
                if inside(k) {
                    let sum = E::unpack8(E::anew(part[k]));
                    if two && p.sum != 0 {
                        held.store::<T, E, WHOLE>(stored, k, sum);
                    }
                    if k >= EARLY {
                        weights[k] = shared(weight, k);
                        if CENTERED {
                            biases[k] = shared(bias, k);
                        }
                    }
                    let mut out = E::unpack8(E::anew(weights[k]));
                    if CENTERED {
                        let b = E::unpack8(E::anew(biases[k]));
                        let mut i = 0;
                        while i < 8 {
                            let unit = math::fma(sum[i], statistics.scale, statistics.offset);
                            out[i] = math::fma(unit, out[i], b[i]);
                            i += 1;
                        }
                    } else {
                        out = zip(sum, out, |s, w| s * statistics.scale * w);
                    }
                    held.store::<T, E, WHOLE>(y, k, out);
                }
                k += 1;
            }
            return;
        }
        let again = #[inline(always)]
        |row: Row, k: usize| {
            if WHOLE {
                E::unpack8(shared(row, k))
            } else {
                row.load_again::<E>(column_of::<T>(0, k))
            }
        };
        let mut k = 0;
        while k < N {
            if inside(k) {
                let sum = E::unpack8(if KIND == ANY {
                    E::anew(part[k])
                } else {
                    E::apart(part[k], p.reserved)
                });
                if two && p.sum != 0 {
                    held.store::<T, E, WHOLE>(stored, k, sum);
                }
                let unit = map(sum, |s| statistics.unit(s));
                let given = [p.weight != 0, p.bias != 0];
                let out = affine(unit, given, || again(weight, k), || again(bias, k));
                held.store::<T, E, WHOLE>(y, k, out);
            }
            k += 1;
        }
    }
}
