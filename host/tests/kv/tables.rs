//! Block tables and CSR tables: what they hold, that they convert, and what they refuse.

use host::kv::{BlockTable, CsrTable, PagePool, PoolConfig, PoolError, SequenceId, validate_slots};
use proptest::prelude::*;

/// A pool with sequences of these lengths, made in turns of one page so that their pages interleave.
fn batch(page_size: usize, lengths: &[usize]) -> (PagePool, Vec<SequenceId>) {
    let pages = 1 + lengths.iter().map(|length| length.div_ceil(page_size)).sum::<usize>();
    let mut pool = PagePool::new(PoolConfig::new(page_size, pages.max(2))).unwrap();
    let ids: Vec<SequenceId> = lengths.iter().map(|_| pool.create_sequence()).collect();
    for turn in 0..lengths.iter().max().copied().unwrap_or(0).div_ceil(page_size) {
        for (&id, &length) in ids.iter().zip(lengths) {
            let _ = pool
                .append(id, length.saturating_sub(turn * page_size).min(page_size))
                .unwrap();
        }
    }
    (pool, ids)
}

#[test]
fn tables_of_a_batch() {
    let (pool, ids) = batch(4, &[9, 0, 4]);
    let table = pool.block_table(&ids, Some(4)).unwrap();
    assert_eq!(table.pages(), [1, 3, 4, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(table.lengths(), [9, 0, 4]);
    assert_eq!((table.rows(), table.columns(), table.page_size()), (3, 4, 4));
    assert_eq!(
        (table.row(0), table.row(1), table.row(7)),
        (&[1, 3, 4][..], &[][..], &[][..])
    );
    let csr = pool.csr_table(&ids).unwrap();
    assert_eq!(
        (csr.indptr(), csr.indices(), csr.last_page_len()),
        (&[0, 3, 3, 4][..], &[1, 3, 4, 2][..], &[1, 0, 4][..])
    );
    assert_eq!(pool.block_table(&ids, None).unwrap().columns(), 3);
    assert_eq!(pool.block_table(&[], None).unwrap().rows(), 0);
    let stranger = SequenceId::new(77);
    assert_eq!(
        pool.csr_table(&[stranger]),
        Err(PoolError::UnknownSequence { sequence: stranger })
    );
}

// vllm #53982, #57317: a table column out of bounds. FA #2709: reading past the end of a block table.
#[test]
fn narrow_table_is_refused() {
    let (pool, ids) = batch(4, &[4, 9]);
    let narrow = PoolError::TableTooNarrow {
        row: 1,
        needed_columns: 3,
        columns: 2,
    };
    assert_eq!(pool.block_table(&ids, Some(2)), Err(narrow.clone()));
    assert_eq!(pool.csr_table(&ids).unwrap().to_block_table(Some(2)), Err(narrow));
    let raw = BlockTable::from_parts(4, 2, vec![1, 2], vec![9]);
    assert_eq!(
        raw,
        Err(PoolError::TableTooNarrow {
            row: 0,
            needed_columns: 3,
            columns: 2
        })
    );
}

#[test]
fn malformed_block_tables_are_refused() {
    let entries = PoolError::Entries {
        argument: "block_table",
        length: 3,
        expected: 4,
    };
    assert_eq!(BlockTable::from_parts(4, 2, vec![1, 2, 3], vec![1, 1]), Err(entries));
    let negative = PoolError::Argument {
        argument: "cache_seqlens",
        value: -1,
        allowed: "0 or more",
    };
    assert_eq!(BlockTable::from_parts(4, 1, vec![1], vec![-1]), Err(negative));
    for page in [0, -1, i32::MIN] {
        let error = BlockTable::from_parts(4, 2, vec![1, page], vec![5]).unwrap_err();
        assert!(
            matches!(error, PoolError::PageOutOfRange { row: 0, column: 1, page: found, .. } if found == i64::from(page))
        );
    }
    assert!(matches!(
        BlockTable::from_parts(5, 1, vec![1], vec![1]),
        Err(PoolError::Argument { .. })
    ));
    let table = BlockTable::from_parts(4, 2, vec![1, -7, 2, 9], vec![4, 8]).unwrap();
    assert_eq!(table.pages(), [1, 0, 2, 9], "padding becomes the null page");
    assert_eq!(
        table.check_pages(9),
        Err(PoolError::PageOutOfRange {
            row: 1,
            column: 1,
            page: 9,
            pages: 9
        })
    );
    assert_eq!(table.check_pages(10), Ok(()));
}

#[test]
fn malformed_csr_tables_are_refused() {
    let csr = |indptr: &[i32], indices: &[i32], last: &[i32]| {
        CsrTable::from_parts(4, indptr.to_vec(), indices.to_vec(), last.to_vec())
    };
    assert!(csr(&[0, 2, 2], &[1, 2], &[4, 0]).is_ok());
    assert_eq!(
        csr(&[0], &[], &[1]),
        Err(PoolError::Entries {
            argument: "indptr",
            length: 1,
            expected: 2
        })
    );
    for (indptr, index) in [([1, 2, 2], 0), ([0, -1, 2], 1), ([0, 2, 1], 2), ([0, 1, 3], 2)] {
        let error = csr(&indptr, &[1, 2], &[1, 1]).unwrap_err();
        assert!(
            matches!(error, PoolError::Offsets { index: found, .. } if found == index),
            "{error}"
        );
    }
    for last in [0, -1, 5] {
        assert!(matches!(
            csr(&[0, 1], &[1], &[last]),
            Err(PoolError::Argument {
                argument: "last_page_len",
                ..
            })
        ));
    }
    assert!(matches!(
        csr(&[0, 0], &[], &[1]),
        Err(PoolError::Argument {
            argument: "last_page_len",
            ..
        })
    ));
    assert!(matches!(
        csr(&[0, 1], &[0], &[1]),
        Err(PoolError::PageOutOfRange {
            row: 0,
            column: 0,
            page: 0,
            ..
        })
    ));
}

#[test]
fn overlapping_writes_are_refused_and_shared_reads_are_not() {
    // Rows 0 and 1 share page 1, which is full; each writes a page of its own.
    let table = BlockTable::from_parts(4, 2, vec![1, 2, 1, 3], vec![5, 6]).unwrap();
    let slots: Vec<i64> = table
        .check_writes(&[1, 2])
        .unwrap()
        .iter()
        .map(|slot| slot.get())
        .collect();
    assert_eq!(slots, [8, 12, 13]);
    let overlap = table.check_writes(&[2, 0]).unwrap_err();
    assert!(matches!(overlap, PoolError::OverlappingPages { page, row: 0, other_row: 1 } if page.index() == 1));
    let overlap = table.check_writes(&[0, 3]).unwrap_err();
    assert!(matches!(overlap, PoolError::OverlappingPages { page, row: 1, other_row: 0 } if page.index() == 1));
    let twice = BlockTable::from_parts(4, 2, vec![5, 5], vec![5]).unwrap();
    let overlap = twice.check_writes(&[1]).unwrap_err();
    assert!(matches!(overlap, PoolError::OverlappingPages { page, row: 0, other_row: 0 } if page.index() == 5));
    assert_eq!(
        table.check_writes(&[1]),
        Err(PoolError::Entries {
            argument: "new tokens",
            length: 1,
            expected: 2
        })
    );
    let over = PoolError::LengthOverCapacity {
        requested_tokens: 6,
        capacity_tokens: 5,
    };
    assert_eq!(table.check_writes(&[6, 0]), Err(over));
}

#[test]
fn pool_after_fork_must_copy_before_a_table_allows_the_write() {
    let mut pool = PagePool::new(PoolConfig::new(4, 8)).unwrap();
    let a = pool.create_sequence();
    let _ = pool.append(a, 5).unwrap();
    let b = pool.fork(a).unwrap();
    let plan = pool.append(b, 1).unwrap();
    let table = pool.block_table(&[a, b], None).unwrap();
    assert_eq!(table.check_writes(&[0, 1]).unwrap(), plan.slots);
    assert!(
        table.check_writes(&[1, 1]).is_ok(),
        "after the copy each tail has one owner"
    );
}

#[test]
fn slot_mappings_are_checked() {
    assert_eq!(validate_slots(&[4, -1, 11, -1], 4, 3), Ok(()));
    for slot in [-2, 0, 3, 12, i64::MAX] {
        assert_eq!(
            validate_slots(&[4, slot], 4, 3),
            Err(PoolError::SlotOutOfRange {
                index: 1,
                slot,
                first: 4,
                end: 12
            })
        );
    }
    assert_eq!(
        validate_slots(&[5, 6, 5], 4, 3),
        Err(PoolError::DuplicateSlot {
            index: 2,
            other_index: 0,
            slot: 5
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn conversions_round_trip(
        shift in 0_u32..9,
        lengths in prop::collection::vec(0_usize..600, 0..6),
        spare in 0_usize..3,
    ) {
        let (pool, ids) = batch(1 << shift, &lengths);
        let table = pool.block_table(&ids, None).unwrap();
        let csr = table.to_csr().unwrap();
        prop_assert_eq!(&csr, &pool.csr_table(&ids).unwrap());
        let padded = csr.to_block_table(Some(table.columns() + spare)).unwrap();
        prop_assert_eq!(&padded, &pool.block_table(&ids, Some(table.columns() + spare)).unwrap());
        for (row, &length) in lengths.iter().enumerate() {
            prop_assert_eq!(csr.length(row), length);
            prop_assert_eq!(padded.row(row), csr.row(row));
        }
        let again = CsrTable::from_parts(
            csr.page_size(), csr.indptr().to_vec(), csr.indices().to_vec(), csr.last_page_len().to_vec(),
        );
        prop_assert_eq!(again, Ok(csr));
        let again = BlockTable::from_parts(
            padded.page_size(), padded.columns(), padded.pages().to_vec(), padded.lengths().to_vec(),
        );
        prop_assert_eq!(again, Ok(padded));
        // Writing every token of every row names every slot once.
        let slots: Vec<i64> = table.check_writes(&lengths).unwrap().iter().map(|slot| slot.get()).collect();
        prop_assert_eq!(slots.len(), lengths.iter().sum::<usize>());
        prop_assert_eq!(validate_slots(&slots, pool.page_size(), pool.pages()), Ok(()));
    }
}
