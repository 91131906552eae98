//! The threads that share a row, and how they agree on a sum or a maximum.

use super::WARP_ROWS;
use cuda_std::{
    barrier::syncthreads,
    global, math,
    shared::Shared,
    thread,
    warp::{self, Shuffle},
};

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
    unsafe fn join<S: Shuffle + global::Value>(value: S, _: S, _: &mut u32, combine: impl Fn(S, S) -> S + Copy) -> S {
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
