//! GPT-2 (Radford et al. 2019): learned positions, LayerNorm before attention and MLP, GELU, biases everywhere.

use host::AnyTensor;

use crate::error::Result;
use crate::layers::{add, attention, embed, project};
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
        let qkv = project(m, step, (&x, Some(&block.attention_norm)), &block.qkv, None, None)?;
        let a = attention(m, layer, &qkv, step, &cache[layer])?;
        x = project(m, step, (&a, None), &block.attention_out, None, Some(&x))?;
        let up = project(
            m,
            step,
            (&x, Some(&block.mlp_norm)),
            &block.up,
            Some(m.config.activation),
            None,
        )?;
        x = project(m, step, (&up, None), &block.down, None, Some(&x))?;
    }
    Ok(x)
}
