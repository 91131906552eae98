//! Which block computes which tile, in which order.
//!
//! Hopper's blocks are persistent: block `b` of `n` takes places `b`, `n + b`, `2n + b`, … of an order in which the longest tiles
//! come first (last rows of a causal mask) and in which the heads of a *section*, whose keys fit L2 together, follow
//! each other. Under a causal mask a place is a pair of tiles of the same head that have the work of two tiles of
//! middling length, so that all places are alike; or blocks take places from a counter, the longest first. Elsewhere a block is one tile.

use super::{
    mask::Mask,
    params::{AttentionParams, flags},
};
use cuda_std::{
    atomic::{self, Gpu, Relaxed},
    global, thread,
};

/// A tile of query rows of one head.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Sequence.
    pub batch: u32,
    /// Query head.
    pub head: u32,
    /// First row.
    pub row: u32,
    /// Rows of the sequence.
    pub seq_q: u32,
    /// First row of the sequence in a packed Q, else 0.
    pub start_q: u32,
    /// First key of the sequence in a packed K, else 0.
    pub start_k: u32,
    /// Bounds of the sequence.
    pub mask: Mask,
}

/// One sequence of the batch: where it lies, and its bounds.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// Rows.
    pub seq_q: u32,
    /// First row in a packed Q, else 0.
    pub start_q: u32,
    /// First key in a packed K, else 0.
    pub start_k: u32,
    /// Bounds; they know the number of keys.
    pub mask: Mask,
}

impl Sequence {
    /// Sequence `batch`.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn at(params: &AttentionParams, batch: u32) -> Sequence {
        // SAFETY: forwarded to the caller.
        unsafe { Sequence::by_flags(params, params.flags, batch) }
    }

    /// Sequence `batch`, with the flags of `params` given apart; see [`Mask::by_flags`].
    ///
    /// # Safety
    /// - As for [`Sequence::at`].
    #[inline(always)]
    pub unsafe fn by_flags(params: &AttentionParams, all: u32, batch: u32) -> Sequence {
        let (mut seq_q, mut seq_kv, mut start_q, mut start_k) = (params.seq_q, params.seq_kv, 0, 0);
        if all & flags::VARLEN != 0 {
            // SAFETY: both arrays have `batch + 1` entries.
            unsafe {
                let at = |array: u64, index: u32, tokens: u32| {
                    let bound = global::ld_nc((array + index as u64 * 4) as *const u32);
                    if bound < tokens { bound } else { tokens }
                };
                start_q = at(params.cu_seqlens_q, batch, params.seq_q);
                start_k = at(params.cu_seqlens_k, batch, params.seq_kv);
                let (end_q, end_k) = (
                    at(params.cu_seqlens_q, batch + 1, params.seq_q),
                    at(params.cu_seqlens_k, batch + 1, params.seq_kv),
                );
                // Bounds that do not ascend, or leave the tensors, make a sequence shorter: never an access outside.
                seq_q = if end_q > start_q { end_q - start_q } else { 0 };
                seq_kv = if end_k > start_k { end_k - start_k } else { 0 };
            }
        }
        let mask = Mask::by_flags(params, all, seq_q, seq_kv);
        Sequence {
            seq_q,
            start_q,
            start_k,
            mask,
        }
    }
}

/// End of the indices of tiles; a paired launch counts both tiles of every place.
#[inline(always)]
pub fn tiles(params: &AttentionParams) -> u32 {
    let places = params.batch * params.heads_q * places_of_head(params);
    if params.flags & flags::PAIRED != 0 {
        2 * places
    } else {
        places
    }
}

/// Places of a head in the order.
#[inline(always)]
fn places_of_head(params: &AttentionParams) -> u32 {
    if params.flags & flags::PAIRED != 0 {
        params.row_blocks.div_ceil(2)
    } else {
        params.row_blocks
    }
}

impl Tile {
    /// The tile of index `index`, `rows` rows high: its place in the order, or twice that and which of the pair it is.
    ///
    /// # Safety
    /// - `params` are those of the launch: no extent is 0.
    #[inline(always)]
    pub unsafe fn at(index: u32, params: &AttentionParams, rows: u32) -> Tile {
        // SAFETY: forwarded to the caller.
        unsafe { Tile::by_flags(index, params, params.flags, rows) }
    }

    /// The same with the flags of `params` given apart; see [`Mask::by_flags`].
    ///
    /// # Safety
    /// - As for [`Tile::at`].
    #[inline(always)]
    pub unsafe fn by_flags(index: u32, params: &AttentionParams, all: u32, rows: u32) -> Tile {
        let heads = params.batch * params.heads_q;
        // SAFETY: the host launches no kernel for empty extents, and sections are not empty.
        unsafe {
            core::hint::assert_unchecked(params.row_blocks != 0 && params.section != 0 && params.heads_q != 0);
        }
        let paired = all & flags::PAIRED != 0;
        let (index, second) = if paired {
            (index / 2, index % 2 != 0)
        } else {
            (index, false)
        };
        let per_section = params.section * places_of_head(params);
        // SAFETY: a product of the above; the host checks that the number of tiles fits 32 bits.
        unsafe { core::hint::assert_unchecked(per_section != 0) };
        let section = index / per_section;
        let rest = index - section * per_section;
        let first_head = section * params.section;
        // The last section may have fewer heads.
        let width = if heads - first_head < params.section {
            heads - first_head
        } else {
            params.section
        };
        // SAFETY: a section that exists has a head.
        unsafe { core::hint::assert_unchecked(width != 0) };
        let (block, plane) = (rest / width, first_head + rest % width);
        let (batch, head) = (plane / params.heads_q, plane % params.heads_q);
        let last = params.row_blocks - 1 - block;
        let block = match (second, last == block) {
            (false, _) => last,
            (true, false) => block,
            // The middle one is a pair by itself: this is a tile beyond the last.
            (true, true) => params.row_blocks,
        };
        let row = block * rows;
        // SAFETY: forwarded to the caller.
        let Sequence {
            seq_q,
            start_q,
            start_k,
            mask,
        } = unsafe { Sequence::by_flags(params, all, batch) };
        Tile {
            batch,
            head,
            row,
            seq_q,
            start_q,
            start_k,
            mask,
        }
    }

    /// The tiles of keys that its rows need.
    #[inline(always)]
    pub fn key_tiles(self, rows: u32, keys: u32) -> (i32, i32) {
        let last = self.last_row(self.row, rows);
        if self.row >= self.seq_q {
            (0, 0)
        } else {
            self.mask.tiles(self.row as i32, last, keys as i32)
        }
    }

    /// The last of `rows` rows from `first` that the sequence has.
    #[inline(always)]
    pub fn last_row(self, first: u32, rows: u32) -> i32 {
        let end = if first + rows < self.seq_q {
            first + rows
        } else {
            self.seq_q
        };
        end as i32 - 1
    }
}

/// The index of the tile that this block takes in its `turn`th turn: the next one that nobody has where there is a counter.
///
/// # Safety
/// - `params` are those of the launch; a block takes each turn once.
#[inline(always)]
pub unsafe fn take(params: &AttentionParams, turn: u32) -> u32 {
    let (block, blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    if params.next != 0 {
        // SAFETY: a counter that exists.
        unsafe { atomic::add_u32::<Relaxed, Gpu>(params.next as *mut u32, 1) }
    } else if params.flags & flags::PAIRED != 0 {
        2 * (turn / 2 * blocks + block) + turn % 2
    } else {
        turn * blocks + block
    }
}
