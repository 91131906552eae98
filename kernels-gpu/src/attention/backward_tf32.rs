//! Attention backward in f32 on the tensor cores of sm_80 and later, as exact as in f32: see [`floats`](super::floats).
//!
//! The same two kernels as in 16 bits, see [`gradient`](super::gradient). `SPLIT` warps compute the same 16 rows and a
//! part of the columns each, four in all; `P` and `dS` stay in registers. Own and streamed matrices have one buffer
//! each: two blocks share a multiprocessor, and one computes while the other waits.

use super::{
    dropout::Kept,
    floats::{Floats, arrived, product, store, weighted},
    gradient::{Work, of_columns, weigh},
    params::BackwardParams,
    rows::Rows,
};
use crate::tile::opaque::opaque;
use cuda_std::{barrier, cp_async, kernel, shared::dynamic_base, thread};

/// Warps of a block.
const WARPS: u32 = 4;
const THREADS: u32 = 32 * WARPS;

/// The whole kernel: `S` registers of scores (streamed rows of a tile / 2), `O` of a gradient (`DIM / 2 / SPLIT`), `N`
/// blocks of eight streamed rows at once. `KEYS` for dK and dV, else dQ; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn backward<
    const DIM: u32,
    const SPLIT: u32,
    const S: usize,
    const O: usize,
    const N: usize,
    const KEYS: bool,
    const EXTENDED: bool,
    const ROLLED: bool,
>(
    params: &BackwardParams,
) {
    let (rows, columns) = (16 * WARPS / SPLIT, 2 * S as u32);
    let forward = &params.attention;
    // SAFETY: `params` are those of the launch; barriers and warp instructions are met by all threads: what decides is
    // the same for the whole block.
    unsafe {
        let work = Work::at::<KEYS>(thread::block_idx_x(), params, rows);
        if work.first >= work.own_len {
            return;
        }
        let (begin, end) = work
            .mask
            .tiles(work.first as i32, work.last(work.first, rows), columns as i32);
        let warp = thread::thread_idx_x() / 32;
        let first = work.first + warp / SPLIT * 16;

        // Of Q or K; and of V, for keys only.
        let mut sum = [0.0f32; O];
        let mut values = [0.0f32; O];
        if begin < end && work.turns > 0 {
            let (head_dim, value_dim) = (forward.head_dim, forward.value_dim);
            let own_len = work.own_len as i32;
            let q = |work: &Work, turn: u32, rows: i32| {
                let place = work.queries(params, turn);
                Floats::new(forward.q, &forward.q_strides, place, rows, head_dim)
            };
            let grad = |work: &Work, turn: u32, rows: i32| {
                let place = work.queries(params, turn);
                Floats::new(params.grad_out, &params.grad_out_strides, place, rows, value_dim)
            };
            let k =
                |work: &Work, rows: i32| Floats::new(forward.k, &forward.k_strides, work.keys(params), rows, head_dim);
            let v =
                |work: &Work, rows: i32| Floats::new(forward.v, &forward.v_strides, work.keys(params), rows, value_dim);

            // Own K and V, or Q and dO; streamed are the other two.
            let width = 4 * DIM;
            let own = [dynamic_base(), dynamic_base() + width * rows];
            let other = [own[1] + width * rows, own[1] + width * (rows + columns)];
            let staged = other[1] + width * columns;

            let own_rows = first + thread::lane_id() / 4;
            let of_rows = if KEYS {
                [[0.0; 2]; 2]
            } else {
                [
                    work.statistics(params, 0, own_rows, work.own_len),
                    work.statistics(params, 0, own_rows + 8, work.own_len),
                ]
            };
            if KEYS {
                k(&work, own_len).copy::<DIM>(own[0], work.first as i32, rows, THREADS);
                v(&work, own_len).copy::<DIM>(own[1], work.first as i32, rows, THREADS);
            } else {
                q(&work, 0, own_len).copy::<DIM>(own[0], work.first as i32, rows, THREADS);
                grad(&work, 0, own_len).copy::<DIM>(own[1], work.first as i32, rows, THREADS);
            }

            let (mut turn, mut n) = (0, begin);
            let turns = work.turns;
            while turn < turns {
                // The tile before has been read. The place is found again rather than kept in registers all the way.
                barrier::syncthreads();
                let work = Work::at::<KEYS>(opaque(thread::block_idx_x()), params, rows);
                let other_len = work.mask.seq_kv;
                let first = work.first + opaque(thread::thread_idx_x()) / 32 / SPLIT * 16;
                let at = n * columns as i32;
                if KEYS {
                    q(&work, turn, other_len).copy::<DIM>(other[0], at, columns, THREADS);
                    grad(&work, turn, other_len).copy::<DIM>(other[1], at, columns, THREADS);
                    work.stage_statistics(params, turn, at, columns, staged);
                } else {
                    k(&work, other_len).copy::<DIM>(other[0], at, columns, THREADS);
                    v(&work, other_len).copy::<DIM>(other[1], at, columns, THREADS);
                }
                cp_async::commit_group();
                arrived();

                let own_at = (first - work.first) * width;
                // Where there are registers for it.
                let apart = !KEYS && DIM > 128;
                // Scores as the forward pass has them: its LSE goes with them.
                let as_forward = DIM > 128 || DIM > 64 && EXTENDED;
                let mut scores = product::<DIM, S, N, ROLLED>(own[0] + own_at, other[0], as_forward);
                let mut gradients = product::<DIM, S, N, ROLLED>(own[1] + own_at, other[1], apart);
                let own_rows = Rows::of_plane::<EXTENDED>(forward, (work.batch, work.head + turn), work.mask, first);
                let (whole_begin, whole_end) =
                    work.mask
                        .whole_tiles(first as i32, work.last(first, 16), columns as i32);
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
                let part_offset = opaque(thread::thread_idx_x()) / 32 % SPLIT * (4 * DIM / SPLIT);
                if KEYS {
                    weighted::<DIM, S, O>(&mut values, [1.0; 2], &scores, other[1] + part_offset);
                }
                weighted::<DIM, S, O>(&mut sum, [1.0; 2], &gradients, other[0] + part_offset);

                (turn, n) = if n + 1 < end { (turn, n + 1) } else { (turn + 1, begin) };
            }
        }

        // The place is found again rather than kept in registers all the way.
        let work = Work::at::<KEYS>(opaque(thread::block_idx_x()), params, rows);
        let warp = opaque(thread::thread_idx_x()) / 32;
        let own = (work.first + warp / SPLIT * 16, work.own_len);
        let first_column = warp % SPLIT * (DIM / SPLIT);
        if KEYS {
            let place = work.keys(params);
            let dk = (params.dk, &params.dk_strides, place);
            store::<O>(dk, own, (first_column, forward.head_dim), &sum, [forward.scale; 2]);
            let dv = (params.dv, &params.dv_strides, place);
            let factor = if EXTENDED { forward.dropout_factor } else { 1.0 };
            store::<O>(dv, own, (first_column, forward.value_dim), &values, [factor; 2]);
        } else {
            let dq = (params.dq, &params.dq_strides, work.queries(params, 0));
            store::<O>(dq, own, (first_column, forward.head_dim), &sum, [forward.scale; 2]);
        }
    }
}

macro_rules! kernels {
    ($($dim:literal dim, $split:literal parts,
        $kv_other:literal streamed by $kv_blocks:literal: $kv:ident,
        $kv_other_extended:literal streamed by $kv_blocks_extended:literal: $kv_extended:ident,
        $q_other:literal streamed by $q_blocks:literal: $q:ident,
        rolled $rolled:literal: $q_extended:ident;)*) => {$(
        kernels! { @one $dim $split $kv_other $kv_blocks true false true $kv }
        kernels! { @one $dim $split $kv_other_extended $kv_blocks_extended true true true $kv_extended }
        kernels! { @one $dim $split $q_other $q_blocks false false false $q }
        kernels! { @one $dim $split $q_other $q_blocks false true $rolled $q_extended }
    )*};
    (@one $dim:literal $split:literal $other:literal $blocks:literal $keys:literal $extended:literal $rolled:literal $name:ident) => {
        kernel! {
            /// Attention backward in f32; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; Δ has been written.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_tf32`; a grid of one block a tile.
            #[launch(threads = 32 * WARPS, min_blocks = 2, tensor_core = 1, param_align = 64)]
            pub fn $name(params: BackwardParams) {
                backward::<$dim, $split, { $other / 2 }, { $dim / 2 / $split }, $blocks, $keys, $extended, $rolled>(&params)
            }
        }
    };
}

// The same tiles as `params::BACKWARD_TF32`; extended kernels stream fewer rows where registers are full.
kernels! {
    64 dim, 1 parts,
        32 streamed by 4: attention_backward_kv_f32_d64,
        32 streamed by 4: attention_backward_kv_extended_f32_d64,
        64 streamed by 4: attention_backward_q_f32_d64,
        rolled false: attention_backward_q_extended_f32_d64;
    128 dim, 1 parts,
        16 streamed by 2: attention_backward_kv_f32_d128,
        8 streamed by 1: attention_backward_kv_extended_f32_d128,
        32 streamed by 4: attention_backward_q_f32_d128,
        rolled true: attention_backward_q_extended_f32_d128;
    256 dim, 2 parts,
        8 streamed by 1: attention_backward_kv_f32_d256,
        8 streamed by 1: attention_backward_kv_extended_f32_d256,
        16 streamed by 2: attention_backward_q_f32_d256,
        rolled false: attention_backward_q_extended_f32_d256;
}
