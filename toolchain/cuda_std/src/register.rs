//! Moving registers between warpgroups (PTX ISA 9.7.19.5, sm_90a).

unsafe extern "C" {
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn setmaxnreg_inc_intrinsic(count: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn setmaxnreg_dec_intrinsic(count: u32);
}

/// `setmaxnreg.inc.sync.aligned.u32 COUNT`: waits until the block's pool can raise each thread to `COUNT` registers.
///
/// # Safety
/// - All warps of one warpgroup execute this together, and the kernel's launch bounds fix the registers
///   it starts with (`threads` and `min_blocks` in `kernel!`): else `ptxas` ignores this with warning C7508.
/// - `COUNT` is a multiple of 8 from 24 to 256 and not below what the thread holds now; other warpgroups release
///   enough registers.
#[inline(always)]
pub unsafe fn setmaxnreg_inc<const COUNT: u32>() {
    const { assert!(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256) };
    // SAFETY: forwarded to the caller.
    unsafe { setmaxnreg_inc_intrinsic(COUNT) }
}

/// `setmaxnreg.dec.sync.aligned.u32 COUNT`: gives back each thread's registers above `COUNT`.
///
/// # Safety
/// - As for [`setmaxnreg_inc`], and `COUNT` is not above what the thread holds now.
#[inline(always)]
pub unsafe fn setmaxnreg_dec<const COUNT: u32>() {
    const { assert!(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256) };
    // SAFETY: forwarded to the caller.
    unsafe { setmaxnreg_dec_intrinsic(COUNT) }
}
