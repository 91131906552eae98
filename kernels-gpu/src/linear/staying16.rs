//! `linear_staying16_*`: 9 to 16 rows on Hopper. The weights pass once, with the bits of `linear_rows8_*`.
//!
//! As there, blocks stay and take tiles of 16 columns in turn, and each warp has a slice of k and a ring of stages of its
//! own. Its slice of x is nobody else's: each box of it comes by TMA beside the weights of the first tile that it
//! multiplies, on the same barrier, and stays. The block's warps meet in passing: a tile's sums are added up and
//! written when the products of the next are done, by then they are all there.

use super::epilogue::Words;
use super::gemm_sm90::Half;
use super::params::*;
use super::rows8::{column_of, total, total_at_once};
use super::slice_loads::SliceLoads;
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use core::mem::offset_of;
use cuda_std::{barrier, grid_dependency, launch::ParamAddress, mbarrier, shared, thread, tma, warp};

/// Warps of a block.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Columns of a tile.
const COLUMNS: u32 = STREAMING_NK_COLUMNS;
/// Bytes of a box of x.
const X_BYTES: u32 = 16 * ROWS_DEPTH * 2;

/// Loads of this warp: its slice of the weights, tile after tile, and in the first tile that of x beside them.
struct Loads {
    weights: SliceLoads,
    x_map: *const u8,
    /// Where the slice of x lies.
    x: u32,
    x_batch: i32,
}

impl Loads {
    /// Starts the next load of the weights, if there is one; in the first tile its barrier expects x too.
    #[inline(always)]
    unsafe fn weights(&mut self, tiles: u32, leader: bool) {
        // SAFETY: forwarded to the caller.
        unsafe { self.weights.next(tiles, leader, X_BYTES) }
    }

    /// Starts the load of x beside those of the weights number `step` of the first tile, which went into `stage`.
    #[inline(always)]
    unsafe fn inputs(&self, step: u32, stage: u32, leader: bool) {
        let k = ((self.weights.first + step) * ROWS_DEPTH) as i32;
        // SAFETY: forwarded to the caller.
        unsafe {
            let full = self.weights.barriers + stage * 8;
            tma::load_3d_if(self.x + step * X_BYTES, self.x_map, [k, 0, self.x_batch], full, leader);
        }
    }

    /// Both.
    #[inline(always)]
    unsafe fn next(&mut self, tiles: u32, leader: bool) {
        let (tile, step, stage) = (self.weights.tile, self.weights.step, self.weights.stage);
        // SAFETY: forwarded to the caller.
        unsafe {
            self.weights(tiles, leader);
            if tile == thread::block_idx_x() {
                self.inputs(step, stage, leader);
            }
        }
    }
}

/// The element that this thread finishes in each of `TILES` tiles side by side.
pub struct Own<const TILES: usize> {
    row: u32,
    column: u32,
    outputs: u32,
    exists: bool,
    batch: u32,
    /// Where its sums lie in those of a slice.
    place: u32,
    words: [Words; TILES],
    /// [`LinearParams::is_simple`].
    simple: bool,
}

/// The slot of a column among a slice's sums: those of neighbouring fragment rows follow one another.
#[inline(always)]
fn slot_of(column: u32) -> u32 {
    column / 8 * 8 + column % 4 * 2 + column / 4 % 2
}

/// Where the sums of four rows of a fragment's column lie: of `pair`, `pair + 4`, `pair + 8`, `pair + 12`.
#[inline(always)]
pub fn place_of(slot: u32, pair: u32) -> u32 {
    slot * 64 + (pair ^ (slot / 2 % 4)) * 16
}

impl<const TILES: usize> Own<TILES> {
    /// That of this thread.
    #[inline(always)]
    pub(super) fn new<T: Half>(linear: &LinearParams, batch: u32) -> Self {
        let outputs = if linear.gated != 0 { COLUMNS / 2 } else { COLUMNS };
        let index = thread::thread_idx_x();
        let (row, column) = (index / outputs, index % outputs);
        Self {
            row,
            column,
            outputs,
            exists: row < linear.m as u32,
            batch,
            place: place_of(slot_of(column), row % 4) + row / 8 * 8 + row / 4 % 2 * 4,
            words: [Words::NONE; TILES],
            simple: linear.is_simple::<T>(),
        }
    }

    /// The output column of the tile number `t` from `tile` on, and whether its element exists.
    #[inline(always)]
    fn output(&self, linear: &LinearParams, tile: u32, t: usize) -> (u64, bool) {
        let column = (tile + t as u32) as u64 * self.outputs as u64 + self.column as u64;
        (column, self.exists && column < linear.n)
    }

    /// Asks for bias and residual.
    ///
    /// # Safety
    /// - The residual is complete.
    #[inline(always)]
    pub unsafe fn ask(&mut self, linear: &LinearParams, tile: u32) {
        let mut t = 0;
        while t < TILES {
            let (column, exists) = self.output(linear, tile, t);
            if exists {
                // SAFETY: forwarded to the caller.
                unsafe {
                    linear.ask_bias(&mut self.words[t], self.batch, column);
                    linear.ask_residual(&mut self.words[t], self.batch, self.row, column);
                }
            }
            t += 1;
        }
    }

    /// Adds the slices' sums of the tiles from `tile` on, which lie in sets one after the other, and writes the elements.
    ///
    /// # Safety
    /// - The sets are complete, and the thread finishes each tile once.
    #[inline(always)]
    pub(super) unsafe fn finish<T: Half>(&self, linear: &LinearParams, together: u32, tile: u32, set: u32) {
        // A gated tile has fewer elements than the block has threads.
        if !self.exists {
            return;
        }
        if self.simple {
            let (mut z, mut columns, mut exist) = ([0.0; TILES], [0; TILES], [false; TILES]);
            let mut t = 0;
            while t < TILES {
                // SAFETY: forwarded to the caller.
                z[t] = unsafe { total_at_once(together, set + t as u32 * STAYING_SET + self.place, STAYING_SUMS) };
                (columns[t], exist[t]) = self.output(linear, tile, t);
                t += 1;
            }
            // SAFETY: forwarded to the caller.
            unsafe { linear.finish_simple::<T, TILES>(&self.words, [self.batch, self.row], columns, exist, z) };
            return;
        }
        let (mut z, mut up) = ([0.0; TILES], [0.0; TILES]);
        let (mut columns, mut exist) = ([0; TILES], [false; TILES]);
        let mut t = 0;
        while t < TILES {
            let at = set + t as u32 * STAYING_SET + self.place;
            (columns[t], exist[t]) = self.output(linear, tile, t);
            // SAFETY: forwarded to the caller.
            unsafe {
                z[t] = total(together, at, STAYING_SUMS);
                if linear.gated != 0 {
                    // Eight columns on.
                    up[t] = total(together, at + 512, STAYING_SUMS);
                }
            }
            t += 1;
        }
        // SAFETY: forwarded to the caller.
        unsafe { linear.finish_elements(&self.words, [self.batch, self.row], columns, exist, z, up) }
    }
}

/// The kernel.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn staying16<T: Mma + Half>(params: &StreamParams, address: ParamAddress) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let (stages, tiles) = (params.stages, linear.tiles_n);
    let chunks = (linear.k as u32).div_ceil(ROWS_DEPTH);
    let base = shared::dynamic_base();
    let xs = base + WARPS * stages * ROWS8_STAGE;
    let sums = xs + chunks * X_BYTES;
    let barriers = sums + 2 * STAYING_SET;
    // One for each set of sums.
    let there = barriers + WARPS * stages * 8;
    let batch = thread::block_idx_z();
    let weights = SliceLoads::new(params, address, warp_idx, base, barriers);
    let count = weights.count;
    let mut loads = Loads {
        x_map: address.tensor_map(offset_of!(StreamParams, x_map)),
        x: xs + weights.first * X_BYTES,
        x_batch: batch as i32,
        weights,
    };
    // SAFETY: the caller's description; each warp's ring, x and barriers are its own, and a stage is loaded again when all
    // its lanes have read it. A set of sums is written again when all warps have come to that of the tile between, which
    // they do when they have read it.
    unsafe {
        if lane == 0 {
            loads.weights.init();
            tma::prefetch_tensormap(loads.x_map);
            if warp_idx == 0 {
                mbarrier::init(there, ROWS8_THREADS);
                mbarrier::init(there + 8, ROWS8_THREADS);
            }
            mbarrier::fence_init();
        }
        barrier::syncwarp(warp::FULL);
        // The blocks of the next kernel come as those of this one leave.
        grid_dependency::launch_dependents();
        if params.early == 0 {
            grid_dependency::wait();
        }
        let mut filled = 0;
        while filled < params.ahead {
            loads.weights(tiles, lane == 0);
            filled += 1;
        }
        grid_dependency::wait();
        let mut step = 0;
        while step < filled && step < count {
            loads.inputs(step, step, lane == 0);
            step += 1;
        }
        while filled < stages {
            loads.next(tiles, lane == 0);
            filled += 1;
        }
        let mut own = Own::<1>::new::<T>(linear, batch);
        own.ask(linear, thread::block_idx_x());
        barrier::syncthreads();

        let column = column_of(group);
        let chunk = [(pair ^ column) * 16, ((4 + pair) ^ column) * 16];
        let ring = loads.weights.ring + column * 128;
        let own_x = loads.x + column * 128;
        let fragments = #[inline(always)]
        |stage: u32, step: u32| -> [[[u32; 4]; 4]; 2] {
            let at = [ring + stage * ROWS8_STAGE, own_x + step * X_BYTES];
            // SAFETY: the stage is full.
            at.map(|at| {
                [
                    shared::ld(at + chunk[0]),
                    shared::ld(at + chunk[1]),
                    shared::ld(at + 1024 + chunk[0]),
                    shared::ld(at + 1024 + chunk[1]),
                ]
            })
        };
        let to = sums + warp_idx * STAYING_SUMS + place_of(group, pair);
        let (mut stage, mut phase) = (0, 0);
        let (mut tile, mut turn) = (thread::block_idx_x(), 0);
        while tile < tiles {
            let mut d = [[0.0f32; 4]; 2];
            let mut next = [[[0; 4]; 4]; 2];
            if count != 0 {
                mbarrier::wait_parity(loads.weights.barriers + stage * 8, phase);
                next = fragments(stage, 0);
            }
            let mut step = 0;
            while step < count {
                let [w, x] = next;
                barrier::syncwarp(warp::FULL);
                loads.next(tiles, lane == 0);
                stage += 1;
                if stage == stages {
                    stage = 0;
                    phase ^= 1;
                }
                step += 1;
                // The next fragments come during these products.
                if step < count {
                    mbarrier::wait_parity(loads.weights.barriers + stage * 8, phase);
                    next = fragments(stage, step);
                }
                d = products::<T>(d, w, x);
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

/// `d` and the products of a load: of 16 columns of the weight and 16 rows of x.
///
/// # Safety
/// - The warp calls this together.
#[inline(always)]
pub unsafe fn products<T: Mma>(mut d: [[f32; 4]; 2], w: [[u32; 4]; 4], x: [[u32; 4]; 4]) -> [[f32; 4]; 2] {
    let mut h = 0;
    while h < 2 {
        let (low, high) = (w[h], w[2 + h]);
        let mut i = 0;
        while i < 2 {
            let a = [low[2 * i], high[2 * i], low[2 * i + 1], high[2 * i + 1]];
            let mut n = 0;
            while n < 2 {
                let b = x[2 * n + h];
                // SAFETY: forwarded to the caller.
                d[n] = unsafe { T::mma(a, [b[2 * i], b[2 * i + 1]], d[n]) };
                n += 1;
            }
            i += 1;
        }
        h += 1;
    }
    d
}

/// Waits for the sums of the block's tile number `turn`, which is `tile`, and writes its elements.
///
/// # Safety
/// - All warps have sent or will send their sums.
#[inline(always)]
pub(super) unsafe fn finish<T: Half>(
    linear: &LinearParams,
    together: u32,
    own: &Own<1>,
    tile: u32,
    turn: u32,
    sums: u32,
    there: u32,
) {
    // SAFETY: forwarded to the caller.
    unsafe {
        mbarrier::wait_parity(there + (turn & 1) * 8, turn / 2 & 1);
        own.finish::<T>(linear, together, tile, sums + (turn & 1) * STAYING_SET);
    }
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of up to 16 rows. Blocks along x share the tiles of columns; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, and the maps.
            #[launch(threads = ROWS8_THREADS, min_blocks = 1, param_align = 64)]
            pub fn $name(params: StreamParams, address: ParamAddress) {
                staying16::<$type>(&params, address)
            }
        )*}
    };
}

entries! {
    linear_staying16_nk_f16: F16;
    linear_staying16_nk_bf16: Bf16;
}
