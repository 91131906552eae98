//! Rows of a table by index, and the gradient of the table.

use kernels_gpu::embedding::{
    ALL_INSIDE, BACKWARD_BYTES, BACKWARD_COLUMNS, EmbeddingParams, IndexCheckParams, THREADS,
};

use super::{
    contiguous,
    rows::{Rows, check_dtype, check_float},
};
use crate::{AnyTensor, DType, Error, Result, launch::Contract};

/// Checks the dtype of indices, and makes them dense.
pub(super) fn indices_of(argument: &'static str, indices: &AnyTensor) -> Result<AnyTensor> {
    if !matches!(indices.dtype(), DType::I32 | DType::I64) {
        return Err(Error::Dtype {
            argument,
            dtype: indices.dtype(),
            allowed: "i32 or i64".into(),
        });
    }
    contiguous(indices)
}

fn table_of(argument: &'static str, table: &AnyTensor) -> Result<()> {
    check_float(argument, table)?;
    if table.rank() != 2 {
        return Err(Error::shape(argument, table.shape(), "[rows, columns] is needed"));
    }
    Ok(())
}

/// `table[ids]`: `table` is `[rows, columns]` (f32, f16, bf16), `ids` i32 or i64 of any shape; the result has the shape
/// of `ids` with the columns appended.
///
/// An id outside the table gives a row of zeros: ids live on the device and are not waited for. [`check_indices`] is
/// the way to an error.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn embedding(table: &AnyTensor, ids: &AnyTensor) -> Result<AnyTensor> {
    table_of("table", table)?;
    let ids_dense = indices_of("ids", ids)?;
    let mut shape = ids.shape().to_vec();
    shape.push(table.extent(1));
    let out = AnyTensor::empty(table.device(), table.dtype(), &shape)?;
    let tokens = ids.elements();
    if out.elements() == 0 {
        return Ok(out);
    }
    let rows = Rows::of("table", table)?;
    let target = out.reshape(&[tokens, rows.columns])?;
    let size = table.dtype().size();
    let aligned = rows.aligned() && (rows.columns * size).is_multiple_of(16);
    let entry = format!("embedding_b{}", 8 * size);
    let each = if aligned { 16 / size } else { 1 };
    let launch = Contract::new(table.device(), &entry)
        .grid([rows.columns.div_ceil(each * THREADS as u64), tokens.min(65_535), 1])
        .reads("table", &rows.view)
        .reads("ids", &ids_dense)
        .writes("out", &target)
        .prepare()?;
    let params = EmbeddingParams {
        table: rows.address(),
        indices: ids_dense.address(),
        out: target.address(),
        spans: 0,
        tokens,
        table_rows: rows.rows,
        columns: rows.columns,
        table_stride: rows.stride,
        out_stride: rows.columns,
        padding: -1,
        wide: (ids.dtype() == DType::I64) as u32,
        aligned: aligned as u32,
        accumulate: 0,
        reserved: 0,
    };
    // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
    unsafe { launch.launch(&params)? };
    Ok(out)
}

/// The gradient of [`embedding`]'s table: row `i` is the sum of the rows of `dy` whose id is `i`, added in f32 in the
/// order of the tokens and rounded once. Ids outside the table and those equal to `padding` contribute nothing.
///
/// The result has the dtype of `dy` and `rows` rows. It is deterministic: atomics find the first and the last token of an
/// id only, and the search for the others between them takes time in proportion to that distance.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn embedding_backward(dy: &AnyTensor, ids: &AnyTensor, rows: u64, padding: Option<i64>) -> Result<AnyTensor> {
    check_float("dy", dy)?;
    let columns = dy.shape().last().copied().unwrap_or(0);
    let dtable = AnyTensor::zeros(dy.device(), dy.dtype(), &[rows, columns])?;
    embedding_backward_into(dy, ids, &dtable, padding)?;
    Ok(dtable)
}

/// Adds the gradient of [`embedding_backward`] to `dtable`, `[rows, columns]` in the dtype of `dy`.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`].
pub fn embedding_backward_into(
    dy: &AnyTensor,
    ids: &AnyTensor,
    dtable: &AnyTensor,
    padding: Option<i64>,
) -> Result<()> {
    table_of("dtable", dtable)?;
    check_dtype("dy", dy, dtable.dtype())?;
    let ids_dense = indices_of("ids", ids)?;
    let mut shape = ids.shape().to_vec();
    shape.push(dtable.extent(1));
    if dy.shape() != shape {
        return Err(Error::shape(
            "dy",
            dy.shape(),
            format!("the shape of ids with the columns of the table, {shape:?}, is needed"),
        ));
    }
    if dy.elements() == 0 || dtable.elements() == 0 {
        return Ok(());
    }
    let (gradients, target) = (Rows::of("dy", dy)?, Rows::written("dtable", dtable)?);
    if gradients.rows > i32::MAX as u64 {
        return Err(Error::shape("ids", ids.shape(), format!("at most {} tokens", i32::MAX)));
    }
    let spans = AnyTensor::zeros(dy.device(), DType::I32, &[2, target.rows])?;
    let params = EmbeddingParams {
        table: target.address(),
        indices: ids_dense.address(),
        out: gradients.address(),
        spans: spans.address(),
        tokens: gradients.rows,
        table_rows: target.rows,
        columns: target.columns,
        table_stride: target.stride,
        out_stride: gradients.stride,
        padding: padding.filter(|&padding| padding >= 0).unwrap_or(-1),
        wide: (ids.dtype() == DType::I64) as u32,
        aligned: (target.aligned() && gradients.aligned()) as u32,
        accumulate: 1,
        reserved: 0,
    };
    let launch = Contract::new(dy.device(), "embedding_spans")
        .grid([gradients.rows.div_ceil(THREADS as u64), 1, 1])
        .reads("ids", &ids_dense)
        .writes("spans", &spans)
        .prepare()?;
    // SAFETY: as above.
    unsafe { launch.launch(&params)? };
    let entry = format!("embedding_backward_{}", dy.dtype());
    let launch = Contract::new(dy.device(), &entry)
        .grid([gradients.rows, gradients.columns.div_ceil(BACKWARD_COLUMNS), 1])
        .shared(BACKWARD_BYTES)
        .reads("dy", &gradients.view)
        .reads("ids", &ids_dense)
        .reads("spans", &spans)
        .writes("dtable", &target.view)
        .prepare()?;
    // SAFETY: as above.
    unsafe { launch.launch(&params) }
}

/// Looks at indices (i32 or i64, on the device) and waits for the answer: every one is in `0..bound`, or equal to
/// `ignore`.
///
/// # Errors
/// - [`Error::Range`] naming `argument`, the first offender and its position.
/// - [`Error::Dtype`].
pub fn check_indices(argument: &'static str, indices: &AnyTensor, bound: u64, ignore: Option<i64>) -> Result<()> {
    let dense = indices_of(argument, indices)?;
    if dense.elements() == 0 {
        return Ok(());
    }
    let device = indices.device();
    let first = AnyTensor::from_bytes(device, DType::I64, &[1], &ALL_INSIDE.to_le_bytes())?;
    let launch = Contract::new(device, "index_check")
        .grid([dense.elements().div_ceil(THREADS as u64).min(1 << 16), 1, 1])
        .reads(argument, &dense)
        .writes("first", &first)
        .prepare()?;
    let params = IndexCheckParams {
        indices: dense.address(),
        first: first.address(),
        len: dense.elements(),
        bound,
        ignore: ignore.unwrap_or(0),
        wide: (dense.dtype() == DType::I64) as u32,
        ignores: ignore.is_some() as u32,
    };
    // SAFETY: the argument struct of this kernel, with the extents of the tensors named above.
    unsafe { launch.launch(&params)? };
    let at = first.typed::<i64>("first")?.to_vec()?[0] as u64;
    if at == ALL_INSIDE {
        return Ok(());
    }
    let flat = dense.reshape(&[dense.elements()])?.slice(0, at..at + 1)?;
    let value = match dense.dtype() {
        DType::I64 => flat.typed::<i64>(argument)?.to_vec()?[0],
        _ => flat.typed::<i32>(argument)?.to_vec()?[0] as i64,
    };
    let besides = ignore.map(|ignore| format!(", or {ignore}")).unwrap_or_default();
    Err(Error::range(
        argument,
        format!("{value} at position {at}"),
        format!("0 to {}{besides}", bound.saturating_sub(1)),
    ))
}
