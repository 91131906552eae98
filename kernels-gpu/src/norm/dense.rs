//! Norms of rows of whole vectors at multiples of 16 bytes, which a team holds: the usual case, without a branch inside.
//!
//! The arithmetic is that of other rows, operation by operation, so that a row has the same bits at any address.

use super::NormParams;
use super::device::Statistics;
use super::kept::Kept;
use crate::row::*;
use crate::tile::element::Element;

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

    /// Vector `k` of what all rows share, zeros beyond the row.
    #[inline(always)]
    unsafe fn load_shared_by_rows<T: Team, E: Element>(self, k: usize) -> E::Packed {
        let (at, inside) = self.at::<T, E>(k);
        if !inside {
            return E::ZEROS;
        }
        // SAFETY: within the row, and aligned.
        unsafe { load_in_order::<E>(at) }
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

/// The statistics of a row.
#[inline(always)]
unsafe fn statistics<T: Team, E: Element, const N: usize, const CENTERED: bool>(
    p: &NormParams,
    part: &Part<E, N>,
    turn: &mut u32,
) -> Statistics {
    let inside = |k: usize| column_of::<T>(0, k) < p.columns;
    // SAFETY: the team is together.
    unsafe {
        if !CENTERED || p.centered == 0 {
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

/// What all rows share: of `EARLY` vectors what was asked for with the row.
struct Shared<E: Kept, const EARLY: usize> {
    weight: Vectors,
    bias: Vectors,
    weights: [E::Packed; EARLY],
    biases: [E::Packed; EARLY],
}

/// Writes a row, with weight and bias as `W` and `B` say.
#[inline(always)]
unsafe fn write<
    T: Team,
    E: Kept,
    const N: usize,
    const EARLY: usize,
    const CENTERED: bool,
    const W: bool,
    const B: bool,
>(
    part: &Part<E, N>,
    statistics: Statistics,
    shared: &Shared<E, EARLY>,
    y: Vectors,
    stored: Option<Vectors>,
) {
    let mut k = 0;
    while k < N {
        // SAFETY: the host gives the extents; each element is one thread's.
        unsafe {
            let held = if stored.is_some() { E::anew(part[k]) } else { part[k] };
            let sum = E::unpack8(held);
            if let Some(stored) = stored {
                stored.store::<T, E>(k, sum);
            }
            let of = #[inline(always)]
            |early: &[E::Packed; EARLY], row: Vectors, asked: bool| {
                if k < EARLY && asked {
                    E::unpack8(E::anew(early[k]))
                } else {
                    E::unpack8(row.load_shared_by_rows::<T, E>(k))
                }
            };
            let weight = || of(&shared.weights, shared.weight, true);
            let bias = || of(&shared.biases, shared.bias, CENTERED);
            let out = affine(map(sum, |s| statistics.unit(s)), [W, B], weight, bias);
            y.store::<T, E>(k, out);
        }
        k += 1;
    }
}

/// Rows with a residual; as for [`forward`].
///
/// # Safety
/// - As for [`forward`]; a team has the shared memory of its exchanges.
#[inline(always)]
pub unsafe fn with_residual<T: Team, E: Kept, const N: usize, const EARLY: usize>(p: NormParams) {
    let mut turn = 0;
    let mut row = T::first();
    while row < p.rows {
        // SAFETY: forwarded to the caller.
        unsafe { forward::<T, E, N, EARLY, true>(&p, row, &mut turn) };
        row += T::step();
    }
}

/// One row, with a `RESIDUAL` or without. Of weight and bias `EARLY` vectors are under way with the row: each that is asked for later
/// is one more wait, and takes registers for a shorter time.
///
/// # Safety
/// - The tensors have the extents that the parameters say, `columns` is a multiple of [`WIDTH`] and rows and vectors
///   start at multiples of 16 bytes; the team is together, and holds `N` vectors a thread.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Kept, const N: usize, const EARLY: usize, const RESIDUAL: bool>(
    p: &NormParams,
    row: u64,
    turn: &mut u32,
) {
    // SAFETY: forwarded to the caller.
    unsafe {
        // One body for f32: two take registers of each other.
        if size_of::<E>() == 4 || p.centered != 0 {
            one::<T, E, N, EARLY, RESIDUAL, true>(p, row, turn);
        } else {
            one::<T, E, N, EARLY, RESIDUAL, false>(p, row, turn);
        }
    }
}

#[inline(always)]
unsafe fn one<T: Team, E: Kept, const N: usize, const EARLY: usize, const RESIDUAL: bool, const CENTERED: bool>(
    p: &NormParams,
    row: u64,
    turn: &mut u32,
) {
    let vectors = |address| Vectors {
        address,
        columns: p.columns,
    };
    let matrix = |address, stride: u64| vectors(address + row * stride * size_of::<E>() as u64);
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut part = matrix(p.x, p.x_stride).load::<T, E, N>();
        let mut other = [E::ZEROS; N];
        if RESIDUAL {
            other = matrix(p.residual, p.residual_stride).load::<T, E, N>();
        }
        let mut shared = Shared {
            weight: vectors(p.weight),
            bias: vectors(p.bias),
            weights: [E::ZEROS; EARLY],
            biases: [E::ZEROS; EARLY],
        };
        let mut k = 0;
        while k < EARLY {
            if p.weight != 0 {
                shared.weights[k] = shared.weight.load_shared_by_rows::<T, E>(k);
            }
            // RMSNorm has none as a rule.
            if CENTERED && p.bias != 0 {
                shared.biases[k] = shared.bias.load_shared_by_rows::<T, E>(k);
            }
            k += 1;
        }
        let later = row + p.ahead as u64;
        // The widest rows of f32 have no registers for it.
        if !(RESIDUAL && size_of::<E>() == 4) && p.ahead != 0 && later < p.rows {
            Row::new::<E>(p.x, later, p.x_stride, p.columns, 1).prefetch::<T, E, N>();
            if RESIDUAL {
                Row::new::<E>(p.residual, later, p.residual_stride, p.columns, 1).prefetch::<T, E, N>();
            }
        }
        if RESIDUAL {
            add_parts::<E, N>(&mut part, &other);
        }
        let statistics = statistics::<T, E, N, CENTERED>(p, &part, turn);
        let y = matrix(p.y, p.y_stride);
        // Beside `y`, not before the statistics: memory writes in longer runs.
        let stored = if RESIDUAL {
            Some(matrix(p.sum, p.sum_stride))
        } else {
            None
        };
        match (p.weight != 0, p.bias != 0) {
            (true, true) => write::<T, E, N, EARLY, CENTERED, true, true>(&part, statistics, &shared, y, stored),
            (true, false) => write::<T, E, N, EARLY, CENTERED, true, false>(&part, statistics, &shared, y, stored),
            (false, true) => write::<T, E, N, EARLY, CENTERED, false, true>(&part, statistics, &shared, y, stored),
            (false, false) => write::<T, E, N, EARLY, CENTERED, false, false>(&part, statistics, &shared, y, stored),
        }
    }
}
