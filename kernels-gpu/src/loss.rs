//! Cross-entropy of logits against target indices: loss, log-sum-exp and gradient in one launch.
//!
//! `loss = lse − (1 − ε)·x[target] − ε·mean(x) + z·lse²`, and by the logits
//! `g·(p·(1 + 2z·lse) − (1 − ε)·[target] − ε/columns)`, which may overwrite them: each thread reads what it writes, and
//! the target's logit is read before the first barrier.

use crate::kernel_params;

kernel_params! {
    /// Arguments of the `cross_entropy_*` kernels. Addresses are 0 for what is not wanted.
    pub struct CrossEntropyParams {
        /// Logits, `rows × columns`.
        pub logits: u64,
        /// `rows` targets, i32 or i64.
        pub targets: u64,
        /// Loss of each row, f32, out.
        pub loss: u64,
        /// Log-sum-exp of each row, f32, out.
        pub lse: u64,
        /// Gradient of each row's loss, f32; 1 where there is none.
        pub grad: u64,
        /// Gradient of the logits, out; may be the logits.
        pub dlogits: u64,
        /// Rows.
        pub rows: u64,
        /// Elements from one row of the logits to the next.
        pub stride: u64,
        /// Of `dlogits`.
        pub dlogits_stride: u64,
        /// Rows with this target have loss and gradient 0.
        pub ignore_index: i64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 when targets are i64.
        pub wide: u32,
        /// ε.
        pub smoothing: f32,
        /// z.
        pub z_loss: f32,
        /// Factor of the gradient.
        pub grad_scale: f32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
        /// How many rows ahead a team asks L2 for, 0 for none.
        pub ahead: u32,
        /// Zero.
        pub reserved: u32,
    }
}

#[cfg(tier = "sm_90a")]
mod slices;

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::CrossEntropyParams;
    use crate::row::{
        BEFORE, Block, LN_2, OWN, Row, Team, add_up, exp, faded, finite, follow, greatest, inside, long, map, max,
        pass, sum, sum_pair, visit,
    };
    use crate::row::{HELD, LARGE_THREADS, LONG_THREADS};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{global, kernel, math};

    /// A row's target.
    #[derive(Clone, Copy)]
    pub struct Target {
        pub target: i64,
        /// Whether loss and gradient of the row are 0.
        pub ignored: bool,
        /// Whether it is in the vocabulary.
        known: bool,
        /// Its logit.
        logit: f32,
    }

    impl Target {
        /// Of a row whose logits are at `logits`.
        #[inline(always)]
        pub unsafe fn new<E: Element>(p: &CrossEntropyParams, row: u64, logits: u64) -> Target {
            // SAFETY: the host gives the extents.
            unsafe {
                let target = if p.wide != 0 {
                    global::ld_nc((p.targets + row * 8) as *const i64)
                } else {
                    global::ld_nc((p.targets + row * 4) as *const i32) as i64
                };
                let known = target >= 0 && target < p.columns as i64;
                let logit = if known {
                    global::ld((logits as *const E).add(target as usize)).to_f32()
                } else {
                    f32::NAN
                };
                Target {
                    target,
                    ignored: target == p.ignore_index,
                    known,
                    logit,
                }
            }
        }

        /// Stores loss and log-sum-exp; `mean` is that of the logits, where it is wanted.
        #[inline(always)]
        pub unsafe fn store_losses(&self, p: &CrossEntropyParams, row: u64, lse: f32, mean: f32) {
            let mut loss = (1.0 - p.smoothing) * (lse - self.logit);
            if p.smoothing != 0.0 {
                loss += p.smoothing * (lse - mean);
            }
            if p.z_loss != 0.0 {
                loss += p.z_loss * (lse * lse);
            }
            // SAFETY: the host gives the extents.
            unsafe {
                if p.loss != 0 {
                    global::st(
                        (p.loss as *mut f32).add(row as usize),
                        if self.ignored { 0.0 } else { loss },
                    );
                }
                if p.lse != 0 {
                    global::st((p.lse as *mut f32).add(row as usize), lse);
                }
            }
        }

        /// Factor of the row's gradient, and what exponentials are multiplied by in it.
        #[inline(always)]
        pub unsafe fn factors(&self, p: &CrossEntropyParams, row: u64, total: f32, lse: f32) -> (f32, f32) {
            let mut grad = p.grad_scale;
            if p.grad != 0 {
                // SAFETY: the host gives the extents.
                grad *= unsafe { global::ld_nc((p.grad as *const f32).add(row as usize)) };
            }
            if !self.known {
                grad = f32::NAN;
            }
            let mut share = 1.0 / total;
            if p.z_loss != 0.0 {
                share *= 1.0 + 2.0 * p.z_loss * lse;
            }
            (grad, share)
        }
    }

    /// The logarithm of the sum of exponentials `total`, relative to `high`.
    #[inline(always)]
    pub fn log_sum(high: f32, total: f32) -> f32 {
        if total == 0.0 {
            f32::NEG_INFINITY
        } else {
            high + math::lg2(total) * LN_2
        }
    }

    #[inline(always)]
    unsafe fn cross_entropy<E: Element, T: Team, const N: usize, const HELD: bool>(p: CrossEntropyParams) {
        let mut turn = 0;
        let mut row = T::first();
        while row < p.rows {
            // SAFETY: the host gives the extents; each element is one thread's.
            unsafe {
                let logits = Row::new::<E>(p.logits, row, p.stride, p.columns, p.aligned);
                // Before anybody overwrites it.
                let wanted = Target::new::<E>(&p, row, logits.address);
                let Target { target, ignored, .. } = wanted;
                let load = #[inline(always)]
                |base| logits.part::<T, E, N, BEFORE>(base, f32::NEG_INFINITY);
                let real = |x, column| inside(x, column, p.columns, 0.0);
                let held = if HELD { load(0) } else { [E::ZEROS; N] };
                let (mut high, mut total, mut plain) = (f32::NEG_INFINITY, 0.0, 0.0);
                if HELD {
                    visit::<T, E, N>(p.columns, 0, &held, |column, _, x| {
                        high = math::fmax(high, greatest(x));
                        plain += add_up(real(x, column));
                    });
                    high = finite(max::<T>(high, &mut turn));
                    visit::<T, E, N>(p.columns, 0, &held, |_, _, x| {
                        total += add_up(map(x, |x| exp(x - high)));
                    });
                } else {
                    pass::<T, E, N, false>(p.columns, &held, load, |column, _, x| {
                        let higher = math::fmax(high, greatest(x));
                        let base = finite(higher);
                        total = total * faded(high, base) + add_up(map(x, |x| exp(x - base)));
                        plain += add_up(real(x, column));
                        high = higher;
                    });
                    let own = high;
                    high = finite(max::<T>(high, &mut turn));
                    total *= faded(own, high);
                }
                let mut mean = 0.0;
                if p.smoothing != 0.0 {
                    let sums = sum_pair::<T>(total, plain, &mut turn);
                    (total, mean) = (sums.0, sums.1 / p.columns as f32);
                } else {
                    total = sum::<T>(total, &mut turn);
                }
                let lse = log_sum(high, total);
                if T::lane() == 0 {
                    wanted.store_losses(&p, row, lse, mean);
                }
                if p.dlogits != 0 {
                    let out = Row::new::<E>(p.dlogits, row, p.dlogits_stride, p.columns, p.aligned);
                    let (grad, share) = wanted.factors(&p, row, total, lse);
                    let even = p.smoothing / p.columns as f32;
                    let chosen = 1.0 - p.smoothing;
                    let own = #[inline(always)]
                    |base| logits.part::<T, E, N, OWN>(base, f32::NEG_INFINITY);
                    pass::<T, E, N, HELD>(p.columns, &held, own, |column, _, x| {
                        let mut dx = [0.0; 8];
                        if !ignored {
                            let mut i = 0;
                            while i < 8 {
                                let mut d = exp(x[i] - high) * share;
                                if (column + i as u32) as i64 == target {
                                    d -= chosen;
                                }
                                dx[i] = grad * (d - even);
                                i += 1;
                            }
                        }
                        out.store::<E>(column, dx);
                    });
                }
            }
            row += T::step();
        }
    }

    macro_rules! losses {
        ($($block:ident $long:ident $element:ty)*) => {
            kernel! {$(
                /// Rows of up to [`LARGE_COLUMNS`](crate::row::LARGE_COLUMNS) elements.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; outputs overlap nothing, but `dlogits` may
                ///   be `logits`. Dynamic shared memory of `EXCHANGE_BYTES`.
                #[launch(threads = LARGE_THREADS)]
                pub fn $block(params: CrossEntropyParams) {
                    follow();
                    cross_entropy::<$element, Block<LARGE_THREADS>, HELD, true>(params)
                }

                /// Rows of any length.
                ///
                /// # Safety
                /// - As for the other.
                #[launch(threads = LONG_THREADS)]
                pub fn $long(params: CrossEntropyParams) {
                    follow();
                    cross_entropy::<$element, Block<LONG_THREADS>, { long::<$element>() }, false>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    macro_rules! slice_losses {
        ($($slices:ident $element:ty)*) => {
            kernel! {$(
                /// Rows in the shared memory of a cluster of any number of blocks.
                ///
                /// # Safety
                /// - As for the others; dynamic shared memory of `slices_bytes`.
                #[launch(threads = crate::row::SLICE_THREADS, min_blocks = crate::row::SLICE_BLOCKS)]
                pub fn $slices(params: CrossEntropyParams) {
                    cuda_std::grid_dependency::wait();
                    super::slices::cross_entropy::<$element, { crate::row::slice_part::<$element>() }>(params)
                }
            )*}
        };
    }

    #[cfg(tier = "sm_90a")]
    slice_losses! {
        cross_entropy_slices_f32 f32
        cross_entropy_slices_f16 F16
        cross_entropy_slices_bf16 Bf16
    }

    losses! {
        cross_entropy_block_f32 cross_entropy_long_f32 f32
        cross_entropy_block_f16 cross_entropy_long_f16 F16
        cross_entropy_block_bf16 cross_entropy_long_bf16 Bf16
    }
}
