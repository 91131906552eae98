//! Stopping a kernel that has gone wrong.

use core::arch::asm;

/// `trap`: ends the grid with an error that the host sees as a failed launch (PTX ISA 9.7.19.3).
#[inline(always)]
pub fn trap() -> ! {
    // SAFETY: `trap` does not return and touches nothing.
    unsafe { asm!("trap;", options(noreturn, nostack)) }
}

/// Traps when the condition does not hold, in debug builds of the kernels only; in release builds it is not evaluated.
#[macro_export]
macro_rules! device_assert {
    ($condition:expr $(,)?) => {
        if cfg!(debug_assertions) && !$condition {
            $crate::trap::trap()
        }
    };
}
