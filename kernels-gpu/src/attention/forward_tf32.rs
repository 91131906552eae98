//! Attention forward in f32 on the tensor cores of sm_80 and later, as exact as in f32: see [`floats`](super::floats).
//!
//! A block computes a tile of query rows of one head, a warp 16 of them. K and V have one buffer each: V arrives while
//! `Q·Kᵀ` is computed, the next K while the softmax and `P·V` are. Scores and output stay in registers, and the weights
//! of a tile of keys become the A operand of `P·V` where they are. A row's bits do not depend on the number of warps.

use super::{
    dropout::Kept,
    floats::{Floats, arrived, product, store, weighted},
    params::{AttentionParams, flags},
    rows::Rows,
    schedule::Tile,
    softmax::OnlineSoftmax,
};
use crate::tile::opaque::opaque;
use cuda_std::{cp_async, global, kernel, shared::dynamic_base, thread};

/// The whole kernel: `WARPS` warps of 16 rows, `S` registers of scores (keys of a tile / 2) and `O` of output
/// (`DIM / 2`), `N` blocks of eight keys at once, `ROLLED` for a loop over the
/// head dim that stays one; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn forward<
    const DIM: u32,
    const WARPS: u32,
    const S: usize,
    const O: usize,
    const N: usize,
    const ROLLED: bool,
    const EXTENDED: bool,
>(
    params: &AttentionParams,
) {
    let (rows, keys, threads) = (16 * WARPS, 2 * S as u32, 32 * WARPS);
    // SAFETY: `params` are those of the launch; every barrier and every warp instruction is met by all threads: what
    // decides is the same for the whole block.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), params, rows);
        if tile.row >= tile.seq_q {
            return;
        }
        let (begin, end) = tile.key_tiles(rows, keys);
        let warp_row = thread::thread_idx_x() / 32 * 16;
        let scale = if EXTENDED {
            core::f32::consts::LOG2_E
        } else {
            params.scale_log2
        };
        let sequence = if params.flags & flags::VARLEN != 0 {
            0
        } else {
            tile.batch as u64
        };

        let mut out = [0.0f32; O];
        let mut softmax = OnlineSoftmax::new();
        if begin < end {
            core::hint::assert_unchecked(params.group != 0);
            let (head, kv_head) = (tile.head as u64, (tile.head / params.group) as u64);
            let kv = (sequence, tile.start_k as u64, kv_head);
            let q = (sequence, tile.start_q as u64, head);
            let q = Floats::new(params.q, &params.q_strides, q, tile.seq_q as i32, params.head_dim);
            let k = Floats::new(params.k, &params.k_strides, kv, tile.mask.seq_kv, params.head_dim);
            let v = Floats::new(params.v, &params.v_strides, kv, tile.mask.seq_kv, params.value_dim);
            let q_tile = dynamic_base();
            let k_tile = q_tile + 4 * DIM * rows;
            let v_tile = k_tile + 4 * DIM * keys;

            let first = tile.row + warp_row;
            let last = tile.last_row(first, 16);
            let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);

            let mut n = end - 1;
            q.copy::<DIM>(q_tile, tile.row as i32, rows, threads);
            k.copy::<DIM>(k_tile, n * keys as i32, keys, threads);
            cp_async::commit_group();
            loop {
                arrived();
                v.copy::<DIM>(v_tile, n * keys as i32, keys, threads);
                cp_async::commit_group();

                let own = q_tile + opaque(warp_row) * (4 * DIM);
                let mut scores = product::<DIM, S, N, ROLLED>(own, k_tile, DIM > 128 || DIM > 64 && EXTENDED);
                let partial = n >= whole_end || n < whole_begin;
                if EXTENDED || DIM > 128 || partial {
                    // Found again rather than kept in registers all the way.
                    let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
                    let warp_row = opaque(thread::thread_idx_x()) / 32 * 16;
                    let own = Rows::new::<EXTENDED>(params, &tile, tile.row + warp_row);
                    if EXTENDED {
                        own.extend(&mut scores, n * keys as i32);
                    }
                    if partial {
                        own.mask_tile(&mut scores, n * keys as i32);
                    }
                }

                arrived();
                if n > begin {
                    k.copy::<DIM>(k_tile, (n - 1) * keys as i32, keys, threads);
                }
                cp_async::commit_group();

                let shrink = softmax.update(&mut scores, scale);
                if EXTENDED && params.dropout_threshold != 0 {
                    let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
                    let warp_row = opaque(thread::thread_idx_x()) / 32 * 16;
                    let own = Rows::new::<false>(params, &tile, tile.row + warp_row);
                    Kept::new::<S, false>(params, &own, n * keys as i32).keep(&mut scores, 1.0);
                }
                weighted::<DIM, S, O>(&mut out, shrink, &scores, v_tile);
                if n == begin {
                    break;
                }
                n -= 1;
            }
        }

        let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
        let first_row = tile.row + opaque(thread::thread_idx_x()) / 32 * 16;
        let sink = if params.sinks != 0 {
            global::ld_nc((params.sinks + tile.head as u64 * 4) as *const f32)
        } else {
            f32::NEG_INFINITY
        };
        let finished = softmax.finish(scale, sink);
        let mut factor = finished.factor;
        if EXTENDED {
            factor = [factor[0] * params.dropout_factor, factor[1] * params.dropout_factor];
        }
        let place = (sequence, tile.start_q as u64, tile.head as u64);
        let (own, columns) = ((first_row, tile.seq_q), (0, params.value_dim));
        store::<O>((params.out, &params.out_strides, place), own, columns, &out, factor);
        let mut h = 0;
        while h < 2 {
            let row = first_row + thread::lane_id() / 4 + 8 * h as u32;
            if row < tile.seq_q && params.lse != 0 && thread::lane_id() % 4 == 0 {
                let s = &params.lse_strides;
                let at = place.0 * s[0] + place.2 * s[1] + place.1 + row as u64;
                global::st((params.lse + 4 * at) as *mut f32, finished.lse[h]);
            }
            h += 1;
        }
    }
}

macro_rules! kernels {
    ($($dim:literal dim, $keys:literal keys, $blocks:literal at once, rolled $rolled:literal, extended $extended:literal: $name:ident;)*) => {$(
        kernel! {
            /// Attention forward in f32; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors.
            /// - Dynamic shared memory of `Tiles::shared_bytes_tf32`; a grid of one block a tile.
            #[launch(threads = 128, min_blocks = 2, tensor_core = 1, param_align = 64)]
            pub fn $name(params: AttentionParams) {
                forward::<$dim, 4, { $keys / 2 }, { $dim / 2 }, $blocks, $rolled, $extended>(&params)
            }
        }
    )*};
}

// The same tiles as `params::TF32`. The plain kernel of head dim 128 has no registers for sums apart: the host takes the
// extended one where the scale is large.
kernels! {
    64 dim, 64 keys, 4 at once, rolled false, extended false: attention_forward_f32_d64;
    64 dim, 64 keys, 4 at once, rolled false, extended true: attention_forward_extended_f32_d64;
    128 dim, 32 keys, 4 at once, rolled false, extended false: attention_forward_f32_d128;
    128 dim, 32 keys, 4 at once, rolled true, extended true: attention_forward_extended_f32_d128;
    256 dim, 16 keys, 2 at once, rolled true, extended false: attention_forward_f32_d256;
    256 dim, 16 keys, 2 at once, rolled true, extended true: attention_forward_extended_f32_d256;
}
