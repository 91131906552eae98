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

use super::boxes::BOX_BYTES;
use super::cluster_tile::{ClusterTile, OWN_BARRIERS, Operands, Part, Side, Turns, maps, meet};
use super::gemm_sm90::{Half, operand_tiles};
use super::params::*;
use crate::pipeline::{Cursor, InCluster, OneThread, Ring, Warps};
use crate::tile::element::{Bf16, F16};
use core::mem::offset_of;
use cuda_std::{
    barrier, bulk, grid_dependency,
    launch::ParamAddress,
    mbarrier, register, shared, thread, tma, warp,
    wgmma::{InFlight, MmaShape},
};

/// The first computing warpgroup's products may begin; the second one's barrier is the next.
const TURN: u32 = OWN_BARRIERS;

/// The ring is there, in blocks that are no clusters.
const START: u32 = OWN_BARRIERS + 2;

/// A warpgroup's products begin when the other one's tile has all of its own.
#[derive(Clone, Copy)]
struct Alternately {
    group: u32,
    /// Whether the tile is the block's first, or its last.
    first: bool,
    last: bool,
}

impl Turns for Alternately {
    #[inline(always)]
    unsafe fn begin(self) {
        // A stage's parity says nothing to who is two rounds ahead, so a tile waits for the loads of the one before.
        if !self.first {
            // SAFETY: forwarded to the caller; the other warpgroup arrives.
            unsafe { barrier::sync(TURN + self.group, 256) }
        }
    }

    #[inline(always)]
    unsafe fn end(self) {
        if !self.last {
            // SAFETY: forwarded to the caller; the other warpgroup waits.
            unsafe { barrier::arrive(TURN + 1 - self.group, 256) }
        }
    }
}

/// Operands side by side in the stages of one ring.
#[derive(Clone, Copy)]
struct Staged<const STAGES: u32, const C: u32> {
    ring: Ring<STAGES, OneThread, InCluster<Warps<4>, C>>,
    at: Cursor<STAGES>,
    previous: Cursor<STAGES>,
    /// Shared address of the stages, bytes of one and of x in it.
    base: u32,
    bytes: u32,
    x_bytes: u32,
}

impl<const STAGES: u32, const C: u32> Staged<STAGES, C> {
    /// Those of `count` steps later.
    #[inline(always)]
    #[must_use]
    fn skip(self, count: u32) -> Self {
        Self {
            at: self.at.skip(count),
            ..self
        }
    }
}

impl<const STAGES: u32, const C: u32> Operands for Staged<STAGES, C> {
    #[inline(always)]
    unsafe fn wait(self) {
        // SAFETY: forwarded to the caller.
        unsafe { self.ring.wait_full(self.at) }
    }

    #[inline(always)]
    fn addresses(self) -> [u32; 2] {
        let x = self.base + self.at.stage() * self.bytes;
        [x, x + self.x_bytes]
    }

    #[inline(always)]
    fn next(self) -> Self {
        Self {
            previous: self.at,
            at: self.at.next(),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn release_previous(self) {
        // SAFETY: forwarded to the caller.
        unsafe { self.ring.release(self.previous) }
    }
}

/// The kernel. Two warpgroups compute a tile of `64·H × 2·R` each, in turns, and at last tiles of `64·H × 2·N`, if they
/// are narrower. `C` blocks are a cluster. A warp has `B` buffers for boxes that it stores.
///
/// # Safety
/// - `params`, at `address`, describes tensors of the device and their maps; the launch has [`HOPPER_THREADS`] threads,
///   `shared` bytes of [`ClusterShape`] and clusters of `C`.
#[inline(always)]
unsafe fn linear<
    E: Half,
    const H: usize,
    const R: usize,
    const N: usize,
    const STAGES: u32,
    const C: u32,
    const B: u32,
    const KN: bool,
    const MIXED: bool,
>(
    params: &ClusterParams,
    address: ParamAddress,
) where
    InFlight<R>: MmaShape,
    InFlight<N>: MmaShape,
{
    const { assert!(MIXED == (N != R) && !(MIXED && KN)) };
    let widths = [2 * R as u32, 2 * N as u32];
    let width = widths[0];
    let rows = H as u32 * 64;
    let w_tile = const { operand_tiles(2 * R as u32, KN)[1] };
    let x_bytes = rows * HOPPER_DEPTH * 2;
    let stage_bytes = x_bytes + w_tile.bytes();
    let base = shared::dynamic_base();
    let staging = base + STAGES * stage_bytes;
    let biases = staging + 8 * B * BOX_BYTES;
    let ring = Ring::<STAGES, OneThread, InCluster<Warps<4>, C>>::new(biases + 2 * width * 4);
    let linear = &params.linear;
    let warp_idx = thread::warp_idx();
    let steps = params.steps;
    let rank = if C == 1 { 0 } else { thread::cluster_block_rank() };
    let cluster = thread::block_idx_x() / C;
    let clusters = thread::grid_dim_x() / C;
    // SAFETY: the caller's description of tensors and maps; all threads meet at the barriers; the ring's participants
    // are one thread and the warps that compute a tile, of all blocks of the cluster.
    unsafe {
        if warp_idx < 4 {
            let leads = thread::thread_idx_x() == 0;
            let [x_map, w_map, _] = maps(address);
            if leads {
                ring.init();
                mbarrier::fence_init();
            }
            // Found before the wait, not after it.
            let mut pair = ClusterTile::new::<MIXED>(params, cluster, widths).found();
            if C > 1 {
                meet();
            } else if warp_idx == 0 {
                barrier::syncwarp(warp::FULL);
                barrier::arrive(START, 256 + 32);
            }
            grid_dependency::launch_dependents();
            grid_dependency::wait();

            // Starts the loads of a step along k into the stage, which is free.
            let load = |pair: &ClusterTile, step: u32, at: Cursor<STAGES>| {
                let batch = pair.batch as i32;
                let w_batch = if linear.w_batch_stride == 0 { 0 } else { batch };
                let row = ((pair.row * C + rank) * rows) as i32;
                // Columns of this block's part of the weight's tile.
                let part = if pair.wide { widths[0] } else { widths[1] } / C;
                let first = pair.column + rank * part;
                let everyone = (1 << C) - 1;
                ring.expect(at, x_bytes + part * C * HOPPER_DEPTH * 2);
                let full = ring.full(at);
                let x = base + at.stage() * stage_bytes;
                let k = (step * HOPPER_DEPTH) as i32;
                // Blocks of the same rows and other columns read x again, at other times: L2 shall keep it longer. Made
                // anew at each step: there is no register to keep it in.
                let keep = bulk::CachePolicy::evict_last();
                tma::load_3d_cache_hint(x, x_map, [k, row, batch], full, keep);
                let w = x + x_bytes + rank * part * (HOPPER_DEPTH * 2);
                if KN {
                    let panels = width / 64 / C;
                    let mut panel = 0;
                    while panel < panels {
                        let to = w + panel * w_tile.panel_bytes();
                        let column = (first + panel * 64) as i32;
                        if C == 1 {
                            tma::load_3d(to, w_map, [column, k, w_batch], full);
                        } else {
                            tma::load_3d_multicast(to, w_map, [column, k, w_batch], full, everyone);
                        }
                        panel += 1;
                    }
                } else {
                    let mut column = 0;
                    while column < width / C && (column < widths[1] / C || pair.wide) {
                        let to = w + column * (HOPPER_DEPTH * 2);
                        let from = (first + column) as i32;
                        if linear.gated != 0 {
                            let from = [k, 0, 0, from / 16, w_batch];
                            if C == 1 {
                                tma::load_5d(to, w_map, from, full);
                            } else {
                                tma::load_5d_multicast(to, w_map, from, full, everyone);
                            }
                        } else if C == 1 {
                            tma::load_3d(to, w_map, [k, from, w_batch], full);
                        } else {
                            tma::load_3d_multicast(to, w_map, [k, from, w_batch], full, everyone);
                        }
                        column += if MIXED { 32 } else { width / C };
                    }
                }
            };
            // The block has 168 · 384 registers: 40 · 128 + 232 · 256, or 24 · 128 + 240 · 256. Eight more, and a
            // warpgroup waits for ever.
            if H * R > 128 {
                register::setmaxnreg_dec::<24>();
            } else if H * R > 64 {
                register::setmaxnreg_dec::<40>();
            }
            if leads {
                let mut index = cluster;
                let mut at = Cursor::<STAGES>::start();
                loop {
                    let mut step = 0;
                    while step < steps {
                        ring.wait_empty(at);
                        load(&pair, step, at);
                        at = at.next();
                        step += 1;
                    }
                    index += clusters;
                    if index >= params.pairs {
                        break;
                    }
                    pair = ClusterTile::new::<MIXED>(params, index, widths);
                }
            }
        } else {
            if C > 1 {
                meet();
            } else {
                barrier::sync(START, 256 + 32);
            }
            grid_dependency::wait();
            if H * R > 128 {
                register::setmaxnreg_inc::<240>();
            } else if H * R > 64 {
                register::setmaxnreg_inc::<232>();
            }
            let group = warp_idx / 4 - 1;
            let mut at = Staged {
                ring,
                at: Cursor::<STAGES>::start(),
                previous: Cursor::start(),
                base,
                bytes: stage_bytes,
                x_bytes,
            };
            let side = Side {
                params,
                group,
                bias: biases + group * width * 4,
                buffers: staging + (warp_idx - 4) * (B * BOX_BYTES),
                y_map: address.tensor_map(offset_of!(ClusterParams, y_map)),
            };
            side.without_bias(width);
            // This warpgroup's tiles are every second one of the block's.
            let mut index = cluster;
            if group == 1 {
                index += clusters;
                at = at.skip(steps);
            }
            while index < params.pairs {
                let pair = ClusterTile::new::<MIXED>(params, index, widths);
                let part = Part {
                    batch: pair.batch,
                    row: (pair.row * C + rank) * rows,
                    column: pair.column,
                };
                let turns = Alternately {
                    group,
                    first: index == cluster,
                    last: index + clusters >= params.pairs,
                };
                at = if MIXED && !pair.wide {
                    // Six boxes of a wide tile end before buffer 2 of four.
                    side.tile::<E, _, H, N, B, KN>(part, at, turns, 2)
                } else {
                    side.tile::<E, _, H, R, B, KN>(part, at, turns, 0)
                };
                index += 2 * clusters;
                at = at.skip(steps);
            }
            // TMA reads shared memory until here.
            bulk::wait_group_read::<0>();
        }
        // Nobody ends while another block still arrives at its barriers.
        if C > 1 {
            barrier::syncwarp(warp::FULL);
            meet();
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
                    { $shape.narrow as usize / 2 },
                    { $shape.stages },
                    { $shape.blocks },
                    { $shape.buffers },
                    $kn,
                    { $shape.columns != $shape.narrow },
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
