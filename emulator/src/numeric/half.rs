//! f16 and bf16 arithmetic on bit patterns; one rounding per operation.
//!
//! The `half` crate converts the same values but keeps NaN payloads; PTX wants `0x7fff`, and the functions
//! here vectorise in the loops that decode operand tiles.

use super::{Mode, NAN_F16, Rounding, single, soft};

/// f16 → f32, exact; NaN becomes canonical.
#[inline(always)]
#[must_use]
pub fn f16_to_f32(h: u16) -> u32 {
    let magnitude = u32::from(h & 0x7fff);
    // Scaling by 2^112 moves the bias from 15 to 127 and makes subnormals normal.
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let value = if magnitude >= 0x7c00 { 0x7f80_0000 } else { scaled };
    let value = if magnitude > 0x7c00 { super::NAN_F32 } else { value };
    let sign = if magnitude > 0x7c00 {
        0
    } else {
        u32::from(h & 0x8000) << 16
    };
    value | sign
}

/// bf16 → f32, exact; a NaN keeps its bits.
#[inline(always)]
#[must_use]
pub fn bf16_to_f32(h: u16) -> u32 {
    u32::from(h) << 16
}

/// f32 → f16.
#[inline(always)]
#[must_use]
pub fn f32_to_f16(x: u32, rounding: Rounding) -> u16 {
    if rounding != Rounding::NearestEven {
        return soft::convert(soft::F32, soft::F16, x.into(), rounding) as u16;
    }
    let magnitude = x & 0x7fff_ffff;
    let sign = (x >> 16 & 0x8000) as u16;
    // Adding 0.5 puts the unit of f16 subnormals, 2^-24, into the last bit of the f32.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13).wrapping_sub(112 << 10);
    let r = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let r = if magnitude >= 0x477f_f000 { 0x7c00 } else { r };
    if magnitude > 0x7f80_0000 {
        NAN_F16
    } else {
        sign | r as u16
    }
}

/// f32 → bf16.
#[inline(always)]
#[must_use]
pub fn f32_to_bf16(x: u32, rounding: Rounding) -> u16 {
    if rounding != Rounding::NearestEven {
        return soft::convert(soft::F32, soft::BF16, x.into(), rounding) as u16;
    }
    let r = (x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16) as u16;
    if single::is_nan(x) { NAN_F16 } else { r }
}

/// Which 16-bit float an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Half {
    /// To f32, exact.
    #[inline(always)]
    #[must_use]
    pub fn widen(self, h: u16) -> u32 {
        match self {
            Self::F16 => f16_to_f32(h),
            Self::Bf16 => bf16_to_f32(h),
        }
    }

    /// From f32, to nearest even.
    #[inline(always)]
    #[must_use]
    pub fn narrow(self, x: u32) -> u16 {
        match self {
            Self::F16 => f32_to_f16(x, Rounding::NearestEven),
            Self::Bf16 => f32_to_bf16(x, Rounding::NearestEven),
        }
    }

    const fn format(self) -> soft::Format {
        match self {
            Self::F16 => soft::F16,
            Self::Bf16 => soft::BF16,
        }
    }

    const fn exponent(self) -> u16 {
        match self {
            Self::F16 => 0x7c00,
            Self::Bf16 => 0x7f80,
        }
    }

    const fn one(self) -> u16 {
        match self {
            Self::F16 => 0x3c00,
            Self::Bf16 => 0x3f80,
        }
    }

    /// Whether `h` is a NaN.
    #[inline(always)]
    #[must_use]
    pub fn is_nan(self, h: u16) -> bool {
        h & 0x7fff > self.exponent()
    }

    /// Replaces a subnormal by zero of the same sign.
    #[inline(always)]
    #[must_use]
    pub fn flush(self, h: u16) -> u16 {
        if h & self.exponent() == 0 { h & 0x8000 } else { h }
    }

    #[inline(always)]
    fn input(self, h: u16, mode: Mode) -> u16 {
        if mode.ftz { self.flush(h) } else { h }
    }

    /// Applies `.ftz` and `.sat` to a result.
    #[inline(always)]
    #[must_use]
    pub fn finish(self, h: u16, mode: Mode) -> u16 {
        let h = self.input(h, mode);
        if !mode.sat {
            h
        } else if self.is_nan(h) || h & 0x8000 != 0 {
            0
        } else {
            h.min(self.one())
        }
    }

    /// `add` (always `.rn`). The f32 sum has more than twice the bits, so that rounding twice is rounding once.
    #[inline(always)]
    #[must_use]
    pub fn add(self, a: u16, b: u16, mode: Mode) -> u16 {
        let (a, b) = (self.input(a, mode), self.input(b, mode));
        let sum = f32::from_bits(self.widen(a)) + f32::from_bits(self.widen(b));
        self.finish(self.narrow(sum.to_bits()), mode)
    }

    /// `sub`.
    #[inline(always)]
    #[must_use]
    pub fn sub(self, a: u16, b: u16, mode: Mode) -> u16 {
        self.add(a, b ^ 0x8000, mode)
    }

    /// `mul`.
    #[inline(always)]
    #[must_use]
    pub fn mul(self, a: u16, b: u16, mode: Mode) -> u16 {
        let (a, b) = (self.input(a, mode), self.input(b, mode));
        let product = f32::from_bits(self.widen(a)) * f32::from_bits(self.widen(b));
        // The f32 product of two f16 is exact; of two bf16 it is not when it falls among the f32 subnormals.
        let r = if self == Self::Bf16 && product.abs() < f32::MIN_POSITIVE {
            soft::mul(self.format(), a.into(), b.into(), Rounding::NearestEven) as u16
        } else {
            self.narrow(product.to_bits())
        };
        self.finish(r, mode)
    }

    /// `fma` with a single rounding.
    #[inline]
    #[must_use]
    pub fn fma(self, a: u16, b: u16, c: u16, mode: Mode) -> u16 {
        let (a, b, c) = (self.input(a, mode), self.input(b, mode), self.input(c, mode));
        let wide = |h| f64::from(f32::from_bits(self.widen(h)));
        let product = wide(a) * wide(b); // exact
        let c = wide(c);
        let sum = product + c;
        // The exact error of the sum; when there is none the f64 is the exact result.
        let back = sum - product;
        let error = (product - (sum - back)) + (c - back);
        let r = if sum.is_nan() {
            NAN_F16
        } else if sum.is_infinite() || error == 0.0 {
            soft::convert(soft::F64, self.format(), sum.to_bits(), Rounding::NearestEven) as u16
        } else {
            // Round to odd: then the second rounding sees on which side of a tie the exact value lies.
            let bits = sum.to_bits();
            let inward = (error > 0.0) != (sum > 0.0);
            let odd = if bits & 1 == 1 {
                bits
            } else if inward {
                bits - 1
            } else {
                bits + 1
            };
            soft::convert(soft::F64, self.format(), odd, Rounding::NearestEven) as u16
        };
        self.finish(r, mode)
    }

    #[inline(always)]
    fn pick(self, a: u16, b: u16, ftz: bool, nan: bool, max: bool) -> u16 {
        let (a, b) = if ftz { (self.flush(a), self.flush(b)) } else { (a, b) };
        let key = |x: u16| (x ^ ((x as i16 >> 15) as u16 >> 1)) as i16;
        match (self.is_nan(a), self.is_nan(b)) {
            (true, true) => NAN_F16,
            (true, false) | (false, true) if nan => NAN_F16,
            (true, false) => b,
            (false, true) => a,
            _ if (key(a) < key(b)) != max => a,
            _ => b,
        }
    }

    /// `min{.ftz}{.NaN}`.
    #[inline(always)]
    #[must_use]
    pub fn min(self, a: u16, b: u16, ftz: bool, nan: bool) -> u16 {
        self.pick(a, b, ftz, nan, false)
    }

    /// `max{.ftz}{.NaN}`.
    #[inline(always)]
    #[must_use]
    pub fn max(self, a: u16, b: u16, ftz: bool, nan: bool) -> u16 {
        self.pick(a, b, ftz, nan, true)
    }

    /// The `.relu` modifier: negative results become +0, NaN canonical.
    #[inline(always)]
    #[must_use]
    pub fn relu(self, h: u16) -> u16 {
        if self.is_nan(h) {
            NAN_F16
        } else if h & 0x8000 != 0 {
            0
        } else {
            h
        }
    }
}

/// Applies a function of two 16-bit lanes to both halves of packed operands (`.f16x2`, `.bf16x2`).
#[inline(always)]
#[must_use]
pub fn packed2(a: u32, b: u32, op: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(op(a as u16, b as u16)) | u32::from(op((a >> 16) as u16, (b >> 16) as u16)) << 16
}

/// As [`packed2`] with three operands.
#[inline(always)]
#[must_use]
pub fn packed3(a: u32, b: u32, c: u32, op: impl Fn(u16, u16, u16) -> u16) -> u32 {
    u32::from(op(a as u16, b as u16, c as u16))
        | u32::from(op((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
}

/// As [`packed2`] with one operand.
#[inline(always)]
#[must_use]
pub fn packed1(a: u32, op: impl Fn(u16) -> u16) -> u32 {
    u32::from(op(a as u16)) | u32::from(op((a >> 16) as u16)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_widens_and_narrows() {
        for h in 0..=u16::MAX {
            for (kind, format) in [(Half::F16, soft::F16), (Half::Bf16, soft::BF16)] {
                let wide = kind.widen(h);
                if kind == Half::Bf16 && kind.is_nan(h) {
                    assert_eq!(wide, u32::from(h) << 16);
                } else {
                    assert_eq!(
                        u64::from(wide),
                        soft::convert(format, soft::F32, h.into(), Rounding::NearestEven)
                    );
                }
                let back = kind.narrow(wide);
                assert_eq!(back, if kind.is_nan(h) { NAN_F16 } else { h });
            }
        }
    }

    #[test]
    fn narrowing_agrees_with_the_integer_implementation() {
        let mut x = 12345u32;
        for i in 0..300_000u32 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Concentrate on f16's exponent range, with exact ties now and then.
            let e = 0x3300_0000u32.wrapping_add((x >> 5) % 0x1480_0000);
            let bits = match i % 3 {
                0 => x,
                1 => e | (x & 0x8000_0000),
                _ => (e & !0xfff) | (x & 0x8000_0000),
            };
            for (kind, format) in [(Half::F16, soft::F16), (Half::Bf16, soft::BF16)] {
                let want = soft::convert(soft::F32, format, bits.into(), Rounding::NearestEven) as u16;
                assert_eq!(kind.narrow(bits), want, "{kind:?} {bits:08x}");
            }
        }
    }

    #[test]
    fn arithmetic_rounds_once() {
        let mut x = 99u64;
        let mut next = || {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            x >> 16
        };
        for _ in 0..200_000 {
            let r = next();
            let (a, b, c) = (r as u16, (r >> 16) as u16, (r >> 32) as u16);
            for kind in [Half::F16, Half::Bf16] {
                let f = kind.format();
                let rn = Rounding::NearestEven;
                let (x, y, z) = (u64::from(a), u64::from(b), u64::from(c));
                assert_eq!(u64::from(kind.add(a, b, Mode::RN)), soft::add(f, x, y, rn));
                assert_eq!(u64::from(kind.mul(a, b, Mode::RN)), soft::mul(f, x, y, rn));
                assert_eq!(u64::from(kind.fma(a, b, c, Mode::RN)), soft::fma(f, x, y, z, rn));
            }
        }
        // A tie of the f16 product broken by an addend 2^-60 of its size would be lost in f64 alone; bf16 reaches it.
        let b = Half::Bf16;
        let tie = b.fma(0x3f81, 0x3f81, 0x0080, Mode::RN);
        assert_eq!(
            u64::from(tie),
            soft::fma(soft::BF16, 0x3f81, 0x3f81, 0x0080, Rounding::NearestEven)
        );
    }

    #[test]
    fn modifiers() {
        let h = Half::F16;
        assert_eq!(h.add(0x3c00, 0x3c00, Mode::RN.sat(true)), 0x3c00);
        assert_eq!(h.add(0x0001, 0x0001, Mode::RN.ftz(true)), 0);
        assert_eq!(h.min(0x0000, 0x8000, false, false), 0x8000);
        assert_eq!(h.max(0x7e00, 0xbc00, false, false), 0xbc00);
        assert_eq!(h.max(0x7e00, 0xbc00, false, true), NAN_F16);
        assert_eq!(h.relu(0xbc00), 0);
        assert_eq!(
            packed2(0x3c00_4000, 0x3c00_3c00, |a, b| h.add(a, b, Mode::RN)),
            0x4000_4200
        );
    }
}
