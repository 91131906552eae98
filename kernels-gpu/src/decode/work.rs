//! What a block works on: a tile of rows, and which keys they see.

use super::{DecodeParams, UNBOUNDED, split_tokens, stream::Engine};
use cuda_std::global;

/// What a block works on.
#[derive(Clone, Copy)]
pub struct Work {
    /// Sequence.
    pub batch: u32,
    /// KV head.
    pub head: u32,
    /// Tile of the KV head.
    pub tile: u32,
    /// First row of the tile among the (query, head) pairs of the KV head.
    pub first_row: u32,
    /// Rows that exist.
    pub rows: u32,
    /// Tokens of the sequence.
    pub length: i32,
    /// Tokens before this step, where it appends some.
    pub fresh: u32,
    /// First key that a row of the tile sees.
    pub low: u32,
    /// One past the last.
    pub high: u32,
    /// Tokens of a piece.
    pub size: u32,
    /// Pieces of the tile.
    pub pieces: u32,
}

/// One row: which keys it sees, and its bias.
#[derive(Clone, Copy)]
pub struct Row {
    /// First key.
    pub begin: i32,
    /// One past the last; at most `begin` when it sees none.
    pub end: i32,
    /// Position among the keys.
    pub position: i32,
    /// Slope of ALiBi times log₂ e.
    pub slope: f32,
}

impl Work {
    /// What tile `tile` of a KV head sees; a tile has room for `tile_rows` rows.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn new(params: &DecodeParams, tile_rows: u32, batch: u32, head: u32, tile: u32) -> Work {
        unsafe {
            let mut length = global::ld_nc((params.lengths + batch as u64 * 4) as *const i32);
            length = if length < 0 { 0 } else { length };
            let fresh = length as u32;
            length += params.appended as i32;
            if length > params.capacity as i32 {
                length = params.capacity as i32;
            }
            let mut floor = 0;
            if params.left_padding != 0 {
                floor = global::ld_nc((params.left_padding + batch as u64 * 4) as *const i32);
                floor = if floor < 0 { 0 } else { floor };
                floor = if floor > length { length } else { floor };
            }
            let all = params.seq_q * params.group;
            let first_row = tile * tile_rows;
            let rows = if all - first_row < tile_rows {
                all - first_row
            } else {
                tile_rows
            };
            core::hint::assert_unchecked(params.group != 0);
            let position = |row: u32| length - params.seq_q as i32 + (row / params.group) as i32;
            let (first, last) = (position(first_row), position(first_row + rows - 1));
            let low = if params.window_left == UNBOUNDED {
                floor
            } else {
                first - params.window_left as i32
            };
            let high = if params.window_right == UNBOUNDED {
                length
            } else {
                last + params.window_right as i32 + 1
            };
            let low = if low < floor { floor } else { low };
            let high = if high > length { length } else { high };
            let low = if low > length { length } else { low };
            let high = if high < low { low } else { high };
            let (low, high) = (low as u32, high as u32);
            let size = split_tokens(low, high, params.most, params.least, params.narrow);
            let shift = size.trailing_zeros();
            let pieces = ((high + size - 1) >> shift) - (low >> shift);
            let pieces = if high == low { 1 } else { pieces };
            Work {
                batch,
                head,
                tile,
                first_row,
                rows,
                length,
                fresh,
                low,
                high,
                size,
                pieces,
            }
        }
    }

    /// What is dealt out: pieces, or bundles of them, and the tokens of one.
    #[inline(always)]
    pub fn dealt<E: Engine>(&self, params: &DecodeParams) -> (u32, u32) {
        let bundle = const { E::SHAPE.bundle };
        if bundle != 0 && params.bundled != 0 {
            ((self.pieces + (1 << bundle) - 1) >> bundle, self.size << bundle)
        } else {
            (self.pieces, self.size)
        }
    }

    /// Row `row` of the tile.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn row(&self, params: &DecodeParams, row: u32) -> Row {
        unsafe {
            if row >= self.rows {
                return Row {
                    begin: 0,
                    end: 0,
                    position: 0,
                    slope: 0.0,
                };
            }
            let query = self.query(params, row);
            let position = self.length - params.seq_q as i32 + query as i32;
            let begin = if params.window_left == UNBOUNDED {
                0
            } else {
                position - params.window_left as i32
            };
            let end = if params.window_right == UNBOUNDED {
                self.length
            } else {
                position + params.window_right as i32 + 1
            };
            let mut slope = 0.0;
            if params.alibi_slopes != 0 {
                let head = self.query_head(params, row) as u64 + self.batch as u64 * params.alibi_batch_stride;
                slope = global::ld_nc((params.alibi_slopes + head * 4) as *const f32) * core::f32::consts::LOG2_E;
            }
            Row {
                begin: if begin < self.low as i32 {
                    self.low as i32
                } else {
                    begin
                },
                end: if end > self.high as i32 { self.high as i32 } else { end },
                position,
                slope,
            }
        }
    }

    /// The query head of a row.
    #[inline(always)]
    pub fn query_head(&self, params: &DecodeParams, row: u32) -> u32 {
        // SAFETY: the host launches no kernel for empty groups.
        unsafe { core::hint::assert_unchecked(params.group != 0) };
        self.head * params.group + (self.first_row + row) % params.group
    }

    /// The query of a row.
    #[inline(always)]
    pub fn query(&self, params: &DecodeParams, row: u32) -> u32 {
        // SAFETY: the host launches no kernel for empty groups.
        unsafe { core::hint::assert_unchecked(params.group != 0) };
        (self.first_row + row) / params.group
    }
}
