//! `out = a + b`, elementwise over f32.

/// Threads in a block.
pub const THREADS: u32 = 256;

cuda_std::kernel! {
    /// `out[i] = a[i] + b[i]` for `i < len`, one element a thread, any grid size (grid-stride loop).
    ///
    /// # Safety
    /// - `a` and `b` are readable and `out` writable for `len` floats.
    /// - `out` may be equal to `a` or `b` but not overlap them otherwise.
    [threads = [THREADS]]
    pub unsafe fn vector_add(p: crate::params::VectorAddParams) {
        use core::arch::nvptx::{_block_dim_x, _block_idx_x, _grid_dim_x, _thread_idx_x};
        unsafe {
            let mut i = _block_idx_x() as u64 * _block_dim_x() as u64 + _thread_idx_x() as u64;
            let stride = _grid_dim_x() as u64 * _block_dim_x() as u64;
            while i < p.len {
                let at = i as usize;
                *(p.out as *mut f32).add(at) = *(p.a as *const f32).add(at) + *(p.b as *const f32).add(at);
                i += stride;
            }
        }
    }
}
