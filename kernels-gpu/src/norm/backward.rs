//! Gradients of the norms.
//!
//! With `x̂ = (s − μ)·r` and `g = dy·w`: `ds = (g − mean(g) − x̂·mean(g·x̂))·r + dsum` (without `mean(g)` for
//! RMSNorm), `dw = Σ dy·x̂` and `db = Σ dy` over rows. There are no atomics: each of a number of *teams* that the shape
//! alone decides adds up the rows `team, team + teams, …` in registers and leaves one row of partial sums, and a
//! second launch adds those up in order. Rows that do not fit registers take two launches instead of one: the first
//! leaves the rows' statistics, by which the second forms the sums of columns.

use crate::kernel_params;

/// Rows that one team adds up at least.
pub const ROWS: u64 = 16;
/// Most teams of one warp.
pub const WARP_TEAMS: u64 = 1056;
/// Most teams of one block.
pub const BLOCK_TEAMS: u64 = 132;
/// Threads of a block of the kernels over columns.
pub const THREADS: u32 = 256;
/// Columns that a block of `norm_columns_*` takes.
pub const COLUMNS: u64 = THREADS as u64 * 8;
/// Columns that a block of `norm_sum_*` takes.
pub const SUM_COLUMNS: u64 = 32;

kernel_params! {
    /// Arguments of the `norm_*_backward_*` and `norm_columns_*` kernels. Addresses are 0 for what is not wanted.
    pub struct NormBackwardParams {
        /// What was normalised, `rows × columns`.
        pub x: u64,
        /// Gradient of the output.
        pub dy: u64,
        /// Gradient of `x` by other ways, added to `dx`.
        pub dsum: u64,
        /// Factor of the forward, `columns`.
        pub weight: u64,
        /// Gradient of `x`, out.
        pub dx: u64,
        /// Partial gradients of the weight, f32, `teams × columns`, out.
        pub dweight: u64,
        /// Partial gradients of the bias, f32, `teams × columns`, out.
        pub dbias: u64,
        /// Mean in two parts and reciprocal deviation of each row, f32: written for rows of any length, read by
        /// `norm_columns_*`.
        pub statistics: u64,
        /// Rows.
        pub rows: u64,
        /// Elements from one row of `x` to the next.
        pub x_stride: u64,
        /// Of `dy`.
        pub dy_stride: u64,
        /// Of `dsum`.
        pub dsum_stride: u64,
        /// Of `dx`.
        pub dx_stride: u64,
        /// Rows of partial sums.
        pub teams: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 for LayerNorm.
        pub centered: u32,
        /// ε.
        pub epsilon: f32,
        /// 1 / columns.
        pub reciprocal: f32,
        /// 1 when every row and the weight start at multiples of 16 bytes.
        pub aligned: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Arguments of the `norm_sum_*` kernels: sums of columns.
    pub struct NormSumParams {
        /// f32, `rows × columns`.
        pub partial: u64,
        /// `columns` sums, out.
        pub out: u64,
        /// Rows.
        pub rows: u64,
        /// Columns.
        pub columns: u64,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::super::device::{Geometry, Statistics};
    use super::*;
    use crate::row::*;
    use crate::row::{
        LONG_THREADS, PAIR_BLOCK_HELD, PAIR_BLOCK_THREADS, PAIR_LONG, PAIR_WARP_HELD, WARP_THREADS, WIDTH,
    };
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{barrier::syncthreads, global, kernel, shared::Shared, thread};

    /// Rows whose loads a thread of `norm_columns_*` starts together.
    const AT_ONCE: usize = 4;
    /// Rows of partial sums whose loads a thread of `norm_sum_*` starts together.
    const SUMMED_AT_ONCE: usize = 16;

    #[inline(always)]
    unsafe fn backward<E: Element, T: Team, const N: usize, const HELD: bool>(p: NormBackwardParams) {
        let geometry = Geometry {
            columns: p.columns,
            centered: p.centered,
            epsilon: p.epsilon,
            reciprocal: p.reciprocal,
        };
        let mut turn = 0;
        // Sums of columns, where the row is held.
        let (mut dweight, mut dbias) = ([[0.0f32; 8]; N], [[0.0f32; 8]; N]);
        let team = T::first();
        let mut row = team;
        while row < p.rows {
            let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, p.aligned);
            let (x, dy) = (matrix(p.x, p.x_stride), matrix(p.dy, p.dy_stride));
            let (dsum, dx) = (matrix(p.dsum, p.dsum_stride), matrix(p.dx, p.dx_stride));
            let weight = matrix(p.weight, 0);
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let load = #[inline(always)]
                |base| x.part::<T, E, N, CONSTANT>(base, 0.0);
                let load_dy = #[inline(always)]
                |base| dy.part::<T, E, N, CONSTANT>(base, 0.0);
                let through = #[inline(always)]
                |dy: Vector, column| {
                    if p.weight != 0 {
                        zip(dy, weight.load_again::<E>(column), |dy, w| dy * w)
                    } else {
                        dy
                    }
                };
                let (mut held, mut gradients) = ([E::ZEROS; N], [E::ZEROS; N]);
                if HELD {
                    held = load(0);
                    gradients = load_dy(0);
                    // The few warps that the sums of columns leave room for do not wait for memory long enough to keep it
                    // busy: the next row comes as far as L2 meanwhile.
                    let next = row + T::step();
                    if next < p.rows {
                        Row::new::<E>(p.x, next, p.x_stride, p.columns, p.aligned).prefetch::<T, E, N>();
                        Row::new::<E>(p.dy, next, p.dy_stride, p.columns, p.aligned).prefetch::<T, E, N>();
                    }
                }
                let statistics = Statistics::new::<T, E, N, HELD>(&geometry, &held, &mut turn, load);
                if p.statistics != 0 && T::lane() == 0 {
                    let at = (p.statistics as *mut f32).add(row as usize * 3);
                    global::st(at, statistics.mean);
                    global::st(at.add(1), statistics.rest);
                    global::st(at.add(2), statistics.scale);
                }
                let (mut along, mut mean) = (0.0, 0.0);
                pair_pass::<T, E, N, HELD>(p.columns, [&held, &gradients], load, load_dy, |column, k, s, dy| {
                    let unit = map(s, |s| statistics.unit(s));
                    if HELD {
                        // SAFETY: `k` is below N.
                        let (dw, db) = (dweight.get_unchecked_mut(k), dbias.get_unchecked_mut(k));
                        *dw = zip(*dw, zip(dy, unit, |dy, unit| dy * unit), |sum, term| sum + term);
                        *db = zip(*db, dy, |sum, term| sum + term);
                    }
                    let g = through(dy, column);
                    mean += add_up(g);
                    along += add_up(inside(zip(g, unit, |g, unit| g * unit), column, p.columns, 0.0));
                });
                let (along, mean) = sum_pair::<T>(along, mean, &mut turn);
                let along = along * p.reciprocal;
                let mean = if p.centered != 0 { mean * p.reciprocal } else { 0.0 };
                pair_pass::<T, E, N, HELD>(p.columns, [&held, &gradients], load, load_dy, |column, _, s, dy| {
                    let unit = map(s, |s| statistics.unit(s));
                    let g = through(dy, column);
                    let mut out = zip(g, unit, |g, unit| ((g - mean) - unit * along) * statistics.scale);
                    if p.dsum != 0 {
                        out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                    }
                    dx.store::<E>(column, out);
                });
            }
            row += T::step();
        }
        if HELD && team < p.teams {
            let columns = p.columns;
            let partial = |address| Row {
                address: address + team * columns as u64 * 4,
                columns,
                aligned: columns % 4 == 0,
            };
            // SAFETY: one row of partial sums a team.
            unsafe {
                if p.dweight != 0 {
                    visit::<T, f32, N>(columns, 0, &dweight, |column, _, sums| {
                        partial(p.dweight).store::<f32>(column, sums);
                    });
                }
                if p.dbias != 0 {
                    visit::<T, f32, N>(columns, 0, &dbias, |column, _, sums| {
                        partial(p.dbias).store::<f32>(column, sums);
                    });
                }
            }
        }
    }

    /// Partial sums of columns by the statistics of the rows: block `(i, j)` takes the `i`-th [`COLUMNS`] of team `j`.
    #[inline(always)]
    unsafe fn columns<E: Element>(p: NormBackwardParams) {
        let column = thread::block_idx_x() * COLUMNS as u32 + thread::thread_idx_x() * WIDTH;
        let team = thread::block_idx_y() as u64;
        if column >= p.columns {
            return;
        }
        let (mut dweight, mut dbias) = ([0.0; 8], [0.0; 8]);
        let mut row = team;
        while row < p.rows {
            // All loads of some rows first.
            let (mut x, mut dy) = ([[0.0; 8]; AT_ONCE], [[0.0; 8]; AT_ONCE]);
            let mut statistics = [Statistics {
                mean: 0.0,
                rest: 0.0,
                scale: 0.0,
            }; AT_ONCE];
            let mut i = 0;
            while i < AT_ONCE {
                let row = row + i as u64 * p.teams;
                if row < p.rows {
                    // SAFETY: the host gives the extents of all tensors.
                    unsafe {
                        x[i] = Row::new::<E>(p.x, row, p.x_stride, p.columns, p.aligned).load::<E>(column, 0.0);
                        dy[i] = Row::new::<E>(p.dy, row, p.dy_stride, p.columns, p.aligned).load::<E>(column, 0.0);
                        let at = (p.statistics as *const f32).add(row as usize * 3);
                        statistics[i] = Statistics {
                            mean: global::ld_nc(at),
                            rest: global::ld_nc(at.add(1)),
                            scale: global::ld_nc(at.add(2)),
                        };
                    }
                }
                i += 1;
            }
            let mut i = 0;
            while i < AT_ONCE {
                if row + (i as u64) * p.teams < p.rows {
                    let term = zip(dy[i], x[i], |dy, s| dy * statistics[i].unit(s));
                    dweight = zip(dweight, term, |sum, term| sum + term);
                    dbias = zip(dbias, dy[i], |sum, dy| sum + dy);
                }
                i += 1;
            }
            row += AT_ONCE as u64 * p.teams;
        }
        let partial = |address| Row {
            address: address + team * p.columns as u64 * 4,
            columns: p.columns,
            aligned: p.columns % 4 == 0,
        };
        // SAFETY: one row of partial sums a team.
        unsafe {
            if p.dweight != 0 {
                partial(p.dweight).store::<f32>(column, dweight);
            }
            if p.dbias != 0 {
                partial(p.dbias).store::<f32>(column, dbias);
            }
        }
    }

    /// Adds up columns: a warp takes every eighth row of 32 columns, then the warps' sums are added in order.
    #[inline(always)]
    unsafe fn add_columns<E: Element>(p: NormSumParams) {
        let (lane, warp) = (thread::lane_id(), thread::warp_idx());
        let column = thread::block_idx_x() as u64 * SUM_COLUMNS + lane as u64;
        let slots = Shared::<f32>::dynamic(0);
        let mut total = 0.0;
        // SAFETY: the host gives the extents, and shared memory of a word a thread.
        unsafe {
            const WARPS: u64 = THREADS as u64 / 32;
            let mut row = warp as u64;
            while row < p.rows && column < p.columns {
                let mut values = [0.0; SUMMED_AT_ONCE];
                let mut i = 0;
                while i < SUMMED_AT_ONCE {
                    let row = row + i as u64 * WARPS;
                    if row < p.rows {
                        values[i] = global::ld_nc((p.partial as *const f32).add((row * p.columns + column) as usize));
                    }
                    i += 1;
                }
                let mut i = 0;
                while i < SUMMED_AT_ONCE {
                    total += values[i];
                    i += 1;
                }
                row += SUMMED_AT_ONCE as u64 * WARPS;
            }
            slots.add(warp * 32 + lane).write(total);
            syncthreads();
            if warp == 0 && column < p.columns {
                let mut sum = 0.0;
                let mut other = 0;
                while other < THREADS / 32 {
                    sum += slots.add(other * 32 + lane).read();
                    other += 1;
                }
                global::st((p.out as *mut E).add(column as usize), E::from_f32(sum));
            }
        }
    }

    macro_rules! backwards {
        ($($warp:ident $block:ident $long:ident $columns:ident $sum:ident $element:ty)*) => {
            kernel! {$(
                /// Gradients of rows of up to [`PAIR_WARP_COLUMNS`](crate::row::PAIR_WARP_COLUMNS) elements; a warp is a team.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing; the grid has at
                ///   least `teams` teams.
                #[launch(threads = WARP_THREADS, min_blocks = 2)]
                pub fn $warp(params: NormBackwardParams) {
                    backward::<$element, Warp, PAIR_WARP_HELD, true>(params)
                }

                /// Gradients of rows of up to [`PAIR_BLOCK_COLUMNS`](crate::row::PAIR_BLOCK_COLUMNS) elements; a block is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = PAIR_BLOCK_THREADS)]
                pub fn $block(params: NormBackwardParams) {
                    backward::<$element, Block<PAIR_BLOCK_THREADS>, PAIR_BLOCK_HELD, true>(params)
                }

                /// Gradient of `x` and statistics of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: NormBackwardParams) {
                    backward::<$element, Block<LONG_THREADS>, PAIR_LONG, false>(params)
                }

                /// Partial gradients of weight and bias by the statistics of the rows.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $columns(params: NormBackwardParams) {
                    columns::<$element>(params)
                }

                /// Sums of the columns of an f32 matrix, in this dtype; dynamic shared memory of a word a thread.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say.
                #[launch(threads = THREADS)]
                pub fn $sum(params: NormSumParams) {
                    add_columns::<$element>(params)
                }
            )*}
        };
    }

    backwards! {
        norm_warp_backward_f32 norm_block_backward_f32 norm_long_backward_f32 norm_columns_f32 norm_sum_f32 f32
        norm_warp_backward_f16 norm_block_backward_f16 norm_long_backward_f16 norm_columns_f16 norm_sum_f16 F16
        norm_warp_backward_bf16 norm_block_backward_bf16 norm_long_backward_bf16 norm_columns_bf16 norm_sum_bf16 Bf16
    }
}
