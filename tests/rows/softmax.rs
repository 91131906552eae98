//! Softmax and log-softmax on every device.

use crate::common::devices;
use crate::support::{COLUMNS, assert_twice, dense, normal, poison_outputs, strided, values};
use host::compare::same_bits;
use host::ops::{log_softmax, softmax};
use host::reference::data::{Distribution, plant};
use host::reference::softmax::{SoftmaxOptions, backward, forward};
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, DType, Device, Error, Float, Tensor, bf16, f16};

struct Case {
    kind: Distribution,
    rows: usize,
    columns: usize,
    log: bool,
    scale: f32,
    mask_rows: Option<usize>,
    causal: bool,
}

const PLAIN: Case = Case {
    kind: Distribution::NORMAL,
    rows: 4,
    columns: 40,
    log: false,
    scale: 1.0,
    mask_rows: None,
    causal: false,
};

fn check<T: Float>(device: &Device, case: &Case) {
    let &Case {
        kind,
        rows,
        columns,
        log,
        scale,
        mask_rows,
        causal,
    } = case;
    let x: Vec<T> = kind.draw(1, rows, columns);
    let mask: Vec<T> = normal(2, mask_rows.unwrap_or(1), columns);
    let dy: Vec<T> = normal(3, rows, columns);
    let [xw, mw, dw] = [&x, &mask, &dy].map(|values| widen(values));
    let options = SoftmaxOptions {
        log,
        scale: f64::from(scale),
        mask: mask_rows.map(|_| &mw[..]),
        causal_rows: causal.then_some(rows),
    };
    let mask = match mask_rows {
        Some(rows) if rows > 1 => dense(device, &mask, &[rows, columns]),
        _ => dense(device, &mask, &[columns]),
    };
    for (before, after) in [(0, 0), (1, 4)] {
        let x = strided(device, &x, rows, before, after);
        let dy = strided(device, &dy, rows, after, before);
        let mut op = if log { log_softmax(&x) } else { softmax(&x) }.scale(scale);
        if mask_rows.is_some() {
            op = op.mask(&mask);
        }
        if causal {
            op = op.causal();
        }
        let what = format!(
            "{device}: {} {rows}×{columns} log {log} mask {mask_rows:?} causal {causal} before {before}",
            T::DTYPE
        );
        poison_outputs::<T>(device, rows * columns);
        let y = op.run().unwrap();
        let (exact, naive) = (
            forward::<Exact>(&xw, columns, &options),
            forward::<Eager<T>>(&xw, columns, &options),
        );
        assert_twice::<T>(&what, &y, &exact, &naive);
        poison_outputs::<T>(device, rows * columns);
        let dx = op.backward(&dy).unwrap();
        let (exact, naive) = (
            backward::<Exact>(&xw, columns, &options, &dw),
            backward::<Eager<T>>(&xw, columns, &options, &dw),
        );
        assert_twice::<T>(&format!("{what} backward"), &dx, &exact, &naive);
    }
}

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        for columns in COLUMNS {
            let rows = if columns > 1024 { 2 } else { 5 };
            check::<f32>(&device, &Case { rows, columns, ..PLAIN });
            check::<f16>(
                &device,
                &Case {
                    rows,
                    columns,
                    scale: 0.3,
                    mask_rows: Some(1),
                    ..PLAIN
                },
            );
            check::<bf16>(
                &device,
                &Case {
                    rows,
                    columns,
                    log: true,
                    ..PLAIN
                },
            );
        }
    }
}

#[test]
fn masks_and_hard_inputs() {
    for device in devices() {
        for kind in Distribution::ALL {
            check::<f32>(
                &device,
                &Case {
                    kind,
                    log: true,
                    ..PLAIN
                },
            );
            check::<f16>(&device, &Case { kind, ..PLAIN });
        }
        // Far below 0 in every width: no sum may begin at e^1000.
        for columns in [5000, 9000, 33_001] {
            let kind = Distribution::Near {
                center: -1000.0,
                spread: 1.0,
            };
            check::<f32>(
                &device,
                &Case {
                    kind,
                    rows: 1,
                    columns,
                    ..PLAIN
                },
            );
        }
        for columns in [3, 6, 30] {
            // More rows than columns: the first ones see nothing.
            check::<f32>(
                &device,
                &Case {
                    rows: 6,
                    columns,
                    causal: true,
                    ..PLAIN
                },
            );
            check::<bf16>(
                &device,
                &Case {
                    rows: 6,
                    columns,
                    causal: true,
                    log: true,
                    mask_rows: Some(6),
                    ..PLAIN
                },
            );
        }
        check::<f32>(
            &device,
            &Case {
                rows: 3,
                columns: 1200,
                causal: true,
                mask_rows: Some(3),
                ..PLAIN
            },
        );
    }
}

#[test]
fn rows_sum_to_one_and_shifts_change_nothing() {
    for device in devices() {
        let data: Vec<f32> = Distribution::Integers { magnitude: 4 }.draw(5, 3, 300);
        let shifted: Vec<f32> = data.iter().map(|x| x + 64.0).collect();
        let y = values::<f32>(&softmax(&dense(&device, &data, &[3, 300])).run().unwrap());
        for row in y.chunks(300) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        let again = softmax(&dense(&device, &shifted, &[3, 300])).run().unwrap();
        same_bits(&values::<f32>(&again), &y).unwrap();
    }
}

#[test]
fn rows_do_not_know_each_other() {
    for device in devices() {
        for columns in [40, 1500, 1504] {
            let data: Vec<bf16> = normal(7, 6, columns);
            let all = values::<bf16>(&softmax(&dense(&device, &data, &[6, columns])).run().unwrap());
            for row in 0..6 {
                let alone = strided(&device, &data[row * columns..][..columns], 1, row, 1);
                same_bits(
                    &values::<bf16>(&softmax(&alone).run().unwrap()),
                    &all[row * columns..][..columns],
                )
                .unwrap();
                let dy = dense(&device, &data[..columns], &[1, columns]);
                let here = dense(&device, &data[row * columns..][..columns], &[1, columns]);
                same_bits(
                    &values::<bf16>(&softmax(&alone).backward(&dy).unwrap()),
                    &values::<bf16>(&softmax(&here).backward(&dy).unwrap()),
                )
                .unwrap();
            }
        }
    }
}

#[test]
fn infinities_and_nan() {
    for device in devices() {
        let inf = f32::INFINITY;
        let mut data: Vec<f32> = normal(7, 4, 30);
        plant(&mut data, 0..30, -inf);
        plant(&mut data, [30 + 4], f32::NAN);
        plant(&mut data, [60 + 4], -inf);
        plant(&mut data, [90 + 4], inf);
        let x = dense(&device, &data, &[4, 30]);
        let y = values::<f32>(&softmax(&x).run().unwrap());
        assert!(y[..30].iter().all(|&y| y == 0.0), "{device}: a row of −∞");
        assert!(y[30..60].iter().all(|y| y.is_nan()), "{device}: NaN");
        assert!(y[64] == 0.0 && (y[60..90].iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(y[90..].iter().all(|y| y.is_nan()), "{device}: +∞");
        let log = values::<f32>(&log_softmax(&x).run().unwrap());
        assert!(log[..30].iter().all(|&y| y == -inf) && log[64] == -inf && log[60].is_finite());
        // What a causal mask hides cannot do harm.
        let mut hidden: Vec<f32> = normal(8, 3, 3);
        plant(&mut hidden, [1, 2, 5], f32::NAN);
        let y = values::<f32>(&softmax(&dense(&device, &hidden, &[3, 3])).causal().run().unwrap());
        assert!(y.iter().all(|y| y.is_finite()) && y[0] == 1.0 && y[1] == 0.0, "{y:?}");
    }
}

#[test]
fn nothing_and_errors() {
    let device = &devices()[0];
    let empty = Tensor::<f16>::empty(device, &[0, 5]).unwrap();
    assert_eq!(softmax(&empty).run().unwrap().shape(), [0, 5]);
    let x = Tensor::<f32>::zeros(device, &[2, 8]).unwrap();
    let row = Tensor::<f32>::zeros(device, &[8]).unwrap();
    let named = |result: Result<AnyTensor, Error>| match result.unwrap_err() {
        Error::Shape { argument, .. } | Error::Dtype { argument, .. } | Error::Range { argument, .. } => argument,
        error => panic!("{error}"),
    };
    let odd = Tensor::<f32>::zeros(device, &[3, 8]).unwrap();
    assert_eq!(named(softmax(&x).mask(&odd).run()), "mask");
    assert_eq!(named(softmax(&row).causal().run()), "x");
    assert_eq!(named(softmax(&x).scale(f32::NAN).run()), "scale");
    assert_eq!(named(softmax(&x).backward(&row)), "dy");
    let bytes = AnyTensor::zeros(device, DType::U8, &[2, 8]).unwrap();
    assert_eq!(named(softmax(&bytes).run()), "x");
}
