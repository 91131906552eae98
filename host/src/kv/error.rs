//! Why a page operation was refused. Whatever the error, nothing has changed.

use super::{Epoch, PageId, SequenceId};

/// A refused operation of the page pool, a table or a plan.
///
/// Every variant leaves the pool exactly as it was before the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Too few pages are free now. Recoverable: free or truncate a sequence, or complete a launch, and try again.
    #[error(
        "cache full: {requested_pages} pages requested, {free_pages} free (of which {watermark} are kept for running \
         sequences), {in_flight_pages} more when the launches in flight complete"
    )]
    CacheFull {
        /// Pages that the operation needs.
        requested_pages: usize,
        /// Pages that could be handed out now, cached ones included.
        free_pages: usize,
        /// Freed pages that wait for a launch in flight.
        in_flight_pages: usize,
        /// Pages that this operation must leave free: the pool's watermark for the first append of a sequence, else 0.
        watermark: usize,
    },
    /// The sequence would be longer than any sequence of this pool or table can be.
    #[error("length {requested_tokens} is above the capacity of {capacity_tokens} tokens")]
    LengthOverCapacity {
        /// The length asked for, in tokens (saturating).
        requested_tokens: usize,
        /// The longest possible length, in tokens.
        capacity_tokens: usize,
    },
    /// Truncation can only shorten.
    #[error("cannot truncate sequence {sequence} to {requested_tokens} tokens: it has {length_tokens}")]
    TruncateBeyondLength {
        /// The sequence.
        sequence: SequenceId,
        /// The length asked for.
        requested_tokens: usize,
        /// The present length.
        length_tokens: usize,
    },
    /// The pool has no such sequence: it was never made, or it has been freed.
    #[error("unknown sequence {sequence}: it was never created, or it has been freed")]
    UnknownSequence {
        /// The name given.
        sequence: SequenceId,
    },
    /// The sequence was freed before.
    #[error("double free of sequence {sequence}")]
    DoubleFree {
        /// The name given.
        sequence: SequenceId,
    },
    /// The launch is not in flight: it never began, or it completed before.
    #[error("epoch {epoch} is not in flight: it never began, or it has completed")]
    UnknownEpoch {
        /// The epoch given.
        epoch: Epoch,
    },
    /// A parameter of a pool, table or plan is outside its range.
    #[error("{argument} is {value}; allowed: {allowed}")]
    Argument {
        /// Name of the parameter.
        argument: &'static str,
        /// The value given.
        value: i64,
        /// The values that are allowed.
        allowed: &'static str,
    },
    /// Two lists that belong together differ in length.
    #[error("{argument} has {length} entries, expected {expected}")]
    Entries {
        /// Name of the list.
        argument: &'static str,
        /// Entries it has.
        length: usize,
        /// Entries it must have.
        expected: usize,
    },
    /// A list of offsets does not start at 0, decreases, or does not end at the length of what it indexes.
    #[error("{argument}[{index}] is {value}; offsets start at 0, never decrease, and end at {end}")]
    Offsets {
        /// Name of the list.
        argument: &'static str,
        /// Position of the wrong entry.
        index: usize,
        /// The wrong entry.
        value: i64,
        /// What the last entry must be.
        end: usize,
    },
    /// A table entry that is in use names no page of the pool, or the null page.
    #[error("row {row}, column {column}: page {page} is outside 1..{pages}")]
    PageOutOfRange {
        /// Row of the table (position in the batch).
        row: usize,
        /// Column of the table (logical page).
        column: usize,
        /// The entry.
        page: i64,
        /// Number of pages of the pool, the null page included.
        pages: usize,
    },
    /// A page that would be written is held a second time.
    #[error("page {page} would be written by row {row} and is also held by row {other_row}")]
    OverlappingPages {
        /// The page.
        page: PageId,
        /// Row that writes it.
        row: usize,
        /// Row that also holds it (the same row if one row names it twice).
        other_row: usize,
    },
    /// A sequence has more pages than the table has columns.
    #[error("table too narrow: row {row} needs {needed_columns} columns, the table has {columns}")]
    TableTooNarrow {
        /// Row of the table.
        row: usize,
        /// Columns that the row needs.
        needed_columns: usize,
        /// Columns that the table has.
        columns: usize,
    },
    /// A slot outside the cache, or inside the null page.
    #[error("slots[{index}] is {slot}; allowed: -1 (skip) or {first}..{end}")]
    SlotOutOfRange {
        /// Position in the slot mapping.
        index: usize,
        /// The entry.
        slot: i64,
        /// First slot that may be written.
        first: i64,
        /// End of the cache.
        end: i64,
    },
    /// Two tokens of one launch would be written to the same slot.
    #[error("slots[{index}] and slots[{other_index}] both name slot {slot}")]
    DuplicateSlot {
        /// Later position in the slot mapping.
        index: usize,
        /// Earlier position in the slot mapping.
        other_index: usize,
        /// The slot.
        slot: i64,
    },
    /// A plan would need more work items than its fixed capacity.
    #[error("the plan needs {needed} {what}, its capacity is {capacity}")]
    PlanCapacity {
        /// What there is too much of.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many fit.
        capacity: usize,
    },
}
