//! Cross-entropy of logits against target indices.

use super::softmax::statistics;
use super::{Precision, sum};

/// Parameters of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossOptions {
    /// Rows with this target have loss and gradient 0.
    pub ignore_index: i64,
    /// Share of the target distribution that is spread evenly over the vocabulary.
    pub label_smoothing: f64,
    /// Factor of `lse²`, which is added to the loss.
    pub z_loss: f64,
}

impl Default for LossOptions {
    fn default() -> Self {
        LossOptions {
            ignore_index: -100,
            label_smoothing: 0.0,
            z_loss: 0.0,
        }
    }
}

/// Result of [`forward`], one value per row, never rounded below `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// `lse − (1 − ε)·x_target − ε·mean(x) + z·lse²`, or 0 in ignored rows.
    pub loss: Vec<f64>,
    /// Log-sum-exp of every row, ignored ones too.
    pub lse: Vec<f64>,
}

/// The loss of each row of `vocabulary` logits.
///
/// # Panics
/// When a target is neither ignored nor in the vocabulary.
pub fn forward<P: Precision>(
    logits: &[f64],
    vocabulary: usize,
    targets: &[i64],
    options: &LossOptions,
) -> CrossEntropy {
    assert_eq!(logits.len(), vocabulary * targets.len(), "logits");
    let rows = logits.chunks(vocabulary.max(1)).zip(targets);
    let (loss, lse) = rows
        .map(|(row, &target)| {
            let (max, total) = statistics::<P>(row);
            let lse = if total == 0.0 {
                f64::NEG_INFINITY
            } else {
                P::step(max + P::step(total.ln()))
            };
            if target == options.ignore_index {
                return (0.0, lse);
            }
            let smoothing = options.label_smoothing;
            let mut loss = P::step((1.0 - smoothing) * P::step(lse - row[index(target, row)]));
            if smoothing != 0.0 {
                let mean = P::step(sum::<P>(row.iter().copied()) / vocabulary as f64);
                loss = P::step(loss + P::step(smoothing * P::step(lse - mean)));
            }
            if options.z_loss != 0.0 {
                loss = P::step(loss + P::step(options.z_loss * P::step(lse * lse)));
            }
            (loss, lse)
        })
        .unzip();
    CrossEntropy { loss, lse }
}

/// Gradient of `Σ grad ∘ loss` by the logits:
/// `grad · (p·(1 + 2z·lse) − (1 − ε)·[target] − ε/vocabulary)`.
pub fn backward<P: Precision>(
    logits: &[f64],
    vocabulary: usize,
    targets: &[i64],
    options: &LossOptions,
    grad: &[f64],
) -> Vec<f64> {
    assert_eq!(grad.len(), targets.len(), "gradient");
    let lse = forward::<P>(logits, vocabulary, targets, options).lse;
    let mut dx = vec![0.0; logits.len()];
    let smoothing = options.label_smoothing;
    for (row, &target) in targets.iter().enumerate() {
        if target == options.ignore_index {
            continue;
        }
        let range = row * vocabulary..(row + 1) * vocabulary;
        let factor = P::step(1.0 + 2.0 * options.z_loss * lse[row]);
        let target = index(target, &logits[range.clone()]);
        for (column, (dx, x)) in dx[range.clone()].iter_mut().zip(&logits[range]).enumerate() {
            let p = P::step(P::step(x - lse[row]).exp());
            let wanted = smoothing / vocabulary as f64 + if column == target { 1.0 - smoothing } else { 0.0 };
            *dx = P::store(grad[row] * P::step(P::step(p * factor) - wanted));
        }
    }
    dx
}

fn index(target: i64, row: &[f64]) -> usize {
    let found = usize::try_from(target).ok().filter(|&target| target < row.len());
    found.unwrap_or_else(|| panic!("target {target} of a vocabulary of {}", row.len()))
}

#[cfg(test)]
mod tests {
    use super::super::data::Distribution;
    use super::super::finite_difference::vector_jacobian;
    use super::super::{Exact, assert_close, widen};
    use super::*;

    #[test]
    fn by_hand() {
        let logits = [0.0, 2f64.ln(), 5f64.ln(), 0.0, 0.0, 0.0];
        let plain = forward::<Exact>(&logits, 3, &[2, -100], &LossOptions::default());
        assert_close(&plain.loss, &[(8f64 / 5.0).ln(), 0.0], 1e-15);
        assert_close(&plain.lse, &[8f64.ln(), 3f64.ln()], 1e-15);
        let options = LossOptions {
            ignore_index: 7,
            label_smoothing: 0.3,
            z_loss: 0.1,
        };
        let full = forward::<Exact>(&logits[..3], 3, &[1], &options);
        let expected = 8f64.ln() - 0.7 * 2f64.ln() - 0.1 * 10f64.ln() + 0.1 * 8f64.ln().powi(2);
        assert_close(&full.loss, &[expected], 1e-15);
    }

    #[test]
    fn far_logits_do_not_overflow() {
        let loss = |x: f64| forward::<Exact>(&[x, x + 1.0], 2, &[0], &LossOptions::default()).loss;
        assert_close(&loss(-1000.0), &loss(0.0), 1e-12);
        assert_close(&loss(1000.0), &loss(0.0), 1e-12);
    }

    #[test]
    #[should_panic(expected = "target 3 of a vocabulary of 3")]
    fn refuses_targets_outside() {
        forward::<Exact>(&[0.0; 3], 3, &[3], &LossOptions::default());
    }

    #[test]
    fn gradients_match_finite_differences_and_ignored_rows_have_none() {
        let logits = widen(&Distribution::NORMAL.draw::<f32>(1, 4, 6));
        let (targets, grad) = ([5, 0, -1, 3], [1.0, 0.5, 2.0, -1.0]);
        let options = LossOptions {
            ignore_index: -1,
            label_smoothing: 0.2,
            z_loss: 0.05,
        };
        let run = |x: &[f64]| forward::<Exact>(x, 6, &targets, &options).loss;
        let dx = backward::<Exact>(&logits, 6, &targets, &options, &grad);
        assert_close(&dx, &vector_jacobian(&logits, &grad, run), 1e-8);
        assert_eq!(dx[12..18], [0.0; 6]);
    }
}
