//! Gradients of the norms.
//!
//! With `x̂ = (s − μ)·r` and `g = dy·w`: `ds = (g − mean(g) − x̂·mean(g·x̂))·r + dsum` (without `mean(g)` for
//! RMSNorm), `dw = Σ dy·x̂` and `db = Σ dy` over rows. There are no atomics: each of a number of *teams* that the shape
//! alone decides adds up the rows `team, team + teams, …` in registers and leaves one row of partial sums, and a
//! second launch adds those up in order. Rows that do not fit registers take two launches instead of one: the first
//! leaves the rows' statistics, by which the second forms the sums of columns.

use crate::{kernel_params, row::WIDTH};

#[cfg(target_arch = "nvptx64")]
mod general;
#[cfg(tier = "sm_90a")]
mod gradient;
#[cfg(target_arch = "nvptx64")]
mod one;
#[cfg(target_arch = "nvptx64")]
mod parts;
#[cfg(tier = "sm_90a")]
mod stream;

/// Threads of a block of `norm_stream_backward_*` that take sums and write.
pub const STREAM_THREADS: u32 = 256;
/// Vectors that each takes of a row.
pub const STREAM_HELD: usize = 2;
/// Columns that such a block takes.
pub const STREAM_BLOCK: u64 = STREAM_THREADS as u64 * STREAM_HELD as u64 * WIDTH as u64;
/// Most blocks of a cluster of them.
pub const STREAM_CLUSTER: u64 = 8;
/// Stages of the ring: more are slower, with fewer nothing is under way.
pub const STREAM_STAGES: u64 = 3;
/// Shared memory before the ring: sums and barriers.
pub const STREAM_AT: u32 = 1280;
/// Dynamic shared memory.
pub const STREAM_BYTES: u64 = STREAM_AT as u64 + STREAM_STAGES * 2 * STREAM_BLOCK * 2;

/// Clusters of so many of those blocks that find room at a time, two blocks a multiprocessor: multiprocessors come in groups that
/// fours do not fill. RMSNorm, which waits for nothing but memory, is slower with all multiprocessors full.
pub const fn stream_clusters(blocks: u64, centered: bool) -> u64 {
    match (blocks, centered) {
        (1 | 2, true) => 2 * MULTIPROCESSORS / blocks,
        _ => 240 / blocks,
    }
}

/// Rows that one team adds up at least.
pub const ROWS: u64 = 16;
/// Multiprocessors for which there are blocks; fixed, so that sums of columns do not depend on the device.
pub const MULTIPROCESSORS: u64 = 132;
/// Most stages of a ring: more leave L1 less room, and are slower.
pub const STAGES: u64 = 2;
/// Threads of a block of `norm_block_backward_*`.
pub const SUMS_BLOCK_THREADS: u32 = 256;
/// Vectors that each takes of a row.
pub const SUMS_BLOCK_HELD: usize = 2;
/// Longest row that such a block takes.
pub const SUMS_BLOCK_COLUMNS: u64 = SUMS_BLOCK_THREADS as u64 * SUMS_BLOCK_HELD as u64 * WIDTH as u64;
/// Blocks of them that a multiprocessor holds.
pub const BLOCKS: u64 = 2;
/// Threads of a block of `norm_large_backward_*`.
pub const SUMS_LARGE_THREADS: u32 = 384;
/// Vectors that each takes of a row.
pub const SUMS_LARGE_HELD: usize = 3;
/// Longest row that such a block takes.
pub const SUMS_LARGE_COLUMNS: u64 = SUMS_LARGE_THREADS as u64 * SUMS_LARGE_HELD as u64 * WIDTH as u64;
/// Threads of a block of `norm_cluster_backward_*`.
pub const SUMS_CLUSTER_THREADS: u32 = 512;
/// Vectors that each takes of a row.
pub const SUMS_CLUSTER_HELD: usize = 2;
/// Columns that such a block takes.
pub const SUMS_CLUSTER_BLOCK: u64 = SUMS_CLUSTER_THREADS as u64 * SUMS_CLUSTER_HELD as u64 * WIDTH as u64;
/// Longest row that a cluster of four of them takes.
pub const SUMS_CLUSTER_COLUMNS: u64 = 4 * SUMS_CLUSTER_BLOCK;
/// Warps of a block of `norm_warp_backward_*`: each is a team, and their sums are added in order at the end.
pub const BACKWARD_WARPS: u32 = 12;
/// Where the addition's sums begin in shared memory: behind the barriers of the rings, which are never written over.
pub const WARP_SUMS_AT: u64 = crate::row::ring_bytes(0, 0, 0);
/// Dynamic shared memory of a block that adds.
pub const WARP_SUMS: u64 = WARP_SUMS_AT + BACKWARD_WARPS as u64 * crate::row::PAIR_WARP_COLUMNS * 4;
/// Threads of a block of the kernels over columns.
pub const THREADS: u32 = 256;
/// Columns that a block of `norm_columns_*` takes.
pub const COLUMNS: u64 = THREADS as u64 * 8;
/// Columns that a thread of `norm_sum_*` takes: with fewer, more blocks wait for less each.
pub const SUMMED: usize = 4;
/// Columns that a block of them takes.
pub const SUM_COLUMNS: u64 = 32 * SUMMED as u64;
/// Dynamic shared memory of it: a word for each column of each warp.
pub const SUM_BYTES: u64 = THREADS as u64 * SUMMED as u64 * 4;

kernel_params! {
    /// Arguments of the `norm_*_backward_*` and `norm_columns_*` kernels. Addresses are 0 for what is not wanted.
    pub struct NormBackwardParams {
        /// What was normalised, `rows × columns`.
        pub x: u64,
        /// Gradient of the output.
        pub dy: u64,
        /// Gradient of `x` by other ways, added to `dx`.
        pub dsum: u64,
        /// Factor of the forward, `columns`.
        pub weight: u64,
        /// Gradient of `x`, out.
        pub dx: u64,
        /// Partial gradients of the weight, f32, `teams × columns`, out.
        pub dweight: u64,
        /// Partial gradients of the bias, f32, `teams × columns`, out.
        pub dbias: u64,
        /// Mean in two parts and reciprocal deviation of each row, f32: written for rows of any length, read by
        /// `norm_columns_*`.
        pub statistics: u64,
        /// Rows.
        pub rows: u64,
        /// Elements from one row of `x` to the next.
        pub x_stride: u64,
        /// Of `dy`.
        pub dy_stride: u64,
        /// Of `dsum`.
        pub dsum_stride: u64,
        /// Of `dx`.
        pub dx_stride: u64,
        /// Rows of partial sums.
        pub teams: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 for LayerNorm.
        pub centered: u32,
        /// ε.
        pub epsilon: f32,
        /// 1 / columns.
        pub reciprocal: f32,
        /// 1 when every row and the weight start at multiples of 16 bytes.
        pub aligned: u32,
        /// Stages of the ring that brings rows, 0 without one.
        pub stages: u32,
    }

    /// Arguments of the `norm_sum_*` kernels: sums of columns of one matrix, or of two.
    pub struct NormSumParams {
        /// f32, `rows × columns`.
        pub partial: u64,
        /// `columns` sums, out.
        pub out: u64,
        /// The second matrix, for blocks of `blockIdx.y` = 1.
        pub partial2: u64,
        /// Its sums, out.
        pub out2: u64,
        /// Rows.
        pub rows: u64,
        /// Columns.
        pub columns: u64,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::super::columns::{add_columns, columns};
    use super::{general::backward, parts::by_parts, *};
    use crate::row::*;
    use crate::row::{LONG_THREADS, PAIR_LONG, PAIR_WARP_HELD};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{barrier::syncthreads, global, kernel, shared::Shared, thread};

    /// Whether a ring brings the rows, whole vectors at multiples of 16 bytes: the usual case.
    #[inline(always)]
    fn whole(p: &NormBackwardParams) -> bool {
        RINGS && p.stages != 0 && p.aligned != 0 && p.columns % WIDTH == 0
    }

    /// Gradients of rows, and this thread's sums of columns.
    #[inline(always)]
    unsafe fn any<E: Element, T: Team, const N: usize>(p: NormBackwardParams) -> ([Vector; N], [Vector; N]) {
        // SAFETY: forwarded to the caller.
        unsafe {
            if !whole(&p) {
                return backward::<E, T, N, false>(p);
            }
            // Warps exchange nothing. RMSNorm with a bias is rare: its sums have no registers there.
            #[cfg(tier = "sm_90a")]
            if T::LANES > 32 {
                if size_of::<E>() == 2 {
                    // Others take those.
                    return backward::<E, T, N, false>(p);
                }
                if p.centered != 0 {
                    return super::gradient::gradients::<E, T, N, true>(&p);
                }
                if p.dbias == 0 {
                    return super::gradient::gradients::<E, T, N, false>(&p);
                }
                return backward::<E, T, N, false>(p);
            }
            backward::<E, T, N, true>(p)
        }
    }

    /// Stores the partial sums of a team.
    #[inline(always)]
    unsafe fn store_sums<T: Team, const N: usize>(address: u64, team: u64, columns: u32, sums: &[Vector; N]) {
        if address == 0 {
            return;
        }
        let row = Row {
            address: address + team * columns as u64 * 4,
            columns,
            aligned: columns % 4 == 0,
        };
        let mut k = 0;
        while k < N {
            let column = column_of::<T>(0, k);
            if column < columns {
                // SAFETY: one row of partial sums a team.
                unsafe { row.store::<f32>(column, sums[k]) };
            }
            k += 1;
        }
    }

    /// Rows of a team of a block, or of a cluster.
    #[inline(always)]
    unsafe fn by_blocks<E: Element, T: Team, const N: usize>(p: NormBackwardParams) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let (dweight, dbias) = any::<E, T, N>(p);
            #[cfg(tier = "sm_90a")]
            cuda_std::grid_dependency::launch_dependents();
            if T::first() < p.teams {
                store_sums::<T, N>(p.dweight, T::first(), p.columns, &dweight);
                store_sums::<T, N>(p.dbias, T::first(), p.columns, &dbias);
            }
        }
    }

    /// Rows of a cluster each.
    #[cfg(tier = "sm_90a")]
    #[inline(always)]
    unsafe fn by_clusters<E: Element, const N: usize>(p: NormBackwardParams) {
        // SAFETY: forwarded to the caller; all blocks have begun before one writes to another.
        unsafe {
            cuda_std::barrier::cluster_sync();
            by_blocks::<E, Cluster<SUMS_CLUSTER_THREADS>, N>(p);
        }
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! stream_backwards {
        ($($name:ident $element:ty)*) => {
            kernel! {$(
                /// Gradients of rows of whole vectors at multiples of 16 bytes, one after the other; a cluster is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `STREAM_BYTES`.
                #[launch(threads = STREAM_THREADS + 64, min_blocks = 2)]
                pub fn $name(params: NormBackwardParams) {
                    let p = params;
                    super::stream::gradients::<$element, Cluster<STREAM_THREADS>, STREAM_HELD>(&p, |dweight, dbias| {
                        cuda_std::grid_dependency::launch_dependents();
                        let team = Cluster::<STREAM_THREADS>::first();
                        store_sums::<Cluster<STREAM_THREADS>, STREAM_HELD>(p.dweight, team, p.columns, dweight);
                        store_sums::<Cluster<STREAM_THREADS>, STREAM_HELD>(p.dbias, team, p.columns, dbias);
                    })
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    stream_backwards! {
        norm_stream_backward_f16 F16
        norm_stream_backward_bf16 Bf16
    }

    /// Rows of a warp each; the sums of a block's warps are added in order.
    #[inline(always)]
    unsafe fn by_warps<E: Element, const N: usize>(p: NormBackwardParams) {
        // SAFETY: forwarded to the caller; the rings are done with shared memory once all warps have met.
        unsafe {
            let (dweight, dbias) = any::<E, Warps<BACKWARD_WARPS>, N>(p);
            #[cfg(tier = "sm_90a")]
            cuda_std::grid_dependency::launch_dependents();
            let (lane, warp) = (thread::lane_id(), thread::warp_idx());
            let sums = |address: u64, mine: &[Vector; N]| {
                if address == 0 {
                    return;
                }
                let row = N as u32 * 32 * WIDTH;
                let slot = |warp: u32, at: u32| Shared::<f32>::dynamic(WARP_SUMS_AT as u32 + (warp * row + at) * 4);
                syncthreads();
                let mut k = 0;
                while k < N {
                    let mut i = 0;
                    while i < 8 {
                        slot(warp, (k as u32 * 8 + i as u32) * 32 + lane).write(mine[k][i]);
                        i += 1;
                    }
                    k += 1;
                }
                syncthreads();
                let mut at = thread::thread_idx_x();
                while at < row {
                    let mut total = 0.0;
                    let mut other = 0;
                    while other < BACKWARD_WARPS {
                        total += slot(other, at).read();
                        other += 1;
                    }
                    // Element `i` of vector `k` of a lane.
                    let (lane, i, k) = (at % 32, at / 32 % 8, at / 256);
                    let column = (k * 32 + lane) * WIDTH + i;
                    if column < p.columns {
                        let to = thread::block_idx_x() as u64 * p.columns as u64 + column as u64;
                        global::st((address as *mut f32).add(to as usize), total);
                    }
                    at += BACKWARD_WARPS * 32;
                }
            };
            sums(p.dweight, &dweight);
            sums(p.dbias, &dbias);
        }
    }

    macro_rules! backwards {
        ($($warp:ident $block:ident $large:ident $long:ident $columns:ident $sum:ident $element:ty)*) => {
            kernel! {$(
                /// Gradients of rows of up to [`PAIR_WARP_COLUMNS`](crate::row::PAIR_WARP_COLUMNS) elements; a warp is a team.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing; the grid has at
                ///   least `teams` teams.
                #[launch(threads = BACKWARD_WARPS * 32)]
                pub fn $warp(params: NormBackwardParams) {
                    #[cfg(tier = "sm_90a")]
                    cuda_std::grid_dependency::wait();
                    by_warps::<$element, PAIR_WARP_HELD>(params)
                }

                /// Gradients of rows of up to [`SUMS_BLOCK_COLUMNS`] elements; a block is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = SUMS_BLOCK_THREADS, min_blocks = 2)]
                pub fn $block(params: NormBackwardParams) {
                    #[cfg(tier = "sm_90a")]
                    cuda_std::grid_dependency::wait();
                    by_blocks::<$element, Block<SUMS_BLOCK_THREADS>, SUMS_BLOCK_HELD>(params)
                }

                /// Gradients of rows of up to [`SUMS_LARGE_COLUMNS`] elements; a block is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = SUMS_LARGE_THREADS)]
                pub fn $large(params: NormBackwardParams) {
                    #[cfg(tier = "sm_90a")]
                    cuda_std::grid_dependency::wait();
                    by_blocks::<$element, Block<SUMS_LARGE_THREADS>, SUMS_LARGE_HELD>(params)
                }

                /// Gradient of `x` and statistics of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: NormBackwardParams) {
                    #[cfg(tier = "sm_90a")]
                    cuda_std::grid_dependency::wait();
                    by_parts::<$element, Block<LONG_THREADS>, PAIR_LONG>(params)
                }

                /// Partial gradients of weight and bias by the statistics of the rows.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $columns(params: NormBackwardParams) {
                    columns::<$element>(params)
                }

                /// Sums of the columns of an f32 matrix, in this dtype; dynamic shared memory of [`SUM_BYTES`].
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say.
                #[launch(threads = THREADS)]
                pub fn $sum(params: NormSumParams) {
                    add_columns::<$element>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! cluster_backwards {
        ($($cluster:ident $element:ty)*) => {
            kernel! {$(
                /// Gradients of rows of up to [`SUMS_CLUSTER_COLUMNS`] elements; a cluster is a team.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `cluster_ring_bytes`.
                #[launch(threads = SUMS_CLUSTER_THREADS)]
                pub fn $cluster(params: NormBackwardParams) {
                    #[cfg(tier = "sm_90a")]
                    cuda_std::grid_dependency::wait();
                    by_clusters::<$element, SUMS_CLUSTER_HELD>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    cluster_backwards! {
        norm_cluster_backward_f32 f32
        norm_cluster_backward_f16 F16
        norm_cluster_backward_bf16 Bf16
    }

    backwards! {
        norm_warp_backward_f32 norm_block_backward_f32 norm_large_backward_f32 norm_long_backward_f32
            norm_columns_f32 norm_sum_f32 f32
        norm_warp_backward_f16 norm_block_backward_f16 norm_large_backward_f16 norm_long_backward_f16
            norm_columns_f16 norm_sum_f16 F16
        norm_warp_backward_bf16 norm_block_backward_bf16 norm_large_backward_bf16 norm_long_backward_bf16
            norm_columns_bf16 norm_sum_bf16 Bf16
    }
}
