//! Sums, sums of squares, maxima and minima: a warp or a block a row or a split of one.

use super::*;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{barrier::syncthreads, global, kernel, shared::Shared, thread, warp};

/// What lanes accumulate, and how two accumulations join.
pub trait Reduction: Sized {
    type State: Copy;
    const IDENTITY: Self::State;
    fn take(state: Self::State, value: f32, column: u64) -> Self::State;
    /// Takes the first `width` of `values`, which stand at `column` and after it.
    #[inline(always)]
    fn take_vector(mut state: Self::State, values: [f32; LANES], width: usize, column: u64) -> Self::State {
        let mut i = 0;
        while i < width {
            state = Self::take(state, values[i], column + i as u64);
            i += 1;
        }
        state
    }
    fn join(a: Self::State, b: Self::State) -> Self::State;
    unsafe fn shuffle(state: Self::State, lanes: u32) -> Self::State;
    unsafe fn stage(state: Self::State, slot: u32);
    unsafe fn staged(slot: u32) -> Self::State;
    unsafe fn finish(state: Self::State, params: &ReduceParams, item: u64);
}

macro_rules! scalar_reduction {
    ($name:ident, $identity:expr, |$state:ident, $value:ident| $take:expr, |$a:ident, $b:ident| $join:expr) => {
        struct $name;
        impl Reduction for $name {
            type State = f32;
            const IDENTITY: f32 = $identity;
            #[inline(always)]
            fn take($state: f32, $value: f32, _: u64) -> f32 {
                $take
            }
            #[inline(always)]
            fn join($a: f32, $b: f32) -> f32 {
                $join
            }
            #[inline(always)]
            unsafe fn shuffle(state: f32, lanes: u32) -> f32 {
                unsafe { warp::shfl_bfly(state, lanes) }
            }
            #[inline(always)]
            unsafe fn stage(state: f32, slot: u32) {
                unsafe { Shared::<f32>::dynamic(slot * 4).write(state) }
            }
            #[inline(always)]
            unsafe fn staged(slot: u32) -> f32 {
                unsafe { Shared::<f32>::dynamic(slot * 4).read() }
            }
            #[inline(always)]
            unsafe fn finish(state: f32, params: &ReduceParams, item: u64) {
                unsafe { global::st((params.values + item * 4) as *mut f32, state * params.scale) }
            }
        }
    };
}

scalar_reduction!(Sum, 0.0, |state, value| state + value, |a, b| a + b);
scalar_reduction!(
    SumOfSquares,
    0.0,
    |state, value| cuda_std::math::fma(value, value, state),
    |a, b| a + b
);
scalar_reduction!(Max, f32::NEG_INFINITY, |state, value| larger(state, value), |a, b| {
    larger(a, b)
});
scalar_reduction!(Min, f32::INFINITY, |state, value| -larger(-state, -value), |a, b| {
    -larger(-a, -b)
});

/// The maximum, NaN if either is.
#[cfg(not(tier = "sm_75"))]
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    cuda_std::math::fmax_nan(a, b)
}

/// The maximum, NaN if either is; `max.NaN` needs sm_80.
#[cfg(tier = "sm_75")]
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b || a != a { a } else { b }
}

/// Values of 16 bytes of the narrowest type.
pub const LANES: usize = 8;
/// Vectors that a lane loads before it uses the first.
pub const UNROLL: usize = 4;

/// Columns `begin..end` of a row; `aligned` when column 0 lies at a multiple of 16 bytes.
#[derive(Clone, Copy)]
pub struct Range {
    pub begin: u64,
    pub end: u64,
    pub aligned: bool,
}

/// 16 bytes of a row as f32, the first `16 / size` of the array.
#[inline(always)]
pub unsafe fn load16<E: Element>(address: u64) -> [f32; LANES] {
    unsafe {
        if size_of::<E>() == 4 {
            let [a, b, c, d]: [f32; 4] = global::ld_nc_no_allocate(address as *const [f32; 4]);
            [a, b, c, d, 0.0, 0.0, 0.0, 0.0]
        } else {
            E::load8_nc(address as *const E)
        }
    }
}

/// Accumulates elements `begin..end` of a row whose first element is at `row`: lane `lane` of `lanes` takes every
/// `lanes`-th vector of 16 bytes, four at a time so that their loads overlap, then every `lanes`-th of the rest.
#[inline(always)]
unsafe fn accumulate<R: Reduction, E: Element>(row: u64, range: Range, lane: u64, lanes: u64) -> R::State {
    let Range { begin, end, aligned } = range;
    let bytes = size_of::<E>() as u64;
    let width = 16 / bytes;
    let mut states = [R::IDENTITY; UNROLL];
    let vectors = (end - begin) / width;
    let mut vector = lane;
    if aligned {
        while vector + (UNROLL as u64 - 1) * lanes < vectors {
            let mut loaded = [[0.0; LANES]; UNROLL];
            let mut u = 0;
            while u < UNROLL {
                let column = begin + (vector + u as u64 * lanes) * width;
                loaded[u] = unsafe { load16::<E>(row + column * bytes) };
                u += 1;
            }
            u = 0;
            while u < UNROLL {
                let column = begin + (vector + u as u64 * lanes) * width;
                states[u] = R::take_vector(states[u], loaded[u], width as usize, column);
                u += 1;
            }
            vector += UNROLL as u64 * lanes;
        }
    }
    // What is left, and rows at odd addresses: the same lanes and the same states, one vector or element at a time.
    let mut turn = 0;
    while vector < vectors {
        let column = begin + vector * width;
        let mut state = states[0];
        let mut u = 1;
        while u < UNROLL {
            if turn == u {
                state = states[u];
            }
            u += 1;
        }
        let mut values = [0.0; LANES];
        if aligned {
            values = unsafe { load16::<E>(row + column * bytes) };
        } else {
            let mut i = 0;
            while i < width as usize {
                values[i] = unsafe { global::ld_nc((row + (column + i as u64) * bytes) as *const E).to_f32() };
                i += 1;
            }
        }
        state = R::take_vector(state, values, width as usize, column);
        u = 0;
        while u < UNROLL {
            if turn == u {
                states[u] = state;
            }
            u += 1;
        }
        turn = (turn + 1) % UNROLL;
        vector += lanes;
    }
    let rest = begin + vectors * width + lane;
    if rest < end {
        let value = unsafe { global::ld_nc((row + rest * bytes) as *const E).to_f32() };
        states[0] = R::take(states[0], value, rest);
    }
    R::join(R::join(states[0], states[1]), R::join(states[2], states[3]))
}

#[inline(always)]
unsafe fn reduce_warp<R: Reduction>(mut state: R::State) -> R::State {
    let mut distance = 1;
    while distance < 32 {
        let other = unsafe { R::shuffle(state, distance) };
        state = R::join(state, other);
        distance *= 2;
    }
    state
}

/// One warp a split, which `reduce` reduces.
#[inline(always)]
pub unsafe fn short_rows<R: Reduction, E: Element>(params: ReduceParams, reduce: impl Fn(u64, Range) -> R::State) {
    unsafe {
        // The host gives at least one split; said here, the division needs no check.
        core::hint::assert_unchecked(params.splits != 0);
        let lane = thread::lane_id() as u64;
        let mut item = thread::block_idx_x() as u64 * WARPS as u64 + thread::warp_idx() as u64;
        let step = thread::grid_dim_x() as u64 * WARPS as u64;
        while item < params.rows * params.splits {
            let (row, split) = if params.splits == 1 {
                (item, 0)
            } else {
                (item / params.splits, item % params.splits)
            };
            let start = params.x + row * params.row_stride * size_of::<E>() as u64;
            let range = Range {
                begin: split * params.chunk,
                end: split_end(&params, split),
                aligned: params.aligned != 0,
            };
            let state = reduce(start, range);
            if lane == 0 {
                R::finish(state, &params, item);
            }
            item += step;
        }
    }
}

/// The column after the last of a split.
#[inline(always)]
pub fn split_end(params: &ReduceParams, split: u64) -> u64 {
    let begin = split * params.chunk;
    if params.columns - begin < params.chunk {
        params.columns
    } else {
        begin + params.chunk
    }
}

/// One block a split.
#[inline(always)]
unsafe fn long_rows<R: Reduction, E: Element>(params: ReduceParams) {
    unsafe {
        // The host gives at least one split; said here, the division needs no check.
        core::hint::assert_unchecked(params.splits != 0);
        let thread = thread::thread_idx_x();
        let mut item = thread::block_idx_x() as u64;
        while item < params.rows * params.splits {
            let (row, split) = (item / params.splits, item % params.splits);
            let start = params.x + row * params.row_stride * size_of::<E>() as u64;
            let range = Range {
                begin: split * params.chunk,
                end: split_end(&params, split),
                aligned: params.aligned != 0,
            };
            let state = accumulate::<R, E>(start, range, thread as u64, THREADS as u64);
            join_block::<R>(state, &params, item);
            item += thread::grid_dim_x() as u64;
        }
    }
}

/// Joins the lanes of a block; its first thread writes the result.
#[inline(always)]
pub unsafe fn join_block<R: Reduction>(state: R::State, params: &ReduceParams, item: u64) {
    unsafe {
        let state = reduce_warp::<R>(state);
        if thread::lane_id() == 0 {
            R::stage(state, thread::warp_idx());
        }
        syncthreads();
        if thread::thread_idx_x() == 0 {
            let mut total = R::staged(0);
            let mut warp = 1;
            while warp < WARPS {
                total = R::join(total, R::staged(warp));
                warp += 1;
            }
            R::finish(total, params, item);
        }
        // The slots are written again in the next round.
        syncthreads();
    }
}

macro_rules! reductions {
    ($($short:ident $long:ident $reduction:ident $element:ty)*) => {
        kernel! {$(
            /// Rows of up to [`WARP_COLUMNS`] elements, one warp each.
            ///
            /// # Safety
            /// - `x` and the outputs have the extents that the parameters say; outputs overlap nothing.
            #[launch(threads = THREADS, min_blocks = 4, barriers = 0)]
            pub fn $short(params: ReduceParams) {
                short_rows::<$reduction, $element>(params, |row, range| {
                    reduce_warp::<$reduction>(accumulate::<$reduction, $element>(row, range, thread::lane_id() as u64, 32))
                })
            }

            /// Splits of rows, one block each; dynamic shared memory of 16 bytes a warp.
            ///
            /// # Safety
            /// - `x` and the outputs have the extents that the parameters say; outputs overlap nothing.
            #[launch(threads = THREADS, min_blocks = 2, barriers = 2)]
            pub fn $long(params: ReduceParams) {
                long_rows::<$reduction, $element>(params)
            }
        )*}
    };
}

reductions! {
    reduce_short_sum_f32 reduce_long_sum_f32 Sum f32
    reduce_short_sum_f16 reduce_long_sum_f16 Sum F16
    reduce_short_sum_bf16 reduce_long_sum_bf16 Sum Bf16
    reduce_short_sumsq_f32 reduce_long_sumsq_f32 SumOfSquares f32
    reduce_short_sumsq_f16 reduce_long_sumsq_f16 SumOfSquares F16
    reduce_short_sumsq_bf16 reduce_long_sumsq_bf16 SumOfSquares Bf16
    reduce_short_max_f32 reduce_long_max_f32 Max f32
    reduce_short_max_f16 reduce_long_max_f16 Max F16
    reduce_short_max_bf16 reduce_long_max_bf16 Max Bf16
    reduce_short_min_f32 reduce_long_min_f32 Min f32
    reduce_short_min_f16 reduce_long_min_f16 Min F16
    reduce_short_min_bf16 reduce_long_min_bf16 Min Bf16
}
