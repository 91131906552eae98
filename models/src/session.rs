//! Running sequences: the paged cache of keys and values, and the steps over it.
//!
//! A step takes `seq` new tokens of each of `batch` sequences: all of a prompt for one sequence, or one token for each of many.
//! Besides the tokens, all that a step needs from the CPU is one tensor of i32, copied once:
//!
//! ```text
//! positions [batch·seq] · lengths before the step [batch] · lengths after it [batch] · block table [batch, columns]
//! ```

use std::collections::HashMap;

use host::kv::{NewTokens, PagePool, PoolConfig, SequenceId};
use host::ops::copy;
use host::{AnyTensor, DType};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::recorded::{Choice, Lane, Outcome};
use crate::step::{Kind, RopeInput, RopeTables, Step};
use crate::{gpt2, llama};

/// Tokens of a page: prefixes are shared in these units.
pub(crate) const PAGE: usize = 16;
/// Tokens of a prompt that are computed at a time: bounds the memory of activations.
const CHUNK: usize = 8192;
/// Rows of logits computed at a time.
const LOGIT_ROWS: u64 = 512;
/// Bytes that are copied to the device at a time.
const COPIED: usize = 64 << 10;
/// Step between the numbers of sequences that decode steps are recorded for, and below which every number has its own.
const LANE_STEP: usize = 8;

/// What is copied to the device for a step, and what of it the CPU looks at.
struct Packed {
    values: Vec<i32>,
    batch: usize,
    seq: usize,
}

impl Packed {
    fn positions(&self) -> &[i32] {
        &self.values[..self.batch * self.seq]
    }

    fn lengths(&self) -> &[i32] {
        &self.values[self.batch * self.seq..][..self.batch]
    }

    fn bytes(&self) -> Vec<u8> {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// Sequences that run on one model with one cache.
pub(crate) struct Session<'m> {
    model: &'m Model,
    pool: PagePool,
    /// Keys and values of each layer, `[pages, PAGE, kv_heads, head_dim]`.
    layers: Vec<[AnyTensor; 2]>,
    /// Columns of block tables: pages of the longest sequence so far, not many more. Every step copies a table.
    columns: usize,
    /// The tokens that the last step chose, i64: the next one begins with them.
    tokens: AnyTensor,
    /// Decode steps by their number of rows.
    lanes: HashMap<usize, Lane>,
}

impl<'m> Session<'m> {
    /// A cache for `tokens` tokens in all, in sequences of at most `longest` (0: the same), of `sequences` sequences.
    pub(crate) fn new(model: &'m Model, tokens: usize, longest: usize, sequences: usize) -> Result<Self> {
        let c = &model.config;
        let longest = if longest == 0 { tokens } else { longest };
        // Each sequence may leave its last page unfilled; page 0 belongs to nobody.
        let pages = tokens.div_ceil(PAGE) + sequences + 1;
        let bytes = c.kv_bytes_per_token(model.dtype.size() as usize);
        let free = model.device.memory()?.free;
        let needed = (pages * PAGE) as u64 * bytes;
        if needed > free {
            return Err(Error::CacheTooLarge {
                tokens,
                needed: needed.div_ceil(1 << 20),
                free: free >> 20,
                most: free / bytes,
            });
        }
        let columns = longest.div_ceil(PAGE);
        let config = PoolConfig::new(PAGE, pages)
            .max_pages_per_sequence(columns)
            .prefix_cache(model.name(), model.dtype.name());
        let shape = [pages as u64, PAGE as u64, c.num_kv_heads as u64, c.head_dim as u64];
        let layers = (0..c.num_layers)
            .map(|_| {
                let empty = || AnyTensor::empty(&model.device, model.dtype, &shape);
                Ok([empty()?, empty()?])
            })
            .collect::<Result<_>>()?;
        let rows = sequences.next_multiple_of(LANE_STEP) as u64;
        Ok(Self {
            model,
            pool: PagePool::new(config)?,
            layers,
            columns,
            tokens: AnyTensor::zeros(&model.device, DType::I64, &[rows])?,
            lanes: HashMap::new(),
        })
    }

    /// An empty sequence.
    pub(crate) fn start(&mut self) -> SequenceId {
        self.pool.create_sequence()
    }

    /// A sequence that begins with what the cache already has of `prompt`, and how much that is: always less than all.
    pub(crate) fn start_shared(&mut self, prompt: &[u32]) -> (SequenceId, usize) {
        self.pool.create_sequence_with_prefix(prompt)
    }

    /// Ends a sequence.
    pub(crate) fn end(&mut self, sequence: SequenceId) -> Result<()> {
        Ok(self.pool.free(sequence)?)
    }

    /// Lets sequences have `pages` pages; a batch begins with few.
    pub(crate) fn make_room(&mut self, pages: usize) {
        if pages > self.columns {
            self.columns = pages.next_power_of_two();
            // They were recorded for narrower tables.
            self.lanes.clear();
        }
    }

    /// Begins with tables for few pages: see [`make_room`](Self::make_room).
    pub(crate) fn narrow(mut self) -> Self {
        self.columns = 1;
        self
    }

    /// Pages that no sequence holds.
    pub(crate) fn pages(&self) -> usize {
        self.pool.pages() - 1
    }

    /// Computes the rest of a prompt; the logits of its last token, f32 `[1, vocab]`.
    pub(crate) fn prefill(&mut self, sequence: SequenceId, rest: &[u32]) -> Result<AnyTensor> {
        let mut last = None;
        for chunk in rest.chunks(CHUNK) {
            last = Some(self.prompt(sequence, chunk)?);
        }
        let hidden = last.ok_or(Error::EmptyPrompt)?;
        let rows = hidden.extent(0);
        self.head(&hidden.slice(0, rows - 1..rows)?)
    }

    /// Computes tokens of a sequence; the logits of all of them, f32 `[ids.len(), vocab]`.
    pub(crate) fn all_logits(&mut self, sequence: SequenceId, ids: &[u32]) -> Result<AnyTensor> {
        self.model.check_prompt(ids, 0)?;
        let vocab = self.model.config.vocab_size as u64;
        let all = AnyTensor::empty(&self.model.device, DType::F32, &[ids.len() as u64, vocab])?;
        let mut at = 0;
        for chunk in ids.chunks(CHUNK) {
            let hidden = self.prompt(sequence, chunk)?;
            for begin in (0..hidden.extent(0)).step_by(LOGIT_ROWS as usize) {
                let end = (begin + LOGIT_ROWS).min(hidden.extent(0));
                let rows = hidden.slice(0, begin..end)?;
                self.head_into(&rows, &all.slice(0, at..at + end - begin)?)?;
                at += end - begin;
            }
        }
        Ok(all)
    }

    /// Computes one token of each sequence: the given ones, or those that the last step of as many sequences chose. `draw` is the
    /// number of the token that is drawn, if one is.
    pub(crate) fn decode(
        &mut self,
        sequences: &[SequenceId],
        tokens: Option<&[u32]>,
        choice: Choice,
        draw: usize,
    ) -> Result<Outcome> {
        let rows = self.lane_rows(sequences.len());
        let packed = self.append(sequences, None, 1, rows)?;
        let rope = self.rope(&packed)?;
        let mut lane = self.lane(rows)?;
        let outcome = self.decode_in(&mut lane, &packed, tokens, choice, draw, rope);
        self.lanes.insert(rows, lane);
        let Outcome { logits, chosen } = outcome?;
        let n = sequences.len() as u64;
        Ok(Outcome {
            logits: logits.slice(0, 0..n)?,
            chosen: chosen.map(|c| c.slice(0, 0..n)).transpose()?,
        })
    }

    fn decode_in(
        &self,
        lane: &mut Lane,
        packed: &Packed,
        tokens: Option<&[u32]>,
        choice: Choice,
        draw: usize,
        rope: Option<RopeInput>,
    ) -> Result<Outcome> {
        // Small copies do not wait for the steps that are under way.
        let mut at = 0;
        for part in packed.bytes().chunks(COPIED) {
            let end = at + part.len() as u64 / 4;
            lane.packed.slice(0, at..end)?.write_bytes(part)?;
            at = end;
        }
        if let Some(tokens) = tokens {
            let padded = tokens.iter().copied().chain(std::iter::repeat(0)).take(packed.batch);
            let bytes: Vec<u8> = padded.flat_map(|t| i64::from(t).to_le_bytes()).collect();
            lane.tokens.write_bytes(&bytes)?;
        }
        if matches!(choice, Choice::Drawn { .. }) {
            lane.draw.write_bytes(&(draw as i64).to_le_bytes())?;
        }
        // Tables are made by the CPU for this step alone.
        let once = matches!(rope, Some(RopeInput::Tables(_)));
        let step = self.step(&lane.tokens, &lane.packed, packed, rope, Kind::Decode)?;
        let work = |lane: &Lane| {
            let logits = self.head(&self.forward(&step)?)?;
            let chosen = choice.choose(&logits, &lane.tokens, &lane.draw)?;
            Ok(Outcome { logits, chosen })
        };
        if once { work(lane) } else { lane.run(choice, work) }
    }

    /// Chooses the first token after a prompt; a decode step may continue from it, as its row `row`.
    pub(crate) fn choose_first(&mut self, logits: &AnyTensor, choice: Choice, row: usize) -> Result<Option<AnyTensor>> {
        let next = self.tokens.slice(0, row as u64..row as u64 + 1)?;
        let lane = self.lane(1)?;
        lane.draw.fill_bytes(0)?;
        let chosen = choice.choose(logits, &next, &lane.draw);
        self.lanes.insert(1, lane);
        chosen
    }

    /// Lets row `to` of the next step begin with the token that row `from` of the last one chose.
    pub(crate) fn move_token(&self, from: usize, to: usize) -> Result<()> {
        let place = |row: usize| self.tokens.slice(0, row as u64..row as u64 + 1);
        Ok(copy(&place(from)?, &place(to)?)?)
    }

    /// Says which token was appended to a sequence next, so that others can begin with what it began with.
    pub(crate) fn name(&mut self, sequence: SequenceId, token: u32) -> Result<()> {
        self.pool.name(sequence, &[token])?;
        // The step that wrote it has ended.
        let epoch = self.pool.begin_launch();
        Ok(self.pool.complete(epoch)?)
    }

    /// A decode step of sequences that have `context` tokens, whose cache is filled with zeros, and the cache: to be measured.
    pub(crate) fn probe(&mut self, sequences: usize, context: usize) -> Result<(Step, Vec<[AnyTensor; 2]>)> {
        for tensor in self.layers.iter().flatten() {
            tensor.fill_bytes(0)?;
        }
        let ids: Vec<SequenceId> = (0..sequences).map(|_| self.start()).collect();
        for id in &ids {
            let _ = self.pool.append(*id, NewTokens::Count(context))?;
        }
        let packed = self.append(&ids, None, 1, sequences)?;
        let rope = self.rope(&packed)?;
        let tokens = self.tokens.slice(0, 0..sequences as u64)?;
        let lane = Lane::new(&self.model.device, tokens, packed.values.len() as u64)?;
        lane.packed.write_bytes(&packed.bytes())?;
        let step = self.step(&lane.tokens, &lane.packed, &packed, rope, Kind::Decode)?;
        Ok((step, self.layers.clone()))
    }

    /// The lane of so many rows, taken out.
    fn lane(&mut self, rows: usize) -> Result<Lane> {
        match self.lanes.remove(&rows) {
            Some(lane) => Ok(lane),
            None => {
                let tokens = self.tokens.slice(0, 0..rows as u64)?;
                Lane::new(&self.model.device, tokens, (rows * (3 + self.columns)) as u64)
            }
        }
    }

    /// Rows of the step for so many sequences: a few more than needed, so that a batch that grows and shrinks is not recorded
    /// anew each time. The emulator would compute them all.
    fn lane_rows(&self, sequences: usize) -> usize {
        if sequences < LANE_STEP || self.model.device.is_emulator() {
            sequences
        } else {
            sequences.next_multiple_of(LANE_STEP)
        }
    }

    /// Appends part of a prompt to a sequence and computes its last hidden rows, `[tokens, hidden]`.
    fn prompt(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<AnyTensor> {
        let packed = self.append(&[sequence], Some(tokens), tokens.len(), 1)?;
        let device = &self.model.device;
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let ids = AnyTensor::from_bytes(device, DType::I32, &[tokens.len() as u64], &bytes)?;
        let tensor = AnyTensor::from_bytes(device, DType::I32, &[packed.values.len() as u64], &packed.bytes())?;
        let kind = if device.is_emulator() || self.model.dtype == DType::F32 {
            Kind::Streamed
        } else {
            Kind::Prompt {
                end: packed.lengths()[0] as u64 + tokens.len() as u64,
            }
        };
        let rope = self.rope(&packed)?;
        self.forward(&self.step(&ids, &tensor, &packed, rope, kind)?)
    }

    fn forward(&self, step: &Step) -> Result<AnyTensor> {
        if self.model.weights.positions.is_some() {
            gpt2::forward(self.model, step, &self.layers)
        } else {
            llama::forward(self.model, step, &self.layers)
        }
    }

    /// The logits of hidden rows, f32.
    fn head(&self, hidden: &AnyTensor) -> Result<AnyTensor> {
        let vocab = self.model.config.vocab_size as u64;
        let out = AnyTensor::empty(&self.model.device, DType::F32, &[hidden.extent(0), vocab])?;
        self.head_into(hidden, &out)?;
        Ok(out)
    }

    fn head_into(&self, hidden: &AnyTensor, out: &AnyTensor) -> Result<()> {
        crate::layers::head(self.model, hidden, out)
    }

    /// Makes room for `seq` tokens of each sequence and packs what the step needs from the CPU, with rows that mean nothing up to
    /// `rows`.
    fn append(&mut self, sequences: &[SequenceId], tokens: Option<&[u32]>, seq: usize, rows: usize) -> Result<Packed> {
        // Rows that mean nothing write to places of their own in page 0.
        let mut lengths: Vec<i32> = (0..rows as i32).map(|row| row % PAGE as i32).collect();
        for (length, sequence) in lengths.iter_mut().zip(sequences) {
            *length = self.pool.length(*sequence)? as i32;
        }
        for (i, sequence) in sequences.iter().enumerate() {
            let new = match tokens {
                Some(tokens) => NewTokens::Ids(&tokens[i * seq..][..seq]),
                None => NewTokens::Count(seq),
            };
            // Nothing is forked, and shared pages are full: there is never a page to copy.
            let _ = self.pool.append(*sequence, new)?;
        }
        let mut values: Vec<i32> = lengths.iter().flat_map(|l| *l..*l + seq as i32).collect();
        values.extend(&lengths);
        values.extend(lengths.iter().map(|l| l + seq as i32));
        values.extend(self.pool.block_table(sequences, Some(self.columns))?.pages());
        values.resize(rows * (seq + 2 + self.columns), 0);
        // All work is on one stream: pages that are freed from now on are reused after it.
        let epoch = self.pool.begin_launch();
        self.pool.complete(epoch)?;
        Ok(Packed {
            values,
            batch: rows,
            seq,
        })
    }

    fn step(
        &self,
        tokens: &AnyTensor,
        tensor: &AnyTensor,
        packed: &Packed,
        rope: Option<RopeInput>,
        kind: Kind,
    ) -> Result<Step> {
        let (batch, seq, columns) = (packed.batch as u64, packed.seq as u64, self.columns as u64);
        let n = batch * seq;
        let part = |at: u64, len: u64| tensor.slice(0, at..at + len);
        Ok(Step {
            tokens: tokens.clone(),
            positions: part(0, n)?,
            lengths: part(n, batch)?,
            ends: part(n + batch, batch)?,
            table: part(n + 2 * batch, batch * columns)?.reshape(&[batch, columns])?,
            batch,
            seq,
            rope,
            kind,
        })
    }

    fn rope(&self, packed: &Packed) -> Result<Option<RopeInput>> {
        let (Some(rope), Some(short)) = (self.model.config.rope(), &self.model.rope) else {
            return Ok(None);
        };
        let (positions, lengths, seq) = (packed.positions(), packed.lengths(), packed.seq as u64);
        let ends = lengths.iter().map(|l| *l as usize + seq as usize);
        if !ends.clone().any(|end| rope.depends_on_length(1, end)) {
            return Ok(Some(RopeInput::Frequencies(short.clone())));
        }
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (end, positions) in ends.zip(positions.chunks(seq as usize)) {
            let (c, s) = rope.frequencies(end).cos_sin(positions.iter().map(|p| *p as u32));
            cos.extend(c.into_iter().flat_map(f32::to_le_bytes));
            sin.extend(s.into_iter().flat_map(f32::to_le_bytes));
        }
        let device = &self.model.device;
        let (n, pairs) = (positions.len() as u64, rope.rotary_dim as u64 / 2);
        let rows: Vec<u8> = (0..positions.len() as i32).flat_map(i32::to_le_bytes).collect();
        Ok(Some(RopeInput::Tables(Box::new(RopeTables {
            cos: AnyTensor::from_bytes(device, DType::F32, &[n, pairs], &cos)?,
            sin: AnyTensor::from_bytes(device, DType::F32, &[n, pairs], &sin)?,
            rows: AnyTensor::from_bytes(device, DType::I32, &[lengths.len() as u64, seq], &rows)?,
        }))))
    }
}
