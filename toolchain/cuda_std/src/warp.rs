//! Exchange within a warp: shuffles, votes, matches and integer reductions (PTX ISA 9.7.9.6, 9.7.13.8–9.7.13.10),
//! and the reductions built from them.
//!
//! The shuffles here are between all 32 lanes. Shuffles of values wider than 32 bits are two instructions.

use core::arch::asm;

/// The mask of a whole warp.
pub const FULL: u32 = u32::MAX;

/// The two results of an instruction that sets a predicate beside its value.
#[repr(C)]
#[derive(Clone, Copy)]
struct Predicated {
    value: u32,
    predicate: bool,
}

unsafe extern "C" {
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn shfl_up_i32(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    fn shfl_down_i32(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_bfly_i32(mask: u32, value: u32, lanes: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_idx_i32(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    fn vote_all_sync(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any_sync(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot_sync(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn match_any_i32(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i64"]
    fn match_any_i64(mask: u32, value: u64) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn redux_add_i32(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn redux_umin(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.min"]
    fn redux_smin(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.max"]
    fn redux_smax(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.and"]
    fn redux_and_i32(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.or"]
    fn redux_or_i32(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.xor"]
    fn redux_xor_i32(value: u32, mask: u32) -> u32;
}

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.match.all.sync.i32p"]
    fn match_all_i32p(mask: u32, value: u32) -> Predicated;
    #[link_name = "llvm.nvvm.elect.sync"]
    fn elect_sync_intrinsic(mask: u32) -> Predicated;
}

mod sealed {
    pub trait Sealed {}
}

/// A value that shuffles move: 32 or 64 bits of plain data.
pub trait Shuffle: Copy + sealed::Sealed {
    /// Applies a 32-bit shuffle to each word of the value.
    ///
    /// # Safety
    /// - `shuffle` is safe to call.
    unsafe fn map_words(self, shuffle: impl Fn(u32) -> u32) -> Self;
}

/// Implements [`Shuffle`] for types of one word.
macro_rules! one_word {
    ($($type:ty: $to:expr, $from:expr;)*) => {$(
        impl sealed::Sealed for $type {}
        impl Shuffle for $type {
            #[inline(always)]
            unsafe fn map_words(self, shuffle: impl Fn(u32) -> u32) -> Self {
                $from(shuffle($to(self)))
            }
        }
    )*};
}

one_word! {
    u32: |x| x, |x| x;
    i32: |x| x as u32, |x| x as i32;
    f32: f32::to_bits, f32::from_bits;
}

impl sealed::Sealed for u64 {}
impl Shuffle for u64 {
    #[inline(always)]
    unsafe fn map_words(self, shuffle: impl Fn(u32) -> u32) -> Self {
        shuffle(self as u32) as u64 | (shuffle((self >> 32) as u32) as u64) << 32
    }
}

impl sealed::Sealed for i64 {}
impl Shuffle for i64 {
    #[inline(always)]
    unsafe fn map_words(self, shuffle: impl Fn(u32) -> u32) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe { (self as u64).map_words(shuffle) as i64 }
    }
}

/// `shfl.sync.up`: the value of the lane `delta` below; the lowest `delta` lanes keep their own.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn shfl_up<T: Shuffle>(value: T, delta: u32) -> T {
    // SAFETY: forwarded to the caller.
    unsafe { value.map_words(|word| shfl_up_i32(FULL, word, delta, 0)) }
}

/// `shfl.sync.down`: the value of the lane `delta` above; the highest `delta` lanes keep their own.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn shfl_down<T: Shuffle>(value: T, delta: u32) -> T {
    // SAFETY: forwarded to the caller.
    unsafe { value.map_words(|word| shfl_down_i32(FULL, word, delta, 31)) }
}

/// `shfl.sync.bfly`: the value of the lane whose number is this one's XOR `lanes`.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn shfl_bfly<T: Shuffle>(value: T, lanes: u32) -> T {
    // SAFETY: forwarded to the caller.
    unsafe { value.map_words(|word| shfl_bfly_i32(FULL, word, lanes, 31)) }
}

/// `shfl.sync.idx`: the value of lane `lane`, modulo 32.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn shfl_idx<T: Shuffle>(value: T, lane: u32) -> T {
    // SAFETY: forwarded to the caller.
    unsafe { value.map_words(|word| shfl_idx_i32(FULL, word, lane, 31)) }
}

/// `vote.sync.all.pred`: whether the predicate holds in every lane of `mask`.
///
/// # Safety
/// - The calling lane is in `mask`, and all lanes of `mask` execute this together.
#[inline(always)]
pub unsafe fn vote_all(mask: u32, predicate: bool) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { vote_all_sync(mask, predicate) }
}

/// `vote.sync.any.pred`: whether the predicate holds in some lane of `mask`.
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn vote_any(mask: u32, predicate: bool) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { vote_any_sync(mask, predicate) }
}

/// `vote.sync.ballot.b32`: the lanes of `mask` in which the predicate holds.
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn vote_ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: forwarded to the caller.
    unsafe { vote_ballot_sync(mask, predicate) }
}

/// `match.any.sync.b32`: the lanes of `mask` that hold the same value as this one.
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn match_any_u32(mask: u32, value: u32) -> u32 {
    // SAFETY: forwarded to the caller.
    unsafe { match_any_i32(mask, value) }
}

/// `match.any.sync.b64`: the lanes of `mask` that hold the same value as this one.
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn match_any_u64(mask: u32, value: u64) -> u32 {
    // SAFETY: forwarded to the caller.
    unsafe { match_any_i64(mask, value) }
}

/// `match.all.sync.b32`: whether all lanes of `mask` hold the same value.
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn match_all_u32(mask: u32, value: u32) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { match_all_i32p(mask, value).predicate }
}

/// `elect.sync`: true in one lane of `mask`, the same lane each time (sm_90).
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn elect(mask: u32) -> bool {
    // SAFETY: forwarded to the caller.
    unsafe { elect_sync_intrinsic(mask).predicate }
}

/// `elect.sync`: the lane that [`elect`] chooses (sm_90).
///
/// # Safety
/// - As for [`vote_all`].
#[inline(always)]
pub unsafe fn elected_lane(mask: u32) -> u32 {
    // SAFETY: forwarded to the caller.
    unsafe { elect_sync_intrinsic(mask).value }
}

/// `activemask`: the lanes that happen to execute this together. It joins nobody and promises nothing for later.
#[inline(always)]
pub fn active_mask() -> u32 {
    let mask: u32;
    // SAFETY: reads the execution mask only.
    unsafe { asm!("activemask.b32 {0};", out(reg32) mask, options(nostack)) };
    mask
}

/// Functions that are one `redux.sync` each.
macro_rules! redux {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $intrinsic:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// - The calling lane is in `mask`, and all lanes of `mask` execute this together.
        #[inline(always)]
        pub unsafe fn $name(mask: u32, value: $type) -> $type {
            // SAFETY: forwarded to the caller.
            unsafe { $intrinsic(value, mask) }
        }
    )*};
}

redux! {
    /// `redux.sync.add.u32`: the sum over the lanes of `mask`, modulo 2³² (sm_80).
    redux_add: u32 = redux_add_i32;
    /// `redux.sync.min.u32`: the least value among the lanes of `mask` (sm_80).
    redux_min_u32: u32 = redux_umin;
    /// `redux.sync.max.u32`: the greatest value among the lanes of `mask` (sm_80).
    redux_max_u32: u32 = redux_umax;
    /// `redux.sync.min.s32`: the least value among the lanes of `mask` (sm_80).
    redux_min_i32: i32 = redux_smin;
    /// `redux.sync.max.s32`: the greatest value among the lanes of `mask` (sm_80).
    redux_max_i32: i32 = redux_smax;
    /// `redux.sync.and.b32`: the bits set in all lanes of `mask` (sm_80).
    redux_and: u32 = redux_and_i32;
    /// `redux.sync.or.b32`: the bits set in some lane of `mask` (sm_80).
    redux_or: u32 = redux_or_i32;
    /// `redux.sync.xor.b32`: the parity of each bit over the lanes of `mask` (sm_80).
    redux_xor: u32 = redux_xor_i32;
}

/// Combines the values of groups of `LANES` neighbouring lanes by butterflies; every lane gets its group's result.
///
/// The order of combination is fixed: distances 1, 2, … `LANES / 2`. `combine` should be commutative.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn reduce<T: Shuffle, const LANES: u32>(mut value: T, combine: impl Fn(T, T) -> T) -> T {
    const { assert!(LANES.is_power_of_two() && LANES <= 32) };
    let mut distance = 1;
    while distance < LANES {
        // SAFETY: forwarded to the caller.
        value = combine(value, unsafe { shfl_bfly(value, distance) });
        distance *= 2;
    }
    value
}

/// The sum over groups of `LANES` neighbouring lanes, in every lane.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn reduce_sum<const LANES: u32>(value: f32) -> f32 {
    // SAFETY: forwarded to the caller.
    unsafe { reduce::<f32, LANES>(value, |a, b| a + b) }
}

/// The maximum over groups of `LANES` neighbouring lanes, in every lane; a NaN loses against a number.
///
/// # Safety
/// - All 32 lanes execute this together.
#[inline(always)]
pub unsafe fn reduce_max<const LANES: u32>(value: f32) -> f32 {
    // SAFETY: forwarded to the caller.
    unsafe { reduce::<f32, LANES>(value, crate::math::fmax) }
}
