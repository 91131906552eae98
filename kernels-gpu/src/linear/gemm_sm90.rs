//! `linear_hopper*`: products by wgmma, for 16-bit types that TMA can load and every epilogue. What has none but factor,
//! bias, activation and gate runs on `linear_cluster*`.
//!
//! One warpgroup loads, one thread of it, by TMA into a ring of stages 64 deep; two compute 64 rows each of a tile of
//! 128 rows and 128 or 256 columns of the weight. Blocks stay and take tile after tile, and the next tile's loads run
//! ahead under the epilogue, which the accumulators reach through shared memory, each warp its own 16 rows, 64
//! columns at a time.
//!
//! A weight `[n, k]` is the K-major operand of wgmma, `[k, n]` the transposed one. The eight-column turns of gated
//! pairs are two axes of the tensor map.

use super::epilogue::{Columns, Epilogue, tile_of};
use super::params::*;
use crate::activation::eight::activate_fast;
use crate::pipeline::{Cursor, OneThread, Ring, Warps};
use crate::tile::element::{Bf16, Element, F16};
use crate::tile::layout::{Swizzle, TileLayout};
use crate::tile::opaque::opaque;
use core::mem::offset_of;
use cuda_std::{
    barrier,
    launch::ParamAddress,
    mbarrier, register, shared, thread, tma, warp,
    wgmma::{self, Acc, InFlight, MmaShape},
};

/// A stage's tiles for a warpgroup: 64 rows of x, and `columns` of the weight, which is dense along n if `kn`.
pub(super) const fn operand_tiles(columns: u32, kn: bool) -> [TileLayout; 2] {
    let (rows, depth) = if kn {
        (HOPPER_DEPTH, columns)
    } else {
        (columns, HOPPER_DEPTH)
    };
    [
        TileLayout::new(64, HOPPER_DEPTH, 2, Swizzle::B128),
        TileLayout::new(rows, depth, 2, Swizzle::B128),
    ]
}

/// Eight warps compute.
type Stages<const N: u32> = Ring<N, OneThread, Warps<8>>;

/// A 16-bit element type, as wgmma knows it and as memory does.
pub(super) trait Half: Element {
    /// wgmma's name of it.
    type Operand: wgmma::Element;
    /// `DTYPE_*`.
    const DTYPE: u32;
    /// The value of so many bits.
    fn of_bits(bits: u16) -> Self;
    /// Its bits.
    fn bits(self) -> u16;
}

impl Half for F16 {
    type Operand = wgmma::F16;
    const DTYPE: u32 = DTYPE_F16;

    #[inline(always)]
    fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.0
    }
}

impl Half for Bf16 {
    type Operand = wgmma::Bf16;
    const DTYPE: u32 = DTYPE_BF16;

    #[inline(always)]
    fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.0
    }
}

/// The kernel: tiles of 128 rows and `2·R` columns of the weight, through `STAGES` stages. `KN` says that the weight
/// is dense along n.
///
/// # Safety
/// - `params`, at `address`, describes tensors of the device and their maps; the launch has [`HOPPER_THREADS`] threads
///   and [`hopper_shared`] bytes.
#[inline(always)]
unsafe fn linear<E: Half, const R: usize, const STAGES: u32, const KN: bool>(
    params: &HopperParams,
    address: ParamAddress,
) where
    InFlight<R>: MmaShape,
{
    let width = 2 * R as u32;
    let [x_tile, w_tile] = const { operand_tiles(2 * R as u32, KN) };
    let x_bytes = HOPPER_ROWS * HOPPER_DEPTH * 2;
    let stage_bytes = x_bytes + w_tile.bytes();
    let base = shared::dynamic_base();
    let staging = base + STAGES * stage_bytes;
    let ring = Stages::<STAGES>::new(staging + HOPPER_STAGING);
    let linear = &params.linear;
    let warp_idx = thread::warp_idx();
    let tiles_of_problem = linear.tiles_m * linear.tiles_n;
    let steps = params.steps;
    // SAFETY: the caller's description of tensors and maps; all threads meet at the barrier; the ring's participants
    // are one thread and the eight warps of two warpgroups.
    unsafe {
        core::hint::assert_unchecked(tiles_of_problem != 0);
        if thread::thread_idx_x() == 0 {
            ring.init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        let mut at = Cursor::<STAGES>::start();
        let mut tile = thread::block_idx_x();
        if warp_idx < 4 {
            // The block has 168 · 384 registers: 40 · 128 + 232 · 256. Eight more, and a warpgroup waits for ever.
            register::setmaxnreg_dec::<40>();
            if thread::thread_idx_x() == 0 {
                let x_map = address.tensor_map(offset_of!(HopperParams, x_map));
                let w_map = address.tensor_map(offset_of!(HopperParams, w_map));
                while tile < params.tiles {
                    let batch = (tile / tiles_of_problem) as i32;
                    let (tile_m, tile_n) = tile_of::<16>(linear, tile % tiles_of_problem);
                    let w_batch = if linear.w_batch_stride == 0 { 0 } else { batch };
                    let row = (tile_m * HOPPER_ROWS) as i32;
                    let mut step = 0;
                    while step < steps {
                        ring.wait_empty(at);
                        ring.expect(at, stage_bytes);
                        let full = ring.full(at);
                        let x = base + at.stage() * stage_bytes;
                        let w = x + x_bytes;
                        let k = (step * HOPPER_DEPTH) as i32;
                        tma::load_3d(x, x_map, [k, row, batch], full);
                        if KN {
                            let mut panel = 0;
                            while panel < 2 * R as u32 / 64 {
                                let column = (tile_n * 2 * R as u32 + panel * 64) as i32;
                                tma::load_3d(w + panel * w_tile.panel_bytes(), w_map, [column, k, w_batch], full);
                                panel += 1;
                            }
                        } else if linear.gated != 0 {
                            let group = (tile_n * (R as u32 / 8)) as i32;
                            tma::load_5d(w, w_map, [k, 0, 0, group, w_batch], full);
                        } else {
                            tma::load_3d(w, w_map, [k, (tile_n * 2 * R as u32) as i32, w_batch], full);
                        }
                        at = at.next();
                        step += 1;
                    }
                    tile += thread::grid_dim_x();
                }
            }
        } else {
            register::setmaxnreg_inc::<232>();
            let group = warp_idx / 4 - 1;
            let lane = thread::lane_id();
            let gated = linear.gated != 0;
            let warp_row = group * 64 + warp_idx % 4 * 16;
            let own = staging + (warp_idx - 4) * 4096;
            // The second warpgroup begins two stages behind the first: while one is in its epilogue, the other has the
            // tensor cores to itself.
            if group == 1 && steps > 2 && tile < params.tiles {
                ring.wait_full(at.next().next());
            }
            while tile < params.tiles {
                let (tile_m, tile_n) = tile_of::<16>(linear, tile % tiles_of_problem);
                let batch = tile / tiles_of_problem;
                let mut d = Acc::<R>::ZERO.start();
                let mut step = 0;
                let mut previous = at;
                while step < steps {
                    ring.wait_full(at);
                    let x = base + at.stage() * stage_bytes;
                    let a = x_tile.k_major(x + group * x_tile.bytes());
                    let b = if KN {
                        w_tile.mn_major(x + x_bytes)
                    } else {
                        w_tile.k_major(x + x_bytes)
                    };
                    wgmma::fence();
                    let mut i = 0;
                    while i < HOPPER_DEPTH / 16 {
                        let b = b.advance(if KN { w_tile.mn_step(i) } else { w_tile.k_step(i) });
                        d = d.mma_shared::<E::Operand, false, KN>(a.advance(x_tile.k_step(i)), b, step > 0 || i > 0);
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
                let d = d.wait::<0>().0;
                ring.release(previous);

                let columns = Columns::new(linear, tile_n, width);
                let first_row = tile_m as u64 * HOPPER_ROWS as u64 + warp_row as u64;
                let chunks = opaque(width / 64);
                let mut chunk = 0;
                while chunk < chunks {
                    // Addresses are made anew for each chunk: kept, they would need more registers than there are.
                    let (own, lane) = (opaque(own), opaque(lane));
                    let (row, pair) = (lane / 4, lane % 4);
                    let epilogue = Epilogue::new(linear, opaque(batch) as u64);
                    let plain = epilogue.is_plain(E::DTYPE);
                    // Registers have constant numbers, so each chunk has its own stores; the rest is one loop.
                    let mut c = 0;
                    while c < R / 32 {
                        if chunk == c as u32 {
                            let mut j = 0;
                            while j < 8 {
                                let to = own + row * 256 + (j as u32 ^ row) * 32 + pair * 8;
                                let r = 32 * c + 4 * j;
                                shared::st(to, [d[r], d[r + 1]]);
                                shared::st(to + 8 * 256, [d[r + 2], d[r + 3]]);
                                j += 1;
                            }
                        }
                        c += 1;
                    }
                    barrier::syncwarp(warp::FULL);
                    // Eight columns and every fourth row (eighth when gated) are this lane's.
                    let (row, eight) = if gated {
                        (lane / 4, lane % 4 * 2)
                    } else {
                        (lane / 8, lane % 8)
                    };
                    let (column, weight_column) = columns.of(chunk * 64 + eight * 8);
                    let product = |row: u32, eight: u32| staged(own + row * 256 + (eight ^ (row % 8)) * 32);
                    if plain && column < linear.n {
                        // A loop, and the bias loaded anew in each turn: all at once would need more registers than there are.
                        let mut row = row;
                        let end = opaque(16);
                        if gated {
                            while row < end {
                                let bias = epilogue.bias(weight_column);
                                let up_bias = epilogue.bias(weight_column + linear.n);
                                let products = [[product(row, eight), product(row, eight + 1)]];
                                let y_row = first_row + row as u64;
                                epilogue.finish_rows::<E, 1, true>(
                                    y_row,
                                    linear.m,
                                    column,
                                    [bias, up_bias],
                                    products,
                                    activate_fast,
                                );
                                row += 8;
                            }
                        } else {
                            while row < end {
                                let y_row = first_row + row as u64;
                                let bias = [epilogue.bias(weight_column), [0.0; 8]];
                                let first = [product(row, eight), [0.0; 8]];
                                if R > 64 {
                                    epilogue.finish_rows::<E, 1, false>(
                                        y_row,
                                        linear.m,
                                        column,
                                        bias,
                                        [first],
                                        activate_fast,
                                    );
                                    row += 4;
                                } else {
                                    let products = [first, [product(row + 4, eight), [0.0; 8]]];
                                    epilogue.finish_rows::<E, 2, false>(
                                        y_row,
                                        linear.m,
                                        column,
                                        bias,
                                        products,
                                        activate_fast,
                                    );
                                    row += 8;
                                }
                            }
                        }
                    } else if !plain {
                        let step = if gated { 8 } else { 4 };
                        let mut row = row;
                        while row < 16 {
                            if first_row + (row as u64) < linear.m {
                                let (z, up) = (product(row, eight), || product(row, eight + 1));
                                epilogue.finish_by(first_row + row as u64, column, z, up, activate_fast);
                            }
                            row += step;
                        }
                    }
                    barrier::syncwarp(warp::FULL);
                    chunk += 1;
                }
                tile += thread::grid_dim_x();
            }
        }
    }
}

/// Eight floats of shared memory.
#[inline(always)]
unsafe fn staged(address: u32) -> [f32; 8] {
    // SAFETY: forwarded to the caller.
    let [a, b]: [[f32; 4]; 2] = unsafe { [shared::ld(address), shared::ld(address + 16)] };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// Entries, by columns of a tile and layout of the weight.
macro_rules! entries {
    ($($name:ident: $type:ty, $columns:literal, $kn:literal;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of 16-bit elements by wgmma; any number of blocks share the tiles of all problems.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type and layout, and their maps.
            #[launch(threads = HOPPER_THREADS, min_blocks = 1, tensor_core = 1, param_align = 64)]
            pub fn $name(params: HopperParams, address: ParamAddress) {
                linear::<$type, { $columns / 2 }, { hopper_stages($columns) }, $kn>(&params, address)
            }
        )*}
    };
}

entries! {
    linear_hopper256_nk_f16: F16, 256, false;
    linear_hopper256_kn_f16: F16, 256, true;
    linear_hopper256_nk_bf16: Bf16, 256, false;
    linear_hopper256_kn_bf16: Bf16, 256, true;
    linear_hopper128_nk_f16: F16, 128, false;
    linear_hopper128_kn_f16: F16, 128, true;
    linear_hopper128_nk_bf16: Bf16, 128, false;
    linear_hopper128_kn_bf16: Bf16, 128, true;
}
