//! Many sequences on one model: admitted as others end, over one pool of pages, with equal beginnings computed once.
//!
//! A request is admitted when the pool has pages for all that it may become, so that nothing that runs is ever thrown out.
//! Prompts are computed one at a time and every row of a step has the bits that it has alone, so that an answer depends on its
//! own request only.

use std::collections::VecDeque;

use host::kv::SequenceId;

use crate::error::{Error, Result};
use crate::generate::{Chooser, FinishReason, GenerateOptions, choice_for, chosen};
use crate::model::Model;
use crate::recorded::Outcome;
use crate::session::{PAGE, Session};

/// How a batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Most sequences that run at a time.
    pub max_sequences: usize,
    /// Tokens that the cache has room for, over all sequences.
    pub cache_tokens: usize,
    /// Whether equal beginnings of prompts are computed once.
    pub share_prefixes: bool,
}

/// A request's number: 0 for the first one submitted, then counting up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub usize);

/// A new token of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The request.
    pub request: RequestId,
    /// Its next token.
    pub token: u32,
    /// Why this is its last one, if it is.
    pub finished: Option<FinishReason>,
}

struct Waiting {
    request: RequestId,
    prompt: Vec<u32>,
    chooser: Chooser,
    pages: usize,
}

struct Running {
    request: RequestId,
    sequence: SequenceId,
    last: u32,
    chooser: Chooser,
    pages: usize,
}

/// Requests that run together. Made by [`Model::batch`].
pub struct Batch<'m> {
    model: &'m Model,
    session: Session<'m>,
    options: BatchOptions,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    submitted: usize,
    shared: u64,
}

impl Model {
    /// A batch without requests.
    ///
    /// # Errors
    /// [`Error::CacheTooLarge`] with the number of tokens that would fit; a range that is empty.
    pub fn batch(&self, options: BatchOptions) -> Result<Batch<'_>> {
        for (argument, value) in [
            ("max_sequences", options.max_sequences),
            ("cache_tokens", options.cache_tokens),
        ] {
            if value == 0 {
                return Err(host::Error::range(argument, value, "at least 1").into());
            }
        }
        Ok(Batch {
            model: self,
            session: Session::new(
                self,
                options.cache_tokens,
                self.context().min(options.cache_tokens),
                options.max_sequences,
            )?
            .narrow(),
            options,
            waiting: VecDeque::new(),
            running: Vec::new(),
            submitted: 0,
            shared: 0,
        })
    }
}

impl Batch<'_> {
    /// Queues a prompt.
    ///
    /// # Errors
    /// Those of [`Model::generate`]; [`Error::TooLong`] also when the cache can never hold it. Nothing is queued then.
    pub fn submit(&mut self, prompt: &[u32], options: GenerateOptions) -> Result<RequestId> {
        self.model.check_prompt(prompt, options.max_new_tokens)?;
        let pages = (prompt.len() + options.max_new_tokens).div_ceil(PAGE);
        if pages > self.session.pages() || prompt.len() + options.max_new_tokens > self.options.cache_tokens {
            return Err(Error::TooLong {
                prompt: prompt.len(),
                answer: options.max_new_tokens,
                most: self.options.cache_tokens,
                limit: "cache_tokens of the batch",
            });
        }
        if options.max_new_tokens == 0 {
            return Err(host::Error::range("max_new_tokens", 0, "at least 1 in a batch").into());
        }
        let request = RequestId(self.submitted);
        let chooser = Chooser::new(self.model, options)?;
        self.submitted += 1;
        self.waiting.push_back(Waiting {
            request,
            prompt: prompt.to_vec(),
            chooser,
            pages,
        });
        Ok(request)
    }

    /// Ends a request early; says whether it was still waiting or running.
    ///
    /// # Errors
    /// The pool's, which none of its sequences meets.
    pub fn cancel(&mut self, request: RequestId) -> Result<bool> {
        let waiting = self.waiting.len();
        self.waiting.retain(|w| w.request != request);
        if let Some(at) = self.running.iter().position(|r| r.request == request) {
            let ended = self.running.remove(at);
            self.session.end(ended.sequence)?;
            return Ok(true);
        }
        Ok(self.waiting.len() < waiting)
    }

    /// Whether nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Requests that run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Tokens of prompts that were not computed because an earlier prompt began with them.
    pub fn shared_tokens(&self) -> u64 {
        self.shared
    }

    /// One step: computes the prompts that fit, then one token of everything that was running before. Returns the new tokens;
    /// an idle batch has none.
    ///
    /// # Errors
    /// Those of the device.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = self.decode()?;
        while let Some(next) = self.admit() {
            events.push(self.prefill(next)?);
        }
        Ok(events)
    }

    /// Runs until idle; the tokens of every request submitted so far, in order.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&mut self) -> Result<Vec<Vec<u32>>> {
        let mut answers = vec![Vec::new(); self.submitted];
        while !self.is_idle() {
            for event in self.step()? {
                answers[event.request.0].push(event.token);
            }
        }
        Ok(answers)
    }

    /// The next request, if it may run now.
    fn admit(&mut self) -> Option<Waiting> {
        let taken: usize = self.running.iter().map(|r| r.pages).sum();
        let fits = self.waiting.front()?.pages + taken <= self.session.pages();
        (fits && self.running.len() < self.options.max_sequences).then(|| self.waiting.pop_front())?
    }

    fn prefill(&mut self, next: Waiting) -> Result<Event> {
        let (sequence, known) = if self.options.share_prefixes {
            self.session.start_shared(&next.prompt)
        } else {
            (self.session.start(), 0)
        };
        self.shared += known as u64;
        self.session.make_room(next.pages);
        let logits = self.session.prefill(sequence, &next.prompt[known..])?;
        let chosen_now = self.session.choose_first(&logits, choice_for([&next.chooser]))?;
        let outcome = Outcome {
            logits,
            chosen: chosen_now,
        };
        let mut running = Running {
            request: next.request,
            sequence,
            last: chosen(&outcome, &[&next.chooser])?[0],
            chooser: next.chooser,
            pages: next.pages,
        };
        let event = running.accept();
        if event.finished.is_some() {
            self.session.end(sequence)?;
        } else {
            self.running.push(running);
        }
        Ok(event)
    }

    fn decode(&mut self) -> Result<Vec<Event>> {
        if self.running.is_empty() {
            return Ok(Vec::new());
        }
        let sequences: Vec<SequenceId> = self.running.iter().map(|r| r.sequence).collect();
        let last: Vec<u32> = self.running.iter().map(|r| r.last).collect();
        let choosers: Vec<&Chooser> = self.running.iter().map(|r| &r.chooser).collect();
        let choice = choice_for(choosers.iter().copied());
        let outcome = self.session.decode(&sequences, Some(&last), choice, 0)?;
        let tokens = chosen(&outcome, &choosers)?;
        let mut events = Vec::with_capacity(tokens.len());
        for (running, token) in self.running.iter_mut().zip(tokens) {
            running.last = token;
            events.push(running.accept());
        }
        for (event, sequence) in events.iter().zip(sequences) {
            if event.finished.is_some() {
                self.session.end(sequence)?;
            }
        }
        let mut finished = events.iter().map(|e| e.finished.is_some());
        self.running.retain(|_| !finished.next().unwrap_or(false));
        Ok(events)
    }
}

impl Running {
    fn accept(&mut self) -> Event {
        Event {
            request: self.request,
            token: self.last,
            finished: self.chooser.accept(self.last),
        }
    }
}
