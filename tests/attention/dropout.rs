//! Dropout: the mask is its definition, in every kernel, and what is computed with it is right.

use host::compare::{Rule, compare, same_bits};
use host::ops::{Layout, attention, attention_backward};
use host::reference::attention::{self as reference, AttentionOptions, Causal, Dropout};
use host::reference::finite_difference::vector_jacobian;
use host::reference::philox::{dropout_keeps, dropout_threshold};
use host::reference::{Exact, widen};
use host::{Device, Float};

use crate::support::{Case, DIMS, devices, shape};
use crate::{backward, forward, on_all};

/// Both halves of both numbers matter.
const SEED: u64 = 0x9876_5432_1234_5678;
const OFFSET: u64 = 0x0000_0007_8000_0001;

fn dropout(probability: f64) -> AttentionOptions {
    AttentionOptions {
        dropout: Some(Dropout {
            probability,
            seed: SEED,
            offset: OFFSET,
        }),
        ..Default::default()
    }
}

/// Every kernel, several tiles of rows and keys with ragged ends, alone and with the other options.
#[test]
fn every_head_dim() {
    fn body<T: Float>(device: &Device) {
        for dim in DIMS {
            let alone = Case::<T>::new(1, shape(1, (2, 1), (70, 135), dim)).with(dropout(0.25));
            alone.check(device);
            let options = AttentionOptions {
                causal: Causal::BottomRight,
                softcap: Some(3.0),
                sinks: Some(vec![0.5, -1.0]),
                alibi_slopes: Some(vec![0.1, 0.2]),
                ..dropout(0.5)
            };
            let together = Case::<T>::new(2, shape(2, (2, 2), (35, 90), dim)).with(options);
            together.check(device);
            if [64, 128, 256].contains(&dim) {
                backward::check(&alone, device);
                backward::check(&together, device);
            }
        }
    }
    on_all!(body);
}

#[test]
fn packed_sequences() {
    fn body<T: Float>(device: &Device) {
        let lengths = &[(33, 90), (0, 4), (70, 0), (90, 33)];
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..dropout(0.3)
        };
        forward::packed::<T>(device, lengths, options.clone());
        backward::packed::<T>(device, lengths, options);
    }
    on_all!(body);
}

/// Keys and values that are unit vectors, queries of zeros: what every kernel keeps can be read off its results, and
/// is the definition's, element for element.
#[test]
fn the_mask_is_its_definition() {
    fn body<T: Float>(device: &Device) {
        const N: usize = 100;
        let probability = 0.3;
        let s = shape(2, (2, 2), (N, N), 104);
        let mut case = Case::<T>::new(3, s).with(dropout(probability));
        // Row, head and column of an element of [batch, tokens, heads, dim].
        let place = |i: usize| (i / (104 * 2) % N, i / 104 % 2, i % 104);
        let unit = |i: usize| T::from_f32(if place(i).0 == place(i).2 { 1.0 } else { 0.0 });
        let units: Vec<T> = (0..case.k.len()).map(unit).collect();
        case.q.fill(T::from_f32(0.0));
        (case.k, case.v) = (units.clone(), units.clone());
        let threshold = dropout_threshold(f64::from(probability as f32));
        let kept = |batch: usize, head: usize, row: usize, key: usize| {
            let plane = (2 * batch + head) as u32;
            dropout_keeps(SEED, OFFSET, threshold, plane, row as u32, key as u32)
        };
        let (out, _) = case.run(device).unwrap();
        // dP is 1 everywhere: dS is positive where an element is kept.
        let ones = vec![T::from_f32(1.0); units.len()];
        let dq = backward::run(&case, device, &ones).unwrap().dq;
        // dV of a key has the weights of the rows.
        let dv = backward::run(&case, device, &units).unwrap().dv;
        let mut count = 0;
        for i in 0..units.len() {
            let (batch, (row, head, column)) = (i / (104 * 2 * N), place(i));
            if column >= N {
                continue;
            }
            let by_row = kept(batch, head, row, column);
            count += usize::from(by_row);
            assert_eq!(out[i].to_f32() > 0.0, by_row, "out {i}: {}", case.describe(device));
            assert_eq!(dq[i].to_f32() > 0.0, by_row, "dq {i}: {}", case.describe(device));
            let by_key = kept(batch, head, column, row);
            assert_eq!(dv[i].to_f32() > 0.0, by_key, "dv {i}: {}", case.describe(device));
        }
        // 40,000 draws: the standard deviation of the rate is 0.0023.
        let rate = count as f64 / (4 * N * N) as f64;
        assert!((rate - 0.7).abs() < 0.01, "{rate}");
    }
    on_all!(body);
}

/// A probability of 0 changes no bit, whichever kernel runs; dropout changes none of LSE.
#[test]
fn zero_is_off_and_lse_is_the_same() {
    fn body<T: Float>(device: &Device) {
        for softcap in [None, Some(2.0)] {
            let options = |probability| AttentionOptions {
                softcap,
                ..dropout(probability)
            };
            let without = AttentionOptions {
                dropout: None,
                ..options(0.0)
            };
            let case = Case::<T>::new(4, shape(2, (2, 1), (40, 70), 32));
            let grad = backward::grad_of(&case);
            let (off, none) = (case.clone().with(options(0.0)), case.clone().with(without));
            let (out, lse) = off.run(device).unwrap();
            let (expected, expected_lse) = none.run(device).unwrap();
            same_bits(&out, &expected).unwrap();
            same_bits(&lse, &expected_lse).unwrap();
            let (found, expected) = (
                backward::run(&off, device, &grad).unwrap(),
                backward::run(&none, device, &grad).unwrap(),
            );
            same_bits(&found.dq, &expected.dq).unwrap();
            same_bits(&found.dk, &expected.dk).unwrap();
            same_bits(&found.dv, &expected.dv).unwrap();
            if softcap.is_some() {
                let (_, lse) = case.with(options(0.5)).run(device).unwrap();
                same_bits(&lse, &expected_lse).unwrap();
            }
        }
    }
    on_all!(body);
}

/// The first sequence of a batch has the bits that it has alone, and every seed and offset its own mask.
#[test]
fn neighbours_and_seeds() {
    fn body<T: Float>(device: &Device) {
        let case = Case::<T>::new(5, shape(2, (2, 1), (40, 70), 32)).with(dropout(0.4));
        let grad = backward::grad_of(&case);
        let half = |x: &[T]| x[..x.len() / 2].to_vec();
        let alone = Case {
            shape: shape(1, (2, 1), (40, 70), 32),
            q: half(&case.q),
            k: half(&case.k),
            v: half(&case.v),
            ..case.clone()
        };
        let (out, _) = case.run(device).unwrap();
        same_bits(&alone.run(device).unwrap().0, &half(&out)).unwrap();
        let (found, all) = (
            backward::run(&alone, device, &half(&grad)).unwrap(),
            backward::run(&case, device, &grad).unwrap(),
        );
        same_bits(&found.dq, &half(&all.dq)).unwrap();
        same_bits(&found.dk, &half(&all.dk)).unwrap();
        same_bits(&found.dv, &half(&all.dv)).unwrap();

        let with = |seed, offset| {
            let mut options = dropout(0.4);
            options.dropout = options.dropout.map(|dropout| Dropout {
                seed,
                offset,
                ..dropout
            });
            case.clone().with(options).run(device).unwrap().0
        };
        for (seed, offset) in [
            (SEED + 1, OFFSET),
            (SEED ^ 1 << 40, OFFSET),
            (SEED, OFFSET + 1),
            (SEED, OFFSET ^ 1 << 40),
        ] {
            assert!(same_bits(&with(seed, offset), &out).is_err(), "{seed:#x} {offset:#x}");
        }
        same_bits(&with(SEED, OFFSET), &out).unwrap();
    }
    on_all!(body);
}

/// Central differences of the reference's forward pass with the same mask.
#[test]
fn finite_differences() {
    for device in devices() {
        let s = shape(1, (2, 1), (3, 7), 8);
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            softcap: Some(2.0),
            sinks: Some(vec![0.3, -0.4]),
            ..dropout(0.4)
        };
        let case = Case::<f32>::new(6, s).with(options.clone());
        let grad = backward::grad_of(&case);
        let found = backward::run(&case, device, &grad).unwrap();
        let (q, k, v, g) = (widen(&case.q), widen(&case.k), widen(&case.v), widen(&grad));
        let out = |q: &[f64], k: &[f64], v: &[f64]| reference::forward::<Exact>(&s, &options, q, k, v).out;
        for (name, found, numeric) in [
            ("dq", &found.dq, vector_jacobian(&q, &g, |q| out(q, &k, &v))),
            ("dk", &found.dk, vector_jacobian(&k, &g, |k| out(&q, k, &v))),
            ("dv", &found.dv, vector_jacobian(&v, &g, |v| out(&q, &k, v))),
        ] {
            let rule = Rule::Relative {
                relative: 1e-5,
                absolute: 1e-5,
            };
            assert!(compare(found, &numeric, rule).is_ok(), "{name} on {device}");
        }
    }
}

/// The builders of both calls and the context take the same three numbers.
#[test]
fn builders() {
    for device in devices() {
        let case = Case::<f32>::new(7, shape(1, (2, 2), (20, 30), 16)).with(dropout(0.5));
        let grad = backward::grad_of(&case);
        let expected = backward::run(&case, device, &grad).unwrap();
        let [q, k, v] = case.tensors(device);
        let grad = case.upload(device, &grad, 20, 2, 16);
        assert_eq!(case.layout, Layout::Bshd);
        let context = attention(&q, &k, &v)
            .dropout(0.5, SEED, OFFSET)
            .run_with_context()
            .unwrap();
        let forward = context.attention();
        let by_hand = attention_backward(&grad, &q, &k, &v, &forward.out, &forward.lse)
            .dropout(0.5, SEED, OFFSET)
            .run()
            .unwrap();
        for found in [by_hand, context.backward(&grad).unwrap()] {
            let values = |tensor: &host::AnyTensor| tensor.typed::<f32>("gradient").unwrap().to_vec().unwrap();
            same_bits(&values(&found.dq), &expected.dq).unwrap();
            same_bits(&values(&found.dk), &expected.dk).unwrap();
            same_bits(&values(&found.dv), &expected.dv).unwrap();
        }
    }
}
