//! Maximum and sum of exponentials of a row in the shared memory of a cluster, in one pass and one exchange.

use super::{Ordered, Place, SLICE_OWN_AT, SLICE_THREADS, Slice, Vector, WIDTH, add_up, faded_by, finite, map, zip};
use cuda_std::{barrier::syncthreads, math, shared, thread, warp};

/// Combines maxima and sums of exponentials relative to them, and further sums weighted by those: each of two threads.
#[inline(always)]
pub fn combine_powers<const N: usize>(a: [f32; N], b: [f32; N], factor: f32) -> [f32; N] {
    let high = math::fmax(a[0], b[0]);
    let base = finite(high);
    let (left, right) = (faded_by(a[0], base, factor), faded_by(b[0], base, factor));
    let mut out = [high; N];
    let mut i = 1;
    while i < N {
        out[i] = a[i] * left + b[i] * right;
        i += 1;
    }
    out
}

/// Maximum of a slice (0 when there is none), as it is subtracted, and sum of the powers of 2 of differences times `factor`, over the
/// cluster: the first exchange of the kernel. `columns` are those of the row.
///
/// # Safety
/// - All threads of the cluster come here together; the slice was asked for, with −∞ beyond.
#[inline(always)]
pub unsafe fn join_powers<E: Ordered, const N: usize>(
    place: Place,
    slice: &Slice,
    columns: u32,
    factor: f32,
) -> (f32, f32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        // The length of the row alone decides on the order of sums.
        let own = if columns % WIDTH != 0 {
            powers_in_place::<E, N>(slice, factor)
        } else if slice.whole() {
            powers::<E, N, false>(slice, factor)
        } else {
            powers::<E, N, true>(slice, factor)
        };
        let none = [f32::NEG_INFINITY, 0.0];
        let [high, total] = place.join::<2, 0>(own, none, |a, b| combine_powers(a, b, factor));
        (finite(high), total)
    }
}

/// Of this thread's elements. The sum is corrected as the maximum rises from part to part.
#[inline(always)]
unsafe fn powers<E: Ordered, const N: usize, const SHIFTED: bool>(slice: &Slice, factor: f32) -> [f32; 2] {
    let (mut high, mut total) = (f32::NEG_INFINITY, 0.0);
    let mut base = 0;
    while base < slice.columns {
        // SAFETY: forwarded to the caller.
        let held = unsafe {
            slice.wait::<E>(base);
            slice.part::<E, N, SHIFTED>(base, f32::NEG_INFINITY)
        };
        let higher = math::fmax(high, E::greatest::<N>(&held));
        let least = finite(higher);
        let mut sum = 0.0;
        let mut k = 0;
        while k < N {
            sum += add_up(map(E::unpack8(held[k]), |x| math::ex2((x - least) * factor)));
            k += 1;
        }
        total = total * faded_by(high, least, factor) + sum;
        high = higher;
        base += const { Slice::step::<N>() };
    }
    [high, total]
}

/// Of this thread's elements, relative to the slice's maximum, of rows whose vectors lie anywhere: each is taken as it lies in
/// memory, and each place within a vector has a sum of its own. Thread `t` adds up the columns `8(t + 256k) + i`, for each `i` in the
/// order of `k`; where the slice is shifted, places of this thread and of the next have those sums.
#[inline(always)]
unsafe fn powers_in_place<E: Ordered, const N: usize>(slice: &Slice, factor: f32) -> [f32; 2] {
    let shift = slice.shifted_by::<E>();
    let end = shift + slice.columns;
    let own = shared::dynamic_base() + SLICE_OWN_AT;
    let warps = const { SLICE_THREADS / 32 };
    let (lane, warp) = (thread::lane_id(), thread::warp_idx());
    // SAFETY: forwarded to the caller; each place is written once.
    unsafe {
        let mut high = f32::NEG_INFINITY;
        let mut base = 0;
        while base + const { Slice::step::<N>() } <= end {
            slice.wait::<E>(base);
            let held = slice.part_in_place::<E, N>(base);
            high = math::fmax(high, E::greatest::<N>(&held));
            base += const { Slice::step::<N>() };
        }
        // The rest vector by vector: half of the threads may have one less.
        let rest = base;
        if rest < end {
            slice.wait::<E>(if rest < slice.columns { rest } else { slice.columns - 1 });
        }
        while Slice::column(base, 0) < end {
            high = math::fmax(high, E::greatest::<1>(&slice.part_in_place::<E, 1>(base)));
            base += const { Slice::step::<1>() };
        }
        high = warp::reduce_max::<32>(high);
        let highs = own + warps * 32;
        if lane == 0 {
            shared::st(highs + warp * 4, high);
        }
        syncthreads();
        high = warp::reduce_max::<{ SLICE_THREADS / 32 }>(shared::ld(highs + (lane & (warps - 1)) * 4));
        let least = finite(high);
        let mut sums: Vector = [0.0; 8];
        let mut add = #[inline(always)]
        |held: E::Packed| {
            let powers = map(E::unpack8(held), |x| math::ex2((x - least) * factor));
            sums = zip(sums, powers, |sum, power| sum + power);
        };
        let mut base = 0;
        while base < rest {
            let held = slice.part_in_place::<E, N>(base);
            let mut k = 0;
            while k < N {
                add(held[k]);
                k += 1;
            }
            base += const { Slice::step::<N>() };
        }
        while Slice::column(base, 0) < end {
            let [held] = slice.part_in_place::<E, 1>(base);
            add(held);
            base += const { Slice::step::<1>() };
        }
        if shift == 0 {
            return [high, add_up(sums)];
        }
        let mut next: Vector = [0.0; 8];
        let mut i = 0;
        while i < 8 {
            next[i] = warp::shfl_down(sums[i], 1);
            i += 1;
        }
        if lane == 0 {
            let at = own + warp * 32;
            shared::st(at, [sums[0], sums[1], sums[2], sums[3]]);
            shared::st(at + 16, [sums[4], sums[5], sums[6], sums[7]]);
        }
        syncthreads();
        if lane == 31 {
            let at = own + (warp + 1 & (warps - 1)) * 32;
            let [a, b]: [[f32; 4]; 2] = [shared::ld(at), shared::ld(at + 16)];
            next = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
        }
        let total = match shift {
            1 => shifted::<1>(sums, next),
            2 => shifted::<2>(sums, next),
            3 => shifted::<3>(sums, next),
            4 => shifted::<4>(sums, next),
            5 => shifted::<5>(sums, next),
            6 => shifted::<6>(sums, next),
            _ => shifted::<7>(sums, next),
        };
        [high, total]
    }
}

/// The sum of eight values from place `BY` on.
#[inline(always)]
fn shifted<const BY: usize>(sums: Vector, next: Vector) -> f32 {
    let mut values = sums;
    let mut i = 0;
    while i < 8 {
        values[i] = if i + BY < 8 {
            sums[(i + BY) & 7]
        } else {
            next[(i + BY) & 7]
        };
        i += 1;
    }
    add_up(values)
}
