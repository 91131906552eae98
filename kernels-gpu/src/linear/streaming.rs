//! `linear_streaming_*`: few rows, so that the weights' way from memory is all that counts.
//!
//! A block computes up to 16 rows (8 in f32) for 16 columns of a weight `[n, k]`, or 64 (128 in f32) of a weight
//! `[k, n]`. Every lane loads 16 bytes of the weights at a time and uses them once. In 16-bit types they become the A
//! fragment of an `mma.sync` whose B is x: the order of k within a fragment is free as long as both sides agree, so both
//! come from global memory in the order of the loads, without a detour through shared memory.
//!
//! The warps of a block take pieces of k in turn (four where there are many columns, sixteen where there are few); their
//! sums meet in shared memory and are added in the order of the warps. The order depends on the weight alone, and each row
//! is a column of the product of its own.

use super::epilogue::{Columns, Epilogue};
use super::params::*;
#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;
use crate::tile::element::F16;
use crate::tile::mma::Mma;
use cuda_std::{barrier, global, math, shared, thread, warp};

/// Warps of a block.
const WARPS: u32 = STREAMING_THREADS / 32;

/// Rows and columns of a block.
struct Tile {
    batch: u64,
    first_row: u64,
    columns: Columns,
}

impl Tile {
    #[inline(always)]
    fn new(params: &LinearParams, rows: u32, columns: u32) -> Self {
        // Neighbouring blocks have the same columns, whose weights all but the first find in L2.
        let (block, tiles) = (thread::block_idx_x(), params.tiles_m);
        // SAFETY: there is a tile: this block's.
        unsafe { core::hint::assert_unchecked(tiles != 0) };
        Self {
            batch: thread::block_idx_z() as u64,
            first_row: (block % tiles) as u64 * rows as u64,
            columns: Columns::new(params, block / tiles, columns),
        }
    }

    /// Address of row `row` of the tile, or of the last row of x where the tile has more: its products are not stored.
    #[inline(always)]
    fn x(&self, params: &LinearParams, row: u32, size: u64) -> u64 {
        let row = self.first_row + row as u64;
        let row = if row < params.m { row } else { params.m - 1 };
        params.x + (self.batch * params.x_batch_stride + row * params.x_row_stride) * size
    }

    /// Address of the weight's column for column `column` of the tile, or of one that exists.
    #[inline(always)]
    fn w(&self, params: &LinearParams, column: u32, size: u64) -> u64 {
        let (output, column) = self.columns.of(column);
        let column = if output < params.n { column } else { 0 };
        params.w + (self.batch * params.w_batch_stride + column * params.w_n_stride) * size
    }
}

/// Where warp `split` puts its sum for `(row, column)`.
#[inline(always)]
fn partial(columns: u32, rows: u32, split: u32, row: u32, column: u32) -> u32 {
    shared::dynamic_base() + ((split * rows + row) * columns + column) * 4
}

/// Adds the warps' sums and finishes the tile.
///
/// # Safety
/// - All threads call this; all sums are written.
#[inline(always)]
unsafe fn finish(params: &LinearParams, tile: &Tile, rows: u32, columns: u32, splits: u32, threads: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        barrier::syncthreads();
        let epilogue = Epilogue::new(params, tile.batch);
        let gated = params.gated != 0;
        let step = if gated { 16 } else { 8 };
        // A power of two.
        let groups = if gated { columns / 16 } else { columns / 8 };
        let mut unit = thread::thread_idx_x();
        while unit < rows * groups {
            let (row, column) = (unit / groups, unit % groups * step);
            let y_row = tile.first_row + row as u64;
            if y_row < params.m {
                let z = sum(columns, rows, splits, row, column);
                let up = if gated {
                    sum(columns, rows, splits, row, column + 8)
                } else {
                    z
                };
                epilogue.finish(y_row, tile.columns.of(column).0, z, up);
            }
            unit += threads;
        }
    }
}

/// The sum over the warps of eight columns.
#[inline(always)]
unsafe fn sum(columns: u32, rows: u32, splits: u32, row: u32, column: u32) -> [f32; 8] {
    let mut total = [0.0; 8];
    let mut split = 0;
    while split < splits {
        let at = partial(columns, rows, split, row, column);
        // SAFETY: forwarded to the caller.
        let [a, b]: [[f32; 4]; 2] = unsafe { [shared::ld(at), shared::ld(at + 16)] };
        let mut i = 0;
        while i < 4 {
            total[i] += a[i];
            total[i + 4] += b[i];
            i += 1;
        }
        split += 1;
    }
    total
}

/// 16 bytes of a weight that nobody reads again, or zeros.
#[inline(always)]
unsafe fn weights(address: u64, exists: bool) -> [u32; 4] {
    // SAFETY: forwarded to the caller.
    if exists {
        unsafe { global::ld_nc_no_allocate(address as *const [u32; 4]) }
    } else {
        [0; 4]
    }
}

/// Bytes of x, or zeros.
#[inline(always)]
unsafe fn inputs<T: global::Value>(address: u64, exists: bool, zero: T) -> T {
    // SAFETY: forwarded to the caller.
    if exists {
        unsafe { global::ld_nc(address as *const T) }
    } else {
        zero
    }
}

/// `STEPS` steps along k of one warp for a weight `[n, k]`, 32 deep and `distance` bytes apart. `FEW`: at most eight rows.
#[inline(always)]
unsafe fn steps_nk<T: Mma, const STEPS: usize, const SPLITS: u32, const FEW: bool>(
    d: &mut [[f32; 4]; 2],
    w: [u64; 2],
    x: [u64; 2],
    offset: u64,
    exists: bool,
    both: bool,
) {
    // SAFETY: forwarded to the caller; whole warps come here.
    unsafe {
        let distance = SPLITS as u64 * 64;
        let mut a = [[[0u32; 4]; 2]; STEPS];
        let mut b = [[[0u32; 4]; 2]; STEPS];
        let mut s = 0;
        while s < STEPS {
            let at = offset + s as u64 * distance;
            a[s][0] = weights(w[0] + at, exists);
            a[s][1] = weights(w[1] + at, exists);
            b[s][0] = inputs(x[0] + at, exists, [0; 4]);
            if !FEW {
                b[s][1] = inputs(x[1] + at, exists && both, [0; 4]);
            }
            s += 1;
        }
        let mut s = 0;
        while s < STEPS {
            let mut h = 0;
            while h < 2 {
                let fragment = [a[s][0][2 * h], a[s][1][2 * h], a[s][0][2 * h + 1], a[s][1][2 * h + 1]];
                d[0] = T::mma(fragment, [b[s][0][2 * h], b[s][0][2 * h + 1]], d[0]);
                if !FEW {
                    d[1] = T::mma(fragment, [b[s][1][2 * h], b[s][1][2 * h + 1]], d[1]);
                }
                h += 1;
            }
            s += 1;
        }
    }
}

/// 16 rows (8 for `FEW`) and 16 columns of a 16-bit weight `[n, k]`, by `SPLITS` warps that load `STEPS` steps ahead.
/// Neither changes a sum: with fewer registers a warp leaves room for the blocks behind it.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn nk<T: Mma, const SPLITS: u32, const STEPS: usize, const FEW: bool>(params: &LinearParams) {
    let tile = Tile::new(params, 16, STREAMING_NK_COLUMNS);
    let (lane, split) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let w = [tile.w(params, group, 2), tile.w(params, group + 8, 2)];
    let x = [tile.x(params, group, 2), tile.x(params, group + 8, 2)];
    // The second eight rows are worth their loads only where there are some.
    let both = params.m - tile.first_row > 8;
    let mut d = [[0.0f32; 4]; 2];
    // In bytes along k, of this lane.
    let mut at = split as u64 * 64 + pair as u64 * 16;
    let round = SPLITS as u64 * 64;
    let end = params.k * 2;
    // SAFETY: addresses below the end of rows that exist; all lanes of a warp take the same turns, for what lies
    // between their offsets decides nothing.
    unsafe {
        let mut first = split as u64 * 64;
        let together = STEPS as u64 * round;
        while first + together - round + 64 <= end {
            steps_nk::<T, STEPS, SPLITS, FEW>(&mut d, w, x, at, true, both);
            first += together;
            at += together;
        }
        while first < end {
            steps_nk::<T, 1, SPLITS, FEW>(&mut d, w, x, at, at < end, both);
            first += round;
            at += round;
        }
        let mut h = 0;
        while h < 2 {
            let mut i = 0;
            while i < 4 {
                let row = 8 * h as u32 + 2 * pair + i as u32 % 2;
                let column = group + i as u32 / 2 * 8;
                shared::st(partial(STREAMING_NK_COLUMNS, 16, split, row, column), d[h][i]);
                i += 1;
            }
            h += 1;
        }
        finish(params, &tile, 16, STREAMING_NK_COLUMNS, SPLITS, 32 * SPLITS);
    }
}

/// `STEPS` steps along k of one warp for a weight `[k, n]`, 16 deep.
#[inline(always)]
unsafe fn steps_kn<T: Mma, const STEPS: usize>(
    d: &mut [[[f32; 4]; 2]; 4],
    w: u64,
    w_step: u64,
    x: [u64; 2],
    exists: bool,
    both: bool,
) {
    // SAFETY: forwarded to the caller; whole warps come here.
    unsafe {
        let mut a = [[[0u32; 4]; 4]; STEPS];
        let mut b = [[[0u32; 2]; 2]; STEPS];
        let mut s = 0;
        while s < STEPS {
            let depth = s as u64 * WARPS as u64 * 16;
            let mut i = 0;
            while i < 4 {
                a[s][i] = weights(w + (depth + i as u64) * w_step, exists);
                i += 1;
            }
            b[s][0] = inputs(x[0] + 2 * depth, exists, [0; 2]);
            b[s][1] = inputs(x[1] + 2 * depth, exists && both, [0; 2]);
            s += 1;
        }
        let mut s = 0;
        while s < STEPS {
            let mut j = 0;
            while j < 4 {
                // Pairs along k from rows of the weight: of columns 2j and 2j + 1.
                let fragment = [
                    math::prmt(a[s][0][j], a[s][1][j], 0x5410),
                    math::prmt(a[s][0][j], a[s][1][j], 0x7632),
                    math::prmt(a[s][2][j], a[s][3][j], 0x5410),
                    math::prmt(a[s][2][j], a[s][3][j], 0x7632),
                ];
                d[j][0] = T::mma(fragment, b[s][0], d[j][0]);
                d[j][1] = T::mma(fragment, b[s][1], d[j][1]);
                j += 1;
            }
            s += 1;
        }
    }
}

/// 16 rows and 64 columns of a 16-bit weight `[k, n]`.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn kn<T: Mma>(params: &LinearParams) {
    const STEPS: u64 = 2;
    let tile = Tile::new(params, 16, STREAMING_KN_COLUMNS);
    let (lane, split) = (thread::lane_id(), thread::warp_idx());
    let (group, pair) = (lane / 4, lane % 4);
    let w_step = params.w_k_stride * 2;
    let both = params.m - tile.first_row > 8;
    // Along k, of this warp and of this lane.
    let mut first = split as u64 * 16;
    let mut w = tile.w(params, 8 * group, 2) + (first + 4 * pair as u64) * w_step;
    let mut x = [tile.x(params, group, 2), tile.x(params, group + 8, 2)];
    x[0] += (first + 4 * pair as u64) * 2;
    x[1] += (first + 4 * pair as u64) * 2;
    let round = WARPS as u64 * 16;
    let mut d = [[[0.0f32; 4]; 2]; 4];
    // SAFETY: as in `nk`.
    unsafe {
        while first + (STEPS - 1) * round + 16 <= params.k {
            steps_kn::<T, { STEPS as usize }>(&mut d, w, w_step, x, true, both);
            first += STEPS * round;
            w += STEPS * round * w_step;
            x = [x[0] + STEPS * round * 2, x[1] + STEPS * round * 2];
        }
        while first < params.k {
            steps_kn::<T, 1>(&mut d, w, w_step, x, first + (4 * pair as u64) < params.k, both);
            first += round;
            w += round * w_step;
            x = [x[0] + round * 2, x[1] + round * 2];
        }
        let mut j = 0;
        while j < 4 {
            let mut h = 0;
            while h < 2 {
                let mut i = 0;
                while i < 4 {
                    let row = 8 * h as u32 + 2 * pair + i as u32 % 2;
                    let column = 8 * group + 2 * j as u32 + i as u32 / 2;
                    shared::st(partial(STREAMING_KN_COLUMNS, 16, split, row, column), d[j][h][i]);
                    i += 1;
                }
                h += 1;
            }
            j += 1;
        }
        finish(params, &tile, 16, STREAMING_KN_COLUMNS, WARPS, STREAMING_THREADS);
    }
}

/// Eight rows and 16 columns of an f32 weight `[n, k]`: two columns a warp, lanes along k.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn nk_f32(params: &LinearParams) {
    let tile = Tile::new(params, STREAMING_F32_ROWS, STREAMING_NK_COLUMNS);
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let w = [tile.w(params, warp_idx, 4), tile.w(params, warp_idx + 8, 4)];
    let rows = params.m - tile.first_row;
    let mut acc = [[0.0f32; STREAMING_F32_ROWS as usize]; 2];
    let mut k = 4 * lane as u64;
    // SAFETY: as in `nk`.
    unsafe {
        while k < params.k {
            let a: [[f32; 4]; 2] = [
                global::ld_nc_no_allocate((w[0] + 4 * k) as *const [f32; 4]),
                global::ld_nc_no_allocate((w[1] + 4 * k) as *const [f32; 4]),
            ];
            let mut row = 0;
            while row < STREAMING_F32_ROWS as usize {
                if (row as u64) < rows {
                    let x: [f32; 4] = global::ld_nc((tile.x(params, row as u32, 4) + 4 * k) as *const [f32; 4]);
                    let mut i = 0;
                    while i < 4 {
                        acc[0][row] = math::fma(a[0][i], x[i], acc[0][row]);
                        acc[1][row] = math::fma(a[1][i], x[i], acc[1][row]);
                        i += 1;
                    }
                }
                row += 1;
            }
            k += 128;
        }
        barrier::syncwarp(warp::FULL);
        let mut row = 0;
        while row < STREAMING_F32_ROWS as usize {
            let mut c = 0;
            while c < 2 {
                let total = warp::reduce_sum::<32>(acc[c][row]);
                if lane == 0 {
                    let at = partial(
                        STREAMING_NK_COLUMNS,
                        STREAMING_F32_ROWS,
                        0,
                        row as u32,
                        warp_idx + 8 * c as u32,
                    );
                    shared::st(at, total);
                }
                c += 1;
            }
            row += 1;
        }
        finish(
            params,
            &tile,
            STREAMING_F32_ROWS,
            STREAMING_NK_COLUMNS,
            1,
            STREAMING_THREADS,
        );
    }
}

/// Eight rows and 128 columns of an f32 weight `[k, n]`: four columns a lane, warps along k.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn kn_f32(params: &LinearParams) {
    let tile = Tile::new(params, STREAMING_F32_ROWS, STREAMING_KN_F32_COLUMNS);
    let (lane, split) = (thread::lane_id(), thread::warp_idx());
    let w = tile.w(params, 4 * lane, 4);
    let rows = params.m - tile.first_row;
    let mut acc = [[0.0f32; 4]; STREAMING_F32_ROWS as usize];
    let mut k = split as u64;
    // SAFETY: as in `nk`.
    unsafe {
        while k < params.k {
            let a: [f32; 4] = global::ld_nc_no_allocate((w + 4 * k * params.w_k_stride) as *const [f32; 4]);
            let mut row = 0;
            while row < STREAMING_F32_ROWS as usize {
                if (row as u64) < rows {
                    let x: f32 = global::ld_nc((tile.x(params, row as u32, 4) + 4 * k) as *const f32);
                    let mut i = 0;
                    while i < 4 {
                        acc[row][i] = math::fma(a[i], x, acc[row][i]);
                        i += 1;
                    }
                }
                row += 1;
            }
            k += WARPS as u64;
        }
        let mut row = 0;
        while row < STREAMING_F32_ROWS as usize {
            let at = partial(
                STREAMING_KN_F32_COLUMNS,
                STREAMING_F32_ROWS,
                split,
                row as u32,
                4 * lane,
            );
            shared::st(at, acc[row]);
            row += 1;
        }
        finish(
            params,
            &tile,
            STREAMING_F32_ROWS,
            STREAMING_KN_F32_COLUMNS,
            WARPS,
            STREAMING_THREADS,
        );
    }
}

/// Entries, each one function of this module.
macro_rules! entries {
    ($($name:ident = $function:path, $threads:expr;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of few rows. Blocks: tiles along x, those of the same columns side by side; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type and layout, weights aligned to 16 bytes.
            #[launch(threads = $threads)]
            pub fn $name(params: LinearParams) {
                $function(&params)
            }
        )*}
    };
}

entries! {
    linear_streaming_nk_f32 = nk_f32, STREAMING_THREADS;
    linear_streaming_kn_f32 = kn_f32, STREAMING_THREADS;
    linear_streaming_kn_f16 = kn::<F16>, STREAMING_THREADS;
}
#[cfg(not(tier = "sm_75"))]
entries! {
    linear_streaming_kn_bf16 = kn::<Bf16>, STREAMING_THREADS;
}
// Hopper has `linear_rows*` instead.
#[cfg(not(tier = "sm_90a"))]
entries! {
    linear_streaming4_nk_f16 = nk::<F16, 4, 4, false>, 128;
    linear_streaming4_few_nk_f16 = nk::<F16, 4, 4, true>, 128;
    linear_streaming16_nk_f16 = nk::<F16, 16, 2, false>, 512;
    linear_streaming16_few_nk_f16 = nk::<F16, 16, 2, true>, 512;
}
#[cfg(tier = "sm_80")]
entries! {
    linear_streaming4_nk_bf16 = nk::<Bf16, 4, 4, false>, 128;
    linear_streaming4_few_nk_bf16 = nk::<Bf16, 4, 4, true>, 128;
    linear_streaming16_nk_bf16 = nk::<Bf16, 16, 2, false>, 512;
    linear_streaming16_few_nk_bf16 = nk::<Bf16, 16, 2, true>, 512;
}
