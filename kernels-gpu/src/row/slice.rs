//! Rows in the shared memory of the blocks of a cluster (sm_90): for rows that one block's registers do not hold.
//!
//! Each block of a cluster of 1, 2, 4 or 8 has a slice of the row, which bulk copies bring as it lies in memory; several
//! small blocks on a multiprocessor, each with all of its slice under way at once, keep memory busy while others
//! compute. Passes over the row read shared memory; the blocks join their sums through distributed shared memory. A
//! cluster takes one row: no place is written twice, so no barrier guards against that.
//!
//! A slice that does not start at a multiple of 16 bytes keeps its place within 16 bytes in shared memory; its ends are
//! copied one by one. [`Slice::part`] gives the elements of columns that do not depend on the address, for sums;
//! [`Slice::each_in_place`] those that lie together in memory, for what is stored.

use super::{
    Part, Place, SLICE_JOIN_BYTES, SLICE_JOINS, SLICE_THREADS, SLICES_AT, Vector, WIDTH, slice_bytes, slice_columns,
    vector_at,
};
use crate::tile::element::Element;
use cuda_std::{barrier::syncthreads, bulk, global, math, mbarrier, shared, thread};

/// Vectors of type `E` that a thread takes at a time: a part is what the block takes.
pub const fn slice_part<E>() -> usize {
    if size_of::<E>() == 4 { 2 } else { 4 }
}

/// This block's share of a row.
#[derive(Clone, Copy)]
pub struct Slice {
    /// Shared address of its first element.
    at: u32,
    /// Its first element in memory.
    pub address: u64,
    /// Its first column.
    pub first: u32,
    /// Its columns.
    pub columns: u32,
}

impl Slice {
    /// The share of a row of `columns` elements from `address` on; it is number `index` in shared memory.
    #[inline(always)]
    pub fn new<E: Element>(place: Place, index: u32, address: u64, columns: u32) -> Slice {
        let size = size_of::<E>() as u32;
        let each = slice_columns(columns, place.blocks);
        let first = place.rank * each;
        let address = address + (first * size) as u64;
        let rest = columns - first;
        Slice {
            at: shared::dynamic_base()
                + SLICES_AT
                + index * slice_bytes(columns, place.blocks, size)
                + (address as u32 & 15),
            address,
            first,
            columns: if rest < each { rest } else { each },
        }
    }

    /// Bytes between a multiple of 16 and the first element.
    #[inline(always)]
    fn shift(&self) -> u32 {
        self.at & 15
    }

    /// Whether it is whole vectors at multiples of 16 bytes.
    #[inline(always)]
    pub fn whole(&self) -> bool {
        self.shift() == 0 && self.columns % WIDTH == 0
    }

    /// Bytes of a part.
    #[inline(always)]
    const fn part_bytes<E>() -> u32 {
        SLICE_THREADS * WIDTH * (slice_part::<E>() * size_of::<E>()) as u32
    }

    /// Where the copy of a part begins (and that of the part before ends): all that [`part`](Self::part) may read.
    #[inline(always)]
    fn bound<E>(&self, part: u32) -> u32 {
        let end = self.shift() + self.columns * size_of::<E>() as u32 & !15;
        let at = part * Self::part_bytes::<E>() + 32;
        let at = if part == 0 { self.shift() + 15 & !15 } else { at };
        if at < end { at } else { end }
    }

    #[inline(always)]
    fn parts<E>(&self) -> u32 {
        (self.columns * size_of::<E>() as u32 + const { Self::part_bytes::<E>() - 1 })
            / const { Self::part_bytes::<E>() }
    }

    /// Starts the copies of these slices, which have the same columns.
    ///
    /// # Safety
    /// - All threads of the block come here together, once; the rows are readable, and the block has
    ///   [`slices_bytes`](super::slices_bytes) of dynamic shared memory.
    /// - `fill` is what is found beyond the row within a vector.
    #[inline(always)]
    pub unsafe fn ask<E: Element, const N: usize>(slices: [&Slice; N], fill: f32) {
        // SAFETY: forwarded to the caller; the ends are disjoint from what is copied in bulk.
        unsafe {
            if thread::thread_idx_x() == 0 {
                let parts = slices[0].parts::<E>();
                let mut part = 0;
                while part < parts {
                    mbarrier::init(Self::barrier(part), 1);
                    part += 1;
                }
                mbarrier::fence_init();
                let mut part = 0;
                while part < parts {
                    let mut bytes = 0;
                    let mut i = 0;
                    while i < N {
                        bytes += slices[i].end_of::<E>(part, parts) - slices[i].bound::<E>(part);
                        i += 1;
                    }
                    mbarrier::arrive_expect_tx(Self::barrier(part), bytes);
                    let mut i = 0;
                    while i < N {
                        let slice = slices[i];
                        let (from, to) = (slice.bound::<E>(part), slice.end_of::<E>(part, parts));
                        if to > from {
                            let source = (slice.address & !15) + from as u64;
                            bulk::load(
                                (slice.at & !15) + from,
                                source as *const u8,
                                to - from,
                                Self::barrier(part),
                            );
                        }
                        i += 1;
                    }
                    part += 1;
                }
            }
            let mut i = 0;
            while i < N {
                if !slices[i].whole() {
                    slices[i].copy_ends::<E>(fill);
                }
                i += 1;
            }
            syncthreads();
        }
    }

    /// Asks L2 for what lies `offset` bytes behind this slice.
    ///
    /// # Safety
    /// - It is readable, as far as the slice goes.
    #[inline(always)]
    pub unsafe fn ask_l2<E: Element>(&self, offset: u64) {
        if thread::thread_idx_x() == 32 {
            let at = self.address + offset;
            let end = at + (self.columns * size_of::<E>() as u32) as u64 & !15;
            let at = at + 15 & !15;
            // SAFETY: forwarded to the caller.
            unsafe { bulk::prefetch_l2(at as *const u8, (end - at) as u32) };
        }
    }

    #[inline(always)]
    fn end_of<E>(&self, part: u32, parts: u32) -> u32 {
        if part + 1 == parts {
            self.shift() + self.columns * size_of::<E>() as u32 & !15
        } else {
            self.bound::<E>(part + 1)
        }
    }

    #[inline(always)]
    fn barrier(part: u32) -> u32 {
        shared::dynamic_base() + SLICE_JOINS * SLICE_JOIN_BYTES + part * mbarrier::BYTES
    }

    /// Copies what lies before the first and behind the last multiple of 16 bytes.
    #[inline(always)]
    unsafe fn copy_ends<E: Element>(&self, fill: f32) {
        let size = size_of::<E>() as u32;
        let (base, shift) = (self.at & !15, self.shift());
        let end = shift + self.columns * size;
        let thread = thread::thread_idx_x();
        let (head, tail) = (16 / size, 48 / size);
        let at = if thread < head {
            thread * size
        } else {
            (end & !15) + (thread - head) * size
        };
        if thread < head + tail && (thread >= head || shift != 0) {
            // SAFETY: elements of the slice, and places of its shared memory that no other thread writes.
            unsafe {
                let mut value = E::from_f32(fill);
                if at >= shift && at < end {
                    value = global::ld((self.address + (at - shift) as u64) as *const E);
                }
                shared::st(base + at, value);
            }
        }
    }

    /// Waits for the part from `column` on.
    ///
    /// # Safety
    /// - [`ask`](Self::ask) was called, and the slice has the column.
    #[inline(always)]
    pub unsafe fn wait<E>(&self, column: u32) {
        let part = column / (SLICE_THREADS * WIDTH * slice_part::<E>() as u32);
        // SAFETY: somebody asked for it.
        unsafe { mbarrier::wait_parity(Self::barrier(part), 0) }
    }

    /// This thread's column of vector `k` of the part from `base` on.
    #[inline(always)]
    pub fn column(base: u32, k: usize) -> u32 {
        base + (thread::thread_idx_x() + k as u32 * SLICE_THREADS) * WIDTH
    }

    /// From one part to the next.
    #[inline(always)]
    pub const fn step<const N: usize>() -> u32 {
        SLICE_THREADS * WIDTH * N as u32
    }

    /// This thread's vectors of the part from `base` on, `fill` beyond the row. `SHIFTED` where a slice may not start
    /// at a multiple of 16 bytes.
    ///
    /// # Safety
    /// - The part has been [waited](Self::wait) for.
    #[inline(always)]
    pub unsafe fn part<E: Element, const N: usize, const SHIFTED: bool>(&self, base: u32, fill: f32) -> Part<E, N> {
        let mut part = [E::pack8([fill; 8]); N];
        let mut k = 0;
        while k < N {
            let column = Self::column(base, k);
            if column < self.columns {
                // SAFETY: within the slice.
                part[k] = unsafe { self.vector::<E, SHIFTED>(column) };
            }
            k += 1;
        }
        part
    }

    /// The eight elements from `column`, a multiple of 8, on.
    ///
    /// # Safety
    /// - As for [`part`](Self::part), and the slice has the column.
    #[inline(always)]
    pub unsafe fn vector<E: Element, const SHIFTED: bool>(&self, column: u32) -> E::Packed {
        let at = self.at + column * size_of::<E>() as u32;
        // SAFETY: within the slice's memory.
        unsafe {
            if !SHIFTED {
                return vector_at::<E>(at);
            }
            if size_of::<E>() == 4 {
                let mut values = [0.0; 8];
                let mut i = 0;
                while i < 8 {
                    values[i] = shared::ld(at + i as u32 * 4);
                    i += 1;
                }
                return E::pack8(values);
            }
            // Both are the same where nothing is shifted: there is nothing behind the last.
            let (first, second) = (at & !15, at + 15 & !15);
            let [low, high]: [[u32; 4]; 2] = [shared::ld(first), shared::ld(second)];
            let w = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
            // Shifted by two words, by one, and by half of one.
            // Choices by masks: a choice of array elements would become an index at run time, and the array memory.
            let (two, one) = (0u32.wrapping_sub(at >> 3 & 1), 0u32.wrapping_sub(at >> 2 & 1));
            let chosen = |mask: u32, a: u32, b: u32| a ^ ((a ^ b) & mask);
            let half = if at & 2 != 0 { 0x5432 } else { 0x3210 };
            let (mut by_two, mut by_one, mut words) = ([0; 6], [0; 5], [0; 4]);
            let mut i = 0;
            while i < 6 {
                by_two[i] = chosen(two, w[i], w[i + 2]);
                i += 1;
            }
            let mut i = 0;
            while i < 5 {
                by_one[i] = chosen(one, by_two[i], by_two[i + 1]);
                i += 1;
            }
            let mut i = 0;
            while i < 4 {
                words[i] = math::prmt(by_one[i], by_one[i + 1], half);
                i += 1;
            }
            E::of_words(words)
        }
    }

    /// Replaces the eight elements from `column` on in shared memory.
    ///
    /// # Safety
    /// - As for [`vector`](Self::vector); no other thread reads or writes them meanwhile; the slice is not shifted.
    #[inline(always)]
    pub unsafe fn replace<E: Element>(&self, column: u32, values: Vector) {
        let at = self.at + column * size_of::<E>() as u32;
        // SAFETY: forwarded to the caller.
        unsafe {
            if size_of::<E>() == 2 {
                let v = values;
                shared::st(
                    at,
                    [
                        E::pack(v[0], v[1]),
                        E::pack(v[2], v[3]),
                        E::pack(v[4], v[5]),
                        E::pack(v[6], v[7]),
                    ],
                );
            } else {
                shared::st(at, [values[0], values[1], values[2], values[3]]);
                shared::st(at + 16, [values[4], values[5], values[6], values[7]]);
            }
        }
    }

    /// Elements between a multiple of 16 bytes and the first.
    #[inline(always)]
    pub fn shifted_by<E>(&self) -> u32 {
        self.shift() / size_of::<E>() as u32
    }

    /// This thread's vectors of the part from `base` on, as they lie in memory: vector 0 has the slice's first element at
    /// [`shifted_by`](Self::shifted_by), and what was found beyond the slice before and behind.
    ///
    /// # Safety
    /// - The part has been [waited](Self::wait) for, and all of these vectors have an element of the slice.
    #[inline(always)]
    pub unsafe fn part_in_place<E: Element, const N: usize>(&self, base: u32) -> Part<E, N> {
        let mut part = [E::ZEROS; N];
        let mut k = 0;
        while k < N {
            // SAFETY: within the slice's memory.
            part[k] = unsafe { vector_at::<E>((self.at & !15) + Self::column(base, k) * size_of::<E>() as u32) };
            k += 1;
        }
        part
    }

    /// Stores `new(first column of the row, elements)` of each vector as it lies in memory to the row at `out`, all that the
    /// slice has of it. `N` vectors at a time; as of what nobody reads soon if it is written `ONCE`.
    ///
    /// # Safety
    /// - All threads of the block come here, all parts have been waited for, and the row at `out` is writable; where it
    ///   is the slice's own row, its blocks have read it.
    #[inline(always)]
    pub unsafe fn each_in_place<E: Element, const N: usize, const ONCE: bool>(
        &self,
        out: u64,
        new: impl Fn(u32, Vector) -> Vector,
    ) {
        let size = size_of::<E>() as u32;
        let (shift, base) = (self.shift() / size, self.at & !15);
        let out = out + (self.first * size) as u64;
        let whole = (out ^ self.address) & 15 == 0;
        let end = shift + self.columns;
        let mut at = thread::thread_idx_x() * WIDTH;
        while at < end {
            let mut held = [E::ZEROS; N];
            let mut k = 0;
            while k < N {
                let at = at + k as u32 * (SLICE_THREADS * WIDTH);
                if at < end {
                    // SAFETY: forwarded to the caller.
                    held[k] = unsafe { vector_at::<E>(base + at * size) };
                }
                k += 1;
            }
            let mut k = 0;
            while k < N {
                let at = at + k as u32 * (SLICE_THREADS * WIDTH);
                if at < end {
                    // The vector before the first whole one may begin before the row, in numbers that wrap.
                    let column = at.wrapping_sub(shift);
                    let values = new(self.first.wrapping_add(column), E::unpack8(held[k]));
                    let to = (out as *mut E).wrapping_add(at as usize).wrapping_sub(shift as usize);
                    // SAFETY: forwarded to the caller.
                    unsafe {
                        if whole && at >= shift && at + WIDTH <= end {
                            if ONCE {
                                super::store_once::<E>(to as u64, values);
                            } else {
                                E::store8(to, values);
                            }
                        } else {
                            let mut i = 0;
                            while i < 8 {
                                if at + i as u32 >= shift && at + (i as u32) < end {
                                    global::st(to.wrapping_add(i), E::from_f32(values[i]));
                                }
                                i += 1;
                            }
                        }
                    }
                }
                k += 1;
            }
            at += const { Self::step::<N>() };
        }
    }
}
