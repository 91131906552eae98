//! The CPU reference: every operation of the library as plain loops over `f64`.
//!
//! Each operation is written once, generically over [`Precision`]:
//!
//! - `op::<Exact>(…)` computes in `f64` and never rounds: the truth that kernels are measured against;
//! - `op::<Eager<T>>(…)` rounds the way a framework that runs one tensor operation after the other
//!   in dtype `T` would: intermediate values in `f32`, and to `T` each time that a tensor would
//!   reach memory. Its distance from the truth is what that dtype costs without fusion, and
//!   [`crate::compare::Rule::twice`] asks a fused kernel to stay within twice of it.
//!
//! Tensors are flat slices in row-major order, shapes are plain structs, nothing here knows of
//! devices. The inputs are values that `T` can represent, widened by [`widen`]. Shapes that do not
//! match are bugs of the caller and panic; argument checking for users is the work of the
//! operations themselves.
//!
//! Order of heads and tokens is `[batch, token, head, dim]` throughout (the `BSHD` layout), and a
//! log-sum-exp is `[batch, head, token]`.

pub mod activation;
pub mod attention;
pub mod cache;
pub mod cast;
pub mod data;
pub mod decode;
pub mod elementwise;
pub mod embedding;
pub mod finite_difference;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod optimizer;
pub mod philox;
pub mod reduce;
pub mod rope;
pub mod rope_scaling;
pub mod sampling;
pub mod softmax;

use std::marker::PhantomData;

use crate::element::Float;

/// How an operation rounds.
pub trait Precision: Send + Sync + 'static {
    /// Rounds a value that stays inside one operation (a register, an accumulator, an `f32` output).
    fn step(value: f64) -> f64;
    /// Rounds an element of a tensor that the operation writes to memory.
    fn store(value: f64) -> f64;
}

/// No rounding beyond that of `f64`.
#[derive(Clone, Copy, Debug)]
pub struct Exact;

impl Precision for Exact {
    #[inline(always)]
    fn step(value: f64) -> f64 {
        value
    }
    #[inline(always)]
    fn store(value: f64) -> f64 {
        value
    }
}

/// Unfused execution in dtype `T`: `f32` inside an operation, `T` between operations.
#[derive(Clone, Copy, Debug)]
pub struct Eager<T>(PhantomData<T>);

impl<T: Float> Precision for Eager<T> {
    #[inline(always)]
    fn step(value: f64) -> f64 {
        // One operation on f32 operands, computed in f64 and rounded once more, is correctly
        // rounded: 53 bits are more than 2 · 24 + 2.
        value as f32 as f64
    }
    #[inline(always)]
    fn store(value: f64) -> f64 {
        T::from_f32(value as f32).to_f64()
    }
}

/// Widens elements to `f64`, exactly.
pub fn widen<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// Rounds to `T`, to nearest even.
pub fn narrow<T: Float>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

/// `Σ aᵢ·bᵢ` with fused multiply-adds in eight independent accumulators, added as a tree.
#[inline]
pub fn dot<P: Precision>(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "dot product of unequal lengths");
    let mut lanes = [0.0; 8];
    let ((a_chunks, a_tail), (b_chunks, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] = P::step(a[lane] * b[lane] + lanes[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane = P::step(a * b + *lane);
    }
    tree::<P, 8>(lanes)
}

/// Adds values in 32 independent accumulators and then as a tree, as a warp would.
pub fn sum<P: Precision>(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; 32];
    for (index, value) in values.into_iter().enumerate() {
        lanes[index % 32] = P::step(lanes[index % 32] + value);
    }
    tree::<P, 32>(lanes)
}

fn tree<P: Precision, const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = P::step(lanes[lane] + lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `target += factor · values`, one fused multiply-add per element.
pub(crate) fn add_scaled<P: Precision>(target: &mut [f64], factor: f64, values: &[f64]) {
    for (target, value) in target.iter_mut().zip(values) {
        *target = P::step(factor * value + *target);
    }
}

#[cfg(test)]
pub(crate) fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        // Written so that a NaN on either side fails.
        let close = (a - e).abs() <= tolerance || a == e;
        assert!(close, "element {index}: {a} instead of {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn eager_rounds_to_the_dtype() {
        let third = 1.0 / 3.0;
        assert_eq!(Exact::store(third), third);
        assert_eq!(Eager::<f32>::store(third), third as f32 as f64);
        assert_eq!(Eager::<f16>::store(third), 0.333251953125);
        assert_eq!(Eager::<bf16>::store(third), 0.333984375);
        assert_eq!(Eager::<bf16>::step(third), third as f32 as f64);
        assert_eq!(Eager::<f16>::store(1e6), f64::INFINITY);
    }

    #[test]
    fn sums_and_dots_are_exact_on_integers_of_any_length() {
        for len in [0, 1, 7, 8, 9, 31, 32, 33, 100] {
            let a: Vec<f64> = (0..len).map(|i| i as f64 - 5.0).collect();
            let b: Vec<f64> = (0..len).map(|i| (i % 7) as f64).collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(dot::<Exact>(&a, &b), expected);
            assert_eq!(dot::<Eager<f32>>(&a, &b), expected);
            assert_eq!(sum::<Eager<bf16>>(a.iter().copied()), a.iter().sum::<f64>());
        }
    }

    #[test]
    fn accumulators_are_f32_in_every_dtype() {
        // 256 + 1 is not a bf16, and 2²⁴ + 1 is not an f32.
        assert_eq!(dot::<Eager<bf16>>(&[1.0; 4096], &[1.0; 4096]), 4096.0);
        assert_eq!(sum::<Eager<bf16>>(std::iter::repeat_n(1.0, 32_768)), 32_768.0);
        assert_eq!(
            dot::<Eager<f32>>(&[16_777_216.0, 0.0, 0.0, 0.0, 1.0], &[1.0; 5]),
            16_777_216.0
        );
    }

    #[test]
    fn narrow_inverts_widen() {
        let values = [bf16::from_f32(1.5), bf16::from_f32(-0.01), bf16::INFINITY];
        assert_eq!(narrow::<bf16>(&widen(&values)), values);
    }
}
