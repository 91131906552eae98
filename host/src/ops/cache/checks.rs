//! What every op over a cache refuses.

use crate::{AnyTensor, DType, Error, Result};

/// Refuses other dtypes and ranks, and rows with gaps.
pub(crate) fn expect_integers(argument: &'static str, tensor: &AnyTensor, dtype: DType, rank: usize) -> Result<()> {
    if tensor.dtype() != dtype {
        return Err(Error::Dtype {
            argument,
            dtype: tensor.dtype(),
            allowed: format!("{dtype} is needed"),
        });
    }
    if tensor.rank() != rank {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("{rank} axes are needed"),
        ));
    }
    if rank == 1 && !tensor.is_contiguous() {
        return Err(Error::layout(argument, "must be dense"));
    }
    Ok(())
}

/// Refuses another number of entries.
pub(crate) fn expect_extent(argument: &'static str, tensor: &AnyTensor, extent: u64) -> Result<()> {
    if tensor.extent(0) != extent {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("{extent} entries are needed"),
        ));
    }
    Ok(())
}

/// New keys or values as `[batch, seq, heads, dim]`; `[tokens, heads, dim]` is one sequence.
pub(crate) fn tokens_of(argument: &'static str, tensor: &AnyTensor) -> Result<AnyTensor> {
    match *tensor.shape() {
        [_, _, _, _] => Ok(tensor.clone()),
        [tokens, heads, dim] => tensor.reshape(&[1, tokens, heads, dim]),
        _ => Err(Error::shape(
            argument,
            tensor.shape(),
            "[tokens, heads, dim] or [batch, seq, heads, dim] is needed",
        )),
    }
}

/// Whether tokens of that dtype are rounded to the cache's, or widened from it.
pub(crate) fn converts(tokens: DType, cache: DType) -> bool {
    cache == DType::E4M3 && matches!(tokens, DType::F32 | DType::F16 | DType::BF16)
}

/// Refuses new tokens that do not fit the cache; they are rank 4.
pub(crate) fn expect_tokens(
    argument: &'static str,
    tokens: &AnyTensor,
    cache: (&'static str, &AnyTensor),
    heads: u64,
    dim: u64,
) -> Result<()> {
    if tokens.dtype() != cache.1.dtype() && !converts(tokens.dtype(), cache.1.dtype()) {
        let allowed = format!("the dtype of {}, {}, is needed", cache.0, cache.1.dtype());
        return Err(Error::Dtype {
            argument,
            dtype: tokens.dtype(),
            allowed,
        });
    }
    if tokens.extent(2) != heads || tokens.extent(3) != dim {
        let allowed = format!("{heads} heads of {dim} elements are needed, as in {}", cache.0);
        return Err(Error::shape(argument, tokens.shape(), allowed));
    }
    if dim > 1 && tokens.strides()[3] != 1 {
        return Err(Error::layout(argument, "the last axis must be dense"));
    }
    Ok(())
}
