//! What Hugging Face transformers 5.17 computes (`tools/train_small.py` wrote it down), against what this crate reads and means.
//!
//! The forward pass here is the test's own, in f64: it holds the configuration, the tensor table, the windows, the scales and the
//! rotary frequencies to account without a device.

mod common;
#[path = "common/forward.rs"]
mod forward;

use common::{path, reference, variant, variants};
use forward::Model;
use models::checkpoint::tensor_table;
use models::{Checkpoint, Message, ModelConfig, Role, StopMatcher};
use serde_json::{Value, json};

/// Root mean square of the difference over that of the reference.
fn relative_error(found: &[Vec<f64>], expected: &[f32]) -> f64 {
    assert_eq!(found.iter().map(Vec::len).sum::<usize>(), expected.len());
    let pairs = found.iter().flatten().zip(expected);
    let (difference, size) = pairs.fold((0.0, 0.0), |(d, s), (a, b)| {
        let b = f64::from(*b);
        (d + (a - b) * (a - b), s + b * b)
    });
    (difference / size).sqrt()
}

#[test]
fn every_family_and_scaling_has_the_logits_of_transformers() {
    let names = variants();
    assert_eq!(names.len(), 14, "{names:?}");
    for name in names {
        let (_folder, checkpoint) = variant(&name);
        let r = reference(
            &path("tests/fixtures/variants")
                .join(&name)
                .join("reference.safetensors"),
        );
        let logits = Model::new(&checkpoint).logits(&r.ids["ids"]);
        let error = relative_error(&logits, &r.floats["logits"]);
        // f32 against f64 through two layers.
        assert!(error < 5e-6, "{name}: relative error {error:.2e}");
    }
}

#[test]
fn the_table_has_the_names_and_shapes_that_transformers_gives_its_parameters() {
    for name in variants() {
        let folder = path("tests/fixtures/variants").join(&name);
        let config = ModelConfig::from_json(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let mut ours: Vec<(String, Value)> = tensor_table(&config)
            .into_iter()
            .map(|s| (s.name, json!(s.shape)))
            .collect();
        let theirs: Value = serde_json::from_slice(&std::fs::read(folder.join("names.json")).unwrap()).unwrap();
        let mut theirs: Vec<(String, Value)> = theirs
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        ours.sort_by(|a, b| a.0.cmp(&b.0));
        theirs.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn rotary_frequencies_of_true_configurations_are_those_of_transformers() {
    let cases: Value = serde_json::from_slice(&std::fs::read(path("tests/fixtures/rope.json")).unwrap()).unwrap();
    assert_eq!(cases.as_array().unwrap().len(), 11);
    for case in cases.as_array().unwrap() {
        let head_dim = case["head_dim"].as_u64().unwrap();
        let config = json!({
            "model_type": "llama", "hidden_size": 4 * head_dim, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": 32, "head_dim": head_dim,
            "max_position_embeddings": case["max_position_embeddings"], "rope_parameters": case["rope_parameters"]
        });
        let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
        let found = config
            .rope()
            .unwrap()
            .frequencies(case["length"].as_u64().unwrap() as usize);
        let floats = |v: &Value| {
            v.as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap())
                .collect::<Vec<_>>()
        };
        let name = &case["name"];
        for (i, (ours, theirs)) in found.inv_freq.iter().zip(floats(&case["inv_freq"])).enumerate() {
            let error = (f64::from(*ours) - theirs).abs() / theirs;
            assert!(
                error < 3e-7,
                "{name} pair {i}: {ours:e} for {theirs:e}, relative error {error:.1e}"
            );
        }
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(found.attention_factor) - factor).abs() < 1e-6, "{name}");
        let positions: Vec<u32> = case["positions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_u64().unwrap() as u32)
            .collect();
        let (cos, sin) = found.cos_sin(positions.iter().copied());
        for (ours, theirs) in [(cos, &case["cos"]), (sin, &case["sin"])] {
            let theirs: Vec<f64> = theirs.as_array().unwrap().iter().flat_map(floats).collect();
            assert_eq!(ours.len(), theirs.len());
            // An error of 3e-7 in the frequency is one of up to 2e-3 in the angle at position 5999.
            let worst = ours
                .iter()
                .zip(&theirs)
                .map(|(a, b)| (f64::from(*a) - b).abs())
                .fold(0.0, f64::max);
            assert!(worst < 2e-3, "{name}: {worst:.1e}");
        }
    }
}

/// The shipped models: text to the reference's tokens, the reference's logits, and the reference's greedy answer.
#[test]
fn the_small_models_say_what_transformers_says() {
    for name in ["stories-gpt2", "stories-llama"] {
        let folder = path("small").join(name);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let tokenizer = checkpoint.tokenizer().unwrap();
        let model = Model::new(&checkpoint);
        let r = reference(&folder.join("reference.safetensors"));
        let told: Value = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
        for (i, prompt) in told["prompts"].as_array().unwrap().iter().enumerate() {
            let text = prompt["prompt"].as_str().unwrap();
            let ids = &r.ids[&format!("prompt{i}.ids")];
            assert_eq!(&tokenizer.encode(text, true).unwrap(), ids, "{name}: {text:?}");
            let greedy = &r.ids[&format!("prompt{i}.greedy")];
            let all = [ids.as_slice(), greedy].concat();
            let logits = model.logits(&all);
            let error = relative_error(&logits[..ids.len()], &r.floats[&format!("prompt{i}.logits")]);
            assert!(error < 1e-5, "{name}: {text:?}: relative error {error:.2e}");
            for (step, token) in greedy.iter().enumerate() {
                let row: Vec<f32> = logits[ids.len() + step - 1].iter().map(|x| *x as f32).collect();
                assert_eq!(
                    models::sampling::argmax(&row),
                    Some(*token),
                    "{name}: {text:?}, step {step}"
                );
            }
            let mut stream = tokenizer.detokenizer(false);
            let mut answer: String = greedy.iter().map(|t| stream.push(*t).unwrap()).collect();
            answer.push_str(&stream.finish().unwrap());
            assert_eq!(answer, prompt["greedy_text"].as_str().unwrap());
        }
    }
}

#[test]
fn the_small_llama_has_a_chat_template_that_gives_the_prompts_it_was_trained_on() {
    let checkpoint = Checkpoint::open(path("small/stories-llama")).unwrap();
    let (template, tokenizer) = (
        checkpoint.chat_template().unwrap().unwrap(),
        checkpoint.tokenizer().unwrap(),
    );
    let ask = "Tell me a story about a kind hedgehog named Hazel.";
    let text = template.render(&[Message::new(Role::User, ask)], true).unwrap();
    assert_eq!(text, format!("<s><|user|>{ask}<|assistant|>"));
    let r = reference(&path("small/stories-llama/reference.safetensors"));
    assert_eq!(tokenizer.encode(&text, false).unwrap(), r.ids["prompt4.ids"]);
    let refused = template
        .render(&[Message::new(Role::System, "Be brief.")], true)
        .unwrap_err();
    assert!(
        refused.to_string().contains("trained without system messages"),
        "{refused}"
    );
    assert!(
        Checkpoint::open(path("small/stories-gpt2"))
            .unwrap()
            .chat_template()
            .unwrap()
            .is_none()
    );
    assert_eq!(checkpoint.eos(), [tokenizer.token_id("</s>").unwrap()]);
    let greedy = tokenizer.decode(&r.ids["prompt4.greedy"], true).unwrap();
    assert_eq!(
        StopMatcher::new(["Hazel"]).push(&greedy).text,
        "Once upon a time, a kind hedgehog named "
    );
}
