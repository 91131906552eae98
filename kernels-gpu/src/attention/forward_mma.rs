//! Attention forward in f16 and bf16 by `mma.sync`: sm_80 with `cp.async`, sm_75 without.
//!
//! A block computes a tile of query rows of one head; a warp computes 16 or 32 of them. K and V have one buffer each:
//! V arrives while `Q·Kᵀ` is computed, the next K while the softmax and `P·V` are. Scores and output stay in
//! registers, and the weights of a tile of keys become the A operand of `P·V` where they are.
//!
//! Numerics as on Hopper: scores, statistics and sums in f32, weights rounded to the element type, output rounded
//! once. What lies beyond a sequence or a head dim is never read: zeros stand in its place.

use super::{
    dropout::Kept,
    mma::{Panels, Source, accumulate, arrived},
    params::{AttentionParams, flags},
    rows::{Rows, store_row},
    schedule::Tile,
    softmax::OnlineSoftmax,
};
use crate::tile::opaque::opaque;
use crate::tile::{copy::commit, element::F16, fragment::a_from_accumulator, mma::Mma};
use cuda_std::{global, kernel, matrix, shared::dynamic_base, thread};

#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;

/// The whole kernel: `WARPS` warps of `M` times 16 rows, `S` registers of scores (keys of a tile / 2) and `O` of output
/// (`DIM / 2`) for each 16 rows; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn forward<
    E: Mma,
    const DIM: u32,
    const WARPS: u32,
    const M: usize,
    const S: usize,
    const O: usize,
    const EXTENDED: bool,
>(
    params: &AttentionParams,
) {
    let (rows, keys, threads) = (16 * M as u32 * WARPS, 2 * S as u32, 32 * WARPS);
    // SAFETY: `params` are those of the launch; every barrier and every warp instruction is met by all threads: what
    // decides is the same for the whole block.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), params, rows);
        if tile.row >= tile.seq_q {
            return;
        }
        let (begin, end) = tile.key_tiles(rows, keys);
        let lane = thread::lane_id();
        let warp_row = thread::thread_idx_x() / 32 * 16 * M as u32;
        let scale = if EXTENDED {
            core::f32::consts::LOG2_E
        } else {
            params.scale_log2
        };

        let mut out = [[0.0f32; O]; M];
        let mut softmax = [OnlineSoftmax::new(); M];
        if begin < end {
            core::hint::assert_unchecked(params.group != 0);
            let (head, kv_head) = (tile.head as u64, (tile.head / params.group) as u64);
            let sequence = if params.flags & flags::VARLEN != 0 {
                0
            } else {
                tile.batch as u64
            };
            let kv = (sequence, tile.start_k as u64, kv_head);
            let q = (sequence, tile.start_q as u64, head);
            let q = Source::new(params.q, &params.q_strides, q, tile.seq_q as i32, params.head_dim);
            let k = Source::new(params.k, &params.k_strides, kv, tile.mask.seq_kv, params.head_dim);
            let v = Source::new(params.v, &params.v_strides, kv, tile.mask.seq_kv, params.value_dim);
            let q_tile = dynamic_base();
            let k_tile = q_tile + 2 * DIM * rows;
            let v_tile = k_tile + 2 * DIM * keys;
            // Row and half of this lane for A and for transposed B, and for B.
            let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
            let b_lane = Panels::<DIM>::lane(lane / 16 * 8 + lane % 8, lane / 8 % 2);

            let first = tile.row + warp_row;
            let own = Rows::new::<EXTENDED>(params, &tile, first);
            let last = tile.last_row(first, 16 * M as u32);
            let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);

            let mut n = end - 1;
            q.copy::<DIM>(q_tile, tile.row as i32, rows, threads);
            k.copy::<DIM>(k_tile, n * keys as i32, keys, threads);
            commit();
            loop {
                arrived();
                v.copy::<DIM>(v_tile, n * keys as i32, keys, threads);
                commit();

                // Addresses are found again for each product: together they would not fit the registers.
                let (a_lane, b_lane, q_row) = (opaque(a_lane), opaque(b_lane), opaque(warp_row));
                let mut scores = [[0.0f32; S]; M];
                let mut step = 0;
                while step < DIM / 16 {
                    let a: [[u32; 4]; M] = core::array::from_fn(|m| {
                        matrix::ldmatrix_x4(q_tile + Panels::<DIM>::at(a_lane, step, q_row + 16 * m as u32, rows))
                    });
                    let mut columns = 0;
                    while columns < keys / 16 {
                        let b = matrix::ldmatrix_x4(k_tile + Panels::<DIM>::at(b_lane, step, 16 * columns, keys));
                        let mut m = 0;
                        while m < M {
                            let at = 8 * columns as usize;
                            accumulate::<E, S>(&mut scores[m], at, a[m], [b[0], b[1]]);
                            accumulate::<E, S>(&mut scores[m], at + 4, a[m], [b[2], b[3]]);
                            m += 1;
                        }
                        columns += 1;
                    }
                    step += 1;
                }
                let partial = n >= whole_end || n < whole_begin;
                if EXTENDED || partial {
                    // The plain kernel has no registers for what it needs in its first and last tiles only.
                    let own = if EXTENDED {
                        own.below(0)
                    } else {
                        let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
                        let warp_row = opaque(thread::thread_idx_x()) / 32 * 16 * M as u32;
                        Rows::new::<EXTENDED>(params, &tile, tile.row + warp_row)
                    };
                    let mut m = 0;
                    while m < M {
                        let own = own.below(16 * m as i32);
                        if EXTENDED {
                            own.extend(&mut scores[m], n * keys as i32);
                        }
                        if partial {
                            own.mask_tile(&mut scores[m], n * keys as i32);
                        }
                        m += 1;
                    }
                }

                arrived();
                if n > begin {
                    k.copy::<DIM>(k_tile, (n - 1) * keys as i32, keys, threads);
                }
                commit();

                let mut m = 0;
                while m < M {
                    let shrink = softmax[m].update(&mut scores[m], scale);
                    let mut i = 0;
                    while i < O {
                        out[m][i] *= shrink[i / 2 % 2];
                        i += 1;
                    }
                    if EXTENDED && params.dropout_threshold != 0 {
                        let own = own.below(16 * m as i32);
                        Kept::new::<S, false>(params, &own, n * keys as i32).keep(&mut scores[m], 1.0);
                    }
                    m += 1;
                }
                let a_lane = opaque(a_lane);
                let mut step = 0;
                while step < keys / 16 {
                    let a: [[u32; 4]; M] =
                        core::array::from_fn(|m| a_from_accumulator(&scores[m], step as usize, E::pack));
                    let mut columns = 0;
                    while columns < DIM / 16 {
                        let b = matrix::ldmatrix_x4_trans(v_tile + Panels::<DIM>::at(a_lane, columns, 16 * step, keys));
                        let mut m = 0;
                        while m < M {
                            let at = 8 * columns as usize;
                            accumulate::<E, O>(&mut out[m], at, a[m], [b[0], b[1]]);
                            accumulate::<E, O>(&mut out[m], at + 4, a[m], [b[2], b[3]]);
                            m += 1;
                        }
                        columns += 1;
                    }
                    step += 1;
                }
                if n == begin {
                    break;
                }
                n -= 1;
            }
        }

        // The tile and the warp's row are found again rather than kept in registers all the way.
        let tile = Tile::at(opaque(thread::block_idx_x()), params, rows);
        let first_row = tile.row + opaque(thread::thread_idx_x()) / 32 * 16 * M as u32 + thread::lane_id() / 4;
        let sink = if params.sinks != 0 {
            global::ld_nc((params.sinks + tile.head as u64 * 4) as *const f32)
        } else {
            f32::NEG_INFINITY
        };
        let mut m = 0;
        while m < M {
            let finished = softmax[m].finish(scale, sink);
            let mut h = 0;
            while h < 2 {
                let row = first_row + 16 * m as u32 + 8 * h as u32;
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
                    M == 1,
                    h,
                    &out[m],
                    factor,
                    finished.lse[h],
                    E::pack,
                );
                h += 1;
            }
            m += 1;
        }
    }
}

macro_rules! kernels {
    ($($tier:literal $unit:literal $element:ident: $dim:literal dim, $warps:literal warps of $m:literal, $keys:literal keys,
        extended $extended:literal: $name:ident;)*) => {$(
        kernel! {
            /// Attention forward; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors.
            /// - Dynamic shared memory of `Tiles::shared_bytes_mma`; a grid of one block a tile.
            #[launch(threads = 32 * $warps, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(all(tier = $tier, unit = $unit))]
            pub fn $name(params: AttentionParams) {
                forward::<$element, $dim, $warps, $m, { $keys / 2 }, { $dim / 2 }, $extended>(&params)
            }
        }
    )*};
}

// The same tiles as `params::MMA_SM80`, `MMA_SM80_EXTENDED` and `MMA_SM75`. On sm_75 most kernels are plain and extended in
// one: fewer to carry, for a branch or two a tile of keys.
kernels! {
    "sm_80" "attention_forward_d64" F16: 64 dim, 4 warps of 2, 64 keys, extended false:
        attention_forward_f16_d64;
    "sm_80" "attention_forward_d64" F16: 64 dim, 4 warps of 2, 64 keys, extended true:
        attention_forward_extended_f16_d64;
    "sm_80" "attention_forward_d64" Bf16: 64 dim, 4 warps of 2, 64 keys, extended false:
        attention_forward_bf16_d64;
    "sm_80" "attention_forward_d64" Bf16: 64 dim, 4 warps of 2, 64 keys, extended true:
        attention_forward_extended_bf16_d64;
    "sm_80" "attention_forward_d96" F16: 96 dim, 4 warps of 2, 48 keys, extended false:
        attention_forward_f16_d96;
    "sm_80" "attention_forward_d96" Bf16: 96 dim, 4 warps of 2, 48 keys, extended false:
        attention_forward_bf16_d96;
    "sm_80" "attention_forward_d128" F16: 128 dim, 4 warps of 2, 48 keys, extended false:
        attention_forward_f16_d128;
    "sm_80" "attention_forward_d128" F16: 128 dim, 8 warps of 1, 48 keys, extended true:
        attention_forward_extended_f16_d128;
    "sm_80" "attention_forward_d128" Bf16: 128 dim, 4 warps of 2, 48 keys, extended false:
        attention_forward_bf16_d128;
    "sm_80" "attention_forward_d128" Bf16: 128 dim, 8 warps of 1, 48 keys, extended true:
        attention_forward_extended_bf16_d128;
    "sm_80" "attention_forward_d192" F16: 192 dim, 8 warps of 1, 64 keys, extended false:
        attention_forward_f16_d192;
    "sm_80" "attention_forward_d192" Bf16: 192 dim, 8 warps of 1, 64 keys, extended false:
        attention_forward_bf16_d192;
    "sm_80" "attention_forward_d256" F16: 256 dim, 4 warps of 1, 64 keys, extended false:
        attention_forward_f16_d256;
    "sm_80" "attention_forward_d256" F16: 256 dim, 4 warps of 1, 64 keys, extended true:
        attention_forward_extended_f16_d256;
    "sm_80" "attention_forward_d256" Bf16: 256 dim, 4 warps of 1, 64 keys, extended false:
        attention_forward_bf16_d256;
    "sm_80" "attention_forward_d256" Bf16: 256 dim, 4 warps of 1, 64 keys, extended true:
        attention_forward_extended_bf16_d256;
    "sm_75" "attention_forward_d64" F16: 64 dim, 4 warps of 1, 64 keys, extended true:
        attention_forward_f16_d64;
    "sm_75" "attention_forward_d96" F16: 96 dim, 4 warps of 1, 64 keys, extended false:
        attention_forward_f16_d96;
    "sm_75" "attention_forward_d128" F16: 128 dim, 4 warps of 1, 64 keys, extended true:
        attention_forward_f16_d128;
    "sm_75" "attention_forward_d192" F16: 192 dim, 4 warps of 1, 32 keys, extended false:
        attention_forward_f16_d192;
    "sm_75" "attention_forward_d256" F16: 256 dim, 4 warps of 1, 16 keys, extended true:
        attention_forward_f16_d256;
}
