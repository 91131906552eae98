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
    /// A sampling option is outside its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
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

/// [`std::result::Result`] with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
