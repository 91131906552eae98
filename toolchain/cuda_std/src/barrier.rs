//! Barriers of a block, of named groups of warps, of a warp and of a cluster, and the proxy fence
//! (PTX ISA 9.7.13.1–9.7.13.5).
//!
//! The barriers order memory among the threads they join: what was written before is visible after.

use core::arch::asm;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn sync_all(barrier: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn sync_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn arrive_count(barrier: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.popc.aligned.all"]
    fn red_popc(barrier: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.red.and.aligned.all"]
    fn red_and(barrier: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn red_or(barrier: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.aligned"]
    fn cluster_arrive_aligned();
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.relaxed.aligned"]
    fn cluster_arrive_relaxed_aligned();
    #[link_name = "llvm.nvvm.barrier.cluster.wait.aligned"]
    fn cluster_wait_aligned();
}

/// `barrier.sync.aligned 0`: joins all threads of the block.
///
/// # Safety
/// - Every thread of the block executes this same call; none has returned before.
#[inline(always)]
pub unsafe fn syncthreads() {
    // SAFETY: forwarded to the caller.
    unsafe { sync_all(0) }
}

/// `barrier.red.popc.aligned.u32 0`: joins all threads of the block and counts those with a true predicate.
///
/// # Safety
/// - As for [`syncthreads`].
#[inline(always)]
pub unsafe fn syncthreads_count(predicate: bool) -> u32 {
    // SAFETY: forwarded to the caller.
    unsafe { red_popc(0, predicate) }
}

/// `barrier.red.and.aligned.pred 0`: joins all threads of the block; whether every predicate is true.
///
/// # Safety
/// - As for [`syncthreads`].
#[inline(always)]
pub unsafe fn syncthreads_and(predicate: bool) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { red_and(0, predicate) }
}

/// `barrier.red.or.aligned.pred 0`: joins all threads of the block; whether any predicate is true.
///
/// # Safety
/// - As for [`syncthreads`].
#[inline(always)]
pub unsafe fn syncthreads_or(predicate: bool) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { red_or(0, predicate) }
}

/// `barrier.sync.aligned id, threads`: joins `threads` threads at named barrier `id`.
///
/// # Safety
/// - `id` is from 0 to 15, 0 being [`syncthreads`]'s; `threads` is a multiple of 32.
/// - Exactly `threads` threads, whole warps, come to this barrier, by [`sync`] or by [`arrive`].
#[inline(always)]
pub unsafe fn sync(id: u32, threads: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { sync_count(id, threads) }
}

/// `barrier.arrive.aligned id, threads`: comes to named barrier `id` without waiting for the others.
///
/// # Safety
/// - As for [`sync`]; `threads` counts those who wait too.
#[inline(always)]
pub unsafe fn arrive(id: u32, threads: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { arrive_count(id, threads) }
}

/// `bar.warp.sync mask`: joins the lanes of `mask`.
///
/// # Safety
/// - The calling lane is in `mask`, and every lane of `mask` executes this with the same mask.
#[inline(always)]
pub unsafe fn syncwarp(mask: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { bar_warp_sync(mask) }
}

/// `barrier.cluster.arrive.release.aligned`: comes to the cluster's barrier; earlier writes are released (sm_90).
///
/// # Safety
/// - All threads of all blocks of the cluster execute this together, each once per [`cluster_wait`].
#[inline(always)]
pub unsafe fn cluster_arrive() {
    // SAFETY: forwarded to the caller.
    unsafe { cluster_arrive_aligned() }
}

/// `barrier.cluster.arrive.relaxed.aligned`: as [`cluster_arrive`], but orders no memory (sm_90).
///
/// # Safety
/// - As for [`cluster_arrive`]; a fence orders what must be ordered.
#[inline(always)]
pub unsafe fn cluster_arrive_relaxed() {
    // SAFETY: forwarded to the caller.
    unsafe { cluster_arrive_relaxed_aligned() }
}

/// `barrier.cluster.wait.acquire.aligned`: waits until all threads of the cluster have arrived (sm_90).
///
/// # Safety
/// - All threads of the cluster have called or will call [`cluster_arrive`] once for this wait.
#[inline(always)]
pub unsafe fn cluster_wait() {
    // SAFETY: forwarded to the caller.
    unsafe { cluster_wait_aligned() }
}

/// [`cluster_arrive`] and [`cluster_wait`]: joins all threads of the cluster (sm_90).
///
/// # Safety
/// - Those of both.
#[inline(always)]
pub unsafe fn cluster_sync() {
    // SAFETY: forwarded to the caller.
    unsafe {
        cluster_arrive();
        cluster_wait();
    }
}

/// `fence.proxy.async`: orders this thread's ordinary accesses with those of the asynchronous proxy
/// (bulk copies, TMA, wgmma reading shared memory; sm_90, PTX ISA 9.7.13.4).
///
/// # Safety
/// - A barrier follows where the asynchronous access is started by another thread.
#[inline(always)]
pub unsafe fn fence_proxy_async() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("fence.proxy.async;", options(nostack)) }
}

/// `fence.proxy.async.shared::cta`: [`fence_proxy_async`] for this block's shared memory only (sm_90).
///
/// # Safety
/// - As for [`fence_proxy_async`].
#[inline(always)]
pub unsafe fn fence_proxy_async_shared() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}

/// `fence.proxy.async.global`: [`fence_proxy_async`] for global memory only (sm_90).
///
/// # Safety
/// - As for [`fence_proxy_async`].
#[inline(always)]
pub unsafe fn fence_proxy_async_global() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("fence.proxy.async.global;", options(nostack)) }
}
