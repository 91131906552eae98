//! One sequence: an iterator of tokens.

use host::kv::SequenceId;
use host::{AnyTensor, ReadBack};

use crate::error::Result;
use crate::model::Model;
use crate::recorded::{Choice, Outcome};
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

    /// Most tokens of the answer.
    pub(crate) fn most(&self) -> usize {
        self.options.max_new_tokens
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

/// Who is to choose for these sequences together: the device where all take the largest.
pub(crate) fn choice_for<'c>(choosers: impl IntoIterator<Item = &'c Chooser>) -> Choice {
    if choosers.into_iter().all(|c| c.options.sampling.is_greedy()) {
        Choice::Greedy
    } else {
        Choice::Host
    }
}

/// The next token of each row of an outcome whose choice was [`choice_for`] these.
pub(crate) fn chosen(outcome: &Outcome, choosers: &[&Chooser]) -> Result<Vec<u32>> {
    match &outcome.chosen {
        Some(tokens) => Ok(token_ids(&tokens.to_bytes()?)),
        None => sampled(&outcome.logits, choosers),
    }
}

/// Tokens as the device writes them: i64.
pub(crate) fn token_ids(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks::<8>().0.iter();
    words.map(|b| i64::from_le_bytes(*b) as u32).collect()
}

/// Draws on the CPU from each row of logits, f32 `[choosers.len(), vocab]`.
fn sampled(logits: &AnyTensor, choosers: &[&Chooser]) -> Result<Vec<u32>> {
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
/// The first call computes the prompt, every further one a token. On a GPU the device chooses, and the step after is under way
/// before a token is returned. The token that ends the answer is the last item.
pub struct Generator<'m> {
    session: Session<'m>,
    sequence: SequenceId,
    prompt: Vec<u32>,
    last: Option<u32>,
    chooser: Chooser,
    /// Steps that the device runs ahead, where it chooses itself.
    ahead: Option<Ahead>,
    finished: Option<FinishReason>,
    failed: bool,
}

/// Tokens that the device has chosen or is about to.
struct Ahead {
    choice: Choice,
    /// Token `i` arrives in place `i % 2`.
    places: [ReadBack; 2],
    /// Tokens whose steps were started.
    started: usize,
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
        // The kernel draws for rows by their number: row 0 is sequence 0. The emulator is faster with the CPU's choice, and a
        // step ahead would only delay the text.
        let by_device = !self.device().is_emulator() && (options.sampling.is_greedy() || options.stream == 0);
        let chooser = Chooser::new(self, options)?;
        let options = &chooser.options;
        let ahead = by_device.then(|| {
            Ok::<_, host::Error>(Ahead {
                choice: Choice::of(&options.sampling),
                places: [ReadBack::new(self.device(), 8)?, ReadBack::new(self.device(), 8)?],
                started: 0,
            })
        });
        Ok(Generator {
            sequence: session.start(),
            session,
            prompt: prompt.to_vec(),
            last: None,
            finished: (options.max_new_tokens == 0).then_some(FinishReason::Length),
            ahead: ahead.transpose()?,
            chooser,
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
        let token = match &mut self.ahead {
            None => self.step()?,
            Some(_) => self.step_ahead()?,
        };
        self.last = Some(token);
        self.finished = self.chooser.accept(token);
        Ok(token)
    }

    fn step(&mut self) -> Result<u32> {
        let choice = choice_for([&self.chooser]);
        let outcome = match self.last {
            None => {
                let logits = self.session.prefill(self.sequence, &self.prompt)?;
                let chosen = self.session.choose_first(&logits, choice, 0)?;
                Outcome { logits, chosen }
            }
            Some(token) => self.session.decode(&[self.sequence], Some(&[token]), choice, 0)?,
        };
        Ok(chosen(&outcome, &[&self.chooser])?[0])
    }

    /// As [`Self::step`], with one step more under way when it returns. The first token does not wait for that.
    fn step_ahead(&mut self) -> Result<u32> {
        let Some(ahead) = &mut self.ahead else {
            return self.step();
        };
        let taken = self.chooser.step;
        let most = self.chooser.options.max_new_tokens;
        let wanted = if taken == 0 { 1 } else { (taken + 2).min(most) };
        while ahead.started < wanted {
            let chosen = if ahead.started == 0 {
                let logits = self.session.prefill(self.sequence, &self.prompt)?;
                self.session.choose_first(&logits, ahead.choice, 0)?
            } else {
                self.session
                    .decode(&[self.sequence], None, ahead.choice, ahead.started)?
                    .chosen
            };
            let Some(chosen) = chosen else {
                return Err(host::Error::unsupported("a device that does not choose").into());
            };
            ahead.places[ahead.started % 2].start(&chosen)?;
            ahead.started += 1;
        }
        Ok(token_ids(ahead.places[taken % 2].finish()?)[0])
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
