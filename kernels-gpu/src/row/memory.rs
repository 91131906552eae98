//! A row in memory: loads and stores of its vectors at any address.

use super::{Part, Team, Vector, WIDTH, column_of, zip};
use crate::tile::element::Element;
use core::arch::asm;
use cuda_std::{global, shared};

/// Of a row that nothing writes while the kernel runs.
pub const CONSTANT: u32 = 0;
/// Of a row that is written after the team has met.
pub const BEFORE: u32 = 1;
/// Of a row whose elements each thread overwrites as soon as it has read them: it reads no others.
pub const OWN: u32 = 2;

/// One row in memory.
#[derive(Clone, Copy)]
pub struct Row {
    /// Address of its first element.
    pub address: u64,
    /// Elements.
    pub columns: u32,
    /// Whether the address is a multiple of 16.
    pub aligned: bool,
}

impl Row {
    /// Row `row` of a matrix.
    #[inline(always)]
    pub fn new<E: Element>(matrix: u64, row: u64, stride: u64, columns: u32, aligned: u32) -> Row {
        Row {
            address: matrix + row * stride * size_of::<E>() as u64,
            columns,
            aligned: aligned != 0,
        }
    }

    /// The eight elements from `column`, by the read-only path; `fill` beyond the row.
    ///
    /// # Safety
    /// - The row is readable, and nothing writes it while the kernel runs.
    #[inline(always)]
    pub unsafe fn load<E: Element>(self, column: u32, fill: f32) -> Vector {
        let at = (self.address + column as u64 * size_of::<E>() as u64) as *const E;
        // SAFETY: within the row; aligned where it says so, as `column` is a multiple of 8.
        unsafe {
            if self.aligned && column + WIDTH <= self.columns {
                return E::load8_nc(at);
            }
            let mut values = [fill; 8];
            let mut i = 0;
            while i < 8 {
                if column + (i as u32) < self.columns {
                    values[i] = global::ld_nc(at.add(i)).to_f32();
                }
                i += 1;
            }
            values
        }
    }

    /// As [`load`](Self::load), packed; zeros beyond the row.
    ///
    /// # Safety
    /// - As for [`load`](Self::load).
    #[inline(always)]
    pub unsafe fn load_packed<E: Element>(self, column: u32) -> E::Packed {
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.aligned && column + WIDTH <= self.columns {
                return E::load8_packed_nc((self.address as *const E).add(column as usize));
            }
            E::pack8(self.load::<E>(column, 0.0))
        }
    }

    /// This thread's vectors from `base` on, all asked for before the first is used; `fill` beyond the row.
    /// `FROM` is one of [`CONSTANT`], [`BEFORE`] and [`OWN`].
    ///
    /// # Safety
    /// - As for [`load`](Self::load), but that the row may be written as `FROM` says.
    #[inline(always)]
    pub unsafe fn part<T: Team, E: Element, const N: usize, const FROM: u32>(self, base: u32, fill: f32) -> Part<E, N> {
        let mut part = [E::ZEROS; N];
        let mut k = 0;
        if self.aligned && self.columns % WIDTH == 0 {
            while k < N {
                let column = column_of::<T>(base, k);
                let at = (self.address + column as u64 * size_of::<E>() as u64) as *const E;
                if column < self.columns {
                    // SAFETY: within the row, and aligned.
                    part[k] = unsafe {
                        if FROM == CONSTANT {
                            E::load8_packed_nc(at)
                        } else {
                            E::load8_packed(at)
                        }
                    };
                }
                k += 1;
            }
        } else {
            while k < N {
                let column = column_of::<T>(base, k);
                if column < self.columns {
                    // SAFETY: forwarded to the caller.
                    part[k] = unsafe {
                        if size_of::<E>() == 2 && FROM != OWN && self.has_around(column) {
                            E::of_words(self.load_shifted::<FROM>(column))
                        } else if FROM != CONSTANT {
                            E::pack8(self.load_mut::<E>(column, fill))
                        } else {
                            E::pack8(self.load::<E>(column, fill))
                        }
                    };
                }
                k += 1;
            }
        }
        part
    }

    /// Whether the 32 bytes of two aligned vectors that hold the elements of 16 bits from `column` on are the row's.
    #[inline(always)]
    fn has_around(self, column: u32) -> bool {
        let at = (self.address + column as u64 * 2) & !15;
        at >= self.address && at + 32 <= self.address + self.columns as u64 * 2
    }

    /// Eight elements of 16 bits that lie across two aligned vectors.
    ///
    /// # Safety
    /// - As for [`part`](Self::part), and [`has_around`](Self::has_around).
    #[inline(always)]
    unsafe fn load_shifted<const FROM: u32>(self, column: u32) -> [u32; 4] {
        let at = self.address + column as u64 * 2;
        let first = (at & !15) as *const [u32; 4];
        // SAFETY: forwarded to the caller.
        let [low, high] = unsafe {
            if FROM == CONSTANT {
                [global::ld_nc(first), global::ld_nc(first.add(1))]
            } else {
                [global::ld(first), global::ld(first.add(1))]
            }
        };
        let w = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
        // Shifted by two words, by one, and by half of one. Choices by masks: a choice of array elements would become
        // an index at run time, and the array memory.
        let chosen = |bit: u64, a: u32, b: u32| a ^ ((a ^ b) & 0u32.wrapping_sub((at & bit != 0) as u32));
        let (mut by_two, mut by_one, mut words) = ([0; 6], [0; 5], [0; 4]);
        let mut i = 0;
        while i < 6 {
            by_two[i] = chosen(8, w[i], w[i + 2]);
            i += 1;
        }
        let mut i = 0;
        while i < 5 {
            by_one[i] = chosen(4, by_two[i], by_two[i + 1]);
            i += 1;
        }
        let mut i = 0;
        while i < 4 {
            words[i] = chosen(2, by_one[i], by_one[i] >> 16 | by_one[i + 1] << 16);
            i += 1;
        }
        words
    }

    /// Eight elements of 16 bits at a multiple of 2 bytes, and no others, by words.
    ///
    /// # Safety
    /// - As for [`load_mut`](Self::load_mut), and the row has all of them.
    #[inline(always)]
    unsafe fn load_words(at: u64) -> [u32; 4] {
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut words = [0; 4];
            if at & 2 == 0 {
                let mut i = 0;
                while i < 4 {
                    words[i] = global::ld((at as *const u32).add(i));
                    i += 1;
                }
            } else {
                let mut low = global::ld(at as *const u16) as u32;
                let mut i = 0;
                while i < 3 {
                    let word = global::ld(((at + 2) as *const u32).add(i));
                    words[i] = low | word << 16;
                    low = word >> 16;
                    i += 1;
                }
                words[3] = low | (global::ld((at + 14) as *const u16) as u32) << 16;
            }
            words
        }
    }

    /// Stores eight elements of 16 bits at a multiple of 2 bytes, by words.
    ///
    /// # Safety
    /// - As for [`store`](Self::store), and the row has all of them.
    #[inline(always)]
    unsafe fn store_words<E: Element>(at: *mut E, v: Vector) {
        let words = [
            E::pack(v[0], v[1]),
            E::pack(v[2], v[3]),
            E::pack(v[4], v[5]),
            E::pack(v[6], v[7]),
        ];
        let at = at as u64;
        // SAFETY: forwarded to the caller.
        unsafe {
            if at & 2 == 0 {
                let mut i = 0;
                while i < 4 {
                    global::st((at as *mut u32).add(i), words[i]);
                    i += 1;
                }
            } else {
                global::st(at as *mut u16, words[0] as u16);
                let mut i = 0;
                while i < 3 {
                    global::st(((at + 2) as *mut u32).add(i), words[i] >> 16 | words[i + 1] << 16);
                    i += 1;
                }
                global::st((at + 14) as *mut u16, (words[3] >> 16) as u16);
            }
        }
    }

    /// Brings the first `N` vectors of each thread into L2.
    ///
    /// # Safety
    /// - The row is readable.
    #[inline(always)]
    pub unsafe fn prefetch<T: Team, E: Element, const N: usize>(self) {
        let size = size_of::<E>() as u32;
        // One lane a line.
        if T::lane() % (128 / (WIDTH * size)) == 0 {
            let mut k = 0;
            while k < N {
                let column = column_of::<T>(0, k);
                if column < self.columns {
                    // SAFETY: within the row.
                    unsafe { global::prefetch_l2((self.address + (column * size) as u64) as *const u8) };
                }
                k += 1;
            }
        }
    }

    /// Adds this thread's vectors from `base` on to `part`, rounded.
    ///
    /// # Safety
    /// - As for [`load`](Self::load).
    #[inline(always)]
    pub unsafe fn add_to<T: Team, E: Element, const N: usize>(self, base: u32, part: &mut Part<E, N>) {
        let sum = |a: E::Packed, b: Vector| E::pack8(zip(E::unpack8(a), b, |a, b| a + b));
        let whole = self.aligned && self.columns % WIDTH == 0;
        let mut k = 0;
        if whole {
            while k < N {
                let column = column_of::<T>(base, k);
                let at = (self.address + column as u64 * size_of::<E>() as u64) as *const E;
                let mut other = E::ZEROS;
                if column < self.columns {
                    // SAFETY: within the row, and aligned.
                    other = unsafe { E::load8_packed_nc(at) };
                }
                part[k] = sum(part[k], E::unpack8(other));
                k += 1;
            }
        } else {
            while k < N {
                let column = column_of::<T>(base, k);
                if column < self.columns {
                    // SAFETY: forwarded to the caller.
                    part[k] = sum(part[k], unsafe { self.load::<E>(column, 0.0) });
                }
                k += 1;
            }
        }
    }

    /// As [`load`](Self::load), of a row that others read too: it stays in L1. Zeros beyond the row.
    ///
    /// # Safety
    /// - As for [`load`](Self::load).
    #[inline(always)]
    pub unsafe fn load_again<E: Element>(self, column: u32) -> Vector {
        let at = (self.address + column as u64 * size_of::<E>() as u64) as *const E;
        // SAFETY: as above.
        unsafe {
            if self.aligned && column + WIDTH <= self.columns {
                return E::unpack8(E::load8_packed_cached(at));
            }
            self.load::<E>(column, 0.0)
        }
    }

    /// As [`load`](Self::load), of memory that this thread writes later.
    ///
    /// # Safety
    /// - The row is readable, and only this thread writes these elements.
    #[inline(always)]
    pub unsafe fn load_mut<E: Element>(self, column: u32, fill: f32) -> Vector {
        let at = (self.address + column as u64 * size_of::<E>() as u64) as *const E;
        // SAFETY: as above.
        unsafe {
            if self.aligned && column + WIDTH <= self.columns {
                return E::load8(at);
            }
            if size_of::<E>() == 2 && column + WIDTH <= self.columns {
                return E::unpack8(E::of_words(Self::load_words(at as u64)));
            }
            let mut values = [fill; 8];
            let mut i = 0;
            while i < 8 {
                if column + (i as u32) < self.columns {
                    values[i] = global::ld(at.add(i)).to_f32();
                }
                i += 1;
            }
            values
        }
    }

    /// Stores the eight elements from `column`, those beyond the row excepted.
    ///
    /// # Safety
    /// - The row is writable, and no other thread touches these elements.
    #[inline(always)]
    pub unsafe fn store<E: Element>(self, column: u32, values: Vector) {
        let at = (self.address + column as u64 * size_of::<E>() as u64) as *mut E;
        // SAFETY: as above.
        unsafe {
            if self.aligned && column + WIDTH <= self.columns {
                return E::store8(at, values);
            }
            if size_of::<E>() == 2 && column + WIDTH <= self.columns {
                return Self::store_words(at, values);
            }
            let mut i = 0;
            while i < 8 {
                if column + (i as u32) < self.columns {
                    global::st(at.add(i), E::from_f32(values[i]));
                }
                i += 1;
            }
        }
    }
}

/// Eight elements at a multiple of 16 bytes, by the read-only path, asked for where it is written: what is loaded later is not
/// used earlier. L1 gets a place for them though nobody reads them again: without one memory is slower.
///
/// # Safety
/// - They are readable, and nothing writes them while the kernel runs.
#[inline(always)]
pub unsafe fn load_in_order<E: Element>(address: u64) -> E::Packed {
    // SAFETY: forwarded to the caller.
    unsafe {
        let first = vector_in_order(address);
        if size_of::<E>() == 2 {
            return E::of_words(first);
        }
        let [a, b] = [first, vector_in_order(address + 16)].map(|words| words.map(f32::from_bits));
        E::pack8([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
    }
}

#[inline(always)]
unsafe fn vector_in_order(address: u64) -> [u32; 4] {
    let (x, y, z, w): (u32, u32, u32, u32);
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("ld.global.nc.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];", out(reg32) x, out(reg32) y,
            out(reg32) z, out(reg32) w, in(reg64) address, options(nomem, nostack));
    }
    [x, y, z, w]
}

/// Stores eight elements at a multiple of 16 bytes that nobody reads soon: L2 gives up such lines first.
///
/// # Safety
/// - They are writable, and no other thread touches them.
#[inline(always)]
pub unsafe fn store_once<E: Element>(address: u64, v: Vector) {
    let store = |address: u64, [x, y, z, w]: [u32; 4]| {
        // SAFETY: forwarded to the caller.
        unsafe {
            asm!("st.global.cs.v4.b32 [{4}], {{{0}, {1}, {2}, {3}}};", in(reg32) x, in(reg32) y, in(reg32) z, in(reg32) w,
                in(reg64) address, options(nostack));
        }
    };
    if size_of::<E>() == 2 {
        store(
            address,
            [
                E::pack(v[0], v[1]),
                E::pack(v[2], v[3]),
                E::pack(v[4], v[5]),
                E::pack(v[6], v[7]),
            ],
        );
    } else {
        let v = v.map(f32::to_bits);
        store(address, [v[0], v[1], v[2], v[3]]);
        store(address + 16, [v[4], v[5], v[6], v[7]]);
    }
}

/// Eight elements in shared memory.
///
/// # Safety
/// - `at` is a multiple of 16 bytes; eight elements lie there.
#[inline(always)]
pub unsafe fn vector_at<E: Element>(at: u32) -> E::Packed {
    // SAFETY: forwarded to the caller.
    unsafe {
        if size_of::<E>() == 2 {
            return E::of_words(shared::ld(at));
        }
        let [a, b]: [[f32; 4]; 2] = [shared::ld(at), shared::ld(at + 16)];
        E::pack8([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
    }
}
