//! Asynchronous matrix products of a warpgroup (PTX ISA 9.7.15, sm_90a): `D = A·B + D`, D being 64×N in f32.
//!
//! # Registers in flight
//! Between `wgmma.mma_async` and its wait, the tensor core owns the accumulator registers. The types say so: an
//! [`Acc`] is readable and becomes [`InFlight`] by [`Acc::start`]; products chain on it; the only way back is
//! [`InFlight::wait`] (or [`InFlight::complete`], after a wait that covers it), which names every register, so that
//! the compiler cannot move a read above it.
//!
//! ```ignore
//! let mut s = Acc::<64>::ZERO.start();          // wgmma.fence
//! s = s.mma_shared::<F16, false, false>(q, k, false); // D = A·B
//! s = s.mma_shared::<F16, false, false>(q.advance(32), k.advance(32), true);
//! commit_group();
//! let s: Acc<64> = s.wait::<0>();
//! ```
//!
//! Registers of an A operand ([`MmaShape::mma_registers`]) belong to the tensor core until the wait as well: what they
//! hold next is computed after it, by conversions that stay in order
//! ([`half::cvt_rn_f16x2_f32_in_order`](crate::half::cvt_rn_f16x2_f32_in_order)).
//!
//! # Accumulator layout
//! With `t` the thread within the warpgroup, `w = t / 32`, `l = t % 32`, register `4i + 2h + j` holds row
//! `16w + l/4 + 8h`, column `8i + 2·(l % 4) + j`. An A operand in registers has the layout of
//! [`matrix`](crate::matrix)'s 16-bit A fragment, for the warp's 16 rows.
//!
//! # Operands in shared memory
//! K-major ("not transposed") is A stored as m rows of k, B as n rows of k. [`Descriptor`] says where the 8-row core
//! matrices lie.

mod shapes;

pub use shapes::MmaShape;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    fn fence_sync_aligned();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    fn commit_group_sync_aligned();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    fn wait_group_sync_aligned(groups: u64);
}

/// `wgmma.fence.sync.aligned`: orders this warpgroup's register and shared-memory accesses before the products that
/// follow. [`Acc::start`] includes it; a loop of barrier polling before further products asks for another.
///
/// # Safety
/// - All 128 threads of the warpgroup execute this together.
#[inline(always)]
pub unsafe fn fence() {
    // SAFETY: forwarded to the caller.
    unsafe { fence_sync_aligned() }
}

/// `wgmma.commit_group.sync.aligned`: closes the group of products since the last.
///
/// # Safety
/// - All 128 threads of the warpgroup execute this together.
#[inline(always)]
pub unsafe fn commit_group() {
    // SAFETY: forwarded to the caller.
    unsafe { commit_group_sync_aligned() }
}

/// `wgmma.wait_group.sync.aligned N`: waits until at most the newest `N` groups are in flight. It says nothing about
/// registers: accumulators come back by [`InFlight::wait`] or [`InFlight::complete`].
///
/// # Safety
/// - All 128 threads of the warpgroup execute this together.
#[inline(always)]
pub unsafe fn wait_group<const N: u64>() {
    // SAFETY: forwarded to the caller.
    unsafe { wait_group_sync_aligned(N) }
}

/// Element types of the operands.
pub trait Element: sealed::Sealed {
    /// Which instruction: 0 for f16, 1 for bf16, 2 for tf32.
    #[doc(hidden)]
    const KIND: u8;
    /// Elements along k of one product: 32 bytes of them.
    const K: u32;
}

/// IEEE half precision.
pub enum F16 {}
/// bfloat16.
pub enum Bf16 {}
/// tf32: f32 of which the low 13 mantissa bits are ignored.
pub enum Tf32 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::F16 {}
    impl Sealed for super::Bf16 {}
    impl Sealed for super::Tf32 {}
}

impl Element for F16 {
    const KIND: u8 = 0;
    const K: u32 = 16;
}
impl Element for Bf16 {
    const KIND: u8 = 1;
    const K: u32 = 16;
}
impl Element for Tf32 {
    const KIND: u8 = 2;
    const K: u32 = 8;
}

/// A 64×(2·R) accumulator at rest, `R` registers of each thread (PTX ISA 9.7.15.5.1.2).
///
/// Index the registers with constants only (loops that unroll fully): a run-time index puts them into local memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Acc<const R: usize>(pub [f32; R]);

impl<const R: usize> Acc<R> {
    /// All zero.
    pub const ZERO: Self = Self([0.0; R]);
}

impl<const R: usize> Acc<R>
where
    InFlight<R>: MmaShape,
{
    /// Hands the registers to the tensor core: everything computed for them is done, then `wgmma.fence`.
    ///
    /// # Safety
    /// - As for [`fence`].
    #[inline(always)]
    pub unsafe fn start(self) -> InFlight<R> {
        let started = InFlight(self.0).pin();
        // SAFETY: forwarded to the caller.
        unsafe { fence() };
        started
    }
}

/// An accumulator that belongs to the tensor core.
#[must_use = "the accumulator comes back by `wait` or `complete`"]
#[repr(transparent)]
pub struct InFlight<const R: usize>(pub(crate) [f32; R]);

impl<const R: usize> InFlight<R>
where
    Self: MmaShape,
{
    /// [`wait_group`]`::<N>`, and the accumulator back.
    ///
    /// # Safety
    /// - As for [`wait_group`]; this accumulator's products are in none of the newest `N` groups, and are committed.
    #[inline(always)]
    pub unsafe fn wait<const N: u64>(self) -> Acc<R> {
        // SAFETY: forwarded to the caller.
        unsafe {
            wait_group::<N>();
            self.complete()
        }
    }

    /// The accumulator back, after a wait that covered its products.
    ///
    /// # Safety
    /// - A [`wait_group`] since this accumulator's last product covers it.
    #[inline(always)]
    pub unsafe fn complete(self) -> Acc<R> {
        Acc(self.pin().0)
    }
}

/// How an operand in shared memory is swizzled (PTX ISA 9.7.15.5.1.2.1).
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Swizzle {
    /// Not at all: 8×16-byte core matrices.
    None = 0,
    /// 128 bytes: rows of 128 bytes in groups of 8.
    B128 = 1,
    /// 64 bytes.
    B64 = 2,
    /// 32 bytes.
    B32 = 3,
}

/// Where an operand lies in shared memory (PTX ISA 9.7.15.5.1.2.2, *matrix descriptor*).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// An operand at shared address `address` (aligned to 8 rows of the swizzle: 1024, 512 or 256 bytes; 128 without).
    ///
    /// - K-major, swizzled: `stride` is the distance between groups of 8 rows; `leading` is not used (give 16).
    /// - K-major, not swizzled: `leading` is the distance between the two core matrices along k, `stride` that between
    ///   groups of 8 rows.
    /// - MN-major, swizzled: `leading` is the distance between swizzle-wide columns of the operand (repeats along
    ///   m or n), `stride` that between groups of 8 k.
    ///
    /// All in bytes, multiples of 16 below 2¹⁸.
    #[inline(always)]
    pub const fn new(address: u32, leading: u32, stride: u32, swizzle: Swizzle) -> Self {
        Self(field(address) | field(leading) << 16 | field(stride) << 32 | (swizzle as u64) << 62)
    }

    /// The operand `bytes` further on, a multiple of 16: the next k step of a K-major tile is `32` bytes on.
    #[inline(always)]
    pub const fn advance(self, bytes: u32) -> Self {
        Self(self.0 + (bytes >> 4) as u64)
    }
}

/// The 14-bit form in which a descriptor holds addresses and distances.
#[inline(always)]
const fn field(bytes: u32) -> u64 {
    ((bytes & 0x3_FFFF) >> 4) as u64
}
