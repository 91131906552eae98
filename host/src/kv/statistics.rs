//! How full the pool is, and how well sharing works.

use super::PagePool;

/// Totals since the pool was made. Failed operations do not count, so that they leave no trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) appended_tokens: u64,
    pub(super) copies_on_write: u64,
    pub(super) prefix_lookups: u64,
    pub(super) prefix_tokens: u64,
    pub(super) prefix_hit_tokens: u64,
    pub(super) peak_owned_pages: usize,
}

/// A snapshot of a pool. `owned + free + cached + resting + 1` (the null page) is all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Pages held by at least one sequence.
    pub owned_pages: usize,
    /// Pages held by more than one sequence (each counted once).
    pub shared_pages: usize,
    /// Pages without contents.
    pub free_pages: usize,
    /// Pages of no sequence whose contents can be shared; evicted when no page is free.
    pub cached_pages: usize,
    /// Freed pages that a launch in flight may still read.
    pub resting_pages: usize,
    /// Full pages that a prefix lookup can find, owned or cached.
    pub hashed_pages: usize,
    /// Most pages that were owned at once.
    pub peak_owned_pages: usize,
    /// Live sequences.
    pub sequences: usize,
    /// Tokens of all sequences, shared ones counted for each.
    pub tokens: usize,
    /// Slots of all tables that hold no token: the price of whole pages.
    pub unused_slots: usize,
    /// Launches in flight.
    pub launches_in_flight: usize,
    /// Tokens appended so far.
    pub appended_tokens: u64,
    /// Pages copied because they were shared when written.
    pub copies_on_write: u64,
    /// Cached pages given up for new contents.
    pub evictions: u64,
    /// Sequences started with a prefix lookup.
    pub prefix_lookups: u64,
    /// Tokens that those lookups asked for.
    pub prefix_tokens: u64,
    /// Tokens that they found.
    pub prefix_hit_tokens: u64,
}

impl PagePool {
    /// Counts the pool as it is now. Linear in the number of pages.
    pub fn statistics(&self) -> Statistics {
        let allocator = &self.allocator;
        let counters = &self.counters;
        let sequences = || self.sequences.values();
        let tokens = sequences().map(|sequence| sequence.length).sum();
        let slots = sequences()
            .map(|sequence| sequence.table.len() * self.page_size())
            .sum::<usize>();
        Statistics {
            owned_pages: self.owned_pages(),
            shared_pages: allocator.pages.iter().filter(|page| page.references > 1).count(),
            free_pages: allocator.free.len(),
            cached_pages: allocator.cached.len(),
            resting_pages: allocator.resting.len(),
            hashed_pages: allocator.index.len(),
            peak_owned_pages: counters.peak_owned_pages,
            sequences: self.sequences.len(),
            tokens,
            unused_slots: slots - tokens,
            launches_in_flight: allocator.launches.count(),
            appended_tokens: counters.appended_tokens,
            copies_on_write: counters.copies_on_write,
            evictions: allocator.evictions,
            prefix_lookups: counters.prefix_lookups,
            prefix_tokens: counters.prefix_tokens,
            prefix_hit_tokens: counters.prefix_hit_tokens,
        }
    }
}
