//! The maximum and its column: NaN first, then the larger, then the leftmost.

use super::rows::{LANES, Range, Reduction, UNROLL, join_block, larger, load16, short_rows, split_end};
use super::*;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{global, kernel, shared::Shared, thread, warp};

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

/// The key of a value, which integers order as [`larger`] does: NaN, here the canonical one, comes last.
#[inline(always)]
fn key(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) & i32::MAX)
}

/// The greatest of a warp's values; NaN if one is.
#[cfg(not(tier = "sm_75"))]
#[inline(always)]
unsafe fn greatest(value: f32) -> f32 {
    // SAFETY: callers bring whole warps.
    let top = unsafe { warp::redux_max_i32(warp::FULL, key(value)) };
    // The key of a key is the value.
    f32::from_bits(key(f32::from_bits(top as u32)) as u32)
}

/// The greatest of a warp's values; `redux` needs sm_80.
#[cfg(tier = "sm_75")]
#[inline(always)]
unsafe fn greatest(value: f32) -> f32 {
    // SAFETY: as above.
    unsafe { warp::reduce::<f32, 32>(value, larger) }
}

/// 16 bytes of a row.
type Words = [u32; 4];

/// The values of 16 bytes, the first `16 / size` of the array.
#[inline(always)]
fn values<E: Element>(words: Words) -> [f32; LANES] {
    if size_of::<E>() == 4 {
        let [a, b, c, d] = words.map(f32::from_bits);
        [a, b, c, d, 0.0, 0.0, 0.0, 0.0]
    } else {
        E::unpack8(E::of_words(words))
    }
}

/// The vectors of a row that lanes hold, `lane + 32k`, −∞ where it has none.
#[inline(always)]
unsafe fn held<E: Element>(row: u64, vectors: u32) -> [Words; UNROLL] {
    let mut loaded = [[E::pack(f32::NEG_INFINITY, f32::NEG_INFINITY); 4]; UNROLL];
    let mut u = 0;
    while u < UNROLL {
        let vector = thread::lane_id() + u as u32 * 32;
        if vector < vectors {
            loaded[u] = unsafe { global::ld_nc_no_allocate((row + (vector * 16) as u64) as *const Words) };
        }
        u += 1;
    }
    loaded
}

/// The maximum of a row that a warp holds, and its column, in all lanes.
#[inline(always)]
unsafe fn argmax_of_held<E: Element>(held: [Words; UNROLL]) -> (f32, u64) {
    let width = 16 / size_of::<E>();
    let mut best = f32::NEG_INFINITY;
    let mut u = 0;
    while u < UNROLL {
        let values = values::<E>(held[u]);
        let mut i = 0;
        while i < width {
            best = larger(best, values[i]);
            i += 1;
        }
        u += 1;
    }
    // SAFETY: the warp is together.
    let top = unsafe { greatest(best) };
    let mut column = u32::MAX;
    if best == top || best != best {
        // Backwards: the leftmost is the last to be set.
        let first = thread::lane_id() * width as u32;
        let mut u = UNROLL;
        while u > 0 {
            u -= 1;
            let values = values::<E>(held[u]);
            let mut i = width;
            while i > 0 {
                i -= 1;
                let value = values[i];
                if value == top || value != value {
                    column = first + (u * 32 * width + i) as u32;
                }
            }
        }
    }
    (top, unsafe { least(column) } as u64)
}

/// As [`short_rows`], of whole rows of up to `UNROLL` vectors a lane at multiples of 16 bytes: the row after this one is on its
/// way while this one is looked at.
#[inline(always)]
unsafe fn held_rows<E: Element>(params: ReduceParams) {
    unsafe {
        let bytes = size_of::<E>() as u64;
        let vectors = (params.columns * bytes / 16) as u32;
        let step = thread::grid_dim_x() as u64 * WARPS as u64;
        let mut item = thread::block_idx_x() as u64 * WARPS as u64 + thread::warp_idx() as u64;
        let start = |item: u64| params.x + item * params.row_stride * bytes;
        let mut next = [[0; 4]; UNROLL];
        if item < params.rows {
            next = held::<E>(start(item), vectors);
        }
        while item < params.rows {
            let current = next;
            if item + step < params.rows {
                next = held::<E>(start(item + step), vectors);
            }
            let state = argmax_of_held::<E>(current);
            if thread::lane_id() == 0 {
                Argmax::finish(state, &params, item);
            }
            item += step;
        }
    }
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

/// Bytes of the rows that a warp holds whole. Shorter ones leave most of its registers idle, and are left to the loop.
const HELD_BYTES: core::ops::RangeInclusive<u64> = 1536..=(UNROLL as u64 * 32 * 16);

macro_rules! argmax {
    ($($name:ident $element:ty, $blocks:literal blocks;)*) => {
        kernel! {$(
            /// Splits of rows, one warp each: no result depends on which lane sees what, so splits may be short.
            ///
            /// # Safety
            /// - `x` and the outputs have the extents that the parameters say; outputs overlap nothing.
            #[launch(threads = THREADS, min_blocks = $blocks, barriers = 0)]
            pub fn $name(params: ReduceParams) {
                let bytes = params.columns * size_of::<$element>() as u64;
                if params.splits == 1 && params.aligned != 0 && HELD_BYTES.contains(&bytes) && bytes % 16 == 0 {
                    held_rows::<$element>(params)
                } else {
                    short_rows::<Argmax, $element>(params, |row, range| argmax_of_warp::<$element>(row, range))
                }
            }
        )*}
    };
}

// As many blocks an SM as registers allow: their warps have the next row on its way, or wait twice a split.
argmax! {
    reduce_argmax_f32 f32, 4 blocks;
    reduce_argmax_f16 F16, 3 blocks;
    reduce_argmax_bf16 Bf16, 4 blocks;
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
