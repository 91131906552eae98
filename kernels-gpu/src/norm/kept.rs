//! Values that stay packed in registers.

use crate::row::anew_bits;
use crate::tile::element::{Bf16, Element, F16};

/// Elements whose packed form stays packed from row to row, or from pass to pass: the compiler would convert what does not
/// change once, into registers that there are not.
pub trait Kept: Element {
    /// The same, about which the compiler knows nothing.
    fn anew(packed: Self::Packed) -> Self::Packed;
    /// The same where `zero` is 0, about which ptxas knows nothing either: on a rare way, so that what the usual one unpacked is not
    /// kept for it.
    fn apart(packed: Self::Packed, zero: u32) -> Self::Packed;
}

impl Kept for f32 {
    #[inline(always)]
    fn anew(packed: [f32; 8]) -> [f32; 8] {
        packed
    }
    #[inline(always)]
    fn apart(packed: [f32; 8], _: u32) -> [f32; 8] {
        packed
    }
}

macro_rules! kept {
    ($($element:ty)*) => {$(
        impl Kept for $element {
            #[inline(always)]
            fn anew(packed: [u32; 4]) -> [u32; 4] {
                let [a, b, c, d] = packed;
                [anew_bits(a), anew_bits(b), anew_bits(c), anew_bits(d)]
            }
            #[inline(always)]
            fn apart(packed: [u32; 4], zero: u32) -> [u32; 4] {
                packed.map(|word| word ^ zero)
            }
        }
    )*};
}

kept! { F16 Bf16 }
