//! Programmatic dependent launch: a kernel that starts before its predecessor has ended (PTX ISA 9.7.13.13, sm_90).

use core::arch::asm;

/// `griddepcontrol.wait`: waits until all grids this one depends on have ended and their writes are visible.
///
/// A launch without the attribute for programmatic dependence returns at once.
///
/// # Safety
/// - Nothing the predecessor writes is read, and nothing it reads is written, before this.
#[inline(always)]
pub unsafe fn wait() {
    // SAFETY: forwarded to the caller; the memory clobber keeps later reads behind it.
    unsafe { asm!("griddepcontrol.wait;", options(nostack)) }
}

/// `griddepcontrol.launch_dependents`: lets dependent grids start once all blocks have called this or ended.
///
/// # Safety
/// - The dependent kernel calls [`wait`] before it uses what this kernel writes.
#[inline(always)]
pub unsafe fn launch_dependents() {
    // SAFETY: forwarded to the caller.
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack)) }
}
