//! What Hopper's attention kernels share: 16-bit elements, panels of 64 columns in shared memory, rows of a gradient.

use super::{params::PANEL, rows::transpose_quad};
use core::arch::asm;
use cuda_std::{
    barrier, global, half,
    shared::st,
    thread, tma,
    wgmma::{Acc, Bf16, Descriptor, Element, F16, InFlight, MmaShape, Swizzle, commit_group},
};

/// Bytes of a row of a panel.
pub const PANEL_BYTES: u32 = PANEL * 2;

/// 16-bit element types.
pub trait Half: Element {
    /// Two values as one word, `low` in the low half. Executed where it stands: its result may be the operand of a
    /// product whose predecessor still reads the same register.
    fn pack(low: f32, high: f32) -> u32;

    /// The two values of a word.
    fn unpack(word: u32) -> [f32; 2];
}

macro_rules! half {
    ($type:ty, $instruction:literal, $unpack:path) => {
        impl Half for $type {
            #[inline(always)]
            fn pack(low: f32, high: f32) -> u32 {
                let word: u32;
                // SAFETY: converts two registers.
                unsafe {
                    asm!(concat!($instruction, " {0}, {1}, {2};"), out(reg32) word, in(reg32) high, in(reg32) low);
                }
                word
            }

            #[inline(always)]
            fn unpack(word: u32) -> [f32; 2] {
                $unpack(word)
            }
        }
    };
}
half!(F16, "cvt.rn.f16x2.f32", half::f32_from_f16x2);
half!(Bf16, "cvt.rn.bf16x2.f32", half::f32_from_bf16x2);

/// Accumulators rounded to the A operand of the next product; the upper half of the array is not used.
#[inline(always)]
pub fn round<E: Half, const S: usize>(values: &[f32; S]) -> [u32; S] {
    let mut words = [0; S];
    let mut i = 0;
    while i < S / 2 {
        words[i] = E::pack(values[2 * i], values[2 * i + 1]);
        i += 1;
    }
    words
}

/// Loads all panels of a box whose panels have `panel_bytes`.
///
/// # Safety
/// - As for [`tma::load_4d`], for each panel.
#[inline(always)]
pub unsafe fn load_panels(
    map: *const u8,
    to: u32,
    (panels, panel_bytes): (u32, u32),
    [row, head, sequence]: [i32; 3],
    barrier: u32,
) {
    let mut panel = 0;
    while panel < panels {
        // SAFETY: forwarded to the caller.
        unsafe {
            let at = [(panel * PANEL) as i32, row, head, sequence];
            tma::load_4d(to + panel * panel_bytes, map, at, barrier);
        }
        panel += 1;
    }
}

/// `own · otherᵀ` over `dim`, issued and committed: 64 rows of panels `own_panel` bytes apart with `2·S` rows.
///
/// # Safety
/// - Both operands have arrived and stay; the whole warpgroup is here.
#[inline(always)]
pub unsafe fn issue_scores<E: Half, const S: usize>(
    dim: u32,
    (own, own_panel): (u32, u32),
    (other, other_panel): (u32, u32),
) -> InFlight<S>
where
    InFlight<S>: MmaShape,
{
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut scores = Acc::<S>::ZERO.start();
        let mut step = 0;
        while step < dim / 16 {
            let (panel, within) = (step / 4, step % 4 * 32);
            let a = Descriptor::new(own + panel * own_panel, 16, 1024, Swizzle::B128);
            let b = Descriptor::new(other + panel * other_panel, 16, 1024, Swizzle::B128);
            scores = scores.mma_shared::<E, false, false>(a.advance(within), b.advance(within), step > 0);
            step += 1;
        }
        commit_group();
        scores
    }
}

/// `sum + weights · other`, issued and committed; `other` has `2·S` rows.
///
/// # Safety
/// - The operand has arrived and stays, and so do `weights` until the wait; the whole warpgroup is here.
#[inline(always)]
pub unsafe fn issue_weighted<E: Half, const S: usize, const O: usize>(
    sum: Acc<O>,
    weights: &[u32; S],
    (other, other_panel): (u32, u32),
) -> InFlight<O>
where
    InFlight<O>: MmaShape,
{
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut sum = sum.start();
        let b = Descriptor::new(other, other_panel, 1024, Swizzle::B128);
        let mut step = 0;
        while step < S / 8 {
            let at = 4 * step;
            let a = [weights[at], weights[at + 1], weights[at + 2], weights[at + 3]];
            sum = sum.mma_registers::<E, true>(a, b.advance(16 * PANEL_BYTES * step as u32), true);
            step += 1;
        }
        commit_group();
        sum
    }
}

/// Clears rows `from..rows` of the panels at `tile`: a weight of zero does not silence a NaN.
///
/// # Safety
/// - The tile has arrived; `thread` counts all `threads` that take part, none of which reads it before they meet.
#[inline(always)]
pub unsafe fn clear_rows(tile: u32, panels: u32, (from, rows): (u32, u32), (thread, threads): (u32, u32)) {
    const CHUNKS: u32 = PANEL_BYTES / 16;
    let mut panel = 0;
    while panel < panels {
        let start = tile + (panel * rows + from) * PANEL_BYTES;
        let mut chunk = thread;
        while chunk < (rows - from) * CHUNKS {
            // SAFETY: inside the panel.
            unsafe { st(start + chunk * 16, [0u32; 4]) };
            chunk += threads;
        }
        panel += 1;
    }
    // SAFETY: a fence.
    unsafe { barrier::fence_proxy_async_shared() };
}

/// Writes a warp's 16 rows times `factor`, whole sectors at a time. The place is batch, first token and head; `first` is
/// the warp's first row, `rows` those of the sequence, `columns` those of the tensor.
///
/// # Safety
/// - All lanes of the warp execute this together; rows start at multiples of 16 bytes, `columns` at multiples of 8.
#[inline(always)]
pub unsafe fn store_rows<E: Half, const O: usize>(
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows): (u32, u32),
    columns: u32,
    sum: &[f32; O],
    factor: f32,
) {
    let lane = thread::lane_id();
    let (batch, start, head) = place;
    let mut h = 0;
    while h < 2 {
        let row = first + lane / 4 + 8 * h as u32;
        let at = batch * strides[0] + (start + row as u64) * strides[1] + head * strides[2];
        let mut i = 0;
        while i < O / 4 {
            let mut words = [0; 4];
            let mut j = 0;
            while j < 4 {
                let r = 4 * (i + j) + 2 * h;
                words[j] = E::pack(sum[r] * factor, sum[r + 1] * factor);
                j += 1;
            }
            let column = 8 * (i as u32 + lane % 4);
            // SAFETY: an element that exists.
            unsafe {
                let words = transpose_quad(words);
                if row < rows && column < columns {
                    global::st((address + 2 * (at + column as u64)) as *mut [u32; 4], words);
                }
            }
            i += 4;
        }
        h += 1;
    }
}
