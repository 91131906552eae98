//! The vectors of a row that a thread of a cluster holds: where they lie, and how they are loaded and stored (sm_90).

use crate::row::*;
use crate::tile::element::Element;

/// Byte offsets of this thread's vectors within any row of so many columns.
#[derive(Clone, Copy)]
pub struct Held {
    columns: u32,
    from_first: u64,
    step: u64,
}

impl Held {
    #[inline(always)]
    pub fn of<T: Team, E: Element>(columns: u32) -> Held {
        let size = size_of::<E>() as u64;
        Held {
            columns,
            from_first: column_of::<T>(0, 0) as u64 * size,
            step: (T::lanes() * WIDTH) as u64 * size,
        }
    }

    /// Whether the row has vector `k`.
    #[inline(always)]
    pub fn has<T: Team>(self, k: usize) -> bool {
        column_of::<T>(0, k) < self.columns
    }

    /// Address of vector `k`.
    #[inline(always)]
    pub fn at(self, row: Row, k: usize) -> u64 {
        row.address + self.from_first + k as u64 * self.step
    }

    /// All that the row has, asked for before anything that follows where it is `WHOLE`: of whole vectors at multiples of 16 bytes.
    ///
    /// # Safety
    /// - The row is readable, nothing writes it while the kernel runs, and `inside` is true of no more than [`has`](Self::has) is.
    #[inline(always)]
    pub unsafe fn load<T: Team, E: Element, const N: usize, const WHOLE: bool>(
        self,
        row: Row,
        inside: impl Fn(usize) -> bool,
    ) -> Part<E, N> {
        // SAFETY: forwarded to the caller.
        unsafe {
            if !WHOLE {
                return row.part::<T, E, N, CONSTANT>(0, 0.0);
            }
            let mut part = [E::ZEROS; N];
            let mut k = 0;
            while k < N {
                if inside(k) {
                    part[k] = load_in_order::<E>(self.at(row, k));
                }
                k += 1;
            }
            part
        }
    }

    /// Stores vector `k`, which the row has.
    ///
    /// # Safety
    /// - The row is writable, and no other thread touches these elements.
    #[inline(always)]
    pub unsafe fn store<T: Team, E: Element, const WHOLE: bool>(self, row: Row, k: usize, values: Vector) {
        // SAFETY: forwarded to the caller.
        unsafe {
            if WHOLE {
                store_once::<E>(self.at(row, k), values)
            } else {
                row.store::<E>(column_of::<T>(0, k), values)
            }
        }
    }
}
