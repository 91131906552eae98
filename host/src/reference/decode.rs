//! Attention of new tokens over a cache.

use super::Precision;
use super::attention::{AttentionOptions, AttentionShape, Forward, forward_varlen};
use super::cache::{CacheLayout, gather};

/// A cache and how much of it each sequence has filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache<'a> {
    /// Keys, `[slots, heads_kv, head_dim]`.
    pub k: &'a [f64],
    /// Values, `[slots, heads_kv, value_dim]`.
    pub v: &'a [f64],
    /// Where the tokens lie.
    pub layout: CacheLayout<'a>,
    /// Tokens of each sequence, the new ones included.
    pub lengths: &'a [usize],
    /// Tokens at the front of each sequence that are padding; positions count from behind them.
    pub left_padding: Option<&'a [usize]>,
}

/// Attention of `q [batch, seq_q, heads_q, head_dim]`, whose last row stands at the last cached
/// token of its sequence; `shape.seq_kv` is ignored. The new keys and values are in the cache
/// already.
///
/// `out` is `[batch, seq_q, heads_q, value_dim]`, `lse` is `[batch, heads_q, seq_q]`.
pub fn decode<P: Precision>(shape: &AttentionShape, options: &AttentionOptions, q: &[f64], cache: &Cache) -> Forward {
    assert_eq!(cache.lengths.len(), shape.batch, "lengths");
    let (mut k, mut v) = (Vec::new(), Vec::new());
    let mut bounds = vec![0];
    for (sequence, &length) in cache.lengths.iter().enumerate() {
        let padding = cache.left_padding.map_or(0, |padding| padding[sequence]).min(length);
        let tokens = padding..length;
        bounds.push(bounds[sequence] + tokens.len());
        let row = |dim| shape.heads_kv * dim;
        k.extend(gather(
            cache.k,
            &cache.layout,
            sequence,
            tokens.clone(),
            row(shape.head_dim),
        ));
        v.extend(gather(cache.v, &cache.layout, sequence, tokens, row(shape.value_dim)));
    }
    let queries: Vec<usize> = (0..=shape.batch).map(|i| i * shape.seq_q).collect();
    let packed = forward_varlen::<P>(shape, options, (q, &k, &v), (&queries, &bounds));
    // [head, batch · row] to [batch, head, row].
    let planes = (0..shape.batch).flat_map(|b| (0..shape.heads_q).map(move |head| (b, head)));
    let lse = planes
        .flat_map(|(b, head)| &packed.lse[(head * shape.batch + b) * shape.seq_q..][..shape.seq_q])
        .copied()
        .collect();
    Forward { out: packed.out, lse }
}

#[cfg(test)]
mod tests {
    use super::super::attention::{Causal, forward};
    use super::super::cache::append;
    use super::super::data::{normal, permutation};
    use super::super::{Exact, widen};
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        batch: 2,
        heads_q: 4,
        heads_kv: 2,
        seq_q: 2,
        seq_kv: 7,
        head_dim: 4,
        value_dim: 3,
    };

    fn options() -> AttentionOptions {
        AttentionOptions {
            causal: Causal::BottomRight,
            alibi_slopes: Some((0..8).map(|i| 0.2 * f64::from(i)).collect()),
            sinks: Some(vec![0.5; 4]),
            ..Default::default()
        }
    }

    /// Full sequences through a shuffled page table, with NaN in every slot that holds no token.
    #[test]
    fn pages_equal_plain_attention() {
        let q = widen(&normal::<f32>(1, 2 * 2 * 4 * 4));
        let k = widen(&normal::<f32>(2, 2 * 7 * 2 * 4));
        let v = widen(&normal::<f32>(3, 2 * 7 * 2 * 3));
        let plain = forward::<Exact>(&SHAPE, &options(), &q, &k, &v);
        for page_size in [1, 2, 4, 16] {
            let width = 7usize.div_ceil(page_size);
            let table: Vec<i32> = permutation(5, 2 * width + 3)[..2 * width]
                .iter()
                .map(|&page| page as i32)
                .collect();
            let layout = CacheLayout::Paged {
                page_size,
                table: &table,
                width,
            };
            let slots: Vec<i64> = (0..14).map(|token| layout.slot(token / 7, token % 7) as i64).collect();
            let total = (2 * width + 3) * page_size;
            let mut pools = [vec![f64::NAN; total * 8], vec![f64::NAN; total * 6]];
            append(&mut pools[0], &k, &slots, 8);
            append(&mut pools[1], &v, &slots, 6);
            let cache = Cache {
                k: &pools[0],
                v: &pools[1],
                layout,
                lengths: &[7, 7],
                left_padding: None,
            };
            assert_eq!(decode::<Exact>(&SHAPE, &options(), &q, &cache), plain);
        }
    }

    #[test]
    fn lengths_padding_and_rows_are_respected() {
        let q = widen(&normal::<f32>(1, 2 * 2 * 4 * 4));
        let k = widen(&normal::<f32>(2, 3 * 9 * 2 * 4));
        let v = widen(&normal::<f32>(3, 3 * 9 * 2 * 3));
        let options = AttentionOptions {
            alibi_slopes: None,
            ..options()
        };
        let cache = Cache {
            k: &k,
            v: &v,
            layout: CacheLayout::Contiguous {
                capacity: 9,
                batch_index: Some(&[2, 0]),
            },
            lengths: &[6, 0],
            left_padding: Some(&[2, 0]),
        };
        let result = decode::<Exact>(&SHAPE, &options, &q, &cache);
        // Sequence 0 is tokens 2..6 of row 2; sequence 1 is empty, with its sinks alone.
        let one = AttentionShape {
            batch: 1,
            seq_kv: 4,
            ..SHAPE
        };
        let (k, v) = (&k[(18 + 2) * 8..(18 + 6) * 8], &v[(18 + 2) * 6..(18 + 6) * 6]);
        let alone = forward::<Exact>(&one, &options, &q[..32], k, v);
        assert_eq!(result.out[..24], alone.out);
        assert_eq!(result.lse[..8], alone.lse);
        assert_eq!(result.out[24..], [0.0; 24]);
        assert_eq!(result.lse[8..], [0.5; 8]);
    }

    /// Decoding token by token gives the rows of one causal prefill.
    #[test]
    fn decode_after_prefill_is_one_long_prefill() {
        let shape = AttentionShape {
            batch: 1,
            seq_q: 7,
            ..SHAPE
        };
        let q = widen(&normal::<f32>(1, 7 * 4 * 4));
        let k = widen(&normal::<f32>(2, 7 * 2 * 4));
        let v = widen(&normal::<f32>(3, 7 * 2 * 3));
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        let prefill = forward::<Exact>(&shape, &options, &q, &k, &v);
        let step = AttentionShape { seq_q: 1, ..shape };
        for token in 0..7 {
            let cache = Cache {
                k: &k,
                v: &v,
                layout: CacheLayout::Contiguous {
                    capacity: 7,
                    batch_index: None,
                },
                lengths: &[token + 1],
                left_padding: None,
            };
            let row = decode::<Exact>(&step, &options, &q[token * 16..][..16], &cache);
            assert_eq!(row.out, prefill.out[token * 12..][..12]);
        }
    }
}
