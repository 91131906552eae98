//! `run attention`, `run attention-varlen` and `run attention-backward`.

use clap::{Args, ValueEnum};
use host::ops::{self, Attention, AttentionCall, AttentionOptions, Causal, Dropout, Layout};
use host::{AnyTensor, DType, Tensor};

use super::{Failure, Inputs, Outputs};

/// Options of both.
#[derive(Args)]
pub struct Options {
    /// Mask keys after the query; the last query meets the last key.
    #[arg(long)]
    causal: bool,
    /// Factor of the scores; 1/√D unless given.
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Keys before its own position that a query sees; −1 is all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=u32::MAX as i64))]
    window_left: i64,
    /// Keys after its own position that a query sees; −1 is all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=u32::MAX as i64))]
    window_right: i64,
    /// Bend scores to c·tanh(score/c); 0 is off.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    softcap: f32,
    /// Probability of dropping a probability of attention; 0 is off.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<f32>,
    /// Seed of dropout.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Offset of dropout under its seed.
    #[arg(long, default_value_t = 0)]
    offset: u64,
}

/// Options of `run attention`.
#[derive(Args)]
pub struct DenseOptions {
    #[command(flatten)]
    options: Options,
    /// Order of the axes: [B, S, H, D] or [B, H, S, D].
    #[arg(long, value_enum, default_value = "bshd")]
    layout: Axes,
}

#[derive(Clone, Copy, ValueEnum)]
enum Axes {
    Bshd,
    Bhsd,
}

impl From<Axes> for Layout {
    fn from(axes: Axes) -> Layout {
        match axes {
            Axes::Bshd => Layout::Bshd,
            Axes::Bhsd => Layout::Bhsd,
        }
    }
}

impl Options {
    fn apply(&self, inputs: &Inputs, layout: Layout) -> AttentionOptions {
        AttentionOptions {
            layout,
            causal: if self.causal { Causal::BottomRight } else { Causal::No },
            window_left: u32::try_from(self.window_left).ok(),
            window_right: u32::try_from(self.window_right).ok(),
            scale: self.scale,
            softcap: self.softcap,
            alibi_slopes: inputs.optional("alibi_slopes").cloned(),
            sinks: inputs.optional("sinks").cloned(),
            dropout: self.dropout.map(|probability| Dropout {
                probability,
                seed: self.seed,
                offset: self.offset,
            }),
        }
    }
}

fn outputs(call: AttentionCall) -> Result<Outputs, Failure> {
    let result = call.run()?;
    Ok(Outputs::from([("out", result.out), ("lse", result.lse)]))
}

/// q, k, v (alibi_slopes, sinks) → out, lse.
pub fn attention(inputs: &Inputs, options: &DenseOptions) -> Result<Outputs, Failure> {
    let (q, k, v) = (inputs.get("q")?, inputs.get("k")?, inputs.get("v")?);
    outputs(ops::attention(q, k, v).options(options.options.apply(inputs, options.layout.into())))
}

/// q, k, v, cu_seqlens_q, cu_seqlens_k (alibi_slopes, sinks) → out, lse.
pub fn attention_varlen(inputs: &Inputs, options: &Options) -> Result<Outputs, Failure> {
    let (q, k, v) = (inputs.get("q")?, inputs.get("k")?, inputs.get("v")?);
    let bounds_q = Bounds::read("cu_seqlens_q", inputs.get("cu_seqlens_q")?, q)?;
    let bounds_k = Bounds::read("cu_seqlens_k", inputs.get("cu_seqlens_k")?, k)?;
    let call = ops::attention(q, k, v)
        .options(options.apply(inputs, Layout::Bshd))
        .cu_seqlens(&bounds_q.tensor, &bounds_k.tensor, bounds_q.longest, bounds_k.longest);
    outputs(call)
}

/// q, k, v, dout (out, lse, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k) → dq, dk, dv (dsinks).
pub fn attention_backward(inputs: &Inputs, options: &DenseOptions) -> Result<Outputs, Failure> {
    let (q, k, v) = (inputs.get("q")?, inputs.get("k")?, inputs.get("v")?);
    let grad_out = inputs.get("dout")?;
    let op_options = options.options.apply(inputs, options.layout.into());
    let bounds = match (inputs.optional("cu_seqlens_q"), inputs.optional("cu_seqlens_k")) {
        (None, None) => None,
        _ => Some((
            Bounds::read("cu_seqlens_q", inputs.get("cu_seqlens_q")?, q)?,
            Bounds::read("cu_seqlens_k", inputs.get("cu_seqlens_k")?, k)?,
        )),
    };
    // Both or none: one of another call would fit no better than a wrong one.
    let forward = match (inputs.optional("out"), inputs.optional("lse")) {
        (Some(out), Some(lse)) => Attention {
            out: out.clone(),
            lse: lse.clone(),
        },
        (None, None) => {
            let mut call = ops::attention(q, k, v).options(op_options.clone());
            if let Some((q, k)) = &bounds {
                call = call.cu_seqlens(&q.tensor, &k.tensor, q.longest, k.longest);
            }
            call.run()?
        }
        (Some(_), None) => return Err(Failure::Failed("out is there without lse: give both or none".into())),
        (None, Some(_)) => return Err(Failure::Failed("lse is there without out: give both or none".into())),
    };
    let mut call = ops::attention_backward(grad_out, q, k, v, &forward.out, &forward.lse).options(op_options);
    if let Some((q, k)) = &bounds {
        call = call.cu_seqlens(&q.tensor, &k.tensor, q.longest, k.longest);
    }
    let gradients = call.run()?;
    let mut outputs = Outputs::from([("dq", gradients.dq), ("dk", gradients.dk), ("dv", gradients.dv)]);
    outputs.extend(gradients.dsinks.map(|dsinks| ("dsinks", dsinks)));
    Ok(outputs)
}

/// Bounds of packed sequences, checked.
struct Bounds {
    tensor: Tensor<i32>,
    longest: u64,
}

impl Bounds {
    /// Reads bounds of either integer type; they must begin at 0, ascend, and end at the number of tokens.
    fn read(name: &str, tensor: &AnyTensor, tokens: &AnyTensor) -> Result<Bounds, Failure> {
        let bounds: Vec<i64> = match tensor.dtype() {
            DType::I32 => tensor
                .typed::<i32>("bounds")?
                .to_vec()?
                .into_iter()
                .map(i64::from)
                .collect(),
            DType::I64 => tensor.typed::<i64>("bounds")?.to_vec()?,
            other => return Err(Failure::Failed(format!("{name} is {other}; i32 or i64 is needed"))),
        };
        let total = tokens.extent(0);
        let ascending = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
        let (first, last) = (bounds.first().copied(), bounds.last().copied());
        if tensor.rank() != 1 || first != Some(0) || !ascending || last != i64::try_from(total).ok() {
            let problem = format!("must be [sequences + 1] and ascend from 0 to the {total} tokens");
            return Err(Failure::Failed(format!("{name} {problem}; it is {bounds:?}")));
        }
        let longest = bounds.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let narrow: Result<Vec<i32>, _> = bounds.iter().map(|&bound| i32::try_from(bound)).collect();
        let narrow = narrow.map_err(|_| Failure::Failed(format!("{name}: {total} tokens are more than 2^31 − 1")))?;
        let tensor = Tensor::from_slice(tensor.device(), &narrow, &[narrow.len() as u64])?;
        Ok(Bounds {
            tensor,
            longest: longest as u64,
        })
    }
}
