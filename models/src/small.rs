//! The small model that travels in this crate, so that a program can generate text before anything is downloaded.

use crate::checkpoint::Checkpoint;
use crate::error::Result;

macro_rules! files {
    ($folder:literal: $($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../small/", $folder, "/", $name)))),*]
    };
}

/// The files of `models/small/stories-llama`.
static STORIES_LLAMA: &[(&str, &[u8])] = files!("stories-llama":
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");

/// A Llama of 1.6 million parameters (GQA, RoPE, tied head, bf16) that tells stories for small children. How it was trained, and
/// on what: `models/small/README.md`.
///
/// # Errors
/// None that a build which passed its tests can meet: the files are checked as those of any other folder.
pub fn stories_llama() -> Result<Checkpoint> {
    Checkpoint::embedded("stories-llama", STORIES_LLAMA)
}
