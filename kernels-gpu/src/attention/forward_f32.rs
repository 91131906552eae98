//! Attention forward in f32 by fused multiply-adds, on sm_75, whose tensor cores know no TF32: no rounding below f32
//! anywhere.
//!
//! A block computes a tile of query rows of one head, a warp 16 of them. K and V take turns in one buffer. Tiles and
//! products are those of [`fma`](super::fma).

use super::{
    dropout::Kept,
    fma::{PAD, add_weighted, copy, product, put_weights, store_row},
    params::{AttentionParams, flags},
    rows::Rows,
    schedule::Tile,
    softmax::OnlineSoftmax,
};
use crate::tile::opaque::opaque;
use cuda_std::{barrier, global, kernel, shared::dynamic_base, thread};

/// The whole kernel: `WARPS` warps of 16 rows, `S` registers of scores (keys of a tile / 2) and `O` of output
/// (`DIM / 2`). One kernel for plain problems and for softcap, ALiBi and dropout: a branch or two a tile of keys are
/// nothing beside products by FMA.
///
/// Output register `8i + 4h + j` is column `16i + 4·(lane % 4) + j` of row `lane / 4 + 8h`.
#[inline(always)]
unsafe fn forward<const DIM: u32, const WARPS: u32, const S: usize, const O: usize>(params: &AttentionParams) {
    let (rows, keys, threads) = (16 * WARPS, 2 * S as u32, 32 * WARPS);
    // SAFETY: `params` are those of the launch; barriers are met by all threads: what decides is the same for the
    // whole block.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), params, rows);
        if tile.row >= tile.seq_q {
            return;
        }
        let (begin, end) = tile.key_tiles(rows, keys);
        let lane = thread::lane_id();
        let (group, pair) = (lane / 4, lane % 4);
        let warp_row = thread::thread_idx_x() / 32 * 16;
        let scale = core::f32::consts::LOG2_E;
        let sequence = if params.flags & flags::VARLEN != 0 {
            0
        } else {
            tile.batch as u64
        };

        let mut out = [0.0f32; O];
        let mut softmax = OnlineSoftmax::new();
        if begin < end {
            core::hint::assert_unchecked(params.group != 0);
            let kv_head = (tile.head / params.group) as u64;
            let start = |address: u64, s: &[u64; 3], token: u32, head: u64| {
                address + 4 * (sequence * s[0] + token as u64 * s[1] + head * s[2])
            };
            let q = start(params.q, &params.q_strides, tile.start_q, tile.head as u64);
            let k = start(params.k, &params.k_strides, tile.start_k, kv_head);
            let v = start(params.v, &params.v_strides, tile.start_k, kv_head);
            let q_tile = dynamic_base();
            let kv_tile = q_tile + 4 * rows * (DIM + PAD);
            let weights = kv_tile + 4 * keys * (DIM + PAD) + 4 * warp_row * (keys + PAD);

            let own = Rows::new::<true>(params, &tile, tile.row + warp_row);
            let first = tile.row + warp_row;
            let last = tile.last_row(first, 16);
            let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);
            let q_row = q_tile + 4 * (warp_row + group) * (DIM + PAD);
            let k_row = kv_tile + 4 * (2 * pair) * (DIM + PAD);

            let there = (tile.row as i32, tile.seq_q as i32, params.head_dim);
            copy::<DIM>(q_tile, (q, params.q_strides[1]), there, (rows, threads));
            let mut n = end - 1;
            loop {
                // The last tile's values have been read.
                barrier::syncthreads();
                let there = (n * keys as i32, tile.mask.seq_kv, params.head_dim);
                copy::<DIM>(kv_tile, (k, params.k_strides[1]), there, (keys, threads));
                barrier::syncthreads();

                let mut scores = product::<DIM, S>(q_row, k_row);
                own.extend(&mut scores, n * keys as i32);
                if n >= whole_end || n < whole_begin {
                    own.mask_tile(&mut scores, n * keys as i32);
                }
                let shrink = softmax.update(&mut scores, scale);
                let mut i = 0;
                while i < O {
                    out[i] *= shrink[i / 4 % 2];
                    i += 1;
                }
                if params.dropout_threshold != 0 {
                    // Found again rather than kept in registers all the way.
                    let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
                    let warp_row = opaque(thread::thread_idx_x()) / 32 * 16;
                    let own = Rows::new::<false>(params, &tile, tile.row + warp_row);
                    Kept::new::<S, false>(params, &own, n * keys as i32).keep(&mut scores, 1.0);
                }
                put_weights(&scores, weights);

                // All have read K, and the weights of the warp are there.
                barrier::syncthreads();
                let there = (n * keys as i32, tile.mask.seq_kv, params.value_dim);
                copy::<DIM>(kv_tile, (v, params.v_strides[1]), there, (keys, threads));
                barrier::syncthreads();

                add_weighted::<DIM, S, O>(&mut out, weights, kv_tile);
                if n == begin {
                    break;
                }
                n -= 1;
            }
        }

        let sink = if params.sinks != 0 {
            global::ld_nc((params.sinks + tile.head as u64 * 4) as *const f32)
        } else {
            f32::NEG_INFINITY
        };
        let finished = softmax.finish(scale, sink);
        let mut h = 0;
        while h < 2 {
            let row = tile.row + warp_row + group + 8 * h as u32;
            if row < tile.seq_q {
                let (s, token) = (&params.out_strides, (tile.start_q + row) as u64);
                let start = sequence * s[0] + token * s[1] + tile.head as u64 * s[2];
                let factor = finished.factor[h] * params.dropout_factor;
                store_row::<O>(params.out + 4 * start, (0, params.value_dim), &out, h, factor);
                if params.lse != 0 && pair == 0 {
                    let s = &params.lse_strides;
                    let at = sequence * s[0] + tile.head as u64 * s[1] + token;
                    global::st((params.lse + 4 * at) as *mut f32, finished.lse[h]);
                }
            }
            h += 1;
        }
    }
}

macro_rules! kernels {
    ($($dim:literal dim, $warps:literal warps, $keys:literal keys: $name:ident;)*) => {$(
        kernel! {
            /// Attention forward in f32; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors.
            /// - Dynamic shared memory of `Tiles::shared_bytes_f32`; a grid of one block a tile.
            #[launch(threads = 32 * $warps, min_blocks = 1, param_align = 64)]
            pub fn $name(params: AttentionParams) {
                forward::<$dim, $warps, { $keys / 2 }, { $dim / 2 }>(&params)
            }
        }
    )*};
}

// The same tiles as `params::F32_SM75`.
kernels! {
    64 dim, 4 warps, 32 keys: attention_forward_f32_d64;
    128 dim, 4 warps, 32 keys: attention_forward_f32_d128;
    256 dim, 2 warps, 16 keys: attention_forward_f32_d256;
}
