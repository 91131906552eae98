//! The 64-bit shared-memory matrix descriptor of `wgmma` and where it says the elements are
//! (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout").

use super::{Element, Swizzle};

/// Which dimension of an operand is contiguous in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Major {
    /// k is contiguous (no transposition: A row-major, B column-major).
    K,
    /// m or n is contiguous (`imm-trans = 1`; f16 and bf16 only).
    Mn,
}

/// A decoded descriptor; all offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Start address in the shared window (bits 0–13, times 16).
    pub start: u32,
    /// Leading-dimension byte offset (bits 16–29, times 16).
    pub leading: u32,
    /// Stride-dimension byte offset (bits 32–45, times 16).
    pub stride: u32,
    /// Matrix base offset (bits 49–51).
    pub base: u32,
    /// Swizzle mode (bits 62–63).
    pub swizzle: Swizzle,
}

/// The bits that belong to no field; they must be zero.
const RESERVED: u64 = !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62);

impl Descriptor {
    /// Decodes a descriptor. `None` if a reserved bit is set: the address or an offset overflowed its field.
    #[must_use]
    pub fn decode(bits: u64) -> Option<Self> {
        if bits & RESERVED != 0 {
            return None;
        }
        let field = |shift: u32| ((bits >> shift & 0x3fff) as u32) << 4;
        Some(Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: (bits >> 49 & 7) as u32,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        })
    }

    /// Encodes the descriptor; the inverse of [`Descriptor::decode`]. Low 4 bits of addresses and offsets are dropped.
    #[must_use]
    pub fn encode(&self) -> u64 {
        let field = |v: u32, shift: u32| (u64::from(v >> 4) & 0x3fff) << shift;
        let mode = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3u64,
        };
        field(self.start, 0)
            | field(self.leading, 16)
            | field(self.stride, 32)
            | (u64::from(self.base) & 7) << 49
            | mode << 62
    }

    /// Calls `f(address, mn, k)` for every 16-byte unit of an operand of `mn` rows (or columns, for B) and one instruction's
    /// k extent (32 bytes); `(mn, k)` is the unit's first element. A unit runs along the major dimension.
    ///
    /// With "unit" = 16 bytes, the canonical layouts are, before the swizzle of the address:
    ///
    /// | | K-major | MN-major |
    /// |---|---|---|
    /// | none | 8 rows × 1 unit packed; `leading` between the two units of k, `stride` between groups of 8 rows | 8 k × 1 unit packed; `leading` between groups of 8 k, `stride` between units of mn |
    /// | 32/64/128 B | 8 rows of a span; units of k adjacent; `stride` between groups of 8 rows | 8 k of a span of mn; `leading` between spans of mn, `stride` between groups of 8 k |
    #[inline(always)]
    pub fn for_each_unit(&self, element: Element, major: Major, mn: usize, mut f: impl FnMut(u32, usize, usize)) {
        let span = self.swizzle.span();
        let per_unit = 16 / element.size();
        let unswizzled = self.swizzle == Swizzle::None;
        let place = |offset: u32| self.swizzle.apply_with_base(self.start.wrapping_add(offset), self.base);
        match major {
            Major::K => {
                let step = if unswizzled { self.leading } else { 16 };
                for row in 0..mn as u32 {
                    let line = (row / 8).wrapping_mul(self.stride).wrapping_add(row % 8 * span);
                    for unit in 0..2 {
                        f(
                            place(line.wrapping_add(unit * step)),
                            row as usize,
                            unit as usize * per_unit,
                        );
                    }
                }
            }
            Major::Mn => {
                let units_per_span = span / 16;
                // `leading` and `stride` swap their roles between the unswizzled and the swizzled layouts.
                let (along_mn, along_k) = if unswizzled {
                    (self.stride, self.leading)
                } else {
                    (self.leading, self.stride)
                };
                for k in 0..element.wgmma_k() as u32 {
                    let line = (k / 8).wrapping_mul(along_k).wrapping_add(k % 8 * span);
                    for unit in 0..(mn / per_unit) as u32 {
                        let across = (unit / units_per_span)
                            .wrapping_mul(along_mn)
                            .wrapping_add(unit % units_per_span * 16);
                        f(place(line.wrapping_add(across)), unit as usize * per_unit, k as usize);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        // The descriptor that a 128-byte-swizzled K-major tile at 0x8000 has: LBO field 1, SBO 1024 bytes.
        let d = Descriptor::decode(4_611_686_293_305_360_384 | 0x800).unwrap();
        let want = Descriptor {
            start: 0x8000,
            leading: 16,
            stride: 1024,
            base: 0,
            swizzle: Swizzle::B128,
        };
        assert_eq!(d, want);
        assert_eq!(Descriptor::decode(d.encode()), Some(d));
        assert_eq!(Descriptor::decode(1 << 14), None);
        for (mode, s) in [(0, Swizzle::None), (2, Swizzle::B64), (3, Swizzle::B32)] {
            assert_eq!(Descriptor::decode(mode << 62).unwrap().swizzle, s);
        }
    }

    fn units(d: &Descriptor, e: Element, major: Major, mn: usize) -> Vec<(u32, usize, usize)> {
        let mut out = Vec::new();
        d.for_each_unit(e, major, mn, |a, m, k| out.push((a, m, k)));
        out
    }

    #[test]
    fn k_major_positions() {
        let d = Descriptor {
            start: 0x400,
            leading: 0x80,
            stride: 0x100,
            base: 0,
            swizzle: Swizzle::None,
        };
        let u = units(&d, Element::F16, Major::K, 16);
        assert_eq!(u[0], (0x400, 0, 0));
        assert_eq!(u[1], (0x480, 0, 8)); // leading offset to the second 16 bytes of k
        assert_eq!(u[2], (0x410, 1, 0)); // next row of the core matrix
        assert_eq!(u[16], (0x500, 8, 0)); // stride offset to the next 8 rows
        let d = Descriptor {
            start: 0x400,
            leading: 16,
            stride: 0x400,
            base: 0,
            swizzle: Swizzle::B128,
        };
        let u = units(&d, Element::Bf16, Major::K, 16);
        assert_eq!(u[0], (0x400, 0, 0));
        assert_eq!(u[2], (0x480 ^ 0x10, 1, 0));
        assert_eq!(u[17], (0x800 + 16, 8, 8));
        // Advancing k by 32 bytes inside the span.
        let u = units(&Descriptor { start: 0x420, ..d }, Element::Bf16, Major::K, 8);
        assert_eq!(u[2], (0x480 + (2 ^ 1) * 16, 1, 0));
    }

    #[test]
    fn mn_major_positions() {
        let d = Descriptor {
            start: 0,
            leading: 0x4000,
            stride: 0x400,
            base: 0,
            swizzle: Swizzle::B128,
        };
        let u = units(&d, Element::F16, Major::Mn, 128);
        assert_eq!(u[0], (0, 0, 0));
        assert_eq!(u[8], (0x4000, 64, 0)); // next span of 64 elements of mn
        assert_eq!(u[16], (0x80 + 16, 0, 1)); // next k, unit 0 goes to unit 1
        assert_eq!(u[16 * 8], (0x400, 0, 8));
        let d = Descriptor {
            start: 0,
            leading: 0x200,
            stride: 0x80,
            base: 0,
            swizzle: Swizzle::None,
        };
        let u = units(&d, Element::F16, Major::Mn, 64);
        assert_eq!(u[1], (0x80, 8, 0));
        assert_eq!(u[8], (0x10, 0, 1));
        assert_eq!(u[64], (0x200, 0, 8));
    }
}
