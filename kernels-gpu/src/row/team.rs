//! The threads that share a row, and how they agree on a sum or a maximum.

use super::{EXCHANGE_BYTES, WARP_ROWS};
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    global, math,
    shared::Shared,
    thread,
    warp::{self, Shuffle},
};

/// The threads that share a row.
pub trait Team {
    /// Threads; of a cluster, those of a block.
    const LANES: u32;
    /// Shared memory of the exchanges of values.
    const EXCHANGE: u32 = EXCHANGE_BYTES as u32;
    /// Threads, of a cluster too.
    #[inline(always)]
    fn lanes() -> u32 {
        Self::LANES
    }
    /// This block among those of the team.
    #[inline(always)]
    fn rank() -> u32 {
        0
    }
    /// Blocks of the team.
    #[inline(always)]
    fn blocks() -> u32 {
        1
    }
    /// This thread among them.
    fn lane() -> u32;
    /// First row of the team.
    fn first() -> u64;
    /// From one of its rows to the next.
    fn step() -> u64;
    /// Which team of its block this is.
    fn index() -> u32;
    /// Waits until all threads are here; their accesses of shared memory before are done.
    ///
    /// # Safety
    /// - All threads of the team come here together.
    unsafe fn meet();
    /// As [`meet`](Self::meet), of all blocks of the team.
    ///
    /// # Safety
    /// - As for that.
    #[inline(always)]
    unsafe fn begin() {
        // SAFETY: forwarded to the caller.
        unsafe { Self::meet() }
    }
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
    /// Up to four sums over the team at the price of one.
    ///
    /// # Safety
    /// - As for [`join`](Self::join).
    unsafe fn sums<const N: usize>(values: [f32; N], turn: &mut u32) -> [f32; N];
}

/// Sums over `LANES` lanes of each group of so many.
///
/// # Safety
/// - All lanes of the warp come here together.
#[inline(always)]
pub(super) unsafe fn warp_sums<const N: usize, const LANES: u32>(mut values: [f32; N]) -> [f32; N] {
    let mut i = 0;
    while i < N {
        // SAFETY: forwarded to the caller.
        values[i] = unsafe { warp::reduce::<f32, LANES>(values[i], |a, b| a + b) };
        i += 1;
    }
    values
}

/// A warp, of blocks of `WARPS`.
pub struct Warps<const WARPS: u32>;

/// A warp of the usual blocks.
pub type Warp = Warps<WARP_ROWS>;

impl<const WARPS: u32> Team for Warps<WARPS> {
    const LANES: u32 = 32;
    #[inline(always)]
    fn lane() -> u32 {
        thread::lane_id()
    }
    #[inline(always)]
    fn first() -> u64 {
        thread::block_idx_x() as u64 * WARPS as u64 + thread::warp_idx() as u64
    }
    #[inline(always)]
    fn step() -> u64 {
        thread::grid_dim_x() as u64 * WARPS as u64
    }
    #[inline(always)]
    fn index() -> u32 {
        thread::warp_idx()
    }
    #[inline(always)]
    unsafe fn meet() {
        // SAFETY: forwarded to the caller.
        unsafe { syncwarp(warp::FULL) }
    }
    #[inline(always)]
    unsafe fn join<S: Shuffle + global::Value>(value: S, _: S, _: &mut u32, combine: impl Fn(S, S) -> S + Copy) -> S {
        // SAFETY: the rows of a warp's loop are its own: its lanes are together.
        unsafe { warp::reduce::<S, 32>(value, combine) }
    }
    #[inline(always)]
    unsafe fn sums<const N: usize>(values: [f32; N], _: &mut u32) -> [f32; N] {
        // SAFETY: as above.
        unsafe { warp_sums::<N, 32>(values) }
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
    fn index() -> u32 {
        0
    }
    #[inline(always)]
    unsafe fn meet() {
        // SAFETY: forwarded to the caller.
        unsafe { syncthreads() }
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
            let warps = THREADS / 32;
            if lane == 0 {
                Shared::<S>::dynamic(set + thread::warp_idx() * 8).write(value);
            }
            syncthreads();
            *turn ^= 1;
            // Where the warps are a power of two, each group of so many lanes adds all of them up.
            let mut other = identity;
            if warps.is_power_of_two() || lane < warps {
                other = Shared::<S>::dynamic(set + (lane & (warps.next_power_of_two() - 1)) * 8).read();
            }
            match warps {
                2 => warp::reduce::<S, 2>(other, combine),
                4 => warp::reduce::<S, 4>(other, combine),
                8 => warp::reduce::<S, 8>(other, combine),
                16 => warp::reduce::<S, 16>(other, combine),
                _ => warp::reduce::<S, 32>(other, combine),
            }
        }
    }
    #[inline(always)]
    unsafe fn sums<const N: usize>(values: [f32; N], turn: &mut u32) -> [f32; N] {
        // Up to 16 warps, so that what is read of one set is not where the other one of `join` is written.
        const { assert!(N <= 4 && THREADS <= 512) };
        // SAFETY: as above, with slots of 16 bytes.
        unsafe {
            let values = warp_sums::<N, 32>(values);
            let lane = thread::lane_id();
            let set = *turn * 512;
            let warps = THREADS / 32;
            let mut slot = [0.0f32; 4];
            let mut i = 0;
            while i < N {
                slot[i] = values[i];
                i += 1;
            }
            if lane == 0 {
                Shared::<[f32; 4]>::dynamic(set + thread::warp_idx() * 16).write(slot);
            }
            syncthreads();
            *turn ^= 1;
            let mut slot = [0.0f32; 4];
            if warps.is_power_of_two() || lane < warps {
                slot = Shared::<[f32; 4]>::dynamic(set + (lane & (warps.next_power_of_two() - 1)) * 16).read();
            }
            let mut sums = [0.0; N];
            let mut i = 0;
            while i < N {
                sums[i] = slot[i];
                i += 1;
            }
            match warps {
                4 => warp_sums::<N, 4>(sums),
                8 => warp_sums::<N, 8>(sums),
                _ => warp_sums::<N, 32>(sums),
            }
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

/// Lets the kernel behind this one get ready, and waits for what the one in front has written. Before any access of memory.
///
/// # Safety
/// - All threads come here first.
#[inline(always)]
pub unsafe fn follow() {
    // SAFETY: who follows waits likewise.
    #[cfg(tier = "sm_90a")]
    unsafe {
        cuda_std::grid_dependency::launch_dependents();
        cuda_std::grid_dependency::wait();
    }
}
