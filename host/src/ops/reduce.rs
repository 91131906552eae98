//! Reductions over everything or over the last axis.

use kernels_gpu::reduce::{CHUNK, ReduceParams, WARP_COLUMNS, WARPS};

use crate::{AnyTensor, DType, Device, Error, Result, launch::Contract};

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceKind {
    /// Σ x. Of nothing: 0.
    Sum,
    /// Σ x / n. Of nothing: an error.
    Mean,
    /// The largest value. Of nothing: an error.
    Max,
    /// The smallest value. Of nothing: an error.
    Min,
    /// The index of the largest value, the first of equals. Of nothing: an error.
    Argmax,
    /// Σ x². Of nothing: 0.
    SumOfSquares,
}

/// What a reduction runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceAxis {
    /// All elements: the result has no axes.
    All,
    /// The last axis: the result has the other axes.
    Last,
}

impl ReduceKind {
    /// All kinds.
    pub const ALL: [ReduceKind; 6] = [
        ReduceKind::Sum,
        ReduceKind::Mean,
        ReduceKind::Max,
        ReduceKind::Min,
        ReduceKind::Argmax,
        ReduceKind::SumOfSquares,
    ];

    /// Part of the kernel's name.
    fn kernel(self) -> &'static str {
        match self {
            ReduceKind::Sum | ReduceKind::Mean => "sum",
            ReduceKind::Max => "max",
            ReduceKind::Min => "min",
            ReduceKind::Argmax => "argmax",
            ReduceKind::SumOfSquares => "sumsq",
        }
    }

    /// The kind that joins partial results.
    fn merge(self) -> ReduceKind {
        match self {
            ReduceKind::Mean | ReduceKind::SumOfSquares => ReduceKind::Sum,
            kind => kind,
        }
    }
}

/// Reduces `x` (f32, f16 or bf16) with f32 accumulation to f32, or i64 for [`ReduceKind::Argmax`].
///
/// Any length up to 2^47 elements. The result is deterministic, and a row's result does not depend on other rows. A
/// NaN propagates; for [`ReduceKind::Argmax`] the first NaN is the maximum. The last axis must be dense.
///
/// # Errors
/// - [`Error::Dtype`], [`Error::Layout`] for other inputs.
/// - [`Error::Shape`] for kinds that have no value over nothing.
pub fn reduce(x: &AnyTensor, kind: ReduceKind, axis: ReduceAxis) -> Result<AnyTensor> {
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::Dtype {
            argument: "x",
            dtype: x.dtype(),
            allowed: "f32, f16 or bf16".into(),
        });
    }
    let out_dtype = if kind == ReduceKind::Argmax {
        DType::I64
    } else {
        DType::F32
    };
    let (rows, out_shape) = match axis {
        ReduceAxis::All => (x.reshape(&[1, x.elements()])?, Vec::new()),
        ReduceAxis::Last => {
            let Some((&columns, outer)) = x.shape().split_last() else {
                return Err(Error::shape(
                    "x",
                    x.shape(),
                    "at least one axis is needed to reduce the last one",
                ));
            };
            (x.reshape(&[outer.iter().product(), columns])?, outer.to_vec())
        }
    };
    let (count, columns) = (rows.extent(0), rows.extent(1));
    if columns > 1 && rows.strides()[1] != 1 {
        return Err(Error::layout("x", "the last axis must be dense"));
    }
    if count == 0 {
        return AnyTensor::empty(x.device(), out_dtype, &out_shape);
    }
    if columns == 0 {
        return match kind {
            ReduceKind::Sum | ReduceKind::SumOfSquares => AnyTensor::zeros(x.device(), out_dtype, &out_shape),
            _ => Err(Error::shape(
                "x",
                x.shape(),
                format!("{kind:?} of nothing is not defined"),
            )),
        };
    }
    let scale = if kind == ReduceKind::Mean {
        1.0 / columns as f64
    } else {
        1.0
    };
    let rows = Rows {
        x: &rows,
        count,
        columns,
        stride: rows.strides()[0],
    };
    let out = AnyTensor::empty(x.device(), out_dtype, &[count])?;
    rows.reduce(kind, scale as f32, &out)?;
    out.reshape(&out_shape)
}

/// Rows to reduce.
struct Rows<'a> {
    x: &'a AnyTensor,
    count: u64,
    columns: u64,
    stride: u64,
}

/// What a launch writes.
#[derive(Clone, Copy)]
struct Results<'a> {
    values: Option<&'a AnyTensor>,
    indices: Option<&'a AnyTensor>,
}

impl Rows<'_> {
    fn device(&self) -> &Device {
        self.x.device()
    }

    fn reduce(&self, kind: ReduceKind, scale: f32, out: &AnyTensor) -> Result<()> {
        let argmax = kind == ReduceKind::Argmax;
        let results = Results {
            values: (!argmax).then_some(out),
            indices: argmax.then_some(out),
        };
        let splits = if self.columns <= WARP_COLUMNS {
            1
        } else {
            self.columns.div_ceil(CHUNK)
        };
        if splits == 1 {
            return self.launch(kind, scale, 1, results);
        }
        let partial = [self.count, splits];
        let values = AnyTensor::empty(self.device(), DType::F32, &partial)?;
        let indices = argmax
            .then(|| AnyTensor::empty(self.device(), DType::I64, &partial))
            .transpose()?;
        self.launch(
            kind,
            1.0,
            splits,
            Results {
                values: Some(&values),
                indices: indices.as_ref(),
            },
        )?;
        let merged = Rows {
            x: &values,
            count: self.count,
            columns: splits,
            stride: splits,
        };
        match &indices {
            Some(indices) => merged.merge_argmax(indices, out),
            None => merged.launch(kind.merge(), scale, 1, results),
        }
    }

    fn params(&self, scale: f32, splits: u64, results: Results<'_>) -> ReduceParams {
        let size = self.x.dtype().size();
        ReduceParams {
            x: self.x.address(),
            x_indices: 0,
            values: results.values.map_or(0, AnyTensor::address),
            indices: results.indices.map_or(0, AnyTensor::address),
            rows: self.count,
            columns: self.columns,
            row_stride: self.stride,
            chunk: if splits == 1 { self.columns } else { CHUNK },
            splits,
            scale,
            aligned: (self.x.address().is_multiple_of(16)
                && (self.count == 1 || (self.stride * size).is_multiple_of(16))) as u32,
        }
    }

    fn launch(&self, kind: ReduceKind, scale: f32, splits: u64, results: Results<'_>) -> Result<()> {
        let short = self.columns <= WARP_COLUMNS;
        let entry = format!(
            "reduce_{}_{}_{}",
            if short { "short" } else { "long" },
            kind.kernel(),
            self.x.dtype().name()
        );
        let blocks = if short {
            self.count.div_ceil(WARPS as u64)
        } else {
            self.count * splits
        };
        // More blocks than fit at once only queue: each takes several rows or splits instead.
        let resident = self.device().properties().multiprocessors as u64 * 32;
        let launch = Contract::new(self.device(), &entry)
            .grid([blocks.min(resident), 1, 1])
            .shared(if short { 0 } else { WARPS as u64 * 16 })
            .reads("x", self.x)
            .writes_if("values", results.values)
            .writes_if("indices", results.indices)
            .prepare()?;
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&self.params(scale, splits, results)) }
    }

    fn merge_argmax(&self, x_indices: &AnyTensor, out: &AnyTensor) -> Result<()> {
        let launch = Contract::new(self.device(), "reduce_argmax_merge")
            .grid([self.count.min(1 << 20), 1, 1])
            .shared(WARPS as u64 * 16)
            .reads("values", self.x)
            .reads("indices", x_indices)
            .writes("out", out)
            .prepare()?;
        let results = Results {
            values: None,
            indices: Some(out),
        };
        let params = ReduceParams {
            x_indices: x_indices.address(),
            ..self.params(1.0, 1, results)
        };
        // SAFETY: as above; `x_indices` has the shape of `x`.
        unsafe { launch.launch(&params) }
    }
}
