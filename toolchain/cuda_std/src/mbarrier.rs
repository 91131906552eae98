//! Barriers in shared memory that count arrivals and bytes (PTX ISA 9.7.13.15, sm_80; byte counts sm_90).
//!
//! A barrier is 8 bytes of shared memory, aligned to 8, given by its shared address. Its phase completes when all
//! expected arrivals have come and all expected bytes have been written; a waiter names the phase by its parity.

use core::arch::asm;

/// Bytes of a barrier in shared memory.
pub const BYTES: u32 = 8;

/// `mbarrier.init.shared.b64`: a barrier whose phases take `arrivals` arrivals each.
///
/// # Safety
/// - `barrier` is aligned to 8; nobody else touches its 8 bytes meanwhile.
/// - [`fence_init`] or a block barrier follows before others use it.
#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("mbarrier.init.shared.b64 [{0}], {1};", in(reg32) barrier, in(reg32) arrivals, options(nostack)) }
}

/// `mbarrier.inval.shared.b64`: ends a barrier, so that its memory may be used otherwise.
///
/// # Safety
/// - `barrier` is initialised and nobody uses it any more.
#[inline(always)]
pub unsafe fn inval(barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("mbarrier.inval.shared.b64 [{0}];", in(reg32) barrier, options(nostack)) }
}

/// `fence.mbarrier_init.release.cluster`: makes initialisations visible to the cluster and to asynchronous copies (sm_90).
///
/// # Safety
/// - None of its own.
#[inline(always)]
pub unsafe fn fence_init() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
}

/// `mbarrier.arrive.shared.b64`: one arrival; releases this thread's earlier writes.
///
/// # Safety
/// - `barrier` is initialised, and its phase still lacks an arrival.
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("mbarrier.arrive.shared.b64 _, [{0}];", in(reg32) barrier, options(nostack)) }
}

/// [`arrive`] in the threads where `condition` holds. The branch is in the instruction, so the code after it is not
/// duplicated for those threads.
///
/// # Safety
/// - As for [`arrive`].
#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, condition: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", "setp.ne.b32 p, {1}, 0;", "@p mbarrier.arrive.shared.b64 _, [{0}];", "}}",
            in(reg32) barrier, in(reg32) condition as u32, options(nostack));
    }
}

/// `mbarrier.arrive.expect_tx.shared::cta.b64`: one arrival, and the phase waits for `bytes` more bytes (sm_90).
///
/// # Safety
/// - As for [`arrive`]; copies that complete on this barrier write exactly `bytes` bytes.
#[inline(always)]
pub unsafe fn arrive_expect_tx(barrier: u32, bytes: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1};", in(reg32) barrier, in(reg32) bytes,
            options(nostack));
    }
}

/// [`arrive_expect_tx`] in the threads where `condition` holds (sm_90).
///
/// # Safety
/// - As for [`arrive_expect_tx`].
#[inline(always)]
pub unsafe fn arrive_expect_tx_if(barrier: u32, bytes: u32, condition: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", "setp.ne.b32 p, {2}, 0;",
            "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1};", "}}",
            in(reg32) barrier, in(reg32) bytes, in(reg32) condition as u32, options(nostack));
    }
}

/// `mbarrier.expect_tx.relaxed.cta.shared::cta.b64`: the phase waits for `bytes` more bytes; no arrival (sm_90).
///
/// # Safety
/// - `barrier` is initialised; copies that complete on it write exactly `bytes` bytes.
#[inline(always)]
pub unsafe fn expect_tx(barrier: u32, bytes: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [{0}], {1};", in(reg32) barrier, in(reg32) bytes,
            options(nostack));
    }
}

/// `mbarrier.arrive.release.cluster.shared::cluster.b64`: one arrival at a barrier of another block of the cluster,
/// whose address [`mapa`](crate::shared::mapa) made (sm_90).
///
/// # Safety
/// - As for [`arrive`]; the other block is still running.
#[inline(always)]
pub unsafe fn arrive_cluster(barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [{0}];", in(reg32) barrier, options(nostack));
    }
}

/// [`arrive_cluster`] at the barrier that lies at this block's address `barrier` in block `rank`, in the threads where
/// `condition` holds (sm_90).
///
/// # Safety
/// - As for [`arrive_cluster`].
#[inline(always)]
pub unsafe fn arrive_remote_if(barrier: u32, rank: u32, condition: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", ".reg .b32 remote;", "setp.ne.b32 p, {2}, 0;",
            "@p mapa.shared::cluster.u32 remote, {0}, {1};",
            "@p mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];", "}}",
            in(reg32) barrier, in(reg32) rank, in(reg32) condition as u32, options(nostack));
    }
}

/// `mbarrier.arrive.release.cta.shared::cluster.b64`: [`arrive_remote_if`] that orders this block's memory alone. It
/// tells the other block that something here is over, such as the reading of a stage, and not what was written: an
/// arrival that does is preceded by a fence of the whole GPU's memory.
///
/// # Safety
/// - As for [`arrive_remote_if`]; who waits for it reads nothing that this thread wrote.
#[inline(always)]
pub unsafe fn arrive_remote_relaxed_if(barrier: u32, rank: u32, condition: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", ".reg .b32 remote;", "setp.ne.b32 p, {2}, 0;",
            "@p mapa.shared::cluster.u32 remote, {0}, {1};",
            "@p mbarrier.arrive.release.cta.shared::cluster.b64 _, [remote];", "}}",
            in(reg32) barrier, in(reg32) rank, in(reg32) condition as u32, options(nostack));
    }
}

/// `mbarrier.test_wait.parity.shared.b64`: whether the phase of that parity has completed; does not wait.
///
/// # Safety
/// - `barrier` is initialised; `parity` is 0 or 1.
#[inline(always)]
pub unsafe fn test_wait_parity(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", "mbarrier.test_wait.parity.shared.b64 p, [{1}], {2};",
            "selp.u32 {0}, 1, 0, p;", "}}", out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack));
    }
    done != 0
}

/// `mbarrier.try_wait.parity.shared::cta.b64`: whether the phase of that parity has completed, after waiting up to a
/// time the hardware chooses (sm_90). Acquires what the arrivals released.
///
/// # Safety
/// - `barrier` is initialised; `parity` is 0 or 1.
#[inline(always)]
pub unsafe fn try_wait_parity(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", "mbarrier.try_wait.parity.shared::cta.b64 p, [{1}], {2};",
            "selp.u32 {0}, 1, 0, p;", "}}", out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack));
    }
    done != 0
}

/// `mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64`: [`try_wait_parity`] that also acquires what other blocks
/// of the cluster released (sm_90).
///
/// # Safety
/// - As for [`try_wait_parity`].
#[inline(always)]
pub unsafe fn try_wait_parity_cluster(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("{{", ".reg .pred p;", "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [{1}], {2};",
            "selp.u32 {0}, 1, 0, p;", "}}", out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack));
    }
    done != 0
}

/// Waits until the phase of that parity has completed, by [`try_wait_parity`] (sm_90).
///
/// # Safety
/// - As for [`try_wait_parity`]; the phase does complete.
#[inline(always)]
pub unsafe fn wait_parity(barrier: u32, parity: u32) {
    // SAFETY: forwarded to the caller.
    while !unsafe { try_wait_parity(barrier, parity) } {}
}

/// Waits until the phase of that parity has completed, by [`try_wait_parity_cluster`] (sm_90).
///
/// # Safety
/// - As for [`try_wait_parity`]; the phase does complete.
#[inline(always)]
pub unsafe fn wait_parity_cluster(barrier: u32, parity: u32) {
    // SAFETY: forwarded to the caller.
    while !unsafe { try_wait_parity_cluster(barrier, parity) } {}
}

/// Waits until the phase of that parity has completed, by [`test_wait_parity`]: for sm_80.
///
/// # Safety
/// - As for [`test_wait_parity`]; the phase does complete.
#[inline(always)]
pub unsafe fn spin_parity(barrier: u32, parity: u32) {
    // SAFETY: forwarded to the caller.
    while !unsafe { test_wait_parity(barrier, parity) } {}
}
