//! A block's way through its keys, whatever computes with them.

use super::{DecodeParams, KEYS, ROWS, Shape, UNBOUNDED, finish, split_tokens};
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

    /// Writes maximum, sum and output of the rows in use for [`finish`], and forgets them.
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use.
    unsafe fn put(&mut self, rows: u32);
}

/// A warp's supply of keys and values.
struct Loader<'a> {
    params: &'a DecodeParams,
    work: Work,
    /// First token of the block's steps, and one past the last key.
    start: u32,
    begin: u32,
    end: u32,
    steps: u32,
    warp: u32,
    lane: u32,
    /// Where this lane's key of the next step to be loaded lies: bytes from the head's keys and values; [`NOWHERE`] if
    /// nowhere.
    next: [u64; 2],
}

/// No place in the cache.
const NOWHERE: u64 = u64::MAX;

impl Loader<'_> {
    /// The first token of the warp in a step.
    #[inline(always)]
    fn token<E: Engine>(&self, step: u32) -> u32 {
        self.start + (step * E::SHAPE.warps + self.warp) * KEYS
    }

    #[inline(always)]
    unsafe fn look_up<E: Engine>(&mut self, step: u32) {
        unsafe {
            let token = self.token::<E>(step) + self.lane % KEYS;
            self.next = [NOWHERE; 2];
            if step < self.steps && token >= self.begin && token < self.end {
                let place = self.params.paging.place(self.work.batch, token);
                let size = E::CACHE_BYTES as u64;
                self.next = [
                    place.offset(&self.params.k_strides) * size,
                    place.offset(&self.params.v_strides) * size,
                ];
            }
        }
    }

    /// Starts the copies of a step, whose places have been looked up, into the stage at `stage`.
    #[inline(always)]
    unsafe fn load<E: Engine>(&mut self, step: u32, stage: u32) {
        unsafe {
            let params = self.params;
            if step < self.steps {
                let chunks = E::SHAPE.row_bytes / 16;
                let (k_bytes, v_bytes) = (params.head_dim * E::CACHE_BYTES, params.value_dim * E::CACHE_BYTES);
                let size = E::CACHE_BYTES as u64;
                let k_head = params.k + self.work.head as u64 * params.k_strides[2] * size;
                let v_head = params.v + self.work.head as u64 * params.v_strides[2] * size;
                let mut i = 0;
                // Four at a time, so that their shuffles overlap, where that many addresses fit the registers.
                let unroll = const { if E::SHAPE.folds() { 4 } else { 1 } };
                let count = opaque(KEYS * chunks / 32);
                while i < count {
                    let mut u = 0;
                    while u < unroll {
                        let index = (i + u) * 32 + self.lane;
                        let (key, chunk) = (index / chunks, index % chunks);
                        let k_offset = shuffle(self.next[0], key);
                        let v_offset = shuffle(self.next[1], key);
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
            }
            #[cfg(not(tier = "sm_75"))]
            cuda_std::cp_async::commit_group();
            self.look_up::<E>(step + 1);
        }
    }
}

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

/// A decode kernel: one piece of a tile, or all of them.
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`Shape::shared_bytes`].
#[inline(always)]
pub unsafe fn run<E: Engine, O: crate::tile::element::Element, const N: usize>(params: &DecodeParams) {
    unsafe {
        // Neighbouring blocks read the heads of the same tokens, which lie together.
        let (heads, splits, tiles) = (
            params.heads_kv,
            if params.fold != 0 { 1 } else { params.splits },
            params.tiles,
        );
        core::hint::assert_unchecked(heads != 0);
        core::hint::assert_unchecked(splits != 0);
        core::hint::assert_unchecked(tiles != 0);
        let block = thread::block_idx_x();
        let (rest, head) = (block / heads, block % heads);
        let (rest, split) = (rest / splits, rest % splits);
        let (batch, tile) = (rest / tiles, rest % tiles);
        // The merging kernel may be set up meanwhile; it waits for this one's end.
        #[cfg(tier = "sm_90a")]
        cuda_std::grid_dependency::launch_dependents();
        let work = Work::new(params, batch, head, tile);
        if split >= work.pieces {
            return;
        }
        let (mut begin, mut end) = (work.low, work.high);
        if params.fold == 0 {
            let first = (work.low & !(work.size - 1)) + split * work.size;
            begin = if first > begin { first } else { begin };
            end = if first + work.size < end {
                first + work.size
            } else {
                end
            };
        }
        let block_keys = const { E::SHAPE.warps * KEYS };
        let start = begin & !(block_keys - 1);
        let base = shared::dynamic_base();
        let warp = thread::uniform_warp_idx();
        let mut loader = Loader {
            params,
            work,
            start,
            begin,
            end,
            steps: (end - start + block_keys - 1) / block_keys,
            warp,
            lane: thread::lane_id(),
            next: [NOWHERE; 2],
        };
        let ring = base + E::SHAPE.stages_at() + warp * E::SHAPE.stages * E::SHAPE.stage_bytes();
        loader.look_up::<E>(0);
        let mut stage = 0;
        while stage < E::SHAPE.stages - 1 {
            loader.load::<E>(stage, ring + stage * E::SHAPE.stage_bytes());
            stage += 1;
        }
        finish::begin(params, &work);
        E::stage_queries(params, &work);
        syncthreads();
        let mut engine = E::new(params, &work);
        let mut fold = finish::Fold::<O, N>::new();
        let steps = loader.steps;
        let mut step = 0;
        // The stage that the next load fills, and the one that is read next.
        let (mut filled, mut read) = (E::SHAPE.stages - 1, 0);
        loop {
            // A tile that sees no key has one piece without a step.
            let mut boundary = steps == 0;
            if step < steps {
                loader.load::<E>(step + E::SHAPE.stages - 1, ring + filled * E::SHAPE.stage_bytes());
                filled = if filled + 1 == E::SHAPE.stages { 0 } else { filled + 1 };
                wait::<E>();
                syncwarp(warp::FULL);
                let keys = ring + read * E::SHAPE.stage_bytes();
                let first = loader.token::<E>(step);
                // A warp without a key in range has nothing to attend to.
                if first < end && first + KEYS > begin {
                    engine.step(params, keys, keys + KEYS * E::SHAPE.row_bytes, first as i32);
                }
                syncwarp(warp::FULL);
                read = if read + 1 == E::SHAPE.stages { 0 } else { read + 1 };
                step += 1;
                boundary = step == steps || (start + step * block_keys) & (work.size - 1) == 0;
            }
            if boundary {
                if E::SHAPE.stages == 1 {
                    // Joining reuses the stages: all warps are done with them.
                    syncthreads();
                }
                engine.put(work.rows);
                syncthreads();
                fold.join_warps::<E>(params, &work, split, step == steps);
                if step == steps {
                    break;
                }
                syncthreads();
            }
        }
    }
}
