//! Running a reduction, and checking it.

use host::{
    AnyTensor, Float,
    ops::{ReduceAxis, ReduceKind, reduce},
    reference::{
        Exact,
        data::Generator,
        reduce::{Reduction, argmax, reduce as reference},
    },
};

/// Result of a reduction: values, or indices.
#[derive(Debug, PartialEq)]
pub enum Output {
    Values(Vec<u32>),
    Indices(Vec<i64>),
}

/// Reduces and downloads; values as bits.
pub fn run(x: &AnyTensor, kind: ReduceKind, axis: ReduceAxis) -> Output {
    let out = reduce(x, kind, axis).unwrap();
    if kind == ReduceKind::Argmax {
        Output::Indices(out.typed::<i64>("out").unwrap().to_vec().unwrap())
    } else {
        let values = out.typed::<f32>("out").unwrap().to_vec().unwrap();
        Output::Values(values.into_iter().map(f32::to_bits).collect())
    }
}

pub fn reference_of(kind: ReduceKind) -> Option<Reduction> {
    Some(match kind {
        ReduceKind::Sum => Reduction::Sum,
        ReduceKind::Mean => Reduction::Mean,
        ReduceKind::Max => Reduction::Max,
        ReduceKind::Min => Reduction::Min,
        ReduceKind::SumOfSquares => Reduction::SumOfSquares,
        ReduceKind::Argmax => return None,
    })
}

/// Checks every row of `out` against the reference.
///
/// Sums take at most a hundred additions in a row (32 per lane and split, then trees), so they err by less than 100
/// roundings of Σ|x|; with `exact` data no partial sum rounds and only a mean may, twice.
pub fn check(out: &Output, data: &[f64], rows: usize, kind: ReduceKind, exact: bool, what: &str) {
    let columns = data.len() / rows;
    let row = |r: usize| &data[r * columns..][..columns];
    match (out, reference_of(kind)) {
        (Output::Indices(indices), None) => {
            let wanted: Vec<i64> = (0..rows).map(|r| argmax(row(r)).unwrap() as i64).collect();
            assert_eq!(*indices, wanted, "{what}");
        }
        (Output::Values(bits), Some(reduction)) => {
            let wanted = reference::<Exact>(reduction, data, rows);
            assert_eq!(bits.len(), rows, "{what}");
            for (r, (&bits, &wanted)) in bits.iter().zip(&wanted).enumerate() {
                let got = f64::from(f32::from_bits(bits));
                let unit = 2f64.powi(-24);
                let scale: f64 = match kind {
                    ReduceKind::Sum => row(r).iter().map(|x| x.abs()).sum(),
                    ReduceKind::Mean => row(r).iter().map(|x| x.abs()).sum::<f64>() / columns as f64,
                    ReduceKind::SumOfSquares => wanted,
                    _ => 0.0,
                };
                let allowed = match (kind, exact) {
                    (ReduceKind::Mean, true) => 3.0 * unit * wanted.abs(),
                    (_, true) => 0.0,
                    (_, false) => 100.0 * unit * scale,
                };
                assert!(
                    (got - wanted).abs() <= allowed,
                    "{what}: row {r} is {got}, not {wanted} within {allowed:e}"
                );
            }
        }
        _ => panic!("{what}: {out:?}"),
    }
}

/// Small integers: every partial sum of them and of their squares is exact in f32.
pub fn integers<T: Float>(seed: u64, len: usize) -> Vec<T> {
    let mut generator = Generator::new(seed);
    (0..len).map(|_| T::from_f64(generator.integer(-8, 8) as f64)).collect()
}

pub fn widened<T: Float>(data: &[T]) -> Vec<f64> {
    data.iter().map(|&x| x.to_f64()).collect()
}
