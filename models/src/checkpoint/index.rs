//! `model.safetensors.index.json`: which file has which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

use serde::de::{Deserializer, MapAccess, Visitor};

use super::CheckpointError;

/// Most files that one model may be split into.
const FILES: usize = 4096;

/// Tensor name to file name.
pub(super) type WeightMap = BTreeMap<String, String>;

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Unique,
}

/// A JSON object of strings in which no name is there twice.
struct Unique(WeightMap);

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Unique;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut all = WeightMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if all.contains_key(&tensor) {
                        return Err(serde::de::Error::custom(format_args!("`{tensor}` is there twice")));
                    }
                    all.insert(tensor, file);
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// Reads an index; `path` is for messages only.
pub(super) fn read(path: &Path, json: &[u8]) -> Result<WeightMap, CheckpointError> {
    let bad = |reason: String| CheckpointError::Index {
        path: path.to_owned(),
        reason,
    };
    let index: Index = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
    let map = index.weight_map.0;
    if map.is_empty() {
        return Err(bad("`weight_map` is empty".to_owned()));
    }
    let mut files: Vec<&str> = Vec::new();
    for (tensor, file) in &map {
        if !plain(file) {
            return Err(CheckpointError::PathEscape {
                path: path.to_owned(),
                tensor: tensor.clone(),
                file: file.clone(),
            });
        }
        files.push(file);
    }
    files.sort_unstable();
    files.dedup();
    if files.len() > FILES {
        return Err(bad(format!(
            "`weight_map` names {} files: at most {FILES} are allowed",
            files.len()
        )));
    }
    Ok(map)
}

/// Checks the text of an index, and says how many tensors it names.
///
/// # Errors
/// Malformed JSON, a tensor named twice, a file outside the folder.
pub fn check_index(json: &[u8]) -> Result<usize, CheckpointError> {
    read(Path::new("model.safetensors.index.json"), json).map(|map| map.len())
}

/// Whether `file` is the name of a file in the same folder, on any system: no separators, no drive, no `..`, no NUL.
fn plain(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !file.contains(['/', '\\', ':', '\0'])
}
