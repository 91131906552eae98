//! Attention over parts of the keys, and putting the parts together.

use super::super::Precision;
use super::forward::run;
use super::{AttentionOptions, AttentionShape, Forward, Problem};

/// Combines results over disjoint sets of keys into the result over their union.
///
/// `lse = ln Σ exp(lseᵢ)`, `out = Σ exp(lseᵢ − lse) · outᵢ`. A part whose LSE is −∞ saw no keys:
/// it is not read and changes no bit. `out` is `[batch, seq_q, heads_q, value_dim]`.
///
/// # Panics
/// When there is no part, or parts differ in size.
pub fn merge<P: Precision>(shape: &AttentionShape, parts: &[Forward]) -> Forward {
    let s = shape;
    let mut merged = Forward {
        out: vec![0.0; parts[0].out.len()],
        lse: vec![0.0; parts[0].lse.len()],
    };
    for part in parts {
        assert_eq!(part.out.len(), s.batch * s.seq_q * s.heads_q * s.value_dim, "out");
        assert_eq!(part.lse.len(), s.batch * s.heads_q * s.seq_q, "lse");
    }
    for index in 0..merged.lse.len() {
        let (plane, row) = (index / s.seq_q, index % s.seq_q);
        let (batch, head) = (plane / s.heads_q, plane % s.heads_q);
        let start = ((batch * s.seq_q + row) * s.heads_q + head) * s.value_dim;
        let live = || parts.iter().filter(|part| part.lse[index] != f64::NEG_INFINITY);
        let max = live().map(|part| part.lse[index]).fold(f64::NEG_INFINITY, f64::max);
        let out = &mut merged.out[start..][..s.value_dim];
        let mut total = 0.0;
        for part in live() {
            let weight = P::step((part.lse[index] - max).exp());
            total = P::step(total + weight);
            for (out, value) in out.iter_mut().zip(&part.out[start..]) {
                *out = P::step(weight * value + *out);
            }
        }
        if live().next().is_none() {
            merged.lse[index] = f64::NEG_INFINITY;
            continue;
        }
        merged.lse[index] = P::step(max + P::step(total.ln()));
        out.iter_mut().for_each(|out| *out = P::store(*out / total));
    }
    merged
}

/// [`forward`](super::forward()) computed over `split` keys at a time and merged; sinks join as a
/// part of their own.
pub fn forward_in_splits<P: Precision>(
    shape: &AttentionShape,
    options: &AttentionOptions,
    (q, k, v): (&[f64], &[f64], &[f64]),
    split: usize,
) -> Forward {
    let without_sinks = AttentionOptions {
        sinks: None,
        ..options.clone()
    };
    let whole = Problem::new(shape, &without_sinks, (q, k, v));
    let mut parts: Vec<Forward> = (0..shape.seq_kv)
        .step_by(split)
        .map(|start| {
            let columns = start..(start + split).min(shape.seq_kv);
            run::<P>(&Problem {
                columns,
                ..whole.clone()
            })
        })
        .collect();
    let planes = shape.batch * shape.heads_q;
    let out = vec![0.0; shape.batch * shape.seq_q * shape.heads_q * shape.value_dim];
    let lse = (0..planes)
        .flat_map(|plane| {
            let sink = options.sinks.as_ref().map(|sinks| sinks[plane % shape.heads_q]);
            std::iter::repeat_n(sink.unwrap_or(f64::NEG_INFINITY), shape.seq_q)
        })
        .collect();
    parts.push(Forward { out, lse });
    merge::<P>(shape, &parts)
}

#[cfg(test)]
mod tests {
    use super::super::super::data::normal;
    use super::super::super::{Exact, assert_close, widen};
    use super::super::{Causal, forward};
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        batch: 2,
        heads_q: 2,
        heads_kv: 1,
        seq_q: 4,
        seq_kv: 11,
        head_dim: 8,
        value_dim: 6,
    };

    fn inputs() -> [Vec<f64>; 3] {
        [
            widen(&normal::<f32>(1, 2 * 4 * 2 * 8)),
            widen(&normal::<f32>(2, 2 * 11 * 8)),
            widen(&normal::<f32>(3, 2 * 11 * 6)),
        ]
    }

    #[test]
    fn splits_equal_the_whole() {
        let [q, k, v] = inputs();
        for options in [
            AttentionOptions::default(),
            AttentionOptions {
                causal: Causal::BottomRight,
                ..Default::default()
            },
            AttentionOptions {
                window_left: Some(2),
                window_right: Some(0),
                ..Default::default()
            },
            AttentionOptions {
                sinks: Some(vec![0.5, -1.0]),
                softcap: Some(3.0),
                ..Default::default()
            },
        ] {
            let whole = forward::<Exact>(&SHAPE, &options, &q, &k, &v);
            for split in [1, 3, 4, 11, 64] {
                let merged = forward_in_splits::<Exact>(&SHAPE, &options, (&q, &k, &v), split);
                assert_close(&merged.out, &whole.out, 1e-13);
                assert_close(&merged.lse, &whole.lse, 1e-13);
            }
        }
    }

    #[test]
    fn merging_with_an_empty_part_changes_no_bit() {
        let [q, k, v] = inputs();
        let whole = forward::<Exact>(&SHAPE, &AttentionOptions::default(), &q, &k, &v);
        let empty = Forward {
            out: vec![f64::NAN; whole.out.len()],
            lse: vec![f64::NEG_INFINITY; whole.lse.len()],
        };
        assert_eq!(merge::<Exact>(&SHAPE, &[whole.clone(), empty.clone()]), whole);
        assert_eq!(merge::<Exact>(&SHAPE, &[empty.clone(), whole.clone()]), whole);
        let nothing = merge::<Exact>(&SHAPE, &[empty.clone(), empty]);
        assert!(nothing.out.iter().all(|x| *x == 0.0));
        assert!(nothing.lse.iter().all(|x| *x == f64::NEG_INFINITY));
    }
}
