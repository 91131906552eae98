//! The twelve invariants, checked on the whole state.

use std::collections::BTreeMap;
use std::fmt;

use super::sequence::Sequence;
use super::{PageId, PagePool, PrefixKey, SequenceId};

/// A broken invariant: a bug in the pool, never a fault of its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvariantViolation {
    /// Number of the invariant, 1 to 12, as listed in the documentation of [`crate::kv`].
    pub invariant: u8,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for InvariantViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page pool invariant {} is broken: {}", self.invariant, self.detail)
    }
}

impl std::error::Error for InvariantViolation {}

/// Succeeds if `holds`; otherwise names the invariant.
fn require(holds: bool, invariant: u8, detail: impl FnOnce() -> String) -> Result<(), InvariantViolation> {
    if holds {
        Ok(())
    } else {
        Err(InvariantViolation {
            invariant,
            detail: detail(),
        })
    }
}

impl PagePool {
    /// Checks all invariants that a state can show. Linear in pages and tokens, and it rehashes all known tokens:
    /// for tests and debugging.
    ///
    /// Two of the twelve are about steps rather than states. Number 7 (all or nothing) shows here as pages that are
    /// neither in a list nor in a table; the tests also compare the pool with its copy from before each failure.
    /// Number 5 (copy before write) shows as a table that reaches beyond the valid slots of a page.
    ///
    /// # Errors
    /// [`InvariantViolation`] with the first broken invariant.
    pub fn check_invariants(&self) -> Result<(), InvariantViolation> {
        let lists = self.check_lists()?;
        let mut references: BTreeMap<PageId, u64> = BTreeMap::new();
        for (&id, sequence) in &self.sequences {
            self.check_sequence(id, sequence)?;
            self.check_keys(id, sequence)?;
            for &page in &sequence.table {
                *references.entry(page).or_default() += 1;
            }
        }
        for index in 1..self.config.pages {
            let page = PageId::of_pool(index);
            let (entry, held) = (self.allocator.page(page), references.get(&page).copied().unwrap_or(0));
            require(entry.references == held, 2, || {
                format!(
                    "page {page} counts {} references, {held} tables hold it",
                    entry.references
                )
            })?;
            require(lists.contains_key(&page) == (held == 0), 3, || {
                format!(
                    "page {page} is held by {held} tables; in the list {:?}",
                    lists.get(&page)
                )
            })?;
            self.check_contents(page)?;
        }
        require(self.owned_pages() == references.len(), 1, || {
            format!(
                "{} pages are in no list, {} are held by tables",
                self.owned_pages(),
                references.len()
            )
        })?;
        self.check_index()
    }

    /// The free lists are disjoint, leave out page 0, and hold only pages that may be in them (1, 6, 10, 12).
    fn check_lists(&self) -> Result<BTreeMap<PageId, &'static str>, InvariantViolation> {
        let allocator = &self.allocator;
        let settled = allocator.launches.settled();
        let free = allocator.free.iter().map(|&page| (page, "free"));
        let cached = allocator.cached.values().map(|&page| (page, "cached"));
        let resting = allocator.resting.iter().map(|&(_, page)| (page, "resting"));
        let mut lists = BTreeMap::new();
        for (page, list) in free.chain(cached).chain(resting) {
            require(page != PageId::NULL, 10, || {
                format!("the null page is in the list of {list} pages")
            })?;
            require(page.index() < self.config.pages, 1, || {
                format!("page {page} of the {list} list is none of ours")
            })?;
            let before = lists.insert(page, list);
            require(before.is_none(), 6, || {
                format!("page {page} is in the lists {before:?} and {list:?}")
            })?;
            let entry = allocator.page(page);
            require((entry.busy_until > settled) == (list == "resting"), 12, || {
                format!(
                    "page {page} is {list}; launches up to {} may read it, settled {settled}",
                    entry.busy_until
                )
            })?;
            require(
                list == "resting" || entry.key.is_some() == (list == "cached"),
                9,
                || format!("page {page} is {list}, hashed: {}", entry.key.is_some()),
            )?;
        }
        let null = allocator.page(PageId::NULL);
        require(
            null.references == 0 && null.key.is_none() && null.filled == 0,
            10,
            || "the null page is in use".into(),
        )?;
        Ok(lists)
    }

    /// A table has the right length, names pages of the pool once each, and reads only valid slots (5, 6, 8, 10).
    fn check_sequence(&self, id: SequenceId, sequence: &Sequence) -> Result<(), InvariantViolation> {
        let page_size = self.page_size();
        require(id.0 < self.next_sequence, 6, || {
            format!("sequence {id} has not been created yet")
        })?;
        require(sequence.table.len() == sequence.length.div_ceil(page_size), 8, || {
            format!(
                "sequence {id} has {} tokens on {} pages",
                sequence.length,
                sequence.table.len()
            )
        })?;
        require(sequence.length <= self.capacity_tokens(), 8, || {
            format!("sequence {id} is above the capacity")
        })?;
        let mut seen = std::collections::BTreeSet::new();
        for (column, &page) in sequence.table.iter().enumerate() {
            require(page != PageId::NULL, 10, || {
                format!("sequence {id} holds the null page in column {column}")
            })?;
            require(page.index() < self.config.pages, 1, || {
                format!("sequence {id} holds page {page}, none of ours")
            })?;
            require(seen.insert(page), 6, || {
                format!("sequence {id} holds page {page} twice")
            })?;
            let used = page_size.min(sequence.length - column * page_size);
            let filled = usize::from(self.allocator.page(page).filled);
            require(used <= filled, 5, || {
                format!("sequence {id} reads {used} slots of page {page}, of which {filled} are valid")
            })?;
            let is_tail = column + 1 == sequence.table.len();
            require(is_tail || filled == page_size, 4, || {
                format!("sequence {id} holds page {page}, not full, before its last")
            })?;
        }
        Ok(())
    }

    /// The keys of a sequence are those of its tokens, and its hashed pages carry them (11).
    fn check_keys(&self, id: SequenceId, sequence: &Sequence) -> Result<(), InvariantViolation> {
        let page_size = self.page_size();
        let known = sequence.tokens.len();
        require(known <= sequence.length, 11, || {
            format!("sequence {id} knows {known} of {} tokens", sequence.length)
        })?;
        require(sequence.keys.len() == known / page_size, 11, || {
            format!(
                "sequence {id} has {} keys for {known} known tokens",
                sequence.keys.len()
            )
        })?;
        let Some(root) = self.root else {
            return require(known == 0, 11, || {
                format!("sequence {id} records tokens without a prefix cache")
            });
        };
        let mut parent = root;
        for (column, tokens) in sequence.tokens.chunks_exact(page_size).enumerate() {
            let page = sequence.table[column];
            parent = PrefixKey::child(&root, &parent, tokens);
            require(sequence.keys[column] == parent, 11, || {
                format!("sequence {id} has a wrong key {column}")
            })?;
            let published = self.allocator.page(page).key;
            let staged = self.allocator.unpublished.get(&page).map(|&(key, _)| key);
            require(published.or(staged).is_none_or(|key| key == parent), 11, || {
                format!("page {page} of sequence {id} is hashed as something else")
            })?;
        }
        Ok(())
    }

    /// Only full pages are hashed, or about to be (4).
    fn check_contents(&self, page: PageId) -> Result<(), InvariantViolation> {
        let entry = self.allocator.page(page);
        let staged = self.allocator.unpublished.contains_key(&page);
        require(!(entry.key.is_some() && staged), 9, || {
            format!("page {page} is hashed and about to be hashed")
        })?;
        let full = usize::from(entry.filled) == self.page_size();
        require(full || !(entry.key.is_some() || staged), 4, || {
            format!(
                "page {page} is hashed with {} of {} slots filled",
                entry.filled,
                self.page_size()
            )
        })?;
        let waits = self.allocator.resting.contains(&(entry.busy_until, page));
        require(!staged || entry.references > 0 || waits, 9, || {
            format!("page {page} is free and about to be hashed")
        })
    }

    /// The index and the pages' keys are the same relation (9).
    fn check_index(&self) -> Result<(), InvariantViolation> {
        let mut hashed = 0;
        for (index, entry) in self.allocator.pages.iter().enumerate() {
            let Some(key) = entry.key else { continue };
            hashed += 1;
            let found = self.allocator.index.get(&key);
            require(found == Some(PageId::of_pool(index)), 9, || {
                format!("page {index} is hashed, its key leads to {found:?}")
            })?;
        }
        require(self.allocator.index.len() == hashed, 9, || {
            format!("{} keys for {hashed} hashed pages", self.allocator.index.len())
        })
    }
}
