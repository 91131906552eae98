//! Linear layers: `y = act(alpha · x·W + bias) + residual`.

use rayon::prelude::*;

use super::activation::{self, Activation};
use super::{Precision, dot, sum};

/// How the weight matrix lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[n, k]`, as PyTorch's `Linear` has it.
    #[default]
    Nk,
    /// `[k, n]`, as GPT-2's `Conv1D` has it.
    Kn,
}

/// Sizes: `x [m, k]`, `y [m, n]`. A gated layer's weight has `2n` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of `x`.
    pub m: usize,
    /// Features of `y`.
    pub n: usize,
    /// Features of `x`.
    pub k: usize,
}

/// What happens around the product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearOptions<'a> {
    /// Layout of the weight.
    pub weight: WeightLayout,
    /// The activation.
    pub activation: Activation,
    /// Gated pair: the weight's first `n` columns are gates, its second `n` are multiplied by their
    /// activation.
    pub gated: bool,
    /// Factor of the product.
    pub alpha: f64,
    /// `[n]`, or `[2n]` when gated.
    pub bias: Option<&'a [f64]>,
    /// `[m, n]`, added last.
    pub residual: Option<&'a [f64]>,
}

impl Default for LinearOptions<'_> {
    fn default() -> Self {
        LinearOptions {
            weight: WeightLayout::Nk,
            activation: Activation::Identity,
            gated: false,
            alpha: 1.0,
            bias: None,
            residual: None,
        }
    }
}

/// Result of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[m, n]`.
    pub y: Vec<f64>,
    /// What entered the activation, `[m, n]`, or `[m, 2n]` when gated.
    pub pre_activation: Vec<f64>,
}

/// The layer. With `k = 0` the product is 0.
///
/// # Panics
/// When the slices do not have the lengths that `shape` and `options` ask for.
pub fn forward<P: Precision>(shape: LinearShape, options: &LinearOptions, x: &[f64], w: &[f64]) -> Linear {
    let LinearShape { m, n, k } = shape;
    let columns = if options.gated { 2 * n } else { n };
    assert_eq!(x.len(), m * k, "x");
    assert_eq!(w.len(), columns * k, "weight");
    let mut pre_activation = match options.weight {
        WeightLayout::Nk => multiply::<P>(x, w, (m, columns, k)),
        WeightLayout::Kn => multiply::<P>(x, &transposed(w, k, columns), (m, columns, k)),
    };
    if options.alpha != 1.0 {
        pre_activation
            .iter_mut()
            .for_each(|z| *z = P::store(*z * options.alpha));
    }
    if let Some(bias) = options.bias {
        assert_eq!(bias.len(), columns, "bias");
        for (index, z) in pre_activation.iter_mut().enumerate() {
            *z = P::store(*z + bias[index % columns]);
        }
    }
    let mut y = if options.gated {
        let half = |start: usize| -> Vec<f64> {
            (0..m * n)
                .map(|i| pre_activation[i / n * columns + start + i % n])
                .collect()
        };
        activation::gated::<P>(options.activation, &half(0), &half(n))
    } else {
        activation::forward::<P>(options.activation, &pre_activation)
    };
    if let Some(residual) = options.residual {
        assert_eq!(residual.len(), m * n, "residual");
        y.iter_mut()
            .zip(residual)
            .for_each(|(y, residual)| *y = P::store(*y + residual));
    }
    Linear { y, pre_activation }
}

/// Gradients of the layer's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGradients {
    /// Of `x`.
    pub dx: Vec<f64>,
    /// Of the weight, in its layout.
    pub dw: Vec<f64>,
    /// Of the bias, whether there is one or not.
    pub dbias: Vec<f64>,
}

/// Gradients of `Σ grad ∘ y`; that of the residual is `grad` itself.
pub fn backward<P: Precision>(
    shape: LinearShape,
    options: &LinearOptions,
    x: &[f64],
    w: &[f64],
    grad: &[f64],
) -> LinearGradients {
    let LinearShape { m, n, k } = shape;
    let columns = if options.gated { 2 * n } else { n };
    assert_eq!(grad.len(), m * n, "gradient");
    let z = forward::<P>(shape, options, x, w).pre_activation;
    let dz = if options.gated {
        let half = |start: usize| -> Vec<f64> { (0..m * n).map(|i| z[i / n * columns + start + i % n]).collect() };
        let (dgate, dup) = activation::gated_backward::<P>(options.activation, &half(0), &half(n), grad);
        let rows = dgate.chunks(n.max(1)).zip(dup.chunks(n.max(1)));
        rows.flat_map(|(gate, up)| [gate, up].concat()).collect()
    } else {
        activation::backward::<P>(options.activation, &z, grad)
    };
    let dz_t = transposed(&dz, m, columns);
    let dbias = (0..columns)
        .map(|column| P::store(sum::<P>(dz_t[column * m..][..m].iter().copied())))
        .collect();
    let w_kn = match options.weight {
        WeightLayout::Nk => transposed(w, columns, k),
        WeightLayout::Kn => w.to_vec(),
    };
    let mut dx = multiply::<P>(&dz, &w_kn, (m, k, columns));
    let x_t = transposed(x, m, k);
    let mut dw = match options.weight {
        WeightLayout::Nk => multiply::<P>(&dz_t, &x_t, (columns, k, m)),
        WeightLayout::Kn => multiply::<P>(&x_t, &dz_t, (k, columns, m)),
    };
    if options.alpha != 1.0 {
        dx.iter_mut()
            .chain(&mut dw)
            .for_each(|grad| *grad = P::store(*grad * options.alpha));
    }
    LinearGradients { dx, dw, dbias }
}

/// `a·bᵀ` of `a [m, k]` and `b [n, k]`.
pub fn multiply<P: Precision>(a: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    y.par_chunks_mut(n.max(1)).enumerate().for_each(|(row, y)| {
        for (column, y) in y.iter_mut().enumerate() {
            *y = P::store(dot::<P>(&a[row * k..][..k], &b[column * k..][..k]));
        }
    });
    y
}

fn transposed(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    super::elementwise::transpose(x, rows, columns)
}

#[cfg(test)]
mod tests {
    use super::super::data::normal;
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Eager, Exact, assert_close, widen};
    use super::*;
    use half::f16;

    #[test]
    fn by_hand_in_both_layouts() {
        let shape = LinearShape { m: 2, n: 2, k: 3 };
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let options = LinearOptions {
            alpha: 2.0,
            bias: Some(&[1.0, -100.0]),
            residual: Some(&[0.5; 4]),
            activation: Activation::Relu,
            ..Default::default()
        };
        let nk = forward::<Exact>(shape, &options, &x, &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(nk.pre_activation, [9.0, -96.0, 21.0, -90.0]);
        assert_eq!(nk.y, [9.5, 0.5, 21.5, 0.5]);
        let kn = LinearOptions {
            weight: WeightLayout::Kn,
            ..options
        };
        assert_eq!(forward::<Exact>(shape, &kn, &x, &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), nk);
    }

    #[test]
    fn gates_come_first() {
        let shape = LinearShape { m: 1, n: 2, k: 1 };
        let options = LinearOptions {
            gated: true,
            activation: Activation::Relu,
            ..Default::default()
        };
        let result = forward::<Exact>(shape, &options, &[1.0], &[-1.0, 3.0, 5.0, 7.0]);
        assert_eq!(result.y, [0.0, 21.0]);
        assert_eq!(result.pre_activation, [-1.0, 3.0, 5.0, 7.0]);
    }

    #[test]
    fn empty_sizes() {
        let bias = [1.0, 2.0];
        let options = LinearOptions {
            bias: Some(&bias),
            ..Default::default()
        };
        let no_k = forward::<Exact>(LinearShape { m: 2, n: 2, k: 0 }, &options, &[], &[]);
        assert_eq!(no_k.y, [1.0, 2.0, 1.0, 2.0]);
        let no_m = forward::<Exact>(LinearShape { m: 0, n: 2, k: 1 }, &options, &[], &[1.0, 1.0]);
        assert!(no_m.y.is_empty());
        let shape = LinearShape { m: 1, n: 0, k: 1 };
        assert!(
            forward::<Exact>(shape, &LinearOptions::default(), &[1.0], &[])
                .y
                .is_empty()
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        let shape = LinearShape { m: 3, n: 4, k: 5 };
        for (weight, gated, activation) in [
            (WeightLayout::Nk, false, Activation::GeluTanh),
            (WeightLayout::Kn, false, Activation::Identity),
            (WeightLayout::Nk, true, Activation::Silu),
            (WeightLayout::Kn, true, Activation::GeluErf),
        ] {
            let columns = if gated { 8 } else { 4 };
            let x = widen(&normal::<f32>(1, 15));
            let w = widen(&normal::<f32>(2, columns * 5));
            let bias = widen(&normal::<f32>(3, columns));
            let grad = widen(&normal::<f32>(4, 12));
            let base = LinearOptions {
                weight,
                gated,
                activation,
                alpha: 0.7,
                ..Default::default()
            };
            let run = |x: &[f64], w: &[f64], bias: &[f64]| {
                forward::<Exact>(
                    shape,
                    &LinearOptions {
                        bias: Some(bias),
                        ..base
                    },
                    x,
                    w,
                )
                .y
            };
            let options = LinearOptions {
                bias: Some(&bias),
                ..base
            };
            let g = backward::<Exact>(shape, &options, &x, &w, &grad);
            assert_close(&g.dx, &vector_jacobian(&x, &grad, |x| run(x, &w, &bias)), 1e-7);
            assert_close(&g.dw, &vector_jacobian(&w, &grad, |w| run(&x, w, &bias)), 1e-7);
            assert_close(&g.dbias, &vector_jacobian(&bias, &grad, |b| run(&x, &w, b)), 1e-7);
        }
    }

    #[test]
    fn eager_rounds_between_operations() {
        let shape = LinearShape { m: 1, n: 1, k: 2 };
        // 2048 + 1 is not an f16, and neither is the sum after the bias.
        let options = LinearOptions {
            bias: Some(&[1.0]),
            ..Default::default()
        };
        let eager = forward::<Eager<f16>>(shape, &options, &[2048.0, 1.0], &[1.0, 1.0]);
        assert_eq!(eager.y, [2048.0]);
        assert_eq!(
            forward::<Exact>(shape, &options, &[2048.0, 1.0], &[1.0, 1.0]).y,
            [2050.0]
        );
    }
}
