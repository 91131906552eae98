//! Transposes of elements of 16 bits, whole vectors at multiples of 16 bytes both ways: through registers alone.
//!
//! A thread takes eight rows of eight elements, turns them, two rows a word, and stores eight rows of eight: 16 bytes an
//! instruction, where a tile in shared memory takes four instructions an element.

use super::TransposeParams;
use cuda_std::{global, math::prmt, thread};

/// The matrices' blocks of 128 × 128.
///
/// # Safety
/// - Source and target have the extents that the parameters say and do not overlap; addresses are multiples of 16 bytes,
///   extents and strides of 8 elements.
#[inline(always)]
pub unsafe fn transpose(p: TransposeParams) {
    let (lane, warp) = (thread::lane_id(), thread::warp_idx());
    // A warp reads 64 bytes of each of its rows, and writes 128.
    let row = thread::block_idx_y() as u64 * 128 + (warp / 4 * 64 + lane / 4 * 8) as u64;
    let column = thread::block_idx_x() as u64 * 128 + (warp % 4 * 32 + lane % 4 * 8) as u64;
    if row >= p.rows || column >= p.columns {
        return;
    }
    let mut matrix = thread::block_idx_z() as u64;
    while matrix < p.batch {
        let from = p.x + (matrix * p.x_batch_stride + row * p.x_stride + column) * 2;
        let to = p.out + (matrix * p.out_batch_stride + column * p.out_stride + row) * 2;
        let mut rows = [[0u32; 4]; 8];
        // SAFETY: the host gives the extents, and all of the block's elements are there.
        unsafe {
            let mut i = 0;
            while i < 8 {
                rows[i] = global::ld_nc_no_allocate((from + i as u64 * p.x_stride * 2) as *const [u32; 4]);
                i += 1;
            }
            let mut i = 0;
            while i < 8 {
                // The lower or the upper halves of two words.
                let half = if i % 2 == 0 { 0x5410 } else { 0x7632 };
                let pair = |row: usize| prmt(rows[row][i / 2], rows[row + 1][i / 2], half);
                let turned = [pair(0), pair(2), pair(4), pair(6)];
                global::st((to + i as u64 * p.out_stride * 2) as *mut [u32; 4], turned);
                i += 1;
            }
        }
        matrix += thread::grid_dim_z() as u64;
    }
}
