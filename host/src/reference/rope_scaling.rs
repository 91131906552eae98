//! Frequencies of rotary embeddings beyond the trained length.
//!
//! Each scaling comes down to one frequency per pair and one magnitude of the table, which
//! [`RopeTable`](super::rope::RopeTable) takes.

use std::f64::consts::PI;

use super::rope::inverse_frequencies;

/// How frequencies change for longer sequences. The names are those of Hugging Face's `rope_type`.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Divided by the factor: positions are interpolated.
    Linear {
        /// Longer by this factor.
        factor: f64,
    },
    /// A larger base where the sequence is longer than trained (NTK-aware, bloc97 and emozilla).
    Dynamic {
        /// Longer by this factor.
        factor: f64,
        /// Length trained for.
        trained_len: f64,
        /// Length at hand.
        len: f64,
    },
    /// High frequencies kept, low ones interpolated, a ramp between (Peng et al., arXiv 2309.00071).
    Yarn {
        /// Longer by this factor.
        factor: f64,
        /// Length trained for.
        trained_len: f64,
        /// Pairs that turn more often than this over the trained length are kept; 32 as a rule.
        beta_fast: f64,
        /// Pairs that turn less often than this are interpolated; 1 as a rule.
        beta_slow: f64,
        /// Magnitude; `0.1 · ln(factor) + 1` unless given.
        magnitude: Option<f64>,
    },
    /// A divisor per pair (Ding et al., arXiv 2402.13753).
    LongRope {
        /// The divisors: a model has a short and a long set, chosen by the length at hand.
        divisors: Vec<f64>,
        /// Longer by this factor.
        factor: f64,
        /// Length trained for.
        trained_len: f64,
    },
    /// Long waves interpolated, short ones kept, a blend between (Llama 3.1).
    Llama3 {
        /// Longer by this factor.
        factor: f64,
        /// Waves longer than `trained_len` over this are interpolated.
        low_frequency_factor: f64,
        /// Waves shorter than `trained_len` over this are kept.
        high_frequency_factor: f64,
        /// Length trained for.
        trained_len: f64,
    },
}

impl Scaling {
    /// Inverse frequency of each of the `rotary_dim / 2` pairs, and the magnitude of the table.
    ///
    /// # Panics
    /// When [`Scaling::LongRope`] does not have one divisor per pair.
    pub fn frequencies(&self, rotary_dim: usize, theta: f64) -> (Vec<f64>, f64) {
        let plain = inverse_frequencies(rotary_dim, theta);
        let dim = rotary_dim as f64;
        match *self {
            Scaling::Default => (plain, 1.0),
            Scaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            Scaling::Dynamic {
                factor,
                trained_len,
                len,
            } => {
                let stretch = factor * len.max(trained_len) / trained_len - (factor - 1.0);
                (
                    inverse_frequencies(rotary_dim, theta * stretch.powf(dim / (dim - 2.0))),
                    1.0,
                )
            }
            Scaling::Yarn {
                factor,
                trained_len,
                beta_fast,
                beta_slow,
                magnitude,
            } => {
                // The pair that turns `turns` times over the trained length.
                let pair = |turns: f64| dim * (trained_len / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(dim - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                let frequencies = plain.iter().enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                let suggested = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                (frequencies.collect(), magnitude.unwrap_or(suggested))
            }
            Scaling::LongRope {
                ref divisors,
                factor,
                trained_len,
            } => {
                assert_eq!(divisors.len(), plain.len(), "divisors");
                let magnitude = if factor <= 1.0 {
                    1.0
                } else {
                    (1.0 + factor.ln() / trained_len.ln()).sqrt()
                };
                (
                    plain.iter().zip(divisors).map(|(f, divisor)| f / divisor).collect(),
                    magnitude,
                )
            }
            Scaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                trained_len,
            } => {
                let scale = |f: &f64| {
                    let waves = trained_len * f / (2.0 * PI);
                    let keep = (waves - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    let keep = keep.clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                };
                (plain.iter().map(scale).collect(), 1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn linear_and_dynamic() {
        let plain = inverse_frequencies(8, 10_000.0);
        assert_eq!(Scaling::Default.frequencies(8, 10_000.0), (plain.clone(), 1.0));
        let (linear, _) = Scaling::Linear { factor: 4.0 }.frequencies(8, 10_000.0);
        assert_close(&linear, &[0.25, 0.025, 0.0025, 0.00025], 1e-15);
        let dynamic = |len| {
            Scaling::Dynamic {
                factor: 2.0,
                trained_len: 2048.0,
                len,
            }
            .frequencies(8, 10_000.0)
            .0
        };
        assert_eq!(dynamic(100.0), plain);
        // Twice the length: the base grows by 3^(8/6), so that the last pair turns 3 times slower.
        assert_close(
            &dynamic(4096.0),
            &[
                1.0,
                0.1 / 3f64.powf(1.0 / 3.0),
                0.01 / 3f64.powf(2.0 / 3.0),
                0.001 / 3.0,
            ],
            1e-15,
        );
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        let yarn = Scaling::Yarn {
            factor: 4.0,
            trained_len: 4096.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: None,
        };
        let (scaled, magnitude) = yarn.frequencies(128, 10_000.0);
        let plain = inverse_frequencies(128, 10_000.0);
        // 64·log₁₀₀₀₀(4096 / 64π) = 20.94…, 64·log₁₀₀₀₀(4096 / 2π) = 45.03…: the ramp is 20 to 46.
        for (i, (scaled, plain)) in scaled.iter().zip(&plain).enumerate() {
            let interpolated = ((i as f64 - 20.0) / 26.0).clamp(0.0, 1.0);
            assert_close(&[scaled / plain], &[1.0 - 0.75 * interpolated], 1e-12);
        }
        assert_close(&[magnitude], &[1.138_629_436_111_989], 1e-15);
    }

    #[test]
    fn llama3_blends_between_two_wavelengths() {
        let llama = Scaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            trained_len: 8192.0,
        };
        let (scaled, magnitude) = llama.frequencies(128, 500_000.0);
        assert_eq!(magnitude, 1.0);
        for (scaled, plain) in scaled.iter().zip(inverse_frequencies(128, 500_000.0)) {
            let wavelength = 2.0 * PI / plain;
            let expected = if wavelength < 2048.0 {
                plain
            } else if wavelength > 8192.0 {
                plain / 8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            assert_close(&[*scaled], &[expected], 1e-15);
        }
    }

    #[test]
    fn longrope_divides_and_grows() {
        let long = Scaling::LongRope {
            divisors: vec![1.0, 2.0],
            factor: 32.0,
            trained_len: 4096.0,
        };
        let (scaled, magnitude) = long.frequencies(4, 10_000.0);
        assert_close(&scaled, &[1.0, 0.005], 1e-15);
        assert_close(&[magnitude], &[(1.0f64 + 5.0 / 12.0).sqrt()], 1e-12);
    }
}
