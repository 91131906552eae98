//! Rows of a matrix: who takes which element, and how a team of threads agrees on a sum or a maximum.
//!
//! A row belongs to one warp (up to [`WARP_COLUMNS`] elements), one block of [`BLOCK_THREADS`] (up to
//! [`BLOCK_COLUMNS`]) or one block of [`WIDE_THREADS`]. Lane `l` of a team of `n` takes the elements `8(l + kn)` to
//! `8(l + kn) + 7` for `k = 0, 1, …`: columns alone decide, never addresses, so that a row has the same bits wherever
//! it lies. Where a row starts at a multiple of 16 bytes they are loaded as vectors, elsewhere one by one.

/// Elements of a vector.
pub const WIDTH: u32 = 8;
/// Threads of a block of the one-warp-a-row kernels.
pub const WARP_THREADS: u32 = 128;
/// Rows that such a block takes at a time.
pub const WARP_ROWS: u32 = WARP_THREADS / 32;
/// Longest row that a warp takes.
pub const WARP_COLUMNS: u64 = 1024;
/// Threads of a block for longer rows.
pub const BLOCK_THREADS: u32 = 256;
/// Longest row that such a block holds in registers.
pub const BLOCK_COLUMNS: u64 = 8192;
/// Threads of a block for the longest rows.
pub const WIDE_THREADS: u32 = 1024;
/// Longest row that such a block holds in registers; longer ones are read twice, the second time from L2.
pub const WIDE_COLUMNS: u64 = 32_768;
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

    /// Calls `visit(k, column)` for each vector of this thread. `VECTORS` is how many there are at most, 0 for any
    /// number of them.
    #[inline(always)]
    pub fn each<T: Team, const VECTORS: usize>(columns: u32, mut visit: impl FnMut(usize, u32)) {
        let mut column = T::lane() * WIDTH;
        if VECTORS == 0 {
            while column < columns {
                visit(0, column);
                column += T::LANES * WIDTH;
            }
        } else {
            let mut k = 0;
            while k < VECTORS {
                if column < columns {
                    visit(k, column);
                }
                column += T::LANES * WIDTH;
                k += 1;
            }
        }
    }

    /// A row's part in the registers of a thread; nothing for `VECTORS = 0`.
    pub struct Held<const VECTORS: usize>([Vector; VECTORS]);

    impl<const VECTORS: usize> Held<VECTORS> {
        /// Zeros.
        #[inline(always)]
        pub const fn new() -> Self {
            Self([[0.0; 8]; VECTORS])
        }

        /// Keeps vector `k`, or forgets it.
        #[inline(always)]
        pub fn keep(&mut self, k: usize, value: Vector) {
            if VECTORS > 0 {
                // SAFETY: `each` counts below VECTORS.
                unsafe { *self.0.get_unchecked_mut(k) = value }
            }
        }

        /// Vector `k` as it was kept, or loaded again.
        #[inline(always)]
        pub fn get(&self, k: usize, again: impl FnOnce() -> Vector) -> Vector {
            if VECTORS > 0 {
                // SAFETY: `each` counts below VECTORS.
                unsafe { *self.0.get_unchecked(k) }
            } else {
                again()
            }
        }
    }

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
        let mut i = 0;
        while i < 8 {
            if column + i as u32 >= columns {
                x[i] = fill;
            }
            i += 1;
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
