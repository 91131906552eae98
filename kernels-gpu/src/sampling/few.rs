//! Top-k of few: the logits that reach a bound of the k-th largest are gathered in shared memory, and the token is chosen there.

use super::{
    CANDIDATES, SamplingParams, THREADS, TOP_P_ONE,
    device::{ANSWER, Logits, Threads, draw, key, share_of, value},
};
use crate::row::Team;
use crate::tile::element::Element;
use cuda_std::{
    atomic::{Cta, Relaxed, shared as shared_atomic},
    barrier::syncthreads,
    shared::Shared,
    thread, warp,
};

/// Where the probabilities of candidates are.
const WEIGHTS: u32 = 512 + CANDIDATES * 8;

impl Logits {
    /// Gathers in shared memory the logits that reach the `k`-th largest of the threads' maxima, `own` being this
    /// thread's, as key and complement of the column; their number, which may be more than there is room for.
    #[inline(always)]
    pub unsafe fn gather<E: Element>(&self, k: u32, own: u64) -> u32 {
        let me = thread::thread_idx_x();
        let (list, bound) = (Shared::<u64>::dynamic(512), Shared::<u64>::dynamic(ANSWER));
        let count = Shared::<u32>::dynamic(ANSWER + 8);
        // SAFETY: the launch gives SHARED_BYTES; all threads of the block take the same way.
        unsafe {
            // Pairs of threads have maxima enough.
            let neighbour = warp::shfl_bfly(own, 1);
            let own = if neighbour > own { neighbour } else { own };
            if me % 2 == 0 {
                list.add(me / 2).write(own);
            }
            if me == 0 {
                count.write(0);
                bound.write(0);
            }
            syncthreads();
            // Maxima differ by their columns, but for the zeros of threads without any: where fewer than k are left,
            // the bound stays 0.
            if me < THREADS / 2 {
                let own = list.add(me).read();
                let (mut greater, mut other) = (0, 0);
                while other < THREADS / 2 {
                    greater += (list.add(other).read() > own) as u32;
                    other += 1;
                }
                if own != 0 && greater == k - 1 {
                    bound.write(own);
                }
            }
            syncthreads();
            let bound = (bound.read() >> 32) as u32;
            self.all::<E>(|column, x| {
                let mut i = 0;
                while i < 8 {
                    let (at, key) = (column + i as u32, key(x[i]));
                    if at < self.row.columns && key >= bound {
                        let place = shared_atomic::add_u32::<Relaxed, Cta>(count, 1);
                        if place < CANDIDATES {
                            list.add(place).write((key as u64) << 32 | !at as u64);
                        }
                    }
                    i += 1;
                }
            });
            syncthreads();
            let count = count.read();
            syncthreads();
            count
        }
    }

    /// The token of `count` candidates, among which all of the kept are.
    #[inline(always)]
    pub unsafe fn choose_of(&self, p: &SamplingParams, row: u64, count: u32, turn: &mut u32) -> u32 {
        let me = thread::thread_idx_x();
        let (list, answer) = (Shared::<u64>::dynamic(512), Shared::<u64>::dynamic(ANSWER));
        // SAFETY: the launch gives SHARED_BYTES; all threads of the block take the same way.
        unsafe {
            let weights = Shared::<u64>::dynamic(WEIGHTS);
            let own = if me < count { list.add(me).read() } else { 0 };
            let weight = if me < count {
                self.weight(value((own >> 32) as u32))
            } else {
                0
            };
            weights.add(me).write(weight);
            syncthreads();
            // How many come before this one in descending order, and the sum of their probabilities: of equal
            // logits the leftmost comes first.
            let (mut rank, mut before, mut other) = (0u32, 0u64, 0);
            while other < count {
                if list.add(other).read() > own {
                    rank += 1;
                    before += weights.add(other).read();
                }
                other += 1;
            }
            let mut kept = me < count && (rank as u64) < p.top_k;
            let mut total = Threads::join(if kept { weight } else { 0 }, 0, turn, |a, b| a + b);
            if p.top_p < TOP_P_ONE {
                let wanted = share_of(total, p.top_p);
                kept = kept && before < wanted;
                total = Threads::join(if kept { weight } else { 0 }, 0, turn, |a, b| a + b);
            }
            // The same candidates by columns: sums run from the left.
            let target = draw(p, row, total);
            syncthreads();
            if !kept {
                weights.add(me).write(0);
            }
            syncthreads();
            let (column, mut left) = (!(own as u32), 0);
            let mut other = 0;
            while other < count {
                if !(list.add(other).read() as u32) < column {
                    left += weights.add(other).read();
                }
                other += 1;
            }
            if kept && left <= target && left + weight > target {
                answer.write(column as u64);
            }
            syncthreads();
            let column = answer.read() as u32;
            syncthreads();
            column
        }
    }
}
