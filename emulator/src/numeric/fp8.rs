//! The 8-bit floats `.e4m3` and `.e5m2` (OCP FP8).
//!
//! e4m3 has no infinity: its largest value is 448 and `0x7f` is NaN. e5m2 is IEEE-like with largest finite value 57344.
//! PTX converts to them only with `.satfinite`: what is too large becomes the largest finite value, NaN becomes `0x7f`.

use super::soft::{self, Value};
use super::{NAN_F32, Rounding};

/// An 8-bit float format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// 4 exponent bits, 3 mantissa bits.
    E4m3,
    /// 5 exponent bits, 2 mantissa bits.
    E5m2,
}

impl Fp8 {
    const fn man_bits(self) -> u32 {
        match self {
            Self::E4m3 => 3,
            Self::E5m2 => 2,
        }
    }

    const fn quantum(self) -> i32 {
        match self {
            Self::E4m3 => -9,
            Self::E5m2 => -16,
        }
    }

    const fn largest(self) -> u8 {
        match self {
            Self::E4m3 => 0x7e,
            Self::E5m2 => 0x7b,
        }
    }

    /// To f32, exact; NaN becomes canonical.
    #[inline]
    #[must_use]
    pub fn to_f32(self, x: u8) -> u32 {
        let sign = u32::from(x & 0x80) << 24;
        let magnitude = u32::from(x & 0x7f);
        match self {
            Self::E4m3 if magnitude == 0x7f => return NAN_F32,
            Self::E5m2 if magnitude > 0x7c => return NAN_F32,
            Self::E5m2 if magnitude == 0x7c => return sign | 0x7f80_0000,
            _ => {}
        }
        let field = magnitude >> self.man_bits();
        let man = magnitude & ((1 << self.man_bits()) - 1);
        let (man, exp) = if field == 0 {
            (man, self.quantum())
        } else {
            (man | 1 << self.man_bits(), self.quantum() + field as i32 - 1)
        };
        sign | (man as f32 * f32::from_bits(((127 + exp) as u32) << 23)).to_bits()
    }

    /// `cvt.rn.satfinite{.relu}` from f32.
    #[inline]
    #[must_use]
    pub fn from_f32(self, x: u32, relu: bool) -> u8 {
        match soft::unpack(soft::F32, x.into()) {
            Value::Nan => 0x7f,
            Value::Inf(true) | Value::Finite { sign: true, .. } if relu => 0,
            Value::Inf(sign) => self.largest() | u8::from(sign) << 7,
            Value::Finite { sign, mant, exp } => {
                let s = u8::from(sign) << 7;
                let m = self.man_bits();
                let (kept, q) = soft::round_to(sign, mant, exp, false, m + 1, self.quantum(), Rounding::NearestEven);
                if kept >> m == 0 {
                    return s | kept as u8;
                }
                let field = (q - self.quantum() + 1) as u64;
                let bits = field << m | (kept & ((1 << m) - 1));
                s | bits.min(u64::from(self.largest())) as u8
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_goes_round() {
        for kind in [Fp8::E4m3, Fp8::E5m2] {
            for x in 0..=u8::MAX {
                let wide = kind.to_f32(x);
                let f = f32::from_bits(wide);
                let back = kind.from_f32(wide, false);
                if f.is_nan() {
                    assert_eq!(back, 0x7f);
                } else if f.is_infinite() {
                    assert_eq!(back & 0x7f, kind.largest());
                } else {
                    assert_eq!(back, x);
                }
            }
        }
        assert_eq!(f32::from_bits(Fp8::E4m3.to_f32(0x7e)), 448.0);
        assert_eq!(f32::from_bits(Fp8::E5m2.to_f32(0x7b)), 57344.0);
        assert_eq!(f32::from_bits(Fp8::E4m3.to_f32(0x01)), 2f32.powi(-9));
        assert_eq!(f32::from_bits(Fp8::E5m2.to_f32(0x81)), -(2f32.powi(-16)));
    }

    #[test]
    fn rounding_and_saturation() {
        let e4 = |x: f32| Fp8::E4m3.from_f32(x.to_bits(), false);
        assert_eq!(e4(1e9), 0x7e);
        assert_eq!(e4(-464.0), 0xfe);
        assert_eq!(e4(1.0625), 0x38); // tie to even
        assert_eq!(e4(1.1875), 0x3a); // tie to even, upward
        assert_eq!(e4(2f32.powi(-10)), 0); // half of the smallest: tie to even
        assert_eq!(Fp8::E5m2.from_f32((-1.0f32).to_bits(), true), 0);
    }
}
