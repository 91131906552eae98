//! What a step works on.

use host::AnyTensor;
use host::ops::{LinearMode, RopeFrequencies};

/// Inputs of a step: `seq` new tokens of each of `batch` sequences.
pub(crate) struct Step {
    /// `[batch·seq]`, i32 or i64.
    pub(crate) tokens: AnyTensor,
    /// i32 `[batch·seq]`.
    pub(crate) positions: AnyTensor,
    /// Tokens in the cache before the step, i32 `[batch]`.
    pub(crate) lengths: AnyTensor,
    /// Tokens in the cache after it, i32 `[batch]`.
    pub(crate) ends: AnyTensor,
    /// Pages, i32 `[batch, columns]`.
    pub(crate) table: AnyTensor,
    pub(crate) batch: u64,
    pub(crate) seq: u64,
    pub(crate) rope: Option<RopeInput>,
    pub(crate) kind: Kind,
}

/// What kind of step it is: this chooses kernels, and nothing else does, so that a prompt that is computed in parts and a
/// sequence in a batch have the bits that they have alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One new token of each sequence: everything streams.
    Decode,
    /// Part of a prompt, after which one sequence has so many tokens: tensor cores are kept busy.
    Prompt {
        /// Tokens of the sequence after the step.
        end: u64,
    },
    /// Part of a prompt by the kernels of a decode step: f32, and the emulator, where few instructions count.
    Streamed,
}

impl Step {
    /// The kinds of linear kernels for this step, best first.
    pub(crate) fn modes(&self) -> &'static [LinearMode] {
        match self.kind {
            Kind::Decode | Kind::Streamed => &[LinearMode::Streaming],
            Kind::Prompt { .. } => &[LinearMode::Hopper, LinearMode::Tiled],
        }
    }
}

/// How Q and K are rotated in a step.
pub(crate) enum RopeInput {
    /// By position times frequency.
    Frequencies(RopeFrequencies),
    /// By tables: where sequences of different lengths have different frequencies.
    Tables(Box<RopeTables>),
}

/// Cosines and sines with a row for each token of a step, f32 `[batch·seq, pairs]`.
pub(crate) struct RopeTables {
    pub(crate) cos: AnyTensor,
    pub(crate) sin: AnyTensor,
    /// 0, 1, 2, …: the row of each token, i32 `[batch, seq]`.
    pub(crate) rows: AnyTensor,
}
