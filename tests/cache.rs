//! Cache moves: bit for bit, on every device.

mod common;

use ferroflash::{
    AnyTensor, CacheView, DType, Device, Error, PoolLayout, Tensor, cache_append, cache_append_at, cache_read,
    copy_pages,
    kv::{PageId, PoolError},
    swap_pages,
};
use host::{
    compare::same_bits,
    reference::{
        cache::{CacheLayout, append, exchange_axes, gather_padded},
        data::permutation,
    },
};

/// Every bit pattern once in a while, NaNs included.
fn bits(seed: u32, len: usize) -> Vec<u16> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(40_503).wrapping_add(seed * 977)) as u16)
        .collect()
}

fn tensor(device: &Device, values: &[u16], shape: &[usize]) -> AnyTensor {
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    AnyTensor::from_bytes(device, DType::BF16, &shape, bytemuck::cast_slice(values)).unwrap()
}

fn values(tensor: &AnyTensor) -> Vec<u16> {
    bytemuck::pod_collect_to_vec(&tensor.to_bytes().unwrap())
}

#[test]
fn what_is_appended_is_read_back_bit_for_bit() {
    for device in common::devices() {
        for (page, heads, dims, layout) in [
            (1, 2, (8, 8), PoolLayout::Nhd),
            (16, 3, (64, 40), PoolLayout::Hnd),
            (4, 1, (3, 5), PoolLayout::Hnd),
            (5, 2, (6, 2), PoolLayout::Nhd),
        ] {
            let (lengths, width) = ([7usize, 0, 12], 12usize.div_ceil(page));
            let pages = 3 * width + 1;
            let table: Vec<i32> = permutation(3, pages)[..3 * width].iter().map(|&p| p as i32).collect();
            let place = CacheLayout::Paged {
                page_size: page,
                table: &table,
                width,
            };
            let mut slots: Vec<i64> = (0..3)
                .flat_map(|i| (0..lengths[i]).map(move |t| (i, t)))
                .map(|(i, t)| place.slot(i, t) as i64)
                .collect();
            // A token that is skipped, and one that leaves the cache.
            slots.extend([-1, (pages * page) as i64]);
            let tokens = slots.len();
            let mut pools = Vec::new();
            let mut expected = Vec::new();
            for (seed, dim) in [(1, dims.0), (2, dims.1)] {
                let row = heads * dim;
                let new = bits(seed, tokens * row);
                let mut pool = bits(seed + 10, pages * page * row);
                let on_device = match layout {
                    PoolLayout::Nhd => tensor(&device, &pool, &[pages, page, heads, dim]),
                    PoolLayout::Hnd => tensor(
                        &device,
                        &exchange_axes(&pool, (page, heads), dim),
                        &[pages, heads, page, dim],
                    ),
                };
                append(&mut pool, &new[..(tokens - 2) * row], &slots[..tokens - 2], row);
                pools.push((on_device, tensor(&device, &new, &[tokens, heads, dim])));
                expected.push((pool, row, dim));
            }
            let table_tensor = Tensor::from_slice(&device, &table, &[3, width as u64]).unwrap();
            let view = CacheView::paged(&pools[0].0, &pools[1].0, &table_tensor).layout(layout);
            let slots = Tensor::from_slice(&device, &slots, &[tokens as u64]).unwrap();
            cache_append(&pools[0].1, &pools[1].1, view, &slots).unwrap();
            let seqlens = Tensor::from_slice(&device, &lengths.map(|n| n as i32), &[3]).unwrap();
            let (k, v) = cache_read(view, &seqlens, 12).unwrap();
            for (i, read) in [k, v].iter().enumerate() {
                let (pool, row, dim) = &expected[i];
                let in_order = match layout {
                    PoolLayout::Nhd => pool.clone(),
                    PoolLayout::Hnd => exchange_axes(pool, (page, heads), *dim),
                };
                same_bits(&values(&pools[i].0), &in_order).unwrap_or_else(|e| panic!("page {page} on {device}: {e}"));
                same_bits(&values(read), &gather_padded(pool, &place, &lengths, *row, 0)).unwrap();
            }
        }
    }
}

#[test]
fn appending_by_length_stops_at_the_capacity() {
    for device in common::devices() {
        let cache = || tensor(&device, &bits(5, 2 * 6 * 8), &[2, 6, 1, 8]);
        let (k, v) = (cache(), cache());
        let new = tensor(&device, &bits(9, 2 * 2 * 8), &[2, 2, 1, 8]);
        let index = Tensor::from_slice(&device, &[1i32, 0], &[2]).unwrap();
        let before = Tensor::from_slice(&device, &[3i32, 5], &[2]).unwrap();
        let view = CacheView::contiguous(&k, &v).batch_index(&index);
        cache_append_at(&new, &new, view, &before).unwrap();
        let mut expected = bits(5, 2 * 6 * 8);
        let tokens = bits(9, 2 * 2 * 8);
        expected[(6 + 3) * 8..][..16].copy_from_slice(&tokens[..16]);
        expected[5 * 8..][..8].copy_from_slice(&tokens[16..24]);
        same_bits(&values(&k), &expected).unwrap();
        same_bits(&values(&v), &expected).unwrap();
        let error = view.validate(&before, 2).unwrap_err();
        let capacity = PoolError::LengthOverCapacity {
            requested_tokens: 7,
            capacity_tokens: 6,
        };
        assert!(matches!(&error, Error::Cache(e) if *e == capacity), "{error}");
    }
}

#[test]
fn pages_move_whole() {
    let page = |index| PageId::new(index).unwrap();
    for device in common::devices() {
        for dim in [5, 8] {
            let pool = || tensor(&device, &bits(1, 6 * 4 * dim), &[6, 2, 2, dim]);
            let (k, v) = (pool(), pool());
            copy_pages(&k, &v, &[(page(1), page(4)), (page(1), page(0))]).unwrap();
            swap_pages(&k, &v, &[(page(2), page(5))]).unwrap();
            let old = bits(1, 6 * 4 * dim);
            let expected: Vec<u16> = [1, 1, 5, 3, 1, 2]
                .iter()
                .flat_map(|p| old[p * 4 * dim..][..4 * dim].to_vec())
                .collect();
            same_bits(&values(&k), &expected).unwrap();
            same_bits(&values(&v), &expected).unwrap();
            let error = copy_pages(&k, &v, &[(page(1), page(4)), (page(4), page(3))]).unwrap_err();
            assert!(
                matches!(error, Error::Cache(PoolError::OverlappingPages { .. })),
                "{error}"
            );
            let error = copy_pages(&k, &v, &[(page(1), page(6))]).unwrap_err();
            assert!(
                matches!(error, Error::Cache(PoolError::PageOutOfRange { page: 6, .. })),
                "{error}"
            );
            same_bits(&values(&k), &expected).unwrap();
        }
    }
}

#[test]
fn slots_are_validated() {
    let device = &common::devices()[0];
    let pool = tensor(device, &bits(1, 64), &[4, 2, 1, 8]);
    let view = CacheView::contiguous(&pool, &pool);
    let check = |slots: &[i64]| view.validate_slots(&Tensor::from_slice(device, slots, &[slots.len() as u64]).unwrap());
    check(&[0, 7, -1, -1]).unwrap();
    assert!(matches!(
        check(&[8]),
        Err(Error::Cache(PoolError::SlotOutOfRange {
            index: 0,
            slot: 8,
            first: 0,
            end: 8
        }))
    ));
    assert!(matches!(
        check(&[3, 1, 3]),
        Err(Error::Cache(PoolError::DuplicateSlot {
            index: 2,
            other_index: 0,
            slot: 3
        }))
    ));
}
