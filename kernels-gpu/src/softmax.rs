//! Softmax and log-softmax of rows, scaled and masked, and their gradients.
//!
//! `y = softmax(x·scale + mask)` over the columns that a row sees; a causal mask lets row `i` of a matrix of `n` rows
//! see the columns up to `i + columns − n`. What is not seen is 0 (logarithm −∞), and so is a row that sees nothing
//! but −∞. A NaN reaches its whole row.

use crate::kernel_params;

#[cfg(target_arch = "nvptx64")]
mod dense;
#[cfg(tier = "sm_90a")]
mod slices;

kernel_params! {
    /// Arguments of the `softmax_*` kernels. Addresses are 0 for what is not wanted.
    pub struct SoftmaxParams {
        /// Input, `rows × columns`.
        pub x: u64,
        /// Added after scaling, `mask_rows × columns`; row `i` takes its row `i mod mask_rows`.
        pub mask: u64,
        /// Gradient of `y` (backward only).
        pub dy: u64,
        /// Output: `y`, or the gradient of `x`.
        pub y: u64,
        /// Rows.
        pub rows: u64,
        /// Rows of the mask; at least 1.
        pub mask_rows: u64,
        /// Rows of a matrix of the causal mask, 0 without it.
        pub causal_rows: u64,
        /// Elements from one row of `x` to the next.
        pub x_stride: u64,
        /// Of `mask`.
        pub mask_stride: u64,
        /// Of `dy`.
        pub dy_stride: u64,
        /// Of `y`.
        pub y_stride: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 for logarithms.
        pub log: u32,
        /// Factor of `x`.
        pub scale: f32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
        /// How many rows ahead a team asks L2 for.
        pub ahead: u32,
        /// Zero.
        pub reserved: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::{SoftmaxParams, dense};
    use crate::row::*;
    use crate::row::{
        BLOCK_THREADS, HELD, LARGE_THREADS, LONG_THREADS, PAIR_BLOCK_THREADS, PAIR_HELD, PAIR_LARGE_THREADS, PAIR_LONG,
        PAIR_WARP_HELD, WARP_THREADS, WIDE_THREADS, WIDTH,
    };
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{kernel, math};

    /// What a row sees, and where it lies.
    struct View {
        x: Row,
        mask: Row,
        masked: bool,
        scale: f32,
        /// Whether inputs are scaled before the maximum is subtracted: else the greatest input is that of the greatest
        /// product, and differences of inputs are scaled.
        scaled: bool,
        seen: u32,
    }

    impl View {
        #[inline(always)]
        unsafe fn new<E: Element>(p: &SoftmaxParams, row: u64) -> View {
            let mut seen = p.columns;
            if p.causal_rows != 0 {
                // SAFETY: just seen.
                unsafe { core::hint::assert_unchecked(p.causal_rows != 0) };
                let end = row % p.causal_rows + 1 + p.columns as u64;
                let end = if end > p.causal_rows { end - p.causal_rows } else { 0 };
                if end < seen as u64 {
                    seen = end as u32;
                }
            }
            // SAFETY: the host gives at least 1.
            unsafe { core::hint::assert_unchecked(p.mask_rows != 0) };
            let mask_row = if p.mask != 0 { row % p.mask_rows } else { 0 };
            View {
                x: Row::new::<E>(p.x, row, p.x_stride, seen, p.aligned),
                mask: Row::new::<E>(p.mask, mask_row, p.mask_stride, seen, p.aligned),
                masked: p.mask != 0,
                scale: p.scale,
                scaled: p.mask != 0 || p.scale <= 0.0,
                seen,
            }
        }

        /// This thread's inputs from `base` on.
        #[inline(always)]
        unsafe fn part<T: Team, E: Element, const N: usize>(&self, base: u32) -> Part<E, N> {
            // SAFETY: the host gives the extents.
            unsafe { self.x.part::<T, E, N, CONSTANT>(base, 0.0) }
        }

        /// Inputs at `column`, scaled and masked if that comes first, less `base`; −∞ where nothing is seen.
        #[inline(always)]
        unsafe fn less<E: Element>(&self, column: u32, x: Vector, base: f32) -> Vector {
            let mut x = x;
            if self.scaled {
                x = map(x, |x| x * self.scale);
                if self.masked {
                    // SAFETY: the host gives the extents. Rows often share a mask.
                    x = zip(x, unsafe { self.mask.load_again::<E>(column) }, |x, m| x + m);
                }
            }
            inside(map(x, |x| x - base), column, self.seen, f32::NEG_INFINITY)
        }

        /// What those are still to be multiplied by.
        #[inline(always)]
        fn factor(&self) -> f32 {
            if self.scaled { 1.0 } else { self.scale }
        }
    }

    /// Maximum (0 when there is none), as it is subtracted, and sum of exponentials of a row that is `HELD`, or read once with the sum
    /// corrected as the maximum rises.
    #[inline(always)]
    unsafe fn statistics<E: Element, T: Team, const N: usize, const HELD: bool>(
        view: &View,
        held: &Part<E, N>,
        turn: &mut u32,
    ) -> (f32, f32) {
        // SAFETY: as the caller promises.
        let load = #[inline(always)]
        |base| unsafe { view.part::<T, E, N>(base) };
        // SAFETY: as above.
        let less = |column, x, base| unsafe { view.less::<E>(column, x, base) };
        let factor = view.factor() * LOG2_E;
        let power = |d: f32| math::ex2(d * factor);
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        if HELD {
            visit::<T, E, N>(view.seen, 0, held, |column, _, x| {
                max = math::fmax(max, greatest(less(column, x, 0.0)));
            });
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            visit::<T, E, N>(view.seen, 0, held, |column, _, x| {
                total += add_up(map(less(column, x, max), power));
            });
        } else {
            pass::<T, E, N, false>(view.seen, held, load, |column, _, x| {
                let higher = math::fmax(max, greatest(less(column, x, 0.0)));
                let base = finite(higher);
                total = total * faded_by(max, base, factor) + add_up(map(less(column, x, base), power));
                max = higher;
            });
            let own = max;
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            total *= faded_by(own, max, factor);
        }
        // SAFETY: the team is together.
        (max, unsafe { sum::<T>(total, turn) })
    }

    use crate::row::max as row_max;

    /// Asks L2 for a row that another team will soon begin.
    #[inline(always)]
    unsafe fn ask_ahead<E: Element, T: Team, const N: usize>(p: &SoftmaxParams, matrix: u64, stride: u64, row: u64) {
        let later = row + p.ahead as u64;
        if later < p.rows {
            // SAFETY: a row of the matrix.
            unsafe { Row::new::<E>(matrix, later, stride, p.columns, p.aligned).prefetch::<T, E, N>() };
        }
    }

    /// Stores `fill` in what follows the vectors that a row sees.
    #[inline(always)]
    unsafe fn fill_rest<E: Element, T: Team>(y: Row, seen: u32, fill: f32) {
        let mut column = seen.next_multiple_of(WIDTH) + T::lane() * WIDTH;
        while column < y.columns {
            // SAFETY: forwarded to the caller.
            unsafe { y.store::<E>(column, [fill; 8]) };
            column += T::LANES * WIDTH;
        }
    }

    #[inline(always)]
    unsafe fn forward<E: Ordered, T: Team, const N: usize, const HELD: bool>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        let whole = HELD && dense::fits(&p) && (p.log == 0 || T::LANES < WIDE_THREADS);
        while row < p.rows {
            if whole {
                // SAFETY: forwarded to the caller.
                unsafe { dense::forward::<T, E, N>(&p, row, &mut turn) };
                row += T::step();
                continue;
            }
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let view = View::new::<E>(&p, row);
                let y = Row::new::<E>(p.y, row, p.y_stride, p.columns, p.aligned);
                let load = #[inline(always)]
                |base| view.part::<T, E, N>(base);
                let held = if HELD { load(0) } else { [E::ZEROS; N] };
                if HELD {
                    ask_ahead::<E, T, N>(&p, p.x, p.x_stride, row);
                }
                let (max, total) = statistics::<E, T, N, HELD>(&view, &held, &mut turn);
                let hidden = if p.log != 0 { f32::NEG_INFINITY } else { 0.0 };
                // A row that sees nothing has total 0, and its logits are −∞.
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let log_total = math::lg2(total) * LN_2;
                pass::<T, E, N, HELD>(view.seen, &held, load, |column, _, x| {
                    let d = view.less::<E>(column, x, max);
                    let out = if p.log == 0 {
                        map(d, |d| math::ex2(d * (view.factor() * LOG2_E)) * factor)
                    } else if total == 0.0 {
                        [hidden; 8]
                    } else {
                        map(d, |d| math::fma(d, view.factor(), -log_total))
                    };
                    // NaN · 0 and its like must not leak out of what is seen.
                    y.store::<E>(column, inside(out, column, view.seen, hidden));
                });
                fill_rest::<E, T>(y, view.seen, hidden);
            }
            row += T::step();
        }
    }

    #[inline(always)]
    unsafe fn backward<E: Ordered, T: Team, const N: usize, const HELD: bool>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        let whole = HELD && p.log == 0 && dense::fits(&p);
        while row < p.rows {
            if whole {
                // SAFETY: forwarded to the caller.
                unsafe { dense::backward::<T, E, N>(&p, row, &mut turn) };
                row += T::step();
                continue;
            }
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let view = View::new::<E>(&p, row);
                let out = Row::new::<E>(p.y, row, p.y_stride, p.columns, p.aligned);
                let dy = Row::new::<E>(p.dy, row, p.dy_stride, view.seen, p.aligned);
                let load = #[inline(always)]
                |base| view.part::<T, E, N>(base);
                let load_dy = #[inline(always)]
                |base| dy.part::<T, E, N, CONSTANT>(base, 0.0);
                let (mut held, mut gradients) = ([E::ZEROS; N], [E::ZEROS; N]);
                if HELD {
                    held = load(0);
                    gradients = load_dy(0);
                    ask_ahead::<E, T, N>(&p, p.x, p.x_stride, row);
                    ask_ahead::<E, T, N>(&p, p.dy, p.dy_stride, row);
                }
                let (max, total) = statistics::<E, T, N, HELD>(&view, &held, &mut turn);
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let mut along = 0.0;
                pair_pass::<T, E, N, HELD>(view.seen, [&held, &gradients], load, load_dy, |column, _, x, g| {
                    if p.log != 0 {
                        along += add_up(g);
                    } else {
                        let d = view.less::<E>(column, x, max);
                        along += add_up(zip(d, g, |d, g| math::ex2(d * (view.factor() * LOG2_E)) * g));
                    }
                });
                let along = sum::<T>(along, &mut turn) * if p.log != 0 { 1.0 } else { factor };
                pair_pass::<T, E, N, HELD>(view.seen, [&held, &gradients], load, load_dy, |column, _, x, g| {
                    let mut dx = [0.0; 8];
                    if total != 0.0 {
                        let d = view.less::<E>(column, x, max);
                        dx = zip(d, g, |d, g| {
                            let probability = math::ex2(d * (view.factor() * LOG2_E)) * factor;
                            let inner = if p.log != 0 {
                                g - probability * along
                            } else {
                                probability * (g - along)
                            };
                            inner * p.scale
                        });
                        dx = inside(dx, column, view.seen, 0.0);
                    }
                    out.store::<E>(column, dx);
                });
                fill_rest::<E, T>(out, view.seen, 0.0);
            }
            row += T::step();
        }
    }

    macro_rules! softmaxes {
        ($($warp:ident $block:ident $large:ident $wide:ident $long:ident $warp_backward:ident $block_backward:ident $large_backward:ident $long_backward:ident
           $element:ty)*) => {
            kernel! {$(
                /// Rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS, min_blocks = 6)]
                pub fn $warp(params: SoftmaxParams) {
                    follow();
                    forward::<$element, Warp, HELD, true>(params)
                }

                /// Rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = BLOCK_THREADS, min_blocks = 6)]
                pub fn $block(params: SoftmaxParams) {
                    follow();
                    forward::<$element, Block<BLOCK_THREADS>, HELD, true>(params)
                }

                /// Rows of up to [`LARGE_COLUMNS`](crate::row::LARGE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LARGE_THREADS, min_blocks = 3)]
                pub fn $large(params: SoftmaxParams) {
                    follow();
                    forward::<$element, Block<LARGE_THREADS>, HELD, true>(params)
                }

                /// Rows of up to [`WIDE_COLUMNS`](crate::row::WIDE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $wide(params: SoftmaxParams) {
                    follow();
                    forward::<$element, Block<WIDE_THREADS>, HELD, true>(params)
                }

                /// Rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: SoftmaxParams) {
                    follow();
                    forward::<$element, Block<LONG_THREADS>, { long::<$element>() }, false>(params)
                }

                /// Gradient of rows of up to [`PAIR_WARP_COLUMNS`](crate::row::PAIR_WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS, min_blocks = 4)]
                pub fn $warp_backward(params: SoftmaxParams) {
                    follow();
                    backward::<$element, Warp, PAIR_WARP_HELD, true>(params)
                }

                /// Gradient of rows of up to [`PAIR_BLOCK_COLUMNS`](crate::row::PAIR_BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = PAIR_BLOCK_THREADS, min_blocks = 3)]
                pub fn $block_backward(params: SoftmaxParams) {
                    follow();
                    backward::<$element, Block<PAIR_BLOCK_THREADS>, PAIR_HELD, true>(params)
                }

                /// Gradient of rows of up to [`PAIR_LARGE_COLUMNS`](crate::row::PAIR_LARGE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = PAIR_LARGE_THREADS, min_blocks = 2)]
                pub fn $large_backward(params: SoftmaxParams) {
                    follow();
                    backward::<$element, Block<PAIR_LARGE_THREADS>, PAIR_HELD, true>(params)
                }

                /// Gradient of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long_backward(params: SoftmaxParams) {
                    follow();
                    backward::<$element, Block<LONG_THREADS>, PAIR_LONG, false>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! slice_softmaxes {
        ($($forward:ident $backward:ident $element:ty)*) => {
            kernel! {$(
                /// Rows in the shared memory of a cluster of any number of blocks, without a mask.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `slices_bytes`.
                #[launch(threads = crate::row::SLICE_THREADS, min_blocks = 5)]
                pub fn $forward(params: SoftmaxParams) {
                    cuda_std::grid_dependency::wait();
                    super::slices::forward::<$element, { slice_part::<$element>() }>(params)
                }

                /// Gradients of such rows, of softmax.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `slices_bytes`.
                #[launch(threads = crate::row::SLICE_THREADS, min_blocks = 6)]
                pub fn $backward(params: SoftmaxParams) {
                    cuda_std::grid_dependency::wait();
                    super::slices::backward::<$element, { slice_part::<$element>() / 2 }>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    slice_softmaxes! {
        softmax_slices_f32 softmax_slices_backward_f32 f32
        softmax_slices_f16 softmax_slices_backward_f16 F16
        softmax_slices_bf16 softmax_slices_backward_bf16 Bf16
    }

    softmaxes! {
        softmax_warp_f32 softmax_block_f32 softmax_large_f32 softmax_wide_f32 softmax_long_f32
            softmax_warp_backward_f32 softmax_block_backward_f32 softmax_large_backward_f32
            softmax_long_backward_f32 f32
        softmax_warp_f16 softmax_block_f16 softmax_large_f16 softmax_wide_f16 softmax_long_f16
            softmax_warp_backward_f16 softmax_block_backward_f16 softmax_large_backward_f16
            softmax_long_backward_f16 F16
        softmax_warp_bf16 softmax_block_bf16 softmax_large_bf16 softmax_wide_bf16 softmax_long_bf16
            softmax_warp_backward_bf16 softmax_block_backward_bf16 softmax_large_backward_bf16
            softmax_long_backward_bf16 Bf16
    }
}
