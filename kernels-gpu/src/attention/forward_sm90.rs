//! Attention forward on Hopper: one warpgroup loads by TMA, two or three compute by wgmma.
//!
//! A tile is 64 query rows a computing warpgroup of one head, all of its keys, from the last tile of keys (where masks
//! are) to the first. Scores and output stay in registers: the weights of a tile of keys become the A operand of
//! `P·V` where they are. The product `Q·Kᵀ` of the next tile is issued before `P·V` of the last one, so that the
//! tensor cores work while the exponentials of a tile are computed; two warpgroups also take turns in issuing.
//!
//! Numerics: scores, statistics and sums in f32, weights rounded to the element type, output rounded once. A row's
//! bits depend on its own sequence only. Keys beyond a sequence are never multiplied: TMA fills zeros beyond the
//! tensor, and the tail of a packed sequence is cleared in shared memory.

use super::{
    dropout::Kept,
    hopper::{Half, PANEL_BYTES, round},
    params::{AttentionParams, PANEL, flags},
    rows::{Rows, forget, store_row},
    schedule::{self, Tile},
    softmax::OnlineSoftmax,
};
use crate::pipeline::{Cursor, OneThread, Participants, Ring, Warps, ring_bytes};
use core::{marker::PhantomData, mem::offset_of};
use cuda_std::{
    barrier, global, kernel,
    launch::ParamAddress,
    mbarrier, register,
    shared::{dynamic_base, st},
    thread, tma,
    wgmma::{Acc, Bf16, Descriptor, F16, InFlight, MmaShape, Swizzle, commit_group},
};

/// Stages of K and of V.
const STAGES: u32 = 2;
/// Named barriers: one a computing warpgroup for its turn, one for all of them.
const TURN: u32 = 1;
const TOGETHER: u32 = 4;

/// Where the operands lie in shared memory, and the rings that guard them.
struct Shared<C, const S: usize, const O: usize, const W: u32> {
    base: u32,
    consumers: PhantomData<C>,
}

impl<C: Participants, const S: usize, const O: usize, const W: u32> Shared<C, S, O, W> {
    const ROWS: u32 = 64 * W;
    const KEYS: u32 = 2 * S as u32;
    const DIM: u32 = 2 * O as u32;
    const PANELS: u32 = Self::DIM.div_ceil(PANEL);
    const Q_PANEL: u32 = Self::ROWS * PANEL_BYTES;
    const KV_PANEL: u32 = Self::KEYS * PANEL_BYTES;
    const Q_BYTES: u32 = Self::PANELS * Self::Q_PANEL;
    const KV_BYTES: u32 = Self::PANELS * Self::KV_PANEL;
    const K_OFFSET: u32 = Self::Q_BYTES;
    const V_OFFSET: u32 = Self::K_OFFSET + STAGES * Self::KV_BYTES;
    const BARRIERS: u32 = Self::V_OFFSET + STAGES * Self::KV_BYTES;

    #[inline(always)]
    fn q_ring(&self) -> Ring<1, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS)
    }
    #[inline(always)]
    fn k_ring(&self) -> Ring<STAGES, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1))
    }
    #[inline(always)]
    fn v_ring(&self) -> Ring<STAGES, OneThread, C> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + ring_bytes(STAGES))
    }
    #[inline(always)]
    fn k_stage(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::K_OFFSET + at.stage() * Self::KV_BYTES
    }
    #[inline(always)]
    fn v_stage(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::V_OFFSET + at.stage() * Self::KV_BYTES
    }
}

/// The whole kernel. `S` registers of scores (keys of a tile / 2), `O` of output (padded head dim / 2), `W` computing
/// warpgroups whose warps are `C`; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn forward<E: Half, C: Participants, const S: usize, const O: usize, const W: u32, const EXTENDED: bool>(
    params: &AttentionParams,
    address: ParamAddress,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let shared = Shared::<C, S, O, W> {
        base: dynamic_base(),
        consumers: PhantomData,
    };
    // SAFETY: one thread initialises before all meet.
    unsafe {
        if thread::thread_idx_x() == 0 {
            shared.q_ring().init();
            shared.k_ring().init();
            shared.v_ring().init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
    }
    let warpgroup = thread::thread_idx_x() / 128;
    // SAFETY: whole warpgroups take each arm; register counts add up to the block's.
    unsafe {
        if warpgroup == 0 {
            if W == 2 {
                register::setmaxnreg_dec::<24>()
            } else {
                register::setmaxnreg_dec::<40>()
            }
            if thread::thread_idx_x() == 0 {
                produce(&shared, params, address);
            }
        } else {
            if W == 2 {
                register::setmaxnreg_inc::<240>()
            } else {
                register::setmaxnreg_inc::<152>()
            }
            consume::<E, C, S, O, W, EXTENDED>(&shared, params, warpgroup - 1);
        }
    }
}

/// Loads Q, K and V of all tiles of this block; K runs one tile ahead of V, as the products do.
#[inline(always)]
unsafe fn produce<C: Participants, const S: usize, const O: usize, const W: u32>(
    shared: &Shared<C, S, O, W>,
    params: &AttentionParams,
    address: ParamAddress,
) {
    let q_map = address.tensor_map(offset_of!(AttentionParams, q_map));
    let k_map = address.tensor_map(offset_of!(AttentionParams, k_map));
    let v_map = address.tensor_map(offset_of!(AttentionParams, v_map));
    let (mut q, mut k, mut v) = (Cursor::start(), Cursor::start(), Cursor::start());
    let (rows, keys) = (64 * W, 2 * S as u32);
    let mut turn = 0;
    while schedule::index(params, turn) < schedule::tiles(params) {
        let index = schedule::index(params, turn);
        // SAFETY: one thread; rings as initialised; boxes have the size that is expected.
        unsafe {
            let tile = Tile::at(index, params, rows);
            let (begin, end) = tile.key_tiles(rows, keys);
            core::hint::assert_unchecked(params.group != 0);
            let kv_head = (tile.head / params.group) as i32;
            let sequence = if params.flags & flags::VARLEN != 0 {
                0
            } else {
                tile.batch as i32
            };
            let load_k = |n: i32, k: Cursor<STAGES>| {
                shared.k_ring().wait_empty(k);
                shared.k_ring().expect(k, Shared::<C, S, O, W>::KV_BYTES);
                let row = tile.start_k as i32 + n * keys as i32;
                let mut panel = 0;
                while panel < Shared::<C, S, O, W>::PANELS {
                    let to = shared.k_stage(k) + panel * Shared::<C, S, O, W>::KV_PANEL;
                    let at = [(panel * PANEL) as i32, row, kv_head, sequence];
                    tma::load_4d(to, k_map, at, shared.k_ring().full(k));
                    panel += 1;
                }
            };
            let load_v = |n: i32, v: Cursor<STAGES>| {
                shared.v_ring().wait_empty(v);
                shared.v_ring().expect(v, Shared::<C, S, O, W>::KV_BYTES);
                let row = tile.start_k as i32 + n * keys as i32;
                let mut panel = 0;
                while panel < Shared::<C, S, O, W>::PANELS {
                    let to = shared.v_stage(v) + panel * Shared::<C, S, O, W>::KV_PANEL;
                    let at = [(panel * PANEL) as i32, row, kv_head, sequence];
                    tma::load_4d(to, v_map, at, shared.v_ring().full(v));
                    panel += 1;
                }
            };
            if begin < end {
                shared.q_ring().wait_empty(q);
                shared.q_ring().expect(q, Shared::<C, S, O, W>::Q_BYTES);
                let row = (tile.start_q + tile.row) as i32;
                let mut panel = 0;
                while panel < Shared::<C, S, O, W>::PANELS {
                    let to = shared.base + panel * Shared::<C, S, O, W>::Q_PANEL;
                    let at = [(panel * PANEL) as i32, row, tile.head as i32, sequence];
                    tma::load_4d(to, q_map, at, shared.q_ring().full(q));
                    panel += 1;
                }
                q = q.next();
                let mut n = end - 1;
                load_k(n, k);
                k = k.next();
                while n > begin {
                    load_k(n - 1, k);
                    k = k.next();
                    load_v(n, v);
                    v = v.next();
                    n -= 1;
                }
                load_v(n, v);
                v = v.next();
            }
        }
        turn += 1;
    }
}

/// `Q·Kᵀ` of this warpgroup's 64 rows with a tile of keys, issued and committed.
#[inline(always)]
unsafe fn issue_qk<E: Half, C: Participants, const S: usize, const O: usize, const W: u32>(
    q: u32,
    k: u32,
) -> InFlight<S>
where
    InFlight<S>: MmaShape,
{
    // SAFETY: the caller waited for both operands; the whole warpgroup is here.
    unsafe {
        let mut scores = Acc::<S>::ZERO.start();
        let mut step = 0;
        while step < Shared::<C, S, O, W>::DIM / 16 {
            let (panel, within) = (step / 4, step % 4 * 32);
            let a = Descriptor::new(q + panel * Shared::<C, S, O, W>::Q_PANEL, 16, 1024, Swizzle::B128);
            let b = Descriptor::new(k + panel * Shared::<C, S, O, W>::KV_PANEL, 16, 1024, Swizzle::B128);
            scores = scores.mma_shared::<E, false, false>(a.advance(within), b.advance(within), step > 0);
            step += 1;
        }
        commit_group();
        scores
    }
}

/// `O + P·V` with a tile of values, issued and committed.
#[inline(always)]
unsafe fn issue_pv<E: Half, C: Participants, const S: usize, const O: usize, const W: u32>(
    out: Acc<O>,
    weights: &[u32; S],
    v: u32,
) -> InFlight<O>
where
    InFlight<O>: MmaShape,
{
    // SAFETY: the caller waited for the operand and keeps `weights` until the wait; the whole warpgroup is here.
    unsafe {
        let mut out = out.start();
        let b = Descriptor::new(v, Shared::<C, S, O, W>::KV_PANEL, 1024, Swizzle::B128);
        let mut step = 0;
        while step < S / 8 {
            let at = 4 * step;
            let a = [weights[at], weights[at + 1], weights[at + 2], weights[at + 3]];
            out = out.mma_registers::<E, true>(a, b.advance(16 * PANEL_BYTES * step as u32), true);
            step += 1;
        }
        commit_group();
        out
    }
}

/// Computes all tiles of this block's rows that belong to computing warpgroup `group`.
#[inline(always)]
unsafe fn consume<E: Half, C: Participants, const S: usize, const O: usize, const W: u32, const EXTENDED: bool>(
    shared: &Shared<C, S, O, W>,
    params: &AttentionParams,
    group: u32,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let (rows, keys) = (64 * W, 2 * S as u32);
    let (warp, lane) = (thread::thread_idx_x() / 32 % 4, thread::lane_id());
    let scale = if EXTENDED {
        core::f32::consts::LOG2_E
    } else {
        params.scale_log2
    };
    let q_rows = shared.base + group * 64 * PANEL_BYTES;
    let (mut q, mut k) = (Cursor::start(), Cursor::<STAGES>::start());
    // SAFETY: rings as initialised; all warpgroups run the same tiles, so turns and arrivals match.
    unsafe {
        if W == 2 && group == 1 {
            barrier::arrive(TURN, 256);
        }
        let mut turn = 0;
        while schedule::index(params, turn) < schedule::tiles(params) {
            let index = schedule::index(params, turn);
            let tile = Tile::at(index, params, rows);
            let (begin, end) = tile.key_tiles(rows, keys);
            let first = tile.row + group * 64;
            let own = Rows::new::<EXTENDED>(params, &tile, first + warp * 16);
            // Found again, as below: the loops over keys have no registers for it.
            let drop = |scores: &mut [f32; S], n: i32| {
                let tile = Tile::at(forget(index), params, rows);
                let own = Rows::new::<false>(params, &tile, tile.row + group * 64 + warp * 16);
                Kept::new::<S, false>(params, &own, n * keys as i32).keep(scores, 1.0);
            };
            let mut out = Acc::<O>::ZERO;
            let mut softmax = OnlineSoftmax::new();
            if begin < end {
                let last = tile.last_row(first, 64);
                let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);
                let mut n = end - 1;

                // The first tile of keys: nothing to overlap with yet.
                shared.q_ring().wait_full(q);
                shared.k_ring().wait_full(k);
                if W == 2 {
                    barrier::sync(TURN + group, 256);
                }
                let scores = issue_qk::<E, C, S, O, W>(q_rows, shared.k_stage(k));
                if W == 2 {
                    barrier::arrive(TURN + 1 - group, 256);
                }
                let mut scores = scores.wait::<0>();
                shared.k_ring().release(k);
                k = k.next();
                if EXTENDED {
                    own.extend(&mut scores.0, n * keys as i32);
                }
                if n >= whole_end || n < whole_begin {
                    own.mask(&mut scores.0, n * keys as i32);
                }
                softmax.update(&mut scores.0, scale);
                if EXTENDED && params.dropout_threshold != 0 {
                    drop(&mut scores.0, n);
                }
                let mut weights = round::<E, S>(&scores.0);
                if params.flags & flags::VARLEN != 0 {
                    clear_tail(shared, k.previous(), tile.mask.seq_kv - n * keys as i32);
                }

                // One tile of keys: scores of this one while the last one's weights meet its values.
                macro_rules! key_tile {
                    ($masked:expr) => {{
                        shared.k_ring().wait_full(k);
                        if W == 2 {
                            barrier::sync(TURN + group, 256);
                        }
                        let scores = issue_qk::<E, C, S, O, W>(q_rows, shared.k_stage(k));
                        // V is one tile behind K: its cursor need not be kept.
                        let v = k.previous();
                        shared.v_ring().wait_full(v);
                        let sums = issue_pv::<E, C, S, O, W>(out, &weights, shared.v_stage(v));
                        if W == 2 {
                            barrier::arrive(TURN + 1 - group, 256);
                        }
                        let mut scores = scores.wait::<1>();
                        shared.k_ring().release(k);
                        if EXTENDED {
                            own.extend(&mut scores.0, n * keys as i32);
                        }
                        if $masked {
                            own.mask(&mut scores.0, n * keys as i32);
                        }
                        let shrink = softmax.update(&mut scores.0, scale);
                        out = sums.wait::<0>();
                        shared.v_ring().release(k.previous());
                        k = k.next();
                        let mut i = 0;
                        while i < O {
                            out.0[i] *= shrink[i / 2 % 2];
                            i += 1;
                        }
                        if EXTENDED && params.dropout_threshold != 0 {
                            drop(&mut scores.0, n);
                        }
                        weights = round::<E, S>(&scores.0);
                        n -= 1;
                    }};
                }
                n -= 1;
                if EXTENDED && O <= 64 {
                    // One copy of the loop keeps the image small where registers allow it: scores are worked on anyway.
                    while n >= begin {
                        key_tile!(n >= whole_end || n < whole_begin);
                    }
                } else {
                    while n >= begin && n >= whole_end {
                        key_tile!(true);
                    }
                    while n >= begin && n >= whole_begin {
                        key_tile!(false);
                    }
                    while n >= begin {
                        key_tile!(true);
                    }
                }

                // Q may be replaced once every warp has read it for the last time.
                shared.q_ring().release(q);
                q = q.next();
                let v = k.previous();
                shared.v_ring().wait_full(v);
                out = issue_pv::<E, C, S, O, W>(out, &weights, shared.v_stage(v)).wait::<0>();
                shared.v_ring().release(k.previous());
            }
            // The tile is found again rather than kept in registers all the way.
            let tile = Tile::at(forget(index), params, rows);
            let first_row = tile.row + group * 64 + warp * 16 + lane / 4;
            let sink = if params.sinks != 0 {
                global::ld_nc((params.sinks + tile.head as u64 * 4) as *const f32)
            } else {
                f32::NEG_INFINITY
            };
            let finished = softmax.finish(scale, sink);
            let mut h = 0;
            while h < 2 {
                let row = first_row + 8 * h as u32;
                let factor = if EXTENDED {
                    finished.factor[h] * params.dropout_factor
                } else {
                    finished.factor[h]
                };
                store_row(
                    params,
                    &tile,
                    row,
                    row < tile.seq_q,
                    true,
                    h,
                    &out.0,
                    factor,
                    finished.lse[h],
                    E::pack,
                );
                h += 1;
            }
            turn += 1;
        }
        if W == 2 && group == 0 {
            barrier::sync(TURN, 256);
        }
    }
}

/// Clears the rows of a packed V tile that belong to the next sequence: a weight of zero does not silence a NaN.
#[inline(always)]
unsafe fn clear_tail<C: Participants, const S: usize, const O: usize, const W: u32>(
    shared: &Shared<C, S, O, W>,
    v: Cursor<STAGES>,
    valid: i32,
) {
    if valid >= Shared::<C, S, O, W>::KEYS as i32 {
        return;
    }
    const CHUNKS: u32 = PANEL_BYTES / 16;
    let chunks = (Shared::<C, S, O, W>::KEYS as i32 - valid) as u32 * CHUNKS;
    // SAFETY: the tile has arrived; each chunk is written by one thread, and all meet before any product reads it.
    unsafe {
        shared.v_ring().wait_full(v);
        let mut panel = 0;
        while panel < Shared::<C, S, O, W>::PANELS {
            let start = shared.v_stage(v) + panel * Shared::<C, S, O, W>::KV_PANEL + valid as u32 * PANEL_BYTES;
            let mut chunk = thread::thread_idx_x() - 128;
            while chunk < chunks {
                st(start + chunk * 16, [0u32; 4]);
                chunk += 128 * W;
            }
            panel += 1;
        }
        barrier::fence_proxy_async_shared();
        barrier::sync(TOGETHER, 128 * W);
    }
}

macro_rules! kernels {
    ($($unit:literal: $keys:literal keys, $dim:literal dim, $warpgroups:literal warpgroups, $threads:literal threads, $warps:literal warps,
        extended $extended:literal: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $f16 F16 $extended }
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $bf16 Bf16 $extended }
    )*};
    (@one $unit:literal $keys:literal $dim:literal $warpgroups:literal $threads:literal $warps:literal $name:ident $element:ident $extended:literal) => {
        kernel! {
            /// Attention forward; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; the maps were encoded for this kernel's boxes.
            /// - Dynamic shared memory of `Tiles::shared_bytes`; a grid of one dimension.
            #[launch(threads = $threads, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: AttentionParams, address: ParamAddress) {
                forward::<$element, Warps<$warps>, { $keys / 2 }, { $dim / 2 }, $warpgroups, $extended>(&params, address)
            }
        }
    };
}

// The same tiles as `params::SM90` and `params::SM90_EXTENDED`.
kernels! {
    "attention_forward_d64": 112 keys, 64 dim, 3 warpgroups, 512 threads, 12 warps, extended false:
        attention_forward_f16_d64 attention_forward_bf16_d64;
    "attention_forward_d64": 128 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, extended false:
        attention_forward_f16_d64_k128 attention_forward_bf16_d64_k128;
    "attention_forward_d64": 128 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, extended true:
        attention_forward_extended_f16_d64 attention_forward_extended_bf16_d64;
    "attention_forward_d96": 128 keys, 96 dim, 2 warpgroups, 384 threads, 8 warps, extended false:
        attention_forward_f16_d96 attention_forward_bf16_d96;
    "attention_forward_d96": 80 keys, 96 dim, 2 warpgroups, 384 threads, 8 warps, extended true:
        attention_forward_extended_f16_d96 attention_forward_extended_bf16_d96;
    "attention_forward_d128": 128 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, extended false:
        attention_forward_f16_d128 attention_forward_bf16_d128;
    "attention_forward_d128": 80 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, extended true:
        attention_forward_extended_f16_d128 attention_forward_extended_bf16_d128;
    "attention_forward_d192": 112 keys, 192 dim, 2 warpgroups, 384 threads, 8 warps, extended false:
        attention_forward_f16_d192 attention_forward_bf16_d192;
    "attention_forward_d192": 64 keys, 192 dim, 2 warpgroups, 384 threads, 8 warps, extended true:
        attention_forward_extended_f16_d192 attention_forward_extended_bf16_d192;
    "attention_forward_d256": 80 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, extended false:
        attention_forward_f16_d256 attention_forward_bf16_d256;
    "attention_forward_d256": 32 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, extended true:
        attention_forward_extended_f16_d256 attention_forward_extended_bf16_d256;
}
