//! Which launches are in flight, and so which freed pages must rest.

use std::collections::BTreeSet;

use super::{Epoch, PoolError};

/// The launches of a pool. Epoch numbers count up from 1; 0 stands for "before every launch".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launches {
    next: u64,
    in_flight: BTreeSet<u64>,
}

impl Launches {
    pub(super) fn new() -> Launches {
        Launches {
            next: 1,
            in_flight: BTreeSet::new(),
        }
    }

    /// The number of the launch that is being planned now.
    pub(super) fn planned(&self) -> u64 {
        self.next
    }

    /// The newest launch in flight, 0 if there is none.
    pub(super) fn newest(&self) -> u64 {
        self.in_flight.last().copied().unwrap_or(0)
    }

    /// The last launch such that it and all before it have completed.
    pub(super) fn settled(&self) -> u64 {
        self.in_flight.first().copied().unwrap_or(self.next) - 1
    }

    pub(super) fn count(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn begin(&mut self) -> Epoch {
        let epoch = self.next;
        self.in_flight.insert(epoch);
        self.next += 1;
        Epoch(epoch)
    }

    pub(super) fn end(&mut self, epoch: Epoch) -> Result<(), PoolError> {
        if self.in_flight.remove(&epoch.0) {
            Ok(())
        } else {
            Err(PoolError::UnknownEpoch { epoch })
        }
    }
}
