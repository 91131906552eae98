//! Attention: `O = softmax(mask(bias(softcap(scale · Q·Kᵀ)))) · V`.
//!
//! Tensors: `q [batch, seq_q, heads_q, head_dim]`, `k [batch, seq_kv, heads_kv, head_dim]`,
//! `v [batch, seq_kv, heads_kv, value_dim]`, `out [batch, seq_q, heads_q, value_dim]`,
//! `lse [batch, heads_q, seq_q]`. Query head `h` reads key head `h / (heads_q / heads_kv)`.

mod backward;
mod forward;
mod split;
mod varlen;

pub use backward::{Gradients, backward, backward_from_output};
pub use forward::{Forward, forward};
pub use split::{forward_in_splits, merge};
pub use varlen::{backward_varlen, forward_varlen};

use std::ops::Range;

use super::philox::{dropout_keeps, dropout_threshold};
use super::{Precision, dot, sum};

/// Sizes of one attention problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads, a multiple of `heads_kv`.
    pub heads_q: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Query tokens per sequence.
    pub seq_q: usize,
    /// Key tokens per sequence.
    pub seq_kv: usize,
    /// Elements of a query or key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
}

/// Which diagonal bounds what a query may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Causal {
    /// No bound.
    #[default]
    None,
    /// The last query sees the last key: row `i` sees keys up to `i + seq_kv − seq_q`.
    BottomRight,
    /// The first query sees the first key only: row `i` sees keys up to `i`.
    TopLeft,
}

/// Dropout of attention probabilities: those kept are divided by `1 − probability`.
///
/// Which are kept is the function of (batch, head, row, column) that the table in
/// [`philox`](super::philox) defines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// In [0, 1).
    pub probability: f64,
    /// Seed of the generator.
    pub seed: u64,
    /// Tells calls under one seed apart.
    pub offset: u64,
}

/// Everything that can be asked of attention.
///
/// In order: dot product times `scale`; `softcap`; ALiBi; mask; softmax with sinks; dropout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// Factor of the scores; `1 / √head_dim` unless given.
    pub scale: Option<f64>,
    /// Causal mask.
    pub causal: Causal,
    /// Keys before the query's own position that it sees; all unless given.
    pub window_left: Option<u32>,
    /// Keys after the query's own position that it sees; all unless given.
    pub window_right: Option<u32>,
    /// `c · tanh(score / c)`.
    pub softcap: Option<f64>,
    /// ALiBi slopes, `[heads_q]` or `[batch, heads_q]`: `−slope · |position − column|` is added.
    pub alibi_slopes: Option<Vec<f64>>,
    /// One learned logit per query head that takes part in the softmax and carries no value.
    pub sinks: Option<Vec<f64>>,
    /// Dropout.
    pub dropout: Option<Dropout>,
}

impl AttentionOptions {
    /// The scale in use.
    pub fn scale_for(&self, head_dim: usize) -> f64 {
        self.scale.unwrap_or(1.0 / (head_dim as f64).sqrt())
    }

    /// Position of query `row` among the keys. Windows and ALiBi count from it.
    fn position(&self, shape: &AttentionShape, row: usize) -> i64 {
        match self.causal {
            Causal::TopLeft => row as i64,
            Causal::None | Causal::BottomRight => row as i64 + shape.seq_kv as i64 - shape.seq_q as i64,
        }
    }

    /// Whether query `row` sees key `column`.
    pub fn sees(&self, shape: &AttentionShape, row: usize, column: usize) -> bool {
        let ahead = column as i64 - self.position(shape, row);
        (self.causal == Causal::None || ahead <= 0)
            && self.window_right.is_none_or(|right| ahead <= i64::from(right))
            && self.window_left.is_none_or(|left| -ahead <= i64::from(left))
    }
}

impl AttentionShape {
    fn check(&self, options: &AttentionOptions, q: &[f64], k: &[f64], v: &[f64]) {
        let AttentionShape {
            batch,
            heads_q,
            heads_kv,
            seq_q,
            seq_kv,
            head_dim,
            value_dim,
        } = *self;
        assert!(
            heads_kv > 0 && heads_q.is_multiple_of(heads_kv),
            "heads {heads_q}:{heads_kv}"
        );
        assert_eq!(q.len(), batch * seq_q * heads_q * head_dim, "q");
        assert_eq!(k.len(), batch * seq_kv * heads_kv * head_dim, "k");
        assert_eq!(v.len(), batch * seq_kv * heads_kv * value_dim, "v");
        if let Some(sinks) = &options.sinks {
            assert_eq!(sinks.len(), heads_q, "sinks");
        }
    }

    fn group(&self) -> usize {
        self.heads_q / self.heads_kv
    }
}

/// A problem, or the part of one that sees only some key columns.
#[derive(Clone)]
struct Problem<'a> {
    shape: AttentionShape,
    options: &'a AttentionOptions,
    q: &'a [f64],
    k: &'a [f64],
    v: &'a [f64],
    /// Index of the first sequence here in the whole batch; dropout and slopes go by it.
    first_batch: usize,
    /// Columns that take part.
    columns: Range<usize>,
}

/// One live score of a row.
struct Score {
    column: usize,
    value: f64,
    /// Derivative of the value by the scaled dot product: below 1 where softcap bends.
    derivative: f64,
}

impl<'a> Problem<'a> {
    fn new(
        shape: &AttentionShape,
        options: &'a AttentionOptions,
        (q, k, v): (&'a [f64], &'a [f64], &'a [f64]),
    ) -> Self {
        shape.check(options, q, k, v);
        Problem {
            shape: *shape,
            options,
            q,
            k,
            v,
            first_batch: 0,
            columns: 0..shape.seq_kv,
        }
    }

    fn key(&self, batch: usize, column: usize, head: usize) -> &'a [f64] {
        let s = &self.shape;
        let row = (batch * s.seq_kv + column) * s.heads_kv + head / s.group();
        &self.k[row * s.head_dim..][..s.head_dim]
    }

    fn value(&self, batch: usize, column: usize, head: usize) -> &'a [f64] {
        let s = &self.shape;
        let row = (batch * s.seq_kv + column) * s.heads_kv + head / s.group();
        &self.v[row * s.value_dim..][..s.value_dim]
    }

    /// The query of (batch, row, head) times the scale.
    fn scaled_query<P: Precision>(&self, batch: usize, row: usize, head: usize) -> Vec<f64> {
        let s = &self.shape;
        let scale = self.options.scale_for(s.head_dim);
        let start = ((batch * s.seq_q + row) * s.heads_q + head) * s.head_dim;
        self.q[start..][..s.head_dim]
            .iter()
            .map(|q| P::store(q * scale))
            .collect()
    }

    /// Scores of the columns that a row sees; what it does not see is not even read.
    fn scores<P: Precision>(&self, batch: usize, row: usize, head: usize) -> Vec<Score> {
        let query = self.scaled_query::<P>(batch, row, head);
        let slope = self.options.alibi_slopes.as_ref().map(|slopes| {
            let plane = (self.first_batch + batch) * self.shape.heads_q + head;
            if slopes.len() == self.shape.heads_q {
                slopes[head]
            } else {
                slopes[plane]
            }
        });
        let position = self.options.position(&self.shape, row);
        self.columns
            .clone()
            .filter(|&column| self.options.sees(&self.shape, row, column))
            .map(|column| {
                let mut value = P::store(dot::<P>(&query, self.key(batch, column, head)));
                let mut derivative = 1.0;
                if let Some(cap) = self.options.softcap {
                    let tanh = P::store(P::store(value / cap).tanh());
                    value = P::store(tanh * cap);
                    derivative = P::store(1.0 - P::step(tanh * tanh));
                }
                if let Some(slope) = slope {
                    let distance = (position - column as i64).unsigned_abs() as f64;
                    value = P::store(value - P::store(slope * distance));
                }
                Score {
                    column,
                    value,
                    derivative,
                }
            })
            .collect()
    }

    /// Factor that dropout puts on a probability: 0 or `1 / (1 − p)`.
    fn dropout_factor(&self, batch: usize, row: usize, head: usize, column: usize) -> f64 {
        let Some(Dropout {
            probability,
            seed,
            offset,
        }) = self.options.dropout
        else {
            return 1.0;
        };
        let plane = (self.first_batch + batch) * self.shape.heads_q + head;
        let threshold = dropout_threshold(probability);
        let kept = dropout_keeps(seed, offset, threshold, plane as u32, row as u32, column as u32);
        if kept { 1.0 / (1.0 - probability) } else { 0.0 }
    }
}

/// Probabilities of one row and its log-sum-exp.
///
/// A row without live keys (or with scores of −∞ only) has probabilities 0 and, unless it has a
/// sink, LSE −∞. NaN is not masked away: it reaches every probability of its row.
fn softmax_row<P: Precision>(scores: &[Score], sink: Option<f64>) -> (Vec<f64>, f64) {
    let values = scores.iter().map(|score| score.value);
    let sink = sink.unwrap_or(f64::NEG_INFINITY);
    let max = values.clone().fold(sink, f64::max);
    let shift = if max == f64::NEG_INFINITY { 0.0 } else { max };
    let exps: Vec<f64> = values.map(|value| P::step(P::step(value - shift).exp())).collect();
    let total = sum::<P>(exps.iter().copied().chain([P::step((sink - shift).exp())]));
    if total == 0.0 {
        return (vec![0.0; scores.len()], f64::NEG_INFINITY);
    }
    let lse = P::step(shift + P::step(total.ln()));
    (exps.iter().map(|exp| P::store(exp / total)).collect(), lse)
}
