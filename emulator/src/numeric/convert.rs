//! `cvt`: conversions among integers and floats (PTX ISA, "Data Movement and Conversion Instructions: cvt").

use super::soft::{self, Format, Value};
use super::{NAN_F32, Rounding};

/// Float → integer of `bits` width, clamped to the range of the type as PTX does always.
///
/// NaN becomes 0, or `1 << (bits - 1)` when the source is f64 or the destination has 64 bits.
/// The result is returned in the low `bits` bits.
#[must_use]
pub fn float_to_int(from: Format, x: u64, bits: u32, signed: bool, rounding: Rounding) -> u64 {
    let mask = u64::MAX >> (64 - bits);
    let (min, max): (u64, u64) = if signed {
        (1 << (bits - 1), mask >> 1)
    } else {
        (0, mask)
    };
    match soft::unpack(from, x) {
        Value::Nan if from == soft::F64 || bits == 64 => 1 << (bits - 1),
        Value::Nan => 0,
        Value::Inf(true) => min,
        Value::Inf(false) => max,
        Value::Finite { sign, mant, exp } => {
            // f64 values at or above 2^64 have exp > 11 and never fit.
            let magnitude = if mant == 0 {
                0
            } else if exp > 64 {
                u128::MAX
            } else {
                let (kept, q) = round_integral(sign, mant, exp, rounding);
                u128::from(kept) << q.clamp(0, 64)
            };
            if sign {
                if magnitude > u128::from(min) {
                    min
                } else {
                    (magnitude as u64).wrapping_neg() & mask
                }
            } else if magnitude > u128::from(max) {
                max
            } else {
                magnitude as u64
            }
        }
    }
}

/// Rounds to an integer; the mantissa keeps up to 63 bits so that nothing is lost above the unit.
fn round_integral(sign: bool, mant: u128, exp: i32, rounding: Rounding) -> (u64, i32) {
    soft::round_to(sign, mant, exp, false, 63, 0, rounding)
}

/// Float → integer-valued float of the same format (`cvt.rni.f32.f32` and so on).
#[must_use]
pub fn round_to_integral(format: Format, x: u64, rounding: Rounding) -> u64 {
    match soft::unpack(format, x) {
        Value::Nan if format == soft::F64 => super::double::quiet(x),
        Value::Nan => format.nan,
        Value::Inf(_) => x,
        Value::Finite { sign, mant, exp } => {
            if exp >= 0 || mant == 0 {
                return x;
            }
            let (kept, q) = round_integral(sign, mant, exp, rounding);
            soft::pack(format, sign, u128::from(kept), q, false, Rounding::Zero)
        }
    }
}

/// Integer (`bits` wide, in the low bits of `x`) → float.
#[inline]
#[must_use]
pub fn int_to_float(to: Format, x: u64, bits: u32, signed: bool, rounding: Rounding) -> u64 {
    let shift = 64 - bits;
    if signed {
        let v = (x << shift) as i64 >> shift;
        if to == soft::F32 && rounding == Rounding::NearestEven {
            return (v as f32).to_bits().into();
        }
        soft::from_int(to, v < 0, v.unsigned_abs(), rounding)
    } else {
        let v = x << shift >> shift;
        if to == soft::F32 && rounding == Rounding::NearestEven {
            return (v as f32).to_bits().into();
        }
        soft::from_int(to, false, v, rounding)
    }
}

/// f32 → f64, exact; a NaN becomes quiet and keeps sign and payload.
#[inline(always)]
#[must_use]
pub fn f32_to_f64(x: u32) -> u64 {
    if super::single::is_nan(x) {
        return u64::from(x >> 31) << 63 | 0x7ff8 << 48 | u64::from(x & 0x7f_ffff) << 29;
    }
    f64::from(f32::from_bits(x)).to_bits()
}

/// f16 → f64, exact; a NaN becomes quiet and keeps sign and payload.
#[inline(always)]
#[must_use]
pub fn f16_to_f64(h: u16) -> u64 {
    if h & 0x7fff > 0x7c00 {
        return u64::from(h >> 15) << 63 | 0x7ff8 << 48 | u64::from(h & 0x3ff) << 42;
    }
    soft::convert(soft::F16, soft::F64, h.into(), Rounding::Zero)
}

/// f64 → f32; a NaN becomes quiet and keeps its sign and the high bits of its payload.
#[inline]
#[must_use]
pub fn f64_to_f32(x: u64, rounding: Rounding) -> u32 {
    if super::double::is_nan(x) {
        return (x >> 63 << 31) as u32 | 0x7fc0_0000 | (x >> 29) as u32 & 0x7f_ffff;
    }
    if rounding == Rounding::NearestEven {
        (f64::from_bits(x) as f32).to_bits()
    } else {
        soft::convert(soft::F64, soft::F32, x, rounding) as u32
    }
}

/// f64 → f16, as [`f64_to_f32`].
#[inline]
#[must_use]
pub fn f64_to_f16(x: u64, rounding: Rounding) -> u16 {
    if super::double::is_nan(x) {
        return (x >> 63 << 15) as u16 | 0x7e00 | (x >> 42) as u16 & 0x3ff;
    }
    soft::convert(soft::F64, soft::F16, x, rounding) as u16
}

/// `cvt.{rna,rn,rz}{.relu}.tf32.f32`: 10 bits of mantissa, in the high 19 bits of the register.
#[inline]
#[must_use]
pub fn f32_to_tf32(x: u32, rounding: Rounding, relu: bool) -> u32 {
    if super::single::is_nan(x) {
        // As on hardware: `.rna` cuts a NaN off as it does numbers, the others return their own.
        return if rounding == Rounding::NearestAway {
            x & 0xffff_e000
        } else {
            NAN_F32 & 0xffff_e000
        };
    }
    if relu && x & 0x8000_0000 != 0 {
        return 0;
    }
    (soft::convert(soft::F32, soft::TF32, x.into(), rounding) as u32) << 13
}

/// What the tensor core sees of a `.tf32` operand: the low 13 bits are ignored.
#[inline(always)]
#[must_use]
pub fn tf32_operand(x: u32) -> f32 {
    f32::from_bits(x & 0xffff_e000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_to_int_matches_the_host_and_clamps() {
        let values = [
            0.0f64,
            -0.0,
            0.5,
            1.5,
            2.5,
            -0.5,
            -1.5,
            3.7,
            -3.7,
            127.5,
            300.0,
            -129.0,
            2147483647.5,
            -2147483649.0,
            1e10,
            -1e10,
            9.3e18,
            1.9e19,
            1e300,
            -1e300,
            1e-300,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ];
        for v in values {
            let x = v.to_bits();
            assert_eq!(
                float_to_int(soft::F64, x, 32, true, Rounding::Zero),
                u64::from(v as i32 as u32),
                "{v}"
            );
            assert_eq!(
                float_to_int(soft::F64, x, 32, false, Rounding::Zero),
                u64::from(v as u32),
                "{v}"
            );
            assert_eq!(
                float_to_int(soft::F64, x, 64, true, Rounding::Zero),
                v as i64 as u64,
                "{v}"
            );
            assert_eq!(float_to_int(soft::F64, x, 64, false, Rounding::Zero), v as u64, "{v}");
            assert_eq!(
                float_to_int(soft::F64, x, 8, true, Rounding::NearestEven),
                u64::from(v.round_ties_even() as i8 as u8)
            );
            assert_eq!(
                float_to_int(soft::F64, x, 32, true, Rounding::Down),
                u64::from(v.floor() as i32 as u32),
                "{v}"
            );
            assert_eq!(
                float_to_int(soft::F64, x, 32, true, Rounding::Up),
                u64::from(v.ceil() as i32 as u32),
                "{v}"
            );
            let w = f64::from_bits(round_to_integral(soft::F64, x, Rounding::NearestEven));
            assert_eq!(w.to_bits(), v.round_ties_even().to_bits(), "{v}");
            let w = f64::from_bits(round_to_integral(soft::F64, x, Rounding::Up));
            assert_eq!(w.to_bits(), v.ceil().to_bits(), "{v}");
        }
        assert_eq!(float_to_int(soft::F32, 0x7fc0_0000, 32, true, Rounding::Zero), 0);
        assert_eq!(float_to_int(soft::F32, 0x7fc0_0000, 64, true, Rounding::Zero), 1 << 63);
        assert_eq!(
            float_to_int(soft::F64, f64::NAN.to_bits(), 32, false, Rounding::Zero),
            1 << 31
        );
        assert_eq!(
            float_to_int(soft::F64, (u64::MAX as f64 * 0.75).to_bits(), 64, false, Rounding::Zero),
            (u64::MAX as f64 * 0.75) as u64
        );
    }

    #[test]
    fn int_to_float_rounds() {
        assert_eq!(
            int_to_float(soft::F32, 0xff, 8, true, Rounding::NearestEven),
            u64::from((-1f32).to_bits())
        );
        assert_eq!(
            int_to_float(soft::F64, u64::MAX, 64, false, Rounding::NearestEven),
            (u64::MAX as f64).to_bits()
        );
        assert_eq!(
            int_to_float(soft::F64, i64::MIN as u64, 64, true, Rounding::Zero),
            (i64::MIN as f64).to_bits()
        );
        assert_eq!(int_to_float(soft::F16, 65535, 32, true, Rounding::NearestEven), 0x7c00);
        assert_eq!(
            int_to_float(soft::F32, 16_777_217, 32, false, Rounding::Up),
            u64::from(16_777_218f32.to_bits())
        );
    }

    #[test]
    fn tf32() {
        let x = 1.0f32 + 2f32.powi(-11);
        assert_eq!(
            f32_to_tf32(x.to_bits(), Rounding::NearestAway, false),
            (1.0 + 2f32.powi(-10)).to_bits()
        );
        assert_eq!(f32_to_tf32(x.to_bits(), Rounding::NearestEven, false), 1f32.to_bits());
        assert_eq!(f32_to_tf32((-x).to_bits(), Rounding::NearestAway, true), 0);
        assert_eq!(
            f32_to_tf32(f32::NAN.to_bits(), Rounding::NearestEven, true),
            0x7fff_e000
        );
        assert_eq!(f32_to_tf32(0xffa1_2345, Rounding::NearestAway, false), 0xffa1_2000);
        assert_eq!(f64_to_f32(1e300f64.to_bits(), Rounding::Zero), f32::MAX.to_bits());
        assert_eq!(f64_to_f32(0.1f64.to_bits(), Rounding::NearestEven), 0.1f32.to_bits());
    }
}
