//! The products of the `mma.sync` backward kernels, and the rows that they write.

use super::mma::{Panels, accumulate};
use crate::tile::mma::Mma;
use cuda_std::{global, matrix, thread};

/// `own · otherᵀ` of `M` times 16 own rows and a part of the others, which are `height` rows.
///
/// # Safety
/// - The whole warp is here; the tiles are there and stay.
#[inline(always)]
pub unsafe fn product<E: Mma, const DIM: u32, const M: usize, const S: usize>(
    (own, own_height, own_row): (u32, u32, u32),
    (other, height): (u32, u32),
    (a_lane, b_lane): (u32, u32),
) -> [[f32; S]; M] {
    let columns = 2 * S as u32;
    let mut sum = [[0.0f32; S]; M];
    let mut step = 0;
    while step < DIM / 16 {
        // SAFETY: the whole warp is here, the tiles are there.
        unsafe {
            let mut a = [[0; 4]; M];
            let mut m = 0;
            while m < M {
                a[m] = matrix::ldmatrix_x4(own + Panels::<DIM>::at(a_lane, step, own_row + 16 * m as u32, own_height));
                m += 1;
            }
            let mut c = 0;
            while c < columns / 16 {
                let b = matrix::ldmatrix_x4(other + Panels::<DIM>::at(b_lane, step, 16 * c, height));
                let mut m = 0;
                while m < M {
                    accumulate::<E, S>(&mut sum[m], 8 * c as usize, a[m], [b[0], b[1]]);
                    accumulate::<E, S>(&mut sum[m], 8 * c as usize + 4, a[m], [b[2], b[3]]);
                    m += 1;
                }
                c += 1;
            }
        }
        step += 1;
    }
    sum
}

/// `sum += weights · other`, where `fragment` gives A of 16 rows and a step of 16 of the `height` streamed rows.
///
/// # Safety
/// - The whole warp is here; the tiles are there and stay.
#[inline(always)]
pub unsafe fn weighted<E: Mma, const DIM: u32, const M: usize, const O: usize>(
    sum: &mut [[f32; O]; M],
    (other, height): (u32, u32),
    lane: u32,
    fragment: impl Fn(usize, u32) -> [u32; 4],
) {
    let mut step = 0;
    while step < height / 16 {
        let mut a = [[0; 4]; M];
        let mut m = 0;
        while m < M {
            a[m] = fragment(m, step);
            m += 1;
        }
        let mut c = 0;
        while c < O / 8 {
            // SAFETY: the whole warp is here, the tile is there.
            unsafe {
                let b = matrix::ldmatrix_x4_trans(other + Panels::<DIM>::at(lane, c as u32, 16 * step, height));
                let mut m = 0;
                while m < M {
                    accumulate::<E, O>(&mut sum[m], 8 * c, a[m], [b[0], b[1]]);
                    accumulate::<E, O>(&mut sum[m], 8 * c + 4, a[m], [b[2], b[3]]);
                    m += 1;
                }
            }
            c += 1;
        }
        step += 1;
    }
}

/// Writes a warp's 16 rows, or a part of their columns.
///
/// # Safety
/// - The rows below `rows` exist, head dims are even.
#[inline(always)]
pub unsafe fn store<E: Mma, const O: usize>(
    (address, strides, place): (u64, &[u64; 3], (u64, u64, u64)),
    (first, rows): (u32, u32),
    (first_column, columns): (u32, u32),
    sum: &[f32; O],
    factor: f32,
) {
    let lane = thread::lane_id();
    let (batch, start, head) = place;
    let mut h = 0;
    while h < 2 {
        let row = first + lane / 4 + 8 * h as u32;
        if row < rows {
            let at = batch * strides[0] + (start + row as u64) * strides[1] + head * strides[2];
            let mut i = 0;
            while i < O / 4 {
                let column = first_column + 8 * i as u32 + lane % 4 * 2;
                if column < columns {
                    let word = E::pack(sum[4 * i + 2 * h] * factor, sum[4 * i + 2 * h + 1] * factor);
                    // SAFETY: an element that exists; head dims are even.
                    unsafe { global::st((address + 2 * (at + column as u64)) as *mut u32, word) };
                }
                i += 1;
            }
        }
        h += 1;
    }
}
