//! Bulk copies of contiguous bytes by the asynchronous proxy (PTX ISA 9.7.9.25.4, sm_90), their groups, and the L2
//! cache policies that copies take (PTX ISA 9.7.9.17).
//!
//! One thread starts a copy. A copy *into* shared memory completes bytes on an mbarrier; a copy *out of* it belongs to
//! the bulk group that its thread commits. Addresses are aligned to 16, sizes multiples of 16. Data that threads wrote
//! to shared memory goes out only after [`fence_proxy_async_shared`](crate::barrier::fence_proxy_async_shared) in each
//! of those threads and a barrier.

use core::arch::asm;

/// `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`: global to shared memory.
///
/// # Safety
/// - `bytes` is a multiple of 16; both addresses are aligned to 16 and valid for `bytes`.
/// - `barrier` is an initialised mbarrier that expects the bytes; nobody touches `destination` before its phase ends.
#[inline(always)]
pub unsafe fn load(destination: u32, source: *const u8, bytes: u32, barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}], {2}, [{3}];",
            in(reg32) destination, in(reg64) source, in(reg32) bytes, in(reg32) barrier, options(nostack));
    }
}

/// [`load`] with an L2 cache policy, `.L2::cache_hint`.
///
/// # Safety
/// - As for [`load`].
#[inline(always)]
pub unsafe fn load_cache_hint(destination: u32, source: *const u8, bytes: u32, barrier: u32, policy: CachePolicy) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{0}], [{1}], {2}, [{3}], {4};",
            in(reg32) destination, in(reg64) source, in(reg32) bytes, in(reg32) barrier, in(reg64) policy.0,
            options(nostack));
    }
}

/// [`load`] into the same place of every block of the cluster whose bit is set in `blocks`, each completing on its own
/// barrier at the same place, `.multicast::cluster`.
///
/// # Safety
/// - As for [`load`], in each of the blocks, and they are running.
#[inline(always)]
pub unsafe fn load_multicast(destination: u32, source: *const u8, bytes: u32, barrier: u32, blocks: u16) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [{0}], [{1}], {2}, [{3}], {4};",
            in(reg32) destination, in(reg64) source, in(reg32) bytes, in(reg32) barrier, in(reg16) blocks,
            options(nostack));
    }
}

/// `cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes`: this block's shared memory to that of a
/// block of the cluster, completing on a barrier there; both addresses by [`mapa`](crate::shared::mapa).
///
/// # Safety
/// - As for [`load`], and the other block is running.
#[inline(always)]
pub unsafe fn send(destination: u32, source: u32, bytes: u32, barrier: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [{0}], [{1}], {2}, [{3}];",
            in(reg32) destination, in(reg32) source, in(reg32) bytes, in(reg32) barrier, options(nostack));
    }
}

/// Functions that copy out of shared memory by one instruction.
macro_rules! stores {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// - `bytes` is a multiple of 16; both addresses are aligned to 16 and valid for `bytes`.
        /// - `source` is not written before [`wait_group_read`] covers the copy.
        #[inline(always)]
        pub unsafe fn $name(destination: *mut u8, source: u32, bytes: u32) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!($instruction, " [{0}], [{1}], {2};"), in(reg64) destination, in(reg32) source,
                    in(reg32) bytes, options(nostack));
            }
        }
    )*};
}

stores! {
    /// `cp.async.bulk.global.shared::cta.bulk_group`: shared to global memory.
    store = "cp.async.bulk.global.shared::cta.bulk_group";
    /// `cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32`: adds shared to global memory, as f32.
    reduce_add_f32 = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32";
    /// `cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16`: adds shared to global memory, as f16.
    reduce_add_f16 = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16";
    /// `cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16`: adds shared to global memory, as bf16.
    reduce_add_bf16 = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16";
}

/// `cp.async.bulk.prefetch.L2.global`: brings global memory into L2.
///
/// # Safety
/// - `bytes` is a multiple of 16; `source` is aligned to 16 and readable for `bytes`.
#[inline(always)]
pub unsafe fn prefetch_l2(source: *const u8, bytes: u32) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.bulk.prefetch.L2.global [{0}], {1};", in(reg64) source, in(reg32) bytes, options(nostack)) }
}

/// `cp.async.bulk.commit_group`: closes the group of this thread's copies out of shared memory since the last.
///
/// # Safety
/// - None of its own.
#[inline(always)]
pub unsafe fn commit_group() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.bulk.commit_group;", options(nostack)) }
}

/// `cp.async.bulk.wait_group N`: waits until at most the newest `N` groups of this thread are under way; the others'
/// writes are done and visible to this thread.
///
/// # Safety
/// - None of its own.
#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.bulk.wait_group {0};", const N, options(nostack)) }
}

/// `cp.async.bulk.wait_group.read N`: waits until all but the newest `N` groups of this thread have read their sources,
/// which may then be written again.
///
/// # Safety
/// - None of its own.
#[inline(always)]
pub unsafe fn wait_group_read<const N: u32>() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("cp.async.bulk.wait_group.read {0};", const N, options(nostack)) }
}

/// How long L2 keeps what a copy touches.
#[derive(Clone, Copy)]
pub struct CachePolicy(pub(crate) u64);

/// Policies that are one `createpolicy` each.
macro_rules! policies {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {
        impl CachePolicy {$(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name() -> Self {
                let policy: u64;
                // SAFETY: computes a descriptor.
                unsafe { asm!(concat!($instruction, " {0}, 1.0;"), out(reg64) policy, options(pure, nomem, nostack)) };
                Self(policy)
            }
        )*}
    };
}

policies! {
    /// `createpolicy.fractional.L2::evict_first.b64`: the first to leave: data used once (sm_80).
    evict_first = "createpolicy.fractional.L2::evict_first.b64";
    /// `createpolicy.fractional.L2::evict_last.b64`: the last to leave: data used by many blocks (sm_80).
    evict_last = "createpolicy.fractional.L2::evict_last.b64";
    /// `createpolicy.fractional.L2::evict_normal.b64`: as without a policy (sm_80).
    evict_normal = "createpolicy.fractional.L2::evict_normal.b64";
}
