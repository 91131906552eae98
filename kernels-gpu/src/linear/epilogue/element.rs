//! The epilogue of one element a lane, for kernels that ask for bias and residual long before the product is there. The
//! bits are those of the epilogue of eight.

use crate::activation::eight::activate_one;
use crate::linear::params::*;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::global;

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
        bias: 0,
        up: 0,
        residual: 0,
    };
}

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
        return 0;
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

    /// Finishes and writes an element, of which `z` is the product, `up` that of the second half of a gated layer.
    ///
    /// # Safety
    /// - The element exists, and no other thread finishes it.
    #[inline(always)]
    pub unsafe fn finish_element(&self, words: &Words, [batch, row]: [u32; 2], column: u64, z: f32, up: f32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            let z = z * self.alpha + value(&self.bias, words.bias);
            if self.pre_activation.address != 0 {
                store(&self.pre_activation, batch, row, column, z);
            }
            let mut result = activate_one(self.activation, z);
            if self.gated != 0 {
                let up = up * self.alpha + value(&self.bias, words.up);
                if self.pre_activation.address != 0 {
                    store(&self.pre_activation, batch, row, self.n + column, up);
                }
                result *= up;
            }
            result += value(&self.residual, words.residual);
            store(&self.y, batch, row, column, result);
        }
    }
}
