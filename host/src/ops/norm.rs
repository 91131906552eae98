//! RMSNorm and LayerNorm, with the residual sum in front.

mod backward;

pub use backward::NormGradients;

use kernels_gpu::{norm::NormParams, row::WIDE_COLUMNS};

use super::rows::{Rows, Slices, Width, address, check_float, check_like, column_vector};
use crate::{AnyTensor, Error, Result, Stream, launch::Contract};

/// RMSNorm or LayerNorm of rows, to be [run](Norm::run). Made by [`rms_norm`] and [`layer_norm`].
#[derive(Clone, Copy)]
#[must_use = "nothing is computed before `run`"]
pub struct Norm<'a> {
    x: &'a AnyTensor,
    residual: Option<&'a AnyTensor>,
    weight: Option<&'a AnyTensor>,
    bias: Option<&'a AnyTensor>,
    epsilon: f32,
    centered: bool,
    stream: Option<&'a Stream>,
}

/// What [`Norm::run`] computes.
#[derive(Clone, Debug)]
pub struct Normed {
    /// The normalised rows, in the dtype and shape of `x`.
    pub y: AnyTensor,
    /// `x + residual`, rounded to that dtype, when there is a residual: what was normalised.
    pub sum: Option<AnyTensor>,
}

/// `y = x/√(mean(x²) + ε) · weight` over the last axis (Zhang and Sennrich 2019), ε = 1e-5 unless given.
pub fn rms_norm(x: &AnyTensor) -> Norm<'_> {
    Norm {
        x,
        residual: None,
        weight: None,
        bias: None,
        epsilon: 1e-5,
        centered: false,
        stream: None,
    }
}

/// `y = (x − mean(x))/√(variance(x) + ε) · weight + bias` over the last axis (Ba et al. 2016), with the variance of
/// the whole population; ε = 1e-5 unless given.
pub fn layer_norm(x: &AnyTensor) -> Norm<'_> {
    Norm {
        centered: true,
        ..rms_norm(x)
    }
}

impl<'a> Norm<'a> {
    /// Factor of each column, `[columns]`; 1 unless given.
    pub fn weight(mut self, weight: &'a AnyTensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Summand of each column, `[columns]`; 0 unless given.
    pub fn bias(mut self, bias: &'a AnyTensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Added to `x` first; the sum is rounded to the dtype and returned.
    pub fn residual(mut self, residual: &'a AnyTensor) -> Self {
        self.residual = Some(residual);
        self
    }

    /// What is added to the mean square; finite, 0 or more.
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    fn check(&self) -> Result<()> {
        check_float("x", self.x)?;
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::range("epsilon", self.epsilon, "finite, 0 or more"));
        }
        match self.residual {
            Some(residual) => check_like("residual", residual, self.x, "x"),
            None => Ok(()),
        }
    }

    /// Normalises the rows, with f32 statistics around the mean; the result is rounded once.
    ///
    /// f32, f16 or bf16, all arguments alike; rows of up to 2³¹ − 1 elements with any stride. A row that is a constant
    /// gives `bias`; a NaN or infinity in a row makes that row NaN.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::Range`] naming the argument.
    pub fn run(self) -> Result<Normed> {
        self.check()?;
        let x = Rows::of("x", self.x)?;
        let dtype = self.x.dtype();
        let weight = column_vector("weight", self.weight, x.columns, dtype)?;
        let bias = column_vector("bias", self.bias, x.columns, dtype)?;
        let residual = self.residual.map(|r| Rows::of("residual", r)).transpose()?;
        let device = self.x.device();
        let y = AnyTensor::empty(device, dtype, self.x.shape())?;
        let sum = residual
            .as_ref()
            .map(|_| AnyTensor::empty(device, dtype, self.x.shape()))
            .transpose()?;
        if self.x.elements() == 0 {
            return Ok(Normed { y, sum });
        }
        let width = Width::of(x.columns);
        // Registers of one block hold shorter rows at less cost: weights stay in L1.
        let slices = Slices::of(device, dtype, x.columns, 1 + residual.is_some() as u32, WIDE_COLUMNS, 4);
        let kind = slices.map_or(width.name(), |_| "slices");
        let entry = format!("norm_{kind}_{dtype}");
        let launch = Contract::new(device, &entry)
            .grid(slices.map_or(width.grid(x.rows), |slices| slices.grid(x.rows)))
            .shared(slices.map_or(width.shared(), |slices| slices.shared))
            .cluster(slices.map_or(1, |slices| slices.blocks))
            .on(self.stream)
            .reads("x", &x.view)
            .reads_if("residual", residual.as_ref().map(|r| &r.view))
            .reads_if("weight", weight.as_ref())
            .reads_if("bias", bias.as_ref())
            .writes("y", &y)
            .writes_if("sum", sum.as_ref())
            .prepare()?;
        let dense = |tensor: Option<&AnyTensor>| {
            address(tensor).is_multiple_of(16) && (x.rows <= 1 || (x.columns * dtype.size()).is_multiple_of(16))
        };
        let aligned = x.aligned()
            && residual.as_ref().is_none_or(Rows::aligned)
            && dense(Some(&y))
            && dense(sum.as_ref())
            && address(weight.as_ref()).is_multiple_of(16)
            && address(bias.as_ref()).is_multiple_of(16);
        let params = NormParams {
            x: x.address(),
            residual: residual.as_ref().map_or(0, Rows::address),
            weight: address(weight.as_ref()),
            bias: address(bias.as_ref()),
            y: y.address(),
            sum: address(sum.as_ref()),
            rows: x.rows,
            x_stride: x.stride,
            residual_stride: residual.as_ref().map_or(0, |r| r.stride),
            y_stride: x.columns,
            sum_stride: x.columns,
            columns: x.columns as u32,
            centered: self.centered as u32,
            epsilon: self.epsilon,
            reciprocal: (1.0 / x.columns as f64) as f32,
            aligned: aligned as u32,
            ahead: width.ahead(x.view.device()),
        };
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above, and
        // the outputs are dense.
        unsafe { launch.launch(&params)? };
        Ok(Normed { y, sum })
    }
}
