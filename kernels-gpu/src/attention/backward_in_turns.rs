//! Attention backward by `mma.sync` in one pass: a block owns a tile of keys, streams queries and adds to dQ in turn.
//!
//! `Sᵀ = K·Qᵀ` and `dPᵀ = V·dOᵀ` belong to the warps of their keys; `Pᵀ` and `dSᵀ` are the A operands of
//! `dV += Pᵀ·dO` and `dK += dSᵀ·Q` where they are. `dS` goes to shared memory too, since `dQ = dS·K` sums over the keys of
//! all warps; each warp computes a part of the tile of dQ and adds it to global memory by `red`, in the order of
//! [`backward_turns`](super::backward_turns): same inputs, same bits. Where the gradients of whole rows do not fit the
//! registers, `SPLIT` warps share their keys: each computes the scores of a part of the queries and a part of the columns
//! of dK and dV, and `Pᵀ` goes through shared memory as well.
//!
//! Numerics: scores, `dP`, `P` and sums in f32; `P` and `dS` are rounded to the element type for their products, the
//! gradients once at the end. What lies beyond a sequence or a head dim is never read: zeros stand in its place.

use super::{
    backward_products::{product, store, weighted},
    backward_turns as turns,
    mma::{Panels, Source, arrived},
    params::BackwardParams,
    rows::Rows,
};
use crate::tile::opaque::opaque;
use crate::tile::{
    copy::commit,
    element::{Bf16, F16},
    mma::Mma,
};
use cuda_std::{
    atomic::{self, Acquire, Gpu, Relaxed, Release},
    barrier, cp_async, global, kernel,
    math::{ex2, fma},
    matrix,
    shared::{dynamic_base, ld, st},
    thread,
};

/// Writes 16 rows of `Pᵀ` or `dSᵀ`, rounded, to a tile of `height` rows; `lane` is the place of the lane's first word.
#[inline(always)]
unsafe fn stage<const ROWS: u32, const S: usize>(to: u32, lane: u32, row: u32, height: u32, words: &[u32; S]) {
    let mut i = 0;
    while i < S / 4 {
        let lane = lane ^ (16 * (i as u32 % 2));
        let at = to + Panels::<ROWS>::at(lane, i as u32 / 2, row, height);
        // SAFETY: the warp's own rows of a tile that nobody reads.
        unsafe {
            st(at, words[2 * i]);
            st(at + 8 * Panels::<ROWS>::WIDTH, words[2 * i + 1]);
        }
        i += 1;
    }
}

/// `put` for a warp's 16 rows of dQ and their place: 512 bytes for 8 columns, of which there are `chunks`, 128 a register.
#[inline(always)]
fn each_of<const Q: usize>(to: u64, chunks: u32, sum: &[f32; Q], put: impl Fn(*mut f32, f32)) {
    let mut i = 0;
    while i < Q / 4 {
        if (i as u32) < chunks {
            let mut j = 0;
            while j < 4 {
                put((to + 512 * i as u64 + 128 * j as u64) as *mut f32, sum[4 * i + j]);
                j += 1;
            }
        }
        i += 1;
    }
}

/// The whole kernel: `WARPS` warps, `SPLIT` of them for the same `M` times 16 keys; `S` registers of scores (queries of a
/// tile / 2 / `SPLIT`) and `O` of a gradient (`DIM / 2 / SPLIT`) for each 16 keys. Of dQ a warp computes `MQ` times 16
/// rows and `Q` registers of each (columns / 2).
#[inline(always)]
unsafe fn backward<
    E: Mma,
    const DIM: u32,
    const ROWS: u32,
    const KEYS: u32,
    const WARPS: u32,
    const SPLIT: u32,
    const M: usize,
    const S: usize,
    const O: usize,
    const MQ: usize,
    const Q: usize,
    const STAGES: u32,
>(
    params: &BackwardParams,
) {
    const {
        assert!(ROWS == 2 * S as u32 * SPLIT && DIM == 2 * O as u32 * SPLIT);
        assert!(KEYS == 16 * M as u32 * WARPS / SPLIT);
        assert!(ROWS * DIM == 32 * (MQ * Q) as u32 * WARPS);
    }
    let threads = 32 * WARPS;
    let forward = &params.attention;
    // Shared memory.
    let own = [dynamic_base(), dynamic_base() + 2 * DIM * KEYS];
    let other = own[1] + 2 * DIM * KEYS;
    let other_bytes = 2 * DIM * ROWS;
    let slopes = other + STAGES * 2 * other_bytes;
    let weights = slopes + 2 * KEYS * ROWS;
    let statistics = if SPLIT == 1 { weights } else { weights + 2 * KEYS * ROWS };
    let slot = statistics + STAGES * 8 * ROWS;
    // SAFETY: `params` are those of the launch; every barrier and every warp instruction is met by all threads: what
    // decides is the same for the whole block.
    unsafe {
        // In the order of this counter, so that whom the block waits for has begun.
        if thread::thread_idx_x() == 0 {
            st(slot, atomic::add_u32::<Relaxed, Gpu>(params.next as *mut u32, 1));
        }
        barrier::syncthreads();
        let index: u32 = ld(slot);
        let work = turns::tile::<KEYS>(params, index);
        if work.first >= work.own_len {
            return;
        }
        let (begin, end) = work
            .mask
            .tiles(work.first as i32, work.last(work.first, KEYS), ROWS as i32);
        // A longest sequence that is said to be shorter than one is has no counters for the rest.
        let most = params.query_tiles as i32;
        let end = if end < most { end } else { most };
        let mut keys_sum = [[0.0f32; O]; M];
        let mut values = [[0.0f32; O]; M];
        if begin < end {
            let (head_dim, value_dim) = (forward.head_dim, forward.value_dim);
            let (own_len, other_len) = (work.own_len as i32, work.mask.seq_kv);
            let place = turns::place(params, work.batch, work.start_q, work.head);
            let fetch = |n: i32, stage: u32| {
                let to = other + stage * 2 * other_bytes;
                let first = n * ROWS as i32;
                let queries = work.queries(params, 0);
                Source::new(forward.q, &forward.q_strides, queries, other_len, head_dim)
                    .copy::<DIM>(to, first, ROWS, threads);
                Source::new(params.grad_out, &params.grad_out_strides, queries, other_len, value_dim).copy::<DIM>(
                    to + other_bytes,
                    first,
                    ROWS,
                    threads,
                );
                let thread = thread::thread_idx_x();
                if thread < ROWS / 2 {
                    let from = params.statistics + (place + n as u32) as u64 * (8 * ROWS) as u64 + 16 * thread as u64;
                    cp_async::copy_16(statistics + stage * 8 * ROWS + 16 * thread, from as *const u8, 16);
                }
                commit();
            };

            let first = work.first + thread::thread_idx_x() / 32 / SPLIT * 16 * M as u32;
            let (whole_begin, whole_end) = if work.first + KEYS > work.own_len {
                (0, 0)
            } else {
                let first = first as i32;
                work.mask.whole_tiles(first, first + 16 * M as i32 - 1, ROWS as i32)
            };

            let keys = work.keys(params);
            Source::new(forward.k, &forward.k_strides, keys, own_len, head_dim).copy::<DIM>(
                own[0],
                work.first as i32,
                KEYS,
                threads,
            );
            Source::new(forward.v, &forward.v_strides, keys, own_len, value_dim).copy::<DIM>(
                own[1],
                work.first as i32,
                KEYS,
                threads,
            );
            let mut n = begin;
            fetch(n, 0);
            loop {
                let at = if STAGES == 2 { (n - begin) as u32 % 2 } else { 0 };
                arrived();
                // All have added to the tile before.
                if thread::thread_idx_x() == 0 && n != begin {
                    let work = turns::tile::<KEYS>(params, opaque(index));
                    let counter = turns::counter(params, work.batch, work.head) + n as u32 - 1;
                    atomic::add_u32::<Release, Gpu>(turns::address(params, counter), 1);
                }
                let more = n + 1 < end;
                if STAGES == 2 && more {
                    fetch(n + 1, at ^ 1);
                }

                // Addresses are found again for each product: together they would not fit the registers.
                let (lane, warp) = (opaque(thread::lane_id()), opaque(thread::thread_idx_x()) / 32);
                let (own_row, part) = (warp / SPLIT * 16 * M as u32, warp % SPLIT);
                let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
                let b_lane = Panels::<DIM>::lane(lane / 16 * 8 + lane % 8, lane / 8 % 2);
                let tile = other + at * 2 * other_bytes;
                let part_rows = part * 2 * S as u32 * Panels::<DIM>::WIDTH;
                let lanes = (a_lane, b_lane);
                let mut scores = product::<E, DIM, M, S>((own[0], KEYS, own_row), (tile + part_rows, ROWS), lanes);
                let from = tile + other_bytes + part_rows;
                let mut gradients = product::<E, DIM, M, S>((own[1], KEYS, own_row), (from, ROWS), lanes);
                if n >= whole_end || n < whole_begin {
                    let column = n * ROWS as i32 + (part * 2 * S as u32) as i32;
                    let work = turns::tile::<KEYS>(params, opaque(index));
                    let plane = (work.batch, work.head);
                    let rows = Rows::of_plane::<false>(forward, plane, work.mask, work.first + own_row);
                    let mut m = 0;
                    while m < M {
                        rows.below(16 * m as i32)
                            .mask_within(&mut scores[m], column, work.own_len as i32);
                        m += 1;
                    }
                }
                let lane = opaque(thread::lane_id());
                let staged = statistics + at * 8 * ROWS + part * 8 * S as u32 + lane % 4 * 8;
                let mut i = 0;
                while i < S / 4 {
                    let lse: [f32; 2] = ld(staged + 32 * i as u32);
                    let delta: [f32; 2] = ld(staged + 4 * ROWS + 32 * i as u32);
                    let mut j = 0;
                    while j < 4 {
                        let r = 4 * i + j;
                        let mut m = 0;
                        while m < M {
                            let p = ex2(fma(scores[m][r], forward.scale_log2, -lse[j % 2]));
                            scores[m][r] = p;
                            gradients[m][r] = p * (gradients[m][r] - delta[j % 2]);
                            m += 1;
                        }
                        j += 1;
                    }
                    i += 1;
                }
                // Two neighbours a word: the first half of the array.
                let mut p = [[0; S]; M];
                let mut ds = [[0; S]; M];
                let mut m = 0;
                while m < M {
                    let mut i = 0;
                    while i < S / 2 {
                        p[m][i] = E::pack(scores[m][2 * i], scores[m][2 * i + 1]);
                        ds[m][i] = E::pack(gradients[m][2 * i], gradients[m][2 * i + 1]);
                        i += 1;
                    }
                    m += 1;
                }
                let word = Panels::<ROWS>::lane(lane / 4, 0) + lane % 4 * 4;
                let word = Panels::<ROWS>::at(word, part * (S as u32 / 8), 0, KEYS);
                let mut m = 0;
                while m < M {
                    let row = own_row + 16 * m as u32;
                    stage::<ROWS, S>(slopes, word, row, KEYS, &ds[m]);
                    if SPLIT > 1 {
                        stage::<ROWS, S>(weights, word, row, KEYS, &p[m]);
                    }
                    m += 1;
                }
                let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
                let columns_lane = Panels::<DIM>::at(a_lane, part * (O as u32 / 8), 0, ROWS);
                let in_registers = |words: &[[u32; S]; M], m: usize, step: u32| {
                    let at = 4 * step as usize;
                    [words[m][at], words[m][at + 1], words[m][at + 2], words[m][at + 3]]
                };
                if SPLIT == 1 {
                    weighted::<E, DIM, M, O>(&mut values, (tile + other_bytes, ROWS), columns_lane, |m, step| {
                        in_registers(&p, m, step)
                    });
                }
                // One thread waits for this block's turn.
                if thread::thread_idx_x() == threads - 32 {
                    let work = turns::tile::<KEYS>(params, opaque(index));
                    let counter = turns::counter(params, work.batch, work.head) + n as u32;
                    let before = turns::before::<KEYS>(params, &work, n as u32);
                    let there = turns::address(params, counter);
                    while before != 0 && atomic::load_u32::<Acquire, Gpu>(there) != before {}
                    st(slot, before);
                }
                barrier::syncthreads();

                let (lane, warp) = (opaque(thread::lane_id()), opaque(thread::thread_idx_x()) / 32);
                let (own_row, part) = (warp / SPLIT * 16 * M as u32, warp % SPLIT);
                let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
                let fragment_lane = Panels::<ROWS>::lane(lane % 16, lane / 16);
                if SPLIT > 1 {
                    let columns_lane = Panels::<DIM>::at(a_lane, part * (O as u32 / 8), 0, ROWS);
                    weighted::<E, DIM, M, O>(&mut values, (tile + other_bytes, ROWS), columns_lane, |m, step| {
                        let row = own_row + 16 * m as u32;
                        matrix::ldmatrix_x4(weights + Panels::<ROWS>::at(fragment_lane, step, row, KEYS))
                    });
                }

                // This warp's part of dQ.
                let groups = ROWS / (16 * MQ as u32);
                let (row_group, column_group) = (warp % groups, warp / groups);
                let mut queries = [[0.0f32; Q]; MQ];
                let a_at = Panels::<ROWS>::lane(lane / 16 * 8 + lane % 8, lane / 8 % 2);
                let b_at = Panels::<DIM>::at(a_lane, column_group * (Q as u32 / 8), 0, KEYS);
                weighted::<E, DIM, MQ, Q>(&mut queries, (own[0], KEYS), b_at, |m, step| {
                    let column = row_group * MQ as u32 + m as u32;
                    matrix::ldmatrix_x4_trans(slopes + Panels::<ROWS>::at(a_at, column, 16 * step, KEYS))
                });
                let first_chunk = column_group * (Q as u32 / 4);
                let to = params.dq_sum
                    + (place + n as u32) as u64 * (4 * ROWS * forward.head_dim) as u64
                    + (row_group * MQ as u32 * 64 * forward.head_dim + first_chunk * 512 + lane * 4) as u64;
                let chunks = forward.head_dim / 8;
                let chunks = if chunks > first_chunk { chunks - first_chunk } else { 0 };
                let add = ld::<u32>(slot) != 0;
                let mut m = 0;
                while m < MQ {
                    let to = to + (m as u32 * 64 * forward.head_dim) as u64;
                    if add {
                        each_of(to, chunks, &queries[m], |to, value| {
                            atomic::add_f32::<Relaxed, Gpu>(to, value);
                        });
                    } else {
                        each_of(to, chunks, &queries[m], |to, value| global::st(to, value));
                    }
                    m += 1;
                }

                let (lane, warp) = (opaque(thread::lane_id()), opaque(thread::thread_idx_x()) / 32);
                let (own_row, part) = (warp / SPLIT * 16 * M as u32, warp % SPLIT);
                let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
                let fragment_lane = Panels::<ROWS>::lane(lane % 16, lane / 16);
                let columns_lane = Panels::<DIM>::at(a_lane, part * (O as u32 / 8), 0, ROWS);
                weighted::<E, DIM, M, O>(&mut keys_sum, (tile, ROWS), columns_lane, |m, step| {
                    if SPLIT == 1 {
                        in_registers(&ds, m, step)
                    } else {
                        let row = own_row + 16 * m as u32;
                        matrix::ldmatrix_x4(slopes + Panels::<ROWS>::at(fragment_lane, step, row, KEYS))
                    }
                });

                if !more {
                    break;
                }
                n += 1;
                if STAGES == 1 {
                    // All have read the tile.
                    barrier::syncthreads();
                    fetch(n, 0);
                }
            }
            barrier::syncthreads();
            if thread::thread_idx_x() == 0 {
                let work = turns::tile::<KEYS>(params, opaque(index));
                let counter = turns::counter(params, work.batch, work.head) + n as u32;
                atomic::add_u32::<Release, Gpu>(turns::address(params, counter), 1);
            }
        }

        // The place is found again rather than kept in registers all the way.
        let work = turns::tile::<KEYS>(params, opaque(index));
        let warp = opaque(thread::thread_idx_x()) / 32;
        let first_column = warp % SPLIT * (DIM / SPLIT);
        let place = work.keys(params);
        let mut m = 0;
        while m < M {
            let own = (work.first + warp / SPLIT * 16 * M as u32 + 16 * m as u32, work.own_len);
            let dk = (params.dk, &params.dk_strides, place);
            store::<E, O>(dk, own, (first_column, forward.head_dim), &keys_sum[m], forward.scale);
            let dv = (params.dv, &params.dv_strides, place);
            store::<E, O>(dv, own, (first_column, forward.value_dim), &values[m], 1.0);
            m += 1;
        }
    }
}

macro_rules! kernels {
    ($($unit:literal: $dim:literal dim, $keys:literal keys by $rows:literal, $stages:literal stages,
        $warps:literal warps / $split:literal of $fragments:literal, dq $dq_fragments:literal by $dq_columns:literal,
        $blocks:literal blocks: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $dim $keys $rows $stages $warps $split $fragments $dq_fragments $dq_columns $blocks $f16 F16 }
        kernels! { @one $unit $dim $keys $rows $stages $warps $split $fragments $dq_fragments $dq_columns $blocks $bf16 Bf16 }
    )*};
    (@one $unit:literal $dim:literal $keys:literal $rows:literal $stages:literal $warps:literal $split:literal
        $fragments:literal $dq_fragments:literal $dq_columns:literal $blocks:literal $name:ident $element:ident) => {
        kernel! {
            /// Attention backward, all gradients; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; statistics have been written and counters cleared by
            ///   `attention_backward_delta_*`.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_turns`; a grid of one block a tile of keys.
            #[launch(threads = 32 * $warps, min_blocks = $blocks, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams) {
                backward::<$element, $dim, $rows, $keys, $warps, $split, $fragments, { $rows / 2 / $split },
                    { $dim / 2 / $split }, $dq_fragments, { $dq_columns / 2 }, $stages>(&params)
            }
        }
    };
}

// The same tiles as `params::BACKWARD_TURNS`.
kernels! {
    "attention_backward_d64": 64 dim, 128 keys by 32, 2 stages, 4 warps / 1 of 2, dq 1 by 32, 2 blocks:
        attention_backward_qkv_f16_d64 attention_backward_qkv_bf16_d64;
    "attention_backward_d128": 128 dim, 128 keys by 64, 2 stages, 8 warps / 2 of 2, dq 2 by 32, 1 blocks:
        attention_backward_qkv_f16_d128 attention_backward_qkv_bf16_d128;
    "attention_backward_d256": 256 dim, 64 keys by 64, 2 stages, 8 warps / 4 of 2, dq 2 by 64, 1 blocks:
        attention_backward_qkv_f16_d256 attention_backward_qkv_bf16_d256;
    "attention_backward_d256": 256 dim, 64 keys by 64, 1 stages, 8 warps / 4 of 2, dq 2 by 64, 1 blocks:
        attention_backward_qkv_lean_f16_d256 attention_backward_qkv_lean_bf16_d256;
}
