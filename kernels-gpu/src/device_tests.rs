//! Kernels that exercise `cuda_std` and the tile building blocks, one family of instructions each.
//!
//! They compute nothing useful: each writes what its instructions returned, and `tests/device_std.rs` compares that with
//! what the CPU computes. Unless a kernel says otherwise, `output` is a table of 32-bit words with one row a thread.

use crate::kernel_params;
use crate::params::TensorMap;

kernel_params! {
    /// Arguments of most test kernels.
    pub struct DeviceTestParams {
        /// What the kernel reads.
        pub input: u64,
        /// What the kernel writes.
        pub output: u64,
    }

    /// Arguments of test kernels that copy by tensor map.
    pub struct TensorMapTestParams {
        /// The tensor to load from.
        pub source: TensorMap,
        /// The tensor to store to.
        pub destination: TensorMap,
        /// What the kernel reads besides.
        pub input: u64,
        /// What the kernel writes besides.
        pub output: u64,
    }
}

pub mod arithmetic;
pub mod copies;
pub mod matrices;
pub mod memory;
pub mod threads;

#[cfg(target_arch = "nvptx64")]
mod table {
    use cuda_std::global;

    /// Writes a thread's row of `N` words.
    ///
    /// # Safety
    /// - `output` is a table of at least `thread + 1` rows of `N` words.
    #[inline(always)]
    pub unsafe fn write_row<const N: usize>(output: u64, thread: u32, row: [u32; N]) {
        let mut at = 0;
        while at < N {
            // SAFETY: forwarded to the caller.
            unsafe { global::st((output as *mut u32).add(thread as usize * N + at), row[at]) };
            at += 1;
        }
    }
}
