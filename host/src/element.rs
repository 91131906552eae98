//! Element types of tensors.

use half::{bf16, f16};

/// The element types that tensors can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of binary32.
    BF16,
    /// 8-bit float, 4 exponent and 3 mantissa bits, no infinities (OCP FP8 E4M3).
    E4M3,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
    /// Byte.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::E4M3 | DType::U8 => 1,
        }
    }

    /// The name used in kernel entries, files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::E4M3 => "e4m3",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
        }
    }

    /// Whether it is one of the floating-point types.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::E4M3)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An 8-bit float (OCP FP8 E4M3), as stored in quantised caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct E4M3(pub u8);

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor can hold.
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync + std::fmt::Debug {
    /// Its dtype.
    const DTYPE: DType;
}

/// A floating-point element that kernels compute with.
pub trait Float: Element + PartialOrd {
    /// Rounds to nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounds once, to nearest even.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64 {
        self.to_f32() as f64
    }
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
element!(f32 => F32, f16 => F16, bf16 => BF16, E4M3 => E4M3, i32 => I32, i64 => I64, u8 => U8);

impl Float for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}
impl Float for f16 {
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f32(round_to_odd(value))
    }
}
impl Float for bf16 {
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(round_to_odd(value))
    }
}

/// The f32 towards zero, with its last bit set if that is not exact: rounding it to nearest in a type with at least two
/// bits less gives what rounding `value` itself would (`half`'s own conversions drop low bits of the f64 first).
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let widened = f64::from(nearest);
    if widened == value || !nearest.is_finite() {
        return nearest;
    }
    let beyond = widened.abs() > value.abs();
    f32::from_bits((nearest.to_bits() - u32::from(beyond)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of all finite values of a type, and its infinities, the nearest; of two, the even one.
    fn nearest<T: Float>(value: f64, step: impl Fn(u16) -> T, bits: impl Fn(T) -> u16, infinity: u16) -> u16 {
        // Magnitudes of these formats are ordered as their bits are.
        let magnitude = value.abs();
        let mut below = 0u16;
        for bit in (0..15).rev() {
            let candidate = below | 1 << bit;
            if candidate < infinity && step(candidate).to_f64() <= magnitude {
                below = candidate;
            }
        }
        let low = step(below).to_f64();
        // The value after the largest finite one would be one more step away; rounding takes it for infinity.
        let high = if below + 1 == infinity {
            low + (low - step(below - 1).to_f64())
        } else {
            step(below + 1).to_f64()
        };
        let up = match (magnitude - low).partial_cmp(&(high - magnitude)).unwrap() {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => below & 1,
            std::cmp::Ordering::Greater => 1,
        };
        let sign = bits(T::from_f32(if value.is_sign_negative() { -0.0 } else { 0.0 }));
        sign | (below + up).min(infinity)
    }

    fn check(value: f64) {
        let f16_wanted = nearest(value, f16::from_bits, f16::to_bits, 0x7c00);
        let bf16_wanted = nearest(value, bf16::from_bits, bf16::to_bits, 0x7f80);
        assert_eq!(
            <f16 as Float>::from_f64(value).to_bits(),
            f16_wanted,
            "f16 of {value:e}"
        );
        assert_eq!(
            <bf16 as Float>::from_f64(value).to_bits(),
            bf16_wanted,
            "bf16 of {value:e}"
        );
    }

    #[test]
    fn a_hair_above_the_middle_rounds_up() {
        let bf16_middle = 1.0 + 2f64.powi(-8);
        assert_eq!(
            <bf16 as Float>::from_f64(bf16_middle + 2f64.powi(-40)).to_f64(),
            1.0 + 2f64.powi(-7)
        );
        assert_eq!(<bf16 as Float>::from_f64(bf16_middle).to_f64(), 1.0);
        assert_eq!(<bf16 as Float>::from_f64(bf16_middle - 2f64.powi(-40)).to_f64(), 1.0);
        let f16_middle = 1.0 + 2f64.powi(-11);
        assert_eq!(
            <f16 as Float>::from_f64(f16_middle + 2f64.powi(-40)).to_f64(),
            1.0 + 2f64.powi(-10)
        );
        assert_eq!(<f16 as Float>::from_f64(f16_middle).to_f64(), 1.0);
    }

    #[test]
    fn ends_of_the_ranges() {
        for value in [
            0.0, -0.0, 65_504.0, 65_519.999, 65_520.0, 1e30, 3.4e38, 3.396e38, 1e300, 5e-8, 2.98e-8, 1e-300,
        ] {
            check(value);
            check(-value);
        }
        for value in [f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(<f16 as Float>::from_f64(value).to_f64(), value);
            assert_eq!(<bf16 as Float>::from_f64(value).to_f64(), value);
        }
        assert!(<f16 as Float>::from_f64(f64::NAN).to_f64().is_nan());
        assert!(<bf16 as Float>::from_f64(f64::NAN).to_f64().is_nan());
    }

    proptest! {
        #[test]
        fn every_f64_rounds_once(mantissa in -2.0f64..2.0, exponent in -140i32..130, hair in -1i32..2) {
            check(mantissa * 2f64.powi(exponent));
            // Middles between neighbours of either type, and what lies just beside them.
            for middle in [bf16::from_f32(mantissa as f32).to_f64() * (1.0 + 2f64.powi(-9)), f64::from((mantissa as f32 * 512.0).round()) / 512.0] {
                let value = middle * 2f64.powi(exponent);
                check(value * (1.0 + f64::from(hair) * 2f64.powi(-45)));
            }
        }
    }
}
