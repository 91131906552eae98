//! Softmax and log-softmax of rows, scaled and masked, and their gradients.
//!
//! `y = softmax(x·scale + mask)` over the columns that a row sees; a causal mask lets row `i` of a matrix of `n` rows
//! see the columns up to `i + columns − n`. What is not seen is 0 (logarithm −∞), and so is a row that sees nothing
//! but −∞. A NaN reaches its whole row.

use crate::kernel_params;

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
    use super::SoftmaxParams;
    use crate::row::*;
    use crate::row::{
        BLOCK_THREADS, HELD, LARGE_THREADS, LONG_THREADS, PAIR_BLOCK_HELD, PAIR_BLOCK_THREADS, PAIR_LONG,
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
                seen,
            }
        }

        /// This thread's inputs from `base` on.
        #[inline(always)]
        unsafe fn part<T: Team, E: Element, const N: usize>(&self, base: u32) -> Part<E, N> {
            // SAFETY: the host gives the extents.
            unsafe { self.x.part::<T, E, N, CONSTANT>(base, 0.0) }
        }

        /// Inputs at `column`, scaled and masked; −∞ where nothing is seen.
        #[inline(always)]
        unsafe fn logits<E: Element>(&self, column: u32, x: Vector) -> Vector {
            let mut x = map(x, |x| x * self.scale);
            if self.masked {
                // SAFETY: the host gives the extents. Rows often share a mask.
                x = zip(x, unsafe { self.mask.load_again::<E>(column) }, |x, m| x + m);
            }
            inside(x, column, self.seen, f32::NEG_INFINITY)
        }
    }

    /// Where a maximum may be subtracted: 0 in a row of −∞.
    #[inline(always)]
    fn finite(max: f32) -> f32 {
        if max == f32::NEG_INFINITY { 0.0 } else { max }
    }

    /// What exponentials relative to `max` are multiplied by to be relative to `base`; there are none where `max` is −∞.
    #[inline(always)]
    fn faded(max: f32, base: f32) -> f32 {
        if max == f32::NEG_INFINITY { 0.0 } else { exp(max - base) }
    }

    /// Maximum (0 when there is none) and sum of exponentials of a row that is `HELD`, or read once with the sum
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
        let logits = |column, x| unsafe { view.logits::<E>(column, x) };
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        if HELD {
            visit::<T, E, N>(view.seen, 0, held, |column, _, x| {
                max = math::fmax(max, greatest(logits(column, x)));
            });
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            visit::<T, E, N>(view.seen, 0, held, |column, _, x| {
                total += add_up(map(logits(column, x), |x| exp(x - max)));
            });
        } else {
            pass::<T, E, N, false>(view.seen, held, load, |column, _, x| {
                let x = logits(column, x);
                let higher = math::fmax(max, greatest(x));
                let base = finite(higher);
                total = total * faded(max, base) + add_up(map(x, |x| exp(x - base)));
                max = higher;
            });
            let own = max;
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            total *= faded(own, max);
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
    unsafe fn forward<E: Element, T: Team, const N: usize, const HELD: bool>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        while row < p.rows {
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
                    let x = view.logits::<E>(column, x);
                    let out = if p.log == 0 {
                        map(x, |x| exp(x - max) * factor)
                    } else if total == 0.0 {
                        [hidden; 8]
                    } else {
                        map(x, |x| (x - max) - log_total)
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
    unsafe fn backward<E: Element, T: Team, const N: usize, const HELD: bool>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        while row < p.rows {
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
                        let x = view.logits::<E>(column, x);
                        along += add_up(zip(x, g, |x, g| exp(x - max) * factor * g));
                    }
                });
                let along = sum::<T>(along, &mut turn);
                pair_pass::<T, E, N, HELD>(view.seen, [&held, &gradients], load, load_dy, |column, _, x, g| {
                    let mut dx = [0.0; 8];
                    if total != 0.0 {
                        let x = view.logits::<E>(column, x);
                        dx = zip(x, g, |x, g| {
                            let probability = exp(x - max) * factor;
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
        ($($warp:ident $block:ident $large:ident $wide:ident $long:ident $warp_backward:ident $block_backward:ident $long_backward:ident
           $element:ty)*) => {
            kernel! {$(
                /// Rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS)]
                pub fn $warp(params: SoftmaxParams) {
                    forward::<$element, Warp, HELD, true>(params)
                }

                /// Rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = BLOCK_THREADS)]
                pub fn $block(params: SoftmaxParams) {
                    forward::<$element, Block<BLOCK_THREADS>, HELD, true>(params)
                }

                /// Rows of up to [`LARGE_COLUMNS`](crate::row::LARGE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LARGE_THREADS)]
                pub fn $large(params: SoftmaxParams) {
                    forward::<$element, Block<LARGE_THREADS>, HELD, true>(params)
                }

                /// Rows of up to [`WIDE_COLUMNS`](crate::row::WIDE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $wide(params: SoftmaxParams) {
                    forward::<$element, Block<WIDE_THREADS>, HELD, true>(params)
                }

                /// Rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: SoftmaxParams) {
                    forward::<$element, Block<LONG_THREADS>, { long::<$element>() }, false>(params)
                }

                /// Gradient of rows of up to [`PAIR_WARP_COLUMNS`](crate::row::PAIR_WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS)]
                pub fn $warp_backward(params: SoftmaxParams) {
                    backward::<$element, Warp, PAIR_WARP_HELD, true>(params)
                }

                /// Gradient of rows of up to [`PAIR_BLOCK_COLUMNS`](crate::row::PAIR_BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = PAIR_BLOCK_THREADS, min_blocks = if cfg!(tier = "sm_90a") { 2 } else { 1 })]
                pub fn $block_backward(params: SoftmaxParams) {
                    backward::<$element, Block<PAIR_BLOCK_THREADS>, PAIR_BLOCK_HELD, true>(params)
                }

                /// Gradient of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LONG_THREADS)]
                pub fn $long_backward(params: SoftmaxParams) {
                    backward::<$element, Block<LONG_THREADS>, PAIR_LONG, false>(params)
                }
            )*}
        };
    }

    softmaxes! {
        softmax_warp_f32 softmax_block_f32 softmax_large_f32 softmax_wide_f32 softmax_long_f32
            softmax_warp_backward_f32 softmax_block_backward_f32 softmax_long_backward_f32 f32
        softmax_warp_f16 softmax_block_f16 softmax_large_f16 softmax_wide_f16 softmax_long_f16
            softmax_warp_backward_f16 softmax_block_backward_f16 softmax_long_backward_f16 F16
        softmax_warp_bf16 softmax_block_bf16 softmax_large_bf16 softmax_wide_bf16 softmax_long_bf16
            softmax_warp_backward_bf16 softmax_block_backward_bf16 softmax_long_backward_bf16 Bf16
    }
}
