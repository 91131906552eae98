//! `config.json` and `generation_config.json` as checked values.
//!
//! [`ModelConfig`] is one plain description for all families: after parsing, code asks *what* (is there a bias, which window
//! has layer 7), never *who*. Field names and defaults are those of Hugging Face transformers 4.x and 5.x; a field that is
//! missing means what it means there.

mod families;
mod fields;
mod generation;
mod rope_fields;

pub(crate) use fields::{Fields, parse_object};
pub use generation::GenerationConfig;

use crate::checkpoint::WeightDtype;
use crate::rope::RopeConfig;

/// What is wrong with a JSON file of settings.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("not valid JSON: {message}")]
    Json {
        /// The parser's message, with line and column.
        message: String,
    },
    /// The text is JSON, but its top level is no object.
    #[error("the top level must be a JSON object, not {found}")]
    NotAnObject {
        /// What is there instead.
        found: String,
    },
    /// A field that has no default is not there.
    #[error("`{field}` is missing: {allowed} is needed")]
    Missing {
        /// Name of the field, with the object it is in.
        field: String,
        /// What it may be.
        allowed: String,
    },
    /// A field has a value that it cannot have.
    #[error("`{field}` is {value}: {allowed} is allowed")]
    Invalid {
        /// Name of the field, with the object it is in.
        field: String,
        /// The value in the file, cut short when it is long.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// Two fields contradict each other.
    #[error("{what}: {why}")]
    Contradiction {
        /// The fields with their values.
        what: String,
        /// The relation that does not hold.
        why: &'static str,
    },
    /// The model is of a kind that this crate does not run.
    #[error("the architecture is {found}: known ones are {}", Family::NAMES.join(", "))]
    UnknownArchitecture {
        /// `model_type`, or the first of `architectures`.
        found: String,
    },
    /// The file asks for something real that this crate does not do.
    #[error("`{field}` is {value}, which is not supported: {why}")]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// The value in the file.
        value: String,
        /// What to do instead.
        why: &'static str,
    },
}

/// The model families, by transformers' `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// GPT-2: learned positions, LayerNorm, GELU, fused QKV, matrices stored as `[in, out]` (`Conv1D`).
    Gpt2,
    /// Llama 2, 3, 3.1, 3.2, 3.3 and everything else that says `llama`.
    Llama,
    /// Mistral: Llama with a sliding window and a head width of its own.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on Q, K and V.
    Qwen2,
    /// Qwen3: RMSNorm over each head of Q and K before RoPE.
    Qwen3,
}

impl Family {
    /// The known values of `model_type`.
    pub const NAMES: [&'static str; 5] = ["gpt2", "llama", "mistral", "qwen2", "qwen3"];
    const ALL: [Self; 5] = [Self::Gpt2, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];
    const CLASSES: [&'static str; 5] = [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ];

    /// Its `model_type`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn from_model_type(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|n| *n == name).map(|i| Self::ALL[i])
    }

    fn from_class(name: &str) -> Option<Self> {
        Self::CLASSES.iter().position(|n| *n == name).map(|i| Self::ALL[i])
    }
}

/// How a row is normalised before a block, over its last dimension `x` of width `n`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// `(x − mean) / √(var + eps) · w + b` with the population variance.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `x / √(mean(x²) + eps) · w`.
    RmsNorm {
        /// Added to the mean of squares.
        eps: f32,
    },
}

/// The function between the MLP's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    GeluTanh,
    /// `x·½·(1 + erf(x/√2))`.
    GeluErf,
    /// `x·σ(x)`.
    Silu,
}

/// How a model knows where a token stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A learned row for every position is added to the token's embedding.
    Learned,
    /// Q and K are rotated by an angle proportional to the position.
    Rope(RopeConfig),
}

/// A checked model configuration. All widths and counts are at least 1, and products of them fit in `u64`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Which family wrote it; decides the names of the weights only.
    pub family: Family,
    /// Rows of the embedding; token ids are below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides [`Self::num_heads`].
    pub num_kv_heads: usize,
    /// Width of one head. `num_heads · head_dim` need not be [`Self::hidden_size`].
    pub head_dim: usize,
    /// Most tokens that prompt and answer may have together.
    pub max_positions: usize,
    /// The norm before attention, before the MLP and at the end.
    pub norm: Norm,
    /// The function between the MLP's matrices.
    pub activation: Activation,
    /// Whether the MLP is `down(act(gate(x)) · up(x))` rather than `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// How positions enter.
    pub positions: Positions,
    /// Bias on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on attention's output projection.
    pub attention_out_bias: bool,
    /// Bias on the MLP's matrices.
    pub mlp_bias: bool,
    /// RMSNorm over each head of Q and K, before RoPE.
    pub qk_norm: bool,
    /// Whether the head's matrix is the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether scores are divided by √head_dim (`scale_attn_weights` of GPT-2; always so elsewhere).
    pub scale_by_head_dim: bool,
    /// Whether scores of layer `i` are further divided by `i + 1` (`scale_attn_by_inverse_layer_idx` of GPT-2).
    pub scale_by_inverse_layer: bool,
    /// The window of each layer: `Some(w)` lets a token see itself and the `w − 1` before it, `None` everything before it.
    pub windows: Vec<Option<usize>>,
    /// The dtype in which the makers keep the weights, if they say.
    pub dtype: Option<WeightDtype>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Any field that is malformed, impossible, contradictory or unsupported, by name; an architecture that is not in [`Family`].
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let map = parse_object(json)?;
        let fields = Fields::new(&map);
        families::parse(fields)
    }

    /// Factor on `q·k` in `layer`.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let by_width = if self.scale_by_head_dim {
            (self.head_dim as f64).sqrt()
        } else {
            1.0
        };
        let by_layer = if self.scale_by_inverse_layer {
            (layer + 1) as f64
        } else {
            1.0
        };
        (1.0 / (by_width * by_layer)) as f32
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The RoPE parameters, if positions are rotary.
    pub fn rope(&self) -> Option<&RopeConfig> {
        match &self.positions {
            Positions::Rope(rope) => Some(rope),
            Positions::Learned => None,
        }
    }

    /// Number of parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        crate::checkpoint::tensor_table(self)
            .iter()
            .map(|spec| spec.elements())
            .sum()
    }

    /// Bytes of keys and values that one token keeps, over all layers, in elements of `element_bytes`.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> u64 {
        2 * self.num_layers as u64 * self.kv_width() as u64 * element_bytes as u64
    }
}
