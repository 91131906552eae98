//! Linear layers on every device and tier: exact on small integers for every layout and tail, within the 2× rule on
//! normal data, deterministic, independent of the number of rows, and errors for what does not fit.

mod common;

use common::devices;
use ferroflash::{
    Activation, AnyTensor, DType, Device, Error, Float, LinearMode, Tensor, WeightLayout, bf16, f16, linear,
};
use host::compare::{Rule, compare, same_bits};
use host::reference::linear::{LinearOptions, LinearShape, backward, forward};
use host::reference::{Eager, Exact, data::normal, widen};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A layer to be tested.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: u64,
    n: u64,
    k: u64,
    layout: WeightLayout,
    /// Elements of padding behind each row of x, w and the residual.
    padding: u64,
    /// x is the transpose of a dense matrix.
    x_transposed: bool,
    activation: Activation,
    gated: bool,
    alpha: f32,
    bias: bool,
    residual: bool,
    mode: LinearMode,
}

impl Case {
    fn new(m: u64, n: u64, k: u64) -> Case {
        Case {
            m,
            n,
            k,
            layout: WeightLayout::Nk,
            padding: 0,
            x_transposed: false,
            activation: Activation::Identity,
            gated: false,
            alpha: 1.0,
            bias: false,
            residual: false,
            mode: LinearMode::Auto,
        }
    }

    fn columns(&self) -> u64 {
        if self.gated { 2 * self.n } else { self.n }
    }

    fn reference(&self) -> LinearShape {
        LinearShape {
            m: self.m as usize,
            n: self.n as usize,
            k: self.k as usize,
        }
    }

    /// Places of the inputs: x, w, bias, residual.
    fn lens(&self) -> [usize; 4] {
        [
            self.m * self.k,
            self.columns() * self.k,
            self.columns(),
            self.m * self.n,
        ]
        .map(|len| len as usize)
    }
}

/// Inputs of a case, dense.
struct Data<T> {
    x: Vec<T>,
    w: Vec<T>,
    bias: Vec<T>,
    residual: Vec<T>,
}

impl<T: Float> Data<T> {
    fn normal(case: &Case, seed: u64) -> Data<T> {
        let [x, w, bias, residual] = case.lens();
        // Sums of k products of deviation 1, as after an initialisation that keeps the scale.
        let scale = (case.k.max(1) as f64).powf(-0.5);
        let scaled = |values: Vec<T>| values.iter().map(|v| T::from_f64(v.to_f64() * scale)).collect();
        Data {
            x: normal(seed, x),
            w: scaled(normal(seed + 1, w)),
            bias: normal(seed + 2, bias),
            residual: normal(seed + 3, residual),
        }
    }

    /// Integers from −2 to 2: all sums are exact in f32, and results below 2048 in f16 too.
    fn integers(case: &Case) -> Data<T> {
        let values = |len: usize, factor: usize| -> Vec<T> {
            (0..len)
                .map(|i| T::from_f32(((i * factor + i / 7) % 5) as f32 - 2.0))
                .collect()
        };
        let [x, w, bias, residual] = case.lens();
        Data {
            x: values(x, 3),
            w: values(w, 7),
            bias: values(bias, 1),
            residual: values(residual, 2),
        }
    }

    fn expected<P: host::reference::Precision>(&self, case: &Case) -> host::reference::linear::Linear {
        let (bias, residual) = (widen(&self.bias), widen(&self.residual));
        let options = LinearOptions {
            weight: case.layout,
            activation: case.activation,
            gated: case.gated,
            alpha: case.alpha as f64,
            bias: case.bias.then_some(&bias[..]),
            residual: case.residual.then_some(&residual[..]),
        };
        forward::<P>(case.reference(), &options, &widen(&self.x), &widen(&self.w))
    }
}

/// `values [rows, columns]` on the device with `padding` NaNs behind each row.
fn padded<T: Float>(device: &Device, values: &[T], rows: u64, columns: u64, padding: u64) -> AnyTensor {
    let mut spread = Vec::new();
    for row in 0..rows as usize {
        spread.extend_from_slice(&values[row * columns as usize..][..columns as usize]);
        spread.extend(std::iter::repeat_n(T::from_f32(f32::NAN), padding as usize));
    }
    let all = Tensor::from_slice(device, &spread, &[rows, columns + padding]).unwrap();
    all.any().slice(1, 0..columns).unwrap()
}

fn transposed<T: Float>(device: &Device, values: &[T], rows: u64, columns: u64, padding: u64) -> AnyTensor {
    let flipped: Vec<T> = (0..rows * columns)
        .map(|i| values[(i % rows * columns + i / rows) as usize])
        .collect();
    padded(device, &flipped, columns, rows, padding)
        .transpose(0, 1)
        .unwrap()
}

/// Runs a case into poisoned outputs with gaps; y and z.
fn run<T: Float>(device: &Device, case: &Case, data: &Data<T>) -> (Vec<T>, Vec<T>) {
    let Case { m, n, k, padding, .. } = *case;
    let columns = case.columns();
    let x = if case.x_transposed {
        transposed(device, &data.x, m, k, padding)
    } else {
        padded(device, &data.x, m, k, padding)
    };
    let w = match case.layout {
        WeightLayout::Nk => padded(device, &data.w, columns, k, padding),
        WeightLayout::Kn => padded(device, &data.w, k, columns, padding),
    };
    let bias = Tensor::from_slice(device, &data.bias, &[columns]).unwrap();
    let residual = padded(device, &data.residual, m, n, padding);
    let mut layer = linear(&x, &w).layout(case.layout).alpha(case.alpha).mode(case.mode);
    layer = if case.gated {
        layer.gated(case.activation)
    } else {
        layer.activation(case.activation)
    };
    if case.bias {
        layer = layer.bias(&bias);
    }
    if case.residual {
        layer = layer.residual(&residual);
    }
    let (_, z) = layer
        .run_with_pre_activation()
        .unwrap_or_else(|error| panic!("{case:?}: {error}"));
    let whole = Tensor::<T>::empty(device, &[m, n + padding]).unwrap();
    whole.fill_bytes(0xff).unwrap();
    let y = whole.any().slice(1, 0..n).unwrap();
    layer.run_into(&y).unwrap_or_else(|error| panic!("{case:?}: {error}"));
    // Only what was asked for is written.
    let all: Vec<T> = whole.to_vec().unwrap();
    for row in all.chunks((n + padding).max(1) as usize) {
        assert!(
            row[n as usize..].iter().all(|gap| gap.to_f32().is_nan()),
            "{case:?}: written beyond y"
        );
    }
    (
        y.typed::<T>("y").unwrap().to_vec().unwrap(),
        z.typed::<T>("z").unwrap().to_vec().unwrap(),
    )
}

fn check_exact<T: Float>(device: &Device, case: Case) {
    let data = Data::<T>::integers(&case);
    let (y, z) = run(device, &case, &data);
    let expected = data.expected::<Exact>(&case);
    for (what, out, expected) in [("y", &y, &expected.y), ("z", &z, &expected.pre_activation)] {
        let report = compare(out, expected, Rule::Exact);
        assert!(report.is_ok(), "{device}, {} {what}, {case:?}: {report}", T::DTYPE);
    }
}

fn check_close<T: Float>(device: &Device, case: Case, seed: u64) {
    let data = Data::<T>::normal(&case, seed);
    let (y, z) = run(device, &case, &data);
    let (exact, naive) = (data.expected::<Exact>(&case), data.expected::<Eager<T>>(&case));
    for (what, out, exact, naive) in [
        ("y", &y, &exact.y, &naive.y),
        ("z", &z, &exact.pre_activation, &naive.pre_activation),
    ] {
        // In f32 nothing but the order of the sum differs from the naive result, whose own error may be 0 by luck.
        let largest = exact.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
        let rule = match T::DTYPE {
            DType::F32 => Rule::Relative {
                relative: 1e-6,
                absolute: 1e-6 * largest,
            },
            _ => Rule::twice(naive),
        };
        let report = compare(out, exact, rule);
        assert!(report.is_ok(), "{device}, {} {what}, {case:?}: {report}", T::DTYPE);
    }
}

/// `check` for all three dtypes.
macro_rules! all_dtypes {
    ($check:ident($device:expr, $($argument:expr),*)) => {
        $check::<f32>($device, $($argument),*);
        $check::<f16>($device, $($argument),*);
        $check::<bf16>($device, $($argument),*);
    };
}

#[test]
fn every_tail_of_m() {
    for device in devices() {
        for m in [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129] {
            let case = Case {
                bias: true,
                residual: true,
                ..Case::new(m, 24, 40)
            };
            all_dtypes!(check_exact(&device, case));
        }
    }
}

#[test]
fn every_layout_and_tail_of_n_and_k() {
    for device in devices() {
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            for (n, k) in [
                (0, 8),
                (1, 1),
                (7, 13),
                (8, 0),
                (16, 16),
                (31, 33),
                (63, 64),
                (65, 31),
                (72, 96),
                (130, 32),
            ] {
                let case = Case {
                    layout,
                    bias: true,
                    ..Case::new(5, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                // Rows of 16-byte multiples: the tensor core kernels take ragged extents too.
                let next = |extent: u64| extent.next_multiple_of(8) - extent;
                if next(n) == next(k) {
                    all_dtypes!(check_exact(
                        &device,
                        Case {
                            padding: next(k) + 8,
                            ..case
                        }
                    ));
                }
            }
        }
    }
}

#[test]
fn transposed_inputs() {
    for device in devices() {
        for (m, n, k) in [(24, 40, 16), (17, 9, 5), (72, 64, 33), (8, 8, 1)] {
            for layout in [WeightLayout::Nk, WeightLayout::Kn] {
                let case = Case {
                    x_transposed: true,
                    layout,
                    ..Case::new(m, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                all_dtypes!(check_exact(
                    &device,
                    Case {
                        padding: m.next_multiple_of(8) - m,
                        ..case
                    }
                ));
            }
        }
    }
}

#[test]
fn the_large_tiles() {
    for device in devices() {
        for (layout, x_transposed) in [
            (WeightLayout::Nk, false),
            (WeightLayout::Kn, false),
            (WeightLayout::Kn, true),
        ] {
            // Four multiprocessors, so four tiles of 128 are enough for large ones on the emulator.
            let case = Case {
                layout,
                x_transposed,
                bias: true,
                ..Case::new(136, 248, 72)
            };
            check_exact::<f16>(&device, case);
            check_exact::<bf16>(
                &device,
                Case {
                    gated: true,
                    n: 136,
                    activation: Activation::Relu,
                    k: 40,
                    ..case
                },
            );
        }
    }
}

#[test]
fn gated_pairs() {
    for device in devices() {
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            for (m, n, k) in [(3, 24, 40), (2, 7, 9), (66, 33, 16), (1, 8, 8)] {
                let case = Case {
                    layout,
                    gated: true,
                    activation: Activation::Relu,
                    bias: true,
                    residual: true,
                    ..Case::new(m, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                all_dtypes!(check_close(
                    &device,
                    Case {
                        activation: Activation::Silu,
                        ..case
                    },
                    11
                ));
            }
        }
    }
}

#[test]
fn activations_within_the_rule() {
    for device in devices() {
        for activation in Activation::ALL {
            let case = Case {
                activation,
                bias: true,
                residual: true,
                alpha: 0.75,
                ..Case::new(9, 40, 72)
            };
            all_dtypes!(check_close(&device, case, 5));
            all_dtypes!(check_close(&device, Case { gated: true, ..case }, 6));
        }
    }
}

/// Activations at any argument, by a product with the identity.
#[test]
fn activations_from_minus_to_plus_infinity() {
    let points = [
        f32::NEG_INFINITY,
        -1e38,
        -1e4,
        -100.0,
        -40.0,
        -13.0,
        -6.5,
        -5.0,
        -3.0,
        -1.0,
        -0.7517916,
        -0.5,
        -1e-3,
        -1e-20,
        -0.0,
        0.0,
        1e-20,
        1e-3,
        0.5,
        1.0,
        2.0,
        3.0,
        5.0,
        6.5,
        13.0,
        100.0,
        1e4,
        1e38,
        f32::INFINITY,
        f32::NAN,
    ];
    for device in devices() {
        let n = points.len() as u64;
        let x = Tensor::<f32>::from_slice(&device, &[], &[1, 0]).unwrap();
        let w = Tensor::<f32>::from_slice(&device, &[], &[n, 0]).unwrap();
        let bias = Tensor::from_slice(&device, &points, &[n]).unwrap();
        for activation in Activation::ALL {
            let y = linear(&x, &w).bias(&bias).activation(activation).run().unwrap();
            let y = y.typed::<f32>("y").unwrap().to_vec().unwrap();
            for (&point, y) in points.iter().zip(y) {
                let exact = activation.value::<Exact>(point as f64);
                // Relative to the result where it is normal: also far out, where the result nearly vanishes.
                let close = (y as f64 - exact).abs() <= 4e-6 * exact.abs() + 1e-37;
                let same = y as f64 == exact || (y.is_nan() && exact.is_nan());
                assert!(close || same, "{device}, {activation:?}({point}) = {y}, not {exact}");
                assert!(
                    y.is_nan() || exact == 0.0 || y == 0.0 || (y > 0.0) == (exact > 0.0),
                    "{activation:?}({point}) = {y}"
                );
            }
        }
    }
}

#[test]
fn outputs_of_another_dtype() {
    for device in devices() {
        let case = Case {
            bias: true,
            ..Case::new(5, 19, 24)
        };
        let data = Data::<f16>::integers(&case);
        let expected = data.expected::<Exact>(&case).y;
        let x = Tensor::from_slice(&device, &data.x, &[5, 24]).unwrap();
        let w = Tensor::from_slice(&device, &data.w, &[19, 24]).unwrap();
        let wide: Vec<f32> = data.bias.iter().map(|b| b.to_f32()).collect();
        let bias = Tensor::from_slice(&device, &wide, &[19]).unwrap();
        let layer = linear(&x, &w).bias(&bias);
        let y = layer
            .clone()
            .dtype(DType::F32)
            .run()
            .unwrap()
            .typed::<f32>("y")
            .unwrap()
            .to_vec()
            .unwrap();
        assert!(compare(&y, &expected, Rule::Exact).is_ok());
        let y = layer
            .dtype(DType::BF16)
            .run()
            .unwrap()
            .typed::<bf16>("y")
            .unwrap()
            .to_vec()
            .unwrap();
        assert!(compare(&y, &expected, Rule::Exact).is_ok());
    }
}

#[test]
fn batches_and_leading_axes() {
    for device in devices() {
        let (b, m, n, k) = (3u64, 5u64, 16u64, 24u64);
        let case = Case {
            bias: true,
            ..Case::new(m, n, k)
        };
        let data: Vec<Data<f16>> = (0..b).map(|i| Data::normal(&case, 100 + i)).collect();
        let join = |part: fn(&Data<f16>) -> &Vec<f16>| data.iter().flat_map(|d| part(d).clone()).collect::<Vec<f16>>();
        let x = Tensor::from_slice(&device, &join(|d| &d.x), &[b, m, k]).unwrap();
        let w = Tensor::from_slice(&device, &join(|d| &d.w), &[b, n, k]).unwrap();
        let bias = Tensor::from_slice(&device, &join(|d| &d.bias), &[b, n]).unwrap();
        let y = linear(&x, &w).bias(&bias).run().unwrap();
        assert_eq!(y.shape(), [b, m, n]);
        let batched = y.typed::<f16>("y").unwrap().to_vec().unwrap();
        let mut single = Vec::new();
        for i in 0..b {
            let (x, w, bias) = (
                x.select(0, i).unwrap(),
                w.select(0, i).unwrap(),
                bias.select(0, i).unwrap(),
            );
            single.extend(
                linear(&x, &w)
                    .bias(&bias)
                    .run()
                    .unwrap()
                    .typed::<f16>("y")
                    .unwrap()
                    .to_vec()
                    .unwrap(),
            );
        }
        assert_eq!(same_bits(&batched, &single), Ok(()));

        // One weight for all: leading axes merge, or stay two strides.
        let w = w.select(0, 0).unwrap();
        let merged = linear(&x, &w).run().unwrap();
        let swapped = x.transpose(0, 1).unwrap();
        let y = linear(&swapped, &w).run().unwrap();
        assert_eq!(y.shape(), [m, b, n]);
        let back = y.transpose(0, 1).unwrap().typed::<f16>("y").unwrap().to_vec().unwrap();
        assert_eq!(
            same_bits(&back, &merged.typed::<f16>("y").unwrap().to_vec().unwrap()),
            Ok(())
        );
        let vector = linear(&x.select(0, 0).unwrap().select(0, 0).unwrap(), &w)
            .run()
            .unwrap();
        assert_eq!(vector.shape(), [n]);
    }
}

/// The modes that take a dtype on a device.
fn modes(device: &Device, dtype: DType) -> Vec<LinearMode> {
    let x = AnyTensor::zeros(device, dtype, &[2, 32]).unwrap();
    let w = AnyTensor::zeros(device, dtype, &[32, 32]).unwrap();
    LinearMode::ALL
        .into_iter()
        .filter(|&mode| linear(&x, &w).mode(mode).run().is_ok())
        .collect()
}

fn rows_do_not_depend_on_m<T: Float>(device: &Device) {
    for mode in modes(device, T::DTYPE) {
        if mode == LinearMode::Auto {
            continue;
        }
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            let whole = Case {
                mode,
                layout,
                bias: true,
                activation: Activation::GeluTanh,
                ..Case::new(130, 136, 328)
            };
            let data = Data::<T>::normal(&whole, 3);
            let (all, _) = run(device, &whole, &data);
            for m in [1, 3, 16, 17] {
                let part = Data {
                    x: data.x[..(m * whole.k) as usize].to_vec(),
                    w: data.w.clone(),
                    bias: data.bias.clone(),
                    residual: data.residual[..(m * whole.n) as usize].to_vec(),
                };
                let (y, _) = run(device, &Case { m, ..whole }, &part);
                assert_eq!(
                    same_bits(&y, &all[..y.len()]),
                    Ok(()),
                    "{device}, {} in {mode:?}, {m} rows",
                    T::DTYPE
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    for device in devices() {
        rows_do_not_depend_on_m::<f16>(&device);
        rows_do_not_depend_on_m::<f32>(&device);
    }
}

#[test]
fn same_inputs_same_bits() {
    for device in devices() {
        for m in [1, 4, 70] {
            let case = Case {
                bias: true,
                activation: Activation::Silu,
                ..Case::new(m, 72, 264)
            };
            let data = Data::<bf16>::normal(&case, 8);
            let (first, _) = run(&device, &case, &data);
            for _ in 0..2 {
                assert_eq!(same_bits(&run(&device, &case, &data).0, &first), Ok(()));
            }
        }
    }
}

#[test]
fn a_live_nan_stays_in_its_row() {
    for device in devices() {
        let case = Case::new(4, 16, 32);
        let mut data = Data::<f16>::integers(&case);
        data.x[32 + 5] = f16::NAN;
        let (y, _) = run(&device, &case, &data);
        for (i, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), i / 16 == 1, "element {i}");
        }
    }
}

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

#[test]
fn bad_input_is_named() {
    let device = devices().remove(0);
    let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(&device, dtype, shape).unwrap();
    let x = tensor(DType::F16, &[2, 8]);
    let w = tensor(DType::F16, &[4, 8]);
    let bias = tensor(DType::F16, &[4]);
    let residual = tensor(DType::F16, &[2, 4]);
    let message = |result: Result<AnyTensor, Error>| result.unwrap_err().to_string();
    assert!(linear(&x, &w).bias(&bias).residual(&residual).run().is_ok());
    assert!(message(linear(&tensor(DType::I32, &[2, 8]), &w).run()).starts_with("x is i32"));
    assert!(message(linear(&x, &tensor(DType::BF16, &[4, 8])).run()).starts_with("w is bf16"));
    assert!(message(linear(&x, &tensor(DType::F16, &[4, 9])).run()).contains("its k is 9"));
    assert!(message(linear(&x, &tensor(DType::F16, &[8])).run()).starts_with("w has shape [8]"));
    assert!(message(linear(&x, &w).layout(WeightLayout::Kn).run()).contains("its k is 4"));
    assert!(message(linear(&x, &w).bias(&tensor(DType::F16, &[5])).run()).starts_with("bias has shape [5]"));
    assert!(message(linear(&x, &w).residual(&tensor(DType::F16, &[4, 2])).run()).starts_with("residual has shape"));
    assert!(message(linear(&x, &tensor(DType::F16, &[3, 8])).swiglu().run()).contains("even number of columns"));
    assert!(message(linear(&x, &w).dtype(DType::I64).run()).starts_with("y is i64"));
    assert!(message(linear(&x, &tensor(DType::F16, &[3, 4, 8])).run()).starts_with("x has shape"));
    assert!(
        linear(&x, &w)
            .run_into(&tensor(DType::F16, &[2, 5]))
            .unwrap_err()
            .to_string()
            .starts_with("y has shape")
    );
    let spread = tensor(DType::F16, &[4, 2]).transpose(0, 1).unwrap();
    assert!(message(linear(&x, &w).residual(&spread).run()).contains("the last axis must be dense"));
    // y may not be an input.
    let square = tensor(DType::F16, &[2, 8]);
    let into = linear(&square, &tensor(DType::F16, &[8, 8]))
        .run_into(&square)
        .unwrap_err();
    assert!(matches!(into, Error::Layout { argument: "y", .. }), "{into}");
    let odd = tensor(DType::F16, &[2, 7]);
    let refused = linear(&odd, &tensor(DType::F16, &[4, 7])).mode(LinearMode::Tiled).run();
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn any_shape_and_option() {
    let cases = (
        (0u64..70, 0u64..70, 0u64..70),
        (any::<bool>(), any::<bool>(), 0u64..9),
        (0usize..5, any::<bool>(), any::<bool>(), any::<bool>()),
        prop_oneof![Just(1.0f32), Just(-0.5), Just(2.0)],
    )
        .prop_map(
            |((m, n, k), (kn, x_transposed, padding), (activation, gated, bias, residual), alpha)| Case {
                m,
                n,
                k,
                layout: if kn { WeightLayout::Kn } else { WeightLayout::Nk },
                padding,
                x_transposed,
                activation: Activation::ALL[activation],
                gated,
                alpha,
                bias,
                residual,
                mode: LinearMode::Auto,
            },
        );
    for device in devices() {
        let config = Config {
            cases: 24,
            failure_persistence: None,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(&cases, |case| {
                all_dtypes!(check_close(&device, case, 21));
                Ok(())
            })
            .unwrap();
    }
}
