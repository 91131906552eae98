//! How `linear_tiled*` bring operands into the stages: chunks of 16 bytes, by `cp.async` (sm_80) or through registers
//! (sm_75).
//!
//! Rows and columns that a ragged tile lacks are copied from the operand's first ones: nobody stores what comes of them.
//! So a whole stage needs no masks; only k's last part is padded with zeros.

use super::params::TILED_DEPTH;
use crate::tile::layout::Swizzle;
#[cfg(not(tier = "sm_75"))]
use cuda_std::cp_async;
use cuda_std::thread;
#[cfg(tier = "sm_75")]
use cuda_std::{global, shared};

/// 16 bytes from global to shared memory, of which the first `bytes` exist and the others become 0.
#[inline(always)]
unsafe fn copy_16(target: u32, source: u64, bytes: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        #[cfg(not(tier = "sm_75"))]
        cp_async::copy_16_l2_128b(target, source as *const u8, bytes);
        #[cfg(tier = "sm_75")]
        {
            let mut words = [0u32; 4];
            if bytes == 16 {
                words = global::ld(source as *const [u32; 4]);
            } else {
                let mut i = 0;
                while i < 4 {
                    let low = if 4 * i as u32 + 2 <= bytes {
                        global::ld((source as *const u16).add(2 * i))
                    } else {
                        0
                    };
                    let high = if 4 * i as u32 + 4 <= bytes {
                        global::ld((source as *const u16).add(2 * i + 1))
                    } else {
                        0
                    };
                    words[i] = low as u32 | (high as u32) << 16;
                    i += 1;
                }
            }
            shared::st(target, words);
        }
    }
}

/// [`copy_16`] of all 16 bytes.
#[inline(always)]
unsafe fn copy_whole_16(target: u32, source: u64) {
    // SAFETY: forwarded to the caller.
    unsafe {
        #[cfg(not(tier = "sm_75"))]
        cp_async::copy_whole_16_l2_128b(target, source as *const u8);
        #[cfg(tier = "sm_75")]
        shared::st(target, global::ld(source as *const [u32; 4]));
    }
}

/// How a thread copies its chunks of an operand into the stages: `CHUNKS` of them a stage, in a block of `THREADS`; the
/// tile has `CHUNKS·THREADS/4` rows (of x, or columns of the weight). `ALONG` says that the operand is dense along its
/// rows, not along k.
pub struct Loader<const CHUNKS: usize, const THREADS: u32, const ALONG: bool> {
    /// Addresses of the chunks in the next stage.
    source: [u64; CHUNKS],
    /// From one stage to the next.
    step: u64,
    /// Offset of the first chunk in a stage; the others follow at distances of `16·THREADS`.
    target: u32,
    /// The first chunk's place along k in a stage, elements.
    k: u32,
    /// For each chunk that runs along the rows, how many bytes of it exist.
    bytes: [u32; CHUNKS],
}

impl<const CHUNKS: usize, const THREADS: u32, const ALONG: bool> Loader<CHUNKS, THREADS, ALONG> {
    /// `place` maps a row of the tile to its offset in elements and the number of rows that exist from there on; of the
    /// operand's first row, `rows` exist.
    #[inline(always)]
    pub fn new(base: u64, k_stride: u64, rows: u64, place: impl Fn(u32) -> (u64, u64)) -> Self {
        let t = thread::thread_idx_x();
        // A row of 32 k is four chunks; a panel of 64 rows at one k is eight.
        let (row, k) = if ALONG { (t % 8 * 8, t / 8) } else { (t / 4, t % 4 * 8) };
        let target = if ALONG {
            Swizzle::B128.apply(k * 128 + row * 2)
        } else {
            Swizzle::B64.apply(row * 64 + k * 2)
        };
        let (mut source, mut bytes) = ([0; CHUNKS], [0; CHUNKS]);
        let mut i = 0;
        while i < CHUNKS {
            let (chunk_row, chunk_k) = Self::place(i);
            let (offset, left) = place(row + chunk_row);
            let (offset, left) = if left > 0 { (offset, left) } else { (0, rows) };
            let at = offset.wrapping_add((k + chunk_k) as u64 * k_stride);
            source[i] = base.wrapping_add(at.wrapping_mul(2));
            bytes[i] = if left < 8 { 2 * left as u32 } else { 16 };
            i += 1;
        }
        Self {
            source,
            step: TILED_DEPTH as u64 * k_stride * 2,
            target,
            k,
            bytes,
        }
    }

    /// Row and place along k of chunk `i`, relative to the first chunk's.
    #[inline(always)]
    const fn place(i: usize) -> (u32, u32) {
        if ALONG {
            // A pass takes THREADS/8 of k, a panel of 64 rows so many passes.
            let passes = 8 * TILED_DEPTH / THREADS;
            (i as u32 / passes * 64, i as u32 % passes * (THREADS / 8))
        } else {
            (i as u32 * (THREADS / 4), 0)
        }
    }

    /// Starts the copies of the next stage, which is whole along k.
    ///
    /// # Safety
    /// - The operand is as `new` was told; the stage at `stage` is free.
    #[inline(always)]
    pub unsafe fn load_whole(&mut self, stage: u32) {
        let mut i = 0;
        while i < CHUNKS {
            let to = stage + self.target + i as u32 * (16 * THREADS);
            // SAFETY: the bytes exist by the caller's description; the chunks are this thread's in a free stage.
            unsafe {
                if ALONG {
                    copy_16(to, self.source[i], self.bytes[i]);
                } else {
                    copy_whole_16(to, self.source[i]);
                }
            }
            self.source[i] = self.source[i].wrapping_add(self.step);
            i += 1;
        }
    }

    /// Starts the copies of the next stage, of which `k_left` elements along k exist: some.
    ///
    /// # Safety
    /// - As for `load_whole`.
    #[inline(always)]
    pub unsafe fn load(&mut self, stage: u32, k_left: u64) {
        if k_left >= TILED_DEPTH as u64 {
            // SAFETY: forwarded to the caller.
            return unsafe { self.load_whole(stage) };
        }
        let mut i = 0;
        while i < CHUNKS {
            let k = self.k + Self::place(i).1;
            let left = (k_left as u32).saturating_sub(k);
            let bytes = if ALONG {
                if left > 0 { self.bytes[i] } else { 0 }
            } else if left < 8 {
                2 * left
            } else {
                16
            };
            // Nothing is read from the address where no byte exists; it is kept valid all the same.
            let back = k as u64 * (self.step / TILED_DEPTH as u64);
            let source = self.source[i].wrapping_sub(if bytes == 0 { back } else { 0 });
            // SAFETY: the bytes exist by the caller's description; the chunk is this thread's in a free stage.
            unsafe { copy_16(stage + self.target + i as u32 * (16 * THREADS), source, bytes) };
            i += 1;
        }
    }
}
