//! Rows in the registers of their team, as they lie in memory, or passing through them part by part.

use super::{Team, Vector, WIDTH, zip};
use crate::tile::element::Element;

/// Calls `visit(column)` for each vector of this thread.
#[inline(always)]
pub fn each<T: Team>(columns: u32, mut visit: impl FnMut(u32)) {
    let mut column = T::lane() * WIDTH;
    while column < columns {
        visit(column);
        column += T::LANES * WIDTH;
    }
}

/// `N` vectors of a row in the registers of a thread, those at `base + 8(lane + k·lanes)`, as they lie in memory.
pub type Part<E, const N: usize> = [<E as Element>::Packed; N];

/// Column of vector `k` of this thread in the part that begins at `base`.
#[inline(always)]
pub fn column_of<T: Team>(base: u32, k: usize) -> u32 {
    base + (T::lane() + k as u32 * T::lanes()) * WIDTH
}

/// Calls `visit(column, k, vector)` for the vectors of a part that the row has.
#[inline(always)]
pub fn visit<T: Team, E: Element, const N: usize>(
    columns: u32,
    base: u32,
    part: &Part<E, N>,
    mut visit: impl FnMut(u32, usize, Vector),
) {
    let mut k = 0;
    while k < N {
        let column = column_of::<T>(base, k);
        if column < columns {
            visit(column, k, E::unpack8(part[k]));
        }
        k += 1;
    }
}

/// Calls `each` for every vector of this thread: of the part that is `HELD`, or of one part after the other, loaded
/// again.
#[inline(always)]
pub fn pass<T: Team, E: Element, const N: usize, const HELD: bool>(
    columns: u32,
    held: &Part<E, N>,
    load: impl Fn(u32) -> Part<E, N>,
    mut each: impl FnMut(u32, usize, Vector),
) {
    if HELD {
        visit::<T, E, N>(columns, 0, held, each);
    } else {
        let mut base = 0;
        while base < columns {
            visit::<T, E, N>(columns, base, &load(base), &mut each);
            base += T::LANES * WIDTH * N as u32;
        }
    }
}

/// As [`pass`], of two rows together.
#[inline(always)]
pub fn pair_pass<T: Team, E: Element, const N: usize, const HELD: bool>(
    columns: u32,
    held: [&Part<E, N>; 2],
    load: impl Fn(u32) -> Part<E, N>,
    load_other: impl Fn(u32) -> Part<E, N>,
    mut each: impl FnMut(u32, usize, Vector, Vector),
) {
    let mut both = |base, one: &Part<E, N>, other: &Part<E, N>| {
        visit::<T, E, N>(columns, base, one, |column, k, vector| {
            // SAFETY: `k` is below N.
            each(column, k, vector, E::unpack8(unsafe { *other.get_unchecked(k) }));
        });
    };
    if HELD {
        both(0, held[0], held[1]);
    } else {
        let mut base = 0;
        while base < columns {
            both(base, &load(base), &load_other(base));
            base += T::LANES * WIDTH * N as u32;
        }
    }
}

/// Adds a part to another, rounded.
#[inline(always)]
pub fn add_parts<E: Element, const N: usize>(part: &mut Part<E, N>, other: &Part<E, N>) {
    let mut k = 0;
    while k < N {
        part[k] = E::pack8(zip(E::unpack8(part[k]), E::unpack8(other[k]), |a, b| a + b));
        k += 1;
    }
}
