//! Attention forward in f32 by fused multiply-adds, on every tier: no rounding below f32 anywhere.
//!
//! A block computes a tile of query rows of one head, a warp 16 of them. Scores have the layout of the tensor cores'
//! accumulators, so that mask and softmax are the same code; weights go through shared memory to the threads that need
//! them, K and V take turns in one buffer. Rows in shared memory are padded by 16 bytes, which keeps the rows that a
//! warp reads together in different banks.

use super::{
    dropout::Kept,
    params::{AttentionParams, flags},
    rows::{Rows, forget},
    schedule::Tile,
    softmax::OnlineSoftmax,
};
use cuda_std::{
    barrier, global, kernel,
    math::fma,
    shared::{dynamic_base, ld, st},
    thread,
};

/// Floats that pad a row.
const PAD: u32 = 4;
/// Columns whose products are summed apart.
const CHUNK: u32 = 16;

/// Copies rows `first..first + height` of `DIM` floats to `to`; zeros stand for what is not there.
#[inline(always)]
unsafe fn copy<const DIM: u32>(
    to: u32,
    from: u64,
    row_stride: u64,
    (first, rows, columns): (i32, i32, u32),
    height: u32,
    threads: u32,
) {
    let mut chunk = thread::thread_idx_x();
    while chunk < height * (DIM / 4) {
        let (row, column) = (chunk / (DIM / 4), chunk % (DIM / 4) * 4);
        let at = first + row as i32;
        // SAFETY: this thread's chunk; the source is read only where there is one.
        unsafe {
            let values = if at < rows && column < columns {
                global::ld_nc((from + 4 * (at as u64 * row_stride + column as u64)) as *const [f32; 4])
            } else {
                [0.0; 4]
            };
            st(to + 4 * (row * (DIM + PAD) + column), values);
        }
        chunk += threads;
    }
}

/// The whole kernel: `WARPS` warps of 16 rows, `S` registers of scores (keys of a tile / 2) and `O` of output
/// (`DIM / 2`); `EXTENDED` adds softcap, ALiBi and dropout.
///
/// Output register `8i + 4h + j` is column `16i + 4·(lane % 4) + j` of row `lane / 4 + 8h`.
#[inline(always)]
unsafe fn forward<const DIM: u32, const WARPS: u32, const S: usize, const O: usize, const EXTENDED: bool>(
    params: &AttentionParams,
) {
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

            let own = Rows::new::<EXTENDED>(params, &tile, tile.row + warp_row);
            let first = tile.row + warp_row;
            let last = tile.last_row(first, 16);
            let (whole_begin, whole_end) = tile.mask.whole_tiles(first as i32, last, keys as i32);
            let q_row = q_tile + 4 * (warp_row + group) * (DIM + PAD);
            let k_row = kv_tile + 4 * (2 * pair) * (DIM + PAD);

            let there = (tile.row as i32, tile.seq_q as i32, params.head_dim);
            copy::<DIM>(q_tile, q, params.q_strides[1], there, rows, threads);
            let mut n = end - 1;
            loop {
                // The last tile's values have been read.
                barrier::syncthreads();
                let there = (n * keys as i32, tile.mask.seq_kv, params.head_dim);
                copy::<DIM>(kv_tile, k, params.k_strides[1], there, keys, threads);
                barrier::syncthreads();

                let mut scores = [0.0f32; S];
                let mut at = 0;
                while at < DIM {
                    // Sums of a few products first: fewer roundings at the size of the whole.
                    let mut part = [0.0f32; S];
                    let end = at + CHUNK;
                    while at < end {
                        let a: [f32; 4] = ld(q_row + 4 * at);
                        let b: [f32; 4] = ld(q_row + 4 * (8 * (DIM + PAD) + at));
                        let mut i = 0;
                        while i < S / 4 {
                            let mut j = 0;
                            while j < 2 {
                                let row = k_row + 4 * ((8 * i as u32 + j as u32) * (DIM + PAD) + at);
                                let key: [f32; 4] = ld(row);
                                let mut c = 0;
                                while c < 4 {
                                    part[4 * i + j] = fma(a[c], key[c], part[4 * i + j]);
                                    part[4 * i + 2 + j] = fma(b[c], key[c], part[4 * i + 2 + j]);
                                    c += 1;
                                }
                                j += 1;
                            }
                            i += 1;
                        }
                        at += 4;
                    }
                    let mut i = 0;
                    while i < S {
                        scores[i] += part[i];
                        i += 1;
                    }
                }
                if EXTENDED {
                    own.extend(&mut scores, n * keys as i32);
                }
                if n >= whole_end || n < whole_begin {
                    own.mask(&mut scores, n * keys as i32);
                }
                let shrink = softmax.update(&mut scores, scale);
                let mut i = 0;
                while i < O {
                    out[i] *= shrink[i / 4 % 2];
                    i += 1;
                }
                if EXTENDED && params.dropout_threshold != 0 {
                    // Found again rather than kept in registers all the way.
                    let tile = Tile::at(forget(thread::block_idx_x()), params, rows);
                    let warp_row = forget(thread::thread_idx_x()) / 32 * 16;
                    let own = Rows::new::<false>(params, &tile, tile.row + warp_row);
                    Kept::new::<S, false>(params, &own, n * keys as i32).keep(&mut scores, 1.0);
                }
                i = 0;
                while i < S / 4 {
                    let mut h = 0;
                    while h < 2 {
                        let place = (group + 8 * h as u32) * (keys + PAD) + 8 * i as u32 + 2 * pair;
                        st(weights + 4 * place, [scores[4 * i + 2 * h], scores[4 * i + 2 * h + 1]]);
                        h += 1;
                    }
                    i += 1;
                }

                // All have read K, and the weights of the warp are there.
                barrier::syncthreads();
                let there = (n * keys as i32, tile.mask.seq_kv, params.value_dim);
                copy::<DIM>(kv_tile, v, params.v_strides[1], there, keys, threads);
                barrier::syncthreads();

                let mut key = 0;
                while key < keys {
                    let row = weights + 4 * (group * (keys + PAD) + key);
                    let a: [f32; 4] = ld(row);
                    let b: [f32; 4] = ld(row + 4 * 8 * (keys + PAD));
                    let mut c = 0;
                    while c < 4 {
                        let mut i = 0;
                        while i < O / 8 {
                            let place = (key + c as u32) * (DIM + PAD) + 16 * i as u32 + 4 * pair;
                            let value: [f32; 4] = ld(kv_tile + 4 * place);
                            let mut j = 0;
                            while j < 4 {
                                out[8 * i + j] = fma(a[c], value[j], out[8 * i + j]);
                                out[8 * i + 4 + j] = fma(b[c], value[j], out[8 * i + 4 + j]);
                                j += 1;
                            }
                            i += 1;
                        }
                        c += 1;
                    }
                    key += 4;
                }
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
                let factor = if EXTENDED {
                    finished.factor[h] * params.dropout_factor
                } else {
                    finished.factor[h]
                };
                let mut i = 0;
                while i < O / 8 {
                    let column = 16 * i as u32 + 4 * pair;
                    if column < params.value_dim {
                        let o = 8 * i + 4 * h;
                        let values = [
                            out[o] * factor,
                            out[o + 1] * factor,
                            out[o + 2] * factor,
                            out[o + 3] * factor,
                        ];
                        global::st((params.out + 4 * (start + column as u64)) as *mut [f32; 4], values);
                    }
                    i += 1;
                }
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
    ($($dim:literal dim, $warps:literal warps, $keys:literal keys: $name:ident $extended:ident;)*) => {$(
        kernels! { @one $dim $warps $keys $name false }
        kernels! { @one $dim $warps $keys $extended true }
    )*};
    (@one $dim:literal $warps:literal $keys:literal $name:ident $extended:literal) => {
        kernel! {
            /// Attention forward in f32; see [`AttentionParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors.
            /// - Dynamic shared memory of `Tiles::shared_bytes_f32`; a grid of one block a tile.
            #[launch(threads = 32 * $warps, min_blocks = 1, param_align = 64)]
            pub fn $name(params: AttentionParams) {
                forward::<$dim, $warps, { $keys / 2 }, { $dim / 2 }, $extended>(&params)
            }
        }
    };
}

// The same tiles as `params::F32`.
kernels! {
    64 dim, 4 warps, 32 keys: attention_forward_f32_d64 attention_forward_extended_f32_d64;
    128 dim, 4 warps, 32 keys: attention_forward_f32_d128 attention_forward_extended_f32_d128;
    256 dim, 2 warps, 16 keys: attention_forward_f32_d256 attention_forward_extended_f32_d256;
}
