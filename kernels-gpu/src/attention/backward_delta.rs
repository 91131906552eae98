//! Before the backward kernels: `Δ = rowsum(dO ∘ O)`. After it: `d sink = −Σ exp(sink − LSE)·Δ`.

use super::{
    params::{BackwardParams, DELTA_THREADS, flags},
    schedule::{Sequence, Tile},
};
use crate::tile::element::{Element, F16};
use cuda_std::{
    barrier, global, kernel,
    math::{ex2, fma},
    shared::{dynamic_base, ld, st},
    thread, warp,
};

#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;

/// `LANES` lanes take a row of at most `8·LANES` elements.
#[inline(always)]
unsafe fn delta<E: Element, const LANES: u32>(params: &BackwardParams) {
    let forward = &params.attention;
    let thread = thread::thread_idx_x();
    // SAFETY: `params` are those of the launch; all lanes meet the shuffles.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), forward, DELTA_THREADS / LANES);
        let (row, column) = (tile.row + thread / LANES, thread % LANES * 8);
        let sequence = if forward.flags & flags::VARLEN != 0 {
            0
        } else {
            tile.batch as u64
        };
        let (token, head) = ((tile.start_q + row) as u64, tile.head as u64);
        let mut sum = 0.0;
        if row < tile.seq_q && column < forward.value_dim {
            let load = |address: u64, s: &[u64; 3]| {
                let at = sequence * s[0] + token * s[1] + head * s[2] + column as u64;
                E::load8_nc((address as *const E).add(at as usize))
            };
            let out = load(forward.out, &forward.out_strides);
            let grad = load(params.grad_out, &params.grad_out_strides);
            let mut i = 0;
            while i < 8 {
                sum = fma(out[i], grad[i], sum);
                i += 1;
            }
        }
        let sum = warp::reduce_sum::<LANES>(sum);
        if row < tile.seq_q && column == 0 {
            let at = sequence * forward.lse_strides[0] + head * forward.lse_strides[1] + token;
            global::st((params.delta + 4 * at) as *mut f32, sum);
        }
    }
}

macro_rules! deltas {
    ($($name:ident: $element:ident, $lanes:literal lanes;)*) => {$(
        kernel! {
            /// `Δ = rowsum(dO ∘ O)`; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; a grid of one block a tile of `params::delta_rows` rows.
            #[launch(threads = 256, param_align = 64)]
            pub fn $name(params: BackwardParams) {
                delta::<$element, $lanes>(&params)
            }
        }
    )*};
}

deltas! {
    attention_backward_delta_f32_d64: f32, 8 lanes;
    attention_backward_delta_f32_d128: f32, 16 lanes;
    attention_backward_delta_f32_d256: f32, 32 lanes;
    attention_backward_delta_f16_d64: F16, 8 lanes;
    attention_backward_delta_f16_d128: F16, 16 lanes;
    attention_backward_delta_f16_d256: F16, 32 lanes;
}
#[cfg(not(tier = "sm_75"))]
deltas! {
    attention_backward_delta_bf16_d64: Bf16, 8 lanes;
    attention_backward_delta_bf16_d128: Bf16, 16 lanes;
    attention_backward_delta_bf16_d256: Bf16, 32 lanes;
}

kernel! {
    /// Gradient of the sink of head `blockIdx.x`, all sequences and rows in a fixed order; see [`BackwardParams`].
    ///
    /// # Safety
    /// - The parameters describe live tensors, sinks among them; `attention_backward_delta_*` has written Δ.
    /// - Dynamic shared memory for a float a warp.
    #[launch(threads = 256, param_align = 64)]
    pub fn attention_backward_sinks(params: BackwardParams) {
        let forward = &params.attention;
        let (thread, head) = (thread::thread_idx_x(), thread::block_idx_x() as u64);
        let sink: f32 = global::ld_nc((forward.sinks + 4 * head) as *const f32);
        let mut sum = 0.0f32;
        let mut batch = 0;
        while batch < forward.batch {
            let sequence = Sequence::at(forward, batch);
            let plane = if forward.flags & flags::VARLEN != 0 { 0 } else { batch as u64 };
            let first = plane * forward.lse_strides[0] + head * forward.lse_strides[1] + sequence.start_q as u64;
            let rows = if sequence.seq_q < params.rows { sequence.seq_q } else { params.rows };
            let mut row = thread;
            while row < rows {
                let at = 4 * (first + row as u64);
                let lse: f32 = global::ld_nc((forward.lse + at) as *const f32);
                let delta: f32 = global::ld_nc((params.delta + at) as *const f32);
                // Without keys and sink there is nothing to share.
                if lse != f32::NEG_INFINITY {
                    sum = fma(-ex2((sink - lse) * core::f32::consts::LOG2_E), delta, sum);
                }
                row += DELTA_THREADS;
            }
            batch += 1;
        }
        let sum = warp::reduce_sum::<32>(sum);
        st(dynamic_base() + thread / 32 * 4, sum);
        barrier::syncthreads();
        let mut total = 0.0f32;
        let mut i = 0;
        while i < DELTA_THREADS / 32 {
            let part: f32 = ld(dynamic_base() + 4 * i);
            total += part;
            i += 1;
        }
        if thread == 0 {
            global::st((params.dsinks + 4 * head) as *mut f32, total);
        }
    }
}
