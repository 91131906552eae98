//! The pages themselves: who counts on them, which are free, which are cached, which must rest.
//!
//! Every page but the null page is in exactly one place:
//! - *owned*: reference count above 0;
//! - *free*: no references, no contents worth keeping; handed out lowest number first;
//! - *cached*: no references, but its contents stand in the prefix index; handed out (evicted) least recently
//!   released first, and only when no page is free;
//! - *resting*: no references, but a launch in flight may still read it; becomes free or cached afterwards.

use std::collections::{BTreeMap, BTreeSet};

use super::launches::Launches;
use super::prefix::PrefixIndex;
use super::{Epoch, PageId, PoolError, PrefixKey};

/// What is known of one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Number of tables that hold the page.
    pub(super) references: u64,
    /// End of the slots with valid contents.
    pub(super) filled: u16,
    /// Name of the contents while they stand in the prefix index.
    pub(super) key: Option<PrefixKey>,
    /// Last launch that may read the page although no table holds it.
    pub(super) busy_until: u64,
    /// Clock of the last release: the order of eviction.
    pub(super) released: u64,
}

/// The pages of a pool. Methods expect pages of this pool; the pool's public functions have checked that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allocator {
    pub(super) pages: Vec<Page>,
    pub(super) free: BTreeSet<PageId>,
    pub(super) cached: BTreeMap<u64, PageId>,
    pub(super) resting: BTreeSet<(u64, PageId)>,
    pub(super) index: PrefixIndex,
    /// Full pages whose contents a launch still has to write: the key, and that launch.
    pub(super) unpublished: BTreeMap<PageId, (PrefixKey, u64)>,
    pub(super) launches: Launches,
    clock: u64,
    pub(super) evictions: u64,
}

impl Allocator {
    /// All pages free; page 0 reserved.
    pub(super) fn new(pages: usize) -> Allocator {
        Allocator {
            pages: vec![Page::default(); pages],
            free: (1..pages).map(PageId::of_pool).collect(),
            cached: BTreeMap::new(),
            resting: BTreeSet::new(),
            index: PrefixIndex::default(),
            unpublished: BTreeMap::new(),
            launches: Launches::new(),
            clock: 0,
            evictions: 0,
        }
    }

    pub(super) fn page(&self, page: PageId) -> &Page {
        &self.pages[page.index()]
    }

    fn page_mut(&mut self, page: PageId) -> &mut Page {
        &mut self.pages[page.index()]
    }

    /// Pages that could be handed out now.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Hands out a page with one reference and no contents: a free one, else the least recently released cached one.
    pub(super) fn acquire(&mut self) -> Option<PageId> {
        let page = match self.free.pop_first() {
            Some(page) => page,
            None => {
                let (_, page) = self.cached.pop_first()?;
                // The hash goes in the same step: a key must never lead to a page with other contents.
                self.forget(page);
                self.evictions += 1;
                page
            }
        };
        let entry = self.page_mut(page);
        entry.references = 1;
        entry.filled = 0;
        Some(page)
    }

    /// Adds an owner. A cached or resting page becomes owned again: reading it is always allowed.
    pub(super) fn share(&mut self, page: PageId) {
        let entry = self.page(page);
        if entry.references == 0 {
            let (released, busy_until) = (entry.released, entry.busy_until);
            self.cached.remove(&released);
            self.resting.remove(&(busy_until, page));
        }
        self.page_mut(page).references += 1;
    }

    /// Takes an owner away. The last one leaves the page free, cached, or resting until no launch can read it.
    pub(super) fn release(&mut self, page: PageId) {
        let (newest, planned, settled) = (self.launches.newest(), self.launches.planned(), self.launches.settled());
        let clock = self.clock;
        let entry = self.page_mut(page);
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        entry.busy_until = entry.busy_until.max(newest);
        entry.released = clock;
        let busy_until = entry.busy_until;
        self.clock += 1;
        // Contents that no launch has been asked to write yet will never be written.
        if self.unpublished.get(&page).is_some_and(|&(_, epoch)| epoch == planned) {
            self.unpublished.remove(&page);
        }
        if busy_until > settled {
            self.resting.insert((busy_until, page));
        } else {
            self.park(page);
        }
    }

    /// Puts a page without owners and without readers where it belongs.
    fn park(&mut self, page: PageId) {
        let entry = self.page(page);
        if entry.key.is_some() {
            self.cached.insert(entry.released, page);
        } else {
            self.free.insert(page);
        }
    }

    /// Removes the page's contents from the prefix index.
    fn forget(&mut self, page: PageId) {
        self.unpublished.remove(&page);
        if let Some(key) = self.page_mut(page).key.take() {
            self.index.remove(&key);
        }
    }

    /// The sole owner writes the page's slots up to `end`; whatever was known of its contents is void.
    pub(super) fn write(&mut self, page: PageId, end: usize) {
        self.forget(page);
        // `end` is at most 256, the largest page.
        self.page_mut(page).filled = end as u16;
    }

    /// The launch being planned copies from this page, so it rests until that launch completes.
    pub(super) fn keep_for_copy(&mut self, page: PageId) {
        let planned = self.launches.planned();
        let entry = self.page_mut(page);
        entry.busy_until = entry.busy_until.max(planned);
    }

    /// Remembers the key of a full page until the launch that writes it completes.
    pub(super) fn stage(&mut self, page: PageId, key: PrefixKey) {
        self.unpublished.insert(page, (key, self.launches.planned()));
    }

    /// Ends a launch; with `publish`, the pages that it has written enter the prefix index.
    pub(super) fn end_launch(&mut self, epoch: Epoch, publish: bool) -> Result<(), PoolError> {
        self.launches.end(epoch)?;
        let written: Vec<(PageId, PrefixKey)> = self
            .unpublished
            .iter()
            .filter(|(_, (_, launch))| *launch == epoch.0)
            .map(|(&page, &(key, _))| (page, key))
            .collect();
        for (page, key) in written {
            self.unpublished.remove(&page);
            if publish && self.index.insert(key, page) {
                self.page_mut(page).key = Some(key);
            }
        }
        let settled = self.launches.settled();
        while let Some(&(busy_until, page)) = self.resting.first() {
            if busy_until > settled {
                break;
            }
            self.resting.pop_first();
            self.park(page);
        }
        Ok(())
    }

    /// Forgets the contents of every page.
    pub(super) fn forget_all(&mut self) {
        self.unpublished.clear();
        self.index = PrefixIndex::default();
        for page in &mut self.pages {
            page.key = None;
        }
        self.free.extend(std::mem::take(&mut self.cached).into_values());
    }
}
