//! The error of the crate: which file, and what is wrong with it.

use std::io;
use std::path::{Path, PathBuf};

use crate::chat::ChatError;
use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::sampling::SamplingError;
use crate::tokenizer::TokenizerError;

/// What can go wrong between a folder and a running model. Every message names the file and, in it, the field or tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A JSON file of settings is malformed or asks for something impossible or unknown.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        source: ConfigError,
    },
    /// The weights are missing, damaged, or not those that the configuration demands.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer is unusable, or a text or token is not one of its.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is unusable or refuses these messages.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A sampling option is outside its range, or logits cannot be sampled from.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device refused or failed.
    #[error(transparent)]
    Device(#[from] host::Error),
    /// The page pool of the cache refused.
    #[error(transparent)]
    Cache(#[from] host::kv::PoolError),
    /// A model of the hub is named, but the program is built without the feature that downloads.
    #[error(
        "there is no folder `{name}`; to download the model of that name from the Hugging Face hub, build with the feature \
         `hub` (cargo … --features hub)"
    )]
    NoHub {
        /// The name.
        name: String,
    },
    /// The hub refused, or was not reached.
    #[error("`{name}` from the Hugging Face hub (there is no such folder): {why}")]
    Hub {
        /// The model's name.
        name: String,
        /// What it said.
        why: String,
    },
    /// The folder has no tokenizer.
    #[error("the model has no tokenizer.json, which turns text into tokens")]
    NoTokenizer,
    /// The folder has no chat template.
    #[error(
        "the model has no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json): it \
         continues texts, so give it a plain prompt"
    )]
    NoChatTemplate,
    /// A prompt has no tokens.
    #[error("the prompt has no tokens: at least one is needed")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("token {token} at position {position}: the model has tokens 0 to {last}", last = vocab_size - 1)]
    UnknownToken {
        /// The token.
        token: u32,
        /// Its place in the text.
        position: usize,
        /// Tokens that the model has.
        vocab_size: usize,
    },
    /// Prompt and answer are longer than the model or the cache takes.
    #[error("the prompt has {prompt} tokens and the answer may have {answer}: together at most {most} fit ({limit})")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens of the answer.
        answer: usize,
        /// What fits.
        most: usize,
        /// What sets the limit.
        limit: &'static str,
    },
    /// The weights do not fit into the device's memory.
    #[error(
        "the weights take {needed} MiB in {dtype}, and {device} has {free} MiB free: {} fits",
        what_fits(*free, *parameters)
    )]
    TooLarge {
        /// MiB of the weights.
        needed: u64,
        /// MiB free.
        free: u64,
        /// The dtype they would be kept in.
        dtype: host::DType,
        /// The device.
        device: String,
        /// Parameters of the model.
        parameters: u64,
    },
    /// The cache of keys and values does not fit into the device's memory.
    #[error("a cache for {tokens} tokens takes {needed} MiB, and {free} MiB are free: at most {most} tokens fit")]
    CacheTooLarge {
        /// Tokens asked for.
        tokens: usize,
        /// MiB that they take.
        needed: u64,
        /// MiB free.
        free: u64,
        /// Tokens that would fit.
        most: u64,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn config(path: &Path, source: ConfigError) -> Self {
        Self::Config {
            path: path.to_owned(),
            source,
        }
    }
}

fn what_fits(free: u64, parameters: u64) -> String {
    let most = (free << 20) / 2;
    if most >= parameters {
        "a 16-bit dtype".to_owned()
    } else {
        format!("a model of at most {:.1} billion 16-bit parameters", most as f64 / 1e9)
    }
}

/// [`std::result::Result`] with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
