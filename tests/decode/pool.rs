//! Sequences that come and go over a pool of pages.

use ferroflash::{
    DType, DecodeOptions, Error, PagedKvCache, PoolLayout, Tensor, f16,
    kv::{NewTokens, PoolConfig, PoolError, SequenceId},
};
use host::{
    compare::{Rule, compare},
    reference::{
        Exact,
        attention::{AttentionOptions, AttentionShape, Causal},
        cache::CacheLayout,
        data::normal,
        decode::{Cache, decode as reference},
        widen,
    },
};

use crate::common;

/// Prefill, append, fork, decode and free over a page pool; every output is held against the reference.
#[test]
fn a_loop_of_sequences() {
    let device = &common::devices()[0];
    const HEADS_Q: usize = 4;
    const HEADS: usize = 2;
    const DIM: usize = 64;
    const PAGE: usize = 4;
    let row = HEADS * DIM;
    let config = PoolConfig::new(PAGE, 24);
    let mut cache =
        PagedKvCache::new(device, DType::F16, PoolLayout::Nhd, config, 1, HEADS as u64, DIM as u64).unwrap();
    let mut live: Vec<(SequenceId, Vec<f16>, Vec<f16>)> = Vec::new();
    let mut refused = 0;
    for step in 0..40u64 {
        match step % 8 {
            0 => live.push((cache.pool_mut().create_sequence(), Vec::new(), Vec::new())),
            3 if !live.is_empty() => {
                let (id, k, v) = live[0].clone();
                live.push((cache.pool_mut().fork(id).unwrap(), k, v));
            }
            7 if live.len() > 3 => {
                let (id, ..) = live.remove(0);
                cache.pool_mut().free(id).unwrap();
            }
            _ => {}
        }
        let new = if step % 8 == 0 { 5 } else { 1 };
        let batch: Vec<(SequenceId, NewTokens)> = live.iter().map(|(id, ..)| (*id, NewTokens::Count(new))).collect();
        let plan = match cache.append(&batch) {
            Ok(plan) => plan,
            Err(Error::Cache(PoolError::CacheFull { .. })) => {
                refused += 1;
                let (id, ..) = live.remove(0);
                cache.pool_mut().free(id).unwrap();
                cache.pool().check_invariants().unwrap();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let draw = |seed: u64, width: usize| normal::<f16>(step * 10 + seed, live.len() * new * width);
        let (k, v, q) = (draw(1, row), draw(2, row), draw(3, HEADS_Q * DIM));
        for (i, (_, keys, values)) in live.iter_mut().enumerate() {
            keys.extend_from_slice(&k[i * new * row..][..new * row]);
            values.extend_from_slice(&v[i * new * row..][..new * row]);
        }
        let (b, n, d) = (live.len() as u64, new as u64, DIM as u64);
        let k = Tensor::from_slice(device, &k, &[b * n, HEADS as u64, d]).unwrap();
        let v = Tensor::from_slice(device, &v, &[b * n, HEADS as u64, d]).unwrap();
        let queries = Tensor::from_slice(device, &q, &[b, n, HEADS_Q as u64, d]).unwrap();
        cache.write(0, &plan, &k, &v).unwrap();
        let options = DecodeOptions {
            causal: true,
            ..DecodeOptions::default()
        };
        let out = cache
            .attend(0, &plan, &queries, options)
            .unwrap()
            .out
            .typed::<f16>("out")
            .unwrap()
            .to_vec()
            .unwrap();
        cache.finish(plan).unwrap();
        cache.pool().check_invariants().unwrap();
        for (i, (_, keys, values)) in live.iter().enumerate() {
            let length = keys.len() / row;
            let shape = AttentionShape {
                batch: 1,
                heads_q: HEADS_Q,
                heads_kv: HEADS,
                seq_q: new,
                seq_kv: length,
                head_dim: DIM,
                value_dim: DIM,
            };
            let plain = Cache {
                k: &widen(keys),
                v: &widen(values),
                layout: CacheLayout::Contiguous {
                    capacity: length,
                    batch_index: None,
                },
                lengths: &[length],
                left_padding: None,
            };
            let elements = new * HEADS_Q * DIM;
            let options = AttentionOptions {
                causal: Causal::BottomRight,
                ..Default::default()
            };
            let expected = reference::<Exact>(&shape, &options, &widen(&q[i * elements..][..elements]), &plain);
            let report = compare(&out[i * elements..][..elements], &expected.out, Rule::Absolute(3e-3));
            assert!(report.is_ok(), "step {step}, sequence {i}: {report}");
        }
    }
    assert!(refused > 0, "the pool never filled up");
}
