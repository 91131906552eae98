//! RMSNorm and LayerNorm of rows, with the residual sum in front.

use rayon::prelude::*;

use super::{Precision, dot, sum};

/// Which norm, and its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormOptions<'a> {
    /// Subtract the mean (LayerNorm), or not (RMSNorm).
    pub centered: bool,
    /// Added to the mean square.
    pub epsilon: f64,
    /// `[columns]`; 1 unless given.
    pub weight: Option<&'a [f64]>,
    /// `[columns]`; 0 unless given.
    pub bias: Option<&'a [f64]>,
    /// Added to the input first.
    pub residual: Option<&'a [f64]>,
}

/// Result of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// The normalised rows.
    pub y: Vec<f64>,
    /// `x + residual`, rounded as stored; what was normalised.
    pub sum: Vec<f64>,
}

/// Gradients of the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct NormGradients {
    /// Of `x`, and of the residual.
    pub dx: Vec<f64>,
    /// Of the weight.
    pub dweight: Vec<f64>,
    /// Of the bias.
    pub dbias: Vec<f64>,
}

/// `x̂ = (s − mean) / √(mean square + ε)` of a row, and `1 / √(…)`.
fn normalized<P: Precision>(row: &[f64], options: &NormOptions) -> (Vec<f64>, f64) {
    let len = row.len() as f64;
    let mean = if options.centered {
        P::step(sum::<P>(row.iter().copied()) / len)
    } else {
        0.0
    };
    let centered: Vec<f64> = row.iter().map(|x| P::step(x - mean)).collect();
    let square = P::step(dot::<P>(&centered, &centered) / len);
    let reciprocal = P::step(1.0 / P::step(P::step(square + options.epsilon).sqrt()));
    (centered.iter().map(|x| P::step(x * reciprocal)).collect(), reciprocal)
}

/// `y = x̂ · weight + bias` of each row of `x + residual`.
pub fn forward<P: Precision>(x: &[f64], columns: usize, options: &NormOptions) -> Norm {
    let sum = match options.residual {
        Some(residual) => {
            assert_eq!(residual.len(), x.len(), "residual");
            x.iter().zip(residual).map(|(x, r)| P::store(x + r)).collect()
        }
        None => x.to_vec(),
    };
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(columns.max(1))
        .zip(sum.par_chunks(columns.max(1)))
        .for_each(|(y, row)| {
            let (unit, _) = normalized::<P>(row, options);
            for (column, (y, unit)) in y.iter_mut().zip(unit).enumerate() {
                *y = P::store(unit);
                if let Some(weight) = options.weight {
                    *y = P::store(*y * weight[column]);
                }
                if let Some(bias) = options.bias {
                    *y = P::store(*y + bias[column]);
                }
            }
        });
    Norm { y, sum }
}

/// Gradients of `Σ grad ∘ y + Σ grad_sum ∘ sum`.
///
/// `grad_sum` is what flows back along the residual stream when `sum` was used further.
pub fn backward<P: Precision>(
    x: &[f64],
    columns: usize,
    options: &NormOptions,
    grad: &[f64],
    grad_sum: Option<&[f64]>,
) -> NormGradients {
    let rows = x.len().checked_div(columns).unwrap_or(0);
    let summed = forward::<P>(x, columns, options).sum;
    let (mut units, mut dx) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for row in 0..rows {
        let range = row * columns..(row + 1) * columns;
        let (unit, reciprocal) = normalized::<P>(&summed[range.clone()], options);
        let through: Vec<f64> = grad[range.clone()]
            .iter()
            .enumerate()
            .map(|(column, g)| options.weight.map_or(*g, |w| P::store(g * w[column])))
            .collect();
        let along = P::step(dot::<P>(&through, &unit) / columns as f64);
        let mean = if options.centered {
            P::step(sum::<P>(through.iter().copied()) / columns as f64)
        } else {
            0.0
        };
        for (index, (g, unit)) in range.zip(through.iter().zip(&unit)) {
            let inner = P::step(P::step(g - mean) - P::step(unit * along));
            let here = P::store(inner * reciprocal);
            dx.push(grad_sum.map_or(here, |grad_sum| P::store(here + grad_sum[index])));
        }
        units.extend(unit);
    }
    let over_rows = |term: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..columns)
            .map(|c| P::store(sum::<P>((0..rows).map(|row| term(row * columns + c)))))
            .collect()
    };
    let dweight = over_rows(&|i| P::step(grad[i] * P::store(units[i])));
    NormGradients {
        dx,
        dweight,
        dbias: over_rows(&|i| grad[i]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::Distribution;
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Exact, assert_close, widen};
    use super::*;

    const RMS: NormOptions = NormOptions {
        centered: false,
        epsilon: 0.0,
        weight: None,
        bias: None,
        residual: None,
    };
    const LAYER: NormOptions = NormOptions { centered: true, ..RMS };

    #[test]
    fn by_hand() {
        let rms = NormOptions {
            epsilon: 0.5,
            weight: Some(&[1.0, 2.0]),
            ..RMS
        };
        // Mean square 12.5 + 0.5 = 13.
        let y = forward::<Exact>(&[3.0, 4.0], 2, &rms).y;
        assert_close(&y, &[3.0 / 13f64.sqrt(), 8.0 / 13f64.sqrt()], 1e-15);
        let layer = NormOptions {
            weight: Some(&[1.0, 2.0, 3.0]),
            bias: Some(&[0.0, 1.0, 0.0]),
            residual: Some(&[1.0, 1.0, 1.0]),
            ..LAYER
        };
        let result = forward::<Exact>(&[0.0, 3.0, 6.0], 3, &layer);
        assert_eq!(result.sum, [1.0, 4.0, 7.0]);
        let unit = 1.5f64.sqrt();
        assert_close(&result.y, &[-unit, 1.0, 3.0 * unit], 1e-15);
        assert!(forward::<Exact>(&[], 4, &RMS).y.is_empty());
    }

    #[test]
    fn invariances() {
        let x = widen(&Distribution::NORMAL.draw::<f32>(1, 4, 50));
        let scaled: Vec<f64> = x.iter().map(|x| 8.0 * x).collect();
        let shifted: Vec<f64> = x.iter().map(|x| x + 3.0).collect();
        let (rms, layer) = (forward::<Exact>(&x, 50, &RMS).y, forward::<Exact>(&x, 50, &LAYER).y);
        assert_close(&forward::<Exact>(&scaled, 50, &RMS).y, &rms, 1e-13);
        assert_close(&forward::<Exact>(&scaled, 50, &LAYER).y, &layer, 1e-13);
        assert_close(&forward::<Exact>(&shifted, 50, &LAYER).y, &layer, 1e-12);
        for row in layer.chunks(50) {
            assert_close(&[row.iter().sum::<f64>()], &[0.0], 1e-12);
            assert_close(&[row.iter().map(|x| x * x).sum::<f64>()], &[50.0], 1e-11);
        }
        // Constant rows have no variance; epsilon alone keeps them finite.
        let constant = NormOptions { epsilon: 1e-5, ..LAYER };
        assert_eq!(forward::<Exact>(&[2.0; 8], 8, &constant).y, [0.0; 8]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let draw = |seed, rows| widen(&Distribution::NORMAL.draw::<f32>(seed, rows, 5));
        let (x, residual, weight, bias) = (draw(1, 3), draw(2, 3), draw(3, 1), draw(4, 1));
        let (grad, grad_sum) = (draw(5, 3), draw(6, 3));
        for centered in [false, true] {
            let run = |x: &[f64], w: &[f64], b: &[f64]| {
                let options = NormOptions {
                    centered,
                    epsilon: 0.1,
                    weight: Some(w),
                    bias: Some(b),
                    residual: Some(&residual),
                };
                let result = forward::<Exact>(x, 5, &options);
                [result.y, result.sum].concat()
            };
            let options = NormOptions {
                centered,
                epsilon: 0.1,
                weight: Some(&weight),
                bias: Some(&bias),
                residual: Some(&residual),
            };
            let g = backward::<Exact>(&x, 5, &options, &grad, Some(&grad_sum));
            let weights = [grad.clone(), grad_sum.clone()].concat();
            assert_close(&g.dx, &vector_jacobian(&x, &weights, |x| run(x, &weight, &bias)), 1e-8);
            let numeric = vector_jacobian(&weight, &weights, |w| run(&x, w, &bias));
            assert_close(&g.dweight, &numeric, 1e-8);
            let numeric = vector_jacobian(&bias, &weights, |b| run(&x, &weight, b));
            assert_close(&g.dbias, &numeric, 1e-8);
        }
    }
}
