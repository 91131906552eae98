//! Reductions over everything or over the last axis.

use kernels_gpu::reduce::{ARGMAX_CHUNKS, CHUNK, MERGED, ReduceParams, WARP_COLUMNS, WARPS};

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
        if kind == ReduceKind::Argmax {
            return self.argmax(out);
        }
        let results = Results {
            values: Some(out),
            indices: None,
        };
        if self.columns <= CHUNK {
            return self.launch(kind, scale, results);
        }
        let splits = self.columns.div_ceil(CHUNK);
        let values = AnyTensor::empty(self.device(), DType::F32, &[self.count, splits])?;
        let partial = Results {
            values: Some(&values),
            indices: None,
        };
        self.launch(kind, 1.0, partial)?;
        let merged = Rows {
            x: &values,
            count: self.count,
            columns: splits,
            stride: splits,
        };
        // Where the partials are too many for a split again, their partials follow.
        merged.reduce(kind.merge(), scale, out)
    }

    /// Splits by warps; then their maxima by blocks, until one of each row is left.
    fn argmax(&self, out: &AnyTensor) -> Result<()> {
        let [shortest, longest] = ARGMAX_CHUNKS;
        let warps = self.device().properties().multiprocessors as u64 * 64;
        let chunk = if self.columns <= CHUNK && self.count >= warps {
            // Rows enough for all warps that the device holds: no join.
            CHUNK
        } else {
            // Several splits for every warp.
            (self.count * self.columns / (4 * warps))
                .next_power_of_two()
                .clamp(shortest, longest)
        };
        let splits = self.columns.div_ceil(chunk);
        let partial = |splits: u64| -> Result<_> {
            let extents = [self.count, splits];
            Ok((
                AnyTensor::empty(self.device(), DType::F32, &extents)?,
                AnyTensor::empty(self.device(), DType::I64, &extents)?,
            ))
        };
        let last = Results {
            values: None,
            indices: Some(out),
        };
        let entry = format!("reduce_argmax_{}", self.x.dtype().name());
        if splits == 1 {
            return self.launch_warps(&entry, self.params(1.0, chunk, last), last);
        }
        let (mut values, mut indices) = partial(splits)?;
        let first = Results {
            values: Some(&values),
            indices: Some(&indices),
        };
        self.launch_warps(&entry, self.params(1.0, chunk, first), first)?;
        loop {
            let columns = values.extent(1);
            let maxima = Rows {
                x: &values,
                count: self.count,
                columns,
                stride: columns,
            };
            if columns <= MERGED {
                return maxima.merge_argmax(&indices, last);
            }
            let (next_values, next_indices) = partial(columns.div_ceil(MERGED))?;
            let next = Results {
                values: Some(&next_values),
                indices: Some(&next_indices),
            };
            maxima.merge_argmax(&indices, next)?;
            (values, indices) = (next_values, next_indices);
        }
    }

    fn params(&self, scale: f32, chunk: u64, results: Results<'_>) -> ReduceParams {
        let size = self.x.dtype().size();
        ReduceParams {
            x: self.x.address(),
            x_indices: 0,
            values: results.values.map_or(0, AnyTensor::address),
            indices: results.indices.map_or(0, AnyTensor::address),
            rows: self.count,
            columns: self.columns,
            row_stride: self.stride,
            chunk,
            splits: self.columns.div_ceil(chunk),
            scale,
            aligned: (self.x.address().is_multiple_of(16)
                && (self.count == 1 || (self.stride * size).is_multiple_of(16))) as u32,
        }
    }

    fn launch(&self, kind: ReduceKind, scale: f32, results: Results<'_>) -> Result<()> {
        let (kernel, dtype) = (kind.kernel(), self.x.dtype().name());
        let params = self.params(scale, CHUNK, results);
        if self.columns <= WARP_COLUMNS {
            return self.launch_warps(&format!("reduce_short_{kernel}_{dtype}"), params, results);
        }
        let entry = format!("reduce_long_{kernel}_{dtype}");
        let contract = Contract::new(self.device(), &entry)
            .grid([self.blocks(params.rows * params.splits), 1, 1])
            .shared(WARPS as u64 * 16);
        self.finish(contract, params, results)
    }

    /// One warp a split.
    fn launch_warps(&self, entry: &str, params: ReduceParams, results: Results<'_>) -> Result<()> {
        let blocks = self.blocks((params.rows * params.splits).div_ceil(WARPS as u64));
        self.finish(
            Contract::new(self.device(), entry).grid([blocks, 1, 1]),
            params,
            results,
        )
    }

    /// More blocks than fit at once only queue: each takes several splits instead.
    fn blocks(&self, wanted: u64) -> u64 {
        wanted.min(self.device().properties().multiprocessors as u64 * 32)
    }

    fn finish<'a>(&'a self, contract: Contract<'a>, params: ReduceParams, results: Results<'a>) -> Result<()> {
        let launch = contract
            .reads("x", self.x)
            .writes_if("values", results.values)
            .writes_if("indices", results.indices)
            .prepare()?;
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&params) }
    }

    fn merge_argmax(&self, x_indices: &AnyTensor, results: Results<'_>) -> Result<()> {
        let params = ReduceParams {
            x_indices: x_indices.address(),
            ..self.params(1.0, MERGED, results)
        };
        // SAFETY of the launch: `x_indices` has the shape of `x`.
        let contract = Contract::new(self.device(), "reduce_argmax_merge")
            .grid([self.blocks(params.rows * params.splits), 1, 1])
            .shared(WARPS as u64 * 16)
            .reads("indices", x_indices);
        self.finish(contract, params, results)
    }
}
