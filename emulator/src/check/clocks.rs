//! The happens-before order of the warps of a cluster.
//!
//! Every warp has a vector clock: for each warp, how much of its past is ordered before now. Lanes of one warp are
//! taken to be ordered by the program. A second vector does the same for what is visible to the *asynchronous proxy*:
//! it only takes over from the first at a `fence.proxy.async`, and is handed on along the same synchronisation.
//! Asynchronous operations are further actors, behind the warps: each takes the next of a ring of slots, whose clock ticks. Who
//! waited for one operation of a slot has, for these checks, waited for the slot's earlier ones.

use std::collections::HashMap;

/// Actors for asynchronous operations.
const SLOTS: usize = 64;

/// An asynchronous operation as an actor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operation {
    /// What is ordered before it, and itself.
    pub(crate) clocks: Clocks,
    pub(crate) actor: u16,
    pub(crate) clock: u32,
}

impl Operation {
    /// A further warp issues the operation together with those before: only what all of them have seen is ordered before it.
    pub(crate) fn meet(&mut self, other: &Clocks) {
        fn meet(to: &mut [u32], from: &[u32], own: usize) {
            for (i, (a, b)) in to.iter_mut().zip(from).enumerate() {
                if i != own {
                    *a = (*a).min(*b);
                }
            }
        }
        meet(&mut self.clocks.seen, &other.seen, usize::from(self.actor));
        meet(&mut self.clocks.proxy, &other.proxy, usize::from(self.actor));
        self.clocks.clusters.retain(|c| other.clusters.binary_search(c).is_ok());
    }
}

/// What is ordered before a moment: by generic accesses, and as the asynchronous proxy sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Clocks {
    pub(crate) seen: Vec<u32>,
    pub(crate) proxy: Vec<u32>,
    /// Clusters whose past, up to some release, is ordered before.
    pub(crate) clusters: Vec<u32>,
}

fn join(to: &mut Vec<u32>, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    to.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
}

impl Clocks {
    pub(crate) fn join(&mut self, other: &Clocks) {
        join(&mut self.seen, &other.seen);
        join(&mut self.proxy, &other.proxy);
        self.join_clusters(&other.clusters);
    }

    /// Takes over clusters of another sorted list.
    pub(crate) fn join_clusters(&mut self, other: &[u32]) {
        for &cluster in other {
            if let Err(at) = self.clusters.binary_search(&cluster) {
                self.clusters.insert(at, cluster);
            }
        }
    }

    /// Whether an access of a warp of this cluster at its clock is ordered before.
    pub(crate) fn ordered(&self, warp: u16, clock: u32) -> bool {
        self.seen.get(usize::from(warp)).is_some_and(|c| *c >= clock)
    }

    /// Whether it is visible to asynchronous operations issued now.
    pub(crate) fn visible(&self, warp: u16, clock: u32) -> bool {
        self.proxy.get(usize::from(warp)).is_some_and(|c| *c >= clock)
    }
}

/// The clocks of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// One for each warp.
    warps: Vec<Clocks>,
    /// What the releases on a synchronisation object (a word of shared memory) have published.
    objects: HashMap<u64, Clocks>,
    /// Asynchronous operations so far.
    operations: u32,
}

impl Order {
    pub(crate) fn new(warps: usize) -> Order {
        let fresh = |w: usize| {
            let mut seen = vec![0; warps + SLOTS];
            seen[w] = 1;
            Clocks {
                seen,
                proxy: vec![0; warps + SLOTS],
                clusters: Vec::new(),
            }
        };
        Order {
            warps: (0..warps).map(fresh).collect(),
            objects: HashMap::new(),
            operations: 0,
        }
    }

    /// Whether clocks are kept at all.
    pub(crate) fn enabled(&self) -> bool {
        !self.warps.is_empty()
    }

    pub(crate) fn of(&self, warp: usize) -> &Clocks {
        &self.warps[warp]
    }

    pub(crate) fn of_mut(&mut self, warp: usize) -> &mut Clocks {
        &mut self.warps[warp]
    }

    /// The warp's own clock.
    pub(crate) fn now(&self, warp: usize) -> u32 {
        self.warps[warp].seen[warp]
    }

    /// Publishes a warp's past; what it does from now on is not part of it.
    pub(crate) fn publish(&mut self, warp: usize) -> Clocks {
        let clocks = self.warps[warp].clone();
        self.warps[warp].seen[warp] += 1;
        clocks
    }

    /// What is published becomes ordered before the warp's future.
    pub(crate) fn take(&mut self, warp: usize, clocks: &Clocks) {
        self.warps[warp].join(clocks);
    }

    /// A release on an object, such as an arrive on an `mbarrier`.
    pub(crate) fn release(&mut self, warp: usize, object: u64) {
        let clocks = self.publish(warp);
        self.objects.entry(object).or_default().join(&clocks);
    }

    /// A release by somebody else, such as the completion of a copy.
    pub(crate) fn release_clocks(&mut self, clocks: &Clocks, object: u64) {
        self.objects.entry(object).or_default().join(clocks);
    }

    /// An acquire on an object, such as a successful wait on an `mbarrier`.
    pub(crate) fn acquire(&mut self, warp: usize, object: u64) {
        if let Some(clocks) = self.objects.get(&object) {
            self.warps[warp].join(clocks);
        }
    }

    /// `fence.proxy.async`: all that is ordered before becomes visible to the asynchronous proxy.
    pub(crate) fn fence_proxy(&mut self, warp: usize) {
        let clocks = &mut self.warps[warp];
        clocks.proxy.clone_from(&clocks.seen);
    }

    /// Begins an asynchronous operation issued by a warp: what is ordered before it, and a clock of its own. What the warp does
    /// from now on is not ordered before the operation.
    pub(crate) fn operation(&mut self, issuer: usize) -> Operation {
        self.operations += 1;
        let mut clocks = self.publish(issuer);
        let slot = self.operations as usize % SLOTS;
        let clock = self.operations / SLOTS as u32 + 1;
        let actor = self.warps.len() + slot;
        clocks.seen[actor] = clock;
        clocks.proxy[actor] = clock;
        Operation {
            clocks,
            actor: actor as u16,
            clock,
        }
    }

    /// The first actor index of asynchronous operations.
    pub(crate) fn first_operation(&self) -> u16 {
        self.warps.len() as u16
    }
}
