//! Attention forward on Hopper: one warpgroup loads by TMA, two or three compute by wgmma.
//!
//! A tile is 64 query rows a computing warpgroup of one head, all of its keys, from the last tile of keys (where masks
//! are) to the first. Scores and output stay in registers: the weights of a tile of keys become the A operand of
//! `P·V` where they are. The product `Q·Kᵀ` of the next tile is issued before `P·V` of the last one, so that the
//! tensor cores work while the exponentials of a tile are computed; two warpgroups also take turns in issuing.
//!
//! The loading thread finds the tiles and hands them out; it runs ahead into the next tile, whose queries have a
//! stage of their own where shared memory allows it.
//!
//! Numerics: scores, statistics and sums in f32, weights rounded to the element type, output rounded once. A row's
//! bits depend on its own sequence only. Keys beyond a sequence are never multiplied: TMA fills zeros beyond the
//! tensor, and the tail of a packed sequence is cleared in shared memory.

mod produce;
mod queue;
mod shared;

use self::{produce::produce, shared::Shared};
use super::{
    dropout::Kept,
    hopper::{Half, PANEL_BYTES, clear_rows, issue_scores, issue_weighted, round},
    params::{AttentionParams, flags},
    rows::{Rows, forget, store_row},
    softmax::OnlineSoftmax,
};
use crate::pipeline::{Cursor, Participants, Warps};
use cuda_std::{
    barrier, global, grid_dependency, kernel,
    launch::ParamAddress,
    mbarrier, register,
    shared::dynamic_base,
    thread, warp,
    wgmma::{Acc, Bf16, F16, InFlight, MmaShape},
};

/// Named barriers: one a computing warpgroup for its turn, one for all of them.
const TURN: u32 = 1;
const TOGETHER: u32 = 4;

/// The whole kernel. `S` registers of scores (keys of a tile / 2), `O` of output (padded head dim / 2), `W` computing
/// warpgroups whose warps are `C`; `Q` stages of queries, `K` of keys and values; `TURNS` for two that take turns;
/// `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn forward<
    E: Half,
    C: Participants,
    const S: usize,
    const O: usize,
    const W: u32,
    const Q: u32,
    const K: u32,
    const TURNS: bool,
    const EXTENDED: bool,
>(
    params: &AttentionParams,
    address: ParamAddress,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let shared = Shared::<C, S, O, W, Q, K>::new(dynamic_base());
    // SAFETY: one thread initialises before all meet.
    unsafe {
        if thread::thread_idx_x() == 0 {
            shared.tile_ring().init();
            shared.q_ring().init();
            shared.k_ring().init();
            shared.v_ring().init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        // What comes next in the stream may set itself up beside this; this waits for what came before.
        grid_dependency::launch_dependents();
        grid_dependency::wait();
    }
    let warpgroup = thread::thread_idx_x() / 128;
    // SAFETY: whole warpgroups take each arm; register counts add up to the block's.
    unsafe {
        if warpgroup == 0 {
            if W == 2 {
                register::setmaxnreg_dec::<40>()
            } else {
                register::setmaxnreg_dec::<32>()
            }
            if thread::thread_idx_x() == 0 {
                produce(&shared, params, address);
            }
        } else {
            if W == 2 {
                register::setmaxnreg_inc::<232>()
            } else {
                register::setmaxnreg_inc::<160>()
            }
            consume::<E, C, S, O, W, Q, K, TURNS, EXTENDED>(&shared, params, warpgroup - 1);
        }
    }
}

/// Computes all tiles of this block's rows that belong to computing warpgroup `group`.
#[inline(always)]
unsafe fn consume<
    E: Half,
    C: Participants,
    const S: usize,
    const O: usize,
    const W: u32,
    const Q: u32,
    const K: u32,
    const TURNS: bool,
    const EXTENDED: bool,
>(
    shared: &Shared<C, S, O, W, Q, K>,
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
    let (mut given, mut q, mut k) = (Cursor::start(), Cursor::<Q>::start(), Cursor::<K>::start());
    // SAFETY: rings as initialised; all warpgroups run the same tiles, so turns and arrivals match.
    unsafe {
        if TURNS && group == 1 {
            barrier::arrive(TURN, 256);
        }
        while let Some(tile) = shared.next_tile(given, params) {
            let (begin, end) = tile.key_tiles(rows, keys);
            let first = tile.row + group * 64;
            let own = Rows::new::<EXTENDED>(params, &tile, first + warp * 16);
            // Found again, as below: the loops over keys have no registers for it.
            let drop = |scores: &mut [f32; S], n: i32| {
                let tile = shared.tile(given, params);
                let own = Rows::new::<false>(params, &tile, tile.row + group * 64 + warp * 16);
                Kept::new::<S, false>(params, &own, n * keys as i32).keep(scores, 1.0);
            };
            let mut out = Acc::<O>::ZERO;
            let mut softmax = OnlineSoftmax::new();
            shared.q_ring().wait_full(q);
            if begin < end {
                let last = tile.last_row(first, 64);
                let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);
                let mut n = end - 1;

                // The first tile of keys: nothing to overlap with yet.
                let q_rows = shared.q_stage(q) + group * 64 * PANEL_BYTES;
                shared.k_ring().wait_full(k);
                if TURNS {
                    barrier::sync(TURN + group, 256);
                }
                let scores = issue_scores::<E, S>(
                    Shared::<C, S, O, W, Q, K>::DIM,
                    (q_rows, Shared::<C, S, O, W, Q, K>::Q_PANEL),
                    shared.keys(k),
                );
                if TURNS {
                    barrier::arrive(TURN + 1 - group, 256);
                }
                let mut scores = scores.wait::<0>();
                shared.k_ring().release(k);
                k = k.next();
                if EXTENDED {
                    own.extend(&mut scores.0, n * keys as i32);
                }
                if n >= whole_end || n < whole_begin {
                    own.mask_end(&mut scores.0, n * keys as i32);
                }
                if n < whole_begin {
                    own.mask_begin(&mut scores.0, n * keys as i32);
                }
                softmax.update_lazily(&mut scores.0, scale);
                if EXTENDED && params.dropout_threshold != 0 {
                    drop(&mut scores.0, n);
                }
                let mut weights = round::<E, S>(&scores.0);
                if params.flags & flags::VARLEN != 0 {
                    clear_tail(shared, k.previous(), tile.mask.seq_kv - n * keys as i32);
                }

                // Scores of this tile of keys while the last one's weights meet its values.
                macro_rules! key_tile {
                    ($scores:ident, $mask:expr) => {{
                        shared.k_ring().wait_full(k);
                        if TURNS {
                            barrier::sync(TURN + group, 256);
                        }
                        let scores = issue_scores::<E, S>(
                            Shared::<C, S, O, W, Q, K>::DIM,
                            (q_rows, Shared::<C, S, O, W, Q, K>::Q_PANEL),
                            shared.keys(k),
                        );
                        // V is one tile behind K: its cursor need not be kept.
                        let v = k.previous();
                        shared.v_ring().wait_full(v);
                        let sums = issue_weighted::<E, S, O>(out, &weights, shared.values(v));
                        let mut scores = scores.wait::<1>();
                        if TURNS {
                            barrier::arrive(TURN + 1 - group, 256);
                        }
                        shared.k_ring().release(k);
                        if EXTENDED {
                            own.extend(&mut scores.0, n * keys as i32);
                        }
                        let $scores = &mut scores.0;
                        $mask;
                        let shrink = softmax.update_lazily(&mut scores.0, scale);
                        if W == 2 {
                            // The assembler moves the next wait up as far as it can: not above a loop. The exponentials
                            // belong before it, beside the products. With three warpgroups others have work for them.
                            settle(&mut scores.0);
                            shared.v_ring().wait_full(k.previous());
                        }
                        out = sums.wait::<0>();
                        shared.v_ring().release(k.previous());
                        k = k.next();
                        if W == 3 || warp::vote_any(warp::FULL, shrink[0] != 1.0 || shrink[1] != 1.0) {
                            let mut i = 0;
                            while i < O {
                                out.0[i] *= shrink[i / 2 % 2];
                                i += 1;
                            }
                        }
                        if EXTENDED && params.dropout_threshold != 0 {
                            drop(&mut scores.0, n);
                        }
                        weights = round::<E, S>(&scores.0);
                        n -= 1;
                    }};
                }
                n -= 1;
                // Where tiles of keys are whole for all rows nothing is masked. After the last of them no row begins;
                // before the first both bounds may cut.
                if W == 3 {
                    // Loops apart are faster here.
                    while n >= begin && n >= whole_end {
                        key_tile!(scores, own.mask_end(scores, n * keys as i32));
                    }
                    while n >= begin && n >= whole_begin {
                        key_tile!(_scores, ());
                    }
                    while n >= begin {
                        key_tile!(scores, {
                            own.mask_end(scores, n * keys as i32);
                            own.mask_begin(scores, n * keys as i32);
                        });
                    }
                } else {
                    while n >= begin {
                        key_tile!(scores, {
                            if n >= whole_end || n < whole_begin {
                                own.mask_end(scores, n * keys as i32);
                            }
                            if n < whole_begin {
                                own.mask_begin(scores, n * keys as i32);
                            }
                        });
                    }
                }

                // Q may be replaced once every warp has read it for the last time.
                shared.q_ring().release(q);
                let v = k.previous();
                shared.v_ring().wait_full(v);
                out = issue_weighted::<E, S, O>(out, &weights, shared.values(v)).wait::<0>();
                shared.v_ring().release(k.previous());
            } else {
                shared.q_ring().release(q);
            }
            q = q.next();
            // The tile is found again rather than kept in registers all the way.
            let tile = shared.last_look(given, params);
            shared.tile_ring().release(given);
            given = given.next();
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
        }
        if TURNS && group == 0 {
            barrier::sync(TURN, 256);
        }
    }
}

/// The values, computed here and not later.
#[inline(always)]
fn settle<const S: usize>(values: &mut [f32; S]) {
    let mut i = 0;
    while i < S {
        values[i] = f32::from_bits(forget(values[i].to_bits()));
        i += 1;
    }
}

/// Clears the rows of a packed V tile that belong to the next sequence: a weight of zero does not silence a NaN.
#[inline(always)]
unsafe fn clear_tail<C: Participants, const S: usize, const O: usize, const W: u32, const Q: u32, const K: u32>(
    shared: &Shared<C, S, O, W, Q, K>,
    v: Cursor<K>,
    valid: i32,
) {
    if valid >= Shared::<C, S, O, W, Q, K>::KEYS as i32 {
        return;
    }
    // SAFETY: the tile has arrived; each chunk is written by one thread, and all meet before any product reads it.
    unsafe {
        shared.v_ring().wait_full(v);
        clear_rows(
            shared.v_stage(v),
            Shared::<C, S, O, W, Q, K>::PANELS,
            (valid as u32, Shared::<C, S, O, W, Q, K>::KEYS),
            (thread::thread_idx_x() - 128, 128 * W),
        );
        barrier::sync(TOGETHER, 128 * W);
    }
}

macro_rules! kernels {
    ($($unit:literal: $keys:literal keys, $dim:literal dim, $warpgroups:literal warpgroups, $threads:literal threads, $warps:literal warps,
        stages $q:literal $k:literal, turns $turns:literal, extended $extended:literal: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $q $k $turns $f16 F16 $extended }
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $q $k $turns $bf16 Bf16 $extended }
    )*};
    (@one $unit:literal $keys:literal $dim:literal $warpgroups:literal $threads:literal $warps:literal $q:literal $k:literal $turns:literal $name:ident $element:ident $extended:literal) => {
        kernel! {
            /// Attention forward; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; the maps were encoded for this kernel's boxes.
            /// - Dynamic shared memory of `Tiles::shared_bytes`; a grid of one dimension.
            #[launch(threads = $threads, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: AttentionParams, address: ParamAddress) {
                forward::<$element, Warps<$warps>, { $keys / 2 }, { $dim / 2 }, $warpgroups, $q, $k, $turns, $extended>(&params, address)
            }
        }
    };
}

// The same tiles as `params::SM90` and `params::SM90_EXTENDED`.
kernels! {
    "attention_forward_d64": 112 keys, 64 dim, 3 warpgroups, 512 threads, 12 warps, stages 2 3, turns false, extended false:
        attention_forward_f16_d64 attention_forward_bf16_d64;
    "attention_forward_d64": 128 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 3, turns true, extended false:
        attention_forward_f16_d64_k128 attention_forward_bf16_d64_k128;
    "attention_forward_d64": 112 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 3, turns true, extended true:
        attention_forward_extended_f16_d64 attention_forward_extended_bf16_d64;
    "attention_forward_d96": 128 keys, 96 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 2, turns true, extended false:
        attention_forward_f16_d96 attention_forward_bf16_d96;
    "attention_forward_d128": 128 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 2, turns true, extended false:
        attention_forward_f16_d128 attention_forward_bf16_d128;
    "attention_forward_d128": 80 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 2, turns true, extended true:
        attention_forward_extended_f16_d128 attention_forward_extended_bf16_d128;
    "attention_forward_d192": 112 keys, 192 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, turns true, extended false:
        attention_forward_f16_d192 attention_forward_bf16_d192;
    "attention_forward_d256": 80 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, turns true, extended false:
        attention_forward_f16_d256 attention_forward_bf16_d256;
    "attention_forward_d256": 32 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, turns true, extended true:
        attention_forward_extended_f16_d256 attention_forward_extended_bf16_d256;
}
