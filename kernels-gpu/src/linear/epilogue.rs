//! What follows the product: factor, bias, activation, gate, residual, stores. Eight columns of a row at a time.

#[cfg(tier = "sm_90a")]
mod element;

use super::params::*;
use crate::activation::eight::activate;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{global, math::fma};

#[cfg(tier = "sm_90a")]
pub use element::Words;

/// The operands of one problem of a batch.
#[derive(Clone, Copy)]
pub struct Epilogue {
    n: u64,
    bias: Operand,
    residual: Operand,
    y: Operand,
    pre_activation: Operand,
    alpha: f32,
    activation: u32,
    gated: bool,
}

impl Epilogue {
    /// The epilogue of problem `batch`.
    #[inline(always)]
    pub fn new(params: &LinearParams, batch: u64) -> Self {
        let of = |operand: Operand| Operand {
            address: operand.address + operand.batch_stride * batch * size(operand.dtype),
            ..operand
        };
        let present = |operand: Operand| if operand.address == 0 { operand } else { of(operand) };
        Self {
            n: params.n,
            bias: present(params.bias),
            residual: present(params.residual),
            y: of(params.y),
            pre_activation: present(params.pre_activation),
            alpha: params.alpha,
            activation: params.activation,
            gated: params.gated != 0,
        }
    }

    /// Finishes and writes columns `column` to `column + 7` of a row, those that there are. `column` is a multiple of
    /// 8; `z` is the product there, `up` that of the second half of a gated layer.
    ///
    /// # Safety
    /// - The operands are those that the host described, and `row` is a row of them.
    /// - No other thread finishes these elements.
    #[inline(always)]
    pub unsafe fn finish(&self, row: u64, column: u64, z: [f32; 8], up: [f32; 8]) {
        // SAFETY: forwarded to the caller.
        unsafe { self.finish_by(row, column, z, || up, activate) }
    }

    /// [`finish`](Self::finish) with an activation of one's own, and `up` called when it is needed.
    ///
    /// # Safety
    /// - As for `finish`.
    #[inline(always)]
    pub unsafe fn finish_by(
        &self,
        row: u64,
        column: u64,
        z: [f32; 8],
        up: impl FnOnce() -> [f32; 8],
        activate: impl Fn(u32, [f32; 8]) -> [f32; 8],
    ) {
        if column >= self.n {
            return;
        }
        let count = if self.n - column < 8 {
            (self.n - column) as u32
        } else {
            8
        };
        // SAFETY: forwarded to the caller; columns below n, or n to 2n when gated.
        unsafe {
            let mut value = self.pre_activate(row, column, count, z);
            value = activate(self.activation, value);
            if self.gated {
                let up = self.pre_activate(row, self.n + column, count, up());
                value = zip(value, up, |gate, up| gate * up);
            }
            if self.residual.address != 0 {
                let residual = load(&self.residual, row, column, count);
                value = zip(value, residual, |value, residual| value + residual);
            }
            store(&self.y, row, column, count, value);
        }
    }

    /// Whether [`finish_rows`](Self::finish_rows) takes tiles whose columns all exist: y, and the residual if there is
    /// one, are of this type and aligned, and nobody wants the pre-activation.
    #[inline(always)]
    pub fn is_plain(&self, dtype: u32) -> bool {
        let plain = |operand: &Operand| operand.dtype == dtype && operand.aligned != 0;
        plain(&self.y)
            && self.pre_activation.address == 0
            && (self.residual.address == 0 || plain(&self.residual))
            && self.n % 8 == 0
    }

    /// The bias of eight columns of the weight, −0 where there is none: it changes nothing that it is added to.
    ///
    /// # Safety
    /// - The columns exist.
    #[inline(always)]
    pub unsafe fn bias(&self, column: u64) -> [f32; 8] {
        if self.bias.address == 0 {
            return [-0.0; 8];
        }
        // SAFETY: forwarded to the caller.
        unsafe { load(&self.bias, 0, column, 8) }
    }

    /// The bias of a column of the weight.
    ///
    /// # Safety
    /// - There is a bias, and the column exists.
    #[inline(always)]
    pub unsafe fn bias_at(&self, column: u64) -> f32 {
        // SAFETY: forwarded to the caller.
        unsafe { load(&self.bias, 0, column, 1)[0] }
    }

    /// [`finish`](Self::finish) of eight columns in `ROWS` rows, four apart from `row` on, of which those below `rows`
    /// exist; loads of all rows go before the arithmetic of the first. Results are of 16 bits, the activation is one's own.
    ///
    /// # Safety
    /// - As for `finish`; [`is_plain`](Self::is_plain) holds for `T`; the columns exist and `bias` is theirs.
    #[inline(always)]
    pub unsafe fn finish_rows<T: Element, const ROWS: usize, const GATED: bool>(
        &self,
        row: u64,
        rows: u64,
        column: u64,
        bias: [[f32; 8]; 2],
        products: [[[f32; 8]; 2]; ROWS],
        activate: impl Fn(u32, [f32; 8]) -> [f32; 8],
    ) {
        let mut residual = [[0.0; 8]; ROWS];
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.residual.address != 0 {
                let mut i = 0;
                while i < ROWS {
                    let at = (row + 4 * i as u64) * self.residual.row_stride + column;
                    if row + 4 * (i as u64) < rows {
                        residual[i] = T::load8((self.residual.address as *const T).add(at as usize));
                    }
                    i += 1;
                }
            }
            let mut i = 0;
            while i < ROWS {
                let at = (row + 4 * i as u64) * self.y.row_stride + column;
                let alpha = self.alpha;
                let z = zip(products[i][0], bias[0], |z, bias| fma(z, alpha, bias));
                let mut value = activate(self.activation, z);
                if GATED {
                    let up = zip(products[i][1], bias[1], |z, bias| fma(z, alpha, bias));
                    value = zip(value, up, |gate, up| gate * up);
                }
                if self.residual.address != 0 {
                    value = zip(value, residual[i], |value, residual| value + residual);
                }
                if row + 4 * (i as u64) < rows {
                    T::store8((self.y.address as *mut T).add(at as usize), value);
                }
                i += 1;
            }
        }
    }

    /// What enters the activation, stored if asked for. `column` counts the weight's columns.
    #[inline(always)]
    unsafe fn pre_activate(&self, row: u64, column: u64, count: u32, product: [f32; 8]) -> [f32; 8] {
        // One rounding with the bias; two on sm_75, where a product that waits for its bias costs registers that are not there.
        let fused = cfg!(not(tier = "sm_75"));
        let mut z = product;
        if !fused || self.bias.address == 0 {
            z = zip(z, z, |z, _| z * self.alpha);
        }
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.bias.address != 0 {
                let bias = load(&self.bias, 0, column, count);
                z = zip(
                    z,
                    bias,
                    |z, bias| if fused { fma(z, self.alpha, bias) } else { z + bias },
                );
            }
            if self.pre_activation.address != 0 {
                store(&self.pre_activation, row, column, count, z);
            }
            z
        }
    }
}

/// Bytes of an element.
#[inline(always)]
const fn size(dtype: u32) -> u64 {
    if dtype == DTYPE_F32 { 4 } else { 2 }
}

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    let mut result = [0.0; 8];
    let mut i = 0;
    while i < 8 {
        result[i] = f(a[i], b[i]);
        i += 1;
    }
    result
}

/// `count` elements from `(row, column)` as f32; the others are 0.
#[inline(always)]
unsafe fn load(operand: &Operand, row: u64, column: u64, count: u32) -> [f32; 8] {
    // 16 bytes at a time only where the column is a multiple of 8 too: the second half of a pair may not be.
    let vector = operand.aligned != 0 && count == 8 && column % 8 == 0;
    let at = row * operand.row_stride + column;
    // SAFETY: forwarded to the caller.
    unsafe {
        match operand.dtype {
            DTYPE_F32 => load_as::<f32>(operand.address, at, count, vector),
            DTYPE_F16 => load_as::<F16>(operand.address, at, count, vector),
            _ => load_as::<Bf16>(operand.address, at, count, vector),
        }
    }
}

#[inline(always)]
unsafe fn load_as<T: Element>(address: u64, at: u64, count: u32, vector: bool) -> [f32; 8] {
    // SAFETY: forwarded to the caller.
    unsafe {
        let from = (address as *const T).add(at as usize);
        if vector {
            return T::load8(from);
        }
        let mut values = [0.0; 8];
        let mut i = 0;
        while i < 8 {
            if (i as u32) < count {
                values[i] = global::ld(from.add(i)).to_f32();
            }
            i += 1;
        }
        values
    }
}

/// Stores `count` elements from `(row, column)`.
#[inline(always)]
unsafe fn store(operand: &Operand, row: u64, column: u64, count: u32, values: [f32; 8]) {
    let vector = operand.aligned != 0 && count == 8 && column % 8 == 0;
    let at = row * operand.row_stride + column;
    // SAFETY: forwarded to the caller.
    unsafe {
        match operand.dtype {
            DTYPE_F32 => store_as::<f32>(operand.address, at, count, vector, values),
            DTYPE_F16 => store_as::<F16>(operand.address, at, count, vector, values),
            _ => store_as::<Bf16>(operand.address, at, count, vector, values),
        }
    }
}

#[inline(always)]
unsafe fn store_as<T: Element>(address: u64, at: u64, count: u32, vector: bool, values: [f32; 8]) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let to = (address as *mut T).add(at as usize);
        if vector {
            return T::store8(to, values);
        }
        let mut i = 0;
        while i < 8 {
            if (i as u32) < count {
                global::st(to.add(i), T::from_f32(values[i]));
            }
            i += 1;
        }
    }
}

/// Where a tile's columns lie among the weight's: a tile of a gated layer takes gates and factors in turn, eight
/// columns each, so that a thread finds both for its outputs.
#[derive(Clone, Copy)]
pub struct Columns {
    n: u64,
    first: u64,
    gated: bool,
}

impl Columns {
    /// The columns of tile `tile`, where all are `width` wide (a multiple of 16).
    #[inline(always)]
    pub fn new(params: &LinearParams, tile: u32, width: u32) -> Self {
        let outputs = if params.gated != 0 { width / 2 } else { width };
        Self::from(params, tile as u64 * outputs as u64)
    }

    /// The columns of the tile whose first output column is `first`.
    #[inline(always)]
    pub fn from(params: &LinearParams, first: u64) -> Self {
        Self {
            n: params.n,
            first,
            gated: params.gated != 0,
        }
    }

    /// The tile's first output column.
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.first
    }

    /// The output column that the tile's column `column` belongs to, and the weight's column that it is.
    #[inline(always)]
    pub fn of(self, column: u32) -> (u64, u64) {
        if self.gated {
            let output = self.first + (column / 16 * 8 + column % 8) as u64;
            (output, output + if column / 8 % 2 == 1 { self.n } else { 0 })
        } else {
            let output = self.first + column as u64;
            (output, output)
        }
    }
}

/// Tile number `index` of a problem: the tiles of `GROUP` rows of tiles, column by column, and then the next rows, so
/// that blocks that run together share operands in L2.
#[inline(always)]
pub fn tile_of<const GROUP: u32>(params: &LinearParams, index: u32) -> (u32, u32) {
    tile_among([params.tiles_m, params.tiles_n], index, GROUP)
}

/// [`tile_of`] among so many tiles below one another and side by side, in groups of so many rows of tiles.
#[inline(always)]
pub fn tile_among([tiles_m, tiles_n]: [u32; 2], index: u32, rows: u32) -> (u32, u32) {
    // At most all tiles of the problem, of which there are fewer than 2³¹.
    let height = if tiles_m < rows { tiles_m } else { rows };
    let per_group = height * tiles_n;
    // SAFETY: there is a tile, so there are tiles along both axes.
    unsafe { core::hint::assert_unchecked(per_group != 0) };
    let (group, within) = (index / per_group, index % per_group);
    let first = group * height;
    let rows = if tiles_m - first < height {
        tiles_m - first
    } else {
        height
    };
    // SAFETY: the group begins before the last row of tiles.
    unsafe { core::hint::assert_unchecked(rows != 0) };
    (first + within % rows, within / rows)
}
