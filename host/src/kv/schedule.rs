//! The split plan of decode attention: which piece of which sequence's keys each thread block reads.
//!
//! A decode step has few queries and many keys, so the keys of one (sequence, KV head) are split among blocks, and
//! the partial results are merged by their log-sum-exps. This planner decides the pieces once per step, on the host.
//!
//! # Promises
//! - *A row does not depend on its batch.* The pieces of a row follow from the row alone (its keys, queries, mask), so
//!   the same row gives the same bits alone, in any batch, and at any place in it. Merge order is piece order.
//! - *A captured graph stays valid.* The arrays of a [`DecodePlan`] have a fixed capacity, which suffices for every
//!   batch within [`PlannerConfig::max_rows`] and [`PlannerConfig::max_queries`], whatever the lengths. Kernels read
//!   the counts from [`DecodePlan::counts`] in device memory and loop over the items with a fixed grid.
//! - *Every visible key is read once* by each query tile that sees it; a tile that sees none gets one item of 0 tokens,
//!   so that its output (0) and log-sum-exp (-inf) are written.
//!
//! # The pieces
//! The queries of a row are cut into tiles of `queries_per_item`. For a tile that sees keys `[lo, hi)`, pieces begin at
//! multiples of a split size that starts at `split_tokens` and doubles until the tile has at most
//! `max(1, max_splits / tiles)` pieces. Multiples of the position, not of `lo`, keep pieces on page borders.

mod plan;

use std::cmp::Reverse;

use super::PoolError;

pub use plan::{DecodePlan, MergeGroup, WorkItem};

/// What does not change while a captured graph lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannerConfig {
    /// KV heads; each is read by its own items. At least 1.
    pub kv_heads: usize,
    /// Most queries (new tokens) of a row that one item attends for: what the kernel's tile holds divided by the query
    /// heads per KV head. At least 1.
    pub queries_per_item: usize,
    /// Smallest piece of keys worth a block of its own, in tokens: a power of two.
    pub split_tokens: usize,
    /// Most pieces per row and KV head, unless it has more query tiles than that. At least 1.
    pub max_splits: usize,
    /// Most rows (sequences) of a batch.
    pub max_rows: usize,
    /// Most queries of a batch, all rows together.
    pub max_queries: usize,
}

/// Which keys a query at absolute position `p` sees: `p - left ..= p + right`; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// Keys before the query's position.
    pub left: Option<usize>,
    /// Keys after the query's position; `Some(0)` is causal.
    pub right: Option<usize>,
}

impl Visibility {
    /// Every key up to and including the query's position.
    pub const CAUSAL: Visibility = Visibility {
        left: None,
        right: Some(0),
    };
}

/// One sequence of a batch. Its queries are its last tokens: query `i` stands at position `keys - queries + i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanRow {
    /// Tokens in the cache, the new ones included.
    pub keys: usize,
    /// New tokens.
    pub queries: usize,
    /// Leading tokens that nobody may see (left padding).
    pub first_key: usize,
}

impl PlannerConfig {
    /// Length of the item array.
    ///
    /// A row with `q` queries has at most `max(ceil(q / queries_per_item), max_splits)` items per KV head, which is at
    /// most `floor(q / queries_per_item) + max_splits`.
    pub fn item_capacity(&self) -> usize {
        let rows = self.max_rows.min(self.max_queries);
        let full_tiles = self.max_queries / self.queries_per_item;
        rows.saturating_mul(self.max_splits)
            .saturating_add(full_tiles)
            .saturating_mul(self.kv_heads)
    }

    /// Number of partial results that the workspace must hold: each is `queries_per_item` queries times the query
    /// heads of a KV head, with `Dv` accumulators and one log-sum-exp in f32.
    ///
    /// Only rows with at most `max_splits / 2` tiles are split, into at most `max_splits` pieces for all their tiles.
    pub fn partial_capacity(&self) -> usize {
        if self.max_splits == 1 {
            return 0;
        }
        let rows = self.max_rows.min(self.max_queries);
        rows.saturating_mul(self.max_splits).saturating_mul(self.kv_heads)
    }

    /// Length of the merge array: a group has at least 2 partial results.
    pub fn merge_capacity(&self) -> usize {
        self.partial_capacity() / 2
    }

    /// Refuses what no plan can be made for.
    fn validate(&self) -> Result<(), PoolError> {
        let refuse = |argument, value: usize, allowed| {
            Err(PoolError::Argument {
                argument,
                value: i64::try_from(value).unwrap_or(i64::MAX),
                allowed,
            })
        };
        let sizes = [
            ("kv_heads", self.kv_heads),
            ("queries_per_item", self.queries_per_item),
            ("max_splits", self.max_splits),
            ("max_rows", self.max_rows),
            ("max_queries", self.max_queries),
        ];
        for (argument, value) in sizes {
            if value == 0 || value > i32::MAX as usize {
                return refuse(argument, value, "1 ..= 2147483647");
            }
        }
        if !self.split_tokens.is_power_of_two() || self.split_tokens > 1 << 30 {
            return refuse("split_tokens", self.split_tokens, "a power of two, at most 2^30");
        }
        // 32 bytes an item: a quarter of a gigabyte of plan is a mistake, not a batch.
        if self.item_capacity() > 1 << 23 {
            return refuse(
                "work items of the largest batch",
                self.item_capacity(),
                "at most 8388608",
            );
        }
        Ok(())
    }
}

/// Plans decode steps of one shape.
#[derive(Clone, Debug)]
pub struct DecodePlanner {
    config: PlannerConfig,
    /// Pieces of the row at hand, reused.
    pieces: Vec<WorkItem>,
}

impl DecodePlanner {
    /// A planner for this shape.
    ///
    /// # Errors
    /// [`PoolError::Argument`] if a parameter is outside its range, or the plan would take more than 2^23 items.
    pub fn new(config: PlannerConfig) -> Result<DecodePlanner, PoolError> {
        config.validate()?;
        Ok(DecodePlanner {
            config,
            pieces: Vec::new(),
        })
    }

    /// The shape.
    pub fn config(&self) -> &PlannerConfig {
        &self.config
    }

    /// An empty plan, to be filled by [`DecodePlanner::plan`].
    pub fn empty_plan(&self) -> DecodePlan {
        DecodePlan {
            items: vec![WorkItem::NONE; self.config.item_capacity()],
            merges: vec![MergeGroup::NONE; self.config.merge_capacity()],
            counts: [0; 2],
        }
    }

    /// Replaces `plan` by the plan for `rows`. Allocates nothing once warm.
    ///
    /// # Errors
    /// [`PoolError::PlanCapacity`] for more rows or queries than the planner was made for, or a plan of another
    /// planner; [`PoolError::Argument`] if a row has more than `i32::MAX` keys or its `first_key` is beyond them.
    /// `plan` is unchanged in these cases.
    pub fn plan(&mut self, rows: &[PlanRow], visible: Visibility, plan: &mut DecodePlan) -> Result<(), PoolError> {
        self.check(rows, plan)?;
        let (mut items, mut merges, mut partials) = (0, 0, 0);
        for (row, shape) in rows.iter().enumerate() {
            self.cut_row(row, shape, visible);
            for tile in self.pieces.chunk_by(|a, b| a.first_query == b.first_query) {
                for kv_head in 0..self.config.kv_heads as i32 {
                    let split = tile.len() > 1;
                    for (index, piece) in tile.iter().enumerate() {
                        let (partial, merge) = if split {
                            ((partials + index) as i32, merges as i32)
                        } else {
                            (-1, -1)
                        };
                        plan.items[items] = WorkItem {
                            kv_head,
                            partial,
                            merge,
                            ..*piece
                        };
                        items += 1;
                    }
                    if split {
                        plan.merges[merges] = MergeGroup {
                            row: row as i32,
                            kv_head,
                            first_query: tile[0].first_query,
                            queries: tile[0].queries,
                            first_partial: partials as i32,
                            partials: tile.len() as i32,
                        };
                        merges += 1;
                        partials += tile.len();
                    }
                }
            }
        }
        plan.items[items..].fill(WorkItem::NONE);
        plan.merges[merges..].fill(MergeGroup::NONE);
        plan.counts = [items as i32, merges as i32];
        // Largest first; then what reads the same or neighbouring keys together. No two items compare equal, so the
        // order is a function of the input.
        plan.items[..items].sort_unstable_by_key(|item| {
            (
                Reverse(item.tokens),
                item.row,
                item.first_token,
                item.kv_head,
                item.first_query,
            )
        });
        Ok(())
    }

    fn check(&self, rows: &[PlanRow], plan: &DecodePlan) -> Result<(), PoolError> {
        let fits = |what, needed, capacity| match needed <= capacity {
            true => Ok(()),
            false => Err(PoolError::PlanCapacity { what, needed, capacity }),
        };
        let PlannerConfig {
            max_rows, max_queries, ..
        } = self.config;
        fits("rows", rows.len(), max_rows)?;
        let queries = rows.iter().fold(0_usize, |sum, row| sum.saturating_add(row.queries));
        fits("queries", queries, max_queries)?;
        fits("work items", self.config.item_capacity(), plan.items.len())?;
        fits("merge groups", self.config.merge_capacity(), plan.merges.len())?;
        for row in rows {
            if row.keys > i32::MAX as usize {
                let value = i64::try_from(row.keys).unwrap_or(i64::MAX);
                return Err(PoolError::Argument {
                    argument: "keys",
                    value,
                    allowed: "0 ..= 2147483647",
                });
            }
            if row.first_key > row.keys {
                let value = i64::try_from(row.first_key).unwrap_or(i64::MAX);
                return Err(PoolError::Argument {
                    argument: "first_key",
                    value,
                    allowed: "0 ..= keys",
                });
            }
        }
        Ok(())
    }

    /// Fills `pieces` with the pieces of one row, tile after tile, each tile's in key order.
    fn cut_row(&mut self, row: usize, shape: &PlanRow, visible: Visibility) {
        self.pieces.clear();
        let tile = self.config.queries_per_item;
        let tiles = shape.queries.div_ceil(tile);
        let most = (self.config.max_splits / tiles.max(1)).max(1);
        for first_query in (0..shape.queries).step_by(tile) {
            let queries = tile.min(shape.queries - first_query);
            let (low, high) = visible_keys(shape, visible, first_query, queries);
            let mut size = self.config.split_tokens;
            while high.div_ceil(size) - low / size > most {
                size *= 2;
            }
            let mut first = low;
            loop {
                let end = high.min((first / size + 1) * size);
                self.pieces.push(WorkItem {
                    row: row as i32,
                    first_query: first_query as i32,
                    queries: queries as i32,
                    first_token: first as i32,
                    tokens: (end - first) as i32,
                    ..WorkItem::NONE
                });
                first = end;
                if first >= high {
                    break;
                }
            }
        }
    }
}

/// The keys `[low, high)` that at least one of these queries sees; empty ranges are `(low, low)`.
fn visible_keys(shape: &PlanRow, visible: Visibility, first_query: usize, queries: usize) -> (usize, usize) {
    // Positions are negative for queries before the first key; lengths and limits fit i64 with room to spare.
    let position = |query: usize| shape.keys as i64 - shape.queries as i64 + query as i64;
    let limit = |tokens: usize| i64::try_from(tokens).unwrap_or(i64::MAX).min(1 << 40);
    let (floor, ceiling) = (shape.first_key as i64, shape.keys as i64);
    let low = visible
        .left
        .map_or(floor, |left| position(first_query) - limit(left))
        .clamp(floor, ceiling);
    let high = visible
        .right
        .map_or(ceiling, |right| position(first_query + queries - 1) + limit(right) + 1);
    (low as usize, high.clamp(low, ceiling) as usize)
}
