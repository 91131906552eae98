//! The header of a safetensors file: eight bytes of length, then JSON `{name: {dtype, shape, data_offsets}}`, then data.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// A tensor in a file: its name, dtype, extents and place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// Reads the tensors of a safetensors file in the order of its data.
///
/// The crate checks that the offsets are without gap or overlap, agree with dtype and shape, and end where the file ends. A name
/// that is there twice would quietly lose one tensor in its map, and offsets near 2^64 overflow its sum; both are looked at first.
pub(super) fn read(file: &[u8]) -> Result<Vec<Entry>, String> {
    precheck(file)?;
    let (header, metadata) = SafeTensors::read_metadata(file).map_err(|e| e.to_string())?;
    let start = header + size_of::<u64>();
    let mut entries: Vec<Entry> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Entry {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: start + info.data_offsets.0..start + info.data_offsets.1,
        })
        .collect();
    entries.sort_by(|a, b| (a.range.start, &a.name).cmp(&(b.range.start, &b.name)));
    Ok(entries)
}

/// Checks that `file` is a whole, well-formed safetensors file, and says how many tensors it has.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_safetensors(file: &[u8]) -> Result<usize, String> {
    read(file).map(|entries| entries.len())
}

fn precheck(file: &[u8]) -> Result<(), String> {
    let cut = || format!("the file ends inside the header (it has {} bytes)", file.len());
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
    let json = rest.get(..length).ok_or_else(cut)?;
    let names = serde_json::from_slice::<Names>(json).map_err(|e| format!("the header is malformed: {e}"))?;
    if names.end > rest.len() - length {
        return Err(format!(
            "the file is truncated: its tensors end at byte {} of the data, and there are {}",
            names.end,
            rest.len() - length
        ));
    }
    Ok(())
}

/// The header's names, unique, and the end of the data that they claim.
struct Names {
    end: usize,
}

/// The one field of a tensor's description that the first look needs.
#[derive(serde::Deserialize)]
struct Offsets {
    #[serde(default)]
    data_offsets: (usize, usize),
}

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Names;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor descriptions")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let (mut seen, mut end) = (HashSet::new(), 0);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        end = end.max(map.next_value::<Offsets>()?.data_offsets.1);
                    }
                    if let Some(twice) = seen.replace(name) {
                        return Err(serde::de::Error::custom(format_args!("`{twice}` is there twice")));
                    }
                }
                Ok(Names { end })
            }
        }
        deserializer.deserialize_map(Visit)
    }
}
