//! Activations of several values in f32, at every argument from −∞ to ∞, to full precision or to that of 16 bits.

use super::{GELU_ERF, GELU_TANH, RELU, SILU};
use cuda_std::math::{ex2, fma, fmax_nan, rcp};

const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// What [`LOG2_E`] lacks of log₂ e.
const LOG2_E_LOW: f32 = 1.925_963_1e-8;

/// `eˣ`, relative error below 2⁻²¹: the product with log₂ e is carried to twice the precision.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let high = x * LOG2_E;
    let low = fma(x, LOG2_E_LOW, fma(x, LOG2_E, -high));
    let power = ex2(high);
    // At ±∞ and beyond the range the correction is NaN, or meets 0 or ∞: the power alone is right.
    let corrected = fma(power, low * core::f32::consts::LN_2, power);
    if high.abs() < 126.0 { corrected } else { power }
}

/// `eˣ` for results of 16 bits: one product and one instruction. The relative error grows with the argument, as
/// `|x|·2⁻²⁴`: below 2⁻¹⁷ wherever the result is a normal f32.
#[inline(always)]
pub fn exp_fast(x: f32) -> f32 {
    ex2(x * LOG2_E)
}

/// `x / (1 + e)`, and 0 where that is −∞ · 0.
#[inline(always)]
fn over_one_plus(x: f32, e: f32) -> f32 {
    let value = x * rcp(1.0 + e);
    if x == f32::NEG_INFINITY { 0.0 } else { value }
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32, exp: impl Fn(f32) -> f32) -> f32 {
    over_one_plus(x, exp(-x))
}

/// `x/2 · (1 + tanh u)` with `u = √(2/π)·(x + 0.044715 x³)`, as `x · sigmoid(2u)`, which does not cancel.
#[inline(always)]
pub fn gelu_tanh(x: f32, exp: impl Fn(f32) -> f32) -> f32 {
    const LINEAR: f32 = -1.595_769_1;
    const CUBIC: f32 = -0.071_354_814;
    over_one_plus(x, exp(x * fma(CUBIC, x * x, LINEAR)))
}

/// `x · Φ(x) = x/2 · erfc(−x/√2)`.
///
/// erfc by a Chebyshev fit of `ln(erfc(z)·eᶻ²/t)` in `t = 1/(1 + z/2)` for `z ≥ 0`, relative error 1.2·10⁻⁷ (Press et
/// al., *Numerical Recipes*, 6.2.2), and by `2 − erfc(−z)` elsewhere.
#[inline(always)]
pub fn gelu_erf(x: f32, exp: impl Fn(f32) -> f32) -> f32 {
    let z = x.abs() * core::f32::consts::FRAC_1_SQRT_2;
    let t = rcp(fma(0.5, z, 1.0));
    let mut p = fma(t, 0.170_872_77, -0.822_152_23);
    p = fma(t, p, 1.488_515_9);
    p = fma(t, p, -1.135_203_9);
    p = fma(t, p, 0.278_868_06);
    p = fma(t, p, -0.186_288_06);
    p = fma(t, p, 0.096_784_18);
    p = fma(t, p, 0.374_091_96);
    p = fma(t, p, 1.000_023_7);
    p = fma(t, p, -1.265_512_2);
    let tail = t * exp(fma(-z, z, p));
    let erfc = if x < 0.0 { tail } else { 2.0 - tail };
    let value = 0.5 * x * erfc;
    if x == f32::NEG_INFINITY { 0.0 } else { value }
}

/// The activation with this code, of any number of values.
#[inline(always)]
pub fn activate<const N: usize>(activation: u32, z: [f32; N]) -> [f32; N] {
    activate_by(activation, z, exp)
}

/// The same for results of 16 bits.
#[inline(always)]
pub fn activate_fast(activation: u32, z: [f32; 8]) -> [f32; 8] {
    activate_by(activation, z, exp_fast)
}

/// `x · sigmoid(x)` for results of 16 bits, on sm_80 and later.
///
/// The finite number that −∞ becomes gives −0 and not the NaN of −∞ · 0; no other result depends on it.
#[inline(always)]
fn silu_short(x: f32) -> f32 {
    let x = fmax_nan(x, f32::MIN);
    x * rcp(1.0 + ex2(x * -LOG2_E))
}

/// [`gelu_tanh`] for results of 16 bits, on sm_80 and later: the constants carry the factor log₂ e.
#[inline(always)]
fn gelu_tanh_short(x: f32) -> f32 {
    const LINEAR: f32 = -2.302_208_2;
    const CUBIC: f32 = -0.102_943_24;
    let x = fmax_nan(x, f32::MIN);
    x * rcp(1.0 + ex2(x * fma(CUBIC, x * x, LINEAR)))
}

/// The activation with this code, of any number of values, for results of 16 bits, in the fewest instructions that
/// sm_80 and later have.
#[inline(always)]
pub fn activate_short<const N: usize>(activation: u32, z: [f32; N]) -> [f32; N] {
    match activation {
        SILU => each(z, silu_short),
        GELU_TANH => each(z, gelu_tanh_short),
        _ => activate_by(activation, z, exp_fast),
    }
}

#[inline(always)]
fn activate_by<const N: usize>(activation: u32, z: [f32; N], exp: impl Fn(f32) -> f32 + Copy) -> [f32; N] {
    match activation {
        // A NaN is not below 0.
        RELU => each(z, |z| if z < 0.0 { 0.0 } else { z }),
        SILU => each(z, |z| silu(z, exp)),
        GELU_ERF => each(z, |z| gelu_erf(z, exp)),
        GELU_TANH => each(z, |z| gelu_tanh(z, exp)),
        _ => z,
    }
}

/// `f` of each value. (`array::map` is not always inlined on this target.)
#[inline(always)]
fn each<const N: usize>(mut z: [f32; N], f: impl Fn(f32) -> f32) -> [f32; N] {
    let mut i = 0;
    while i < N {
        z[i] = f(z[i]);
        i += 1;
    }
    z
}
