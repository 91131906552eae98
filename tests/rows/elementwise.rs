//! Activations, gated pairs, sums, casts and copies on every device.

use crate::common::devices;
use crate::support::{assert_twice, dense, normal, poison_outputs, strided, values};
use host::compare::same_bits;
use host::ops::{
    Activation, activation, activation_backward, add, add_into, add_scaled, cast, contiguous, copy, gated,
    gated_backward, scale, swiglu, swiglu_backward,
};
use host::reference::data::{Distribution, plant};
use host::reference::{self, Eager, Exact, elementwise, widen};
use host::{AnyTensor, DType, Device, Error, Float, Tensor, bf16, f16};
use proptest::prelude::*;

fn check_activations<T: Float>(device: &Device, rows: usize, columns: usize) {
    let x: Vec<T> = Distribution::Normal { deviation: 3.0 }.draw(1, rows, columns);
    let up: Vec<T> = normal(2, rows, columns);
    let dy: Vec<T> = normal(3, rows, columns);
    let [xw, uw, dw] = [&x, &up, &dy].map(|values| widen(values));
    for act in Activation::ALL {
        for (before, after) in [(0, 0), (3, 1)] {
            let what = format!("{device}: {act:?} {} {rows}×{columns} before {before}", T::DTYPE);
            let [x, up, dy] = [&x, &up, &dy].map(|data| strided(device, data, rows, before, after));
            poison_outputs::<T>(device, rows * columns);
            let y = activation(&x, act).unwrap();
            let of = (
                reference::activation::forward::<Exact>(act, &xw),
                reference::activation::forward::<Eager<T>>(act, &xw),
            );
            assert_twice::<T>(&what, &y, &of.0, &of.1);
            poison_outputs::<T>(device, rows * columns);
            let dx = activation_backward(&x, &dy, act).unwrap();
            let of = (
                reference::activation::backward::<Exact>(act, &xw, &dw),
                reference::activation::backward::<Eager<T>>(act, &xw, &dw),
            );
            assert_twice::<T>(&format!("{what} backward"), &dx, &of.0, &of.1);
            let y = gated(&x, &up, act).unwrap();
            let of = (
                reference::activation::gated::<Exact>(act, &xw, &uw),
                reference::activation::gated::<Eager<T>>(act, &xw, &uw),
            );
            assert_twice::<T>(&format!("{what} gated"), &y, &of.0, &of.1);
            poison_outputs::<T>(device, rows * columns);
            let [dgate, dup] = gated_backward(&x, &up, &dy, act).unwrap();
            let exact = reference::activation::gated_backward::<Exact>(act, &xw, &uw, &dw);
            let naive = reference::activation::gated_backward::<Eager<T>>(act, &xw, &uw, &dw);
            assert_twice::<T>(&format!("{what} dgate"), &dgate, &exact.0, &naive.0);
            assert_twice::<T>(&format!("{what} dup"), &dup, &exact.1, &naive.1);
        }
    }
}

#[test]
fn activations_agree_with_the_reference() {
    for device in devices() {
        for (rows, columns) in [(1, 1), (3, 7), (2, 2100)] {
            check_activations::<f32>(&device, rows, columns);
            check_activations::<f16>(&device, rows, columns);
            check_activations::<bf16>(&device, rows, columns);
        }
    }
}

#[test]
fn activations_from_minus_to_plus_infinity() {
    let points: Vec<f32> = [
        0.0,
        0.5,
        1.0,
        5.0,
        9.0,
        11.0,
        20.0,
        40.0,
        100.0,
        1e20,
        f32::MAX,
        f32::INFINITY,
    ]
    .into_iter()
    .flat_map(|x| [x, -x])
    .chain([f32::NAN])
    .collect();
    for device in devices() {
        let x = dense(&device, &points, &[points.len()]);
        let ones = dense(&device, &vec![1.0f32; points.len()], &[points.len()]);
        for act in Activation::ALL {
            let y = values::<f32>(&activation(&x, act).unwrap());
            let slope = values::<f32>(&activation_backward(&x, &ones, act).unwrap());
            for ((&x, y), slope) in points.iter().zip(y).zip(slope) {
                let wanted = act.value::<Exact>(f64::from(x)) as f32;
                let close = (y - wanted).abs() <= 1e-6 * wanted.abs() + 1e-7 || y == wanted;
                assert!(
                    close || (y.is_nan() && wanted.is_nan()),
                    "{device}: {act:?}({x}) = {y}, not {wanted}"
                );
                let wanted = act.derivative::<Exact>(f64::from(x)) as f32;
                let close = (slope - wanted).abs() <= 1e-6;
                assert!(
                    close || (slope.is_nan() && wanted.is_nan()),
                    "{device}: {act:?}'({x}) = {slope}, not {wanted}"
                );
            }
        }
    }
}

#[test]
fn packed_pairs_are_halves() {
    for device in devices() {
        let packed: Vec<f16> = normal(4, 3, 48);
        let dy: Vec<f16> = normal(5, 3, 24);
        let (x, dy) = (dense(&device, &packed, &[3, 48]), dense(&device, &dy, &[3, 24]));
        let (gate, up) = (x.slice(1, 0..24).unwrap(), x.slice(1, 24..48).unwrap());
        let apart = gated(&gate, &up, Activation::Silu).unwrap();
        same_bits(&values::<f16>(&swiglu(&x).unwrap()), &values::<f16>(&apart)).unwrap();
        let [dgate, dup] = gated_backward(&gate, &up, &dy, Activation::Silu).unwrap();
        let dx = swiglu_backward(&x, &dy).unwrap();
        let half = |range| values::<f16>(&contiguous(&dx.slice(1, range).unwrap()).unwrap());
        same_bits(&half(0..24), &values::<f16>(&dgate)).unwrap();
        same_bits(&half(24..48), &values::<f16>(&dup)).unwrap();
    }
}

fn check_sums<T: Float>(device: &Device) {
    let (rows, columns) = (3, 37);
    let (a, b): (Vec<T>, Vec<T>) = (normal(1, rows, columns), normal(2, rows, columns));
    let (aw, bw) = (widen(&a), widen(&b));
    for (before, after) in [(0, 0), (8, 3)] {
        let (x, y) = (
            strided(device, &a, rows, before, after),
            strided(device, &b, rows, after, before),
        );
        let sum = add(&x, &y).unwrap();
        assert_eq!(widen(&values::<T>(&sum)), elementwise::vector_add::<Eager<T>>(&aw, &bw));
        let bias = dense(device, &b[..columns], &[columns]);
        let sum = add(&x, &bias).unwrap();
        assert_eq!(
            widen(&values::<T>(&sum)),
            elementwise::bias_add::<Eager<T>>(&aw, &bw[..columns])
        );
        // In place, where the rest of the rows stays as it is.
        add_scaled(0.5, &x, -2.0, &y, &x).unwrap();
        let wanted: Vec<f64> = aw
            .iter()
            .zip(&bw)
            .map(|(a, b)| T::from_f64(0.5 * a - 2.0 * b).to_f64())
            .collect();
        assert_eq!(widen(&x.to_vec().unwrap()), wanted, "{device}");
        scale(4.0, &x, &x).unwrap();
        let wanted: Vec<f64> = wanted.iter().map(|x| T::from_f64(4.0 * x).to_f64()).collect();
        assert_eq!(widen(&x.to_vec().unwrap()), wanted, "{device}");
    }
    let half = dense(device, &a, &[rows * columns]);
    let part = half.slice(0, 0..50).unwrap();
    let other = half.slice(0, 10..60).unwrap();
    assert!(matches!(add_into(&part, &other, &part), Err(Error::Layout { .. })));
}

#[test]
fn sums() {
    for device in devices() {
        check_sums::<f32>(&device);
        check_sums::<f16>(&device);
        check_sums::<bf16>(&device);
    }
}

fn check_casts<A: Float, B: Float>(device: &Device) {
    let mut data: Vec<A> = Distribution::Normal { deviation: 100.0 }.draw(3, 1, 1003);
    plant(&mut data, [5], f32::INFINITY);
    plant(&mut data, [6], f32::NAN);
    plant(&mut data, [7], 3e38);
    plant(&mut data, [8], -0.0);
    plant(&mut data, [9], 1e-7);
    let y = cast(&dense(device, &data, &[17, 59]), B::DTYPE).unwrap();
    let wanted = reference::cast::cast::<A, B>(&data);
    for (at, (y, wanted)) in values::<B>(&y).iter().zip(wanted).enumerate() {
        let (y, wanted) = (y.to_f64(), wanted.to_f64());
        let same = y == wanted && y.is_sign_negative() == wanted.is_sign_negative();
        assert!(
            same || (y.is_nan() && wanted.is_nan()),
            "{device}: {at}: {y} instead of {wanted}"
        );
    }
}

#[test]
fn casts() {
    for device in devices() {
        check_casts::<f32, f16>(&device);
        check_casts::<f32, bf16>(&device);
        check_casts::<f16, f32>(&device);
        check_casts::<f16, bf16>(&device);
        check_casts::<bf16, f32>(&device);
        check_casts::<bf16, f16>(&device);
        let x = Tensor::<f32>::zeros(&device, &[4]).unwrap();
        assert!(matches!(
            cast(&x, DType::I32),
            Err(Error::Dtype { argument: "dtype", .. })
        ));
        assert_eq!(cast(&x, DType::F32).unwrap().address(), x.address());
    }
}

#[test]
fn transposes_and_strided_copies() {
    for device in devices() {
        let data: Vec<i64> = (0..2 * 33 * 70).collect();
        let x = dense(&device, &data, &[2, 33, 70]);
        for order in [[0, 2, 1], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let view = x.permute(&order).unwrap();
            let copied = contiguous(&view).unwrap();
            assert!(copied.is_contiguous());
            assert_eq!(
                copied.typed::<i64>("copy").unwrap().to_vec().unwrap(),
                view.to_vec().unwrap(),
                "{order:?}"
            );
        }
        // Whole vectors both ways, and not: more than a block of either kind, and a padded source.
        for (rows, columns, pad) in [(136, 264, 8), (136, 264, 0), (136, 260, 0), (8, 8, 3), (200, 48, 4)] {
            let data: Vec<f16> = (0..rows * (columns + pad)).map(|i| f16::from_bits(i as u16)).collect();
            let whole = dense(&device, &data, &[rows, columns + pad]);
            let view = whole.slice(1, 0..columns as u64).unwrap().transpose(0, 1).unwrap();
            let bits = |tensor: &AnyTensor| values::<f16>(tensor).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let expected: Vec<u16> = (0..columns)
                .flat_map(|j| (0..rows).map(move |i| (i * (columns + pad) + j) as u16))
                .collect();
            assert_eq!(
                bits(&contiguous(&view).unwrap()),
                expected,
                "{device}: {rows}×{columns} + {pad}"
            );
        }
        let bytes: Vec<u8> = (0..100).collect();
        let x = dense(&device, &bytes, &[10, 10]);
        let y = contiguous(&x.transpose(0, 1).unwrap()).unwrap();
        assert_eq!(y.to_bytes().unwrap(), elementwise::transpose(&bytes, 10, 10));
        let small = AnyTensor::empty(&device, DType::U8, &[10, 9]).unwrap();
        assert!(matches!(copy(&x, &small), Err(Error::Shape { argument: "out", .. })));
        let wide = Tensor::<f32>::zeros(&device, &[1, 1, 2, 2, 1, 2])
            .unwrap()
            .transpose(2, 3)
            .unwrap();
        assert!(matches!(contiguous(&wide), Err(Error::Shape { argument: "x", .. })));
    }
}

#[test]
fn nothing_and_errors() {
    let device = &devices()[0];
    let empty = Tensor::<bf16>::empty(device, &[3, 0]).unwrap();
    assert_eq!(swiglu(&empty).unwrap().shape(), [3, 0]);
    assert_eq!(add(&empty, &empty).unwrap().shape(), [3, 0]);
    let odd = Tensor::<f32>::zeros(device, &[2, 5]).unwrap();
    assert!(matches!(swiglu(&odd), Err(Error::Shape { argument: "x", .. })));
    let other = Tensor::<f16>::zeros(device, &[2, 5]).unwrap();
    assert!(matches!(add(&odd, &other), Err(Error::Dtype { argument: "b", .. })));
    assert!(matches!(
        gated(&odd, &empty, Activation::Silu),
        Err(Error::Dtype { argument: "up", .. })
    ));
    let two = Tensor::<f32>::zeros(device, &[2]).unwrap();
    assert!(matches!(add(&odd, &two), Err(Error::Shape { argument: "b", .. })));
}

proptest! {
    #![proptest_config(crate::common::problems(12))]

    /// Any shape and strides give what the dense form gives.
    #[test]
    fn strides_change_nothing(rows in 1usize..6, columns in 1usize..40, before in 0usize..9, after in 0usize..9, seed: u64) {
        let device = devices().remove(0);
        let (a, b): (Vec<f16>, Vec<f16>) = (normal(seed, rows, columns), normal(seed ^ 1, rows, columns));
        let of = |before, after| {
            let a = strided(&device, &a, rows, before, after);
            let b = strided(&device, &b, rows, after, before);
            let gelu = values::<f16>(&gated(&a, &b, Activation::GeluErf).unwrap());
            let wide = values::<f32>(&cast(&add(&a, &b).unwrap(), DType::F32).unwrap());
            (gelu, wide)
        };
        prop_assert_eq!(of(before, after), of(0, 0));
    }
}
