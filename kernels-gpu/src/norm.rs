//! RMSNorm and LayerNorm of rows, with the residual sum in front, and their gradients.
//!
//! `y = (s − μ)·r·w + b` with `s = x + residual` rounded as stored, `r = 1/√(mean((s − μ)²) + ε)`, and `μ` the mean
//! of `s` (LayerNorm) or 0 (RMSNorm). The mean square is taken around the mean, in a second pass over registers.

use crate::kernel_params;

/// Threads of a block of `norm_block_*` of 16-bit elements: more than of other ops, with fewer vectors each, so that a multiprocessor has
/// more of them.
pub const BLOCK_THREADS: u32 = 256;
/// Of `norm_large_*`.
pub const LARGE_THREADS: u32 = 512;
/// Vectors that a thread of either holds.
pub const BLOCK_HELD: usize = 2;
/// Threads of a block of `norm_spread_*`, of a cluster that holds a row of 16-bit elements in registers, and of one that holds rows for
/// which the largest such cluster is too small.
pub const SPREAD_THREADS: [u32; 2] = [256, 512];
/// Vectors that each takes of a row.
pub const SPREAD_HELD: usize = 4;
/// Most blocks of such a cluster.
pub const SPREAD_CLUSTER: u64 = 8;
/// Longest row that such clusters hold.
pub const SPREAD_COLUMNS: [u64; 2] = [
    SPREAD_CLUSTER * SPREAD_THREADS[0] as u64 * SPREAD_HELD as u64 * 8,
    SPREAD_CLUSTER * SPREAD_THREADS[1] as u64 * SPREAD_HELD as u64 * 8,
];
/// Warps of the smaller cluster.
pub const SPREAD_SLOTS: u32 = SPREAD_CLUSTER as u32 * SPREAD_THREADS[0] / 32;
/// Dynamic shared memory of its blocks: 16 bytes a warp, and a barrier.
pub const SPREAD_BYTES: u64 = SPREAD_SLOTS as u64 * 16 + 16;
/// Stages of the ring of `norm_stream_*`: more are slower, with fewer nothing is under way.
pub const STREAM_STAGES: u64 = 3;
/// Shared memory before the ring: sums and barriers.
pub const STREAM_AT: u32 = 1152;
/// Dynamic shared memory of its blocks, of `SPREAD_THREADS[1]` threads that work on rows.
pub const STREAM_BYTES: u64 = STREAM_AT as u64 + STREAM_STAGES * SPREAD_THREADS[1] as u64 * SPREAD_HELD as u64 * 16;

pub mod backward;
#[cfg(target_arch = "nvptx64")]
mod columns;
#[cfg(tier = "sm_90a")]
mod deep;
#[cfg(target_arch = "nvptx64")]
mod dense;
#[cfg(tier = "sm_90a")]
mod held;
#[cfg(target_arch = "nvptx64")]
mod kept;
#[cfg(target_arch = "nvptx64")]
mod moments;
#[cfg(tier = "sm_90a")]
mod queue;
#[cfg(tier = "sm_90a")]
mod slices;
#[cfg(tier = "sm_90a")]
mod spread;
#[cfg(tier = "sm_90a")]
mod stream;
#[cfg(tier = "sm_90a")]
mod sums;
#[cfg(tier = "sm_90a")]
mod turns;

kernel_params! {
    /// Arguments of the `norm_*` kernels. Addresses are 0 for what is not wanted.
    pub struct NormParams {
        /// Input, `rows × columns`.
        pub x: u64,
        /// Added to the input.
        pub residual: u64,
        /// Factor, `columns`.
        pub weight: u64,
        /// Summand, `columns`.
        pub bias: u64,
        /// Output.
        pub y: u64,
        /// `x + residual`, out.
        pub sum: u64,
        /// Rows.
        pub rows: u64,
        /// Elements from one row of `x` to the next.
        pub x_stride: u64,
        /// Of `residual`.
        pub residual_stride: u64,
        /// Of `y`.
        pub y_stride: u64,
        /// Of `sum`.
        pub sum_stride: u64,
        /// A counter of 32 bits, 0 before and after, by which clusters of `norm_stream_*` take rows.
        pub next: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 for LayerNorm.
        pub centered: u32,
        /// ε.
        pub epsilon: f32,
        /// 1 / columns.
        pub reciprocal: f32,
        /// 1 when every row and the weights start at multiples of 16 bytes.
        pub aligned: u32,
        /// How many rows ahead a team asks L2 for.
        pub ahead: u32,
        /// Stages of the ring that brings rows.
        pub stages: u32,
        /// Zero.
        pub reserved: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::NormParams;
    use super::kept::Kept;
    use crate::row::*;
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{kernel, math};

    /// `1/√x`. The approximation, corrected once, is off by a unit in the last place; it knows no subnormal numbers.
    #[inline(always)]
    fn reciprocal_root(x: f32) -> f32 {
        if x > 1e-30 && x < 1e30 {
            let root = math::rsqrt(x);
            return math::fma(root, math::fma(-0.5 * x * root, root, 0.5), root);
        }
        1.0 / math::sqrt_rn(x)
    }

    /// What the statistics of a row are computed from, besides the row.
    pub struct Geometry {
        pub columns: u32,
        pub centered: u32,
        pub epsilon: f32,
        pub reciprocal: f32,
    }

    impl Geometry {
        #[inline(always)]
        pub fn of(p: &NormParams) -> Geometry {
            Geometry {
                columns: p.columns,
                centered: p.centered,
                epsilon: p.epsilon,
                reciprocal: p.reciprocal,
            }
        }
    }

    /// What a row is normalised by.
    #[derive(Clone, Copy)]
    pub struct Statistics {
        /// The mean, in two parts: the f32 sum over columns, rounded, and what is left of it around that.
        pub mean: f32,
        pub rest: f32,
        /// Reciprocal of the deviation.
        pub scale: f32,
        /// `-rest·scale`.
        pub offset: f32,
    }

    impl Statistics {
        /// Of the mean in two parts, and the mean square around it.
        #[inline(always)]
        pub fn of(mean: f32, rest: f32, square: f32, epsilon: f32) -> Statistics {
            // The subtraction may go below zero by a rounding; a NaN stays.
            let square = if square < 0.0 { 0.0 } else { square };
            let scale = reciprocal_root(square + epsilon);
            Statistics {
                mean,
                rest,
                scale,
                offset: -rest * scale,
            }
        }

        /// Of a row that is `HELD`, or that `load` gives part by part once more.
        #[inline(always)]
        pub unsafe fn new<T: Team, E: Element, const N: usize, const HELD: bool>(
            p: &Geometry,
            held: &Part<E, N>,
            turn: &mut u32,
            load: impl Fn(u32) -> Part<E, N> + Copy,
        ) -> Statistics {
            let mut mean = 0.0;
            if p.centered != 0 {
                let mut total = 0.0;
                pass::<T, E, N, HELD>(p.columns, held, load, |_, _, s| total += add_up(s));
                // SAFETY: the team is together, as the row is the same for all of it.
                mean = unsafe { sum::<T>(total, turn) } * p.reciprocal;
            }
            let (mut left, mut square) = (0.0, 0.0);
            let mut rest = 0.0;
            let square = if p.centered != 0 {
                pass::<T, E, N, HELD>(p.columns, held, load, |column, _, s| {
                    let d = inside(map(s, |s| s - mean), column, p.columns, 0.0);
                    left += add_up(d);
                    square += squares(d);
                });
                // SAFETY: as above.
                let (left, square) = unsafe { sum_pair::<T>(left, square, turn) };
                rest = left * p.reciprocal;
                square * p.reciprocal - rest * rest
            } else {
                // What lies beyond the row is 0.
                pass::<T, E, N, HELD>(p.columns, held, load, |_, _, s| square += squares(s));
                // SAFETY: as above.
                unsafe { sum::<T>(square, turn) * p.reciprocal }
            };
            Statistics::of(mean, rest, square, p.epsilon)
        }

        /// `x̂` of an element.
        #[inline(always)]
        pub fn unit(self, s: f32) -> f32 {
            math::fma(s - self.mean, self.scale, self.offset)
        }
    }

    #[inline(always)]
    unsafe fn forward<E: Kept, T: Team, const N: usize, const HELD: bool>(p: NormParams) {
        let geometry = Geometry::of(&p);
        let mut turn = 0;
        let mut row = T::first();
        let whole = HELD && p.aligned != 0 && p.columns % WIDTH == 0 && p.residual == 0;
        while row < p.rows {
            if whole {
                // SAFETY: forwarded to the caller.
                unsafe { super::dense::forward::<T, E, N, 0, false>(&p, row, &mut turn) };
                row += T::step();
                continue;
            }
            let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, p.aligned);
            let (x, residual) = (matrix(p.x, p.x_stride), matrix(p.residual, p.residual_stride));
            let (y, stored) = (matrix(p.y, p.y_stride), matrix(p.sum, p.sum_stride));
            let (weight, bias) = (matrix(p.weight, 0), matrix(p.bias, 0));
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let load = #[inline(always)]
                |base| {
                    let mut s = x.part::<T, E, N, CONSTANT>(base, 0.0);
                    if p.residual != 0 {
                        residual.add_to::<T, E, N>(base, &mut s);
                    }
                    s
                };
                let held = if HELD { load(0) } else { [E::ZEROS; N] };
                if p.sum != 0 {
                    pass::<T, E, N, HELD>(p.columns, &held, load, |column, _, s| stored.store::<E>(column, s));
                }
                let statistics = Statistics::new::<T, E, N, HELD>(&geometry, &held, &mut turn, load);
                pass::<T, E, N, HELD>(p.columns, &held, load, |column, _, s| {
                    let given = [p.weight != 0, p.bias != 0];
                    let of = |shared: Row| move || shared.load_again::<E>(column);
                    let out = affine(map(s, |s| statistics.unit(s)), given, of(weight), of(bias));
                    y.store::<E>(column, out);
                });
            }
            row += T::step();
        }
    }

    macro_rules! forwards {
        ($($warp:ident $block:ident $large:ident $long:ident $element:ty, $of_block:expr, $of_large:expr, $held:expr,
            $blocks:literal, $larges:literal;)*) => {
            kernel! {$(
                /// Rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS, min_blocks = 7)]
                pub fn $warp(params: NormParams) {
                    follow();
                    forward::<$element, Warp, HELD, true>(params)
                }

                /// Rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = $of_block, min_blocks = $blocks)]
                pub fn $block(params: NormParams) {
                    follow();
                    forward::<$element, Block<{ $of_block }>, { $held }, true>(params)
                }

                /// Rows of up to [`LARGE_COLUMNS`](crate::row::LARGE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = $of_large, min_blocks = $larges)]
                pub fn $large(params: NormParams) {
                    follow();
                    forward::<$element, Block<{ $of_large }>, { $held }, true>(params)
                }

                /// Rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: NormParams) {
                    follow();
                    forward::<$element, Block<LONG_THREADS>, { long::<$element>() }, false>(params)
                }
            )*}
        };
    }

    macro_rules! wide_forwards {
        ($($name:ident $element:ty)*) => {
            kernel! {$(
                /// Rows of up to [`WIDE_COLUMNS`](crate::row::WIDE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $name(params: NormParams) {
                    follow();
                    forward::<$element, Block<WIDE_THREADS>, HELD, true>(params)
                }
            )*}
        };
    }

    /// Kernels for rows of whole vectors at multiples of 16 bytes with a residual: apart from those for others, with whose
    /// registers both inputs of a row would not be under way at once.
    #[cfg(not(tier = "sm_75"))]
    macro_rules! residual_forwards {
        ($($name:ident $element:ty, $team:ty, $threads:expr, $held:expr, $early:expr, $blocks:literal;)*) => {
            kernel! {$(
                /// Rows of whole vectors at multiples of 16 bytes, with a residual.
                ///
                /// # Safety
                /// - As for the others.
                #[launch(threads = $threads, min_blocks = $blocks)]
                pub fn $name(params: NormParams) {
                    follow();
                    super::dense::with_residual::<$team, $element, { $held }, { $early }>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! dense_forwards {
        ($($name:ident $element:ty, $team:ty, $threads:expr, $held:expr, $early:expr, $blocks:literal;)*) => {
            kernel! {$(
                /// Rows of whole vectors at multiples of 16 bytes without a residual: apart from those for others, whose registers
                /// leave room for fewer blocks.
                ///
                /// # Safety
                /// - As for the others, and no more rows than teams.
                #[launch(threads = $threads, min_blocks = $blocks)]
                pub fn $name(params: NormParams) {
                    follow();
                    let p = params;
                    let row = <$team>::first();
                    if row < p.rows {
                        super::dense::forward::<$team, $element, { $held }, { $early }, false>(&p, row, &mut 0)
                    }
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    dense_forwards! {
        norm_dense_warp_f16 F16, Warp, WARP_THREADS, HELD, 0, 8;
        norm_dense_block_f16 F16, Block<BLOCK_THREADS>, BLOCK_THREADS, BLOCK_HELD, 1, 6;
        norm_dense_large_f16 F16, Block<LARGE_THREADS>, LARGE_THREADS, BLOCK_HELD, 1, 3;
        norm_dense_warp_bf16 Bf16, Warp, WARP_THREADS, HELD, 0, 8;
        norm_dense_block_bf16 Bf16, Block<BLOCK_THREADS>, BLOCK_THREADS, BLOCK_HELD, 1, 6;
        norm_dense_large_bf16 Bf16, Block<LARGE_THREADS>, LARGE_THREADS, BLOCK_HELD, 1, 3;
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! spread_forwards {
        ($($name:ident $element:ty, $how:ident, $which:literal, $residual:literal, $whole:literal, $blocks:literal;)*) => {
            kernel! {$(
                /// Rows in the registers of a cluster.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `SPREAD_BYTES`.
                #[launch(threads = SPREAD_THREADS[$which], min_blocks = $blocks)]
                pub fn $name(params: NormParams) {
                    follow();
                    super::$how::forward::<Cluster<{ SPREAD_THREADS[$which] }>, $element, SPREAD_HELD, $residual, $whole>(
                        params,
                    )
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    use super::{SPREAD_HELD, SPREAD_THREADS};
    #[cfg(tier = "sm_90a")]
    spread_forwards! {
        norm_spread_f16 F16, spread, 0, true, false, 3;
        norm_spread_dense_f16 F16, spread, 0, false, true, 4;
        norm_spread_residual_f16 F16, spread, 0, true, true, 4;
        norm_spread_deep_f16 F16, deep, 1, true, false, 1;
        norm_spread_deep_residual_f16 F16, deep, 1, true, true, 2;
        norm_spread_bf16 Bf16, spread, 0, true, false, 3;
        norm_spread_dense_bf16 Bf16, spread, 0, false, true, 4;
        norm_spread_residual_bf16 Bf16, spread, 0, true, true, 4;
        norm_spread_deep_bf16 Bf16, deep, 1, true, false, 1;
        norm_spread_deep_residual_bf16 Bf16, deep, 1, true, true, 2;
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! stream_forwards {
        ($($name:ident $element:ty)*) => {
            kernel! {$(
                /// Rows of whole vectors at multiples of 16 bytes, one after the other, in the shared memory of a cluster.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `STREAM_BYTES`.
                #[launch(threads = SPREAD_THREADS[1] + 64)]
                pub fn $name(params: NormParams) {
                    super::stream::forward::<Cluster<{ SPREAD_THREADS[1] }>, $element, SPREAD_HELD>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    stream_forwards! {
        norm_stream_f16 F16
        norm_stream_bf16 Bf16
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! slice_forwards {
        ($($slices:ident $element:ty)*) => {
            kernel! {$(
                /// Rows in the shared memory of a cluster of any number of blocks.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `slices_bytes`.
                #[launch(threads = crate::row::SLICE_THREADS, min_blocks = crate::row::SLICE_BLOCKS)]
                pub fn $slices(params: NormParams) {
                    follow();
                    super::slices::forward::<$element, { slice_part::<$element>() }>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    slice_forwards! {
        norm_slices_f32 f32
        norm_slices_f16 F16
        norm_slices_bf16 Bf16
    }

    use super::{BLOCK_HELD, BLOCK_THREADS, LARGE_THREADS};
    use crate::row::{self, HELD, LONG_THREADS, WARP_THREADS, WIDE_THREADS};
    // On sm_75 conversions of f16 take registers that these do not have.
    #[cfg(not(tier = "sm_75"))]
    residual_forwards! {
        norm_residual_warp_f32 f32, Warp, WARP_THREADS, HELD, 0, 4;
        norm_residual_block_f32 f32, Block<{ row::BLOCK_THREADS }>, row::BLOCK_THREADS, HELD, 0, 4;
        norm_residual_large_f32 f32, Block<{ row::LARGE_THREADS }>, row::LARGE_THREADS, HELD, 0, 2;
        norm_residual_wide_f32 f32, Block<WIDE_THREADS>, WIDE_THREADS, HELD, 0, 1;
        norm_residual_warp_f16 F16, Warp, WARP_THREADS, HELD, HELD, 6;
        norm_residual_block_f16 F16, Block<BLOCK_THREADS>, BLOCK_THREADS, BLOCK_HELD, BLOCK_HELD, 4;
        norm_residual_large_f16 F16, Block<LARGE_THREADS>, LARGE_THREADS, BLOCK_HELD, BLOCK_HELD, 2;
        norm_residual_warp_bf16 Bf16, Warp, WARP_THREADS, HELD, HELD - 1, 5;
        norm_residual_block_bf16 Bf16, Block<BLOCK_THREADS>, BLOCK_THREADS, BLOCK_HELD, BLOCK_HELD, 4;
        norm_residual_large_bf16 Bf16, Block<LARGE_THREADS>, LARGE_THREADS, BLOCK_HELD, BLOCK_HELD, 2;
    }
    // On Hopper clusters hold such rows of 16-bit elements.
    #[cfg(not(any(tier = "sm_75", tier = "sm_90a")))]
    residual_forwards! {
        norm_residual_wide_f16 F16, Block<WIDE_THREADS>, WIDE_THREADS, HELD, 0, 1;
        norm_residual_wide_bf16 Bf16, Block<WIDE_THREADS>, WIDE_THREADS, HELD, 0, 1;
    }
    forwards! {
        norm_warp_f32 norm_block_f32 norm_large_f32 norm_long_f32 f32, row::BLOCK_THREADS, row::LARGE_THREADS, HELD, 7, 4;
        norm_warp_f16 norm_block_f16 norm_large_f16 norm_long_f16 F16, BLOCK_THREADS, LARGE_THREADS, BLOCK_HELD, 4, 2;
        norm_warp_bf16 norm_block_bf16 norm_large_bf16 norm_long_bf16 Bf16, BLOCK_THREADS, LARGE_THREADS, BLOCK_HELD, 4, 2;
    }
    wide_forwards! {
        norm_wide_f32 f32
    }
    #[cfg(not(tier = "sm_90a"))]
    wide_forwards! {
        norm_wide_f16 F16
        norm_wide_bf16 Bf16
    }
}
