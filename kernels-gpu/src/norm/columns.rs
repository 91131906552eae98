//! Sums of columns for the gradients of weight and bias: by the rows' statistics, and of partial sums.

use super::{
    backward::{COLUMNS, NormBackwardParams, NormSumParams, SUM_COLUMNS, SUMMED, THREADS},
    device::Statistics,
};
use crate::row::{Row, WIDTH, follow, zip};
use crate::tile::element::Element;
use cuda_std::{barrier::syncthreads, global, shared::Shared, thread};

/// Rows whose loads a thread of `norm_columns_*` starts together.
const AT_ONCE: usize = 4;
/// Rows of partial sums whose loads a thread of `norm_sum_*` starts together: of as many teams as multiprocessors all.
const SUMMED_AT_ONCE: usize = 17;

/// Partial sums of columns by the statistics of the rows: block `(i, j)` takes the `i`-th [`COLUMNS`] of team `j`.
#[inline(always)]
pub unsafe fn columns<E: Element>(p: NormBackwardParams) {
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
            offset: 0.0,
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
                    let (rest, scale): (f32, f32) = (global::ld_nc(at.add(1)), global::ld_nc(at.add(2)));
                    statistics[i] = Statistics {
                        mean: global::ld_nc(at),
                        rest,
                        scale,
                        offset: -rest * scale,
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

/// This lane's columns of a row of partial sums, zeros beyond it.
#[inline(always)]
unsafe fn partial(address: *const f32, columns: u64, column: u64) -> [f32; SUMMED] {
    // SAFETY: forwarded to the caller; a vector is aligned where rows are whole vectors.
    unsafe {
        let at = address.add(column as usize);
        if columns % SUMMED as u64 == 0 {
            return global::ld_nc(at as *const [f32; SUMMED]);
        }
        let mut values = [0.0; SUMMED];
        let mut i = 0;
        while i < SUMMED {
            if column + (i as u64) < columns {
                values[i] = global::ld_nc(at.add(i));
            }
            i += 1;
        }
        values
    }
}

/// Adds up columns: a warp takes every eighth row of the block's columns, then the warps' sums are added in order.
#[inline(always)]
pub unsafe fn add_columns<E: Element>(p: NormSumParams) {
    const { assert!(SUM_COLUMNS == 32 * SUMMED as u64) };
    const WARPS: u64 = THREADS as u64 / 32;
    let (lane, warp) = (thread::lane_id(), thread::warp_idx());
    let column = thread::block_idx_x() as u64 * SUM_COLUMNS + lane as u64 * SUMMED as u64;
    let slots = Shared::<f32>::dynamic(0);
    let (matrix, out) = if thread::block_idx_y() == 0 {
        (p.partial, p.out)
    } else {
        (p.partial2, p.out2)
    };
    let mut total = [0.0; SUMMED];
    // SAFETY: the host gives the extents, and shared memory of a word for each column of each warp.
    unsafe {
        follow();
        let mut row = warp as u64;
        while row < p.rows && column < p.columns {
            let first = (matrix as *const f32).add((row * p.columns) as usize);
            let step = (WARPS * p.columns) as usize;
            let mut values = [[0.0; SUMMED]; SUMMED_AT_ONCE];
            let mut i = 0;
            while i < SUMMED_AT_ONCE {
                if row + i as u64 * WARPS < p.rows {
                    values[i] = partial(first.add(i * step), p.columns, column);
                }
                i += 1;
            }
            let mut i = 0;
            while i < SUMMED_AT_ONCE {
                let mut k = 0;
                while k < SUMMED {
                    total[k] += values[i][k];
                    k += 1;
                }
                i += 1;
            }
            row += SUMMED_AT_ONCE as u64 * WARPS;
        }
        let mut k = 0;
        while k < SUMMED {
            slots.add((warp * SUMMED as u32 + k as u32) * 32 + lane).write(total[k]);
            k += 1;
        }
        syncthreads();
        // A thread a column, from the first warp on.
        if warp < SUMMED as u32 {
            let column = thread::block_idx_x() as u64 * SUM_COLUMNS + (lane * SUMMED as u32 + warp) as u64;
            if column < p.columns {
                let mut sum = 0.0;
                let mut other = 0;
                while other < THREADS / 32 {
                    sum += slots.add((other * SUMMED as u32 + warp) * 32 + lane).read();
                    other += 1;
                }
                global::st((out as *mut E).add(column as usize), E::from_f32(sum));
            }
        }
    }
}
