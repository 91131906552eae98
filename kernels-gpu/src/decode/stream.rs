//! A block's way through its keys, whatever computes with them.

use super::{
    DecodeParams, KEYS, ROWS, Shape, UNBOUNDED, finish,
    plan::{self, Cursor, Segment},
    split_tokens,
};
use crate::paging::Place;
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    global, shared, thread, warp,
};

/// The tier, as [`Shape::new`] wants it.
pub const SM: u32 = if cfg!(tier = "sm_75") {
    75
} else if cfg!(tier = "sm_80") {
    80
} else {
    90
};

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
    /// What tile `tile` of a KV head sees.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn new(params: &DecodeParams, batch: u32, head: u32, tile: u32) -> Work {
        unsafe {
            let mut length = global::ld_nc((params.lengths + batch as u64 * 4) as *const i32);
            length = (if length < 0 { 0 } else { length }) + params.appended as i32;
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
            let first_row = tile * ROWS;
            let rows = if all - first_row < ROWS { all - first_row } else { ROWS };
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
            let size = split_tokens(low, high, params.most);
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
                low,
                high,
                size,
                pieces,
            }
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
            core::hint::assert_unchecked(params.group != 0);
            let query = (self.first_row + row) / params.group;
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

/// What computes with keys and values in shared memory: a warp's part of a piece.
pub trait Engine: Sized {
    /// Cut of the work.
    const SHAPE: Shape;
    /// Bytes of a cache element.
    const CACHE_BYTES: u32;
    /// Bytes of a row's 16-byte chunks are permuted by XOR with this many low bits of the key's number.
    const SWIZZLE: u32;

    /// Puts queries into shared memory; all threads call it, a barrier follows.
    ///
    /// # Safety
    /// - All threads of the block call this together.
    unsafe fn stage_queries(params: &DecodeParams, work: &Work);

    /// Takes the queries.
    ///
    /// # Safety
    /// - All threads of the block call this together, behind the barrier.
    unsafe fn new(params: &DecodeParams, work: &Work) -> Self;

    /// Attends to 16 keys from token `first`.
    ///
    /// # Safety
    /// - The warp calls this together; `keys` and `values` are shared addresses of 16 rows each.
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32);

    /// Writes maximum and sum of the rows in use for [`finish`].
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use.
    unsafe fn put_statistics(&self, rows: u32);

    /// Writes the output of turn `turn` of the rows in use, [`JOIN_ROWS`](super::JOIN_ROWS) of them, for [`finish`].
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use; `turn` is known to the compiler.
    unsafe fn put_output(&self, turn: usize, rows: u32);

    /// Forgets the keys seen.
    fn clear(&mut self);
}

/// A warp's supply of keys and values: the steps of all the block's segments, ahead of what computes with them.
struct Loader<'a> {
    params: &'a DecodeParams,
    /// Sequence and head of the segment.
    batch: u32,
    head: u32,
    /// This lane's token of the step that is looked up.
    token: u32,
    /// First token of the segment, and one past its last.
    begin: u32,
    end: u32,
    /// Steps of the segment that are not loaded; 0 when there is no segment more.
    steps: u32,
    /// Where this lane's key of that step lies. Its page is on its way from memory: nothing is computed from it before
    /// it is needed.
    next: Place,
}

impl Loader<'_> {
    /// Goes to the next segment that has steps, if there is one.
    #[inline(always)]
    unsafe fn advance<E: Engine>(&mut self) {
        unsafe {
            let warp = thread::uniform_warp_idx();
            let at = plan::place(warp);
            let mut cursor = Cursor::load(at);
            // All lanes have read it.
            syncwarp(warp::FULL);
            while self.steps == 0 {
                let Some(segment) = cursor.next::<E>(self.params) else {
                    break;
                };
                self.batch = segment.work.batch;
                self.head = segment.work.head;
                self.token = segment.token::<E>(0, warp) + thread::lane_id() % KEYS;
                self.begin = segment.begin;
                self.end = segment.end;
                self.steps = segment.steps;
            }
            cursor.save(at);
            syncwarp(warp::FULL);
        }
    }

    /// Looks up the keys of the next step.
    #[inline(always)]
    unsafe fn look_up(&mut self) {
        self.next = Place::NONE;
        if self.token >= self.begin && self.token < self.end {
            // SAFETY: the sequence has that token.
            self.next = unsafe { self.params.paging.place(self.batch, self.token) };
        }
    }

    /// Starts the copies of the step that was looked up into the stage at `stage`, and looks up the next.
    #[inline(always)]
    unsafe fn load<E: Engine>(&mut self, stage: u32) {
        unsafe {
            let params = self.params;
            if self.steps != 0 {
                let chunks = E::SHAPE.row_bytes / 16;
                let (k_bytes, v_bytes) = (params.head_dim * E::CACHE_BYTES, params.value_dim * E::CACHE_BYTES);
                let size = E::CACHE_BYTES as u64;
                let head = self.head as u64;
                let k_head = params.k + head * params.k_strides[2] * size;
                let v_head = params.v + head * params.v_strides[2] * size;
                let place = self.next;
                let lane = if E::SHAPE.folds() {
                    thread::lane_id()
                } else {
                    opaque(thread::lane_id())
                };
                let (mut k_own, mut v_own) = (NOWHERE, NOWHERE);
                if place.exists() {
                    k_own = place.offset(&params.k_strides) * size;
                    v_own = place.offset(&params.v_strides) * size;
                }
                let mut i = 0;
                // Four at a time, so that their shuffles overlap, where that many addresses fit the registers.
                let unroll = const { if E::SHAPE.folds() { 4 } else { 1 } };
                let count = opaque(KEYS * chunks / 32);
                while i < count {
                    let mut u = 0;
                    while u < unroll {
                        let index = (i + u) * 32 + lane;
                        let (key, chunk) = (index / chunks, index % chunks);
                        let k_offset = shuffle(k_own, key);
                        let v_offset = shuffle(v_own, key);
                        let to = stage + key * E::SHAPE.row_bytes + ((chunk ^ (key & E::SWIZZLE)) * 16);
                        let at = chunk * 16;
                        let live = k_offset != NOWHERE;
                        // What is not there is zero: nothing of the cache is read for it.
                        let (k_live, v_live) = (live && at < k_bytes, live && at < v_bytes);
                        let k_from = if k_live {
                            k_head + k_offset + at as u64
                        } else {
                            params.k
                        };
                        let v_from = if v_live {
                            v_head + v_offset + at as u64
                        } else {
                            params.v
                        };
                        copy(to, k_from, k_live);
                        copy(to + KEYS * E::SHAPE.row_bytes, v_from, v_live);
                        u += 1;
                    }
                    i += unroll;
                }
                self.token += const { E::SHAPE.warps * KEYS };
                self.steps -= 1;
                if self.steps == 0 {
                    self.advance::<E>();
                }
                self.look_up();
            }
            #[cfg(not(tier = "sm_75"))]
            cuda_std::cp_async::commit_group();
        }
    }
}

/// No place in the cache.
const NOWHERE: u64 = u64::MAX;

/// The word of another lane.
#[inline(always)]
unsafe fn shuffle(value: u64, lane: u32) -> u64 {
    // SAFETY: the warp is together.
    let (low, high) = unsafe {
        (
            warp::shfl_idx(value as u32, lane),
            warp::shfl_idx((value >> 32) as u32, lane),
        )
    };
    (high as u64) << 32 | low as u64
}

/// The same number, without the compiler's knowing it.
#[inline(always)]
pub fn opaque(mut value: u32) -> u32 {
    // SAFETY: an empty instruction.
    unsafe { core::arch::asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Starts the copy of 16 bytes, or of 16 zeros.
#[inline(always)]
unsafe fn copy(to: u32, from: u64, live: bool) {
    unsafe {
        #[cfg(not(tier = "sm_75"))]
        cuda_std::cp_async::copy_16(to, from as *const u8, if live { 16 } else { 0 });
        #[cfg(tier = "sm_75")]
        {
            let mut bits = [0u32; 4];
            if live {
                bits = global::ld(from as *const [u32; 4]);
            }
            shared::st(to, bits);
        }
    }
}

/// Waits until all but the newest `STAGES − 1` steps have arrived.
#[inline(always)]
unsafe fn wait<E: Engine>() {
    #[cfg(not(tier = "sm_75"))]
    unsafe {
        use cuda_std::cp_async::wait_group;
        match E::SHAPE.stages {
            1 => wait_group::<0>(),
            2 => wait_group::<1>(),
            3 => wait_group::<2>(),
            4 => wait_group::<3>(),
            _ => wait_group::<4>(),
        }
    }
}

/// A decode kernel: a block attends all its segments; see [`plan`].
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`Shape::shared_bytes`].
#[inline(always)]
pub unsafe fn run<E: Engine, O: crate::tile::element::Element, const N: usize>(params: &DecodeParams) {
    unsafe {
        #[cfg(tier = "sm_90a")]
        {
            // Set up while the kernel before this one still ran; the merging kernel is set up while this one runs.
            cuda_std::grid_dependency::wait();
            cuda_std::grid_dependency::launch_dependents();
        }
        let Some(cursor) = plan::begin::<E>(params) else {
            return;
        };
        let base = shared::dynamic_base();
        let warp = thread::uniform_warp_idx();
        // What is seldom needed stands in shared memory, a copy a warp: the registers are for keys on their way.
        let own_cursor = || plan::place(4 + opaque(thread::thread_idx_x()) / 32);
        let own_work = || plan::place(8 + opaque(thread::thread_idx_x()) / 32 * 2);
        cursor.save(plan::place(warp));
        cursor.save(own_cursor());
        syncwarp(warp::FULL);
        let mut loader = Loader {
            params,
            batch: 0,
            head: 0,
            token: 0,
            begin: 0,
            end: 0,
            steps: 0,
            next: Place::NONE,
        };
        let ring = base + E::SHAPE.stages_at() + warp * E::SHAPE.stages * E::SHAPE.stage_bytes();
        loader.advance::<E>();
        loader.look_up();
        let mut stage = 0;
        while stage < opaque(E::SHAPE.stages - 1) {
            loader.load::<E>(ring + stage * E::SHAPE.stage_bytes());
            stage += 1;
        }
        // The stage that is read next; the next load fills the one before it.
        let mut read = 0;
        let block_keys = const { E::SHAPE.warps * KEYS };
        loop {
            let mut cursor = Cursor::load(own_cursor());
            syncwarp(warp::FULL);
            let Some(segment) = cursor.next::<E>(params) else {
                break;
            };
            cursor.save(own_cursor());
            segment.save::<E>(params, own_work());
            syncwarp(warp::FULL);
            let (mut engine, mut steps) = {
                let work = segment.work;
                finish::begin(params, &work);
                E::stage_queries(params, &work);
                syncthreads();
                (E::new(params, &work), segment.steps)
            };
            let size = segment.work.size;
            let mut fold = finish::Fold::<O, N>::new();
            let mut first = segment.token::<E>(0, warp);
            loop {
                // A tile that sees no key has one piece without a step.
                let mut boundary = steps == 0;
                if steps > 0 {
                    let filled = if read == 0 { E::SHAPE.stages - 1 } else { read - 1 };
                    loader.load::<E>(ring + filled * E::SHAPE.stage_bytes());
                    wait::<E>();
                    syncwarp(warp::FULL);
                    let keys = ring + read * E::SHAPE.stage_bytes();
                    engine.step(params, keys, keys + KEYS * E::SHAPE.row_bytes, first as i32);
                    syncwarp(warp::FULL);
                    read = if read + 1 == E::SHAPE.stages { 0 } else { read + 1 };
                    steps -= 1;
                    first += block_keys;
                    // Where all warps of the block begin next.
                    boundary = steps == 0 || first & (size - 1) & !(block_keys - 1) == 0;
                }
                if boundary {
                    if E::SHAPE.stages == 1 {
                        // Joining reuses the stages: all warps are done with them.
                        syncthreads();
                    }
                    let last = steps == 0;
                    let (work, whole) = Segment::load(own_work());
                    // The piece of the keys before.
                    let shift = work.size.trailing_zeros();
                    let mut piece = 0;
                    if work.high > work.low {
                        piece = (((first & !(block_keys - 1)) - 1) >> shift) - (work.low >> shift);
                    }
                    fold.join_warps::<E>(params, &work, whole, &engine, piece, last);
                    engine.clear();
                    if last {
                        break;
                    }
                }
            }
        }
    }
}
