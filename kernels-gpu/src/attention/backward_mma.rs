//! Attention backward in f16 and bf16 by `mma.sync`: sm_80 and later with `cp.async`, sm_75 without; sm_90a has the
//! extended kernels of it.
//!
//! See [`gradient`](super::gradient) for the two kernels. A warp owns 16 rows (keys or queries); `S'` and `dP'` stay in
//! its registers and become the A operands of the products that follow. Where accumulators of a whole row do not fit
//! the registers, `SPLIT` warps compute the same `S'` and `dP'` and a part of the columns each.
//!
//! Numerics: scores, `dP`, `P` and sums in f32; `P` and `dS` are rounded to the element type for their products, the
//! gradients once at the end. What lies beyond a sequence or a head dim is never read: zeros stand in its place.

use super::{
    backward_products::{product, store, weighted},
    dropout::Kept,
    gradient::{Work, of_columns, weigh},
    mma::{Panels, Source, arrived},
    params::BackwardParams,
    rows::Rows,
};
use crate::tile::opaque::opaque;
use crate::tile::{copy::commit, element::F16, fragment::a_from_accumulator, mma::Mma};
use cuda_std::{barrier, kernel, shared::dynamic_base, thread};

#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;

/// The whole kernel: `WARPS` warps, `SPLIT` of them for the same rows; `S` registers of scores (streamed rows of a tile
/// / 2), `O` of a gradient (`DIM / 2 / SPLIT`). `KEYS` for dK and dV, else dQ; `EXTENDED` adds softcap, ALiBi and dropout.
#[inline(always)]
unsafe fn backward<
    E: Mma,
    const DIM: u32,
    const WARPS: u32,
    const SPLIT: u32,
    const S: usize,
    const O: usize,
    const STAGES: u32,
    const KEYS: bool,
    const EXTENDED: bool,
>(
    params: &BackwardParams,
) {
    let (rows, columns, threads) = (16 * WARPS / SPLIT, 2 * S as u32, 32 * WARPS);
    let forward = &params.attention;
    // SAFETY: `params` are those of the launch; every barrier and every warp instruction is met by all threads: what
    // decides is the same for the whole block.
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

        // Of Q or K; and of V, for keys only.
        let mut sum = [[0.0f32; O]];
        let mut values = [[0.0f32; O]];
        if begin < end && work.turns > 0 {
            let (head_dim, value_dim) = (forward.head_dim, forward.value_dim);
            let (own_len, other_len) = (work.own_len as i32, work.mask.seq_kv);
            let q = |turn: u32, rows: i32| {
                Source::new(
                    forward.q,
                    &forward.q_strides,
                    work.queries(params, turn),
                    rows,
                    head_dim,
                )
            };
            let grad = |turn: u32, rows: i32| {
                let place = work.queries(params, turn);
                Source::new(params.grad_out, &params.grad_out_strides, place, rows, value_dim)
            };
            let k = |rows: i32| Source::new(forward.k, &forward.k_strides, work.keys(params), rows, head_dim);
            let v = |rows: i32| Source::new(forward.v, &forward.v_strides, work.keys(params), rows, value_dim);

            // Own K and V, or Q and dO; streamed are the other two.
            let own = [dynamic_base(), dynamic_base() + 2 * DIM * rows];
            let other_bytes = 2 * DIM * columns;
            let other = own[1] + 2 * DIM * rows;
            let statistics = other + STAGES * 2 * other_bytes;
            let fetch = |turn: u32, n: i32, stage: u32| {
                let to = other + stage * 2 * other_bytes;
                let first = n * columns as i32;
                if KEYS {
                    q(turn, other_len).copy::<DIM>(to, first, columns, threads);
                    grad(turn, other_len).copy::<DIM>(to + other_bytes, first, columns, threads);
                    work.stage_statistics(params, turn, first, columns, statistics + stage * 8 * columns);
                } else {
                    k(other_len).copy::<DIM>(to, first, columns, threads);
                    v(other_len).copy::<DIM>(to + other_bytes, first, columns, threads);
                }
                commit();
            };

            let a_lane = Panels::<DIM>::lane(lane % 16, lane / 16);
            let b_lane = Panels::<DIM>::lane(lane / 16 * 8 + lane % 8, lane / 8 % 2);
            // The panels of this warp's part of the columns.
            let part_offset = part * (Panels::<DIM>::COUNT / SPLIT) * columns * Panels::<DIM>::WIDTH;
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

            if KEYS {
                k(own_len).copy::<DIM>(own[0], work.first as i32, rows, threads);
                v(own_len).copy::<DIM>(own[1], work.first as i32, rows, threads);
            } else {
                q(0, own_len).copy::<DIM>(own[0], work.first as i32, rows, threads);
                grad(0, own_len).copy::<DIM>(own[1], work.first as i32, rows, threads);
            }
            let (mut turn, mut n) = (0, begin);
            let mut stage = 0;
            fetch(turn, n, 0);
            loop {
                // The tile after this one.
                let (next_turn, next_n) = if n + 1 < end { (turn, n + 1) } else { (turn + 1, begin) };
                let more = next_turn < work.turns;
                arrived();
                if STAGES == 2 && more {
                    fetch(next_turn, next_n, stage ^ 1);
                }

                // Addresses are found again for each product: together they would not fit the registers.
                let (a_lane, b_lane, own_row) = (opaque(a_lane), opaque(b_lane), opaque(own_row));
                let tile = other + stage * 2 * other_bytes;
                let lanes = (a_lane, b_lane);
                let mut scores = product::<E, DIM, 1, S>((own[0], rows, own_row), (tile, columns), lanes)[0];
                let mut gradients =
                    product::<E, DIM, 1, S>((own[1], rows, own_row), (tile + other_bytes, columns), lanes)[0];

                let own_rows = Rows::of_plane::<EXTENDED>(forward, (work.batch, work.head + turn), work.mask, first);
                let place = (n * columns as i32, n >= whole_end || n < whole_begin);
                let staged = statistics + stage * 8 * columns;
                let dropout = EXTENDED && forward.dropout_threshold != 0;
                let mut kept = Kept::ALL;
                if dropout {
                    kept = Kept::new::<S, KEYS>(forward, &own_rows, place.0);
                    kept.keep(&mut gradients, forward.dropout_factor);
                }
                weigh::<S, EXTENDED>(&own_rows, forward.scale_log2, &mut scores, &mut gradients, place, |i| {
                    if KEYS {
                        of_columns(staged, i)
                    } else {
                        [of_rows[0], of_rows[0], of_rows[1], of_rows[1]]
                    }
                });

                if KEYS && dropout {
                    kept.keep(&mut scores, 1.0);
                }
                let (a_lane, tile) = (opaque(a_lane), tile + part_offset);
                if KEYS {
                    weighted::<E, DIM, 1, O>(&mut values, (tile + other_bytes, columns), a_lane, |_, step| {
                        a_from_accumulator(&scores, step as usize, E::pack)
                    });
                }
                weighted::<E, DIM, 1, O>(&mut sum, (tile, columns), a_lane, |_, step| {
                    a_from_accumulator(&gradients, step as usize, E::pack)
                });

                if !more {
                    break;
                }
                if STAGES == 2 {
                    stage ^= 1;
                } else {
                    // All have read the tile.
                    barrier::syncthreads();
                    fetch(next_turn, next_n, 0);
                }
                (turn, n) = (next_turn, next_n);
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
            store::<E, O>(dk, own, (first_column, forward.head_dim), &sum[0], forward.scale);
            let dv = (params.dv, &params.dv_strides, place);
            let factor = if EXTENDED { forward.dropout_factor } else { 1.0 };
            store::<E, O>(dv, own, (first_column, forward.value_dim), &values[0], factor);
        } else {
            let dq = (params.dq, &params.dq_strides, work.queries(params, 0));
            store::<E, O>(dq, own, (first_column, forward.head_dim), &sum[0], forward.scale);
        }
    }
}

macro_rules! kernels {
    ($($unit:literal $element:ident: $dim:literal dim, $stages:literal stages,
        kv $kv_warps:literal / $kv_split:literal by $kv_other:literal: $kv:ident $kv_extended:ident,
        q $q_warps:literal / $q_split:literal by $q_other:literal: $q:ident $q_extended:ident;)*) => {$(
        #[cfg(not(tier = "sm_90a"))]
        kernels! { @one $unit $element $dim $stages $kv_warps $kv_split $kv_other true false $kv }
        kernels! { @one $unit $element $dim $stages $kv_warps $kv_split $kv_other true true $kv_extended }
        #[cfg(not(tier = "sm_90a"))]
        kernels! { @one $unit $element $dim $stages $q_warps $q_split $q_other false false $q }
        kernels! { @one $unit $element $dim $stages $q_warps $q_split $q_other false true $q_extended }
    )*};
    (@one $unit:literal $element:ident $dim:literal $stages:literal $warps:literal $split:literal $other:literal
        $keys:literal $extended:literal $name:ident) => {
        kernel! {
            /// Attention backward; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; Δ has been written.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_mma`; a grid of one block a tile.
            #[launch(threads = 32 * $warps, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams) {
                backward::<$element, $dim, $warps, $split, { $other / 2 }, { $dim / 2 / $split }, $stages, $keys,
                    $extended>(&params)
            }
        }
    };
}

// The same tiles as `params::BACKWARD_MMA_SM80` and `params::BACKWARD_MMA_SM75`.
#[cfg(not(tier = "sm_75"))]
kernels! {
    "attention_backward_d64" F16: 64 dim, 2 stages,
        kv 4 / 1 by 64: attention_backward_kv_f16_d64 attention_backward_kv_extended_f16_d64,
        q 4 / 1 by 64: attention_backward_q_f16_d64 attention_backward_q_extended_f16_d64;
    "attention_backward_d64" Bf16: 64 dim, 2 stages,
        kv 4 / 1 by 64: attention_backward_kv_bf16_d64 attention_backward_kv_extended_bf16_d64,
        q 4 / 1 by 64: attention_backward_q_bf16_d64 attention_backward_q_extended_bf16_d64;
    "attention_backward_d128" F16: 128 dim, 2 stages,
        kv 4 / 1 by 32: attention_backward_kv_f16_d128 attention_backward_kv_extended_f16_d128,
        q 4 / 1 by 64: attention_backward_q_f16_d128 attention_backward_q_extended_f16_d128;
    "attention_backward_d128" Bf16: 128 dim, 2 stages,
        kv 4 / 1 by 32: attention_backward_kv_bf16_d128 attention_backward_kv_extended_bf16_d128,
        q 4 / 1 by 64: attention_backward_q_bf16_d128 attention_backward_q_extended_bf16_d128;
    "attention_backward_d256" F16: 256 dim, 2 stages,
        kv 8 / 2 by 16: attention_backward_kv_f16_d256 attention_backward_kv_extended_f16_d256,
        q 8 / 2 by 16: attention_backward_q_f16_d256 attention_backward_q_extended_f16_d256;
    "attention_backward_d256" Bf16: 256 dim, 2 stages,
        kv 8 / 2 by 16: attention_backward_kv_bf16_d256 attention_backward_kv_extended_bf16_d256,
        q 8 / 2 by 16: attention_backward_q_bf16_d256 attention_backward_q_extended_bf16_d256;
}
#[cfg(tier = "sm_75")]
kernels! {
    "attention_backward_d64" F16: 64 dim, 1 stages,
        kv 4 / 1 by 32: attention_backward_kv_f16_d64 attention_backward_kv_extended_f16_d64,
        q 4 / 1 by 32: attention_backward_q_f16_d64 attention_backward_q_extended_f16_d64;
    "attention_backward_d128" F16: 128 dim, 1 stages,
        kv 4 / 1 by 16: attention_backward_kv_f16_d128 attention_backward_kv_extended_f16_d128,
        q 4 / 1 by 32: attention_backward_q_f16_d128 attention_backward_q_extended_f16_d128;
    "attention_backward_d256" F16: 256 dim, 1 stages,
        kv 4 / 2 by 16: attention_backward_kv_f16_d256 attention_backward_kv_extended_f16_d256,
        q 4 / 2 by 16: attention_backward_q_f16_d256 attention_backward_q_extended_f16_d256;
}
