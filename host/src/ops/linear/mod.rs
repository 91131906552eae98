//! Linear layers: `y = act(alpha · x·W + bias) (+ residual)` in one launch.

mod backward;
mod clustered;
mod launch;
mod norm;
mod plan;
mod problem;
mod rows;

pub use backward::LinearGradients;
pub use plan::LinearMode;

use crate::{
    AnyTensor, DType, Result,
    reference::{activation::Activation, linear::WeightLayout},
    stream::Stream,
};
use norm::RowNorm;
use problem::Problem;

/// A linear layer, described; [`run`](Linear::run) computes it.
///
/// `y[…, i] = act(z[…, i]) + residual[…, i]` with `z[…, i] = alpha · Σₖ x[…, k] · W[i, k] + bias[i]`; a gated layer has
/// `2n` columns of z and `y[…, i] = act(z[…, i]) · z[…, n + i] + residual[…, i]`. Sums are f32 whatever the dtypes; `y`
/// is rounded once.
///
/// # Determinism
/// Same inputs, same bits. Within one [`LinearMode`] the bits of a row of y do not depend on how many rows there are;
/// [`LinearMode::Auto`] chooses by the number of rows too, so pin the mode where that matters.
#[derive(Clone)]
pub struct Linear<'a> {
    x: &'a AnyTensor,
    w: &'a AnyTensor,
    layout: WeightLayout,
    alpha: f32,
    bias: Option<&'a AnyTensor>,
    residual: Option<&'a AnyTensor>,
    activation: Activation,
    gated: bool,
    dtype: Option<DType>,
    mode: LinearMode,
    norm: Option<RowNorm<'a>>,
    constant_weight: bool,
    stream: Option<&'a Stream>,
}

/// Describes `x·Wᵀ` for `x [..., k]` and `w [n, k]`, the layout of PyTorch's `Linear`; see [`Linear`] for the rest.
///
/// ```no_run
/// # use host::{AnyTensor, Result, ops::linear};
/// # fn layer(x: &AnyTensor, w: &AnyTensor, b: &AnyTensor, r: &AnyTensor) -> Result<AnyTensor> {
/// linear(x, w).bias(b).gelu_tanh().residual(r).run()
/// # }
/// ```
///
/// - `x` and `w` are both f32, f16 or bf16, of any strides. Rows aligned to 16 bytes run on tensor cores; others, and
///   f32, by FMA.
/// - A `w` of three axes `[batch, n, k]` is a batch of layers for `x [batch, m, k]`, with a bias `[n]` or `[batch, n]`.
/// - No rows give an empty y; `k = 0` gives `act(bias) + residual`.
pub fn linear<'a>(x: &'a AnyTensor, w: &'a AnyTensor) -> Linear<'a> {
    Linear {
        x,
        w,
        layout: WeightLayout::Nk,
        alpha: 1.0,
        bias: None,
        residual: None,
        activation: Activation::Identity,
        gated: false,
        dtype: None,
        mode: LinearMode::Auto,
        norm: None,
        constant_weight: false,
        stream: None,
    }
}

impl<'a> Linear<'a> {
    /// How the weight lies: `[n, k]`, or `[k, n]` as in GPT-2's `Conv1D`.
    pub fn layout(mut self, layout: WeightLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Factor of the product, 1 unless told.
    pub fn alpha(mut self, alpha: f32) -> Self {
        self.alpha = alpha;
        self
    }

    /// Adds a bias, `[n]`, or `[2n]` when gated; f32, f16 or bf16.
    pub fn bias(mut self, bias: &'a AnyTensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Adds a tensor of y's shape, after the activation; f32, f16 or bf16.
    pub fn residual(mut self, residual: &'a AnyTensor) -> Self {
        self.residual = Some(residual);
        self
    }

    /// The activation.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self.gated = false;
        self
    }

    /// A gated pair: the weight's first half are gates, and their activation multiplies the second half.
    pub fn gated(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self.gated = true;
        self
    }

    /// `max(z, 0)`.
    pub fn relu(self) -> Self {
        self.activation(Activation::Relu)
    }

    /// `z · sigmoid(z)`.
    pub fn silu(self) -> Self {
        self.activation(Activation::Silu)
    }

    /// `z · Φ(z)`, the GELU with the exact normal distribution.
    pub fn gelu(self) -> Self {
        self.activation(Activation::GeluErf)
    }

    /// The GELU by the hyperbolic tangent.
    pub fn gelu_tanh(self) -> Self {
        self.activation(Activation::GeluTanh)
    }

    /// Gates by SiLU.
    pub fn swiglu(self) -> Self {
        self.gated(Activation::Silu)
    }

    /// Gates by [`gelu`](Self::gelu).
    pub fn geglu(self) -> Self {
        self.gated(Activation::GeluErf)
    }

    /// Type of y (f32, f16 or bf16); that of x unless told.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Normalises the rows of x first, by the root of their mean square: as [`rms_norm`](crate::ops::rms_norm) with this
    /// weight `[k]`, in the same launch where few rows allow that.
    pub fn rms_norm(mut self, weight: &'a AnyTensor, epsilon: f32) -> Self {
        self.norm = Some(RowNorm {
            centered: false,
            weight,
            bias: None,
            epsilon,
        });
        self
    }

    /// Normalises the rows of x first, by mean and deviation: as [`layer_norm`](crate::ops::layer_norm) with this weight and
    /// bias `[k]`, in the same launch where few rows allow that.
    pub fn layer_norm(mut self, weight: &'a AnyTensor, bias: Option<&'a AnyTensor>, epsilon: f32) -> Self {
        self.norm = Some(RowNorm {
            centered: true,
            weight,
            bias,
            epsilon,
        });
        self
    }

    /// Says that no work launched before still writes the weight, nor those of the norm: their loads need not wait for the
    /// kernel in front. True of a model that only generates.
    pub fn constant_weight(mut self) -> Self {
        self.constant_weight = true;
        self
    }

    /// Pins the kind of kernel.
    pub fn mode(mut self, mode: LinearMode) -> Self {
        self.mode = mode;
        self
    }

    /// Stream to run in; the main stream unless told.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Computes y, `[..., n]`.
    ///
    /// # Errors
    /// - [`Error::Dtype`](crate::Error::Dtype), [`Error::Shape`](crate::Error::Shape),
    ///   [`Error::Layout`](crate::Error::Layout) naming the argument.
    /// - [`Error::Unsupported`](crate::Error::Unsupported) when a pinned mode does not take this dtype or layout.
    pub fn run(&self) -> Result<AnyTensor> {
        let problem = Problem::new(self)?;
        let y = problem.empty(problem.y_shape())?;
        problem.launch(&y, None)?;
        Ok(y)
    }

    /// Computes y and z, what enters the activation: `[..., n]`, or `[..., 2n]` when gated; both in y's type. Training
    /// needs it.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn run_with_pre_activation(&self) -> Result<(AnyTensor, AnyTensor)> {
        let problem = Problem::new(self)?;
        let (y, z) = (problem.empty(problem.y_shape())?, problem.empty(problem.z_shape())?);
        problem.launch(&y, Some(&z))?;
        Ok((y, z))
    }

    /// Computes into `y`, whose last axis is dense and whose type is the result's.
    ///
    /// # Errors
    /// As for [`run`](Self::run), for `y` too, which must not overlap an input.
    pub fn run_into(&self, y: &AnyTensor) -> Result<()> {
        Problem::new(&self.clone().dtype(y.dtype()))?.launch(y, None)
    }
}
