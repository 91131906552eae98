//! `ferroflash perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use clap::Args;
use host::DType;
use indicatif::ProgressBar;

use super::{DeviceArgs, Failure, Outcome, generate};

/// Arguments of `perplexity`.
#[derive(Args)]
pub struct PerplexityArgs {
    /// Hugging Face folder of a model. Without it the small model in this program.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// File with the text.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window; the model's positions, but at most 1024, unless given.
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Tokens by which windows advance: fewer give more context and take longer. The window but one, unless given.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Type of weights and activations: f32, f16 or bf16.
    #[arg(long, value_parser = generate::parse_dtype)]
    dtype: Option<DType>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Prints the perplexity.
pub fn perplexity(args: PerplexityArgs) -> Outcome {
    let device = args.device.open()?;
    let text =
        std::fs::read(&args.text).map_err(|error| Failure::Failed(format!("{}: {error}", args.text.display())))?;
    let model = generate::load(args.model.as_deref(), args.dtype, &device)?;
    let ids = model.encode(&text)?;
    let window = args.window.unwrap_or(model.config().max_positions.min(1024));
    let bar = ProgressBar::new(ids.len() as u64);
    let result = model.perplexity(&ids, window, args.stride.unwrap_or(window.saturating_sub(1)), |done| {
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    println!(
        "perplexity {:.4} ({:.5} nats a token) over {} tokens, windows of {window} ({device}, {})",
        result.value(),
        result.negative_log_likelihood / result.tokens as f64,
        result.tokens,
        model.dtype()
    );
    Ok(())
}
