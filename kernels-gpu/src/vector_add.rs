//! `out = a + b`, elementwise over f32.

/// Threads in a block.
pub const THREADS: u32 = 256;

cuda_std::kernel! {
    /// `out[i] = a[i] + b[i]` for `i < len`: four elements a thread and turn, the last `len % 4` one by one.
    ///
    /// # Safety
    /// - `a` and `b` are readable and `out` writable for `len` floats, all aligned to 16 bytes.
    /// - `out` overlaps neither.
    #[launch(threads = THREADS)]
    pub fn vector_add(p: crate::params::VectorAddParams) {
        use cuda_std::{global, thread};
        let at = |base: u64, vector: u64| (base + vector * 16) as *mut [f32; 4];
        let mut i = thread::global_idx_x();
        let vectors = p.len / 4;
        while i < vectors {
            let a = global::ld_nc_no_allocate(at(p.a, i));
            let b = global::ld_nc_no_allocate(at(p.b, i));
            global::st_cs(at(p.out, i), [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]);
            i += thread::grid_stride_x();
        }
        let last = vectors * 4 + thread::global_idx_x();
        if last < p.len {
            let one = |base: u64| (base + last * 4) as *mut f32;
            global::st(one(p.out), global::ld_nc(one(p.a)) + global::ld_nc(one(p.b)));
        }
    }
}
