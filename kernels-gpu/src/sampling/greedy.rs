//! `greedy_f32`: the largest logit of each row by a cluster a row, in one launch where a reduction takes two and a copy.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 512;
/// Blocks of the cluster of a row.
pub const CLUSTER: u32 = 8;
/// Dynamic shared memory: the warps' keys, then the cluster's.
pub const SHARED_BYTES: u32 = (THREADS / 32 + CLUSTER) * 8;

kernel_params! {
    /// Arguments of `greedy_f32`.
    pub struct GreedyParams {
        /// Logits, rows of `columns` f32.
        pub x: u64,
        /// Elements from one row to the next.
        pub x_stride: u64,
        /// Column of the largest of each row, i64; of equal ones the first, and a NaN is the largest.
        pub out: u64,
        /// The same once more, or 0.
        pub copy: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
    }
}

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod device {
    use super::*;
    use crate::sampling::key;
    use cuda_std::{barrier, global, grid_dependency, kernel, shared, thread, warp};

    /// Vectors that a thread asks for at a time.
    const AHEAD: usize = 4;

    /// Larger for larger logits, and for the first of equal ones.
    #[inline(always)]
    fn ranked(x: f32, column: u32) -> u64 {
        (key(x) as u64) << 32 | !column as u64
    }

    #[inline(always)]
    fn larger(a: u64, b: u64) -> u64 {
        if a > b { a } else { b }
    }

    /// The largest of what this thread has of a row.
    #[inline(always)]
    unsafe fn own(p: &GreedyParams, row: u64) -> u64 {
        let first = thread::cluster_block_rank() * THREADS + thread::thread_idx_x();
        let step = CLUSTER * THREADS;
        let vectors = if p.aligned != 0 { p.columns / 4 } else { 0 };
        let mut best = 0;
        let mut v = first;
        // SAFETY: within the row.
        unsafe {
            while v < vectors {
                let mut x = [[f32::NEG_INFINITY; 4]; AHEAD];
                let mut i = 0;
                while i < AHEAD {
                    let at = v + i as u32 * step;
                    if at < vectors {
                        x[i] = global::ld((row + at as u64 * 16) as *const [f32; 4]);
                    }
                    i += 1;
                }
                let mut i = 0;
                while i < AHEAD {
                    let at = v + i as u32 * step;
                    let mut j = 0;
                    // Beyond the row, columns that lose against all that are there.
                    while j < 4 && at < vectors {
                        best = larger(best, ranked(x[i][j], at * 4 + j as u32));
                        j += 1;
                    }
                    i += 1;
                }
                v += AHEAD as u32 * step;
            }
            let mut column = vectors * 4 + first;
            while column < p.columns {
                let mut x = [0.0f32; AHEAD];
                let mut i = 0;
                while i < AHEAD {
                    let at = column + i as u32 * step;
                    if at < p.columns {
                        x[i] = global::ld((row + at as u64 * 4) as *const f32);
                    }
                    i += 1;
                }
                let mut i = 0;
                while i < AHEAD {
                    let at = column + i as u32 * step;
                    if at < p.columns {
                        best = larger(best, ranked(x[i], at));
                    }
                    i += 1;
                }
                column += AHEAD as u32 * step;
            }
        }
        best
    }

    kernel! {
        /// The column of the largest logit of each row. Blocks along x: a cluster of `CLUSTER` a row.
        ///
        /// # Safety
        /// - The tensors have the extents that the parameters say; dynamic shared memory of `SHARED_BYTES`.
        #[launch(threads = THREADS, cluster = CLUSTER)]
        pub fn greedy_f32(params: GreedyParams) {
            barrier::cluster_arrive_relaxed();
            grid_dependency::wait();
            grid_dependency::launch_dependents();
            let row = (thread::block_idx_x() / CLUSTER) as u64;
            let (base, lane) = (shared::dynamic_base(), thread::lane_id());
            let best = warp::reduce::<u64, 32>(own(&params, params.x + row * params.x_stride * 4), larger);
            if lane == 0 {
                shared::st(base + thread::warp_idx() * 8, best);
            }
            barrier::syncthreads();
            let of_cluster = base + THREADS / 32 * 8;
            // All blocks of the cluster run by now.
            barrier::cluster_wait();
            if thread::warp_idx() == 0 {
                let best: u64 = if lane < THREADS / 32 { shared::ld(base + lane * 8) } else { 0 };
                let best = warp::reduce::<u64, 32>(best, larger);
                if lane == 0 {
                    shared::st_cluster(shared::mapa(of_cluster, 0) + thread::cluster_block_rank() * 8, best);
                }
            }
            barrier::cluster_sync();
            if thread::cluster_block_rank() == 0 && thread::warp_idx() == 0 {
                let best: u64 = if lane < CLUSTER { shared::ld(of_cluster + lane * 8) } else { 0 };
                let best = warp::reduce::<u64, 32>(best, larger);
                if lane == 0 {
                    let column = !(best as u32) as i64;
                    global::st((params.out + row * 8) as *mut i64, column);
                    if params.copy != 0 {
                        global::st((params.copy + row * 8) as *mut i64, column);
                    }
                }
            }
        }
    }
}
