//! `linear_rows8_*`: up to 8 rows on Hopper. The weights pass once, at memory speed.
//!
//! As many blocks as there are multiprocessors stay and take tiles of 16 columns in turn. Each of the eight warps of a
//! block takes a slice of k and has a ring of stages of its own, which one of its lanes fills by TMA, tile after tile;
//! so nothing but a tile's end makes warps wait for one another. The weights become the A fragment of an `mma.sync` whose
//! B is x, which lies in shared memory, normalised there if a norm is in front.
//!
//! A multiprocessor holds one such block. That of the next kernel comes when this one leaves, asks for weights, which depend
//! on nothing, and waits for the last of this kernel: so the memory hardly rests between kernels.
//!
//! The order of a sum: k in steps of 16 within a slice, then the slices as the host groups them. It depends on the weight
//! alone.

use super::epilogue::Words;
use super::gemm_sm90::Half;
use super::norm_rows::{Norm, copy_row, normalise};
use super::params::*;
use super::slice_loads::SliceLoads;
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use cuda_std::{barrier, cp_async, grid_dependency, launch::ParamAddress, mbarrier, shared, thread, warp};

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

/// Up to eight rows, and the norm in front of them.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn rows8<T: Mma + Half>(params: &StreamParams, address: ParamAddress) {
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
    let batch = thread::block_idx_z();
    let mut loads = SliceLoads::new(params, address, warp_idx, base, barriers);
    let (first, count) = (loads.first, loads.count);
    // SAFETY: the caller's description; each warp's ring and barriers are its own, and a stage is loaded again when all
    // its lanes have read it.
    unsafe {
        if lane == 0 {
            loads.init();
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
        let mut filled = 0;
        while filled < params.ahead {
            loads.next(tiles, lane == 0, 0);
            filled += 1;
        }
        let mut own = Own::new::<T>(linear, batch);
        own.ask_bias(linear);
        grid_dependency::wait();

        let row_at =
            |row: u32| linear.x + (batch as u64 * linear.x_batch_stride + row as u64 * linear.x_row_stride) * 2;
        let mut row = 0;
        while row < rows {
            let vectors = linear.k as u32 / 8;
            copy_row(x + row * pitch, row_at(row), vectors, chunks * (ROWS_DEPTH / 8));
            row += 1;
        }
        cp_async::commit_group();
        let normed = params.norm != NORM_NONE;
        let mut shift = norm.shift::<T>(row_at(0));
        own.ask_residual(linear);
        // x would wait behind all of them.
        while filled < stages {
            loads.next(tiles, lane == 0, 0);
            filled += 1;
        }
        cp_async::wait_group::<0>();
        if normed {
            let (mut row, mut turn) = (0, 0);
            while row < rows {
                let from = shift.to_f32();
                if row + 1 < rows {
                    shift = norm.shift::<T>(row_at(row + 1));
                }
                normalise::<T>(&norm, &affine, from, x + row * pitch, exchange, &mut turn);
                row += 1;
            }
        }
        barrier::syncthreads();

        // Rows that do not exist are the last one: their products are not stored.
        let row = if group < rows { group } else { rows - 1 };
        let own_x = x + row * pitch + first * (ROWS_DEPTH * 2) + pair * 16;
        let column = column_of(group);
        let chunk = [(pair ^ column) * 16, ((4 + pair) ^ column) * 16];
        let ring = loads.ring + column * 128;
        let fragments = #[inline(always)]
        |stage: u32, step: u32| -> ([[u32; 4]; 4], [[u32; 4]; 2]) {
            let at = ring + stage * ROWS8_STAGE;
            let weights = [
                shared::ld(at + chunk[0]),
                shared::ld(at + chunk[1]),
                shared::ld(at + 1024 + chunk[0]),
                shared::ld(at + 1024 + chunk[1]),
            ];
            let from = own_x + step * (ROWS_DEPTH * 2);
            (weights, [shared::ld(from), shared::ld(from + 64)])
        };
        let (mut stage, mut phase) = (0, 0);
        let (mut tile, mut turn) = (thread::block_idx_x(), 0);
        while tile < tiles {
            let mut d = [0.0f32; 4];
            let mut next = ([[0; 4]; 4], [[0; 4]; 2]);
            if count != 0 {
                mbarrier::wait_parity(loads.barriers + stage * 8, phase);
                next = fragments(stage, 0);
            }
            let mut step = 0;
            while step < count {
                let ([low0, low1, high0, high1], b) = next;
                let (low, high) = ([low0, low1], [high0, high1]);
                barrier::syncwarp(warp::FULL);
                loads.next(tiles, lane == 0, 0);
                stage += 1;
                if stage == stages {
                    stage = 0;
                    phase ^= 1;
                }
                step += 1;
                // The next fragments come during these products.
                if step < count {
                    mbarrier::wait_parity(loads.barriers + stage * 8, phase);
                    next = fragments(stage, step);
                }
                d = products::<T>(d, [low, high], b);
            }
            let set = sums + (turn & 1) * sums_bytes;
            own.end::<T>(linear, params.together, tile, set, [rows, warp_idx, pair, column], d);
            turn += 1;
            tile += thread::grid_dim_x();
        }
    }
}

/// `d` and the products of a load: of 16 columns of the weight (`low` and `high` eight) and eight rows of x.
///
/// # Safety
/// - The warp calls this together.
#[inline(always)]
pub unsafe fn products<T: Mma>(mut d: [f32; 4], [low, high]: [[[u32; 4]; 2]; 2], b: [[u32; 4]; 2]) -> [f32; 4] {
    let mut h = 0;
    while h < 2 {
        let mut i = 0;
        while i < 2 {
            let a = [low[h][2 * i], high[h][2 * i], low[h][2 * i + 1], high[h][2 * i + 1]];
            // SAFETY: forwarded to the caller.
            d = unsafe { T::mma(a, [b[h][2 * i], b[h][2 * i + 1]], d) };
            i += 1;
        }
        h += 1;
    }
    d
}

/// The element that a lane finishes in one tile of several: as many warps as a tile has 32 outputs share one.
pub struct Own {
    /// The tile that it finishes next.
    tile: u32,
    /// Tiles from one of them to the next.
    stride: u32,
    batch: u32,
    row: u32,
    /// Column of a tile's outputs.
    column: u32,
    exists: bool,
    words: Words,
    /// [`LinearParams::is_simple`].
    simple: bool,
}

impl Own {
    /// That of this thread.
    #[inline(always)]
    pub(super) fn new<T: Half>(linear: &LinearParams, batch: u32) -> Self {
        let outputs = outputs(linear);
        let elements = linear.m as u32 * outputs;
        // 1, 2 or 4 warps.
        let share = (elements > 32) as u32 + (elements > 64) as u32;
        let warp_idx = thread::warp_idx();
        let index = (warp_idx & ((1 << share) - 1)) * 32 + thread::lane_id();
        Self {
            tile: thread::block_idx_x() + (warp_idx >> share) * thread::grid_dim_x(),
            stride: (WARPS >> share) * thread::grid_dim_x(),
            batch,
            row: index / outputs,
            column: index % outputs,
            exists: index < elements,
            words: Words::NONE,
            simple: linear.is_simple::<T>(),
        }
    }

    /// The output column.
    #[inline(always)]
    fn output(&self, linear: &LinearParams) -> u64 {
        self.tile as u64 * outputs(linear) as u64 + self.column as u64
    }

    /// Whether the lane has something to finish.
    #[inline(always)]
    fn has_work(&self, linear: &LinearParams) -> bool {
        self.exists && self.output(linear) < linear.n
    }

    /// Asks for the tile's bias.
    ///
    /// # Safety
    /// - The bias is complete.
    #[inline(always)]
    pub unsafe fn ask_bias(&mut self, linear: &LinearParams) {
        if self.has_work(linear) {
            let column = self.output(linear);
            // SAFETY: forwarded to the caller.
            unsafe { linear.ask_bias(&mut self.words, self.batch, column) }
        }
    }

    /// Asks for the tile's residual.
    ///
    /// # Safety
    /// - The residual is complete.
    #[inline(always)]
    pub unsafe fn ask_residual(&mut self, linear: &LinearParams) {
        if self.has_work(linear) {
            let column = self.output(linear);
            // SAFETY: forwarded to the caller.
            unsafe { linear.ask_residual(&mut self.words, self.batch, self.row, column) }
        }
    }

    /// Ends tile `tile`: this warp's sums `d` of it go to `set`, where all warps' meet, and other warps finish each tile, while
    /// the rest go on. Sets take turns: the one that is read now is written again after the next tile's barrier.
    ///
    /// # Safety
    /// - All threads of the block call this together, for one tile after the other; rows are those of the problem.
    #[inline(always)]
    pub(super) unsafe fn end<T: Half>(
        &mut self,
        linear: &LinearParams,
        together: u32,
        tile: u32,
        set: u32,
        [rows, warp_idx, pair, column]: [u32; 4],
        d: [f32; 4],
    ) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut i = 0;
            while i < 4 {
                let row = i as u32 % 2 + 2 * pair;
                if row < rows {
                    let to = (warp_idx * rows + row) * COLUMNS + column + i as u32 / 2 * 8;
                    shared::st(set + to * 4, d[i]);
                }
                i += 1;
            }
            // The stores were some lanes' only.
            barrier::syncwarp(warp::FULL);
            barrier::syncthreads();
            if tile == self.tile {
                self.finish::<T>(linear, together, set);
                self.tile += self.stride;
                self.ask_bias(linear);
                self.ask_residual(linear);
            }
        }
    }

    /// Adds the slices' sums and writes the element.
    ///
    /// # Safety
    /// - The set's sums are complete, and the lane finishes each tile once.
    #[inline(always)]
    unsafe fn finish<T: Half>(&self, linear: &LinearParams, together: u32, set: u32) {
        if self.has_work(linear) {
            let distance = linear.m as u32 * COLUMNS * 4;
            let at = set + (self.row * COLUMNS + self.column) * 4;
            // SAFETY: forwarded to the caller.
            unsafe {
                let place = [self.batch, self.row];
                if self.simple {
                    let z = total_at_once(together, at, distance);
                    linear.finish_simple::<T, 1>(&[self.words], place, [self.output(linear)], [true], [z]);
                    return;
                }
                let z = total(together, at, distance);
                let up = if linear.gated != 0 {
                    total(together, at + 32, distance)
                } else {
                    z
                };
                linear.finish_elements(&[self.words], place, [self.output(linear)], [true], [z], [up]);
            }
        }
    }
}

/// Outputs of a tile in a row, a power of two.
#[inline(always)]
fn outputs(linear: &LinearParams) -> u32 {
    if linear.gated != 0 { COLUMNS / 2 } else { COLUMNS }
}

/// The sum over slices, `distance` bytes apart. Those that do not exist are zeros, which change no bit: no sum here is −0.
#[inline(always)]
pub unsafe fn total(together: u32, at: u32, distance: u32) -> f32 {
    let mut of = [0.0f32; WARPS as usize];
    let mut i = 0;
    while i < of.len() {
        // SAFETY: forwarded to the caller.
        of[i] = unsafe { shared::ld(at + i as u32 * distance) };
        i += 1;
    }
    match together {
        2 => by::<2>(of),
        4 => by::<4>(of),
        // One by one is the order of all together.
        _ => by::<8>(of),
    }
}

/// [`total`] without a branch.
#[inline(always)]
pub unsafe fn total_at_once(together: u32, at: u32, distance: u32) -> f32 {
    let mut of = [0.0f32; WARPS as usize];
    let mut i = 0;
    while i < of.len() {
        // SAFETY: forwarded to the caller.
        of[i] = unsafe { shared::ld(at + i as u32 * distance) };
        i += 1;
    }
    let [two, four, eight] = [by::<2>(of), by::<4>(of), by::<8>(of)];
    if together == 2 {
        two
    } else if together == 4 {
        four
    } else {
        eight
    }
}

/// The sum of sums of so many slices.
#[inline(always)]
fn by<const TOGETHER: usize>(of: [f32; WARPS as usize]) -> f32 {
    let mut total = 0.0;
    let mut i = 0;
    while i < of.len() {
        let mut part = 0.0;
        let mut j = 0;
        while j < TOGETHER {
            part += of[i + j];
            j += 1;
        }
        total += part;
        i += TOGETHER;
    }
    total
}

/// Entries, by element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of few rows. Blocks along x share the tiles of columns; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]` and its map, rows of x aligned to 16 bytes.
            #[launch(threads = ROWS8_THREADS, min_blocks = 2, param_align = 64)]
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
