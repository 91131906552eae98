//! `linear_lanes8_*`: up to 8 rows on Hopper where slices of k are whole and not too deep, with the bits of
//! `linear_rows8_*`.
//!
//! As there, blocks stay and take tiles of 16 columns in turn, and each warp has a slice of k and a ring of stages of its
//! own. But each lane copies its own part of the weights, for which no tensor map has to be fetched, and waits for its own
//! copies; and x, of which a warp needs its slice only, stays in registers. It comes there straight from memory, unless a
//! norm is in front: nothing but a tile's end makes warps wait for one another.

use super::gemm_sm90::Half;
use super::norm_rows::{Norm, normalise};
use super::params::*;
use super::rows8::{Own, column_of, products};
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use cuda_std::{barrier, cp_async, global, grid_dependency, shared, thread, warp};

/// Warps of a block.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Columns of a tile.
const COLUMNS: u32 = STREAMING_NK_COLUMNS;

/// Loads of a warp's slice, tile after tile, into stage after stage.
pub struct Loads {
    /// This lane's part of the next load.
    source: u64,
    /// The same at the slice's beginning in tile 0.
    origin: u64,
    /// Bytes from one row to the fourth after it, and to the tile's other eight.
    rows: [u64; 2],
    /// Bytes from one tile to the next.
    pitch: u64,
    tile: u32,
    /// Loads of the tile that are left.
    left: u32,
    /// Loads of a tile.
    count: u32,
    /// This lane's places of the next stage, relative to the ring.
    stage: u32,
    /// Where this lane's first two rows go in the ring.
    places: [u32; 2],
}

impl Loads {
    /// Those of warp `warp`, whose ring lies at `ring`; its slice has `count` loads from `first` on.
    #[inline(always)]
    pub fn new(params: &LanesParams, ring: u32, [first, count]: [u32; 2]) -> Self {
        let lane = thread::lane_id();
        let (row, vector) = (lane / 8, lane % 8);
        let origin = params.w
            + thread::block_idx_z() as u64 * params.w_batch
            + row as u64 * params.w_row
            + (first * (ROWS_DEPTH * 2) + vector * 16) as u64;
        let tile = thread::block_idx_x();
        Self {
            source: origin + tile as u64 * params.w_tile,
            origin,
            rows: [4 * params.w_row, params.w_eight],
            pitch: params.w_tile,
            // A warp without a slice has nothing to load.
            tile: if count > 0 { tile } else { params.tiles },
            left: count,
            count,
            stage: 0,
            places: [
                ring + row * 128 + (vector ^ row) * 16,
                ring + (row + 4) * 128 + (vector ^ (row + 4)) * 16,
            ],
        }
    }

    /// Starts the next load, if there is one, into the ring of so many stages; a group in any case.
    ///
    /// # Safety
    /// - The warp calls this; the stage is free.
    #[inline(always)]
    pub unsafe fn next<const STAGES: u32>(&mut self, tiles: u32) {
        if self.tile < tiles {
            let to = self.places.map(|place| place + self.stage);
            let [four, eight] = self.rows;
            // SAFETY: forwarded to the caller.
            unsafe {
                let copy = |to: u32, from: u64| cp_async::copy_whole_16_l2_128b(to, from as *const u8);
                copy(to[0], self.source);
                copy(to[1], self.source + four);
                copy(to[0] + 1024, self.source + eight);
                copy(to[1] + 1024, self.source + eight + four);
            }
            self.stage += ROWS8_STAGE;
            if self.stage == STAGES * ROWS8_STAGE {
                self.stage = 0;
            }
            self.source += ROWS_DEPTH as u64 * 2;
            self.left -= 1;
            if self.left == 0 {
                self.left = self.count;
                self.tile += thread::grid_dim_x();
                self.source = self.origin + self.tile as u64 * self.pitch;
            }
        }
        // SAFETY: none of its own.
        unsafe { cp_async::commit_group() }
    }
}

/// First load and number of loads of a warp's slice.
#[inline(always)]
pub fn slice(params: &LanesParams, warp: u32) -> [u32; 2] {
    let first = warp * params.depth;
    let end = if first + params.depth < params.loads {
        first + params.depth
    } else {
        params.loads
    };
    [first, if first < end { end - first } else { 0 }]
}

/// Up to eight rows, and the norm in front of them, of slices of at most `DEPTH` loads.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn lanes8<T: Mma + Half, const DEPTH: usize, const NORM: bool>(params: &LanesParams) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let batch = thread::block_idx_z();
    let tiles = params.tiles;
    let [first, count] = slice(params, warp_idx);
    let ring = shared::dynamic_base() + warp_idx * LANES_STAGES * ROWS8_STAGE;
    let sums = shared::dynamic_base() + WARPS * LANES_STAGES * ROWS8_STAGE;
    let rows = params.rows;
    let sums_bytes = WARPS * rows * COLUMNS * 4;
    let mut loads = Loads::new(params, ring, [first, count]);
    // SAFETY: the caller's description; each warp's ring is its own, and a stage is loaded again when all its lanes have
    // read it.
    unsafe {
        // The blocks of the next kernel come as those of this one leave.
        grid_dependency::launch_dependents();
        if params.early == 0 {
            grid_dependency::wait();
        }
        let norm = Norm {
            kind: if NORM { params.norm } else { NORM_NONE },
            weight: params.norm_weight,
            bias: params.norm_bias,
            epsilon: params.epsilon,
            k: params.loads * ROWS_DEPTH,
            reciprocal: params.reciprocal,
        };
        let affine = norm.affine();
        let mut filled = 0;
        while filled < params.ahead {
            loads.next::<LANES_STAGES>(tiles);
            filled += 1;
        }
        let mut own = Own::new::<T>(linear, batch);
        own.ask_bias(linear);
        grid_dependency::wait();

        // Rows that do not exist are the last one: their products are not stored.
        let row = if group < rows { group } else { rows - 1 };
        let slice = first * (ROWS_DEPTH * 2) + pair * 16;
        let x_at = params.x + batch as u64 * params.x_batch;
        let mut x = [[[0u32; 4]; 2]; DEPTH];
        if NORM {
            let pitch = rows8_pitch(norm.k);
            let exchange = sums + 2 * sums_bytes;
            let to = exchange + NORM_EXCHANGE;
            let mut each = 0;
            while each < rows {
                let mut vector = thread::thread_idx_x();
                while vector < norm.k / 8 {
                    let words: [u32; 4] =
                        global::ld((x_at + each as u64 * params.x_row + vector as u64 * 16) as *const [u32; 4]);
                    shared::st(to + each * pitch + vector * 16, words);
                    vector += ROWS8_THREADS;
                }
                each += 1;
            }
            while filled < LANES_STAGES {
                loads.next::<LANES_STAGES>(tiles);
                filled += 1;
            }
            let (mut each, mut turn) = (0, 0);
            while each < rows {
                let shift = norm.shift::<T>(x_at + each as u64 * params.x_row).to_f32();
                normalise::<T>(&norm, &affine, shift, to + each * pitch, exchange, &mut turn);
                each += 1;
            }
            barrier::syncthreads();
            let from = to + row * pitch + slice;
            let mut step = 0;
            while step < DEPTH {
                if (step as u32) < count {
                    let at = from + step as u32 * (ROWS_DEPTH * 2);
                    x[step] = [shared::ld(at), shared::ld(at + 64)];
                }
                step += 1;
            }
        } else {
            let from = x_at + row as u64 * params.x_row + slice as u64;
            let mut step = 0;
            while step < DEPTH {
                if (step as u32) < count {
                    let at = from + (step as u32 * ROWS_DEPTH * 2) as u64;
                    x[step] = [
                        global::ld(at as *const [u32; 4]),
                        global::ld((at + 64) as *const [u32; 4]),
                    ];
                }
                step += 1;
            }
            while filled < LANES_STAGES {
                loads.next::<LANES_STAGES>(tiles);
                filled += 1;
            }
        }
        own.ask_residual(linear);

        let column = column_of(group);
        let chunk = [
            ring + column * 128 + (pair ^ column) * 16,
            ring + column * 128 + ((4 + pair) ^ column) * 16,
        ];
        let (mut stage, mut turn) = (0, 0);
        let mut tile = thread::block_idx_x();
        while tile < tiles {
            let mut d = [0.0f32; 4];
            let mut step = 0;
            while step < DEPTH {
                if (step as u32) < count {
                    cp_async::wait_group::<{ LANES_STAGES - 1 }>();
                    barrier::syncwarp(warp::FULL);
                    let at = chunk.map(|chunk| chunk + stage);
                    let low: [[u32; 4]; 2] = [shared::ld(at[0]), shared::ld(at[1])];
                    let high: [[u32; 4]; 2] = [shared::ld(at[0] + 1024), shared::ld(at[1] + 1024)];
                    barrier::syncwarp(warp::FULL);
                    loads.next::<LANES_STAGES>(tiles);
                    stage += ROWS8_STAGE;
                    if stage == LANES_STAGES * ROWS8_STAGE {
                        stage = 0;
                    }
                    d = products::<T>(d, [low, high], x[step]);
                }
                step += 1;
            }
            let set = sums + (turn & 1) * sums_bytes;
            own.end::<T>(linear, params.together, tile, set, [rows, warp_idx, pair, column], d);
            turn += 1;
            tile += thread::grid_dim_x();
        }
    }
}

/// Entries, by element type, most loads of a slice, and whether a norm is in front.
macro_rules! entries {
    ($($name:ident: $type:ty, $depth:ident, $norm:literal;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of few rows. Blocks along x share the tiles of columns; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, rows of both aligned to 16 bytes, in
            ///   whole tiles and loads, of which slices have no more than the kernel's.
            #[launch(threads = ROWS8_THREADS, min_blocks = 1)]
            pub fn $name(params: LanesParams) {
                lanes8::<$type, { $depth as usize }, $norm>(&params)
            }
        )*}
    };
}

entries! {
    linear_lanes8_nk_f16: F16, LANES_DEPTH, false;
    linear_lanes8_nk_bf16: Bf16, LANES_DEPTH, false;
    linear_lanes8_deep_nk_f16: F16, LANES_DEEP, false;
    linear_lanes8_deep_nk_bf16: Bf16, LANES_DEEP, false;
    linear_lanes8_norm_nk_f16: F16, LANES_DEPTH, true;
    linear_lanes8_norm_nk_bf16: Bf16, LANES_DEPTH, true;
}
