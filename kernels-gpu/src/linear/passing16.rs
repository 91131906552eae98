//! `linear_passing16_*`: 9 to 16 rows on Hopper and a weight of no more tiles of 32 columns than multiprocessors. The bits of
//! `linear_staying16_*`.
//!
//! A block has one tile, so each box of x meets the weights once: it comes beside them through the ring and need not
//! stay. That leaves room for the next launch's block, which comes when this one has asked for its last weights.

use super::epilogue::Words;
use super::norm_rows::MEETING;
use super::params::*;
use super::rows8::{column_of, total};
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use core::mem::offset_of;
use cuda_std::{barrier, grid_dependency, launch::ParamAddress, mbarrier, shared, thread, tma, warp};

/// Warps that compute.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Words between columns of a warp's sums.
const PITCH: u32 = 17;

/// The kernel.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn passing16<T: Mma>(params: &StreamParams, address: ParamAddress) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    if warp_idx >= WARPS {
        return;
    }
    let (group, pair) = (lane / 4, lane % 4);
    let stages = params.stages;
    let chunks = (linear.k as u32).div_ceil(ROWS_DEPTH);
    let first = warp_idx * params.depth;
    let end = if first + params.depth < chunks {
        first + params.depth
    } else {
        chunks
    };
    let count = if first < end { end - first } else { 0 };
    let base = shared::dynamic_base();
    let ring = base + warp_idx * stages * PASSING_STAGE;
    let barriers = base + WARPS * stages * PASSING_STAGE + warp_idx * stages * 8;
    let batch = thread::block_idx_z();
    let w_batch = if linear.w_batch_stride == 0 { 0 } else { batch as i32 };
    let column = (thread::block_idx_x() * PASSING_COLUMNS) as i32;
    let w_map = address.tensor_map(offset_of!(StreamParams, w_map));
    let x_map = address.tensor_map(offset_of!(StreamParams, x_map));
    let leader = lane == 0;
    // SAFETY: the caller's description; each warp's ring and barriers are its own, and a stage is loaded again when all its
    // lanes have read it.
    unsafe {
        if leader {
            tma::prefetch_tensormap(w_map);
            tma::prefetch_tensormap(x_map);
            let mut stage = 0;
            while stage < stages {
                mbarrier::init(barriers + stage * 8, 1);
                stage += 1;
            }
            mbarrier::fence_init();
        }
        barrier::syncwarp(warp::FULL);
        if params.early == 0 {
            grid_dependency::wait();
        }
        let weights = #[inline(always)]
        |stage: u32, step: u32| {
            let full = barriers + stage * 8;
            let k = ((first + step) * ROWS_DEPTH) as i32;
            mbarrier::arrive_expect_tx_if(full, PASSING_STAGE, leader);
            tma::load_3d_if(ring + stage * PASSING_STAGE, w_map, [k, column, w_batch], full, leader);
        };
        let inputs = #[inline(always)]
        |stage: u32, step: u32| {
            let k = ((first + step) * ROWS_DEPTH) as i32;
            let to = ring + stage * PASSING_STAGE + PASSING_STAGE / 3 * 2;
            tma::load_3d_if(to, x_map, [k, 0, batch as i32], barriers + stage * 8, leader);
        };
        let ahead = if stages < count { stages } else { count };
        let mut asked = 0;
        while asked < ahead {
            weights(asked, asked);
            asked += 1;
        }
        let mut launched = false;
        if asked >= count {
            launched = true;
            grid_dependency::launch_dependents();
        }
        grid_dependency::wait();
        let mut step = 0;
        while step < ahead {
            inputs(step, step);
            step += 1;
        }
        // Two elements a thread.
        let rows = linear.m as u32;
        let mut words = [Words::NONE; 2];
        let place = #[inline(always)]
        |i: u32| {
            let index = thread::thread_idx_x() + i * ROWS8_THREADS;
            (index / PASSING_COLUMNS, index % PASSING_COLUMNS)
        };
        let mut i = 0;
        while i < 2 {
            let (row, own) = place(i as u32);
            let output = column as u64 + own as u64;
            if row < rows && output < linear.n {
                linear.ask_bias(&mut words[i], batch, output);
                linear.ask_residual(&mut words[i], batch, row, output);
            }
            i += 1;
        }

        let line = column_of(group);
        let chunk = [(pair ^ line) * 16, ((4 + pair) ^ line) * 16];
        let own = ring + line * 128;
        let mut d = [[[0.0f32; 4]; 2]; 2];
        let (mut stage, mut phase) = (0, 0);
        let mut step = 0;
        while step < count {
            mbarrier::wait_parity(barriers + stage * 8, phase);
            let fragments: [[[u32; 4]; 4]; 3] = [0, 1, 2].map(
                #[inline(always)]
                |part: u32| {
                    let at = own + stage * PASSING_STAGE + part * (PASSING_STAGE / 3);
                    [
                        shared::ld(at + chunk[0]),
                        shared::ld(at + chunk[1]),
                        shared::ld(at + 1024 + chunk[0]),
                        shared::ld(at + 1024 + chunk[1]),
                    ]
                },
            );
            barrier::syncwarp(warp::FULL);
            if asked < count {
                weights(stage, asked);
                inputs(stage, asked);
                asked += 1;
                if asked == count && !launched {
                    launched = true;
                    grid_dependency::launch_dependents();
                }
            }
            stage += 1;
            if stage == stages {
                stage = 0;
                phase ^= 1;
            }
            step += 1;
            let x = fragments[2];
            let mut half = 0;
            while half < 2 {
                let w = fragments[half];
                let mut h = 0;
                while h < 2 {
                    let (low, high) = (w[h], w[2 + h]);
                    let mut i = 0;
                    while i < 2 {
                        let a = [low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]];
                        let mut n = 0;
                        while n < 2 {
                            let b = x[2 * n + h];
                            d[half][n] = T::mma(a, [b[2 * i], b[2 * i + 1]], d[half][n]);
                            n += 1;
                        }
                        i += 1;
                    }
                    h += 1;
                }
                half += 1;
            }
        }
        // The sums take the place of the ring, which all lanes have read.
        barrier::syncwarp(warp::FULL);
        let mut half = 0;
        while half < 2 {
            let mut n = 0;
            while n < 2 {
                let mut e = 0;
                while e < 4 {
                    let own_column = half as u32 * 16 + line + e as u32 / 2 * 8;
                    let row = n as u32 * 8 + e as u32 % 2 * 4 + pair;
                    shared::st(ring + (own_column * PITCH + row) * 4, d[half][n][e]);
                    e += 1;
                }
                n += 1;
            }
            half += 1;
        }
        barrier::sync(MEETING, ROWS8_THREADS);
        let mut i = 0;
        while i < 2 {
            let (row, own) = place(i as u32);
            let output = column as u64 + own as u64;
            if row < rows && output < linear.n {
                let at = base + (own * PITCH + row) * 4;
                let z = total(params.together, at, stages * PASSING_STAGE);
                linear.finish_element(&words[i], [batch, row], output, z, z);
            }
            i += 1;
        }
    }
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty, $threads:ident;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of up to 16 rows, not gated. Blocks along x have a tile of 32 columns each; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, and the maps.
            #[launch(threads = $threads, min_blocks = 1, param_align = 64)]
            pub fn $name(params: StreamParams, address: ParamAddress) {
                passing16::<$type>(&params, address)
            }
        )*}
    };
}

entries! {
    linear_passing16_nk_f16: F16, ROWS8_THREADS;
    linear_passing16_nk_bf16: Bf16, ROWS8_THREADS;
    linear_passing16_odd_nk_f16: F16, ODD_THREADS;
    linear_passing16_odd_nk_bf16: Bf16, ODD_THREADS;
}
