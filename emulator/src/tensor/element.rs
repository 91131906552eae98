//! The operand types of the tensor cores and their decoding to f32.

use crate::Lanes;
use crate::numeric::convert::tf32_operand;
use crate::numeric::fp8::Fp8;
use crate::numeric::half::{bf16_to_f32, f16_to_f32};

/// An operand type of `mma` or `wgmma`. Every value of each is exact in f32, and so is every product of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// tf32: the low 13 bits of the 32-bit container are ignored.
    Tf32,
    /// fp8 with 4 exponent bits.
    E4m3,
    /// fp8 with 5 exponent bits.
    E5m2,
    /// Signed 8-bit integer.
    S8,
    /// Unsigned 8-bit integer.
    U8,
}

impl Element {
    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Tf32 => 4,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 1,
        }
    }

    /// Elements in a 32-bit register.
    #[must_use]
    pub const fn per_register(self) -> usize {
        4 / self.size()
    }

    /// Whether products are integers.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8)
    }

    /// The k extent of one `wgmma` (always 32 bytes).
    #[must_use]
    pub const fn wgmma_k(self) -> usize {
        32 / self.size()
    }

    /// Element `index` of a 32-bit register.
    #[inline(always)]
    #[must_use]
    pub fn lane(self, register: u32, index: usize) -> f32 {
        let half = (register >> (16 * (index & 1))) as u16;
        let byte = (register >> (8 * (index & 3))) as u8;
        match self {
            Self::F16 => f32::from_bits(f16_to_f32(half)),
            Self::Bf16 => f32::from_bits(bf16_to_f32(half)),
            Self::Tf32 => tf32_operand(register),
            Self::E4m3 => f32::from_bits(Fp8::E4m3.to_f32(byte)),
            Self::E5m2 => f32::from_bits(Fp8::E5m2.to_f32(byte)),
            Self::S8 => f32::from(byte as i8),
            Self::U8 => f32::from(byte),
        }
    }

    /// Decodes a whole register: value `j` of lane `l` goes to `out[l * per_register + j]`.
    #[inline(always)]
    pub fn decode_register(self, lanes: &Lanes, out: &mut [f32; 128]) {
        #[inline(always)]
        fn each<const PER: usize>(lanes: &Lanes, out: &mut [f32; 128], f: impl Fn(u32, usize) -> f32) {
            for (lane, values) in lanes.iter().zip(out.as_chunks_mut::<PER>().0) {
                for (j, v) in values.iter_mut().enumerate() {
                    *v = f(*lane as u32, j);
                }
            }
        }
        match self {
            Self::F16 => each::<2>(lanes, out, |v, j| Self::F16.lane(v, j)),
            Self::Bf16 => each::<2>(lanes, out, |v, j| Self::Bf16.lane(v, j)),
            Self::Tf32 => each::<1>(lanes, out, |v, j| Self::Tf32.lane(v, j)),
            other => each::<4>(lanes, out, |v, j| other.lane(v, j)),
        }
    }

    /// Decodes 16 bytes into `16 / size` values at the front of `out`.
    #[inline(always)]
    pub fn decode16(self, bytes: &[u8; 16], out: &mut [f32; 16]) {
        match self {
            Self::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f32::from_bits(f16_to_f32(u16::from_le_bytes(*b)));
                }
            }
            Self::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f32::from_bits(bf16_to_f32(u16::from_le_bytes(*b)));
                }
            }
            Self::Tf32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = tf32_operand(u32::from_le_bytes(*b));
                }
            }
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = self.lane(u32::from(*b), 0);
                }
            }
        }
    }
}
