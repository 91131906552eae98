//! Attention backward in f32 by fused multiply-adds, on every tier: no rounding below f32 anywhere.
//!
//! The same two kernels as with tensor cores, see [`gradient`](super::gradient). Scores have the layout of the tensor
//! cores' accumulators; `P` and `dS` go through a warp's own shared memory to the lanes that need them. `SPLIT` warps
//! compute the same rows and a part of the columns each, four in all. Rows in shared memory are padded by 16 bytes.

use super::{
    dropout::Kept,
    gradient::{Work, of_columns, weigh},
    params::BackwardParams,
    rows::{Rows, forget},
};
use cuda_std::{
    barrier, global, kernel,
    math::fma,
    shared::{dynamic_base, ld, st},
    thread,
};

/// Floats that pad a row.
const PAD: u32 = 4;
/// Warps of a block.
const WARPS: u32 = 4;
const THREADS: u32 = 32 * WARPS;

/// Copies rows `first..first + height` of `DIM` floats to `to`; zeros stand for what is not there.
#[inline(always)]
unsafe fn copy<const DIM: u32>(
    to: u32,
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows, columns): (i32, i32, u32),
    height: u32,
) {
    let from = address + 4 * (place.0 * strides[0] + place.1 * strides[1] + place.2 * strides[2]);
    let mut chunk = thread::thread_idx_x();
    while chunk < height * (DIM / 4) {
        let (row, column) = (chunk / (DIM / 4), chunk % (DIM / 4) * 4);
        let at = first + row as i32;
        // SAFETY: this thread's chunk; the source is read only where there is one.
        unsafe {
            let values = if at < rows && column < columns {
                global::ld_nc((from + 4 * (at as u64 * strides[1] + column as u64)) as *const [f32; 4])
            } else {
                [0.0; 4]
            };
            st(to + 4 * (row * (DIM + PAD) + column), values);
        }
        chunk += THREADS;
    }
}

/// `own · otherᵀ` of a warp's 16 rows, of which this lane's first is at `own`.
#[inline(always)]
unsafe fn product<const DIM: u32, const S: usize>(own: u32, other: u32) -> [f32; S] {
    let mut sum = [0.0f32; S];
    // A loop that the compiler cannot unroll as a whole: it would keep too many loads in the air.
    let (mut at, end) = (0, forget(DIM));
    while at < end {
        // SAFETY: the tiles are there.
        unsafe {
            let a: [f32; 4] = ld(own + 4 * at);
            let b: [f32; 4] = ld(own + 4 * (8 * (DIM + PAD) + at));
            let mut i = 0;
            while i < S / 4 {
                let mut j = 0;
                while j < 2 {
                    let row: [f32; 4] = ld(other + 4 * ((8 * i + j) as u32 * (DIM + PAD) + at));
                    let mut c = 0;
                    while c < 4 {
                        sum[4 * i + j] = fma(a[c], row[c], sum[4 * i + j]);
                        sum[4 * i + 2 + j] = fma(b[c], row[c], sum[4 * i + 2 + j]);
                        c += 1;
                    }
                    j += 1;
                }
                i += 1;
            }
        }
        at += 4;
    }
    sum
}

/// `sum += weights · other`. Register `8i + 4h + j` of the sum is column `16i + 4·(lane % 4) + j` from `other` on of
/// row `lane / 4 + 8h`.
#[inline(always)]
unsafe fn weighted<const DIM: u32, const S: usize, const O: usize>(
    sum: &mut [f32; O],
    weights: &[f32; S],
    exchange: u32,
    other: u32,
) {
    let columns = 2 * S as u32;
    let lane = thread::lane_id();
    let (group, pair) = (lane / 4, lane % 4);
    // SAFETY: the exchange is the warp's own, and all its lanes are here.
    unsafe {
        // The weights before these have been read.
        barrier::syncwarp(u32::MAX);
        let mut i = 0;
        while i < S / 4 {
            let mut h = 0;
            while h < 2 {
                let place = (group + 8 * h as u32) * (columns + PAD) + 8 * i as u32 + 2 * pair;
                st(
                    exchange + 4 * place,
                    [weights[4 * i + 2 * h], weights[4 * i + 2 * h + 1]],
                );
                h += 1;
            }
            i += 1;
        }
        barrier::syncwarp(u32::MAX);
        let (mut row, end) = (0, forget(columns));
        while row < end {
            let from = exchange + 4 * (group * (columns + PAD) + row);
            let a: [f32; 4] = ld(from);
            let b: [f32; 4] = ld(from + 4 * 8 * (columns + PAD));
            let mut c = 0;
            while c < 4 {
                let mut i = 0;
                while i < O / 8 {
                    let place = (row + c as u32) * (DIM + PAD) + 16 * i as u32 + 4 * pair;
                    let value: [f32; 4] = ld(other + 4 * place);
                    let mut j = 0;
                    while j < 4 {
                        sum[8 * i + j] = fma(a[c], value[j], sum[8 * i + j]);
                        sum[8 * i + 4 + j] = fma(b[c], value[j], sum[8 * i + 4 + j]);
                        j += 1;
                    }
                    i += 1;
                }
                c += 1;
            }
            row += 4;
        }
    }
}

/// Writes a warp's 16 rows, or a part of their columns.
#[inline(always)]
unsafe fn store<const O: usize>(
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows): (u32, u32),
    (first_column, columns): (u32, u32),
    sum: &[f32; O],
    factor: f32,
) {
    let lane = thread::lane_id();
    let mut h = 0;
    while h < 2 {
        let row = first + lane / 4 + 8 * h as u32;
        if row < rows {
            let at = place.0 * strides[0] + (place.1 + row as u64) * strides[1] + place.2 * strides[2];
            let mut i = 0;
            while i < O / 8 {
                let column = first_column + 16 * i as u32 + 4 * (lane % 4);
                if column < columns {
                    let o = 8 * i + 4 * h;
                    let values = [
                        sum[o] * factor,
                        sum[o + 1] * factor,
                        sum[o + 2] * factor,
                        sum[o + 3] * factor,
                    ];
                    // SAFETY: elements that exist; head dims are multiples of 4.
                    unsafe { global::st((address + 4 * (at + column as u64)) as *mut [f32; 4], values) };
                }
                i += 1;
            }
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

                let own_at = forget(own_row + lane / 4) * width;
                let other_at = forget(lane % 4 * 2) * width;
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

// The same tiles as `params::BACKWARD_F32`.
kernels! {
    64 dim, 1 parts, 16 streamed: attention_backward_kv_f32_d64 attention_backward_kv_extended_f32_d64
        attention_backward_q_f32_d64 attention_backward_q_extended_f32_d64;
    128 dim, 2 parts, 16 streamed: attention_backward_kv_f32_d128 attention_backward_kv_extended_f32_d128
        attention_backward_q_f32_d128 attention_backward_q_extended_f32_d128;
    256 dim, 4 parts, 8 streamed: attention_backward_kv_f32_d256 attention_backward_kv_extended_f32_d256
        attention_backward_q_f32_d256 attention_backward_q_extended_f32_d256;
}
