//! Launches that take turns, so that the blocks of one come while those of the one before still run.

use std::sync::atomic::{AtomicU32, Ordering};

/// Which of two forms of a kernel a launch takes. A block of one form has room beside a block of the other, never beside
/// its own kind: so the blocks of a launch that comes early find a multiprocessor each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Two such blocks have more shared memory than a multiprocessor.
    Even,
    /// Two such blocks have more registers.
    Odd,
}

/// Shared memory of a block of an even launch, at least.
const LEAST_EVEN: u32 = 114 << 10;
/// Shared memory of a block of an odd launch, at most: what the even one leaves on a multiprocessor of 228 KB, of which each
/// block has 1 KB beside its own.
pub(super) const MOST_ODD: u32 = 112 << 10;

impl Turn {
    /// That of the next launch. Both forms have the same bits, and two launches in the same form merely do not overlap.
    pub(super) fn next() -> Turn {
        static LAUNCHES: AtomicU32 = AtomicU32::new(0);
        if LAUNCHES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            Turn::Even
        } else {
            Turn::Odd
        }
    }

    /// Shared memory to ask for where a block uses so much.
    pub(super) fn shared(self, bytes: u32) -> u32 {
        match self {
            Turn::Even => bytes.max(LEAST_EVEN),
            Turn::Odd => bytes,
        }
    }

    /// What the kernel's name has more.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Turn::Even => "",
            Turn::Odd => "_odd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAST_EVEN, MOST_ODD};

    #[test]
    fn one_of_each_fits_a_multiprocessor_and_not_two_even_ones() {
        let (multiprocessor, reserved) = (228 << 10, 1 << 10);
        assert!(LEAST_EVEN + MOST_ODD + 2 * reserved <= multiprocessor);
        assert!(2 * (LEAST_EVEN + reserved) > multiprocessor);
    }
}
