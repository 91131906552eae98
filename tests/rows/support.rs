//! Inputs and comparisons of the row ops' tests.

use host::compare::{Rule, compare};
use host::reference::data::{Distribution, poison};
use host::{AnyTensor, Device, Float, Tensor};

pub use crate::common::dense;

/// Row lengths around vectors, warps, blocks and the limits between kernels.
pub const COLUMNS: [usize; 11] = [1, 7, 33, 256, 1024, 1030, 5000, 8200, 33_000, 33_001, 120_008];

/// `rows × columns` of a matrix whose rows have `before` and `after` elements of NaN around them.
pub fn strided<T: Float>(device: &Device, data: &[T], rows: usize, before: usize, after: usize) -> Tensor<T> {
    let columns = data.len().checked_div(rows).unwrap_or(0);
    let pitch = before + columns + after;
    let mut all = poison::<T>(rows * pitch);
    for row in 0..rows {
        all[row * pitch + before..][..columns].copy_from_slice(&data[row * columns..][..columns]);
    }
    let whole = Tensor::from_slice(device, &all, &[rows as u64, pitch as u64]).unwrap();
    whole.slice(1, before as u64..(before + columns) as u64).unwrap()
}

/// N(0, 1).
pub fn normal<T: Float>(seed: u64, rows: usize, columns: usize) -> Vec<T> {
    Distribution::NORMAL.draw(seed, rows, columns)
}

/// Leaves NaN in the memory that the next outputs of this size are given.
pub fn poison_outputs<T: Float>(device: &Device, elements: usize) {
    let outputs: Vec<_> = (0..3)
        .map(|_| {
            let tensor = AnyTensor::empty(device, T::DTYPE, &[elements as u64]).unwrap();
            tensor.fill_bytes(0xff).unwrap();
            tensor
        })
        .collect();
    drop(outputs);
}

/// The 2× rule.
pub fn assert_twice<T: Float>(what: &str, out: &AnyTensor, exact: &[f64], naive: &[f64]) {
    let out = out.typed::<T>("out").unwrap().to_vec().unwrap();
    if let Err(report) = compare(&out, exact, Rule::twice(naive)).check() {
        panic!("{what}: {report}");
    }
}

/// The content of a tensor.
pub fn values<T: Float>(tensor: &AnyTensor) -> Vec<T> {
    tensor.typed::<T>("tensor").unwrap().to_vec().unwrap()
}
