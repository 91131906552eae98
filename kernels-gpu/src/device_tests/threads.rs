//! Indices, barriers, and exchange within warps and clusters.

#[cfg(target_arch = "nvptx64")]
use super::{DeviceTestParams, table::write_row};
#[cfg(target_arch = "nvptx64")]
use cuda_std::{barrier, global, shared::Shared, thread::*, warp};

cuda_std::kernel! {
    /// Every index of a 3-D launch, 18 words a thread; rows by block, then by thread, x fastest.
    #[launch(threads = [8, 4, 2])]
    pub fn device_test_indices(params: DeviceTestParams) {
        let block = block_idx_x() + grid_dim_x() * (block_idx_y() + grid_dim_y() * block_idx_z());
        let thread = thread_idx_x() + block_dim_x() * (thread_idx_y() + block_dim_y() * thread_idx_z());
        let started = global_timer();
        let row = [
            thread_idx_x(), thread_idx_y(), thread_idx_z(), block_dim_x(), block_dim_y(), block_dim_z(),
            block_idx_x(), block_idx_y(), block_idx_z(), grid_dim_x(), grid_dim_y(), grid_dim_z(),
            lane_id(), lane_mask_lt(), dynamic_shared_bytes(), (sm_id() < sm_count()) as u32,
            (global_idx_x() + (grid_stride_x() << 16)) as u32, (global_timer() >= started) as u32,
        ];
        write_row(params.output, block * 64 + thread, row);
    }

    /// Barriers, 8 words a thread: values that neighbours wrote before each kind of barrier, and the counts of the
    /// counting ones. Warps 0 and 1 meet at named barrier 1; warp 2 only arrives at barrier 2, where warp 3 waits.
    #[launch(threads = 128)]
    pub fn device_test_barriers(params: DeviceTestParams) {
        let thread = thread_idx_x();
        let place = Shared::<u32>::dynamic(0);
        place.add(thread).write(thread * 3);
        barrier::syncthreads();
        let across = place.add(127 - thread).read();
        let count = barrier::syncthreads_count(thread % 3 == 0);
        let all = [barrier::syncthreads_and(thread < 128), barrier::syncthreads_and(thread < 127)];
        let any = [barrier::syncthreads_or(thread > 126), barrier::syncthreads_or(thread > 127)];
        place.add(thread).write(thread * 5);
        let mut named = 0;
        match warp_idx() {
            0 | 1 => {
                barrier::sync(1, 64);
                named = place.add(63 - thread).read();
            }
            2 => barrier::arrive(2, 64),
            _ => {
                barrier::sync(2, 64);
                named = place.add(thread - 32).read();
            }
        }
        barrier::syncthreads();
        place.add(thread).write(thread * 7);
        barrier::syncwarp(warp::FULL);
        let within_warp = place.add(thread ^ 1).read();
        write_row(params.output, thread, [
            across, count, all[0] as u32, all[1] as u32, any[0] as u32, any[1] as u32, named, within_warp,
        ]);
    }

    /// Shuffles, votes and matches, 24 words a thread; each thread's value is `input[thread]`.
    #[launch(threads = 64)]
    pub fn device_test_warp(params: DeviceTestParams) {
        let thread = thread_idx_x();
        let x = global::ld((params.input as *const u32).add(thread as usize));
        let wide = (x as u64) << 32 | thread as u64;
        let f = thread as f32 * 0.5;
        let up = warp::shfl_up(wide, 3);
        let idx = warp::shfl_idx(wide as i64, x);
        write_row(params.output, thread, [
            up as u32, (up >> 32) as u32, warp::shfl_down(x, 5), warp::shfl_bfly(x as i32, 6) as u32,
            idx as u32, (idx >> 32) as u32, warp::shfl_bfly(f, 16).to_bits(), uniform_warp_idx(),
            warp::vote_all(warp::FULL, x < 100) as u32, warp::vote_any(warp::FULL, x == 7) as u32,
            warp::vote_ballot(warp::FULL, x % 2 == 0), warp::match_any_u32(warp::FULL, x % 4),
            warp::match_any_u64(warp::FULL, (x as u64 % 3) << 40), warp::match_all_u32(warp::FULL, warp_idx()) as u32,
            warp::match_all_u32(warp::FULL, x) as u32, warp::active_mask(),
            warp::reduce_sum::<32>(f).to_bits(), warp::reduce_sum::<4>(f).to_bits(),
            warp::reduce_max::<8>(x as f32).to_bits(), warp::reduce::<u32, 16>(x, |a, b| a ^ b),
            warp::shfl_idx(x, 33), warp::shfl_up(x, 31), warp::shfl_down(x, 31), warp_idx(),
        ]);
    }

    /// `redux.sync`, 8 words a thread.
    #[launch(threads = 64)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_redux(params: DeviceTestParams) {
        let thread = thread_idx_x();
        let x = global::ld((params.input as *const u32).add(thread as usize));
        write_row(params.output, thread, [
            warp::redux_add(warp::FULL, x), warp::redux_min_u32(warp::FULL, x), warp::redux_max_u32(warp::FULL, x),
            warp::redux_min_i32(warp::FULL, x as i32) as u32, warp::redux_max_i32(warp::FULL, x as i32) as u32,
            warp::redux_and(warp::FULL, x), warp::redux_or(warp::FULL, x), warp::redux_xor(warp::FULL, x),
        ]);
    }

    /// Election within a warp, and clusters of two blocks: indices, barriers, the other block's shared memory, and an
    /// atomic of cluster scope. 14 words a thread.
    #[launch(threads = 32, cluster = 2)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_cluster(params: DeviceTestParams) {
        use cuda_std::atomic;
        use cuda_std::shared::{ld_cluster, mapa, st_cluster};
        let (lane, rank) = (thread_idx_x(), cluster_block_rank());
        let elected = warp::vote_ballot(warp::FULL, warp::elect(warp::FULL));
        let place = Shared::<u32>::dynamic(0);
        place.add(lane).write(1000 * rank + lane);
        barrier::cluster_sync();
        let read = ld_cluster::<u32>(mapa(place.add(31 - lane).address(), rank ^ 1));
        st_cluster(mapa(place.add(32 + lane).address(), rank ^ 1), 2000 * rank + lane);
        atomic::fence::<atomic::Cluster>();
        barrier::cluster_arrive_relaxed();
        barrier::cluster_wait();
        let written = place.add(32 + lane).read();
        // One counter a cluster and lane.
        let counter = (params.input as *mut u32).add((32 * cluster_idx_x() + lane) as usize);
        let counted = atomic::add_u32::<atomic::AcqRel, atomic::Cluster>(counter, 1);
        barrier::cluster_arrive();
        barrier::cluster_wait();
        let total = atomic::load_u32::<atomic::Acquire, atomic::Cluster>(counter);
        write_row(params.output, global_idx_x() as u32, [
            elected.count_ones(), (elected.trailing_zeros() == warp::elected_lane(warp::FULL)) as u32, rank, cluster_size(),
            cluster_block_idx_x(), cluster_block_idx_y(), cluster_idx_x(), cluster_idx_y(), grid_clusters_x(), read, written,
            (counted < 2) as u32, total, block_idx_x(),
        ]);
    }

    /// Register reallocation between warpgroups, which start with 168 registers a thread, and the two halves of
    /// programmatic dependent launch. Each thread's word is its number, plus 1000 in the warpgroups that grew.
    #[launch(threads = 384, min_blocks = 1)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_registers(params: DeviceTestParams) {
        use cuda_std::{grid_dependency, register};
        grid_dependency::wait();
        let thread = thread_idx_x();
        let mut word = thread;
        if thread < 128 {
            register::setmaxnreg_dec::<40>();
        } else {
            register::setmaxnreg_inc::<232>();
            word += 1000;
        }
        grid_dependency::launch_dependents();
        write_row(params.output, thread, [word]);
    }
}
