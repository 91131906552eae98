//! Copies of tiles by tensor map, the Tensor Memory Accelerator (PTX ISA 9.7.9.25.5, sm_90).
//!
//! A tensor map (128 bytes, made by the host) describes a tensor of 1 to 5 dimensions and the box that one copy moves;
//! what lies outside the tensor is read as zero and not written. Coordinates count elements, innermost first. One
//! thread starts a copy; completion is as in [`bulk`](crate::bulk): loads on an mbarrier, stores by
//! [`bulk::commit_group`](crate::bulk::commit_group) and its waits. Tiles in shared memory are aligned to 128 bytes, to
//! 256, 512 or 1024 with the 32-, 64- or 128-byte swizzle.
//!
//! A map in the kernel's parameters ([`ParamAddress`](crate::launch::ParamAddress)) needs no fence; one in global
//! memory is written by the host before the launch.

use crate::bulk::CachePolicy;
use core::arch::asm;

/// `prefetch.tensormap`: brings a tensor map into the cache that TMA reads it from.
///
/// # Safety
/// - `map` is the generic address of a tensor map.
#[inline(always)]
pub unsafe fn prefetch_tensormap(map: *const u8) {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("prefetch.tensormap [{0}];", in(reg64) map, options(nostack)) }
}

/// The copies of one rank.
macro_rules! rank {
    ($rank:literal, $dimension:literal, $coordinates:literal, [$($index:literal)*];
     $load:ident $load_if:ident $load_cache_hint:ident $load_multicast:ident $load_multicast_cache_hint:ident
     $store:ident $reduce_add:ident $prefetch:ident) => {
        #[doc = concat!("`cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes`:")]
        /// a box of the tensor into shared memory.
        ///
        /// # Safety
        /// - `map` is the generic address of a tensor map of this rank; `destination` has the box's size and alignment.
        /// - `barrier` is an initialised mbarrier that expects the box's bytes (all of them, also at the tensor's edge);
        ///   nobody touches `destination` before its phase ends.
        #[inline(always)]
        pub unsafe fn $load(destination: u32, map: *const u8, at: [i32; $rank], barrier: u32) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [{to}], [{map}, ", $coordinates, "], [{bar}];"),
                    $(in(reg32) at[$index],)* to = in(reg32) destination, map = in(reg64) map, bar = in(reg32) barrier,
                    options(nostack));
            }
        }

        #[doc = concat!("[`", stringify!($load), "`] by the threads where `condition` holds.")]
        ///
        /// # Safety
        #[doc = concat!("- As for [`", stringify!($load), "`].")]
        #[inline(always)]
        pub unsafe fn $load_if(destination: u32, map: *const u8, at: [i32; $rank], barrier: u32, condition: bool) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!("{{", ".reg .pred p;", "setp.ne.b32 p, {condition}, 0;",
                    concat!("@p cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [{to}], [{map}, ", $coordinates, "], [{bar}];"),
                    "}}",
                    $(in(reg32) at[$index],)* to = in(reg32) destination, map = in(reg64) map, bar = in(reg32) barrier,
                    condition = in(reg32) condition as u32, options(nostack));
            }
        }

        #[doc = concat!("[`", stringify!($load), "`] with an L2 cache policy, `.L2::cache_hint`.")]
        ///
        /// # Safety
        #[doc = concat!("- As for [`", stringify!($load), "`].")]
        #[inline(always)]
        pub unsafe fn $load_cache_hint(destination: u32, map: *const u8, at: [i32; $rank], barrier: u32, policy: CachePolicy) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [{to}], [{map}, ", $coordinates, "], [{bar}], {policy};"),
                    $(in(reg32) at[$index],)* to = in(reg32) destination, map = in(reg64) map, bar = in(reg32) barrier,
                    policy = in(reg64) policy.0, options(nostack));
            }
        }

        #[doc = concat!("[`", stringify!($load), "`] into the same place of every block of the cluster whose bit is set in `blocks`,")]
        /// each completing on its own barrier at the same place, `.multicast::cluster`.
        ///
        /// # Safety
        #[doc = concat!("- As for [`", stringify!($load), "`], in each of the blocks, and they are running.")]
        #[inline(always)]
        pub unsafe fn $load_multicast(destination: u32, map: *const u8, at: [i32; $rank], barrier: u32, blocks: u16) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [{to}], [{map}, ", $coordinates, "], [{bar}], {blocks};"),
                    $(in(reg32) at[$index],)* to = in(reg32) destination, map = in(reg64) map, bar = in(reg32) barrier,
                    blocks = in(reg16) blocks, options(nostack));
            }
        }

        #[doc = concat!("[`", stringify!($load_multicast), "`] with an L2 cache policy, `.L2::cache_hint`.")]
        ///
        /// # Safety
        #[doc = concat!("- As for [`", stringify!($load_multicast), "`].")]
        #[inline(always)]
        pub unsafe fn $load_multicast_cache_hint(
            destination: u32, map: *const u8, at: [i32; $rank], barrier: u32, blocks: u16, policy: CachePolicy,
        ) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.tensor.", $dimension, ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [{to}], [{map}, ", $coordinates, "], [{bar}], {blocks}, {policy};"),
                    $(in(reg32) at[$index],)* to = in(reg32) destination, map = in(reg64) map, bar = in(reg32) barrier,
                    blocks = in(reg16) blocks, policy = in(reg64) policy.0, options(nostack));
            }
        }

        #[doc = concat!("`cp.async.bulk.tensor.", $dimension, ".global.shared::cta.tile.bulk_group`: a box from shared memory into the tensor.")]
        ///
        /// # Safety
        /// - `map` is the generic address of a tensor map of this rank; `source` has the box's size and alignment.
        /// - Who wrote `source` has fenced the proxy; it is not written before
        ///   [`wait_group_read`](crate::bulk::wait_group_read) covers the copy.
        #[inline(always)]
        pub unsafe fn $store(map: *const u8, at: [i32; $rank], source: u32) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.tensor.", $dimension, ".global.shared::cta.tile.bulk_group [{map}, ", $coordinates, "], [{from}];"),
                    $(in(reg32) at[$index],)* map = in(reg64) map, from = in(reg32) source, options(nostack));
            }
        }

        #[doc = concat!("`cp.reduce.async.bulk.tensor.", $dimension, ".global.shared::cta.add.tile.bulk_group`: adds a box to the tensor, in its element type.")]
        ///
        /// # Safety
        #[doc = concat!("- As for [`", stringify!($store), "`].")]
        #[inline(always)]
        pub unsafe fn $reduce_add(map: *const u8, at: [i32; $rank], source: u32) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.reduce.async.bulk.tensor.", $dimension, ".global.shared::cta.add.tile.bulk_group [{map}, ", $coordinates, "], [{from}];"),
                    $(in(reg32) at[$index],)* map = in(reg64) map, from = in(reg32) source, options(nostack));
            }
        }

        #[doc = concat!("`cp.async.bulk.prefetch.tensor.", $dimension, ".L2.global.tile`: brings a box of the tensor into L2.")]
        ///
        /// # Safety
        /// - `map` is the generic address of a tensor map of this rank.
        #[inline(always)]
        pub unsafe fn $prefetch(map: *const u8, at: [i32; $rank]) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!("cp.async.bulk.prefetch.tensor.", $dimension, ".L2.global.tile [{map}, ", $coordinates, "];"),
                    $(in(reg32) at[$index],)* map = in(reg64) map, options(nostack));
            }
        }
    };
}

rank! { 1, "1d", "{{{0}}}", [0];
    load_1d load_1d_if load_1d_cache_hint load_1d_multicast load_1d_multicast_cache_hint store_1d reduce_add_1d prefetch_1d }
rank! { 2, "2d", "{{{0}, {1}}}", [0 1];
    load_2d load_2d_if load_2d_cache_hint load_2d_multicast load_2d_multicast_cache_hint store_2d reduce_add_2d prefetch_2d }
rank! { 3, "3d", "{{{0}, {1}, {2}}}", [0 1 2];
    load_3d load_3d_if load_3d_cache_hint load_3d_multicast load_3d_multicast_cache_hint store_3d reduce_add_3d prefetch_3d }
rank! { 4, "4d", "{{{0}, {1}, {2}, {3}}}", [0 1 2 3];
    load_4d load_4d_if load_4d_cache_hint load_4d_multicast load_4d_multicast_cache_hint store_4d reduce_add_4d prefetch_4d }
rank! { 5, "5d", "{{{0}, {1}, {2}, {3}, {4}}}", [0 1 2 3 4];
    load_5d load_5d_if load_5d_cache_hint load_5d_multicast load_5d_multicast_cache_hint store_5d reduce_add_5d prefetch_5d }
