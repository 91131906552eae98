//! The names of things: pages, slots, sequences, launches.
//!
//! Each is its own type so that a logical page index, a physical page and a slot cannot be mixed up.

use std::fmt;

use bytemuck::NoUninit;

/// A physical page of the cache, `0 ..= i32::MAX`; 0 is the null page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u32);

impl PageId {
    /// The reserved page that no sequence owns; table padding points to it.
    pub const NULL: PageId = PageId(0);

    /// The page with this index, or `None` above `i32::MAX`, which a block table cannot hold.
    pub const fn new(index: u32) -> Option<PageId> {
        if index <= i32::MAX as u32 {
            Some(PageId(index))
        } else {
            None
        }
    }

    /// The page's index in the cache.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The page as a block table entry.
    pub const fn as_i32(self) -> i32 {
        self.0 as i32
    }

    /// A page of a pool whose size has been checked against `i32::MAX`.
    pub(super) const fn of_pool(index: usize) -> PageId {
        PageId(index as u32)
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One token's place in the cache: `page * page_size + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit)]
#[repr(transparent)]
pub struct SlotId(i64);

impl SlotId {
    /// The slot `offset` of `page` in a cache of `page_size` slots per page.
    ///
    /// `offset` is expected to be below `page_size`.
    pub const fn new(page: PageId, offset: usize, page_size: usize) -> SlotId {
        SlotId(page.0 as i64 * page_size as i64 + offset as i64)
    }

    /// The slot as a slot-mapping entry.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The slot as an index into a cache seen as `[pages * page_size, ...]`.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sequence of one pool. Names are never used again, so a stale one is always recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(super) u64);

impl SequenceId {
    /// The number behind the name, for logs and requests that travel between processes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sequence with this number; a pool that never made it answers `UnknownSequence`.
    pub const fn new(number: u64) -> SequenceId {
        SequenceId(number)
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One launch, or one step of launches, that reads and writes the cache. Epochs count up from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub(super) u64);

impl Epoch {
    /// The number of the epoch.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
