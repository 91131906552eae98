//! `run softmax`, `run rmsnorm`, `run cross-entropy` and the other row ops.

use clap::{Args, Subcommand};
use host::AnyTensor;
use host::ops::{self, Activation, Norm, Softmax};

use super::{Failure, Files, Inputs, Outcome, Outputs};

/// The row ops.
#[derive(Subcommand)]
pub enum RowOp {
    /// Softmax of the last axis. Tensors: x, optionally mask (added) → y.
    Softmax(SoftmaxArgs),
    /// Logarithm of the softmax of the last axis. Tensors: x, optionally mask (added) → y.
    LogSoftmax(SoftmaxArgs),
    /// Gradient of softmax. Tensors: x, dy, optionally mask → dx.
    SoftmaxBackward(SoftmaxArgs),
    /// Gradient of log-softmax. Tensors: x, dy, optionally mask → dx.
    LogSoftmaxBackward(SoftmaxArgs),
    /// RMSNorm of the last axis. Tensors: x, optionally w, residual → y (and sum = x + residual).
    #[command(name = "rmsnorm")]
    RmsNorm(NormArgs),
    /// LayerNorm of the last axis. Tensors: x, optionally w, b, residual → y (and sum = x + residual).
    #[command(name = "layernorm")]
    LayerNorm(NormArgs),
    /// Gradients of RMSNorm. Tensors: x, dy, optionally w, residual, dsum → dx, dw.
    #[command(name = "rmsnorm-backward")]
    RmsNormBackward(NormArgs),
    /// Gradients of LayerNorm. Tensors: x, dy, optionally w, b, residual, dsum → dx, dw, db.
    #[command(name = "layernorm-backward")]
    LayerNormBackward(NormArgs),
    /// Cross-entropy of rows. Tensors: logits, targets (i64) → loss (f32, one a row), lse.
    CrossEntropy(LossArgs),
    /// Gradient of cross-entropy. Tensors: logits, targets (i64), dy (f32, one a row) → dx.
    CrossEntropyBackward(LossArgs),
    /// GELU. Tensors: x → y.
    Gelu(GeluArgs),
    /// Gradient of GELU. Tensors: x, dy → dx.
    GeluBackward(GeluArgs),
    /// SiLU. Tensors: x → y.
    Silu(Files),
    /// Gradient of SiLU. Tensors: x, dy → dx.
    SiluBackward(Files),
    /// SwiGLU: silu(gate) · up. Tensors: x (gate and up side by side), or gate and up → y.
    Swiglu(Files),
    /// Gradient of SwiGLU. Tensors: x, dy → dx; or gate, up, dy → dgate, dup.
    SwigluBackward(Files),
    /// Rows of a table. Tensors: w (rows × columns), ids (i32 or i64) → y.
    Embedding(Files),
    /// Gradient of the table. Tensors: w (for its shape), ids, dy → dw.
    EmbeddingBackward(EmbeddingBackwardArgs),
    /// Draws a token for each row. Tensors: logits → tokens (i64).
    Sample(SampleArgs),
}

/// Arguments of the softmax ops.
#[derive(Args)]
pub struct SoftmaxArgs {
    #[command(flatten)]
    files: Files,
    /// Factor of x.
    #[arg(long, default_value_t = 1.0)]
    scale: f32,
    /// Row i of the last two axes sees columns up to i + columns − rows.
    #[arg(long)]
    causal: bool,
}

/// Arguments of the norms.
#[derive(Args)]
pub struct NormArgs {
    #[command(flatten)]
    files: Files,
    /// Added to the mean square.
    #[arg(long, default_value_t = 1e-5)]
    eps: f32,
}

/// Arguments of the cross-entropy ops.
#[derive(Args)]
pub struct LossArgs {
    #[command(flatten)]
    files: Files,
    /// Rows with this target have loss 0.
    #[arg(long, default_value_t = -100, allow_hyphen_values = true)]
    ignore_index: i64,
    /// Share of the target distribution that is spread over the vocabulary.
    #[arg(long, default_value_t = 0.0)]
    label_smoothing: f32,
    /// Factor of lse², added to the loss.
    #[arg(long, default_value_t = 0.0)]
    z_loss: f32,
}

/// Arguments of the GELU ops.
#[derive(Args)]
pub struct GeluArgs {
    #[command(flatten)]
    files: Files,
    /// The formula with tanh instead of the exact one.
    #[arg(long)]
    tanh: bool,
}

/// Arguments of the embedding's gradient.
#[derive(Args)]
pub struct EmbeddingBackwardArgs {
    #[command(flatten)]
    files: Files,
    /// Ids without a gradient.
    #[arg(long)]
    padding: Option<i64>,
}

/// Arguments of sampling.
#[derive(Args)]
pub struct SampleArgs {
    #[command(flatten)]
    files: Files,
    /// Divides the logits; 0 takes the largest.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Keep so many of the likeliest tokens.
    #[arg(long)]
    top_k: Option<u64>,
    /// Keep the likeliest tokens up to this probability, above 0 and up to 1.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the generator.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tells steps under one seed apart.
    #[arg(long, default_value_t = 0)]
    offset: u64,
}

/// Runs one op.
pub fn run(op: RowOp) -> Outcome {
    use RowOp::*;
    match op {
        Softmax(args) => softmax(args, false, false),
        LogSoftmax(args) => softmax(args, true, false),
        SoftmaxBackward(args) => softmax(args, false, true),
        LogSoftmaxBackward(args) => softmax(args, true, true),
        RmsNorm(args) => norm(args, false, false),
        LayerNorm(args) => norm(args, true, false),
        RmsNormBackward(args) => norm(args, false, true),
        LayerNormBackward(args) => norm(args, true, true),
        CrossEntropy(args) => cross_entropy(args, false),
        CrossEntropyBackward(args) => cross_entropy(args, true),
        Gelu(args) => activation(args.files, gelu(args.tanh), false),
        GeluBackward(args) => activation(args.files, gelu(args.tanh), true),
        Silu(files) => activation(files, Activation::Silu, false),
        SiluBackward(files) => activation(files, Activation::Silu, true),
        Swiglu(files) => files.apply(|_, inputs| swiglu(inputs)),
        SwigluBackward(files) => files.apply(|_, inputs| swiglu_backward(inputs)),
        Embedding(files) => files.apply(|_, inputs| {
            let (w, ids) = (inputs.get("w")?, inputs.get("ids")?);
            ops::check_indices("ids", ids, w.extent(0), None)?;
            Ok(Outputs::from([("y", ops::embedding(w, ids)?)]))
        }),
        EmbeddingBackward(args) => args.files.apply(|_, inputs| {
            let (w, ids) = (inputs.get("w")?, inputs.get("ids")?);
            ops::check_indices("ids", ids, w.extent(0), None)?;
            let dw = ops::embedding_backward(inputs.get("dy")?, ids, w.extent(0), args.padding)?;
            Ok(Outputs::from([("dw", dw)]))
        }),
        Sample(args) => args.files.apply(|_, inputs| {
            let mut op = ops::sample(inputs.get("logits")?)
                .temperature(args.temperature)
                .top_p(args.top_p)
                .seed(args.seed)
                .offset(args.offset);
            if let Some(top_k) = args.top_k {
                op = op.top_k(top_k);
            }
            Ok(Outputs::from([("tokens", op.run()?)]))
        }),
    }
}

fn softmax(args: SoftmaxArgs, log: bool, backward: bool) -> Outcome {
    args.files.apply(|_, inputs| {
        let x = inputs.get("x")?;
        let mut op: Softmax<'_> = if log { ops::log_softmax(x) } else { ops::softmax(x) }.scale(args.scale);
        if let Some(mask) = inputs.optional("mask") {
            op = op.mask(mask);
        }
        if args.causal {
            op = op.causal();
        }
        Ok(Outputs::from([if backward {
            ("dx", op.backward(inputs.get("dy")?)?)
        } else {
            ("y", op.run()?)
        }]))
    })
}

fn norm(args: NormArgs, centered: bool, backward: bool) -> Outcome {
    args.files.apply(|_, inputs| {
        let x = inputs.get("x")?;
        let mut op: Norm<'_> = if centered { ops::layer_norm(x) } else { ops::rms_norm(x) }.epsilon(args.eps);
        if let Some(weight) = inputs.optional("w") {
            op = op.weight(weight);
        }
        if let Some(bias) = inputs.optional("b").filter(|_| centered) {
            op = op.bias(bias);
        }
        if let Some(residual) = inputs.optional("residual") {
            op = op.residual(residual);
        }
        let mut outputs = Outputs::new();
        let mut add = |name, tensor: Option<AnyTensor>| outputs.extend(tensor.map(|tensor| (name, tensor)));
        if backward {
            let gradients = op.backward(inputs.get("dy")?, inputs.optional("dsum"))?;
            add("dx", Some(gradients.dx));
            add("dw", gradients.dweight);
            add("db", gradients.dbias);
        } else {
            let normed = op.run()?;
            add("y", Some(normed.y));
            add("sum", normed.sum);
        }
        Ok(outputs)
    })
}

fn cross_entropy(args: LossArgs, backward: bool) -> Outcome {
    args.files.apply(|_, inputs| {
        let (logits, targets) = (inputs.get("logits")?, inputs.get("targets")?);
        let vocabulary = logits.shape().last().copied().unwrap_or(0);
        ops::check_indices("targets", targets, vocabulary, Some(args.ignore_index))?;
        let op = ops::cross_entropy(logits, targets)
            .ignore_index(args.ignore_index)
            .label_smoothing(args.label_smoothing)
            .z_loss(args.z_loss);
        if backward {
            return Ok(Outputs::from([("dx", op.backward(inputs.get("dy")?)?)]));
        }
        let losses = op.run()?;
        Ok(Outputs::from([("loss", losses.loss), ("lse", losses.lse)]))
    })
}

fn gelu(tanh: bool) -> Activation {
    if tanh {
        Activation::GeluTanh
    } else {
        Activation::GeluErf
    }
}

fn activation(files: Files, activation: Activation, backward: bool) -> Outcome {
    files.apply(|_, inputs| {
        let x = inputs.get("x")?;
        Ok(Outputs::from([if backward {
            ("dx", ops::activation_backward(x, inputs.get("dy")?, activation)?)
        } else {
            ("y", ops::activation(x, activation)?)
        }]))
    })
}

fn swiglu(inputs: &Inputs) -> Result<Outputs, Failure> {
    let y = match inputs.optional("x") {
        Some(x) => ops::swiglu(x)?,
        None => ops::gated(inputs.get("gate")?, inputs.get("up")?, Activation::Silu)?,
    };
    Ok(Outputs::from([("y", y)]))
}

fn swiglu_backward(inputs: &Inputs) -> Result<Outputs, Failure> {
    let dy = inputs.get("dy")?;
    if let Some(x) = inputs.optional("x") {
        return Ok(Outputs::from([("dx", ops::swiglu_backward(x, dy)?)]));
    }
    let [dgate, dup] = ops::gated_backward(inputs.get("gate")?, inputs.get("up")?, dy, Activation::Silu)?;
    Ok(Outputs::from([("dgate", dgate), ("dup", dup)]))
}
