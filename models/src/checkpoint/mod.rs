//! A Hugging Face folder: configuration, tokenizer and memory-mapped weights, checked against each other before use.
//!
//! ```text
//! config.json                     → ModelConfig → tensor_table: the tensors there must be, with their shapes
//! model.safetensors               → one mapped file        ┐
//! model.safetensors.index.json    → the mapped files       ┴→ every tensor of the table found, nothing else in the files
//! generation_config.json          → GenerationConfig, if there
//! tokenizer.json, tokenizer_config.json, chat_template.jinja → on demand
//! ```

mod error;
mod header;
mod index;
mod open;
mod table;

use std::path::{Path, PathBuf};

pub use error::CheckpointError;
pub use header::check_safetensors;
pub use index::check_index;
pub(crate) use open::read as read_file;
pub use table::{LayerWeight, Layout, TensorSpec, Weight, tensor_table};

use crate::chat::ChatTemplate;
use crate::config::{GenerationConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// The dtypes in which weights can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl WeightDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A weight in its mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The dtype of its elements.
    pub dtype: WeightDtype,
    /// Its extents, outermost first; those of the [`TensorSpec`].
    pub shape: &'a [usize],
    /// Its elements, row-major and little-endian. Not aligned to anything.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// The elements as f32; exact for all three dtypes.
    pub fn to_f32(&self) -> Vec<f32> {
        let pairs = || self.data.as_chunks::<2>().0.iter();
        match self.dtype {
            WeightDtype::F32 => self
                .data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            WeightDtype::F16 => pairs().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            WeightDtype::Bf16 => pairs().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        }
    }
}

/// Where a weight lies.
#[derive(Debug)]
struct Located {
    spec: TensorSpec,
    /// Its name in the file; differs from the specification's by a prefix at most.
    name: String,
    dtype: WeightDtype,
    shard: usize,
    range: std::ops::Range<usize>,
}

/// A file of weights.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

/// The content of a file of weights.
#[derive(Debug)]
enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

/// Where the files of a model are.
#[derive(Debug)]
pub(crate) struct Files {
    /// The folder, or a name for it.
    folder: PathBuf,
    /// The files, when they are part of the program.
    embedded: Option<&'static [(&'static str, &'static [u8])]>,
}

impl Files {
    pub(crate) fn folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            embedded: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn find(&self, name: &str) -> Option<&'static [u8]> {
        self.embedded?.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        if self.embedded.is_some() {
            self.find(name).is_some()
        } else {
            self.path(name).exists()
        }
    }

    /// A whole file of at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        match self.find(name) {
            Some(bytes) => Ok(bytes.to_vec()),
            None if self.embedded.is_some() => Err(Error::io(&self.path(name), std::io::ErrorKind::NotFound.into())),
            None => read_file(&self.path(name), limit),
        }
    }
}

/// An open, checked model folder.
///
/// The files stay mapped while this lives; they must not be changed meanwhile (a truncated file ends the process with SIGBUS on
/// Linux, as with every mapped file).
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    config: ModelConfig,
    generation: GenerationConfig,
    shards: Vec<Shard>,
    /// In the order of the files, so that loading reads them once, forward.
    weights: Vec<Located>,
    /// From a weight to its place in `weights`.
    places: std::collections::HashMap<Weight, usize>,
}

impl Checkpoint {
    /// Opens `folder` and checks that it holds exactly the weights that its configuration demands.
    ///
    /// # Errors
    /// [`crate::Error::Io`] for files that cannot be read, [`crate::Error::Config`] for a configuration that is malformed,
    /// contradictory or unknown, [`CheckpointError`] for weights that are missing, damaged, of another shape or unaccounted for.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        open::open(Files::folder(folder.as_ref()))
    }

    /// [`Self::open`] of files that are part of the program, under a name that stands for their folder.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn embedded(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Result<Self> {
        open::open(Files {
            folder: PathBuf::from(name),
            embedded: Some(files),
        })
    }

    /// The folder, or the name that stands for it.
    pub fn folder(&self) -> &Path {
        &self.files.folder
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How its makers sample from it; all empty when the folder does not say.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The tokens that end a text: those of `generation_config.json`, else those of `config.json`.
    pub fn eos(&self) -> &[u32] {
        if self.generation.eos.is_empty() {
            &self.config.eos
        } else {
            &self.generation.eos
        }
    }

    /// A weight, if this model has it. Every [`Weight`] of [`tensor_table`] is there.
    pub fn weight(&self, weight: Weight) -> Option<TensorView<'_>> {
        self.places.get(&weight).map(|&i| self.view(&self.weights[i]))
    }

    /// All weights in the order of the files.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = (&TensorSpec, TensorView<'_>)> {
        self.weights.iter().map(|w| (&w.spec, self.view(w)))
    }

    /// Bytes of all weights together: the total of a progress bar.
    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|w| w.range.len() as u64).sum()
    }

    /// Whether there is a `tokenizer.json`.
    pub fn has_tokenizer(&self) -> bool {
        self.files.exists("tokenizer.json")
    }

    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// The file cannot be read or understood, or has tokens that the model's embedding lacks.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::from_files(&self.files)?;
        tokenizer.check_vocabulary(self.config.vocab_size)?;
        Ok(tokenizer)
    }

    /// Reads the chat template from `chat_template.jinja` or `tokenizer_config.json`; `None` when the folder has neither.
    ///
    /// # Errors
    /// A file cannot be read or understood.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_files(&self.files)
    }

    fn view<'a>(&'a self, at: &'a Located) -> TensorView<'a> {
        TensorView {
            name: &at.name,
            dtype: at.dtype,
            shape: &at.spec.shape,
            // Checked against the file's length when the header was read.
            data: &self.shards[at.shard].bytes[at.range.clone()],
        }
    }
}
