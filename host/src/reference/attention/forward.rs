//! The forward pass.

use rayon::prelude::*;

use super::super::{Precision, add_scaled};
use super::{AttentionOptions, AttentionShape, Problem, softmax_row};

/// Result of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `[batch, seq_q, heads_q, value_dim]`; 0 in rows without keys.
    pub out: Vec<f64>,
    /// Natural log-sum-exp of the masked scores and the sink, `[batch, heads_q, seq_q]`; −∞ in rows
    /// without keys and sink. Not affected by dropout.
    pub lse: Vec<f64>,
}

/// Attention of `q` over `k` and `v`.
///
/// # Panics
/// When the slices do not have the lengths that `shape` and `options` ask for.
pub fn forward<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> Forward {
    run::<P>(&Problem::new(shape, options, (q, k, v)))
}

pub(super) fn run<P: Precision>(problem: &Problem) -> Forward {
    let s = problem.shape;
    let mut out = vec![0.0; s.batch * s.seq_q * s.heads_q * s.value_dim];
    let mut lse = vec![f64::NEG_INFINITY; s.batch * s.heads_q * s.seq_q];
    // One task per token: its outputs of all heads lie together, its LSEs are moved at the end.
    let token_lse: Vec<f64> = (0..s.batch * s.seq_q)
        .into_par_iter()
        .zip(out.par_chunks_mut((s.heads_q * s.value_dim).max(1)))
        .flat_map_iter(|(token, out)| {
            let (batch, row) = (token / s.seq_q, token % s.seq_q);
            let lse: Vec<f64> = (0..s.heads_q)
                .map(|head| {
                    let out = &mut out[head * s.value_dim..][..s.value_dim];
                    attend::<P>(problem, batch, row, head, out)
                })
                .collect();
            lse
        })
        .collect();
    for (index, value) in token_lse.into_iter().enumerate() {
        let (token, head) = (index / s.heads_q, index % s.heads_q);
        lse[((token / s.seq_q) * s.heads_q + head) * s.seq_q + token % s.seq_q] = value;
    }
    Forward { out, lse }
}

/// One row of one head: writes its output, returns its LSE.
pub(super) fn attend<P: Precision>(problem: &Problem, batch: usize, row: usize, head: usize, out: &mut [f64]) -> f64 {
    let scores = problem.scores::<P>(batch, row, head);
    let sink = problem.options.sinks.as_ref().map(|sinks| sinks[head]);
    let (probabilities, lse) = softmax_row::<P>(&scores, sink);
    for (score, probability) in scores.iter().zip(probabilities) {
        let factor = problem.dropout_factor(batch, row, head, score.column);
        let value = problem.value(batch, score.column, head);
        add_scaled::<P>(out, P::store(probability * factor), value);
    }
    out.iter_mut().for_each(|out| *out = P::store(*out));
    lse
}

#[cfg(test)]
mod tests {
    use super::super::super::data::normal;
    use super::super::super::{Eager, Exact, assert_close, widen};
    use super::super::{Causal, Dropout};
    use super::*;
    use half::bf16;

    const SMALL: AttentionShape = AttentionShape {
        batch: 1,
        heads_q: 1,
        heads_kv: 1,
        seq_q: 2,
        seq_kv: 3,
        head_dim: 2,
        value_dim: 1,
    };

    fn plain() -> AttentionOptions {
        AttentionOptions {
            scale: Some(1.0),
            ..Default::default()
        }
    }

    /// q·k of row 0: 0, ln 2, ln 4; of row 1: 0, 0, 0. Values 1, 10, 100.
    fn small(options: AttentionOptions) -> Forward {
        let ln2 = std::f64::consts::LN_2;
        let k = [0.0, 0.0, ln2, 0.0, 2.0 * ln2, 0.0];
        forward::<Exact>(&SMALL, &options, &[1.0, 0.0, 0.0, 1.0], &k, &[1.0, 10.0, 100.0])
    }

    #[test]
    fn weighs_values_by_the_softmax() {
        let result = small(plain());
        assert_close(&result.out, &[421.0 / 7.0, 37.0], 1e-12);
        assert_close(&result.lse, &[7f64.ln(), 3f64.ln()], 1e-12);
    }

    #[test]
    fn bottom_right_and_top_left_differ() {
        let result = small(AttentionOptions {
            causal: Causal::BottomRight,
            ..plain()
        });
        assert_close(&result.out, &[21.0 / 3.0, 37.0], 1e-12);
        let result = small(AttentionOptions {
            causal: Causal::TopLeft,
            ..plain()
        });
        assert_close(&result.out, &[1.0, 11.0 / 2.0], 1e-12);
    }

    #[test]
    fn windows_count_from_the_aligned_position() {
        // Row 0 stands at column 1, row 1 at column 2.
        let window = |left, right| AttentionOptions {
            window_left: Some(left),
            window_right: Some(right),
            ..plain()
        };
        assert_close(&small(window(0, 0)).out, &[10.0, 100.0], 1e-12);
        assert_close(&small(window(1, 0)).out, &[7.0, 55.0], 1e-12);
        assert_close(&small(window(0, 1)).out, &[(2.0 * 10.0 + 400.0) / 6.0, 100.0], 1e-12);
        let causal = AttentionOptions {
            causal: Causal::BottomRight,
            ..window(0, 1)
        };
        assert_close(&small(causal).out, &[10.0, 100.0], 1e-12);
    }

    #[test]
    fn rows_without_keys_are_zero_with_lse_minus_infinity() {
        let shape = AttentionShape {
            seq_q: 3,
            seq_kv: 2,
            ..SMALL
        };
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..plain()
        };
        let result = forward::<Exact>(&shape, &options, &[1.0; 6], &[1.0; 4], &[3.0, 5.0]);
        assert_eq!(result.out, [0.0, 3.0, 4.0]);
        assert_eq!(result.lse[0], f64::NEG_INFINITY);
        let no_keys = AttentionShape { seq_kv: 0, ..SMALL };
        let result = forward::<Exact>(&no_keys, &plain(), &[1.0; 4], &[], &[]);
        assert_eq!(result.out, [0.0, 0.0]);
        assert_eq!(result.lse, [f64::NEG_INFINITY; 2]);
        let no_queries = AttentionShape { seq_q: 0, ..SMALL };
        let result = forward::<Exact>(&no_queries, &plain(), &[], &[1.0; 6], &[1.0; 3]);
        assert!(result.out.is_empty() && result.lse.is_empty());
    }

    #[test]
    fn softcap_alibi_and_sinks() {
        let capped = small(AttentionOptions {
            softcap: Some(0.5),
            ..plain()
        });
        let scores = [0.0, 2f64.ln(), 4f64.ln()].map(|s| 0.5 * (s / 0.5).tanh());
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        assert_close(&capped.lse[..1], &[total.ln()], 1e-12);

        // Slope ln 2: row 1 stands at column 2, so its weights are 1/4, 1/2, 1.
        let slopes = Some(vec![std::f64::consts::LN_2]);
        let biased = small(AttentionOptions {
            alibi_slopes: slopes,
            ..plain()
        });
        assert_close(&biased.out[1..], &[(0.25 + 5.0 + 100.0) / 1.75], 1e-12);
        // Row 0 stands at column 1: 1/2, 2, 4/2.
        assert_close(&biased.out[..1], &[(0.5 + 20.0 + 200.0) / 4.5], 1e-12);

        let sunk = small(AttentionOptions {
            sinks: Some(vec![3f64.ln()]),
            ..plain()
        });
        assert_close(&sunk.out, &[421.0 / 10.0, 111.0 / 6.0], 1e-12);
        assert_close(&sunk.lse, &[10f64.ln(), 6f64.ln()], 1e-12);
        // A row without keys has its sink alone: output 0, LSE the sink.
        let empty = AttentionShape { seq_kv: 0, ..SMALL };
        let options = AttentionOptions {
            sinks: Some(vec![1.5]),
            ..plain()
        };
        let result = forward::<Exact>(&empty, &options, &[1.0; 4], &[], &[]);
        assert_eq!((result.out, result.lse), (vec![0.0; 2], vec![1.5; 2]));
    }

    #[test]
    fn alibi_slopes_per_head_and_per_batch() {
        let shape = AttentionShape {
            batch: 2,
            heads_q: 2,
            heads_kv: 1,
            seq_q: 1,
            ..SMALL
        };
        let check = |given: &[f64], bases: [f64; 4]| {
            let slopes = given.iter().map(|base| base.ln()).collect();
            let options = AttentionOptions {
                alibi_slopes: Some(slopes),
                ..plain()
            };
            let v = [1.0, 10.0, 100.0].repeat(2);
            let result = forward::<Exact>(&shape, &options, &[0.0; 8], &[0.0; 12], &v);
            let expected = bases.map(|base: f64| {
                let w = [base.powi(-2), base.powi(-1), 1.0];
                (w[0] + 10.0 * w[1] + 100.0 * w[2]) / (w[0] + w[1] + w[2])
            });
            assert_close(&result.out, &expected, 1e-12);
        };
        check(&[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]);
        check(&[2.0, 8.0], [2.0, 8.0, 2.0, 8.0]);
    }

    #[test]
    fn grouped_heads_equal_repeated_keys() {
        let shape = AttentionShape {
            batch: 2,
            heads_q: 4,
            heads_kv: 2,
            seq_q: 3,
            seq_kv: 5,
            head_dim: 8,
            value_dim: 4,
        };
        let q = widen(&normal::<f32>(1, 2 * 3 * 4 * 8));
        let k = widen(&normal::<f32>(2, 2 * 5 * 2 * 8));
        let v = widen(&normal::<f32>(3, 2 * 5 * 2 * 4));
        let repeat =
            |x: &[f64], dim: usize| -> Vec<f64> { x.chunks(dim).flat_map(|head| [head, head].concat()).collect() };
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        let grouped = forward::<Exact>(&shape, &options, &q, &k, &v);
        let full = AttentionShape { heads_kv: 4, ..shape };
        let whole = forward::<Exact>(&full, &options, &q, &repeat(&k, 8), &repeat(&v, 4));
        assert_eq!(grouped, whole);
    }

    #[test]
    fn dropout_scales_what_it_keeps_and_leaves_lse() {
        let shape = AttentionShape {
            seq_q: 64,
            seq_kv: 64,
            ..SMALL
        };
        let dropout = Dropout {
            probability: 0.5,
            seed: 3,
            offset: 0,
        };
        let options = AttentionOptions {
            dropout: Some(dropout),
            ..plain()
        };
        let (q, k) = ([0.0; 128], [0.0; 128]);
        let result = forward::<Exact>(&shape, &options, &q, &k, &[1.0; 64]);
        // Each row keeps n of 64 equal probabilities, doubled.
        let kept: Vec<f64> = result.out.iter().map(|out| out * 32.0).collect();
        assert!(
            kept.iter().all(|n| n.fract() == 0.0 && *n > 0.0 && *n < 64.0),
            "{kept:?}"
        );
        assert!((kept.iter().sum::<f64>() / 4096.0 - 0.5).abs() < 0.05);
        assert_close(&result.lse, &[64f64.ln(); 64], 1e-12);
    }

    /// Scores far from 0 and infinite ones: shifting by the maximum keeps all of it finite.
    #[test]
    fn extreme_scores() {
        let run = |scores: [f64; 3]| {
            let k = scores.iter().flat_map(|&score| [score, 0.0]).collect::<Vec<_>>();
            let shape = AttentionShape { seq_q: 1, ..SMALL };
            forward::<Exact>(&shape, &plain(), &[1.0, 1.0], &k, &[1.0, 10.0, 100.0])
        };
        let near = run([0.0, 2f64.ln(), 4f64.ln()]);
        for shift in [-1000.0, 1000.0] {
            let far = run([shift, shift + 2f64.ln(), shift + 4f64.ln()]);
            assert_close(&far.out, &near.out, 1e-10);
            assert_close(&far.lse, &[shift + near.lse[0]], 1e-10);
        }
        assert_eq!(
            run([-1000.0, 1000.0, -1000.0]),
            Forward {
                out: vec![10.0],
                lse: vec![1000.0]
            }
        );
        let nothing = f64::NEG_INFINITY;
        assert_eq!(
            run([nothing, 0.0, nothing]),
            Forward {
                out: vec![10.0],
                lse: vec![0.0]
            }
        );
        assert_eq!(
            run([nothing; 3]),
            Forward {
                out: vec![0.0],
                lse: vec![nothing]
            }
        );
    }

    #[test]
    fn unseen_nan_stays_out_and_seen_nan_comes_through() {
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..plain()
        };
        let run = |at: usize| {
            let (mut k, mut v) = ([0.5; 6], [1.0; 3]);
            k[at * 2] = f64::NAN;
            v[at] = f64::NAN;
            forward::<Exact>(&SMALL, &options, &[1.0; 4], &k, &v)
        };
        let last = run(2);
        assert!(last.out[0] == 1.0 && last.out[1].is_nan() && last.lse[1].is_nan());
        assert!(run(0).out.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn eager_bf16_is_near_but_not_equal() {
        let shape = AttentionShape {
            seq_q: 16,
            seq_kv: 16,
            head_dim: 16,
            value_dim: 16,
            ..SMALL
        };
        let [q, k, v] = [1, 2, 3].map(|seed| widen(&normal::<bf16>(seed, 256)));
        let options = AttentionOptions::default();
        let exact = forward::<Exact>(&shape, &options, &q, &k, &v);
        let eager = forward::<Eager<bf16>>(&shape, &options, &q, &k, &v);
        assert_ne!(exact.out, eager.out);
        assert_close(&eager.out, &exact.out, 0.03);
        let eager32 = forward::<Eager<f32>>(&shape, &options, &q, &k, &v);
        assert_close(&eager32.out, &exact.out, 1e-6);
    }
}
