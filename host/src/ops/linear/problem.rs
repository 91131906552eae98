//! From tensors to a problem: a batch of `x [m, k]`, weights and operands of the epilogue, checked.

use kernels_gpu::linear::{DTYPE_BF16, DTYPE_F16, DTYPE_F32, Operand};

use super::Linear;
use crate::{AnyTensor, DType, Error, Result, reference::linear::WeightLayout};

/// A checked layer.
pub(super) struct Problem<'a> {
    pub(super) layer: &'a Linear<'a>,
    /// `[batch, m, k]`.
    x: AnyTensor,
    /// `[batch or 1, columns, k]`, by strides whichever way the weight lies.
    w: AnyTensor,
    n: u64,
    dtype: DType,
}

/// Extents and strides that choose a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) dtype: DType,
    pub(super) batch: u64,
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) gated: bool,
    /// Whether rows are normalised first.
    pub(super) normed: bool,
    /// Address, row stride, k stride, batch stride.
    pub(super) x: [u64; 4],
    /// Address, column stride, k stride, batch stride.
    pub(super) w: [u64; 4],
    /// Address, row stride and batch stride of y where TMA can store results that nothing is added to: rows of whole 16
    /// bytes.
    pub(super) y: Option<[u64; 3]>,
}

fn check_float(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        dtype => Err(Error::Dtype {
            argument,
            dtype,
            allowed: "f32, f16 or bf16".into(),
        }),
    }
}

/// `tensor [..., columns]` as `[batch, m, columns]`.
fn rows_of(argument: &'static str, tensor: &AnyTensor, batch: Option<u64>) -> Result<AnyTensor> {
    let Some((&columns, outer)) = tensor.shape().split_last() else {
        return Err(Error::shape(argument, tensor.shape(), "at least one axis is needed"));
    };
    if let Some(batch) = batch {
        return match outer {
            [extent, _] if *extent == batch => Ok(tensor.clone()),
            _ => Err(Error::shape(
                argument,
                tensor.shape(),
                format!("[{batch}, rows, columns] is needed for a batch of {batch} weights"),
            )),
        };
    }
    let merged = tensor.reshape(&[1, outer.iter().product(), columns]);
    match (merged, outer) {
        (Ok(merged), _) => Ok(merged),
        // Rows at two strides: the first axis becomes the batch.
        (Err(_), [_, _]) => Ok(tensor.clone()),
        (Err(_), _) => Err(Error::layout(
            argument,
            format!("the axes of {tensor:?} before the last do not merge into one or two strides; make it dense"),
        )),
    }
}

impl<'a> Problem<'a> {
    pub(super) fn new(layer: &'a Linear<'a>) -> Result<Problem<'a>> {
        let Linear { x, w, .. } = *layer;
        check_float("x", x)?;
        if w.dtype() != x.dtype() {
            return Err(Error::Dtype {
                argument: "w",
                dtype: w.dtype(),
                allowed: format!("the dtype of x, {}, is needed", x.dtype()),
            });
        }
        let batch = match w.rank() {
            2 => None,
            3 => Some(w.extent(0)),
            _ => {
                return Err(Error::shape(
                    "w",
                    w.shape(),
                    "two axes, or three for a batch, are needed",
                ));
            }
        };
        let w = match (layer.layout, batch) {
            (WeightLayout::Nk, _) => w.clone(),
            (WeightLayout::Kn, None) => w.transpose(0, 1)?,
            (WeightLayout::Kn, Some(_)) => w.transpose(1, 2)?,
        };
        let (columns, w_k) = (w.extent(w.rank() - 2), w.extent(w.rank() - 1));
        let x = rows_of("x", x, batch)?;
        let k = x.extent(2);
        if w_k != k {
            return Err(Error::shape(
                "w",
                layer.w.shape(),
                format!("its k is {w_k}, but the last axis of x is {k}"),
            ));
        }
        if layer.gated && columns % 2 != 0 {
            return Err(Error::shape(
                "w",
                layer.w.shape(),
                format!("a gated layer needs an even number of columns, not {columns}"),
            ));
        }
        let dtype = layer.dtype.unwrap_or(x.dtype());
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Dtype {
                argument: "y",
                dtype,
                allowed: "f32, f16 or bf16".into(),
            });
        }
        let problem = Problem {
            layer,
            x,
            w,
            n: if layer.gated { columns / 2 } else { columns },
            dtype,
        };
        if let Some(norm) = &layer.norm {
            norm.check(layer.x)?;
        }
        if let Some(bias) = layer.bias {
            problem.check_bias(bias, columns)?;
        }
        if let Some(residual) = layer.residual {
            problem.check_rows("residual", residual, &problem.y_shape())?;
        }
        Ok(problem)
    }

    fn check_bias(&self, bias: &AnyTensor, columns: u64) -> Result<()> {
        check_float("bias", bias)?;
        let batched = self.w.rank() == 3 && bias.shape() == [self.w.extent(0), columns];
        if bias.shape() != [columns] && !batched {
            return Err(Error::shape("bias", bias.shape(), format!("[{columns}] is needed")));
        }
        check_dense("bias", bias)
    }

    pub(super) fn check_rows(&self, argument: &'static str, tensor: &AnyTensor, shape: &[u64]) -> Result<()> {
        check_float(argument, tensor)?;
        if tensor.shape() != shape {
            return Err(Error::shape(argument, tensor.shape(), format!("{shape:?} is needed")));
        }
        check_dense(argument, tensor)
    }

    fn shape_with(&self, columns: u64) -> Vec<u64> {
        let mut shape = self.layer.x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        shape
    }

    pub(super) fn y_shape(&self) -> Vec<u64> {
        self.shape_with(self.n)
    }

    pub(super) fn z_shape(&self) -> Vec<u64> {
        self.shape_with(if self.layer.gated { 2 * self.n } else { self.n })
    }

    pub(super) fn empty(&self, shape: Vec<u64>) -> Result<AnyTensor> {
        AnyTensor::empty(self.layer.x.device(), self.dtype, &shape)
    }

    pub(super) fn geometry(&self, y: &Operand, plain: bool) -> Geometry {
        let (x, w) = (&self.x, &self.w);
        let axis = w.rank() - 2;
        Geometry {
            dtype: x.dtype(),
            batch: x.extent(0),
            m: x.extent(1),
            n: self.n,
            k: x.extent(2),
            gated: self.layer.gated,
            normed: self.layer.norm.is_some(),
            x: [x.address(), x.strides()[1], x.strides()[2], x.strides()[0]],
            w: [
                w.address(),
                w.strides()[axis],
                w.strides()[axis + 1],
                if axis == 1 { w.strides()[0] } else { 0 },
            ],
            // A box of TMA is clipped by 16 bytes and not by elements: it would write beyond ragged rows.
            y: (plain && self.dtype == x.dtype() && y.aligned != 0 && self.n.is_multiple_of(8)).then_some([
                y.address,
                y.row_stride,
                y.batch_stride,
            ]),
        }
    }

    /// A matrix of the epilogue, in the batch that x has.
    pub(super) fn operand(&self, argument: &'static str, tensor: Option<&AnyTensor>) -> Result<Operand> {
        let Some(tensor) = tensor.filter(|tensor| tensor.elements() > 0) else {
            return Ok(Operand {
                address: 0,
                row_stride: 0,
                batch_stride: 0,
                dtype: DTYPE_F32,
                aligned: 0,
            });
        };
        let (batch, m) = (self.x.extent(0), self.x.extent(1));
        let (row_stride, batch_stride) = if argument == "bias" {
            (0, if tensor.rank() == 2 { tensor.strides()[0] } else { 0 })
        } else {
            // x may be a batch where this is one matrix, and the other way round.
            let rows = tensor
                .reshape(&[batch, m, tensor.extent(tensor.rank() - 1)])
                .map_err(|_| {
                    Error::layout(
                        argument,
                        format!("{tensor:?} cannot be viewed as {batch} matrices of {m} rows; make it dense"),
                    )
                })?;
            (rows.strides()[1], rows.strides()[0])
        };
        let size = tensor.dtype().size();
        Ok(Operand {
            address: tensor.address(),
            row_stride,
            batch_stride,
            dtype: match tensor.dtype() {
                DType::F16 => DTYPE_F16,
                DType::BF16 => DTYPE_BF16,
                _ => DTYPE_F32,
            },
            aligned: [tensor.address(), row_stride * size, batch_stride * size]
                .iter()
                .all(|at| at % 16 == 0) as u32,
        })
    }
}

fn check_dense(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    let last = tensor.rank().checked_sub(1);
    if last.is_some_and(|last| tensor.extent(last) > 1 && tensor.strides()[last] != 1) {
        return Err(Error::layout(argument, "the last axis must be dense"));
    }
    Ok(())
}
