//! Whole tiles over a cache of 8-bit floats: a block a tile.
//!
//! As [`line`](super::line) has them for 16-bit elements: copies start behind one or two loads. A step has twice as many keys, which
//! are as many bytes. Pieces, joins of warps and folds are those of `finish`, and so are the bits.

use super::{
    super::{
        KEYS,
        few::{Few, Product},
        fresh::Quad,
        quotient, split_tokens,
        stream::opaque,
        tensor::Scoring,
    },
    DIRECT_ROWS, DIRECT_WARPS, DirectParams, NARROW_KEYS, NARROW_LOOKUPS, NARROW_STAGES, NarrowShape,
    line::prefetch,
    owned::{Owned, Slots},
    rows::Tile,
    segments::{length_of, whole_length},
};
use crate::tile::element::{Bf16, F16};
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    cp_async, global, grid_dependency, shared, thread, warp,
};

/// Keys that a warp takes at a time.
const STEP: u32 = NARROW_KEYS / DIRECT_WARPS;

/// A warp's supply of keys and values.
struct Feed<'a, const DIM: u32> {
    tile: Tile<'a, DIM>,
    length: u32,
    /// This warp's first token of the next step.
    first: u32,
    /// Steps that are left.
    left: u32,
    /// The lane that knows where the first half of the next step is, the next lane knows the other; and the same of later steps.
    lane: u32,
    units: [u32; 2],
    ahead: [u32; 2],
    /// Where the next stage is.
    fill: u32,
}

impl<const DIM: u32> Feed<'_, DIM> {
    /// Places of the steps from token `first` on: of half a step each lane.
    ///
    /// # Safety
    /// - The length is that of the sequence.
    #[inline(always)]
    unsafe fn look_up(&self, first: u32) -> [u32; 2] {
        let lane = thread::lane_id();
        let token = first + lane / 2 * NARROW_KEYS + lane % 2 * KEYS;
        if token < self.length {
            // SAFETY: the sequence has the token.
            unsafe { self.tile.place(token) }
        } else {
            [0; 2]
        }
    }

    /// Starts the copies of a step, if there is one.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the stage any more.
    #[inline(always)]
    unsafe fn load(&mut self, ring: u32) {
        let params = self.tile.params;
        let shape = const { NarrowShape::new(DIM) };
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.left != 0 {
                let chunks = const { DIM / 16 };
                let lane = thread::lane_id();
                let (chunk, key) = (lane % chunks, lane / chunks);
                let to = ring + self.fill + key * DIM + (chunk ^ key) * 16;
                let left = self.length as i32 - (self.first + key) as i32;
                let pools = [(params.k, params.k_steps[1]), (params.v, params.v_steps[1])];
                let mut pool = 0;
                while pool < 2 {
                    let (base, slot) = pools[pool];
                    let mut half = 0;
                    while half < STEP / KEYS {
                        let units = warp::shfl_idx(self.units[pool], self.lane + half) + key * slot;
                        let base = base + chunk as u64 * 16 + units as u64 * 16;
                        let mut turn = 0;
                        while turn < const { KEYS * DIM / 512 } {
                            let first = turn * 32 / chunks;
                            let row = half * KEYS + first;
                            let bytes = if left > row as i32 { 16 } else { 0 };
                            let to = (to ^ (first % 8 * 16)) + (pool as u32 * STEP + row) * DIM;
                            cp_async::copy_16(to, (base + (first * slot) as u64 * 16) as *const u8, bytes);
                            turn += 1;
                        }
                        half += 1;
                    }
                    pool += 1;
                }
                self.first += NARROW_KEYS;
                self.left -= 1;
                self.lane += 2;
                if self.lane == 2 * NARROW_LOOKUPS {
                    self.lane = 0;
                    self.units = self.ahead;
                    self.ahead = self.look_up(self.first + NARROW_LOOKUPS * NARROW_KEYS);
                }
            }
            cp_async::commit_group();
        }
        self.fill += DIRECT_WARPS * shape.stage_bytes();
        if self.fill == NARROW_STAGES * DIRECT_WARPS * shape.stage_bytes() {
            self.fill = 0;
        }
    }
}

/// A lane's words of the queries as f16, and what undoes that to the scores of the lane's two rows.
///
/// # Safety
/// - The warp calls this together; what wrote the queries is over.
#[inline(always)]
unsafe fn queries<E: Product<1>, const DIM: u32, const S: usize>(tile: &Tile<'_, DIM>) -> ([[u32; 2]; S], [f32; 2]) {
    let params = tile.params;
    let lane = thread::lane_id();
    let row = lane / 4;
    let row = if row < params.rows { row } else { params.rows - 1 };
    let (query, head) = tile.query(row);
    let strides = &params.q_strides;
    let offset = tile.batch * strides[0] + query * strides[1] + head * strides[2] + lane % 4 * 4;
    let at = params.q + offset as u64 * 2;
    let mut words = [[0; 2]; S];
    // SAFETY: of the row.
    unsafe {
        let mut s = 0;
        while s < S {
            words[s] = global::ld_nc((at + s as u64 * 32) as *const [u32; 2]);
            s += 1;
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
/// - The parameters describe the tensors; shared memory is [`NarrowShape::shared_bytes`].
#[inline(always)]
unsafe fn run<E: Quad + Product<1>, const DIM: u32, const S: usize>(params: &DirectParams) {
    unsafe {
        let shape = const { NarrowShape::new(DIM) };
        let base = shared::dynamic_base();
        let (lane, own_warp) = (thread::lane_id(), thread::uniform_warp_idx());
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
        let length = whole_length(params, length_of(params, batch));
        let mut steps = (length + NARROW_KEYS - 1) / NARROW_KEYS;
        let mut feed = Feed::<DIM> {
            tile,
            length,
            first: own_warp * STEP,
            left: steps,
            lane: 0,
            units: [0; 2],
            ahead: [0; 2],
            fill: 0,
        };
        feed.units = feed.look_up(feed.first);
        feed.ahead = feed.look_up(feed.first + NARROW_LOOKUPS * NARROW_KEYS);
        let mut ahead = opaque(NARROW_STAGES);
        while ahead > 0 {
            feed.load(ring);
            ahead -= 1;
        }
        let size = split_tokens(0, length, params.most, params.least, 1);
        let (words, factors) = queries::<E, DIM, S>(&tile);
        // In the order of the other kernels.
        let scale = params.scale * factor_of(params.k_scale, tile.head) * core::f32::consts::LOG2_E;
        let scales = factors.map(|factor| scale * factor);
        let mut engine = Few::<E, DIM, S, 1, 0, false>::of(words, scales.map(|scale| Scoring { scale, cap: 0.0 }));
        let own_row = Few::<E, DIM, S, 1, 0, false>::query();
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
        let (mut read, mut first) = (0, own_warp * STEP);
        while steps != 0 {
            cp_async::wait_group::<{ NARROW_STAGES - 1 }>();
            syncwarp(warp::FULL);
            let keys = ring + read;
            let mut x = [engine.products(keys, lane), engine.products(keys + KEYS * DIM, lane)];
            let mut h = 0;
            while h < 2 {
                let mut i = 0;
                while i < 4 {
                    x[h][i] *= scales[i % 2];
                    i += 1;
                }
                h += 1;
            }
            if (first + STEP) as i32 > inner {
                h = 0;
                while h < 2 {
                    let mut i = 0;
                    while i < 4 {
                        let key = first + h as u32 * KEYS + lane / 4 + i as u32 / 2 * 8;
                        if key as i32 >= ends[i % 2] {
                            x[h][i] = f32::NEG_INFINITY;
                        }
                        i += 1;
                    }
                    h += 1;
                }
            }
            engine.attend(x, keys + STEP * DIM, lane);
            syncwarp(warp::FULL);
            read += DIRECT_WARPS * shape.stage_bytes();
            if read == NARROW_STAGES * DIRECT_WARPS * shape.stage_bytes() {
                read = 0;
            }
            feed.load(ring);
            first += NARROW_KEYS;
            steps -= 1;
            if steps != 0 && first & (size - 1) & !(NARROW_KEYS - 1) != 0 {
                continue;
            }
            // The piece ends.
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
        let scale = factor_of(params.v_scale, tile.head);
        let mut own = 0;
        while own < 2 {
            let row = own_warp + own as u32 * DIRECT_WARPS;
            if row < params.rows {
                owned[own].write::<E, DIM, 1>(&tile, row, scale);
            }
            own += 1;
        }
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Plain decode attention of at most eight rows over a cache of 8-bit floats, of whole tiles; see
            /// [`crate::decode::direct`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs overlap nothing; no token is new.
            #[launch(threads = DIRECT_WARPS * 32, min_blocks = 2, tensor_core = 1)]
            pub fn $name(params: DirectParams) {
                const { assert!(DIRECT_ROWS == 2 * DIRECT_WARPS) };
                run::<$element, $dim, { $dim / 16 }>(&params)
            }
        )*}
    };
}

kernels! {
    decode_tiles_e4m3_f16_d128 F16 128
    decode_tiles_e4m3_bf16_d128 Bf16 128
}
