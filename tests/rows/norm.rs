//! RMSNorm and LayerNorm on every device.

use crate::common::devices;
use crate::support::{COLUMNS, assert_twice, dense, normal, poison_outputs, strided, values};
use host::compare::same_bits;
use host::ops::{layer_norm, rms_norm};
use host::reference::data::{Distribution, plant};
use host::reference::norm::{NormOptions, backward, forward};
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, DType, Device, Error, Float, Tensor, bf16, f16};

/// One norm against the reference, with everything optional there or not.
fn check<T: Float>(device: &Device, kind: Distribution, rows: usize, columns: usize, centered: bool, all: bool) {
    let x: Vec<T> = kind.draw(1, rows, columns);
    let residual: Vec<T> = normal(2, rows, columns);
    let (weight, bias): (Vec<T>, Vec<T>) = (normal(3, 1, columns), normal(4, 1, columns));
    let [xw, rw, ww, bw] = [&x, &residual, &weight, &bias].map(|values| widen(values));
    let options = NormOptions {
        centered,
        epsilon: 1e-5,
        weight: all.then_some(&ww[..]),
        bias: (all && centered).then_some(&bw[..]),
        residual: all.then_some(&rw[..]),
    };
    let exact = forward::<Exact>(&xw, columns, &options);
    let naive = forward::<Eager<T>>(&xw, columns, &options);
    let weight = dense(device, &weight, &[columns]);
    let bias = dense(device, &bias, &[columns]);
    // Aligned rows, and rows that start anywhere.
    for (before, after) in [(0, 0), (3, 2)] {
        let x = strided(device, &x, rows, before, after);
        let residual = strided(device, &residual, rows, after, before);
        let mut op = if centered { layer_norm(&x) } else { rms_norm(&x) };
        if all {
            op = op.weight(&weight).residual(&residual);
            if centered {
                op = op.bias(&bias);
            }
        }
        poison_outputs::<T>(device, rows * columns);
        let result = op.run().unwrap();
        let what = format!(
            "{device}: {} {rows}×{columns} centered {centered} all {all} before {before}",
            T::DTYPE
        );
        if let Some(sum) = &result.sum {
            // The statistics are those of the rounded sum.
            let rounded = forward::<Eager<T>>(&xw, columns, &options).sum;
            assert_eq!(widen(&values::<T>(sum)), rounded, "{what}");
        }
        assert_eq!(result.sum.is_some(), all);
        assert_twice::<T>(
            &what,
            &result.y,
            &reference_of::<T>(&xw, columns, &options, &exact.y),
            &naive.y,
        );
    }
}

/// The exact norm of the sum as it is stored.
fn reference_of<T: Float>(x: &[f64], columns: usize, options: &NormOptions, plain: &[f64]) -> Vec<f64> {
    match options.residual {
        None => plain.to_vec(),
        Some(_) => {
            let stored = forward::<Eager<T>>(x, columns, options).sum;
            let without = NormOptions {
                residual: None,
                ..*options
            };
            forward::<Exact>(&stored, columns, &without).y
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        for columns in COLUMNS {
            for centered in [false, true] {
                let rows = if columns > 1024 { 2 } else { 5 };
                check::<f32>(&device, Distribution::NORMAL, rows, columns, centered, true);
                check::<f16>(&device, Distribution::NORMAL, rows, columns, centered, columns % 2 == 0);
                check::<bf16>(&device, Distribution::NORMAL, rows, columns, centered, columns % 2 == 1);
            }
        }
    }
}

#[test]
fn clusters_take_one_row_after_the_other() {
    for device in devices() {
        // More rows than clusters, and more of a cluster than its ring has stages.
        check::<bf16>(&device, Distribution::NORMAL, 43, 65_544, true, false);
        check::<f16>(&device, Distribution::NORMAL, 2, 70_000, true, true);
        check::<f16>(&device, Distribution::NORMAL, 2, 70_000, false, true);
    }
}

fn check_backward<T: Float>(device: &Device, rows: usize, columns: usize, centered: bool, all: bool) {
    check_backward_of::<T>(device, normal(1, rows, columns), rows, columns, centered, all);
}

fn check_backward_of<T: Float>(device: &Device, x: Vec<T>, rows: usize, columns: usize, centered: bool, all: bool) {
    let dy: Vec<T> = normal(2, rows, columns);
    let (residual, dsum): (Vec<T>, Vec<T>) = (normal(5, rows, columns), normal(6, rows, columns));
    let (weight, bias): (Vec<T>, Vec<T>) = (normal(3, 1, columns), normal(4, 1, columns));
    let [xw, dw, ww, bw] = [&x, &dy, &weight, &bias].map(|values| widen(values));
    let (rw, sw) = (widen(&residual), widen(&dsum));
    let options = NormOptions {
        centered,
        epsilon: 1e-5,
        weight: Some(&ww),
        bias: Some(&bw),
        residual: all.then_some(&rw[..]),
    };
    // The exact gradients are those at the sum as it is stored.
    let stored = forward::<Eager<T>>(&xw, columns, &options).sum;
    let at_sum = NormOptions {
        residual: None,
        ..options
    };
    let flow = all.then_some(&sw[..]);
    let exact = backward::<Exact>(&stored, columns, &at_sum, &dw, flow);
    let naive = backward::<Eager<T>>(&stored, columns, &at_sum, &dw, flow);
    let (weight, bias) = (dense(device, &weight, &[columns]), dense(device, &bias, &[columns]));
    for (before, after) in [(0, 0), (3, 2)] {
        let [x, dy] = [&x, &dy].map(|data| strided(device, data, rows, before, after));
        let [residual, dsum] = [&residual, &dsum].map(|data| strided(device, data, rows, after, before));
        let mut op = if centered { layer_norm(&x) } else { rms_norm(&x) }.weight(&weight);
        let biased = centered || all;
        if biased {
            op = op.bias(&bias);
        }
        if all {
            op = op.residual(&residual);
        }
        poison_outputs::<T>(device, rows * columns);
        let gradients = op.backward(&dy, all.then_some(&dsum)).unwrap();
        let what = format!(
            "{device}: gradient {} {rows}×{columns} centered {centered} all {all} before {before}",
            T::DTYPE
        );
        assert_twice::<T>(&format!("{what} dx"), &gradients.dx, &exact.dx, &naive.dx);
        assert_twice::<T>(
            &format!("{what} dw"),
            &gradients.dweight.unwrap(),
            &exact.dweight,
            &naive.dweight,
        );
        assert_eq!(gradients.dbias.is_some(), biased);
        if let Some(dbias) = &gradients.dbias {
            assert_twice::<T>(&format!("{what} db"), dbias, &exact.dbias, &naive.dbias);
        }
    }
}

#[test]
fn gradients_agree_with_the_reference() {
    for device in devices() {
        // One team and several, rows of every kernel.
        for (rows, columns) in [
            (1, 1),
            (5, 33),
            (100, 40),
            (3, 1024),
            (40, 1030),
            (40, 1200),
            (2, 9000),
            (18, 5000),
            (20, 12_000),
            (3, 20_001),
            (2, 40_000),
        ] {
            check_backward::<f32>(&device, rows, columns, true, columns == 40);
            check_backward::<f16>(&device, rows, columns, false, columns != 40);
        }
        check_backward::<bf16>(&device, 18, 1100, true, true);
        // Rows of whole vectors of 16 bits, of one block and of clusters.
        for (rows, columns) in [(40, 1200), (20, 5000), (5, 12_000), (3, 32_768)] {
            check_backward::<bf16>(&device, rows, columns, true, columns == 1200);
            check_backward::<f16>(&device, rows, columns, false, false);
        }
        check_backward::<bf16>(&device, 18, 33_000, true, false);
    }
}

#[test]
fn gradients_of_rows_whose_first_element_lies_far_off() {
    for device in devices() {
        for (rows, columns) in [(3, 40), (3, 1200), (2, 12_000)] {
            for (center, first) in [(0.0, 3000.0), (1000.0, 1000.0), (1000.0, -5.0)] {
                let mut x: Vec<f32> = Distribution::Near { center, spread: 1.0 }.draw(1, rows, columns);
                plant(&mut x, (0..rows).map(|row| row * columns), first);
                check_backward_of::<f32>(&device, x, rows, columns, true, false);
            }
        }
    }
}

#[test]
fn gradients_without_weights_and_of_nothing() {
    for device in devices() {
        let x = Tensor::<f32>::zeros(&device, &[0, 8]).unwrap();
        let weight = Tensor::<f32>::zeros(&device, &[8]).unwrap();
        let gradients = rms_norm(&x).weight(&weight).backward(&x, None).unwrap();
        assert_eq!(gradients.dweight.unwrap().to_bytes().unwrap(), [0; 32]);
        assert!(gradients.dbias.is_none());
        let x = dense(&device, &[1.0f32, -1.0, 1.0, -1.0], &[1, 4]);
        let gradients = rms_norm(&x).epsilon(0.0).backward(&x, None).unwrap();
        // dy along x̂: a longer row has the same norm, so nothing flows back.
        assert!(values::<f32>(&gradients.dx).iter().all(|dx| dx.abs() < 1e-6));
        assert!(gradients.dweight.is_none());
    }
}

#[test]
fn survives_hard_inputs() {
    for device in devices() {
        for kind in Distribution::ALL {
            check::<f32>(&device, kind, 3, 100, true, false);
            check::<f16>(&device, kind, 3, 100, true, false);
            check::<bf16>(&device, kind, 3, 100, false, false);
        }
    }
}

#[test]
fn rows_do_not_know_each_other() {
    for device in devices() {
        for columns in [40, 1500, 1504, 9_002, 33_000, 70_000] {
            let data: Vec<f16> = normal(7, 6, columns);
            let x = dense(&device, &data, &[6, columns]);
            let all = values::<f16>(&layer_norm(&x).run().unwrap().y);
            let again = values::<f16>(&layer_norm(&x).run().unwrap().y);
            same_bits(&again, &all).unwrap();
            for row in 0..6 {
                // Elsewhere in memory, at another alignment.
                let alone = strided(&device, &data[row * columns..][..columns], 1, row, 1);
                let alone = values::<f16>(&layer_norm(&alone).run().unwrap().y);
                same_bits(&alone, &all[row * columns..][..columns]).unwrap();
            }
        }
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    for device in devices() {
        let mut data: Vec<bf16> = normal(7, 3, 50);
        plant(&mut data, [50 + 13], f32::NAN);
        let y = rms_norm(&dense(&device, &data, &[3, 50])).run().unwrap().y;
        let nan: Vec<bool> = values::<bf16>(&y).iter().map(|y| y.to_f32().is_nan()).collect();
        for (at, nan) in nan.into_iter().enumerate() {
            assert_eq!(nan, at / 50 == 1, "{device}: element {at}");
        }
    }
}

#[test]
fn any_strides_and_nothing() {
    for device in devices() {
        // Columns that are not dense: the transpose of a matrix.
        let data: Vec<f32> = normal(9, 20, 4);
        let x = dense(&device, &data, &[20, 4]).transpose(0, 1).unwrap();
        let flat = dense(&device, &x.to_vec().unwrap(), &[4, 20]);
        let (a, b) = (rms_norm(&x).run().unwrap().y, rms_norm(&flat).run().unwrap().y);
        same_bits(&values::<f32>(&a), &values::<f32>(&b)).unwrap();
        for shape in [[0, 8], [8, 0]] {
            let empty = Tensor::<f32>::empty(&device, &shape).unwrap();
            assert_eq!(layer_norm(&empty).run().unwrap().y.shape(), shape);
        }
    }
}

#[test]
fn names_what_is_wrong() {
    let device = &devices()[0];
    let x = Tensor::<f32>::zeros(device, &[2, 8]).unwrap();
    let short = Tensor::<f32>::zeros(device, &[7]).unwrap();
    let other = AnyTensor::zeros(device, DType::F16, &[8]).unwrap();
    let ids = AnyTensor::zeros(device, DType::I32, &[2, 8]).unwrap();
    let named = |result: Result<_, Error>| match result.unwrap_err() {
        Error::Shape { argument, .. } | Error::Dtype { argument, .. } | Error::Range { argument, .. } => argument,
        error => panic!("{error}"),
    };
    assert_eq!(named(rms_norm(&x).weight(&short).run().map(drop)), "weight");
    assert_eq!(named(layer_norm(&x).bias(&other).run().map(drop)), "bias");
    assert_eq!(named(layer_norm(&x).residual(&short).run().map(drop)), "residual");
    assert_eq!(named(rms_norm(&x).epsilon(f32::NAN).run().map(drop)), "epsilon");
    assert_eq!(named(rms_norm(&ids).run().map(drop)), "x");
}
