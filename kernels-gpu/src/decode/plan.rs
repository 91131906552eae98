//! Which pieces a block attends, found on the device from the lengths as they are.
//!
//! # Why
//! The grid is as many blocks as the GPU holds at once, whatever the lengths. A block that took one piece would pay for
//! its beginning (length, page, keys: three loads one after the other) and for its end with nothing under way; one that
//! takes many keeps its copies running from piece to piece and from tile to tile.
//!
//! # How
//! The tiles stand in a line, by batch, tile and head, each as long as its pieces cost. The line is cut into equal parts, and
//! a piece belongs to the part that it begins in. A block's part is therefore a few *segments*: pieces of one tile that
//! follow each other. Which block attends a piece changes no bit of it. Heads go side by side, a line for each of `side` of
//! them, so that blocks which follow each other read the keys of the same tokens, which lie together, at the same time.
//!
//! In a cluster (a lone sequence) each block has an equal share of one tile's pieces.

use super::{DecodeParams, MIN_SPLIT, finish::PLAN_AT, quotient, stream::Engine, work::Work};
use cuda_std::{barrier::syncthreads, shared, thread, warp};

/// A block's place in the line of pieces.
#[derive(Clone, Copy)]
pub struct Cursor {
    batch: u32,
    tile: u32,
    head: u32,
    piece: u32,
    /// Cost from here to the end of the block's part; at most 0 at its end.
    left: i64,
}

/// Pieces of one tile that follow each other.
#[derive(Clone, Copy)]
pub struct Segment {
    /// The tile.
    pub work: Work,
    /// How many.
    count: u32,
    /// First key.
    pub begin: u32,
    /// One past the last.
    pub end: u32,
    /// First token of the first step: a multiple of what a block takes at a time.
    start: u32,
    /// Steps.
    pub steps: u32,
}

impl Segment {
    /// The first token of warp `warp` in a step.
    #[inline(always)]
    pub fn token<E: Engine>(&self, step: u32, warp: u32) -> u32 {
        self.start + (step * E::SHAPE.warps + warp) * E::SHAPE.keys
    }

    /// Whether these are all pieces of the tile, and the block folds them.
    #[inline(always)]
    fn whole<E: Engine>(&self, params: &DecodeParams) -> bool {
        // A block has totals of one bundle only.
        self.work.pieces == 1
            || (self.count == self.work.dealt::<E>(params).0
                && E::SHAPE.folds
                && params.whole != 0
                && (E::SHAPE.bundle == 0 || self.work.pieces <= 1 << E::SHAPE.bundle))
    }

    /// Puts into shared memory what joining needs; the warp calls this together.
    ///
    /// # Safety
    /// - 64 bytes at `at` are the warp's own.
    #[inline(always)]
    pub unsafe fn save<E: Engine>(&self, params: &DecodeParams, at: u32) {
        let work = &self.work;
        let steps = if cfg!(tier = "sm_75") { self.steps } else { 0 };
        if thread::lane_id() == 0 {
            // SAFETY: forwarded to the caller.
            unsafe {
                shared::st(at, [work.batch, work.head, work.tile, work.first_row]);
                shared::st(at + 16, [work.rows, work.length as u32, work.low, work.high]);
                shared::st(at + 32, [work.size, work.pieces, self.whole::<E>(params).into(), steps]);
                if super::fresh::is_on::<E>(params) {
                    shared::st(at + 48, [self.begin, self.end, work.fresh, 0]);
                }
            }
        }
    }

    /// Tokens of a piece, from shared memory.
    ///
    /// # Safety
    /// - As for [`load`](Segment::load).
    #[inline(always)]
    pub unsafe fn size(at: u32) -> u32 {
        // SAFETY: forwarded to the caller.
        unsafe { shared::ld(at + 32) }
    }

    /// First key, one past the last, and the first key of this step, from shared memory.
    ///
    /// # Safety
    /// - As for [`load`](Segment::load), where there are keys of this step.
    #[inline(always)]
    pub unsafe fn tokens(at: u32) -> [u32; 3] {
        // SAFETY: forwarded to the caller.
        let [begin, end, fresh, _]: [u32; 4] = unsafe { shared::ld(at + 48) };
        [begin, end, fresh]
    }

    /// The tile, and whether the block folds all its pieces, from shared memory. Its first key of this step is not there.
    ///
    /// # Safety
    /// - [`save`](Segment::save) and `syncwarp` lie before.
    #[inline(always)]
    pub unsafe fn load(at: u32) -> (Work, bool) {
        // SAFETY: forwarded to the caller.
        let words: [[u32; 4]; 3] = unsafe { [shared::ld(at), shared::ld(at + 16), shared::ld(at + 32)] };
        let [
            [batch, head, tile, first_row],
            [rows, length, low, high],
            [size, pieces, whole, _],
        ] = words;
        let work = Work {
            batch,
            head,
            tile,
            first_row,
            rows,
            length: length as i32,
            fresh: 0,
            low,
            high,
            size,
            pieces,
        };
        (work, whole != 0)
    }
}

/// Where in shared memory the 32 bytes number `index` are: a cursor, or half a segment.
#[inline(always)]
pub fn place<E: Engine>(index: u32) -> u32 {
    E::base() + PLAN_AT + 64 + index * 32
}

/// Where warp `warp` keeps what it knows of its loader's segment: 16 bytes.
#[inline(always)]
pub fn span<E: Engine>(warp: u32) -> u32 {
    place::<E>(16) + warp * 16
}

/// What a piece of `size` tokens costs: its keys, and what its joining takes as long as.
#[inline(always)]
const fn unit(size: u32) -> u32 {
    size / MIN_SPLIT + 1
}

impl Cursor {
    /// Puts it into shared memory; the warp calls this together.
    ///
    /// # Safety
    /// - 32 bytes at `at` are the warp's own.
    #[inline(always)]
    pub unsafe fn save(&self, at: u32) {
        if thread::lane_id() == 0 {
            // SAFETY: forwarded to the caller.
            unsafe {
                shared::st(at, [self.batch, self.tile, self.head, self.piece]);
                shared::st(at + 16, self.left as u64);
            }
        }
    }

    /// From shared memory.
    ///
    /// # Safety
    /// - [`save`](Cursor::save) and `syncwarp` lie before.
    #[inline(always)]
    pub unsafe fn load(at: u32) -> Cursor {
        // SAFETY: forwarded to the caller.
        let ([batch, tile, head, piece], left): ([u32; 4], u64) = unsafe { (shared::ld(at), shared::ld(at + 16)) };
        Cursor {
            batch,
            tile,
            head,
            piece,
            left: left as i64,
        }
    }

    /// The next segment of the block.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn next<E: Engine>(&mut self, params: &DecodeParams) -> Option<Segment> {
        unsafe {
            loop {
                if self.left <= 0 || self.batch >= params.batch {
                    return None;
                }
                let work = Work::new(params, E::SHAPE.rows, self.batch, self.head, self.tile);
                let (pieces, size) = work.dealt::<E>(params);
                let piece = self.piece;
                let mut count = pieces - piece;
                if E::SHAPE.groups > 1 {
                    self.left = 0;
                    return Self::turns::<E>(work);
                } else if params.fold != 0 {
                    self.left = 0;
                } else {
                    let unit = unit(size);
                    if count as i64 * unit as i64 > self.left {
                        // Below 128 pieces' cost.
                        core::hint::assert_unchecked(unit != 0);
                        count = (self.left as u32 + unit - 1) / unit;
                    }
                    self.left -= count as i64 * unit as i64;
                }
                self.piece += count;
                if self.piece == pieces {
                    self.piece = 0;
                    self.head += params.side;
                    if self.head >= params.heads_kv {
                        self.head -= params.heads_kv;
                        self.tile += 1;
                        if self.tile == params.tiles {
                            self.tile = 0;
                            self.batch += 1;
                        }
                    }
                }
                // The place that the plan found may be behind the last piece of its tile.
                if count == 0 {
                    continue;
                }
                let low = work.low & !(work.size - 1);
                let first = low + piece * size;
                let begin = if first > work.low { first } else { work.low };
                // No sum here wraps: pieces that are not the last end below `high`.
                let end = if piece + count == pieces {
                    work.high
                } else {
                    first + count * size
                };
                let block_keys = const { E::SHAPE.warps * E::SHAPE.keys };
                let start = begin & !(block_keys - 1);
                return Some(Segment {
                    work,
                    count,
                    begin,
                    end,
                    start,
                    steps: if end > begin {
                        (end - start + block_keys - 1) / block_keys
                    } else {
                        0
                    },
                });
            }
        }
    }
}

impl Cursor {
    /// The pieces of this thread's group, of a tile whose groups take them in turns.
    #[inline(always)]
    fn turns<E: Engine>(work: Work) -> Option<Segment> {
        let (groups, group) = (const { E::SHAPE.groups }, E::group());
        if group >= work.pieces {
            return None;
        }
        let count = (work.pieces - group + groups - 1) / groups;
        let low = work.low & !(work.size - 1);
        let first = low + group * work.size;
        let begin = if first > work.low { first } else { work.low };
        let block_keys = const { E::SHAPE.warps * E::SHAPE.keys };
        let mut steps = 0;
        if work.high > work.low {
            steps = count * (work.size / block_keys);
            if group == 0 {
                steps -= (work.low - low) / block_keys;
            }
            if (work.pieces - 1) % groups == group {
                // Pieces end beyond `high` by less than a piece.
                steps -= (low + work.pieces * work.size - work.high) / block_keys;
            }
        }
        Some(Segment {
            work,
            count,
            begin,
            end: work.high,
            start: begin & !(block_keys - 1),
            steps,
        })
    }
}

/// Sequence, head and tile of tile number `number`: that of the block which has it for itself.
#[inline(always)]
pub fn place_of(params: &DecodeParams, number: u32) -> (u32, u32, u32) {
    let rest = quotient(number, params.heads_kv);
    let head = number - rest * params.heads_kv;
    let batch = quotient(rest, params.tiles);
    (batch, head, rest - batch * params.tiles)
}

/// The tile of such a block.
///
/// # Safety
/// - `params` are those of the launch.
#[inline(always)]
pub unsafe fn tile_of_block<E: Engine>(params: &DecodeParams) -> Work {
    let (batch, head, tile) = place_of(params, thread::block_idx_x());
    // SAFETY: forwarded to the caller.
    unsafe { Work::new(params, E::SHAPE.rows, batch, head, tile) }
}

/// Where this block's part begins; nothing when it has none.
///
/// # Safety
/// - All threads of the block call this together, before shared memory is used for anything else.
#[inline(always)]
pub unsafe fn begin<E: Engine>(params: &DecodeParams) -> Option<Cursor> {
    unsafe {
        let (heads, tiles) = (params.heads_kv, params.tiles);
        core::hint::assert_unchecked(heads != 0);
        core::hint::assert_unchecked(tiles != 0);
        let block = thread::block_idx_x();
        if E::SHAPE.groups > 1 || params.fold != 0 {
            // Neighbouring blocks read the heads of the same tokens, which lie together.
            let (batch, head, tile) = place_of(params, block);
            return Some(Cursor {
                batch,
                tile,
                head,
                piece: 0,
                left: 1,
            });
        }
        #[cfg(tier = "sm_90a")]
        if super::cluster::is_on::<E>(params) {
            let work = super::cluster::work::<E>(params);
            let (pieces, size) = work.dealt::<E>(params);
            let share = super::cluster::share(params, pieces);
            let piece = share * thread::cluster_block_rank();
            let behind = if piece + share < pieces { piece + share } else { pieces };
            return Some(Cursor {
                batch: work.batch,
                tile: work.tile,
                head: work.head,
                piece,
                // One tile, and nothing of the next.
                left: (behind as i64 - piece as i64) * unit(size) as i64,
            });
        }
        if E::SHAPE.bundle != 0 && params.each != 0 {
            // A block for each piece, or bundle, that the longest sequence has.
            let number = quotient(block, params.each);
            let piece = block - number * params.each;
            let (batch, head, tile) = place_of(params, number);
            let work = Work::new(params, E::SHAPE.rows, batch, head, tile);
            if piece >= work.dealt::<E>(params).0 {
                return None;
            }
            return Some(Cursor {
                batch,
                tile,
                head,
                piece,
                left: 1,
            });
        }
        let at = E::base() + PLAN_AT;
        let threads = const { E::SHAPE.warps * 32 };
        // Blocks that follow each other have the same part of neighbouring heads.
        let side = params.side;
        core::hint::assert_unchecked(side != 0);
        let (heads, beside, block) = (heads / side, block % side, block / side);
        let (index, lane, own_warp) = (thread::thread_idx_x(), thread::lane_id(), thread::uniform_warp_idx());
        // Each thread has a stretch of the tiles of one head.
        let entries = params.batch * tiles;
        let each = (entries + threads - 1) / threads;
        let first = index * each;
        let behind = if first + each < entries { first + each } else { entries };
        let cost = |entry: u32| -> (u64, u32) {
            let work = Work::new(params, E::SHAPE.rows, entry / tiles, 0, entry % tiles);
            let (pieces, size) = work.dealt::<E>(params);
            (pieces as u64 * unit(size) as u64, size)
        };
        let mut own = 0;
        let mut entry = first;
        while entry < behind {
            own += cost(entry).0 * heads as u64;
            entry += 1;
        }
        let mut up_to = own;
        let mut distance = 1;
        while distance < 32 {
            let low = warp::shfl_up(up_to as u32, distance);
            let high = warp::shfl_up((up_to >> 32) as u32, distance);
            if lane >= distance {
                up_to += (high as u64) << 32 | low as u64;
            }
            distance *= 2;
        }
        if lane == 31 {
            shared::st(at + own_warp * 8, up_to);
        }
        syncthreads();
        let (mut total, mut before) = (0u64, up_to - own);
        let mut other = 0;
        while other < E::SHAPE.warps {
            let sum: u64 = shared::ld(at + other * 8);
            if other < own_warp {
                before += sum;
            }
            total += sum;
            other += 1;
        }
        let blocks = (thread::grid_dim_x() / side) as u64;
        core::hint::assert_unchecked(blocks != 0);
        let part = (total + blocks - 1) / blocks;
        let begin = block as u64 * part;
        if begin >= total {
            return None;
        }
        if begin >= before && begin < before + own {
            // This thread's stretch has the first piece at or behind `begin`, or the end of the tile before it.
            let mut rest = begin - before;
            entry = first;
            let (all, size) = loop {
                let (all, size) = cost(entry);
                if rest < all * heads as u64 {
                    break (all, size);
                }
                rest -= all * heads as u64;
                entry += 1;
            };
            core::hint::assert_unchecked(all != 0);
            let head = (rest / all) as u32;
            // Below 128 pieces' cost.
            let (rest, unit) = ((rest - head as u64 * all) as u32, unit(size));
            core::hint::assert_unchecked(unit != 0);
            let piece = (rest + unit - 1) / unit;
            let left = part as i64 - (piece as i64 * unit as i64 - rest as i64);
            shared::st(at + 32, [entry, head, piece, 0]);
            shared::st(at + 48, left as u64);
        }
        syncthreads();
        let [entry, head, piece, _]: [u32; 4] = shared::ld(at + 32);
        let left: u64 = shared::ld(at + 48);
        Some(Cursor {
            batch: entry / tiles,
            tile: entry % tiles,
            head: head * side + beside,
            piece,
            left: left as i64,
        })
    }
}
