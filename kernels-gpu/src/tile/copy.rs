//! Groups of asynchronous copies, on tiers that have none too: there a copy has happened when it returns.

#[cfg(not(tier = "sm_75"))]
use cuda_std::cp_async;

/// Closes the group of this thread's copies since the last.
///
/// # Safety
/// - None; an action of the thread alone.
#[inline(always)]
pub unsafe fn commit() {
    #[cfg(not(tier = "sm_75"))]
    // SAFETY: nothing to promise.
    unsafe {
        cp_async::commit_group()
    };
}

/// Waits until at most the newest `N` groups of this thread are under way.
///
/// # Safety
/// - A barrier follows before other threads read what was copied.
#[inline(always)]
pub unsafe fn wait<const N: u32>() {
    #[cfg(not(tier = "sm_75"))]
    // SAFETY: forwarded to the caller.
    unsafe {
        cp_async::wait_group::<N>()
    };
}
