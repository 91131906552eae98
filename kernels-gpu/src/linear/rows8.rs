//! `linear_rows8_*`: up to eight rows on Hopper. The weights pass once, at memory speed.
//!
//! As many blocks as there are multiprocessors stay and take tiles of 16 columns in turn. Each of the eight warps of a
//! block takes a slice of k and has a ring of stages of its own, which one of its lanes fills by TMA, tile after tile;
//! so nothing but a tile's end makes warps wait for one another. The weights become the A fragment of an `mma.sync` whose
//! B is x, which lies in shared memory, normalised there if a norm is in front.
//!
//! A multiprocessor holds one such block. That of the next kernel comes when this one leaves, fills its rings, which depend
//! on nothing, and waits for the last of this kernel: so the memory hardly rests between kernels.
//!
//! The order of a sum: k in steps of 16 within a slice, then the slices as the host groups them. It depends on the weight
//! alone.

use super::epilogue::{Columns, Epilogue, Operands};
use super::norm_rows::{Norm, copy_row, normalise};
use super::params::*;
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use core::mem::offset_of;
use cuda_std::{barrier, cp_async, grid_dependency, launch::ParamAddress, mbarrier, shared, thread, tma, warp};

/// Warps of a block.
const WARPS: u32 = ROWS8_THREADS / 32;
/// Columns of a tile.
const COLUMNS: u32 = STREAMING_NK_COLUMNS;

/// The column of eight that fragment row `group` is: rows of one quarter-warp lie four apart, so that the swizzle puts
/// them into different banks.
#[inline(always)]
pub fn column_of(group: u32) -> u32 {
    group % 2 * 4 + group / 2
}

/// Loads of this warp: its slice of tile after tile, into stage after stage.
struct Loads {
    map: *const u8,
    ring: u32,
    barriers: u32,
    stages: u32,
    /// First load of the slice, and how many.
    first: u32,
    count: u32,
    gated: bool,
    batch: i32,
    tile: u32,
    step: u32,
    stage: u32,
}

impl Loads {
    /// Starts the next load, if there is one.
    #[inline(always)]
    unsafe fn next(&mut self, tiles: u32, leader: bool) {
        if self.tile >= tiles {
            return;
        }
        let k = ((self.first + self.step) * ROWS_DEPTH) as i32;
        let to = self.ring + self.stage * ROWS8_STAGE;
        let full = self.barriers + self.stage * 8;
        // SAFETY: forwarded to the caller.
        unsafe {
            if leader {
                mbarrier::arrive_expect_tx(full, ROWS8_STAGE);
                if self.gated {
                    tma::load_5d(to, self.map, [k, 0, 0, self.tile as i32, self.batch], full);
                } else {
                    tma::load_3d(to, self.map, [k, (self.tile * COLUMNS) as i32, self.batch], full);
                }
            }
            barrier::syncwarp(warp::FULL);
        }
        self.stage = if self.stage + 1 == self.stages {
            0
        } else {
            self.stage + 1
        };
        self.step += 1;
        if self.step == self.count {
            self.step = 0;
            self.tile += thread::grid_dim_x();
        }
    }
}

/// Up to eight rows.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn rows8<T: Mma>(params: &StreamParams, address: ParamAddress) {
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let (stages, tiles, rows) = (params.stages, linear.tiles_n, linear.m as u32);
    let chunks = (linear.k as u32).div_ceil(ROWS_DEPTH);
    let pitch = rows8_pitch(linear.k as u32);
    let base = shared::dynamic_base();
    let barriers = base + WARPS * stages * ROWS8_STAGE;
    let exchange = barriers + WARPS * stages * 8;
    let sums = exchange + NORM_EXCHANGE;
    let sums_bytes = WARPS * rows * COLUMNS * 4;
    let x = sums + 2 * sums_bytes;
    let first = warp_idx * params.depth;
    let end = if first + params.depth < chunks {
        first + params.depth
    } else {
        chunks
    };
    let count = if first < end { end - first } else { 0 };
    let batch = thread::block_idx_z();
    let mut loads = Loads {
        map: address.tensor_map(offset_of!(StreamParams, w_map)),
        ring: base + warp_idx * stages * ROWS8_STAGE,
        barriers: barriers + warp_idx * stages * 8,
        stages,
        first,
        count,
        gated: linear.gated != 0,
        batch: if linear.w_batch_stride == 0 { 0 } else { batch as i32 },
        // A warp without a slice has nothing to load.
        tile: if count > 0 { thread::block_idx_x() } else { tiles },
        step: 0,
        stage: 0,
    };
    // SAFETY: the caller's description; each warp's ring and barriers are its own, and a stage is loaded again when all
    // its lanes have read it.
    unsafe {
        if lane == 0 {
            tma::prefetch_tensormap(loads.map);
            let mut stage = 0;
            while stage < stages {
                mbarrier::init(loads.barriers + stage * 8, 1);
                stage += 1;
            }
            mbarrier::fence_init();
        }
        barrier::syncwarp(warp::FULL);
        // The blocks of the next kernel come as those of this one leave.
        grid_dependency::launch_dependents();
        if params.early == 0 {
            grid_dependency::wait();
        }
        let norm = Norm {
            kind: params.norm,
            weight: params.norm_weight,
            bias: params.norm_bias,
            epsilon: params.epsilon,
            k: linear.k as u32,
            reciprocal: params.reciprocal,
        };
        let affine = norm.affine();
        let mut stage = 0;
        while stage < stages {
            loads.next(tiles, lane == 0);
            stage += 1;
        }
        let epilogue = Epilogue::new(linear, batch as u64);
        let mut own = Own::new(params);
        own.load_bias(params, &epilogue);
        grid_dependency::wait();
        own.load_residual(params, &epilogue);

        let vectors = linear.k as u32 / 8;
        let mut row = 0;
        while row < rows {
            let from = linear.x + (batch as u64 * linear.x_batch_stride + row as u64 * linear.x_row_stride) * 2;
            copy_row(x + row * pitch, from, vectors, chunks * (ROWS_DEPTH / 8));
            row += 1;
        }
        cp_async::commit_group();
        cp_async::wait_group::<0>();
        if params.norm != NORM_NONE {
            let (mut row, mut turn) = (0, 0);
            while row < rows {
                normalise::<T>(&norm, &affine, x + row * pitch, exchange, &mut turn);
                row += 1;
            }
        }
        barrier::syncthreads();

        // Rows that do not exist are the last one: their products are not stored.
        let x_row = if group < rows { group } else { rows - 1 };
        let own_x = x + x_row * pitch + first * (ROWS_DEPTH * 2) + pair * 16;
        let column = column_of(group);
        let chunk = [(pair ^ column) * 16, ((4 + pair) ^ column) * 16];
        let (mut stage, mut phase) = (0, 0);
        let (mut tile, mut turn) = (thread::block_idx_x(), 0);
        while tile < tiles {
            let mut d = [0.0f32; 4];
            let mut step = 0;
            while step < count {
                mbarrier::wait_parity(loads.barriers + stage * 8, phase);
                let at = loads.ring + stage * ROWS8_STAGE + column * 128;
                let low: [[u32; 4]; 2] = [shared::ld(at + chunk[0]), shared::ld(at + chunk[1])];
                let high: [[u32; 4]; 2] = [shared::ld(at + 1024 + chunk[0]), shared::ld(at + 1024 + chunk[1])];
                let from = own_x + step * (ROWS_DEPTH * 2);
                let b: [[u32; 4]; 2] = [shared::ld(from), shared::ld(from + 64)];
                barrier::syncwarp(warp::FULL);
                loads.next(tiles, lane == 0);
                let mut h = 0;
                while h < 2 {
                    let mut i = 0;
                    while i < 2 {
                        let a = [low[h][2 * i], high[h][2 * i], low[h][2 * i + 1], high[h][2 * i + 1]];
                        d = T::mma(a, [b[h][2 * i], b[h][2 * i + 1]], d);
                        i += 1;
                    }
                    h += 1;
                }
                stage += 1;
                if stage == stages {
                    stage = 0;
                    phase ^= 1;
                }
                step += 1;
            }
            // Two sets: the one that is read now is written again after the next tile's barrier.
            let set = sums + (turn & 1) * sums_bytes;
            let mut i = 0;
            while i < 4 {
                let row = 2 * pair + i as u32 % 2;
                if row < rows {
                    let to = (warp_idx * rows + row) * COLUMNS + column + i as u32 / 2 * 8;
                    shared::st(set + to * 4, d[i]);
                }
                i += 1;
            }
            // The stores were some lanes' only.
            barrier::syncwarp(warp::FULL);
            barrier::syncthreads();
            // Another warp finishes each tile, while the others go on.
            if tile == own.tile {
                own.finish(params, &epilogue, set);
                own.tile += WARPS * thread::grid_dim_x();
                own.load_bias(params, &epilogue);
                own.load_residual(params, &epilogue);
            }
            turn += 1;
            tile += thread::grid_dim_x();
        }
    }
}

/// The tile that a warp finishes next: eight columns of a row a lane.
struct Own {
    tile: u32,
    row: u32,
    column: u32,
    exists: bool,
    operands: Operands,
}

impl Own {
    #[inline(always)]
    fn new(params: &StreamParams) -> Self {
        let (lane, gated) = (thread::lane_id(), params.linear.gated != 0);
        let rows = params.linear.m as u32;
        Self {
            tile: thread::block_idx_x() + thread::warp_idx() * thread::grid_dim_x(),
            row: if gated { lane } else { lane / 2 },
            column: if gated { 0 } else { lane % 2 * 8 },
            exists: lane < if gated { rows } else { 2 * rows },
            operands: Operands::NONE,
        }
    }

    /// The first of the lane's output columns.
    #[inline(always)]
    fn output(&self, params: &StreamParams) -> u64 {
        Columns::new(&params.linear, self.tile, COLUMNS).of(self.column).0
    }

    /// Whether the lane has something to finish.
    #[inline(always)]
    fn has_work(&self, params: &StreamParams) -> bool {
        self.exists && self.tile < params.linear.tiles_n
    }

    /// Loads the tile's bias.
    #[inline(always)]
    unsafe fn load_bias(&mut self, params: &StreamParams, epilogue: &Epilogue) {
        if self.has_work(params) {
            // SAFETY: forwarded to the caller.
            self.operands.bias = unsafe { epilogue.bias_ahead(self.output(params)) };
        }
    }

    /// Loads the tile's residual.
    #[inline(always)]
    unsafe fn load_residual(&mut self, params: &StreamParams, epilogue: &Epilogue) {
        if self.has_work(params) {
            // SAFETY: forwarded to the caller.
            self.operands.residual = unsafe { epilogue.residual_ahead(self.row as u64, self.output(params)) };
        }
    }

    /// Adds the slices' sums and writes the tile.
    #[inline(always)]
    unsafe fn finish(&self, params: &StreamParams, epilogue: &Epilogue, set: u32) {
        if self.exists {
            let rows = params.linear.m as u32;
            // SAFETY: forwarded to the caller.
            unsafe {
                let total = |column: u32| total(params, set + (self.row * COLUMNS + column) * 4, rows * COLUMNS * 4);
                let z = total(self.column);
                let up = if params.linear.gated != 0 { total(8) } else { z };
                epilogue.finish_with(self.row as u64, self.output(params), z, up, &self.operands);
            }
        }
    }
}

/// The sum over slices, `distance` bytes apart, of eight columns.
#[inline(always)]
unsafe fn total(params: &StreamParams, mut at: u32, distance: u32) -> [f32; 8] {
    let mut total = [0.0; 8];
    let mut slice = 0;
    while slice < params.slices {
        let mut part = [0.0; 8];
        let end = slice + params.together;
        let end = if end < params.slices { end } else { params.slices };
        while slice < end {
            // SAFETY: forwarded to the caller.
            let [a, b]: [[f32; 4]; 2] = unsafe { [shared::ld(at), shared::ld(at + 16)] };
            let mut i = 0;
            while i < 4 {
                part[i] += a[i];
                part[i + 4] += b[i];
                i += 1;
            }
            at += distance;
            slice += 1;
        }
        let mut i = 0;
        while i < 8 {
            total[i] += part[i];
            i += 1;
        }
    }
    total
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of up to eight rows. Blocks along x share the tiles of columns; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]` and its map, rows of x aligned to 16 bytes.
            #[launch(threads = ROWS8_THREADS, param_align = 64)]
            pub fn $name(params: StreamParams, address: ParamAddress) {
                rows8::<$type>(&params, address)
            }
        )*}
    };
}

entries! {
    linear_rows8_nk_f16: F16;
    linear_rows8_nk_bf16: Bf16;
}
