//! Asynchronous copies from global to shared memory by each thread (PTX ISA 9.7.9.25.3, sm_80).
//!
//! A copy takes `bytes` (at most its size) from global memory and fills the rest with zeros, so that the edge of a
//! tile needs no branch.

use core::arch::asm;

/// Functions that are one `cp.async` each.
macro_rules! copies {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal, $size:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// - `destination` (shared) and `source` (global) are aligned to the size of the copy.
        /// - `bytes` is at most that size, and as many bytes are readable at `source`.
        /// - Nobody reads or writes `destination` before the copy's group is waited for.
        #[inline(always)]
        pub unsafe fn $name(destination: u32, source: *const u8, bytes: u32) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!($instruction, " [{0}], [{1}], ", $size, ", {2};"), in(reg32) destination, in(reg64) source,
                    in(reg32) bytes, options(nostack));
            }
        }
    )*};
}

copies! {
    /// `cp.async.ca.shared.global …, 4, bytes`: through L1.
    copy_4 = "cp.async.ca.shared.global", 4;
    /// `cp.async.ca.shared.global …, 8, bytes`: through L1.
    copy_8 = "cp.async.ca.shared.global", 8;
    /// `cp.async.ca.shared.global …, 16, bytes`: through L1.
    copy_16_ca = "cp.async.ca.shared.global", 16;
    /// `cp.async.cg.shared.global …, 16, bytes`: past L1.
    copy_16 = "cp.async.cg.shared.global", 16;
    /// `cp.async.cg.shared.global.L2::128B …, 16, bytes`: past L1; asks L2 to fetch the 128-byte line around.
    copy_16_l2_128b = "cp.async.cg.shared.global.L2::128B", 16;
}

/// `cp.async.cg.shared.global.L2::128B …, 16`: [`copy_16_l2_128b`] of a whole vector.
///
/// # Safety
/// - `destination` (shared) and `source` (global) are aligned to 16, and 16 bytes are readable at `source`.
/// - Nobody reads or writes `destination` before the copy's group is waited for.
#[inline(always)]
pub unsafe fn copy_whole_16_l2_128b(destination: u32, source: *const u8) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("cp.async.cg.shared.global.L2::128B [{0}], [{1}], 16;", in(reg32) destination, in(reg64) source,
            options(nostack));
    }
}

/// `cp.async.commit_group`: closes the group of this thread's copies since the last.
///
/// # Safety
/// - None of its own.
#[inline(always)]
pub unsafe fn commit_group() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) }
}

/// `cp.async.wait_group N`: waits until at most the newest `N` groups of this thread are under way.
///
/// # Safety
/// - A barrier follows before *other* threads read what was copied.
#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.wait_group {0};", const N, options(nostack)) }
}

/// `cp.async.wait_all`: waits for all copies of this thread.
///
/// # Safety
/// - As for [`wait_group`].
#[inline(always)]
pub unsafe fn wait_all() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.wait_all;", options(nostack)) }
}

/// `cp.async.mbarrier.arrive.noinc.shared.b64`: arrives at `barrier` once this thread's earlier copies are done,
/// counted among the arrivals that the barrier was initialised with.
///
/// # Safety
/// - `barrier` is the shared address of an initialised mbarrier.
#[inline(always)]
pub unsafe fn mbarrier_arrive_noinc(barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.mbarrier.arrive.noinc.shared.b64 [{0}];", in(reg32) barrier, options(nostack)) }
}

/// `cp.async.mbarrier.arrive.shared.b64`: arrives at `barrier` once this thread's earlier copies are done; the phase waits for
/// this arrival beside those that the barrier was initialised with.
///
/// # Safety
/// - `barrier` is the shared address of an initialised mbarrier whose phase still lacks an arrival.
#[inline(always)]
pub unsafe fn mbarrier_arrive(barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.mbarrier.arrive.shared.b64 [{0}];", in(reg32) barrier, options(nostack)) }
}
