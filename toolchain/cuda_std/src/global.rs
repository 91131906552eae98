//! Global memory: loads and stores of 1 to 16 bytes with cache hints (PTX ISA 9.7.9.8, 9.7.9.9, 9.7.9.11).
//!
//! Each function moves one [`Value`] by one instruction, `[f32; 4]` by `.v4.b32`. Addresses are aligned to the size
//! of the value. The hints change speed only, never results, with one exception: `.nc` may read stale data when
//! the memory is written during the kernel, by anyone.

use crate::access::{loads, stores};
use crate::bulk::CachePolicy;
use core::arch::asm;

pub use crate::access::Value;

loads! {
    /// `ld.global`: cached in L1 and L2.
    ///
    /// # Safety
    /// - `address` is readable global memory, aligned to the size of `T`.
    pub fn ld(*const T, reg64) = "ld.global", (pure, readonly, nostack);
    /// `ld.global.nc`: through the read-only path, and free to move across barriers.
    ///
    /// # Safety
    /// - As for [`ld`], and nothing writes the memory while the kernel runs.
    pub fn ld_nc(*const T, reg64) = "ld.global.nc", (pure, nomem, nostack);
    /// `ld.global.nc.L1::no_allocate`: read-only data used once: leaves L1 to others.
    ///
    /// # Safety
    /// - As for [`ld_nc`].
    pub fn ld_nc_no_allocate(*const T, reg64) = "ld.global.nc.L1::no_allocate", (pure, nomem, nostack);
    /// `ld.global.nc.L1::no_allocate.L2::256B`: the same, and asks L2 to fetch the 256-byte line around (sm_80).
    ///
    /// # Safety
    /// - As for [`ld_nc`].
    pub fn ld_nc_no_allocate_l2_256b(*const T, reg64) = "ld.global.nc.L1::no_allocate.L2::256B", (pure, nomem, nostack);
    /// `ld.global.nc.L1::evict_last`: read-only data used again: the last to leave L1.
    ///
    /// # Safety
    /// - As for [`ld_nc`].
    pub fn ld_nc_evict_last(*const T, reg64) = "ld.global.nc.L1::evict_last", (pure, nomem, nostack);
    /// `ld.global.cg`: cached in L2 only.
    ///
    /// # Safety
    /// - As for [`ld`].
    pub fn ld_cg(*const T, reg64) = "ld.global.cg", (pure, readonly, nostack);
    /// `ld.global.cs`: streaming: the first to leave the caches.
    ///
    /// # Safety
    /// - As for [`ld`].
    pub fn ld_cs(*const T, reg64) = "ld.global.cs", (pure, readonly, nostack);
    /// `ld.relaxed.gpu.global`: one access that may race with relaxed accesses of other blocks.
    ///
    /// # Safety
    /// - As for [`ld`].
    pub fn ld_relaxed(*const T, reg64) = "ld.relaxed.gpu.global", (nostack);
    /// `ld.volatile.global`: executed once, in order, as written.
    ///
    /// # Safety
    /// - As for [`ld`].
    pub fn ld_volatile(*const T, reg64) = "ld.volatile.global", (nostack);
}

stores! {
    /// `st.global`: cached in L2.
    ///
    /// # Safety
    /// - `address` is writable global memory, aligned to the size of `T`.
    pub fn st(*mut T, reg64) = "st.global";
    /// `st.global.cg`: cached in L2 only.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_cg(*mut T, reg64) = "st.global.cg";
    /// `st.global.cs`: streaming: the first to leave the caches.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_cs(*mut T, reg64) = "st.global.cs";
    /// `st.global.wt`: written through L2 to memory.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_wt(*mut T, reg64) = "st.global.wt";
    /// `st.global.L1::no_allocate`: leaves L1 to others.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_no_allocate(*mut T, reg64) = "st.global.L1::no_allocate";
    /// `st.relaxed.gpu.global`: one access that may race with relaxed accesses of other blocks.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_relaxed(*mut T, reg64) = "st.relaxed.gpu.global";
    /// `st.volatile.global`: executed once, in order, as written.
    ///
    /// # Safety
    /// - As for [`st`].
    pub fn st_volatile(*mut T, reg64) = "st.volatile.global";
}

/// `prefetch.global.L2`: brings the line of `address` into L2 (PTX ISA 9.7.9.15).
///
/// # Safety
/// - `address` is readable global memory.
#[inline(always)]
pub unsafe fn prefetch_l2<T>(address: *const T) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("prefetch.global.L2 [{0}];", in(reg64) address, options(nostack)) }
}

/// `st.global.L2::cache_hint.b16`: with an L2 cache policy (sm_80).
///
/// # Safety
/// - `address` is writable global memory, aligned to 2 bytes.
#[inline(always)]
pub unsafe fn st16_cache_hint(address: *mut u16, value: u16, policy: CachePolicy) {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("st.global.L2::cache_hint.b16 [{0}], {1}, {2};", in(reg64) address, in(reg16) value, in(reg64) policy.0, options(nostack))
    }
}
