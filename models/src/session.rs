//! Running sequences: the paged cache of keys and values, and the inputs of a step.
//!
//! A step takes `seq` new tokens of each of `batch` sequences: all of a prompt for one sequence, or one token for each of many.
//! Everything that a step needs from the CPU is one tensor of i32, copied once:
//!
//! ```text
//! tokens [batch·seq] · positions [batch·seq] · lengths before the step [batch] · block table [batch, columns]
//! ```

use host::kv::{PagePool, PoolConfig, SequenceId};
use host::ops::{LinearMode, RopeFrequencies};
use host::{AnyTensor, DType};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::{gpt2, llama};

/// Tokens of a page: prefixes are shared in these units.
pub(crate) const PAGE: usize = 16;
/// Tokens of a prompt that are computed at a time: bounds the memory of activations.
const CHUNK: usize = 8192;
/// Rows of logits computed at a time.
const LOGIT_ROWS: u64 = 512;

/// What a step works on.
pub(crate) struct Step {
    /// i32 `[batch·seq]`.
    pub(crate) tokens: AnyTensor,
    /// i32 `[batch·seq]`.
    pub(crate) positions: AnyTensor,
    /// Tokens in the cache before the step, i32 `[batch]`.
    pub(crate) lengths: AnyTensor,
    /// Pages, i32 `[batch, columns]`.
    pub(crate) table: AnyTensor,
    pub(crate) batch: u64,
    pub(crate) seq: u64,
    pub(crate) rope: Option<RopeInput>,
    /// Whether this is one new token of each sequence rather than a prompt.
    decodes: bool,
    emulated: bool,
}

impl Step {
    /// The kinds of linear kernels for this step, best first. They do not depend on the number of rows: a prompt that is computed
    /// in parts and a sequence in a batch have the bits that they have alone.
    pub(crate) fn modes(&self) -> &'static [LinearMode] {
        match self.decodes || self.emulated {
            true => &[LinearMode::Streaming],
            false => &[LinearMode::Hopper, LinearMode::Tiled],
        }
    }
}

/// How Q and K are rotated in a step.
pub(crate) enum RopeInput {
    /// By position times frequency.
    Frequencies(RopeFrequencies),
    /// By tables with a row for each token of the step, f32 `[batch·seq, pairs]`: where sequences of different lengths have
    /// different frequencies.
    Tables {
        cos: AnyTensor,
        sin: AnyTensor,
        /// 0, 1, 2, …: the row of each token, i32 `[batch, seq]`.
        rows: AnyTensor,
    },
}

/// Sequences that run on one model with one cache.
pub(crate) struct Session<'m> {
    model: &'m Model,
    pool: PagePool,
    /// Keys and values of each layer, `[pages, PAGE, kv_heads, head_dim]`.
    layers: Vec<[AnyTensor; 2]>,
    columns: usize,
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
        Ok(Self {
            model,
            pool: PagePool::new(config)?,
            layers,
            columns,
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

    /// Pages that no sequence holds.
    pub(crate) fn pages(&self) -> usize {
        self.pool.pages() - 1
    }

    /// Computes the rest of a prompt; the logits of its last token, f32 `[1, vocab]`.
    pub(crate) fn prefill(&mut self, sequence: SequenceId, rest: &[u32]) -> Result<AnyTensor> {
        let mut last = None;
        for chunk in rest.chunks(CHUNK) {
            last = Some(self.hidden(&[sequence], chunk, false)?);
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
            let hidden = self.hidden(&[sequence], chunk, false)?;
            for begin in (0..hidden.extent(0)).step_by(LOGIT_ROWS as usize) {
                let end = (begin + LOGIT_ROWS).min(hidden.extent(0));
                let rows = hidden.slice(0, begin..end)?;
                self.head_into(&rows, &all.slice(0, at..at + end - begin)?)?;
                at += end - begin;
            }
        }
        Ok(all)
    }

    /// Computes one token of each sequence; their logits, f32 `[sequences, vocab]`.
    pub(crate) fn decode(&mut self, sequences: &[SequenceId], tokens: &[u32]) -> Result<AnyTensor> {
        let hidden = self.hidden(sequences, tokens, true)?;
        self.head(&hidden)
    }

    /// Appends `tokens`, equally many for each sequence, and computes their last hidden rows, `[tokens, hidden]`.
    fn hidden(&mut self, sequences: &[SequenceId], tokens: &[u32], decodes: bool) -> Result<AnyTensor> {
        let (packed, shape) = self.append(sequences, tokens)?;
        let bytes: Vec<u8> = packed.iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = AnyTensor::from_bytes(&self.model.device, DType::I32, &[packed.len() as u64], &bytes)?;
        let step = self.step(&tensor, &packed, shape, decodes)?;
        self.forward(&step)
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

    /// Makes room for the tokens and packs what the step needs from the CPU.
    fn append(&mut self, sequences: &[SequenceId], tokens: &[u32]) -> Result<(Vec<i32>, [u64; 2])> {
        let seq = tokens.len() / sequences.len();
        let mut packed: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        let mut lengths = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let length = self.pool.length(*sequence)?;
            packed.extend((length..length + seq).map(|p| p as i32));
            lengths.push(length as i32);
        }
        packed.extend(&lengths);
        for (sequence, new) in sequences.iter().zip(tokens.chunks(seq)) {
            // Nothing is forked, and shared pages are full: there is never a page to copy.
            let _ = self.pool.append(*sequence, new)?;
        }
        packed.extend(self.pool.block_table(sequences, Some(self.columns))?.pages());
        // All work is on one stream: pages that are freed from now on are reused after it.
        let epoch = self.pool.begin_launch();
        self.pool.complete(epoch)?;
        Ok((packed, [sequences.len() as u64, seq as u64]))
    }

    fn step(&self, tensor: &AnyTensor, packed: &[i32], [batch, seq]: [u64; 2], decodes: bool) -> Result<Step> {
        let n = batch * seq;
        let part = |at: u64, len: u64| tensor.slice(0, at..at + len);
        let lengths = &packed[2 * n as usize..][..batch as usize];
        Ok(Step {
            tokens: part(0, n)?,
            positions: part(n, n)?,
            lengths: part(2 * n, batch)?,
            table: part(2 * n + batch, batch * self.columns as u64)?.reshape(&[batch, self.columns as u64])?,
            batch,
            seq,
            rope: self.rope(&packed[n as usize..][..n as usize], lengths, seq)?,
            decodes,
            emulated: self.model.device.is_emulator(),
        })
    }

    fn rope(&self, positions: &[i32], lengths: &[i32], seq: u64) -> Result<Option<RopeInput>> {
        let (Some(rope), Some(short)) = (self.model.config.rope(), &self.model.rope) else {
            return Ok(None);
        };
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
        Ok(Some(RopeInput::Tables {
            cos: AnyTensor::from_bytes(device, DType::F32, &[n, pairs], &cos)?,
            sin: AnyTensor::from_bytes(device, DType::F32, &[n, pairs], &sin)?,
            rows: AnyTensor::from_bytes(device, DType::I32, &[lengths.len() as u64, seq], &rows)?,
        }))
    }
}
