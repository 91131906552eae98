//! Gradients of linear layers: two products and a sum over rows.

use super::{Linear, linear};
use crate::{
    AnyTensor, DType, Error, Result,
    ops::{
        ReduceAxis, ReduceKind, cast, contiguous, reduce,
        rows::{check_dtype, check_float},
    },
    reference::linear::WeightLayout,
};

/// What [`Linear::backward`] computes.
#[derive(Clone, Debug)]
pub struct LinearGradients {
    /// Of `x`, in its dtype and shape.
    pub dx: AnyTensor,
    /// Of the weight, in its dtype, shape and layout.
    pub dw: AnyTensor,
    /// Of the bias, in its dtype, when there is one.
    pub dbias: Option<AnyTensor>,
}

impl Linear<'_> {
    /// Gradients of `Σ dz ∘ z` by `x`, the weight and the bias, where `z = alpha·x·W + bias` is what enters the
    /// activation: `dx = alpha·dz·Wᵀ`, `dW = alpha·xᵀ·dz`, `dbias` the sum of the rows of `dz`.
    ///
    /// `dz` has the shape of z, `[..., n]` or `[..., 2n]` when gated, and the dtype of `x`; behind an activation it is
    /// what [`activation_backward`](crate::ops::activation_backward) makes of the gradient of y. That of the residual
    /// is the gradient of y itself. Sums are f32, rounded once. Runs in the main stream; the mode pins the layer alone.
    ///
    /// # Errors
    /// - As for [`run`](Linear::run), for `dz` too.
    /// - [`Error::Shape`] for a batch of weights: `w` has two axes here.
    /// - [`Error::Unsupported`] when another stream was asked for.
    pub fn backward(&self, dz: &AnyTensor) -> Result<LinearGradients> {
        if self.stream.is_some() {
            let what = "gradients of a linear layer in a stream of its own".into();
            return Err(Error::Unsupported { what, tier: None });
        }
        let (x, w) = (self.x, self.w);
        check_float("x", x)?;
        check_dtype("w", w, x.dtype())?;
        check_dtype("dz", dz, x.dtype())?;
        let &[rows_w, columns_w] = w.shape() else {
            return Err(Error::shape("w", w.shape(), "two axes are needed"));
        };
        let (n, k) = match self.layout {
            WeightLayout::Nk => (rows_w, columns_w),
            WeightLayout::Kn => (columns_w, rows_w),
        };
        let Some((&x_k, outer)) = x.shape().split_last() else {
            return Err(Error::shape("x", x.shape(), "at least one axis is needed"));
        };
        if x_k != k {
            let problem = format!("its k is {k}, but the last axis of x is {x_k}");
            return Err(Error::shape("w", w.shape(), problem));
        }
        let z_shape = [outer, &[n]].concat();
        if dz.shape() != z_shape {
            return Err(Error::shape("dz", dz.shape(), format!("{z_shape:?} is needed")));
        }
        if let Some(bias) = self.bias
            && bias.shape() != [n]
        {
            return Err(Error::shape("bias", bias.shape(), format!("[{n}] is needed")));
        }
        let m = outer.iter().product();
        let matrix = |tensor: &AnyTensor, columns: u64| match tensor.reshape(&[m, columns]) {
            Ok(matrix) => Ok(matrix),
            Err(_) => contiguous(tensor)?.reshape(&[m, columns]),
        };
        let (x_rows, dz_rows) = (matrix(x, k)?, matrix(dz, n)?);
        let product = |a: &AnyTensor, b: &AnyTensor, layout| linear(a, b).layout(layout).alpha(self.alpha).run();
        let (dx, dw) = match self.layout {
            WeightLayout::Nk => (
                product(&dz_rows, w, WeightLayout::Kn)?,
                product(&dz_rows.transpose(0, 1)?, &x_rows, WeightLayout::Kn)?,
            ),
            WeightLayout::Kn => (
                product(&dz_rows, w, WeightLayout::Nk)?,
                product(&x_rows.transpose(0, 1)?, &dz_rows, WeightLayout::Kn)?,
            ),
        };
        let dbias = match self.bias {
            Some(bias) => Some(cast(&column_sums(&dz_rows)?, bias.dtype())?),
            None => None,
        };
        Ok(LinearGradients {
            dx: dx.reshape(x.shape())?,
            dw,
            dbias,
        })
    }
}

/// The sum of the rows of a matrix, f32.
fn column_sums(matrix: &AnyTensor) -> Result<AnyTensor> {
    if matrix.extent(0) == 0 {
        return AnyTensor::zeros(matrix.device(), DType::F32, &[matrix.extent(1)]);
    }
    let columns = contiguous(&matrix.transpose(0, 1)?)?;
    reduce(&columns, ReduceKind::Sum, ReduceAxis::Last)
}
