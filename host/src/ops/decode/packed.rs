//! How tiles of many rows are launched on Hopper where the copy engine can load their keys and values.

use kernels_gpu::{
    attention::params::PANEL,
    decode::{
        DecodeParams, KEYS, WIDE_ROWS,
        direct::most_pieces_and_steps,
        packed::{CLUSTER_MOST, PACKED_KEYS, PACKED_ROWS, PAIR, PackedParams, PackedShape},
    },
};

use super::division::{Division, MAX_SPLITS, MOST_BLOCKS, WANTED_BLOCKS, Work};
use crate::{
    AnyTensor, Result,
    ops::cache::{CacheView, CheckedCache},
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Least tokens of a piece.
const LEAST: u32 = 512;

/// Slots of a box, as a power of two: as many as lie together, up to those of a step; none where those are too few.
pub(super) fn box_shift(cache: &CheckedCache) -> Option<u32> {
    let step = PACKED_KEYS.trailing_zeros();
    let slots = cache.paging.page_size;
    if cache.paging.table == 0 {
        Some(step)
    } else {
        slots.is_multiple_of(KEYS).then(|| slots.trailing_zeros().min(step))
    }
}

/// Whether tiles have more rows than eight of each warp.
pub(super) fn tall(tile_rows: u64) -> bool {
    tile_rows > WIDE_ROWS.into()
}

/// Which kernel it is, before dtype and head dim.
pub(super) fn kind(tile_rows: u64, division: &Division) -> &'static str {
    match tall(tile_rows) {
        true => "packed_tall_",
        false if division.cluster > 1 => "packed_pair_",
        false => "packed_",
    }
}

/// Blocks of a cluster, each of which has two of the teams that share a tile.
pub(super) fn blocks_of_cluster(division: &Division) -> u32 {
    (division.cluster as u32 / PAIR).max(1)
}

/// How the work of a launch is divided, for a GPU of so many multiprocessors which runs `at_once` clusters of so many blocks, with so
/// many bytes of shared memory, at once.
pub(super) fn divide(
    work: &Work,
    multiprocessors: u64,
    at_once: impl FnOnce(u32, u64) -> Result<u64>,
) -> Result<Division> {
    let tiles = work.tile_rows.div_ceil(PACKED_ROWS.into());
    // These follow from the sequence's own problem, never from the batch: they decide how its sums are ordered.
    let most = (WANTED_BLOCKS / (work.cache.heads * tiles)).clamp(1, MAX_SPLITS);
    let splits = u64::from(most_pieces_and_steps(work.cache.capacity as u32, most as u32, LEAST).0);
    // This may follow from the batch: both ways give the same bits.
    let all_tiles = work.batch * work.cache.heads * tiles;
    let shape = PackedShape::new(work.padded, tall(work.tile_rows), 1);
    let slots = u64::from(shape.blocks()) * multiprocessors;
    let bundles = splits.div_ceil(1 << work.shape.bundle);
    let bundled = all_tiles * bundles * 100 >= slots * MOST_BLOCKS;
    let dealt = if bundled { bundles } else { splits };
    // A cluster for each tile, two teams a block, where all fit the GPU at once: neither workspace nor merging kernel.
    // At least two blocks: teams give each other parts by `st.async`, and a launch without clusters hung on an H200.
    let cluster = dealt.next_power_of_two();
    let blocks = cluster / u64::from(PAIR);
    let shared_by_pair = PackedShape::new(work.padded, false, PAIR).shared_bytes().into();
    let clustered = bundled
        && !tall(work.tile_rows)
        && (2 * u64::from(PAIR)..=CLUSTER_MOST.into()).contains(&cluster)
        && all_tiles * blocks <= multiprocessors
        && all_tiles <= at_once(blocks as u32, shared_by_pair)?;
    let cluster = if clustered { cluster } else { 1 };
    Ok(Division {
        tiles,
        rows: work.tile_rows.min(PACKED_ROWS.into()),
        all_tiles,
        least: LEAST,
        most,
        splits: dealt,
        fold: false,
        alone: false,
        cluster,
        apart: dealt > 1 && cluster == 1,
        bundled,
        each: 0,
        blocks: if clustered {
            all_tiles * blocks
        } else {
            (all_tiles * dealt).min(slots)
        },
        side: 1,
        shared: if clustered {
            shared_by_pair
        } else {
            shape.shared_bytes().into()
        },
    })
}

/// The arguments of a launch over so many pieces or bundles.
pub(super) fn params(
    decode: DecodeParams,
    (view, cache): (&CacheView, &CheckedCache),
    box_shift: u32,
    items: u32,
) -> Result<PackedParams> {
    let [k, v] = cache.strides;
    Ok(PackedParams {
        k_map: map(view.k(), cache, cache.head_dim, k, box_shift)?,
        v_map: map(view.v(), cache, cache.value_dim, v, box_shift)?,
        decode,
        box_shift,
        items,
    })
}

/// The map of keys or values as (dim, slot, head, page). Beyond its extents the copies write zeros.
fn map(tensor: &AnyTensor, cache: &CheckedCache, dim: u64, strides: [u64; 3], box_shift: u32) -> Result<[u64; 16]> {
    let [slots, pages] = [cache.paging.page_size, cache.paging.pages].map(u64::from);
    let size = tensor.dtype().size();
    // The stride of an axis of extent 1 is never used, but must be a legal one.
    let stride = |extent: u64, stride: u64| if extent == 1 { 16 } else { stride * size };
    let request = TensorMapRequest {
        dtype: tensor.dtype(),
        address: tensor.address(),
        extents: vec![dim, slots, cache.heads, pages],
        strides: vec![
            stride(slots, strides[1]),
            stride(cache.heads, strides[2]),
            stride(pages, strides[0]),
        ],
        box_extents: vec![PANEL, 1 << box_shift, 1, 1],
        swizzle: Swizzle::B128,
    };
    tensor.device().backend().encode_tensor_map(&request)
}
