//! Shared-memory swizzles of TMA and wgmma.

/// A swizzle mode: 16-byte units are permuted inside a span of 32, 64 or 128 bytes by the address bits above bit 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Swizzle {
    /// None.
    #[default]
    None,
    /// 32-byte span: bit 4 is xored with bit 7.
    B32,
    /// 64-byte span: bits 4–5 are xored with bits 7–8.
    B64,
    /// 128-byte span: bits 4–6 are xored with bits 7–9.
    B128,
}

impl Swizzle {
    /// Bytes of the span inside which units move; 16 without swizzle.
    #[must_use]
    pub const fn span(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// The period of the pattern in bytes; a tile whose address is a multiple of it starts with an unswizzled row.
    #[must_use]
    pub const fn period(self) -> u32 {
        match self {
            Self::None => 16,
            _ => self.span() * 8,
        }
    }

    /// Where the byte at shared-memory address `address` of an unswizzled tile lies.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, address: u32) -> u32 {
        self.apply_with_base(address, 0)
    }

    /// As [`Swizzle::apply`] for a pattern that does not start at a multiple of its period: `base` is the "matrix base offset" of
    /// a wgmma descriptor, `(pattern start >> 7) & 7`.
    #[inline(always)]
    #[must_use]
    pub const fn apply_with_base(self, address: u32, base: u32) -> u32 {
        let units = self.span() / 16 - 1;
        address ^ (((address >> 7).wrapping_sub(base) & units) << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_the_cuda_guide() {
        // 128 B: row r (128 bytes each), unit c is stored at unit c ^ r.
        for r in 0..8 {
            for c in 0..8 {
                assert_eq!(Swizzle::B128.apply(r * 128 + c * 16 + 5), r * 128 + (c ^ r) * 16 + 5);
            }
        }
        // 64 B: rows of 64 bytes; two rows share a phase.
        for r in 0..8 {
            for c in 0..4 {
                assert_eq!(Swizzle::B64.apply(r * 64 + c * 16), r * 64 + (c ^ (r / 2)) * 16);
            }
        }
        // 32 B: rows of 32 bytes; four rows share a phase.
        for r in 0..8 {
            for c in 0..2 {
                assert_eq!(Swizzle::B32.apply(r * 32 + c * 16), r * 32 + (c ^ (r / 4)) * 16);
            }
        }
        assert_eq!(Swizzle::None.apply(0x3f0), 0x3f0);
        assert_eq!(Swizzle::B128.apply_with_base(0x480, 1), 0x480);
    }
}
