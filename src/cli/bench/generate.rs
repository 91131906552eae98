//! `bench generate`: whole models with random weights of the true shapes.

use std::time::Instant;

use host::{DType, Device};
use models::{BatchOptions, GenerateOptions, Model, ModelConfig};
use serde::Serialize;
use serde_json::json;

use super::{super::Failure, PeerTime, harness::median, peers::Peers};

/// A model by its `config.json`, and what is measured on it.
struct Subject {
    name: &'static str,
    dtype: DType,
    config: &'static str,
    /// Tokens of a long prompt whose time is measured, or 0.
    long_prompt: usize,
    /// Sequences that decode together with 1,024 tokens of context, or 0.
    together: usize,
}

const GPT2: &str =
    r#"{"model_type":"gpt2","vocab_size":50257,"n_positions":1024,"n_embd":768,"n_layer":12,"n_head":12}"#;
const LLAMA_1B: &str = r#"{"model_type":"llama","vocab_size":128256,"hidden_size":2048,"intermediate_size":8192,
    "num_hidden_layers":16,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,"rms_norm_eps":1e-5,
    "max_position_embeddings":131072,"rope_theta":500000.0,"tie_word_embeddings":true}"#;
const LLAMA_8B: &str = r#"{"model_type":"llama","vocab_size":128256,"hidden_size":4096,"intermediate_size":14336,
    "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"rms_norm_eps":1e-5,
    "max_position_embeddings":131072,"rope_theta":500000.0,"tie_word_embeddings":false}"#;

const SUBJECTS: [Subject; 3] = [
    Subject {
        name: "GPT-2 124M",
        dtype: DType::F16,
        config: GPT2,
        long_prompt: 0,
        together: 0,
    },
    Subject {
        name: "Llama-3.2-1B",
        dtype: DType::BF16,
        config: LLAMA_1B,
        long_prompt: 0,
        together: 64,
    },
    Subject {
        name: "Llama-3.1-8B",
        dtype: DType::BF16,
        config: LLAMA_8B,
        long_prompt: 8192,
        together: 0,
    },
];

/// Tokens of the prompt and of the answer.
const PROMPT: usize = 128;
const ANSWER: usize = 128;

/// Figures of one model.
#[derive(Serialize)]
pub struct ModelRow {
    model: &'static str,
    dtype: String,
    parameters: u64,
    /// Seconds to make the weights, and from then to the first token ever, kernels being loaded meanwhile.
    made_s: f64,
    first_token_s: f64,
    /// Seconds from the prompt to its first token, once warm.
    prompt_s: f64,
    decode_tokens_per_second: f64,
    /// What reading every weight once a token would allow, at the copy bandwidth.
    floor_tokens_per_second: f64,
    long_prompt: Option<LongPrompt>,
    together: Option<(usize, f64)>,
    breakdown: Vec<Part>,
    breakdown_together: Vec<Part>,
}

/// The time to the first token of a long prompt.
#[derive(Serialize)]
struct LongPrompt {
    tokens: usize,
    seconds: f64,
    /// The same model in transformers, in turns with ours.
    peers: Vec<PeerTime>,
}

/// Launches of one kind in a step.
#[derive(Serialize)]
struct Part {
    name: &'static str,
    launches: usize,
    microseconds: f64,
    /// Of weights.
    terabytes_per_second: f64,
}

/// What it measures, for `--list`.
pub const WHAT: &str = "whole models with random weights: prompt, decode steps, many sequences";

/// Measures and prints every model whose name contains `only`; `copy` is the bandwidth in TB/s. A script in `peers` takes
/// turns with the long prompt; why one drops out is said.
pub fn run(
    device: &Device,
    copy: f64,
    only: Option<&str>,
    peers: &mut Option<Peers>,
) -> Result<Vec<ModelRow>, Failure> {
    let wanted = |subject: &&Subject| only.is_none_or(|text| subject.name.contains(text));
    if !SUBJECTS.iter().any(|subject| wanted(&subject)) {
        let names: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name).collect();
        return Err(Failure::Usage(format!(
            "no model's name contains the text; known: {}",
            names.join(", ")
        )));
    }
    SUBJECTS
        .iter()
        .filter(wanted)
        .map(|subject| measure(device, subject, copy, peers))
        .collect()
}

fn prompt(tokens: usize, seed: u32) -> Vec<u32> {
    (0..tokens as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) % 997)
        .collect()
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        eos: Some(Vec::new()),
        ..GenerateOptions::default()
    }
}

/// Seconds to the first token and from there to the last.
fn once(model: &Model, prompt: &[u32], answer: usize) -> Result<(f64, f64), Failure> {
    let mut tokens = model.generate(prompt, greedy(answer))?;
    let begin = Instant::now();
    tokens.next().transpose()?;
    let first = begin.elapsed().as_secs_f64();
    for token in tokens {
        token?;
    }
    Ok((first, begin.elapsed().as_secs_f64() - first))
}

fn measure(device: &Device, subject: &Subject, copy: f64, peers: &mut Option<Peers>) -> Result<ModelRow, Failure> {
    let begin = Instant::now();
    let config = ModelConfig::from_json(subject.config.as_bytes()).map_err(|e| Failure::Failed(e.to_string()))?;
    let parameters = config.parameters();
    let model = Model::random(config, device, subject.dtype, 1)?;
    device.synchronize()?;
    let made_s = begin.elapsed().as_secs_f64();
    let ids = prompt(PROMPT, 0);
    let (first_token_s, _) = once(&model, &ids, 1)?;
    // The first steps load kernels and record the graph.
    once(&model, &ids, 8)?;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(once(&model, &ids, ANSWER)?);
    }
    runs.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (prompt_s, decode_s) = runs[runs.len() / 2];
    let embedding = (model.config().vocab_size * model.config().hidden_size) as u64;
    let read = if model.config().tie_word_embeddings {
        parameters
    } else {
        parameters - embedding
    };
    let weight_bytes = read * subject.dtype.size();
    let row = ModelRow {
        model: subject.name,
        dtype: subject.dtype.to_string(),
        parameters,
        made_s,
        first_token_s,
        prompt_s,
        decode_tokens_per_second: (ANSWER - 1) as f64 / decode_s,
        floor_tokens_per_second: copy * 1e12 / weight_bytes as f64,
        long_prompt: long_prompt(&model, subject, peers)?,
        together: together(&model, subject.together)?,
        breakdown: breakdown(&model, 1, PROMPT + ANSWER / 2)?,
        breakdown_together: breakdown(&model, subject.together, 1024)?,
    };
    print(&row);
    Ok(row)
}

/// Rounds of turns with a long prompt.
const ROUNDS: u32 = 5;

fn long_prompt(model: &Model, subject: &Subject, peers: &mut Option<Peers>) -> Result<Option<LongPrompt>, Failure> {
    let tokens = subject.long_prompt;
    if tokens == 0 {
        return Ok(None);
    }
    let ids = prompt(tokens, 1);
    once(model, &ids, 1)?;
    let mut script = peers.as_mut().filter(|_| subject.config.contains("\"llama\""));
    let mut name = String::new();
    if let Some(peer) = &mut script {
        match prepare_prompt(peer, subject) {
            Ok(ready) => name = ready,
            Err(why) => {
                say!("missing peer: transformers: {why}");
                script = None;
            }
        }
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(once(model, &ids, 1)?.0);
        match script.as_mut().map(|peer| peer.turn(&name)) {
            Some(Ok(microseconds)) => theirs.push(microseconds),
            Some(Err(why)) => {
                say!("missing peer: {name}: {why}");
                script = None;
            }
            None => {}
        }
    }
    let seconds = median(&ours);
    let peers = (!theirs.is_empty()).then(|| PeerTime {
        name,
        microseconds: median(&theirs),
        ours: seconds * 1e6,
        ratio: median(&theirs) / (seconds * 1e6),
        rounds: theirs.len() as u32,
    });
    Ok(Some(LongPrompt {
        tokens,
        seconds,
        peers: peers.into_iter().collect(),
    }))
}

/// Makes the script build the same model; the name of what is timed. One run at a time, between two events: the prompt of a
/// whole model is longer than any launch.
fn prepare_prompt(peer: &mut Peers, subject: &Subject) -> Result<String, String> {
    let mut config: serde_json::Value = serde_json::from_str(subject.config).map_err(|error| error.to_string())?;
    if let Some(fields) = config.as_object_mut() {
        fields.remove("model_type");
    }
    let case = json!({
        "op": "llama-prompt",
        "dtype": subject.dtype.name(),
        "config": config,
        "tokens": subject.long_prompt,
    });
    let (ready, failed) = peer.prepare(&case, 1, 1, false)?;
    ready.into_iter().next().ok_or_else(|| failed.join("; "))
}

fn together(model: &Model, sequences: usize) -> Result<Option<(usize, f64)>, Failure> {
    if sequences == 0 {
        return Ok(None);
    }
    const CONTEXT: usize = 1024 - ANSWER / 2;
    let mut batch = model.batch(BatchOptions {
        max_sequences: sequences,
        cache_tokens: sequences * (CONTEXT + ANSWER),
        share_prefixes: false,
    })?;
    for i in 0..sequences {
        batch.submit(&prompt(CONTEXT, i as u32), greedy(ANSWER))?;
    }
    // Prompts, and the steps that load and record.
    for _ in 0..4 {
        batch.step()?;
    }
    let begin = Instant::now();
    let mut tokens = 0;
    while batch.running() == sequences {
        tokens += batch.step()?.len();
    }
    Ok(Some((sequences, tokens as f64 / begin.elapsed().as_secs_f64())))
}

fn breakdown(model: &Model, sequences: usize, context: usize) -> Result<Vec<Part>, Failure> {
    if sequences == 0 {
        return Ok(Vec::new());
    }
    let parts = model.profile_decode(sequences, context)?.into_iter();
    Ok(parts
        .map(|p| Part {
            name: p.name,
            launches: p.launches,
            microseconds: p.microseconds,
            terabytes_per_second: p.weight_bytes as f64 / p.microseconds / 1e6,
        })
        .collect())
}

fn print(row: &ModelRow) {
    say!(
        "{} {}: {:.1} tokens/s (floor {:.0}: {:.0} %), prompt of {PROMPT} in {:.1} ms, first token ever after {:.2} s, weights made \
         in {:.2} s",
        row.model,
        row.dtype,
        row.decode_tokens_per_second,
        row.floor_tokens_per_second,
        100.0 * row.decode_tokens_per_second / row.floor_tokens_per_second,
        row.prompt_s * 1e3,
        row.first_token_s,
        row.made_s
    );
    if let Some(long) = &row.long_prompt {
        let peers: Vec<String> = long
            .peers
            .iter()
            .map(|peer| {
                format!(
                    "; {} {:.1} ms, {:.2} times ours",
                    peer.name,
                    peer.microseconds / 1e3,
                    peer.ratio
                )
            })
            .collect();
        say!(
            "  prompt of {}: {:.1} ms, {:.0} tokens/s{}",
            long.tokens,
            long.seconds * 1e3,
            long.tokens as f64 / long.seconds,
            peers.concat()
        );
    }
    if let Some((sequences, rate)) = row.together {
        say!("  {sequences} sequences at 1024 tokens: {rate:.0} tokens/s in all");
    }
    say!(
        "  a step of one sequence takes {:.1} µs:",
        1e6 / row.decode_tokens_per_second
    );
    row.breakdown.iter().for_each(print_part);
    if let Some((sequences, rate)) = row.together {
        say!("  a step of {sequences} takes {:.1} µs:", sequences as f64 * 1e6 / rate);
        row.breakdown_together.iter().for_each(print_part);
    }
}

fn print_part(part: &Part) {
    say!(
        "    {:<28} {:>4} × {:>9.1} µs in all, {:>6.2} TB/s of weights",
        part.name,
        part.launches,
        part.microseconds,
        part.terabytes_per_second
    );
}
