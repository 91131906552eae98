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
pub const WARP_TEAMS: u64 = 2112;
/// Most teams of one block.
pub const BLOCK_TEAMS: u64 = 264;
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
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{barrier::syncthreads, global, kernel, shared::Shared, thread};

    #[inline(always)]
    unsafe fn backward<E: Element, T: Team, const VECTORS: usize>(p: NormBackwardParams) {
        let geometry = Geometry {
            columns: p.columns,
            centered: p.centered,
            epsilon: p.epsilon,
            reciprocal: p.reciprocal,
        };
        let mut turn = 0;
        let (mut dweight, mut dbias) = (Held::<VECTORS>::new(), Held::<VECTORS>::new());
        let team = T::first();
        let mut row = team;
        while row < p.rows {
            let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, p.aligned);
            let (x, dy) = (matrix(p.x, p.x_stride), matrix(p.dy, p.dy_stride));
            let (dsum, dx) = (matrix(p.dsum, p.dsum_stride), matrix(p.dx, p.dx_stride));
            let weight = matrix(p.weight, 0);
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let load = |column| x.load::<E>(column, 0.0);
                let load_dy = |column| dy.load::<E>(column, 0.0);
                let through = |dy: Vector, column| {
                    if p.weight != 0 {
                        zip(dy, weight.load::<E>(column, 0.0), |dy, w| dy * w)
                    } else {
                        dy
                    }
                };
                let (mut held, mut gradients) = (Held::<VECTORS>::new(), Held::<VECTORS>::new());
                let mut total = 0.0;
                each::<T, VECTORS>(p.columns, |k, column| {
                    let s = load(column);
                    total += add_up(s);
                    held.keep(k, s);
                    if VECTORS > 0 {
                        gradients.keep(k, load_dy(column));
                    }
                });
                let statistics = Statistics::new::<T, VECTORS>(&geometry, &held, total, &mut turn, load);
                if p.statistics != 0 && T::lane() == 0 {
                    let at = (p.statistics as *mut f32).add(row as usize * 3);
                    global::st(at, statistics.mean);
                    global::st(at.add(1), statistics.rest);
                    global::st(at.add(2), statistics.scale);
                }
                let (mut along, mut mean) = (0.0, 0.0);
                each::<T, VECTORS>(p.columns, |k, column| {
                    let unit = map(held.get(k, || load(column)), |s| statistics.unit(s));
                    let dy = gradients.get(k, || load_dy(column));
                    if VECTORS > 0 {
                        held.keep(k, unit);
                        let both = zip(dy, unit, |dy, unit| dy * unit);
                        dweight.keep(k, zip(dweight.get(k, || both), both, |sum, term| sum + term));
                        dbias.keep(k, zip(dbias.get(k, || dy), dy, |sum, term| sum + term));
                    }
                    let g = through(dy, column);
                    mean += add_up(g);
                    along += add_up(inside(zip(g, unit, |g, unit| g * unit), column, p.columns, 0.0));
                });
                let (along, mean) = sum_pair::<T>(along, mean, &mut turn);
                let along = along * p.reciprocal;
                let mean = if p.centered != 0 { mean * p.reciprocal } else { 0.0 };
                each::<T, VECTORS>(p.columns, |k, column| {
                    let unit = held.get(k, || map(load(column), |s| statistics.unit(s)));
                    let g = through(gradients.get(k, || load_dy(column)), column);
                    let mut out = zip(g, unit, |g, unit| ((g - mean) - unit * along) * statistics.scale);
                    if p.dsum != 0 {
                        out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                    }
                    dx.store::<E>(column, out);
                });
            }
            row += T::step();
        }
        if VECTORS > 0 && team < p.teams {
            let columns = p.columns;
            let partial = |address| Row {
                address: address + team * columns as u64 * 4,
                columns,
                aligned: columns % 4 == 0,
            };
            each::<T, VECTORS>(columns, |k, column| {
                // SAFETY: one row of partial sums a team.
                unsafe {
                    if p.dweight != 0 {
                        partial(p.dweight).store::<f32>(column, dweight.get(k, || [0.0; 8]));
                    }
                    if p.dbias != 0 {
                        partial(p.dbias).store::<f32>(column, dbias.get(k, || [0.0; 8]));
                    }
                }
            });
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
            // SAFETY: the host gives the extents of all tensors.
            unsafe {
                let x = Row::new::<E>(p.x, row, p.x_stride, p.columns, p.aligned).load::<E>(column, 0.0);
                let dy = Row::new::<E>(p.dy, row, p.dy_stride, p.columns, p.aligned).load::<E>(column, 0.0);
                let at = (p.statistics as *const f32).add(row as usize * 3);
                let statistics = Statistics {
                    mean: global::ld_nc(at),
                    rest: global::ld_nc(at.add(1)),
                    scale: global::ld_nc(at.add(2)),
                };
                let term = zip(dy, x, |dy, s| dy * statistics.unit(s));
                dweight = zip(dweight, term, |sum, term| sum + term);
                dbias = zip(dbias, dy, |sum, dy| sum + dy);
            }
            row += p.teams;
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
            let mut row = warp as u64;
            while row < p.rows && column < p.columns {
                total += global::ld_nc((p.partial as *const f32).add((row * p.columns + column) as usize));
                row += THREADS as u64 / 32;
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
                /// Gradients of rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements; a warp is a team.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing; the grid has at
                ///   least `teams` teams.
                #[launch(threads = WARP_THREADS)]
                pub fn $warp(params: NormBackwardParams) {
                    backward::<$element, Warp, 4>(params)
                }

                /// Gradients of rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements; a block is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = BLOCK_THREADS)]
                pub fn $block(params: NormBackwardParams) {
                    backward::<$element, Block<BLOCK_THREADS>, 4>(params)
                }

                /// Gradient of `x` and statistics of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $long(params: NormBackwardParams) {
                    backward::<$element, Block<WIDE_THREADS>, 0>(params)
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
