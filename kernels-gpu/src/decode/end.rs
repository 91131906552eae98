//! The end of a piece: where its rows go, whoever joined them.

use super::{
    DecodeParams,
    finish::{Layout, clustered, finished, join, tile_number, write_lse},
    stream::Engine,
    work::Work,
};
use cuda_std::{global, shared};

/// Where it stands whether a block has folded all pieces of a tile and written its output: behind all statistics.
#[inline(always)]
pub fn folded_at(params: &DecodeParams, tile: u64) -> *mut u32 {
    let tiles = params.batch as u64 * params.heads_kv as u64 * params.tiles as u64;
    (params.statistics + (tiles * params.splits as u64 * params.rows as u64 + tile) * 8) as *mut u32
}

/// The end of a piece: where its results go.
pub struct End {
    /// The block does not fold all pieces.
    pub apart: bool,
    /// It folds a bundle, though others are elsewhere.
    pub bundled: bool,
    /// The piece is the first of a bundle, or the last.
    pub begins: bool,
    pub ends: bool,
    /// The piece is the last of the block's.
    pub last: bool,
    /// Its number in the tile.
    pub split: u32,
    /// Its first row in the workspace, or that of its bundle.
    pub place: u64,
}

impl End {
    /// Of piece number `split` of a tile.
    #[inline(always)]
    pub fn new<E: Engine>(params: &DecodeParams, work: &Work, whole: bool, split: u32, last: bool) -> End {
        let apart = !whole;
        let bundle = const { E::SHAPE.bundle };
        let bundled = bundle != 0 && apart && params.bundled != 0;
        let mask = (1 << bundle) - 1;
        let number = if bundled { split >> bundle } else { split };
        End {
            apart,
            bundled,
            begins: bundled && split & mask == 0,
            ends: last || split & mask == mask,
            last,
            split,
            place: (tile_number(params, work) * params.splits as u64 + number as u64) * params.rows as u64,
        }
    }

    /// Joins a row's maximum and sum to what was folded before, or writes them to the workspace.
    ///
    /// # Safety
    /// - One thread of the block calls this for each row; barriers lie around it.
    #[inline(always)]
    pub unsafe fn join_row<E: Engine>(&self, params: &DecodeParams, work: &Work, thread: u32, part: [f32; 2]) {
        let base = E::base();
        let End {
            apart,
            bundled,
            begins,
            ends,
            last,
            split,
            place,
            ..
        } = *self;
        unsafe {
            if bundled {
                let mut total: [f32; 2] = shared::ld(base + Layout::<E>::TOTAL_AT + thread * 8);
                if begins {
                    total = [f32::NEG_INFINITY, 0.0];
                }
                let (total, factors) = join(total, part);
                shared::st(base + Layout::<E>::TOTAL_AT + thread * 8, total);
                shared::st(base + Layout::<E>::FOLD_AT + thread * 8, factors);
                if ends {
                    global::st(
                        (params.statistics + (place + thread as u64) * 8) as *mut [f32; 2],
                        total,
                    );
                }
            } else if apart && clustered::<E>(params) {
                #[cfg(tier = "sm_90a")]
                super::cluster::put_statistics::<E>(params, split, thread, part);
            } else if apart {
                global::st((params.statistics + (place + thread as u64) * 8) as *mut [f32; 2], part);
            } else {
                let total: [f32; 2] = shared::ld(base + Layout::<E>::TOTAL_AT + thread * 8);
                let (total, factors) = join(total, part);
                shared::st(base + Layout::<E>::TOTAL_AT + thread * 8, total);
                shared::st(base + Layout::<E>::FOLD_AT + thread * 8, factors);
                if last {
                    let (factor, lse) = finished(params, work, thread, total);
                    shared::st(base + Layout::<E>::FINAL_AT + thread * 4, factor);
                    write_lse(params, work, thread, lse);
                }
            }
            // Of a tile that is nobody's whole, the block with its first piece says so.
            let whole = !apart && last;
            if params.whole != 0 && params.fold == 0 && work.pieces > 1 && thread == 0 && (whole || apart && split == 0)
            {
                global::st(folded_at(params, tile_number(params, work)), whole.into());
            }
        }
    }
}
