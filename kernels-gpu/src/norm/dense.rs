//! Norms of rows of whole vectors at multiples of 16 bytes, which a team holds: the usual case, without a branch inside.
//!
//! The arithmetic is that of other rows, operation by operation, so that a row has the same bits at any address.

use super::NormParams;
use super::device::Statistics;
use super::kept::Kept;
use crate::row::*;
use crate::tile::element::Element;
use cuda_std::math;

/// This thread's vectors of a row.
#[derive(Clone, Copy)]
struct Vectors {
    address: u64,
    columns: u32,
}

impl Vectors {
    /// Byte offset of vector `k`, and whether the row has it.
    #[inline(always)]
    fn at<T: Team, E: Element>(self, k: usize) -> (u64, bool) {
        let column = column_of::<T>(0, k);
        (
            self.address + (column * size_of::<E>() as u32) as u64,
            column < self.columns,
        )
    }

    /// All vectors, asked for before anything that follows.
    #[inline(always)]
    unsafe fn load<T: Team, E: Element, const N: usize>(self) -> Part<E, N> {
        let mut part = [E::ZEROS; N];
        let mut k = 0;
        while k < N {
            let (at, inside) = self.at::<T, E>(k);
            if inside {
                // SAFETY: within the row, and aligned.
                part[k] = unsafe { load_in_order::<E>(at) };
            }
            k += 1;
        }
        part
    }

    #[inline(always)]
    unsafe fn load_shared_by_rows<T: Team, E: Element>(self, k: usize) -> Vector {
        let (at, inside) = self.at::<T, E>(k);
        let mut vector = E::ZEROS;
        if inside {
            // SAFETY: within the row, and aligned.
            vector = unsafe { E::load8_packed_cached(at as *const E) };
        }
        E::unpack8(vector)
    }

    #[inline(always)]
    unsafe fn store<T: Team, E: Element>(self, k: usize, values: Vector) {
        let (at, inside) = self.at::<T, E>(k);
        if inside {
            // SAFETY: within the row, and aligned.
            unsafe { E::store8(at as *mut E, values) };
        }
    }
}

impl Vectors {
    /// As [`store`](Self::store), of what nobody reads soon.
    #[inline(always)]
    unsafe fn store_once<T: Team, E: Element>(self, k: usize, values: Vector) {
        let (at, inside) = self.at::<T, E>(k);
        if inside {
            // SAFETY: within the row, and aligned.
            unsafe { store_once::<E>(at, values) };
        }
    }
}

/// The statistics of a row.
#[inline(always)]
unsafe fn statistics<T: Team, E: Element, const N: usize>(
    p: &NormParams,
    part: &Part<E, N>,
    turn: &mut u32,
) -> Statistics {
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    // SAFETY: the team is together.
    unsafe {
        if p.centered == 0 {
            let mut square = 0.0;
            let mut k = 0;
            while k < N {
                square = add_if(square, squares(E::unpack8(part[k])), inside(k));
                k += 1;
            }
            let square = sum::<T>(square, turn) * p.reciprocal;
            return Statistics::of(0.0, 0.0, square, p.epsilon);
        }
        let mut total = 0.0;
        let mut k = 0;
        while k < N {
            total = add_if(total, add_up(E::unpack8(part[k])), inside(k));
            k += 1;
        }
        let mean = sum::<T>(total, turn) * p.reciprocal;
        let (mut left, mut square) = (0.0, 0.0);
        let mut k = 0;
        while k < N {
            let d = map(E::unpack8(part[k]), |s| s - mean);
            left = add_if(left, add_up(d), inside(k));
            square = add_if(square, squares(d), inside(k));
            k += 1;
        }
        let (left, square) = sum_pair::<T>(left, square, turn);
        let rest = left * p.reciprocal;
        Statistics::of(mean, rest, square * p.reciprocal - rest * rest, p.epsilon)
    }
}

/// Writes a row, with weight and bias as `W` and `B` say.
#[inline(always)]
unsafe fn write<T: Team, E: Kept, const N: usize, const W: bool, const B: bool>(
    p: &NormParams,
    part: &Part<E, N>,
    statistics: Statistics,
    y: Vectors,
    stored: Option<Vectors>,
) {
    let shared = |address| Vectors {
        address,
        columns: p.columns,
    };
    let mut k = 0;
    while k < N {
        // SAFETY: the host gives the extents; each element is one thread's.
        unsafe {
            let held = if stored.is_some() { E::anew(part[k]) } else { part[k] };
            let sum = E::unpack8(held);
            if let Some(stored) = stored {
                stored.store_once::<T, E>(k, sum);
            }
            let mut out = map(sum, |s| statistics.unit(s));
            if W && B {
                let weight = shared(p.weight).load_shared_by_rows::<T, E>(k);
                let bias = shared(p.bias).load_shared_by_rows::<T, E>(k);
                let mut i = 0;
                while i < 8 {
                    out[i] = math::fma(out[i], weight[i], bias[i]);
                    i += 1;
                }
            } else if W {
                out = zip(out, shared(p.weight).load_shared_by_rows::<T, E>(k), |out, w| out * w);
            } else if B {
                out = zip(out, shared(p.bias).load_shared_by_rows::<T, E>(k), |out, b| out + b);
            }
            if stored.is_some() {
                y.store_once::<T, E>(k, out);
            } else {
                y.store::<T, E>(k, out);
            }
        }
        k += 1;
    }
}

/// Rows with a residual.
///
/// # Safety
/// - As for [`forward`]; a team has the shared memory of its exchanges.
#[inline(always)]
pub unsafe fn with_residual<T: Team, E: Kept, const N: usize>(p: NormParams) {
    let mut turn = 0;
    let mut row = T::first();
    while row < p.rows {
        // SAFETY: forwarded to the caller.
        unsafe { forward::<T, E, N, true>(&p, row, &mut turn) };
        row += T::step();
    }
}

/// One row, with a `RESIDUAL` or without.
///
/// # Safety
/// - The tensors have the extents that the parameters say, `columns` is a multiple of [`WIDTH`] and rows and vectors
///   start at multiples of 16 bytes; the team is together, and holds `N` vectors a thread.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Kept, const N: usize, const RESIDUAL: bool>(
    p: &NormParams,
    row: u64,
    turn: &mut u32,
) {
    let matrix = |address, stride: u64| Vectors {
        address: address + row * stride * size_of::<E>() as u64,
        columns: p.columns,
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut part = matrix(p.x, p.x_stride).load::<T, E, N>();
        if RESIDUAL {
            let residual = matrix(p.residual, p.residual_stride).load::<T, E, N>();
            add_parts::<E, N>(&mut part, &residual);
        } else if row + (p.ahead as u64) < p.rows {
            Row::new::<E>(p.x, row + p.ahead as u64, p.x_stride, p.columns, 1).prefetch::<T, E, N>();
        }
        let statistics = statistics::<T, E, N>(p, &part, turn);
        let y = matrix(p.y, p.y_stride);
        // Beside `y`, not before the statistics: memory writes in longer runs.
        let stored = if RESIDUAL {
            Some(matrix(p.sum, p.sum_stride))
        } else {
            None
        };
        match (p.weight != 0, p.bias != 0) {
            (true, true) => write::<T, E, N, true, true>(p, &part, statistics, y, stored),
            (true, false) => write::<T, E, N, true, false>(p, &part, statistics, y, stored),
            (false, true) => write::<T, E, N, false, true>(p, &part, statistics, y, stored),
            (false, false) => write::<T, E, N, false, false>(p, &part, statistics, y, stored),
        }
    }
}
