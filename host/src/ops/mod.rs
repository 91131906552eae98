//! Ops: validate, choose a kernel, launch. One file an op family, mirroring `kernels-gpu`.

mod attention;
mod cache;
mod decode;
mod elementwise;
mod embedding;
mod kv_cache;
mod linear;
mod loss;
mod norm;
mod optimizer;
mod reduce;
mod rope;
mod rows;
mod sampling;
mod softmax;
mod vector_add;

pub use crate::reference::{activation::Activation, linear::WeightLayout};
pub use attention::{
    Attention, AttentionBackward, AttentionCall, AttentionContext, AttentionGradients, AttentionOptions, Causal,
    Dropout, Layout, attention, attention_backward, flash_attn, flash_attn_varlen,
};
pub use cache::{
    CacheView, PoolLayout, cache_append, cache_append_at, cache_read, cache_read_as, copy_pages, swap_pages,
};
pub use decode::{Decode, DecodeOptions, Decoded, decode};
pub use elementwise::{
    activation, activation_backward, add, add_into, add_scaled, cast, contiguous, copy, gated, gated_backward, gelu,
    gelu_tanh, relu, scale, silu, swiglu, swiglu_backward,
};
pub use embedding::{check_indices, embedding, embedding_backward, embedding_backward_into};
pub use kv_cache::{KvCache, PagedKvCache, Step, attention_with_kv_cache};
pub use linear::{Linear, LinearGradients, LinearMode, linear};
pub use loss::{CrossEntropy, RowLosses, cross_entropy};
pub use norm::{Norm, NormGradients, Normed, layer_norm, rms_norm};
pub use optimizer::{AdamW, AdamWState};
pub use reduce::{ReduceAxis, ReduceKind, reduce};
pub use rope::{Rope, RopeAngles, RopeFrequencies, RopePairing, rope, rope_table};
pub use sampling::{Sample, argmax, argmax_and_copy, sample};
pub use softmax::{Softmax, log_softmax, softmax};
pub use vector_add::vector_add;
