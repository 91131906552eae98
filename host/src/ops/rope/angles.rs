//! Where the cosines and sines of a rotation come from.

use crate::{AnyTensor, DType, Device, Error, Result, reference::rope_scaling::Scaling};

/// Radians a position for each pair, and the factor of cosines and sines, on a device: angles are computed in the kernel,
/// as `position · frequency` in f32, for positions below 6 million.
#[derive(Clone, Debug)]
pub struct RopeFrequencies {
    pub(super) inverse: AnyTensor,
    pub(super) magnitude: f32,
}

impl RopeFrequencies {
    /// Frequencies made elsewhere, one a pair, and the magnitude (1 without YaRN or LongRoPE).
    ///
    /// # Errors
    /// [`Error::Range`] for frequencies or a magnitude that are not finite.
    pub fn new(device: &Device, inverse: &[f32], magnitude: f32) -> Result<RopeFrequencies> {
        if let Some(value) = inverse.iter().chain([&magnitude]).find(|value| !value.is_finite()) {
            return Err(Error::range("frequencies", value, "finite numbers"));
        }
        let shape = [inverse.len() as u64];
        Ok(RopeFrequencies {
            inverse: AnyTensor::from_bytes(device, DType::F32, &shape, bytemuck::cast_slice(inverse))?,
            magnitude,
        })
    }

    /// `theta^(−2i / rotary_dim)`, scaled.
    ///
    /// # Errors
    /// [`Error::Range`] for an odd rotary dimension, a base that is not above 1, or divisors that are not one a pair.
    pub fn scaled(device: &Device, rotary_dim: u64, theta: f64, scaling: &Scaling) -> Result<RopeFrequencies> {
        check_rotary_dim(rotary_dim)?;
        if !(theta.is_finite() && theta > 1.0) {
            return Err(Error::range("theta", theta, "finite and above 1"));
        }
        if let Scaling::LongRope { divisors, .. } = scaling
            && divisors.len() as u64 != rotary_dim / 2
        {
            return Err(Error::range(
                "longrope divisors",
                divisors.len(),
                format!("{}, one a pair", rotary_dim / 2),
            ));
        }
        let (inverse, magnitude) = scaling.frequencies(rotary_dim as usize, theta);
        let inverse: Vec<f32> = inverse.into_iter().map(|frequency| frequency as f32).collect();
        RopeFrequencies::new(device, &inverse, magnitude as f32)
    }

    /// Rotated elements of a head.
    pub fn rotary_dim(&self) -> u64 {
        2 * self.inverse.extent(0)
    }
}

fn check_rotary_dim(rotary_dim: u64) -> Result<()> {
    if !rotary_dim.is_multiple_of(2) || rotary_dim > 1 << 16 {
        return Err(Error::range("rotary_dim", rotary_dim, "an even number, at most 65536"));
    }
    Ok(())
}

/// Where cosines and sines come from.
#[derive(Clone, Copy, Debug)]
pub enum RopeAngles<'a> {
    /// Computed in the kernel.
    Frequencies(&'a RopeFrequencies),
    /// From tables `[positions, rotary_dim / 2]`, f32 or of the tensors' dtype. A position that they lack gives NaN.
    Table {
        /// Cosines.
        cos: &'a AnyTensor,
        /// Sines.
        sin: &'a AnyTensor,
    },
}

impl<'a> RopeAngles<'a> {
    /// What a kernel reads of it.
    pub(in crate::ops) fn tensors(self) -> [(&'static str, Option<&'a AnyTensor>); 3] {
        let (cos, sin, frequencies) = match self {
            RopeAngles::Frequencies(f) => (None, None, Some(&f.inverse)),
            RopeAngles::Table { cos, sin } => (Some(cos), Some(sin), None),
        };
        [("cos", cos), ("sin", sin), ("frequencies", frequencies)]
    }

    /// Rotated pairs of a head of `dim` elements of type `dtype`.
    pub(super) fn pairs(self, dim: u64, dtype: DType) -> Result<u64> {
        let pairs = match self {
            RopeAngles::Frequencies(frequencies) => frequencies.inverse.extent(0),
            RopeAngles::Table { cos, sin } => {
                for (argument, table) in [("cos", cos), ("sin", sin)] {
                    if table.dtype() != DType::F32 && table.dtype() != dtype {
                        let allowed = format!("f32 or {dtype} is needed");
                        return Err(Error::Dtype {
                            argument,
                            dtype: table.dtype(),
                            allowed,
                        });
                    }
                    if table.rank() != 2 || !table.is_contiguous() {
                        return Err(Error::shape(
                            argument,
                            table.shape(),
                            "[positions, rotary_dim / 2], dense, is needed",
                        ));
                    }
                }
                if cos.shape() != sin.shape() || cos.dtype() != sin.dtype() {
                    return Err(Error::shape(
                        "sin",
                        sin.shape(),
                        format!("shape and dtype of cos, {cos:?}, are needed"),
                    ));
                }
                cos.extent(1)
            }
        };
        if 2 * pairs > dim {
            return Err(Error::range(
                "rotary_dim",
                2 * pairs,
                format!("at most the head dim, {dim}"),
            ));
        }
        Ok(pairs)
    }
}

/// Tables of cosines and sines, `[positions, rotary_dim / 2]` f32, for [`RopeAngles::Table`]: the angles are
/// `position · frequency` in f32, the functions are taken in f64 and rounded once.
///
/// # Errors
/// [`Error::Range`] for frequencies that are not finite; [`Error::OutOfMemory`].
pub fn rope_table(
    device: &Device,
    positions: u64,
    frequencies: &[f32],
    magnitude: f32,
) -> Result<(AnyTensor, AnyTensor)> {
    if let Some(value) = frequencies.iter().chain([&magnitude]).find(|value| !value.is_finite()) {
        return Err(Error::range("frequencies", value, "finite numbers"));
    }
    let shape = [positions, frequencies.len() as u64];
    crate::tensor::checked_elements("positions", &shape)?;
    let table = |function: fn(f64) -> f64| {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let values: Vec<f32> = angles
            .map(|angle| (function(angle) * f64::from(magnitude)) as f32)
            .collect();
        AnyTensor::from_bytes(device, DType::F32, &shape, bytemuck::cast_slice(&values))
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}
