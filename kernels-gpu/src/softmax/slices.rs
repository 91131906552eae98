//! Softmax of long rows without a mask and with a positive scale, and its gradient, in the shared memory of the blocks of a
//! cluster: each input is read once.

use super::SoftmaxParams;
use crate::row::*;
use cuda_std::math;

/// One row.
///
/// # Safety
/// - The tensors have the extents that the parameters say; there is no mask, the scale is positive; dynamic shared
///   memory of one slice.
#[inline(always)]
pub unsafe fn forward<E: Ordered, const N: usize>(p: SoftmaxParams) {
    let scale = p.scale * LOG2_E;
    let bytes = size_of::<E>() as u64;
    // SAFETY: forwarded to the caller.
    unsafe {
        let place = Place::begin();
        let slice = Slice::new::<E>(place, 0, p.x + place.row * p.x_stride * bytes, p.columns);
        Slice::ask::<E, 1>([&slice], f32::NEG_INFINITY);
        if p.ahead != 0 && place.row + (p.ahead as u64) < p.rows {
            slice.ask_l2::<E>(p.ahead as u64 * p.x_stride * bytes);
        }
        let (high, total) = join_powers::<E, N>(place, &slice, p.columns, scale);
        let y = p.y + place.row * p.y_stride * bytes;
        if p.log != 0 {
            let log_total = math::lg2(total) * LN_2;
            slice.each_in_place::<E, N, true>(y, |_, x| {
                if total == 0.0 {
                    return [f32::NEG_INFINITY; 8];
                }
                map(x, |x| math::fma(x - high, p.scale, -log_total))
            });
        } else {
            let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
            slice.each_in_place::<E, N, true>(y, |_, x| map(x, |x| math::ex2((x - high) * scale) * factor));
        }
    }
}

/// The gradient of one row of softmax.
///
/// # Safety
/// - As for [`forward`], with two slices.
#[inline(always)]
pub unsafe fn backward<E: Ordered, const N: usize>(p: SoftmaxParams) {
    let bytes = size_of::<E>() as u64;
    // SAFETY: forwarded to the caller.
    unsafe {
        let place = Place::begin();
        let x = Slice::new::<E>(place, 0, p.x + place.row * p.x_stride * bytes, p.columns);
        let dy = Slice::new::<E>(place, 1, p.dy + place.row * p.dy_stride * bytes, p.columns);
        // What the row does not have weighs nothing, whatever its gradient.
        Slice::ask::<E, 2>([&x, &dy], f32::NEG_INFINITY);
        if x.whole() && dy.whole() && p.aligned != 0 {
            gradient::<E, N, false>(&p, place, x, dy);
        } else {
            gradient::<E, N, true>(&p, place, x, dy);
        }
    }
}

#[inline(always)]
unsafe fn gradient<E: Ordered, const N: usize, const SHIFTED: bool>(
    p: &SoftmaxParams,
    place: Place,
    x: Slice,
    dy: Slice,
) {
    let scale = p.scale * LOG2_E;
    let (mut high, mut total, mut along) = (f32::NEG_INFINITY, 0.0, 0.0);
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut base = 0;
        while base < x.columns {
            x.wait::<E>(base);
            let held = x.part::<E, N, SHIFTED>(base, f32::NEG_INFINITY);
            let gradients = dy.part::<E, N, SHIFTED>(base, 0.0);
            let higher = math::fmax(high, E::greatest::<N>(&held));
            let least = finite(higher);
            let (mut sum, mut product) = (0.0, 0.0);
            let mut k = 0;
            while k < N {
                let powers = map(E::unpack8(held[k]), |x| math::ex2((x - least) * scale));
                let mut g = E::unpack8(gradients[k]);
                if SHIFTED {
                    g = inside(g, Slice::column(base, k), x.columns, 0.0);
                }
                sum += add_up(powers);
                product += products(powers, g);
                k += 1;
            }
            let fading = faded_by(high, least, scale);
            total = total * fading + sum;
            along = along * fading + product;
            high = higher;
            base += const { Slice::step::<N>() };
        }
        let none = [f32::NEG_INFINITY, 0.0, 0.0];
        let [high, total, along] = place.join::<3, 0>([high, total, along], none, |a, b| combine_powers(a, b, scale));
        let high = finite(high);
        let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
        let along = along * factor;
        let out = p.y + (place.row * p.y_stride + x.first as u64) * size_of::<E>() as u64;
        let out = Row {
            address: out,
            columns: x.columns,
            aligned: !SHIFTED,
        };
        let mut base = 0;
        while base < x.columns {
            let held = x.part::<E, N, SHIFTED>(base, f32::NEG_INFINITY);
            let gradients = dy.part::<E, N, SHIFTED>(base, 0.0);
            let mut k = 0;
            while k < N {
                let column = Slice::column(base, k);
                if column < x.columns {
                    let dx = zip(E::unpack8(held[k]), E::unpack8(gradients[k]), |x, g| {
                        ((math::ex2((x - high) * scale) * factor) * (g - along)) * p.scale
                    });
                    let dx = if total == 0.0 { [0.0; 8] } else { dx };
                    if SHIFTED {
                        out.store::<E>(column, dx);
                    } else {
                        E::store8((out.address as *mut E).add(column as usize), dx);
                    }
                }
                k += 1;
            }
            base += const { Slice::step::<N>() };
        }
    }
}
