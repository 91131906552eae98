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
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::SoftmaxParams;
    use crate::row::*;
    use crate::row::{BLOCK_THREADS, WARP_THREADS, WIDE_THREADS};
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

        /// Scaled and masked logits from `column`, −∞ where nothing is seen.
        #[inline(always)]
        unsafe fn logits<E: Element>(&self, column: u32) -> Vector {
            // SAFETY: the host gives the extents.
            unsafe {
                let x = self.x.load::<E>(column, 0.0);
                let mut x = map(x, |x| x * self.scale);
                if self.masked {
                    x = zip(x, self.mask.load::<E>(column, 0.0), |x, m| x + m);
                }
                inside(x, column, self.seen, f32::NEG_INFINITY)
            }
        }
    }

    /// Where a maximum may be subtracted: 0 in a row of −∞.
    #[inline(always)]
    fn finite(max: f32) -> f32 {
        if max == f32::NEG_INFINITY { 0.0 } else { max }
    }

    /// Maximum (0 when there is none) and sum of exponentials of a row whose vectors are kept in `held`, or read
    /// once with the sum corrected as the maximum rises.
    #[inline(always)]
    unsafe fn statistics<E: Element, T: Team, const VECTORS: usize>(
        view: &View,
        held: &mut Held<VECTORS>,
        turn: &mut u32,
    ) -> (f32, f32) {
        let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
        if VECTORS > 0 {
            each::<T, VECTORS>(view.seen, |k, column| {
                // SAFETY: as the caller promises.
                let x = unsafe { view.logits::<E>(column) };
                max = math::fmax(max, greatest(x));
                held.keep(k, x);
            });
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            each::<T, VECTORS>(view.seen, |k, _| {
                total += add_up(map(held.get(k, || [0.0; 8]), |x| exp(x - max)));
            });
        } else {
            each::<T, VECTORS>(view.seen, |_, column| {
                // SAFETY: as the caller promises.
                let x = unsafe { view.logits::<E>(column) };
                let higher = math::fmax(max, greatest(x));
                let base = finite(higher);
                total = total * exp(finite(max) - base) + add_up(map(x, |x| exp(x - base)));
                max = higher;
            });
            let own = finite(max);
            // SAFETY: the team is together.
            max = finite(unsafe { row_max::<T>(max, turn) });
            total *= exp(own - max);
        }
        // SAFETY: the team is together.
        (max, unsafe { sum::<T>(total, turn) })
    }

    use crate::row::max as row_max;

    #[inline(always)]
    unsafe fn forward<E: Element, T: Team, const VECTORS: usize>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        while row < p.rows {
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let view = View::new::<E>(&p, row);
                let y = Row::new::<E>(p.y, row, p.y_stride, p.columns, p.aligned);
                let mut held = Held::<VECTORS>::new();
                let (max, total) = statistics::<E, T, VECTORS>(&view, &mut held, &mut turn);
                let hidden = if p.log != 0 { f32::NEG_INFINITY } else { 0.0 };
                // A row that sees nothing has total 0, and its logits are −∞.
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let log_total = math::lg2(total) * LN_2;
                each::<T, VECTORS>(p.columns, |k, column| {
                    let mut out = [hidden; 8];
                    if column < view.seen {
                        let x = held.get(k, || view.logits::<E>(column));
                        out = if p.log == 0 {
                            map(x, |x| exp(x - max) * factor)
                        } else if total == 0.0 {
                            out
                        } else {
                            map(x, |x| (x - max) - log_total)
                        };
                        // NaN · 0 and its like must not leak out of what is seen.
                        out = inside(out, column, view.seen, hidden);
                    }
                    y.store::<E>(column, out);
                });
            }
            row += T::step();
        }
    }

    #[inline(always)]
    unsafe fn backward<E: Element, T: Team, const VECTORS: usize>(p: SoftmaxParams) {
        let mut turn = 0;
        let mut row = T::first();
        while row < p.rows {
            // SAFETY: the host gives the extents of all tensors; each element is one thread's.
            unsafe {
                let view = View::new::<E>(&p, row);
                let out = Row::new::<E>(p.y, row, p.y_stride, p.columns, p.aligned);
                let dy = Row::new::<E>(p.dy, row, p.dy_stride, view.seen, p.aligned);
                let mut held = Held::<VECTORS>::new();
                let (max, total) = statistics::<E, T, VECTORS>(&view, &mut held, &mut turn);
                let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
                let mut gradients = Held::<VECTORS>::new();
                let mut along = 0.0;
                each::<T, VECTORS>(view.seen, |k, column| {
                    let g = dy.load::<E>(column, 0.0);
                    gradients.keep(k, g);
                    if p.log != 0 {
                        along += add_up(g);
                    } else {
                        let x = held.get(k, || view.logits::<E>(column));
                        along += add_up(zip(x, g, |x, g| exp(x - max) * factor * g));
                    }
                });
                let along = sum::<T>(along, &mut turn);
                each::<T, VECTORS>(p.columns, |k, column| {
                    let mut dx = [0.0; 8];
                    if column < view.seen && total != 0.0 {
                        let x = held.get(k, || view.logits::<E>(column));
                        let g = gradients.get(k, || dy.load::<E>(column, 0.0));
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
            }
            row += T::step();
        }
    }

    macro_rules! softmaxes {
        ($($warp:ident $block:ident $wide:ident $long:ident $warp_backward:ident $block_backward:ident $long_backward:ident
           $element:ty)*) => {
            kernel! {$(
                /// Rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS)]
                pub fn $warp(params: SoftmaxParams) {
                    forward::<$element, Warp, 4>(params)
                }

                /// Rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = BLOCK_THREADS)]
                pub fn $block(params: SoftmaxParams) {
                    forward::<$element, Block<BLOCK_THREADS>, 4>(params)
                }

                /// Rows of up to [`WIDE_COLUMNS`](crate::row::WIDE_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $wide(params: SoftmaxParams) {
                    forward::<$element, Block<WIDE_THREADS>, 4>(params)
                }

                /// Rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $long(params: SoftmaxParams) {
                    forward::<$element, Block<WIDE_THREADS>, 0>(params)
                }

                /// Gradient of rows of up to [`WARP_COLUMNS`](crate::row::WARP_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing.
                #[launch(threads = WARP_THREADS)]
                pub fn $warp_backward(params: SoftmaxParams) {
                    backward::<$element, Warp, 4>(params)
                }

                /// Gradient of rows of up to [`BLOCK_COLUMNS`](crate::row::BLOCK_COLUMNS) elements.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = BLOCK_THREADS)]
                pub fn $block_backward(params: SoftmaxParams) {
                    backward::<$element, Block<BLOCK_THREADS>, 4>(params)
                }

                /// Gradient of rows of any length.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = WIDE_THREADS)]
                pub fn $long_backward(params: SoftmaxParams) {
                    backward::<$element, Block<WIDE_THREADS>, 0>(params)
                }
            )*}
        };
    }

    softmaxes! {
        softmax_warp_f32 softmax_block_f32 softmax_wide_f32 softmax_long_f32
            softmax_warp_backward_f32 softmax_block_backward_f32 softmax_long_backward_f32 f32
        softmax_warp_f16 softmax_block_f16 softmax_wide_f16 softmax_long_f16
            softmax_warp_backward_f16 softmax_block_backward_f16 softmax_long_backward_f16 F16
        softmax_warp_bf16 softmax_block_bf16 softmax_wide_bf16 softmax_long_bf16
            softmax_warp_backward_bf16 softmax_block_backward_bf16 softmax_long_backward_bf16 Bf16
    }
}
