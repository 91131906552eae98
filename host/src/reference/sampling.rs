//! Choosing the next token from logits.
//!
//! In order: logits divided by the temperature; the `top_k` largest kept (of equal ones the lower
//! indices); of those, in falling order, the shortest prefix whose probability reaches `top_p`; one
//! drawn in proportion. The draw walks the kept tokens **in order of their index** and takes the
//! first whose cumulative probability exceeds `u`, the Philox number of (seed, offset, row) in the
//! table of [`philox`](super::philox). Temperature 0 is [`argmax`]. A row with NaN yields its first
//! NaN's index, so that faults do not pass as text.

use super::philox::{key, philox4x32_10, unit};
use super::reduce::argmax;

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 or more.
    pub temperature: f64,
    /// Keep at most so many tokens; all unless given.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this probability, in (0, 1].
    pub top_p: f64,
    /// Seed.
    pub seed: u64,
    /// Tells steps under one seed apart.
    pub offset: u64,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Its index.
    pub token: usize,
    /// How much a cumulative probability would have to change to change the choice. Kernels work
    /// in `f32`: a test accepts another token where this is below their error.
    pub margin: f64,
}

/// The kept tokens by index with their probabilities, and the distance of `top_p` from where it
/// would keep one more or one less.
fn nucleus(logits: &[f64], options: &SamplingOptions) -> (Vec<(usize, f64)>, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut kept: Vec<(usize, f64)> = logits
        .iter()
        .map(|logit| {
            if *logit == max {
                1.0
            } else {
                ((logit - max) / options.temperature).exp()
            }
        })
        .enumerate()
        .collect();
    // A stable sort by the logits themselves: equal ones stay in order of their index, and adding 0
    // makes −0 equal to 0.
    kept.sort_by(|(a, _), (b, _)| (logits[*b] + 0.0).total_cmp(&(logits[*a] + 0.0)));
    kept.truncate(options.top_k.unwrap_or(kept.len()).max(1));
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let (mut cumulative, mut margin, mut len) = (0.0, f64::INFINITY, kept.len());
    for (index, (_, weight)) in kept.iter().enumerate() {
        cumulative += weight / total;
        if options.top_p < 1.0 {
            margin = f64::min(margin, (cumulative - options.top_p).abs());
            if cumulative >= options.top_p {
                len = index + 1;
                break;
            }
        }
    }
    kept.truncate(len);
    kept.retain(|(_, weight)| *weight > 0.0);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    kept.iter_mut().for_each(|(_, weight)| *weight /= total);
    kept.sort_by_key(|(token, _)| *token);
    (kept, margin)
}

/// Tokens that can be drawn, by index, with their probabilities.
pub fn distribution(logits: &[f64], options: &SamplingOptions) -> Vec<(usize, f64)> {
    nucleus(logits, options).0
}

/// Draws a token for `row` of a batch; none from an empty vocabulary.
pub fn sample(logits: &[f64], row: u32, options: &SamplingOptions) -> Option<Draw> {
    let best = argmax(logits)?;
    if options.temperature == 0.0 || logits[best].is_nan() || logits[best].is_infinite() {
        return Some(Draw {
            token: best,
            margin: f64::INFINITY,
        });
    }
    let counter = [row, 0, options.offset as u32, (options.offset >> 32) as u32];
    let u = unit(philox4x32_10(counter, key(options.seed))[0]);
    let (kept, mut margin) = nucleus(logits, options);
    let mut chosen = None;
    let mut cumulative = 0.0;
    for (index, (token, probability)) in kept.iter().enumerate() {
        cumulative += probability;
        // The last token takes what rounding leaves, so its upper end decides nothing.
        let last = index + 1 == kept.len();
        if !last {
            margin = f64::min(margin, (cumulative - u).abs());
        }
        if chosen.is_none() && (cumulative > u || last) {
            chosen = Some(*token);
        }
    }
    chosen.map(|token| Draw { token, margin })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: SamplingOptions = SamplingOptions {
        temperature: 1.0,
        top_k: None,
        top_p: 1.0,
        seed: 1,
        offset: 0,
    };

    fn logits(weights: &[f64]) -> Vec<f64> {
        weights.iter().map(|w| w.ln()).collect()
    }

    fn tokens(logits: &[f64], options: SamplingOptions) -> Vec<usize> {
        distribution(logits, &options)
            .into_iter()
            .map(|(token, _)| token)
            .collect()
    }

    #[test]
    fn keeps_the_top() {
        let logits = logits(&[1.0, 4.0, 2.0, 2.0, 1.0]);
        assert_eq!(tokens(&logits, SamplingOptions { top_k: Some(2), ..ALL }), [1, 2]);
        assert_eq!(
            tokens(&logits, SamplingOptions { top_k: Some(9), ..ALL }),
            [0, 1, 2, 3, 4]
        );
        assert_eq!(tokens(&logits, SamplingOptions { top_p: 0.39, ..ALL }), [1]);
        assert_eq!(tokens(&logits, SamplingOptions { top_p: 0.41, ..ALL }), [1, 2]);
        assert_eq!(tokens(&logits, SamplingOptions { top_p: 0.79, ..ALL }), [1, 2, 3]);
        // top_p counts within the top_k: 4/6 of them is the first.
        let both = SamplingOptions {
            top_k: Some(2),
            top_p: 0.6,
            ..ALL
        };
        assert_eq!(tokens(&logits, both), [1]);
        let hot = SamplingOptions {
            temperature: 0.5,
            ..ALL
        };
        let probability = distribution(&logits, &hot)[1].1;
        assert!((probability - 16.0 / 26.0).abs() < 1e-12);
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = logits(&[1.0, 0.0, 2.0, 5.0]);
        let mut counts = [0; 4];
        for row in 0..20_000 {
            counts[sample(&logits, row, &ALL).unwrap().token] += 1;
        }
        assert_eq!(counts[1], 0);
        for (count, expected) in counts.iter().zip([0.125, 0.0, 0.25, 0.625]) {
            assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn draws_are_functions_of_seed_offset_and_row() {
        let flat = vec![0.0; 1000];
        let draw = |row, options: SamplingOptions| sample(&flat, row, &options).unwrap().token;
        assert_eq!(draw(3, ALL), draw(3, ALL));
        assert_ne!(draw(3, ALL), draw(4, ALL));
        assert_ne!(draw(3, ALL), draw(3, SamplingOptions { offset: 1, ..ALL }));
        assert_ne!(draw(3, ALL), draw(3, SamplingOptions { seed: 2, ..ALL }));
    }

    #[test]
    fn certain_cases() {
        let cold = SamplingOptions {
            temperature: 0.0,
            ..ALL
        };
        assert_eq!(sample(&[1.0, 3.0, 3.0], 0, &cold).unwrap().token, 1);
        assert_eq!(sample(&[1.0, f64::NAN, 3.0], 0, &ALL).unwrap().token, 1);
        assert_eq!(sample(&[], 0, &ALL), None);
        let one = SamplingOptions { top_k: Some(1), ..ALL };
        assert_eq!(sample(&[-1000.0, -999.0], 0, &one).unwrap().token, 1);
        assert!(sample(&[0.0; 4], 0, &ALL).unwrap().margin <= 0.25);
    }
}
