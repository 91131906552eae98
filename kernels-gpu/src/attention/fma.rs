//! Tiles of f32 in shared memory and their products by fused multiply-adds, for sm_75, whose tensor cores know no TF32.
//!
//! Rows are padded by 16 bytes, which keeps those that a warp reads together in different banks. A product has the layout of
//! the tensor cores' accumulators, so that mask and softmax are the same code; as weights it goes through the warp's own
//! shared memory to the lanes that need it.

use crate::tile::opaque::opaque;
use cuda_std::{
    global,
    math::fma,
    shared::{ld, st},
    thread,
};

/// Floats that pad a row.
pub const PAD: u32 = 4;
/// Columns whose products are summed apart.
const CHUNK: u32 = 16;

/// Copies rows `first..first + height` of `DIM` floats, of which `rows` and `columns` are there, to `to`; zeros stand for
/// the others. The rows of the source are `stride` floats apart.
///
/// # Safety
/// - The block's `threads` come here together; the rows that are there begin at multiples of 16 bytes, and columns are a
///   multiple of 4.
#[inline(always)]
pub unsafe fn copy<const DIM: u32>(
    to: u32,
    (from, stride): (u64, u64),
    (first, rows, columns): (i32, i32, u32),
    (height, threads): (u32, u32),
) {
    let mut chunk = thread::thread_idx_x();
    while chunk < height * (DIM / 4) {
        let (row, column) = (chunk / (DIM / 4), chunk % (DIM / 4) * 4);
        let at = first + row as i32;
        // SAFETY: this thread's chunk; the source is read only where there is one.
        unsafe {
            let values = if at < rows && column < columns {
                global::ld_nc((from + 4 * (at as u64 * stride + column as u64)) as *const [f32; 4])
            } else {
                [0.0; 4]
            };
            st(to + 4 * (row * (DIM + PAD) + column), values);
        }
        chunk += threads;
    }
}

/// `own · otherᵀ` of a warp's 16 rows, of which this lane's first is at `own`, and `2·S` rows, of which its first is at
/// `other`.
///
/// # Safety
/// - The tiles are there.
#[inline(always)]
pub unsafe fn product<const DIM: u32, const S: usize>(own: u32, other: u32) -> [f32; S] {
    let mut sum = [0.0f32; S];
    let mut at = 0;
    while at < DIM {
        // Sums of a few products first: fewer roundings at the size of the whole.
        let mut part = [0.0f32; S];
        let end = at + CHUNK;
        while at < end {
            // SAFETY: forwarded to the caller.
            unsafe {
                let a: [f32; 4] = ld(own + 4 * at);
                let b: [f32; 4] = ld(own + 4 * (8 * (DIM + PAD) + at));
                let mut i = 0;
                while i < S / 4 {
                    let mut j = 0;
                    while j < 2 {
                        let row: [f32; 4] = ld(other + 4 * ((8 * i + j) as u32 * (DIM + PAD) + at));
                        let mut c = 0;
                        while c < 4 {
                            part[4 * i + j] = fma(a[c], row[c], part[4 * i + j]);
                            part[4 * i + 2 + j] = fma(b[c], row[c], part[4 * i + 2 + j]);
                            c += 1;
                        }
                        j += 1;
                    }
                    i += 1;
                }
            }
            at += 4;
        }
        let mut i = 0;
        while i < S {
            sum[i] += part[i];
            i += 1;
        }
    }
    sum
}

/// Writes weights to the warp's own shared memory at `exchange`, 16 rows of `2·S` floats and their pads.
///
/// # Safety
/// - All lanes are here, and have read the weights before these.
#[inline(always)]
pub unsafe fn put_weights<const S: usize>(weights: &[f32; S], exchange: u32) {
    let columns = 2 * S as u32;
    let (group, pair) = (thread::lane_id() / 4, thread::lane_id() % 4);
    let mut i = 0;
    while i < S / 4 {
        let mut h = 0;
        while h < 2 {
            let place = (group + 8 * h as u32) * (columns + PAD) + 8 * i as u32 + 2 * pair;
            let two = [weights[4 * i + 2 * h], weights[4 * i + 2 * h + 1]];
            // SAFETY: forwarded to the caller.
            unsafe { st(exchange + 4 * place, two) };
            h += 1;
        }
        i += 1;
    }
}

/// `sum += weights · other` with the weights of [`put_weights`], `2·S` columns of them. Register `8i + 4h + j` of the sum is
/// column `16i + 4·(lane % 4) + j` from `other` on of row `lane / 4 + 8h`.
///
/// # Safety
/// - The weights and the tile are there.
#[inline(always)]
pub unsafe fn add_weighted<const DIM: u32, const S: usize, const O: usize>(
    sum: &mut [f32; O],
    exchange: u32,
    other: u32,
) {
    let columns = 2 * S as u32;
    let (group, pair) = (thread::lane_id() / 4, thread::lane_id() % 4);
    // A loop that the compiler cannot unroll as a whole: it would keep too many loads in the air.
    let (mut row, end) = (0, opaque(columns));
    while row < end {
        let from = exchange + 4 * (group * (columns + PAD) + row);
        // SAFETY: forwarded to the caller.
        unsafe {
            let a: [f32; 4] = ld(from);
            let b: [f32; 4] = ld(from + 4 * 8 * (columns + PAD));
            let mut c = 0;
            while c < 4 {
                let mut i = 0;
                while i < O / 8 {
                    let place = (row + c as u32) * (DIM + PAD) + 16 * i as u32 + 4 * pair;
                    let value: [f32; 4] = ld(other + 4 * place);
                    let mut j = 0;
                    while j < 4 {
                        sum[8 * i + j] = fma(a[c], value[j], sum[8 * i + j]);
                        sum[8 * i + 4 + j] = fma(b[c], value[j], sum[8 * i + 4 + j]);
                        j += 1;
                    }
                    i += 1;
                }
                c += 1;
            }
        }
        row += 4;
    }
}

/// Writes the columns below `columns` of this lane's row in half `h` of a sum of [`add_weighted`], times `factor`;
/// `address` is that of the row, `first` the sum's first column.
///
/// # Safety
/// - The row is there, this lane's alone, at a multiple of 16 bytes; columns are a multiple of 4.
#[inline(always)]
pub unsafe fn store_row<const O: usize>(
    address: u64,
    (first, columns): (u32, u32),
    sum: &[f32; O],
    h: usize,
    factor: f32,
) {
    let mut i = 0;
    while i < O / 8 {
        let column = first + 16 * i as u32 + 4 * (thread::lane_id() % 4);
        if column < columns {
            let o = 8 * i + 4 * h;
            let values = [
                sum[o] * factor,
                sum[o + 1] * factor,
                sum[o + 2] * factor,
                sum[o + 3] * factor,
            ];
            // SAFETY: elements that exist.
            unsafe { global::st((address + 4 * column as u64) as *mut [f32; 4], values) };
        }
        i += 1;
    }
}
