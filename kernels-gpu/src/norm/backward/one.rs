//! One row of each matrix of a gradient.

use super::super::device::Statistics;
use super::NormBackwardParams;
use crate::row::{Row, Team};
use crate::tile::element::Element;
use cuda_std::global;

/// The row of each matrix, and the weight.
#[derive(Clone, Copy)]
pub struct One {
    pub x: Row,
    pub dy: Row,
    pub dsum: Row,
    pub dx: Row,
    pub weight: Row,
}

impl One {
    #[inline(always)]
    pub fn of<E: Element>(p: &NormBackwardParams, row: u64) -> One {
        let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, p.aligned);
        One {
            x: matrix(p.x, p.x_stride),
            dy: matrix(p.dy, p.dy_stride),
            dsum: matrix(p.dsum, p.dsum_stride),
            dx: matrix(p.dx, p.dx_stride),
            weight: matrix(p.weight, 0),
        }
    }
}

/// Leaves a row's statistics, if they are wanted.
///
/// # Safety
/// - The host gives the extents; a row is one team's.
#[inline(always)]
pub unsafe fn leave_statistics<T: Team>(p: &NormBackwardParams, row: u64, statistics: &Statistics) {
    if p.statistics != 0 && T::lane() == 0 {
        // SAFETY: forwarded to the caller.
        unsafe {
            let at = (p.statistics as *mut f32).add(row as usize * 3);
            global::st(at, statistics.mean);
            global::st(at.add(1), statistics.rest);
            global::st(at.add(2), statistics.scale);
        }
    }
}
