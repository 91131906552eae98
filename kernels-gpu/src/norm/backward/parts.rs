//! Gradients of rows of any length, part by part.

use super::super::device::{Geometry, Statistics};
use super::{
    NormBackwardParams,
    one::{One, leave_statistics},
};
use crate::row::*;
use crate::tile::element::Element;

/// Gradient of `x` and statistics of rows that are read three times, part by part.
///
/// # Safety
/// - The host gives the extents of all tensors, and shared memory for the team's exchange.
#[inline(always)]
pub unsafe fn by_parts<E: Element, T: Team, const N: usize>(p: NormBackwardParams) {
    let geometry = Geometry {
        columns: p.columns,
        centered: p.centered,
        epsilon: p.epsilon,
        reciprocal: p.reciprocal,
    };
    let mut turn = 0;
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
            let load = #[inline(always)]
            |base| x.part::<T, E, N, CONSTANT>(base, 0.0);
            let load_dy = #[inline(always)]
            |base| dy.part::<T, E, N, CONSTANT>(base, 0.0);
            let through = #[inline(always)]
            |dy: Vector, column| {
                if p.weight != 0 {
                    zip(dy, weight.load_again::<E>(column), |dy, w| dy * w)
                } else {
                    dy
                }
            };
            let none = [E::ZEROS; N];
            let statistics = Statistics::new::<T, E, N, false>(&geometry, &none, &mut turn, load);
            leave_statistics::<T>(&p, row, &statistics);
            let (mut along, mut mean) = (0.0, 0.0);
            pair_pass::<T, E, N, false>(p.columns, [&none, &none], load, load_dy, |column, _, s, dy| {
                let unit = map(s, |s| statistics.unit(s));
                let g = through(dy, column);
                mean += add_up(g);
                along += add_up(inside(zip(g, unit, |g, unit| g * unit), column, p.columns, 0.0));
            });
            let (along, mean) = sum_pair::<T>(along, mean, &mut turn);
            let along = along * p.reciprocal;
            let mean = if p.centered != 0 { mean * p.reciprocal } else { 0.0 };
            pair_pass::<T, E, N, false>(p.columns, [&none, &none], load, load_dy, |column, _, s, dy| {
                let unit = map(s, |s| statistics.unit(s));
                let g = through(dy, column);
                let mut out = zip(g, unit, |g, unit| ((g - mean) - unit * along) * statistics.scale);
                if p.dsum != 0 {
                    out = zip(out, dsum.load::<E>(column, 0.0), |out, d| out + d);
                }
                dx.store::<E>(column, out);
            });
        }
        row += T::step();
    }
}
