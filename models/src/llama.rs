//! The Llama family (Touvron et al. 2023 and its descendants): RMSNorm before attention and MLP, rotary positions, grouped
//! KV heads, a gated MLP; Mistral's windows, Qwen2's biases and Qwen3's norms of heads as the configuration says.

use host::AnyTensor;

use crate::error::Result;
use crate::layers::{attention, embed, gated, norm, project};
use crate::model::Model;
use crate::step::Step;

/// The residual stream after the last block, `[tokens, hidden]`.
pub(crate) fn forward(m: &Model, step: &Step, cache: &[[AnyTensor; 2]]) -> Result<AnyTensor> {
    let w = &m.weights;
    let mut x = embed(&w.tokens, &step.tokens)?;
    for (layer, block) in w.blocks.iter().enumerate() {
        let h = norm(m, &x, &block.attention_norm)?;
        let qkv = project(step, &h, &block.qkv, None, None)?;
        let a = attention(m, layer, &qkv, step, &cache[layer])?;
        x = project(step, &a, &block.attention_out, None, Some(&x))?;
        let h = norm(m, &x, &block.mlp_norm)?;
        let up = gated(step, &h, &block.up, m.config.activation)?;
        x = project(step, &up, &block.down, None, Some(&x))?;
    }
    Ok(x)
}
