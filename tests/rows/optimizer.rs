//! AdamW.

use host::ops::{AdamW, AdamWState};
use host::reference::{Eager, Exact, optimizer as reference, widen};
use host::{Device, Error, Float, Tensor, bf16, f16};

use crate::common::devices;
use crate::support::{assert_twice, dense, normal, values};

const OPTIONS: AdamW = AdamW {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    grad_scale: 1.0,
};

fn check<T: Float>(device: &Device, len: usize) {
    let options = reference::AdamW {
        learning_rate: OPTIONS.learning_rate,
        beta1: OPTIONS.beta1,
        beta2: OPTIONS.beta2,
        epsilon: OPTIONS.epsilon,
        weight_decay: OPTIONS.weight_decay,
    };
    let start: Vec<T> = normal(1, 1, len);
    let p = dense(device, &start, &[len]);
    let (m, v) = (
        dense(device, &vec![0.0f32; len], &[len]),
        dense(device, &vec![0.0f32; len], &[len]),
    );
    let mut exact = (widen(&start), vec![0.0; len], vec![0.0; len]);
    for step in 1..=3 {
        let gradient: Vec<T> = normal(10 + u64::from(step), 1, len);
        let wide = widen(&gradient);
        // Each step from what is stored: rounding does not add up.
        let now: Vec<f64> = widen(&values::<T>(&p));
        let mut naive = (now.clone(), exact.1.clone(), exact.2.clone());
        exact.0 = now;
        options.step::<Exact>(step, &mut exact.0, &wide, &mut exact.1, &mut exact.2);
        options.step::<Eager<T>>(step, &mut naive.0, &wide, &mut naive.1, &mut naive.2);
        let state = AdamWState {
            parameters: &p,
            master: None,
            first: &m,
            second: &v,
        };
        OPTIONS.step(step, &state, &dense(device, &gradient, &[len])).unwrap();
        let what = format!("{device}: {} step {step}", T::DTYPE);
        assert_twice::<T>(&what, &p, &exact.0, &naive.0);
        for (moment, wanted) in [(&m, &exact.1), (&v, &exact.2)] {
            for (got, wanted) in moment.to_f64().unwrap().iter().zip(wanted) {
                assert!(
                    (got - wanted).abs() <= 1e-6 * wanted.abs() + 1e-7,
                    "{what}: {got} instead of {wanted}"
                );
            }
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        check::<f32>(&device, 1000);
        check::<f16>(&device, 77);
        check::<bf16>(&device, 2100);
    }
}

#[test]
fn a_master_copy_keeps_small_steps() {
    for device in devices() {
        let ones = [1.0f32; 9];
        let p = dense(&device, &[bf16::ONE; 9], &[9]);
        let master = dense(&device, &ones, &[9]);
        let (m, v) = (dense(&device, &[0.0f32; 9], &[9]), dense(&device, &[0.0f32; 9], &[9]));
        let gradient = dense(&device, &[bf16::ONE; 9], &[9]);
        let small = AdamW {
            learning_rate: 1e-3,
            weight_decay: 0.0,
            ..OPTIONS
        };
        let state = AdamWState {
            parameters: &p,
            master: Some(&master),
            first: &m,
            second: &v,
        };
        for step in 1..=10 {
            small.step(step, &state, &gradient).unwrap();
        }
        // One step is a quarter of a bf16 unit below 1; ten are not lost.
        for (p, master) in p.to_vec().unwrap().iter().zip(master.to_vec().unwrap()) {
            assert!((master - 0.99).abs() < 1e-4, "{master}");
            assert_eq!(*p, bf16::from_f32(master));
        }
    }
}

#[test]
fn names_what_is_wrong() {
    let device = &devices()[0];
    let (p, m) = (
        Tensor::<f32>::zeros(device, &[4]).unwrap(),
        Tensor::<f32>::zeros(device, &[4]).unwrap(),
    );
    let (v, g) = (
        Tensor::<f32>::zeros(device, &[4]).unwrap(),
        Tensor::<f32>::zeros(device, &[4]).unwrap(),
    );
    let state = AdamWState {
        parameters: &p,
        master: None,
        first: &m,
        second: &v,
    };
    let named = |error: Error| match error {
        Error::Shape { argument, .. }
        | Error::Dtype { argument, .. }
        | Error::Range { argument, .. }
        | Error::Layout { argument, .. } => argument,
        error => panic!("{error}"),
    };
    assert_eq!(named(OPTIONS.step(0, &state, &g).unwrap_err()), "step");
    assert_eq!(
        named(AdamW { beta2: 1.0, ..OPTIONS }.step(1, &state, &g).unwrap_err()),
        "beta2"
    );
    let short = Tensor::<f32>::zeros(device, &[3]).unwrap();
    assert_eq!(named(OPTIONS.step(1, &state, &short).unwrap_err()), "gradient");
    let low = Tensor::<f16>::zeros(device, &[4]).unwrap();
    let wrong = AdamWState { first: &low, ..state };
    assert_eq!(named(OPTIONS.step(1, &wrong, &g).unwrap_err()), "first");
    let twice = AdamWState { first: &v, ..state };
    assert_eq!(named(OPTIONS.step(1, &twice, &g).unwrap_err()), "second");
}
