//! `units.toml`: the compilation units of a kernel crate.

use std::path::Path;

use serde::Deserialize;

use crate::{Arch, Error};

/// A part of the kernel crate that is compiled alone, with `--cfg unit="NAME"` and `--cfg tier="TIER"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// The name, and the value of `cfg(unit)`.
    pub name: String,
    /// The architectures the unit exists for.
    pub tiers: Vec<Arch>,
    /// LLVM's unroll threshold; LLVM's own default if absent. 20000 unrolls every loop over accumulators.
    pub unroll: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    unit: Vec<Unit>,
}

/// Reads the units of a `units.toml`.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Config`] when it is no valid list of units, a name is no Rust
/// identifier or occurs twice, or a unit has no tier.
pub fn read(path: &Path) -> Result<Vec<Unit>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(&text).map_err(|message| Error::config(path, message))
}

fn parse(text: &str) -> Result<Vec<Unit>, String> {
    let units = toml::from_str::<File>(text).map_err(|error| error.to_string())?.unit;
    for (index, unit) in units.iter().enumerate() {
        let name = &unit.name;
        let is_identifier = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_identifier {
            return Err(format!("unit name `{name}` must be a lower-case Rust identifier"));
        }
        if units[..index].iter().any(|other| other.name == *name) {
            return Err(format!("unit `{name}` is listed twice"));
        }
        if unit.tiers.is_empty() {
            return Err(format!(
                "unit `{name}` has no tiers: list at least one of sm_75, sm_80, sm_90a"
            ));
        }
        if (1..unit.tiers.len()).any(|i| unit.tiers[..i].contains(&unit.tiers[i])) {
            return Err(format!("unit `{name}` lists a tier twice"));
        }
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_tiers_and_unroll() {
        let units = parse("[[unit]]\nname = \"a\"\ntiers = [\"sm_75\", \"sm_90a\"]\nunroll = 20000\n").unwrap();
        assert_eq!(
            units,
            [Unit {
                name: "a".into(),
                tiers: vec![Arch::Sm75, Arch::Sm90a],
                unroll: Some(20000)
            }]
        );
    }

    #[test]
    fn rejects_bad_units_by_name() {
        for (text, wanted) in [
            ("[[unit]]\nname = \"a b\"\ntiers = [\"sm_75\"]", "`a b`"),
            ("[[unit]]\nname = \"a\"\ntiers = []", "no tiers"),
            ("[[unit]]\nname = \"a\"\ntiers = [\"sm_80\", \"sm_80\"]", "tier twice"),
            ("[[unit]]\nname = \"a\"\ntiers = [\"sm_13\"]", "sm_13"),
            ("[[unit]]\nname = \"a\"\ntiers = [\"sm_75\"]\nspeed = 1", "speed"),
            (
                "[[unit]]\nname = \"a\"\ntiers = [\"sm_75\"]\n[[unit]]\nname = \"a\"\ntiers = [\"sm_75\"]",
                "listed twice",
            ),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(wanted), "{message} should mention {wanted}");
        }
    }
}
