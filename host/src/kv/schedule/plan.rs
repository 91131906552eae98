//! What a plan consists of: the layouts that kernels read.

use bytemuck::{Pod, Zeroable};

/// Work of one thread block: attend some queries of a row, for one KV head, to a range of keys. 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WorkItem {
    /// Row of the batch.
    pub row: i32,
    /// KV head.
    pub kv_head: i32,
    /// First query, counted within the row.
    pub first_query: i32,
    /// Number of queries, 1 ..= `queries_per_item`.
    pub queries: i32,
    /// First key.
    pub first_token: i32,
    /// Number of keys; 0 if the queries see none.
    pub tokens: i32,
    /// Where the partial result goes: an index into the partial workspace, or -1 to write the output itself.
    pub partial: i32,
    /// The merge group that the partial result belongs to, or -1.
    pub merge: i32,
}

impl WorkItem {
    /// Padding: no work.
    pub const NONE: WorkItem = WorkItem {
        row: -1,
        kv_head: 0,
        first_query: 0,
        queries: 0,
        first_token: 0,
        tokens: 0,
        partial: -1,
        merge: -1,
    };
}

/// Partial results that make up one output: consecutive in the partial workspace, in key order. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MergeGroup {
    /// Row of the batch.
    pub row: i32,
    /// KV head.
    pub kv_head: i32,
    /// First query, counted within the row.
    pub first_query: i32,
    /// Number of queries.
    pub queries: i32,
    /// First partial result.
    pub first_partial: i32,
    /// Number of partial results, at least 2.
    pub partials: i32,
}

impl MergeGroup {
    /// Padding: nothing to merge.
    pub const NONE: MergeGroup = MergeGroup {
        row: -1,
        kv_head: 0,
        first_query: 0,
        queries: 0,
        first_partial: 0,
        partials: 0,
    };
}

/// The plan of one step, in arrays whose lengths never change. Reused from step to step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    pub(super) items: Vec<WorkItem>,
    pub(super) merges: Vec<MergeGroup>,
    pub(super) counts: [i32; 2],
}

impl DecodePlan {
    /// The items in use, largest first, so that no block is left with a large one at the end.
    pub fn items(&self) -> &[WorkItem] {
        &self.items[..self.counts[0] as usize]
    }

    /// The merge groups in use.
    pub fn merges(&self) -> &[MergeGroup] {
        &self.merges[..self.counts[1] as usize]
    }

    /// All items, padded with [`WorkItem::NONE`]: what is uploaded, `[item_capacity, 8]` i32.
    pub fn item_array(&self) -> &[i32] {
        bytemuck::cast_slice(&self.items)
    }

    /// All merge groups, padded with [`MergeGroup::NONE`]: `[merge_capacity, 6]` i32.
    pub fn merge_array(&self) -> &[i32] {
        bytemuck::cast_slice(&self.merges)
    }

    /// Items and merge groups in use: what kernels loop to.
    pub fn counts(&self) -> &[i32; 2] {
        &self.counts
    }
}
