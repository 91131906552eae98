//! A layer to be tested, its data, and how its results are judged.

use ferroflash::{Activation, AnyTensor, DType, Device, Float, LinearMode, Tensor, WeightLayout, linear};
use host::compare::{Rule, compare};
use host::reference::linear::{LinearOptions, LinearShape, forward};
use host::reference::{Eager, Exact, data::normal, widen};

/// A layer to be tested.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub layout: WeightLayout,
    /// Elements of padding behind each row of x, w and the residual.
    pub padding: u64,
    /// x is the transpose of a dense matrix.
    pub x_transposed: bool,
    pub activation: Activation,
    pub gated: bool,
    pub alpha: f32,
    pub bias: bool,
    pub residual: bool,
    pub mode: LinearMode,
}

impl Case {
    pub fn new(m: u64, n: u64, k: u64) -> Case {
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
pub struct Data<T> {
    pub x: Vec<T>,
    pub w: Vec<T>,
    pub bias: Vec<T>,
    pub residual: Vec<T>,
}

impl<T: Float> Data<T> {
    pub fn normal(case: &Case, seed: u64) -> Data<T> {
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
    pub fn integers(case: &Case) -> Data<T> {
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

    pub fn expected<P: host::reference::Precision>(&self, case: &Case) -> host::reference::linear::Linear {
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
pub fn padded<T: Float>(device: &Device, values: &[T], rows: u64, columns: u64, padding: u64) -> AnyTensor {
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
pub fn run<T: Float>(device: &Device, case: &Case, data: &Data<T>) -> (Vec<T>, Vec<T>) {
    run_with(device, case, data, true)
}

/// [`run`] without z.
fn run_y<T: Float>(device: &Device, case: &Case, data: &Data<T>) -> Vec<T> {
    run_with(device, case, data, false).0
}

fn run_with<T: Float>(device: &Device, case: &Case, data: &Data<T>, with_z: bool) -> (Vec<T>, Vec<T>) {
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
    // Loads that go ahead change nothing.
    if m % 2 == 0 {
        layer = layer.constant_weight();
    }
    let z = with_z.then(|| {
        let (_, z) = layer
            .run_with_pre_activation()
            .unwrap_or_else(|error| panic!("{case:?}: {error}"));
        z.typed::<T>("z").unwrap().to_vec().unwrap()
    });
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
    (y.typed::<T>("y").unwrap().to_vec().unwrap(), z.unwrap_or_default())
}

pub fn check_exact<T: Float>(device: &Device, case: Case) {
    let data = Data::<T>::integers(&case);
    let (y, z) = run(device, &case, &data);
    let expected = data.expected::<Exact>(&case);
    for (what, out, expected) in [("y", &y, &expected.y), ("z", &z, &expected.pre_activation)] {
        let report = compare(out, expected, Rule::Exact);
        assert!(report.is_ok(), "{device}, {} {what}, {case:?}: {report}", T::DTYPE);
    }
}

pub fn check_close<T: Float>(device: &Device, case: Case, seed: u64) {
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

/// Runs y alone and compares it exactly.
pub fn check_y<T: Float>(device: &Device, case: Case, data: impl Fn(&Case) -> Data<T>) {
    let data = data(&case);
    let expected = data.expected::<Exact>(&case).y;
    // Rows of outputs are aligned with and without a gap behind them.
    for padding in [0, 8] {
        let y = run_y(device, &Case { padding, ..case }, &data);
        let report = compare(&y, &expected, Rule::Exact);
        assert!(report.is_ok(), "{device}, {} y, {case:?}: {report}", T::DTYPE);
    }
}

/// `check` for all three dtypes.
macro_rules! all_dtypes {
    ($check:ident($device:expr, $($argument:expr),*)) => {
        $check::<f32>($device, $($argument),*);
        $check::<ferroflash::f16>($device, $($argument),*);
        $check::<ferroflash::bf16>($device, $($argument),*);
    };
}
pub(crate) use all_dtypes;
