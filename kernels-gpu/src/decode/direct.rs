//! Few sequences: one tile of at most eight rows for each KV head, a cluster of blocks for each tile, nearly always a piece for each
//! block.
//!
//! Little of this is bytes: what takes time is a chain of loads (length, page, keys), and instructions that are fetched once
//! to be executed once. So these are the general kernels without what plain attention does not need: no plan, no division,
//! nothing that the host can know. Each warp sends its part of a row to the block that owns the row, which joins warps to
//! pieces and pieces to the row, in the order of `finish`: the same operations, so the same bits.
//!
//! `decode_tiles_*` and `decode_line_*` do the same for many sequences and long ones, whole tiles or parts of the line of pieces;
//! tiles over 8-bit floats too.

use crate::kernel_params;

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod feed;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod kernel;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod line;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod owned;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod rows;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod segments;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod steps;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod tiles;

/// Rows of a tile.
pub const DIRECT_ROWS: u32 = 8;
/// Most pieces of a tile: each lane joins the warps of one.
pub const DIRECT_PIECES: u32 = 32;
/// Stages of a warp's ring.
pub const DIRECT_STAGES: u32 = 4;
/// Steps whose pages are looked up at a time, each by a lane.
pub const DIRECT_LOOKUPS: u32 = 32;
/// Tokens that a block takes at a time.
pub const DIRECT_KEYS: u32 = DIRECT_WARPS * super::KEYS;
/// Warps of a block.
pub const DIRECT_WARPS: u32 = 4;

kernel_params! {
    /// Arguments of `decode_direct_*`, `decode_tiles_*` and `decode_line_*`. Strides count elements.
    pub struct DirectParams {
        /// Tokens of each sequence, i32.
        pub lengths: u64,
        /// Pages of each sequence, i32; 0 when a sequence is the page of its number.
        pub table: u64,
        /// Queries.
        pub q: u64,
        /// Keys.
        pub k: u64,
        /// Values.
        pub v: u64,
        /// Outputs, dense `[batch, seq_q, heads, dim]`.
        pub out: u64,
        /// Natural log-sum-exps, f32, `[batch, heads, seq_q]`.
        pub lse: u64,
        /// Keys of this step, which the kernel rotates and appends; 0 when all are in the cache.
        pub k_new: u64,
        /// Values of this step.
        pub v_new: u64,
        /// Radians a position of rotated pairs, f32.
        pub frequencies: u64,
        /// Partial outputs, as [`DecodeParams`](super::DecodeParams) has them.
        pub partial: u64,
        /// Their statistics.
        pub statistics: u64,
        /// Factor of the keys of each KV head, f32, where they are 8-bit floats; or 0 for 1.
        pub k_scale: u64,
        /// Factor of the values.
        pub v_scale: u64,
        /// Strides of Q: batch, row, head.
        pub q_strides: [u32; 3],
        /// Strides of the new keys: batch, token, head.
        pub k_new_strides: [u32; 3],
        /// Strides of the new values.
        pub v_new_strides: [u32; 3],
        /// Strides of the keys: page, slot, head; in units of 16 bytes.
        pub k_steps: [u32; 3],
        /// Strides of the values.
        pub v_steps: [u32; 3],
        /// Entries of the table from one sequence to the next.
        pub table_stride: u32,
        /// Tokens of a page are two to this power; at least 16.
        pub page_shift: u32,
        /// Blocks of a cluster are two to this power.
        pub cluster_shift: u32,
        /// Query heads of a KV head.
        pub group: u32,
        /// A row divided by `group` is the row times this, divided by 2¹⁶.
        pub per_group: u32,
        /// Queries of a sequence.
        pub seq_q: u32,
        /// Rows in use: `group · seq_q`.
        pub rows: u32,
        /// All query heads.
        pub heads: u32,
        /// Added to the length: tokens appended by this step.
        pub appended: u32,
        /// Tokens that a sequence can have.
        pub capacity: u32,
        /// Most pieces: what [`split_tokens`](super::split_tokens) is given, with `least`.
        pub most: u32,
        /// Least tokens of a piece.
        pub least: u32,
        /// 1: queries do not see tokens behind their own.
        pub causal: u32,
        /// Rotated pairs of a head; 0 rotates nothing.
        pub pairs: u32,
        /// Factor of cosines and sines.
        pub magnitude: f32,
        /// Factor of the scores, in units of log₂; over 8-bit floats not in units of log₂, and times the factor of the keys.
        pub scale: f32,
        /// Where the stages begin in shared memory.
        pub stages_at: u32,
        /// KV heads.
        pub heads_kv: u32,
        /// Sequences.
        pub batch: u32,
        /// Blocks of a KV head.
        pub parts: u32,
        /// Pieces of a tile that the workspace has room for.
        pub splits: u32,
    }
}

/// Shared memory of a block for heads of `dim` 16-bit elements.
#[derive(Clone, Copy, Debug)]
pub struct DirectShape {
    dim: u32,
}

impl DirectShape {
    /// For heads of that many elements.
    pub const fn new(dim: u32) -> DirectShape {
        DirectShape { dim }
    }

    /// Bytes of a key.
    pub const fn row_bytes(self) -> u32 {
        self.dim * 2
    }

    /// Bytes of a query in shared memory: eight lie in different banks.
    pub const fn query_bytes(self) -> u32 {
        self.row_bytes() + 16
    }

    /// Where queries are, behind a barrier.
    pub const fn queries_at(self) -> u32 {
        16
    }

    /// Where keys, then values of this step are.
    pub const fn fresh_at(self) -> u32 {
        self.queries_at() + DIRECT_ROWS * self.query_bytes()
    }

    /// Where each warp keeps the factors of pieces.
    pub const fn factors_at(self) -> u32 {
        self.fresh_at() + 2 * DIRECT_ROWS * self.row_bytes()
    }

    /// Where maximum and sum of the warps' parts of an owned row are.
    pub const fn statistics_at(self) -> u32 {
        self.factors_at() + DIRECT_WARPS * DIRECT_PIECES * 32
    }

    /// Where the elements of those parts are.
    pub const fn parts_at(self) -> u32 {
        self.statistics_at() + DIRECT_PIECES * DIRECT_WARPS * 8
    }

    /// Where stages are, for that many pieces: a multiple of the widest row.
    pub const fn stages_at(self, pieces: u32) -> u32 {
        (self.parts_at() + pieces * DIRECT_WARPS * self.dim * 4).next_multiple_of(256)
    }

    /// Bytes of a warp's stage: keys, then values.
    pub const fn stage_bytes(self) -> u32 {
        2 * super::KEYS * self.row_bytes()
    }

    /// Dynamic shared memory of a block for tiles of so many pieces, of so many steps.
    pub const fn shared_bytes(self, pieces: u32, steps: u32) -> u32 {
        let stages = if steps < DIRECT_STAGES { steps } else { DIRECT_STAGES };
        self.stages_at(pieces) + stages * DIRECT_WARPS * self.stage_bytes()
    }
}

/// Shared memory of a block that has a whole tile, or, over 16-bit elements, a part of the line.
#[derive(Clone, Copy, Debug)]
pub struct TilesShape {
    dim: u32,
    bytes: u32,
}

impl TilesShape {
    /// For heads of `dim` elements, of `bytes` in the cache.
    pub const fn new(dim: u32, bytes: u32) -> TilesShape {
        TilesShape { dim, bytes }
    }

    /// Keys that a warp takes at a time.
    pub const fn keys(self) -> u32 {
        super::KEYS * 2 / self.bytes
    }

    /// Keys that a block takes at a time.
    pub const fn block_keys(self) -> u32 {
        DIRECT_WARPS * self.keys()
    }

    /// Bytes of a warp's stage: keys, then values.
    pub const fn stage_bytes(self) -> u32 {
        2 * self.keys() * self.dim * self.bytes
    }

    /// Bytes from a warp's stage to its next one.
    pub const fn ring_bytes(self) -> u32 {
        DIRECT_WARPS * self.stage_bytes()
    }

    /// Stages of a warp's ring: measured.
    pub const fn stages(self) -> u32 {
        if self.bytes == 2 && self.dim == 128 { 2 } else { 3 }
    }

    /// Where stages are, behind maxima and sums of the warps' parts of rows.
    pub const fn stages_at(self) -> u32 {
        DIRECT_WARPS * DIRECT_ROWS * 8
    }

    /// Where the elements of those parts are.
    pub const fn parts_at(self) -> u32 {
        self.stages_at() + self.stages() * self.ring_bytes()
    }

    /// Where rotated queries, and keys and values of this step are, as [`DirectShape`] has them.
    pub const fn rows_at(self, rows: u32) -> u32 {
        self.parts_at() + rows * DIRECT_WARPS * self.dim * 4
    }

    /// Dynamic shared memory of a block for tiles of so many rows, which `appends` or not.
    pub const fn shared_bytes(self, rows: u32, appends: bool) -> u32 {
        self.rows_at(rows)
            + if appends {
                DirectShape::new(self.dim).factors_at()
            } else {
                0
            }
    }
}

/// Most pieces, and most steps of one, of a tile that sees up to `capacity` tokens; see [`split_tokens`](super::split_tokens).
pub const fn most_pieces_and_steps(capacity: u32, most: u32, least: u32) -> (u32, u32) {
    let (mut pieces, mut steps) = (1, 1);
    let mut shift = super::MIN_SPLIT.trailing_zeros();
    let mut reached = 0;
    while reached < capacity {
        let size = 1u32 << shift;
        let mut tokens = super::pieces::pieces_of(shift, most, 0).saturating_mul(size);
        // Sizes below the least serve short sequences only.
        if size < least && tokens > super::SHORT {
            tokens = super::SHORT;
        }
        if tokens > capacity {
            tokens = capacity;
        }
        if tokens > reached {
            let count = tokens.div_ceil(size);
            pieces = if count > pieces { count } else { pieces };
            let size = if tokens < size { tokens } else { size };
            steps = size.div_ceil(DIRECT_KEYS);
            reached = tokens;
        }
        shift += 1;
    }
    (pieces, steps)
}

#[cfg(test)]
mod tests {
    use super::{super::split_tokens, *};

    #[test]
    fn most_pieces_and_steps_are_those_of_the_lengths() {
        for (most, least) in [(1, 64), (8, 128), (16, 64), (21, 128), (32, 64), (32, 128), (128, 64)] {
            let (mut pieces, mut steps) = (1, 1);
            for capacity in 1..9000u32 {
                let size = split_tokens(0, capacity, most, least, 0);
                pieces = pieces.max(capacity.div_ceil(size));
                steps = steps.max(size.min(capacity).div_ceil(DIRECT_KEYS));
                assert_eq!(
                    most_pieces_and_steps(capacity, most, least),
                    (pieces, steps),
                    "{capacity} tokens in {most} from {least} on"
                );
            }
        }
    }

    #[test]
    fn two_blocks_of_short_sequences_fit_a_multiprocessor() {
        for (dim, least) in [(64, 128), (128, 64)] {
            let (pieces, steps) = most_pieces_and_steps(1024, 32, least);
            let block = DirectShape::new(dim).shared_bytes(pieces, steps) + 1024;
            assert!(2 * block <= 228 << 10, "{dim}: {block}");
        }
    }
}
