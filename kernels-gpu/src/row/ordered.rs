//! The greatest element of a part of a row.

use super::{Part, greatest};
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::math;

/// Elements of which the greatest of many can be found.
pub trait Ordered: Element {
    /// The greatest of a part; a NaN loses against a number.
    fn greatest<const N: usize>(part: &Part<Self, N>) -> f32;
}

/// The greatest of a part, element by element.
#[inline(always)]
fn greatest_of<E: Element, const N: usize>(part: &Part<E, N>) -> f32 {
    let mut max = f32::NEG_INFINITY;
    let mut k = 0;
    while k < N {
        max = math::fmax(max, greatest(E::unpack8(part[k])));
        k += 1;
    }
    max
}

impl Ordered for f32 {
    #[inline(always)]
    fn greatest<const N: usize>(part: &Part<f32, N>) -> f32 {
        greatest_of::<f32, N>(part)
    }
}

macro_rules! pairs {
    ($element:ty, $max:path) => {
        impl Ordered for $element {
            #[cfg(tier = "sm_75")]
            #[inline(always)]
            fn greatest<const N: usize>(part: &Part<Self, N>) -> f32 {
                greatest_of::<Self, N>(part)
            }

            /// Two at a time, as they lie in memory.
            #[cfg(not(tier = "sm_75"))]
            #[inline(always)]
            fn greatest<const N: usize>(part: &Part<Self, N>) -> f32 {
                let mut max = part[0][0];
                let mut k = 0;
                while k < N {
                    let [a, b, c, d] = part[k];
                    max = $max(max, $max($max(a, b), $max(c, d)));
                    k += 1;
                }
                let [low, high, ..] = Self::unpack8([max, 0, 0, 0]);
                math::fmax(low, high)
            }
        }
    };
}

pairs!(F16, cuda_std::half::max_f16x2);
pairs!(Bf16, cuda_std::half::max_bf16x2);
