//! Opening a folder: every check that needs more than one file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use memmap2::Mmap;

use super::error::dtype;
use super::header::{self, Entry};
use super::index::{self, WeightMap};
use super::table::{TensorSpec, ignorable, prefix, tensor_table};
use super::{Bytes, Checkpoint, CheckpointError, Files, Located, Shard};
use crate::config::{GenerationConfig, ModelConfig};
use crate::error::{Error, Result};

/// Largest configuration and index that are read; real ones have kilobytes and at most a few megabytes.
const CONFIG_BYTES: u64 = 16 << 20;
const INDEX_BYTES: u64 = 256 << 20;
/// How many names an error lists.
const LISTED: usize = 5;

pub(super) fn open(files: Files) -> Result<Checkpoint> {
    let json = files.read("config.json", CONFIG_BYTES)?;
    let config = ModelConfig::from_json(&json).map_err(|e| Error::config(&files.path("config.json"), e))?;
    let generation = generation(&files, config.vocab_size)?;
    let (shards, entries) = weights(&files)?;
    let weights = match_table(&config, entries)?;
    let places = weights.iter().enumerate().map(|(i, w)| (w.spec.weight, i)).collect();
    Ok(Checkpoint {
        files,
        config,
        generation,
        shards,
        weights,
        places,
    })
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let mut bytes = Vec::new();
    // `take` rather than the length that the system states: pipes and special files have none.
    File::open(path)
        .map_err(io)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > limit {
        let large = std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("at most {limit} bytes are read"),
        );
        return Err(Error::io(path, large));
    }
    Ok(bytes)
}

fn generation(files: &Files, vocab_size: usize) -> Result<GenerationConfig> {
    const NAME: &str = "generation_config.json";
    if !files.exists(NAME) {
        return Ok(GenerationConfig::default());
    }
    GenerationConfig::from_json(&files.read(NAME, CONFIG_BYTES)?, vocab_size)
        .map_err(|e| Error::config(&files.path(NAME), e))
}

/// Every tensor of every file, by name.
type Entries = BTreeMap<String, (usize, Entry)>;

fn weights(files: &Files) -> Result<(Vec<Shard>, Entries)> {
    const SINGLE: &str = "model.safetensors";
    let folder = files.folder.as_path();
    if files.exists(SINGLE) {
        let shard = match files.find(SINGLE) {
            Some(bytes) => Shard {
                path: files.path(SINGLE),
                bytes: Bytes::Static(bytes),
            },
            None => map(&files.path(SINGLE))?,
        };
        let entries = entries(std::slice::from_ref(&shard))?;
        return Ok((vec![shard], entries));
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(no_weights(folder).into());
    }
    let weight_map = index::read(&index_path, &read(&index_path, INDEX_BYTES)?)?;
    let mut names: Vec<&String> = weight_map.values().collect();
    names.sort_unstable();
    names.dedup();
    let shards: Vec<Shard> = names
        .iter()
        .map(|name| map(&folder.join(name)))
        .collect::<Result<_>>()?;
    let entries = entries(&shards)?;
    agree(&weight_map, &names, &entries)?;
    Ok((shards, entries))
}

fn no_weights(folder: &Path) -> CheckpointError {
    let has = |test: fn(&str) -> bool| {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.into_iter().any(|f| f.file_name().to_str().is_some_and(test))
    };
    let hint = if has(|n| n.starts_with("pytorch_model") && n.ends_with(".bin")) {
        " (there is a pytorch_model.bin; save it again with save_pretrained(safe_serialization=True))"
    } else if has(|n| n.ends_with(".gguf")) {
        " (there is a GGUF file, which is another format)"
    } else if has(|n| n.ends_with(".safetensors")) {
        " (there are safetensors files of other names; the index that lists them is missing)"
    } else {
        ""
    };
    CheckpointError::NoWeights {
        folder: folder.to_owned(),
        hint,
    }
}

fn map(path: &Path) -> Result<Shard> {
    let io = |e| Error::io(path, e);
    let file = File::open(path).map_err(io)?;
    // A folder can be opened and not mapped; a message about its kind is clearer than that of `mmap`.
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Error::io(
            path,
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"),
        ));
    }
    // SAFETY: the map is read-only; that nobody changes the file while it is mapped is what `Checkpoint` asks of its user,
    // and no length or offset is read from it twice: everything is checked against the map's own fixed length.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Shard {
        path: path.to_owned(),
        bytes: Bytes::Mapped(map),
    })
}

fn entries(shards: &[Shard]) -> Result<Entries> {
    let mut all = Entries::new();
    for (i, shard) in shards.iter().enumerate() {
        let damaged = |reason| CheckpointError::Damaged {
            path: shard.path.clone(),
            reason,
        };
        for entry in header::read(&shard.bytes).map_err(damaged)? {
            if let Some((first, twice)) = all.insert(entry.name.clone(), (i, entry)) {
                return Err(CheckpointError::Duplicate {
                    tensor: twice.name,
                    first: shards[first].path.display().to_string(),
                    second: shard.path.display().to_string(),
                }
                .into());
            }
        }
    }
    Ok(all)
}

/// Index and files must say the same.
fn agree(weight_map: &WeightMap, names: &[&String], entries: &Entries) -> Result<(), CheckpointError> {
    for (tensor, stated) in weight_map {
        let found = entries.get(tensor).map(|(shard, _)| names[*shard]);
        if found != Some(stated) {
            let found = found.map_or_else(|| "no file".to_owned(), String::clone);
            return Err(CheckpointError::IndexMismatch {
                tensor: tensor.clone(),
                stated: stated.clone(),
                found,
            });
        }
    }
    match entries.iter().find(|(tensor, _)| !weight_map.contains_key(*tensor)) {
        None => Ok(()),
        Some((tensor, (shard, _))) => Err(CheckpointError::IndexMismatch {
            tensor: tensor.clone(),
            stated: "no file".to_owned(),
            found: names[*shard].clone(),
        }),
    }
}

/// Finds every tensor of the table and accounts for every tensor of the files.
fn match_table(config: &ModelConfig, mut entries: Entries) -> Result<Vec<Located>, CheckpointError> {
    let prefix = prefix(config.family);
    let table = tensor_table(config);
    // A checkpoint of the bare model leaves the prefix out everywhere.
    let bare = !entries.keys().any(|name| name.starts_with(prefix));
    let name_in_file = |spec: &TensorSpec| {
        let name = spec.name.as_str();
        if bare {
            name.strip_prefix(prefix).unwrap_or(name).to_owned()
        } else {
            name.to_owned()
        }
    };

    let (mut located, mut missing) = (Vec::new(), Vec::new());
    for spec in table {
        let name = name_in_file(&spec);
        let Some((shard, entry)) = entries.remove(&name) else {
            missing.push(name);
            continue;
        };
        if entry.shape != spec.shape {
            return Err(CheckpointError::Shape {
                tensor: name,
                found: entry.shape,
                expected: spec.shape,
            });
        }
        located.push(Located {
            dtype: dtype(&name, entry.dtype)?,
            spec,
            name,
            shard,
            range: entry.range,
        });
    }
    if !missing.is_empty() {
        let count = missing.len();
        missing.truncate(LISTED);
        return Err(CheckpointError::Missing { count, names: missing });
    }
    let mut unexpected: Vec<String> = entries.into_keys().filter(|name| !ignorable(config, name)).collect();
    if !unexpected.is_empty() {
        let count = unexpected.len();
        unexpected.truncate(LISTED);
        return Err(CheckpointError::Unexpected {
            count,
            names: unexpected,
        });
    }
    located.sort_by_key(|w| (w.shard, w.range.start));
    Ok(located)
}
