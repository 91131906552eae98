//! Softmax of rows of whole vectors at multiples of 16 bytes that see all of themselves, without a mask and with a
//! positive scale: the usual case, without a branch inside.
//!
//! The arithmetic is that of other rows, operation by operation, so that a row has the same bits at any address.

use super::SoftmaxParams;
use crate::row::*;
use cuda_std::math;

/// Whether rows of these parameters may be taken here.
#[inline(always)]
pub fn fits(p: &SoftmaxParams) -> bool {
    p.aligned != 0 && p.columns % WIDTH == 0 && p.mask == 0 && p.causal_rows == 0 && p.scale > 0.0
}

/// One row.
///
/// # Safety
/// - The tensors have the extents that the parameters say, and [`fits`] is true; the team is together, and holds `N`
///   vectors a thread.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Ordered, const N: usize>(p: &SoftmaxParams, row: u64, turn: &mut u32) {
    let scale = p.scale * LOG2_E;
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    let at = |address: u64, stride: u64, k: usize| {
        address + row * stride * size_of::<E>() as u64 + (column_of::<T>(0, k) * size_of::<E>() as u32) as u64
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        // What the row does not have weighs nothing.
        let mut part = [E::pack8([f32::NEG_INFINITY; 8]); N];
        let mut k = 0;
        while k < N {
            if inside(k) {
                part[k] = load_in_order::<E>(at(p.x, p.x_stride, k));
            }
            k += 1;
        }
        if row + (p.ahead as u64) < p.rows {
            Row::new::<E>(p.x, row + p.ahead as u64, p.x_stride, p.columns, 1).prefetch::<T, E, N>();
        }
        let max = finite(max::<T>(E::greatest::<N>(&part), turn));
        let mut total = 0.0;
        if p.log != 0 {
            let mut k = 0;
            while k < N {
                total += add_up(map(E::unpack8(part[k]), |x| math::ex2((x - max) * scale)));
                k += 1;
            }
            let total = sum::<T>(total, turn);
            let log_total = math::lg2(total) * LN_2;
            let mut k = 0;
            while k < N {
                if inside(k) {
                    let out = map(E::unpack8(part[k]), |x| math::fma(x - max, p.scale, -log_total));
                    let out = if total == 0.0 { [f32::NEG_INFINITY; 8] } else { out };
                    E::store8(at(p.y, p.y_stride, k) as *mut E, out);
                }
                k += 1;
            }
            return;
        }
        // Blocks of a thousand threads have no registers to hold them.
        let hold = T::LANES < WIDE_THREADS;
        let power = |x: f32, max: f32| math::ex2((x - max) * scale);
        let mut powers = [[0.0; 8]; N];
        let mut k = 0;
        while k < N {
            let these = map(E::unpack8(part[k]), |x| power(x, max));
            total += add_up(these);
            if hold {
                powers[k] = these;
            }
            k += 1;
        }
        let total = sum::<T>(total, turn);
        let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
        let again = if hold { max } else { anew(max) };
        let mut k = 0;
        while k < N {
            if inside(k) {
                let these = if hold {
                    powers[k]
                } else {
                    map(E::unpack8(part[k]), |x| power(x, again))
                };
                E::store8(at(p.y, p.y_stride, k) as *mut E, map(these, |power| power * factor));
            }
            k += 1;
        }
    }
}

/// The gradient of one row of softmax.
///
/// # Safety
/// - As for [`forward`].
#[inline(always)]
pub unsafe fn backward<T: Team, E: Ordered, const N: usize>(p: &SoftmaxParams, row: u64, turn: &mut u32) {
    let scale = p.scale * LOG2_E;
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    let at = |address: u64, stride: u64, k: usize| {
        address + row * stride * size_of::<E>() as u64 + (column_of::<T>(0, k) * size_of::<E>() as u32) as u64
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        let (mut part, mut dy) = ([E::pack8([f32::NEG_INFINITY; 8]); N], [E::ZEROS; N]);
        let mut k = 0;
        while k < N {
            if inside(k) {
                part[k] = load_in_order::<E>(at(p.x, p.x_stride, k));
            }
            k += 1;
        }
        let mut k = 0;
        while k < N {
            if inside(k) {
                dy[k] = load_in_order::<E>(at(p.dy, p.dy_stride, k));
            }
            k += 1;
        }
        let max = finite(max::<T>(E::greatest::<N>(&part), turn));
        let (mut total, mut along) = (0.0, 0.0);
        let mut powers = [[0.0; 8]; N];
        let mut k = 0;
        while k < N {
            powers[k] = map(E::unpack8(part[k]), |x| math::ex2((x - max) * scale));
            total += add_up(powers[k]);
            along += add_up(zip(powers[k], E::unpack8(dy[k]), |power, g| power * g));
            k += 1;
        }
        let (total, along) = sum_pair::<T>(total, along, turn);
        let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
        let along = along * factor;
        let mut k = 0;
        while k < N {
            if inside(k) {
                let dx = zip(powers[k], E::unpack8(dy[k]), |power, g| {
                    ((power * factor) * (g - along)) * p.scale
                });
                E::store8(
                    at(p.y, p.y_stride, k) as *mut E,
                    if total == 0.0 { [0.0; 8] } else { dx },
                );
            }
            k += 1;
        }
    }
}
