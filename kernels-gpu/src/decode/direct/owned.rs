//! Rows that a warp owns: joined from the warps' parts of a piece, folded over the pieces, and written.
//!
//! A thread has four columns of each, as the products leave them: of 16-bit caches columns g, 8 + g, 16 + g and 24 + g of 32 side by
//! side, of 8-bit ones 2g, 2g + 1, 16 + 2g and 17 + 2g. Half of the threads have none of heads of 64.

use super::{
    super::{
        few::{Few, Product},
        finish::{ended, fold, join, shift, write_output},
        fresh::Quad,
    },
    DIRECT_WARPS, DirectParams,
    rows::Tile,
};
use cuda_std::{
    global,
    math::{ex2, fma, fmax},
    shared, thread,
};

/// Where warps leave their parts of a piece: maxima and sums, then elements.
#[derive(Clone, Copy)]
pub struct Slots {
    pub statistics: u32,
    pub parts: u32,
}

impl Slots {
    /// Where maximum and sum of a warp's part of a row are.
    #[inline(always)]
    const fn statistics_at(self, warp: u32, row: u32) -> u32 {
        self.statistics + (row * DIRECT_WARPS + warp) * 8
    }

    /// Where its elements are.
    #[inline(always)]
    const fn part_at(self, warp: u32, row: u32, dim: u32) -> u32 {
        self.parts + (row * DIRECT_WARPS + warp) * dim * 4
    }

    /// Leaves this warp's part of a piece.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the slots.
    #[inline(always)]
    pub unsafe fn leave<E: Product<BYTES>, const DIM: u32, const S: usize, const BYTES: u32>(
        self,
        warp: u32,
        rows: u32,
        engine: &Few<E, DIM, S, BYTES, 0, false>,
    ) {
        let lane = thread::lane_id();
        // SAFETY: the warp's own slots.
        unsafe {
            let sums = [engine.sum_of_keys(0), engine.sum_of_keys(1)];
            let mut q = 0;
            while q < 2 {
                let row = lane % 4 * 2 + q as u32;
                if row < rows {
                    let to = self.part_at(warp, row, DIM) + lane / 4 * 16;
                    let mut t = 0;
                    while t < S {
                        let (even, odd) = (engine.out[t], engine.out[t + 1]);
                        shared::st(to + t as u32 * 64, [even[q], even[q + 2], odd[q], odd[q + 2]]);
                        t += 2;
                    }
                    if lane < 4 {
                        shared::st(self.statistics_at(warp, row), [engine.maximum[q], sums[q]]);
                    }
                }
                q += 1;
            }
        }
    }

    /// Maximum and sum of a row's piece, and this thread's columns.
    ///
    /// # Safety
    /// - All warps have left theirs.
    #[inline(always)]
    pub unsafe fn join(self, row: u32, dim: u32) -> ([f32; 2], [f32; 4]) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut parts = [[0.0f32; 2]; DIRECT_WARPS as usize];
            let mut maximum = f32::NEG_INFINITY;
            let mut w = 0;
            while w < DIRECT_WARPS as usize {
                parts[w] = shared::ld(self.statistics_at(w as u32, row));
                maximum = fmax(maximum, parts[w][0]);
                w += 1;
            }
            let (mut sum, mut out) = (0.0, [0.0f32; 4]);
            w = 0;
            while w < DIRECT_WARPS as usize {
                let factor = ex2(parts[w][0] - shift(maximum));
                sum = fma(parts[w][1], factor, sum);
                let mut part = [0.0f32; 4];
                if has_columns(dim) {
                    part = shared::ld(self.part_at(w as u32, row, dim) + thread::lane_id() * 16);
                }
                let mut c = 0;
                while c < 4 {
                    out[c] = fma(part[c], factor, out[c]);
                    c += 1;
                }
                w += 1;
            }
            ([maximum, sum], out)
        }
    }
}

/// Whether this thread has columns of heads of `dim`.
#[inline(always)]
pub fn has_columns(dim: u32) -> bool {
    dim == 128 || thread::lane_id() * 4 < dim
}

/// The column of a row that a thread has as its number `c`.
#[inline(always)]
pub fn column<const BYTES: u32>(c: u32) -> u32 {
    let lane = thread::lane_id();
    lane / 8 * 32
        + if BYTES == 2 {
            lane % 8 + c * 8
        } else {
            lane % 8 * 2 + c % 2 + c / 2 * 16
        }
}

/// What is folded of a row.
#[derive(Clone, Copy)]
pub struct Owned {
    statistics: [f32; 2],
    total: [f32; 4],
}

impl Owned {
    /// Nothing yet.
    pub const NONE: Owned = Owned {
        statistics: [f32::NEG_INFINITY, 0.0],
        total: [0.0; 4],
    };

    /// Adds a piece.
    #[inline(always)]
    pub fn fold(&mut self, statistics: [f32; 2], piece: [f32; 4]) {
        let (joined, factors) = join(self.statistics, statistics);
        self.statistics = joined;
        let mut c = 0;
        while c < 4 {
            self.total[c] = fold(self.total[c], factors, piece[c]);
            c += 1;
        }
    }

    /// Writes the row, times `scale`, and its log-sum-exp.
    ///
    /// # Safety
    /// - The tile has the row, and all its pieces are folded.
    #[inline(always)]
    pub unsafe fn write<E: Quad, const DIM: u32, const BYTES: u32>(&self, tile: &Tile<'_, DIM>, row: u32, scale: f32) {
        let params: &DirectParams = tile.params;
        let (factor, lse) = ended(self.statistics, f32::NEG_INFINITY);
        // A row without keys.
        let factor = if self.statistics[1] == 0.0 { 0.0 } else { factor * scale };
        let (query, head) = tile.query(row);
        let line = (tile.batch * params.seq_q + query) * params.heads + head;
        let to = params.out + (line * DIM) as u64 * 2;
        // SAFETY: the row's own.
        unsafe {
            let mut c = 0;
            while has_columns(DIM) && c < 4 {
                write_output::<E>(to, column::<BYTES>(c), self.total[c as usize] * factor);
                c += 1;
            }
            if thread::lane_id() == 0 {
                let at = (tile.batch * params.heads + head) * params.seq_q + query;
                global::st((params.lse + at as u64 * 4) as *mut f32, lse);
            }
        }
    }
}
