//! Maximum and sum of exponentials of a row in the shared memory of a cluster, in one pass and one exchange.

use super::{Ordered, Place, Slice, add_up, faded_by, finite, map};
use cuda_std::math;

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
/// cluster: the first exchange of the kernel.
///
/// # Safety
/// - All threads of the cluster come here together; the slice was asked for, with −∞ beyond.
#[inline(always)]
pub unsafe fn join_powers<E: Ordered, const N: usize>(place: Place, slice: &Slice, factor: f32) -> (f32, f32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let own = if slice.whole() {
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
