//! Results within the 2× rule: pages and rows, head dims, several new tokens, options.

use ferroflash::PoolLayout;

use crate::support::{Case, check_all};

#[test]
fn pages_of_any_size_in_both_orders() {
    for (page, layout) in [
        (1, PoolLayout::Nhd),
        (16, PoolLayout::Nhd),
        (16, PoolLayout::Hnd),
        (5, PoolLayout::Hnd),
    ] {
        check_all(Case {
            page: Some(page),
            layout,
            lengths: vec![67, 0, 16],
            ..Case::default()
        });
    }
}

#[test]
fn contiguous_rows_in_any_order() {
    check_all(Case {
        page: None,
        rows: Some(vec![3, 0, 1]),
        lengths: vec![33, 1, 80],
        ..Case::default()
    });
}

#[test]
fn head_dims_and_ratios() {
    for (heads, dims) in [
        ((8, 1), (128, 128)),
        ((5, 5), (256, 256)),
        ((28, 4), (40, 40)),
        ((3, 3), (96, 64)),
        ((16, 1), (128, 128)),
    ] {
        check_all(Case {
            heads,
            dims,
            lengths: vec![37, 3],
            ..Case::default()
        });
    }
    // More rows than a tile has: 40 heads of one KV head. As many as the largest one has, in one block and in several.
    for (heads, dims, lengths) in [
        ((40, 1), (128, 128), vec![70]),
        ((32, 1), (128, 128), vec![130, 0, 5]),
        ((19, 1), (64, 64), vec![700]),
        ((20, 1), (72, 40), vec![70, 9]),
        ((60, 1), (128, 128), vec![530, 64]),
        ((140, 2), (64, 64), vec![65]),
    ] {
        // Boxes of 16 and of 64 tokens; pages that no box fits; rows.
        for page in [Some(16), Some(192), Some(40), None] {
            // Half of it is enough of many heads.
            if heads.0 > 40 && page.is_some_and(|page| page < 64) {
                continue;
            }
            check_all(Case {
                heads,
                dims,
                lengths: lengths.clone(),
                page,
                ..Case::default()
            });
        }
    }
}

#[test]
fn several_new_tokens() {
    for (seq_q, causal) in [(2, true), (7, true), (7, false)] {
        // The shortest sequence is shorter than its queries: some rows see nothing.
        check_all(Case {
            seq_q,
            causal,
            lengths: vec![70, 3, 0],
            ..Case::default()
        });
    }
}

#[test]
fn options_of_many_rows() {
    for (heads, seq_q, page) in [((24, 1), 1, None), ((24, 1), 2, Some(16)), ((12, 1), 3, Some(32))] {
        let base = Case {
            heads,
            seq_q,
            page,
            lengths: vec![600, 20, 0],
            ..Case::default()
        };
        check_all(Case {
            window: (Some(100), None),
            ..base.clone()
        });
        check_all(Case {
            causal: false,
            window: (Some(70), Some(1)),
            slopes: true,
            sinks: true,
            softcap: Some(2.0),
            ..base.clone()
        });
        check_all(Case {
            padding: Some(vec![530, 20, 0]),
            ..base
        });
    }
}

#[test]
fn options() {
    let base = Case {
        seq_q: 3,
        lengths: vec![150, 20, 0],
        ..Case::default()
    };
    check_all(Case {
        window: (Some(40), None),
        ..base.clone()
    });
    check_all(Case {
        causal: false,
        window: (Some(70), Some(1)),
        ..base.clone()
    });
    check_all(Case {
        softcap: Some(1.5),
        ..base.clone()
    });
    check_all(Case {
        slopes: true,
        sinks: true,
        ..base.clone()
    });
    check_all(Case {
        heads: (16, 2),
        slopes: true,
        sinks: true,
        softcap: Some(2.0),
        window: (Some(30), None),
        ..base.clone()
    });
    check_all(Case {
        padding: Some(vec![64, 20, 1]),
        slopes: true,
        ..base
    });
}
