//! Rotary position embedding.

use super::Precision;

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`, as GPT-J has it.
    Interleaved,
    /// `(i, i + rotary_dim / 2)`, as GPT-NeoX and Llama checkpoints on Hugging Face have it.
    HalfSplit,
}

/// Sizes of `x [tokens, heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// How many of them, from the first, are rotated; even.
    pub rotary_dim: usize,
}

/// `theta^(−2i / rotary_dim)` for each pair: the frequencies without scaling.
pub fn inverse_frequencies(rotary_dim: usize, theta: f64) -> Vec<f64> {
    (0..rotary_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64))
        .collect()
}

/// Cosines and sines, `[tokens, rotary_dim / 2]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Cosines.
    pub cos: Vec<f64>,
    /// Sines.
    pub sin: Vec<f64>,
}

impl RopeTable {
    /// `magnitude · cos` and `magnitude · sin` of position times frequency.
    ///
    /// [`Scaling`](super::rope_scaling::Scaling) gives frequencies and magnitude. Eager angles are
    /// `f32`, as in every framework, and the table is stored in the dtype.
    pub fn new<P: Precision>(positions: &[i64], frequencies: &[f64], magnitude: f64) -> RopeTable {
        let table = |function: fn(f64) -> f64| {
            let angles = positions
                .iter()
                .flat_map(|&position| frequencies.iter().map(move |f| P::step(position as f64 * P::step(*f))));
            angles
                .map(|angle| P::store(P::step(function(angle)) * magnitude))
                .collect()
        };
        RopeTable {
            cos: table(f64::cos),
            sin: table(f64::sin),
        }
    }
}

/// Rotates each pair `(a, b)` to `(a·cos − b·sin, b·cos + a·sin)`.
///
/// With `inverse`, by the negative angle: the gradient of the rotation, and its inverse where the
/// magnitude is 1. Elements from `rotary_dim` on stay as they are.
///
/// # Panics
/// When the slices do not have the lengths that `shape` asks for.
pub fn rope<P: Precision>(x: &[f64], shape: RopeShape, table: &RopeTable, pairing: Pairing, inverse: bool) -> Vec<f64> {
    let RopeShape {
        tokens,
        heads,
        head_dim,
        rotary_dim,
    } = shape;
    let half = rotary_dim / 2;
    assert!(
        rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
        "rotary_dim {rotary_dim}"
    );
    assert_eq!(x.len(), tokens * heads * head_dim, "x");
    assert_eq!(
        (table.cos.len(), table.sin.len()),
        (tokens * half, tokens * half),
        "table"
    );
    let mut y = x.to_vec();
    for (row, y) in y.chunks_mut(head_dim.max(1)).enumerate() {
        let token = row / heads;
        for i in 0..half {
            let (first, second) = match pairing {
                Pairing::Interleaved => (2 * i, 2 * i + 1),
                Pairing::HalfSplit => (i, i + half),
            };
            let cos = table.cos[token * half + i];
            let sin = table.sin[token * half + i] * if inverse { -1.0 } else { 1.0 };
            let (a, b) = (y[first], y[second]);
            y[first] = P::store(P::store(a * cos) - P::store(b * sin));
            y[second] = P::store(P::store(b * cos) + P::store(a * sin));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::data::normal;
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Eager, Exact, assert_close, widen};
    use super::*;

    const SHAPE: RopeShape = RopeShape {
        tokens: 3,
        heads: 2,
        head_dim: 10,
        rotary_dim: 8,
    };

    #[test]
    fn by_hand() {
        let shape = RopeShape {
            tokens: 1,
            heads: 1,
            head_dim: 5,
            rotary_dim: 4,
        };
        // Angles 90° and 180°.
        let frequencies = [std::f64::consts::FRAC_PI_4, std::f64::consts::FRAC_PI_2];
        let table = RopeTable::new::<Exact>(&[2], &frequencies, 1.0);
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        let y = rope::<Exact>(&x, shape, &table, Pairing::Interleaved, false);
        assert_close(&y, &[-2.0, 1.0, -3.0, -4.0, 5.0], 1e-12);
        let y = rope::<Exact>(&x, shape, &table, Pairing::HalfSplit, false);
        assert_close(&y, &[-3.0, -2.0, 1.0, -4.0, 5.0], 1e-12);
    }

    #[test]
    fn frequencies_fall_from_one() {
        assert_close(&inverse_frequencies(4, 10_000.0), &[1.0, 0.01], 1e-15);
        assert!(inverse_frequencies(0, 10_000.0).is_empty());
    }

    #[test]
    fn keeps_norms_and_scores_depend_on_distance_only() {
        let x = widen(&normal::<f32>(1, 60));
        let frequencies = inverse_frequencies(8, 10_000.0);
        for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
            let at = |positions: [i64; 3]| {
                let table = RopeTable::new::<Exact>(&positions, &frequencies, 1.0);
                rope::<Exact>(&x, SHAPE, &table, pairing, false)
            };
            let norms = |x: &[f64]| -> Vec<f64> { x.chunks(10).map(|x| x.iter().map(|x| x * x).sum()).collect() };
            let dot = |x: &[f64]| (0..10).map(|i| x[i] * x[40 + i]).sum::<f64>();
            let y = at([0, 257, 131_071]);
            assert_close(&norms(&y), &norms(&x), 1e-11);
            assert_eq!(y[..20], x[..20]);
            assert_close(&[dot(&at([5, 0, 9]))], &[dot(&at([4096, 0, 4100]))], 1e-10);
        }
    }

    #[test]
    fn inverse_undoes_and_is_the_gradient() {
        let (x, grad) = (widen(&normal::<f32>(1, 60)), widen(&normal::<f32>(2, 60)));
        let table = RopeTable::new::<Exact>(&[0, 7, 4097], &inverse_frequencies(8, 500.0), 1.0);
        let scaled = RopeTable::new::<Exact>(&[0, 7, 4097], &inverse_frequencies(8, 500.0), 1.3);
        for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
            let y = rope::<Exact>(&x, SHAPE, &table, pairing, false);
            assert_close(&rope::<Exact>(&y, SHAPE, &table, pairing, true), &x, 1e-12);
            let forward = |x: &[f64]| rope::<Exact>(x, SHAPE, &scaled, pairing, false);
            let analytic = rope::<Exact>(&grad, SHAPE, &scaled, pairing, true);
            assert_close(&analytic, &vector_jacobian(&x, &grad, forward), 1e-8);
        }
    }

    #[test]
    fn eager_angles_are_f32() {
        let frequencies = [0.1];
        let exact = RopeTable::new::<Exact>(&[131_071], &frequencies, 1.0);
        let eager = RopeTable::new::<Eager<f32>>(&[131_071], &frequencies, 1.0);
        let error = (exact.cos[0] - eager.cos[0]).abs();
        assert!(error > 1e-6 && error < 2e-3, "{error}");
    }
}
