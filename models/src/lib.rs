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
//! Nothing in this part of the crate touches a device: a checkpoint is refused, with the tensor or field named, before a byte
//! is allocated there. Everything that is read from a file is bounded by the file's own size, and no bytes make it panic.

pub mod chat;
pub mod checkpoint;
pub mod config;
mod error;
pub mod rope;
pub mod sampling;
pub mod stop;
pub mod tokenizer;

pub use chat::{ChatError, ChatTemplate, Message, Role};
pub use checkpoint::{Checkpoint, CheckpointError, TensorView, Weight, WeightDtype};
pub use config::{ConfigError, Family, GenerationConfig, ModelConfig};
pub use error::{Error, Result};
pub use rope::{RopeConfig, RopeScaling};
pub use sampling::{Sampler, SamplingError, SamplingOptions};
pub use stop::StopMatcher;
pub use tokenizer::{Detokenizer, Tokenizer, TokenizerError};
