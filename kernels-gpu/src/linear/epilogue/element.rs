//! The epilogue of an element or a few a lane, for kernels that ask for bias and residual long before the product is there. The
//! bits are those of the epilogue of eight.

use crate::activation::eight::activate;
use crate::linear::{gemm_sm90::Half, params::*};
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{bulk::CachePolicy, global, math::fma};

/// What is added to an element, as it lies in memory: nothing here waits for a load.
#[derive(Clone, Copy)]
pub struct Words {
    /// Bias of the element, or of its gate.
    pub bias: u32,
    /// Bias of what the gate multiplies.
    pub up: u32,
    pub residual: u32,
}

impl Words {
    pub const NONE: Words = Words {
        bias: NOTHING,
        up: NOTHING,
        residual: NOTHING,
    };
}

/// Where there is no operand: −0 in 16 bits, which changes nothing that it is added to.
const NOTHING: u32 = 0x8000;

/// An element of an operand, counted from its address.
#[inline(always)]
fn place(operand: &Operand, batch: u32, row: u32, column: u64) -> u64 {
    batch as u64 * operand.batch_stride + row as u64 * operand.row_stride + column
}

/// Loads the word of an element of an operand, if there is one.
///
/// # Safety
/// - The element exists and is complete.
#[inline(always)]
unsafe fn ask(operand: &Operand, batch: u32, row: u32, column: u64) -> u32 {
    if operand.address == 0 {
        return NOTHING;
    }
    let at = place(operand, batch, row, column);
    // SAFETY: forwarded to the caller.
    unsafe {
        if operand.dtype == DTYPE_F32 {
            global::ld((operand.address + at * 4) as *const u32)
        } else {
            global::ld((operand.address + at * 2) as *const u16) as u32
        }
    }
}

/// The value of a word; −0, which changes nothing that it is added to, where there is no operand.
#[inline(always)]
fn value(operand: &Operand, word: u32) -> f32 {
    if operand.address == 0 {
        return -0.0;
    }
    match operand.dtype {
        DTYPE_F32 => f32::from_bits(word),
        DTYPE_F16 => F16(word as u16).to_f32(),
        _ => Bf16(word as u16).to_f32(),
    }
}

/// Stores an element.
///
/// # Safety
/// - It exists, and no other thread stores it.
#[inline(always)]
unsafe fn store(operand: &Operand, batch: u32, row: u32, column: u64, value: f32) {
    let at = place(operand, batch, row, column);
    // SAFETY: forwarded to the caller.
    unsafe {
        if operand.dtype == DTYPE_F32 {
            global::st((operand.address + at * 4) as *mut f32, value);
        } else {
            let bits = if operand.dtype == DTYPE_F16 {
                F16::from_f32(value).0
            } else {
                Bf16::from_f32(value).0
            };
            global::st((operand.address + at * 2) as *mut u16, bits);
        }
    }
}

impl LinearParams {
    /// Asks for the bias of an output column.
    ///
    /// # Safety
    /// - The column exists.
    #[inline(always)]
    pub unsafe fn ask_bias(&self, words: &mut Words, batch: u32, column: u64) {
        // SAFETY: forwarded to the caller.
        unsafe {
            words.bias = ask(&self.bias, batch, 0, column);
            if self.gated != 0 {
                words.up = ask(&self.bias, batch, 0, self.n + column);
            }
        }
    }

    /// Asks for the residual of an element.
    ///
    /// # Safety
    /// - The element exists, and the residual is complete.
    #[inline(always)]
    pub unsafe fn ask_residual(&self, words: &mut Words, batch: u32, row: u32, column: u64) {
        // SAFETY: forwarded to the caller.
        unsafe { words.residual = ask(&self.residual, batch, row, column) }
    }

    /// Whether elements are their products by the factor, and what is added to them, all of it in `T`.
    #[inline(always)]
    pub(in crate::linear) fn is_simple<T: Half>(&self) -> bool {
        let fits = |operand: &Operand| operand.address == 0 || operand.dtype == T::DTYPE;
        self.gated == 0
            && self.activation == ACTIVATION_IDENTITY
            && self.pre_activation.address == 0
            && self.y.dtype == T::DTYPE
            && fits(&self.bias)
            && fits(&self.residual)
    }

    /// [`finish_elements`](Self::finish_elements) where [`is_simple`](Self::is_simple) holds for `T`: short, and without a branch
    /// but those around stores. Nothing else happens at the end of a launch, and instructions that were not there before
    /// come one line after the other.
    ///
    /// # Safety
    /// - As there.
    #[inline(always)]
    pub(in crate::linear) unsafe fn finish_simple<T: Half, const N: usize>(
        &self,
        words: &[Words; N],
        [batch, row]: [u32; 2],
        columns: [u64; N],
        exist: [bool; N],
        z: [f32; N],
    ) {
        // A block writes parts of a line; the weights on their way past must not drive these out of L2 before other blocks
        // have written the rest: memory takes whole lines sooner.
        let keep = CachePolicy::evict_last();
        let mut i = 0;
        while i < N {
            let [bias, residual] = [words[i].bias, words[i].residual].map(|word| T::of_bits(word as u16).to_f32());
            let value = T::from_f32(fma(z[i], self.alpha, bias) + residual);
            let at = (self.y.address + place(&self.y, batch, row, columns[i]) * 2) as *mut u16;
            if exist[i] {
                // SAFETY: forwarded to the caller.
                unsafe { global::st16_cache_hint(at, value.bits(), keep) };
            }
            i += 1;
        }
    }

    /// Finishes and writes those elements of several of a problem's row, `[batch, row]`, that exist: `z` are their products,
    /// `up` those of the second half of a gated layer. Each choice is made once for all of them.
    ///
    /// # Safety
    /// - No other thread finishes them.
    #[inline(always)]
    pub unsafe fn finish_elements<const N: usize>(
        &self,
        words: &[Words; N],
        [batch, row]: [u32; 2],
        columns: [u64; N],
        exist: [bool; N],
        mut z: [f32; N],
        mut up: [f32; N],
    ) {
        let store_all = |operand: &Operand, first: u64, values: &[f32; N]| {
            let mut i = 0;
            while i < N {
                if exist[i] {
                    // SAFETY: forwarded to the caller.
                    unsafe { store(operand, batch, row, first + columns[i], values[i]) };
                }
                i += 1;
            }
        };
        let mut i = 0;
        while i < N {
            z[i] = fma(z[i], self.alpha, value(&self.bias, words[i].bias));
            i += 1;
        }
        if self.pre_activation.address != 0 {
            store_all(&self.pre_activation, 0, &z);
        }
        let mut result = activate(self.activation, z);
        if self.gated != 0 {
            i = 0;
            while i < N {
                up[i] = fma(up[i], self.alpha, value(&self.bias, words[i].up));
                i += 1;
            }
            if self.pre_activation.address != 0 {
                store_all(&self.pre_activation, self.n, &up);
            }
            i = 0;
            while i < N {
                result[i] *= up[i];
                i += 1;
            }
        }
        i = 0;
        while i < N {
            result[i] += value(&self.residual, words[i].residual);
            i += 1;
        }
        store_all(&self.y, 0, &result);
    }
}
