//! Shared memory of the Hopper kernels: tiles handed out, operands, and the rings that guard both.

use super::super::{
    hopper::PANEL_BYTES,
    mask::Mask,
    params::{AttentionParams, PANEL, flags},
    schedule::Tile,
};
use super::queue::{QUEUE_BYTES, Queue};
use crate::pipeline::{Cursor, OneThread, Participants, Ring, ring_bytes};
use core::marker::PhantomData;
use cuda_std::{
    shared::{ld_volatile, st},
    thread, warp,
};

/// Tiles that may be handed out at a time.
pub const TILES: u32 = 2;
/// Bytes of a tile's place.
const SLOT_BYTES: u32 = 32;

/// `S` registers of scores (keys of a tile / 2), `O` of output (padded head dim / 2), `W` computing warpgroups whose
/// warps are `C`; `Q` stages of queries, `K` of keys and of values.
pub struct Shared<C, const S: usize, const O: usize, const W: u32, const Q: u32, const K: u32> {
    /// Where it begins.
    pub base: u32,
    consumers: PhantomData<C>,
}

impl<C: Participants, const S: usize, const O: usize, const W: u32, const Q: u32, const K: u32>
    Shared<C, S, O, W, Q, K>
{
    /// Query rows of a tile.
    pub const ROWS: u32 = 64 * W;
    /// Keys of a tile.
    pub const KEYS: u32 = 2 * S as u32;
    /// Whether tiles of keys are so short that some are masked for a whole warpgroup, which then passes over them.
    pub const SKIPS: bool = Self::KEYS <= 80 && K >= 4;
    /// Padded head dim.
    pub const DIM: u32 = 2 * O as u32;
    /// Panels of a row.
    pub const PANELS: u32 = Self::DIM.div_ceil(PANEL);
    /// Bytes of a panel of queries.
    pub const Q_PANEL: u32 = Self::ROWS * PANEL_BYTES;
    const KV_PANEL: u32 = Self::KEYS * PANEL_BYTES;
    /// Panels, and the bytes of one.
    pub const Q_BOX: (u32, u32) = (Self::PANELS, Self::Q_PANEL);
    /// The same of keys or values.
    pub const KV_BOX: (u32, u32) = (Self::PANELS, Self::KV_PANEL);
    /// Bytes of a stage of queries.
    pub const Q_BYTES: u32 = Self::PANELS * Self::Q_PANEL;
    /// Bytes of a stage of keys or values.
    pub const KV_BYTES: u32 = Self::PANELS * Self::KV_PANEL;
    const K_OFFSET: u32 = Q * Self::Q_BYTES;
    const V_OFFSET: u32 = Self::K_OFFSET + K * Self::KV_BYTES;
    const SLOTS: u32 = Self::V_OFFSET + K * Self::KV_BYTES;
    const BARRIERS: u32 = Self::SLOTS + TILES * SLOT_BYTES;

    /// The block's dynamic shared memory.
    #[inline(always)]
    pub const fn new(base: u32) -> Self {
        const {
            let rings = ring_bytes(TILES) + ring_bytes(Q) + 2 * ring_bytes(K);
            assert!(TILES * SLOT_BYTES + rings + QUEUE_BYTES <= 512);
        };
        Shared {
            base,
            consumers: PhantomData,
        }
    }

    /// Tiles handed from the loading thread to the computing warps.
    #[inline(always)]
    pub fn tile_ring(&self) -> Ring<TILES, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS)
    }
    /// The loading thread's place among packed sequences, at their start.
    ///
    /// # Safety
    /// - The loading thread calls this once.
    #[inline(always)]
    pub unsafe fn queue(&self) -> Queue {
        // SAFETY: forwarded to the caller: bytes behind the barriers.
        unsafe { Queue::start(self.base + Self::BARRIERS + ring_bytes(TILES) + ring_bytes(Q) + 2 * ring_bytes(K)) }
    }
    /// Queries.
    #[inline(always)]
    pub fn q_ring(&self) -> Ring<Q, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(TILES))
    }
    /// Keys.
    #[inline(always)]
    pub fn k_ring(&self) -> Ring<K, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(TILES) + ring_bytes(Q))
    }
    /// Values.
    #[inline(always)]
    pub fn v_ring(&self) -> Ring<K, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(TILES) + ring_bytes(Q) + ring_bytes(K))
    }
    /// Waits for a tile of keys and values and gives it back unseen.
    ///
    /// # Safety
    /// - Whole warps of the consumers, at their own place in both rings.
    #[inline(always)]
    pub unsafe fn give_back(&self, at: Cursor<K>) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.k_ring().wait_full(at);
            self.k_ring().release(at);
            self.v_ring().wait_full(at);
            self.v_ring().release(at);
        }
    }
    /// Where a stage of queries lies.
    #[inline(always)]
    pub fn q_stage(&self, at: Cursor<Q>) -> u32 {
        self.base + at.stage() * Self::Q_BYTES
    }
    /// Where a stage of keys lies.
    #[inline(always)]
    pub fn k_stage(&self, at: Cursor<K>) -> u32 {
        self.base + Self::K_OFFSET + at.stage() * Self::KV_BYTES
    }
    /// Where a stage of values lies.
    #[inline(always)]
    pub fn v_stage(&self, at: Cursor<K>) -> u32 {
        self.base + Self::V_OFFSET + at.stage() * Self::KV_BYTES
    }
    /// A stage of K as the operand of a product.
    #[inline(always)]
    pub fn keys(&self, at: Cursor<K>) -> (u32, u32) {
        (self.k_stage(at), Self::KV_PANEL)
    }
    /// A stage of V as the operand of a product.
    #[inline(always)]
    pub fn values(&self, at: Cursor<K>) -> (u32, u32) {
        (self.v_stage(at), Self::KV_PANEL)
    }

    #[inline(always)]
    fn slot(&self, at: Cursor<TILES>) -> u32 {
        self.base + Self::SLOTS + at.stage() * SLOT_BYTES
    }

    /// Hands a tile to the computing warps; none is the end.
    ///
    /// # Safety
    /// - The loading thread calls this, with its cursor of the ring of tiles.
    #[inline(always)]
    pub unsafe fn hand_out(&self, at: Cursor<TILES>, tile: Option<&Tile>) {
        // SAFETY: the slot is empty; the arrival orders the words before what the warps read.
        unsafe {
            self.tile_ring().wait_empty(at);
            let slot = self.slot(at);
            match tile {
                Some(tile) => {
                    st(slot, [1, tile.batch, tile.head, tile.row]);
                    st(slot + 16, [tile.seq_q, tile.start_q, tile.mask.seq_kv as u32, 0u32]);
                }
                None => st(slot, 0u32),
            }
            self.tile_ring().publish(at);
        }
    }

    /// Waits for what comes next: a tile, or the end.
    ///
    /// # Safety
    /// - Computing warps call this, with their cursor of the ring of tiles.
    #[inline(always)]
    pub unsafe fn more(&self, at: Cursor<TILES>) -> bool {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.tile_ring().wait_full(at);
            let live: u32 = ld_volatile(self.slot(at));
            live != 0
        }
    }

    /// The tile at hand, read again: computing warps have few registers to keep it in.
    ///
    /// # Safety
    /// - The tile has been waited for and not released; `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn tile(&self, at: Cursor<TILES>, params: &AttentionParams) -> Tile {
        let slot = self.slot(at);
        // SAFETY: written before it was handed out.
        unsafe { Self::of_words(ld_volatile(slot), ld_volatile(slot + 16), params) }
    }

    /// The same, for the last time before its release, which one lane of a warp does: that lane reads, and tells the
    /// others. Its warp's arrival would order the reads of all lanes, but a checker that follows threads and not warps
    /// sees a race then.
    ///
    /// # Safety
    /// - As for [`tile`](Self::tile); the whole warp calls this.
    #[inline(always)]
    pub unsafe fn last_look(&self, at: Cursor<TILES>, params: &AttentionParams) -> Tile {
        let slot = self.slot(at);
        let (mut place, mut extent) = ([0u32; 4], [0u32; 4]);
        // SAFETY: written before it was handed out; all lanes meet the shuffles.
        unsafe {
            if thread::lane_id() == 0 {
                (place, extent) = (ld_volatile(slot), ld_volatile(slot + 16));
            }
            Self::of_words(
                place.map(|word| warp::shfl_idx(word, 0)),
                extent.map(|word| warp::shfl_idx(word, 0)),
                params,
            )
        }
    }

    #[inline(always)]
    fn of_words(
        [_, batch, head, row]: [u32; 4],
        [seq_q, start_q, seq_kv, _]: [u32; 4],
        params: &AttentionParams,
    ) -> Tile {
        Tile {
            batch,
            head,
            row,
            seq_q,
            start_q,
            start_k: 0,
            mask: Mask::new(params, seq_q, seq_kv),
        }
    }

    /// Whether sequences are packed.
    #[inline(always)]
    pub fn packed(params: &AttentionParams) -> bool {
        params.flags & flags::VARLEN != 0
    }
}
