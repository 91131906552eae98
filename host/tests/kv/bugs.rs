//! Bugs that other paged caches have had, each as a test that would have caught it.

use host::kv::{PageId, PagePool, PoolConfig, PoolError, SequenceId, fuzzing};

pub fn pool(page_size: usize, pages: usize) -> PagePool {
    PagePool::new(PoolConfig::new(page_size, pages).prefix_cache("model", "bf16")).unwrap()
}

fn pages(pool: &PagePool, sequence: SequenceId) -> Vec<usize> {
    pool.table(sequence).unwrap().iter().map(|page| page.index()).collect()
}

/// A sequence with these tokens, all written.
pub fn written(pool: &mut PagePool, tokens: &[u32]) -> SequenceId {
    let (sequence, shared) = pool.create_sequence_with_prefix(tokens);
    let _ = pool.append(sequence, &tokens[shared..]).unwrap();
    let epoch = pool.begin_launch();
    pool.complete(epoch).unwrap();
    sequence
}

#[test]
fn pages_are_handed_out_in_order_and_slots_follow() {
    let mut pool = pool(4, 16);
    let (a, b) = (pool.create_sequence(), pool.create_sequence());
    let plan = pool.append(a, 6).unwrap();
    assert_eq!(plan.slot_mapping(), [4, 5, 6, 7, 8, 9]);
    assert_eq!(pool.append(b, 1).unwrap().slot_mapping(), [12]);
    assert_eq!(pool.append(a, 3).unwrap().slot_mapping(), [10, 11, 16]);
    assert_eq!((pages(&pool, a), pages(&pool, b)), (vec![1, 2, 4], vec![3]));
    pool.check_invariants().unwrap();
}

#[test]
fn null_page_is_never_allocated() {
    let mut pool = pool(1, 9);
    let sequence = pool.create_sequence();
    let plan = pool.append(sequence, 8).unwrap();
    assert_eq!(plan.slot_mapping(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(pool.available_pages(), 0);
}

// vllm #1556, #3347: a fork's pages were freed once per owner. LMCache #5005: a duplicate free gave a page two owners.
#[test]
fn double_free_is_an_error_and_forks_free_their_pages_once() {
    let mut pool = pool(4, 8);
    let a = pool.create_sequence();
    let _ = pool.append(a, 10).unwrap();
    let b = pool.fork(a).unwrap();
    pool.free(a).unwrap();
    assert_eq!(pool.available_pages(), 4, "the fork keeps all three pages");
    let before = pool.clone();
    assert_eq!(pool.free(a), Err(PoolError::DoubleFree { sequence: a }));
    assert_eq!(pool.append(a, 1), Err(PoolError::UnknownSequence { sequence: a }));
    let stranger = SequenceId::new(99);
    assert_eq!(
        pool.free(stranger),
        Err(PoolError::UnknownSequence { sequence: stranger })
    );
    assert!(pool == before);
    pool.free(b).unwrap();
    assert_eq!(pool.available_pages(), 7);
    pool.check_invariants().unwrap();
}

#[test]
fn shared_tail_is_copied_before_it_is_written() {
    let mut pool = pool(4, 8);
    let a = pool.create_sequence();
    let _ = pool.append(a, 6).unwrap();
    let b = pool.fork(a).unwrap();
    let plan = pool.append(b, 1).unwrap();
    let copies: Vec<_> = plan
        .copies
        .iter()
        .map(|(from, to)| (from.index(), to.index()))
        .collect();
    assert_eq!((copies, plan.slot_mapping()), (vec![(2, 3)], &[14][..]));
    assert_eq!((pages(&pool, a), pages(&pool, b)), (vec![1, 2], vec![1, 3]));
    assert!(
        pool.append(a, 1).unwrap().copies.is_empty(),
        "the last owner writes in place"
    );
    pool.check_invariants().unwrap();
}

#[test]
fn full_tail_is_shared_without_a_copy() {
    let mut pool = pool(4, 8);
    let a = pool.create_sequence();
    let _ = pool.append(a, 8).unwrap();
    let b = pool.fork(a).unwrap();
    assert!(pool.append(b, 1).unwrap().copies.is_empty());
    assert_eq!(pages(&pool, b), [1, 2, 3]);
}

#[test]
fn copy_source_rests_until_the_copy_has_run() {
    let mut pool = pool(4, 4);
    let a = pool.create_sequence();
    let _ = pool.append(a, 2).unwrap();
    let b = pool.fork(a).unwrap();
    let plan = pool.append(b, 1).unwrap();
    pool.free(a).unwrap();
    let c = pool.create_sequence();
    let _ = pool.append(c, 1).unwrap();
    assert!(
        !pool.table(c).unwrap().contains(&plan.copies[0].0),
        "the source would be overwritten before it is copied"
    );
    let epoch = pool.begin_launch();
    assert_eq!(pool.available_pages(), 0);
    pool.complete(epoch).unwrap();
    assert_eq!(pool.available_pages(), 1);
    pool.check_invariants().unwrap();
}

// vllm #37076 (use after free): a page was reused while a kernel still read it.
#[test]
fn freed_page_is_not_reused_before_the_launch_completes() {
    let mut pool = pool(4, 3);
    let a = pool.create_sequence();
    let _ = pool.append(a, 8).unwrap();
    let (first, second) = (pool.begin_launch(), pool.begin_launch());
    pool.free(a).unwrap();
    let b = pool.create_sequence();
    let full = PoolError::CacheFull {
        requested_pages: 1,
        free_pages: 0,
        in_flight_pages: 2,
        watermark: 0,
    };
    assert_eq!(pool.append(b, 1), Err(full.clone()));
    pool.complete(second).unwrap();
    assert_eq!(pool.append(b, 1), Err(full), "the first launch still reads");
    pool.complete(first).unwrap();
    assert!(pool.append(b, 1).is_ok());
    assert_eq!(pool.complete(first), Err(PoolError::UnknownEpoch { epoch: first }));
    pool.check_invariants().unwrap();
}

// hyprstream#337: running out of memory must be soft.
#[test]
fn refused_append_changes_nothing() {
    let mut pool = pool(4, 4);
    let a = written(&mut pool, &[1, 2, 3, 4, 5]);
    let b = pool.fork(a).unwrap();
    let before = pool.clone();
    // Two pages are needed and one is left: it may not be taken, nor the shared tail be copied.
    let full = PoolError::CacheFull {
        requested_pages: 2,
        free_pages: 1,
        in_flight_pages: 0,
        watermark: 0,
    };
    assert_eq!(pool.append(b, 4), Err(full));
    let over = |requested_tokens| {
        Err(PoolError::LengthOverCapacity {
            requested_tokens,
            capacity_tokens: 12,
        })
    };
    assert_eq!(pool.append(a, 8), over(13));
    assert_eq!(pool.append(a, usize::MAX), over(usize::MAX));
    assert!(pool == before);
}

#[test]
fn watermark_binds_new_sequences_only() {
    let mut pool = PagePool::new(PoolConfig::new(4, 6).watermark(2)).unwrap();
    let (a, b) = (pool.create_sequence(), pool.create_sequence());
    let _ = pool.append(a, 8).unwrap();
    let refused = PoolError::CacheFull {
        requested_pages: 2,
        free_pages: 3,
        in_flight_pages: 0,
        watermark: 2,
    };
    assert_eq!(pool.append(b, 8), Err(refused));
    let _ = pool.append(b, 4).unwrap();
    let _ = pool.append(a, 8).unwrap();
    assert_eq!(pool.available_pages(), 0);
}

#[test]
fn sequence_exactly_at_its_capacity_fits() {
    let config = PoolConfig::new(4, 16).max_pages_per_sequence(3);
    let mut pool = PagePool::new(config).unwrap();
    let a = pool.create_sequence();
    let _ = pool.append(a, 12).unwrap();
    let over = PoolError::LengthOverCapacity {
        requested_tokens: 13,
        capacity_tokens: 12,
    };
    assert_eq!(pool.append(a, 1), Err(over));
    assert_eq!(pool.append(a, 0).unwrap(), Default::default());
}

#[test]
fn truncation_releases_whole_pages_only() {
    let mut pool = pool(4, 8);
    let a = pool.create_sequence();
    let _ = pool.append(a, 12).unwrap();
    pool.truncate(a, 5).unwrap();
    assert_eq!((pages(&pool, a), pool.length(a)), (vec![1, 2], Ok(5)));
    let refused = PoolError::TruncateBeyondLength {
        sequence: a,
        requested_tokens: 6,
        length_tokens: 5,
    };
    assert_eq!(pool.truncate(a, 6), Err(refused));
    pool.truncate(a, 0).unwrap();
    assert_eq!(pool.available_pages(), 7);
    assert_eq!(pool.append(a, 1).unwrap().slot_mapping(), [4]);
}

#[test]
fn swapped_sequence_maps_page_for_page() {
    let (mut device, mut memory) = (pool(4, 8), pool(4, 4));
    let tokens: Vec<u32> = (0..9).collect();
    let _ = written(&mut device, &[50, 51]);
    let a = written(&mut device, &tokens);
    let plan = device.swap_into(a, &mut memory).unwrap();
    let copies: Vec<_> = plan
        .copies
        .iter()
        .map(|(from, to)| (from.index(), to.index()))
        .collect();
    assert_eq!(
        (copies, memory.length(plan.sequence)),
        (vec![(2, 1), (3, 2), (4, 3)], Ok(9))
    );
    let before = memory.clone();
    let full = PoolError::CacheFull {
        requested_pages: 3,
        free_pages: 0,
        in_flight_pages: 0,
        watermark: 0,
    };
    assert_eq!(device.swap_into(a, &mut memory), Err(full));
    assert!(matches!(
        device.swap_into(a, &mut pool(8, 8)),
        Err(PoolError::Argument { .. })
    ));
    assert!(memory == before);
    let epoch = memory.begin_launch();
    memory.complete(epoch).unwrap();
    assert_eq!(memory.lookup_prefix(&tokens), 8);
    memory.check_invariants().unwrap();
}

#[test]
fn impossible_pools_are_refused() {
    let argument = |config: PoolConfig| match PagePool::new(config) {
        Err(PoolError::Argument { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    for page_size in [0, 3, 48, 512, usize::MAX] {
        assert_eq!(argument(PoolConfig::new(page_size, 8)), "page_size");
    }
    for pages in [0, 1, i32::MAX as usize + 1, usize::MAX] {
        assert_eq!(argument(PoolConfig::new(16, pages)), "pages");
    }
    assert_eq!(argument(PoolConfig::new(16, 8).watermark(7)), "watermark");
    assert_eq!(
        argument(PoolConfig::new(16, 8).max_pages_per_sequence(0)),
        "max_pages_per_sequence"
    );
    for page_size in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        assert!(PagePool::new(PoolConfig::new(page_size, 2)).is_ok());
    }
    assert_eq!(PageId::new(i32::MAX as u32 + 1), None);
}

/// The fuzz target's body on pseudo-random programs, so that it cannot rot.
#[test]
fn fuzz_target_body_runs() {
    let mut state = 1_u32;
    for length in 0..200 {
        let program: Vec<u8> = (0..length * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        fuzzing::run_operations(&program);
    }
}
