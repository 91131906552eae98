//! The split planner: every visible key once, the same pieces in every batch, never beyond its capacity.

use host::kv::PoolError;
use host::kv::schedule::{DecodePlan, DecodePlanner, MergeGroup, PlanRow, PlannerConfig, Visibility, WorkItem};
use proptest::prelude::*;

const SHAPE: PlannerConfig = PlannerConfig {
    kv_heads: 2,
    queries_per_item: 4,
    split_tokens: 16,
    max_splits: 8,
    max_rows: 8,
    max_queries: 64,
};

fn plan_of(config: PlannerConfig, rows: &[PlanRow], visible: Visibility) -> DecodePlan {
    let mut planner = DecodePlanner::new(config).unwrap();
    let mut plan = planner.empty_plan();
    planner.plan(rows, visible, &mut plan).unwrap();
    plan
}

fn row(keys: usize, queries: usize) -> PlanRow {
    PlanRow {
        keys,
        queries,
        first_key: 0,
    }
}

fn sees(row: &PlanRow, visible: Visibility, query: usize, key: usize) -> bool {
    let position = row.keys as i64 - row.queries as i64 + query as i64;
    let (key, first) = (key as i64, row.first_key as i64);
    key >= first
        && visible.left.is_none_or(|left| key >= position - left as i64)
        && visible.right.is_none_or(|right| key <= position + right as i64)
}

/// (first token, tokens) of the items of one row and head, in key order within each tile.
fn pieces(plan: &DecodePlan, row: i32, kv_head: i32) -> Vec<(i32, i32, i32)> {
    let mut pieces: Vec<_> = plan
        .items()
        .iter()
        .filter(|item| (item.row, item.kv_head) == (row, kv_head))
        .map(|item| (item.first_query, item.first_token, item.tokens))
        .collect();
    pieces.sort();
    pieces
}

#[test]
fn one_split_writes_the_output_itself() {
    let plan = plan_of(SHAPE, &[row(16, 1)], Visibility::CAUSAL);
    let item = WorkItem {
        row: 0,
        kv_head: 0,
        first_query: 0,
        queries: 1,
        first_token: 0,
        tokens: 16,
        partial: -1,
        merge: -1,
    };
    assert_eq!(plan.items(), [item, WorkItem { kv_head: 1, ..item }]);
    assert_eq!((plan.merges(), plan.counts()), (&[][..], &[2, 0]));
    assert_eq!(
        plan.item_array()[16..24],
        [-1, 0, 0, 0, 0, 0, -1, -1],
        "padding is no work"
    );
}

#[test]
fn empty_sequence_gets_an_item_that_writes_zeros() {
    let plan = plan_of(SHAPE, &[row(0, 1), row(3, 0)], Visibility::CAUSAL);
    assert_eq!(
        plan.items()
            .iter()
            .map(|item| (item.row, item.tokens))
            .collect::<Vec<_>>(),
        [(0, 0), (0, 0)]
    );
}

#[test]
fn pieces_lie_on_the_grid_and_merge_in_key_order() {
    let plan = plan_of(
        SHAPE,
        &[row(40, 1)],
        Visibility {
            left: Some(25),
            right: Some(0),
        },
    );
    assert_eq!(pieces(&plan, 0, 1), [(0, 14, 2), (0, 16, 16), (0, 32, 8)]);
    let group = MergeGroup {
        row: 0,
        kv_head: 0,
        first_query: 0,
        queries: 1,
        first_partial: 0,
        partials: 3,
    };
    assert_eq!(
        plan.merges(),
        [
            group,
            MergeGroup {
                kv_head: 1,
                first_partial: 3,
                ..group
            }
        ]
    );
    assert_eq!(plan.items()[0].tokens, 16, "largest first");
}

#[test]
fn split_size_doubles_when_the_pieces_are_too_many() {
    let sizes = |keys: usize| pieces(&plan_of(SHAPE, &[row(keys, 1)], Visibility::CAUSAL), 0, 0);
    assert_eq!(sizes(128).len(), 8);
    assert_eq!(
        sizes(129),
        [(0, 0, 32), (0, 32, 32), (0, 64, 32), (0, 96, 32), (0, 128, 1)]
    );
    assert_eq!(sizes(131_072).len(), 8);
    assert_eq!(sizes(i32::MAX as usize).len(), 8);
    let chunk = plan_of(SHAPE, &[row(4096, 64)], Visibility::CAUSAL);
    assert!(
        chunk.merges().is_empty(),
        "a chunk with many tiles is not split as well"
    );
}

#[test]
fn batches_and_shapes_out_of_range_are_refused() {
    let mut planner = DecodePlanner::new(SHAPE).unwrap();
    let mut plan = planner.empty_plan();
    planner.plan(&[row(9, 1)], Visibility::CAUSAL, &mut plan).unwrap();
    let before = plan.clone();
    let mut refuse = |rows: &[PlanRow]| planner.plan(rows, Visibility::CAUSAL, &mut plan).unwrap_err();
    assert_eq!(
        refuse(&[row(9, 1); 9]),
        PoolError::PlanCapacity {
            what: "rows",
            needed: 9,
            capacity: 8
        }
    );
    assert_eq!(
        refuse(&[row(99, 33); 2]),
        PoolError::PlanCapacity {
            what: "queries",
            needed: 66,
            capacity: 64
        }
    );
    assert!(matches!(
        refuse(&[row(1 << 31, 1)]),
        PoolError::Argument { argument: "keys", .. }
    ));
    let padded = PlanRow {
        keys: 4,
        queries: 1,
        first_key: 5,
    };
    assert!(matches!(
        refuse(&[padded]),
        PoolError::Argument {
            argument: "first_key",
            ..
        }
    ));
    assert!(plan == before);
    let mut small = DecodePlanner::new(PlannerConfig {
        max_rows: 1,
        max_queries: 1,
        ..SHAPE
    })
    .unwrap()
    .empty_plan();
    assert!(matches!(
        planner.plan(&[row(9, 1)], Visibility::CAUSAL, &mut small),
        Err(PoolError::PlanCapacity { what: "work items", .. })
    ));

    let argument = |config| match DecodePlanner::new(config) {
        Err(PoolError::Argument { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(PlannerConfig { kv_heads: 0, ..SHAPE }), "kv_heads");
    assert_eq!(
        argument(PlannerConfig {
            queries_per_item: 0,
            ..SHAPE
        }),
        "queries_per_item"
    );
    assert_eq!(argument(PlannerConfig { max_splits: 0, ..SHAPE }), "max_splits");
    for split_tokens in [0, 48, 1 << 31, usize::MAX] {
        assert_eq!(argument(PlannerConfig { split_tokens, ..SHAPE }), "split_tokens");
    }
    let huge = PlannerConfig {
        max_rows: i32::MAX as usize,
        max_queries: i32::MAX as usize,
        ..SHAPE
    };
    assert_eq!(argument(huge), "work items of the largest batch");
}

/// Attention of one KV head with scalar K and V as a kernel would run the plan: per item, then merged in order.
fn run(plan: &DecodePlan, rows: &[PlanRow], visible: Visibility) -> Vec<Vec<(f32, f32)>> {
    let value = |key: usize| ((key * 37 % 101) as f32 - 50.0) / 50.0;
    let partial_of = |item: &WorkItem, query: usize| {
        let keys = item.first_token as usize..(item.first_token + item.tokens) as usize;
        let seen: Vec<usize> = keys
            .filter(|&key| sees(&rows[item.row as usize], visible, query, key))
            .collect();
        let score = |key: usize| value(key + query) * 3.0;
        let max = seen.iter().map(|&key| score(key)).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = seen.iter().map(|&key| (score(key) - max).exp()).sum();
        let weighted: f32 = seen.iter().map(|&key| (score(key) - max).exp() * value(key)).sum();
        if seen.is_empty() {
            (0.0, f32::NEG_INFINITY)
        } else {
            (weighted / sum, max + sum.ln())
        }
    };
    let merge = |a: (f32, f32), b: (f32, f32)| {
        let max = a.1.max(b.1);
        if max == f32::NEG_INFINITY {
            return (0.0, max);
        }
        let (wa, wb) = ((a.1 - max).exp(), (b.1 - max).exp());
        ((a.0 * wa + b.0 * wb) / (wa + wb), max + (wa + wb).ln())
    };
    let mut outputs: Vec<Vec<(f32, f32)>> = rows.iter().map(|row| vec![(f32::NAN, f32::NAN); row.queries]).collect();
    let mut partials = std::collections::BTreeMap::new();
    for item in plan.items().iter().filter(|item| item.kv_head == 0) {
        for query in item.first_query..item.first_query + item.queries {
            let result = partial_of(item, query as usize);
            if item.partial < 0 {
                outputs[item.row as usize][query as usize] = result;
            } else {
                partials.insert((item.partial, query), result);
            }
        }
    }
    for group in plan.merges().iter().filter(|group| group.kv_head == 0) {
        for query in group.first_query..group.first_query + group.queries {
            let parts = group.first_partial..group.first_partial + group.partials;
            let merged = parts.map(|part| partials[&(part, query)]).reduce(merge).unwrap();
            outputs[group.row as usize][query as usize] = merged;
        }
    }
    outputs
}

fn rows() -> impl Strategy<Value = Vec<PlanRow>> {
    let row = (0_usize..400, 0_usize..12, 0_usize..20).prop_map(|(keys, queries, first_key)| PlanRow {
        keys,
        queries,
        first_key: first_key.min(keys),
    });
    prop::collection::vec(row, 0..6)
}

fn visibility() -> impl Strategy<Value = Visibility> {
    let left = prop::option::of(prop_oneof![0_usize..200, Just(usize::MAX)]);
    let right = prop_oneof![3 => Just(Some(0)), 1 => Just(None), 1 => (0_usize..9).prop_map(Some)];
    (left, right).prop_map(|(left, right)| Visibility { left, right })
}

fn shape() -> impl Strategy<Value = PlannerConfig> {
    (1_usize..4, 1_usize..6, 0_u32..8, 1_usize..10).prop_map(|(kv_heads, queries_per_item, shift, max_splits)| {
        PlannerConfig {
            kv_heads,
            queries_per_item,
            split_tokens: 1 << shift,
            max_splits,
            ..SHAPE
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_visible_key_is_read_once(config in shape(), rows in rows(), visible in visibility()) {
        let plan = plan_of(config, &rows, visible);
        for (index, row) in rows.iter().enumerate() {
            for kv_head in 0..config.kv_heads as i32 {
                let mut read = vec![0_u8; row.queries * row.keys];
                let mut written = vec![false; row.queries];
                for item in plan.items().iter().filter(|item| (item.row, item.kv_head) == (index as i32, kv_head)) {
                    prop_assert!((1..=config.queries_per_item as i32).contains(&item.queries));
                    for query in item.first_query as usize..(item.first_query + item.queries) as usize {
                        written[query] = true;
                        for key in item.first_token as usize..(item.first_token + item.tokens) as usize {
                            read[query * row.keys + key] += 1;
                        }
                    }
                }
                for query in 0..row.queries {
                    prop_assert!(written[query]);
                    for key in 0..row.keys {
                        let count = read[query * row.keys + key];
                        prop_assert!(count <= 1);
                        prop_assert!(count == 1 || !sees(row, visible, query, key), "row {index}: {query} misses {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn partials_are_used_once_and_merged_in_key_order(config in shape(), rows in rows(), visible in visibility()) {
        let plan = plan_of(config, &rows, visible);
        let mut owners = vec![None; config.partial_capacity()];
        for item in plan.items().iter().filter(|item| item.partial >= 0) {
            prop_assert!(owners[item.partial as usize].replace(*item).is_none());
        }
        let mut merged = 0;
        for (index, group) in plan.merges().iter().enumerate() {
            prop_assert!(group.partials >= 2 && group.partials as usize <= config.max_splits);
            let mut end = None;
            for partial in group.first_partial..group.first_partial + group.partials {
                let item = owners[partial as usize].unwrap();
                prop_assert_eq!(
                    (item.merge, item.row, item.kv_head, item.first_query, item.queries),
                    (index as i32, group.row, group.kv_head, group.first_query, group.queries)
                );
                prop_assert!(item.tokens > 0 && end.is_none_or(|end| end == item.first_token));
                end = Some(item.first_token + item.tokens);
                merged += 1;
            }
        }
        prop_assert_eq!(merged, owners.iter().flatten().count());
    }

    // FA #1897, #2450: the split heuristic looked at the batch and changed the result of a row.
    #[test]
    fn row_alone_equals_row_in_a_batch(config in shape(), rows in rows(), visible in visibility()) {
        let together = plan_of(config, &rows, visible);
        let outputs = run(&together, &rows, visible);
        for (index, row) in rows.iter().enumerate() {
            let alone = plan_of(config, &[*row], visible);
            for kv_head in 0..config.kv_heads as i32 {
                prop_assert_eq!(pieces(&alone, 0, kv_head), pieces(&together, index as i32, kv_head));
            }
            let bits = |outputs: &[(f32, f32)]| -> Vec<(u32, u32)> {
                outputs.iter().map(|(output, lse)| (output.to_bits(), lse.to_bits())).collect()
            };
            prop_assert_eq!(bits(&run(&alone, &[*row], visible)[0]), bits(&outputs[index]));
        }
    }

    #[test]
    fn merged_attention_equals_unsplit_attention(config in shape(), rows in rows(), visible in visibility()) {
        let split = run(&plan_of(config, &rows, visible), &rows, visible);
        let whole = run(&plan_of(PlannerConfig { max_splits: 1, ..config }, &rows, visible), &rows, visible);
        for (split, whole) in split.iter().flatten().zip(whole.iter().flatten()) {
            if whole.1 == f32::NEG_INFINITY {
                prop_assert_eq!(split, whole);
            } else {
                prop_assert!((split.0 - whole.0).abs() < 1e-5 && (split.1 - whole.1).abs() < 1e-5, "{split:?} {whole:?}");
            }
        }
    }

    /// The promise behind captured graphs: no lengths need more than the capacity.
    #[test]
    fn capacity_suffices_for_every_length(
        config in shape(),
        keys in prop::collection::vec(prop_oneof![0_usize..5000, Just(i32::MAX as usize)], 8),
        cuts in prop::collection::vec(0_usize..=64, 7),
        visible in visibility(),
    ) {
        // 64 queries spread over 8 rows in every way.
        let mut cuts = [vec![0], cuts, vec![64]].concat();
        cuts.sort();
        let rows: Vec<PlanRow> = keys.iter().zip(cuts.windows(2)).map(|(&keys, cut)| row(keys, cut[1] - cut[0])).collect();
        let plan = plan_of(config, &rows, visible);
        prop_assert!(plan.items().iter().all(|item| item.partial < config.partial_capacity() as i32));
    }
}
