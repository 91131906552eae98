//! Greedy choice and sampling on every device.

use crate::common::devices;
use crate::support::{dense, normal, strided};
use host::ops::{argmax, argmax_and_copy, sample};
use host::reference::data::{Distribution, plant};
use host::reference::sampling::{SamplingOptions, sample as reference};
use host::reference::{reduce, widen};
use host::{AnyTensor, DType, Device, Error, Float, Tensor, bf16, f16};
use proptest::prelude::*;

fn tokens(tensor: &AnyTensor) -> Vec<i64> {
    tensor.typed::<i64>("tokens").unwrap().to_vec().unwrap()
}

fn check<T: Float>(device: &Device, kind: Distribution, rows: usize, columns: usize, options: SamplingOptions) {
    let data: Vec<T> = kind.draw(options.seed ^ 77, rows, columns);
    let logits = strided(device, &data, rows, columns % 3, 1);
    let mut op = sample(&logits)
        .temperature(options.temperature as f32)
        .top_p(options.top_p)
        .seed(options.seed)
        .offset(options.offset);
    if let Some(top_k) = options.top_k {
        op = op.top_k(top_k as u64);
    }
    let drawn = tokens(&op.run().unwrap());
    let again = tokens(&op.run().unwrap());
    assert_eq!(drawn, again);
    for (row, &token) in drawn.iter().enumerate() {
        let wide = widen(&data[row * columns..][..columns]);
        let wanted = reference(&wide, row as u32, &options).unwrap();
        // The kernel's probabilities are f32: where less than that decides, another token is right too.
        let sure = wanted.margin > 1e-6;
        assert!(
            !sure || token == wanted.token as i64,
            "{device}: {} row {row} of {rows}×{columns} {options:?} {kind:?}: {token} instead of {wanted:?}",
            T::DTYPE
        );
        assert!((0..columns as i64).contains(&token));
    }
}

const ALL: SamplingOptions = SamplingOptions {
    temperature: 1.0,
    top_k: None,
    top_p: 1.0,
    seed: 1,
    offset: 0,
};

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        for columns in [1, 5, 300, 9000] {
            for (seed, temperature, top_k, top_p) in [
                (1, 1.0, None, 1.0),
                (2, 0.7, Some(40), 0.9),
                (3, 1.5, Some(3), 1.0),
                (4, 1.0, None, 0.8),
                (5, 0.0, None, 0.5),
            ] {
                let options = SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    seed,
                    offset: seed << 33,
                };
                if columns < 9000 {
                    check::<f32>(&device, Distribution::NORMAL, 2, columns, options);
                    check::<f16>(&device, Distribution::NORMAL, 1, columns, options);
                } else if seed == 2 {
                    check::<bf16>(&device, Distribution::NORMAL, 1, columns, options);
                }
            }
        }
    }
}

#[test]
fn ties_go_to_lower_indices() {
    for device in devices() {
        // Many equal logits on both sides of every threshold.
        let kind = Distribution::Integers { magnitude: 2 };
        for seed in 0..2 {
            let options = SamplingOptions {
                top_k: Some(25),
                top_p: 0.6,
                seed,
                ..ALL
            };
            check::<f16>(&device, kind, 2, 90, options);
            check::<f32>(&device, Distribution::ConstantRows, 2, 90, options);
        }
        let flat = dense(&device, &[0.0f32, -0.0, 0.0, -0.0], &[1, 4]);
        for seed in 0..6 {
            let token = tokens(&sample(&flat).top_k(2).seed(seed).run().unwrap())[0];
            assert!(token < 2, "−0 equals 0");
        }
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    let device = devices().remove(0);
    let logits: Vec<f32> = [1.0f32, 0.0, 2.0, 5.0].map(f32::ln).repeat(150);
    let drawn = tokens(&sample(&dense(&device, &logits, &[150, 4])).seed(9).run().unwrap());
    let count = |token| drawn.iter().filter(|&&t| t == token).count() as f64 / 150.0;
    assert_eq!(count(1), 0.0);
    for (token, expected) in [(0, 0.125), (2, 0.25), (3, 0.625)] {
        // Four standard deviations of 150 draws.
        assert!((count(token) - expected).abs() < 0.16, "{token}: {}", count(token));
    }
}

#[test]
fn the_offset_may_come_from_the_device() {
    for device in devices() {
        let logits = dense(&device, &[0.0f32; 800], &[2, 400]);
        let step = dense(&device, &[5i64], &[1]);
        let a = tokens(&sample(&logits).offset(2).offset_from(&step).run().unwrap());
        let b = tokens(&sample(&logits).offset(7).run().unwrap());
        let c = tokens(&sample(&logits).offset(8).run().unwrap());
        assert_eq!(a, b);
        assert_ne!(b, c);
    }
}

#[test]
fn faults_do_not_pass_as_text() {
    for device in devices() {
        let mut data: Vec<f32> = normal(3, 4, 100);
        plant(&mut data, [17, 30], f32::NAN);
        plant(&mut data, [100 + 50, 100 + 60], f32::INFINITY);
        plant(&mut data, 200..300, f32::NEG_INFINITY);
        let logits = dense(&device, &data, &[4, 100]);
        let wanted: Vec<i64> = data
            .chunks(100)
            .map(|row| reduce::argmax(&widen(row)).unwrap() as i64)
            .collect();
        assert_eq!(wanted[..3], [17, 50, 0]);
        assert_eq!(tokens(&argmax(&logits).unwrap()), wanted);
        assert_eq!(tokens(&sample(&logits).run().unwrap())[..3], wanted[..3]);
        assert_eq!(tokens(&sample(&logits).temperature(0.0).run().unwrap()), wanted);
    }
}

#[test]
fn the_largest_of_many_columns_by_a_cluster_and_its_copy() {
    for device in devices() {
        // Whole vectors, and rows that start anywhere.
        for columns in [4096usize, 4099, 12_293] {
            let mut data: Vec<f32> = normal(7, 5, columns);
            plant(&mut data, [columns + 4000, columns + 9], 9.0);
            plant(&mut data, [2 * columns + 1, 3 * columns - 1], f32::NAN);
            plant(&mut data, 3 * columns..4 * columns, f32::NEG_INFINITY);
            plant(&mut data, 4 * columns..5 * columns, -0.0);
            plant(&mut data, [4 * columns + 77], 0.0);
            let wanted: Vec<i64> = data
                .chunks(columns)
                .map(|row| reduce::argmax(&widen(row)).unwrap() as i64)
                .collect();
            assert_eq!(wanted[1..], [9, 1, 0, 0]);
            let logits = dense(&device, &data, &[5, columns]);
            let copy = AnyTensor::zeros(&device, DType::I64, &[5]).unwrap();
            copy.fill_bytes(0xff).unwrap();
            assert_eq!(
                tokens(&argmax_and_copy(&logits, Some(&copy)).unwrap()),
                wanted,
                "{device}"
            );
            assert_eq!(tokens(&copy), wanted, "{device}");
        }
        let logits = AnyTensor::zeros(&device, DType::F32, &[2, 5000]).unwrap();
        let short = AnyTensor::zeros(&device, DType::I64, &[1]).unwrap();
        let told = argmax_and_copy(&logits, Some(&short));
        assert!(matches!(told, Err(Error::Shape { argument: "copy", .. })));
    }
}

#[test]
fn nothing_and_errors() {
    let device = &devices()[0];
    let none = Tensor::<f32>::empty(device, &[0, 5]).unwrap();
    assert_eq!(sample(&none).run().unwrap().shape(), [0]);
    let hollow = Tensor::<f32>::empty(device, &[3, 0]).unwrap();
    assert!(matches!(
        sample(&hollow).run(),
        Err(Error::Shape { argument: "logits", .. })
    ));
    let x = Tensor::<f16>::zeros(device, &[2, 5]).unwrap();
    let named = |result: Result<AnyTensor, Error>| match result.unwrap_err() {
        Error::Range { argument, .. } => argument,
        error => panic!("{error}"),
    };
    for top_p in [0.0, 1.5, f64::NAN] {
        assert_eq!(named(sample(&x).top_p(top_p).run()), "top_p");
    }
    assert_eq!(named(sample(&x).top_k(0).run()), "top_k");
    assert_eq!(named(sample(&x).temperature(-1.0).run()), "temperature");
}

proptest! {
    #![proptest_config(crate::common::problems(6))]

    #[test]
    fn any_options(columns in 1usize..300, k in 1usize..320, top_p in 0.01f64..=1.0, temperature in 0.1f64..3.0, seed: u64, offset: u64) {
        let device = devices().remove(0);
        let temperature = f64::from(temperature as f32);
        let options = SamplingOptions { temperature, top_k: (k < 300).then_some(k), top_p, seed, offset };
        check::<bf16>(&device, Distribution::NORMAL, 2, columns, options);
    }
}
