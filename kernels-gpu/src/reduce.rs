//! Reductions of rows to one value: sum, sum of squares, maximum, minimum, index of the maximum.
//!
//! A row is cut into *splits* of `chunk` elements; one warp (short rows, and every argmax) or one block (long rows) reduces
//! a split and writes one partial result, and further launches reduce the partials. Which lane takes which element depends on
//! the element's column alone, so a row's bits depend neither on other rows nor on its address. Accumulation is f32:
//! lanes over strided vectors, then butterflies in the warp, then a tree over warps. A NaN propagates; of equal
//! maxima the first wins.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Warps of a block, and rows that a block of the short-row kernels takes at a time.
pub const WARPS: u32 = THREADS / 32;
/// Longest row that one warp reduces.
pub const WARP_COLUMNS: u64 = 4096;
/// Elements of a split of longer rows. Fixed, so that a result does not depend on the device.
pub const CHUNK: u64 = 32_768;
/// Elements of the shortest and of the longest split of an argmax, which no choice of splits changes. The shortest are for
/// inputs that would leave warps without work.
pub const ARGMAX_CHUNKS: [u64; 2] = [1024, 8192];
/// Partial maxima that a block joins.
pub const MERGED: u64 = 1024;

kernel_params! {
    /// Arguments of the `reduce_*` kernels.
    pub struct ReduceParams {
        /// Values, `rows` rows of `columns` elements.
        pub x: u64,
        /// Index of each value, i64, for `reduce_argmax_merge`; else unused.
        pub x_indices: u64,
        /// Results, f32, `rows × splits`; 0 when only indices are wanted.
        pub values: u64,
        /// Columns of the maxima, i64, `rows × splits`; unused by other kinds.
        pub indices: u64,
        /// Rows.
        pub rows: u64,
        /// Elements of a row.
        pub columns: u64,
        /// Elements from one row to the next.
        pub row_stride: u64,
        /// Elements of a split, a multiple of 8.
        pub chunk: u64,
        /// Splits of a row.
        pub splits: u64,
        /// What results are multiplied by (sums only).
        pub scale: f32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{barrier::syncthreads, global, kernel, shared::Shared, thread, warp};

    /// What lanes accumulate, and how two accumulations join.
    trait Reduction: Sized {
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
    fn larger(a: f32, b: f32) -> f32 {
        cuda_std::math::fmax_nan(a, b)
    }

    /// The maximum, NaN if either is; `max.NaN` needs sm_80.
    #[cfg(tier = "sm_75")]
    #[inline(always)]
    fn larger(a: f32, b: f32) -> f32 {
        if a > b || a != a { a } else { b }
    }

    /// Values of 16 bytes of the narrowest type.
    const LANES: usize = 8;
    /// Vectors that a lane loads before it uses the first.
    const UNROLL: usize = 4;

    /// Columns `begin..end` of a row; `aligned` when column 0 lies at a multiple of 16 bytes.
    #[derive(Clone, Copy)]
    struct Range {
        begin: u64,
        end: u64,
        aligned: bool,
    }

    /// 16 bytes of a row as f32, the first `16 / size` of the array.
    #[inline(always)]
    unsafe fn load16<E: Element>(address: u64) -> [f32; LANES] {
        unsafe {
            if size_of::<E>() == 4 {
                let [a, b, c, d]: [f32; 4] = global::ld_nc_no_allocate(address as *const [f32; 4]);
                [a, b, c, d, 0.0, 0.0, 0.0, 0.0]
            } else {
                E::load8_nc(address as *const E)
            }
        }
    }

    struct Argmax;

    /// Whether `(value, column)` comes before `(other, other_column)`: NaN first, then larger, then leftmost.
    #[inline(always)]
    fn before(value: f32, column: u64, other: f32, other_column: u64) -> bool {
        let (nan, other_nan) = (value != value, other != other);
        let equal = value == other || (nan && other_nan);
        (nan && !other_nan) || (!other_nan && value > other) || (equal && column < other_column)
    }

    impl Reduction for Argmax {
        type State = (f32, u64);
        const IDENTITY: (f32, u64) = (f32::NEG_INFINITY, u64::MAX);
        #[inline(always)]
        fn take(state: Self::State, value: f32, column: u64) -> Self::State {
            Self::join(state, (value, column))
        }
        #[inline(always)]
        fn join(a: Self::State, b: Self::State) -> Self::State {
            if before(b.0, b.1, a.0, a.1) { b } else { a }
        }
        #[inline(always)]
        unsafe fn shuffle(state: Self::State, lanes: u32) -> Self::State {
            unsafe {
                let low = warp::shfl_bfly(state.1 as u32, lanes);
                let high = warp::shfl_bfly((state.1 >> 32) as u32, lanes);
                (warp::shfl_bfly(state.0, lanes), (high as u64) << 32 | low as u64)
            }
        }
        #[inline(always)]
        unsafe fn stage(state: Self::State, slot: u32) {
            unsafe {
                Shared::<f32>::dynamic(slot * 16).write(state.0);
                Shared::<u64>::dynamic(slot * 16 + 8).write(state.1);
            }
        }
        #[inline(always)]
        unsafe fn staged(slot: u32) -> Self::State {
            unsafe {
                (
                    Shared::<f32>::dynamic(slot * 16).read(),
                    Shared::<u64>::dynamic(slot * 16 + 8).read(),
                )
            }
        }
        #[inline(always)]
        unsafe fn finish(state: Self::State, params: &ReduceParams, item: u64) {
            unsafe {
                global::st((params.indices + item * 8) as *mut u64, state.1);
                if params.values != 0 {
                    global::st((params.values + item * 4) as *mut f32, state.0);
                }
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

    /// The maximum of a warp's elements and its column, in all lanes.
    ///
    /// The loop keeps only the maximum and the first group of [`UNROLL`] vectors that reached it, which costs one
    /// instruction an element. The warp then looks for the column of its maximum in the groups of the lanes that hold it;
    /// groups of a lane ascend, so the first one has its leftmost.
    #[inline(always)]
    unsafe fn argmax_of_warp<E: Element>(row: u64, range: Range) -> (f32, u64) {
        let Range { begin, end, aligned } = range;
        let bytes = size_of::<E>() as u64;
        let width = 16 / bytes as u32;
        let row = row + begin * bytes;
        // A split is short enough for 32 bits.
        let columns = (end - begin) as u32;
        let vectors = columns / width;
        let lane = thread::lane_id();
        let (mut best, mut group) = (f32::NEG_INFINITY, lane);
        let mut vector = lane;
        while vector < vectors {
            let mut top = f32::NEG_INFINITY;
            let mut u = 0;
            if aligned && vector + (UNROLL as u32 - 1) * 32 < vectors {
                let mut loaded = [[0.0; LANES]; UNROLL];
                while u < UNROLL {
                    loaded[u] = unsafe { load16::<E>(row + ((vector + u as u32 * 32) * 16) as u64) };
                    u += 1;
                }
                u = 0;
                while u < UNROLL {
                    let mut i = 0;
                    while i < width as usize {
                        top = larger(top, loaded[u][i]);
                        i += 1;
                    }
                    u += 1;
                }
            } else {
                let mut at = vector;
                while at < vectors && at < vector + UNROLL as u32 * 32 {
                    let mut i = 0;
                    while i < width {
                        let address = row + (at * width + i) as u64 * bytes;
                        top = larger(top, unsafe { global::ld_nc(address as *const E).to_f32() });
                        i += 1;
                    }
                    at += 32;
                }
            }
            // A NaN wins once and stays: nothing is greater than it, and it is not equal to itself.
            let wins = best == best && !(top <= best);
            group = if wins { vector } else { group };
            best = if wins { top } else { best };
            vector += UNROLL as u32 * 32;
        }
        // Elements that no vector has, one a lane.
        let rest = vectors * width + lane;
        let mut last = f32::NEG_INFINITY;
        if vectors * width < columns && rest < columns {
            last = unsafe { global::ld_nc((row + rest as u64 * bytes) as *const E).to_f32() };
        }
        let mut top = larger(best, last);
        let mut distance = 1;
        while distance < 32 {
            top = larger(top, unsafe { warp::shfl_bfly(top, distance) });
            distance *= 2;
        }
        let is_top = |value: f32| value == top || (value != value && top != top);
        let mut column = u32::MAX;
        if rest < columns && is_top(last) {
            column = rest;
        }
        // Usually one lane holds the maximum; the whole warp looks through its group, one element a lane.
        let mut holders = unsafe { warp::vote_ballot(warp::FULL, vectors > lane && is_top(best)) };
        while holders != 0 {
            let holder = holders.trailing_zeros();
            holders &= holders - 1;
            let at = unsafe { warp::shfl_idx(group, holder) } + lane / width * 32;
            if lane < UNROLL as u32 * width && at < vectors {
                let candidate = at * width + lane % width;
                let value = unsafe { global::ld_nc((row + candidate as u64 * bytes) as *const E).to_f32() };
                if is_top(value) && candidate < column {
                    column = candidate;
                }
            }
        }
        (top, begin + unsafe { least(column) } as u64)
    }

    /// The smallest value of a warp.
    #[cfg(not(tier = "sm_75"))]
    #[inline(always)]
    unsafe fn least(value: u32) -> u32 {
        // SAFETY: callers bring whole warps.
        unsafe { warp::redux_min_u32(warp::FULL, value) }
    }

    /// The smallest value of a warp; `redux` needs sm_80.
    #[cfg(tier = "sm_75")]
    #[inline(always)]
    unsafe fn least(value: u32) -> u32 {
        // SAFETY: as above.
        unsafe { warp::reduce::<u32, 32>(value, |a, b| if a < b { a } else { b }) }
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
    unsafe fn short_rows<R: Reduction, E: Element>(params: ReduceParams, reduce: impl Fn(u64, Range) -> R::State) {
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
    fn split_end(params: &ReduceParams, split: u64) -> u64 {
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
    unsafe fn join_block<R: Reduction>(state: R::State, params: &ReduceParams, item: u64) {
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

    /// Blocks of an argmax that an SM shall hold: its warps wait twice a split, the second time for few bytes.
    const ARGMAX_BLOCKS: u32 = if cfg!(tier = "sm_75") { 4 } else { 5 };

    macro_rules! argmax {
        ($($name:ident $element:ty)*) => {
            kernel! {$(
                /// Splits of rows, one warp each: no result depends on which lane sees what, so splits may be short.
                ///
                /// # Safety
                /// - `x` and the outputs have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = THREADS, min_blocks = ARGMAX_BLOCKS, barriers = 0)]
                pub fn $name(params: ReduceParams) {
                    short_rows::<Argmax, $element>(params, |row, range| argmax_of_warp::<$element>(row, range))
                }
            )*}
        };
    }

    argmax! {
        reduce_argmax_f32 f32
        reduce_argmax_f16 F16
        reduce_argmax_bf16 Bf16
    }

    kernel! {
        /// Joins the partial maxima of each split of each row: `x` holds values, `x_indices` their columns.
        ///
        /// # Safety
        /// - As for the other reductions; `x_indices` is as long as `x`.
        #[launch(threads = THREADS, barriers = 2)]
        pub fn reduce_argmax_merge(params: ReduceParams) {
            // The host gives at least one split.
            core::hint::assert_unchecked(params.splits != 0);
            let mut item = thread::block_idx_x() as u64;
            while item < params.rows * params.splits {
                let (row, split) = (item / params.splits, item % params.splits);
                let mut state = Argmax::IDENTITY;
                let end = split_end(&params, split);
                let mut column = split * params.chunk + thread::thread_idx_x() as u64;
                while column < end {
                    let at = row * params.row_stride + column;
                    let value = global::ld_nc((params.x + at * 4) as *const f32);
                    let index = global::ld_nc((params.x_indices + at * 8) as *const u64);
                    state = Argmax::join(state, (value, index));
                    column += THREADS as u64;
                }
                join_block::<Argmax>(state, &params, item);
                item += thread::grid_dim_x() as u64;
            }
        }
    }
}
