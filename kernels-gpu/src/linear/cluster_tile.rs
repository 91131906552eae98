//! What the kernels of clusters share: which tile is computed when, and how a warpgroup computes one.

use super::boxes::{Destination, store_rows};
use super::epilogue::{Columns, Epilogue};
use super::gemm_sm90::{Half, operand_tiles};
use super::params::*;
use crate::tile::{division::Divisor, opaque::opaque};
use core::mem::offset_of;
use cuda_std::{
    barrier,
    launch::ParamAddress,
    shared, thread, tma,
    wgmma::{self, Acc, InFlight, MmaShape},
};

/// The first computing warpgroup's bias has come; the second one's barrier is the next.
pub const BIAS_THERE: u32 = 1;

/// From here on, barriers are the kernels' own.
pub const OWN_BARRIERS: u32 = 3;

/// A cluster's tile.
#[derive(Clone, Copy)]
pub struct ClusterTile {
    /// The problem.
    pub batch: u32,
    /// Its place among the cluster's tiles below one another.
    pub row: u32,
    /// The first column of the weight's tile; of a gated layer as its gates and factors take turns.
    pub column: u32,
    /// Whether the tile has the full width.
    pub wide: bool,
}

impl ClusterTile {
    /// Tile number `index` of all: first those of the full `width`, then the `narrow` ones, if there may be any.
    #[inline(always)]
    pub fn new<const MIXED: bool>(params: &ClusterParams, index: u32, [width, narrow]: [u32; 2]) -> Self {
        let wide = !MIXED || index < params.wide;
        let (index, before, width) = if wide {
            (index, 0, width)
        } else {
            (index - params.wide, params.wide_n * width, narrow)
        };
        let of = |widths: [Divisor; 2]| if wide { widths[0] } else { widths[1] };
        let (batch, index) = of(params.of_problem).divide(index);
        let (group, within) = of(params.of_group).divide(index);
        let first = group * params.group[0].by;
        let below = if first + params.group[0].by > params.linear.tiles_m {
            params.group[1]
        } else {
            params.group[0]
        };
        let (tile_n, row) = below.divide(within);
        Self {
            batch,
            row: first + row,
            column: before + tile_n * width,
            wide,
        }
    }

    /// The same, found here and not where it is needed first.
    #[inline(always)]
    #[must_use]
    pub fn found(self) -> Self {
        Self {
            batch: opaque(self.batch),
            row: opaque(self.row),
            column: opaque(self.column),
            ..self
        }
    }
}

/// The maps of x, of the weight and of y, which one thread asks for ahead.
///
/// # Safety
/// - `address` is that of [`ClusterParams`].
#[inline(always)]
pub unsafe fn maps(address: ParamAddress) -> [*const u8; 3] {
    let maps = [
        offset_of!(ClusterParams, x_map),
        offset_of!(ClusterParams, w_map),
        offset_of!(ClusterParams, y_map),
    ]
    .map(|offset| address.tensor_map(offset));
    if thread::thread_idx_x() == 32 {
        // SAFETY: forwarded to the caller.
        unsafe {
            tma::prefetch_tensormap(maps[0]);
            tma::prefetch_tensormap(maps[1]);
            tma::prefetch_tensormap(maps[2]);
        }
    }
    maps
}

/// What each block's barriers are told before this goes for all of the cluster behind it.
///
/// # Safety
/// - All threads of the cluster call this; `fence_init` has released what matters.
#[inline(always)]
pub unsafe fn meet() {
    // SAFETY: forwarded to the caller.
    unsafe {
        barrier::cluster_arrive_relaxed();
        barrier::cluster_wait();
    }
}

/// A warpgroup's part of a tile: its problem, and where it begins.
#[derive(Clone, Copy)]
pub struct Part {
    pub batch: u32,
    pub row: u32,
    /// As of [`ClusterTile`].
    pub column: u32,
}

/// How the two computing warpgroups of a block wait for each other.
pub trait Turns: Copy {
    /// Before the tile's first product.
    ///
    /// # Safety
    /// - The warpgroup calls this together, once a tile.
    unsafe fn begin(self);

    /// Behind the tile's last product, which may still run.
    ///
    /// # Safety
    /// - The warpgroup calls this together, once a tile.
    unsafe fn end(self);
}

/// They do not.
#[derive(Clone, Copy)]
pub struct InStep;

impl Turns for InStep {
    #[inline(always)]
    unsafe fn begin(self) {}

    #[inline(always)]
    unsafe fn end(self) {}
}

/// A step's operands in shared memory, as a warpgroup comes upon them.
pub trait Operands: Copy {
    /// Waits until they are there.
    ///
    /// # Safety
    /// - The warpgroup calls this together.
    unsafe fn wait(self);

    /// Shared addresses of the warpgroup's rows of x and of the weight.
    fn addresses(self) -> [u32; 2];

    /// Those of the next step.
    #[must_use]
    fn next(self) -> Self;

    /// Gives back those of the step before.
    ///
    /// # Safety
    /// - The warpgroup calls this together, once a step, when its products are done.
    unsafe fn release_previous(self);
}

/// What a computing warpgroup has.
pub struct Side<'a> {
    pub params: &'a ClusterParams,
    /// Its number.
    pub group: u32,
    /// Shared addresses of its bias, and of the warp's boxes.
    pub bias: u32,
    pub buffers: u32,
    pub y_map: *const u8,
}

impl Side<'_> {
    /// Makes the bias zeros where the layer has none.
    ///
    /// # Safety
    /// - The warpgroup calls this together, before its first tile; `width` columns have room.
    #[inline(always)]
    pub unsafe fn without_bias(&self, width: u32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.params.linear.bias.address == 0 {
                let mut column = thread::thread_idx_x() % 128;
                while column < width {
                    shared::st(self.bias + column * 4, 0.0f32);
                    column += 128;
                }
                barrier::sync(BIAS_THERE + self.group, 128);
            }
        }
    }

    /// Computes `64·H × 2·R` results at `part`, whose first step has the operands `at`. Boxes go to the warp's buffers from
    /// buffer `buffer` on. What lies behind the tile's operands is returned.
    ///
    /// # Safety
    /// - The warpgroup calls this together, in the order in which operands come.
    #[inline(always)]
    pub unsafe fn tile<E: Half, O: Operands, const H: usize, const R: usize, const B: u32, const KN: bool>(
        &self,
        part: Part,
        mut at: O,
        turns: impl Turns,
        buffer: u32,
    ) -> O
    where
        InFlight<R>: MmaShape,
    {
        let params = self.params;
        let linear = &params.linear;
        let steps = params.steps;
        let width = 2 * R as u32;
        let [x_tile, w_tile] = const { operand_tiles(2 * R as u32, KN) };
        let thread = thread::thread_idx_x() % 128;
        // SAFETY: forwarded to the caller.
        unsafe {
            // The tile's bias comes while the tensor cores work.
            let gated = linear.gated != 0;
            let columns = Columns::from(linear, if gated { part.column / 2 } else { part.column } as u64);
            let mut bias_here = [0.0; 2];
            if linear.bias.address != 0 {
                let epilogue = Epilogue::new(linear, part.batch as u64);
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
            turns.begin();
            let mut step = 0;
            while step < steps {
                at.wait();
                let [x, w] = at.addresses();
                let a = x_tile.k_major(x);
                let b = if KN { w_tile.mn_major(w) } else { w_tile.k_major(w) };
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
                    at.release_previous();
                }
                at = at.next();
                step += 1;
            }
            turns.end();
            let d = d.wait::<0>().0;
            at.release_previous();

            let bias = self.bias;
            if linear.bias.address != 0 {
                // All warps have left the epilogue before.
                barrier::sync(BIAS_THERE + self.group, 128);
                if thread < width {
                    shared::st(bias + thread * 4, bias_here[0]);
                }
                if width > 128 && thread + 128 < width {
                    shared::st(bias + (thread + 128) * 4, bias_here[1]);
                }
                barrier::sync(BIAS_THERE + self.group, 128);
            }
            let row = part.row + thread / 32 * 16;
            let to = Destination {
                map: self.y_map,
                at: [columns.first() as i32, row as i32, part.batch as i32],
                buffers: self.buffers,
                first: buffer,
            };
            // Boxes of 64 columns; half the columns of a gated tile of 192 are boxes of 32. No gated layer has narrow tiles.
            let plain = KN || buffer != 0 || !gated;
            if plain {
                store_rows::<E, R, 32, B, false>(linear, &d, bias, to, 0, H);
            } else if R == 96 {
                store_rows::<E, R, 16, B, true>(linear, &d, bias, to, 0, H);
            } else {
                store_rows::<E, R, 32, B, true>(linear, &d, bias, to, 0, H);
            }
            if H == 2 {
                let d = below.complete().0;
                if plain {
                    store_rows::<E, R, 32, B, false>(linear, &d, bias, to, 1, H);
                } else if R == 96 {
                    store_rows::<E, R, 16, B, true>(linear, &d, bias, to, 1, H);
                } else {
                    store_rows::<E, R, 32, B, true>(linear, &d, bias, to, 1, H);
                }
            }
        }
        at
    }
}
