//! Tiles of f32 in shared memory and their products by `mma.sync` in TF32, without what TF32 loses.
//!
//! A number is the sum of two TF32 numbers, `big` (its first 11 bits) and `small` (the next 11; what is left is below
//! 2⁻²² of the number). A product of two numbers is then three products of the tensor cores, `small·big + big·small +
//! big·big`, summed in f32. Where an operand is infinite, `small` is no number, and neither is the product.
//!
//! A row of a tile is a sequence of chunks of 16 bytes, permuted by XOR with [`turn`] of the row. Fragments of four
//! steps are one load: the k axis of a product may be permuted as long as both operands agree, and so may the columns
//! of the result, so a lane takes four neighbours at once where the instruction wants one from each of four places.

use crate::tile::opaque::opaque;
use cuda_std::{barrier, cp_async, global, math::fma, matrix, shared::ld, thread};

/// By what the chunks of row `row` are permuted. Rows `2t` (and rows `2t + 1`) of any eight differ, so that a quarter
/// warp that reads two chunks of four such rows meets no bank twice; neighbours differ in bit 2, so that one that reads
/// four chunks of two rows does not either.
#[inline(always)]
pub const fn turn(row: u32) -> u32 {
    (row & 6) ^ (row & 1) << 2
}

/// A matrix in global memory: the rows of one head.
pub struct Floats {
    address: u64,
    row_bytes: u64,
    /// Rows that there are.
    rows: i32,
    /// Elements that there are of a row.
    columns: u32,
}

impl Floats {
    /// Head `head` of a tensor with these strides, from token `start` of sequence `batch` on.
    #[inline(always)]
    pub fn new(address: u64, strides: &[u64; 3], place: (u64, u64, u64), rows: i32, columns: u32) -> Self {
        let (batch, start, head) = place;
        let first = batch * strides[0] + start * strides[1] + head * strides[2];
        Floats {
            address: address + 4 * first,
            row_bytes: 4 * strides[1],
            rows,
            columns,
        }
    }

    /// Starts to copy rows `first..first + height` of `DIM` floats to the tile at `to`; what is not there becomes zeros.
    ///
    /// # Safety
    /// - The matrix is readable where it says so; nobody uses the tile before the copies have arrived; all `threads`
    ///   take part, at least `DIM / 4` and a power of two of them.
    #[inline(always)]
    pub unsafe fn copy<const DIM: u32>(&self, to: u32, first: i32, height: u32, threads: u32) {
        let chunks = DIM / 4;
        let thread = thread::thread_idx_x();
        let (row, chunk) = (thread / chunks, thread % chunks);
        let step = threads / chunks;
        let destination = row * (4 * DIM) + (chunk ^ turn(row)) * 16;
        // Where the compiler sees how rows go on from tile to tile, it keeps an address for each in registers.
        let mut row = opaque(first as u32 + row) as i32;
        let mut from = self.address + row as u64 * self.row_bytes + chunk as u64 * 16;
        let inside = chunk * 4 < self.columns;
        let mut i = 0;
        while i < height / step {
            // The bits of `i · step` are none of those of the first row.
            let to = to + (destination ^ (turn(i * step) * 16)) + i * step * (4 * DIM);
            let there = inside && row < self.rows;
            // SAFETY: this thread's chunk of the tile; the source is read only where there is one.
            unsafe { cp_async::copy_16(to, from as *const u8, if there { 16 } else { 0 }) };
            row += step as i32;
            from += step as u64 * self.row_bytes;
            i += 1;
        }
    }
}

/// All copies of the block are there, and all that was read before has been read.
///
/// # Safety
/// - All threads of the block execute this together.
#[inline(always)]
pub unsafe fn arrived() {
    // SAFETY: the whole block is here.
    unsafe {
        cp_async::wait_group::<0>();
        barrier::syncthreads();
    }
}

/// `N` numbers in two parts.
#[derive(Clone, Copy)]
pub struct Parts<const N: usize> {
    /// The first 11 bits of each.
    pub big: [u32; N],
    /// The rest.
    pub small: [u32; N],
}

impl<const N: usize> Parts<N> {
    /// Zeros.
    pub const ZERO: Self = Parts {
        big: [0; N],
        small: [0; N],
    };

    /// Splits, `big` being rounded.
    #[inline(always)]
    pub fn rounded(values: [f32; N]) -> Self {
        Self::split::<0x1000>(values)
    }

    /// Splits, `big` being cut off: an instruction less where the numbers lie in registers as the product wants them.
    #[inline(always)]
    pub fn cut(values: [f32; N]) -> Self {
        Self::split::<0>(values)
    }

    #[inline(always)]
    fn split<const HALF: u32>(values: [f32; N]) -> Self {
        let mut parts = Self::ZERO;
        let mut i = 0;
        while i < N {
            parts.big[i] = values[i].to_bits().wrapping_add(HALF) & 0xFFFF_E000;
            parts.small[i] = (values[i] - f32::from_bits(parts.big[i])).to_bits();
            i += 1;
        }
        parts
    }
}

/// `sums[i] += A·B[i]`, products of 16×8 by 8×8.
///
/// # Safety
/// - All lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn multiply<const N: usize>(sums: &mut [[f32; 4]; N], a: &Parts<4>, b: &[Parts<2>; N]) {
    // Products of the same sum are apart: each waits for the one before.
    let mut which = 0;
    while which < 3 {
        let a = if which == 0 { a.small } else { a.big };
        let mut i = 0;
        while i < N {
            let b = if which == 1 { b[i].small } else { b[i].big };
            // SAFETY: forwarded to the caller.
            sums[i] = unsafe { matrix::mma_m16n8k8_tf32(a, b, sums[i]) };
            i += 1;
        }
        which += 1;
    }
}

/// `own · otherᵀ` of a warp's 16 rows and the `2·S` rows of `other`, `N` blocks of eight of them at a time, in the
/// layout of the accumulators. `ROLLED` keeps the compiler from reading ahead where registers are few. `apart`: the
/// tensor cores, which cut sums off where they should round, sum 16 columns, and rounded additions the rest.
///
/// # Safety
/// - Both tiles are there; all lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn product<const DIM: u32, const S: usize, const N: usize, const ROLLED: bool>(
    own: u32,
    other: u32,
    apart: bool,
) -> [f32; S] {
    // Addresses are found again for each product: together they would not fit the registers.
    let lane = opaque(thread::lane_id());
    let (group, pair) = (lane / 4, lane % 4);
    let at = group * (4 * DIM) + (pair ^ turn(group)) * 16;
    let mut sums = [[0.0f32; 4]; 32];
    let (mut step, end) = (0, if ROLLED { opaque(DIM / 32) } else { DIM / 32 });
    while step < end {
        let mut half = 0;
        while half < 2 {
            let at = (at ^ (half * 64)) + step * 128;
            // SAFETY: the tiles are there, the whole warp is here.
            unsafe {
                let upper: [f32; 4] = ld(own + at);
                let lower: [f32; 4] = ld(own + at + 8 * 4 * DIM);
                let a = [
                    Parts::rounded([upper[0], lower[0], upper[1], lower[1]]),
                    Parts::rounded([upper[2], lower[2], upper[3], lower[3]]),
                ];
                let mut block = 0;
                while block < S / 4 {
                    let mut b = [[Parts::ZERO; N]; 2];
                    let mut of_blocks = [[0.0f32; 4]; N];
                    let mut i = 0;
                    while i < N {
                        let four: [f32; 4] = ld(other + at + (block + i) as u32 * (8 * 4 * DIM));
                        b[0][i] = Parts::cut([four[0], four[1]]);
                        b[1][i] = Parts::cut([four[2], four[3]]);
                        if !apart {
                            of_blocks[i] = sums[block + i];
                        }
                        i += 1;
                    }
                    multiply(&mut of_blocks, &a[0], &b[0]);
                    multiply(&mut of_blocks, &a[1], &b[1]);
                    i = 0;
                    while i < N {
                        let mut j = 0;
                        while j < 4 {
                            sums[block + i][j] = if apart {
                                sums[block + i][j] + of_blocks[i][j]
                            } else {
                                of_blocks[i][j]
                            };
                            j += 1;
                        }
                        i += 1;
                    }
                    block += N;
                }
            }
            half += 1;
        }
        step += 1;
    }
    let mut scores = [0.0; S];
    let mut i = 0;
    while i < S {
        scores[i] = sums[i / 4][i % 4];
        i += 1;
    }
    scores
}

/// `sum = sum · shrink + weights · other`, where `weights` are accumulators of 16 rows and `2·S` columns and `other` has
/// as many rows. Registers `16i + 4j + 2h` and the next of the sum are columns `32i + 8·(lane % 4) + j` and `+ 4` of row
/// `lane / 4 + 8h`.
///
/// The tensor cores cut sums off where they should round: they sum the products of this tile alone.
///
/// # Safety
/// - The tile is there; all lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn weighted<const DIM: u32, const S: usize, const O: usize>(
    sum: &mut [f32; O],
    shrink: [f32; 2],
    weights: &[f32; S],
    other: u32,
) {
    let lane = opaque(thread::lane_id());
    let (group, pair) = (lane / 4, lane % 4);
    // Columns 2t and 2t + 1 of the weights are k t and t + 4 of the product.
    let mut a = [Parts::ZERO; 16];
    let mut block = 0;
    while block < S / 4 {
        let w = 4 * block;
        a[block] = Parts::rounded([weights[w], weights[w + 2], weights[w + 1], weights[w + 3]]);
        block += 1;
    }
    let even = other + 2 * pair * (4 * DIM) + (group ^ turn(2 * pair)) * 16;
    let odd = other + (2 * pair + 1) * (4 * DIM) + (group ^ turn(2 * pair + 1)) * 16;
    let mut columns = 0;
    while columns < O / 16 {
        let mut part = [[0.0f32; 4]; 4];
        let mut block = 0;
        while block < S / 4 {
            let at = block as u32 * (8 * 4 * DIM) + columns as u32 * 128;
            // SAFETY: the tile is there, the whole warp is here.
            unsafe {
                let (x, y): ([f32; 4], [f32; 4]) = (ld(even + at), ld(odd + at));
                let b = [
                    Parts::rounded([x[0], y[0]]),
                    Parts::rounded([x[1], y[1]]),
                    Parts::rounded([x[2], y[2]]),
                    Parts::rounded([x[3], y[3]]),
                ];
                multiply(&mut part, &a[block], &b);
            }
            block += 1;
        }
        let mut i = 0;
        while i < 16 {
            let at = 16 * columns + i;
            sum[at] = fma(sum[at], shrink[i / 2 % 2], part[i / 4][i % 4]);
            i += 1;
        }
        columns += 1;
    }
}

/// Writes a warp's 16 rows of a sum of [`weighted`], or a part of their columns, each row times its factor.
///
/// # Safety
/// - Rows of `rows` from `first` on and columns of `columns` from `first_column` on exist, in a tensor at this address
///   with these strides (batch, row, head) from this place on; rows begin at multiples of 16 bytes.
#[inline(always)]
pub unsafe fn store<const O: usize>(
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows): (u32, u32),
    (first_column, columns): (u32, u32),
    sum: &[f32; O],
    factor: [f32; 2],
) {
    let lane = thread::lane_id();
    let mut h = 0;
    while h < 2 {
        let row = first + lane / 4 + 8 * h as u32;
        if row < rows {
            let at = place.0 * strides[0] + (place.1 + row as u64) * strides[1] + place.2 * strides[2];
            let mut i = 0;
            while i < O / 16 {
                let column = first_column + 32 * i as u32 + 8 * (lane % 4);
                if column < columns {
                    let mut half = 0;
                    while half < 2 {
                        let o = 16 * i + 2 * h + half;
                        let values = [
                            sum[o] * factor[h],
                            sum[o + 4] * factor[h],
                            sum[o + 8] * factor[h],
                            sum[o + 12] * factor[h],
                        ];
                        let at = at + column as u64 + 4 * half as u64;
                        // SAFETY: elements that exist; head dims are multiples of 8.
                        unsafe { global::st((address + 4 * at) as *mut [f32; 4], values) };
                        half += 1;
                    }
                }
                i += 1;
            }
        }
        h += 1;
    }
}
