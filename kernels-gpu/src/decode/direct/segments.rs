//! The line of all pieces of a head, and the part of it that a block has.
//!
//! The parts, pieces and folds are those of [`plan`](super::super::plan) and `finish`; where a part begins each warp finds for itself.

use super::{
    super::{MIN_SPLIT, quotient, split_tokens},
    DirectParams,
};
use cuda_std::{global, thread, warp};

/// Tokens of sequence `batch`, on their way from memory; 0 behind the last.
///
/// # Safety
/// - `params` are those of the launch.
#[inline(always)]
pub unsafe fn length_of(params: &DirectParams, batch: u32) -> i32 {
    if batch < params.batch {
        // SAFETY: the sequence exists.
        unsafe { global::ld_nc((params.lengths + batch as u64 * 4) as *const i32) }
    } else {
        0
    }
}

/// Tokens with those of this step.
#[inline(always)]
pub fn whole_length(params: &DirectParams, before: i32) -> u32 {
    let length = if before < 0 { 0 } else { before as u32 } + params.appended;
    if length > params.capacity {
        params.capacity
    } else {
        length
    }
}

/// How a sequence of so many tokens is cut: pieces, and the power of two that the tokens of one are.
#[inline(always)]
fn pieces_of(params: &DirectParams, length: u32) -> (u32, u32) {
    let shift = split_tokens(0, length, params.most, params.least, 0).trailing_zeros();
    let pieces = (length + (1 << shift) - 1) >> shift;
    (if pieces == 0 { 1 } else { pieces }, shift)
}

/// What a piece costs, as in [`plan`](super::super::plan).
#[inline(always)]
const fn unit(shift: u32) -> u32 {
    (1 << shift) / MIN_SPLIT + 1
}

/// Where a block is in the line of the pieces of one head.
#[derive(Clone, Copy)]
pub struct Line {
    pub batch: u32,
    piece: u32,
    /// Cost from here to the end of the block's part.
    left: i32,
    /// Tokens of the sequence as loaded.
    length: i32,
}

/// Pieces of one sequence that follow each other.
#[derive(Clone, Copy)]
pub struct Segment {
    pub batch: u32,
    pub length: u32,
    /// Tokens of a piece of the tile are two to this power.
    pub shift: u32,
    /// Pieces of the tile.
    pub pieces: u32,
    /// First token, and one past the last.
    pub begin: u32,
    pub end: u32,
}

impl Line {
    /// Where this block's part begins; each warp finds it for itself.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    pub unsafe fn new(params: &DirectParams, part: u32) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe {
            let lane = thread::lane_id();
            // Each lane has a stretch of the sequences.
            let each = (params.batch + 31) / 32;
            let cost = |batch: u32| {
                let (pieces, shift) = pieces_of(params, whole_length(params, length_of(params, batch)));
                if batch < params.batch { pieces * unit(shift) } else { 0 }
            };
            let (mut own, mut batch) = (0, lane * each);
            let mut i = 0;
            while i < each {
                own += cost(batch + i);
                i += 1;
            }
            let mut up_to = own;
            let mut distance = 1;
            while distance < 32 {
                let other = warp::shfl_up(up_to, distance);
                up_to += if lane >= distance { other } else { 0 };
                distance *= 2;
            }
            let total = warp::shfl_idx(up_to, 31);
            let size = quotient(total + params.parts - 1, params.parts);
            let begin = part * size;
            let mut rest = begin - (up_to - own);
            let here = begin < up_to && begin >= up_to - own;
            let (mut piece, mut left) = (0, 0);
            if here {
                loop {
                    let (pieces, shift) = pieces_of(params, whole_length(params, length_of(params, batch)));
                    let unit = unit(shift);
                    if rest < pieces * unit {
                        core::hint::assert_unchecked(unit != 0);
                        piece = (rest + unit - 1) / unit;
                        left = size - (piece * unit - rest);
                        if piece == pieces {
                            // Inside a tile's last piece: the part begins with the next tile.
                            piece = 0;
                            batch += 1;
                        }
                        break;
                    }
                    rest -= pieces * unit;
                    batch += 1;
                }
            }
            let found = warp::vote_ballot(warp::FULL, here);
            let from = found.trailing_zeros() & 31;
            let (batch, piece, left) = (
                warp::shfl_idx(batch, from),
                warp::shfl_idx(piece, from),
                warp::shfl_idx(left, from),
            );
            Line {
                batch: if found == 0 { params.batch } else { batch },
                piece,
                left: left as i32,
                length: length_of(params, batch),
            }
        }
    }

    /// The next segment of the block.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn next(&mut self, params: &DirectParams) -> Option<Segment> {
        if self.left <= 0 || self.batch >= params.batch {
            return None;
        }
        let (batch, piece) = (self.batch, self.piece);
        let length = whole_length(params, self.length);
        let (pieces, shift) = pieces_of(params, length);
        let mut count = pieces - piece;
        let unit = unit(shift);
        if (count * unit) as i32 > self.left {
            // SAFETY: at least 1.
            unsafe { core::hint::assert_unchecked(unit != 0) };
            count = (self.left as u32 + unit - 1) / unit;
        }
        self.left -= (count * unit) as i32;
        self.piece += count;
        if self.piece == pieces {
            self.piece = 0;
            self.batch += 1;
        }
        // SAFETY: forwarded to the caller.
        self.length = unsafe { length_of(params, self.batch) };
        let (begin, end) = (piece << shift, (piece + count) << shift);
        Some(Segment {
            batch,
            length,
            shift,
            pieces,
            begin,
            end: if end < length { end } else { length },
        })
    }
}
