//! From tokens to text as it may be shown: whole characters, nothing of a stop string.

use crate::error::Result;
use crate::stop::{StopMatcher, Stopped};
use crate::tokenizer::{Detokenizer, Tokenizer};

/// Text of one sequence, token by token, up to a stop string.
#[derive(Debug, Clone)]
pub struct TextStream {
    detokenizer: Detokenizer,
    stops: StopMatcher,
}

impl TextStream {
    /// A stream that ends at the first of `stops`. Special tokens have no text in it.
    pub fn new(tokenizer: &Tokenizer, stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            detokenizer: tokenizer.detokenizer(true),
            stops: StopMatcher::new(stops),
        }
    }

    /// Takes a token; the text that is certain with it, and whether a stop string is complete.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, token: u32) -> Result<Stopped> {
        Ok(self.stops.push(&self.detokenizer.push(token)?))
    }

    /// What was held back, when no more tokens come.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let last = self.stops.push(&self.detokenizer.finish()?);
        Ok(last.text + &self.stops.finish())
    }
}
