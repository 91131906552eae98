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
}

/// Runs one op.
pub fn run(args: RunArgs) -> Outcome {
    match args.op {
        Op::Attention { files, options } => files.apply(|_, inputs| attention::attention(inputs, &options)),
        Op::AttentionVarlen { files, options } => {
            files.apply(|_, inputs| attention::attention_varlen(inputs, &options))
        }
        Op::VectorAdd { files } => files.apply(|_, inputs| basic::vector_add(inputs)),
        Op::Reduce { files, options } => files.apply(|_, inputs| basic::reduce(inputs, &options)),
        Op::Linear { files, options } => files.apply(|_, inputs| linear::linear(inputs, &options)),
        Op::Rows(op) => rows::run(op),
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
