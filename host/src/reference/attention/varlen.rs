//! Packed sequences: tokens of all sequences one after the other, bounds in `cu_seqlens`.

use super::super::Precision;
use super::backward::Delta;
use super::{AttentionOptions, AttentionShape, Forward, Gradients, Problem, backward, forward};

/// [`forward`](super::forward()) of every sequence `q[cu_q[i]..cu_q[i + 1]]` over the keys
/// `cu_k[i]..cu_k[i + 1]`.
///
/// `shape.batch`, `seq_q` and `seq_kv` are ignored: the bounds give them. `out` is
/// `[total_q, heads_q, value_dim]`, `lse` is `[heads_q, total_q]`. Masks, ALiBi and dropout count
/// tokens from the start of their own sequence.
pub fn forward_varlen<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    (q, k, v): (&[f64], &[f64], &[f64]),
    (cu_q, cu_k): (&[usize], &[usize]),
) -> Forward {
    let total_q = cu_q[cu_q.len() - 1];
    let mut out = vec![0.0; total_q * shape.heads_q * shape.value_dim];
    let mut lse = vec![f64::NEG_INFINITY; shape.heads_q * total_q];
    for (index, problem) in sequences(shape, options, (q, k, v), (cu_q, cu_k)).enumerate() {
        let result = forward::run::<P>(&problem);
        let row = shape.heads_q * shape.value_dim;
        out[cu_q[index] * row..cu_q[index + 1] * row].copy_from_slice(&result.out);
        let len = problem.shape.seq_q;
        for head in 0..shape.heads_q {
            lse[head * total_q + cu_q[index]..][..len].copy_from_slice(&result.lse[head * len..][..len]);
        }
    }
    Forward { out, lse }
}

/// [`backward`](super::backward()) of every sequence; gradients are packed like their inputs.
pub fn backward_varlen<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    (q, k, v): (&[f64], &[f64], &[f64]),
    (cu_q, cu_k): (&[usize], &[usize]),
    grad_out: &[f64],
) -> Gradients {
    let mut all = Gradients {
        dq: Vec::with_capacity(q.len()),
        dk: Vec::with_capacity(k.len()),
        dv: Vec::with_capacity(v.len()),
        dsinks: options.sinks.as_ref().map(|sinks| vec![0.0; sinks.len()]),
        dsinks_norm: options.sinks.as_ref().map(|sinks| vec![0.0; sinks.len()]),
    };
    let row = shape.heads_q * shape.value_dim;
    for (index, problem) in sequences(shape, options, (q, k, v), (cu_q, cu_k)).enumerate() {
        let grad_out = &grad_out[cu_q[index] * row..cu_q[index + 1] * row];
        let part = backward::run::<P>(&problem, grad_out, Delta::Probabilities);
        all.dq.extend(part.dq);
        all.dk.extend(part.dk);
        all.dv.extend(part.dv);
        if let (Some(all), Some(part)) = (&mut all.dsinks, part.dsinks) {
            for (all, part) in all.iter_mut().zip(part) {
                *all = P::step(*all + part);
            }
        }
        if let (Some(all), Some(part)) = (&mut all.dsinks_norm, part.dsinks_norm) {
            for (all, part) in all.iter_mut().zip(part) {
                *all = all.hypot(part);
            }
        }
    }
    all
}

fn sequences<'a>(
    shape: &'a AttentionShape,
    options: &'a AttentionOptions,
    (q, k, v): (&'a [f64], &'a [f64], &'a [f64]),
    (cu_q, cu_k): (&'a [usize], &'a [usize]),
) -> impl Iterator<Item = Problem<'a>> {
    assert_eq!(cu_q.len(), cu_k.len(), "cu_seqlens");
    (0..cu_q.len() - 1).map(move |index| {
        let (tokens_q, tokens_k) = (cu_q[index]..cu_q[index + 1], cu_k[index]..cu_k[index + 1]);
        let shape = AttentionShape {
            batch: 1,
            seq_q: tokens_q.len(),
            seq_kv: tokens_k.len(),
            ..*shape
        };
        let cut = |x: &'a [f64], tokens: &std::ops::Range<usize>, row: usize| &x[tokens.start * row..tokens.end * row];
        let q = cut(q, &tokens_q, shape.heads_q * shape.head_dim);
        let k = cut(k, &tokens_k, shape.heads_kv * shape.head_dim);
        let v = cut(v, &tokens_k, shape.heads_kv * shape.value_dim);
        Problem {
            first_batch: index,
            ..Problem::new(&shape, options, (q, k, v))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::data::normal;
    use super::super::super::{Exact, widen};
    use super::super::{Causal, Dropout};
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        batch: 2,
        heads_q: 2,
        heads_kv: 1,
        seq_q: 3,
        seq_kv: 4,
        head_dim: 4,
        value_dim: 2,
    };

    /// Equal lengths packed must be the padded batch, dropout and slopes per sequence included.
    #[test]
    fn equal_lengths_are_a_batch() {
        let q = widen(&normal::<f32>(1, 2 * 3 * 2 * 4));
        let k = widen(&normal::<f32>(2, 2 * 4 * 4));
        let v = widen(&normal::<f32>(3, 2 * 4 * 2));
        let grad = widen(&normal::<f32>(4, 2 * 3 * 2 * 2));
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            alibi_slopes: Some(vec![0.1, 0.2, 0.3, 0.4]),
            sinks: Some(vec![0.0, 1.0]),
            dropout: Some(Dropout {
                probability: 0.4,
                seed: 1,
                offset: 2,
            }),
            ..Default::default()
        };
        let batch = super::super::forward::<Exact>(&SHAPE, &options, &q, &k, &v);
        let bounds: (&[usize], &[usize]) = (&[0, 3, 6], &[0, 4, 8]);
        let packed = forward_varlen::<Exact>(&SHAPE, &options, (&q, &k, &v), bounds);
        assert_eq!(packed.out, batch.out);
        // [batch, head, row] against [head, batch · row].
        for (b, h, row) in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2)] {
            assert_eq!(packed.lse[h * 6 + b * 3 + row], batch.lse[(b * 2 + h) * 3 + row]);
        }
        let whole = super::super::backward::<Exact>(&SHAPE, &options, &q, &k, &v, &grad);
        let parts = backward_varlen::<Exact>(&SHAPE, &options, (&q, &k, &v), bounds, &grad);
        assert_eq!((&parts.dq, &parts.dk, &parts.dv), (&whole.dq, &whole.dk, &whole.dv));
        super::super::super::assert_close(&parts.dsinks.unwrap(), &whole.dsinks.unwrap(), 1e-14);
    }

    #[test]
    fn empty_members_take_no_space() {
        let q = widen(&normal::<f32>(1, 3 * 2 * 4));
        let k = widen(&normal::<f32>(2, 4 * 4));
        let v = widen(&normal::<f32>(3, 4 * 2));
        let options = AttentionOptions::default();
        let plain = AttentionShape { batch: 1, ..SHAPE };
        let alone = super::super::forward::<Exact>(&plain, &options, &q, &k, &v);
        let bounds: (&[usize], &[usize]) = (&[0, 0, 3, 3], &[0, 0, 4, 4]);
        let packed = forward_varlen::<Exact>(&SHAPE, &options, (&q, &k, &v), bounds);
        assert_eq!(packed, alone);
        // Queries without keys.
        let bounds: (&[usize], &[usize]) = (&[0, 3], &[0, 0]);
        let none = forward_varlen::<Exact>(&SHAPE, &options, (&q, &[], &[]), bounds);
        assert!(none.out.iter().all(|x| *x == 0.0));
        assert!(none.lse.iter().all(|x| *x == f64::NEG_INFINITY));
    }
}
