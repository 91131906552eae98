//! `run linear`.

use clap::{Args, ValueEnum};
use host::ops::{self, Activation, WeightLayout};

use super::{Failure, Inputs, Outputs};

/// Options of `run linear`.
#[derive(Args)]
pub struct LinearOptions {
    /// Activation; swiglu and geglu take a weight of 2N columns, gates first.
    #[arg(long, value_enum, default_value = "none")]
    act: Act,
    /// Layout of w: [N, K] as in PyTorch, or [K, N] as in GPT-2.
    #[arg(long, value_enum, default_value = "nk")]
    weight: Weight,
}

#[derive(Clone, Copy, ValueEnum)]
enum Act {
    None,
    Relu,
    Silu,
    /// With the exact normal distribution.
    Gelu,
    /// With the hyperbolic tangent.
    GeluTanh,
    /// silu(gate) · up.
    Swiglu,
    /// gelu(gate) · up.
    Geglu,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weight {
    Nk,
    Kn,
}

/// x, w, bias (may be left out), residual (may be left out) → y.
pub fn linear(inputs: &Inputs, options: &LinearOptions) -> Result<Outputs, Failure> {
    let (activation, gated) = match options.act {
        Act::None => (Activation::Identity, false),
        Act::Relu => (Activation::Relu, false),
        Act::Silu => (Activation::Silu, false),
        Act::Gelu => (Activation::GeluErf, false),
        Act::GeluTanh => (Activation::GeluTanh, false),
        Act::Swiglu => (Activation::Silu, true),
        Act::Geglu => (Activation::GeluErf, true),
    };
    let mut layer = ops::linear(inputs.get("x")?, inputs.get("w")?).layout(match options.weight {
        Weight::Nk => WeightLayout::Nk,
        Weight::Kn => WeightLayout::Kn,
    });
    layer = if gated {
        layer.gated(activation)
    } else {
        layer.activation(activation)
    };
    if let Some(bias) = inputs.optional("bias") {
        layer = layer.bias(bias);
    }
    if let Some(residual) = inputs.optional("residual") {
        layer = layer.residual(residual);
    }
    Ok(Outputs::from([("y", layer.run()?)]))
}
