//! Whole tiles: a block a tile.
//!
//! What is left out is what a launch of the general kernels begins and ends with: here copies start behind one or two loads (length,
//! page), and whatever computes comes later. Over 8-bit floats a step has twice as many keys, which are as many bytes. Where this
//! launch has new tokens, the block rotates and appends those of its head. Pieces, joins of warps and folds are those of `finish`,
//! and so are the bits.

use super::{
    super::{
        KEYS,
        few::{Few, Product},
        fresh::Quad,
        quotient, split_tokens,
        tensor::Scoring,
    },
    DIRECT_KEYS, DIRECT_ROWS, DIRECT_WARPS, DirectParams, TilesShape,
    owned::{Owned, Slots},
    rows::{Fresh, Tile},
    segments::{length_of, whole_length},
    steps::{copy, hide, lay, queries_at},
};
use crate::tile::element::{Bf16, F16};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    cp_async, global, grid_dependency, shared, thread, warp,
};

/// A warp's supply of keys and values, of which a step has `LOOKUPS` times 16.
struct Feed<'a, const DIM: u32, const BYTES: u32, const LOOKUPS: usize> {
    tile: Tile<'a, DIM>,
    /// Tokens in the cache.
    length: u32,
    /// This warp's first token of the next step.
    first: u32,
    /// Steps that are left.
    left: u32,
    /// The lane that knows where the first 16 keys of the next step are, the next ones know the others; and the same of later steps.
    lane: u32,
    units: [u32; 2],
    ahead: [u32; 2],
    /// Where the next stage is.
    fill: u32,
}

impl<const DIM: u32, const BYTES: u32, const LOOKUPS: usize> Feed<'_, DIM, BYTES, LOOKUPS> {
    const SHAPE: TilesShape = TilesShape::new(DIM, BYTES);
    /// Steps that are looked up at a time.
    const STEPS: u32 = 32 / LOOKUPS as u32;

    /// Places of the steps from token `first` on: of 16 keys each lane.
    ///
    /// # Safety
    /// - The length is that of the sequence.
    #[inline(always)]
    unsafe fn look_up(&self, first: u32) -> [u32; 2] {
        let lane = thread::lane_id();
        let token = first + lane / LOOKUPS as u32 * Self::SHAPE.block_keys() + lane % LOOKUPS as u32 * KEYS;
        if token < self.length {
            // SAFETY: the sequence has the token.
            unsafe { self.tile.place(token) }
        } else {
            [0; 2]
        }
    }

    /// Looks up the first places.
    ///
    /// # Safety
    /// - As for [`look_up`](Feed::look_up).
    #[inline(always)]
    unsafe fn begin(&mut self) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.units = self.look_up(self.first);
            self.ahead = self.look_up(self.first + Self::STEPS * Self::SHAPE.block_keys());
        }
    }

    /// Starts the copies of a step, if there is one.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the stage any more.
    #[inline(always)]
    unsafe fn load(&mut self, ring: u32) {
        let params = self.tile.params;
        let shape = const { Self::SHAPE };
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.left != 0 {
                let left = self.length as i32 - self.first as i32;
                copy::<DIM, BYTES, LOOKUPS>(params, ring + self.fill, self.units, self.lane, left);
                self.first += shape.block_keys();
                self.left -= 1;
                self.lane += LOOKUPS as u32;
                if self.lane == 32 {
                    self.lane = 0;
                    self.units = self.ahead;
                    self.ahead = self.look_up(self.first + Self::STEPS * shape.block_keys());
                }
            }
            cp_async::commit_group();
        }
        self.fill += const { Self::SHAPE.ring_bytes() };
        if self.fill == const { Self::SHAPE.stages() * Self::SHAPE.ring_bytes() } {
            self.fill = 0;
        }
    }
}

/// A lane's words of the queries, and factors of the scores of the lane's two rows that undo what was done to them.
///
/// # Safety
/// - The warp calls this together; what wrote the queries is over.
#[inline(always)]
unsafe fn queries<E: Product<BYTES>, const DIM: u32, const S: usize, const BYTES: u32>(
    tile: &Tile<'_, DIM>,
) -> ([[u32; 2]; S], [f32; 2]) {
    let params = tile.params;
    let lane = thread::lane_id();
    let row = lane / 4;
    let row = if row < params.rows { row } else { params.rows - 1 };
    let (query, head) = tile.query(row);
    let strides = &params.q_strides;
    let offset = tile.batch * strides[0] + query * strides[1] + head * strides[2];
    let at = params.q + offset as u64 * 2;
    let mut words = [[0; 2]; S];
    // SAFETY: of the row.
    unsafe {
        let mut s = 0;
        while s < S {
            let at = at + s as u64 * 32;
            words[s] = if BYTES == 1 {
                global::ld_nc((at + lane as u64 % 4 * 8) as *const [u32; 2])
            } else {
                let at = at + lane as u64 % 4 * 4;
                [global::ld_nc(at as *const u32), global::ld_nc((at + 16) as *const u32)]
            };
            s += 1;
        }
        if BYTES == 2 {
            return (words, [1.0; 2]);
        }
        let factor = E::halve(&mut words);
        let own = lane % 4 * 8;
        (words, [warp::shfl_idx(factor, own), warp::shfl_idx(factor, own + 4)])
    }
}

/// The factor of a KV head; 1 where there are none.
///
/// # Safety
/// - The head exists.
#[inline(always)]
unsafe fn factor_of(factors: u64, head: u32) -> f32 {
    if factors == 0 {
        return 1.0;
    }
    // SAFETY: forwarded to the caller.
    unsafe { global::ld_nc((factors + head as u64 * 4) as *const f32) }
}

/// The whole kernel.
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`TilesShape::shared_bytes`].
#[inline(always)]
unsafe fn run<
    E: Quad + Product<BYTES>,
    const DIM: u32,
    const S: usize,
    const BYTES: u32,
    const WAIT: u32,
    const LOOKUPS: usize,
    const APPEND: bool,
>(
    params: &DirectParams,
) {
    unsafe {
        let shape = const { TilesShape::new(DIM, BYTES) };
        const {
            let shape = TilesShape::new(DIM, BYTES);
            assert!(WAIT + 1 == shape.stages() && LOOKUPS as u32 * KEYS == shape.keys() && !(APPEND && BYTES == 1));
        };
        let base = shared::dynamic_base();
        let (thread, lane, own_warp) = (thread::thread_idx_x(), thread::lane_id(), thread::uniform_warp_idx());
        let ring = base + shape.stages_at() + own_warp * shape.stage_bytes();
        let slots = Slots {
            statistics: base,
            parts: base + shape.parts_at(),
        };
        let batch = quotient(thread::block_idx_x(), params.heads_kv);
        let tile = Tile::<DIM> {
            params,
            batch,
            head: thread::block_idx_x() - batch * params.heads_kv,
        };
        prefetch::<DIM>(&tile);
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        let before = length_of(params, batch);
        let fetched = if APPEND { Some(tile.fetch::<E>(thread)) } else { None };
        let length = whole_length(params, before);
        let fresh = if before < 0 { 0 } else { before as u32 };
        let mut steps = (length + shape.block_keys() - 1) / shape.block_keys();
        let mut feed = Feed::<DIM, BYTES, LOOKUPS> {
            tile,
            // What this step appends is not read from the cache.
            length: if APPEND && fresh < length { fresh } else { length },
            first: own_warp * shape.keys(),
            left: steps,
            lane: 0,
            units: [0; 2],
            ahead: [0; 2],
            fill: 0,
        };
        feed.begin();
        let mut ahead = opaque(shape.stages());
        while ahead > 0 {
            feed.load(ring);
            ahead -= 1;
        }
        let size = split_tokens(0, length, params.most, params.least, const { (BYTES == 1) as u32 });
        let rows_base = base + shape.rows_at(params.rows);
        let words;
        let mut scales = [params.scale; 2];
        if let Some(fetched) = fetched {
            let of_step = Fresh {
                first: fresh,
                end: length,
                shift: 0,
                rank: 0,
            };
            tile.put::<E>(rows_base, thread, fetched, of_step);
            let mut index = thread + DIRECT_WARPS * 32;
            while index < tile.items() {
                tile.put::<E>(rows_base, index, tile.fetch::<E>(index), of_step);
                index += DIRECT_WARPS * 32;
            }
            syncthreads();
            words = queries_at::<DIM, S>(rows_base, params.rows);
        } else {
            let factors;
            (words, factors) = queries::<E, DIM, S, BYTES>(&tile);
            if BYTES == 1 {
                // In the order of the other kernels.
                let scale = params.scale * factor_of(params.k_scale, tile.head) * core::f32::consts::LOG2_E;
                scales = factors.map(|factor| scale * factor);
            }
        }
        let mut engine = Few::<E, DIM, S, BYTES, 0, false>::of(words, scales.map(|scale| Scoring { scale, cap: 0.0 }));
        let own_row = Few::<E, DIM, S, BYTES, 0, false>::query();
        // One past the last key that a row sees; rows that are none see nothing.
        let end_of = |row: u32| {
            let mut end = length as i32;
            if params.causal != 0 {
                end += tile.query(row).0 as i32 + 1 - params.seq_q as i32;
            }
            if row < params.rows { end } else { 0 }
        };
        let (ends, inner) = ([end_of(own_row), end_of(own_row + 1)], end_of(0));
        let mut owned = [Owned::NONE; 2];
        let (mut read, mut first) = (0, own_warp * shape.keys());
        while steps != 0 {
            cp_async::wait_group::<WAIT>();
            syncwarp(warp::FULL);
            let keys = ring + read;
            let values = keys + shape.keys() * const { DIM * BYTES };
            // Tokens of this step are laid among those that arrived.
            if APPEND {
                let until = first + shape.keys();
                let until = if until < length { until } else { length };
                let from = if first > fresh { first } else { fresh };
                lay::<DIM>(rows_base, [keys, values], first, fresh, [from, until]);
            }
            let mut x = [[0.0; 4]; LOOKUPS];
            let mut h = 0;
            while h < LOOKUPS {
                x[h] = engine.products(keys + h as u32 * const { KEYS * DIM * BYTES }, lane);
                let mut i = 0;
                while i < 4 {
                    x[h][i] *= if BYTES == 1 { scales[i % 2] } else { params.scale };
                    i += 1;
                }
                h += 1;
            }
            if (first + shape.keys()) as i32 > inner {
                h = 0;
                while h < LOOKUPS {
                    hide(&mut x[h], first + h as u32 * KEYS, ends);
                    h += 1;
                }
            }
            engine.attend(x, values, lane);
            syncwarp(warp::FULL);
            read += shape.ring_bytes();
            if read == shape.stages() * shape.ring_bytes() {
                read = 0;
            }
            feed.load(ring);
            first += shape.block_keys();
            steps -= 1;
            if steps != 0 && first & (size - 1) & !(shape.block_keys() - 1) != 0 {
                continue;
            }
            // The piece ends: its warps are joined, and it is folded.
            slots.leave(own_warp, params.rows, &engine);
            engine.forget();
            syncthreads();
            let mut own = 0;
            while own < 2 {
                let row = own_warp + own as u32 * DIRECT_WARPS;
                if row < params.rows {
                    let (statistics, piece) = slots.join(row, DIM);
                    owned[own].fold(statistics, piece);
                }
                own += 1;
            }
            syncthreads();
        }
        let scale = if BYTES == 1 {
            factor_of(params.v_scale, tile.head)
        } else {
            1.0
        };
        let mut own = 0;
        while own < 2 {
            let row = own_warp + own as u32 * DIRECT_WARPS;
            if row < params.rows {
                owned[own].write::<E, DIM, BYTES>(&tile, row, scale);
            }
            own += 1;
        }
    }
}

/// Brings what a tile begins with into L2 while the kernel before this one still runs: the length, the first pages' entries and
/// queries, wherever they are now. Nothing is taken from it.
///
/// # Safety
/// - `params` are those of the launch, the sequence is one of its.
#[inline(always)]
unsafe fn prefetch<const DIM: u32>(tile: &Tile<'_, DIM>) {
    let params = tile.params;
    let thread = thread::thread_idx_x();
    // SAFETY: only places of these tensors are touched.
    unsafe {
        if thread < params.rows * const { DIM * 2 / 128 } {
            let (query, head) = tile.query(thread / const { DIM * 2 / 128 });
            let strides = &params.q_strides;
            let offset = tile.batch * strides[0] + query * strides[1] + head * strides[2];
            let column = thread % const { DIM * 2 / 128 } * 128;
            global::prefetch_l2((params.q + offset as u64 * 2 + column as u64) as *const u8);
        }
        let token = thread * DIRECT_KEYS;
        if params.table != 0 && token < params.capacity {
            let at = tile.batch * params.table_stride + (token >> params.page_shift);
            global::prefetch_l2((params.table + at as u64 * 4) as *const u8);
        }
        if thread == 0 {
            global::prefetch_l2((params.lengths + tile.batch as u64 * 4) as *const u8);
        }
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal $bytes:literal $append:literal)*) => {
        cuda_std::kernel! {$(
            /// Plain decode attention of at most eight rows, of whole tiles; see [`crate::decode::direct`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs overlap nothing; tokens are new only for kernels that append.
            #[launch(threads = DIRECT_WARPS * 32, min_blocks = 2, tensor_core = 1)]
            pub fn $name(params: DirectParams) {
                const { assert!(DIRECT_ROWS == 2 * DIRECT_WARPS) };
                const SHAPE: TilesShape = TilesShape::new($dim, $bytes);
                run::<
                    $element,
                    $dim,
                    { $dim / 16 },
                    $bytes,
                    { SHAPE.stages() - 1 },
                    { (SHAPE.keys() / KEYS) as usize },
                    $append,
                >(&params)
            }
        )*}
    };
}

kernels! {
    decode_tiles_f16_d64 F16 64 2 false
    decode_tiles_f16_d128 F16 128 2 false
    decode_tiles_bf16_d64 Bf16 64 2 false
    decode_tiles_bf16_d128 Bf16 128 2 false
    decode_tiles_append_f16_d64 F16 64 2 true
    decode_tiles_append_f16_d128 F16 128 2 true
    decode_tiles_append_bf16_d64 Bf16 64 2 true
    decode_tiles_append_bf16_d128 Bf16 128 2 true
    decode_tiles_e4m3_f16_d128 F16 128 1 false
    decode_tiles_e4m3_bf16_d128 Bf16 128 1 false
}
