//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm before attention and MLP, GELU, biases everywhere.

use host::AnyTensor;

use crate::error::Result;
use crate::layers::{add, attention, embed, norm, project};
use crate::model::Model;
use crate::step::Step;

/// The residual stream after the last block, `[tokens, hidden]`.
pub(crate) fn forward(m: &Model, step: &Step, cache: &[[AnyTensor; 2]]) -> Result<AnyTensor> {
    let w = &m.weights;
    let mut x = embed(&w.tokens, &step.tokens)?;
    if let Some(table) = &w.positions {
        x = add(&x, &embed(table, &step.positions)?)?;
    }
    for (layer, block) in w.blocks.iter().enumerate() {
        let h = norm(m, &x, &block.attention_norm)?;
        let qkv = project(step, &h, &block.qkv, None, None)?;
        let a = attention(m, layer, &qkv, step, &cache[layer])?;
        x = project(step, &a, &block.attention_out, None, Some(&x))?;
        let h = norm(m, &x, &block.mlp_norm)?;
        let up = project(step, &h, &block.up, Some(m.config.activation), None)?;
        x = project(step, &up, &block.down, None, Some(&x))?;
    }
    Ok(x)
}
