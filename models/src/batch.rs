//! Many sequences on one model: admitted as others end, over one pool of pages, with equal beginnings computed once.
//!
//! Where the device chooses all tokens, a step is begun before the tokens of the one before are read, so that the device never waits
//! for the CPU. A sequence whose token turns out to be its last one has one token more computed, which nobody sees.
//!
//! A request is admitted when the pool has pages for all that it may become, so that nothing that runs is ever thrown out.
//! Prompts are computed one at a time and every row of a step has the bits that it has alone, so that an answer depends on its
//! own request only.

use std::collections::{BTreeMap, VecDeque};

use host::ReadBack;
use host::kv::SequenceId;

use crate::error::{Error, Result};
use crate::generate::{Chooser, FinishReason, GenerateOptions, choice_for, chosen, token_ids};
use crate::model::Model;
use crate::recorded::{Choice, Outcome};
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
    sequence: SequenceId,
    last: u32,
    chooser: Chooser,
    pages: usize,
    /// Tokens whose steps were begun.
    begun: usize,
}

/// A step that was begun and whose tokens have not been read.
struct Flight {
    rows: Vec<RequestId>,
    place: usize,
}

/// Requests that run together. Made by [`Model::batch`].
pub struct Batch<'m> {
    model: &'m Model,
    session: Session<'m>,
    options: BatchOptions,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<RequestId, Running>,
    /// Whose token each row of the next step begins with.
    rows: Vec<RequestId>,
    /// Whether the device has those tokens.
    on_device: bool,
    flight: Option<Flight>,
    /// Where the tokens of steps arrive, in turn.
    places: [ReadBack; 2],
    turn: usize,
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
        let place = || ReadBack::new(self.device(), 8 * options.max_sequences);
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
            running: BTreeMap::new(),
            rows: Vec::new(),
            on_device: false,
            flight: None,
            places: [place()?, place()?],
            turn: 0,
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
        if self.running.contains_key(&request) {
            self.end(&[request])?;
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
        let taken: usize = self.running.values().map(|r| r.pages).sum();
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
        let choice = choice_for([&next.chooser]);
        let chosen_now = self.session.choose_first(&logits, choice, self.rows.len())?;
        let outcome = Outcome {
            logits,
            chosen: chosen_now,
        };
        let mut running = Running {
            sequence,
            last: chosen(&outcome, &[&next.chooser])?[0],
            chooser: next.chooser,
            pages: next.pages,
            begun: 1,
        };
        let event = running.accept(next.request);
        if event.finished.is_some() {
            self.session.end(sequence)?;
        } else {
            // A token that the CPU chose is not where the next step looks for it.
            self.on_device &= choice == Choice::Greedy;
            self.rows.push(next.request);
            self.running.insert(next.request, running);
        }
        Ok(event)
    }

    fn decode(&mut self) -> Result<Vec<Event>> {
        if self.running.is_empty() {
            self.flight = None;
            return Ok(Vec::new());
        }
        let choice = choice_for(self.running.values().map(|r| &r.chooser));
        let flight = match self.flight.take() {
            Some(flight) => flight,
            None if choice == Choice::Host => return self.decode_by_cpu(),
            None => match self.begin()? {
                Some(flight) => flight,
                None => return Ok(Vec::new()),
            },
        };
        // A row whose first token the CPU chose has to wait until the CPU has those of all others.
        if choice == Choice::Greedy && self.on_device {
            self.flight = self.begin()?;
        }
        let tokens = token_ids(self.places[flight.place].finish()?);
        self.accept(&flight.rows, &tokens)
    }

    /// Begins a step of all sequences that may have another token, unless there are none.
    fn begin(&mut self) -> Result<Option<Flight>> {
        let all_begun = |r: &Running| r.begun >= r.chooser.most();
        let full: Vec<RequestId> = self
            .rows
            .iter()
            .copied()
            .filter(|r| all_begun(&self.running[r]))
            .collect();
        self.leave(&full)?;
        if self.rows.is_empty() {
            return Ok(None);
        }
        let of = |request: &RequestId| &self.running[request];
        let sequences: Vec<SequenceId> = self.rows.iter().map(|r| of(r).sequence).collect();
        let last: Vec<u32> = self.rows.iter().map(|r| of(r).last).collect();
        let tokens = (!self.on_device).then_some(&last[..]);
        let outcome = self.session.decode(&sequences, tokens, Choice::Greedy, 0)?;
        let Some(tokens) = outcome.chosen else {
            return Err(host::Error::unsupported("a device that does not choose").into());
        };
        self.on_device = true;
        let place = self.turn % 2;
        self.turn += 1;
        self.places[place].start(&tokens)?;
        for request in &self.rows {
            if let Some(running) = self.running.get_mut(request) {
                running.begun += 1;
            }
        }
        Ok(Some(Flight {
            rows: self.rows.clone(),
            place,
        }))
    }

    /// A step whose tokens the CPU chooses.
    fn decode_by_cpu(&mut self) -> Result<Vec<Event>> {
        self.on_device = false;
        let running = self.running.values();
        let sequences: Vec<SequenceId> = running.clone().map(|r| r.sequence).collect();
        let last: Vec<u32> = running.clone().map(|r| r.last).collect();
        let choosers: Vec<&Chooser> = running.map(|r| &r.chooser).collect();
        let outcome = self.session.decode(&sequences, Some(&last), Choice::Host, 0)?;
        let tokens = chosen(&outcome, &choosers)?;
        self.rows = self.running.keys().copied().collect();
        self.running.values_mut().for_each(|r| r.begun += 1);
        self.accept(&self.rows.clone(), &tokens)
    }

    /// Takes the tokens of a step; those of sequences that have ended meanwhile are dropped.
    fn accept(&mut self, rows: &[RequestId], tokens: &[u32]) -> Result<Vec<Event>> {
        let mut events = Vec::with_capacity(rows.len());
        for (request, token) in rows.iter().zip(tokens) {
            if let Some(running) = self.running.get_mut(request) {
                self.session.name(running.sequence, running.last)?;
                running.last = *token;
                events.push(running.accept(*request));
            }
        }
        events.sort_by_key(|event| event.request);
        let ended = events.iter().filter(|event| event.finished.is_some());
        let ended: Vec<RequestId> = ended.map(|event| event.request).collect();
        self.end(&ended)?;
        Ok(events)
    }

    /// Ends sequences that run. Steps that were begun may still write to their pages: whoever has those next comes behind.
    fn end(&mut self, ended: &[RequestId]) -> Result<()> {
        self.leave(ended)?;
        for request in ended {
            if let Some(running) = self.running.remove(request) {
                self.session.end(running.sequence)?;
            }
        }
        Ok(())
    }

    /// Takes sequences out of the rows of the next step; the last rows take their places.
    fn leave(&mut self, leaving: &[RequestId]) -> Result<()> {
        let mut at = self.rows.len();
        while at > 0 {
            at -= 1;
            if leaving.contains(&self.rows[at]) {
                self.rows.swap_remove(at);
                if self.on_device && at < self.rows.len() {
                    self.session.move_token(self.rows.len(), at)?;
                }
            }
        }
        Ok(())
    }
}

impl Running {
    fn accept(&mut self, request: RequestId) -> Event {
        Event {
            request,
            token: self.last,
            finished: self.chooser.accept(self.last),
        }
    }
}
