//! The backward pass: exact gradients of [`forward`](super::forward()).
//!
//! With probabilities `P`, dropout factors `Z` and scores `S`:
//! `dV = (P∘Z)ᵀ·dO`, `dP = (dO·Vᵀ)∘Z`, `Δ = Σⱼ P·dP`, `dS = P∘(dP − Δ)`, then through softcap, and
//! `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`, `d sink = −Σ p_sink·Δ`. Since `O = (P∘Z)·V`, Δ is `Σ dO·O` too.

use rayon::prelude::*;

use super::super::{Precision, add_scaled, dot, sum};
use super::forward::attend;
use super::{AttentionOptions, AttentionShape, Problem, softmax_row};
use crate::DType;
use crate::compare::Rule;

/// Gradients of the inputs, each in the layout of its input.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// Of the queries.
    pub dq: Vec<f64>,
    /// Of the keys.
    pub dk: Vec<f64>,
    /// Of the values.
    pub dv: Vec<f64>,
    /// Of the sinks, if there were any.
    pub dsinks: Option<Vec<f64>>,
    /// Of the products `p_sink·dO·O` that each gradient of a sink sums, the root of the sum of squares: where O is rounded
    /// to within a part `u` of itself, that gradient is off by about `u` of this, however much of the sum cancels.
    pub dsinks_norm: Option<Vec<f64>>,
}

impl Gradients {
    /// How far the gradient of a head's sink may be from this one if O was stored in `dtype`: the roundings of O and of P
    /// are independent of one another, so four times what one of them leaves is rarely exceeded by chance.
    pub fn dsink_rule(&self, head: usize, dtype: DType) -> Rule<'static> {
        let unit = unit(dtype);
        let norm = self.dsinks_norm.as_ref().map_or(0.0, |norms| norms[head]);
        Rule::Relative {
            relative: unit.max(1e-5),
            absolute: 4.0 * unit * norm + 1e-6,
        }
    }
}

/// Gradients of `Σ grad_out ∘ out`. Rows without keys contribute 0.
///
/// # Panics
/// When the slices do not have the lengths that `shape` and `options` ask for.
pub fn backward<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    grad_out: &[f64],
) -> Gradients {
    run::<P>(&Problem::new(shape, options, (q, k, v)), grad_out, Delta::Probabilities)
}

/// As [`backward`], with `Δ = Σ dO·O` of an output that was stored in `dtype`: FlashAttention's formula (Dao et al. 2022,
/// algorithm 4), which needs no row of P at once. Rounding each element of O to within a part `u` of itself leaves Δ
/// `2u·‖dO∘O‖` off, which chance seldom exceeds; where dP and Δ cancel, as they do in rows of few keys, that is most of the
/// error of these gradients.
///
/// # Panics
/// As [`backward`].
pub fn backward_from_output<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    grad_out: &[f64],
    dtype: DType,
) -> Gradients {
    let delta = Delta::Output { unit: unit(dtype) };
    run::<P>(&Problem::new(shape, options, (q, k, v)), grad_out, delta)
}

/// The part of itself by which an element of an output of `dtype` may be off.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        // Products of three TF32 parts.
        _ => 2.5e-6,
    }
}

/// What Δ is summed from.
#[derive(Clone, Copy)]
pub(super) enum Delta {
    /// P and dP, as the gradient of a softmax has it.
    Probabilities,
    /// dO and the stored O.
    Output {
        /// The part of itself by which an element of O is off.
        unit: f64,
    },
}

/// Gradients of one query head, `[seq, dim]` each.
struct HeadGradients {
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
    dsink: f64,
    dsink_squares: f64,
}

pub(super) fn run<P: Precision>(problem: &Problem, grad_out: &[f64], delta: Delta) -> Gradients {
    let s = problem.shape;
    assert_eq!(grad_out.len(), s.batch * s.seq_q * s.heads_q * s.value_dim, "grad_out");
    let heads: Vec<HeadGradients> = (0..s.batch * s.heads_q)
        .into_par_iter()
        .map(|plane| head::<P>(problem, grad_out, delta, plane / s.heads_q, plane % s.heads_q))
        .collect();
    let dq = gather(&heads, |head| &head.dq, (s.batch, s.seq_q, s.heads_q, s.head_dim));
    // Unfused, keys and values repeated for their group have their gradients added up afterwards.
    let of_group = |part: fn(&HeadGradients) -> &[f64], dim: usize| -> Vec<f64> {
        let summed: Vec<Vec<f64>> = heads
            .chunks(s.group())
            .map(|group| {
                (0..s.seq_kv * dim)
                    .map(|i| P::store(sum::<P>(group.iter().map(|head| part(head)[i]))))
                    .collect()
            })
            .collect();
        gather(&summed, |head| head, (s.batch, s.seq_kv, s.heads_kv, dim))
    };
    let dk = of_group(|head| &head.dk, s.head_dim);
    let dv = of_group(|head| &head.dv, s.value_dim);
    let of_head = |head| (0..s.batch).map(move |batch| batch * s.heads_q + head);
    let dsinks = problem.options.sinks.as_ref().map(|_| {
        (0..s.heads_q)
            .map(|head| P::step(sum::<P>(of_head(head).map(|plane| heads[plane].dsink))))
            .collect()
    });
    let dsinks_norm = dsinks.as_ref().map(|_| {
        (0..s.heads_q)
            .map(|head| {
                of_head(head)
                    .map(|plane| heads[plane].dsink_squares)
                    .sum::<f64>()
                    .sqrt()
            })
            .collect()
    });
    Gradients {
        dq,
        dk,
        dv,
        dsinks,
        dsinks_norm,
    }
}

/// `[batch · head][token, dim]` to `[batch, token, head, dim]`.
fn gather<H>(
    planes: &[H],
    part: fn(&H) -> &[f64],
    (batch, tokens, heads, dim): (usize, usize, usize, usize),
) -> Vec<f64> {
    let mut out = Vec::with_capacity(batch * tokens * heads * dim);
    for b in 0..batch {
        for token in 0..tokens {
            for head in 0..heads {
                out.extend_from_slice(&part(&planes[b * heads + head])[token * dim..][..dim]);
            }
        }
    }
    out
}

fn head<P: Precision>(problem: &Problem, grad_out: &[f64], delta: Delta, batch: usize, head: usize) -> HeadGradients {
    let s = problem.shape;
    let sink = problem.options.sinks.as_ref().map(|sinks| sinks[head]);
    let scale = problem.options.scale_for(s.head_dim);
    let mut dq = vec![0.0; s.seq_q * s.head_dim];
    let mut dk = vec![0.0; s.seq_kv * s.head_dim];
    let mut dv = vec![0.0; s.seq_kv * s.value_dim];
    let (mut dsink, mut dsink_squares) = (0.0, 0.0);
    for row in 0..s.seq_q {
        let start = ((batch * s.seq_q + row) * s.heads_q + head) * s.value_dim;
        let grad = &grad_out[start..][..s.value_dim];
        let query = problem.scaled_query::<P>(batch, row, head);
        let scores = problem.scores::<P>(batch, row, head);
        let (probabilities, lse) = softmax_row::<P>(&scores, sink);
        let mut grad_probabilities = Vec::with_capacity(scores.len());
        for (score, probability) in scores.iter().zip(&probabilities) {
            let factor = problem.dropout_factor(batch, row, head, score.column);
            let dv = &mut dv[score.column * s.value_dim..][..s.value_dim];
            add_scaled::<P>(dv, P::store(probability * factor), grad);
            let grad = P::store(dot::<P>(grad, problem.value(batch, score.column, head)));
            grad_probabilities.push(P::store(grad * factor));
        }
        // Δ from the stored O, and the norm of the products that it sums.
        let from_output = || {
            let mut out = vec![0.0; s.value_dim];
            attend::<P>(problem, batch, row, head, &mut out);
            let squares = grad.iter().zip(&out).map(|(grad, out)| (grad * out).powi(2));
            (dot::<P>(grad, &out), squares.sum::<f64>().sqrt())
        };
        let delta = match delta {
            Delta::Probabilities => dot::<P>(&probabilities, &grad_probabilities),
            Delta::Output { unit } => {
                let (delta, norm) = from_output();
                P::step(delta + 2.0 * unit * norm)
            }
        };
        let dq = &mut dq[row * s.head_dim..][..s.head_dim];
        for ((score, p), dp) in scores.iter().zip(&probabilities).zip(&grad_probabilities) {
            let grad = P::store(P::store(p * P::step(dp - delta)) * score.derivative);
            add_scaled::<P>(dq, grad, problem.key(batch, score.column, head));
            add_scaled::<P>(&mut dk[score.column * s.head_dim..][..s.head_dim], grad, &query);
        }
        dq.iter_mut().for_each(|dq| *dq = P::store(P::store(*dq) * scale));
        if let Some(sink) = sink
            && lse != f64::NEG_INFINITY
        {
            let probability = P::step((sink - lse).exp());
            dsink = P::step(dsink - probability * delta);
            dsink_squares += (probability * from_output().1).powi(2);
        }
    }
    for grad in dk.iter_mut().chain(&mut dv) {
        *grad = P::store(*grad);
    }
    HeadGradients {
        dq,
        dk,
        dv,
        dsink,
        dsink_squares,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::data::normal;
    use super::super::super::finite_difference::vector_jacobian;
    use super::super::super::{Exact, assert_close, widen};
    use super::super::{Causal, Dropout, forward};
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        batch: 2,
        heads_q: 4,
        heads_kv: 2,
        seq_q: 3,
        seq_kv: 4,
        head_dim: 3,
        value_dim: 2,
    };

    /// One row, one key, one value.
    const ONE: AttentionShape = AttentionShape {
        batch: 1,
        heads_q: 1,
        heads_kv: 1,
        seq_q: 1,
        seq_kv: 1,
        head_dim: 1,
        value_dim: 1,
    };

    fn inputs(shape: &AttentionShape) -> [Vec<f64>; 4] {
        let (tokens_q, tokens_kv) = (shape.batch * shape.seq_q, shape.batch * shape.seq_kv);
        [
            widen(&normal::<f32>(1, tokens_q * shape.heads_q * shape.head_dim)),
            widen(&normal::<f32>(2, tokens_kv * shape.heads_kv * shape.head_dim)),
            widen(&normal::<f32>(3, tokens_kv * shape.heads_kv * shape.value_dim)),
            widen(&normal::<f32>(4, tokens_q * shape.heads_q * shape.value_dim)),
        ]
    }

    fn check(shape: AttentionShape, options: AttentionOptions) {
        let [q, k, v, grad] = inputs(&shape);
        let run = |q: &[f64], k: &[f64], v: &[f64]| forward::<Exact>(&shape, &options, q, k, v).out;
        let analytic = backward::<Exact>(&shape, &options, &q, &k, &v, &grad);
        let problem = Problem::new(&shape, &options, (&q, &k, &v));
        let from_output = super::run::<Exact>(&problem, &grad, Delta::Output { unit: 0.0 });
        assert_close(&from_output.dq, &analytic.dq, 1e-14);
        assert_close(&from_output.dk, &analytic.dk, 1e-14);
        assert_close(&from_output.dv, &analytic.dv, 1e-14);
        assert_close(&analytic.dq, &vector_jacobian(&q, &grad, |q| run(q, &k, &v)), 1e-7);
        assert_close(&analytic.dk, &vector_jacobian(&k, &grad, |k| run(&q, k, &v)), 1e-7);
        assert_close(&analytic.dv, &vector_jacobian(&v, &grad, |v| run(&q, &k, v)), 1e-7);
        if let Some(sinks) = &options.sinks {
            let numeric = vector_jacobian(sinks, &grad, |sinks| {
                let options = AttentionOptions {
                    sinks: Some(sinks.to_vec()),
                    ..options.clone()
                };
                forward::<Exact>(&shape, &options, &q, &k, &v).out
            });
            assert_close(&analytic.dsinks.unwrap(), &numeric, 1e-7);
        }
    }

    #[test]
    fn matches_finite_differences_for_every_option() {
        let dropout = Dropout {
            probability: 0.3,
            seed: 11,
            offset: 5,
        };
        check(SHAPE, AttentionOptions::default());
        check(
            SHAPE,
            AttentionOptions {
                causal: Causal::BottomRight,
                ..Default::default()
            },
        );
        check(
            SHAPE,
            AttentionOptions {
                causal: Causal::TopLeft,
                ..Default::default()
            },
        );
        check(
            SHAPE,
            AttentionOptions {
                softcap: Some(0.7),
                ..Default::default()
            },
        );
        check(
            SHAPE,
            AttentionOptions {
                dropout: Some(dropout),
                ..Default::default()
            },
        );
        check(
            SHAPE,
            AttentionOptions {
                sinks: Some(vec![0.1, -0.5, 1.0, 0.0]),
                ..Default::default()
            },
        );
        check(
            SHAPE,
            AttentionOptions {
                scale: Some(0.8),
                window_left: Some(1),
                window_right: Some(1),
                softcap: Some(2.0),
                alibi_slopes: Some((0..8).map(|i| 0.1 * i as f64).collect()),
                sinks: Some(vec![0.3; 4]),
                dropout: Some(dropout),
                ..Default::default()
            },
        );
    }

    /// One row, one key, half of it the sink's: `Δ = 1.5`, `dP = 3`, `dS = 0.5 · (dP − Δ)`, and Δ is off by 2u · 1.5.
    #[test]
    fn a_stored_output_leaves_delta_off() {
        let options = AttentionOptions {
            scale: Some(1.0),
            sinks: Some(vec![0.0]),
            ..Default::default()
        };
        let (q, k, v, grad) = (&[0.0], &[1.0], &[1.0], &[3.0]);
        let exact = backward::<Exact>(&ONE, &options, q, k, v, grad);
        assert_close(&exact.dq, &[0.75], 1e-15);
        let off = backward_from_output::<Exact>(&ONE, &options, q, k, v, grad, DType::BF16);
        assert_close(&off.dq, &[0.75 - 0.5 * 2.0 / 256.0 * 1.5], 1e-15);
        assert_close(&off.dv, &exact.dv, 1e-15);
    }

    /// A product per sequence.
    #[test]
    fn gradients_of_sinks_know_what_they_sum() {
        let shape = AttentionShape { batch: 2, ..ONE };
        let options = AttentionOptions {
            sinks: Some(vec![0.0]),
            ..Default::default()
        };
        // The sink takes half of each row: dO·O is 3 · 0.5 and −4 · 0.5.
        let gradients = backward::<Exact>(&shape, &options, &[0.0; 2], &[0.0; 2], &[1.0; 2], &[3.0, -4.0]);
        assert_close(&gradients.dsinks.clone().unwrap(), &[0.25], 1e-15);
        assert_close(&gradients.dsinks_norm.clone().unwrap(), &[1.25], 1e-15);
        let Rule::Relative { absolute, .. } = gradients.dsink_rule(0, DType::F16) else {
            panic!("not relative")
        };
        assert!((absolute - (4.0 * 1.25 / 2048.0 + 1e-6)).abs() < 1e-12);
    }

    #[test]
    fn rows_without_keys_have_no_gradient() {
        let shape = AttentionShape {
            seq_q: 5,
            seq_kv: 2,
            ..SHAPE
        };
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        check(shape, options.clone());
        let [q, k, v, grad] = inputs(&shape);
        let gradients = backward::<Exact>(&shape, &options, &q, &k, &v, &grad);
        let row = shape.heads_q * shape.head_dim;
        assert!(gradients.dq[..3 * row].iter().all(|x| *x == 0.0));
        // Row 3 sees one key only: its probability is 1 whatever the scores are.
        assert_close(&gradients.dq[3 * row..4 * row], &vec![0.0; row], 1e-15);
    }

    /// A sink of −∞ is none, in rows without keys too.
    #[test]
    fn absent_sinks_have_no_gradient() {
        let shape = AttentionShape {
            seq_q: 5,
            seq_kv: 2,
            ..SHAPE
        };
        let [q, k, v, grad] = inputs(&shape);
        let without = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        let with = AttentionOptions {
            sinks: Some(vec![f64::NEG_INFINITY; 4]),
            ..without.clone()
        };
        let run = |options| backward::<Exact>(&shape, options, &q, &k, &v, &grad);
        assert_eq!(run(&with).dsinks, Some(vec![0.0; 4]));
        assert_eq!(run(&with).dq, run(&without).dq);
    }

    #[test]
    fn is_linear_in_the_output_gradient() {
        let [q, k, v, grad] = inputs(&SHAPE);
        let options = AttentionOptions::default();
        let run = |grad: &[f64]| backward::<Exact>(&SHAPE, &options, &q, &k, &v, grad);
        let doubled: Vec<f64> = grad.iter().map(|g| 2.0 * g).collect();
        let twice: Vec<f64> = run(&grad).dk.iter().map(|g| 2.0 * g).collect();
        assert_close(&run(&doubled).dk, &twice, 1e-14);
        let zero = run(&vec![0.0; grad.len()]);
        assert!(zero.dq.iter().chain(&zero.dk).chain(&zero.dv).all(|g| *g == 0.0));
    }
}
