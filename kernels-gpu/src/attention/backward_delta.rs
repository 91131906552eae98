//! Before the backward kernels: `Δ = rowsum(dO ∘ O)`, and what the kernel of all gradients finds ready: statistics by
//! tiles, counters at 0. After them: `d sink = −Σ exp(sink − LSE)·Δ`.

#[cfg(not(tier = "sm_75"))]
use super::backward_turns as turns;
use super::{
    params::{BackwardParams, DELTA_ROWS, DELTA_THREADS, flags},
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

/// `LANES` lanes take a row of at most `8·LANES` elements, and [`DELTA_ROWS`] rows one after the other, whose loads are
/// under way together. `STAGED` element types have kernels of all gradients, which find statistics by tiles.
#[inline(always)]
unsafe fn delta<E: Element, const LANES: u32, const STAGED: bool>(params: &BackwardParams) {
    let forward = &params.attention;
    let thread = thread::thread_idx_x();
    let rows = DELTA_THREADS / LANES;
    #[cfg(tier = "sm_90a")]
    // SAFETY: the kernel of all gradients waits before it reads what this one writes.
    unsafe {
        cuda_std::grid_dependency::launch_dependents();
    }
    // SAFETY: `params` are those of the launch; all lanes meet the shuffles.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), forward, rows * DELTA_ROWS);
        let (first, column) = (tile.row + thread / LANES, thread % LANES * 8);
        let sequence = if forward.flags & flags::VARLEN != 0 {
            0
        } else {
            tile.batch as u64
        };
        let head = tile.head as u64;
        let place = sequence * forward.lse_strides[0] + head * forward.lse_strides[1];
        let mut out = [[0.0; 8]; DELTA_ROWS as usize];
        let mut grad = [[0.0; 8]; DELTA_ROWS as usize];
        let mut lse = [0.0; DELTA_ROWS as usize];
        if tile.row < tile.seq_q && column < forward.value_dim {
            let mut i = 0;
            while i < DELTA_ROWS {
                // A row that does not exist is read as the last one: branches would part the loads.
                let row = first + i * rows;
                let row = if row < tile.seq_q { row } else { tile.seq_q - 1 };
                let token = (tile.start_q + row) as u64;
                let load = |address: u64, s: &[u64; 3]| {
                    let at = sequence * s[0] + token * s[1] + head * s[2] + column as u64;
                    E::load8_nc((address as *const E).add(at as usize))
                };
                out[i as usize] = load(forward.out, &forward.out_strides);
                grad[i as usize] = load(params.grad_out, &params.grad_out_strides);
                if STAGED && cfg!(not(tier = "sm_75")) {
                    lse[i as usize] = global::ld_nc((forward.lse + 4 * (place + token)) as *const f32);
                }
                i += 1;
            }
        }
        let mut i = 0;
        while i < DELTA_ROWS {
            let row = first + i * rows;
            let (out, grad) = (&out[i as usize], &grad[i as usize]);
            let mut sum = 0.0;
            let mut j = 0;
            while j < 8 {
                sum = fma(out[j], grad[j], sum);
                j += 1;
            }
            let sum = warp::reduce_sum::<LANES>(sum);
            let at = place + (tile.start_q + row) as u64;
            if row < tile.seq_q && column == 0 {
                global::st((params.delta + 4 * at) as *mut f32, sum);
            }
            #[cfg(not(tier = "sm_75"))]
            if STAGED && params.statistics != 0 && column == 0 {
                stage(params, &tile, row, lse[i as usize], sum);
            }
            i += 1;
        }
    }
}

/// Puts base-2 LSE and Δ of a row where the kernel of all gradients copies them from, such that P is 0 where there is no
/// row or it sees no key; clears the counters.
#[cfg(not(tier = "sm_75"))]
#[inline(always)]
unsafe fn stage(params: &BackwardParams, tile: &Tile, row: u32, natural: f32, sum: f32) {
    let rows = params.query_tile;
    // SAFETY: `params` are those of the launch; one thread a row, of which there are whole tiles.
    unsafe {
        core::hint::assert_unchecked(rows != 0);
        let (of, within) = (row / rows, row % rows);
        if of >= params.query_tiles {
            return;
        }
        if within == 0 {
            let counter = turns::counter(params, tile.batch, tile.head) + of;
            global::st(turns::address(params, counter), 0);
            if counter == 0 {
                global::st(params.next as *mut u32, 0);
            }
        }
        // Tiles beyond a packed sequence are others'.
        if of * rows >= tile.seq_q {
            return;
        }
        let (mut lse, mut delta) = (f32::INFINITY, 0.0);
        if row < tile.seq_q && natural != f32::NEG_INFINITY {
            lse = natural * core::f32::consts::LOG2_E;
            delta = sum;
        }
        let place = turns::place(params, tile.batch, tile.start_q, tile.head) + of;
        let to = params.statistics + 4 * (place as u64 * 2 * rows as u64 + within as u64);
        global::st(to as *mut f32, lse);
        global::st((to + 4 * rows as u64) as *mut f32, delta);
    }
}

macro_rules! deltas {
    ($($name:ident: $element:ident, $lanes:literal lanes, $blocks:literal blocks, staged $staged:literal;)*) => {$(
        kernel! {
            /// `Δ = rowsum(dO ∘ O)`; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; a grid of one block a tile of `params::delta_rows` rows.
            #[launch(threads = 256, min_blocks = $blocks, param_align = 64)]
            pub fn $name(params: BackwardParams) {
                delta::<$element, $lanes, $staged>(&params)
            }
        }
    )*};
}

deltas! {
    attention_backward_delta_f32_d64: f32, 8 lanes, 3 blocks, staged false;
    attention_backward_delta_f32_d128: f32, 16 lanes, 3 blocks, staged false;
    attention_backward_delta_f32_d256: f32, 32 lanes, 3 blocks, staged false;
    attention_backward_delta_f16_d64: F16, 8 lanes, 5 blocks, staged true;
    attention_backward_delta_f16_d128: F16, 16 lanes, 5 blocks, staged true;
    attention_backward_delta_f16_d256: F16, 32 lanes, 5 blocks, staged true;
}
#[cfg(not(tier = "sm_75"))]
deltas! {
    attention_backward_delta_bf16_d64: Bf16, 8 lanes, 5 blocks, staged true;
    attention_backward_delta_bf16_d128: Bf16, 16 lanes, 5 blocks, staged true;
    attention_backward_delta_bf16_d256: Bf16, 32 lanes, 5 blocks, staged true;
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
