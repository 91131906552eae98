//! Linear layers.

use host::{
    AnyTensor, DType, Device, Error, Float, Result,
    compare::Rule,
    ops::{self, LinearMode, WeightLayout},
    reference::{
        Eager, Exact,
        activation::Activation,
        data::normal,
        linear::{LinearOptions, LinearShape, backward, forward},
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
    /// Whether the pre-activation is stored too, which Hopper's fastest kernels do not do.
    pub with_z: bool,
    /// The mode, where it takes the layer.
    pub mode: LinearMode,
    /// Elements of NaN behind each row.
    pub padding: usize,
    pub seed: u64,
}

/// Extents that tensor cores take, and any others.
fn extent(longest: usize) -> impl Strategy<Value = usize> {
    prop_oneof![2 => (1..longest / 8).prop_map(|n| 8 * n), 1 => 1..longest]
}

/// Layers, and now and then the gradients of one.
pub fn linear(size: Size) -> BoxedStrategy<Drawn> {
    prop_oneof![4 => layers(size), 1 => gradients(size)].boxed()
}

fn layers(size: Size) -> BoxedStrategy<Drawn> {
    let longest = size.choose(100, 700);
    let rows = prop_oneof![1 => 1..20usize, 2 => 1..size.choose(160usize, 700)];
    let options = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let alpha = proptest::sample::select(vec![1.0f32, -0.5, 2.0]);
    let activations = proptest::sample::select(Activation::ALL.to_vec());
    let padding = proptest::sample::select(vec![0usize, 0, 8, 3]);
    let modes = proptest::sample::select(vec![LinearMode::Auto, LinearMode::Auto, LinearMode::HopperCooperative]);
    boxed(
        (
            (rows, extent(longest), extent(longest)),
            options,
            activations,
            alpha,
            (any::<bool>(), modes),
            padding,
            seed(),
        )
            .prop_map(
                |((m, n, k), (kn, gated, bias, residual), activation, alpha, (with_z, mode), padding, seed)| Linear {
                    m,
                    n,
                    k,
                    layout: if kn { WeightLayout::Kn } else { WeightLayout::Nk },
                    activation,
                    gated,
                    alpha,
                    bias,
                    residual,
                    with_z,
                    mode,
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
        let run = |layer: ops::Linear<'_>| {
            if self.with_z {
                layer.run_with_pre_activation().map(|(y, z)| (y, Some(z)))
            } else {
                layer.run().map(|y| (y, None))
            }
        };
        let (y, z) = match run(layer.clone().mode(self.mode)) {
            Err(Error::Unsupported { .. }) => run(layer)?,
            done => done?,
        };
        let mut findings = vec![close::<T>("y", &y, &exact.y, &naive.y)?];
        if let Some(z) = z {
            findings.push(close::<T>(
                "pre-activation",
                &z,
                &exact.pre_activation,
                &naive.pre_activation,
            )?);
        }
        Ok(findings)
    }
}

/// The 2× rule; in f32 only the order of the sum differs from the naive result, whose own error may be 0 by luck.
fn close<T: Float>(name: &'static str, out: &AnyTensor, exact: &[f64], naive: &[f64]) -> Result<Finding> {
    let largest = exact.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
    let rule = if T::DTYPE == DType::F32 {
        Rule::Relative {
            relative: 1e-6,
            absolute: 1e-6 * largest,
        }
    } else {
        Rule::twice(naive)
    };
    held::<T>(name, out, exact, &[rule])
}

/// Gradients of `Σ dz ∘ (alpha·x·W + bias)`.
#[derive(Clone, Debug)]
struct Gradients {
    m: usize,
    n: usize,
    k: usize,
    layout: WeightLayout,
    alpha: f32,
    /// Elements of NaN behind each row.
    padding: usize,
    seed: u64,
}

fn gradients(size: Size) -> BoxedStrategy<Drawn> {
    let longest = size.choose(70, 500);
    let layouts = proptest::sample::select(vec![WeightLayout::Nk, WeightLayout::Kn]);
    let alpha = proptest::sample::select(vec![1.0f32, -0.5, 2.0]);
    let padding = proptest::sample::select(vec![0usize, 0, 8, 3]);
    let extents = (1..longest, extent(longest), extent(longest));
    boxed(
        (extents, layouts, alpha, padding, seed()).prop_map(|((m, n, k), layout, alpha, padding, seed)| Gradients {
            m,
            n,
            k,
            layout,
            alpha,
            padding,
            seed,
        }),
    )
}

impl Generic for Gradients {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Gradients { m, n, k, layout, .. } = *self;
        let draw = |part, len| normal::<T>(self.seed + part, len);
        let (x, w, bias, dz) = (draw(0, m * k), draw(1, n * k), draw(2, n), draw(3, m * n));
        let (xw, ww, bw, dw) = (widen(&x), widen(&w), widen(&bias), widen(&dz));
        let options = LinearOptions {
            weight: layout,
            alpha: f64::from(self.alpha),
            bias: Some(&bw),
            ..LinearOptions::default()
        };
        let shape = LinearShape { m, n, k };
        let exact = backward::<Exact>(shape, &options, &xw, &ww, &dw);
        let naive = backward::<Eager<T>>(shape, &options, &xw, &ww, &dw);
        let gap = [0, self.padding];
        let rows_of_w = if layout == WeightLayout::Nk { n } else { k };
        let (x, w) = (spaced(device, &x, m, gap)?, spaced(device, &w, rows_of_w, gap)?);
        let (bias, dz) = (dense(device, &bias, &[n])?, spaced(device, &dz, m, gap)?);
        let layer = ops::linear(&x, &w).layout(layout).alpha(self.alpha).bias(&bias);
        let found = layer.backward(&dz)?;
        let mut findings = vec![
            close::<T>("dx", &found.dx, &exact.dx, &naive.dx)?,
            close::<T>("dw", &found.dw, &exact.dw, &naive.dw)?,
        ];
        if let Some(dbias) = &found.dbias {
            findings.push(close::<T>("dbias", dbias, &exact.dbias, &naive.dbias)?);
        }
        Ok(findings)
    }
}
