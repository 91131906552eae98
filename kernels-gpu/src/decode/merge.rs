//! Folding the pieces of a tile that were attended apart, in their order.

use super::{
    DecodeParams,
    end::folded_at,
    finish::{finished, fold, join, output_address, tile_number, write_lse, write_quad},
    fresh::Quad,
    quotient,
    work::Work,
};
use cuda_std::{global, thread};

/// Pieces whose loads the merging kernel has under way at a time.
pub const AHEAD: usize = 16;

/// The fold of a row's pieces, whose maximum and sum and `W` elements of the output `load` gives: a left fold over bundles of
/// `1 << bundle` pieces, each a left fold.
///
/// # Safety
/// - `load` may be called for all pieces.
#[inline(always)]
pub unsafe fn fold_pieces<const W: usize, const AHEAD: usize>(
    pieces: u32,
    bundle: u32,
    load: impl Fn(u32) -> ([f32; 2], [f32; W]),
) -> ([f32; 2], [f32; W]) {
    let mut total = [f32::NEG_INFINITY, 0.0];
    let mut out = [0.0; W];
    // What comes before the bundle.
    let (mut before, mut out_before) = (total, out);
    let mut first = 0;
    while first < pieces {
        let mut parts = [([0.0f32; 2], [0.0f32; W]); AHEAD];
        let mut u = 0;
        while u < AHEAD as u32 {
            if first + u < pieces {
                parts[u as usize] = load(first + u);
            }
            u += 1;
        }
        u = 0;
        while u < AHEAD as u32 {
            if first + u < pieces {
                let (statistics, part) = parts[u as usize];
                let (joined, factors) = join(total, statistics);
                total = joined;
                let mut w = 0;
                while w < W {
                    out[w] = fold(out[w], factors, part[w]);
                    w += 1;
                }
                if bundle != 0 && (first + u + 1 == pieces || (first + u + 1) & ((1 << bundle) - 1) == 0) {
                    let (joined, factors) = join(before, total);
                    before = joined;
                    w = 0;
                    while w < W {
                        out_before[w] = fold(out_before[w], factors, out[w]);
                        w += 1;
                    }
                    (total, out) = ([f32::NEG_INFINITY, 0.0], [0.0; W]);
                }
            }
            u += 1;
        }
        first += AHEAD as u32;
    }
    if bundle != 0 {
        (before, out_before)
    } else {
        (total, out)
    }
}

/// Maximum and sum of a piece of the row whose first piece is number `place`, and four of its elements.
#[inline(always)]
unsafe fn load_part(params: &DecodeParams, place: u64, piece: u32, column: u32) -> ([f32; 2], [f32; 4]) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let at = place + piece as u64 * params.rows as u64;
        let statistics = global::ld((params.statistics + at * 8) as *const [f32; 2]);
        let at = at * params.value_dim as u64 + column as u64;
        let mut part = [0.0; 4];
        if column < params.value_dim {
            part = global::ld((params.partial + at * 4) as *const [f32; 4]);
        }
        (statistics, part)
    }
}

/// Folds the pieces of rows where they were computed apart: a thread has four neighbouring elements.
///
/// # Safety
/// - The workspace holds what the decode kernel with the same parameters wrote.
#[inline(always)]
pub unsafe fn merge<O: Quad, const AHEAD: usize>(params: &DecodeParams) {
    unsafe {
        let (rows, tiles, heads) = (params.rows, params.tiles, params.heads_kv);
        let quads = super::quads_of(params.value_dim);
        let all = params.batch * heads * tiles * rows * quads;
        let mut item = thread::block_idx_x() * super::MERGE_THREADS + thread::thread_idx_x();
        // Lengths stand since before the decode kernel began: they need not wait for its end.
        let mut part = Part::new(params, if item < all { item } else { 0 });
        // Every block waits, so that this launch does not end before the one it follows; what follows this one may be
        // set up, and waits itself.
        #[cfg(tier = "sm_90a")]
        {
            cuda_std::grid_dependency::launch_dependents();
            cuda_std::grid_dependency::wait();
        }
        while item < all {
            part.fold::<O, AHEAD>(params);
            item += thread::grid_dim_x() * super::MERGE_THREADS;
            if item < all {
                part = Part::new(params, item);
            }
        }
    }
}

/// Four neighbouring elements of a row.
#[derive(Clone, Copy)]
struct Part {
    work: Work,
    row: u32,
    column: u32,
}

impl Part {
    /// Number `item` of all.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    unsafe fn new(params: &DecodeParams, item: u32) -> Part {
        let (rows, tiles, heads) = (params.rows, params.tiles, params.heads_kv);
        let quads = super::quads_of(params.value_dim);
        let number = quotient(item, quads);
        let column = (item - number * quads) * 4;
        let entry = quotient(number, rows);
        let pair = quotient(entry, tiles);
        let batch = quotient(pair, heads);
        let (row, tile, head) = (number - entry * rows, entry - pair * tiles, pair - batch * heads);
        // SAFETY: forwarded to the caller.
        let work = unsafe { Work::new(params, params.tile_rows, batch, head, tile) };
        Part { work, row, column }
    }

    /// Folds the pieces.
    ///
    /// # Safety
    /// - As for [`merge`].
    #[inline(always)]
    unsafe fn fold<O: Quad, const AHEAD: usize>(&self, params: &DecodeParams) {
        unsafe {
            let Part { work, row, column } = *self;
            let rows = params.rows;
            if row >= work.rows || work.pieces == 1 {
                return;
            }
            let place = tile_number(params, &work) * params.splits as u64 * rows as u64 + row as u64;
            if params.whole == 1 {
                let folded: u32 = global::ld(folded_at(params, tile_number(params, &work)));
                if folded != 0 {
                    return;
                }
            }
            let (pieces, bundle) = if params.bundled != 0 {
                ((work.pieces + (1 << params.bundle) - 1) >> params.bundle, 0)
            } else {
                (work.pieces, params.bundle)
            };
            if params.whole == 2 && pieces == 1 {
                return;
            }
            let (total, out) = fold_pieces::<4, AHEAD>(pieces, bundle, |piece| load_part(params, place, piece, column));
            let (factor, lse) = finished(params, &work, row, total);
            if column == 0 {
                write_lse(params, &work, row, lse);
            }
            if column < params.value_dim {
                write_quad::<O>(output_address::<O>(params, &work, row), column, out, factor);
            }
        }
    }
}
