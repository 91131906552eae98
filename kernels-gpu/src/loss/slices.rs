//! Cross-entropy of long rows, in the shared memory of the blocks of a cluster: one read and one write of memory.

use super::{
    CrossEntropyParams,
    device::{Target, log_sum},
};
use crate::row::*;
use cuda_std::{math, thread};

/// One row.
///
/// # Safety
/// - The tensors have the extents that the parameters say; dynamic shared memory of one slice.
#[inline(always)]
pub unsafe fn cross_entropy<E: Ordered, const N: usize>(p: CrossEntropyParams) {
    // SAFETY: forwarded to the caller. In place, a block overwrites what only it has read, but for the target's logit,
    // which is read before the blocks meet.
    unsafe {
        let place = Place::begin();
        let row = place.row;
        let logits = p.logits + row * p.stride * size_of::<E>() as u64;
        let slice = Slice::new::<E>(place, 0, logits, p.columns);
        Slice::ask::<E, 1>([&slice], f32::NEG_INFINITY);
        if p.ahead != 0 && row + (p.ahead as u64) < p.rows {
            slice.ask_l2::<E>(p.ahead as u64 * p.stride * size_of::<E>() as u64);
        }
        let wanted = Target::new::<E>(&p, row, logits);
        let (high, total) = join_powers::<E, N>(place, &slice, p.columns, LOG2_E);
        let mut mean = 0.0;
        if p.smoothing != 0.0 {
            let own = if slice.whole() {
                total_of::<E, N, false>(&slice)
            } else {
                total_of::<E, N, true>(&slice)
            };
            let [plain] = place.sums::<1, 1>([own]);
            mean = plain / p.columns as f32;
        }
        let lse = log_sum(high, total);
        if place.rank == 0 && thread::thread_idx_x() == 0 {
            wanted.store_losses(&p, row, lse, mean);
        }
        if p.dlogits == 0 {
            return;
        }
        let out = p.dlogits + row * p.dlogits_stride * size_of::<E>() as u64;
        let (grad, share) = wanted.factors(&p, row, total, lse);
        let (even, chosen) = (p.smoothing / p.columns as f32, 1.0 - p.smoothing);
        let (factor, less) = (grad * share, grad * even);
        // Its place within a vector decides; beyond all of them where the row has none.
        let target = if wanted.target >= 0 && wanted.target < p.columns as i64 {
            wanted.target as u32
        } else {
            u32::MAX
        };
        slice.each_in_place::<E, N, false>(out, |column, x| {
            if wanted.ignored {
                return [0.0; 8];
            }
            let mut dx = map(x, |x| math::fma(math::ex2((x - high) * LOG2_E), factor, -less));
            let within = target.wrapping_sub(column);
            if within < WIDTH {
                let mut i = 0;
                while i < 8 {
                    if within == i as u32 {
                        dx[i] = grad * (math::ex2((x[i] - high) * LOG2_E) * share - chosen - even);
                    }
                    i += 1;
                }
            }
            dx
        });
    }
}

/// The sum of this thread's elements.
#[inline(always)]
unsafe fn total_of<E: Ordered, const N: usize, const SHIFTED: bool>(slice: &Slice) -> f32 {
    let mut total = 0.0;
    let mut base = 0;
    while base < slice.columns {
        // SAFETY: all parts are there.
        let held = unsafe { slice.part::<E, N, SHIFTED>(base, 0.0) };
        let mut k = 0;
        while k < N {
            let x = E::unpack8(held[k]);
            total += add_up(inside(x, Slice::column(base, k), slice.columns, 0.0));
            k += 1;
        }
        base += const { Slice::step::<N>() };
    }
    total
}
