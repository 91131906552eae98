//! From mapped files to tensors on the device.
//!
//! Matrices that are multiplied by the same rows become one: Q, K and V, and the gate and up halves of an MLP. They are written
//! into their parts of one tensor, so that nothing is joined on the CPU.

use host::{AnyTensor, DType, Device};

use crate::checkpoint::{Checkpoint, LayerWeight, Layout, TensorSpec, TensorView, Weight, WeightDtype, tensor_table};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::ProgressFn;

/// Elements that are converted and copied at a time.
const CHUNK: usize = 8 << 20;

/// A matrix with its bias: `y = x·W + b`.
pub(crate) struct Affine {
    pub(crate) weight: AnyTensor,
    pub(crate) bias: Option<AnyTensor>,
    pub(crate) layout: Layout,
}

/// Weight and bias of a norm.
pub(crate) struct NormWeights {
    pub(crate) weight: AnyTensor,
    pub(crate) bias: Option<AnyTensor>,
}

/// The weights of a block.
pub(crate) struct Block {
    pub(crate) attention_norm: NormWeights,
    /// Q, K and V, in this order along the outputs.
    pub(crate) qkv: Affine,
    pub(crate) query_norm: Option<AnyTensor>,
    pub(crate) key_norm: Option<AnyTensor>,
    pub(crate) attention_out: Affine,
    pub(crate) mlp_norm: NormWeights,
    /// The gate, if there is one, then up.
    pub(crate) up: Affine,
    pub(crate) down: Affine,
}

/// All weights of a model.
pub(crate) struct Weights {
    pub(crate) tokens: AnyTensor,
    pub(crate) positions: Option<AnyTensor>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: NormWeights,
    /// `[vocab, hidden]`; the embedding itself when tied.
    pub(crate) head: AnyTensor,
}

/// How far loading has come: bytes read, and all there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights that are on the device.
    pub done: u64,
    /// Bytes of weights in the files.
    pub total: u64,
}

pub(crate) fn dtype_of(dtype: WeightDtype) -> DType {
    match dtype {
        WeightDtype::F32 => DType::F32,
        WeightDtype::F16 => DType::F16,
        WeightDtype::Bf16 => DType::BF16,
    }
}

pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: DType,
    progress: Option<Box<ProgressFn<'a>>>,
    done: u64,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        device: &'a Device,
        dtype: DType,
        progress: Option<Box<ProgressFn<'a>>>,
    ) -> Self {
        Self {
            checkpoint,
            device,
            dtype,
            progress,
            done: 0,
        }
    }

    /// Refuses a model that cannot fit before anything is allocated.
    fn check_memory(&self) -> Result<()> {
        let config = self.checkpoint.config();
        let needed = config.parameters() * self.dtype.size();
        let free = self.device.memory()?.free;
        if needed <= free {
            return Ok(());
        }
        Err(Error::TooLarge {
            needed: needed.div_ceil(1 << 20),
            free: free >> 20,
            dtype: self.dtype,
            device: self.device.to_string(),
            parameters: config.parameters(),
        })
    }

    pub(crate) fn load(mut self) -> Result<Weights> {
        self.check_memory()?;
        let checkpoint = self.checkpoint;
        let config = checkpoint.config();
        let mut plan = Plan::new(self.device, self.dtype, config, |w| checkpoint.weight(w).is_some())?;
        // In the order of the files, which the system then reads ahead.
        for (spec, view) in checkpoint.weights() {
            let target = plan.target(spec)?;
            self.copy(view, &target)?;
        }
        plan.finish(self.device)
    }

    fn copy(&mut self, view: TensorView<'_>, target: &AnyTensor) -> Result<()> {
        let (from, to) = (view.dtype.bytes(), self.dtype.size() as usize);
        let flat = target.reshape(&[target.elements()])?;
        let mut at = 0u64;
        for chunk in view.data.chunks(CHUNK * from) {
            let elements = (chunk.len() / from) as u64;
            let part = flat.slice(0, at..at + elements)?;
            if dtype_of(view.dtype) == self.dtype {
                part.write_bytes(chunk)?;
            } else {
                let values = TensorView { data: chunk, ..view }.to_f32();
                let mut bytes = Vec::with_capacity(values.len() * to);
                match self.dtype {
                    DType::F16 => values
                        .iter()
                        .for_each(|x| bytes.extend(half::f16::from_f32(*x).to_le_bytes())),
                    DType::BF16 => values
                        .iter()
                        .for_each(|x| bytes.extend(half::bf16::from_f32(*x).to_le_bytes())),
                    _ => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
                }
                part.write_bytes(&bytes)?;
            }
            at += elements;
            self.done += chunk.len() as u64;
            if let Some(progress) = &mut self.progress {
                progress(Progress {
                    done: self.done,
                    total: self.checkpoint.bytes(),
                });
            }
        }
        Ok(())
    }
}

/// The tensors on the device before they are filled.
struct Plan {
    tokens: AnyTensor,
    positions: Option<AnyTensor>,
    head: Option<AnyTensor>,
    final_norm: NormWeights,
    blocks: Vec<Block>,
    q_width: u64,
    kv_width: u64,
    inner: u64,
}

impl Plan {
    fn new(device: &Device, dtype: DType, c: &ModelConfig, has: impl Fn(Weight) -> bool) -> Result<Plan> {
        use LayerWeight as L;
        let empty = |shape: &[usize]| {
            let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
            AnyTensor::empty(device, dtype, &shape)
        };
        let vector = |there: bool, width: usize| there.then(|| empty(&[width])).transpose();
        let (hidden, q, kv) = (c.hidden_size, c.q_width(), c.kv_width());
        let mut blocks = Vec::with_capacity(c.num_layers);
        for i in 0..c.num_layers {
            let there = |w| has(Weight::Layer(i, w));
            // Matrices that lie `[in, out]` are whole in the file.
            let fused = there(L::Qkv);
            let layout = if fused { Layout::InOut } else { Layout::OutIn };
            let affine = |input: usize, output: usize, bias: bool| -> Result<Affine> {
                let shape = match layout {
                    Layout::OutIn => [output, input],
                    Layout::InOut => [input, output],
                };
                Ok(Affine {
                    weight: empty(&shape)?,
                    bias: vector(bias, output)?,
                    layout,
                })
            };
            let norm = |bias| -> Result<NormWeights> {
                Ok(NormWeights {
                    weight: empty(&[hidden])?,
                    bias: vector(there(bias), hidden)?,
                })
            };
            let inner = c.intermediate_size * if c.gated_mlp { 2 } else { 1 };
            blocks.push(Block {
                attention_norm: norm(L::AttentionNormBias)?,
                qkv: affine(hidden, q + 2 * kv, there(L::QkvBias) || there(L::QueryBias))?,
                query_norm: vector(there(L::QueryNorm), c.head_dim)?,
                key_norm: vector(there(L::KeyNorm), c.head_dim)?,
                attention_out: affine(q, hidden, there(L::AttentionOutBias))?,
                mlp_norm: norm(L::MlpNormBias)?,
                up: affine(hidden, inner, there(L::UpBias))?,
                down: affine(c.intermediate_size, hidden, there(L::DownBias))?,
            });
        }
        let learned = has(Weight::PositionEmbedding).then(|| empty(&[c.max_positions, hidden]));
        Ok(Plan {
            tokens: empty(&[c.vocab_size, hidden])?,
            positions: learned.transpose()?,
            head: has(Weight::LmHead)
                .then(|| empty(&[c.vocab_size, hidden]))
                .transpose()?,
            final_norm: NormWeights {
                weight: empty(&[hidden])?,
                bias: vector(has(Weight::FinalNormBias), hidden)?,
            },
            blocks,
            q_width: q as u64,
            kv_width: kv as u64,
            inner: c.intermediate_size as u64,
        })
    }

    /// Where a tensor of the file goes.
    fn target(&mut self, spec: &TensorSpec) -> Result<AnyTensor> {
        use LayerWeight as L;
        let (q, kv, inner) = (self.q_width, self.kv_width, self.inner);
        let named = |tensor: Option<&AnyTensor>| -> Result<AnyTensor> {
            tensor
                .cloned()
                .ok_or_else(|| host::Error::shape("weight", &[], format!("{} has no place", spec.name)).into())
        };
        let Weight::Layer(layer, weight) = spec.weight else {
            return match spec.weight {
                Weight::TokenEmbedding => Ok(self.tokens.clone()),
                Weight::PositionEmbedding => named(self.positions.as_ref()),
                Weight::LmHead => named(self.head.as_ref()),
                Weight::FinalNorm => Ok(self.final_norm.weight.clone()),
                _ => named(self.final_norm.bias.as_ref()),
            };
        };
        let b = &self.blocks[layer];
        let part = |tensor: AnyTensor, range: std::ops::Range<u64>| Ok(tensor.slice(0, range)?);
        let up = if b.up.weight.extent(0) == 2 * inner && b.up.layout == Layout::OutIn {
            inner..2 * inner
        } else {
            0..b.up.weight.extent(0)
        };
        let up_bias =
            b.up.bias
                .as_ref()
                .map_or(0..0, |bias| bias.extent(0) - inner..bias.extent(0));
        match weight {
            L::AttentionNorm => Ok(b.attention_norm.weight.clone()),
            L::AttentionNormBias => named(b.attention_norm.bias.as_ref()),
            L::Qkv => Ok(b.qkv.weight.clone()),
            L::QkvBias => named(b.qkv.bias.as_ref()),
            L::Query => part(b.qkv.weight.clone(), 0..q),
            L::Key => part(b.qkv.weight.clone(), q..q + kv),
            L::Value => part(b.qkv.weight.clone(), q + kv..q + 2 * kv),
            L::QueryBias => part(named(b.qkv.bias.as_ref())?, 0..q),
            L::KeyBias => part(named(b.qkv.bias.as_ref())?, q..q + kv),
            L::ValueBias => part(named(b.qkv.bias.as_ref())?, q + kv..q + 2 * kv),
            L::QueryNorm => named(b.query_norm.as_ref()),
            L::KeyNorm => named(b.key_norm.as_ref()),
            L::AttentionOut => Ok(b.attention_out.weight.clone()),
            L::AttentionOutBias => named(b.attention_out.bias.as_ref()),
            L::MlpNorm => Ok(b.mlp_norm.weight.clone()),
            L::MlpNormBias => named(b.mlp_norm.bias.as_ref()),
            L::Gate => part(b.up.weight.clone(), 0..inner),
            L::GateBias => part(named(b.up.bias.as_ref())?, 0..inner),
            L::Up => part(b.up.weight.clone(), up),
            L::UpBias => part(named(b.up.bias.as_ref())?, up_bias),
            L::Down => Ok(b.down.weight.clone()),
            L::DownBias => named(b.down.bias.as_ref()),
        }
    }

    fn finish(mut self, device: &Device) -> Result<Weights> {
        // The kernels for few rows are faster along k. The emulator would only wait for the transposes.
        if !device.is_emulator() {
            for b in &mut self.blocks {
                for affine in [&mut b.qkv, &mut b.attention_out, &mut b.up, &mut b.down] {
                    affine.turn()?;
                }
            }
        }
        Ok(Weights {
            head: self.head.unwrap_or_else(|| self.tokens.clone()),
            tokens: self.tokens,
            positions: self.positions,
            blocks: self.blocks,
            final_norm: self.final_norm,
        })
    }
}

impl Affine {
    /// Makes a matrix `[in, out]` one of `[out, in]`.
    fn turn(&mut self) -> Result<()> {
        if self.layout == Layout::InOut {
            self.weight = host::ops::contiguous(&self.weight.transpose(0, 1)?)?;
            self.layout = Layout::OutIn;
        }
        Ok(())
    }
}

/// Weights of the given shapes without meaning: matrices even over ±0.02·√3 (the deviation that models start training
/// with), norms that change nothing.
pub(crate) fn random(device: &Device, dtype: DType, config: &ModelConfig, seed: u64) -> Result<Weights> {
    let table = tensor_table(config);
    let mut plan = Plan::new(device, dtype, config, |w| table.iter().any(|spec| spec.weight == w))?;
    let block = random_block(device, dtype, seed)?;
    let size = block.elements();
    for (number, spec) in (0u64..).zip(&table) {
        use LayerWeight as L;
        let target = plan.target(spec)?;
        let flat = target.reshape(&[target.elements()])?;
        let norm = matches!(
            spec.weight,
            Weight::FinalNorm | Weight::Layer(_, L::AttentionNorm | L::MlpNorm | L::QueryNorm | L::KeyNorm)
        );
        if norm {
            let one: &[u8] = match dtype {
                DType::F16 => &half::f16::ONE.to_le_bytes(),
                DType::BF16 => &half::bf16::ONE.to_le_bytes(),
                _ => &1.0f32.to_le_bytes(),
            };
            flat.write_bytes(&one.repeat(flat.elements() as usize))?;
            continue;
        }
        // Every tensor begins at another place, so that no two are alike.
        let (mut at, mut from) = (0, number * 977 * 64 % size);
        while at < flat.elements() {
            let count = (size - from).min(flat.elements() - at);
            host::ops::copy(&block.slice(0, from..from + count)?, &flat.slice(0, at..at + count)?)?;
            (at, from) = (at + count, 0);
        }
    }
    plan.finish(device)
}

/// Random numbers that are copied from.
fn random_block(device: &Device, dtype: DType, seed: u64) -> Result<AnyTensor> {
    const ELEMENTS: usize = (1 << 20) + 64;
    let mut state = seed;
    let values = std::iter::repeat_with(|| {
        // SplitMix64 (Steele, Lea and Flood 2014).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32;
        (2.0 * unit - 1.0) * 0.02 * 3f32.sqrt()
    });
    let values = values.take(ELEMENTS);
    let bytes: Vec<u8> = match dtype {
        DType::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    };
    Ok(AnyTensor::from_bytes(device, dtype, &[ELEMENTS as u64], &bytes)?)
}
