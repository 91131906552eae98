//! `linear_cooperative*`: the products of `linear_cluster*` with the fewest bytes, for layers so deep that it costs little
//! when the tensor cores wait for an epilogue.
//!
//! - Both warpgroups compute halves of one tile, one below the other, and share the weight's.
//! - The blocks of a cluster compute tiles side by side and fetch their rows of x together (multicast).
//! - Each warpgroup's rows of x and the weight have rings of their own.
//!
//! Sums are those of `linear_hopper*`, bit by bit.

use super::boxes::BOX_BYTES;
use super::cluster_tile::{ClusterTile, InStep, Operands, Part, Side, maps, meet};
use super::gemm_sm90::{Half, operand_tiles};
use super::params::*;
use crate::pipeline::{Cursor, InCluster, OneThread, Ring, Warps, ring_bytes};
use crate::tile::element::{Bf16, F16};
use core::mem::offset_of;
use cuda_std::{
    barrier, bulk, grid_dependency,
    launch::ParamAddress,
    mbarrier, register, shared, thread, tma, warp,
    wgmma::{InFlight, MmaShape},
};

/// A warpgroup's rows of x, which the cluster's blocks fetch together.
type RowsOfX<const STAGES: u32, const C: u32> = Ring<STAGES, OneThread, InCluster<Warps<4>, C>>;

/// The weight, which both warpgroups read.
type Weight<const STAGES: u32> = Ring<STAGES, OneThread, Warps<8>>;

/// Operands in rings of their own, so that a warpgroup's rows of x do not wait for the other one to leave a stage.
#[derive(Clone, Copy)]
struct Apart<const X: u32, const W: u32, const C: u32> {
    x: RowsOfX<X, C>,
    x_base: u32,
    w: Weight<W>,
    w_base: u32,
    w_bytes: u32,
    x_at: Cursor<X>,
    w_at: Cursor<W>,
}

impl<const X: u32, const W: u32, const C: u32> Operands for Apart<X, W, C> {
    #[inline(always)]
    unsafe fn wait(self) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.x.wait_full(self.x_at);
            self.w.wait_full(self.w_at);
        }
    }

    #[inline(always)]
    fn addresses(self) -> [u32; 2] {
        [
            self.x_base + self.x_at.stage() * HALF_BYTES,
            self.w_base + self.w_at.stage() * self.w_bytes,
        ]
    }

    #[inline(always)]
    fn next(self) -> Self {
        Self {
            x_at: self.x_at.next(),
            w_at: self.w_at.next(),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn release_previous(self) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.x.release(self.x_at.previous());
            self.w.release(self.w_at.previous());
        }
    }
}

/// Bytes of a warpgroup's rows of x in a stage.
const HALF_BYTES: u32 = HOPPER_ROWS * HOPPER_DEPTH * 2;

/// The kernel. A block's tiles are `256 × 2·R`, and at last `256 × 2·N`, if they are narrower; `C` blocks side by side
/// are a cluster. A warp has `B` buffers for boxes that it stores.
///
/// # Safety
/// - `params`, at `address`, describes tensors of the device and their maps; the launch has [`HOPPER_THREADS`] threads,
///   `shared` bytes of [`ClusterShape`] and clusters of `C`.
#[inline(always)]
unsafe fn linear<E: Half, const R: usize, const N: usize, const X: u32, const W: u32, const C: u32, const B: u32>(
    params: &ClusterParams,
    address: ParamAddress,
) where
    InFlight<R>: MmaShape,
    InFlight<N>: MmaShape,
{
    const { assert!(N < R && R > 64) };
    let widths = [2 * R as u32, 2 * N as u32];
    let width = widths[0];
    let w_tile = const { operand_tiles(2 * R as u32, false)[1] };
    let w_bytes = w_tile.bytes();
    let base = shared::dynamic_base();
    let w_base = base + 2 * X * HALF_BYTES;
    let staging = w_base + W * w_bytes;
    let biases = staging + 8 * B * BOX_BYTES;
    let barriers = biases + 2 * width * 4;
    // Each warpgroup's rows of x, then the weight.
    let x_ring = |group: u32| RowsOfX::<X, C>::new(barriers + group * ring_bytes(X));
    let x_base = |group: u32| base + group * X * HALF_BYTES;
    let w_ring = Weight::<W>::new(barriers + 2 * ring_bytes(X));
    let linear = &params.linear;
    let warp_idx = thread::warp_idx();
    let steps = params.steps;
    let rank = thread::cluster_block_rank();
    let cluster = thread::block_idx_x() / C;
    let clusters = thread::grid_dim_x() / C;
    let cluster_widths = [widths[0] * C, widths[1] * C];
    // SAFETY: the caller's description of tensors and maps; all threads meet at the barriers; the ring's participants
    // are one thread and the computing warps of all blocks of the cluster.
    unsafe {
        if warp_idx < 4 {
            let leads = thread::thread_idx_x() == 0;
            let [x_map, w_map, _] = maps(address);
            if leads {
                x_ring(0).init();
                x_ring(1).init();
                w_ring.init();
                mbarrier::fence_init();
            }
            // Found before the wait, not after it.
            let mut tile = ClusterTile::new::<true>(params, cluster, cluster_widths).found();
            meet();
            grid_dependency::launch_dependents();
            grid_dependency::wait();

            // As in `linear_cluster*`.
            register::setmaxnreg_dec::<24>();
            // One thread each loads the rows of a warpgroup, and the weight.
            let mut index = cluster + clusters;
            let loader = thread::thread_idx_x() / 32;
            if loader < 2 && thread::lane_id() == 0 {
                let ring = x_ring(loader);
                let rows = HOPPER_ROWS / C;
                let mut at = Cursor::<X>::start();
                loop {
                    // This block's part of them, for all blocks of the cluster.
                    let row = (tile.row * 2 + loader) * HOPPER_ROWS + rank * rows;
                    let mut step = 0;
                    while step < steps {
                        ring.wait_empty(at);
                        ring.expect(at, HALF_BYTES);
                        tma::load_3d_multicast_cache_hint(
                            x_base(loader) + rank * rows * (HOPPER_DEPTH * 2) + at.stage() * HALF_BYTES,
                            x_map,
                            [(step * HOPPER_DEPTH) as i32, row as i32, tile.batch as i32],
                            ring.full(at),
                            (1 << C) - 1,
                            bulk::CachePolicy::evict_last(),
                        );
                        at = at.next();
                        step += 1;
                    }
                    if index >= params.pairs {
                        break;
                    }
                    tile = ClusterTile::new::<true>(params, index, cluster_widths);
                    index += clusters;
                }
            } else if loader == 2 && thread::lane_id() == 0 {
                let mut at = Cursor::<W>::start();
                loop {
                    let batch = if linear.w_batch_stride == 0 {
                        0
                    } else {
                        tile.batch as i32
                    };
                    let part = if tile.wide { widths[0] } else { widths[1] };
                    let first = tile.column + rank * part;
                    let mut step = 0;
                    while step < steps {
                        w_ring.wait_empty(at);
                        w_ring.expect(at, part * HOPPER_DEPTH * 2);
                        let k = (step * HOPPER_DEPTH) as i32;
                        let mut column = 0;
                        while column < width && (column < widths[1] || tile.wide) {
                            let to = w_base + at.stage() * w_bytes + column * (HOPPER_DEPTH * 2);
                            let from = (first + column) as i32;
                            if linear.gated != 0 {
                                tma::load_5d(to, w_map, [k, 0, 0, from / 16, batch], w_ring.full(at));
                            } else {
                                tma::load_3d(to, w_map, [k, from, batch], w_ring.full(at));
                            }
                            column += 64;
                        }
                        at = at.next();
                        step += 1;
                    }
                    if index >= params.pairs {
                        break;
                    }
                    tile = ClusterTile::new::<true>(params, index, cluster_widths);
                    index += clusters;
                }
            }
        } else {
            meet();
            grid_dependency::wait();
            register::setmaxnreg_inc::<240>();
            let group = warp_idx / 4 - 1;
            let mut at = Apart {
                x: x_ring(group),
                x_base: x_base(group),
                w: w_ring,
                w_base,
                w_bytes,
                x_at: Cursor::start(),
                w_at: Cursor::start(),
            };
            let side = Side {
                params,
                group,
                bias: biases + group * width * 4,
                buffers: staging + (warp_idx - 4) * (B * BOX_BYTES),
                y_map: address.tensor_map(offset_of!(ClusterParams, y_map)),
            };
            side.without_bias(width);
            let mut index = cluster;
            while index < params.pairs {
                let tile = ClusterTile::new::<true>(params, index, cluster_widths);
                let part = |width: u32| Part {
                    batch: tile.batch,
                    row: (tile.row * 2 + group) * HOPPER_ROWS,
                    column: tile.column + rank * width,
                };
                at = if tile.wide {
                    side.tile::<E, _, 2, R, B, false>(part(widths[0]), at, InStep, 0)
                } else {
                    side.tile::<E, _, 2, N, B, false>(part(widths[1]), at, InStep, 0)
                };
                index += clusters;
            }
            // TMA reads shared memory until here.
            bulk::wait_group_read::<0>();
        }
        // Nobody ends while another block still arrives at its barriers.
        barrier::syncwarp(warp::FULL);
        meet();
    }
}

/// Entries, by element type and shape.
macro_rules! entries {
    ($($name:ident: $type:ty, $shape:ident;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of 16-bit elements by wgmma; any number of clusters share the tiles of all problems.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, and their maps.
            #[launch(threads = HOPPER_THREADS, min_blocks = 1, cluster = $shape.blocks, tensor_core = 1, param_align = 64)]
            pub fn $name(params: ClusterParams, address: ParamAddress) {
                linear::<
                    $type,
                    { $shape.columns as usize / 2 },
                    { $shape.narrow as usize / 2 },
                    { $shape.stages },
                    { $shape.weight_stages },
                    { $shape.blocks },
                    { $shape.buffers },
                >(&params, address)
            }
        )*}
    };
}

entries! {
    linear_cooperative_192_nk_f16: F16, COOPERATIVE_192;
    linear_cooperative_192_nk_bf16: Bf16, COOPERATIVE_192;
}
