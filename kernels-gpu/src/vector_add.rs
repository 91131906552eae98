//! `out = a + b`, elementwise over f32.

/// Threads in a block.
pub const THREADS: u32 = 256;

cuda_std::kernel! {
    /// `out[i] = a[i] + b[i]` for `i < len`, one element a thread, any grid size (grid-stride loop).
    ///
    /// # Safety
    /// - `a` and `b` are readable and `out` writable for `len` floats.
    /// - `out` may be equal to `a` or `b` but not overlap them otherwise.
    #[launch(threads = THREADS)]
    pub fn vector_add(params: crate::params::VectorAddParams) {
        use cuda_std::{global, thread};
        let mut i = thread::global_idx_x();
        while i < params.len {
            let at = i as usize;
            let sum = global::ld((params.a as *const f32).add(at)) + global::ld((params.b as *const f32).add(at));
            global::st((params.out as *mut f32).add(at), sum);
            i += thread::grid_stride_x();
        }
    }
}
