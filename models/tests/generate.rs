//! The models on devices, against what transformers computed and against themselves computed in another way.

mod common;

use common::{path, reference, variant, variants};
use host::{AnyTensor, DType, Device, Error as DeviceError};
use models::{
    BatchOptions, Checkpoint, Error, FinishReason, GenerateOptions, LoadOptions, Model, SamplingOptions, TextStream,
};
use serde_json::Value;

/// The emulator, and the first GPU if there is one.
fn devices() -> Vec<Device> {
    let wanted = std::env::var("FERROFLASH_TEST_DEVICE").ok();
    let mut devices = Vec::new();
    if wanted.as_deref() != Some("cuda") {
        devices.push(Device::emulator().unwrap());
    }
    if wanted.as_deref() != Some("emulator") {
        match Device::cuda(0) {
            Ok(device) => devices.push(device),
            Err(DeviceError::NoDevice { .. }) if wanted.is_none() => {}
            Err(error) => panic!("{error}"),
        }
    }
    devices
}

fn load(checkpoint: &Checkpoint, device: &Device, dtype: Option<DType>) -> Model {
    let options = LoadOptions { dtype, progress: None };
    Model::from_checkpoint(checkpoint, device, options).unwrap()
}

fn small(name: &str, device: &Device, dtype: Option<DType>) -> Model {
    load(&Checkpoint::open(path("small").join(name)).unwrap(), device, dtype)
}

fn floats(tensor: &AnyTensor) -> Vec<f32> {
    let bytes = tensor.to_bytes().unwrap();
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// Root mean square of the difference over that of the reference, and the largest difference.
fn errors(found: &[f32], expected: &[f32]) -> (f64, f64) {
    assert_eq!(found.len(), expected.len());
    let (mut difference, mut size, mut most) = (0.0, 0.0, 0.0f64);
    for (a, b) in found.iter().zip(expected) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        difference += (a - b) * (a - b);
        size += b * b;
        most = most.max((a - b).abs());
    }
    ((difference / size).sqrt(), most)
}

/// Steps of greedy text that a device can afford.
fn steps(device: &Device) -> usize {
    if device.is_emulator() { 10 } else { 64 }
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        eos: Some(Vec::new()),
        ..GenerateOptions::default()
    }
}

fn tokens(model: &Model, prompt: &[u32], options: GenerateOptions) -> Vec<u32> {
    model.generate(prompt, options).unwrap().map(Result::unwrap).collect()
}

fn told(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path("small").join(name).join("reference.json")).unwrap()).unwrap()
}

/// Every family and every scaling: two layers, f32, against transformers in f32.
#[test]
fn variants_have_the_logits_of_transformers() {
    for device in devices() {
        for name in variants() {
            let (_folder, checkpoint) = variant(&name);
            let file = path("tests/fixtures/variants")
                .join(&name)
                .join("reference.safetensors");
            let r = reference(&file);
            let model = load(&checkpoint, &device, None);
            assert_eq!(model.dtype(), DType::F32);
            let (error, _) = errors(&floats(&model.logits(&r.ids["ids"]).unwrap()), &r.floats["logits"]);
            assert!(error < 1e-5, "{name} on {device}: relative error {error:.2e}");
        }
    }
}

/// What a token sees through the cache, one at a time, is what it sees in one pass: windows and scalings that depend on the length
/// included. (transformers rotates by the length so far, so those models answer the two questions differently.)
#[test]
fn a_prompt_computed_in_parts_gives_the_tokens_of_one_pass() {
    for device in devices() {
        for name in ["gpt2", "llama", "mistral-window", "qwen2", "qwen3", "llama-yarn"] {
            let (_folder, checkpoint) = variant(name);
            let file = path("tests/fixtures/variants").join(name).join("reference.safetensors");
            let ids = &reference(&file).ids["ids"];
            let model = load(&checkpoint, &device, None);
            let logits = floats(&model.logits(ids).unwrap());
            let vocab = model.config().vocab_size;
            // Generation continues from a prompt; the logits of the whole text judge each choice.
            let prompt = &ids[..9];
            let answer = tokens(&model, prompt, greedy(4));
            let all = [prompt, &answer].concat();
            let whole = floats(&model.logits(&all).unwrap());
            for (step, token) in answer.iter().enumerate() {
                let row = &whole[(prompt.len() + step - 1) * vocab..][..vocab];
                let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert!(
                    best - row[*token as usize] < 1e-4,
                    "{name} on {device}, step {step}: token {token} is not the best"
                );
            }
            assert_eq!(
                whole[..8 * vocab],
                logits[..8 * vocab],
                "{name}: a token depends on those behind it"
            );
        }
    }
}

/// The shipped models against transformers, in f32 and in the dtype of their files.
#[test]
fn the_small_models_have_the_logits_and_the_greedy_text_of_transformers() {
    for device in devices() {
        for name in ["stories-gpt2", "stories-llama"] {
            let r = reference(&path("small").join(name).join("reference.safetensors"));
            let told = told(name);
            let prompts = told["prompts"].as_array().unwrap();
            for dtype in [Some(DType::F32), None] {
                let model = small(name, &device, dtype);
                let few = if device.is_emulator() { 2 } else { prompts.len() };
                for (i, prompt) in prompts.iter().enumerate().take(few) {
                    let ids = &r.ids[&format!("prompt{i}.ids")];
                    let found = floats(&model.logits(ids).unwrap());
                    let (error, most) = errors(&found, &r.floats[&format!("prompt{i}.logits")]);
                    // In the files' own dtype: twice the error that transformers has there.
                    let native = |of: &str| prompt["native_dtype_error"][of].as_f64().unwrap();
                    let (allowed, gap) = match model.dtype() {
                        DType::F32 => (1e-5, 1e-3),
                        _ => (2.0 * native("rms"), 2.0 * native("max")),
                    };
                    let context = format!("{name} in {} on {device}, prompt {i}", model.dtype());
                    assert!(
                        error < allowed,
                        "{context}: relative error {error:.2e} of {allowed:.2e}"
                    );
                    assert!(most < 2.0 * gap, "{context}: {most}");
                    let expected = &r.ids[&format!("prompt{i}.greedy")];
                    let answer = tokens(&model, ids, greedy(steps(&device)));
                    let gaps = &r.floats[&format!("prompt{i}.gap")];
                    for (step, (ours, theirs)) in answer.iter().zip(expected).enumerate() {
                        if ours != theirs {
                            // From a choice that rounding decides on, the texts go their own ways.
                            assert!(
                                f64::from(gaps[step]) < 2.0 * gap,
                                "{context}, step {step}: {ours} for {theirs}, a gap of {}",
                                gaps[step]
                            );
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// Prompts of different lengths, two of them with an equal beginning of more than two pages.
fn prompts() -> Vec<Vec<u32>> {
    let long: Vec<u32> = (0..40).map(|i| 200 + (i * 7) % 300).collect();
    let mut prompts: Vec<Vec<u32>> = [1usize, 5, 17, 3].iter().map(|n| long[3..3 + n].to_vec()).collect();
    prompts.push(long.clone());
    prompts.push([&long[..36], &[9, 8, 7]].concat());
    prompts
}

#[test]
fn a_batch_says_what_each_sequence_says_alone() {
    for device in devices() {
        let model = small("stories-llama", &device, None);
        let new = if device.is_emulator() { 3 } else { 32 };
        for sampling in [
            SamplingOptions::greedy(),
            SamplingOptions {
                temperature: 0.9,
                top_k: 50,
                top_p: 0.95,
                seed: 7,
            },
        ] {
            let options = |stream: usize| GenerateOptions {
                sampling,
                stream: stream as u64,
                // Different lengths, so that sequences come and go.
                ..greedy(new + stream % 3)
            };
            let mut batch = model
                .batch(BatchOptions {
                    max_sequences: 4,
                    cache_tokens: 160,
                    share_prefixes: true,
                })
                .unwrap();
            for (stream, prompt) in prompts().iter().enumerate() {
                batch.submit(prompt, options(stream)).unwrap();
            }
            let together = batch.run().unwrap();
            assert_eq!(batch.shared_tokens(), 32, "two pages are common to two prompts");
            for (stream, prompt) in prompts().iter().enumerate() {
                let alone = tokens(&model, prompt, options(stream));
                assert_eq!(together[stream], alone, "prompt {stream} on {device}, {sampling:?}");
            }
        }
    }
}

/// Sixteen sequences of sixteen lengths in one batch, more than one block of rows of the linear kernels on a GPU: each has the
/// logits that it has alone, or greedy choices would part.
#[test]
fn sixteen_lengths_together_are_sixteen_alone() {
    for device in devices() {
        let (_folder, checkpoint) = variant("llama");
        let model = load(&checkpoint, &device, Some(DType::F16));
        let prompt = |n: u32| (0..n).map(|i| (i * 31 + 7 * n) % 96).collect::<Vec<u32>>();
        let new = if device.is_emulator() { 2 } else { 24 };
        let mut batch = model
            .batch(BatchOptions {
                max_sequences: 16,
                cache_tokens: 16 * 64,
                share_prefixes: false,
            })
            .unwrap();
        for n in 1..=16 {
            batch.submit(&prompt(n), greedy(new)).unwrap();
        }
        assert_eq!(batch.step().unwrap().len(), 16, "all prompts fit at once");
        assert_eq!(batch.running(), 16);
        let mut together: Vec<Vec<u32>> = vec![Vec::new(); 16];
        while !batch.is_idle() {
            for event in batch.step().unwrap() {
                together[event.request.0].push(event.token);
            }
        }
        for (n, answer) in (1..=16).zip(&together) {
            let alone = tokens(&model, &prompt(n), greedy(new));
            assert_eq!(answer, &alone[1..], "{n} tokens on {device}");
        }
    }
}

/// Steps are begun before the tokens of those before are read: ends by a token, by length and by hand and a neighbour whose tokens
/// the CPU draws change nobody's answer.
#[test]
fn a_step_begun_ahead_changes_no_answer() {
    for device in devices() {
        let (_folder, checkpoint) = variant("llama");
        let model = load(&checkpoint, &device, Some(DType::F16));
        let prompt = |n: u32| (0..n).map(|i| (i * 31 + 7 * n) % 96).collect::<Vec<u32>>();
        let ends = tokens(&model, &prompt(5), greedy(6))[2];
        for drawn in [0, 6] {
            let options = |n: u32| GenerateOptions {
                eos: Some(vec![ends]),
                stream: u64::from(n),
                sampling: SamplingOptions {
                    temperature: if n == drawn { 0.9 } else { 0.0 },
                    ..SamplingOptions::greedy()
                },
                ..greedy(2 + 5 * n as usize % 7)
            };
            let mut batch = model
                .batch(BatchOptions {
                    max_sequences: 3,
                    cache_tokens: 3 * 32,
                    share_prefixes: true,
                })
                .unwrap();
            let requests: Vec<_> = (1..=9).map(|n| batch.submit(&prompt(n), options(n)).unwrap()).collect();
            let mut together: Vec<Vec<u32>> = vec![Vec::new(); 9];
            let mut cancelled = false;
            while !batch.is_idle() {
                for event in batch.step().unwrap() {
                    together[event.request.0].push(event.token);
                }
                if !cancelled && together[2].len() == 2 {
                    cancelled = batch.cancel(requests[2]).unwrap();
                }
            }
            for (n, answer) in (1..=9).zip(&together) {
                let alone = tokens(&model, &prompt(n), options(n));
                let expected = if n == 3 && cancelled { &alone[..2] } else { &alone[..] };
                assert_eq!(answer, expected, "{n} tokens on {device}, {drawn} drawn");
            }
        }
    }
}

/// What a sequence in a batch has written is known to those that begin with it.
#[test]
fn an_answer_is_shared_with_the_prompt_that_goes_on_from_it() {
    for device in devices() {
        let (_folder, checkpoint) = variant("llama");
        let model = load(&checkpoint, &device, None);
        let prompt: Vec<u32> = (0..20).collect();
        let mut batch = model
            .batch(BatchOptions {
                max_sequences: 2,
                cache_tokens: 128,
                share_prefixes: true,
            })
            .unwrap();
        batch.submit(&prompt, greedy(14)).unwrap();
        let answer = batch.run().unwrap().remove(0);
        let longer = [&prompt[..], &answer[..]].concat();
        batch.submit(&longer, greedy(2)).unwrap();
        batch.run().unwrap();
        assert_eq!(batch.shared_tokens(), 32, "two pages on {device}");
    }
}

#[test]
fn a_row_of_logits_is_the_same_bit_for_bit_whatever_stands_behind_it() {
    for device in devices() {
        let model = small("stories-llama", &device, None);
        let prompt = &prompts()[4];
        let vocab = model.config().vocab_size;
        let whole = floats(&model.logits(prompt).unwrap());
        for length in [1, 16, 17] {
            let part = floats(&model.logits(&prompt[..length]).unwrap());
            assert_eq!(part, whole[..length * vocab], "{length} tokens on {device}");
        }
    }
}

#[test]
fn answers_end_where_they_should() {
    let device = Device::emulator().unwrap();
    let model = small("stories-llama", &device, None);
    let ids = model.encode(b"Once upon a time").unwrap();
    let first = tokens(&model, &ids, greedy(2));
    let options = GenerateOptions {
        eos: Some(vec![first[1]]),
        ..greedy(9)
    };
    let mut generator = model.generate(&ids, options).unwrap();
    let answer: Vec<u32> = generator.by_ref().map(Result::unwrap).collect();
    assert_eq!(answer, first);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Eos(first[1])));
    let mut generator = model.generate(&ids, greedy(1)).unwrap();
    assert_eq!(generator.by_ref().count(), 1);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Length));
    assert_eq!(model.generate(&ids, greedy(0)).unwrap().count(), 0);

    let mut text = TextStream::new(model.tokenizer().unwrap(), ["sleepy"]);
    let mut shown = String::new();
    for token in [15, 262, 988, 553, 462] {
        shown.push_str(&text.push(token).unwrap().text);
    }
    shown.push_str(&text.finish().unwrap());
    assert_eq!(shown, ", a ");
}

#[test]
fn a_cancelled_request_frees_its_pages_and_disturbs_nobody() {
    let device = Device::emulator().unwrap();
    let model = small("stories-llama", &device, None);
    let prompt = [0, 582, 581, 262, 420];
    let mut batch = model
        .batch(BatchOptions {
            max_sequences: 1,
            cache_tokens: 32,
            share_prefixes: false,
        })
        .unwrap();
    let first = batch.submit(&prompt, greedy(20)).unwrap();
    let second = batch.submit(&prompt, greedy(2)).unwrap();
    assert_eq!(batch.step().unwrap().len(), 1, "one runs at a time");
    assert!(batch.cancel(first).unwrap() && !batch.cancel(first).unwrap());
    let mut answer = Vec::new();
    while !batch.is_idle() {
        for event in batch.step().unwrap() {
            assert_eq!(event.request, second);
            answer.push(event.token);
        }
    }
    assert_eq!(answer, tokens(&model, &prompt, greedy(2)));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let device = Device::emulator().unwrap();
    let model = small("stories-llama", &device, None);
    let refusal = |prompt: &[u32], options| model.generate(prompt, options).err().unwrap();
    assert!(matches!(refusal(&[], greedy(1)), Error::EmptyPrompt));
    let e = refusal(&[1, 1536], greedy(1));
    assert_eq!(
        e.to_string(),
        "token 1536 at position 1: the model has tokens 0 to 1535"
    );
    let e = refusal(&vec![1; 1000], greedy(25));
    assert_eq!(
        e.to_string(),
        "the prompt has 1000 tokens and the answer may have 25: together at most 1024 fit (max_position_embeddings in \
         config.json)"
    );
    let hot = GenerateOptions {
        sampling: SamplingOptions {
            temperature: -1.0,
            ..SamplingOptions::greedy()
        },
        ..greedy(1)
    };
    assert!(matches!(refusal(&[1], hot), Error::Sampling(_)));
    let batch = BatchOptions {
        max_sequences: 1,
        cache_tokens: 16,
        share_prefixes: true,
    };
    let e = model.batch(batch).unwrap().submit(&[1; 10], greedy(7)).unwrap_err();
    assert!(
        e.to_string().contains("at most 16 fit (cache_tokens of the batch)"),
        "{e}"
    );
    for empty in [
        BatchOptions {
            max_sequences: 0,
            ..batch
        },
        BatchOptions {
            cache_tokens: 0,
            ..batch
        },
    ] {
        assert!(
            model
                .batch(empty)
                .err()
                .unwrap()
                .to_string()
                .contains("allowed: at least 1")
        );
    }
    let vast = BatchOptions {
        max_sequences: 1,
        cache_tokens: 1 << 30,
        share_prefixes: true,
    };
    let e = model.batch(vast).err().unwrap();
    assert!(
        matches!(e, Error::CacheTooLarge { .. }) && e.to_string().contains(" tokens fit"),
        "{e}"
    );
    assert!(matches!(model.encode(b"\xff"), Err(Error::Tokenizer(_))));
    let gpt2 = small("stories-gpt2", &device, None);
    assert!(matches!(gpt2.encode_chat(&[]), Err(Error::NoChatTemplate)));
    let e = model.perplexity(&[1, 2], 1, 1, |_| {}).unwrap_err();
    assert_eq!(e.to_string(), "window = 1; allowed: 2 to 1024, the model's positions");
    assert!(model.perplexity(&[1, 2], 8, 8, |_| {}).is_err());
    assert!(model.perplexity(&[1], 8, 4, |_| {}).is_err());
}

#[test]
fn perplexity_judges_every_token_once() {
    for device in devices() {
        let (_folder, checkpoint) = variant("llama");
        let model = load(&checkpoint, &device, None);
        let ids: Vec<u32> = (0..21).map(|i| (i * 37 + 11) % 96).collect();
        let vocab = model.config().vocab_size;
        let judged = |context: &[u32], target: u32| {
            let logits = floats(&model.logits(context).unwrap());
            let row = &logits[(context.len() - 1) * vocab..];
            let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            sum.ln() - f64::from(row[target as usize])
        };
        // Windows 0..8, 6..14, 12..20, 18..21.
        let expected: f64 = (1..ids.len())
            .map(|t| {
                let begin = [(8, 0), (14, 6), (20, 12), (99, 18)]
                    .iter()
                    .find(|(end, _)| t < *end)
                    .unwrap()
                    .1;
                judged(&ids[begin..t], ids[t])
            })
            .sum();
        let found = model.perplexity(&ids, 8, 6, |_| {}).unwrap();
        assert_eq!(found.tokens, 20);
        let error = (found.negative_log_likelihood - expected).abs() / expected;
        assert!(error < 1e-6, "{} for {expected}", found.negative_log_likelihood);
        assert!((found.value() - (expected / 20.0).exp()).abs() < 1e-3);
    }
}

/// The embedded model is the one in the repository.
#[test]
fn the_model_in_the_program_is_the_one_in_the_folder() {
    let (embedded, folder) = (
        models::small::stories_llama().unwrap(),
        Checkpoint::open(path("small/stories-llama")).unwrap(),
    );
    assert_eq!(embedded.config(), folder.config());
    assert!(embedded.chat_template().unwrap().is_some());
    for ((_, a), (_, b)) in embedded.weights().zip(folder.weights()) {
        assert_eq!((a.name, a.data), (b.name, b.data));
    }
}

/// Bounds, races, initialisation and barriers of every kernel that a model uses.
#[test]
fn a_checked_emulator_finds_nothing() {
    let device = Device::with_options(
        Some(host::DeviceKind::Emulator),
        host::DeviceOptions {
            emulator: host::EmulatorOptions {
                checks: true,
                ..host::EmulatorOptions::default()
            },
            ..host::DeviceOptions::default()
        },
    )
    .unwrap();
    for (name, dtype) in [
        ("llama", None),
        ("qwen3", Some(DType::BF16)),
        ("gpt2", Some(DType::F16)),
    ] {
        let (_folder, checkpoint) = variant(name);
        let model = load(&checkpoint, &device, dtype);
        assert_eq!(tokens(&model, &[5, 6, 7], greedy(2)).len(), 2);
    }
}
