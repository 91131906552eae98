//! Activations and their derivatives in f32 registers.
//!
//! `tanh` and `erf` are never taken near 1 and subtracted: GELU is `x·sigmoid(2u)` and `x·erfc(−x/√2)/2`, which keep
//! their relative precision for negative `x`. The limits at ±∞ are exact, and NaN stays NaN.

/// `x`.
pub const IDENTITY: u32 = 0;
/// `max(x, 0)`.
pub const RELU: u32 = 1;
/// `x · sigmoid(x)`.
pub const SILU: u32 = 2;
/// `x/2 · (1 + erf(x/√2))`.
pub const GELU_ERF: u32 = 3;
/// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715x³)))`.
pub const GELU_TANH: u32 = 4;

#[cfg(target_arch = "nvptx64")]
pub mod eight;

#[cfg(target_arch = "nvptx64")]
pub use device::{derivative, value};

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use cuda_std::math::{ex2, fma, rcp};

    const LOG2_E: f32 = core::f32::consts::LOG2_E;
    /// √(2/π).
    const TANH_FACTOR: f32 = 0.797_884_56;
    const CUBIC: f32 = 0.044_715;
    const FRAC_1_SQRT_2: f32 = core::f32::consts::FRAC_1_SQRT_2;
    /// 1 / √(2π).
    const DENSITY: f32 = 0.398_942_28;

    /// `e^x`; the product with log₂ e is carried to twice the precision.
    #[inline(always)]
    fn exp(x: f32) -> f32 {
        let high = x * LOG2_E;
        // The low part of the product and of log₂ e itself; where `high` is infinite it is a NaN, and not used.
        let low = fma(x, 1.925_963_e-8, fma(x, LOG2_E, -high));
        let power = ex2(high);
        let corrected = fma(power, low * core::f32::consts::LN_2, power);
        if power > 0.0 && power < f32::INFINITY {
            corrected
        } else {
            power
        }
    }

    /// `1 / (1 + e^−x)`, from 0 at −∞ to 1 at ∞.
    #[inline(always)]
    fn sigmoid(x: f32) -> f32 {
        rcp(1.0 + exp(-x))
    }

    /// `erfc(z)` for any `z`: `e^{−z²}·t·P(t)` with `t = 1/(1 + 0.4z)` for `z ≥ 0`, a polynomial fitted to 2⁻²⁵.
    #[inline(always)]
    fn erfc(z: f32) -> f32 {
        let positive = if z < 0.0 { -z } else { z };
        let t = 1.0 / fma(0.4, positive, 1.0);
        let mut p = -0.029_343_85;
        p = fma(p, t, 0.141_100_22);
        p = fma(p, t, -0.236_944_96);
        p = fma(p, t, 0.139_278_27);
        p = fma(p, t, -0.048_167_93);
        p = fma(p, t, 0.084_512_77);
        p = fma(p, t, 0.118_831_98);
        p = fma(p, t, 0.171_771_2);
        p = fma(p, t, 0.207_610_43);
        p = fma(p, t, 0.225_676_02);
        p = fma(p, t, 0.225_675_83);
        let tail = exp(-positive * positive) * (t * p);
        if z < 0.0 { 2.0 - tail } else { tail }
    }

    /// `2√(2/π)·(x + 0.044715x³)`: GELU tanh is `x·sigmoid` of it.
    #[inline(always)]
    fn tanh_argument(x: f32) -> f32 {
        2.0 * TANH_FACTOR * fma(CUBIC * x * x, x, x)
    }

    /// The value of activation `kind` at `x`.
    #[inline(always)]
    pub fn value(kind: u32, x: f32) -> f32 {
        if kind == IDENTITY {
            return x;
        }
        if kind == RELU {
            return if x < 0.0 { 0.0 } else { x };
        }
        let share = match kind {
            SILU => sigmoid(x),
            GELU_ERF => 0.5 * erfc(-x * FRAC_1_SQRT_2),
            _ => sigmoid(tanh_argument(x)),
        };
        if x == f32::NEG_INFINITY { 0.0 } else { x * share }
    }

    /// The derivative of activation `kind` at `x`; 0 for ReLU at 0.
    #[inline(always)]
    pub fn derivative(kind: u32, x: f32) -> f32 {
        if kind == IDENTITY {
            return 1.0;
        }
        if kind == RELU {
            return if x > 0.0 {
                1.0
            } else if x <= 0.0 {
                0.0
            } else {
                x
            };
        }
        if x == f32::NEG_INFINITY {
            return 0.0;
        }
        if x == f32::INFINITY {
            return 1.0;
        }
        match kind {
            SILU => {
                let s = sigmoid(x);
                // 1 − s = sigmoid(−x), which does not cancel.
                let bend = x * sigmoid(-x);
                if s == 0.0 { 0.0 } else { s * (1.0 + bend) }
            }
            GELU_ERF => {
                let density = DENSITY * exp(-0.5 * x * x);
                let cdf = 0.5 * erfc(-x * FRAC_1_SQRT_2);
                if density == 0.0 { cdf } else { fma(x, density, cdf) }
            }
            _ => {
                let u = tanh_argument(x);
                let s = sigmoid(u);
                let slope = 2.0 * TANH_FACTOR * fma(3.0 * CUBIC * x, x, 1.0);
                let bend = s * sigmoid(-u);
                // Where it is gone, however steep the slope.
                if bend == 0.0 { s } else { fma(x, bend * slope, s) }
            }
        }
    }
}
