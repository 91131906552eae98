//! Conversions between dtypes; those between `f32`, `f16` and `bf16` are
//! [`Float`]'s.

use crate::element::Float;

/// Rounds each element to the other dtype, to nearest even; what is too large becomes infinite.
pub fn cast<From: Float, To: Float>(values: &[From]) -> Vec<To> {
    // Exact up to f32, then one rounding.
    values.iter().map(|value| To::from_f32(value.to_f32())).collect()
}

/// Largest finite magnitude of E4M3.
pub const E4M3_MAX: f64 = 448.0;

/// The value of an OCP FP8 E4M3 byte: 4 exponent bits with bias 7, 3 mantissa bits, no infinities,
/// NaN where all bits but the sign are set.
pub fn e4m3_to_f64(byte: u8) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f64::from(byte & 7));
    match (exponent, byte & 7) {
        (15, 7) => f64::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f64.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    }
}

/// The nearest E4M3 byte, ties to even; what is too large, infinity included, becomes ±448, and
/// NaN becomes `0x7f` (PTX ISA, `cvt.rn.satfinite.e4m3x2`).
pub fn f64_to_e4m3(value: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(E4M3_MAX);
    // Bytes 0..=0x7e rise with their values: the nearest is one of two neighbours.
    let below = (0..=0x7eu8).rfind(|&byte| e4m3_to_f64(byte) <= magnitude).unwrap_or(0);
    let above = (below + 1).min(0x7e);
    let (down, up) = (magnitude - e4m3_to_f64(below), e4m3_to_f64(above) - magnitude);
    let nearest = if up < down || (up == down && below & 1 == 1) {
        above
    } else {
        below
    };
    sign | nearest
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn casts_round_once_to_even() {
        let tie = [1.0f32 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e30, f32::NAN];
        let rounded = cast::<f32, bf16>(&tie);
        assert_eq!(rounded[0].to_f32(), 1.0);
        assert_eq!(rounded[1].to_f32(), 1.0 + 4.0 / 256.0);
        assert!(rounded[3].is_nan());
        assert_eq!(cast::<bf16, f16>(&rounded[2..3])[0], f16::INFINITY);
    }

    #[test]
    fn e4m3_values() {
        assert_eq!(e4m3_to_f64(0x38), 1.0);
        assert_eq!(e4m3_to_f64(0x7e), 448.0);
        assert_eq!(e4m3_to_f64(0x01), 2f64.powi(-9));
        assert_eq!(e4m3_to_f64(0x08), 2f64.powi(-6));
        assert_eq!(e4m3_to_f64(0xc0), -2.0);
        assert!(e4m3_to_f64(0x7f).is_nan() && e4m3_to_f64(0xff).is_nan());
    }

    #[test]
    fn e4m3_bytes_survive_and_values_round_to_even() {
        for byte in (0..=0xfe).filter(|byte| byte & 0x7f != 0x7f) {
            assert_eq!(f64_to_e4m3(e4m3_to_f64(byte)), byte);
        }
        // Between 1 and 1.125, and between 1.125 and 1.25.
        assert_eq!(e4m3_to_f64(f64_to_e4m3(1.0625)), 1.0);
        assert_eq!(e4m3_to_f64(f64_to_e4m3(1.1875)), 1.25);
        assert_eq!(e4m3_to_f64(f64_to_e4m3(1.0626)), 1.125);
        assert_eq!(e4m3_to_f64(f64_to_e4m3(f64::NEG_INFINITY)), -448.0);
        assert_eq!(e4m3_to_f64(f64_to_e4m3(1000.0)), 448.0);
        assert_eq!(f64_to_e4m3(2f64.powi(-11)), 0);
        assert!(e4m3_to_f64(f64_to_e4m3(f64::NAN)).is_nan());
    }
}
