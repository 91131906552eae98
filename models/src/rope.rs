//! Inverse frequencies of rotary position embeddings, for every scaling that the supported families use.
//!
//! Pair `i` of a head (elements `i` and `i + rotary_dim/2`) at position `m` is turned by the angle `m · inv_freq[i]`, and the
//! cosine and sine are multiplied by the attention factor. Without scaling `inv_freq[i] = θ^(−2i/rotary_dim)`.
//!
//! The steps are those of transformers' `modeling_rope_utils.py`, rounded to f32 where it rounds (it computes on f32 tensors with
//! Python floats as scalars), so that long positions get the same angles; only `pow` and `ln` are taken in f64 and rounded once.
//! Sources: RoFormer (arXiv 2104.09864), position interpolation (2306.15595), YaRN (2309.00071), LongRoPE (2402.13753).

use std::f64::consts::PI;

/// How the frequencies are stretched beyond the length a model was trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Position interpolation: all frequencies are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// NTK-aware: θ grows with the length of the text once that exceeds `max_positions`.
    Dynamic {
        /// At least 1.
        factor: f64,
        /// `max_position_embeddings` of the model.
        max_positions: usize,
    },
    /// YaRN: high frequencies stay, low ones are divided by `factor`, with a linear ramp between.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Length of the training texts.
        original_max_positions: usize,
        /// Factor on cosine and sine; computed from `factor` and `mscale` when absent.
        attention_factor: Option<f64>,
        /// Turns over the training length above which a frequency stays.
        beta_fast: f64,
        /// Turns over the training length below which a frequency is divided in full.
        beta_slow: f64,
        /// Weight of ln(factor) in the numerator of the attention factor.
        mscale: Option<f64>,
        /// The same in its denominator.
        mscale_all_dim: Option<f64>,
        /// Whether the ends of the ramp are rounded outward to whole pairs.
        truncate: bool,
    },
    /// LongRoPE: every frequency has divisors of its own, one set for short and one for long texts.
    LongRope {
        /// Divisors up to the training length, one a pair.
        short_factor: Vec<f64>,
        /// Divisors beyond it, one a pair.
        long_factor: Vec<f64>,
        /// `max_position_embeddings / original_max_positions` unless the file says otherwise.
        factor: f64,
        /// Length of the training texts.
        original_max_positions: usize,
        /// Factor on cosine and sine; `√(1 + ln factor / ln original)` when absent.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1: long waves are divided by `factor`, short ones stay, those between are blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Length of the training texts.
        original_max_positions: usize,
    },
}

/// The rotary parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Elements of a head that are rotated: even, at most the head's width; the others pass unchanged.
    pub rotary_dim: usize,
    /// How the series is stretched.
    pub scaling: RopeScaling,
}

/// What a kernel needs to rotate.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeFrequencies {
    /// Radians a position, one a pair: `rotary_dim / 2` of them.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub attention_factor: f32,
}

impl RopeConfig {
    /// The frequencies for a text of `length` tokens (prompt and answer so far). Only [`RopeScaling::Dynamic`] and
    /// [`RopeScaling::LongRope`] look at the length; see [`Self::depends_on_length`].
    pub fn frequencies(&self, length: usize) -> RopeFrequencies {
        let (inv_freq, attention_factor) = match &self.scaling {
            RopeScaling::Default => (self.plain(self.theta), 1.0),
            RopeScaling::Linear { factor } => (
                self.plain(self.theta).into_iter().map(|f| f / *factor as f32).collect(),
                1.0,
            ),
            RopeScaling::Dynamic { factor, max_positions } => {
                let max = *max_positions as f64;
                let stretch = factor * (length.max(*max_positions) as f64) / max - (factor - 1.0);
                let dim = self.rotary_dim as f64;
                (self.plain(self.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
            }
            RopeScaling::Yarn { .. } => self.yarn(),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                factor,
                original_max_positions,
                attention_factor,
            } => {
                let original = *original_max_positions;
                let divisors = if length > original { long_factor } else { short_factor };
                let powers = self.powers(self.theta);
                let inv = powers
                    .iter()
                    .zip(divisors)
                    .map(|(p, d)| 1.0 / (*d as f32 * p))
                    .collect();
                let scale = attention_factor.unwrap_or_else(|| {
                    // A training length of 1 has no logarithm to divide by.
                    let by_length = (original as f64).ln();
                    if *factor <= 1.0 || by_length <= 0.0 {
                        1.0
                    } else {
                        (1.0 + factor.ln() / by_length).sqrt()
                    }
                });
                (inv, scale)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                let original = *original_max_positions as f64;
                let (low_wave, high_wave) = (original / low_freq_factor, original / high_freq_factor);
                let blend = |f: f32| {
                    let wave = (2.0 * PI) as f32 / f;
                    if wave > low_wave as f32 {
                        return f / *factor as f32;
                    }
                    if wave < high_wave as f32 {
                        return f;
                    }
                    let span = (high_freq_factor - low_freq_factor) as f32;
                    let smooth = (original as f32 / wave - *low_freq_factor as f32) / span;
                    (1.0 - smooth) * f / *factor as f32 + smooth * f
                };
                (self.plain(self.theta).into_iter().map(blend).collect(), 1.0)
            }
        };
        RopeFrequencies {
            inv_freq,
            attention_factor: attention_factor as f32,
        }
    }

    /// Whether [`Self::frequencies`] of `to` tokens differ from those of `from`: when so, transformers rotates new tokens by the
    /// new frequencies and leaves the keys in the cache as they are.
    pub fn depends_on_length(&self, from: usize, to: usize) -> bool {
        match &self.scaling {
            RopeScaling::Dynamic { max_positions, .. } => from.max(*max_positions) != to.max(*max_positions),
            RopeScaling::LongRope {
                original_max_positions: original,
                ..
            } => (from > *original) != (to > *original),
            _ => false,
        }
    }

    /// `θ^(2i/rotary_dim)` in f32, for each pair.
    fn powers(&self, theta: f64) -> Vec<f32> {
        let theta = f64::from(theta as f32);
        let exponent = |i: usize| f64::from((2 * i) as f32 / self.rotary_dim as f32);
        (0..self.rotary_dim / 2)
            .map(|i| theta.powf(exponent(i)) as f32)
            .collect()
    }

    fn plain(&self, theta: f64) -> Vec<f32> {
        self.powers(theta).into_iter().map(|p| 1.0 / p).collect()
    }

    fn yarn(&self) -> (Vec<f32>, f64) {
        let RopeScaling::Yarn {
            factor,
            original_max_positions,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } = &self.scaling
        else {
            return (self.plain(self.theta), 1.0);
        };
        let grow = |weight: f64| {
            if *factor <= 1.0 {
                1.0
            } else {
                0.1 * weight * factor.ln() + 1.0
            }
        };
        let set = |weight: &Option<f64>| weight.filter(|w| *w != 0.0);
        let attention = attention_factor.unwrap_or_else(|| match (set(mscale), set(mscale_all_dim)) {
            (Some(top), Some(bottom)) => grow(top) / grow(bottom),
            _ => grow(1.0),
        });

        // The pair whose wave turns `rotations` times over the training length.
        let dim = self.rotary_dim as f64;
        let pair_of = |rotations: f64| {
            dim * (*original_max_positions as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_of(*beta_fast), pair_of(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let inv = self.powers(self.theta).into_iter().enumerate().map(|(i, p)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            1.0 / (*factor as f32 * p) * (1.0 - keep) + 1.0 / p * keep
        });
        (inv.collect(), attention)
    }
}

impl RopeFrequencies {
    /// Cosine and sine for `positions`, each `[positions.len(), rotary_dim / 2]` in f32, with the attention factor in them.
    ///
    /// The angle is the f32 product that transformers forms; its cosine and sine are exact to half a unit in the last place.
    pub fn cos_sin(&self, positions: impl IntoIterator<Item = u32>) -> (Vec<f32>, Vec<f32>) {
        let mut tables = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in &self.inv_freq {
                let angle = f64::from(position as f32 * frequency);
                tables.0.push(angle.cos() as f32 * self.attention_factor);
                tables.1.push(angle.sin() as f32 * self.attention_factor);
            }
        }
        tables
    }
}
