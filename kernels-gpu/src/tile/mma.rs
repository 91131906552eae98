//! The product of `mma.sync`, one name for all 16-bit types and tiers.

#[cfg(not(tier = "sm_75"))]
use super::element::Bf16;
use super::element::{Element, F16};
use cuda_std::matrix;

/// An element type that `mma.sync` multiplies.
pub trait Mma: Element {
    /// Whether it is bf16, and not f16.
    const BF16: bool;

    /// `A·B + C` for 16×16 by 16×8.
    ///
    /// # Safety
    /// - All 32 lanes execute this together.
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
}

impl Mma for F16 {
    const BF16: bool = false;

    #[cfg(tier = "sm_75")]
    #[inline(always)]
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        // SAFETY: forwarded to the caller.
        unsafe {
            let c = matrix::mma_m16n8k8_f16([a[0], a[1]], [b[0]], c);
            matrix::mma_m16n8k8_f16([a[2], a[3]], [b[1]], c)
        }
    }

    #[cfg(not(tier = "sm_75"))]
    #[inline(always)]
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        // SAFETY: forwarded to the caller.
        unsafe { matrix::mma_m16n8k16_f16(a, b, c) }
    }
}

#[cfg(not(tier = "sm_75"))]
impl Mma for Bf16 {
    const BF16: bool = true;

    #[inline(always)]
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        // SAFETY: forwarded to the caller.
        unsafe { matrix::mma_m16n8k16_bf16(a, b, c) }
    }
}
