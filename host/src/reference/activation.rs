//! Activations and their derivatives.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::Precision;

/// An elementwise function between two linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x`.
    #[default]
    Identity,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the exact normal distribution.
    GeluErf,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 5] = [
        Activation::Identity,
        Activation::Relu,
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
    ];

    /// The value at `x`, not yet rounded to the output's dtype. At −∞ it is the limit, 0.
    pub fn value<P: Precision>(self, x: f64) -> f64 {
        if x == f64::NEG_INFINITY && self != Activation::Identity {
            return 0.0;
        }
        match self {
            Activation::Identity => x,
            Activation::Relu if x < 0.0 => 0.0,
            Activation::Relu => x,
            Activation::Silu => P::step(x * sigmoid::<P>(x)),
            // erfc rather than 1 + erf, which cancels for negative x.
            Activation::GeluErf => P::step(P::step(0.5 * x) * P::step(libm::erfc(P::step(-x * FRAC_1_SQRT_2)))),
            // (1 + tanh u) / 2 = sigmoid(2u), which does not cancel for negative u.
            Activation::GeluTanh => P::step(x * sigmoid::<P>(P::step(2.0 * tanh_argument::<P>(x)))),
        }
    }

    /// The derivative at `x`, not yet rounded; 0 for ReLU at 0, and the limits at ±∞.
    pub fn derivative<P: Precision>(self, x: f64) -> f64 {
        if x.is_infinite() && self != Activation::Identity {
            return f64::from(x > 0.0);
        }
        match self {
            Activation::Identity => 1.0,
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => f64::from(x > 0.0),
            Activation::Silu => {
                let s = sigmoid::<P>(x);
                P::step(s * P::step(1.0 + P::step(x * P::step(1.0 - s))))
            }
            Activation::GeluErf => {
                let cdf = P::step(0.5 * P::step(libm::erfc(P::step(-x * FRAC_1_SQRT_2))));
                let exp = P::step(P::step(-0.5 * P::step(x * x)).exp());
                P::step(cdf + P::step(x * P::step(exp / (2.0 * PI).sqrt())))
            }
            Activation::GeluTanh => {
                let s = sigmoid::<P>(P::step(2.0 * tanh_argument::<P>(x)));
                let cubic = P::step(1.0 + P::step(3.0 * CUBIC * P::step(x * x)));
                let slope = P::step(2.0 * (2.0 / PI).sqrt() * cubic);
                // Where s is 0 or 1 in this precision the bend is gone, however steep the slope.
                let bend = P::step(s * P::step(1.0 - s));
                if bend == 0.0 {
                    s
                } else {
                    P::step(s + P::step(x * P::step(bend * slope)))
                }
            }
        }
    }
}

const CUBIC: f64 = 0.044715;

fn sigmoid<P: Precision>(x: f64) -> f64 {
    P::step(1.0 / P::step(1.0 + P::step((-x).exp())))
}

fn tanh_argument<P: Precision>(x: f64) -> f64 {
    let cube = P::step(P::step(x * x) * x);
    P::step((2.0 / PI).sqrt() * P::step(x + P::step(CUBIC * cube)))
}

/// `act(x)` elementwise.
pub fn forward<P: Precision>(activation: Activation, x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| P::store(activation.value::<P>(x))).collect()
}

/// `grad · act'(x)` elementwise.
pub fn backward<P: Precision>(activation: Activation, x: &[f64], grad: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), grad.len(), "gradient");
    x.iter()
        .zip(grad)
        .map(|(&x, g)| P::store(g * activation.derivative::<P>(x)))
        .collect()
}

/// A gated pair: `act(gate) · up` elementwise (SwiGLU with SiLU, GeGLU with GELU).
pub fn gated<P: Precision>(activation: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len(), "gated pair");
    let gate = forward::<P>(activation, gate);
    gate.iter().zip(up).map(|(gate, up)| P::store(gate * up)).collect()
}

/// Gradients of [`gated`] by `gate` and by `up`.
pub fn gated_backward<P: Precision>(
    activation: Activation,
    gate: &[f64],
    up: &[f64],
    grad: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let value = forward::<P>(activation, gate);
    let through: Vec<f64> = grad.iter().zip(up).map(|(g, up)| P::store(g * up)).collect();
    let grad_up = grad.iter().zip(&value).map(|(g, value)| P::store(g * value)).collect();
    (backward::<P>(activation, gate, &through), grad_up)
}

#[cfg(test)]
mod tests {
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Eager, Exact, assert_close};
    use super::*;
    use half::f16;

    #[test]
    fn known_values() {
        let at = |activation: Activation, x| activation.value::<Exact>(x);
        assert_close(&[at(Activation::GeluErf, 1.0)], &[0.8413447460685429], 1e-14);
        assert_close(&[at(Activation::GeluErf, -2.0)], &[-0.04550026389635842], 1e-14);
        assert_close(&[at(Activation::GeluTanh, 1.0)], &[0.8411919906082768], 1e-14);
        assert_close(&[at(Activation::Silu, 1.0)], &[0.7310585786300049], 1e-14);
        assert_eq!([at(Activation::Relu, -3.0), at(Activation::Relu, 3.0)], [0.0, 3.0]);
    }

    #[test]
    fn limits_and_signs_from_minus_to_plus_infinity() {
        let inf = f64::INFINITY;
        let points = [-inf, -1e20, -40.0, -10.0, -5.0, 0.0, 5.0, 11.0, 20.0, 40.0, 1e20, inf];
        for activation in [
            Activation::Relu,
            Activation::Silu,
            Activation::GeluErf,
            Activation::GeluTanh,
        ] {
            for x in points {
                let y = activation.value::<Exact>(x);
                let slope = activation.derivative::<Exact>(x);
                assert!(!y.is_nan() && !slope.is_nan(), "{activation:?}({x})");
                assert!(if x > 0.0 { y > 0.0 } else { y <= 0.0 }, "{activation:?}({x}) = {y}");
                assert!((y - x.max(0.0)).abs() < 0.04 || y == x, "{activation:?}({x}) = {y}");
                let eager = activation.derivative::<Eager<f16>>(x);
                assert!((slope - eager).abs() < 1e-5, "{activation:?}'({x}): {eager} {slope}");
            }
            assert_eq!(activation.value::<Exact>(f64::INFINITY), f64::INFINITY);
            assert!(activation.value::<Exact>(f64::NAN).is_nan());
            assert!(activation.derivative::<Exact>(f64::NAN).is_nan());
        }
    }

    #[test]
    fn derivatives_match_finite_differences() {
        let x: Vec<f64> = (-40..40).map(|i| 0.2 * f64::from(i) + 0.05).collect();
        let grad: Vec<f64> = x.iter().map(|x| 1.0 + x.sin()).collect();
        for activation in Activation::ALL {
            let numeric = vector_jacobian(&x, &grad, |x| forward::<Exact>(activation, x));
            assert_close(&backward::<Exact>(activation, &x, &grad), &numeric, 1e-8);
            let up: Vec<f64> = x.iter().map(|x| x.cos()).collect();
            let (dgate, dup) = gated_backward::<Exact>(activation, &x, &up, &grad);
            let numeric = vector_jacobian(&x, &grad, |x| gated::<Exact>(activation, x, &up));
            assert_close(&dgate, &numeric, 1e-8);
            let numeric = vector_jacobian(&up, &grad, |up| gated::<Exact>(activation, &x, up));
            assert_close(&dup, &numeric, 1e-8);
        }
    }
}
