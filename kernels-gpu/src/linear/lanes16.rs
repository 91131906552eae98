//! `linear_lanes16_*`: 9 to 16 rows on Hopper where slices of k are whole, with the bits of `linear_staying16_*`.
//!
//! As there, but each lane copies its own part of the weights and of the warp's slice of x, and waits for its own copies.

use super::gemm_sm90::Half;
use super::lanes::{Loads, slice};
use super::params::*;
use super::rows8::column_of;
use super::staying16::{Own, finish, place_of, products};
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use cuda_std::{barrier, cp_async, grid_dependency, mbarrier, shared, thread, warp};

/// Warps of a block.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Stages of a warp's ring.
const STAGES: u32 = LANES16_STAGES;
/// Stages that are asked for before x.
const EARLY: u32 = 3;
/// Bytes of a load of x.
pub const X_BYTES: u32 = 16 * ROWS_DEPTH * 2;

/// Loads of a warp's slice of x, of 16 rows: those that do not exist are zeros.
pub struct Inputs {
    /// This lane's part of the first.
    from: u64,
    /// Bytes from one of its rows to the next, the fourth after it.
    four: u64,
    row: u32,
    rows: u32,
    vector: u32,
    count: u32,
}

impl Inputs {
    /// Those of a slice of `count` loads from `first` on.
    #[inline(always)]
    pub fn new(params: &LanesParams, [first, count]: [u32; 2]) -> Self {
        let lane = thread::lane_id();
        let (row, vector) = (lane / 8, lane % 8);
        Self {
            from: params.x
                + thread::block_idx_z() as u64 * params.x_batch
                + row as u64 * params.x_row
                + (first * (ROWS_DEPTH * 2) + vector * 16) as u64,
            four: 4 * params.x_row,
            row,
            rows: params.rows,
            vector,
            count,
        }
    }

    /// Starts load `step` into shared memory at `to`, if there is one.
    ///
    /// # Safety
    /// - The warp calls this; the place is free.
    #[inline(always)]
    pub unsafe fn load(&self, step: u32, to: u32) {
        if step < self.count {
            let mut from = self.from + (step * ROWS_DEPTH * 2) as u64;
            let mut i = 0;
            while i < 4 {
                let row = self.row + 4 * i;
                let exists = row < self.rows;
                let to = to + row * 128 + (self.vector ^ (row % 8)) * 16;
                // Nothing is read from the address of a row that does not exist; it is kept valid all the same.
                let source = if exists { from } else { self.from };
                // SAFETY: forwarded to the caller.
                unsafe { cp_async::copy_16_l2_128b(to, source as *const u8, if exists { 16 } else { 0 }) };
                from += self.four;
                i += 1;
            }
        }
    }
}

/// Where a lane finds its chunks of a load of 16 rows or columns.
#[derive(Clone, Copy)]
pub struct Chunks([u32; 2]);

impl Chunks {
    /// Those of this lane.
    #[inline(always)]
    pub fn new() -> Self {
        let (group, pair) = (thread::lane_id() / 4, thread::lane_id() % 4);
        let column = column_of(group);
        Self([
            column * 128 + (pair ^ column) * 16,
            column * 128 + ((4 + pair) ^ column) * 16,
        ])
    }

    /// The fragments of the load at `at`.
    ///
    /// # Safety
    /// - The load has arrived.
    #[inline(always)]
    pub unsafe fn read(self, at: u32) -> [[u32; 4]; 4] {
        let Self([low, high]) = self;
        // SAFETY: forwarded to the caller.
        unsafe {
            [
                shared::ld(at + low),
                shared::ld(at + high),
                shared::ld(at + 1024 + low),
                shared::ld(at + 1024 + high),
            ]
        }
    }
}

/// The kernel.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn lanes16<T: Mma + Half>(params: &LanesParams) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let tiles = params.tiles;
    let batch = thread::block_idx_z();
    let [first, count] = slice(params, warp_idx);
    let ring = shared::dynamic_base() + warp_idx * STAGES * ROWS8_STAGE;
    let xs = shared::dynamic_base() + WARPS * STAGES * ROWS8_STAGE;
    let own_x = xs + first * X_BYTES;
    let sums = xs + params.loads * X_BYTES;
    // One barrier for each set of sums.
    let there = sums + 2 * STAYING_SET;
    let mut loads = Loads::new(params, ring, [first, count]);
    // SAFETY: the caller's description; each warp's ring and slice of x are its own, and a stage is loaded again when all
    // its lanes have read it. A set of sums is written again when all warps have come to that of the tile between, which
    // they do when they have read it.
    unsafe {
        // The blocks of the next kernel come as those of this one leave.
        grid_dependency::launch_dependents();
        if params.early == 0 {
            grid_dependency::wait();
        }
        // Copies are waited for in order: what is asked for here arrives before the first of x.
        let mut filled = 0;
        while filled < EARLY {
            loads.next::<STAGES>(tiles);
            filled += 1;
        }
        if warp_idx == 0 {
            if lane < 2 {
                mbarrier::init(there + lane * 8, ROWS8_THREADS);
            }
            mbarrier::fence_init();
        }
        let mut own = Own::<1>::new::<T>(linear, batch);
        barrier::syncthreads();
        grid_dependency::wait();

        let inputs = Inputs::new(params, [first, count]);
        let mut step = 0;
        while step < STAGES {
            inputs.load(step, own_x + step * X_BYTES);
            if step < EARLY {
                cp_async::commit_group();
            } else {
                loads.next::<STAGES>(tiles);
            }
            step += 1;
        }
        own.ask(linear, thread::block_idx_x());

        let chunks = Chunks::new();
        let to = sums + warp_idx * STAYING_SUMS + place_of(group, pair);
        let mut stage = 0;
        let (mut tile, mut turn) = (thread::block_idx_x(), 0);
        while tile < tiles {
            let mut d = [[0.0f32; 4]; 2];
            let mut step = 0;
            while step < count {
                cp_async::wait_group::<{ STAGES - 1 }>();
                barrier::syncwarp(warp::FULL);
                let w = chunks.read(ring + stage);
                let x = chunks.read(own_x + step * X_BYTES);
                barrier::syncwarp(warp::FULL);
                if turn == 0 {
                    inputs.load(step + STAGES, own_x + (step + STAGES) * X_BYTES);
                }
                loads.next::<STAGES>(tiles);
                stage += ROWS8_STAGE;
                if stage == STAGES * ROWS8_STAGE {
                    stage = 0;
                }
                d = products::<T>(d, w, x);
                step += 1;
            }
            if turn > 0 {
                let before = tile - thread::grid_dim_x();
                finish::<T>(linear, params.together, &own, before, turn - 1, sums, there);
                own.ask(linear, tile);
            }
            let set = to + (turn & 1) * STAYING_SET;
            shared::st(set, [d[0][0], d[0][1], d[1][0], d[1][1]]);
            shared::st(set + 512, [d[0][2], d[0][3], d[1][2], d[1][3]]);
            // Every lane: compute-sanitizer does not see that one may stand for its warp.
            mbarrier::arrive(there + (turn & 1) * 8);
            turn += 1;
            tile += thread::grid_dim_x();
        }
        if turn > 0 {
            let last = tile - thread::grid_dim_x();
            finish::<T>(linear, params.together, &own, last, turn - 1, sums, there);
        }
    }
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of up to 16 rows. Blocks along x share the tiles of columns; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, rows of both aligned to 16 bytes, in
            ///   whole tiles and loads.
            #[launch(threads = ROWS8_THREADS, min_blocks = 1)]
            pub fn $name(params: LanesParams) {
                lanes16::<$type>(&params)
            }
        )*}
    };
}

entries! {
    linear_lanes16_nk_f16: F16;
    linear_lanes16_nk_bf16: Bf16;
}
