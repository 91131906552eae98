//! Gradients: against the f64 reference, finite differences, and themselves.

use host::compare::{Rule, compare, same_bits};
use host::ops::{Layout, attention, attention_backward};
use host::reference::attention::{self as reference, AttentionOptions, AttentionShape, Causal};
use host::reference::data::normal;
use host::reference::finite_difference::vector_jacobian;
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, DType, Device, Error, Float, Tensor, Tier, bf16, f16};
use proptest::test_runner::{Config, TestRunner};

use crate::on_all;
use crate::properties::problem;
use crate::support::{Case, devices, has, op_options, shape};

/// What the op says, in the layout of the reference.
#[derive(Clone, Debug)]
pub struct Gradients<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
    pub dsinks: Option<Vec<f32>>,
}

fn causal() -> AttentionOptions {
    AttentionOptions {
        causal: Causal::BottomRight,
        ..Default::default()
    }
}

pub fn grad_of<T: Float>(case: &Case<T>) -> Vec<T> {
    let s = &case.shape;
    normal::<T>(77, s.batch * s.seq_q * s.heads_q * s.value_dim)
}

/// Forward and backward on the device; whatever is written begins as NaN.
pub fn run<T: Float>(case: &Case<T>, device: &Device, grad: &[T]) -> host::Result<Gradients<T>> {
    let s = &case.shape;
    let [q, k, v] = case.tensors(device);
    let grad = case.upload(device, grad, s.seq_q, s.heads_q, s.value_dim);
    let options = case.op_options(device);
    let forward = attention(&q, &k, &v).options(options.clone()).run()?;
    let fresh = |tensor: &AnyTensor| -> host::Result<Tensor<T>> {
        let fresh = Tensor::<T>::empty(device, tensor.shape())?;
        fresh.fill_bytes(0xFF)?;
        Ok(fresh)
    };
    let (dq, dk, dv) = (fresh(&q)?, fresh(&k)?, fresh(&v)?);
    let call = attention_backward(&grad, &q, &k, &v, &forward.out, &forward.lse)
        .options(options)
        .gradients(&dq, &dk, &dv);
    let work = Tensor::<f32>::empty(device, &[call.work_elements()])?;
    work.fill_bytes(0xFF)?;
    let result = call.work(&work).run()?;
    let values = |tensor: Tensor<T>| {
        if case.layout == Layout::Bshd {
            tensor.to_vec()
        } else {
            tensor.transpose(1, 2)?.to_vec()
        }
    };
    Ok(Gradients {
        dq: values(dq)?,
        dk: values(dk)?,
        dv: values(dv)?,
        dsinks: match result.dsinks {
            Some(dsinks) => Some(dsinks.typed::<f32>("dsinks")?.to_vec()?),
            None => None,
        },
    })
}

#[track_caller]
fn judge<T: Float>(what: &str, found: &Gradients<T>, exact: &reference::Gradients, naive: &reference::Gradients) {
    for (name, found, exact, naive) in [
        ("dq", &found.dq, &exact.dq, &naive.dq),
        ("dk", &found.dk, &exact.dk, &naive.dk),
        ("dv", &found.dv, &exact.dv, &naive.dv),
    ] {
        if let Err(report) = compare(found, exact, Rule::twice(naive)).check() {
            // As for the forward pass: f32 may be within 10⁻⁵ instead, or a part of that of the largest element.
            let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            let close = Rule::Relative {
                relative: 1e-5,
                absolute: 6e-6 * largest + 1e-6,
            };
            // Where rows see one key dS cancels: naive attention happens to find exactly 0, sums of up to 256 products in
            // another order do not.
            // Nor does Δ by an O that was rounded to the element type.
            let vanish = exact.iter().all(|x| x.abs() < 1e-12);
            let left = match T::DTYPE {
                DType::F32 => 1e-4,
                DType::F16 => 1e-2,
                _ => 8e-2,
            };
            let cancelled = vanish && compare(found, exact, Rule::Absolute(left)).is_ok();
            if !cancelled && (T::DTYPE != DType::F32 || !compare(found, exact, close).is_ok()) {
                panic!("{what}: {name}: {report}");
            }
        }
    }
    let (Some(found), Some(exact)) = (&found.dsinks, &exact.dsinks) else {
        assert_eq!(found.dsinks.is_some(), exact.dsinks.is_some());
        return;
    };
    // Sums over all rows of what rounding O to the element type left of them.
    let relative = match T::DTYPE {
        DType::F32 => 1e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    };
    let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let rule = Rule::Relative {
        relative,
        absolute: relative * largest + 1e-6,
    };
    if let Err(report) = compare(found, exact, rule).check() {
        panic!("{what}: dsinks: {report}");
    }
}

#[track_caller]
pub fn check<T: Float>(case: &Case<T>, device: &Device) {
    let grad = grad_of(case);
    let wide = (widen(&case.q), widen(&case.k), widen(&case.v), widen(&grad));
    let (q, k, v, g) = (&wide.0, &wide.1, &wide.2, &wide.3);
    let exact = reference::backward::<Exact>(&case.shape, &case.options, q, k, v, g);
    let naive = reference::backward::<Eager<T>>(&case.shape, &case.options, q, k, v, g);
    let found = run(case, device, &grad).unwrap_or_else(|error| panic!("{}: {error}", case.describe(device)));
    judge(&case.describe(device), &found, &exact, &naive);
}

/// Every kernel: all head dims, plain and extended, several tiles of rows and keys with ragged ends.
#[test]
fn every_head_dim() {
    fn body<T: Float>(device: &Device) {
        for dim in [64, 128, 256] {
            check(
                &Case::<T>::new(1, shape(1, (1, 1), (70, 85), dim)).with(causal()),
                device,
            );
            let extended = AttentionOptions {
                softcap: Some(3.0),
                ..causal()
            };
            check(
                &Case::<T>::new(2, shape(1, (1, 1), (35, 70), dim)).with(extended),
                device,
            );
        }
    }
    on_all!(body);
}

/// Head dims between the kernels', and values of another dim; NaN lies beyond the ends of rows.
#[test]
fn head_dims_between() {
    fn body<T: Float>(device: &Device) {
        for (dim, value_dim) in [(8, 8), (16, 72), (96, 40), (136, 128), (192, 128), (64, 200)] {
            let shape = AttentionShape {
                value_dim,
                ..shape(1, (2, 1), (19, 37), dim)
            };
            let case = Case {
                gap: 8,
                ..Case::<T>::new(3, shape)
            };
            check(&case, device);
        }
    }
    on_all!(body);
}

#[test]
fn ragged_lengths() {
    fn body<T: Float>(device: &Device) {
        for lengths in [(1, 1), (1, 129), (3, 99), (65, 63), (64, 64), (129, 17), (139, 1)] {
            let shape = shape(1, (1, 1), lengths, 32);
            check(&Case::<T>::new(4, shape), device);
            check(&Case::<T>::new(5, shape).with(causal()), device);
        }
    }
    on_all!(body);
}

/// More tiles than a kernel has buffers, own tiles beyond the first, packed ends in the midst of a tile.
#[test]
fn many_tiles() {
    fn body<T: Float>(device: &Device) {
        for dim in [64, 128, 256] {
            let shape = shape(1, (2, 1), (410, 150), dim);
            check(&Case::<T>::new(21, shape).with(causal()), device);
            let shape = AttentionShape {
                seq_q: 150,
                seq_kv: 410,
                ..shape
            };
            check(&Case::<T>::new(22, shape).with(causal()), device);
        }
    }
    for device in devices().iter().filter(|device| device.tier() != Tier::Sm75) {
        body::<bf16>(device);
    }
}

#[test]
fn groups_share_keys() {
    fn body<T: Float>(device: &Device) {
        for heads in [(2, 2), (4, 2), (7, 1), (28, 4)] {
            check(&Case::<T>::new(6, shape(2, heads, (9, 21), 16)).with(causal()), device);
        }
    }
    on_all!(body);
}

#[test]
fn layouts_and_strides() {
    fn body<T: Float>(device: &Device) {
        for layout in [Layout::Bshd, Layout::Bhsd] {
            for gap in [0, 24] {
                let case = Case {
                    layout,
                    gap,
                    ..Case::<T>::new(7, shape(2, (4, 2), (33, 40), 24)).with(causal())
                };
                check(&case, device);
            }
        }
    }
    on_all!(body);
}

#[test]
fn masks() {
    fn body<T: Float>(device: &Device) {
        let windows = [
            (None, None),
            (Some(0), Some(0)),
            (Some(5), None),
            (None, Some(3)),
            (Some(70), Some(9)),
            (Some(u32::MAX), Some(u32::MAX)),
        ];
        for (seq_q, seq_kv) in [(20, 20), (7, 90), (70, 20)] {
            for causal in [Causal::None, Causal::BottomRight, Causal::TopLeft] {
                for (window_left, window_right) in windows {
                    let options = AttentionOptions {
                        causal,
                        window_left,
                        window_right,
                        ..Default::default()
                    };
                    check(
                        &Case::<T>::new(8, shape(1, (1, 1), (seq_q, seq_kv), 16)).with(options),
                        device,
                    );
                }
            }
        }
    }
    on_all!(body);
}

#[test]
fn options() {
    fn body<T: Float>(device: &Device) {
        let shape = shape(2, (4, 2), (37, 70), 32);
        let slopes = |count: usize| (0..count).map(|i| 0.5 / (1 + i) as f64).collect::<Vec<_>>();
        let plain = AttentionOptions::default;
        let all = [
            AttentionOptions {
                scale: Some(0.3),
                ..plain()
            },
            AttentionOptions {
                scale: Some(-0.3),
                ..plain()
            },
            AttentionOptions {
                scale: Some(0.0),
                ..causal()
            },
            AttentionOptions {
                softcap: Some(1.5),
                ..plain()
            },
            AttentionOptions {
                alibi_slopes: Some(slopes(4)),
                ..causal()
            },
            AttentionOptions {
                sinks: Some(vec![0.5, -3.0, 4.0, f64::NEG_INFINITY]),
                ..causal()
            },
            AttentionOptions {
                scale: Some(0.2),
                window_left: Some(20),
                window_right: Some(4),
                softcap: Some(5.0),
                alibi_slopes: Some(slopes(8)),
                sinks: Some(vec![1.0; 4]),
                ..plain()
            },
        ];
        for options in all {
            check(&Case::<T>::new(9, shape).with(options), device);
        }
    }
    on_all!(body);
}

/// Rows without keys, and keys without rows, have gradients of exactly 0.
#[test]
fn rows_without_keys() {
    fn body<T: Float>(device: &Device) {
        for sinks in [None, Some(vec![-200.0, 0.25])] {
            let options = AttentionOptions { sinks, ..causal() };
            let case = Case::<T>::new(10, shape(1, (2, 1), (140, 5), 16)).with(options.clone());
            check(&case, device);
            let found = run(&case, device, &grad_of(&case)).unwrap();
            assert!(found.dq[..135 * 2 * 16].iter().all(|x| x.to_f32() == 0.0));
            check(
                &Case::<T>::new(10, shape(2, (2, 2), (3, 0), 16)).with(options.clone()),
                device,
            );
            check(&Case::<T>::new(10, shape(2, (2, 2), (0, 3), 16)).with(options), device);
        }
        let window = AttentionOptions {
            causal: Causal::TopLeft,
            ..Default::default()
        };
        let case = Case::<T>::new(10, shape(1, (1, 1), (3, 90), 16)).with(window);
        let found = run(&case, device, &grad_of(&case)).unwrap();
        let keys = found.dk[3 * 16..].iter().chain(&found.dv[3 * 16..]);
        assert!(keys.clone().count() == 2 * 87 * 16 && keys.into_iter().all(|x| x.to_f32() == 0.0));
    }
    on_all!(body);
}

/// Not the reference's formulas but its forward pass alone, by central differences.
#[test]
fn finite_differences() {
    for device in devices() {
        let s = shape(1, (2, 1), (3, 5), 8);
        let options = AttentionOptions {
            softcap: Some(2.0),
            sinks: Some(vec![0.3, -0.4]),
            ..causal()
        };
        let case = Case::<f32>::new(11, s).with(options.clone());
        let grad = grad_of(&case);
        let found = run(&case, device, &grad).unwrap();
        let (q, k, v, g) = (widen(&case.q), widen(&case.k), widen(&case.v), widen(&grad));
        let out = |q: &[f64], k: &[f64], v: &[f64]| reference::forward::<Exact>(&s, &options, q, k, v).out;
        let rule = || Rule::Relative {
            relative: 1e-5,
            absolute: 1e-5,
        };
        let numeric = vector_jacobian(&q, &g, |q| out(q, &k, &v));
        assert!(compare(&found.dq, &numeric, rule()).is_ok(), "dq on {device}");
        let numeric = vector_jacobian(&k, &g, |k| out(&q, k, &v));
        assert!(compare(&found.dk, &numeric, rule()).is_ok(), "dk on {device}");
        let numeric = vector_jacobian(&v, &g, |v| out(&q, &k, v));
        assert!(compare(&found.dv, &numeric, rule()).is_ok(), "dv on {device}");
    }
}

#[test]
fn linear_in_the_gradient_of_out() {
    fn body<T: Float>(device: &Device) {
        let case = Case::<T>::new(12, shape(1, (2, 1), (40, 50), 32)).with(causal());
        let grad = grad_of(&case);
        let times = |factor: f32, x: &[T]| x.iter().map(|x| T::from_f32(factor * x.to_f32())).collect::<Vec<T>>();
        let once = run(&case, device, &grad).unwrap();
        let zero = run(&case, device, &times(0.0, &grad)).unwrap();
        assert!(
            [&zero.dq, &zero.dk, &zero.dv]
                .into_iter()
                .flatten()
                .all(|x| x.to_f32() == 0.0)
        );
        // Powers of two are exact where nothing is subnormal.
        if T::DTYPE != DType::F16 {
            let four = run(&case, device, &times(4.0, &grad)).unwrap();
            same_bits(&four.dq, &times(4.0, &once.dq)).unwrap();
            same_bits(&four.dk, &times(4.0, &once.dk)).unwrap();
            same_bits(&four.dv, &times(4.0, &once.dv)).unwrap();
        }
    }
    on_all!(body);
}

/// The same bits again, and with the batch in another order.
#[test]
fn repeats_and_batches_bit_for_bit() {
    fn body<T: Float>(device: &Device) {
        let case = Case::<T>::new(13, shape(3, (4, 2), (70, 33), 32)).with(causal());
        let grad = grad_of(&case);
        let first = run(&case, device, &grad).unwrap();
        for _ in 0..if device.is_emulator() { 1 } else { 1000 } {
            let again = run(&case, device, &grad).unwrap();
            for (x, y) in [(&again.dq, &first.dq), (&again.dk, &first.dk), (&again.dv, &first.dv)] {
                same_bits(x, y).unwrap();
            }
        }
        let turned = |x: &[T]| x.chunks(x.len() / 3).rev().flatten().copied().collect::<Vec<T>>();
        let other = Case {
            q: turned(&case.q),
            k: turned(&case.k),
            v: turned(&case.v),
            ..case.clone()
        };
        let found = run(&other, device, &turned(&grad)).unwrap();
        for (x, y) in [(&found.dq, &first.dq), (&found.dk, &first.dk), (&found.dv, &first.dv)] {
            same_bits(&turned(x), y).unwrap();
        }
    }
    on_all!(body);
}

/// Any shape, stride and option; shrinks to the smallest that fails.
#[test]
fn random_problems() {
    for device in devices() {
        let config = Config {
            cases: if device.is_emulator() { 12 } else { 100 },
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&problem(device.is_emulator()), |problem| {
                match problem.dtype % 3 {
                    0 => check(&problem.case::<f16>(), device),
                    1 if has::<bf16>(device) => check(&problem.case::<bf16>(), device),
                    _ => check(&problem.case::<f32>(), device),
                }
                Ok(())
            })
            .unwrap();
    }
}

/// Packed sequences, empty members first, in the middle and last; NaN follows the last token, and its gradient is 0.
#[test]
fn packed_sequences() {
    fn body<T: Float>(device: &Device) {
        let lengths: [&[(usize, usize)]; 3] = [
            &[(5, 5), (17, 30), (1, 70)],
            &[(0, 0), (3, 9), (0, 4), (70, 0), (2, 2), (0, 0)],
            &[(33, 90), (90, 33)],
        ];
        for lengths in lengths {
            for options in [
                causal(),
                AttentionOptions {
                    window_left: Some(9),
                    window_right: Some(2),
                    sinks: Some(vec![0.1; 4]),
                    ..Default::default()
                },
                AttentionOptions {
                    softcap: Some(2.0),
                    alibi_slopes: Some((0..4 * lengths.len()).map(|i| 0.1 * i as f64).collect()),
                    ..causal()
                },
            ] {
                packed::<T>(device, lengths, options);
            }
        }
    }
    on_all!(body);
}

pub fn packed<T: Float>(device: &Device, lengths: &[(usize, usize)], options: AttentionOptions) {
    let (mut cu_q, mut cu_k) = (vec![0usize], vec![0usize]);
    for (q, k) in lengths {
        cu_q.push(cu_q[cu_q.len() - 1] + q);
        cu_k.push(cu_k[cu_k.len() - 1] + k);
    }
    let (total_q, total_k) = (cu_q[lengths.len()], cu_k[lengths.len()]);
    let s = AttentionShape {
        batch: lengths.len(),
        ..shape(1, (4, 2), (total_q, total_k), 24)
    };
    let draw = |seed, tokens: usize, heads: usize| normal::<T>(seed, tokens * heads * 24);
    let (q, k, v) = (draw(20, total_q, 4), draw(21, total_k, 2), draw(22, total_k, 2));
    let grad = draw(23, total_q, 4);
    let upload = |data: &[T], tokens: usize, heads: usize| {
        let mut all = data.to_vec();
        all.resize((tokens + 3) * heads * 24, T::from_f32(f32::NAN));
        Tensor::from_slice(device, &all, &[(tokens + 3) as u64, heads as u64, 24]).unwrap()
    };
    let (tq, tk, tv) = (upload(&q, total_q, 4), upload(&k, total_k, 2), upload(&v, total_k, 2));
    let tgrad = upload(&grad, total_q, 4);
    let bounds = |cu: &[usize]| {
        let cu: Vec<i32> = cu.iter().map(|&bound| bound as i32).collect();
        Tensor::from_slice(device, &cu, &[cu.len() as u64]).unwrap()
    };
    let (bq, bk) = (bounds(&cu_q), bounds(&cu_k));
    let longest = |side: fn(&(usize, usize)) -> usize| lengths.iter().map(side).max().unwrap_or(0) as u64;
    let context = attention(&tq, &tk, &tv)
        .options(op_options(device, &options, &s, Layout::Bshd))
        .cu_seqlens(&bq, &bk, longest(|l| l.0), longest(|l| l.1))
        .run_with_context()
        .unwrap();
    let result = context.backward(&tgrad).unwrap();
    let values = |tensor: &AnyTensor, tokens: usize| {
        let mut all = tensor.typed::<T>("gradient").unwrap().to_vec().unwrap();
        let dead = all.split_off(tokens * tensor.extent(1) as usize * 24);
        assert!(dead.iter().all(|x| x.to_f32() == 0.0), "gradients of no sequence");
        all
    };
    let found = Gradients {
        dq: values(&result.dq, total_q),
        dk: values(&result.dk, total_k),
        dv: values(&result.dv, total_k),
        dsinks: result
            .dsinks
            .map(|dsinks| dsinks.typed::<f32>("dsinks").unwrap().to_vec().unwrap()),
    };
    let data = (widen(&q), widen(&k), widen(&v));
    let data = (&data.0[..], &data.1[..], &data.2[..]);
    let grad = widen(&grad);
    let exact = reference::backward_varlen::<Exact>(&s, &options, data, (&cu_q, &cu_k), &grad);
    let naive = reference::backward_varlen::<Eager<T>>(&s, &options, data, (&cu_q, &cu_k), &grad);
    judge(
        &format!("{device} {} {lengths:?} {options:?}", T::DTYPE),
        &found,
        &exact,
        &naive,
    );
}

/// Bounds that leave the tensors or do not ascend are cut: no access outside (the emulator would fault).
#[test]
fn wrong_bounds_stay_inside() {
    for device in devices() {
        let x = Tensor::<f16>::zeros(device, &[10, 2, 16]).unwrap();
        for bounds in [[0, 5, 40], [7, 3, 10], [-4, 2, 10], [0, i32::MAX, i32::MIN]] {
            let cu = Tensor::from_slice(device, &bounds, &[3]).unwrap();
            let context = attention(&x, &x, &x)
                .cu_seqlens(&cu, &cu, 10, 10)
                .run_with_context()
                .unwrap();
            context.backward(&x).unwrap();
            device.synchronize().unwrap();
        }
    }
}

/// A context is the same call, on another stream too.
#[test]
fn contexts() {
    for device in devices() {
        let case = Case::<f16>::new(14, shape(1, (2, 2), (20, 20), 16)).with(causal());
        let expected = run(&case, device, &grad_of(&case)).unwrap();
        let [q, k, v] = case.tensors(device);
        let grad = case.upload(device, &grad_of(&case), 20, 2, 16);
        let context = attention(&q, &k, &v).causal().run_with_context().unwrap();
        assert_eq!(context.attention().lse.shape(), [1, 2, 20]);
        device.synchronize().unwrap();
        let stream = device.create_stream().unwrap();
        let found = context.call(&grad).on(&stream).run().unwrap();
        device.synchronize_stream(&stream).unwrap();
        same_bits(&found.dq.typed::<f16>("dq").unwrap().to_vec().unwrap(), &expected.dq).unwrap();
        same_bits(&found.dv.typed::<f16>("dv").unwrap().to_vec().unwrap(), &expected.dv).unwrap();
    }
}

/// More planes than the second grid dimension takes.
#[test]
fn more_than_65535_heads() {
    for device in devices().iter().filter(|device| !device.is_emulator()) {
        let case = Case::<f16>::new(30, shape(70_000, (1, 1), (1, 1), 8));
        let grad = grad_of(&case);
        same_bits(&run(&case, device, &grad).unwrap().dv, &grad).unwrap();
    }
}

/// What belongs to another call is refused by name, before anything is written.
#[test]
fn bad_input() {
    let names = |error: Error| match error {
        Error::Shape { argument, .. }
        | Error::Dtype { argument, .. }
        | Error::Layout { argument, .. }
        | Error::Range { argument, .. }
        | Error::WrongDevice { argument, .. } => argument,
        other => panic!("{other}"),
    };
    for device in devices() {
        let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(device, dtype, shape).unwrap();
        let x = |shape: &[u64]| tensor(DType::F16, shape);
        let f = |shape: &[u64]| tensor(DType::F32, shape);
        let (good, lse) = (x(&[1, 4, 2, 16]), f(&[1, 2, 4]));
        let other = Device::emulator().unwrap();
        let far = AnyTensor::zeros(&other, DType::F32, &[1, 2, 4]).unwrap();
        let call = |grad: &AnyTensor, out: &AnyTensor, lse: &AnyTensor| {
            names(
                attention_backward(grad, &good, &good, &good, out, lse)
                    .run()
                    .unwrap_err(),
            )
        };
        assert_eq!(call(&x(&[1, 4, 2, 24]), &good, &lse), "grad_out");
        assert_eq!(call(&f(&[1, 4, 2, 16]), &good, &lse), "grad_out");
        assert_eq!(call(&good, &x(&[1, 5, 2, 16]), &lse), "out");
        assert_eq!(call(&good, &f(&[1, 4, 2, 16]), &lse), "out");
        assert_eq!(call(&good, &good, &f(&[1, 4, 2])), "lse");
        assert_eq!(call(&good, &good, &x(&[1, 2, 4])), "lse");
        assert_eq!(call(&good, &good, &far), "lse");
        let odd = x(&[1, 4, 2, 18]).slice(3, 0..16).unwrap();
        assert_eq!(call(&odd, &good, &lse), "grad_out");
        assert_eq!(call(&good, &good, &f(&[1, 2, 8]).slice(2, 0..4).unwrap()), "lse");

        let base = || attention_backward(&good, &good, &good, &good, &good, &lse);
        let (a, b, c) = (x(&[1, 4, 2, 16]), x(&[1, 4, 2, 16]), x(&[1, 4, 2, 16]));
        let refused =
            |dq: &AnyTensor, dk: &AnyTensor, dv: &AnyTensor| names(base().gradients(dq, dk, dv).run().unwrap_err());
        assert_eq!(refused(&a, &a, &c), "dk");
        assert_eq!(refused(&a, &b, &b), "dv");
        assert_eq!(refused(&good, &b, &c), "dq");
        assert_eq!(refused(&a, &x(&[1, 4, 2, 8]), &c), "dk");
        let shifted = x(&[130]).slice(0, 2..130).unwrap().reshape(&[1, 4, 2, 16]).unwrap();
        assert_eq!(refused(&a, &b, &shifted), "dv");
        assert_eq!(refused(&a, &b, &f(&[1, 4, 2, 16])), "dv");
        assert_eq!(names(base().work(&f(&[7])).run().unwrap_err()), "work");
        assert_eq!(names(base().work(&x(&[8])).run().unwrap_err()), "work");
        assert_eq!(names(base().softcap(-1.0).run().unwrap_err()), "softcap");
        assert_eq!(base().work_elements(), 8);
        base().work(&f(&[8])).gradients(&a, &b, &c).run().unwrap();
        if device.tier() == Tier::Sm75 {
            let y = tensor(DType::BF16, &[1, 4, 2, 16]);
            let error = attention_backward(&y, &y, &y, &y, &y, &lse).run().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Unsupported {
                        tier: Some(Tier::Sm75),
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
