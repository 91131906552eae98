//! Choosing the next token from logits, one block a row: temperature, top-k, top-p, and a draw by Philox.
//!
//! Probabilities are fixed-point numbers: `w = ⌊2³²·exp((x − max)/temperature)⌋`. Their sums are integers, so that
//! the order in which threads add them up changes nothing, and a row's token depends on its logits, the seed, the
//! offset and its number alone. Thresholds are found by radix selection over the logits' bits: four rounds of a
//! histogram of 256 counts (top-k) or of 256 sums of probabilities (top-p).
//!
//! Where top-k keeps few, two passes over the row are enough: of the threads' own maxima, the k-th largest bounds the
//! row's k-th largest from below, so that hardly more than k logits reach it. Those are gathered in shared memory and
//! sorted there; the same logits are kept and the same token is drawn as on the long way, which is taken when too many
//! reach the bound.

use crate::kernel_params;

#[cfg(target_arch = "nvptx64")]
mod few;
pub mod greedy;

/// Threads of the block of a row.
pub const THREADS: u32 = 1024;
/// Largest top-k that is sought among gathered candidates.
pub const FEW: u64 = 256;
/// Candidates that there is room for.
pub const CANDIDATES: u32 = 1024;
/// Dynamic shared memory: two sets of slots for reductions, the histogram (or the threads' maxima, and then the
/// candidates and their probabilities), and what one thread tells the others.
pub const SHARED_BYTES: u64 = 512 + 2 * CANDIDATES as u64 * 8 + 16;
/// `top_p` that keeps everything: 1 as a fixed-point number.
pub const TOP_P_ONE: u64 = 1 << 32;

kernel_params! {
    /// Arguments of the `sample_*` kernels.
    pub struct SamplingParams {
        /// Logits, `rows × columns`.
        pub x: u64,
        /// Chosen columns, i64, `rows`.
        pub out: u64,
        /// Address of an i64 that is added to `offset`, or 0.
        pub offset_address: u64,
        /// Rows.
        pub rows: u64,
        /// Elements from one row to the next.
        pub x_stride: u64,
        /// Key of the generator.
        pub seed: u64,
        /// Upper half of the generator's counter.
        pub offset: u64,
        /// How many of the largest are kept; at least 1.
        pub top_k: u64,
        /// Share of the probability that is kept, times 2³².
        pub top_p: u64,
        /// Elements of a row.
        pub columns: u32,
        /// 1 to take the largest.
        pub greedy: u32,
        /// 1 / temperature.
        pub sharpness: f32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
    }
}

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
use device::key;

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::philox::philox4x32_10;
    use crate::row::{Block, CONSTANT, Row, Team, Vector, each, exp, pass};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{
        atomic::{Cta, Relaxed, shared as shared_atomic},
        barrier::syncthreads,
        global, kernel,
        shared::Shared,
        thread, warp,
    };

    /// The block of a row.
    pub type Threads = Block<THREADS>;

    /// Where one thread tells the others something.
    pub const ANSWER: u32 = 512 + 2 * CANDIDATES * 8;

    /// A number that rises with the value; 0 is no value's, and NaN comes last.
    #[inline(always)]
    pub fn key(x: f32) -> u32 {
        // −0 becomes 0.
        let bits = (x + 0.0).to_bits();
        if x != x {
            u32::MAX
        } else if bits >> 31 != 0 {
            !bits
        } else {
            bits | 1 << 31
        }
    }

    /// The value of a key.
    #[inline(always)]
    pub fn value(key: u32) -> f32 {
        f32::from_bits(if key >> 31 != 0 { key & 0x7FFF_FFFF } else { !key })
    }

    /// A row, and what its probabilities are relative to.
    pub struct Logits {
        pub row: Row,
        max: f32,
        sharpness: f32,
    }

    impl Logits {
        /// Probability of a logit relative to the largest, times 2³².
        #[inline(always)]
        pub fn weight(&self, x: f32) -> u64 {
            (exp((x - self.max) * self.sharpness) * 4_294_967_296.0) as u64
        }

        /// The logits from `column`, −∞ beyond the row.
        #[inline(always)]
        unsafe fn load<E: Element>(&self, column: u32) -> Vector {
            // SAFETY: the host gives the extents.
            unsafe { self.row.load::<E>(column, f32::NEG_INFINITY) }
        }

        /// Calls `visit(column, logits)` for the vectors of this thread, several of whose loads are on the way at once.
        #[inline(always)]
        pub unsafe fn all<E: Element>(&self, visit: impl FnMut(u32, Vector)) {
            let mut visit = visit;
            let load = #[inline(always)]
            |base| {
                // SAFETY: the host gives the extents.
                unsafe { self.row.part::<Threads, E, 4, CONSTANT>(base, f32::NEG_INFINITY) }
            };
            let held = [E::ZEROS; 4];
            pass::<Threads, E, 4, false>(self.row.columns, &held, load, |column, _, x| visit(column, x));
        }

        /// The sum of `of` over the row.
        #[inline(always)]
        unsafe fn total<E: Element>(&self, turn: &mut u32, of: impl Fn(f32) -> u64) -> u64 {
            let mut total = 0;
            each::<Threads>(self.row.columns, |column| {
                // SAFETY: as above.
                let x = unsafe { self.load::<E>(column) };
                let mut i = 0;
                while i < 8 {
                    if column + (i as u32) < self.row.columns {
                        total += of(x[i]);
                    }
                    i += 1;
                }
            });
            // SAFETY: all threads of the block come here.
            unsafe { Threads::join(total, 0, turn, |a, b| a + b) }
        }

        /// The largest key such that `of`, summed over the keys from it on, reaches `target`, and the sum over the
        /// keys above it. `target` is at least 1 and at most the sum over all.
        #[inline(always)]
        unsafe fn select<E: Element>(&self, target: u64, of: impl Fn(u32, f32) -> u64) -> (u32, u64) {
            let (mut prefix, mut known, mut above) = (0u32, 0u32, 0u64);
            let me = thread::thread_idx_x();
            let bins = Shared::<u64>::dynamic(512);
            let (found, sum) = (Shared::<u64>::dynamic(ANSWER), Shared::<u64>::dynamic(ANSWER + 8));
            let mut shift = 32;
            // SAFETY: the launch gives SHARED_BYTES; all threads of the block take the same way.
            unsafe {
                while shift > 0 {
                    shift -= 8;
                    if me < 256 {
                        bins.add(me).write(0);
                    }
                    syncthreads();
                    each::<Threads>(self.row.columns, |column| {
                        let x = self.load::<E>(column);
                        let mut i = 0;
                        while i < 8 {
                            let key = key(x[i]);
                            if column + (i as u32) < self.row.columns && key & known == prefix {
                                let value = of(key, x[i]);
                                if value != 0 {
                                    shared_atomic::add_u64::<Relaxed, Cta>(bins.add(key >> shift & 255), value);
                                }
                            }
                            i += 1;
                        }
                    });
                    syncthreads();
                    if me < 32 {
                        // Lane l has the bins 255 − 8l down to 248 − 8l.
                        let mut own = 0;
                        let mut i = 0;
                        while i < 8 {
                            own += bins.add(255 - 8 * me - i).read();
                            i += 1;
                        }
                        let before = scan(own) - own + above;
                        if before < target && before + own >= target {
                            let (mut bin, mut total) = (255 - 8 * me, before);
                            loop {
                                let here = bins.add(bin).read();
                                if total + here >= target {
                                    break;
                                }
                                total += here;
                                bin -= 1;
                            }
                            found.write(bin as u64);
                            sum.write(total);
                        }
                    }
                    syncthreads();
                    prefix |= (found.read() as u32) << shift;
                    above = sum.read();
                    known |= 255 << shift;
                    // The histogram is cleared, and the answer written, behind the next barriers.
                    syncthreads();
                }
            }
            (prefix, above)
        }

        /// The first column at which the running sum of `of` exceeds `target`; the sum over all does.
        #[inline(always)]
        unsafe fn first_beyond<E: Element>(&self, target: u64, turn: &mut u32, of: impl Fn(u32, f32) -> u64) -> u32 {
            let me = thread::thread_idx_x();
            let (slots, answer) = (Shared::<u64>::dynamic(512), Shared::<u64>::dynamic(ANSWER));
            let (mut base, mut running) = (0u32, 0u64);
            // SAFETY: the launch gives SHARED_BYTES; all threads of the block take the same way.
            unsafe {
                if me == 0 {
                    answer.write(self.row.columns as u64 - 1);
                }
                while base < self.row.columns {
                    let column = base + me * 8;
                    let mut weights = [0u64; 8];
                    let mut own = 0;
                    if column < self.row.columns {
                        let x = self.load::<E>(column);
                        let mut i = 0;
                        while i < 8 {
                            if column + (i as u32) < self.row.columns {
                                weights[i] = of(column + i as u32, x[i]);
                                own += weights[i];
                            }
                            i += 1;
                        }
                    }
                    let total = Threads::join(own, 0, turn, |a, b| a + b);
                    if running + total > target {
                        let through = scan(own);
                        if thread::lane_id() == 31 {
                            slots.add(thread::warp_idx()).write(through);
                        }
                        syncthreads();
                        let mut before = running + through - own;
                        let mut other = 0;
                        while other < thread::warp_idx() {
                            before += slots.add(other).read();
                            other += 1;
                        }
                        if before <= target && before + own > target {
                            let mut i = 0;
                            let mut chosen = 8;
                            while i < 8 {
                                before += weights[i];
                                if before > target && chosen == 8 {
                                    chosen = i as u32;
                                }
                                i += 1;
                            }
                            answer.write((column + chosen) as u64);
                        }
                        break;
                    }
                    running += total;
                    base += THREADS * 8;
                }
                syncthreads();
                let column = answer.read() as u32;
                syncthreads();
                column
            }
        }
    }

    /// Inclusive prefix sums over a warp.
    #[inline(always)]
    unsafe fn scan(mut value: u64) -> u64 {
        let mut delta = 1;
        while delta < 32 {
            // SAFETY: callers bring whole warps.
            let lower = unsafe { warp::shfl_up(value, delta) };
            if thread::lane_id() >= delta {
                value += lower;
            }
            delta *= 2;
        }
        value
    }

    /// ⌈total · share / 2³²⌉, at least 1, without overflow.
    #[inline(always)]
    pub fn share_of(total: u64, share: u64) -> u64 {
        let (high, low) = ((total >> 32) * share, (total & 0xFFFF_FFFF) * share);
        let wanted = high + (low >> 32) + (low & 0xFFFF_FFFF != 0) as u64;
        if wanted == 0 { 1 } else { wanted }
    }

    /// A number below `total`, this row's.
    #[inline(always)]
    pub unsafe fn draw(p: &SamplingParams, row: u64, total: u64) -> u64 {
        let mut offset = p.offset;
        if p.offset_address != 0 {
            // SAFETY: the host gives the address.
            offset = offset.wrapping_add(unsafe { global::ld_nc(p.offset_address as *const u64) });
        }
        let counter = [row as u32, 0, offset as u32, (offset >> 32) as u32];
        let number = (philox4x32_10(counter, [p.seed as u32, (p.seed >> 32) as u32])[0] >> 8) as u64;
        // ⌊number / 2²⁴ · total⌋ without overflow.
        number * (total >> 24) + (number * (total & 0xFF_FFFF) >> 24)
    }

    /// The column of a row's token.
    #[inline(always)]
    unsafe fn choose<E: Element>(p: &SamplingParams, row: u64, turn: &mut u32) -> u32 {
        let mut logits = Logits {
            row: Row::new::<E>(p.x, row, p.x_stride, p.columns, p.aligned),
            max: 0.0,
            sharpness: p.sharpness,
        };
        // SAFETY: the host gives the extents; all threads of the block take the same way.
        unsafe {
            // The largest key, of equal ones the leftmost.
            let mut own = 0u64;
            logits.all::<E>(|column, x| {
                let mut i = 0;
                while i < 8 {
                    let at = column + i as u32;
                    let candidate = (key(x[i]) as u64) << 32 | !at as u64;
                    if at < p.columns && candidate > own {
                        own = candidate;
                    }
                    i += 1;
                }
            });
            let best = Threads::join(own, 0, turn, |a, b| if a > b { a } else { b });
            let (best_key, best_column) = ((best >> 32) as u32, !(best as u32));
            logits.max = value(best_key);
            let certain = !(logits.max > f32::NEG_INFINITY && logits.max < f32::INFINITY);
            if p.greedy != 0 || certain || p.top_k == 1 {
                return best_column;
            }
            if p.top_k <= FEW && p.top_k < p.columns as u64 {
                let count = logits.gather::<E>(p.top_k as u32, own);
                if count <= CANDIDATES {
                    return logits.choose_of(p, row, count, turn);
                }
            }
            // Kept are the keys above `threshold`, of sum `above`, and the first `ties` that are equal to it.
            let (mut threshold, mut ties) = (0u32, 0u64);
            if p.top_k < p.columns as u64 {
                let (key, greater) = logits.select::<E>(p.top_k, |_, _| 1);
                (threshold, ties) = (key, p.top_k - greater);
            }
            let bottom = threshold;
            let mut above = logits.total::<E>(turn, |x| if key(x) > bottom { logits.weight(x) } else { 0 });
            if p.top_p < TOP_P_ONE {
                let each_tie = if threshold != 0 {
                    logits.weight(value(threshold))
                } else {
                    0
                };
                let total = above + ties * each_tie;
                let wanted = share_of(total, p.top_p);
                if wanted <= above {
                    let (key, greater) =
                        logits.select::<E>(wanted, |key, x| if key > bottom { logits.weight(x) } else { 0 });
                    let each_tie = logits.weight(value(key));
                    // The key was found by its weight.
                    core::hint::assert_unchecked(each_tie != 0);
                    (threshold, ties) = (key, (wanted - greater).div_ceil(each_tie));
                    above = greater;
                } else if each_tie != 0 {
                    ties = (wanted - above).div_ceil(each_tie);
                }
            }
            let mut last_tie = u32::MAX;
            let mut total = above;
            if ties > 0 {
                total += ties * logits.weight(value(threshold));
                last_tie = logits.first_beyond::<E>(ties - 1, turn, |_, x| (key(x) == threshold) as u64);
            }
            let target = draw(p, row, total);
            logits.first_beyond::<E>(target, turn, |column, x| {
                let key = key(x);
                if key > threshold || (key == threshold && column <= last_tie) {
                    logits.weight(x)
                } else {
                    0
                }
            })
        }
    }

    #[inline(always)]
    unsafe fn sample<E: Element>(p: SamplingParams) {
        let mut turn = 0;
        let mut row = thread::block_idx_x() as u64;
        while row < p.rows {
            // SAFETY: the host gives the extents.
            unsafe {
                let column = choose::<E>(&p, row, &mut turn);
                if thread::thread_idx_x() == 0 {
                    global::st((p.out as *mut i64).add(row as usize), column as i64);
                }
                // The next row's histogram uses the same memory.
                syncthreads();
            }
            row += thread::grid_dim_x() as u64;
        }
    }

    macro_rules! samples {
        ($($name:ident $element:ty;)*) => {
            kernel! {$(
                /// One token a row; dynamic shared memory of [`SHARED_BYTES`].
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; `out` overlaps nothing; `columns > 0`.
                #[launch(threads = THREADS)]
                pub fn $name(params: SamplingParams) {
                    sample::<$element>(params)
                }
            )*}
        };
    }

    samples! {
        sample_f32 f32;
        sample_f16 F16;
        sample_bf16 Bf16;
    }
}
