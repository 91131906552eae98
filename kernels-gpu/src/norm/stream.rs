//! Norms of long rows of 16-bit elements, by clusters that take one row after the other (sm_90).
//!
//! A multiprocessor has one block, whose warps have three kinds of work: one thread asks for the rows that come, bulk copies
//! into a ring; most warps take the sums of the next row, and then write the one before; one warp meanwhile joins the sums
//! of that next row, within the block and then, by stores that complete on the receiver's barrier, within the cluster. So nobody
//! waits for an exchange, and weights and bias stay in registers.

use super::{
    NormParams, STREAM_AT,
    device::Statistics,
    kept::Kept,
    moments::{self, Count},
    queue::{QUEUE_BYTES, Queue},
    turns::{BARRIER_BYTES, Barriers, Rows, parity, set, vectors},
};
use crate::row::*;
use cuda_std::{barrier::syncwarp, grid_dependency, mbarrier, shared, thread, warp};

/// Sums of the block's warps, 16 bytes each.
#[inline(always)]
fn of_warps(turn: u32) -> u32 {
    shared::dynamic_base() + set(turn) * 256
}

/// Those of the cluster's blocks.
#[inline(always)]
fn of_blocks(turn: u32) -> u32 {
    shared::dynamic_base() + 512 + set(turn) * 128
}

/// What a row is normalised by.
#[inline(always)]
fn of_row(turn: u32) -> u32 {
    shared::dynamic_base() + 768 + set(turn) * 16
}

#[inline(always)]
fn barriers() -> Barriers {
    Barriers(shared::dynamic_base() + 800)
}

#[inline(always)]
fn queue(p: &NormParams) -> Queue {
    const { assert!(800 + BARRIER_BYTES + QUEUE_BYTES <= STREAM_AT) };
    Queue {
        at: shared::dynamic_base() + 800 + BARRIER_BYTES,
        counter: p.next,
        rows: p.rows as u32,
    }
}

/// Shared address of the ring.
#[inline(always)]
fn ring() -> u32 {
    shared::dynamic_base() + STREAM_AT
}

/// All rows of a cluster, in blocks of `T::LANES` threads and two warps.
///
/// # Safety
/// - The tensors have the extents that the parameters say; rows are whole vectors at multiples of 16 bytes, which the cluster
///   holds; dynamic shared memory of `stream_bytes`, of up to 8 stages.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Kept, const N: usize>(p: NormParams) {
    let warps = T::LANES / 32;
    // SAFETY: forwarded to the caller.
    unsafe {
        if thread::thread_idx_x() == 0 {
            queue(&p).begin();
        }
        barriers().begin::<T>(p.stages);
        grid_dependency::launch_dependents();
        let warp = thread::warp_idx();
        if warp > warps {
            if thread::lane_id() == 0 {
                let rows = Rows {
                    matrices: [(p.x, p.x_stride)],
                    rows: p.rows,
                    columns: p.columns,
                    stages: p.stages,
                    ring: ring(),
                };
                rows.ask_queued::<T, E, N>(barriers(), queue(&p));
            }
        } else if p.centered != 0 {
            if warp == warps {
                join::<T, N, true>(&p);
            } else {
                work::<T, E, N, true>(&p);
            }
        } else if warp == warps {
            join::<T, N, false>(&p);
        } else {
            work::<T, E, N, false>(&p);
        }
    }
}

/// Joins the sums of one row after the other.
#[inline(always)]
unsafe fn join<T: Team, const N: usize, const CENTERED: bool>(p: &NormParams) {
    let warps = const { T::LANES / 32 };
    const { assert!(T::LANES == 512) };
    let lane = thread::lane_id();
    let (of_warp, of_block) = (Count::of_warp::<T, N>(p.columns), Count::of_block::<T, N>(p.columns));
    let mut turn = 0;
    let mut stage = Stage::FIRST;
    // SAFETY: forwarded to the caller; sets of places are used in turn, and a row is begun when the one before is known.
    unsafe {
        loop {
            mbarrier::wait_parity(barriers().filled(stage), stage.phase);
            if queue(p).row(stage) >= p.rows as u32 {
                break;
            }
            stage = stage.next(p.stages);
            let several = T::blocks() > 1;
            let joined = barriers().joined(turn);
            mbarrier::arrive_expect_tx_if(joined, T::blocks() * 16, several && lane == 0);
            mbarrier::wait_parity(barriers().summed(turn), parity(turn));
            let own = shared::ld(of_warps(turn) + (lane & (warps - 1)) * 16);
            let mut all = moments::join_groups::<16, CENTERED>(own, of_warp);
            if several {
                if lane < T::blocks() {
                    let slot = of_blocks(turn) + T::rank() * 16;
                    shared::st_async_4(shared::mapa(slot, lane), all, shared::mapa(joined, lane));
                }
                mbarrier::wait_parity(joined, parity(turn));
                let mut other = [0.0; 4];
                if lane & 7 < T::blocks() {
                    other = shared::ld(of_blocks(turn) + (lane & 7) * 16);
                }
                all = moments::join_groups::<8, CENTERED>(other, of_block);
            }
            let s = moments::statistics::<CENTERED>(all, p.reciprocal, p.epsilon);
            if lane == 0 {
                shared::st(of_row(turn), [s.mean, s.rest, s.scale, s.offset]);
            }
            mbarrier::arrive_if(barriers().known(turn), lane == 0);
            turn += 1;
        }
    }
}

/// Takes the sums of the next row, and writes the one before.
#[inline(always)]
unsafe fn work<T: Team, E: Kept, const N: usize, const CENTERED: bool>(p: &NormParams) {
    let size = size_of::<E>() as u64;
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    let own = |address: u64, k: usize| address + column_of::<T>(0, k) as u64 * size;
    let given = |address: u64| {
        let mut part = [E::ZEROS; N];
        let mut k = 0;
        while k < N {
            if address != 0 && inside(k) {
                // SAFETY: the host gives a value a column, aligned.
                part[k] = unsafe { E::load8_packed_cached(own(address, k) as *const E) };
            }
            k += 1;
        }
        part
    };
    let (weights, biases) = (given(p.weight), given(p.bias));
    let lane = thread::lane_id();
    let (mut stage, mut behind) = (Stage::FIRST, Stage::FIRST);
    let mut turn = 0;
    let mut last = 0;
    // SAFETY: forwarded to the caller; each element is one thread's.
    unsafe {
        loop {
            mbarrier::wait_parity(barriers().filled(stage), stage.phase);
            let row = queue(p).row(stage);
            let more = row < p.rows as u32;
            if more {
                let part = vectors::<T, E, N, 1>(ring(), p.columns, stage, 0);
                let sums = moments::of_warp::<T, E, N, CENTERED, true>(p.columns, &part);
                if lane == 0 {
                    shared::st(of_warps(turn) + thread::warp_idx() * 16, sums);
                }
                mbarrier::arrive_if(barriers().summed(turn), lane == 0);
                stage = stage.next(p.stages);
            }
            if turn > 0 {
                let before = turn - 1;
                mbarrier::wait_parity(barriers().known(before), parity(before));
                let [mean, rest, scale, offset] = shared::ld(of_row(before));
                let statistics = Statistics {
                    mean,
                    rest,
                    scale,
                    offset,
                };
                let part = vectors::<T, E, N, 1>(ring(), p.columns, behind, 0);
                syncwarp(warp::FULL);
                mbarrier::arrive_if(barriers().emptied(behind), lane == 0);
                behind = behind.next(p.stages);
                let y = p.y + last as u64 * p.y_stride * size;
                let mut k = 0;
                while k < N {
                    if inside(k) {
                        let unit = map(E::unpack8(part[k]), |s| statistics.unit(s));
                        let (w, b) = (E::unpack8(E::anew(weights[k])), E::unpack8(E::anew(biases[k])));
                        let out = affine(unit, [p.weight != 0, p.bias != 0], || w, || b);
                        E::store8(own(y, k) as *mut E, out);
                    }
                    k += 1;
                }
            }
            if !more {
                break;
            }
            turn += 1;
            last = row;
        }
    }
}
