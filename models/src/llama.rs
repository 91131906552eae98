//! The Llama family (Touvron et al. 2023 and its descendants): RMSNorm before attention and MLP, rotary positions, grouped
//! KV heads, a gated MLP; Mistral's windows, Qwen2's biases and Qwen3's norms of heads as the configuration says.

use host::AnyTensor;

use crate::error::Result;
use crate::layers::{attention, embed, gated, project};
use crate::model::Model;
use crate::step::Step;

/// The residual stream after the last block, `[tokens, hidden]`.
pub(crate) fn forward(m: &Model, step: &Step, cache: &[[AnyTensor; 2]]) -> Result<AnyTensor> {
    let w = &m.weights;
    let mut x = embed(&w.tokens, &step.tokens)?;
    for (layer, block) in w.blocks.iter().enumerate() {
        let qkv = project(m, step, (&x, Some(&block.attention_norm)), &block.qkv, None, None)?;
        let a = attention(m, layer, &qkv, step, &cache[layer])?;
        x = project(m, step, (&a, None), &block.attention_out, None, Some(&x))?;
        let up = gated(m, step, (&x, &block.mlp_norm), &block.up, m.config.activation)?;
        x = project(m, step, (&up, None), &block.down, None, Some(&x))?;
    }
    Ok(x)
}
