//! Properties: same bits each time, whatever the batch; random problems.

use host::compare::same_bits;
use host::ops::{Layout, attention, flash_attn, flash_attn_varlen};
use host::reference::attention::{AttentionOptions, AttentionShape, Causal, Dropout};
use host::{Device, Float, Tensor, bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::on_all;
use crate::support::{Case, devices, has, shape};

#[test]
fn runs_repeat_bit_for_bit() {
    fn body<T: Float>(device: &Device) {
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        let case = Case::<T>::new(1, shape(2, (4, 2), (70, 90), 64)).with(options);
        let (out, lse) = case.run(device).unwrap();
        for _ in 0..if device.is_emulator() { 1 } else { 50 } {
            let (again, lse_again) = case.run(device).unwrap();
            same_bits(&again, &out).unwrap();
            same_bits(&lse_again, &lse).unwrap();
        }
    }
    on_all!(body);
}

/// A thousand runs beside other work on the same GPU: neither the order of warps nor that of blocks shows in the bits.
#[test]
fn runs_under_load_repeat_bit_for_bit() {
    fn body<T: Float>(device: &Device) {
        let runs = if device.is_emulator() { 2 } else { 1000 };
        let beside = Case::<T>::new(7, shape(1, (2, 2), (if runs > 2 { 1000 } else { 10 }, 300), 64)).tensors(device);
        let side = device.create_stream().unwrap();
        let sink = attention(&beside[0], &beside[1], &beside[2]).run_without_lse().unwrap();
        device.synchronize().unwrap();
        for (dim, causal) in [
            (64, Causal::None),
            (64, Causal::BottomRight),
            (128, Causal::BottomRight),
            (256, Causal::None),
        ] {
            let options = AttentionOptions {
                causal,
                ..Default::default()
            };
            let case = Case::<T>::new(1, shape(1, (2, 1), (200, if runs > 2 { 500 } else { 140 }), dim)).with(options);
            let [q, k, v] = case.tensors(device);
            let run = || {
                let call = attention(&q, &k, &v).options(case.op_options(device));
                let result = call.run().unwrap();
                let out = result.out.typed::<T>("out").unwrap().to_vec().unwrap();
                (out, result.lse.typed::<f32>("lse").unwrap().to_vec().unwrap())
            };
            let (out, lse) = run();
            for _ in 1..runs {
                attention(&beside[0], &beside[1], &beside[2])
                    .out(&sink)
                    .on(&side)
                    .run_without_lse()
                    .unwrap();
                let (again, lse_again) = run();
                same_bits(&again, &out).unwrap();
                same_bits(&lse_again, &lse).unwrap();
            }
        }
        device.synchronize_stream(&side).unwrap();
    }
    on_all!(body);
}

/// A sequence alone, in a batch, and packed among others gives the same bits.
#[test]
fn rows_do_not_depend_on_the_batch() {
    fn body<T: Float>(device: &Device) {
        let batch = Case::<T>::new(2, shape(5, (2, 1), (21, 85), 32));
        let (out, _) = batch.run(device).unwrap();
        let per_q = 21 * 2 * 32;
        let per_k = 85 * 32;
        for b in [0, 3] {
            let one = Case {
                shape: AttentionShape {
                    batch: 1,
                    ..batch.shape
                },
                q: batch.q[b * per_q..][..per_q].to_vec(),
                k: batch.k[b * per_k..][..per_k].to_vec(),
                v: batch.v[b * per_k..][..per_k].to_vec(),
                ..batch.clone()
            };
            same_bits(&one.run(device).unwrap().0, &out[b * per_q..][..per_q]).unwrap();
        }
        let tensor =
            |data: &[T], tokens: u64, heads: u64| Tensor::from_slice(device, data, &[5 * tokens, heads, 32]).unwrap();
        let bounds =
            |step: i32| Tensor::from_slice(device, &[0, step, 2 * step, 3 * step, 4 * step, 5 * step], &[6]).unwrap();
        let (q, k, v) = (
            tensor(&batch.q, 21, 2),
            tensor(&batch.k, 85, 1),
            tensor(&batch.v, 85, 1),
        );
        let packed = flash_attn_varlen(&q, &k, &v, &bounds(21), &bounds(85), 21, 85, false, (-1, -1)).unwrap();
        same_bits(&packed.typed::<T>("out").unwrap().to_vec().unwrap(), &out).unwrap();
    }
    on_all!(body);
}

/// Without LSE, in another stream, by flash-attn's name: the same output.
#[test]
fn ways_to_call() {
    for device in devices() {
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            window_left: Some(7),
            ..Default::default()
        };
        let case = Case::<f16>::new(3, shape(1, (2, 2), (20, 20), 16)).with(options);
        let (out, _) = case.run(device).unwrap();
        let [q, k, v] = case.tensors(device);
        let bits = |tensor: host::AnyTensor| tensor.typed::<f16>("out").unwrap().to_vec().unwrap();
        same_bits(&bits(flash_attn(&q, &k, &v, true, (7, -1)).unwrap()), &out).unwrap();
        let stream = device.create_stream().unwrap();
        let call = attention(&q, &k, &v).causal().window(Some(7), None).on(&stream);
        let other = call.run_without_lse().unwrap();
        device.synchronize_stream(&stream).unwrap();
        same_bits(&bits(other), &out).unwrap();
    }
}

/// Any shape, stride and option; shrinks to the smallest that fails.
#[test]
fn random_problems() {
    for device in devices() {
        let cases = if device.is_emulator() { 24 } else { 1000 };
        TestRunner::new(crate::common::problems(cases))
            .run(&problem(device.is_emulator()), |problem| {
                match problem.dtype % 3 {
                    0 => problem.case::<f16>().check(device),
                    1 if has::<bf16>(device) => problem.case::<bf16>().check(device),
                    _ => problem.case::<f32>().check(device),
                }
                Ok(())
            })
            .unwrap();
    }
}

#[derive(Clone, Debug)]
pub struct Problem {
    seed: u64,
    pub dtype: u8,
    shape: AttentionShape,
    options: AttentionOptions,
    layout: Layout,
    gap: usize,
}

impl Problem {
    pub fn case<T: Float>(&self) -> Case<T> {
        let case = Case::new(self.seed, self.shape).with(self.options.clone());
        Case {
            layout: self.layout,
            gap: self.gap,
            ..case
        }
    }
}

pub fn problem(small: bool) -> impl Strategy<Value = Problem> {
    let longest = if small { 150usize } else { 700 };
    let sizes = (
        1..3usize,
        1..3usize,
        1..4usize,
        1..longest,
        0..longest,
        1..33usize,
        1..33usize,
    );
    let masks = (0..3u8, proptest::option::of(0..200u32), proptest::option::of(0..200u32));
    let extras = (
        proptest::option::of(0.05..0.5f64),
        proptest::option::of(0.5..20.0f64),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of((0.05..0.9f64, any::<u64>(), any::<u64>())),
    );
    let rest = (any::<u32>(), any::<u8>(), any::<bool>(), 0..3usize);
    (sizes, masks, extras, rest).prop_map(move |(sizes, masks, (scale, softcap, alibi, sinks, dropout), rest)| {
        let (batch, heads_kv, group, seq_q, seq_kv, dim, value_dim) = sizes;
        let (causal, window_left, window_right) = masks;
        let (seed, dtype, transposed, gap) = rest;
        let heads_q = heads_kv * group;
        Problem {
            seed: seed.into(),
            dtype,
            shape: AttentionShape {
                batch,
                heads_q,
                heads_kv,
                seq_q,
                seq_kv,
                head_dim: 8 * dim,
                value_dim: 8 * value_dim,
            },
            options: AttentionOptions {
                scale,
                causal: [Causal::None, Causal::BottomRight, Causal::TopLeft][causal as usize],
                window_left,
                window_right,
                softcap,
                alibi_slopes: alibi.then(|| (0..heads_q).map(|head| 0.3 / (1 + head) as f64).collect()),
                sinks: sinks.then(|| (0..heads_q).map(|head| head as f64 - 1.0).collect()),
                dropout: dropout.map(|(probability, seed, offset)| Dropout {
                    probability: f64::from(probability as f32),
                    seed,
                    offset,
                }),
            },
            layout: if transposed { Layout::Bhsd } else { Layout::Bshd },
            gap: 8 * gap,
        }
    })
}
