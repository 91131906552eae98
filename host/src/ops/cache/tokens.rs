//! Tokens into a cache and out of it.

use kernels_gpu::cache::{CONVERTED, CacheMoveParams, THREADS};

use super::{CacheView, expect_extent, expect_integers, expect_tokens, tokens_of, widest_unit};
use crate::{AnyTensor, DType, Error, Result, launch::Contract, stream::Stream};

/// Where tokens go or come from.
enum Places<'a> {
    Slots(&'a AnyTensor),
    Lengths(&'a AnyTensor),
}

/// Writes keys and values of `k [tokens, heads_kv, dim]` and `v` to the slots of a cache: bit for bit, or rounded to the
/// 8-bit floats of one that holds those.
///
/// `slots` (i64, one a token) are `page · page_size + offset`; tokens with a negative slot, or one beyond the cache, are
/// skipped. Two tokens must not have the same slot: see [`CacheView::validate_slots`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument.
pub fn cache_append(k: &AnyTensor, v: &AnyTensor, cache: CacheView<'_>, slots: &AnyTensor) -> Result<()> {
    expect_integers("slots", slots, DType::I64, 1)?;
    move_tokens(k, v, cache, Places::Slots(slots), false, None)
}

/// Writes `k [batch, seq, heads_kv, dim]` and `v` behind the first `cache_seqlens[i]` tokens of each sequence.
///
/// Tokens beyond the capacity are not written: see [`CacheView::validate`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument.
pub fn cache_append_at(k: &AnyTensor, v: &AnyTensor, cache: CacheView<'_>, cache_seqlens: &AnyTensor) -> Result<()> {
    cache_append_in(k, v, cache, cache_seqlens, None)
}

/// [`cache_append_at`] in a stream; the main one unless given.
pub(crate) fn cache_append_in(
    k: &AnyTensor,
    v: &AnyTensor,
    cache: CacheView<'_>,
    cache_seqlens: &AnyTensor,
    stream: Option<&Stream>,
) -> Result<()> {
    expect_integers("cache_seqlens", cache_seqlens, DType::I32, 1)?;
    move_tokens(k, v, cache, Places::Lengths(cache_seqlens), false, stream)
}

/// Reads the first `cache_seqlens[i]` tokens of each sequence as `[batch, longest, heads_kv, dim]`, zeros behind them.
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument; [`Error::OutOfMemory`].
pub fn cache_read(cache: CacheView<'_>, cache_seqlens: &AnyTensor, longest: u64) -> Result<(AnyTensor, AnyTensor)> {
    cache_read_as(cache, cache_seqlens, longest, cache.k.dtype())
}

/// [`cache_read`] as another dtype than the cache's: from 8-bit floats as f32, f16 or bf16, times their factors.
///
/// # Errors
/// Those of [`cache_read`].
pub fn cache_read_as(
    cache: CacheView<'_>,
    cache_seqlens: &AnyTensor,
    longest: u64,
    dtype: DType,
) -> Result<(AnyTensor, AnyTensor)> {
    expect_integers("cache_seqlens", cache_seqlens, DType::I32, 1)?;
    let checked = cache.check(Some(cache_seqlens.extent(0)))?;
    let shape = |dim| [cache_seqlens.extent(0), longest, checked.heads, dim];
    let k = AnyTensor::empty(cache.k.device(), dtype, &shape(checked.head_dim))?;
    let v = AnyTensor::empty(cache.k.device(), dtype, &shape(checked.value_dim))?;
    move_tokens(&k, &v, cache, Places::Lengths(cache_seqlens), true, None)?;
    Ok((k, v))
}

fn move_tokens(
    k: &AnyTensor,
    v: &AnyTensor,
    cache: CacheView<'_>,
    places_of: Places<'_>,
    read: bool,
    stream: Option<&Stream>,
) -> Result<()> {
    let (k, v) = (tokens_of("k", k)?, tokens_of("v", v)?);
    let by_length = matches!(places_of, Places::Lengths(_));
    let checked = cache.check(by_length.then(|| k.extent(0)))?;
    expect_tokens("k", &k, ("k_cache", cache.k), checked.heads, checked.head_dim)?;
    expect_tokens("v", &v, ("v_cache", cache.v), checked.heads, checked.value_dim)?;
    if k.shape()[..2] != v.shape()[..2] {
        return Err(Error::shape(
            "v",
            v.shape(),
            format!("as many tokens as k, {:?}, are needed", k.shape()),
        ));
    }
    let tokens = k.extent(0) * k.extent(1);
    match places_of {
        Places::Slots(slots) => expect_extent("slots", slots, tokens)?,
        Places::Lengths(lengths) => expect_extent("cache_seqlens", lengths, k.extent(0))?,
    }
    let dims = [checked.head_dim, checked.value_dim];
    if tokens == 0 || checked.heads == 0 || dims == [0, 0] {
        return Ok(());
    }
    if k.dtype() != v.dtype() {
        let allowed = format!("the dtype of k, {}, is needed", k.dtype());
        return Err(Error::Dtype {
            argument: "v",
            dtype: v.dtype(),
            allowed,
        });
    }
    let converts = k.dtype() != cache.k.dtype();
    let strides = |t: &AnyTensor| [t.strides()[0], t.strides()[1], t.strides()[2]];
    let tensor_strides = [strides(&k), strides(&v)];
    let (size, cache_size) = (k.dtype().size(), cache.k.dtype().size());
    let outside = [k.address(), v.address()]
        .into_iter()
        .chain(tensor_strides.iter().flatten().map(|step| step * size));
    let inside = [cache.k.address(), cache.v.address()]
        .into_iter()
        .chain(checked.strides.iter().flatten().map(|step| step * cache_size));
    let rows = dims.iter().map(|dim| dim * cache_size);
    let places = outside.chain(inside).chain(rows).collect::<Vec<_>>();
    let unit = widest_unit(&places);
    // Strides count units of bits, but elements where these are converted.
    let elements = if converts && unit == 16 { CONVERTED } else { 1 };
    let scale = |strides: [u64; 3]| strides.map(|stride| if converts { stride } else { stride * size / unit });
    let rows = dims.map(|dim| {
        if converts {
            dim / u64::from(elements)
        } else {
            dim * size / unit
        }
    });
    let lanes = checked.heads * rows[0].max(rows[1]);
    let small = |argument, value: u64| u32::try_from(value).map_err(|_| Error::range(argument, value, "below 2^32"));
    let (slots, lengths) = match places_of {
        Places::Slots(slots) => (Some(slots), None),
        Places::Lengths(lengths) => (None, Some(lengths)),
    };
    let factors = cache.factors();
    let params = CacheMoveParams {
        paging: checked.paging,
        tensors: [k.address(), v.address()],
        caches: [cache.k.address(), cache.v.address()],
        tensor_strides: tensor_strides.map(scale),
        cache_strides: checked.strides.map(scale),
        slots: slots.map_or(0, AnyTensor::address),
        scales: factors.map(|factor| factor.map_or(0, AnyTensor::address)),
        lengths: lengths.map_or(0, AnyTensor::address),
        tokens: u64::from(small("tokens", tokens)?),
        capacity: checked.capacity,
        seq: small("tokens", k.extent(1))?,
        heads: small("heads_kv", checked.heads)?,
        rows: [small("dim", rows[0])?, small("dim", rows[1])?],
        lanes: small("heads_kv · dim", lanes)?,
        elements,
    };
    let what = if read { "read" } else { "append" };
    let entry = if converts {
        format!("cache_{what}_e4m3_{}", k.dtype())
    } else {
        format!("cache_{what}_b{unit}")
    };
    let items = tokens * lanes;
    let mut contract = Contract::new(k.device(), &entry)
        .grid([items.div_ceil(THREADS.into()), 1, 1])
        .on(stream)
        .programmatic()
        .reads_if("slots", slots)
        .reads_if("cache_seqlens", lengths)
        .reads_if("k_scale", factors[0])
        .reads_if("v_scale", factors[1])
        .reads_if("block_table", cache.table)
        .reads_if("batch_index", cache.batch_index);
    let (tensors, caches) = ([("k", &k), ("v", &v)], [("k_cache", cache.k), ("v_cache", cache.v)]);
    for ((name, tensor), (cache_name, cache)) in tensors.into_iter().zip(caches) {
        contract = match read {
            true => contract.reads(cache_name, cache).writes(name, tensor),
            false => contract.reads(name, tensor).writes(cache_name, cache),
        };
    }
    // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
    unsafe { contract.prepare()?.launch(&params) }
}
