//! Norms of long rows, in the shared memory of the blocks of a cluster: each input is read once.

use super::{NormParams, device::Statistics};
use crate::row::*;

/// One row.
///
/// # Safety
/// - The tensors have the extents that the parameters say; dynamic shared memory of one slice, of two with a residual.
#[inline(always)]
pub unsafe fn forward<E: Ordered, const N: usize>(p: NormParams) {
    let bytes = size_of::<E>() as u64;
    // SAFETY: forwarded to the caller.
    unsafe {
        let place = Place::begin();
        let x = Slice::new::<E>(place, 0, p.x + place.row * p.x_stride * bytes, p.columns);
        // Without a residual never read.
        let mut residual = x;
        if p.residual == 0 {
            Slice::ask::<E, 1>([&x], 0.0);
        } else {
            let address = p.residual + place.row * p.residual_stride * bytes;
            residual = Slice::new::<E>(place, 1, address, p.columns);
            Slice::ask::<E, 2>([&x, &residual], 0.0);
        }
        if x.whole() && residual.whole() && p.aligned != 0 {
            row::<E, N, false>(&p, place, x, residual);
        } else {
            row::<E, N, true>(&p, place, x, residual);
        }
    }
}

/// `SHIFTED` where rows are not whole vectors at multiples of 16 bytes.
#[inline(always)]
unsafe fn row<E: Ordered, const N: usize, const SHIFTED: bool>(
    p: &NormParams,
    place: Place,
    x: Slice,
    residual: Slice,
) {
    let two = p.residual != 0;
    // This thread's part from `base` on. Without shifts the sum is found where the input was, once there.
    let read = #[inline(always)]
    |base: u32, first: bool| {
        // SAFETY: the part has been waited for.
        unsafe {
            let mut part = x.part::<E, N, SHIFTED>(base, 0.0);
            if two && (first || SHIFTED) {
                let other = residual.part::<E, N, SHIFTED>(base, 0.0);
                add_parts::<E, N>(&mut part, &other);
            }
            part
        }
    };
    let at = |k: usize, base: u32| Slice::column(base, k);
    // Zeros where a vector goes on beyond the row; whole vectors beyond are zeros already.
    let real = |v: Vector, column: u32| if SHIFTED { inside(v, column, x.columns, 0.0) } else { v };
    let stored = Row {
        address: p.sum + (place.row * p.sum_stride + x.first as u64) * size_of::<E>() as u64,
        columns: x.columns,
        aligned: !SHIFTED,
    };
    // SAFETY: forwarded to the caller; each thread reads again what it has replaced.
    unsafe {
        let mut sum = 0.0;
        let mut base = 0;
        while base < x.columns {
            x.wait::<E>(base);
            let part = read(base, true);
            let mut k = 0;
            while k < N {
                let column = at(k, base);
                let s = real(E::unpack8(part[k]), column);
                if two && column < x.columns {
                    if p.sum != 0 {
                        stored.store::<E>(column, s);
                    }
                    if !SHIFTED {
                        x.replace::<E>(column, s);
                    }
                }
                sum += if p.centered != 0 { add_up(s) } else { squares(s) };
                k += 1;
            }
            base += const { Slice::step::<N>() };
        }
        let [sum] = place.sums::<1, 0>([sum]);
        let statistics = if p.centered != 0 {
            let mean = sum * p.reciprocal;
            let (mut left, mut square) = (0.0, 0.0);
            let mut base = 0;
            while base < x.columns {
                let part = read(base, false);
                let mut k = 0;
                while k < N {
                    let column = at(k, base);
                    let d = real(map(E::unpack8(part[k]), |s| s - mean), column);
                    left = add_if(left, add_up(d), column < x.columns);
                    square = add_if(square, squares(d), column < x.columns);
                    k += 1;
                }
                base += const { Slice::step::<N>() };
            }
            let [left, square] = place.sums::<2, 1>([left, square]);
            let rest = left * p.reciprocal;
            Statistics::of(mean, rest, square * p.reciprocal - rest * rest, p.epsilon)
        } else {
            Statistics::of(0.0, 0.0, sum * p.reciprocal, p.epsilon)
        };
        let shared = |address: u64| Row {
            address: address + x.first as u64 * size_of::<E>() as u64,
            columns: x.columns,
            aligned: !SHIFTED,
        };
        let y = shared(p.y + place.row * p.y_stride * size_of::<E>() as u64);
        let (weight, bias) = (shared(p.weight), shared(p.bias));
        let mut base = 0;
        while base < x.columns {
            let part = read(base, false);
            let mut k = 0;
            while k < N {
                let column = at(k, base);
                if column < x.columns {
                    let unit = map(E::unpack8(part[k]), |s| statistics.unit(s));
                    let given = [p.weight != 0, p.bias != 0];
                    let (w, b) = (|| weight.load_again::<E>(column), || bias.load_again::<E>(column));
                    let out = affine(unit, given, w, b);
                    y.store::<E>(column, out);
                }
                k += 1;
            }
            base += const { Slice::step::<N>() };
        }
    }
}
