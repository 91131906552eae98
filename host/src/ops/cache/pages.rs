//! Whole pages copied and exchanged.

use std::collections::HashMap;

use kernels_gpu::cache::{CopyPagesParams, THREADS};

use super::widest_unit;
use crate::{
    AnyTensor, DType, Device, Error, Result,
    kv::{PageId, PoolError},
    launch::Contract,
};

/// Blocks for a grid-stride loop over `units`.
fn blocks(device: &Device, units: u64) -> u64 {
    let resident = u64::from(device.properties().multiprocessors) * 16;
    units.div_ceil(u64::from(THREADS)).clamp(1, resident)
}

/// Copies whole pages within a pool, source to destination, all at once. No page may be a destination twice, nor a source
/// and a destination.
///
/// # Errors
/// [`Error::Cache`] for pages outside the pool or pairs that overlap; [`Error::Layout`] unless the pools are dense.
pub fn copy_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, copies: &[(PageId, PageId)]) -> Result<()> {
    move_pages(k_cache, v_cache, copies, false)
}

/// Exchanges the contents of pairs of pages within a pool; no page may be in two pairs.
///
/// # Errors
/// As for [`copy_pages`].
pub fn swap_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, pairs: &[(PageId, PageId)]) -> Result<()> {
    move_pages(k_cache, v_cache, pairs, true)
}

fn move_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, pairs: &[(PageId, PageId)], swap: bool) -> Result<()> {
    for (argument, pool) in [("k_cache", k_cache), ("v_cache", v_cache)] {
        if !pool.is_contiguous() {
            return Err(Error::layout(argument, "must be dense to move whole pages"));
        }
    }
    if k_cache.extent(0) != v_cache.extent(0) {
        let allowed = format!("as many pages as k_cache, {}, are needed", k_cache.extent(0));
        return Err(Error::shape("v_cache", v_cache.shape(), allowed));
    }
    let pages = k_cache.extent(0) as usize;
    let mut written = HashMap::new();
    for (row, &(from, to)) in pairs.iter().enumerate() {
        for (column, page) in [from, to].into_iter().enumerate() {
            if page.index() >= pages {
                return Err(PoolError::PageOutOfRange {
                    row,
                    column,
                    page: page.index() as i64,
                    pages,
                }
                .into());
            }
        }
        for page in if swap { vec![from, to] } else { vec![to] } {
            if let Some(other_row) = written.insert(page, row) {
                return Err(PoolError::OverlappingPages { page, row, other_row }.into());
            }
        }
    }
    for (other_row, (from, _)) in pairs.iter().enumerate() {
        if let (false, Some(&row)) = (swap, written.get(from)) {
            return Err(PoolError::OverlappingPages {
                page: *from,
                row,
                other_row,
            }
            .into());
        }
    }
    let units = |pool: &AnyTensor| pool.elements() / pool.extent(0).max(1) * pool.dtype().size();
    let bytes = [units(k_cache), units(v_cache)];
    if pairs.is_empty() || bytes == [0, 0] {
        return Ok(());
    }
    let flat: Vec<i32> = pairs
        .iter()
        .flat_map(|(from, to)| [from.as_i32(), to.as_i32()])
        .collect();
    let device = k_cache.device();
    let list = AnyTensor::from_bytes(
        device,
        DType::I32,
        &[pairs.len() as u64, 2],
        bytemuck::cast_slice(&flat),
    )?;
    let unit = widest_unit(&[bytes[0], bytes[1], k_cache.address(), v_cache.address()]);
    let params = CopyPagesParams {
        pools: [k_cache.address(), v_cache.address()],
        page_units: bytes.map(|bytes| bytes / unit),
        pairs: list.address(),
        count: pairs.len() as u64,
        pages: pages as u64,
        swap: u64::from(swap),
    };
    let entry = format!("cache_copy_pages_b{unit}");
    let launch = Contract::new(device, &entry)
        .grid([
            blocks(device, params.count * params.page_units[0].max(params.page_units[1])),
            1,
            1,
        ])
        .reads("pairs", &list)
        .writes("k_cache", k_cache)
        .writes("v_cache", v_cache)
        .prepare()?;
    // SAFETY: the argument struct of these kernels; the pairs are in range and disjoint.
    unsafe { launch.launch(&params) }
}
