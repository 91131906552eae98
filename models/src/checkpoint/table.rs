//! The tensors that a configuration demands: their names as transformers writes them, and their shapes.

use crate::config::{Family, ModelConfig, Norm, Positions};

/// A weight of a model by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weight {
    /// One row a token: `[vocab, hidden]`.
    TokenEmbedding,
    /// One row a position: `[positions, hidden]`.
    PositionEmbedding,
    /// A weight of a block.
    Layer(usize, LayerWeight),
    /// Weight of the last norm: `[hidden]`.
    FinalNorm,
    /// Bias of the last norm: `[hidden]`.
    FinalNormBias,
    /// From hidden rows to logits: `[vocab, hidden]`. Absent when tied to the token embedding.
    LmHead,
}

/// A weight of one block. Matrices are `[out, in]` unless the specification's [`Layout`] says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerWeight {
    /// Weight of the norm before attention: `[hidden]`.
    AttentionNorm,
    /// Its bias.
    AttentionNormBias,
    /// Q, K and V in one matrix (GPT-2), in this order along its outputs.
    Qkv,
    /// Its bias: `[3·hidden]`.
    QkvBias,
    /// `[heads·head_dim, hidden]`.
    Query,
    /// `[heads·head_dim]`.
    QueryBias,
    /// `[kv_heads·head_dim, hidden]`.
    Key,
    /// `[kv_heads·head_dim]`.
    KeyBias,
    /// `[kv_heads·head_dim, hidden]`.
    Value,
    /// `[kv_heads·head_dim]`.
    ValueBias,
    /// RMSNorm over each head of Q: `[head_dim]`.
    QueryNorm,
    /// RMSNorm over each head of K: `[head_dim]`.
    KeyNorm,
    /// From all heads back to the residual stream: `[hidden, heads·head_dim]`.
    AttentionOut,
    /// `[hidden]`.
    AttentionOutBias,
    /// Weight of the norm before the MLP: `[hidden]`.
    MlpNorm,
    /// Its bias.
    MlpNormBias,
    /// The factor that goes through the activation, of a gated MLP: `[inner, hidden]`.
    Gate,
    /// `[inner]`.
    GateBias,
    /// Into the MLP: `[inner, hidden]`.
    Up,
    /// `[inner]`.
    UpBias,
    /// Out of the MLP: `[hidden, inner]`.
    Down,
    /// `[hidden]`.
    DownBias,
}

/// How a matrix lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `y = x·Wᵀ`: one row an output (`torch.nn.Linear`). Vectors and embeddings are said to be so too.
    OutIn,
    /// `y = x·W`: one row an input (transformers' `Conv1D` of GPT-2).
    InOut,
}

/// A tensor that must be in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// What it is.
    pub weight: Weight,
    /// Its name as transformers writes it.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// How it lies.
    pub layout: Layout,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// The tensors of the model that `config` describes, in the order of the computation.
pub fn tensor_table(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut table = Table {
        config,
        specs: Vec::new(),
    };
    if config.family == Family::Gpt2 {
        table.gpt2()
    } else {
        table.llama()
    }
    table.specs
}

/// Beginnings of names that some checkpoints leave out: those saved from the model without its head.
pub(super) fn prefix(family: Family) -> &'static str {
    if family == Family::Gpt2 {
        "transformer."
    } else {
        "model."
    }
}

/// Whether a tensor that is in no table may be there all the same: values that are computed, not learned, and a tied head.
pub(super) fn ignorable(config: &ModelConfig, name: &str) -> bool {
    let buffer = match config.family {
        Family::Gpt2 => name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
        _ => name.ends_with(".rotary_emb.inv_freq"),
    };
    buffer || (config.tie_word_embeddings && name == "lm_head.weight")
}

struct Table<'a> {
    config: &'a ModelConfig,
    specs: Vec<TensorSpec>,
}

impl Table<'_> {
    fn add(&mut self, weight: Weight, name: String, shape: &[usize], layout: Layout) {
        self.specs.push(TensorSpec {
            weight,
            name,
            shape: shape.to_vec(),
            layout,
        });
    }

    fn gpt2(&mut self) {
        use LayerWeight as L;
        let c = self.config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        self.add(
            Weight::TokenEmbedding,
            "transformer.wte.weight".into(),
            &[c.vocab_size, hidden],
            Layout::OutIn,
        );
        if c.positions == Positions::Learned {
            let shape = [c.max_positions, hidden];
            self.add(
                Weight::PositionEmbedding,
                "transformer.wpe.weight".into(),
                &shape,
                Layout::OutIn,
            );
        }
        for layer in 0..c.num_layers {
            let mut vector = |weight, name: &str, width| {
                let name = format!("transformer.h.{layer}.{name}");
                self.add(Weight::Layer(layer, weight), name, &[width], Layout::OutIn);
            };
            vector(L::AttentionNorm, "ln_1.weight", hidden);
            vector(L::AttentionNormBias, "ln_1.bias", hidden);
            vector(L::QkvBias, "attn.c_attn.bias", 3 * hidden);
            vector(L::AttentionOutBias, "attn.c_proj.bias", hidden);
            vector(L::MlpNorm, "ln_2.weight", hidden);
            vector(L::MlpNormBias, "ln_2.bias", hidden);
            vector(L::UpBias, "mlp.c_fc.bias", inner);
            vector(L::DownBias, "mlp.c_proj.bias", hidden);
            let mut matrix = |weight, name: &str, shape: [usize; 2]| {
                let name = format!("transformer.h.{layer}.{name}");
                self.add(Weight::Layer(layer, weight), name, &shape, Layout::InOut);
            };
            matrix(L::Qkv, "attn.c_attn.weight", [hidden, 3 * hidden]);
            matrix(L::AttentionOut, "attn.c_proj.weight", [hidden, hidden]);
            matrix(L::Up, "mlp.c_fc.weight", [hidden, inner]);
            matrix(L::Down, "mlp.c_proj.weight", [inner, hidden]);
        }
        self.add(
            Weight::FinalNorm,
            "transformer.ln_f.weight".into(),
            &[hidden],
            Layout::OutIn,
        );
        self.add(
            Weight::FinalNormBias,
            "transformer.ln_f.bias".into(),
            &[hidden],
            Layout::OutIn,
        );
        self.head();
    }

    fn llama(&mut self) {
        use LayerWeight as L;
        let c = self.config;
        let (hidden, inner, q, kv) = (c.hidden_size, c.intermediate_size, c.q_width(), c.kv_width());
        self.add(
            Weight::TokenEmbedding,
            "model.embed_tokens.weight".into(),
            &[c.vocab_size, hidden],
            Layout::OutIn,
        );
        for layer in 0..c.num_layers {
            let mut add = |weight, name: &str, shape: &[usize]| {
                self.add(
                    Weight::Layer(layer, weight),
                    format!("model.layers.{layer}.{name}"),
                    shape,
                    Layout::OutIn,
                );
            };
            add(L::AttentionNorm, "input_layernorm.weight", &[hidden]);
            add(L::Query, "self_attn.q_proj.weight", &[q, hidden]);
            add(L::Key, "self_attn.k_proj.weight", &[kv, hidden]);
            add(L::Value, "self_attn.v_proj.weight", &[kv, hidden]);
            if c.qkv_bias {
                add(L::QueryBias, "self_attn.q_proj.bias", &[q]);
                add(L::KeyBias, "self_attn.k_proj.bias", &[kv]);
                add(L::ValueBias, "self_attn.v_proj.bias", &[kv]);
            }
            if c.qk_norm {
                add(L::QueryNorm, "self_attn.q_norm.weight", &[c.head_dim]);
                add(L::KeyNorm, "self_attn.k_norm.weight", &[c.head_dim]);
            }
            add(L::AttentionOut, "self_attn.o_proj.weight", &[hidden, q]);
            if c.attention_out_bias {
                add(L::AttentionOutBias, "self_attn.o_proj.bias", &[hidden]);
            }
            add(L::MlpNorm, "post_attention_layernorm.weight", &[hidden]);
            add(L::Gate, "mlp.gate_proj.weight", &[inner, hidden]);
            add(L::Up, "mlp.up_proj.weight", &[inner, hidden]);
            add(L::Down, "mlp.down_proj.weight", &[hidden, inner]);
            if c.mlp_bias {
                add(L::GateBias, "mlp.gate_proj.bias", &[inner]);
                add(L::UpBias, "mlp.up_proj.bias", &[inner]);
                add(L::DownBias, "mlp.down_proj.bias", &[hidden]);
            }
        }
        self.add(Weight::FinalNorm, "model.norm.weight".into(), &[hidden], Layout::OutIn);
        if matches!(c.norm, Norm::LayerNorm { .. }) {
            self.add(
                Weight::FinalNormBias,
                "model.norm.bias".into(),
                &[hidden],
                Layout::OutIn,
            );
        }
        self.head();
    }

    fn head(&mut self) {
        let c = self.config;
        if !c.tie_word_embeddings {
            self.add(
                Weight::LmHead,
                "lm_head.weight".into(),
                &[c.vocab_size, c.hidden_size],
                Layout::OutIn,
            );
        }
    }
}
