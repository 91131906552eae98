//! `linear_cluster*`: products by wgmma for the common epilogue (factor, bias, activation, gate; 16-bit results that TMA
//! can store), built so that the tensor cores do not wait for it.
//!
//! - Blocks of a cluster take tiles below one another and fetch the weight's tile together: each loads its part of it
//!   into the shared memory of all of them (multicast), so that it leaves L2 once.
//! - Two warpgroups compute a tile each, in turns: while one is in its epilogue, the other one's products run.
//! - The epilogue happens in the accumulators' registers; the results leave by `stmatrix` and by TMA, each warp its own
//!   16 rows, 64 columns at a time, and nobody waits for these stores before their buffer is needed again.
//!
//! Sums are those of `linear_hopper*`, bit by bit.

use super::boxes::{BOX_BYTES, Destination, store_rows};
use super::epilogue::{Columns, Epilogue, pair_of};
use super::gemm_sm90::{Half, operand_tiles};
use super::params::*;
use crate::pipeline::{Cursor, InCluster, OneThread, Ring, Warps};
use crate::tile::element::{Bf16, F16};
use core::mem::offset_of;
use cuda_std::{
    barrier, bulk, grid_dependency,
    launch::ParamAddress,
    mbarrier, register, shared, thread, tma, warp,
    wgmma::{self, Acc, InFlight, MmaShape},
};

/// The first computing warpgroup's bias has come; the second one's barrier is the next.
const BIAS_THERE: u32 = 1;

/// The first computing warpgroup's products may begin; the second one's barrier is the next.
const TURN: u32 = 3;

/// The kernel. Two warpgroups compute a tile of `64·H × 2·R` each, in turns. `C` blocks are a cluster. A warp has `B`
/// buffers for boxes that it stores.
///
/// # Safety
/// - `params`, at `address`, describes tensors of the device and their maps; the launch has [`HOPPER_THREADS`] threads,
///   `shared` bytes of [`ClusterShape`] and clusters of `C`.
#[inline(always)]
unsafe fn linear<
    E: Half,
    const H: usize,
    const R: usize,
    const STAGES: u32,
    const C: u32,
    const B: u32,
    const KN: bool,
>(
    params: &ClusterParams,
    address: ParamAddress,
) where
    InFlight<R>: MmaShape,
{
    let width = 2 * R as u32;
    let rows = H as u32 * 64;
    let [x_tile, w_tile] = const { operand_tiles(2 * R as u32, KN) };
    let x_bytes = rows * HOPPER_DEPTH * 2;
    let stage_bytes = x_bytes + w_tile.bytes();
    let base = shared::dynamic_base();
    let staging = base + STAGES * stage_bytes;
    let biases = staging + 8 * B * BOX_BYTES;
    let ring = Ring::<STAGES, OneThread, InCluster<Warps<4>, C>>::new(biases + 2 * width * 4);
    let linear = &params.linear;
    let warp_idx = thread::warp_idx();
    let pairs_of_problem = linear.tiles_m * linear.tiles_n;
    let steps = params.steps;
    let rank = if C == 1 { 0 } else { thread::cluster_block_rank() };
    let cluster = thread::block_idx_x() / C;
    let clusters = thread::grid_dim_x() / C;
    // SAFETY: the caller's description of tensors and maps; all threads meet at the barriers; the ring's participants
    // are one thread and the warps that compute a tile, of all blocks of the cluster.
    unsafe {
        core::hint::assert_unchecked(pairs_of_problem != 0);
        if thread::thread_idx_x() == 0 {
            tma::prefetch_tensormap(address.tensor_map(offset_of!(ClusterParams, x_map)));
            tma::prefetch_tensormap(address.tensor_map(offset_of!(ClusterParams, w_map)));
            tma::prefetch_tensormap(address.tensor_map(offset_of!(ClusterParams, y_map)));
            ring.init();
            mbarrier::fence_init();
        }
        if linear.bias.address == 0 && thread::thread_idx_x() < width {
            shared::st(biases + thread::thread_idx_x() * 4, 0.0f32);
            shared::st(biases + (width + thread::thread_idx_x()) * 4, 0.0f32);
        }
        barrier::syncthreads();
        if C > 1 {
            // The fence above has released what matters.
            barrier::cluster_arrive_relaxed();
            barrier::cluster_wait();
        }
        grid_dependency::launch_dependents();
        grid_dependency::wait();
        let mut at = Cursor::<STAGES>::start();
        if warp_idx < 4 {
            // The block has 168 · 384 registers: 40 · 128 + 232 · 256, or 24 · 128 + 240 · 256. Eight more, and a
            // warpgroup waits for ever.
            if H * R > 128 {
                register::setmaxnreg_dec::<24>();
            } else {
                register::setmaxnreg_dec::<40>();
            }
            if thread::thread_idx_x() == 0 {
                let x_map = address.tensor_map(offset_of!(ClusterParams, x_map));
                let w_map = address.tensor_map(offset_of!(ClusterParams, w_map));
                let everyone = (1 << C) - 1;
                let mut pair = cluster;
                while pair < params.pairs {
                    let batch = (pair / pairs_of_problem) as i32;
                    let (pair_m, tile_n) = pair_of(linear, pair % pairs_of_problem, params.group);
                    let w_batch = if linear.w_batch_stride == 0 { 0 } else { batch };
                    let row = ((pair_m * C + rank) * rows) as i32;
                    let first = tile_n * width;
                    let mut step = 0;
                    while step < steps {
                        ring.wait_empty(at);
                        ring.expect(at, stage_bytes);
                        let full = ring.full(at);
                        let x = base + at.stage() * stage_bytes;
                        let k = (step * HOPPER_DEPTH) as i32;
                        tma::load_3d(x, x_map, [k, row, batch], full);
                        // This block's part of the weight's tile.
                        let w = x + x_bytes + rank * (w_tile.bytes() / C);
                        if KN {
                            let panels = width / 64 / C;
                            let mut panel = 0;
                            while panel < panels {
                                let to = w + panel * w_tile.panel_bytes();
                                let column = (first + (rank * panels + panel) * 64) as i32;
                                if C == 1 {
                                    tma::load_3d(to, w_map, [column, k, w_batch], full);
                                } else {
                                    tma::load_3d_multicast(to, w_map, [column, k, w_batch], full, everyone);
                                }
                                panel += 1;
                            }
                        } else if linear.gated != 0 {
                            let group = (tile_n * (width / 16) + rank * (width / 16 / C)) as i32;
                            if C == 1 {
                                tma::load_5d(w, w_map, [k, 0, 0, group, w_batch], full);
                            } else {
                                tma::load_5d_multicast(w, w_map, [k, 0, 0, group, w_batch], full, everyone);
                            }
                        } else {
                            let column = (first + rank * (width / C)) as i32;
                            if C == 1 {
                                tma::load_3d(w, w_map, [k, column, w_batch], full);
                            } else {
                                tma::load_3d_multicast(w, w_map, [k, column, w_batch], full, everyone);
                            }
                        }
                        at = at.next();
                        step += 1;
                    }
                    pair += clusters;
                }
            }
        } else {
            if H * R > 128 {
                register::setmaxnreg_inc::<240>();
            } else {
                register::setmaxnreg_inc::<232>();
            }
            let group = warp_idx / 4 - 1;
            let thread = thread::thread_idx_x() % 128;
            let bias = biases + group * width * 4;
            let buffers = staging + (warp_idx - 4) * (B * BOX_BYTES);
            let y_map = address.tensor_map(offset_of!(ClusterParams, y_map));
            // This warpgroup's tiles are every second one of the block's.
            let mut pair = cluster;
            if group == 1 {
                pair += clusters;
                at = at.skip(steps);
            }
            while pair < params.pairs {
                let batch = pair / pairs_of_problem;
                let (pair_m, tile_n) = pair_of(linear, pair % pairs_of_problem, params.group);
                // The tile's bias comes while the tensor cores work.
                let columns = Columns::new(linear, tile_n, width);
                let mut bias_here = [0.0; 2];
                if linear.bias.address != 0 {
                    let epilogue = Epilogue::new(linear, batch as u64);
                    let mut i = 0;
                    while i < 2 {
                        let (column, weight_column) = columns.of(thread + 128 * i as u32);
                        if thread + 128 * (i as u32) < width && column < linear.n {
                            bias_here[i] = epilogue.bias_at(weight_column);
                        }
                        i += 1;
                    }
                }
                let mut d = Acc::<R>::ZERO.start();
                let mut below: InFlight<R> = if H == 2 {
                    Acc::<R>::ZERO.start()
                } else {
                    core::mem::zeroed()
                };
                // A stage's parity says nothing to who is two rounds ahead, so a tile waits for the loads of the one before.
                if pair != cluster {
                    barrier::sync(TURN + group, 256);
                }
                let mut step = 0;
                let mut previous = at;
                while step < steps {
                    ring.wait_full(at);
                    let x = base + at.stage() * stage_bytes;
                    let a = x_tile.k_major(x);
                    let b = if KN {
                        w_tile.mn_major(x + x_bytes)
                    } else {
                        w_tile.k_major(x + x_bytes)
                    };
                    wgmma::fence();
                    let mut i = 0;
                    while i < HOPPER_DEPTH / 16 {
                        let b = b.advance(if KN { w_tile.mn_step(i) } else { w_tile.k_step(i) });
                        let a = a.advance(x_tile.k_step(i));
                        let more = step > 0 || i > 0;
                        d = d.mma_shared::<E::Operand, false, KN>(a, b, more);
                        if H == 2 {
                            below = below.mma_shared::<E::Operand, false, KN>(a.advance(x_tile.bytes()), b, more);
                        }
                        i += 1;
                    }
                    wgmma::commit_group();
                    // The step before has read its stage.
                    wgmma::wait_group::<1>();
                    if step > 0 {
                        ring.release(previous);
                    }
                    previous = at;
                    at = at.next();
                    step += 1;
                }
                if pair + clusters < params.pairs {
                    barrier::arrive(TURN + 1 - group, 256);
                }
                let d = d.wait::<0>().0;
                ring.release(previous);

                if linear.bias.address != 0 {
                    // All warps have left the epilogue before.
                    barrier::sync(BIAS_THERE + group, 128);
                    if thread < width {
                        shared::st(bias + thread * 4, bias_here[0]);
                    }
                    if width > 128 && thread + 128 < width {
                        shared::st(bias + (thread + 128) * 4, bias_here[1]);
                    }
                    barrier::sync(BIAS_THERE + group, 128);
                }
                let row = (pair_m * C + rank) * rows + warp_idx % 4 * 16;
                let to = Destination {
                    map: y_map,
                    at: [columns.first() as i32, row as i32, batch as i32],
                    buffers,
                };
                // Boxes of 64 columns; half the columns of a gated tile of 192 are boxes of 32.
                if KN || linear.gated == 0 {
                    store_rows::<E, R, 32, B, false>(linear, &d, bias, to, 0, H);
                } else if R == 96 {
                    store_rows::<E, R, 16, B, true>(linear, &d, bias, to, 0, H);
                } else {
                    store_rows::<E, R, 32, B, true>(linear, &d, bias, to, 0, H);
                }
                if H == 2 {
                    let d = below.complete().0;
                    if KN || linear.gated == 0 {
                        store_rows::<E, R, 32, B, false>(linear, &d, bias, to, 1, H);
                    } else if R == 96 {
                        store_rows::<E, R, 16, B, true>(linear, &d, bias, to, 1, H);
                    } else {
                        store_rows::<E, R, 32, B, true>(linear, &d, bias, to, 1, H);
                    }
                }
                pair += 2 * clusters;
                at = at.skip(steps);
            }
            // TMA reads shared memory until here.
            bulk::wait_group_read::<0>();
        }
        // Nobody ends while another block still arrives at its barriers.
        if C > 1 {
            barrier::syncwarp(warp::FULL);
            barrier::cluster_arrive_relaxed();
            barrier::cluster_wait();
        }
    }
}

/// Entries, by element type, shape and layout of the weight.
macro_rules! entries {
    ($($name:ident: $type:ty, $shape:ident, $kn:literal;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of 16-bit elements by wgmma; any number of clusters share the tiles of all problems.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type and layout, and their maps.
            #[launch(threads = HOPPER_THREADS, min_blocks = 1, cluster = $shape.blocks, tensor_core = 1, param_align = 64)]
            pub fn $name(params: ClusterParams, address: ParamAddress) {
                linear::<
                    $type,
                    { $shape.rows as usize / 64 },
                    { $shape.columns as usize / 2 },
                    { $shape.stages },
                    { $shape.blocks },
                    { $shape.buffers },
                    $kn,
                >(&params, address)
            }
        )*}
    };
}

entries! {
    linear_cluster_64_nk_f16: F16, CLUSTER_64, false;
    linear_cluster_64_nk_bf16: Bf16, CLUSTER_64, false;
    linear_cluster_64_kn_f16: F16, CLUSTER_64, true;
    linear_cluster_64_kn_bf16: Bf16, CLUSTER_64, true;
    linear_cluster_128_nk_f16: F16, CLUSTER_128, false;
    linear_cluster_128_nk_bf16: Bf16, CLUSTER_128, false;
    linear_cluster_128_kn_f16: F16, CLUSTER_128, true;
    linear_cluster_128_kn_bf16: Bf16, CLUSTER_128, true;
    linear_cluster_192_nk_f16: F16, CLUSTER_192, false;
    linear_cluster_192_nk_bf16: Bf16, CLUSTER_192, false;
}
