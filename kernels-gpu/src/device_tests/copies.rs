//! Asynchronous copies and the barriers they complete on: `cp.async`, mbarrier, bulk copies, TMA, and the ring pipeline.

#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
use super::DeviceTestParams;
#[cfg(tier = "sm_90a")]
use super::TensorMapTestParams;
#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
use super::table::write_row;
#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
use crate::pipeline::{Copies, Cursor, Ring, Warps, ring_bytes};
#[cfg(tier = "sm_90a")]
use crate::pipeline::{InCluster, OneThread};
#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
use cuda_std::{barrier, cp_async, global, mbarrier, shared, thread::*};
#[cfg(tier = "sm_90a")]
use cuda_std::{bulk, launch::ParamAddress, tma};

/// Bytes that `device_test_cp_async` copies: 4, 8, and three times 16 a thread, by size.
pub const CP_ASYNC_BYTES: u32 = 64 * (4 + 8 + 3 * 16);
/// Tiles that go through the ring in the pipeline tests.
pub const RING_TILES: u32 = 10;
/// Words of such a tile.
pub const RING_TILE_WORDS: u32 = 128;
/// Stages of the ring.
pub const RING_STAGES: u32 = 3;
/// Bytes of the region that `device_test_bulk` loads, transforms and stores.
pub const BULK_BYTES: u32 = 256;

/// Copies `words` words from the start of shared memory to `output`.
///
/// # Safety
/// - All threads of the block call this; `output` and shared memory hold the words.
#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
#[inline(always)]
unsafe fn dump_shared(output: u64, words: u32) {
    let mut at = thread_idx_x();
    while at < words {
        // SAFETY: forwarded to the caller.
        unsafe {
            global::st(
                (output as *mut u32).add(at as usize),
                shared::ld::<u32>(shared::dynamic_base() + 4 * at),
            )
        };
        at += block_dim_x();
    }
}

cuda_std::kernel! {
    /// Every `cp.async`, onto shared memory full of ones: thread `t` takes `t % (size + 1)` bytes of the copies of 4, 8 and
    /// 16 bytes and all of the last two.
    #[launch(threads = 64)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_cp_async(params: DeviceTestParams) {
        let (thread, base) = (thread_idx_x(), shared::dynamic_base());
        let mut at = thread;
        while at < CP_ASYNC_BYTES / 4 {
            shared::st(base + 4 * at, u32::MAX);
            at += 64;
        }
        barrier::syncthreads();
        let source = |at: u32| (params.input as *const u8).wrapping_add(at as usize);
        let (at_8, at_16) = (64 * 4, 64 * 12);
        cp_async::copy_4(base + 4 * thread, source(4 * thread), thread % 5);
        cp_async::commit_group();
        cp_async::copy_8(base + at_8 + 8 * thread, source(at_8 + 8 * thread), thread % 9);
        cp_async::copy_16(base + at_16 + 16 * thread, source(at_16 + 16 * thread), thread % 17);
        cp_async::commit_group();
        let (at_ca, at_l2) = (at_16 + 64 * 16, at_16 + 2 * 64 * 16);
        cp_async::copy_16_ca(base + at_ca + 16 * thread, source(at_ca + 16 * thread), 16);
        cp_async::commit_group();
        cp_async::wait_group::<1>();
        cp_async::copy_16_l2_128b(base + at_l2 + 16 * thread, source(at_l2 + 16 * thread), 16);
        cp_async::wait_all();
        barrier::syncthreads();
        dump_shared(params.output, CP_ASYNC_BYTES / 4);
    }

    /// mbarriers of every kind of arrival, 5 words a thread: what a neighbour wrote before each, what `cp.async` brought
    /// from `input`, and what a barrier without arrivals says of its two parities.
    #[launch(threads = 128)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mbarrier(params: DeviceTestParams) {
        let (thread, bar) = (thread_idx_x(), shared::dynamic_base());
        let place = shared::Shared::<u32>::dynamic(64);
        if thread == 0 {
            mbarrier::init(bar, 1);
            mbarrier::inval(bar);
            mbarrier::init(bar, 128);
            mbarrier::init(bar + 8, 4);
            mbarrier::init(bar + 16, 128);
            mbarrier::init(bar + 24, 1);
        }
        barrier::syncthreads();
        place.add(thread).write(thread * 3);
        mbarrier::arrive(bar);
        mbarrier::spin_parity(bar, 0);
        let first = place.add(127 - thread).read();
        mbarrier::arrive(bar);
        mbarrier::spin_parity(bar, 1);
        place.add(thread).write(thread * 5);
        barrier::syncwarp(u32::MAX);
        mbarrier::arrive_if(bar + 8, lane_id() == 0);
        mbarrier::spin_parity(bar + 8, 0);
        let second = place.add(127 - thread).read();
        barrier::syncthreads();
        let source = (params.input as *const u8).add(4 * thread as usize);
        cp_async::copy_4(place.add(thread).address(), source, 4);
        cp_async::mbarrier_arrive_noinc(bar + 16);
        mbarrier::spin_parity(bar + 16, 0);
        let copied = place.add(127 - thread).read();
        let idle = [mbarrier::test_wait_parity(bar + 24, 0), mbarrier::test_wait_parity(bar + 24, 1)];
        write_row(params.output, thread, [first, second, copied, idle[0] as u32, idle[1] as u32]);
    }

    /// The ring pipeline fed by `cp.async`: warp 4 copies tiles, warps 0 to 3 sum `(tile + 1) · word`, one word a thread.
    #[launch(threads = 160)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_ring_copies(params: DeviceTestParams) {
        let ring = Ring::<RING_STAGES, Copies<32>, Warps<4>>::new(shared::dynamic_base());
        let tiles = shared::dynamic_base() + ring_bytes(RING_STAGES).next_multiple_of(128);
        if thread_idx_x() == 0 {
            ring.init();
        }
        barrier::syncthreads();
        let mut at = Cursor::start();
        if warp_idx() == 4 {
            let mut tile = 0;
            while tile < RING_TILES {
                ring.wait_empty(at);
                let word = 4 * lane_id();
                let source = (params.input as *const u32).add((tile * RING_TILE_WORDS + word) as usize);
                cp_async::copy_16(tiles + 4 * (at.stage() * RING_TILE_WORDS + word), source.cast(), 16);
                ring.publish(at);
                at = at.next();
                tile += 1;
            }
            cp_async::wait_all();
        } else {
            consume(ring, at, tiles, params.output);
        }
    }

    /// The ring pipeline fed by bulk copies of one thread.
    #[launch(threads = 160)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_ring_bulk(params: DeviceTestParams) {
        let ring = Ring::<RING_STAGES, OneThread, Warps<4>>::new(shared::dynamic_base());
        let tiles = shared::dynamic_base() + ring_bytes(RING_STAGES).next_multiple_of(128);
        if thread_idx_x() == 0 {
            ring.init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        let mut at = Cursor::start();
        if thread_idx_x() == 128 {
            let mut tile = 0;
            while tile < RING_TILES {
                ring.wait_empty(at);
                ring.expect(at, 4 * RING_TILE_WORDS);
                let source = (params.input as *const u32).add((tile * RING_TILE_WORDS) as usize);
                bulk::load(tiles + 4 * at.stage() * RING_TILE_WORDS, source.cast(), 4 * RING_TILE_WORDS, ring.full(at));
                at = at.next();
                tile += 1;
            }
        } else if thread_idx_x() < 128 {
            consume(ring, at, tiles, params.output);
        }
    }

    /// The ring pipeline of two blocks that feed each other by multicast, block `r` the tiles with `tile % 2 = r`.
    #[launch(threads = 160, cluster = 2)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_ring_multicast(params: DeviceTestParams) {
        let ring = Ring::<RING_STAGES, OneThread, InCluster<Warps<4>, 2>>::new(shared::dynamic_base());
        let tiles = shared::dynamic_base() + ring_bytes(RING_STAGES).next_multiple_of(128);
        if thread_idx_x() == 0 {
            ring.init();
            mbarrier::fence_init();
        }
        barrier::cluster_sync();
        let mut at = Cursor::start();
        if thread_idx_x() == 128 {
            let mut tile = 0;
            while tile < RING_TILES {
                ring.wait_empty(at);
                ring.expect(at, 4 * RING_TILE_WORDS);
                if tile % 2 == cluster_block_rank() {
                    let source = (params.input as *const u32).add((tile * RING_TILE_WORDS) as usize);
                    let stage = tiles + 4 * at.stage() * RING_TILE_WORDS;
                    bulk::load_multicast(stage, source.cast(), 4 * RING_TILE_WORDS, ring.full(at), 0b11);
                }
                at = at.next();
                tile += 1;
            }
        } else if thread_idx_x() < 128 {
            let output = params.output + (4 * 128 * block_idx_x()) as u64;
            consume(ring, at, tiles, output);
        }
        barrier::syncthreads();
        barrier::cluster_sync();
    }

    /// Bulk copies: [`BULK_BYTES`] of input by each load; each word plus 1 back to the output by a store; then the first
    /// region added to the output's next three regions as f32, f16 and bf16.
    #[launch(threads = 64)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_bulk(params: DeviceTestParams) {
        let (thread, base) = (thread_idx_x(), shared::dynamic_base());
        let bar = base + 2 * BULK_BYTES;
        if thread == 0 {
            mbarrier::init(bar, 2);
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        if thread == 0 {
            bulk::prefetch_l2(params.input as *const u8, 2 * BULK_BYTES);
            mbarrier::expect_tx(bar, BULK_BYTES);
            mbarrier::arrive(bar);
            bulk::load(base, params.input as *const u8, BULK_BYTES, bar);
            let second = (params.input as *const u8).add(BULK_BYTES as usize);
            bulk::load_cache_hint(base + BULK_BYTES, second, BULK_BYTES, bar, bulk::CachePolicy::evict_first());
        }
        mbarrier::arrive_expect_tx_if(bar, BULK_BYTES, thread == 32);
        mbarrier::wait_parity(bar, 0);
        let words = shared::Shared::<u32>::dynamic(0);
        words.add(64 + thread).write(words.add(64 + thread).read() + 1);
        barrier::fence_proxy_async_shared();
        barrier::syncthreads();
        if thread == 0 {
            let output = |region: u32| (params.output as *mut u8).wrapping_add((region * BULK_BYTES) as usize);
            bulk::store(output(0), base + BULK_BYTES, BULK_BYTES);
            bulk::commit_group();
            bulk::reduce_add_f32(output(1), base, BULK_BYTES);
            bulk::commit_group();
            bulk::reduce_add_f16(output(2), base, BULK_BYTES);
            bulk::reduce_add_bf16(output(3), base, BULK_BYTES);
            bulk::commit_group();
            bulk::wait_group_read::<1>();
            bulk::wait_group::<0>();
        }
    }

    /// Copies and arrivals between the two blocks of a cluster, 64 words a block: 32 that block 0 sent to both by
    /// multicast, 32 that the other block sent out of its shared memory.
    #[launch(threads = 32, cluster = 2)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_bulk_cluster(params: DeviceTestParams) {
        let (lane, rank, base) = (lane_id(), cluster_block_rank(), shared::dynamic_base());
        let bar = base + 512;
        if lane == 0 {
            mbarrier::init(bar, 1);
            // The second barrier takes arrivals of the other block alone: one by address, one by rank.
            mbarrier::init(bar + 8, 2);
            mbarrier::fence_init();
        }
        shared::st(base + 256 + 4 * lane, 100 * (rank + 1) + lane);
        barrier::fence_proxy_async_shared();
        barrier::cluster_sync();
        mbarrier::arrive_expect_tx_if(bar, 256, lane == 0);
        if lane == 0 {
            if rank == 0 {
                bulk::load_multicast(base, params.input as *const u8, 128, bar, 0b11);
            }
            bulk::send(shared::mapa(base + 128, rank ^ 1), base + 256, 128, shared::mapa(bar, rank ^ 1));
        }
        mbarrier::wait_parity(bar, 0);
        if lane == 0 {
            mbarrier::arrive_cluster(shared::mapa(bar + 8, rank ^ 1));
        }
        mbarrier::arrive_remote_if(bar + 8, rank ^ 1, lane == 31);
        mbarrier::wait_parity_cluster(bar + 8, 0);
        dump_shared(params.output + (256 * block_idx_x()) as u64, 64);
        barrier::cluster_sync();
    }

    /// Stores to the other block of a cluster that complete on a barrier there, 224 words a block: two of each lane, then four, then one.
    #[launch(threads = 32, cluster = 2)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_store_async(params: DeviceTestParams) {
        let (lane, rank, base) = (lane_id(), cluster_block_rank(), shared::dynamic_base());
        let bar = base + 896;
        if lane == 0 {
            mbarrier::init(bar, 1);
            mbarrier::fence_init();
        }
        mbarrier::arrive_expect_tx_if(bar, 896, lane == 0);
        barrier::cluster_arrive_relaxed();
        barrier::cluster_wait();
        let word = |i: u32| f32::from_bits(1000 * (rank + 1) + lane + 100 * i);
        let to = |at: u32| shared::mapa(base + at, rank ^ 1);
        shared::st_async_2(to(8 * lane), [word(0), word(1)], to(896));
        shared::st_async_4(to(256 + 16 * lane), [word(2), word(3), word(4), word(5)], to(896));
        shared::st_async_1(to(768 + 4 * lane), word(6), to(896));
        mbarrier::wait_parity_cluster(bar, 0);
        dump_shared(params.output + (896 * block_idx_x()) as u64, 224);
    }
}

/// The consumers of the ring tests: each thread sums `(tile + 1) · word` over the tiles, and writes the sum.
///
/// # Safety
/// - 128 threads call this, the ring's consumers; `output` has a word for each.
#[cfg(any(tier = "sm_80", tier = "sm_90a"))]
#[inline(always)]
unsafe fn consume<P: crate::pipeline::Participants, C: crate::pipeline::Participants>(
    ring: Ring<RING_STAGES, P, C>,
    mut at: Cursor<RING_STAGES>,
    tiles: u32,
    output: u64,
) {
    let thread = thread_idx_x();
    let mut sum = 0u32;
    let mut tile = 0;
    while tile < RING_TILES {
        // SAFETY: the ring is initialised; the stage lies in shared memory and is full.
        unsafe {
            ring.wait_full(at);
            sum = sum.wrapping_add(
                shared::ld::<u32>(tiles + 4 * (at.stage() * RING_TILE_WORDS + thread)).wrapping_mul(tile + 1),
            );
            ring.release(at);
        }
        at = at.next();
        tile += 1;
    }
    // SAFETY: forwarded to the caller.
    unsafe { write_row(output, thread, [sum]) }
}

/// Declares the TMA tests of each rank.
///
/// `input` points to five coordinates and the box's bytes. The kernel loads the box twice, plainly and with a cache
/// policy, writes both to `output`, stores the first to the destination tensor, and adds the second to it.
macro_rules! tma_tests {
    ($($name:ident: $rank:literal, [$($index:literal)*], $load:ident $load_cache_hint:ident $store:ident $reduce_add:ident
        $prefetch:ident;)*) => {
        cuda_std::kernel! {$(
            #[doc = concat!("TMA of rank ", $rank, ".")]
            #[launch(threads = 128, param_align = 64)]
            #[cfg(tier = "sm_90a")]
            pub fn $name(params: TensorMapTestParams, address: ParamAddress) {
                let source = address.tensor_map(core::mem::offset_of!(TensorMapTestParams, source));
                let destination = address.tensor_map(core::mem::offset_of!(TensorMapTestParams, destination));
                let input = params.input as *const i32;
                let at: [i32; $rank] = [$(global::ld(input.add($index))),*];
                let bytes = global::ld(input.add(5)) as u32;
                let base = shared::dynamic_base();
                let second = base + bytes.next_multiple_of(128);
                let bar = second + bytes.next_multiple_of(128);
                if thread_idx_x() == 0 {
                    mbarrier::init(bar, 1);
                    mbarrier::fence_init();
                    tma::prefetch_tensormap(source);
                    tma::$prefetch(source, at);
                }
                barrier::syncthreads();
                if thread_idx_x() == 0 {
                    mbarrier::arrive_expect_tx(bar, 2 * bytes);
                    tma::$load(base, source, at, bar);
                    tma::$load_cache_hint(second, source, at, bar, bulk::CachePolicy::evict_last());
                }
                mbarrier::wait_parity(bar, 0);
                dump_shared(params.output, (second + bytes - base) / 4);
                if thread_idx_x() == 0 {
                    tma::$store(destination, at, base);
                    bulk::commit_group();
                    bulk::wait_group::<0>();
                    tma::$reduce_add(destination, at, second);
                    bulk::commit_group();
                    bulk::wait_group::<0>();
                }
            }
        )*}
    };
}

tma_tests! {
    device_test_tma_1d: 1, [0], load_1d load_1d_cache_hint store_1d reduce_add_1d prefetch_1d;
    device_test_tma_2d: 2, [0 1], load_2d load_2d_cache_hint store_2d reduce_add_2d prefetch_2d;
    device_test_tma_3d: 3, [0 1 2], load_3d load_3d_cache_hint store_3d reduce_add_3d prefetch_3d;
    device_test_tma_4d: 4, [0 1 2 3], load_4d load_4d_cache_hint store_4d reduce_add_4d prefetch_4d;
    device_test_tma_5d: 5, [0 1 2 3 4], load_5d load_5d_cache_hint store_5d reduce_add_5d prefetch_5d;
}

/// Declares the TMA multicast tests of each rank: block 0 loads the box into both blocks of the cluster, block 1 loads it
/// once more, with a cache policy, behind it. Each block writes both to its part of `output`.
macro_rules! tma_multicast_tests {
    ($($name:ident: $rank:literal, [$($index:literal)*], $load:ident $load_cache_hint:ident;)*) => {
        cuda_std::kernel! {$(
            #[doc = concat!("TMA multicast of rank ", $rank, ".")]
            #[launch(threads = 128, cluster = 2, param_align = 64)]
            #[cfg(tier = "sm_90a")]
            pub fn $name(params: TensorMapTestParams, address: ParamAddress) {
                let source = address.tensor_map(core::mem::offset_of!(TensorMapTestParams, source));
                let input = params.input as *const i32;
                let at: [i32; $rank] = [$(global::ld(input.add($index))),*];
                let bytes = global::ld(input.add(5)) as u32;
                let base = shared::dynamic_base();
                let second = base + bytes.next_multiple_of(128);
                let bar = second + bytes.next_multiple_of(128);
                if thread_idx_x() == 0 {
                    mbarrier::init(bar, 1);
                    mbarrier::fence_init();
                    mbarrier::arrive_expect_tx(bar, 2 * bytes);
                }
                barrier::cluster_sync();
                if thread_idx_x() == 0 {
                    if cluster_block_rank() == 0 {
                        tma::$load(base, source, at, bar, 0b11);
                    } else {
                        tma::$load_cache_hint(second, source, at, bar, 0b11, bulk::CachePolicy::evict_normal());
                    }
                }
                mbarrier::wait_parity(bar, 0);
                let words = (second + bytes - base) / 4;
                dump_shared(params.output + (4 * words * block_idx_x()) as u64, words);
                barrier::cluster_sync();
            }
        )*}
    };
}

tma_multicast_tests! {
    device_test_tma_1d_multicast: 1, [0], load_1d_multicast load_1d_multicast_cache_hint;
    device_test_tma_2d_multicast: 2, [0 1], load_2d_multicast load_2d_multicast_cache_hint;
    device_test_tma_3d_multicast: 3, [0 1 2], load_3d_multicast load_3d_multicast_cache_hint;
    device_test_tma_4d_multicast: 4, [0 1 2 3], load_4d_multicast load_4d_multicast_cache_hint;
    device_test_tma_5d_multicast: 5, [0 1 2 3 4], load_5d_multicast load_5d_multicast_cache_hint;
}
