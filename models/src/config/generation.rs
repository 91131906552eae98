//! `generation_config.json`: how the makers of a model sample from it.

use super::ConfigError;
use super::fields::{Fields, parse_object};
use crate::sampling::SamplingOptions;

/// The fields of `generation_config.json` that this crate acts on. Fields that are missing are `None` or empty.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// Whether to sample; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the most likely tokens that together have this probability.
    pub top_p: Option<f32>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<usize>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text; they take precedence over those of `config.json`.
    pub eos: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json` for a model of `vocab_size` tokens.
    ///
    /// # Errors
    /// A field that is malformed or out of its range, by name.
    pub fn from_json(json: &[u8], vocab_size: usize) -> Result<Self, ConfigError> {
        let map = parse_object(json)?;
        let f = Fields::new(&map);
        let temperature = f.number("temperature", "a number of at least 0", |x| (0.0..=1e6).contains(&x))?;
        let top_p = f.number("top_p", "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?;
        let top_k = f.count("top_k", 0..=u32::MAX as usize)?;
        Ok(Self {
            do_sample: f.flag("do_sample")?,
            temperature: temperature.map(|x| x as f32),
            top_k: top_k.and_then(|k| u32::try_from(k).ok()),
            top_p: top_p.map(|x| x as f32),
            max_new_tokens: f.count("max_new_tokens", 1..=1 << 40)?,
            bos: f.token_ids("bos_token_id", vocab_size)?.first().copied(),
            eos: f.token_ids("eos_token_id", vocab_size)?,
        })
    }

    /// The options that these settings mean: greedy unless `do_sample`, the given numbers otherwise.
    pub fn sampling(&self, seed: u64) -> SamplingOptions {
        if self.do_sample != Some(true) {
            return SamplingOptions::greedy();
        }
        // transformers' defaults for what a file that samples leaves out: temperature 1, top_k 50, top_p 1.
        SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(50),
            // A top_p too small for f32 keeps the most likely token, as the smallest positive number does.
            top_p: self.top_p.map_or(1.0, |p| p.max(f32::MIN_POSITIVE)),
            seed,
        }
    }
}
