//! Tensor maps of a cache, for kernels that read it by them.

use kernels_gpu::{
    decode::{DecodeParams, KEYS, MappedParams, Shape},
    params::TensorMap,
};

use crate::{
    AnyTensor, Result,
    ops::cache::{CacheView, CheckedCache},
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Bytes of the rows that these kernels are for: one span of the swizzle. Half of the time of such narrow rows is instructions,
/// and those of a copy by a map are few.
const ROW_BYTES: u32 = 128;

/// Whether a kernel of this shape can read this cache by maps: of 16-bit elements, 16 of whose tokens lie together.
pub(super) fn suit(shape: Shape, cache: &CheckedCache) -> bool {
    let paging = &cache.paging;
    let together = paging.table == 0 || paging.page_size.is_multiple_of(KEYS);
    let extents = [paging.pages.into(), paging.page_size.into(), cache.heads];
    let strides = cache.strides.iter().all(|strides| {
        let mut axes = extents.iter().zip(strides);
        axes.all(|(extent, stride)| *extent == 1 || (1..1 << 36).contains(stride))
    });
    shape.row_bytes == ROW_BYTES && shape.keys == KEYS && shape.dim * 2 == ROW_BYTES && together && strides
}

/// The arguments with maps of keys and values.
pub(super) fn with(decode: DecodeParams, view: &CacheView<'_>, cache: &CheckedCache) -> Result<MappedParams> {
    Ok(MappedParams {
        k_map: map(view.k(), cache.strides[0], cache.head_dim, cache)?,
        v_map: map(view.v(), cache.strides[1], cache.value_dim, cache)?,
        decode,
    })
}

/// The map of a pool as (dim, slots of a page, heads, pages). Beyond its extents the copies write zeros.
fn map(pool: &AnyTensor, strides: [u64; 3], dim: u64, cache: &CheckedCache) -> Result<TensorMap> {
    let [page, slot, head] = strides;
    let (pages, slots) = (cache.paging.pages.into(), cache.paging.page_size.into());
    let size = pool.dtype().size();
    // The stride of an axis of extent 1 is never used, but must be a legal one.
    let stride = |extent: u64, stride: u64| if extent == 1 { 16 } else { stride * size };
    let request = TensorMapRequest {
        dtype: pool.dtype(),
        address: pool.address(),
        extents: vec![dim, slots, cache.heads, pages],
        strides: vec![stride(slots, slot), stride(cache.heads, head), stride(pages, page)],
        box_extents: vec![ROW_BYTES / 2, KEYS, 1, 1],
        swizzle: Swizzle::B128,
    };
    pool.device().backend().encode_tensor_map(&request)
}
