//! The norm of rows in front of a product.

use kernels_gpu::linear::{NORM_EXCHANGE, NORM_LAYER, NORM_RMS, NormRowsParams};

use crate::{AnyTensor, DType, Error, Result, launch::Contract, ops, stream::Stream};

/// A norm, described.
#[derive(Clone, Copy)]
pub(super) struct RowNorm<'a> {
    pub(super) centered: bool,
    pub(super) weight: &'a AnyTensor,
    pub(super) bias: Option<&'a AnyTensor>,
    pub(super) epsilon: f32,
}

impl RowNorm<'_> {
    /// `NORM_*`.
    pub(super) fn kind(&self) -> u32 {
        if self.centered { NORM_LAYER } else { NORM_RMS }
    }

    /// Whether kernels of few rows take its tensors: 16 bytes at a time.
    pub(super) fn fits(&self, x: &AnyTensor) -> bool {
        let fits = |t: &AnyTensor| t.is_contiguous() && t.address().is_multiple_of(16);
        fits(self.weight) && self.bias.is_none_or(fits) && x.dtype() != DType::F32
    }

    /// Checks its tensors against x.
    pub(super) fn check(&self, x: &AnyTensor) -> Result<()> {
        let k = x.shape().last().copied().unwrap_or(0);
        for (argument, tensor) in [("norm weight", Some(self.weight)), ("norm bias", self.bias)] {
            let Some(tensor) = tensor else { continue };
            if tensor.dtype() != x.dtype() {
                return Err(Error::Dtype {
                    argument,
                    dtype: tensor.dtype(),
                    allowed: format!("the dtype of x, {}, is needed", x.dtype()),
                });
            }
            if tensor.shape() != [k] {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("[{k}] is needed, one value a column of x"),
                ));
            }
        }
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::range("epsilon", self.epsilon, "finite, 0 or more"));
        }
        Ok(())
    }

    /// The normalised rows; `few` by the code that products of few rows have in them, with the same bits.
    pub(super) fn apply(&self, x: &AnyTensor, few: bool, stream: Option<&Stream>) -> Result<AnyTensor> {
        if !few || !self.fits(x) {
            let norm = if self.centered {
                ops::layer_norm(x)
            } else {
                ops::rms_norm(x)
            };
            let norm = norm.weight(self.weight).epsilon(self.epsilon);
            let norm = match self.bias {
                Some(bias) => norm.bias(bias),
                None => norm,
            };
            return Ok(match stream {
                Some(stream) => norm.on(stream),
                None => norm,
            }
            .run()?
            .y);
        }
        let (rows, k) = (x.elements() / x.extent(x.rank() - 1), x.extent(x.rank() - 1));
        let view = x.reshape(&[rows, k])?;
        let y = AnyTensor::empty(x.device(), x.dtype(), x.shape())?;
        let params = NormRowsParams {
            x: view.address(),
            y: y.address(),
            weight: self.weight.address(),
            bias: self.bias.map_or(0, AnyTensor::address),
            x_row_stride: view.strides()[0],
            k: k as u32,
            epsilon: self.epsilon,
            norm: self.kind(),
            reciprocal: (1.0 / k as f64) as f32,
        };
        let entry = format!("linear_norm_{}", x.dtype());
        let launch = Contract::new(x.device(), &entry)
            .on(stream)
            .programmatic()
            .grid([rows, 1, 1])
            .shared(u64::from(NORM_EXCHANGE) + k * 2)
            .reads("x", x)
            .reads("norm weight", self.weight)
            .reads_if("norm bias", self.bias)
            .writes("y", &y)
            .prepare()?;
        // SAFETY: the argument struct of these kernels; extents, strides and alignment are those of the tensors named above.
        unsafe { launch.launch(&params)? };
        Ok(y)
    }
}
