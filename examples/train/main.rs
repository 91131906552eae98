//! Train a small GPT from scratch on the kernels of this library alone, forward and backward:
//!
//!     cargo run --release --example train -- --plot loss.svg --sample 400
//!
//! The text is `stories.txt` beside this file, byte by byte, unless `--text` names another. See docs/training.md.

mod gpt;
mod plot;
mod random;
mod reference;
mod text;
mod trainer;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use ferroflash::{DType, Device, DeviceKind, DeviceOptions};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{gpt::Shape, plot::Curve, reference::Run, text::Text, trainer::Settings, trainer::Trainer};

/// The text that travels with the example.
const STORIES: &[u8] = include_bytes!("stories.txt");
/// Batches of an evaluation.
const EVALUATION: u64 = 4;

/// Train a small GPT from scratch.
#[derive(Parser)]
struct Arguments {
    /// Steps of the optimizer.
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Sequences of a step.
    #[arg(long, default_value_t = 16, value_parser = positive())]
    batch: u64,
    /// Tokens (bytes) of a sequence.
    #[arg(long, default_value_t = 128, value_parser = positive())]
    context: u64,
    /// Layers.
    #[arg(long, default_value_t = 4, value_parser = positive())]
    layers: u64,
    /// Heads of attention.
    #[arg(long, default_value_t = 4, value_parser = positive())]
    heads: u64,
    /// Features of a token; a head has width / heads, a multiple of 8 up to 256.
    #[arg(long, default_value_t = 128, value_parser = positive())]
    width: u64,
    /// Learning rate of AdamW, constant.
    #[arg(long = "lr", default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay of matrices.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Probability of dropping a probability of attention.
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    /// Type of weights and activations; moments and the optimizer's copy are f32.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Seed of weights, batches, dropout and samples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A text to learn instead of the stories.
    #[arg(long)]
    text: Option<PathBuf>,
    /// auto (the first GPU, else the emulator), cuda, cuda:N or emulator.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: Choice,
    /// Look at the held-out text every so many steps; 0 never.
    #[arg(long, default_value_t = 100)]
    evaluate: u64,
    /// Write the curve of losses to this SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Let the model write so many bytes at the end.
    #[arg(long, default_value_t = 0)]
    sample: u64,
    /// Instead: the 20 steps of this run of PyTorch (tiny or default), held against its losses.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["text", "dtype", "dropout"])]
    compare: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// What `--device` said; nothing is `auto`.
#[derive(Clone, Copy)]
struct Choice(Option<DeviceKind>);

fn positive() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=1 << 20)
}

fn device(text: &str) -> Result<Choice, String> {
    Ok(Choice(match text {
        "auto" => None,
        "cuda" => Some(DeviceKind::Cuda(0)),
        "emulator" => Some(DeviceKind::Emulator),
        _ => match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Some(DeviceKind::Cuda(ordinal)),
            _ => return Err("expected auto, cuda, cuda:N or emulator".into()),
        },
    }))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("train: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::with_options(arguments.device.0, DeviceOptions::default())?;
    println!("on {device}: {}", device.selection());
    if let Some(name) = &arguments.compare {
        let farthest = compare(&device, &Run::named(name)?, usize::MAX, |line| println!("{line}"))?;
        println!(
            "the farthest is {farthest:.1e} from PyTorch's; {:.0e} is allowed",
            reference::TOLERANCE
        );
        return Ok(());
    }
    if !arguments.width.is_multiple_of(8 * arguments.heads) {
        let problem = format!("--width {} --heads {}", arguments.width, arguments.heads);
        return Err(format!("{problem}: the features of a head must be a multiple of 8").into());
    }
    let settings = Settings {
        shape: Shape {
            layers: arguments.layers,
            heads: arguments.heads,
            width: arguments.width,
            context: arguments.context,
        },
        batch: arguments.batch,
        learning_rate: arguments.learning_rate,
        weight_decay: arguments.weight_decay,
        dropout: arguments.dropout,
        seed: arguments.seed,
    };
    let bytes = match &arguments.text {
        Some(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => STORIES.to_vec(),
    };
    let text = Text::new(bytes, settings.shape.context)?;
    let dtype = match arguments.dtype {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let mut trainer = Trainer::new(&device, settings, dtype)?;
    let curve = train(&mut trainer, &settings, &text, arguments.steps, arguments.evaluate)?;
    if let Some(path) = &arguments.plot {
        let title = format!("{} parameters, {dtype}, on {device}", trainer.parameters());
        curve.draw(path, &title)?;
        println!("{} written", path.display());
    }
    if arguments.sample > 0 {
        let written = trainer.write(b"Once upon a time", arguments.sample, 0.8)?;
        println!("{}", String::from_utf8_lossy(&written));
    }
    Ok(())
}

fn train(
    trainer: &mut Trainer,
    settings: &Settings,
    text: &Text,
    steps: u64,
    evaluate: u64,
) -> Result<Curve, Box<dyn std::error::Error>> {
    let Settings { shape, batch, seed, .. } = *settings;
    println!(
        "{} parameters, {} bytes to learn from, {} of them a step",
        trainer.parameters(),
        text.train_bytes(),
        batch * shape.context
    );
    let bar = ProgressBar::new(steps);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} {msg} {elapsed} of about {duration}",
    )?);
    let mut curve = Curve::default();
    for step in 0..steps {
        let loss = trainer.step(&text.batch(seed, step, batch, shape.context))?;
        if !loss.is_finite() {
            return Err(format!("the loss of step {} is {loss}: try a smaller --lr", step + 1).into());
        }
        curve.train.push((step + 1, loss));
        bar.set_message(format!("loss {loss:.3}"));
        bar.inc(1);
        if evaluate > 0 && (step + 1) % evaluate == 0 {
            let mut sum = 0.0;
            for index in 0..EVALUATION {
                sum += trainer.evaluate(&text.held_out(index, batch, shape.context))?;
            }
            let held_out = sum / EVALUATION as f32;
            curve.held_out.push((step + 1, held_out));
            bar.suspend(|| println!("step {}: loss {loss:.4}, held out {held_out:.4}", step + 1));
        }
    }
    bar.finish_and_clear();
    if let (Some((_, first)), Some((step, last))) = (curve.train.first(), curve.train.last()) {
        println!("loss {first:.4} at the start, {last:.4} after {step} steps");
    }
    Ok(curve)
}

/// Trains as PyTorch did, for at most so many steps; the largest distance of a loss, as a part of it.
fn compare(
    device: &Device,
    run: &Run,
    steps: usize,
    mut say: impl FnMut(String),
) -> Result<f32, Box<dyn std::error::Error>> {
    let settings = run.settings();
    let text = Text::new(STORIES.to_vec(), settings.shape.context)?;
    let mut trainer = Trainer::new(device, settings, DType::F32)?;
    let mut farthest = 0.0f32;
    for (step, &expected) in run.losses.iter().enumerate().take(steps) {
        let batch = text.batch(settings.seed, step as u64, settings.batch, settings.shape.context);
        let loss = trainer.step(&batch)?;
        let distance = (loss - expected).abs() / expected;
        say(format!("step {:2}: {loss:.6}, PyTorch {expected:.6}", step + 1));
        if distance.is_nan() || distance > reference::TOLERANCE {
            let problem = format!("step {}: the loss is {loss}, PyTorch's {expected}", step + 1);
            return Err(format!("{problem}: {distance:.1e} apart").into());
        }
        farthest = farthest.max(distance);
    }
    Ok(farthest)
}

#[cfg(test)]
mod tests {
    use ferroflash::Tier;

    use super::*;

    /// The emulator on every tier, and the GPU where there is one.
    #[test]
    fn the_first_losses_are_pytorchs() {
        let run = Run::named("tiny").unwrap();
        assert_eq!(run.losses.len(), 20);
        for tier in Tier::ALL {
            let options = DeviceOptions {
                tier: Some(tier),
                ..DeviceOptions::default()
            };
            let device = Device::with_options(Some(DeviceKind::Emulator), options).unwrap();
            let steps = if tier == Tier::Sm90a { 20 } else { 4 };
            compare(&device, &run, steps, |_| {}).unwrap_or_else(|error| panic!("{device}: {error}"));
        }
        if let Ok(device) = Device::cuda(0) {
            compare(&device, &run, 20, |_| {}).unwrap();
            compare(&device, &Run::named("default").unwrap(), 20, |_| {}).unwrap();
        }
    }

    /// With dropout and without f32: losses fall, the curve is drawn, the model writes.
    #[test]
    fn a_short_training() {
        let device = Device::new().unwrap();
        let mut settings = Run::named("tiny").unwrap().settings();
        settings.dropout = 0.1;
        let text = Text::new(STORIES.to_vec(), settings.shape.context).unwrap();
        // Attention has no bf16 there.
        let dtype = if device.tier() == Tier::Sm75 {
            DType::F32
        } else {
            DType::BF16
        };
        let mut trainer = Trainer::new(&device, settings, dtype).unwrap();
        let curve = train(&mut trainer, &settings, &text, 8, 4).unwrap();
        let losses: Vec<f32> = curve.train.iter().map(|(_, loss)| *loss).collect();
        assert!(losses[7] < losses[0] - 0.5, "{losses:?}");
        assert!(curve.held_out.len() == 2 && curve.held_out[1].1 < curve.held_out[0].1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        curve.draw(&path, "losses").unwrap();
        assert!(std::fs::read_to_string(path).unwrap().contains("held out"));
        assert_eq!(trainer.write(b"On", 3, 0.8).unwrap().len(), 5);
    }

    #[test]
    fn bad_arguments_are_errors() {
        assert!(Text::new(vec![0; 100], 64).is_err());
        assert!(Run::named("large").is_err());
        let parse = |options: &[&str]| Arguments::try_parse_from([&["train"], options].concat());
        assert!(parse(&["--batch", "0"]).is_err());
        assert!(parse(&["--device", "tpu"]).is_err());
        assert!(parse(&["--compare", "tiny", "--dtype", "bf16"]).is_err());
        let arguments = parse(&["--width", "100", "--device", "emulator"]).unwrap();
        assert!(run(&arguments).unwrap_err().to_string().contains("multiple of 8"));
    }
}
