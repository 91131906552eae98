//! How well a model predicts a text.

use crate::error::{Error, Result};
use crate::model::Model;
use crate::session::Session;

/// Rows of logits that are on the CPU at a time.
const ROWS: usize = 64;

/// The outcome of [`Model::perplexity`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Tokens that were predicted: all but the first.
    pub tokens: usize,
    /// Σ −ln p(token | those before it in its window).
    pub negative_log_likelihood: f64,
}

impl Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub fn value(&self) -> f64 {
        (self.negative_log_likelihood / self.tokens as f64).exp()
    }
}

impl Model {
    /// Predicts every token of `ids` but the first, from those before it in windows of `window` tokens that advance by `stride`:
    /// each token is judged once, in the first window that has it, so that all but the first window give at least
    /// `window − stride` tokens of context. `progress` is told how many tokens are done.
    ///
    /// # Errors
    /// A text of fewer than two tokens; a window below 2 or beyond the model's positions; a stride of 0 or not below the window;
    /// those of [`Model::logits`].
    pub fn perplexity(
        &self,
        ids: &[u32],
        window: usize,
        stride: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Perplexity> {
        let most = self.context();
        if window < 2 || window > most {
            return Err(host::Error::range("window", window, format!("2 to {most}, the model's positions")).into());
        }
        if stride == 0 || stride >= window {
            return Err(host::Error::range("stride", stride, format!("1 to {}, below the window", window - 1)).into());
        }
        if ids.len() < 2 {
            return Err(Error::EmptyPrompt);
        }
        let mut result = Perplexity {
            tokens: 0,
            negative_log_likelihood: 0.0,
        };
        let mut session = Session::new(self, window, 0, 1)?;
        let (mut begin, mut judged) = (0, 1);
        while judged < ids.len() {
            let end = (begin + window).min(ids.len());
            let sequence = session.start();
            // The last token of a window is judged, but judges nothing.
            let logits = session.all_logits(sequence, &ids[begin..end - 1])?;
            let rows = judged - 1 - begin..end - 1 - begin;
            for first in rows.clone().step_by(ROWS) {
                let last = (first + ROWS).min(rows.end);
                let bytes = logits.slice(0, first as u64..last as u64)?.to_bytes()?;
                let values: Vec<f32> = bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect();
                for (row, target) in values.chunks(self.config.vocab_size).zip(&ids[begin + first + 1..]) {
                    result.negative_log_likelihood += surprise(row, *target);
                    result.tokens += 1;
                }
            }
            session.end(sequence)?;
            judged = end;
            progress(result.tokens);
            begin += stride;
        }
        Ok(result)
    }
}

/// `−ln softmax(logits)[target]`.
fn surprise(logits: &[f32], target: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    sum.ln() - f64::from(logits[target as usize] - max)
}
