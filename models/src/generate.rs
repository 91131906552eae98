//! One sequence: an iterator of tokens.

use host::AnyTensor;
use host::kv::SequenceId;

use crate::error::Result;
use crate::layers;
use crate::model::Model;
use crate::sampling::{Sampler, SamplingOptions};
use crate::session::Session;

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// Number of the sequence: sequences with the same seed and different numbers draw independently.
    pub stream: u64,
    /// Tokens that end the answer; `None` takes those of the model.
    pub eos: Option<Vec<u32>>,
}

impl Default for GenerateOptions {
    /// 128 tokens, greedy.
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            sampling: SamplingOptions::greedy(),
            stream: 0,
            eos: None,
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, by this token.
    Eos(u32),
    /// It has as many tokens as it may have.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// Decides which tokens follow and when it is enough.
#[derive(Debug, Clone)]
pub(crate) struct Chooser {
    sampler: Sampler,
    options: GenerateOptions,
    eos: Vec<u32>,
    step: usize,
}

impl Chooser {
    pub(crate) fn new(model: &Model, options: GenerateOptions) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(options.sampling)?,
            eos: options.eos.clone().unwrap_or_else(|| model.eos().to_vec()),
            options,
            step: 0,
        })
    }

    /// Counts a chosen token; the reason if it is the last one.
    pub(crate) fn accept(&mut self, token: u32) -> Option<FinishReason> {
        self.step += 1;
        if self.eos.contains(&token) {
            Some(FinishReason::Eos(token))
        } else {
            (self.step >= self.options.max_new_tokens).then_some(FinishReason::Length)
        }
    }
}

/// Chooses the next token of each row of logits, f32 `[choosers.len(), vocab]`.
pub(crate) fn choose(logits: &AnyTensor, choosers: &[&Chooser]) -> Result<Vec<u32>> {
    if choosers.iter().all(|c| c.options.sampling.is_greedy()) {
        return layers::argmax(logits);
    }
    let vocab = logits.extent(1) as usize;
    let bytes = logits.to_bytes()?;
    let rows: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    choosers
        .iter()
        .zip(rows.chunks(vocab))
        .map(|(c, row)| Ok(c.sampler.sample(row, c.options.stream, c.step as u64)?))
        .collect()
}

/// The tokens that a model adds to a prompt, one at a time. Made by [`Model::generate`].
///
/// The first call computes the prompt, every further one a token. The token that ends the answer is the last item.
pub struct Generator<'m> {
    session: Session<'m>,
    sequence: SequenceId,
    prompt: Vec<u32>,
    last: Option<u32>,
    chooser: Chooser,
    finished: Option<FinishReason>,
    failed: bool,
}

impl Model {
    /// Continues `prompt`.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`](crate::Error::EmptyPrompt), [`Error::UnknownToken`](crate::Error::UnknownToken),
    /// [`Error::TooLong`](crate::Error::TooLong), [`Error::Sampling`](crate::Error::Sampling), and
    /// [`Error::CacheTooLarge`](crate::Error::CacheTooLarge), which says how many tokens would fit.
    pub fn generate(&self, prompt: &[u32], options: GenerateOptions) -> Result<Generator<'_>> {
        self.check_prompt(prompt, options.max_new_tokens)?;
        let mut session = Session::new(self, prompt.len() + options.max_new_tokens, 0, 1)?;
        Ok(Generator {
            sequence: session.start(),
            session,
            prompt: prompt.to_vec(),
            last: None,
            finished: (options.max_new_tokens == 0).then_some(FinishReason::Length),
            chooser: Chooser::new(self, options)?,
            failed: false,
        })
    }
}

impl Generator<'_> {
    /// Why it ended, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    fn advance(&mut self) -> Result<u32> {
        let logits = match self.last {
            None => self.session.prefill(self.sequence, &self.prompt)?,
            Some(token) => self.session.decode(&[self.sequence], &[token])?,
        };
        let token = choose(&logits, &[&self.chooser])?[0];
        self.last = Some(token);
        self.finished = self.chooser.accept(token);
        Ok(token)
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        if self.failed || self.finished.is_some() {
            return None;
        }
        let token = self.advance();
        self.failed = token.is_err();
        Some(token)
    }
}
