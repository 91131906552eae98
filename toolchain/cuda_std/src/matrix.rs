//! Matrix fragments of a warp: `ldmatrix`, `stmatrix` and `mma.sync` (PTX ISA 9.7.14.5).
//!
//! With `group = lane / 4` and `pair = lane % 4`, the fragments of `mma.m16n8kK` are
//!
//! | fragment | register | row | column |
//! |---|---|---|---|
//! | C, D | `d[2i + j]` | `group + 8i` | `2·pair + j` |
//! | A, 16 bit | `a[2h + i]`, halves `j` | `group + 8i` | `8h + 2·pair + j` |
//! | B, 16 bit | `b[h]`, halves `j` | `8h + 2·pair + j` (k) | `group` (n) |
//! | A, tf32 | `a[2h + i]` | `group + 8i` | `4h + pair` |
//! | B, tf32 | `b[h]` | `4h + pair` (k) | `group` (n) |
//!
//! which is how `ldmatrix` delivers 8×8 matrices of 16-bit elements from row-major A and from column-major B (B
//! stored as n rows of k); `.trans` delivers B from row-major storage (k rows of n).

use core::arch::asm;

/// Functions that are one `ldmatrix` each.
macro_rules! ldmatrix {
    ($($(#[$doc:meta])* $name:ident -> $count:literal = $instruction:literal, $template:literal, [$($index:literal)*];)*) => {$(
        $(#[$doc])*
        ///
        /// Lane `8m + r` gives the address of row `r` of matrix `m`; register `m` receives, in lane `4r + p`,
        /// elements `2p` and `2p + 1` of row `r` (of column `r` with `.trans`).
        ///
        /// # Safety
        /// - All 32 lanes execute this together, in straight-line code.
        /// - Each address that counts is that of 16 readable bytes of shared memory, aligned to 16.
        #[inline(always)]
        pub unsafe fn $name(address: u32) -> [u32; $count] {
            let mut rows = [0u32; $count];
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!($instruction, " ", $template, ", [{a}];"), $(out(reg32) rows[$index],)* a = in(reg32) address,
                    options(readonly, nostack));
            }
            rows
        }
    )*};
}

ldmatrix! {
    /// `ldmatrix.sync.aligned.m8n8.x1.shared.b16`: one 8×8 matrix (sm_75).
    ldmatrix_x1 -> 1 = "ldmatrix.sync.aligned.m8n8.x1.shared.b16", "{{{0}}}", [0];
    /// `ldmatrix.sync.aligned.m8n8.x2.shared.b16`: two 8×8 matrices (sm_75).
    ldmatrix_x2 -> 2 = "ldmatrix.sync.aligned.m8n8.x2.shared.b16", "{{{0}, {1}}}", [0 1];
    /// `ldmatrix.sync.aligned.m8n8.x4.shared.b16`: four 8×8 matrices (sm_75).
    ldmatrix_x4 -> 4 = "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "{{{0}, {1}, {2}, {3}}}", [0 1 2 3];
    /// `ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16`: one 8×8 matrix, transposed (sm_75).
    ldmatrix_x1_trans -> 1 = "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", "{{{0}}}", [0];
    /// `ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16`: two 8×8 matrices, transposed (sm_75).
    ldmatrix_x2_trans -> 2 = "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "{{{0}, {1}}}", [0 1];
    /// `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16`: four 8×8 matrices, transposed (sm_75).
    ldmatrix_x4_trans -> 4 = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "{{{0}, {1}, {2}, {3}}}", [0 1 2 3];
}

/// Functions that are one `stmatrix` each.
macro_rules! stmatrix {
    ($($(#[$doc:meta])* $name:ident($count:literal) = $instruction:literal, $template:literal, [$($index:literal)*];)*) => {$(
        $(#[$doc])*
        ///
        /// The reverse of `ldmatrix`: lane `8m + r` gives the address of row `r` of matrix `m`.
        ///
        /// # Safety
        /// - All 32 lanes execute this together, in straight-line code.
        /// - Each address that counts is that of 16 writable bytes of shared memory, aligned to 16.
        #[inline(always)]
        pub unsafe fn $name(address: u32, rows: [u32; $count]) {
            // SAFETY: forwarded to the caller.
            unsafe {
                asm!(concat!($instruction, " [{a}], ", $template, ";"), $(in(reg32) rows[$index],)* a = in(reg32) address,
                    options(nostack));
            }
        }
    )*};
}

stmatrix! {
    /// `stmatrix.sync.aligned.m8n8.x1.shared.b16`: one 8×8 matrix (sm_90).
    stmatrix_x1(1) = "stmatrix.sync.aligned.m8n8.x1.shared.b16", "{{{0}}}", [0];
    /// `stmatrix.sync.aligned.m8n8.x2.shared.b16`: two 8×8 matrices (sm_90).
    stmatrix_x2(2) = "stmatrix.sync.aligned.m8n8.x2.shared.b16", "{{{0}, {1}}}", [0 1];
    /// `stmatrix.sync.aligned.m8n8.x4.shared.b16`: four 8×8 matrices (sm_90).
    stmatrix_x4(4) = "stmatrix.sync.aligned.m8n8.x4.shared.b16", "{{{0}, {1}, {2}, {3}}}", [0 1 2 3];
    /// `stmatrix.sync.aligned.m8n8.x1.trans.shared.b16`: one 8×8 matrix, transposed (sm_90).
    stmatrix_x1_trans(1) = "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16", "{{{0}}}", [0];
    /// `stmatrix.sync.aligned.m8n8.x2.trans.shared.b16`: two 8×8 matrices, transposed (sm_90).
    stmatrix_x2_trans(2) = "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "{{{0}, {1}}}", [0 1];
    /// `stmatrix.sync.aligned.m8n8.x4.trans.shared.b16`: four 8×8 matrices, transposed (sm_90).
    stmatrix_x4_trans(4) = "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "{{{0}, {1}, {2}, {3}}}", [0 1 2 3];
}

/// LLVM's `<2 x half>`, the type of f16 fragments in its intrinsics.
#[repr(simd)]
#[derive(Clone, Copy)]
struct F16x2([f16; 2]);

/// A pair of f16 as LLVM's vector.
#[inline(always)]
fn f16x2(pair: u32) -> F16x2 {
    // SAFETY: four bytes of plain data each.
    unsafe { core::mem::transmute(pair) }
}

/// The four accumulators that the intrinsics return.
#[repr(C)]
#[derive(Clone, Copy)]
struct Quad(f32, f32, f32, f32);

#[allow(improper_ctypes, reason = "the types are LLVM's, not C's")]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.f32.f32"]
    fn mma_k8_f16(a0: F16x2, a1: F16x2, b0: F16x2, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.f32.f32"]
    fn mma_k16_f16(
        a0: F16x2, a1: F16x2, a2: F16x2, a3: F16x2, b0: F16x2, b1: F16x2, c0: f32, c1: f32, c2: f32, c3: f32,
    ) -> Quad;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.bf16"]
    fn mma_k8_bf16(a0: u32, a1: u32, b0: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    fn mma_k16_bf16(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad;
    #[link_name = "llvm.nvvm.mma.m16n8k4.row.col.tf32"]
    fn mma_k4_tf32(a0: u32, a1: u32, b0: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.tf32"]
    fn mma_k8_tf32(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c0: f32, c1: f32, c2: f32, c3: f32) -> Quad;
}

/// Functions that are one `mma.sync` each.
macro_rules! mma {
    ($($(#[$doc:meta])* $name:ident(A: [$($a:literal)*], B: [$($b:literal)*]) = $intrinsic:ident, $convert:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// - All 32 lanes execute this together.
        #[inline(always)]
        pub unsafe fn $name(
            a: [u32; [$($a),*].len()],
            b: [u32; [$($b),*].len()],
            c: [f32; 4],
        ) -> [f32; 4] {
            // SAFETY: forwarded to the caller.
            let d = unsafe { $intrinsic($($convert(a[$a]),)* $($convert(b[$b]),)* c[0], c[1], c[2], c[3]) };
            [d.0, d.1, d.2, d.3]
        }
    )*};
}

mma! {
    /// `mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32`: `A·B + C` (sm_75).
    mma_m16n8k8_f16(A: [0 1], B: [0]) = mma_k8_f16, f16x2;
    /// `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`: `A·B + C` (sm_80).
    mma_m16n8k16_f16(A: [0 1 2 3], B: [0 1]) = mma_k16_f16, f16x2;
    /// `mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32`: `A·B + C` (sm_80).
    mma_m16n8k8_bf16(A: [0 1], B: [0]) = mma_k8_bf16, core::convert::identity;
    /// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`: `A·B + C` (sm_80).
    mma_m16n8k16_bf16(A: [0 1 2 3], B: [0 1]) = mma_k16_bf16, core::convert::identity;
    /// `mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32`: `A·B + C` (sm_80).
    mma_m16n8k4_tf32(A: [0 1], B: [0]) = mma_k4_tf32, core::convert::identity;
    /// `mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32`: `A·B + C` (sm_80).
    mma_m16n8k8_tf32(A: [0 1 2 3], B: [0 1]) = mma_k8_tf32, core::convert::identity;
}
