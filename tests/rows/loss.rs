//! Cross-entropy and its gradient.

use host::compare::{Rule, compare, same_bits};
use host::ops::{check_indices, cross_entropy};
use host::reference::data::{Distribution, indices, plant};
use host::reference::loss::{LossOptions, backward, forward};
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, Device, Error, Float, Tensor, bf16, f16};

use crate::common::devices;
use crate::support::{assert_twice, dense, normal, poison_outputs, strided, values};

fn assert_f32(what: &str, out: &AnyTensor, exact: &[f64], naive: &[f64]) {
    let out = values::<f32>(out);
    if let Err(report) = compare(&out, exact, Rule::twice(naive)).check() {
        panic!("{what}: {report}");
    }
}

fn check<T: Float>(device: &Device, kind: Distribution, rows: usize, columns: usize, options: LossOptions) {
    let logits: Vec<T> = kind.draw(1, rows, columns);
    let grad: Vec<f32> = normal(3, 1, rows);
    let mut targets = indices(2, rows, 0, columns as i64 - 1);
    targets[rows / 2] = options.ignore_index;
    let (wide, gw) = (widen(&logits), widen(&grad));
    let (grad, ids) = (dense(device, &grad, &[rows]), dense(device, &targets, &[rows]));
    let exact = forward::<Exact>(&wide, columns, &targets, &options);
    let naive = forward::<Eager<T>>(&wide, columns, &targets, &options);
    let dexact = backward::<Exact>(&wide, columns, &targets, &options, &gw);
    let dnaive = backward::<Eager<T>>(&wide, columns, &targets, &options, &gw);
    for (before, after) in [(0, 0), (3, 2)] {
        let what = format!(
            "{device}: {} {rows}×{columns} {options:?} {kind:?} before {before}",
            T::DTYPE
        );
        let x = strided(device, &logits, rows, before, after);
        let op = cross_entropy(&x, &ids)
            .ignore_index(options.ignore_index)
            .label_smoothing(options.label_smoothing as f32)
            .z_loss(options.z_loss as f32);
        poison_outputs::<f32>(device, rows);
        let losses = op.run().unwrap();
        assert_f32(&format!("{what} loss"), &losses.loss, &exact.loss, &naive.loss);
        assert_f32(&format!("{what} lse"), &losses.lse, &exact.lse, &naive.lse);
        poison_outputs::<T>(device, rows * columns);
        let dx = op.backward(&grad).unwrap();
        assert_twice::<T>(&format!("{what} gradient"), &dx, &dexact, &dnaive);
        // The same in place, with one factor for all rows.
        let factor = vec![0.25; rows];
        let (exact, naive) = (
            backward::<Exact>(&wide, columns, &targets, &options, &factor),
            backward::<Eager<T>>(&wide, columns, &targets, &options, &factor),
        );
        let again = op.run_with_gradient_in_place(0.25).unwrap();
        same_bits(&values::<f32>(&again.loss), &values::<f32>(&losses.loss)).unwrap();
        assert_twice::<T>(&format!("{what} in place"), &x, &exact, &naive);
    }
}

const PLAIN: LossOptions = LossOptions {
    ignore_index: -100,
    label_smoothing: 0.0,
    z_loss: 0.0,
};

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        for columns in [2, 33, 1500, 9000, 33_001, 120_008] {
            let rows = if columns > 1024 { 2 } else { 5 };
            let all = LossOptions {
                ignore_index: 1,
                label_smoothing: 0.125,
                z_loss: 0.0625,
            };
            check::<f32>(&device, Distribution::NORMAL, rows, columns, PLAIN);
            check::<f16>(&device, Distribution::NORMAL, rows, columns, all);
            check::<bf16>(
                &device,
                Distribution::OutlierPerRow { value: 30.0 },
                rows,
                columns,
                PLAIN,
            );
        }
        check::<f32>(&device, Distribution::Extremes { magnitude: 80.0 }, 3, 40, PLAIN);
        let far = Distribution::Near {
            center: -1000.0,
            spread: 1.0,
        };
        for columns in [40, 9000] {
            check::<f32>(&device, far, 1, columns, PLAIN);
        }
    }
}

#[test]
fn rows_do_not_know_each_other() {
    for device in devices() {
        for columns in [41, 9_000, 9_001, 33_001] {
            let logits: Vec<bf16> = normal(7, 9, columns);
            let targets = indices(2, 9, 0, columns as i64 - 1);
            let of = |x: &AnyTensor, targets: &[i64]| {
                let losses = cross_entropy(x, &dense(&device, targets, &[targets.len()]))
                    .run()
                    .unwrap();
                values::<f32>(&losses.loss)
            };
            let all = of(&dense(&device, &logits, &[9, columns]), &targets);
            for row in 0..9 {
                // Elsewhere in memory, at each of the places that a row may have within 16 bytes.
                let alone = strided(&device, &logits[row * columns..][..columns], 1, row, 1);
                same_bits(&of(&alone, &targets[row..=row]), &all[row..=row]).unwrap();
            }
        }
    }
}

#[test]
fn gradients_of_a_row_sum_to_nothing() {
    for device in devices() {
        let logits: Vec<f32> = normal(4, 3, 200);
        let x = dense(&device, &logits, &[3, 200]);
        let targets = dense(&device, &[0i32, 199, 7], &[3]);
        let ones = dense(&device, &[1.0f32; 3], &[3]);
        let dx = values::<f32>(&cross_entropy(&x, &targets).backward(&ones).unwrap());
        for row in dx.chunks(200) {
            assert!(row.iter().sum::<f32>().abs() < 1e-5);
            assert!(row.iter().filter(|&&d| d < 0.0).count() == 1);
        }
    }
}

#[test]
fn targets_outside_and_nan() {
    for device in devices() {
        let mut logits: Vec<f32> = normal(4, 4, 20);
        plant(&mut logits, [20 + 3], f32::NAN);
        let x = dense(&device, &logits, &[4, 20]);
        let targets = dense(&device, &[20i64, 1, 2, -100], &[4]);
        let ones = dense(&device, &[1.0f32; 4], &[4]);
        let op = cross_entropy(&x, &targets);
        let (losses, dx) = (op.run().unwrap(), values::<f32>(&op.backward(&ones).unwrap()));
        let (loss, lse) = (values::<f32>(&losses.loss), values::<f32>(&losses.lse));
        assert_eq!(loss.map_nan(), [true, true, false, false]);
        assert_eq!(lse.map_nan(), [false, true, false, false]);
        assert!(dx[..40].iter().all(|d| d.is_nan()) && dx[40..].iter().all(|d| d.is_finite()));
        assert!(loss[3] == 0.0 && dx[60..].iter().all(|&d| d == 0.0));
        let error = check_indices("targets", &targets, 20, Some(-100)).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Range {
                    argument: "targets",
                    ..
                }
            ),
            "{error}"
        );
    }
}

trait MapNan {
    fn map_nan(&self) -> Vec<bool>;
}

impl MapNan for Vec<f32> {
    fn map_nan(&self) -> Vec<bool> {
        self.iter().map(|x| x.is_nan()).collect()
    }
}

#[test]
fn nothing_and_errors() {
    let device = &devices()[0];
    let none = Tensor::<f32>::empty(device, &[0, 5]).unwrap();
    let no_targets = Tensor::<i64>::empty(device, &[0]).unwrap();
    assert_eq!(cross_entropy(&none, &no_targets).run().unwrap().loss.shape(), [0]);
    let x = Tensor::<f32>::zeros(device, &[2, 5]).unwrap();
    let targets = Tensor::<i64>::zeros(device, &[2]).unwrap();
    let named = |error: Error| match error {
        Error::Shape { argument, .. } | Error::Dtype { argument, .. } | Error::Range { argument, .. } => argument,
        error => panic!("{error}"),
    };
    assert_eq!(named(cross_entropy(&x, &no_targets).run().unwrap_err()), "targets");
    assert_eq!(named(cross_entropy(&x, &x).run().unwrap_err()), "targets");
    let op = cross_entropy(&x, &targets);
    assert_eq!(named(op.label_smoothing(1.5).run().unwrap_err()), "label_smoothing");
    assert_eq!(named(op.z_loss(f32::NAN).run().unwrap_err()), "z_loss");
    assert_eq!(named(op.backward(&x).unwrap_err()), "grad");
    assert_eq!(
        named(op.run_with_gradient_in_place(f32::INFINITY).unwrap_err()),
        "scale"
    );
}
