//! GPT-2 and the Llama family on ferroflash kernels: checkpoints as people have them, tokenizer, chat templates, sampling.
//!
//! ```text
//! folder ─ Checkpoint::open ─┬─ ModelConfig        shapes, norms, positions, windows: checked, so code after it need not
//!                            ├─ TensorView         every weight the configuration demands, mapped, shape and dtype checked
//!                            ├─ GenerationConfig   how its makers sample from it
//!                            ├─ Tokenizer          text ⇄ tokens; Detokenizer never prints half a character
//!                            └─ ChatTemplate       messages → prompt
//! ```
//!
//! None of these touches a device: a checkpoint is refused, with the tensor or field named, before a byte is allocated there.
//! Everything that is read from a file is bounded by the file's own size, and no bytes make it panic.
//!
//! ```text
//! Model::load ─ weights on the device ─┬─ Model::generate   one sequence, an iterator of tokens
//!                                      ├─ Model::batch      many, admitted as others end, prefixes shared
//!                                      ├─ Model::logits     every position's logits, for evaluation
//!                                      └─ Model::perplexity
//! ```
//!
//! The models are straight-line calls of `host::ops`: one file for GPT-2, one for the Llama family. What a sequence says does
//! not depend on who is computed beside it, bit for bit.

mod batch;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod error;
mod generate;
mod gpt2;
pub mod hub;
mod layers;
mod llama;
mod model;
mod perplexity;
mod profile;
mod recorded;
pub mod rope;
pub mod sampling;
mod session;
pub mod small;
mod step;
pub mod stop;
mod text;
pub mod tokenizer;
mod weights;

pub use batch::{Batch, BatchOptions, Event, RequestId};

pub use chat::{ChatError, ChatTemplate, Message, Role};
pub use checkpoint::{Checkpoint, CheckpointError, TensorView, Weight, WeightDtype};
pub use config::{ConfigError, Family, GenerationConfig, ModelConfig};
pub use error::{Error, Result};
pub use generate::{FinishReason, GenerateOptions, Generator};
pub use model::{LoadOptions, Model};
pub use perplexity::Perplexity;
pub use profile::KernelTime;
pub use rope::{RopeConfig, RopeScaling};
pub use sampling::{Sampler, SamplingError, SamplingOptions};
pub use stop::StopMatcher;
pub use text::TextStream;
pub use tokenizer::{Detokenizer, Tokenizer, TokenizerError};
pub use weights::Progress;
