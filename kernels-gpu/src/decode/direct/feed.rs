//! A warp's supply of keys and values of 16-bit elements.
//!
//! Places are looked up 32 steps at a time and as many ahead, those of the next sequence too, so that copies run on from tile to tile.

use super::{
    super::KEYS, DIRECT_KEYS, DIRECT_LOOKUPS, DIRECT_WARPS, DirectParams, TilesShape, rows::Tile, segments::Line,
    steps::copy,
};
use cuda_std::{cp_async, thread};

/// A warp's supply of keys and values: the steps of all segments of the block.
pub struct Feed<'a, const DIM: u32> {
    tile: Tile<'a, DIM>,
    line: Line,
    /// One past the segment's last token.
    end: u32,
    /// This warp's first token of the next step.
    first: u32,
    /// Steps that are left.
    left: u32,
    /// The lane that knows the next step's place, and places as far as all lanes know them.
    lane: u32,
    units: [u32; 2],
    ahead: [u32; 2],
    /// Where the next stage is.
    fill: u32,
}

impl<'a, const DIM: u32> Feed<'a, DIM> {
    /// What a block has from `line` on, of KV head `head`.
    ///
    /// # Safety
    /// - The warp calls this together; `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn new(params: &'a DirectParams, head: u32, line: Line, own_warp: u32) -> Self {
        let mut feed = Feed::<DIM> {
            tile: Tile { params, batch: 0, head },
            line,
            end: 0,
            first: 0,
            left: 0,
            lane: 0,
            units: [0; 2],
            ahead: [0; 2],
            fill: 0,
        };
        // SAFETY: forwarded to the caller.
        unsafe { feed.seek(own_warp, false) };
        feed
    }

    /// Places of the steps from token `first` of a sequence on, one each lane, as far as it has tokens below `end`.
    ///
    /// # Safety
    /// - The table has entries up to there.
    #[inline(always)]
    unsafe fn look_up(&self, batch: u32, first: u32, end: u32) -> [u32; 2] {
        let token = first + thread::lane_id() * DIRECT_KEYS;
        let tile = Tile { batch, ..self.tile };
        // SAFETY: the sequence has an entry for the token.
        if token < end {
            unsafe { tile.place(token) }
        } else {
            [0; 2]
        }
    }

    /// Looks up what comes behind the steps that are looked up: of this segment, or of the next one, whose sequence may be shorter.
    ///
    /// # Safety
    /// - `self.first` is the first token of what is looked up.
    #[inline(always)]
    unsafe fn look_ahead(&mut self, own_warp: u32) {
        let params = self.tile.params;
        let first = self.first + DIRECT_LOOKUPS * DIRECT_KEYS;
        // SAFETY: entries of the table, in use only where the sequence has their tokens.
        unsafe {
            self.ahead = if first < self.end {
                self.look_up(self.tile.batch, first, self.end)
            } else if self.line.batch < params.batch {
                self.look_up(self.line.batch, own_warp * KEYS, params.capacity)
            } else {
                [0; 2]
            };
        }
    }

    /// Goes on to the next segment that has tokens; it is `known` where the first one's pages are looked up.
    ///
    /// # Safety
    /// - The segment is loaded.
    #[inline(always)]
    unsafe fn seek(&mut self, own_warp: u32, mut known: bool) {
        let params = self.tile.params;
        // SAFETY: forwarded to the caller.
        unsafe {
            while self.left == 0
                && let Some(segment) = self.line.next(params)
            {
                self.tile.batch = segment.batch;
                self.end = segment.end;
                self.left = (segment.end - segment.begin + DIRECT_KEYS - 1) / DIRECT_KEYS;
                self.first = segment.begin + own_warp * KEYS;
                self.lane = 0;
                self.units = if known {
                    self.ahead
                } else {
                    self.look_up(segment.batch, self.first, self.end)
                };
                known = false;
                if self.left != 0 {
                    self.look_ahead(own_warp);
                }
            }
        }
    }

    /// Starts the copies of a step, if there is one.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the stage any more.
    #[inline(always)]
    pub unsafe fn load(&mut self, own_warp: u32, ring: u32) {
        let params = self.tile.params;
        let shape = const { TilesShape::new(DIM, 2) };
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.left != 0 {
                let left = self.end as i32 - self.first as i32;
                copy::<DIM, 2, 1>(params, ring + self.fill, self.units, self.lane, left);
                self.first += DIRECT_KEYS;
                self.left -= 1;
                self.lane += 1;
                if self.left == 0 {
                    self.seek(own_warp, true);
                } else if self.lane == DIRECT_LOOKUPS {
                    self.lane = 0;
                    self.units = self.ahead;
                    self.look_ahead(own_warp);
                }
            }
            cp_async::commit_group();
        }
        self.fill += shape.ring_bytes();
        if self.fill
            == const { TilesShape::new(DIM, 2).stages() * DIRECT_WARPS * TilesShape::new(DIM, 2).stage_bytes() }
        {
            self.fill = 0;
        }
    }
}
