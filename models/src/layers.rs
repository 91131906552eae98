//! What both families are made of: ops with a model's weights and settings filled in.
//!
//! Kernels are pinned where the op would choose by the number of rows, so that a row's bits do not depend on its batch.

use host::ops::{
    self, Activation as Act, AttentionOptions, CacheView, Causal, DecodeOptions, Linear, LinearMode, RopeAngles,
    RopePairing, WeightLayout, linear,
};
use host::{AnyTensor, DType};

use crate::checkpoint::Layout;
use crate::config::{Activation, Norm};
use crate::error::Result;
use crate::model::Model;
use crate::step::{Kind, RopeInput, RopeTables, Step};
use crate::weights::{Affine, NormWeights};

fn act(activation: Activation) -> Act {
    match activation {
        Activation::GeluTanh => Act::GeluTanh,
        Activation::GeluErf => Act::GeluErf,
        Activation::Silu => Act::Silu,
    }
}

fn layout(layout: Layout) -> WeightLayout {
    match layout {
        Layout::OutIn => WeightLayout::Nk,
        Layout::InOut => WeightLayout::Kn,
    }
}

/// Rows of a table.
pub(crate) fn embed(table: &AnyTensor, ids: &AnyTensor) -> Result<AnyTensor> {
    Ok(ops::embedding(table, ids)?)
}

/// `a + b`.
pub(crate) fn add(a: &AnyTensor, b: &AnyTensor) -> Result<AnyTensor> {
    Ok(ops::add(a, b)?)
}

/// The layer after the model's norm of the rows of its x.
fn after_norm<'a>(m: &Model, layer: Linear<'a>, w: &'a NormWeights) -> Linear<'a> {
    match m.config.norm {
        Norm::LayerNorm { eps } => layer.layer_norm(&w.weight, w.bias.as_ref(), eps),
        Norm::RmsNorm { eps } => layer.rms_norm(&w.weight, eps),
    }
}

/// `act(norm(x)·W + b) + residual`.
pub(crate) fn project(
    m: &Model,
    step: &Step,
    (x, norm): (&AnyTensor, Option<&NormWeights>),
    w: &Affine,
    activation: Option<Activation>,
    residual: Option<&AnyTensor>,
) -> Result<AnyTensor> {
    let mut y = linear(x, &w.weight).layout(layout(w.layout)).constant_weight();
    if let Some(norm) = norm {
        y = after_norm(m, y, norm);
    }
    if let Some(bias) = &w.bias {
        y = y.bias(bias);
    }
    if let Some(activation) = activation {
        y = y.activation(act(activation));
    }
    if let Some(residual) = residual {
        y = y.residual(residual);
    }
    pinned(y, step)
}

/// Runs a layer in the first mode of the step that takes its dtype and layout, whatever its number of rows.
fn pinned(layer: Linear<'_>, step: &Step) -> Result<AnyTensor> {
    for mode in step.modes() {
        match layer.clone().mode(*mode).run() {
            Err(host::Error::Unsupported { .. }) => {}
            done => return Ok(done?),
        }
    }
    Ok(layer.mode(LinearMode::Fma).run()?)
}

/// `act(h·G) · (h·U)` for `h = norm(x)`.
pub(crate) fn gated(
    m: &Model,
    step: &Step,
    (x, norm): (&AnyTensor, &NormWeights),
    w: &Affine,
    activation: Activation,
) -> Result<AnyTensor> {
    let y = linear(x, &w.weight).layout(layout(w.layout)).constant_weight();
    let y = after_norm(m, y, norm).gated(act(activation));
    match &w.bias {
        Some(bias) => pinned(y.bias(bias), step),
        None => pinned(y, step),
    }
}

/// The logits of hidden rows into `out`, f32 `[rows, vocab]`.
pub(crate) fn head(m: &Model, hidden: &AnyTensor, out: &AnyTensor) -> Result<()> {
    let logits = linear(hidden, &m.weights.head).dtype(DType::F32).constant_weight();
    let logits = after_norm(m, logits, &m.weights.final_norm);
    match logits.clone().mode(LinearMode::Streaming).run_into(out) {
        Err(host::Error::Unsupported { .. }) => Ok(logits.mode(LinearMode::Fma).run_into(out)?),
        done => Ok(done?),
    }
}

/// Q, K and V in one tensor `[tokens, (heads + 2·kv_heads)·head_dim]` → attention's output `[tokens, heads·head_dim]`: norms of
/// heads, rotation, K and V into the cache, attention over everything there.
pub(crate) fn attention(
    m: &Model,
    layer: usize,
    qkv: &AnyTensor,
    step: &Step,
    [keys, values]: &[AnyTensor; 2],
) -> Result<AnyTensor> {
    let c = &m.config;
    let (hq, hkv, d) = (c.num_heads as u64, c.num_kv_heads as u64, c.head_dim as u64);
    let heads = qkv.reshape(&[step.batch, step.seq, hq + 2 * hkv, d])?;
    let mut q = heads.slice(2, 0..hq)?;
    let mut k = heads.slice(2, hq..hq + hkv)?;
    let v = heads.slice(2, hq + hkv..hq + 2 * hkv)?;
    let block = &m.weights.blocks[layer];
    if let (Some(qn), Some(kn), Norm::RmsNorm { eps }) = (&block.query_norm, &block.key_norm, c.norm) {
        q = ops::rms_norm(&q).weight(qn).epsilon(eps).run()?.y;
        k = ops::rms_norm(&k).weight(kn).epsilon(eps).run()?.y;
    }
    let (k, v) = (&k, &v);
    let mut options = DecodeOptions {
        causal: true,
        scale: Some(c.attention_scale(layer)),
        window_left: c.windows[layer].map(|w| u32::try_from(w - 1).unwrap_or(u32::MAX)),
        ..DecodeOptions::default()
    };
    let cache = CacheView::paged(keys, values, &step.table);
    let out = if let Kind::Prompt { end } = step.kind {
        let q = rotate_and_append(step, &q, k, v, cache)?;
        attend_prompt(step, &q, cache, end, options)?
    } else {
        match &step.rope {
            Some(RopeInput::Tables(tables)) => {
                let RopeTables { cos, sin, rows } = &**tables;
                let rotated = ops::rope(&q, RopePairing::HalfSplit, RopeAngles::Table { cos, sin }).k(k);
                let (q, rotated) = rotated.positions(rows).run()?;
                let k = rotated.as_ref().unwrap_or(k);
                ops::decode(&q, cache, &step.lengths)
                    .append(k, v)
                    .options(options)
                    .run()?
                    .out
            }
            rope => {
                if let Some(RopeInput::Frequencies(frequencies)) = rope {
                    options.rotary = Some((RopePairing::HalfSplit, RopeAngles::Frequencies(frequencies)));
                }
                ops::decode(&q, cache, &step.lengths)
                    .append(k, v)
                    .options(options)
                    .run()?
                    .out
            }
        }
    };
    Ok(out.reshape(&[step.batch * step.seq, hq * d])?)
}

/// Writes rotated keys and values to the cache; the rotated queries.
fn rotate_and_append(
    step: &Step,
    q: &AnyTensor,
    k: &AnyTensor,
    v: &AnyTensor,
    cache: CacheView<'_>,
) -> Result<AnyTensor> {
    let (angles, rows) = match &step.rope {
        None => {
            ops::cache_append_at(k, v, cache, &step.lengths)?;
            return Ok(q.clone());
        }
        Some(RopeInput::Frequencies(frequencies)) => (RopeAngles::Frequencies(frequencies), None),
        Some(RopeInput::Tables(tables)) => {
            let RopeTables { cos, sin, rows } = &**tables;
            (RopeAngles::Table { cos, sin }, Some(rows))
        }
    };
    let mut rope = ops::rope(q, RopePairing::HalfSplit, angles)
        .k(k)
        .lengths(&step.lengths)
        .append_at(v, cache);
    if let Some(rows) = rows {
        rope = rope.positions(rows);
    }
    Ok(rope.run()?.0)
}

/// Attention of part of a prompt to all `end` tokens of its sequence, which are in the cache. They are read back in order first: a
/// small part of the time, and a tile of queries then has the bits that it has without a cache.
fn attend_prompt(
    step: &Step,
    q: &AnyTensor,
    cache: CacheView<'_>,
    end: u64,
    options: DecodeOptions<'_>,
) -> Result<AnyTensor> {
    let (k, v) = ops::cache_read(cache, &step.ends, end)?;
    let dense = AttentionOptions {
        causal: Causal::BottomRight,
        window_left: options.window_left,
        scale: options.scale,
        ..AttentionOptions::default()
    };
    match ops::attention(q, &k, &v).options(dense).run_without_lse() {
        // Head dims that only the decode kernels take.
        Err(host::Error::Unsupported { .. }) => Ok(ops::decode(q, cache, &step.ends).options(options).run()?.out),
        out => Ok(out?),
    }
}
