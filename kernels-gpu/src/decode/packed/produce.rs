//! The loading warps: look up pages and start copies.

use super::{
    super::{DecodeParams, quotient, split_tokens, work::Work},
    PACKED_KEYS, PACKED_PANEL_BYTES, PACKED_ROWS, PACKED_THREADS, PackedParams, PackedShape,
    kernel::COMPUTING,
};
use crate::tile::opaque::opaque;
use crate::{
    attention::params::PANEL,
    pipeline::{Cursor, OneThread, Ring, Warps},
};
use core::mem::offset_of;
use cuda_std::{barrier::syncwarp, global, launch::ParamAddress, mbarrier, shared::dynamic_base, thread, tma, warp};

/// Tokens of an item that are brought into L2 ahead.
const AHEAD: u32 = 192;

/// This thread's team: warpgroups that compute come first, then warps that load.
#[inline(always)]
pub fn team<const P: u32>() -> u32 {
    if P == 1 {
        return 0;
    }
    let thread = opaque(thread::thread_idx_x());
    if thread < P * COMPUTING {
        thread / COMPUTING
    } else {
        (thread - P * COMPUTING) / const { PACKED_THREADS - COMPUTING }
    }
}

/// Its shared memory.
#[inline(always)]
pub fn base<const DIM: u32, const H: usize, const P: u32>() -> u32 {
    dynamic_base() + team::<P>() * const { PackedShape::new(DIM, H == 2, P).team_bytes() }
}

/// The first item of this team: of several, those of a cluster share a tile.
#[inline(always)]
pub fn first_item<const P: u32>(params: &DecodeParams) -> u32 {
    let block = thread::block_idx_x();
    if P > 1 {
        let tiles = params.batch * params.heads_kv * params.tiles;
        let team = block * P + team::<P>();
        (team & (params.cluster - 1)) * tiles + (team >> params.cluster.trailing_zeros())
    } else {
        block
    }
}

/// The ring between the loading warp and the warpgroup.
pub type Stages<const K: u32> = Ring<K, OneThread, Warps<4>>;

/// The ring of a block.
#[inline(always)]
pub fn ring<const DIM: u32, const K: u32, const H: usize, const P: u32>() -> Stages<K> {
    Ring::new(base::<DIM, H, P>() + const { PackedShape::new(DIM, H == 2, P).barriers_at() })
}

/// Sequence, head and tile of an item, and its number there.
#[inline(always)]
fn place_of(params: &DecodeParams, index: u32) -> (u32, u32, u32, u32) {
    let tiles = params.batch * params.heads_kv * params.tiles;
    let number = quotient(index, tiles);
    let tile = index - number * tiles;
    let pair = quotient(tile, params.tiles);
    let batch = quotient(pair, params.heads_kv);
    (
        batch,
        pair - batch * params.heads_kv,
        tile - pair * params.tiles,
        number,
    )
}

/// The tile of item number `index`, without what depends on lengths.
#[inline(always)]
pub fn tile_of(params: &DecodeParams, index: u32) -> Work {
    let (batch, head, tile, _) = place_of(params, index);
    let first_row = tile * PACKED_ROWS;
    let left = params.seq_q * params.group - first_row;
    Work {
        batch,
        head,
        tile,
        first_row,
        rows: if left < PACKED_ROWS { left } else { PACKED_ROWS },
        length: 0,
        fresh: 0,
        low: 0,
        high: 0,
        size: 1,
        pieces: 0,
    }
}

/// A piece or bundle.
#[derive(Clone, Copy)]
pub struct Item {
    /// Its tile.
    pub work: Work,
    /// Its number in the tile, and how many the tile has.
    pub number: u32,
    pub count: u32,
    /// First key, and one past the last.
    pub begin: u32,
    pub end: u32,
}

impl Item {
    /// Item number `index`; nothing where the sequence is shorter.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn new(params: &DecodeParams, index: u32) -> Option<Item> {
        let (batch, head, tile, number) = place_of(params, index);
        // SAFETY: forwarded to the caller.
        let work = unsafe { Work::new(params, PACKED_ROWS, batch, head, tile) };
        let bundle = if params.bundled != 0 { params.bundle } else { 0 };
        let count = (work.pieces + (1 << bundle) - 1) >> bundle;
        let shift = work.size.trailing_zeros() + bundle;
        let base = work.low >> work.size.trailing_zeros() << work.size.trailing_zeros();
        let begin = base + (number << shift);
        let end = base + ((number + 1) << shift);
        Some(Item {
            work,
            number,
            count,
            begin: if begin < work.low { work.low } else { begin },
            end: if end > work.high { work.high } else { end },
        })
        .filter(|item| item.number < item.count)
    }
}

/// The way of a warp that loads through the block's items.
pub struct Feed<const DIM: u32, const K: u32, const H: usize, const P: u32> {
    map: *const u8,
    to: u32,
    /// The first token of this lane's box in a step, and its first column.
    part: u32,
    column: i32,
    /// Whether this lane has a box.
    starts: bool,
    /// Whether it says how many bytes to expect.
    announces: bool,
    index: u32,
    batch: u32,
    head: i32,
    begin: u32,
    end: u32,
    first: u32,
    /// Slot and page of this lane's next box.
    here: [i32; 2],
    at: Cursor<K>,
}

impl<const DIM: u32, const K: u32, const H: usize, const P: u32> Feed<DIM, K, H, P> {
    /// Before the first item.
    ///
    /// # Safety
    /// - One warp calls this together; `params` at `address` are those of the launch.
    #[inline(always)]
    pub unsafe fn new(params: &PackedParams, address: ParamAddress, values: bool) -> Self {
        let mut feed = Self::start(params, address, values);
        // SAFETY: forwarded to the caller.
        unsafe { feed.seek(params) };
        feed
    }

    /// Without an item.
    #[inline(always)]
    fn start(params: &PackedParams, address: ParamAddress, values: bool) -> Self {
        let lane = thread::lane_id();
        let shift = const { PACKED_KEYS.trailing_zeros() } - params.box_shift;
        let (part, panel) = (lane & ((1 << shift) - 1), lane >> shift);
        let panels = const { DIM / PANEL };
        let map = address.tensor_map(if values {
            offset_of!(PackedParams, v_map)
        } else {
            offset_of!(PackedParams, k_map)
        });
        let shape = const { PackedShape::new(DIM, H == 2, P) };
        Feed {
            map,
            to: base::<DIM, H, P>()
                + if values { shape.tile_bytes() } else { 0 }
                + panel * PACKED_PANEL_BYTES
                + ((part * PANEL * 2) << params.box_shift),
            part: part << params.box_shift,
            column: (panel * PANEL) as i32,
            starts: panel < panels,
            announces: lane == 0 && !values,
            index: first_item::<P>(&params.decode),
            batch: 0,
            head: 0,
            begin: 0,
            end: 0,
            first: 0,
            here: [0, -1],
            at: Cursor::start(),
        }
    }

    /// Brings the first keys and values of the block into L2 while the kernel before this one still runs. Lengths and tables as they
    /// stand only say what to bring: nothing is taken from it.
    ///
    /// # Safety
    /// - One warp calls this together; `params` at `address` are those of the launch.
    #[inline(always)]
    pub unsafe fn prefetch(params: &PackedParams, address: ParamAddress, values: bool) {
        // SAFETY: maps of the launch; copies outside the tensor bring nothing.
        unsafe {
            tma::prefetch_tensormap(address.tensor_map(offset_of!(PackedParams, k_map)));
            tma::prefetch_tensormap(address.tensor_map(offset_of!(PackedParams, v_map)));
            let decode = &params.decode;
            let (batch, head, _, number) = place_of(decode, first_item::<P>(decode));
            let mut feed = Self::start(params, address, values);
            let length: i32 = global::ld_relaxed((decode.lengths + batch as u64 * 4) as *const i32);
            let length = if length < 0 { 0 } else { length as u32 };
            let length = if length < decode.capacity {
                length
            } else {
                decode.capacity
            };
            let bundle = if decode.bundled != 0 { decode.bundle } else { 0 };
            let shift = split_tokens(0, length, decode.most, decode.least, 0).trailing_zeros() + bundle;
            feed.first = number << shift;
            feed.end = feed.first + AHEAD;
            feed.end = if feed.end < length { feed.end } else { length };
            let paging = &decode.paging;
            while feed.first < feed.end {
                let token = feed.first + feed.part;
                let (mut page, mut slot) = (batch, token);
                if token < feed.end && paging.table != 0 {
                    let entry = quotient(token, paging.page_size);
                    let at = batch as u64 * paging.table_stride + entry as u64;
                    page = global::ld_relaxed((paging.table + at * 4) as *const u32);
                    slot = token - entry * paging.page_size;
                } else if paging.batch_index != 0 {
                    page = global::ld_relaxed((paging.batch_index + batch as u64 * 4) as *const u32);
                }
                if token < feed.end && feed.starts {
                    tma::prefetch_4d(feed.map, [feed.column, slot as i32, head as i32, page as i32]);
                }
                feed.first += PACKED_KEYS;
            }
        }
    }

    /// Where this lane's box of a step lies; outside the tensor, where it is zeros, for one without a token of the item.
    #[inline(always)]
    unsafe fn place(&self, params: &PackedParams, first: u32) -> [i32; 2] {
        let token = first + self.part;
        if token < self.end && token + (1 << params.box_shift) > self.begin {
            // SAFETY: the sequence has the token.
            let place = unsafe { params.decode.paging.place(self.batch, token) };
            [place.slot as i32, place.page as i32]
        } else {
            [0, -1]
        }
    }

    /// Goes on to the next item that has keys, from item `index` on.
    #[inline(always)]
    unsafe fn seek(&mut self, params: &PackedParams) {
        // SAFETY: forwarded to the caller.
        unsafe {
            while self.first >= self.end && self.index < params.items {
                if let Some(item) = Item::new(&params.decode, self.index) {
                    (self.batch, self.head) = (item.work.batch, item.work.head as i32);
                    (self.begin, self.end) = (item.begin, item.end);
                    self.first = item.begin & !(PACKED_KEYS - 1);
                    self.here = self.place(params, self.first);
                }
                self.index += thread::grid_dim_x() * P;
            }
        }
    }

    /// Whether there is more to load.
    #[inline(always)]
    pub fn more(&self) -> bool {
        self.first < self.end
    }

    /// Starts the copies of a step.
    ///
    /// # Safety
    /// - The warp calls this together; the ring is initialised; there is [more](Feed::more).
    #[inline(always)]
    pub unsafe fn load(&mut self, params: &PackedParams) {
        let ring = ring::<DIM, K, H, P>();
        let bytes = const { PackedShape::new(DIM, H == 2, P).stage_bytes() };
        // SAFETY: boxes have the size that is expected.
        unsafe {
            // The next step's pages are on their way while this one waits for its stage.
            let next = self.place(params, self.first + PACKED_KEYS);
            ring.wait_empty(self.at);
            mbarrier::arrive_expect_tx_if(ring.full(self.at), bytes, self.announces);
            syncwarp(warp::FULL);
            tma::load_4d_if(
                self.to + self.at.stage() * bytes,
                self.map,
                [self.column, self.here[0], self.head, self.here[1]],
                ring.full(self.at),
                self.starts,
            );
            self.here = next;
            self.at = self.at.next();
            self.first += PACKED_KEYS;
            self.seek(params);
        }
    }
}
