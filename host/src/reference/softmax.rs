//! Softmax and log-softmax of rows.

use rayon::prelude::*;

use super::{Precision, sum};

/// What is done to a row before its softmax, and which of the two is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxOptions<'a> {
    /// Logarithms instead of probabilities.
    pub log: bool,
    /// Factor of the input.
    pub scale: f64,
    /// Added after scaling; repeats when it is shorter than the input, and is a multiple of a row.
    pub mask: Option<&'a [f64]>,
    /// Rows per matrix of a causal mask: row `i` of a matrix of `n` rows sees columns up to
    /// `i + columns − n`.
    pub causal_rows: Option<usize>,
}

impl Default for SoftmaxOptions<'_> {
    fn default() -> Self {
        SoftmaxOptions {
            log: false,
            scale: 1.0,
            mask: None,
            causal_rows: None,
        }
    }
}

impl SoftmaxOptions<'_> {
    /// How many columns of a row are seen.
    fn seen(&self, row: usize, columns: usize) -> usize {
        match self.causal_rows {
            Some(rows) => (row % rows + 1 + columns).saturating_sub(rows).min(columns),
            None => columns,
        }
    }

    /// Scaled and masked logits that the row sees.
    fn logits<P: Precision>(&self, x: &[f64], row: usize) -> Vec<f64> {
        (0..self.seen(row, x.len()))
            .map(|column| {
                let scaled = P::store(x[column] * self.scale);
                match self.mask {
                    Some(mask) => P::store(scaled + mask[(row * x.len() + column) % mask.len()]),
                    None => scaled,
                }
            })
            .collect()
    }
}

/// Maximum (0 when there is none) and sum of exponentials above it.
pub(super) fn statistics<P: Precision>(logits: &[f64]) -> (f64, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
    (max, sum::<P>(logits.iter().map(|x| P::step(P::step(x - max).exp()))))
}

/// Softmax of each row of `columns` elements.
///
/// Columns that are not seen give 0 (logarithm −∞), and so does a row that sees nothing but −∞.
/// NaN reaches its whole row.
pub fn forward<P: Precision>(x: &[f64], columns: usize, options: &SoftmaxOptions) -> Vec<f64> {
    let hidden = if options.log { f64::NEG_INFINITY } else { 0.0 };
    let mut y = vec![hidden; x.len()];
    y.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, y)| {
        let logits = options.logits::<P>(&x[row * columns..][..columns], row);
        let (max, total) = statistics::<P>(&logits);
        if total == 0.0 {
            return;
        }
        let log_total = P::step(total.ln());
        for (y, logit) in y.iter_mut().zip(logits) {
            let shifted = P::step(logit - max);
            *y = P::store(if options.log {
                shifted - log_total
            } else {
                P::step(shifted.exp()) / total
            });
        }
    });
    y
}

/// Gradient by `x` of `Σ grad ∘ y`, over what each row sees; 0 elsewhere and in empty rows.
pub fn backward<P: Precision>(x: &[f64], columns: usize, options: &SoftmaxOptions, grad: &[f64]) -> Vec<f64> {
    assert_eq!(x.len(), grad.len(), "gradient");
    let probabilities = forward::<P>(x, columns, &SoftmaxOptions { log: false, ..*options });
    let mut dx = vec![0.0; x.len()];
    dx.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, dx)| {
        let seen = options.seen(row, columns);
        let (p, g) = (&probabilities[row * columns..][..seen], &grad[row * columns..][..seen]);
        let total = if options.log {
            sum::<P>(g.iter().copied())
        } else {
            sum::<P>(p.iter().zip(g).map(|(p, g)| P::step(p * g)))
        };
        if sum::<P>(p.iter().copied()) == 0.0 {
            return;
        }
        for ((dx, p), g) in dx.iter_mut().zip(p).zip(g) {
            let inner = if options.log {
                g - P::step(p * total)
            } else {
                p * P::step(g - total)
            };
            *dx = P::store(P::store(inner) * options.scale);
        }
    });
    dx
}

#[cfg(test)]
mod tests {
    use super::super::data::Distribution;
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Eager, Exact, assert_close, widen};
    use super::*;
    use half::f16;

    #[test]
    fn by_hand() {
        let x = [0.0, 2f64.ln(), 5f64.ln()];
        let y = forward::<Exact>(&x, 3, &SoftmaxOptions::default());
        assert_close(&y, &[0.125, 0.25, 0.625], 1e-15);
        let log = SoftmaxOptions {
            log: true,
            scale: 2.0,
            ..Default::default()
        };
        let expected = [1.0, 4.0, 25.0].map(|w: f64| (w / 30.0).ln());
        assert_close(&forward::<Exact>(&x, 3, &log), &expected, 1e-14);
    }

    #[test]
    fn masks_select() {
        let options = SoftmaxOptions {
            causal_rows: Some(3),
            ..Default::default()
        };
        // Matrices of 3 rows and 2 columns: the first row sees nothing.
        let y = forward::<Exact>(&[f64::NAN, 1.0, 1.0, f64::NAN, 1.0, 1.0].repeat(2), 2, &options);
        for matrix in y.chunks(6) {
            assert_eq!(matrix, [0.0, 0.0, 1.0, 0.0, 0.5, 0.5]);
        }
        let log = SoftmaxOptions { log: true, ..options };
        let y = forward::<Exact>(&[1.0; 6], 2, &log);
        assert_eq!(y[..4], [f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY]);
        let mask = [0.0, f64::NEG_INFINITY];
        let options = SoftmaxOptions {
            mask: Some(&mask),
            ..Default::default()
        };
        assert_eq!(forward::<Exact>(&[1.0; 4], 2, &options), [1.0, 0.0, 1.0, 0.0]);
        let all = [f64::NEG_INFINITY; 2];
        assert_eq!(forward::<Exact>(&all, 2, &SoftmaxOptions::default()), [0.0, 0.0]);
    }

    #[test]
    fn rows_sum_to_one_and_shifts_change_nothing() {
        for kind in Distribution::ALL {
            let x = widen(&kind.draw::<f16>(3, 6, 37));
            let y = forward::<Exact>(&x, 37, &SoftmaxOptions::default());
            for row in y.chunks(37) {
                assert_close(&[row.iter().sum()], &[1.0], 1e-12);
            }
            let shifted: Vec<f64> = x.iter().map(|x| x + 16.0).collect();
            assert_close(&forward::<Exact>(&shifted, 37, &SoftmaxOptions::default()), &y, 1e-12);
            let eager = forward::<Eager<f16>>(&x, 37, &SoftmaxOptions::default());
            assert_close(&eager, &y, 1e-3);
        }
        let poisoned = forward::<Exact>(&[1.0, f64::NAN], 2, &SoftmaxOptions::default());
        assert!(poisoned.iter().all(|y| y.is_nan()));
    }

    #[test]
    fn gradients_match_finite_differences() {
        let x = widen(&Distribution::NORMAL.draw::<f32>(1, 6, 5));
        let grad = widen(&Distribution::NORMAL.draw::<f32>(2, 6, 5));
        let mask = widen(&Distribution::NORMAL.draw::<f32>(3, 2, 5));
        for log in [false, true] {
            let options = SoftmaxOptions {
                log,
                scale: 0.7,
                mask: Some(&mask),
                causal_rows: Some(6),
            };
            // Hidden logarithms are −∞; the sum that is differentiated leaves them out.
            let run = |x: &[f64]| {
                let mut y = forward::<Exact>(x, 5, &options);
                y.iter_mut().filter(|y| y.is_infinite()).for_each(|y| *y = 0.0);
                y
            };
            let numeric = vector_jacobian(&x, &grad, run);
            assert_close(&backward::<Exact>(&x, 5, &options, &grad), &numeric, 1e-8);
        }
    }
}
