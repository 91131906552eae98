//! Matrix fragments: `ldmatrix`, `stmatrix`, `mma.sync`, wgmma.

#[cfg(target_arch = "nvptx64")]
use super::{DeviceTestParams, table::write_row};
use crate::tile::layout::{Swizzle, TileLayout};
#[cfg(target_arch = "nvptx64")]
use cuda_std::{barrier, global, matrix, shared, thread::*};

/// Copies `words` 32-bit words of global memory to the start of shared memory.
///
/// # Safety
/// - All threads of the block call this; source and shared memory hold the words.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn fill_shared(source: u64, words: u32) {
    let mut at = thread_idx_x();
    while at < words {
        // SAFETY: forwarded to the caller.
        unsafe {
            shared::st(
                shared::dynamic_base() + 4 * at,
                global::ld((source as *const u32).add(at as usize)),
            )
        };
        at += block_dim_x();
    }
    // SAFETY: all threads call this.
    unsafe { barrier::syncthreads() }
}

cuda_std::kernel! {
    /// `ldmatrix`, 14 words a lane, of 32 rows of 16 bytes (four matrices) in shared memory.
    #[launch(threads = 32)]
    pub fn device_test_ldmatrix(params: DeviceTestParams) {
        fill_shared(params.input, 128);
        let address = shared::dynamic_base() + 16 * lane_id();
        let ([a], [d]) = (matrix::ldmatrix_x1(address), matrix::ldmatrix_x1_trans(address));
        let (b, e) = (matrix::ldmatrix_x2(address), matrix::ldmatrix_x2_trans(address));
        let (c, f) = (matrix::ldmatrix_x4(address), matrix::ldmatrix_x4_trans(address));
        write_row(params.output, lane_id(), [a, b[0], b[1], c[0], c[1], c[2], c[3], d, e[0], e[1], f[0], f[1], f[2], f[3]]);
    }

    /// `mma.sync` on f16 with k = 8: the fragments of A (2 words a lane), B (1) and C (4 floats), to D.
    #[launch(threads = 32)]
    pub fn device_test_mma_m16n8k8_f16(params: DeviceTestParams) {
        let (a, b, c) = fragments::<2, 1>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k8_f16(a, b, c).map(f32::to_bits));
    }

    /// `mma.sync` on f16 with k = 16.
    #[launch(threads = 32)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mma_m16n8k16_f16(params: DeviceTestParams) {
        let (a, b, c) = fragments::<4, 2>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k16_f16(a, b, c).map(f32::to_bits));
    }

    /// `mma.sync` on bf16 with k = 8.
    #[launch(threads = 32)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mma_m16n8k8_bf16(params: DeviceTestParams) {
        let (a, b, c) = fragments::<2, 1>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k8_bf16(a, b, c).map(f32::to_bits));
    }

    /// `mma.sync` on bf16 with k = 16.
    #[launch(threads = 32)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mma_m16n8k16_bf16(params: DeviceTestParams) {
        let (a, b, c) = fragments::<4, 2>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k16_bf16(a, b, c).map(f32::to_bits));
    }

    /// `mma.sync` on tf32 with k = 4.
    #[launch(threads = 32)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mma_m16n8k4_tf32(params: DeviceTestParams) {
        let (a, b, c) = fragments::<2, 1>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k4_tf32(a, b, c).map(f32::to_bits));
    }

    /// `mma.sync` on tf32 with k = 8.
    #[launch(threads = 32)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_mma_m16n8k8_tf32(params: DeviceTestParams) {
        let (a, b, c) = fragments::<4, 2>(params.input);
        write_row(params.output, lane_id(), matrix::mma_m16n8k8_tf32(a, b, c).map(f32::to_bits));
    }

    /// `stmatrix`: six regions of 512 bytes, written from four words a lane by x1, x2, x4 and their transposed forms.
    #[launch(threads = 32)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_stmatrix(params: DeviceTestParams) {
        let lane = lane_id();
        let mut at = lane;
        while at < 6 * 128 {
            shared::st(shared::dynamic_base() + 4 * at, 0u32);
            at += 32;
        }
        barrier::syncthreads();
        let r: [u32; 4] = global::ld((params.input as *const [u32; 4]).add(lane as usize));
        let address = shared::dynamic_base() + 16 * lane;
        matrix::stmatrix_x1(address, [r[0]]);
        matrix::stmatrix_x2(address + 512, [r[0], r[1]]);
        matrix::stmatrix_x4(address + 1024, r);
        matrix::stmatrix_x1_trans(address + 1536, [r[0]]);
        matrix::stmatrix_x2_trans(address + 2048, [r[0], r[1]]);
        matrix::stmatrix_x4_trans(address + 2560, r);
        barrier::syncthreads();
        let mut at = lane;
        while at < 6 * 128 {
            global::st((params.output as *mut u32).add(at as usize), shared::ld::<u32>(shared::dynamic_base() + 4 * at));
            at += 32;
        }
    }
}

/// A lane's fragments, `A` + `B` + 4 words.
///
/// # Safety
/// - `input` holds them for each lane.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn fragments<const A: usize, const B: usize>(input: u64) -> ([u32; A], [u32; B], [f32; 4]) {
    let row = (input as *const u32).wrapping_add(lane_id() as usize * (A + B + 4));
    // SAFETY: forwarded to the caller.
    let word = |at: usize| unsafe { global::ld(row.add(at)) };
    (
        core::array::from_fn(word),
        core::array::from_fn(|at| word(A + at)),
        core::array::from_fn(|at| f32::from_bits(word(A + B + at))),
    )
}

/// A wgmma test: `D (64×n) = A·B` over `k`, then `D += A·B` again with A from registers where the layouts allow.
#[derive(Clone, Copy, Debug)]
pub struct WgmmaCase {
    /// The kernel.
    pub entry: &'static str,
    /// Columns of D.
    pub n: u32,
    /// Depth of the product.
    pub k: u32,
    /// A as 64 rows of k, or (transposed) k rows of 64.
    pub a: TileLayout,
    /// B as n rows of k, or (transposed) k rows of n.
    pub b: TileLayout,
    /// Whether A is MN-major.
    pub transpose_a: bool,
    /// Whether B is MN-major.
    pub transpose_b: bool,
    /// The operands' type: 0 for f16, 1 for bf16, 2 for tf32.
    pub kind: u8,
}

/// Declares wgmma test kernels and the table of them that the tests walk through.
///
/// Input: the images of A and B as they shall lie in shared memory, one after the other; then A's fragments by thread,
/// `k / 16` (tf32: `k / 8`) times four words, which the second half of the kernel takes from registers. Output: `n / 2`
/// floats a thread of `2·A·B`.
macro_rules! wgmma_cases {
    ($($name:ident: $element:ident($kind:literal), n $n:literal, k $k:literal,
        a ($a_swizzle:ident, $transpose_a:literal), b ($b_swizzle:ident, $transpose_b:literal);)*) => {
        /// Every wgmma test.
        pub const WGMMA_CASES: &[WgmmaCase] = &[$(WgmmaCase {
            entry: stringify!($name),
            n: $n,
            k: $k,
            a: operand(64, $k, if $kind == 2 { 4 } else { 2 }, Swizzle::$a_swizzle, $transpose_a),
            b: operand($n, $k, if $kind == 2 { 4 } else { 2 }, Swizzle::$b_swizzle, $transpose_b),
            transpose_a: $transpose_a,
            transpose_b: $transpose_b,
            kind: $kind,
        }),*];

        cuda_std::kernel! {$(
            #[doc = concat!("wgmma m64n", $n, " on ", stringify!($element), ".")]
            #[launch(threads = 128, min_blocks = 1, tensor_core = 1)]
            #[cfg(tier = "sm_90a")]
            pub fn $name(params: DeviceTestParams) {
                const BYTES: u32 = if $kind == 2 { 4 } else { 2 };
                const A: TileLayout = operand(64, $k, BYTES, Swizzle::$a_swizzle, $transpose_a);
                const B: TileLayout = operand($n, $k, BYTES, Swizzle::$b_swizzle, $transpose_b);
                const B_AT: u32 = A.bytes().next_multiple_of(1024);
                wgmma_test::<cuda_std::wgmma::$element, { $n / 2 }, { $k * BYTES / 32 }, $transpose_a, $transpose_b>(
                    params, A, B, B_AT,
                );
            }
        )*}
    };
}

/// The tile of an operand with `extent` rows or columns of D.
pub const fn operand(extent: u32, k: u32, bytes: u32, swizzle: Swizzle, transposed: bool) -> TileLayout {
    if transposed {
        TileLayout::new(k, extent, bytes, swizzle)
    } else {
        TileLayout::new(extent, k, bytes, swizzle)
    }
}

#[cfg(tier = "sm_90a")]
#[inline(always)]
unsafe fn wgmma_test<T, const R: usize, const STEPS: u32, const TRANSPOSE_A: bool, const TRANSPOSE_B: bool>(
    params: DeviceTestParams,
    a: TileLayout,
    b: TileLayout,
    b_at: u32,
) where
    T: cuda_std::wgmma::Element,
    cuda_std::wgmma::InFlight<R>: cuda_std::wgmma::MmaShape,
{
    use cuda_std::wgmma::{Acc, Descriptor, MmaShape, commit_group};
    let thread = thread_idx_x();
    // SAFETY: the launch gives shared memory for both operands and tables for inputs and results; one warpgroup runs.
    unsafe {
        fill_shared(params.input, (b_at + b.bytes()) / 4);
        barrier::fence_proxy_async();
        barrier::syncthreads();
        let base = shared::dynamic_base();
        let step_of = |tile: TileLayout, start: Descriptor, transposed: bool, step: u32| {
            start.advance(if transposed {
                tile.mn_step(step)
            } else {
                tile.k_step(step)
            })
        };
        let a_start = if TRANSPOSE_A { a.mn_major(base) } else { a.k_major(base) };
        let b_start = if TRANSPOSE_B {
            b.mn_major(base + b_at)
        } else {
            b.k_major(base + b_at)
        };

        let mut d = Acc::<R>::ZERO.start();
        let mut step = 0;
        while step < STEPS {
            let (a, b) = (
                step_of(a, a_start, TRANSPOSE_A, step),
                step_of(b, b_start, TRANSPOSE_B, step),
            );
            d = d.mma_shared::<T, TRANSPOSE_A, TRANSPOSE_B>(a, b, step > 0);
            step += 1;
        }
        commit_group();
        let d = d.wait::<0>();

        let fragments = (params.input + (b_at + b.bytes()) as u64) as *const [u32; 4];
        let mut words = [[0u32; 4]; 8];
        let mut step = 0;
        while step < STEPS {
            words[step as usize] = global::ld(fragments.add((thread * STEPS + step) as usize));
            step += 1;
        }
        let mut d = d.start();
        let mut step = 0;
        while step < STEPS {
            d = d.mma_registers::<T, TRANSPOSE_B>(words[step as usize], step_of(b, b_start, TRANSPOSE_B, step), true);
            step += 1;
        }
        commit_group();
        write_row(params.output, thread, d.wait::<0>().0.map(f32::to_bits));
    }
}

wgmma_cases! {
    device_test_wgmma_n8_f16: F16(0), n 8, k 64, a (B128, false), b (B128, false);
    device_test_wgmma_n16_bf16: Bf16(1), n 16, k 32, a (B64, false), b (B64, false);
    device_test_wgmma_n24_tf32: Tf32(2), n 24, k 32, a (B128, false), b (B128, false);
    device_test_wgmma_n40_f16: F16(0), n 40, k 16, a (B32, false), b (B32, false);
    device_test_wgmma_n64_f16: F16(0), n 64, k 128, a (B128, false), b (B128, true);
    device_test_wgmma_n96_bf16: Bf16(1), n 96, k 32, a (B128, true), b (B64, true);
    device_test_wgmma_n128_f16: F16(0), n 128, k 64, a (B128, false), b (B128, true);
    device_test_wgmma_n176_f16: F16(0), n 176, k 64, a (B128, false), b (B128, false);
    device_test_wgmma_n256_bf16: Bf16(1), n 256, k 64, a (B128, false), b (B128, true);
}
