//! `linear_passing16_*`: 9 to 16 rows on Hopper where tiles of 32 columns and slices of k are whole, a block a tile, with
//! the bits of `linear_staying16_*`.
//!
//! As in `linear_lanes16_*`, each lane copies its own part of the weights and of the warp's slice of x. But twice the
//! columns share a load of x, which passes through the ring beside their weights: it takes no more room there than it
//! saves, and memory always has enough to fetch.

use super::gemm_sm90::Half;
use super::lanes::slice;
use super::lanes16::{Chunks, Inputs, X_BYTES};
use super::params::*;
use super::staying16::{Own, place_of, products};
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use cuda_std::{barrier, cp_async, grid_dependency, shared, thread, warp};

/// Warps of a block.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Tiles of 16 columns of a block.
const TILES: u32 = PASSING16_COLUMNS / STREAMING_NK_COLUMNS;
/// Stages of a warp's ring.
const STAGES: u32 = PASSING16_STAGES;
/// Stages whose weights are asked for before x. Copies are waited for in order: they arrive before the first of x.
const EARLY: u32 = 3;
/// Bytes of a stage: weights, and x.
const STAGE: u32 = TILES * ROWS8_STAGE + X_BYTES;

/// Loads of a warp's slice of the weights of two tiles side by side.
struct Weights {
    /// This lane's part of the first.
    from: u64,
    /// Bytes from one row to the fourth after it, to the tile's other eight, and to the other tile.
    rows: [u64; 3],
    /// Where this lane's first two rows go in a stage.
    places: [u32; 2],
    count: u32,
}

impl Weights {
    #[inline(always)]
    fn new(params: &LanesParams, [first, count]: [u32; 2]) -> Self {
        let lane = thread::lane_id();
        let (row, vector) = (lane / 8, lane % 8);
        Self {
            from: params.w
                + thread::block_idx_z() as u64 * params.w_batch
                + (TILES * thread::block_idx_x()) as u64 * params.w_tile
                + row as u64 * params.w_row
                + (first * (ROWS_DEPTH * 2) + vector * 16) as u64,
            rows: [4 * params.w_row, params.w_eight, params.w_tile],
            places: [
                row * 128 + (vector ^ row) * 16,
                (row + 4) * 128 + (vector ^ (row + 4)) * 16,
            ],
            count,
        }
    }

    /// Starts load `step` into the stage at `to`, if there is one.
    ///
    /// # Safety
    /// - The warp calls this; the stage is free.
    #[inline(always)]
    unsafe fn load(&self, step: u32, to: u32) {
        if step < self.count {
            let [four, eight, other] = self.rows;
            let mut from = self.from + (step * ROWS_DEPTH * 2) as u64;
            let mut to = self.places.map(|place| to + place);
            let mut tile = 0;
            while tile < TILES {
                // SAFETY: forwarded to the caller.
                unsafe {
                    let copy = |to: u32, from: u64| cp_async::copy_whole_16_l2_128b(to, from as *const u8);
                    copy(to[0], from);
                    copy(to[1], from + four);
                    copy(to[0] + 1024, from + eight);
                    copy(to[1] + 1024, from + eight + four);
                }
                from += other;
                to = to.map(|place| place + ROWS8_STAGE);
                tile += 1;
            }
        }
    }
}

/// The kernel.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn passing16<T: Mma + Half>(params: &LanesParams) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let [first, count] = slice(params, warp_idx);
    let ring = shared::dynamic_base() + warp_idx * STAGES * STAGE;
    let sums = shared::dynamic_base() + WARPS * STAGES * STAGE;
    let stage = |step: u32| ring + step % STAGES * STAGE;
    let x_of = |stage: u32| stage + TILES * ROWS8_STAGE;
    let weights = Weights::new(params, [first, count]);
    // SAFETY: the caller's description; each warp's ring is its own, and a stage is loaded again when all its lanes have
    // read it.
    unsafe {
        // The blocks of the next kernel come as those of this one leave.
        grid_dependency::launch_dependents();
        if params.early == 0 {
            grid_dependency::wait();
        }
        let mut step = 0;
        while step < EARLY {
            weights.load(step, stage(step));
            cp_async::commit_group();
            step += 1;
        }
        grid_dependency::wait();
        let inputs = Inputs::new(params, [first, count]);
        step = 0;
        while step < STAGES {
            inputs.load(step, x_of(stage(step)));
            if step >= EARLY {
                weights.load(step, stage(step));
            }
            cp_async::commit_group();
            step += 1;
        }
        let tile = TILES * thread::block_idx_x();
        let mut own = Own::<{ TILES as usize }>::new::<T>(linear, thread::block_idx_z());
        own.ask(linear, tile);

        let chunks = Chunks::new();
        let mut d = [[[0.0f32; 4]; 2]; TILES as usize];
        let mut t;
        step = 0;
        while step < count {
            cp_async::wait_group::<{ STAGES - 1 }>();
            barrier::syncwarp(warp::FULL);
            let at = stage(step);
            let mut w = [[[0; 4]; 4]; TILES as usize];
            t = 0;
            while t < w.len() {
                w[t] = chunks.read(at + t as u32 * ROWS8_STAGE);
                t += 1;
            }
            let x = chunks.read(x_of(at));
            barrier::syncwarp(warp::FULL);
            inputs.load(step + STAGES, x_of(at));
            weights.load(step + STAGES, at);
            cp_async::commit_group();
            t = 0;
            while t < w.len() {
                d[t] = products::<T>(d[t], w[t], x);
                t += 1;
            }
            step += 1;
        }
        let to = sums + warp_idx * STAYING_SUMS + place_of(lane / 4, lane % 4);
        t = 0;
        while t < d.len() {
            let (set, d) = (to + t as u32 * STAYING_SET, d[t]);
            shared::st(set, [d[0][0], d[0][1], d[1][0], d[1][1]]);
            shared::st(set + 512, [d[0][2], d[0][3], d[1][2], d[1][3]]);
            t += 1;
        }
        barrier::syncthreads();
        own.finish::<T>(linear, params.together, tile, sums);
    }
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of up to 16 rows. A block along x for each tile of [`PASSING16_COLUMNS`]; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, rows of both aligned to 16 bytes, in
            ///   whole tiles and loads.
            #[launch(threads = ROWS8_THREADS, min_blocks = 1)]
            pub fn $name(params: LanesParams) {
                passing16::<$type>(&params)
            }
        )*}
    };
}

entries! {
    linear_passing16_nk_f16: F16;
    linear_passing16_nk_bf16: Bf16;
}
