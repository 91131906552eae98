//! What can be asked of attention.

use kernels_gpu::attention::{mask::UNBOUNDED, params::flags};

use crate::{AnyTensor, Error, Result};

/// The builder methods that forward and backward share. The type has `options`, `packed` and `stream`.
macro_rules! option_builders {
    () => {
        /// All options at once.
        pub fn options(mut self, options: AttentionOptions) -> Self {
            self.options = options;
            self
        }

        /// Order of the axes of dense tensors.
        pub fn layout(mut self, layout: Layout) -> Self {
            self.options.layout = layout;
            self
        }

        /// Causal mask whose diagonal ends at the last query and the last key.
        pub fn causal(mut self) -> Self {
            self.options.causal = Causal::BottomRight;
            self
        }

        /// Causal mask whose diagonal begins at the first query and the first key.
        pub fn causal_top_left(mut self) -> Self {
            self.options.causal = Causal::TopLeft;
            self
        }

        /// Sliding window: keys before and after the query's own position that it sees; `None` is all.
        pub fn window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
            (self.options.window_left, self.options.window_right) = (left, right);
            self
        }

        /// Bends scores to `c · tanh(score / c)`; 0 is off.
        pub fn softcap(mut self, cap: f32) -> Self {
            self.options.softcap = cap;
            self
        }

        /// Factor of the scores instead of `1 / √D`.
        pub fn scale(mut self, scale: f32) -> Self {
            self.options.scale = Some(scale);
            self
        }

        /// ALiBi: `−slope · |position − key|` is added to scores; f32 `[Hq]` or `[B, Hq]`.
        pub fn alibi(mut self, slopes: &AnyTensor) -> Self {
            self.options.alibi_slopes = Some(slopes.clone());
            self
        }

        /// A logit a query head that takes part in the softmax and carries no value; f32 `[Hq]`.
        pub fn sinks(mut self, sinks: &AnyTensor) -> Self {
            self.options.sinks = Some(sinks.clone());
            self
        }

        /// Dropout of probabilities: each is dropped with this probability, the rest is divided by `1 − p`; LSE is not
        /// affected. See [`Dropout`]; 0 is off.
        pub fn dropout(mut self, probability: f32, seed: u64, offset: u64) -> Self {
            self.options.dropout = Some(Dropout {
                probability,
                seed,
                offset,
            });
            self
        }

        /// Packed sequences: `q` is `[tokens, Hq, D]`, `k` and `v` are `[tokens, Hkv, D]`, and sequence `i` has the rows
        /// from `cu_q[i]` to `cu_q[i + 1]` and the keys from `cu_k[i]` to `cu_k[i + 1]` (i32, ascending from 0).
        ///
        /// `max_q` and `max_k` are the lengths of the longest sequences. The bounds are on the device and not read here:
        /// what they say beyond the tensors is cut off, and rows of a sequence beyond `max_q` are not computed.
        pub fn cu_seqlens(mut self, cu_q: &'a AnyTensor, cu_k: &'a AnyTensor, max_q: u64, max_k: u64) -> Self {
            self.packed = Some(Packed {
                cu_seqlens_q: cu_q,
                cu_seqlens_k: cu_k,
                max_q,
                max_k,
            });
            self
        }

        /// Runs in this stream instead of the device's main one.
        pub fn on(mut self, stream: &'a Stream) -> Self {
            self.stream = Some(stream);
            self
        }
    };
}

/// Which axis of a dense tensor counts tokens and which counts heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch, tokens, heads, head dim]`, as flash-attn has it.
    #[default]
    Bshd,
    /// `[batch, heads, tokens, head dim]`, as PyTorch has it.
    Bhsd,
}

/// Which diagonal bounds what a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Causal {
    /// No bound.
    #[default]
    No,
    /// The last query sees the last key: row `i` sees keys up to `i + Skv − Sq` (flash-attn).
    BottomRight,
    /// The first query sees the first key only: row `i` sees keys up to `i` (PyTorch).
    TopLeft,
}

/// Dropout of attention probabilities: some are dropped, those kept are divided by `1 − probability`.
///
/// Which are is a function of seed, offset, sequence, query head, row and key alone (Philox4x32-10, see
/// [`reference::philox`](crate::reference::philox)): the same mask forward and backward, on every tier and backend,
/// whatever the tiles and the rest of the batch are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// At least 0 and below 1.
    pub probability: f32,
    /// Seed of the generator.
    pub seed: u64,
    /// Tells calls under one seed apart: another layer, another step.
    pub offset: u64,
}

/// Options of attention, the same for forward and backward.
///
/// In order: dot product times `scale`; softcap; ALiBi; mask; softmax with sinks; dropout.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Axes of dense tensors.
    pub layout: Layout,
    /// Causal mask.
    pub causal: Causal,
    /// Keys before the query's own position that it sees; `None` is all.
    pub window_left: Option<u32>,
    /// Keys after the query's own position that it sees; `None` is all.
    pub window_right: Option<u32>,
    /// Factor of the scores; `None` is `1 / √D`.
    pub scale: Option<f32>,
    /// `c · tanh(score / c)`; 0 is off.
    pub softcap: f32,
    /// ALiBi slopes, f32 `[Hq]` or `[B, Hq]`: `−slope · |position − key|` is added to a score.
    pub alibi_slopes: Option<AnyTensor>,
    /// One learned logit a query head, f32 `[Hq]`, that takes part in the softmax and carries no value.
    pub sinks: Option<AnyTensor>,
    /// Dropout of probabilities.
    pub dropout: Option<Dropout>,
}

impl AttentionOptions {
    /// The scale in use.
    ///
    /// # Errors
    /// [`Error::Range`] when it is not finite.
    pub fn scale_for(&self, head_dim: u64) -> Result<f32> {
        let scale = self.scale.unwrap_or((1.0 / (head_dim as f64).sqrt()) as f32);
        if !scale.is_finite() {
            return Err(Error::range("scale", scale, "a finite number"));
        }
        Ok(scale)
    }

    /// Checks what no tensor is needed for.
    pub(super) fn check(&self) -> Result<()> {
        if !(self.softcap.is_finite() && self.softcap >= 0.0) {
            return Err(Error::range("softcap", self.softcap, "0 (off) or a positive number"));
        }
        if let Some(Dropout { probability, .. }) = self.dropout
            && !(0.0..1.0).contains(&probability)
        {
            return Err(Error::range("dropout", probability, "0 (off) or more, and less than 1"));
        }
        Ok(())
    }

    /// Dropout, where it drops anything.
    pub(super) fn active_dropout(&self) -> Option<Dropout> {
        self.dropout.filter(|dropout| dropout.probability > 0.0)
    }

    /// The bits of `AttentionParams::flags` that masks need.
    pub(super) fn mask_flags(&self) -> u32 {
        let right = self.causal != Causal::No || self.window_right.is_some();
        [
            (flags::RIGHT, right),
            (flags::LEFT, self.window_left.is_some()),
            (flags::TOP_LEFT, self.causal == Causal::TopLeft),
        ]
        .into_iter()
        .fold(0, |bits, (flag, set)| if set { bits | flag } else { bits })
    }

    /// Keys before and after the own position, within what the kernels add without overflow.
    pub(super) fn windows(&self) -> (u32, u32) {
        let bounded = |window: Option<u32>| window.unwrap_or(UNBOUNDED as u32).min(UNBOUNDED as u32);
        let right = if self.causal == Causal::No {
            bounded(self.window_right)
        } else {
            0
        };
        (bounded(self.window_left), right)
    }
}
