//! What the pool is checked against: a memory that remembers each token's whole context, and plain counting.

use std::collections::{BTreeMap, BTreeSet};

use host::kv::{AppendPlan, Epoch, PageId, PagePool, SequenceId};

/// K and V of a token depend on all tokens before it; so does this stand-in.
pub fn context(before: u64, token: u64) -> u64 {
    (before ^ token.wrapping_add(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(0xff51_afd7_ed55_8ccd)
        .rotate_left(31)
}

#[derive(Default)]
pub struct Model {
    pub page_size: usize,
    /// One value per slot of the cache, as the device would have written it.
    pub memory: Vec<u64>,
    pub sequences: BTreeMap<SequenceId, Vec<u64>>,
    pub in_flight: BTreeMap<Epoch, BTreeSet<PageId>>,
    /// Freed pages and the launches they wait for (the number of a launch that has yet to begin included).
    pub waits: BTreeMap<PageId, BTreeSet<u64>>,
    pub copy_sources: BTreeSet<PageId>,
    pub begun: u64,
}

impl Model {
    pub fn owners(&self, pool: &PagePool, page: PageId) -> usize {
        self.sequences
            .keys()
            .filter(|&&id| pool.table(id).unwrap().contains(&page))
            .count()
    }

    pub fn owned(&self, pool: &PagePool) -> BTreeSet<PageId> {
        self.sequences
            .keys()
            .flat_map(|&id| pool.table(id).unwrap())
            .copied()
            .collect()
    }

    /// Carries out a plan as the device would.
    pub fn write(&mut self, id: SequenceId, tokens: &[u64], plan: &AppendPlan) {
        for &(from, to) in &plan.copies {
            let (from, to) = (from.index() * self.page_size, to.index() * self.page_size);
            self.memory.copy_within(from..from + self.page_size, to);
        }
        self.copy_sources.extend(plan.copies.iter().map(|&(from, _)| from));
        let contexts = self.sequences.get_mut(&id).unwrap();
        assert_eq!(plan.slots.len(), tokens.len(), "one slot per token");
        for (slot, &token) in plan.slots.iter().zip(tokens) {
            assert!(slot.index() >= self.page_size, "slot {slot} lies in the null page");
            contexts.push(context(contexts.last().copied().unwrap_or(0), token));
            self.memory[slot.index()] = contexts[contexts.len() - 1];
        }
    }

    pub fn begin(&mut self, pool: &PagePool, epoch: Epoch) {
        self.begun = epoch.get();
        self.copy_sources.clear();
        self.in_flight.insert(epoch, self.owned(pool));
    }

    pub fn end(&mut self, epoch: Epoch) {
        self.in_flight.remove(&epoch);
        self.waits
            .values_mut()
            .for_each(|launches| _ = launches.remove(&epoch.get()));
        self.waits.retain(|_, launches| !launches.is_empty());
    }

    /// Compares everything after a step; `before` are the pages that were owned before it.
    pub fn check(&mut self, pool: &PagePool, before: &BTreeSet<PageId>) {
        let owned = self.owned(pool);
        for &page in before.difference(&owned) {
            let mut launches: BTreeSet<u64> = self.in_flight.keys().map(|epoch| epoch.get()).collect();
            launches.extend(self.copy_sources.contains(&page).then_some(self.begun + 1));
            self.waits.insert(page, launches);
        }
        self.waits
            .retain(|page, launches| !launches.is_empty() && !owned.contains(page));
        assert_eq!(
            pool.available_pages(),
            pool.pages() - 1 - owned.len() - self.waits.len(),
            "pages that are free"
        );
        assert!(pool.sequences().eq(self.sequences.keys().copied()), "live sequences");
        for (&id, contexts) in &self.sequences {
            let pages = pool.table(id).unwrap();
            let slot =
                |position: usize| pages[position / self.page_size].index() * self.page_size + position % self.page_size;
            let read: Vec<u64> = (0..pool.length(id).unwrap())
                .map(|position| self.memory[slot(position)])
                .collect();
            assert_eq!(&read, contexts, "sequence {id} reads back what was written for it");
        }
        pool.check_invariants().unwrap();
    }
}
