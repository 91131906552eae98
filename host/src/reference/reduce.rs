//! Reductions over all elements or over the last axis.
//!
//! A whole tensor is one row: `reduce(op, x, x.len())`.

use super::{Precision, sum};

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum; 0 of nothing.
    Sum,
    /// Mean; NaN of nothing.
    Mean,
    /// Largest; −∞ of nothing.
    Max,
    /// Smallest; +∞ of nothing.
    Min,
    /// Sum of squares; 0 of nothing.
    SumOfSquares,
}

impl Reduction {
    /// All of them.
    pub const ALL: [Reduction; 5] = [
        Reduction::Sum,
        Reduction::Mean,
        Reduction::Max,
        Reduction::Min,
        Reduction::SumOfSquares,
    ];

    /// The reduction of one row. NaN anywhere gives NaN.
    pub fn of<P: Precision>(self, row: &[f64]) -> f64 {
        let extreme = |start: f64, choose: fn(f64, f64) -> f64| {
            row.iter().fold(start, |best, &x| {
                if x.is_nan() || best.is_nan() {
                    f64::NAN
                } else {
                    choose(best, x)
                }
            })
        };
        P::store(match self {
            Reduction::Sum => sum::<P>(row.iter().copied()),
            Reduction::Mean => sum::<P>(row.iter().copied()) / row.len() as f64,
            Reduction::Max => extreme(f64::NEG_INFINITY, f64::max),
            Reduction::Min => extreme(f64::INFINITY, f64::min),
            Reduction::SumOfSquares => sum::<P>(row.iter().map(|x| P::step(x * x))),
        })
    }
}

/// Reduces each of `rows` rows of equal length.
pub fn reduce<P: Precision>(reduction: Reduction, x: &[f64], rows: usize) -> Vec<f64> {
    let columns = x.len().checked_div(rows).unwrap_or(0);
    assert_eq!(rows * columns, x.len(), "{} elements in {rows} rows", x.len());
    (0..rows)
        .map(|row| reduction.of::<P>(&x[row * columns..][..columns]))
        .collect()
}

/// Index of the largest element of a row: of equal ones the first, of NaNs the first NaN, and none
/// of an empty row.
pub fn argmax(row: &[f64]) -> Option<usize> {
    if let Some(index) = row.iter().position(|x| x.is_nan()) {
        return Some(index);
    }
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter().position(|&x| x == max)
}

#[cfg(test)]
mod tests {
    use super::super::{Eager, Exact};
    use super::*;
    use half::f16;

    #[test]
    fn by_hand_over_rows_and_over_all() {
        let x = [1.0, -2.0, 3.0, 0.0, 5.0, -1.0];
        let rows = |reduction| reduce::<Exact>(reduction, &x, 2);
        let all = |reduction| reduce::<Exact>(reduction, &x, 1)[0];
        assert_eq!(rows(Reduction::Sum), [2.0, 4.0]);
        assert_eq!(rows(Reduction::Mean), [2.0 / 3.0, 4.0 / 3.0]);
        assert_eq!(rows(Reduction::Max), [3.0, 5.0]);
        assert_eq!(rows(Reduction::Min), [-2.0, -1.0]);
        assert_eq!(rows(Reduction::SumOfSquares), [14.0, 26.0]);
        assert_eq!([all(Reduction::Sum), all(Reduction::Max)], [6.0, 5.0]);
        assert!(reduce::<Exact>(Reduction::Sum, &[], 0).is_empty());
    }

    #[test]
    fn of_nothing() {
        let of = |reduction| reduce::<Exact>(reduction, &[], 2);
        assert_eq!(of(Reduction::Sum), [0.0; 2]);
        assert_eq!(of(Reduction::SumOfSquares), [0.0; 2]);
        assert_eq!(of(Reduction::Max), [f64::NEG_INFINITY; 2]);
        assert_eq!(of(Reduction::Min), [f64::INFINITY; 2]);
        assert!(of(Reduction::Mean).iter().all(|x| x.is_nan()));
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn nan_comes_through_wherever_it_stands() {
        for at in 0..3 {
            let mut x = [1.0, 2.0, 3.0];
            x[at] = f64::NAN;
            for reduction in Reduction::ALL {
                assert!(reduction.of::<Exact>(&x).is_nan(), "{reduction:?} with NaN at {at}");
            }
            assert_eq!(argmax(&x), Some(at));
        }
    }

    #[test]
    fn argmax_takes_the_first() {
        assert_eq!(argmax(&[1.0, 7.0, 7.0]), Some(1));
        assert_eq!(argmax(&[f64::NEG_INFINITY; 3]), Some(0));
        assert_eq!(argmax(&[-1000.0, -999.0]), Some(1));
    }

    #[test]
    fn eager_sums_in_f32_and_stores_the_dtype() {
        // Ones beyond 2048 would be lost if the accumulator were f16.
        assert_eq!(Reduction::Sum.of::<Eager<f16>>(&[1.0; 4096]), 4096.0);
        assert_eq!(Reduction::Sum.of::<Eager<f16>>(&[1.0; 70_000]), f64::INFINITY);
        assert_eq!(Reduction::Mean.of::<Eager<f16>>(&[1.0; 70_000]), 1.0);
    }
}
