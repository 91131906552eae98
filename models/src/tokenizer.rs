//! Text to tokens and back, by the `tokenizers` crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::error::Result;

/// Largest `tokenizer.json` that is read; those of 256 k tokens have about 35 MB.
const BYTES: u64 = 512 << 20;

/// Tokens that may pend before text that still looks cut is looked at more closely. No character takes more than four.
const PENDING: usize = 8;

/// What is wrong with a tokenizer, a text or a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.json` cannot be understood.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What the tokenizer library says.
        reason: String,
    },
    /// The tokenizer has tokens that the model's embedding has no row for.
    #[error(
        "tokenizer.json has token {largest}, and the model's vocab_size is {vocab_size}: the two do not belong together"
    )]
    Vocabulary {
        /// The largest token id.
        largest: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A prompt is not UTF-8.
    #[error("the text is not UTF-8: byte {byte:#04x} at position {position}")]
    NotUtf8 {
        /// Where the first wrong byte is.
        position: usize,
        /// The byte.
        byte: u8,
    },
    /// A text could not be cut into tokens.
    #[error("the text cannot be cut into tokens: {0}")]
    Encode(String),
    /// Tokens could not be joined into text.
    #[error("the tokens cannot be joined into text: {0}")]
    Decode(String),
}

/// A tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.inner.get_vocab_size(true))
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read, or not understood.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = crate::checkpoint::read_file(path, BYTES)?;
        Ok(Self::parse(&bytes, &path.display().to_string())?)
    }

    pub(crate) fn from_files(files: &crate::checkpoint::Files) -> Result<Self> {
        const NAME: &str = "tokenizer.json";
        Ok(Self::parse(
            &files.read(NAME, BYTES)?,
            &files.path(NAME).display().to_string(),
        )?)
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::parse(json, "tokenizer.json")
    }

    fn parse(json: &[u8], file: &str) -> Result<Self, TokenizerError> {
        let bad = |reason: String| TokenizerError::Malformed {
            file: file.to_owned(),
            reason,
        };
        // The library panics on some files that are not UTF-8, no JSON, or speak of a token that they do not define.
        let text = std::str::from_utf8(json).map_err(|e| bad(format!("not UTF-8: {e}")))?;
        let outline: Outline = serde_json::from_str(text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
        check_template(&outline.post_processor).map_err(bad)?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(bad)?;
        // Some files carry the truncation and padding of a training run, which would quietly cut a prompt.
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Cuts `text` into tokens. `add_special` adds what the tokenizer puts around a text, such as a begin token; a prompt from a
    /// chat template has them already.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special)).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Self::encode`] for bytes that may not be text.
    ///
    /// # Errors
    /// [`TokenizerError::NotUtf8`] with the place of the first wrong byte.
    pub fn encode_bytes(&self, bytes: &[u8], add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.encode(text, add_special),
            Err(e) => {
                let position = e.valid_up_to();
                Err(TokenizerError::NotUtf8 {
                    position,
                    byte: bytes.get(position).copied().unwrap_or(0),
                })
            }
        }
    }

    /// Joins tokens into text; bytes that form no character become U+FFFD, ids without a token nothing.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(TokenizerError::Decode)
    }

    /// A decoder for tokens that come one by one.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer {
            tokenizer: self.clone(),
            skip_special,
            ids: Vec::new(),
            read: 0,
            before: String::new(),
        }
    }

    /// The id of a token given as text, such as `</s>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token: one that means something beside its text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|t| t.special)
    }

    /// Number of tokens, special ones counted in.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Checks that every token has a row in an embedding of `vocab_size`. Fewer tokens than rows are common: rows are padded.
    ///
    /// # Errors
    /// [`TokenizerError::Vocabulary`].
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        match self.inner.get_vocab(true).into_values().max() {
            Some(largest) if largest as usize >= vocab_size => Err(TokenizerError::Vocabulary { largest, vocab_size }),
            _ => Ok(()),
        }
    }
}

/// The part of a `tokenizer.json` that is looked at before the library reads it.
#[derive(serde::Deserialize)]
struct Outline {
    #[serde(default)]
    post_processor: Value,
}

/// Every special token that a template puts around a text must be defined beside it.
fn check_template(processor: &Value) -> Result<(), String> {
    if let Some(parts) = processor.get("processors").and_then(Value::as_array) {
        return parts.iter().try_for_each(check_template);
    }
    let defined = processor.get("special_tokens").and_then(Value::as_object);
    let pieces = ["single", "pair"]
        .into_iter()
        .filter_map(|key| processor.get(key)?.as_array())
        .flatten();
    for piece in pieces {
        let Some(id) = piece
            .get("SpecialToken")
            .and_then(|t| t.get("id"))
            .and_then(Value::as_str)
        else {
            continue;
        };
        if !defined.is_some_and(|d| d.contains_key(id)) {
            return Err(format!(
                "post_processor uses {id:?}, which its special_tokens do not define"
            ));
        }
    }
    Ok(())
}

/// Calls the library, and makes a panic in it an error: a strange file must not end a program that serves others.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Unwind safe: nothing that the call could leave half-changed is used after an error but caches behind locks.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(format!("the tokenizer library failed: {text}"))
        }
    }
}

/// Joins tokens into text as they come, never giving out half a character.
///
/// What a token adds is the difference between the text of the last few tokens with and without it: decoders treat the
/// beginning of a text differently (Llama 2 drops a space there), so a token cannot be decoded alone.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The tokens of the last text given out, then those not given out yet.
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    read: usize,
    /// Their text.
    before: String,
}

impl Detokenizer {
    /// Takes the next token and returns the text that is complete with it: often one word, sometimes nothing.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let after = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if !after.ends_with('\u{FFFD}') {
            return if after.len() > self.before.len() {
                self.give(&after, self.ids.len())
            } else {
                self.skip()
            };
        }
        if self.ids.len() - self.read < PENDING {
            return Ok(String::new());
        }
        // Bytes that are no text at all. Give out what stands before the last three tokens, cut where no character is.
        for cut in (self.read + 1..=self.ids.len() - 3).rev() {
            let (head, tail) = self.ids.split_at(cut);
            let (head, tail) = (
                self.tokenizer.decode(head, self.skip_special)?,
                self.tokenizer.decode(tail, self.skip_special)?,
            );
            if after.strip_prefix(&head) == Some(&tail) {
                return self.give(&head, cut);
            }
        }
        self.give(&after, self.ids.len())
    }

    /// The text that is left when no more tokens come; an unfinished character becomes U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let after = self.tokenizer.decode(&self.ids, self.skip_special)?;
        self.give(&after, self.ids.len())
    }

    /// Gives out what `after`, the text of the first `cut` tokens, has beyond the text given out already.
    fn give(&mut self, after: &str, cut: usize) -> Result<String, TokenizerError> {
        // The two agree at the beginning unless a decoder looks ahead; then what they share is what has been given out.
        let shared: usize = after
            .chars()
            .zip(self.before.chars())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        let text = after[shared..].to_owned();
        self.ids.drain(..self.read);
        self.read = cut - self.read;
        self.before = self.tokenizer.decode(&self.ids[..self.read], self.skip_special)?;
        Ok(text)
    }

    /// A token without text, such as a special one that is skipped. It is forgotten once others have gathered.
    fn skip(&mut self) -> Result<String, TokenizerError> {
        if self.ids.len() - self.read >= PENDING {
            self.ids.truncate(self.read);
        }
        Ok(String::new())
    }
}
