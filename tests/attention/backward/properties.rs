//! What holds whatever the numbers are; random problems.

use host::compare::{Rule, compare, same_bits};
use host::reference::attention::{self as reference, AttentionOptions, Causal, Dropout};
use host::reference::finite_difference::vector_jacobian;
use host::reference::{Exact, widen};
use host::{DType, Device, Float, bf16, f16};
use proptest::test_runner::TestRunner;

use super::{causal, check, grad_of, run};
use crate::on_all;
use crate::properties::problem;
use crate::support::{Case, devices, has, shape};

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

/// Rows that see a key or two, where dP and Δ cancel: what rounding O lost rules the error.
#[test]
fn rows_of_few_keys() {
    fn body<T: Float>(device: &Device) {
        for seed in 0..8 {
            let options = AttentionOptions {
                causal: Causal::TopLeft,
                sinks: Some(vec![-1.0, 1.0]),
                ..Default::default()
            };
            check(
                &Case::<T>::new(seed, shape(1, (2, 1), (2, 9), 64)).with(options),
                device,
            );
            let options = AttentionOptions {
                dropout: Some(Dropout {
                    probability: 0.5,
                    seed,
                    offset: 3,
                }),
                ..causal()
            };
            check(
                &Case::<T>::new(seed, shape(2, (1, 1), (4, 2), 64)).with(options),
                device,
            );
        }
    }
    on_all!(body);
}

/// Any shape, stride and option; shrinks to the smallest that fails.
#[test]
fn random_problems() {
    for device in devices() {
        let cases = if device.is_emulator() { 12 } else { 100 };
        TestRunner::new(crate::common::problems(cases))
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
