//! Gradients of f32 rows that come through a ring (sm_90): one exchange joins all sums.

use super::super::{
    device::Statistics,
    sums::{Count, Sums},
};
use super::NormBackwardParams;
use crate::row::*;
use crate::tile::element::Element;
use cuda_std::math;

/// Gradients of rows, and this thread's sums of columns. The second pass reads a row from the ring again.
///
/// # Safety
/// - The tensors have the extents that the parameters say, rows are fit for a [`Ring`], and RMSNorm has no bias.
#[inline(always)]
pub unsafe fn gradients<E: Element, T: Team, const N: usize, const CENTERED: bool>(
    p: &NormBackwardParams,
) -> ([Vector; N], [Vector; N]) {
    let (mut dweight, mut dbias) = ([[0.0f32; 8]; N], [[0.0f32; 8]; N]);
    let bytes = size_of::<E>() as u64;
    let matrices = [(p.x, p.x_stride * bytes), (p.dy, p.dy_stride * bytes)];
    // SAFETY: forwarded to the caller.
    let (ring, mut stage) = unsafe { Ring::<2>::new::<T, E>(matrices, p.rows, p.columns, p.stages) };
    let lane = T::lane();
    let own = Count::of::<T, N>(p.columns, lane, 1);
    let of_warp = Count::of::<T, N>(p.columns, lane & !31, 32);
    let of_slots = [
        Count::of_slot::<T, N>(p.columns, 0),
        Count::of_slot::<T, N>(p.columns, 1),
    ];
    let mut exchange = Exchange::new(ring.joined());
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    // Beyond the row `dy` is 0, and so is what it is multiplied by.
    let weight = #[inline(always)]
    |k: usize| {
        if p.weight == 0 || !inside(k) {
            return [1.0; 8];
        }
        // SAFETY: the host gives a weight a column, aligned.
        unsafe {
            let at = (p.weight as *const E).add(anew_bits(column_of::<T>(0, k)) as usize);
            E::unpack8(E::load8_packed_cached(at))
        }
    };
    let mut row = T::first();
    // SAFETY: the host gives the extents of all tensors; each element is one thread's.
    unsafe {
        while row < p.rows {
            ring.wait(stage);
            let (mut xs, mut dys) = ([E::ZEROS; N], [E::ZEROS; N]);
            let mut sums = Sums::NONE;
            let mut k = 0;
            while k < N {
                // Zeros beyond the row.
                xs[k] = ring.vector::<T, E>(stage, 0, k);
                dys[k] = ring.vector::<T, E>(stage, 1, k);
                if CENTERED {
                    sums.total += add_up(E::unpack8(xs[k]));
                }
                k += 1;
            }
            let own_mean = sums.total * own.share;
            let mut k = 0;
            while k < N {
                let dy = E::unpack8(dys[k]);
                let mut d = E::unpack8(xs[k]);
                let g = zip(dy, weight(k), |dy, w| dy * w);
                if CENTERED {
                    d = map(d, |s| s - own_mean);
                    sums.through += add_up(g);
                    sums.left = add_if(sums.left, add_up(d), inside(k));
                    sums.square = add_if(sums.square, squares(d), inside(k));
                } else {
                    sums.square += squares(d);
                }
                sums.product += products(g, d);
                k += 1;
            }
            Sums::join::<1, CENTERED>([(sums, own)], of_warp.share).publish::<T, CENTERED>(&exchange);
            let all = if T::blocks() == 1 {
                Sums::collect::<T, 1, CENTERED>(&mut exchange, [of_slots[0]], p.reciprocal)
            } else {
                Sums::collect::<T, 2, CENTERED>(&mut exchange, of_slots, p.reciprocal)
            };
            let later = row + ring.stages as u64 * T::step();
            let statistics = if CENTERED {
                let rest = all.left * p.reciprocal;
                let variance = all.square * p.reciprocal - rest * rest;
                Statistics::of(all.total * p.reciprocal, rest, variance, p.epsilon)
            } else {
                Statistics::of(0.0, 0.0, all.square * p.reciprocal, p.epsilon)
            };
            let scale = statistics.scale;
            // Of g·x̂, and of g.
            let along = (all.product * scale + all.through * statistics.offset) * p.reciprocal;
            let mean = all.through * p.reciprocal;
            let slope = -along * scale;
            let dx = p.dx + row * p.dx_stride * bytes;
            let dsum = Row::new::<E>(p.dsum, row, p.dsum_stride, p.columns, 1);
            let mut k = 0;
            while k < N {
                let column = column_of::<T>(0, k);
                if inside(k) {
                    let x = ring.vector_anew::<T, E>(stage, 0, k);
                    let dy = E::unpack8(ring.vector_anew::<T, E>(stage, 1, k));
                    let g = zip(dy, weight(k), |dy, w| dy * w);
                    let unit = if CENTERED {
                        map(E::unpack8(x), |s| {
                            math::fma(s - statistics.mean, scale, statistics.offset)
                        })
                    } else {
                        map(E::unpack8(x), |s| s * scale)
                    };
                    add_products(&mut dweight[k], dy, unit);
                    if CENTERED && p.dbias != 0 {
                        dbias[k] = zip(dbias[k], dy, |sum, term| sum + term);
                    }
                    // dx = ((g - mean) - x̂·along)·scale. Differences first: what cancels does so exactly.
                    let mut out = zip(g, unit, |g, unit| {
                        let straight = if CENTERED { (g - mean) * scale } else { g * scale };
                        math::fma(unit, slope, straight)
                    });
                    if p.dsum != 0 {
                        out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                    }
                    E::store8((dx as *mut E).add(column as usize), out);
                }
                k += 1;
            }
            ring.release::<T>(stage);
            ring.refill_released::<T, E>(stage, later);
            stage = ring.after(stage);
            row += T::step();
        }
    }
    (dweight, dbias)
}
