//! `config.json`: what real files mean, and that every lie is named.

use models::config::{Activation, Norm, Positions};
use models::{ConfigError, Family, GenerationConfig, ModelConfig, RopeScaling, SamplingOptions, WeightDtype};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(value: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(value.to_string().as_bytes())
}

/// `base` with the fields of `changes`; `null` takes a field away.
fn with(base: Value, changes: Value) -> Value {
    let mut base = base;
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(key);
        } else {
            base[key] = value.clone();
        }
    }
    base
}

fn llama_3_2_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
    })
}

fn gpt2() -> Value {
    json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
        "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "vocab_size": 50257
    })
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 151936
    })
}

#[test]
fn llama_3_2_1b_is_what_its_makers_published() {
    let c = parse(&llama_3_2_1b()).unwrap();
    assert_eq!(c.parameters(), 1_235_814_400);
    assert_eq!(
        (c.family, c.head_dim, c.q_width(), c.kv_width()),
        (Family::Llama, 64, 2048, 512)
    );
    assert_eq!(
        (c.norm, c.dtype),
        (Norm::RmsNorm { eps: 1e-5 }, Some(WeightDtype::Bf16))
    );
    assert_eq!(
        (c.bos, c.eos.as_slice()),
        (Some(128000), [128001, 128008, 128009].as_slice())
    );
    assert!(!c.qkv_bias && !c.mlp_bias && !c.qk_norm && c.gated_mlp && c.tie_word_embeddings);
    assert_eq!(c.kv_bytes_per_token(2), 2 * 16 * 512 * 2);
    assert_eq!(c.attention_scale(3), 0.125);
    let rope = c.rope().unwrap();
    assert_eq!((rope.theta, rope.rotary_dim), (500_000.0, 64));
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    assert_eq!(rope.scaling, scaling);
}

#[test]
fn both_forms_of_rope_fields_mean_the_same() {
    let new = json!({"rope_theta": null, "rope_scaling": null, "torch_dtype": null, "dtype": "bfloat16",
        "rope_parameters": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_theta": 500000.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}});
    assert_eq!(parse(&with(llama_3_2_1b(), new)), parse(&llama_3_2_1b()));
    let old = json!({"rope_scaling": {"type": "linear", "factor": 2}});
    let new = json!({"rope_scaling": null, "rope_theta": null,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}});
    assert_eq!(parse(&with(llama_3_2_1b(), old)), parse(&with(llama_3_2_1b(), new)));
    let one = json!({"rope_type": "default", "rope_theta": 7e4});
    let nested = json!({"rope_scaling": null, "rope_parameters": {"full_attention": one, "sliding_attention": one}});
    assert_eq!(parse(&with(llama_3_2_1b(), nested)).unwrap().rope().unwrap().theta, 7e4);
}

#[test]
fn every_scaling_is_read_with_its_defaults() {
    let scaling = |s: Value, more: Value| {
        let c = with(with(llama_3_2_1b(), json!({"rope_scaling": s})), more);
        parse(&c).unwrap().rope().unwrap().scaling.clone()
    };
    let none = json!({});
    assert_eq!(
        scaling(json!({"rope_type": "default"}), none.clone()),
        RopeScaling::Default
    );
    let dynamic = RopeScaling::Dynamic {
        factor: 2.0,
        max_positions: 131_072,
    };
    assert_eq!(
        scaling(json!({"type": "dynamic", "factor": 2.0}), none.clone()),
        dynamic
    );
    let yarn = scaling(
        json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
        none.clone(),
    );
    let RopeScaling::Yarn {
        factor,
        original_max_positions,
        beta_fast,
        beta_slow,
        truncate,
        attention_factor,
        ..
    } = yarn
    else {
        panic!("{yarn:?}")
    };
    assert_eq!(
        (factor, original_max_positions, beta_fast, beta_slow),
        (4.0, 32768, 32.0, 1.0)
    );
    assert!(truncate && attention_factor.is_none());
    // The length at the top takes precedence, and the factor is what the lengths say.
    let long = json!({"rope_type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![2.0; 32]});
    let long = scaling(long, json!({"original_max_position_embeddings": 4096}));
    let RopeScaling::LongRope {
        factor,
        original_max_positions,
        ..
    } = long
    else {
        panic!("{long:?}")
    };
    assert_eq!((factor, original_max_positions), (32.0, 4096));
}

#[test]
fn gpt2_is_124_million_and_names_its_own_fields() {
    let c = parse(&gpt2()).unwrap();
    assert_eq!(c.parameters(), 124_439_808);
    assert_eq!(
        (c.head_dim, c.intermediate_size, c.num_kv_heads, c.max_positions),
        (64, 3072, 12, 1024)
    );
    assert_eq!(
        (c.norm, c.activation),
        (Norm::LayerNorm { eps: 1e-5 }, Activation::GeluTanh)
    );
    assert!(
        c.positions == Positions::Learned && c.tie_word_embeddings && c.qkv_bias && c.attention_out_bias && c.mlp_bias
    );
    let scaled = parse(&with(
        gpt2(),
        json!({"scale_attn_by_inverse_layer_idx": true, "n_inner": 100}),
    ))
    .unwrap();
    assert_eq!((scaled.attention_scale(0), scaled.attention_scale(3)), (0.125, 0.03125));
    assert_eq!(scaled.intermediate_size, 100);
    let plain = parse(&with(gpt2(), json!({"scale_attn_weights": false}))).unwrap();
    assert_eq!(plain.attention_scale(0), 1.0);
}

#[test]
fn the_families_differ_where_they_do() {
    let mistral = json!({"model_type": "mistral", "rope_scaling": null, "sliding_window": 4096, "head_dim": 128});
    let c = parse(&with(llama_3_2_1b(), mistral)).unwrap();
    assert_eq!((c.windows[0], c.q_width()), (Some(4096), 4096));
    let later = with(llama_3_2_1b(), json!({"model_type": "mistral", "rope_scaling": null}));
    // Absent is 4096, a written null is none.
    assert_eq!(parse(&later).unwrap().windows[7], Some(4096));
    let mut written = later;
    written["sliding_window"] = Value::Null;
    assert_eq!(parse(&written).unwrap().windows[7], None);

    let c = parse(&qwen2()).unwrap();
    assert!(c.qkv_bias && !c.attention_out_bias && !c.qk_norm && c.windows.iter().all(Option::is_none));
    assert_eq!(c.parameters(), 494_032_768);
    let windowed = parse(&with(qwen2(), json!({"use_sliding_window": true}))).unwrap();
    assert_eq!(windowed.windows.iter().position(Option::is_some), Some(21));
    let types: Vec<&str> = (0..24)
        .map(|i| {
            if i % 2 == 1 {
                "sliding_attention"
            } else {
                "full_attention"
            }
        })
        .collect();
    let typed = json!({"use_sliding_window": true, "sliding_window": 128, "layer_types": types});
    let typed = parse(&with(qwen2(), typed)).unwrap();
    assert_eq!(typed.windows[..4], [None, Some(128), None, Some(128)]);

    let qwen3 =
        json!({"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": 8, "attention_bias": false});
    let c = parse(&with(qwen2(), qwen3)).unwrap();
    assert_eq!((c.qk_norm, c.head_dim, c.qkv_bias), (true, 128, false));
}

#[test]
fn an_unknown_architecture_is_told_the_known_ones() {
    let e = parse(&with(llama_3_2_1b(), json!({"model_type": "bert"}))).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the architecture is `bert`: known ones are gpt2, llama, mistral, qwen2, qwen3"
    );
    let e = parse(&with(
        llama_3_2_1b(),
        json!({"model_type": null, "architectures": ["T5Model"]}),
    ))
    .unwrap_err();
    assert!(e.to_string().contains("`T5Model`"), "{e}");
    assert!(matches!(
        parse(&json!({})).unwrap_err(),
        ConfigError::UnknownArchitecture { .. }
    ));
    assert!(
        parse(&with(llama_3_2_1b(), json!({"model_type": null}))).is_ok(),
        "the class name says it too"
    );
}

/// Each lie about a Llama, and what the error must say: field, value, allowed.
#[test]
fn every_lie_is_named_with_its_value_and_what_is_allowed() {
    let lies = [
        (
            json!({"num_attention_heads": 0}),
            "`num_attention_heads` is 0: a whole number from 1 to 4096",
        ),
        (json!({"num_attention_heads": -32}), "`num_attention_heads` is -32"),
        (json!({"num_attention_heads": 32.5}), "`num_attention_heads` is 32.5"),
        (json!({"num_attention_heads": "32"}), "`num_attention_heads` is \"32\""),
        (
            json!({"num_key_value_heads": 5}),
            "`num_attention_heads` 32 and `num_key_value_heads` 5",
        ),
        (
            json!({"head_dim": null, "num_attention_heads": 24}),
            "`hidden_size` 2048 and `num_attention_heads` 24",
        ),
        (
            json!({"hidden_size": null}),
            "`hidden_size` is missing: a whole number from 1 to 262144",
        ),
        (
            json!({"hidden_size": 9_000_000_000_000_000_000u64}),
            "`hidden_size` is 9000000000000000000",
        ),
        (json!({"hidden_size": 1e300}), "`hidden_size` is 1e+300"),
        (json!({"vocab_size": u64::MAX}), "`vocab_size` is 18446744073709551615"),
        (
            json!({"num_hidden_layers": 5000}),
            "`num_hidden_layers` is 5000: a whole number from 1 to 4096",
        ),
        (json!({"intermediate_size": [1]}), "`intermediate_size` is [1]"),
        (
            json!({"hidden_size": 262_144, "intermediate_size": 1_048_576, "num_hidden_layers": 4096}),
            "parameters: at most 2^43",
        ),
        (json!({"rms_norm_eps": 0}), "`rms_norm_eps` is 0: a number above 0"),
        (json!({"rms_norm_eps": 1e-60}), "`rms_norm_eps` is 1e-60"),
        (json!({"hidden_act": "relu"}), "`hidden_act` is \"relu\": silu"),
        (
            json!({"tie_word_embeddings": 1}),
            "`tie_word_embeddings` is 1: true or false",
        ),
        (json!({"eos_token_id": 128256}), "`eos_token_id` is 128256: a token id"),
        (json!({"eos_token_id": [2, -1]}), "`eos_token_id` is [2,-1]"),
        (json!({"rope_theta": 1}), "`rope_theta` is 1: a number above 1"),
        (json!({"rope_scaling": 8}), "`rope_scaling` is 8: an object"),
        (
            json!({"rope_scaling": {"rope_type": "spiral"}}),
            "`rope_scaling.rope_type` is \"spiral\": one of default, linear, dynamic, yarn, longrope, llama3",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "`rope_scaling.factor` is missing",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0.5}}),
            "`rope_scaling.factor` is 0.5: a number of at least 1",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
            "`rope_scaling.high_freq_factor` is 1: a number above low_freq_factor, 4",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32}}),
            "`rope_scaling.beta_fast` is 1",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            "`rope_scaling.short_factor` is a list of 1: a list of 32",
        ),
        (json!({"partial_rotary_factor": 0.01}), "an even number of at least 2"),
        (json!({"partial_rotary_factor": 1.5}), "`partial_rotary_factor` is 1.5"),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "`quantization_config`",
        ),
        (
            json!({"architectures": "LlamaForCausalLM", "model_type": null}),
            "`architectures`",
        ),
        (json!({"model_type": 7}), "`model_type` is 7: a string"),
    ];
    for (lie, says) in lies {
        let error = parse(&with(llama_3_2_1b(), lie.clone()))
            .expect_err(&lie.to_string())
            .to_string();
        assert!(error.contains(says), "{lie}: {error:?} does not say {says:?}");
    }
    let of_others = [
        (with(gpt2(), json!({"n_head": 7})), "`n_embd` 768 and `n_head` 7"),
        (
            with(gpt2(), json!({"activation_function": "mish"})),
            "`activation_function` is \"mish\": one of gelu_new",
        ),
        (
            with(gpt2(), json!({"add_cross_attention": true})),
            "`add_cross_attention` is true",
        ),
        (with(gpt2(), json!({"n_head": 1, "n_embd": 4096})), "`n_head` is 1"),
        (
            with(qwen2(), json!({"use_sliding_window": true, "sliding_window": 0})),
            "`sliding_window` is 0",
        ),
        (
            with(qwen2(), json!({"layer_types": ["full_attention"]})),
            "`layer_types` is a list of 1: a list of 24",
        ),
        (
            with(qwen2(), json!({"layer_types": vec!["odd"; 24]})),
            "`layer_types` is [\"odd\",\"odd\"",
        ),
    ];
    for (config, says) in of_others {
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

#[test]
fn text_that_is_no_object_is_told_so() {
    for (text, says) in [
        ("[1]", "must be a JSON object, not [1]"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("nul", "not valid JSON"),
    ] {
        let e = ModelConfig::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(
        ModelConfig::from_json(deep.as_bytes()),
        Err(ConfigError::Json { .. })
    ));
    let long = ModelConfig::from_json(
        format!(
            "{{\"model_type\": \"llama\", \"vocab_size\": \"{}\"}}",
            "ß".repeat(10_000)
        )
        .as_bytes(),
    );
    assert!(
        long.unwrap_err().to_string().len() < 300,
        "an error does not repeat a long value"
    );
}

#[test]
fn generation_config_becomes_sampling_options() {
    let read = |v: Value| GenerationConfig::from_json(v.to_string().as_bytes(), 1000);
    let g =
        read(json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2], "bos_token_id": 0}))
            .unwrap();
    assert_eq!(
        g.sampling(3),
        SamplingOptions {
            temperature: 0.6,
            top_k: 50,
            top_p: 0.9,
            seed: 3
        }
    );
    assert_eq!((g.eos, g.bos), (vec![1, 2], Some(0)));
    assert!(read(json!({"temperature": 0.6})).unwrap().sampling(0).is_greedy());
    for (lie, says) in [
        (json!({"top_p": 0}), "`top_p` is 0: a number above 0"),
        (json!({"temperature": -1}), "`temperature` is -1"),
        (json!({"top_k": -5}), "`top_k` is -5"),
        (json!({"eos_token_id": 1000}), "below vocab_size 1000"),
    ] {
        assert!(read(lie).unwrap_err().to_string().contains(says));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(0), Just(1), Just(u64::MAX)].prop_map(Value::from),
        prop_oneof![
            Just("yarn"),
            Just("longrope"),
            Just("dynamic"),
            Just("llama3"),
            Just("full_attention")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        let keys = prop_oneof![
            Just("rope_type"),
            Just("factor"),
            Just("rope_theta"),
            Just("short_factor"),
            Just("full_attention")
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever a field holds: an error or a configuration whose numbers can be used.
    #[test]
    fn no_value_of_any_field_panics(which in 0usize..3, field in any::<prop::sample::Index>(), value in any_json()) {
        let mut config = [llama_3_2_1b(), gpt2(), with(qwen2(), json!({"layer_types": vec!["full_attention"; 24], "rope_parameters": {"rope_theta": 1e6}}))][which].clone();
        let map = config.as_object_mut().unwrap();
        let keys: Vec<String> = map.keys().cloned().collect();
        map.insert(field.get(&keys).clone(), value);
        if let Ok(c) = parse(&config) {
            prop_assert!(c.num_heads % c.num_kv_heads == 0 && c.windows.len() == c.num_layers && c.parameters() > 0);
            if let Some(rope) = c.rope() {
                let f = rope.frequencies(c.max_positions + 1);
                prop_assert_eq!(f.inv_freq.len(), rope.rotary_dim / 2);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ModelConfig::from_json(&bytes);
        let _ = GenerationConfig::from_json(&bytes, 10);
    }
}
