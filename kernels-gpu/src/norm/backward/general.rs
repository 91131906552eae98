//! Gradients of rows that registers hold the sums of: through a ring where there is one, else loaded as often as needed.

use super::super::device::Statistics;
use super::{
    NormBackwardParams, SUMS_LARGE_THREADS,
    one::{One, leave_statistics},
};
use crate::row::*;
use crate::tile::element::Element;
use cuda_std::{global, math};

/// Gradients of rows, and this thread's sums of columns. The rows come through a ring, out of which each pass takes them again;
/// where there is none they are loaded again, from L1 or L2.
///
/// # Safety
/// - The host gives the extents of all tensors, and shared memory for the team's exchange and for the ring of whole rows.
#[inline(always)]
pub unsafe fn backward<E: Element, T: Team, const N: usize, const WHOLE: bool>(
    p: NormBackwardParams,
) -> ([Vector; N], [Vector; N]) {
    let mut turn = 0;
    let (mut dweight, mut dbias) = ([[0.0f32; 8]; N], [[0.0f32; 8]; N]);
    let bytes = size_of::<E>() as u64;
    let matrices = [(p.x, p.x_stride * bytes), (p.dy, p.dy_stride * bytes)];
    // SAFETY: the rows are fit for it, and the host gives the shared memory.
    let mut ring = if WHOLE {
        Some(unsafe { Ring::<2>::new::<T, E>(matrices, p.rows, p.columns, p.stages) })
    } else {
        None
    };
    let mut row = T::first();
    while row < p.rows {
        let One {
            x,
            dy,
            dsum,
            dx,
            weight,
        } = One::of::<E>(&p, row);
        // SAFETY: the host gives the extents of all tensors; each element is one thread's.
        unsafe {
            if let Some((ring, stage)) = &ring {
                ring.wait(*stage);
            }
            // Vector `k` of one of both, the matrices of the ring.
            let vector = #[inline(always)]
            |matrix: u32, of: Row, k: usize| {
                if let Some((ring, stage)) = &ring {
                    ring.vector::<T, E>(*stage, matrix, k)
                } else if column_of::<T>(0, k) < p.columns {
                    E::pack8(of.load::<E>(column_of::<T>(0, k), 0.0))
                } else {
                    E::ZEROS
                }
            };
            let x_of = #[inline(always)]
            |k: usize| vector(0, x, k);
            let dy_of = #[inline(always)]
            |k: usize| vector(1, dy, k);
            let through = #[inline(always)]
            |dy: Vector, column| {
                if p.weight == 0 {
                    return dy;
                }
                let w = if !WHOLE {
                    weight.load_again::<E>(column)
                } else if column < p.columns {
                    E::unpack8(E::load8_packed_cached((p.weight as *const E).add(column as usize)))
                } else {
                    [0.0; 8]
                };
                zip(dy, w, |dy, w| dy * w)
            };
            // What small teams gain by one exchange less, they lose where there is only one sum more: RMSNorm takes its
            // statistics first, and its sums of columns with the second pass.
            let apart = p.centered == 0 && T::LANES < SUMS_LARGE_THREADS;
            let (statistics, along, mean);
            if apart {
                let mut square = 0.0;
                let mut k = 0;
                while k < N {
                    square = add_if(square, squares(E::unpack8(x_of(k))), column_of::<T>(0, k) < p.columns);
                    k += 1;
                }
                square = sum::<T>(square, &mut turn) * p.reciprocal;
                statistics = Statistics::of(0.0, 0.0, square, p.epsilon);
                let mut product = 0.0;
                let mut k = 0;
                while k < N {
                    let column = column_of::<T>(0, k);
                    if WHOLE || column < p.columns {
                        let (s, dy) = (E::unpack8(x_of(k)), E::unpack8(dy_of(k)));
                        let unit = map(s, |s| statistics.unit(s));
                        // Beyond the row `dy` is 0, and with it all of these.
                        add_products(&mut dweight[k], dy, unit);
                        if p.dbias != 0 {
                            dbias[k] = zip(dbias[k], dy, |sum, term| sum + term);
                        }
                        product += products(through(dy, column), unit);
                    }
                    k += 1;
                }
                along = sum::<T>(product, &mut turn) * p.reciprocal;
                mean = 0.0;
            } else {
                // All sums over the row in one pass, of differences from an element of it: enough unless that lies far off, which the
                // sums tell. Then once more, from the mean. 16 bits do not show what four standard deviations lose; f32 does.
                let mut pivot = 0.0;
                if p.centered != 0 {
                    pivot = if let Some((ring, stage)) = &ring {
                        ring.first::<E>(*stage)
                    } else {
                        global::ld_nc(x.address as *const E).to_f32()
                    };
                }
                let (mut left, mut square, mut product, mut total);
                let mut again = p.centered != 0;
                loop {
                    (left, square, product, total) = (0.0, 0.0, 0.0, 0.0);
                    let mut k = 0;
                    while k < N {
                        let column = column_of::<T>(0, k);
                        if WHOLE || column < p.columns {
                            let (s, dy) = (E::unpack8(x_of(k)), E::unpack8(dy_of(k)));
                            let g = through(dy, column);
                            let mut d = s;
                            if p.centered != 0 {
                                d = map(s, |s| s - pivot);
                                if !WHOLE {
                                    d = inside(d, column, p.columns, 0.0);
                                }
                                total += add_up(g);
                                left = add_if(left, add_up(d), column < p.columns);
                            }
                            // Beyond the row `dy` is 0, and with it `g`.
                            square = add_if(square, squares(d), column < p.columns);
                            product += products(g, d);
                        }
                        k += 1;
                    }
                    if p.centered == 0 {
                        [square, product] = T::sums([square, product], &mut turn);
                        break;
                    }
                    [left, square, product, total] = T::sums([left, square, product, total], &mut turn);
                    let off = left * p.reciprocal;
                    if !again || off * off * (if size_of::<E>() == 2 { 1.0625 } else { 16.0 }) <= square * p.reciprocal
                    {
                        break;
                    }
                    pivot += off;
                    again = false;
                }
                let rest = left * p.reciprocal;
                statistics = Statistics::of(pivot, rest, square * p.reciprocal - rest * rest, p.epsilon);
                // Of g and g·x̂.
                along = (product * statistics.scale + total * statistics.offset) * p.reciprocal;
                mean = total * p.reciprocal;
            }
            leave_statistics::<T>(&p, row, &statistics);
            // dx = ((g - mean) - x̂·along)·scale with x̂ = (s - μ)·scale + offset. Differences first: what cancels does so exactly.
            let slope = -along * statistics.scale * statistics.scale;
            let shift = -statistics.offset * along * statistics.scale;
            let mut k = 0;
            while k < N {
                let column = column_of::<T>(0, k);
                if column < p.columns {
                    let (s, dy) = (E::unpack8(x_of(k)), E::unpack8(dy_of(k)));
                    let g = through(dy, column);
                    if !apart {
                        add_products(&mut dweight[k], dy, map(s, |s| statistics.unit(s)));
                        if p.dbias != 0 {
                            dbias[k] = zip(dbias[k], dy, |sum, term| sum + term);
                        }
                    }
                    let mut out = zip(g, s, |g, s| {
                        math::fma(g - mean, statistics.scale, math::fma(s - statistics.mean, slope, shift))
                    });
                    if p.dsum != 0 {
                        out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                    }
                    if WHOLE {
                        E::store8((dx.address as *mut E).add(column as usize), out);
                    } else {
                        dx.store::<E>(column, out);
                    }
                }
                k += 1;
            }
            if let Some((ring, stage)) = &mut ring {
                T::meet();
                ring.refill::<T, E>(*stage, row + ring.stages as u64 * T::step());
                *stage = ring.after(*stage);
            }
        }
        row += T::step();
    }
    (dweight, dbias)
}
