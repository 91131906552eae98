//! Attention forward on Hopper: one warpgroup loads by TMA, two to four compute by wgmma.
//!
//! A tile is 64 query rows a computing warpgroup of one head, all of its keys, from the last tile of keys (where masks
//! are) to the first. Scores and output stay in registers: the weights of a tile of keys become the A operand of
//! `P·V` where they are. The product `Q·Kᵀ` of the next tile is issued before `P·V` of the last one, so that the
//! tensor cores work while the exponentials of a tile are computed; warpgroups also take turns in issuing:
//! without them all come to their products, and then to their exponentials, at the same time.
//!
//! Where tiles of keys are short, a warpgroup passes over those that masks hide from all its rows. At the ends of a causal mask or a
//! window it so has turns to give away: it writes its output between them, while others compute.
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
    rows::{Rows, start_of_row, store_columns, store_lse},
    schedule::Tile,
    softmax::OnlineSoftmax,
};
use crate::pipeline::{Cursor, Participants, Warps};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier, global, grid_dependency, kernel,
    launch::ParamAddress,
    mbarrier, register,
    shared::dynamic_base,
    thread,
    wgmma::{Acc, Bf16, F16, InFlight, MmaShape},
};

/// Named barriers: one a computing warpgroup for its turn, one for all of them.
const TURN: u32 = 1;
const TOGETHER: u32 = 5;

/// The whole kernel. `S` registers of scores (keys of a tile / 2), `O` of output (padded head dim / 2), `W` computing
/// warpgroups whose warps are `C`; `Q` stages of queries, `K` of keys and values; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn forward<
    E: Half,
    C: Participants,
    const S: usize,
    const O: usize,
    const W: u32,
    const Q: u32,
    const K: u32,
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
            } else if W == 3 {
                register::setmaxnreg_inc::<160>()
            } else {
                register::setmaxnreg_inc::<112>()
            }
            consume::<E, C, S, O, W, Q, K, EXTENDED>(&shared, params, warpgroup - 1);
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
    let next_turn = if group == W - 1 { TURN } else { TURN + 1 + group };
    let skips = Shared::<C, S, O, W, Q, K>::SKIPS;
    let warp = thread::thread_idx_x() / 32 % 4;
    let scale = if EXTENDED {
        core::f32::consts::LOG2_E
    } else {
        params.scale_log2
    };
    let mut k = Cursor::<K>::start();
    // Places of the tile at hand, found again rather than kept in registers.
    let mut turn = 0;
    macro_rules! given {
        () => {
            Cursor::nth(opaque(turn))
        };
    }
    // SAFETY: rings as initialised; all warpgroups run the same tiles, so turns and arrivals match.
    unsafe {
        if group == W - 1 {
            barrier::arrive(TURN, 256);
        }
        // Passes over a tile of keys that other warpgroups see alone: gives it back unseen.
        let pass = |k: Cursor<K>| {
            barrier::sync(TURN + group, 256);
            barrier::arrive(next_turn, 256);
            shared.give_back(k);
        };
        // The tiles of keys of the next tile that some row of this warpgroup sees, and how many come before those.
        let look = |tile: Tile| {
            let (begin, end) = tile.key_tiles(rows, keys);
            let first = tile.row + group * 64;
            if !skips || Shared::<C, S, O, W, Q, K>::packed(params) {
                return (begin, end, 0);
            }
            if first < tile.seq_q {
                let (own_begin, own_end) = tile.mask.tiles(first as i32, tile.last_row(first, 64), keys as i32);
                if own_begin < own_end {
                    return (own_begin, own_end, end - own_end);
                }
            }
            (begin, begin, end - begin)
        };
        let mut live = shared.more(given!());
        let (mut own_begin, mut own_end) = (0, 0);
        if live {
            let mut before;
            (own_begin, own_end, before) = look(shared.tile(given!(), params));
            if skips {
                while before > 0 {
                    pass(k);
                    k = k.next();
                    before -= 1;
                }
            }
        }
        while live {
            let tile = shared.tile(given!(), params);
            let first = tile.row + group * 64;
            let own = Rows::new::<EXTENDED>(params, &tile, first + warp * 16);
            // The same, found again: with four warpgroups the loops over keys have no registers for it, nor have extended ones.
            macro_rules! again {
                () => {{
                    let tile = shared.tile(given!(), params);
                    let thread = opaque(thread::thread_idx_x()) - 128;
                    Rows::new::<false>(params, &tile, tile.row + thread / 32 * 16)
                }};
            }
            let drop = |scores: &mut [f32; S], n: i32| {
                Kept::new::<S, false>(params, &again!(), n * keys as i32).keep(scores, 1.0);
            };
            let mut out = Acc::<O>::ZERO;
            let mut softmax = OnlineSoftmax::new();
            shared.q_ring().wait_full(given!());
            let last = tile.last_row(first, 64);
            let mut n = own_end - 1;
            if own_begin < own_end {
                let tile = if W == 4 { shared.tile(given!(), params) } else { tile };
                let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);

                // Both bounds at once is the shorter code, each by itself the faster one.
                macro_rules! mask {
                    ($scores:expr) => {
                        if W == 2 && 2 * O == 128 && !EXTENDED {
                            own.mask_end($scores, n * keys as i32);
                            if n < whole_begin {
                                own.mask_begin($scores, n * keys as i32);
                            }
                        } else {
                            again!().mask_tile($scores, n * keys as i32);
                        }
                    };
                }

                // The first tile of keys: nothing to overlap with yet.
                let q_rows = shared.q_stage(given!()) + group * 64 * PANEL_BYTES;
                shared.k_ring().wait_full(k);
                barrier::sync(TURN + group, 256);
                let scores = issue_scores::<E, S>(
                    Shared::<C, S, O, W, Q, K>::DIM,
                    (q_rows, Shared::<C, S, O, W, Q, K>::Q_PANEL),
                    shared.keys(k),
                );
                barrier::arrive(next_turn, 256);
                let mut scores = scores.wait::<0>();
                shared.k_ring().release(k);
                k = k.next();
                if EXTENDED {
                    own.extend(&mut scores.0, n * keys as i32);
                }
                if n >= whole_end || n < whole_begin {
                    mask!(&mut scores.0);
                }
                softmax.update(&mut scores.0, scale);
                if EXTENDED && params.dropout_threshold != 0 {
                    drop(&mut scores.0, n);
                }
                let mut weights = round::<E, S>(&scores.0);
                if params.flags & flags::VARLEN != 0 {
                    let tile = shared.tile(given!(), params);
                    clear_tail(shared, k.previous(), tile.mask.seq_kv - n * keys as i32);
                }

                n -= 1;
                // Scores of this tile of keys while the last one's weights meet its values. Where tiles of keys are whole for
                // all rows nothing is masked.
                while n >= own_begin {
                    shared.k_ring().wait_full(k);
                    barrier::sync(TURN + group, 256);
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
                    barrier::arrive(next_turn, 256);
                    shared.k_ring().release(k);
                    if EXTENDED {
                        own.extend(&mut scores.0, n * keys as i32);
                    }
                    if n >= whole_end || n < whole_begin {
                        mask!(&mut scores.0);
                    }
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
                    if let Some(shrink) = shrink {
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
                }

                // Q may be replaced once every warp has read it for the last time.
                shared.q_ring().release(given!());
                let v = k.previous();
                shared.v_ring().wait_full(v);
                out = issue_weighted::<E, S, O>(out, &weights, shared.values(v)).wait::<0>();
                shared.v_ring().release(k.previous());
            } else {
                shared.q_ring().release(given!());
            }
            // The tile is found again rather than kept in registers all the way.
            let tile = shared.last_look(given!(), params);
            shared.tile_ring().release(given!());
            turn += 1;
            // The output is written between the turns of which this warpgroup makes no use, at the end of this tile and at
            // the beginning of the next one: there others compute.
            let mut idle = if skips {
                own_begin - tile.key_tiles(rows, keys).0
            } else {
                0
            };
            live = shared.more(given!());
            if live {
                let before;
                (own_begin, own_end, before) = look(shared.tile(given!(), params));
                if skips {
                    idle += before;
                }
            }
            let thread = opaque(thread::thread_idx_x()) - 128;
            let first_row = tile.row + thread / 32 * 16 + thread % 32 / 4;
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
                let there = row < tile.seq_q;
                let start = start_of_row(params, &tile, row);
                let mut i = 0;
                while i < O / 4 {
                    // Others wait for this turn: it goes before the part. Two warpgroups have one to give.
                    if skips && (W > 2 || h == 0 && i == 0) && idle > 0 {
                        pass(k);
                        k = k.next();
                        idle -= 1;
                    }
                    store_columns(params, start, there, true, [h, i], &out.0, factor, &E::pack);
                    i += 4;
                }
                store_lse(params, &tile, row, there, finished.lse[h]);
                h += 1;
            }
            if skips {
                while idle > 0 {
                    pass(k);
                    k = k.next();
                    idle -= 1;
                }
            }
        }
        if group == 0 {
            barrier::sync(TURN, 256);
        }
    }
}

/// The values, computed here and not later.
#[inline(always)]
fn settle<const S: usize>(values: &mut [f32; S]) {
    let mut i = 0;
    while i < S {
        values[i] = f32::from_bits(opaque(values[i].to_bits()));
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
        stages $q:literal $k:literal, extended $extended:literal: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $q $k $f16 F16 $extended }
        kernels! { @one $unit $keys $dim $warpgroups $threads $warps $q $k $bf16 Bf16 $extended }
    )*};
    (@one $unit:literal $keys:literal $dim:literal $warpgroups:literal $threads:literal $warps:literal $q:literal $k:literal $name:ident $element:ident $extended:literal) => {
        kernel! {
            /// Attention forward; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; the maps were encoded for this kernel's boxes.
            /// - Dynamic shared memory of `Tiles::shared_bytes`; a grid of one dimension.
            #[launch(threads = $threads, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: AttentionParams, address: ParamAddress) {
                forward::<$element, Warps<$warps>, { $keys / 2 }, { $dim / 2 }, $warpgroups, $q, $k, $extended>(&params, address)
            }
        }
    };
}

// The same tiles as `params::SM90` and `params::SM90_EXTENDED`.
kernels! {
    "attention_forward_d64": 112 keys, 64 dim, 3 warpgroups, 512 threads, 12 warps, stages 2 3, extended false:
        attention_forward_f16_d64 attention_forward_bf16_d64;
    "attention_forward_d64": 64 keys, 64 dim, 4 warpgroups, 640 threads, 16 warps, stages 2 8, extended false:
        attention_forward_f16_d64_256x64 attention_forward_bf16_d64_256x64;
    "attention_forward_d64": 64 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 8, extended false:
        attention_forward_f16_d64_128x64 attention_forward_bf16_d64_128x64;
    "attention_forward_d64": 64 keys, 64 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 8, extended true:
        attention_forward_extended_f16_d64 attention_forward_extended_bf16_d64;
    "attention_forward_d96": 128 keys, 96 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 2, extended false:
        attention_forward_f16_d96 attention_forward_bf16_d96;
    "attention_forward_d128": 128 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 2, extended false:
        attention_forward_f16_d128 attention_forward_bf16_d128;
    "attention_forward_d128": 80 keys, 128 dim, 3 warpgroups, 512 threads, 12 warps, stages 1 4, extended false:
        attention_forward_f16_d128_192x80 attention_forward_bf16_d128_192x80;
    "attention_forward_d128": 64 keys, 128 dim, 2 warpgroups, 384 threads, 8 warps, stages 2 4, extended true:
        attention_forward_extended_f16_d128 attention_forward_extended_bf16_d128;
    "attention_forward_d192": 112 keys, 192 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, extended false:
        attention_forward_f16_d192 attention_forward_bf16_d192;
    "attention_forward_d256": 80 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, extended false:
        attention_forward_f16_d256 attention_forward_bf16_d256;
    "attention_forward_d256": 32 keys, 256 dim, 2 warpgroups, 384 threads, 8 warps, stages 1 2, extended true:
        attention_forward_extended_f16_d256 attention_forward_extended_bf16_d256;
}
