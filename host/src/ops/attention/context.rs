//! What forward leaves for backward.

use super::{
    Attention, AttentionGradients, AttentionOptions,
    backward::{AttentionBackward, attention_backward},
    validate::Packed,
};
use crate::{AnyTensor, Result};

/// A forward pass with all that its backward pass needs: inputs, options, O and LSE. Tensors are shared, not copied.
#[derive(Clone, Debug)]
pub struct AttentionContext {
    q: AnyTensor,
    k: AnyTensor,
    v: AnyTensor,
    attention: Attention,
    options: AttentionOptions,
    packed: Option<OwnedBounds>,
}

/// Bounds of packed sequences.
#[derive(Clone, Debug)]
struct OwnedBounds {
    cu_seqlens_q: AnyTensor,
    cu_seqlens_k: AnyTensor,
    max_q: u64,
    max_k: u64,
}

impl AttentionContext {
    pub(super) fn new(
        [q, k, v]: [&AnyTensor; 3],
        attention: Attention,
        options: AttentionOptions,
        packed: Option<Packed>,
    ) -> AttentionContext {
        AttentionContext {
            q: q.clone(),
            k: k.clone(),
            v: v.clone(),
            attention,
            options,
            packed: packed.map(|packed| OwnedBounds {
                cu_seqlens_q: packed.cu_seqlens_q.clone(),
                cu_seqlens_k: packed.cu_seqlens_k.clone(),
                max_q: packed.max_q,
                max_k: packed.max_k,
            }),
        }
    }

    /// O and LSE.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// The backward pass for this gradient of O, to be changed (stream, places to write) and run.
    pub fn call<'a>(&'a self, grad_out: &'a AnyTensor) -> AttentionBackward<'a> {
        let Attention { out, lse } = &self.attention;
        let call = attention_backward(grad_out, &self.q, &self.k, &self.v, out, lse).options(self.options.clone());
        match &self.packed {
            None => call,
            Some(bounds) => call.cu_seqlens(&bounds.cu_seqlens_q, &bounds.cu_seqlens_k, bounds.max_q, bounds.max_k),
        }
    }

    /// Gradients for this gradient of O.
    ///
    /// # Errors
    /// As for [`AttentionBackward::run`].
    pub fn backward(&self, grad_out: &AnyTensor) -> Result<AttentionGradients> {
        self.call(grad_out).run()
    }
}
