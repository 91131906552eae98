//! Division by numbers that the host knows.

use crate::kernel_params;

kernel_params! {
    /// A divisor, and what makes a product and a shift of a division by it (Granlund and Montgomery, *Division by invariant
    /// integers using multiplication*, 1994). By itself a GPU takes a hundred clocks for one, and a launch's first tile
    /// waits for each.
    pub struct Divisor {
        /// The divisor, at least 1.
        pub by: u32,
        /// 2^`shift` ÷ `by`, rounded up.
        pub magic: u32,
        /// 31 more than the bits of `by − 1`.
        pub shift: u32,
    }
}

impl Divisor {
    /// That of `by`; of 1 for 0, of which there are no multiples to look for.
    pub const fn new(by: u32) -> Self {
        let by = if by == 0 { 1 } else { by };
        let shift = 31 + (u32::BITS - (by - 1).leading_zeros());
        Self {
            by,
            magic: (1u64 << shift).div_ceil(by as u64) as u32,
            shift,
        }
    }

    /// Quotient and remainder of `n`, which is below 2³¹.
    #[inline(always)]
    pub const fn divide(self, n: u32) -> (u32, u32) {
        // The product exceeds n · 2^shift ÷ by by less than n, and n by less than 2^shift ÷ by.
        let quotient = ((n as u64 * self.magic as u64) >> self.shift) as u32;
        (quotient, n - quotient * self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::Divisor;

    #[test]
    fn ends_of_the_range() {
        let most = i32::MAX as u32;
        for by in [
            1,
            2,
            3,
            5,
            7,
            8,
            9,
            1023,
            1024,
            1025,
            (1 << 30) - 1,
            1 << 30,
            (1 << 30) + 1,
            most - 1,
            most,
        ] {
            for near in [0, by, by.saturating_mul(2), by.saturating_mul(3), most / by * by, most] {
                for n in [near.saturating_sub(1), near, near.saturating_add(1)] {
                    let n = n.min(most);
                    assert_eq!(Divisor::new(by).divide(n), (n / by, n % by), "{n} / {by}");
                }
            }
        }
    }

    #[test]
    fn like_the_division() {
        // Knuth's generator; divisors and numbers of all lengths.
        let mut state = 1u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let length = 1 + (state >> 58) as u32 % 31;
            (state >> 20) as u32 & ((1 << length) - 1)
        };
        for _ in 0..1_000_000 {
            let (by, n) = (draw().max(1), draw());
            assert_eq!(Divisor::new(by).divide(n), (n / by, n % by), "{n} / {by}");
        }
    }
}
