//! Rows of a matrix: who takes which element, and how a team of threads agrees on a sum or a maximum.
//!
//! A row belongs to one warp (up to [`WARP_COLUMNS`] elements), one block of [`BLOCK_THREADS`] (up to
//! [`BLOCK_COLUMNS`]), of [`LARGE_THREADS`] or of [`WIDE_THREADS`], and stays in registers as it lies in memory: many small teams, each
//! with all its loads on the way at once, keep memory busy. Longer rows are read again. Lane `l` of a team of `n` takes the elements `8(l + kn)` to
//! `8(l + kn) + 7` for `k = 0, 1, …`: columns alone decide, never addresses, so that a row has the same bits wherever
//! it lies. Where a row starts at a multiple of 16 bytes they are loaded as vectors, elsewhere one by one.

/// Elements of a vector.
pub const WIDTH: u32 = 8;
/// Vectors that a thread holds of its row.
pub const HELD: usize = 4;
/// Threads of a block of the one-warp-a-row kernels.
pub const WARP_THREADS: u32 = 128;
/// Rows that such a block takes at a time.
pub const WARP_ROWS: u32 = WARP_THREADS / 32;
/// Longest row that a warp takes.
pub const WARP_COLUMNS: u64 = 32 * HELD as u64 * WIDTH as u64;
/// Threads of a block for longer rows.
pub const BLOCK_THREADS: u32 = 128;
/// Longest row that such a block holds in registers.
pub const BLOCK_COLUMNS: u64 = BLOCK_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for rows twice as long.
pub const LARGE_THREADS: u32 = 256;
/// Longest row that such a block holds in registers.
pub const LARGE_COLUMNS: u64 = LARGE_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for the longest rows that are held.
pub const WIDE_THREADS: u32 = 1024;
/// Longest row that such a block holds in registers.
pub const WIDE_COLUMNS: u64 = WIDE_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for rows that are read more than once, all but the first time from L2.
pub const LONG_THREADS: u32 = 1024;
/// Vectors of type `E` that such a thread asks for at a time.
pub const fn long<E>() -> usize {
    if size_of::<E>() == 4 { 2 } else { 4 }
}
/// Vectors that a lane of a warp holds of each of two rows.
pub const PAIR_WARP_HELD: usize = 4;
/// Longest pair of rows that a warp takes.
pub const PAIR_WARP_COLUMNS: u64 = 32 * PAIR_WARP_HELD as u64 * WIDTH as u64;
/// Threads of a block for longer pairs.
pub const PAIR_BLOCK_THREADS: u32 = 512;
/// Vectors that such a thread holds of each of two rows.
pub const PAIR_BLOCK_HELD: usize = 2;
/// Longest pair of rows that such a block holds in registers.
pub const PAIR_BLOCK_COLUMNS: u64 = PAIR_BLOCK_THREADS as u64 * PAIR_BLOCK_HELD as u64 * WIDTH as u64;
/// Vectors of each row that a thread asks for at a time where two rows are read again.
pub const PAIR_LONG: usize = 2;
/// Dynamic shared memory of a block that works on one row: two sets of one slot of 8 bytes a warp.
pub const EXCHANGE_BYTES: u64 = 2 * 32 * 8;

#[cfg(target_arch = "nvptx64")]
pub use device::*;

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::{WARP_ROWS, WIDTH};
    use crate::tile::element::Element;
    use cuda_std::{
        barrier::syncthreads,
        global, math,
        shared::Shared,
        thread,
        warp::{self, Shuffle},
    };

    /// Eight neighbouring elements, as f32.
    pub type Vector = [f32; 8];

    /// log₂ e.
    pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
    /// ln 2.
    pub const LN_2: f32 = core::f32::consts::LN_2;

    /// The threads that share a row.
    pub trait Team {
        /// Threads.
        const LANES: u32;
        /// This thread among them.
        fn lane() -> u32;
        /// First row of the team.
        fn first() -> u64;
        /// From one of its rows to the next.
        fn step() -> u64;
        /// Joins a value of every thread; all get the result, of the same order of combination. `turn` alternates.
        ///
        /// # Safety
        /// - All threads of the team come here together.
        unsafe fn join<S: Shuffle + global::Value>(
            value: S,
            identity: S,
            turn: &mut u32,
            combine: impl Fn(S, S) -> S + Copy,
        ) -> S;
    }

    /// A warp.
    pub struct Warp;

    impl Team for Warp {
        const LANES: u32 = 32;
        #[inline(always)]
        fn lane() -> u32 {
            thread::lane_id()
        }
        #[inline(always)]
        fn first() -> u64 {
            thread::block_idx_x() as u64 * WARP_ROWS as u64 + thread::warp_idx() as u64
        }
        #[inline(always)]
        fn step() -> u64 {
            thread::grid_dim_x() as u64 * WARP_ROWS as u64
        }
        #[inline(always)]
        unsafe fn join<S: Shuffle + global::Value>(
            value: S,
            _: S,
            _: &mut u32,
            combine: impl Fn(S, S) -> S + Copy,
        ) -> S {
            // SAFETY: the rows of a warp's loop are its own: its lanes are together.
            unsafe { warp::reduce::<S, 32>(value, combine) }
        }
    }

    /// A block of `THREADS`.
    pub struct Block<const THREADS: u32>;

    impl<const THREADS: u32> Team for Block<THREADS> {
        const LANES: u32 = THREADS;
        #[inline(always)]
        fn lane() -> u32 {
            thread::thread_idx_x()
        }
        #[inline(always)]
        fn first() -> u64 {
            thread::block_idx_x() as u64
        }
        #[inline(always)]
        fn step() -> u64 {
            thread::grid_dim_x() as u64
        }
        #[inline(always)]
        unsafe fn join<S: Shuffle + global::Value>(
            value: S,
            identity: S,
            turn: &mut u32,
            combine: impl Fn(S, S) -> S + Copy,
        ) -> S {
            // SAFETY: the launch gives EXCHANGE_BYTES of dynamic shared memory, written at their start. Two sets of
            // slots in turn make one barrier enough: who writes a set again has passed the barrier of the other,
            // which its readers reach after reading.
            unsafe {
                let value = warp::reduce::<S, 32>(value, combine);
                let lane = thread::lane_id();
                let set = *turn * 256;
                if lane == 0 {
                    Shared::<S>::dynamic(set + thread::warp_idx() * 8).write(value);
                }
                syncthreads();
                let mut other = identity;
                if lane < THREADS / 32 {
                    other = Shared::<S>::dynamic(set + lane * 8).read();
                }
                *turn ^= 1;
                warp::reduce::<S, 32>(other, combine)
            }
        }
    }

    /// The sum over the team.
    ///
    /// # Safety
    /// - As for [`Team::join`].
    #[inline(always)]
    pub unsafe fn sum<T: Team>(value: f32, turn: &mut u32) -> f32 {
        // SAFETY: forwarded to the caller.
        unsafe { T::join(value, 0.0, turn, |a, b| a + b) }
    }

    /// Two sums over the team, for the price of one.
    ///
    /// # Safety
    /// - As for [`Team::join`].
    #[inline(always)]
    pub unsafe fn sum_pair<T: Team>(a: f32, b: f32, turn: &mut u32) -> (f32, f32) {
        let pack = |a: f32, b: f32| a.to_bits() as u64 | (b.to_bits() as u64) << 32;
        let low = |pair: u64| f32::from_bits(pair as u32);
        let high = |pair: u64| f32::from_bits((pair >> 32) as u32);
        let add = |x: u64, y: u64| pack(low(x) + low(y), high(x) + high(y));
        // SAFETY: forwarded to the caller.
        let sums = unsafe { T::join(pack(a, b), 0, turn, add) };
        (low(sums), high(sums))
    }

    /// The maximum over the team; a NaN loses against a number.
    ///
    /// # Safety
    /// - As for [`Team::join`].
    #[inline(always)]
    pub unsafe fn max<T: Team>(value: f32, turn: &mut u32) -> f32 {
        // SAFETY: forwarded to the caller.
        unsafe { T::join(value, f32::NEG_INFINITY, turn, math::fmax) }
    }

    /// Calls `visit(column)` for each vector of this thread.
    #[inline(always)]
    pub fn each<T: Team>(columns: u32, mut visit: impl FnMut(u32)) {
        let mut column = T::lane() * WIDTH;
        while column < columns {
            visit(column);
            column += T::LANES * WIDTH;
        }
    }

    /// `N` vectors of a row in the registers of a thread, those at `base + 8(lane + k·lanes)`, as they lie in memory.
    pub type Part<E, const N: usize> = [<E as Element>::Packed; N];

    /// Calls `visit(column, k, vector)` for the vectors of a part that the row has.
    #[inline(always)]
    pub fn visit<T: Team, E: Element, const N: usize>(
        columns: u32,
        base: u32,
        part: &Part<E, N>,
        mut visit: impl FnMut(u32, usize, Vector),
    ) {
        let mut k = 0;
        while k < N {
            let column = base + (T::lane() + k as u32 * T::LANES) * WIDTH;
            if column < columns {
                visit(column, k, E::unpack8(part[k]));
            }
            k += 1;
        }
    }

    /// Calls `each` for every vector of this thread: of the part that is `HELD`, or of one part after the other, loaded
    /// again.
    #[inline(always)]
    pub fn pass<T: Team, E: Element, const N: usize, const HELD: bool>(
        columns: u32,
        held: &Part<E, N>,
        load: impl Fn(u32) -> Part<E, N>,
        mut each: impl FnMut(u32, usize, Vector),
    ) {
        if HELD {
            visit::<T, E, N>(columns, 0, held, each);
        } else {
            let mut base = 0;
            while base < columns {
                visit::<T, E, N>(columns, base, &load(base), &mut each);
                base += T::LANES * WIDTH * N as u32;
            }
        }
    }

    /// As [`pass`], of two rows together.
    #[inline(always)]
    pub fn pair_pass<T: Team, E: Element, const N: usize, const HELD: bool>(
        columns: u32,
        held: [&Part<E, N>; 2],
        load: impl Fn(u32) -> Part<E, N>,
        load_other: impl Fn(u32) -> Part<E, N>,
        mut each: impl FnMut(u32, usize, Vector, Vector),
    ) {
        let mut both = |base, one: &Part<E, N>, other: &Part<E, N>| {
            visit::<T, E, N>(columns, base, one, |column, k, vector| {
                // SAFETY: `k` is below N.
                each(column, k, vector, E::unpack8(unsafe { *other.get_unchecked(k) }));
            });
        };
        if HELD {
            both(0, held[0], held[1]);
        } else {
            let mut base = 0;
            while base < columns {
                both(base, &load(base), &load_other(base));
                base += T::LANES * WIDTH * N as u32;
            }
        }
    }

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

        /// This thread's vectors from `base` on, all asked for before the first is used; `fill` beyond the row.
        /// `FROM` is one of [`CONSTANT`], [`BEFORE`] and [`OWN`].
        ///
        /// # Safety
        /// - As for [`load`](Self::load), but that the row may be written as `FROM` says.
        #[inline(always)]
        pub unsafe fn part<T: Team, E: Element, const N: usize, const FROM: u32>(
            self,
            base: u32,
            fill: f32,
        ) -> Part<E, N> {
            let mut part = [E::ZEROS; N];
            let mut k = 0;
            if self.aligned && self.columns % WIDTH == 0 {
                while k < N {
                    let column = base + (T::lane() + k as u32 * T::LANES) * WIDTH;
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
                    let column = base + (T::lane() + k as u32 * T::LANES) * WIDTH;
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
                    let column = (T::lane() + k as u32 * T::LANES) * WIDTH;
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
                    let column = base + (T::lane() + k as u32 * T::LANES) * WIDTH;
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
                    let column = base + (T::lane() + k as u32 * T::LANES) * WIDTH;
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

    /// `f` of each element.
    #[inline(always)]
    pub fn map(mut x: Vector, f: impl Fn(f32) -> f32) -> Vector {
        let mut i = 0;
        while i < 8 {
            x[i] = f(x[i]);
            i += 1;
        }
        x
    }

    /// `f` of each pair of elements.
    #[inline(always)]
    pub fn zip(mut a: Vector, b: Vector, f: impl Fn(f32, f32) -> f32) -> Vector {
        let mut i = 0;
        while i < 8 {
            a[i] = f(a[i], b[i]);
            i += 1;
        }
        a
    }

    /// The values with those beyond the row replaced by `fill`.
    #[inline(always)]
    pub fn inside(mut x: Vector, column: u32, columns: u32, fill: f32) -> Vector {
        if column + WIDTH > columns {
            let mut i = 0;
            while i < 8 {
                if column + i as u32 >= columns {
                    x[i] = fill;
                }
                i += 1;
            }
        }
        x
    }

    /// The sum of a vector, as a tree.
    #[inline(always)]
    pub fn add_up(x: Vector) -> f32 {
        ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))
    }

    /// The maximum of a vector; a NaN loses against a number.
    #[inline(always)]
    pub fn greatest(x: Vector) -> f32 {
        let max = math::fmax;
        max(
            max(max(x[0], x[1]), max(x[2], x[3])),
            max(max(x[4], x[5]), max(x[6], x[7])),
        )
    }

    /// `e^x`.
    #[inline(always)]
    pub fn exp(x: f32) -> f32 {
        math::ex2(x * LOG2_E)
    }
}
