//! Comparing a result with the reference.
//!
//! The order of questions: are there as many elements; is every NaN and infinity where the
//! reference has one, and nowhere else; is every other element within its bound. Nothing is
//! skipped: a NaN cannot hide behind `error > bound` being false.

use std::fmt;

use crate::element::{DType, Float};

/// How far an element may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule<'a> {
    /// Same value (NaN equals NaN, 0 equals −0): for inputs on which the operation is exact.
    Exact,
    /// At most this far.
    Absolute(f64),
    /// At most `absolute + relative · |reference|`.
    Relative {
        /// Factor of the reference.
        relative: f64,
        /// What is allowed at 0.
        absolute: f64,
    },
    /// Measured by what unfused execution in the same dtype gets wrong, as FlashAttention's tests
    /// do it: `max |out − ref| ≤ factor · max |naive − ref| + ulp(0.3 + max |ref|)`.
    ///
    /// From 1024 elements on the mean error is held against
    /// `1.5 · factor · mean |naive − ref| + 2 · mean ulp(ref)` too, which sees small faults in many
    /// elements, such as a mask that is off by one in a long row.
    Naive {
        /// The operation in [`Eager`](crate::reference::Eager) precision.
        naive: &'a [f64],
        /// 2 unless an operation has a reason.
        factor: f64,
    },
}

impl<'a> Rule<'a> {
    /// The 2× rule.
    pub fn twice(naive: &'a [f64]) -> Rule<'a> {
        Rule::Naive { naive, factor: 2.0 }
    }
}

/// An element and what it should have been.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worst {
    /// Flat index.
    pub index: usize,
    /// What was found.
    pub out: f64,
    /// The reference.
    pub reference: f64,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a comparison that nobody looks at checks nothing"]
pub struct Report {
    /// Elements of the result.
    pub len: usize,
    /// Elements of the reference.
    pub expected_len: usize,
    /// Elements that are NaN or infinite in one and not the same in the other.
    pub non_finite: usize,
    /// The first of these.
    pub first_non_finite: Option<Worst>,
    /// Finite elements beyond their bound.
    pub beyond: usize,
    /// The finite element that exceeds its bound most, or comes nearest to it.
    pub worst: Option<Worst>,
    /// Largest error of a finite element.
    pub max_error: f64,
    /// Bound of the worst element.
    pub bound: f64,
    /// Mean error and its bound, where the rule has one.
    pub mean: Option<(f64, f64)>,
}

impl Report {
    /// Whether the result passes.
    pub fn is_ok(&self) -> bool {
        self.len == self.expected_len
            && self.non_finite == 0
            && self.beyond == 0
            && self.mean.is_none_or(|(error, bound)| error <= bound)
    }

    /// The report as the error of a `Result`.
    ///
    /// # Errors
    /// When the result does not pass.
    pub fn check(self) -> Result<Report, Box<Report>> {
        if self.is_ok() { Ok(self) } else { Err(Box::new(self)) }
    }

    /// Largest error as a share of its bound: 1 is the limit.
    pub fn severity(&self) -> f64 {
        match self.worst {
            Some(worst) if self.bound > 0.0 => (worst.out - worst.reference).abs() / self.bound,
            _ if self.is_ok() => 0.0,
            _ => f64::INFINITY,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len != self.expected_len {
            return write!(f, "{} elements instead of {}", self.len, self.expected_len);
        }
        if let Some(Worst { index, out, reference }) = self.first_non_finite {
            write!(
                f,
                "{} of {} elements differ in NaN or infinity, the first at {index}: {out} instead of {reference}; ",
                self.non_finite, self.len
            )?;
        }
        write!(f, "{} of {} elements beyond the bound", self.beyond, self.len)?;
        if let Some(Worst { index, out, reference }) = self.worst {
            let error = (out - reference).abs();
            write!(
                f,
                ", worst at {index}: {out} instead of {reference}, error {error:.3e}, bound {:.3e}",
                self.bound
            )?;
        }
        if let Some((error, bound)) = self.mean {
            write!(f, "; mean error {error:.3e}, bound {bound:.3e}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Compares a result of dtype `T` with the reference.
///
/// The reference counts as infinite where rounding it to `T` overflows.
pub fn compare<T: Float>(out: &[T], reference: &[f64], rule: Rule) -> Report {
    let mut report = Report {
        len: out.len(),
        expected_len: reference.len(),
        non_finite: 0,
        first_non_finite: None,
        beyond: 0,
        worst: None,
        max_error: 0.0,
        bound: 0.0,
        mean: None,
    };
    if out.len() != reference.len() {
        return report;
    }
    let limits = Limits::new::<T>(reference, rule);
    let mut worst_excess = f64::NEG_INFINITY;
    let (mut total_error, mut finite) = (0.0, 0usize);
    for (index, (out, &reference)) in out.iter().zip(reference).enumerate() {
        let out = out.to_f64();
        let rounded = T::from_f64(reference).to_f64();
        let here = Worst { index, out, reference };
        if !(out.is_finite() && rounded.is_finite()) {
            let same = out == rounded || (out.is_nan() && rounded.is_nan());
            if !same {
                report.non_finite += 1;
                report.first_non_finite.get_or_insert(here);
            }
            continue;
        }
        let (error, bound) = ((out - reference).abs(), limits.bound(reference));
        report.beyond += usize::from(error > bound);
        report.max_error = report.max_error.max(error);
        if error - bound > worst_excess {
            worst_excess = error - bound;
            (report.worst, report.bound) = (Some(here), bound);
        }
        total_error += error;
        finite += 1;
    }
    report.mean = limits
        .mean
        .filter(|_| finite > 0)
        .map(|bound| (total_error / finite as f64, bound));
    report
}

/// The rule with everything that depends on the whole tensor worked out.
struct Limits {
    relative: f64,
    absolute: f64,
    mean: Option<f64>,
}

impl Limits {
    fn new<T: Float>(reference: &[f64], rule: Rule) -> Limits {
        let (naive, factor) = match rule {
            Rule::Exact => {
                return Limits {
                    relative: 0.0,
                    absolute: 0.0,
                    mean: None,
                };
            }
            Rule::Absolute(absolute) => {
                return Limits {
                    relative: 0.0,
                    absolute,
                    mean: None,
                };
            }
            Rule::Relative { relative, absolute } => {
                return Limits {
                    relative,
                    absolute,
                    mean: None,
                };
            }
            Rule::Naive { naive, factor } => (naive, factor),
        };
        assert_eq!(
            naive.len(),
            reference.len(),
            "naive and exact reference differ in length"
        );
        let (mut max, mut max_error) = (0.0, 0.0);
        let (mut total_error, mut total_ulp, mut finite) = (0.0, 0.0, 0usize);
        for (naive, reference) in naive.iter().zip(reference) {
            // Where the naive execution overflows it says nothing about precision.
            if !(naive.is_finite() && reference.is_finite()) {
                continue;
            }
            let error = (naive - reference).abs();
            max = f64::max(max, reference.abs());
            max_error = f64::max(max_error, error);
            total_error += error;
            total_ulp += ulp(T::DTYPE, *reference);
            finite += 1;
        }
        let mean = |total: f64| total / finite as f64;
        Limits {
            relative: 0.0,
            absolute: factor * max_error + ulp(T::DTYPE, max + 0.3),
            mean: (finite >= 1024).then(|| 1.5 * factor * mean(total_error) + 2.0 * mean(total_ulp)),
        }
    }

    fn bound(&self, reference: f64) -> f64 {
        self.absolute + self.relative * reference.abs()
    }
}

/// Distance between neighbouring values of a floating-point dtype around `value`.
pub fn ulp(dtype: DType, value: f64) -> f64 {
    let (mantissa_bits, smallest_exponent) = match dtype {
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        DType::E4M3 => (3, -6),
        _ => (23, -126),
    };
    let exponent = if value == 0.0 {
        smallest_exponent
    } else {
        value.abs().log2().floor() as i32
    };
    2f64.powi(exponent.max(smallest_exponent) - mantissa_bits)
}

/// A difference between two results that should be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Elements that differ.
    pub count: usize,
    /// Elements compared.
    pub len: usize,
    /// What the first of them are.
    pub first: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} elements differ, the first {}",
            self.count, self.len, self.first
        )
    }
}

impl std::error::Error for Difference {}

/// Whether two results are the same bit for bit: two runs, a row alone and in a batch, a copy. For
/// integers it is plain equality.
///
/// # Errors
/// The first difference and how many there are.
pub fn same_bits<T: bytemuck::NoUninit + fmt::Debug>(out: &[T], expected: &[T]) -> Result<(), Difference> {
    if out.len() != expected.len() {
        let first = format!("in length: {} instead of {}", out.len(), expected.len());
        return Err(Difference {
            count: out.len().abs_diff(expected.len()),
            len: out.len(),
            first,
        });
    }
    let mut different =
        (out.iter().zip(expected).enumerate()).filter(|(_, (a, b))| bytemuck::bytes_of(*a) != bytemuck::bytes_of(*b));
    match different.next() {
        None => Ok(()),
        Some((index, (a, b))) => {
            let first = format!("at {index}: {a:?} instead of {b:?}");
            Err(Difference {
                count: 1 + different.count(),
                len: out.len(),
                first,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::attention::{AttentionOptions, AttentionShape, Causal, forward};
    use crate::reference::data::{Distribution, normal, plant};
    use crate::reference::{Eager, Exact, narrow, widen};
    use half::{bf16, f16};

    /// Attention in bf16 with 64 queries and keys, causal: (reference, naive).
    fn attention() -> (Vec<f64>, Vec<f64>) {
        let [q, k, v] = [1, 2, 3].map(|seed| widen(&normal::<bf16>(seed, SHAPE.seq_q * 64)));
        let options = AttentionOptions {
            causal: Causal::BottomRight,
            ..Default::default()
        };
        let exact = forward::<Exact>(&SHAPE, &options, &q, &k, &v);
        let eager = forward::<Eager<bf16>>(&SHAPE, &options, &q, &k, &v);
        (exact.out, eager.out)
    }

    const SHAPE: AttentionShape = AttentionShape {
        batch: 1,
        heads_q: 1,
        heads_kv: 1,
        seq_q: 64,
        seq_kv: 64,
        head_dim: 64,
        value_dim: 64,
    };

    fn fails_with(fault: impl Fn(&mut Vec<bf16>)) -> Box<Report> {
        let (reference, naive) = attention();
        let mut out = narrow::<bf16>(&reference);
        assert!(compare(&out, &reference, Rule::twice(&naive)).is_ok());
        fault(&mut out);
        compare(&out, &reference, Rule::twice(&naive)).check().unwrap_err()
    }

    #[test]
    fn accepts_the_naive_execution_itself() {
        let (reference, naive) = attention();
        let report = compare(&narrow::<bf16>(&naive), &reference, Rule::twice(&naive));
        assert!(report.is_ok(), "{report}");
        assert!(report.severity() > 0.1 && report.severity() < 1.0);
    }

    #[test]
    fn catches_one_nan_and_one_infinity() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let report = fails_with(|out| plant(out, [1234], value));
            assert_eq!((report.non_finite, report.beyond), (1, 0));
            assert_eq!(report.first_non_finite.unwrap().index, 1234);
            assert!(report.to_string().contains("the first at 1234"), "{report}");
        }
    }

    #[test]
    fn catches_a_zeroed_tile() {
        let report = fails_with(|out| {
            for row in 48..64 {
                plant(out, row * 64..row * 64 + 8, 0.0);
            }
        });
        assert!(report.beyond > 64, "{report}");
    }

    #[test]
    fn catches_a_swapped_row() {
        let report = fails_with(|out| {
            for column in 0..64 {
                out.swap(40 * 64 + column, 41 * 64 + column);
            }
        });
        let row = report.worst.unwrap().index / 64;
        assert!(row == 40 || row == 41, "{report}");
    }

    #[test]
    fn catches_a_mask_that_is_off_by_one() {
        let (reference, naive) = attention();
        let [q, k, v] = [1, 2, 3].map(|seed| widen(&normal::<bf16>(seed, 64 * 64)));
        let one_more = AttentionOptions {
            window_right: Some(1),
            ..Default::default()
        };
        let one_less = AttentionOptions {
            window_left: Some(62),
            ..one_more.clone()
        };
        for options in [one_more, one_less] {
            let out = forward::<Exact>(&SHAPE, &options, &q, &k, &v).out;
            assert!(!compare(&narrow::<bf16>(&out), &reference, Rule::twice(&naive)).is_ok());
        }
    }

    /// One element of 10 makes the bound so wide that everything else could be 5 % off.
    #[test]
    fn the_mean_catches_what_the_maximum_forgives() {
        let mut values: Vec<bf16> = Distribution::Normal { deviation: 0.05 }.draw(1, 1, 2048);
        plant(&mut values, [7], 10.0);
        let reference: Vec<f64> = widen(&values).iter().map(|x| x * 1.0001).collect();
        let naive = widen(&narrow::<bf16>(&reference));
        let off: Vec<f64> = reference.iter().map(|x| if *x < 1.0 { x * 1.05 } else { *x }).collect();
        let report = compare(&narrow::<bf16>(&off), &reference, Rule::twice(&naive));
        assert!(!report.is_ok() && report.beyond == 0, "{report}");
        assert!(compare(&narrow::<bf16>(&reference), &reference, Rule::twice(&naive)).is_ok());
    }

    #[test]
    fn a_nan_in_the_reference_is_not_skipped() {
        for rule in [Rule::Exact, Rule::Absolute(1e9), Rule::twice(&[0.0, 0.0])] {
            let reference = [1.0, f64::NAN];
            let report = compare(&[1.0f32, 2.0], &reference, rule);
            assert_eq!((report.is_ok(), report.non_finite), (false, 1), "{report}");
            assert!(compare(&[1.0f32, f32::NAN], &reference, rule).is_ok());
        }
        let infinite = [f64::INFINITY];
        assert!(!compare(&[f32::NEG_INFINITY], &infinite, Rule::Absolute(1e9)).is_ok());
        assert!(!compare(&[f32::NAN], &infinite, Rule::Absolute(1e9)).is_ok());
        assert!(compare(&[f32::INFINITY], &infinite, Rule::Exact).is_ok());
    }

    #[test]
    fn a_naive_overflow_does_not_widen_the_bound() {
        let reference = [1.0, 2.0];
        let report = compare(&[f16::ONE, f16::ONE], &reference, Rule::twice(&[f64::INFINITY, 2.0]));
        assert_eq!(report.beyond, 1, "{report}");
    }

    #[test]
    fn what_overflows_the_dtype_must_be_infinite() {
        let reference = [1e6];
        assert!(compare(&[f16::INFINITY], &reference, Rule::Exact).is_ok());
        assert!(!compare(&[f16::MAX], &reference, Rule::Absolute(1e9)).is_ok());
    }

    #[test]
    fn lengths_must_agree_and_nothing_equals_nothing() {
        let report = compare(&[1.0f32], &[1.0, 1.0], Rule::Absolute(1.0));
        assert!(!report.is_ok());
        assert_eq!(report.to_string(), "1 elements instead of 2");
        assert!(compare::<f32>(&[], &[], Rule::twice(&[])).is_ok());
    }

    #[test]
    fn plain_tolerances() {
        let (out, reference) = ([1.0f32, 100.5], [1.0, 100.0]);
        assert!(compare(&out, &reference, Rule::Absolute(0.5)).is_ok());
        let report = compare(&out, &reference, Rule::Absolute(0.4));
        assert_eq!((report.beyond, report.worst.unwrap().index), (1, 1));
        assert_eq!(report.max_error, 0.5);
        assert!(
            compare(
                &out,
                &reference,
                Rule::Relative {
                    relative: 0.005,
                    absolute: 0.0
                }
            )
            .is_ok()
        );
        assert!(
            !compare(
                &out,
                &reference,
                Rule::Relative {
                    relative: 0.004,
                    absolute: 0.0
                }
            )
            .is_ok()
        );
        assert!(!compare(&out, &reference, Rule::Exact).is_ok());
        assert!(compare(&[-0.0f32], &[0.0], Rule::Exact).is_ok());
    }

    #[test]
    fn ulps() {
        assert_eq!(ulp(DType::F32, 1.0), 2f64.powi(-23));
        assert_eq!(ulp(DType::F16, 0.3), 2f64.powi(-12));
        assert_eq!(ulp(DType::BF16, -5.0), 2f64.powi(-5));
        assert_eq!(ulp(DType::F16, 0.0), 2f64.powi(-24));
    }

    #[test]
    fn bits_see_what_values_do_not() {
        assert_eq!(same_bits(&[1i64, 2], &[1, 2]), Ok(()));
        assert_eq!(same_bits(&[f32::NAN], &[f32::NAN]), Ok(()));
        let difference = same_bits(&[0.0f32, 1.0, 2.0], &[-0.0, 1.0, 3.0]).unwrap_err();
        assert_eq!(difference.count, 2);
        assert_eq!(
            difference.to_string(),
            "2 of 3 elements differ, the first at 0: 0.0 instead of -0.0"
        );
        assert!(same_bits(&[1u8], &[]).is_err());
    }
}
