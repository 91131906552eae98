//! Numbers that the compiler knows nothing of.

use core::arch::asm;

/// The same number, about which the compiler knows nothing: what is computed from it is computed again, and a loop up to it
/// stays a loop.
#[inline(always)]
pub fn opaque(mut value: u32) -> u32 {
    // SAFETY: an empty instruction.
    unsafe { asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
    value
}
