//! Inputs and comparisons of the row ops' tests.

use host::compare::{Rule, compare};
use host::reference::data::Distribution;
use host::{AnyTensor, Device, Float};

pub use crate::common::{dense, strided};

/// Row lengths around vectors, warps, blocks and the limits between kernels.
pub const COLUMNS: [usize; 11] = [1, 7, 33, 256, 1024, 1030, 5000, 8200, 33_000, 33_001, 120_008];

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
