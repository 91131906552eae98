//! From the fields that each family uses to the one [`ModelConfig`].

use super::fields::{Fields, shown};
use super::rope_fields::rope;
use super::{Activation, ConfigError, Family, ModelConfig, Norm, Positions};
use crate::checkpoint::WeightDtype;

// Far above any model there is, and low enough that products of a few of them fit in u64 and a lie cannot make a huge table.
const VOCAB: usize = 1 << 24;
const WIDTH: usize = 1 << 18;
const INNER: usize = 1 << 20;
const LAYERS: usize = 4096;
const HEADS: usize = 4096;
const HEAD_DIM: usize = 1024;
const POSITIONS: usize = 1 << 28;

/// Most parameters a configuration may describe. 2^43 of them in 16 bits are 16 TiB.
const PARAMETERS: u64 = 1 << 43;

pub(super) fn parse(f: Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let family = family(&f)?;
    if let Some(value) = f.raw("quantization_config") {
        return Err(ConfigError::Unsupported {
            field: "quantization_config",
            value: shown(value),
            why: "only f32, f16 and bf16 weights can be loaded; take the checkpoint that is not quantised",
        });
    }
    let config = if family == Family::Gpt2 {
        gpt2(&f)?
    } else {
        llama_like(&f, family)?
    };
    let parameters = config.parameters();
    if parameters > PARAMETERS {
        return Err(ConfigError::Contradiction {
            what: format!(
                "hidden_size {}, intermediate_size {}, vocab_size {} and {} layers make {parameters} parameters",
                config.hidden_size, config.intermediate_size, config.vocab_size, config.num_layers
            ),
            why: "at most 2^43 are allowed",
        });
    }
    Ok(config)
}

fn family(f: &Fields<'_>) -> Result<Family, ConfigError> {
    if let Some(name) = f.text("model_type")? {
        return Family::from_model_type(name).ok_or_else(|| ConfigError::UnknownArchitecture {
            found: format!("`{name}`"),
        });
    }
    let class = f.list("architectures")?.and_then(|list| list.first());
    match class.and_then(|c| c.as_str()) {
        Some(name) => Family::from_class(name).ok_or_else(|| ConfigError::UnknownArchitecture {
            found: format!("`{name}`"),
        }),
        None => Err(ConfigError::UnknownArchitecture {
            found: "not said (no `model_type`, no `architectures`)".to_owned(),
        }),
    }
}

fn dtype(f: &Fields<'_>) -> Option<WeightDtype> {
    // transformers 5 writes `dtype`, 4 wrote `torch_dtype`. It is a hint only: each tensor says its own.
    let name = f.raw("dtype").or_else(|| f.raw("torch_dtype"))?.as_str()?;
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Some(WeightDtype::F32),
        "float16" => Some(WeightDtype::F16),
        "bfloat16" => Some(WeightDtype::Bf16),
        _ => None,
    }
}

fn divides(what: &str, whole: usize, by_name: &str, by: usize, why: &'static str) -> Result<(), ConfigError> {
    if whole.is_multiple_of(by) {
        return Ok(());
    }
    Err(ConfigError::Contradiction {
        what: format!("`{what}` {whole} and `{by_name}` {by}"),
        why,
    })
}

fn eps(f: &Fields<'_>, name: &str, default: f64) -> Result<f32, ConfigError> {
    let value = f.number(name, "a number above 0 and below 1", |x| x > 0.0 && x < 1.0)?;
    let eps = value.unwrap_or(default) as f32;
    if eps > 0.0 {
        Ok(eps)
    } else {
        Err(f.invalid(name, "a number above 0 and below 1 that f32 can hold"))
    }
}

fn bos(f: &Fields<'_>, vocab: usize) -> Result<Option<u32>, ConfigError> {
    Ok(f.token_ids("bos_token_id", vocab)?.first().copied())
}

fn gpt2(f: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let vocab_size = f.required("vocab_size", 1..=VOCAB)?;
    let hidden_size = f.required("n_embd", 1..=WIDTH)?;
    let num_heads = f.required("n_head", 1..=HEADS)?;
    divides(
        "n_embd",
        hidden_size,
        "n_head",
        num_heads,
        "the width must be a multiple of the number of heads",
    )?;
    let head_dim = hidden_size / num_heads;
    if head_dim > HEAD_DIM {
        return Err(f.invalid("n_head", format!("at least n_embd / {HEAD_DIM}")));
    }
    if f.flag("add_cross_attention")?.unwrap_or(false) {
        return Err(ConfigError::Unsupported {
            field: "add_cross_attention",
            value: "true".to_owned(),
            why: "only decoders are run",
        });
    }
    let activation = match f.text("activation_function")?.unwrap_or("gelu_new") {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "silu" | "swish" => Activation::Silu,
        _ => {
            return Err(f.invalid(
                "activation_function",
                "one of gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, silu",
            ));
        }
    };
    let num_layers = f.required("n_layer", 1..=LAYERS)?;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab_size,
        hidden_size,
        intermediate_size: f.count("n_inner", 1..=INNER)?.unwrap_or(4 * hidden_size),
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        max_positions: f.count("n_positions", 1..=POSITIONS)?.unwrap_or(1024),
        norm: Norm::LayerNorm {
            eps: eps(f, "layer_norm_epsilon", 1e-5)?,
        },
        activation,
        gated_mlp: false,
        positions: Positions::Learned,
        qkv_bias: true,
        attention_out_bias: true,
        mlp_bias: true,
        qk_norm: false,
        tie_word_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(true),
        scale_by_head_dim: f.flag("scale_attn_weights")?.unwrap_or(true),
        scale_by_inverse_layer: f.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
        windows: vec![None; num_layers],
        dtype: dtype(f),
        bos: bos(f, vocab_size)?,
        eos: f.token_ids("eos_token_id", vocab_size)?,
    })
}

fn llama_like(f: &Fields<'_>, family: Family) -> Result<ModelConfig, ConfigError> {
    let vocab_size = f.required("vocab_size", 1..=VOCAB)?;
    let hidden_size = f.required("hidden_size", 1..=WIDTH)?;
    let num_layers = f.required("num_hidden_layers", 1..=LAYERS)?;
    let num_heads = f.required("num_attention_heads", 1..=HEADS)?;
    // What transformers takes when the field is not there.
    let (default_kv, default_positions) = match family {
        Family::Mistral => (8, 131_072),
        Family::Qwen2 | Family::Qwen3 => (32, 32_768),
        Family::Llama | Family::Gpt2 => (num_heads, 2048),
    };
    // A `null` means as many as query heads; only a field that is absent takes the family's default.
    let absent = !f.keys().any(|k| k == "num_key_value_heads");
    let num_kv_heads =
        f.count("num_key_value_heads", 1..=HEADS)?
            .unwrap_or(if absent { default_kv } else { num_heads });
    divides(
        "num_attention_heads",
        num_heads,
        "num_key_value_heads",
        num_kv_heads,
        "the query heads must be a multiple of the key and value heads",
    )?;
    let head_dim = match f.count("head_dim", 1..=HEAD_DIM)? {
        Some(d) => d,
        None if family == Family::Qwen3 => 128,
        None => {
            divides(
                "hidden_size",
                hidden_size,
                "num_attention_heads",
                num_heads,
                "without `head_dim` the width must be a multiple of the number of heads",
            )?;
            let d = hidden_size / num_heads;
            if d > HEAD_DIM {
                return Err(f.invalid("num_attention_heads", format!("at least hidden_size / {HEAD_DIM}")));
            }
            d
        }
    };
    if !matches!(f.text("hidden_act")?.unwrap_or("silu"), "silu" | "swish") {
        return Err(f.invalid("hidden_act", "silu"));
    }
    let max_positions = f
        .count("max_position_embeddings", 1..=POSITIONS)?
        .unwrap_or(default_positions);
    let attention_bias = match family {
        Family::Llama | Family::Qwen3 => f.flag("attention_bias")?.unwrap_or(false),
        _ => false,
    };
    Ok(ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: f.required("intermediate_size", 1..=INNER)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_positions,
        norm: Norm::RmsNorm {
            eps: eps(f, "rms_norm_eps", 1e-6)?,
        },
        activation: Activation::Silu,
        gated_mlp: true,
        positions: Positions::Rope(rope(f, head_dim, max_positions)?),
        qkv_bias: attention_bias || family == Family::Qwen2,
        attention_out_bias: attention_bias,
        mlp_bias: family == Family::Llama && f.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: family == Family::Qwen3,
        tie_word_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
        scale_by_head_dim: true,
        scale_by_inverse_layer: false,
        windows: windows(f, family, num_layers)?,
        dtype: dtype(f),
        bos: bos(f, vocab_size)?,
        eos: f.token_ids("eos_token_id", vocab_size)?,
    })
}

/// The sliding window of each layer.
fn windows(f: &Fields<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>, ConfigError> {
    let none = vec![None; layers];
    match family {
        // Llama has no window; transformers ignores the field too.
        Family::Gpt2 | Family::Llama => Ok(none),
        Family::Mistral => {
            // Absent means 4096, as in Mistral-7B-v0.1; `null` means none, as in everything later.
            let absent = !f.keys().any(|k| k == "sliding_window");
            let window = f.count("sliding_window", 1..=POSITIONS)?.or(absent.then_some(4096));
            Ok(vec![window; layers])
        }
        Family::Qwen2 | Family::Qwen3 => {
            let window = f.count("sliding_window", 0..=POSITIONS)?.unwrap_or(4096);
            let used = f.flag("use_sliding_window")?.unwrap_or(false);
            if used && window == 0 {
                return Err(f.invalid("sliding_window", format!("a whole number from 1 to {POSITIONS}")));
            }
            if let Some(types) = f.list("layer_types")? {
                let allowed = format!("a list of {layers} entries, each full_attention or sliding_attention");
                if types.len() != layers {
                    return Err(ConfigError::Invalid {
                        field: "layer_types".to_owned(),
                        value: format!("a list of {}", types.len()),
                        allowed,
                    });
                }
                let of_layer = |kind: &serde_json::Value| match kind.as_str() {
                    Some("full_attention") => Ok(None),
                    // Without `use_sliding_window` transformers drops the window from the attention call.
                    Some("sliding_attention") => Ok(used.then_some(window)),
                    _ => Err(f.invalid("layer_types", allowed.clone())),
                };
                return types.iter().map(of_layer).collect();
            }
            if !used {
                return Ok(none);
            }
            let first = f.count("max_window_layers", 0..=usize::MAX)?.unwrap_or(28);
            Ok((0..layers).map(|i| (i >= first).then_some(window)).collect())
        }
    }
}
