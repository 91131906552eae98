//! Linear layers.

use host::{
    DType, Device, Float, Result,
    compare::Rule,
    ops::{self, WeightLayout},
    reference::{
        Eager, Exact,
        activation::Activation,
        data::normal,
        linear::{LinearOptions, LinearShape, forward},
        widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, dense, held, seed, spaced};

#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub layout: WeightLayout,
    pub activation: Activation,
    pub gated: bool,
    pub alpha: f32,
    pub bias: bool,
    pub residual: bool,
    /// Elements of NaN behind each row.
    pub padding: usize,
    pub seed: u64,
}

/// Extents that tensor cores take, and any others.
fn extent(longest: usize) -> impl Strategy<Value = usize> {
    prop_oneof![2 => (1..longest / 8).prop_map(|n| 8 * n), 1 => 1..longest]
}

pub fn linear(size: Size) -> BoxedStrategy<Drawn> {
    let longest = size.choose(100, 700);
    let rows = prop_oneof![1 => 1..20usize, 2 => 1..size.choose(160usize, 700)];
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let alpha = proptest::sample::select(vec![1.0f32, -0.5, 2.0]);
    let activations = proptest::sample::select(Activation::ALL.to_vec());
    let padding = proptest::sample::select(vec![0usize, 0, 8, 3]);
    boxed(
        (
            rows,
            extent(longest),
            extent(longest),
            options,
            activations,
            alpha,
            padding,
            seed(),
        )
            .prop_map(
                |(m, n, k, (kn, gated, bias, residual), activation, alpha, padding, seed)| Linear {
                    m,
                    n,
                    k,
                    layout: if kn { WeightLayout::Kn } else { WeightLayout::Nk },
                    activation,
                    gated,
                    alpha,
                    bias,
                    residual,
                    padding,
                    seed,
                },
            ),
    )
}

impl Generic for Linear {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Linear { m, n, k, .. } = *self;
        let columns = if self.gated { 2 * n } else { n };
        let scale = (k as f64).powf(-0.5);
        let x: Vec<T> = normal(self.seed, m * k);
        let w: Vec<T> = normal::<T>(self.seed + 1, columns * k)
            .iter()
            .map(|w| T::from_f64(w.to_f64() * scale))
            .collect();
        let (bias, residual): (Vec<T>, Vec<T>) = (normal(self.seed + 2, columns), normal(self.seed + 3, m * n));
        let (bw, rw, xw, ww) = (widen(&bias), widen(&residual), widen(&x), widen(&w));
        let options = LinearOptions {
            weight: self.layout,
            activation: self.activation,
            gated: self.gated,
            alpha: f64::from(self.alpha),
            bias: self.bias.then_some(&bw[..]),
            residual: self.residual.then_some(&rw[..]),
        };
        let shape = LinearShape { m, n, k };
        let exact = forward::<Exact>(shape, &options, &xw, &ww);
        let naive = forward::<Eager<T>>(shape, &options, &xw, &ww);
        let gap = [0, self.padding];
        let x = spaced(device, &x, m, gap)?;
        let w = spaced(
            device,
            &w,
            if self.layout == WeightLayout::Nk { columns } else { k },
            gap,
        )?;
        let bias = dense(device, &bias, &[columns])?;
        let residual = spaced(device, &residual, m, gap)?;
        let mut layer = ops::linear(&x, &w).layout(self.layout).alpha(self.alpha);
        layer = if self.gated {
            layer.gated(self.activation)
        } else {
            layer.activation(self.activation)
        };
        if self.bias {
            layer = layer.bias(&bias);
        }
        if self.residual {
            layer = layer.residual(&residual);
        }
        let (y, z) = layer.run_with_pre_activation()?;
        let mut findings = Vec::new();
        for (name, out, exact, naive) in [
            ("y", &y, &exact.y, &naive.y),
            ("pre-activation", &z, &exact.pre_activation, &naive.pre_activation),
        ] {
            // In f32 only the order of the sum differs from the naive result, whose own error may be 0 by luck.
            let largest = exact.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
            let close = Rule::Relative {
                relative: 1e-6,
                absolute: 1e-6 * largest,
            };
            let rule = if T::DTYPE == DType::F32 {
                close
            } else {
                Rule::twice(naive)
            };
            findings.push(held::<T>(name, out, exact, &[rule])?);
        }
        Ok(findings)
    }
}
