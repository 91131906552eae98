//! Typed reading of JSON fields in which every refusal names the field, its value and what is allowed.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ConfigError;

/// Longest piece of a wrong value that an error message repeats.
const SHOWN: usize = 80;

/// One JSON object of settings. `null` and a missing field are the same to every method, as they are to transformers.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Put before field names in errors: `rope_scaling.` for a nested object.
    prefix: &'static str,
}

/// Reads a JSON text whose top level is an object.
pub(crate) fn parse_object(json: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    match serde_json::from_slice::<Value>(json) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(ConfigError::NotAnObject { found: shown(&other) }),
        Err(e) => Err(ConfigError::Json { message: e.to_string() }),
    }
}

/// The value as it stands in the file, cut to a length fit for a message.
pub(crate) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > SHOWN {
        let end = (0..=SHOWN).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
        let _ = write!(text, "…");
    }
    text
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: "" }
    }

    /// The value, unless it is missing or `null`.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// An error about `name`'s value.
    pub(crate) fn invalid(&self, name: &str, allowed: impl Into<String>) -> ConfigError {
        let value = self.map.get(name).map_or_else(|| "missing".to_owned(), shown);
        ConfigError::Invalid {
            field: format!("{}{name}", self.prefix),
            value,
            allowed: allowed.into(),
        }
    }

    pub(crate) fn missing(&self, name: &str, allowed: impl Into<String>) -> ConfigError {
        ConfigError::Missing {
            field: format!("{}{name}", self.prefix),
            allowed: allowed.into(),
        }
    }

    /// A whole number in `range`. `8.0` is a whole number: Python writes some counts so.
    pub(crate) fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64()?;
            // Beyond 2^53 a float is no longer a count anybody wrote down.
            (float >= 0.0 && float.fract() == 0.0 && float <= 9.0e15).then_some(float as u64)
        });
        match whole.and_then(|n| usize::try_from(n).ok()) {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(self.invalid(
                name,
                format!("a whole number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// A whole number in `range` that must be there.
    pub(crate) fn required(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        let missing = self.missing(name, allowed());
        self.count(name, range)?.ok_or(missing)
    }

    /// A finite number for which `check` holds; `allowed` says so in words.
    pub(crate) fn number(
        &self,
        name: &str,
        allowed: &str,
        check: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && check(x) => Ok(Some(x)),
            _ => Err(self.invalid(name, allowed)),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.invalid(name, "true or false")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.invalid(name, "a string")),
        }
    }

    pub(crate) fn object(&self, name: &str, prefix: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix })),
            Some(_) => Err(self.invalid(name, "an object")),
        }
    }

    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(self.invalid(name, "a list")),
        }
    }

    /// Exactly `len` finite numbers above zero.
    pub(crate) fn factors(&self, name: &str, len: usize) -> Result<Vec<f64>, ConfigError> {
        let allowed = format!("a list of {len} numbers above 0 (half the rotated width)");
        let items = self.list(name)?.ok_or_else(|| self.missing(name, allowed.clone()))?;
        if items.len() != len {
            return Err(ConfigError::Invalid {
                field: format!("{}{name}", self.prefix),
                value: format!("a list of {}", items.len()),
                allowed,
            });
        }
        items
            .iter()
            .map(|v| {
                v.as_f64()
                    .filter(|x| x.is_finite() && *x > 0.0)
                    .ok_or_else(|| self.invalid(name, allowed.clone()))
            })
            .collect()
    }

    /// One token id or a list of them, each below `vocab_size`; empty when the field is missing.
    pub(crate) fn token_ids(&self, name: &str, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
        let allowed = || {
            self.invalid(
                name,
                format!("a token id, or a list of token ids, below vocab_size {vocab_size}"),
            )
        };
        let one = |v: &Value| {
            v.as_u64()
                .filter(|&id| id < vocab_size as u64)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(allowed)
        };
        match self.raw(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}
