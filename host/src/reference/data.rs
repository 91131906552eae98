//! Seeded inputs for tests, verification and benchmarks.
//!
//! Everything is drawn from [Philox](super::philox), so a seed gives the same values on every
//! machine and in every version of the library.

use std::f64::consts::TAU;

use super::philox::{key, philox4x32_10};
use crate::element::Float;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Generator {
    key: [u32; 2],
    block: u64,
    words: [u32; 4],
    used: usize,
    spare_normal: Option<f64>,
}

impl Generator {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Generator {
        Generator {
            key: key(seed),
            block: 0,
            words: [0; 4],
            used: 4,
            spare_normal: None,
        }
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10([self.block as u32, (self.block >> 32) as u32, 0, 0], self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        f64::from(self.word()) / 4_294_967_296.0
    }

    /// Uniform among `low..=high`.
    pub fn integer(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "empty range {low}..={high}");
        low + (self.uniform() * (high - low + 1) as f64) as i64
    }

    /// N(0, 1), by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare_normal.take() {
            return value;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (TAU * self.uniform()).sin_cos();
        self.spare_normal = Some(radius * sin);
        radius * cos
    }
}

/// A kind of input matrix. Each finds faults that the others hide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// N(0, deviation²): what models feed.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// Integers in `-magnitude..=magnitude`: sums are exact, so any wrong index is a hard failure.
    Integers {
        /// Largest absolute value.
        magnitude: u32,
    },
    /// Uniform in `center ± spread`: near −1000 it shows padding that entered a maximum.
    Near {
        /// Middle.
        center: f64,
        /// Half width.
        spread: f64,
    },
    /// `+magnitude` or `-magnitude`: at 80, `exp` without the maximum subtracted overflows.
    Extremes {
        /// Absolute value.
        magnitude: f64,
    },
    /// N(0, 1) with one value of this size at a random place in each row.
    OutlierPerRow {
        /// The outlier.
        value: f64,
    },
    /// Each row holds one N(0, 1) value throughout: zero variance, uniform softmax.
    ConstantRows,
}

impl Distribution {
    /// N(0, 1).
    pub const NORMAL: Distribution = Distribution::Normal { deviation: 1.0 };

    /// One of each kind, with parameters that fit f16.
    pub const ALL: [Distribution; 6] = [
        Distribution::NORMAL,
        Distribution::Integers { magnitude: 4 },
        Distribution::Near {
            center: -1000.0,
            spread: 1.0,
        },
        Distribution::Extremes { magnitude: 80.0 },
        Distribution::OutlierPerRow { value: 1000.0 },
        Distribution::ConstantRows,
    ];

    /// Draws a matrix, rounded to `T`.
    pub fn draw<T: Float>(self, seed: u64, rows: usize, columns: usize) -> Vec<T> {
        let mut random = Generator::new(seed);
        let mut values = Vec::with_capacity(rows * columns);
        for _ in 0..rows {
            let start = values.len();
            let constant = random.normal();
            values.extend((0..columns).map(|_| match self {
                Distribution::Normal { deviation } => deviation * random.normal(),
                Distribution::Integers { magnitude } => {
                    random.integer(-i64::from(magnitude), i64::from(magnitude)) as f64
                }
                Distribution::Near { center, spread } => center + spread * (2.0 * random.uniform() - 1.0),
                Distribution::Extremes { magnitude } if random.word() & 1 == 0 => magnitude,
                Distribution::Extremes { magnitude } => -magnitude,
                Distribution::OutlierPerRow { .. } => random.normal(),
                Distribution::ConstantRows => constant,
            }));
            if let Distribution::OutlierPerRow { value } = self
                && columns > 0
            {
                values[start + random.integer(0, columns as i64 - 1) as usize] = value;
            }
        }
        values.into_iter().map(|value| T::from_f32(value as f32)).collect()
    }
}

/// `len` values of N(0, 1).
pub fn normal<T: Float>(seed: u64, len: usize) -> Vec<T> {
    Distribution::NORMAL.draw(seed, 1, len)
}

/// Uniform integers in `low..=high`, for indices, targets and positions.
pub fn indices(seed: u64, len: usize, low: i64, high: i64) -> Vec<i64> {
    let mut random = Generator::new(seed);
    (0..len).map(|_| random.integer(low, high)).collect()
}

/// A random order of `0..len`, for page tables.
pub fn permutation(seed: u64, len: usize) -> Vec<usize> {
    let mut random = Generator::new(seed);
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, random.integer(0, last as i64) as usize);
    }
    order
}

/// Overwrites the given elements: NaN in dead slots must not appear in results, NaN and infinity
/// in live ones must.
pub fn plant<T: Float>(values: &mut [T], at: impl IntoIterator<Item = usize>, value: f32) {
    for index in at {
        values[index] = T::from_f32(value);
    }
}

/// A tensor full of NaN, as every output is before its launch in a test.
pub fn poison<T: Float>(len: usize) -> Vec<T> {
    vec![T::from_f32(f32::NAN); len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn normal_has_its_moments_and_repeats() {
        let values: Vec<f32> = normal(42, 100_000);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        let beyond2 = values.iter().filter(|x| x.abs() > 2.0).count() as f64 / 1e5;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!((beyond2 - 0.0455).abs() < 0.005, "{beyond2}");
        assert_eq!(values, normal::<f32>(42, 100_000));
        assert_ne!(values, normal::<f32>(43, 100_000));
    }

    #[test]
    fn every_kind_is_what_it_says() {
        for kind in Distribution::ALL {
            let values: Vec<f16> = kind.draw(5, 8, 33);
            let rows: Vec<Vec<f32>> = values
                .chunks(33)
                .map(|row| row.iter().map(|x| x.to_f32()).collect())
                .collect();
            assert_eq!(rows.len(), 8);
            for row in rows {
                assert!(row.iter().all(|x| x.is_finite()), "{kind:?}");
                match kind {
                    Distribution::Normal { .. } => assert!(row.iter().all(|x| x.abs() < 6.0)),
                    Distribution::Integers { .. } => {
                        assert!(row.iter().all(|x| x.fract() == 0.0 && x.abs() <= 4.0));
                    }
                    Distribution::Near { .. } => assert!(row.iter().all(|x| (x + 1000.0).abs() <= 1.0)),
                    Distribution::Extremes { .. } => assert!(row.iter().all(|x| x.abs() == 80.0)),
                    Distribution::OutlierPerRow { .. } => {
                        assert_eq!(row.iter().filter(|&&x| x == 1000.0).count(), 1);
                    }
                    Distribution::ConstantRows => assert!(row.iter().all(|&x| x == row[0])),
                }
            }
        }
    }

    #[test]
    fn integers_cover_their_range_and_permutations_are_permutations() {
        let mut seen = indices(1, 200, -2, 2);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [-2, -1, 0, 1, 2]);
        let mut order = permutation(9, 50);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn planting_hits_the_chosen_slots_only() {
        let mut values = vec![1.0f32; 4];
        plant(&mut values, [1, 3], f32::NAN);
        assert_eq!(
            values.iter().map(|x| x.is_nan()).collect::<Vec<_>>(),
            [false, true, false, true]
        );
        assert!(poison::<f16>(3).iter().all(|x| x.is_nan()));
    }
}
