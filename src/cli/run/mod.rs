//! `ferroflash run OP`: one op on named tensors, the way in for people who compare with NumPy or PyTorch.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use host::Device;

use super::{
    DeviceArgs, Failure, Outcome,
    tensors::{Inputs, Outputs, save},
};

mod attention;
mod basic;
mod cache;
mod linear;
mod rows;

/// Arguments of `run`.
#[derive(Args)]
pub struct RunArgs {
    #[command(subcommand)]
    op: Op,
}

/// Where tensors come from and go to, and which machine computes.
#[derive(Args)]
struct Files {
    /// Safetensors file with the op's inputs under the names that its help lists.
    #[arg(long = "in", value_name = "X.safetensors")]
    input: PathBuf,
    /// Safetensors file to write the outputs to.
    #[arg(long = "out", value_name = "Y.safetensors")]
    output: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Subcommand)]
enum Op {
    /// Attention. Tensors: q, k, v and, if there, alibi_slopes, sinks → out, lse.
    Attention {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: attention::DenseOptions,
    },
    /// Attention of packed sequences. Tensors: q, k, v [tokens, heads, head dim], cu_seqlens_q, cu_seqlens_k and, if
    /// there, alibi_slopes, sinks → out, lse.
    AttentionVarlen {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: attention::Options,
    },
    /// Gradients of attention. Tensors: q, k, v, dout and, if there, out and lse (else computed), alibi_slopes, sinks,
    /// cu_seqlens_q and cu_seqlens_k (then packed as for attention-varlen) → dq, dk, dv (dsinks).
    AttentionBackward {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: attention::DenseOptions,
    },
    /// c = a + b, f32 of one shape. Tensors: a, b → c.
    VectorAdd {
        #[command(flatten)]
        files: Files,
    },
    /// Sum, mean, max, min, argmax or sum of squares. Tensors: x → y (f32; argmax i64).
    Reduce {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: basic::ReduceOptions,
    },
    /// y = act(x·W + bias) + residual. Tensors: x [.., K], w, bias, residual (the last two optional) → y.
    Linear {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: linear::LinearOptions,
    },
    #[command(flatten)]
    Rows(rows::RowOp),
    /// Rotary position embedding. Tensors: q, k [B, S, H, D], positions [B, S] i32 → q, k.
    Rope {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: cache::RopeOptions,
    },
    /// Write tokens to slots of a cache. Tensors: k, v [T, Hkv, D], k_cache, v_cache [pages, page, Hkv, D],
    /// slots [T] i64, and for caches of F8_E4M3 perhaps k_scale, v_scale [Hkv] f32 → k_cache, v_cache.
    CacheAppend {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: cache::PoolOptions,
    },
    /// Read sequences out of a cache, padded with zeros. Tensors: k_cache, v_cache, block_table [B, max] i32,
    /// cache_seqlens [B] i32, and for caches of F8_E4M3 perhaps k_scale, v_scale [Hkv] f32 → k, v.
    CacheRead {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: cache::ReadArgs,
    },
    /// Attention of new tokens over a cache. Tensors: q [B, Sq, Hq, D], k_cache, v_cache, block_table [B, max] i32,
    /// cache_seqlens [B] i32 (whole lengths; with k, v [B, Sq, Hkv, D] and perhaps cos, sin, which are appended first,
    /// the lengths before), alibi_slopes, sinks, leftpad_k, cache_batch_idx, k_scale, v_scale [Hkv] f32 (caches of F8_E4M3)
    /// → out, lse, k_cache, v_cache.
    Decode {
        #[command(flatten)]
        files: Files,
        #[command(flatten)]
        options: cache::DecodeArgs,
    },
}

/// Runs one op.
pub fn run(args: RunArgs) -> Outcome {
    match args.op {
        Op::Attention { files, options } => files.apply(|_, inputs| attention::attention(inputs, &options)),
        Op::AttentionVarlen { files, options } => {
            files.apply(|_, inputs| attention::attention_varlen(inputs, &options))
        }
        Op::AttentionBackward { files, options } => {
            files.apply(|_, inputs| attention::attention_backward(inputs, &options))
        }
        Op::VectorAdd { files } => files.apply(|_, inputs| basic::vector_add(inputs)),
        Op::Reduce { files, options } => files.apply(|_, inputs| basic::reduce(inputs, &options)),
        Op::Linear { files, options } => files.apply(|_, inputs| linear::linear(inputs, &options)),
        Op::Rows(op) => rows::run(op),
        Op::Rope { files, options } => files.apply(|device, inputs| cache::rope(device, inputs, &options)),
        Op::CacheAppend { files, options } => files.apply(|_, inputs| cache::append(inputs, &options)),
        Op::CacheRead { files, options } => files.apply(|_, inputs| cache::read(inputs, &options)),
        Op::Decode { files, options } => files.apply(|_, inputs| cache::decode(inputs, &options)),
    }
}

impl Files {
    /// Loads the inputs, runs `op`, waits for it and writes what it returns.
    fn apply(self, op: impl FnOnce(&Device, &Inputs) -> Result<Outputs, Failure>) -> Outcome {
        let device = self.device.open()?;
        let inputs = Inputs::load(&self.input, &device)?;
        let outputs = op(&device, &inputs)?;
        device.synchronize()?;
        save(&self.output, &outputs)?;
        let names: Vec<String> = outputs
            .iter()
            .map(|(name, tensor)| format!("{name} {tensor:?}"))
            .collect();
        say!("{} ← {} ({device})", self.output.display(), names.join(", "));
        Ok(())
    }
}
