//! A ring of buffers between producers and consumers of one block, guarded by mbarriers.
//!
//! Each stage has a *full* barrier, on which producers announce data, and an *empty* one, on which consumers give the
//! stage back. How many arrivals complete a barrier follows from the types of the participants, which also know how
//! they arrive: a count that disagrees with who arrives (a deadlock, or a race) cannot be written down. Producer and
//! consumer each keep a [`Cursor`]: stage and phase, in registers.
//!
//! Needs sm_90, or sm_80 with [`Copies`] or [`Warps`] as producers.

use core::marker::PhantomData;
use cuda_std::{cp_async, mbarrier, thread};

/// Who arrives at a barrier, and how.
pub trait Participants {
    /// Arrivals that complete a phase.
    const ARRIVALS: u32;

    /// This thread's part of the arrival; all participating threads call it.
    ///
    /// # Safety
    /// - `barrier` is an initialised mbarrier whose arrivals are this type's.
    unsafe fn arrive(barrier: u32);
}

/// One thread that starts copies by TMA or bulk copy: it arrives by [`Ring::expect`], the copies add their bytes.
pub enum OneThread {}
impl Participants for OneThread {
    const ARRIVALS: u32 = 1;

    #[inline(always)]
    unsafe fn arrive(barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { mbarrier::arrive(barrier) }
    }
}

/// `N` warps, of each of which lane 0 arrives once the warp has come together.
pub enum Warps<const N: u32> {}
impl<const N: u32> Participants for Warps<N> {
    const ARRIVALS: u32 = N;

    #[inline(always)]
    unsafe fn arrive(barrier: u32) {
        // SAFETY: forwarded to the caller; whole warps participate.
        unsafe {
            cuda_std::barrier::syncwarp(cuda_std::warp::FULL);
            mbarrier::arrive_if(barrier, thread::lane_id() == 0);
        }
    }
}

/// `N` threads, each of which has started copies by `cp.async`; each arrives when its copies are done.
pub enum Copies<const N: u32> {}
impl<const N: u32> Participants for Copies<N> {
    const ARRIVALS: u32 = N;

    #[inline(always)]
    unsafe fn arrive(barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { cp_async::mbarrier_arrive_noinc(barrier) }
    }
}

/// `C`, being [`Warps`], in each of `BLOCKS` blocks of the cluster, where a stage is filled by multicast: all of them
/// give it back to all. What they tell is that their reads are over, so nothing that they wrote is released.
pub struct InCluster<C, const BLOCKS: u32>(PhantomData<C>);
impl<C: Participants, const BLOCKS: u32> Participants for InCluster<C, BLOCKS> {
    const ARRIVALS: u32 = C::ARRIVALS * BLOCKS;

    #[inline(always)]
    unsafe fn arrive(barrier: u32) {
        let lane = thread::lane_id();
        // SAFETY: forwarded to the caller; whole warps participate, lane `r` of each arrives at block `r`.
        unsafe {
            cuda_std::barrier::syncwarp(cuda_std::warp::FULL);
            mbarrier::arrive_remote_relaxed_if(barrier, lane, lane < BLOCKS);
        }
    }
}

/// A place in the ring: the stage, and how often (modulo 2) the ring has been gone round.
#[derive(Clone, Copy)]
pub struct Cursor<const STAGES: u32> {
    stage: u32,
    phase: u32,
}

impl<const STAGES: u32> Cursor<STAGES> {
    /// The first stage of the first round.
    #[inline(always)]
    pub const fn start() -> Self {
        Self { stage: 0, phase: 0 }
    }

    /// The place after `n` steps from the start.
    #[inline(always)]
    pub const fn nth(n: u32) -> Self {
        Self {
            stage: n % STAGES,
            phase: n / STAGES % 2,
        }
    }

    /// The stage, from 0 to `STAGES - 1`.
    #[inline(always)]
    pub const fn stage(self) -> u32 {
        self.stage
    }

    /// The place before; the one before the start is the last stage of an even round.
    #[inline(always)]
    #[must_use]
    pub const fn previous(self) -> Self {
        if self.stage == 0 {
            Self {
                stage: STAGES - 1,
                phase: self.phase ^ 1,
            }
        } else {
            Self {
                stage: self.stage - 1,
                phase: self.phase,
            }
        }
    }

    /// The place `count` further.
    #[inline(always)]
    #[must_use]
    pub const fn skip(self, count: u32) -> Self {
        let stage = self.stage + count;
        Self {
            stage: stage % STAGES,
            phase: self.phase ^ (stage / STAGES) % 2,
        }
    }

    /// The next place.
    #[inline(always)]
    #[must_use]
    pub const fn next(self) -> Self {
        let stage = self.stage + 1;
        if stage == STAGES {
            Self {
                stage: 0,
                phase: self.phase ^ 1,
            }
        } else {
            Self {
                stage,
                phase: self.phase,
            }
        }
    }
}

/// The barriers of a ring of `STAGES` stages between producers `P` and consumers `C`.
pub struct Ring<const STAGES: u32, P, C> {
    barriers: u32,
    participants: PhantomData<(P, C)>,
}

impl<const STAGES: u32, P, C> Clone for Ring<STAGES, P, C> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<const STAGES: u32, P, C> Copy for Ring<STAGES, P, C> {}

/// Bytes of the barriers of a ring of `stages` stages, aligned to 8.
pub const fn ring_bytes(stages: u32) -> u32 {
    2 * stages * mbarrier::BYTES
}

impl<const STAGES: u32, P: Participants, C: Participants> Ring<STAGES, P, C> {
    /// The ring whose barriers are the [`ring_bytes`] at shared address `barriers`.
    #[inline(always)]
    pub const fn new(barriers: u32) -> Self {
        const { assert!(STAGES > 0) };
        Self {
            barriers,
            participants: PhantomData,
        }
    }

    /// Initialises the barriers. One thread calls this, then [`mbarrier::fence_init`] (sm_90), before the block (or the
    /// cluster) meets at a barrier.
    ///
    /// # Safety
    /// - The ring's bytes of shared memory are aligned to 8 and belong to it.
    #[inline(always)]
    pub unsafe fn init(self) {
        let mut stage = 0;
        while stage < STAGES {
            // SAFETY: forwarded to the caller.
            unsafe {
                mbarrier::init(self.full_of(stage), P::ARRIVALS);
                mbarrier::init(self.empty_of(stage), C::ARRIVALS);
            }
            stage += 1;
        }
    }

    #[inline(always)]
    const fn full_of(self, stage: u32) -> u32 {
        self.barriers + stage * mbarrier::BYTES
    }

    #[inline(always)]
    const fn empty_of(self, stage: u32) -> u32 {
        self.barriers + (STAGES + stage) * mbarrier::BYTES
    }

    /// The barrier that copies into this stage complete on.
    #[inline(always)]
    pub const fn full(self, at: Cursor<STAGES>) -> u32 {
        self.full_of(at.stage)
    }

    /// The barrier that frees this stage.
    #[inline(always)]
    pub const fn empty(self, at: Cursor<STAGES>) -> u32 {
        self.empty_of(at.stage)
    }

    /// Producer: waits until the stage may be written. The first round does not wait.
    ///
    /// # Safety
    /// - The ring is initialised; `at` is the producer's cursor.
    #[inline(always)]
    pub unsafe fn wait_empty(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded to the caller.
        unsafe { wait(self.empty(at), at.phase ^ 1) }
    }

    /// Producer: this thread's arrival after it has written (or started to copy) the stage.
    ///
    /// # Safety
    /// - All producers call this once a stage, after [`wait_empty`](Self::wait_empty).
    #[inline(always)]
    pub unsafe fn publish(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded to the caller.
        unsafe { P::arrive(self.full(at)) }
    }

    /// Consumer: waits until the stage is full.
    ///
    /// # Safety
    /// - The ring is initialised; `at` is the consumer's cursor.
    #[inline(always)]
    pub unsafe fn wait_full(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded to the caller.
        unsafe { wait(self.full(at), at.phase) }
    }

    /// Consumer: gives the stage back.
    ///
    /// # Safety
    /// - All consumers call this once a stage, after their last read of it has completed.
    #[inline(always)]
    pub unsafe fn release(self, at: Cursor<STAGES>) {
        // SAFETY: forwarded to the caller.
        unsafe { C::arrive(self.empty(at)) }
    }
}

impl<const STAGES: u32, C: Participants> Ring<STAGES, OneThread, C> {
    /// Producer: announces `bytes` bytes that copies will write; goes before the copies.
    ///
    /// # Safety
    /// - One thread calls this once a stage, after [`wait_empty`](Self::wait_empty); copies completing on
    ///   [`full`](Self::full) write exactly `bytes`.
    #[inline(always)]
    pub unsafe fn expect(self, at: Cursor<STAGES>, bytes: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { mbarrier::arrive_expect_tx(self.full(at), bytes) }
    }
}

/// Waits for a phase in the way the tier has.
///
/// # Safety
/// - As for [`mbarrier::wait_parity`].
#[inline(always)]
unsafe fn wait(barrier: u32, parity: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        if cfg!(tier = "sm_90a") {
            mbarrier::wait_parity(barrier, parity);
        } else {
            mbarrier::spin_parity(barrier, parity);
        }
    }
}
