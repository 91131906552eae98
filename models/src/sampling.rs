//! Choosing the next token from logits: the options, the random number, and the CPU reference.
//!
//! # The random number
//! Token `step` (0 for the first new one) of sequence `stream` under `seed` uses one number, whatever else runs beside it:
//!
//! 1. `x = Philox4x32-10(counter, key)` with `counter = [stream mod 2³², stream / 2³², step mod 2³², step / 2³²]` and
//!    `key = [seed mod 2³², seed / 2³²]` (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//! 2. `u = (x[0] >> 8) · 2⁻²⁴`, which f32 holds exactly: `0 ≤ u < 1`.
//!
//! A kernel that follows these two lines has the same `u`, bit for bit. The streams belong to sequences, not to their places in a
//! batch: who runs beside a sequence must not change what it says.
//!
//! # The choice
//! 1. A NaN is an error: a fault must not pass as text. −∞ is never chosen. Temperature 0 takes the largest logit, of equal ones
//!    the lowest token; so does a logit of +∞.
//! 2. Tokens are ordered by logit, largest first, of equal ones the lowest token first. The first `top_k` stay (0: all).
//! 3. `w(i) = exp((logit(i) − max) / temperature)`; the shortest beginning of that order whose weights sum to at least `top_p` of
//!    the sum of all that stayed in 2 is kept, and always the first; `top_p = 1` keeps all.
//! 4. Over the kept tokens **in the order of their ids**, the first whose running sum of weights exceeds `u` times the whole sum
//!    is chosen, the last kept one if rounding leaves none.
//!
//! The reference sums in f64. A device sums in f32, so it may choose the neighbour where `u` falls within rounding of a border.

/// Why sampling cannot begin or go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The temperature is negative, infinite or not a number.
    #[error("temperature is {0}: a number from 0 (greedy) to 1000000 is allowed")]
    Temperature(f32),
    /// `top_p` is not a share.
    #[error("top_p is {0}: a number above 0 and at most 1 is allowed")]
    TopP(f32),
    /// A logit is not a number: the model or its weights are at fault.
    #[error("the logit of token {0} is NaN")]
    NotANumber(usize),
    /// There are no logits, or none that can be chosen.
    #[error("none of the {0} logits is above -infinity")]
    NoCandidate(usize),
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingOptions {
    /// Divisor of the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Then keep the most likely tokens that together have this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
}

impl SamplingOptions {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }

    /// Whether the choice needs no random number.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The option, its value and what is allowed.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !(0.0..=1e6).contains(&self.temperature) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP(self.top_p));
        }
        Ok(())
    }
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self::greedy()
    }
}

/// The CPU reference of the choice.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    options: SamplingOptions,
}

impl Sampler {
    /// A sampler with checked options.
    ///
    /// # Errors
    /// [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        options.validate()?;
        Ok(Self { options })
    }

    /// Chooses token `step` of sequence `stream` from a row of logits.
    ///
    /// # Errors
    /// [`SamplingError::NotANumber`] when a logit is NaN, [`SamplingError::NoCandidate`] when every logit is −∞.
    pub fn sample(&self, logits: &[f32], stream: u64, step: u64) -> Result<u32, SamplingError> {
        if let Some(token) = logits.iter().position(|l| l.is_nan()) {
            return Err(SamplingError::NotANumber(token));
        }
        let none = SamplingError::NoCandidate(logits.len());
        let best = argmax(logits).ok_or(none)?;
        let max = logits[best as usize];
        if self.options.is_greedy() || max == f32::INFINITY {
            return Ok(best);
        }
        let u = f64::from(uniform(self.options.seed, stream, step));
        let kept = self.kept(logits, max);
        let total: f64 = kept.iter().map(|(_, w)| w).sum();
        let mut sum = 0.0;
        for &(token, weight) in &kept {
            sum += weight;
            if sum > u * total {
                return Ok(token);
            }
        }
        Ok(kept.last().map_or(best, |(token, _)| *token))
    }

    /// The tokens that may be chosen with their weights, in the order of their ids.
    pub fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        match argmax(logits) {
            Some(best) if self.options.is_greedy() || logits[best as usize] == f32::INFINITY => vec![(best, 1.0)],
            Some(best) => self.kept(logits, logits[best as usize]),
            None => Vec::new(),
        }
    }

    fn kept(&self, logits: &[f32], max: f32) -> Vec<(u32, f64)> {
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            ..
        } = self.options;
        let weight = |l: f32| ((f64::from(l) - f64::from(max)) / f64::from(temperature)).exp();
        let possible = |l: &f32| *l > f32::NEG_INFINITY;
        let mut all: Vec<(u32, f32)> = (0u32..)
            .zip(logits.iter().copied())
            .filter(|(_, l)| possible(l))
            .collect();
        if top_k > 0 || top_p < 1.0 {
            let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            // +0 and −0 are equal logits, but not to `total_cmp`.
            all.iter_mut().for_each(|(_, l)| *l += 0.0);
            let k = top_k as usize;
            if k > 0 && k < all.len() {
                all.select_nth_unstable_by(k - 1, order);
                all.truncate(k);
            }
            all.sort_unstable_by(order);
            if top_p < 1.0 {
                let total: f64 = all.iter().map(|(_, l)| weight(*l)).sum();
                let mut sum = 0.0;
                let beginning = all.iter().position(|(_, l)| {
                    sum += weight(*l);
                    sum >= f64::from(top_p) * total
                });
                all.truncate(beginning.map_or(all.len(), |last| last + 1));
            }
            all.sort_unstable_by_key(|(token, _)| *token);
        }
        all.into_iter().map(|(token, l)| (token, weight(l))).collect()
    }
}

/// The largest logit, of equal ones the first; NaN and −∞ are passed over.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &l) in (0u32..).zip(logits) {
        if l > best.map_or(f32::NEG_INFINITY, |(_, b)| b) {
            best = Some((token, l));
        }
    }
    best.map(|(token, _)| token)
}

/// The random number of token `step` of sequence `stream` under `seed`: a multiple of 2⁻²⁴ in `[0, 1)`.
pub fn uniform(seed: u64, stream: u64, step: u64) -> f32 {
    let (low, high) = (|x: u64| x as u32, |x: u64| (x >> 32) as u32);
    let counter = [low(stream), high(stream), low(step), high(step)];
    let x = philox4x32_10(counter, [low(seed), high(seed)]);
    (x[0] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Philox4x32 with ten rounds.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let product = |i: usize, x: u32| u64::from(MULTIPLIERS[i]) * u64::from(x);
        let (a, b) = (product(0, counter[0]), product(1, counter[2]));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: u32, top_p: f32) -> Sampler {
        Sampler::new(SamplingOptions {
            temperature,
            top_k,
            top_p,
            seed: 42,
        })
        .unwrap()
    }

    #[test]
    fn philox_has_the_known_answers_of_random123() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let answer = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox4x32_10(pi, [0xa409_3822, 0x299f_31d0]), answer);
    }

    #[test]
    fn uniform_uses_every_half_of_its_arguments_and_is_a_multiple_of_2_to_minus_24() {
        let base = uniform(1, 2, 3);
        for other in [
            uniform(1 << 32 | 1, 2, 3),
            uniform(1, 1 << 32 | 2, 3),
            uniform(1, 2, 1 << 32 | 3),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(uniform(0, 0, 0), (0x6627_e8d5_u32 >> 8) as f32 / 16_777_216.0);
        for step in 0..1000 {
            let u = uniform(7, 0, step);
            assert!((0.0..1.0).contains(&u) && (u * 16_777_216.0).fract() == 0.0);
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_nan_is_an_error() {
        let greedy = Sampler::new(SamplingOptions::greedy()).unwrap();
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, 1.0, 3.0, 3.0], 0, 0), Ok(2));
        assert_eq!(
            greedy.sample(&[f32::NEG_INFINITY; 2], 0, 0),
            Err(SamplingError::NoCandidate(2))
        );
        assert_eq!(greedy.sample(&[1.0, f32::NAN], 0, 0), Err(SamplingError::NotANumber(1)));
        assert_eq!(
            sampler(1.0, 0, 1.0).sample(&[], 0, 0),
            Err(SamplingError::NoCandidate(0))
        );
        assert_eq!(sampler(0.7, 0, 1.0).sample(&[0.0, f32::INFINITY, 9.0], 0, 0), Ok(1));
    }

    #[test]
    fn frequencies_are_the_softmax_of_logits_over_temperature() {
        let (logits, temperature) = ([1.0f32, 0.0, 2.0, -1.0], 0.8f32);
        let mut counts = [0u32; 4];
        let n = 40_000;
        for step in 0..n {
            counts[sampler(temperature, 0, 1.0).sample(&logits, 5, step).unwrap() as usize] += 1;
        }
        let exp: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
        let total: f64 = exp.iter().sum();
        for (count, e) in counts.iter().zip(&exp) {
            let (p, share) = (e / total, f64::from(*count) / n as f64);
            // Four standard deviations of a binomial share.
            assert!(
                (share - p).abs() < 4.0 * (p * (1.0 - p) / n as f64).sqrt(),
                "{share} for {p}"
            );
        }
    }

    #[test]
    fn top_k_keeps_the_lowest_tokens_of_equals_and_top_p_the_shortest_beginning() {
        let ids = |s: Sampler, logits: &[f32]| s.candidates(logits).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(sampler(1.0, 2, 1.0), &[0.0, 5.0, 5.0, 5.0]), [1, 2]);
        assert_eq!(ids(sampler(1.0, 3, 1.0), &[-0.0, 1.0, 0.0, 0.0]), [0, 1, 2]);
        assert_eq!(ids(sampler(1.0, 99, 1.0), &[0.0, f32::NEG_INFINITY, 1.0]), [0, 2]);
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [2.0f32.ln(), 4.0f32.ln(), 0.0, 0.0];
        assert_eq!(ids(sampler(1.0, 0, 0.4), &logits), [1]);
        assert_eq!(ids(sampler(1.0, 0, 0.6), &logits), [0, 1]);
        assert_eq!(ids(sampler(1.0, 0, 0.8), &logits), [0, 1, 2]);
        assert_eq!(ids(sampler(1.0, 0, 1.0), &logits), [0, 1, 2, 3]);
        // After top_k = 2 the shares are 2/3 and 1/3.
        assert_eq!(ids(sampler(1.0, 2, 0.6), &logits), [1]);
        assert_eq!(ids(sampler(1.0, 0, f32::MIN_POSITIVE), &logits), [1]);
    }

    #[test]
    fn the_choice_is_the_inverse_of_the_running_sum_in_the_order_of_ids() {
        let logits = [0.5f32, 2.0, -1.0, 1.5];
        let s = sampler(1.0, 3, 1.0);
        let kept = s.candidates(&logits);
        let total: f64 = kept.iter().map(|c| c.1).sum();
        for step in 0..200 {
            let u = f64::from(uniform(42, 9, step));
            let mut sum = 0.0;
            let expected = kept
                .iter()
                .find(|c| {
                    sum += c.1;
                    sum > u * total
                })
                .unwrap()
                .0;
            assert_eq!(s.sample(&logits, 9, step), Ok(expected));
        }
    }

    #[test]
    fn a_sequence_draws_the_same_whoever_is_beside_it_and_extreme_temperatures_do_not_break() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 11) as f32).collect();
        let s = sampler(1.3, 0, 0.9);
        let alone: Vec<_> = (0..20).map(|t| s.sample(&logits, 3, t).unwrap()).collect();
        let other: Vec<_> = (0..20).map(|t| s.sample(&logits, 4, t).unwrap()).collect();
        assert_eq!(
            alone,
            (0..20).map(|t| s.sample(&logits, 3, t).unwrap()).collect::<Vec<_>>()
        );
        assert_ne!(alone, other);
        assert_eq!(sampler(1e-38, 0, 1.0).sample(&[1.0, 2.0, 0.0], 0, 0), Ok(1));
        assert!(sampler(1e6, 0, 1.0).sample(&[f32::MAX, f32::MIN], 0, 0).is_ok());
    }

    #[test]
    fn options_out_of_range_are_named() {
        for t in [-1.0, f32::NAN, f32::INFINITY] {
            let e = Sampler::new(SamplingOptions {
                temperature: t,
                ..SamplingOptions::greedy()
            })
            .unwrap_err();
            assert!(e.to_string().starts_with(&format!("temperature is {t}")), "{e}");
        }
        for p in [0.0, -0.5, 1.1, f32::NAN] {
            let e = Sampler::new(SamplingOptions {
                top_p: p,
                ..SamplingOptions::greedy()
            })
            .unwrap_err();
            assert!(e.to_string().starts_with(&format!("top_p is {p}")), "{e}");
        }
    }
}
