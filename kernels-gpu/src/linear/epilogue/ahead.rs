//! The epilogue of kernels that load bias and residual long before the product is there.

use super::{Epilogue, activate, load, store, zip};

/// What is added to eight columns of a row: before the activation and after it.
#[derive(Clone, Copy)]
pub struct Operands {
    pub bias: [f32; 8],
    pub residual: [f32; 8],
}

impl Operands {
    /// −0, which changes nothing that it is added to.
    pub const NONE: Operands = Operands {
        bias: [-0.0; 8],
        residual: [-0.0; 8],
    };
}

impl Epilogue {
    /// The bias that [`finish_with`](Self::finish_with) adds to eight columns (of the gates), loaded beforehand.
    ///
    /// # Safety
    /// - As for `finish`.
    #[inline(always)]
    pub unsafe fn bias_ahead(&self, column: u64) -> [f32; 8] {
        if column >= self.n || self.bias.address == 0 {
            return Operands::NONE.bias;
        }
        let left = self.n - column;
        // SAFETY: forwarded to the caller.
        unsafe { load(&self.bias, 0, column, if left < 8 { left as u32 } else { 8 }) }
    }

    /// The residual that it adds.
    ///
    /// # Safety
    /// - As for `finish`; the residual is complete.
    #[inline(always)]
    pub unsafe fn residual_ahead(&self, row: u64, column: u64) -> [f32; 8] {
        if column >= self.n || self.residual.address == 0 {
            return Operands::NONE.residual;
        }
        let left = self.n - column;
        // SAFETY: forwarded to the caller.
        unsafe { load(&self.residual, row, column, if left < 8 { left as u32 } else { 8 }) }
    }

    /// Both.
    ///
    /// # Safety
    /// - As for both.
    #[inline(always)]
    pub unsafe fn operands(&self, row: u64, column: u64) -> Operands {
        // SAFETY: forwarded to the caller.
        unsafe {
            Operands {
                bias: self.bias_ahead(column),
                residual: self.residual_ahead(row, column),
            }
        }
    }

    /// [`finish`](Self::finish) with the bias of the columns (of the gates) and the residual given.
    ///
    /// # Safety
    /// - As for `finish`.
    #[inline(always)]
    pub unsafe fn finish_with(&self, row: u64, column: u64, z: [f32; 8], up: [f32; 8], operands: &Operands) {
        if column >= self.n {
            return;
        }
        let left = self.n - column;
        let count = if left < 8 { left as u32 } else { 8 };
        // SAFETY: forwarded to the caller.
        unsafe {
            let scaled = zip(z, z, |z, _| z * self.alpha);
            let z = zip(scaled, operands.bias, |z, bias| z + bias);
            if self.pre_activation.address != 0 {
                store(&self.pre_activation, row, column, count, z);
            }
            let mut value = activate(self.activation, z);
            if self.gated {
                let up = self.pre_activate(row, self.n + column, count, up);
                value = zip(value, up, |gate, up| gate * up);
            }
            let value = zip(value, operands.residual, |value, residual| value + residual);
            store(&self.y, row, column, count, value);
        }
    }
}
