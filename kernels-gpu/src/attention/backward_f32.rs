//! Attention backward in f32 by fused multiply-adds, on sm_75, whose tensor cores know no TF32: no rounding below f32
//! anywhere.
//!
//! The same two kernels as with tensor cores, see [`gradient`](super::gradient). `SPLIT` warps compute the same rows and a
//! part of the columns each, four in all. Tiles and products are those of [`fma`](super::fma).

use super::{
    dropout::Kept,
    fma::{self, PAD, add_weighted, product, put_weights, store_row},
    gradient::{Work, of_columns, weigh},
    params::BackwardParams,
    rows::Rows,
};
use crate::tile::opaque::opaque;
use cuda_std::{barrier, kernel, shared::dynamic_base, thread};

/// Warps of a block.
const WARPS: u32 = 4;
const THREADS: u32 = 32 * WARPS;

/// Copies rows of a plane, as [`fma::copy`] has it.
#[inline(always)]
unsafe fn copy<const DIM: u32>(
    to: u32,
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    there: (i32, i32, u32),
    height: u32,
) {
    let from = address + 4 * (place.0 * strides[0] + place.1 * strides[1] + place.2 * strides[2]);
    // SAFETY: forwarded to the caller.
    unsafe { fma::copy::<DIM>(to, (from, strides[1]), there, (height, THREADS)) };
}

/// `sum += weights · other`, as [`add_weighted`] has it.
#[inline(always)]
unsafe fn weighted<const DIM: u32, const S: usize, const O: usize>(
    sum: &mut [f32; O],
    weights: &[f32; S],
    exchange: u32,
    other: u32,
) {
    // SAFETY: the exchange is the warp's own, and all its lanes are here.
    unsafe {
        // The weights before these have been read.
        barrier::syncwarp(u32::MAX);
        put_weights(weights, exchange);
        barrier::syncwarp(u32::MAX);
        add_weighted::<DIM, S, O>(sum, exchange, other);
    }
}

/// Writes a warp's 16 rows, or a part of their columns.
#[inline(always)]
unsafe fn store<const O: usize>(
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows): (u32, u32),
    columns: (u32, u32),
    sum: &[f32; O],
    factor: f32,
) {
    let mut h = 0;
    while h < 2 {
        let row = first + thread::lane_id() / 4 + 8 * h as u32;
        if row < rows {
            let at = place.0 * strides[0] + (place.1 + row as u64) * strides[1] + place.2 * strides[2];
            // SAFETY: elements that exist; head dims are multiples of 4.
            unsafe { store_row::<O>(address + 4 * at, columns, sum, h, factor) };
        }
        h += 1;
    }
}

/// The whole kernel: `S` registers of scores (streamed rows of a tile / 2), `O` of a gradient (`DIM / 2 / SPLIT`).
/// `KEYS` for dK and dV, else dQ; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn backward<
    const DIM: u32,
    const SPLIT: u32,
    const S: usize,
    const O: usize,
    const KEYS: bool,
    const EXTENDED: bool,
>(
    params: &BackwardParams,
) {
    let (rows, columns) = (16 * WARPS / SPLIT, 2 * S as u32);
    let forward = &params.attention;
    // SAFETY: `params` are those of the launch; barriers are met by all threads: what decides is the same for the
    // whole block.
    unsafe {
        let work = Work::at::<KEYS>(thread::block_idx_x(), params, rows);
        if work.first >= work.own_len {
            return;
        }
        let (begin, end) = work
            .mask
            .tiles(work.first as i32, work.last(work.first, rows), columns as i32);
        let lane = thread::lane_id();
        let warp = thread::thread_idx_x() / 32;
        let (own_row, part) = (warp / SPLIT * 16, warp % SPLIT);
        let first = work.first + own_row;

        let mut sum = [0.0f32; O];
        let mut values = [0.0f32; O];
        if begin < end && work.turns > 0 {
            let (head_dim, value_dim) = (forward.head_dim, forward.value_dim);
            let (own_len, other_len) = (work.own_len as i32, work.mask.seq_kv);
            let q = |turn: u32| (forward.q, &forward.q_strides, work.queries(params, turn));
            let grad = |turn: u32| (params.grad_out, &params.grad_out_strides, work.queries(params, turn));
            let k = (forward.k, &forward.k_strides, work.keys(params));
            let v = (forward.v, &forward.v_strides, work.keys(params));

            let width = 4 * (DIM + PAD);
            let own = [dynamic_base(), dynamic_base() + width * rows];
            let other = [own[1] + width * rows, own[1] + width * (rows + columns)];
            let staged = other[1] + width * columns;
            let exchange = staged + 8 * columns + warp * 16 * 4 * (columns + PAD);

            let (whole_begin, whole_end) = work
                .mask
                .whole_tiles(first as i32, work.last(first, 16), columns as i32);
            let own_rows = first + lane / 4;
            let of_rows = if KEYS {
                [[0.0; 2]; 2]
            } else {
                [
                    work.statistics(params, 0, own_rows, work.own_len),
                    work.statistics(params, 0, own_rows + 8, work.own_len),
                ]
            };
            let there = (work.first as i32, own_len, head_dim);
            copy::<DIM>(own[0], if KEYS { k } else { q(0) }, there, rows);
            let there = (work.first as i32, own_len, value_dim);
            copy::<DIM>(own[1], if KEYS { v } else { grad(0) }, there, rows);

            let (mut turn, mut n) = (0, begin);
            while turn < work.turns {
                // The tile before has been read.
                barrier::syncthreads();
                let at = n * columns as i32;
                let there = (at, other_len, head_dim);
                copy::<DIM>(other[0], if KEYS { q(turn) } else { k }, there, columns);
                let there = (at, other_len, value_dim);
                copy::<DIM>(other[1], if KEYS { grad(turn) } else { v }, there, columns);
                if KEYS {
                    work.stage_statistics(params, turn, at, columns, staged);
                }
                barrier::syncthreads();

                let own_at = opaque(own_row + lane / 4) * width;
                let other_at = opaque(lane % 4 * 2) * width;
                let mut scores = product::<DIM, S>(own[0] + own_at, other[0] + other_at);
                let mut gradients = product::<DIM, S>(own[1] + own_at, other[1] + other_at);
                let own_rows = Rows::of_plane::<EXTENDED>(forward, (work.batch, work.head + turn), work.mask, first);
                let partial = n >= whole_end || n < whole_begin;
                let dropout = EXTENDED && forward.dropout_threshold != 0;
                let mut kept = Kept::ALL;
                if dropout {
                    kept = Kept::new::<S, KEYS>(forward, &own_rows, at);
                    kept.keep(&mut gradients, forward.dropout_factor);
                }
                weigh::<S, EXTENDED>(
                    &own_rows,
                    forward.scale_log2,
                    &mut scores,
                    &mut gradients,
                    (at, partial),
                    |i| {
                        if KEYS {
                            of_columns(staged, i)
                        } else {
                            [of_rows[0], of_rows[0], of_rows[1], of_rows[1]]
                        }
                    },
                );
                if KEYS && dropout {
                    kept.keep(&mut scores, 1.0);
                }
                let part_offset = 4 * part * (DIM / SPLIT);
                if KEYS {
                    weighted::<DIM, S, O>(&mut values, &scores, exchange, other[1] + part_offset);
                }
                weighted::<DIM, S, O>(&mut sum, &gradients, exchange, other[0] + part_offset);

                (turn, n) = if n + 1 < end { (turn, n + 1) } else { (turn + 1, begin) };
            }
        }

        let own = (first, work.own_len);
        let first_column = part * (DIM / SPLIT);
        if KEYS {
            let place = work.keys(params);
            let dk = (params.dk, &params.dk_strides, place);
            store::<O>(dk, own, (first_column, forward.head_dim), &sum, forward.scale);
            let dv = (params.dv, &params.dv_strides, place);
            let factor = if EXTENDED { forward.dropout_factor } else { 1.0 };
            store::<O>(dv, own, (first_column, forward.value_dim), &values, factor);
        } else {
            let dq = (params.dq, &params.dq_strides, work.queries(params, 0));
            store::<O>(dq, own, (first_column, forward.head_dim), &sum, forward.scale);
        }
    }
}

macro_rules! kernels {
    ($($dim:literal dim, $split:literal parts, $other:literal streamed: $kv:ident $kv_extended:ident $q:ident
        $q_extended:ident;)*) => {$(
        kernels! { @one $dim $split $other true false $kv }
        kernels! { @one $dim $split $other true true $kv_extended }
        kernels! { @one $dim $split $other false false $q }
        kernels! { @one $dim $split $other false true $q_extended }
    )*};
    (@one $dim:literal $split:literal $other:literal $keys:literal $extended:literal $name:ident) => {
        kernel! {
            /// Attention backward in f32; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; Δ has been written.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_f32`; a grid of one block a tile.
            #[launch(threads = 32 * WARPS, min_blocks = 1, param_align = 64)]
            pub fn $name(params: BackwardParams) {
                backward::<$dim, $split, { $other / 2 }, { $dim / 2 / $split }, $keys, $extended>(&params)
            }
        }
    };
}

// The same tiles as `params::BACKWARD_F32_SM75`.
kernels! {
    64 dim, 1 parts, 16 streamed: attention_backward_kv_f32_d64 attention_backward_kv_extended_f32_d64
        attention_backward_q_f32_d64 attention_backward_q_extended_f32_d64;
    128 dim, 2 parts, 16 streamed: attention_backward_kv_f32_d128 attention_backward_kv_extended_f32_d128
        attention_backward_q_f32_d128 attention_backward_q_extended_f32_d128;
    256 dim, 4 parts, 8 streamed: attention_backward_kv_f32_d256 attention_backward_kv_extended_f32_d256
        attention_backward_q_f32_d256 attention_backward_q_extended_f32_d256;
}
