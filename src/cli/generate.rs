//! `ferroflash generate`: text from a model folder, and what a bare `ferroflash` does.

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use clap::Args;
use host::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use models::{
    BatchOptions, Checkpoint, GenerateOptions, LoadOptions, Message, Model, Role, SamplingOptions, TextStream, small,
};

use super::{DeviceArgs, Failure, Outcome, tensors};

/// What the small model is asked to continue when nobody says anything.
const FIRST_WORDS: &str = "Once upon a time";

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Arguments of `generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// Hugging Face folder of a GPT-2, Llama, Mistral, Qwen2 or Qwen3 model, or its name on the hub (organisation/model) in a
    /// program that is built with the feature `hub`. Without it the small model in this program.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Text to continue, or to answer with --chat. Several prompts run as one batch.
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Vec<String>,
    /// File with one prompt a line; they run as one batch.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Treat the prompt as a message and answer it, by the model's chat template.
    #[arg(long)]
    chat: bool,
    /// What the model is told before a --chat message.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most new tokens.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Divisor of the logits; 0 always takes the likeliest token. What the model's makers say, unless given.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Choose among so many of the likeliest tokens; 0: all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Key of the random numbers: the same key, the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End the text before this string. May be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the token that ends a text.
    #[arg(long)]
    ignore_eos: bool,
    /// Type of weights, activations and cache: f32, f16 or bf16. That of the files, unless given.
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// Print times and memory after the text.
    #[arg(long)]
    stats: bool,
    /// Also write the logits of every position of the prompt (f32, [tokens, vocabulary]) and its tokens to this file.
    #[arg(long, value_name = "OUT.safetensors")]
    logits: Option<PathBuf>,
    /// Most sequences of a batch that run at a time.
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn parse_dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("expected f32, f16 or bf16".into()),
    }
}

/// Times of a run.
struct Timing {
    started: Instant,
    loaded: Duration,
    prompt_tokens: usize,
    first_token: Option<Duration>,
    new_tokens: usize,
    ended: Duration,
}

impl Timing {
    fn decode_rate(&self, first: usize) -> f64 {
        let time = self
            .ended
            .saturating_sub(self.first_token.unwrap_or(self.ended))
            .as_secs_f64();
        self.new_tokens.saturating_sub(first) as f64 / time.max(1e-9)
    }
}

/// What a bare `ferroflash` does: the small model tells a story, and the last line says where and how fast.
pub fn story(started: Instant) -> Outcome {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        args: GenerateArgs,
    }
    let defaults = <Defaults as clap::Parser>::parse_from(["ferroflash"]);
    generate(defaults.args, started)
}

/// Generates.
pub fn generate(args: GenerateArgs, started: Instant) -> Outcome {
    let device = args.device.open()?;
    let built_in = args.model.is_none();
    let model = load(args.model.as_deref(), args.dtype, &device)?;
    let loaded = started.elapsed();
    if built_in {
        eprintln!(
            "{}, a model of {:.1} million parameters that comes with ferroflash, on {}",
            model.name(),
            model.config().parameters() as f64 / 1e6,
            describe(&device)
        );
    }
    let prompts = args.prompts()?;
    let encoded: Vec<Vec<u32>> = prompts
        .iter()
        .map(|p| args.encode(&model, p))
        .collect::<Result<_, _>>()?;
    if let Some(path) = &args.logits {
        write_logits(&model, &encoded, path)?;
    }
    let options = args.options(&model, built_in);
    // A second Ctrl-C ends the process at once.
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .map_err(|error| Failure::Failed(format!("Ctrl-C cannot be handled: {error}")))?;
    let mut timing = Timing {
        started,
        loaded,
        prompt_tokens: encoded.iter().map(Vec::len).sum(),
        first_token: None,
        new_tokens: 0,
        ended: Duration::ZERO,
    };
    if let [prompt] = encoded.as_slice() {
        // A plain prompt is part of the text; an answer stands alone.
        let shown = if args.chat { "" } else { prompts[0].as_str() };
        args.one(&model, prompt, options, shown, &mut timing)?;
    } else {
        args.many(&model, &encoded, options, &mut timing)?;
    }
    args.report(&model, &timing, built_in, encoded.len())?;
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// Loads a model with a progress bar on standard error.
pub(super) fn load(folder: Option<&std::path::Path>, dtype: Option<DType>, device: &Device) -> Result<Model, Failure> {
    let checkpoint = match folder {
        Some(folder) => Checkpoint::open(models::hub::resolve(folder)?)?,
        None => small::stories_llama()?,
    };
    // Hidden where standard error is no terminal; a small model is there before one could read it.
    let bar = if checkpoint.bytes() > 64 << 20 {
        ProgressBar::new(checkpoint.bytes())
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes} ({bytes_per_sec})");
    bar.set_style(style.map_err(|error| Failure::Failed(error.to_string()))?);
    let told = bar.clone();
    // The emulator needs fewest instructions in f32, and the small model has room for it.
    let dtype = dtype.or((folder.is_none() && device.is_emulator()).then_some(DType::F32));
    let options = LoadOptions {
        dtype,
        progress: Some(Box::new(move |p: models::Progress| told.set_position(p.done))),
    };
    let model = Model::from_checkpoint(&checkpoint, device, options)?;
    bar.finish_and_clear();
    Ok(model)
}

fn describe(device: &Device) -> String {
    if device.is_emulator() {
        format!("the emulator ({})", device.tier())
    } else {
        format!("{} ({})", device.properties().name, device.kind())
    }
}

fn write_logits(model: &Model, prompts: &[Vec<u32>], path: &std::path::Path) -> Outcome {
    let [prompt] = prompts else {
        return Err(Failure::Usage("--logits takes one prompt".into()));
    };
    let ids: Vec<u8> = prompt.iter().flat_map(|t| i64::from(*t).to_le_bytes()).collect();
    let ids = host::AnyTensor::from_bytes(model.device(), DType::I64, &[prompt.len() as u64], &ids)?;
    let outputs = BTreeMap::from([("ids", ids), ("logits", model.logits(prompt)?)]);
    tensors::save(path, &outputs)
}

/// Writes text where it is seen at once.
fn show(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::Failed(format!("standard output: {error}")))
}

impl GenerateArgs {
    fn prompts(&self) -> Result<Vec<String>, Failure> {
        let Some(path) = &self.prompt_file else {
            return Ok(match self.prompt.as_slice() {
                [] => vec![FIRST_WORDS.to_owned()],
                prompts => prompts.to_vec(),
            });
        };
        let at = |problem: String| Failure::Failed(format!("{}: {problem}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| at(error.to_string()))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| at(format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())))?;
        let prompts: Vec<String> = text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
        if prompts.is_empty() {
            return Err(at("no prompt in it: one a line is expected".into()));
        }
        Ok(prompts)
    }

    fn encode(&self, model: &Model, prompt: &str) -> Result<Vec<u32>, Failure> {
        if !self.chat {
            return Ok(model.encode(prompt.as_bytes())?);
        }
        let system = self.system.iter().map(|text| Message::new(Role::System, text.as_str()));
        let messages: Vec<Message> = system.chain([Message::new(Role::User, prompt)]).collect();
        Ok(model.encode_chat(&messages)?)
    }

    fn options(&self, model: &Model, built_in: bool) -> GenerateOptions {
        let mut sampling = model.generation().sampling(self.seed);
        if self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() {
            // Whoever gives one of them wants to sample.
            let base = SamplingOptions {
                temperature: 1.0,
                ..SamplingOptions::greedy()
            };
            sampling = SamplingOptions {
                temperature: self.temperature.unwrap_or(base.temperature),
                top_k: self.top_k.unwrap_or(base.top_k),
                top_p: self.top_p.unwrap_or(base.top_p),
                seed: self.seed,
            };
        }
        let usual = if built_in {
            64
        } else {
            model.generation().max_new_tokens.unwrap_or(128)
        };
        GenerateOptions {
            max_new_tokens: self.max_new_tokens.unwrap_or(usual),
            sampling,
            stream: 0,
            eos: self.ignore_eos.then(Vec::new),
        }
    }

    /// One prompt: the text appears as it is made.
    fn one(
        &self,
        model: &Model,
        prompt: &[u32],
        options: GenerateOptions,
        shown: &str,
        timing: &mut Timing,
    ) -> Outcome {
        let tokenizer = model.tokenizer().ok_or(models::Error::NoTokenizer)?;
        let mut text = TextStream::new(tokenizer, self.stop.iter().cloned());
        let tokens = model.generate(prompt, options)?;
        show(shown)?;
        for token in tokens {
            let token = token?;
            timing.first_token.get_or_insert_with(|| timing.started.elapsed());
            timing.new_tokens += 1;
            let piece = text.push(token)?;
            show(&piece.text)?;
            if piece.stop.is_some() || INTERRUPTED.load(Ordering::SeqCst) {
                break;
            }
        }
        timing.ended = timing.started.elapsed();
        show(&text.finish()?)?;
        show("\n")
    }

    /// Several prompts: one batch, results in order.
    fn many(&self, model: &Model, prompts: &[Vec<u32>], options: GenerateOptions, timing: &mut Timing) -> Outcome {
        let tokenizer = model.tokenizer().ok_or(models::Error::NoTokenizer)?;
        let tokens: usize = prompts.iter().map(|p| p.len() + options.max_new_tokens).sum();
        let longest = prompts
            .iter()
            .map(|p| p.len() + options.max_new_tokens)
            .max()
            .unwrap_or(1);
        let mut batch = model.batch(BatchOptions {
            max_sequences: self.max_batch.min(prompts.len()),
            cache_tokens: tokens.min(longest * self.max_batch),
            share_prefixes: true,
        })?;
        let mut answers = Vec::with_capacity(prompts.len());
        for (stream, prompt) in prompts.iter().enumerate() {
            let options = GenerateOptions {
                stream: stream as u64,
                ..options.clone()
            };
            batch.submit(prompt, options)?;
            answers.push((
                TextStream::new(tokenizer, self.stop.iter().cloned()),
                String::new(),
                false,
            ));
        }
        let mut printed = 0;
        while !batch.is_idle() && !INTERRUPTED.load(Ordering::SeqCst) {
            for event in batch.step()? {
                timing.first_token.get_or_insert_with(|| timing.started.elapsed());
                let (stream, answer, done) = &mut answers[event.request.0];
                if *done {
                    continue;
                }
                timing.new_tokens += 1;
                let piece = stream.push(event.token)?;
                answer.push_str(&piece.text);
                *done = event.finished.is_some() || piece.stop.is_some();
                if piece.stop.is_some() {
                    batch.cancel(event.request)?;
                }
            }
            while let Some((stream, answer, true)) = answers.get_mut(printed) {
                show(&format!("[{printed}] {answer}{}\n", stream.finish()?))?;
                printed += 1;
            }
        }
        timing.ended = timing.started.elapsed();
        for (number, (stream, answer, _)) in answers.iter_mut().enumerate().skip(printed) {
            show(&format!("[{number}] {answer}{}\n", stream.finish()?))?;
        }
        Ok(())
    }

    fn report(&self, model: &Model, timing: &Timing, built_in: bool, prompts: usize) -> Outcome {
        let first = timing.first_token.unwrap_or(timing.ended);
        let device = model.device();
        if self.stats {
            let prompt_time = first.saturating_sub(timing.loaded);
            eprintln!(
                "loaded in {:.2} s · {} prompt tokens in {:.2} s ({:.1} tokens/s) · {} new tokens · first token after {:.2} s \
                 · {:.1} MiB at most in tensors",
                timing.loaded.as_secs_f64(),
                timing.prompt_tokens,
                prompt_time.as_secs_f64(),
                timing.prompt_tokens as f64 / prompt_time.as_secs_f64().max(1e-9),
                timing.new_tokens,
                first.as_secs_f64(),
                device.allocated().1 as f64 / f64::from(1 << 20),
            );
        }
        if built_in {
            eprintln!(
                "\nTo run a real model: ferroflash generate --model FOLDER --prompt \"...\" [--chat], where FOLDER is a Hugging \
                 Face\nsnapshot (config.json, *.safetensors, tokenizer.json) of GPT-2, Llama, Mistral, Qwen2 or Qwen3."
            );
        }
        if device.is_emulator() && built_in {
            eprintln!("There is no GPU to use here ({}).", device.selection());
        }
        eprintln!(
            "{}: {} new tokens at {:.1} tokens/s, the first after {:.2} s",
            describe(device),
            timing.new_tokens,
            timing.decode_rate(prompts.min(self.max_batch)),
            first.as_secs_f64()
        );
        Ok(())
    }
}
