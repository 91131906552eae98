//! RoPE parameters from `config.json`, in the form of transformers 5 (`rope_parameters`) and of 4 and earlier
//! (`rope_theta`, `rope_scaling`, `partial_rotary_factor` at the top).

use super::ConfigError;
use super::fields::{Fields, shown};
use crate::rope::{RopeConfig, RopeScaling};

const TYPES: &str = "one of default, linear, dynamic, yarn, longrope, llama3";
const POSITIONS: usize = 1 << 28;

/// Reads the parameters for heads of `head_dim`.
pub(super) fn rope(f: &Fields<'_>, head_dim: usize, max_positions: usize) -> Result<RopeConfig, ConfigError> {
    let new = match f.object("rope_parameters", "rope_parameters.")? {
        Some(p) => Some(one_for_all_layers(f, p)?),
        None => None,
    };
    let old = f.object("rope_scaling", "rope_scaling.")?;
    // transformers 5 lets `rope_scaling` win over `rope_parameters` when both are there and it is not empty.
    let p = old.filter(|o| !o.is_empty()).or(new);

    let above_one = |f: &Fields<'_>| f.number("rope_theta", "a number above 1", |x| x > 1.0 && x < 1e30);
    let theta = match p.map(|p| above_one(&p)).transpose()?.flatten() {
        Some(theta) => theta,
        None => above_one(f)?.unwrap_or(10_000.0),
    };
    let share = |f: &Fields<'_>| {
        f.number("partial_rotary_factor", "a number above 0 and at most 1", |x| {
            x > 0.0 && x <= 1.0
        })
    };
    let partial = match p.map(|p| share(&p)).transpose()?.flatten() {
        Some(x) => x,
        None => share(f)?.unwrap_or(1.0),
    };
    let rotary_dim = (head_dim as f64 * partial) as usize;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(ConfigError::Contradiction {
            what: format!("head_dim {head_dim} and partial_rotary_factor {partial} rotate {rotary_dim} elements"),
            why: "an even number of at least 2 is needed, for elements are rotated in pairs",
        });
    }
    let scaling = match p {
        None => RopeScaling::Default,
        Some(p) => scaling(f, &p, rotary_dim, max_positions)?,
    };
    Ok(RopeConfig {
        theta,
        rotary_dim,
        scaling,
    })
}

/// transformers 5 may nest one set of parameters for every kind of layer. They are taken when they are all the same.
fn one_for_all_layers<'a>(top: &Fields<'a>, p: Fields<'a>) -> Result<Fields<'a>, ConfigError> {
    let nested = !p.is_empty() && p.keys().all(|k| matches!(k, "full_attention" | "sliding_attention"));
    if !nested {
        return Ok(p);
    }
    let full = p.object("full_attention", "rope_parameters.full_attention.")?;
    let sliding = p.object("sliding_attention", "rope_parameters.sliding_attention.")?;
    match (full, sliding) {
        (Some(a), Some(_)) if p.raw("full_attention") == p.raw("sliding_attention") => Ok(a),
        (Some(_), Some(_)) => Err(ConfigError::Unsupported {
            field: "rope_parameters",
            value: top.raw("rope_parameters").map(shown).unwrap_or_default(),
            why: "full and sliding layers must rotate alike",
        }),
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (None, None) => Err(top.invalid("rope_parameters", "parameters for full_attention or sliding_attention")),
    }
}

fn scaling(top: &Fields<'_>, p: &Fields<'_>, rotary_dim: usize, max: usize) -> Result<RopeScaling, ConfigError> {
    let name = match p.text("rope_type")? {
        Some(name) => Some(("rope_type", name)),
        None => p.text("type")?.map(|name| ("type", name)),
    };
    let Some((field, kind)) = name else {
        return Ok(RopeScaling::Default);
    };

    let positive = |name: &str| p.number(name, "a number above 0", |x| x > 0.0);
    let factor = || p.number("factor", "a number of at least 1", |x| x >= 1.0);
    let needed = |value: Option<f64>, name: &str| value.ok_or_else(|| p.missing(name, "a number"));
    // Phi-3 and those after it keep it at the top, where it takes precedence.
    let original = || -> Result<usize, ConfigError> {
        let name = "original_max_position_embeddings";
        Ok(match top.count(name, 1..=POSITIONS)? {
            Some(n) => n,
            None => p.count(name, 1..=POSITIONS)?.unwrap_or(max),
        })
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear {
            factor: needed(factor()?, "factor")?,
        }),
        "dynamic" => {
            if rotary_dim == 2 {
                return Err(p.invalid(field, "anything but dynamic when only one pair is rotated"));
            }
            Ok(RopeScaling::Dynamic {
                factor: needed(factor()?, "factor")?,
                max_positions: max,
            })
        }
        "yarn" => {
            let original = original()?;
            let or = |value: Option<f64>, default: f64| value.filter(|x| *x != 0.0).unwrap_or(default);
            let not_negative = |name: &str| p.number(name, "a number of at least 0", |x| x >= 0.0);
            let (beta_fast, beta_slow) = (
                or(not_negative("beta_fast")?, 32.0),
                or(not_negative("beta_slow")?, 1.0),
            );
            if beta_fast < beta_slow {
                return Err(p.invalid("beta_fast", format!("a number of at least beta_slow, {beta_slow}")));
            }
            Ok(RopeScaling::Yarn {
                factor: factor()?.unwrap_or(max as f64 / original as f64),
                original_max_positions: original,
                attention_factor: positive("attention_factor")?,
                beta_fast,
                beta_slow,
                mscale: not_negative("mscale")?,
                mscale_all_dim: not_negative("mscale_all_dim")?,
                truncate: p.flag("truncate")?.unwrap_or(true),
            })
        }
        "longrope" | "su" => {
            let original = original()?;
            Ok(RopeScaling::LongRope {
                short_factor: p.factors("short_factor", rotary_dim / 2)?,
                long_factor: p.factors("long_factor", rotary_dim / 2)?,
                factor: factor()?.unwrap_or(max as f64 / original as f64),
                original_max_positions: original,
                attention_factor: positive("attention_factor")?,
            })
        }
        "llama3" => {
            let low = needed(positive("low_freq_factor")?, "low_freq_factor")?;
            let high = needed(positive("high_freq_factor")?, "high_freq_factor")?;
            if high <= low {
                return Err(p.invalid("high_freq_factor", format!("a number above low_freq_factor, {low}")));
            }
            Ok(RopeScaling::Llama3 {
                factor: needed(factor()?, "factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original()?,
            })
        }
        _ => Err(p.invalid(field, TYPES)),
    }
}
