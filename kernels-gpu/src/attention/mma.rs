//! What the `mma.sync` kernels of attention share: the product itself, tiles of 16-bit elements in shared memory, and
//! the copies that fill them (`cp.async`, or loads and stores on sm_75).
//!
//! Rows of the tiles are cut into panels with swizzled 16-byte chunks, so that `ldmatrix` meets no bank twice.

use crate::tile::opaque::opaque;
use crate::tile::{copy::wait, layout::Swizzle, mma::Mma};
use cuda_std::{barrier, thread};

#[cfg(not(tier = "sm_75"))]
use cuda_std::cp_async;
#[cfg(tier = "sm_75")]
use cuda_std::global;

/// `D += A·B` where the accumulator of 8 columns lies at register `at`.
///
/// # Safety
/// - All lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn accumulate<E: Mma, const R: usize>(d: &mut [f32; R], at: usize, a: [u32; 4], b: [u32; 2]) {
    // SAFETY: forwarded to the caller.
    let sum = unsafe { E::mma(a, b, [d[at], d[at + 1], d[at + 2], d[at + 3]]) };
    d[at] = sum[0];
    d[at + 1] = sum[1];
    d[at + 2] = sum[2];
    d[at + 3] = sum[3];
}

/// How rows of `DIM` elements lie in shared memory.
pub struct Panels<const DIM: u32>;

impl<const DIM: u32> Panels<DIM> {
    /// 128 bytes where they divide a row, else 64.
    pub const SWIZZLE: Swizzle = if DIM.is_multiple_of(64) {
        Swizzle::B128
    } else {
        Swizzle::B64
    };
    /// Bytes of a panel's row.
    pub const WIDTH: u32 = Self::SWIZZLE.width();
    /// Panels of a row.
    pub const COUNT: u32 = 2 * DIM / Self::WIDTH;
    /// Steps of 16 columns in a panel.
    pub const STEPS: u32 = Self::WIDTH / 32;

    /// The place of a lane's row of `ldmatrix`: `row`, of 16, and which 8 of 16 columns.
    #[inline(always)]
    pub const fn lane(row: u32, half: u32) -> u32 {
        Self::SWIZZLE.apply(row * Self::WIDTH + half * 16)
    }

    /// The place of the same row from 16 `columns` steps and `rows` (a multiple of 8) rows further, in a tile of
    /// `height` rows.
    #[inline(always)]
    pub const fn at(lane: u32, columns: u32, rows: u32, height: u32) -> u32 {
        let (panel, step) = (columns / Self::STEPS, columns % Self::STEPS);
        // The swizzle permutes by XOR, and the step's bits are none of those that it depends on.
        (lane ^ (32 * step)) + panel * height * Self::WIDTH + rows * Self::WIDTH
    }
}

/// A matrix in global memory: the rows of one head.
pub struct Source {
    address: u64,
    row_bytes: u64,
    /// Rows that there are.
    rows: i32,
    /// Elements that there are of a row.
    columns: u32,
}

impl Source {
    /// Head `head` of a tensor with these strides, from token `start` of sequence `batch` on.
    #[inline(always)]
    pub fn new(address: u64, strides: &[u64; 3], place: (u64, u64, u64), rows: i32, columns: u32) -> Self {
        let (batch, start, head) = place;
        let first = batch * strides[0] + start * strides[1] + head * strides[2];
        Source {
            address: address + 2 * first,
            row_bytes: 2 * strides[1],
            rows,
            columns,
        }
    }

    /// Starts to copy rows `first..first + height` to the tile at `to`; what is not there becomes zeros.
    ///
    /// # Safety
    /// - The matrix is readable where it says so; nobody uses the tile before [`arrived`]; all `threads` take part.
    #[inline(always)]
    pub unsafe fn copy<const DIM: u32>(&self, to: u32, first: i32, height: u32, threads: u32) {
        let chunks = Panels::<DIM>::WIDTH / 16;
        let thread = thread::thread_idx_x();
        let (row, chunk) = (thread / chunks, thread % chunks);
        let step = threads / chunks;
        let destination = to + Panels::<DIM>::SWIZZLE.apply(row * Panels::<DIM>::WIDTH + chunk * 16);
        let mut place = row;
        // Where the compiler sees how rows go on from tile to tile, it keeps an address for each in registers.
        let mut row = opaque(first as u32 + place) as i32;
        let mut from = self.address + row as u64 * self.row_bytes + chunk as u64 * 16;
        let mut i = 0;
        while i < height.div_ceil(step) {
            // The last step may be a part of one.
            if (i + 1) * step <= height || place < height {
                let mut panel = 0;
                while panel < Panels::<DIM>::COUNT {
                    let column = panel * (Panels::<DIM>::WIDTH / 2) + chunk * 8;
                    let there = row < self.rows && column < self.columns;
                    let to = destination + (panel * height + i * step) * Panels::<DIM>::WIDTH;
                    // SAFETY: this thread's chunk of the tile; the source is read only where there is one.
                    unsafe { copy_chunk(to, from + (panel * Panels::<DIM>::WIDTH) as u64, there) };
                    panel += 1;
                }
            }
            place += step;
            row += step as i32;
            from += step as u64 * self.row_bytes;
            i += 1;
        }
    }
}

/// 16 bytes, or zeros where `there` is not.
#[cfg(not(tier = "sm_75"))]
#[inline(always)]
unsafe fn copy_chunk(to: u32, from: u64, there: bool) {
    // SAFETY: forwarded to the caller.
    unsafe { cp_async::copy_16(to, from as *const u8, if there { 16 } else { 0 }) }
}

/// 16 bytes, or zeros where `there` is not.
#[cfg(tier = "sm_75")]
#[inline(always)]
unsafe fn copy_chunk(to: u32, from: u64, there: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        let chunk = if there {
            global::ld_nc(from as *const [u32; 4])
        } else {
            [0; 4]
        };
        cuda_std::shared::st(to, chunk);
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
        wait::<0>();
        barrier::syncthreads();
    }
}
