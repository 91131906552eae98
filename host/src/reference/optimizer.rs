//! AdamW.

use super::Precision;

/// Parameters of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl AdamW {
    /// One step, the `step`-th from 1: moments and parameters are updated in place.
    ///
    /// `p ← p·(1 − lr·decay)`, `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
    /// `p ← p − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)`.
    pub fn step<P: Precision>(
        &self,
        step: u32,
        parameters: &mut [f64],
        gradients: &[f64],
        first: &mut [f64],
        second: &mut [f64],
    ) {
        let correct1 = P::step(1.0 - self.beta1.powf(f64::from(step)));
        let correct2 = P::step(1.0 - self.beta2.powf(f64::from(step)));
        let moments = first.iter_mut().zip(second);
        for ((p, g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
            *m = P::step(P::step(self.beta1 * *m) + P::step((1.0 - self.beta1) * g));
            *v = P::step(P::step(self.beta2 * *v) + P::step((1.0 - self.beta2) * P::step(g * g)));
            let decayed = P::step(*p * P::step(1.0 - self.learning_rate * self.weight_decay));
            let root = P::step(P::step(P::step(*v / correct2).sqrt()) + self.epsilon);
            let direction = P::step(P::step(*m / correct1) / root);
            *p = P::store(decayed - P::step(self.learning_rate * direction));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Exact, assert_close};
    use super::*;

    const ADAM: AdamW = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 0.0,
        weight_decay: 0.5,
    };

    #[test]
    fn first_step_has_the_size_of_the_learning_rate() {
        // Both corrections cancel: m̂ = g, v̂ = g², so the step is lr · sign(g).
        let (mut p, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        ADAM.step::<Exact>(1, &mut p, &[3.0, -0.01], &mut m, &mut v);
        assert_close(&p, &[0.95 - 0.1, 0.95 + 0.1], 1e-12);
        assert_close(&m, &[0.3, -0.001], 1e-15);
        assert_close(&v, &[0.09, 1e-6], 1e-15);
    }

    #[test]
    fn second_step_by_hand() {
        let (mut p, mut m, mut v) = ([0.0], [0.5], [0.2]);
        let plain = AdamW {
            weight_decay: 0.0,
            epsilon: 0.1,
            ..ADAM
        };
        plain.step::<Exact>(2, &mut p, &[1.0], &mut m, &mut v);
        let (m2, v2) = (0.45 + 0.1, 0.198 + 0.01);
        let expected = -0.1 * (m2 / 0.19) / ((v2 / (1.0 - 0.9801f64)).sqrt() + 0.1);
        assert_close(&p, &[expected], 1e-12);
    }

    #[test]
    fn finds_the_minimum_of_a_parabola() {
        let (mut p, mut m, mut v) = ([5.0], [0.0], [0.0]);
        let plain = AdamW {
            weight_decay: 0.0,
            epsilon: 1e-8,
            ..ADAM
        };
        for step in 1..=2000 {
            let gradient = [2.0 * (p[0] - 2.0)];
            plain.step::<Exact>(step, &mut p, &gradient, &mut m, &mut v);
        }
        assert_close(&p, &[2.0], 1e-3);
    }
}
