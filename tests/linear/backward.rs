//! Gradients of linear layers.

use crate::common::devices;
use crate::support::padded;
use ferroflash::{AnyTensor, DType, Device, Error, Float, Tensor, WeightLayout, bf16, f16, linear};
use host::compare::{Rule, compare};
use host::reference::linear::{LinearOptions, LinearShape, backward};
use host::reference::{Eager, Exact, data::normal, widen};

/// Gradients by x, the weight and the bias within the 2× rule, whatever the layout, gaps between rows or sizes.
#[test]
fn gradients() {
    fn body<T: Float>(device: &Device) {
        for (m, n, k) in [(1, 1, 1), (5, 24, 40), (33, 64, 48), (70, 129, 17)] {
            for layout in [WeightLayout::Nk, WeightLayout::Kn] {
                for padding in [0, 8] {
                    let draw = |seed, len: u64| normal::<T>(seed, len as usize);
                    let (x, w, bias, dz) = (draw(1, m * k), draw(2, n * k), draw(3, n), draw(4, m * n));
                    let [rows, columns] = match layout {
                        WeightLayout::Nk => [n, k],
                        WeightLayout::Kn => [k, n],
                    };
                    let upload = |values: &[T], rows, columns| padded(device, values, rows, columns, padding);
                    let (x_there, w_there) = (upload(&x, m, k), upload(&w, rows, columns));
                    let bias_there = Tensor::from_slice(device, &bias, &[n]).unwrap();
                    let found = linear(&x_there, &w_there)
                        .layout(layout)
                        .alpha(0.5)
                        .bias(&bias_there)
                        .backward(&upload(&dz, m, n))
                        .unwrap();
                    let (x, w, bias, dz) = (widen(&x), widen(&w), widen(&bias), widen(&dz));
                    let options = LinearOptions {
                        weight: layout,
                        alpha: 0.5,
                        bias: Some(&bias),
                        ..Default::default()
                    };
                    let shape = LinearShape {
                        m: m as usize,
                        n: n as usize,
                        k: k as usize,
                    };
                    let exact = backward::<Exact>(shape, &options, &x, &w, &dz);
                    let naive = backward::<Eager<T>>(shape, &options, &x, &w, &dz);
                    for (name, found, exact, naive) in [
                        ("dx", &found.dx, &exact.dx, &naive.dx),
                        ("dw", &found.dw, &exact.dw, &naive.dw),
                        ("dbias", found.dbias.as_ref().unwrap(), &exact.dbias, &naive.dbias),
                    ] {
                        let found = found.typed::<T>("gradient").unwrap().to_vec().unwrap();
                        let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                        let close = Rule::Absolute(3e-6 * largest);
                        let verdict = compare(&found, exact, Rule::twice(naive)).check();
                        if let Err(report) = verdict
                            && (T::DTYPE != DType::F32 || !compare(&found, exact, close).is_ok())
                        {
                            panic!("{name} on {device}, {m} × {n} × {k}, {layout:?}, padding {padding}: {report}");
                        }
                    }
                }
            }
        }
    }
    for device in devices() {
        body::<f32>(&device);
        body::<f16>(&device);
        body::<bf16>(&device);
    }
}

/// No rows, no columns, leading axes, no bias; and what does not fit is named.
#[test]
fn gradients_of_little_and_of_what_does_not_fit() {
    let device = devices().remove(0);
    let zeros = |shape: &[u64]| AnyTensor::zeros(&device, DType::F32, shape).unwrap();
    let (w, bias) = (zeros(&[4, 8]), zeros(&[4]));
    let none = linear(&zeros(&[0, 8]), &w)
        .bias(&bias)
        .backward(&zeros(&[0, 4]))
        .unwrap();
    assert_eq!((none.dx.shape(), none.dw.shape()), (&[0, 8][..], &[4, 8][..]));
    for sums in [none.dw, none.dbias.unwrap()] {
        let sums = sums.typed::<f32>("sums").unwrap().to_vec().unwrap();
        assert!(sums.iter().all(|x| *x == 0.0));
    }
    let leading = linear(&zeros(&[2, 3, 8]), &w).backward(&zeros(&[2, 3, 4])).unwrap();
    assert_eq!(leading.dx.shape(), [2, 3, 8]);
    assert!(leading.dbias.is_none());

    let x = zeros(&[2, 8]);
    let message =
        |result: Result<_, Error>| Result::unwrap_err(result.map(|_: ferroflash::LinearGradients| ())).to_string();
    assert!(message(linear(&x, &w).backward(&zeros(&[2, 5]))).starts_with("dz has shape [2, 5]"));
    assert!(message(linear(&x, &w).bias(&zeros(&[5])).backward(&zeros(&[2, 4]))).starts_with("bias has shape"));
    assert!(message(linear(&x, &zeros(&[4, 9])).backward(&zeros(&[2, 4]))).contains("its k is 9"));
    assert!(message(linear(&x, &zeros(&[2, 4, 8])).backward(&zeros(&[2, 4]))).starts_with("w has shape"));
    let half = AnyTensor::zeros(&device, DType::F16, &[2, 4]).unwrap();
    assert!(message(linear(&x, &w).backward(&half)).starts_with("dz is f16"));
    let stream = device.create_stream().unwrap();
    let apart = linear(&x, &w).on(&stream).backward(&zeros(&[2, 4]));
    assert!(matches!(apart, Err(Error::Unsupported { .. })));
}
