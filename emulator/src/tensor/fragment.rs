//! Register layouts of matrices: `ldmatrix`, `stmatrix`, `movmatrix` and the fragments of `mma`.

use super::Element;
use crate::Lanes;

/// `ldmatrix…m8n8.b16`: distributes one 8 × 8 matrix of 16-bit elements. `rows[r]` are the 16 bytes at the address that lane
/// `r` of the matrix's address group gave. Lane `l` receives elements `2(l % 4)` and `2(l % 4) + 1` of row `l / 4`,
/// of the transposed matrix with `trans`.
#[must_use]
pub fn ldmatrix(rows: &[[u8; 16]; 8], trans: bool) -> Lanes {
    let element = |r: usize, c: usize| u64::from(u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]));
    std::array::from_fn(|lane| {
        let (r, c) = (lane / 4, lane % 4 * 2);
        if trans {
            element(c, r) | element(c + 1, r) << 16
        } else {
            element(r, c) | element(r, c + 1) << 16
        }
    })
}

/// `stmatrix…m8n8.b16`: the inverse of [`ldmatrix`].
#[must_use]
pub fn stmatrix(register: &Lanes, trans: bool) -> [[u8; 16]; 8] {
    let mut rows = [[0; 16]; 8];
    for (lane, value) in register.iter().enumerate() {
        for j in 0..2 {
            let (mut r, mut c) = (lane / 4, lane % 4 * 2 + j);
            if trans {
                (r, c) = (c, r);
            }
            let e = (value >> (16 * j)) as u16;
            rows[r][2 * c..2 * c + 2].copy_from_slice(&e.to_le_bytes());
        }
    }
    rows
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: transposes one 8 × 8 matrix held by the warp.
#[must_use]
pub fn movmatrix_trans(register: &Lanes) -> Lanes {
    ldmatrix(&stmatrix(register, false), true)
}

/// Row and column of element `index` of register `register` of operand A (16 × k, or 8 × k with `rows == 8`) in lane `lane`.
#[inline(always)]
#[must_use]
pub const fn a_position(element: Element, rows: usize, lane: usize, register: usize, index: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let per = element.per_register();
    let halves = rows / 8;
    (
        group + 8 * (register % halves),
        thread * per + index + 4 * per * (register / halves),
    )
}

/// Row (k) and column (n) of element `index` of register `register` of operand B (k × 8) in lane `lane`.
#[inline(always)]
#[must_use]
pub const fn b_position(element: Element, lane: usize, register: usize, index: usize) -> (usize, usize) {
    let per = element.per_register();
    (lane % 4 * per + index + 4 * per * register, lane / 4)
}

/// Row and column of 32-bit accumulator element `index` in lane `lane`: of `mma` (index below 4, or 2 with 8 rows) and of
/// the 16 rows that one warp holds of a `wgmma` accumulator (index below N / 2).
#[inline(always)]
#[must_use]
pub const fn accumulator_position(rows: usize, lane: usize, index: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    if rows == 8 {
        (group, thread * 2 + index)
    } else {
        (group + 8 * (index / 2 % 2), 8 * (index / 4) + thread * 2 + index % 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldmatrix_layout() {
        // Element (r, c) is 8r + c.
        let rows: [[u8; 16]; 8] =
            std::array::from_fn(|r| std::array::from_fn(|b| if b % 2 == 0 { (8 * r + b / 2) as u8 } else { 0 }));
        let plain = ldmatrix(&rows, false);
        assert_eq!(plain[0], 0x0001_0000);
        assert_eq!(plain[1], 0x0003_0002);
        assert_eq!(plain[4], 0x0009_0008);
        assert_eq!(plain[31], 63 << 16 | 62);
        let trans = ldmatrix(&rows, true);
        assert_eq!(trans[0], 8 << 16);
        assert_eq!(trans[1], 24 << 16 | 16);
        assert_eq!(trans[4], 9 << 16 | 1);
        assert_eq!(stmatrix(&plain, false), rows);
        assert_eq!(stmatrix(&trans, true), rows);
        assert_eq!(movmatrix_trans(&plain), trans);
    }

    /// The formulas of the PTX ISA, written out per shape, against the general one.
    #[test]
    fn fragment_positions() {
        for lane in 0..32 {
            let (g, t) = (lane >> 2, lane % 4);
            for i in 0..8 {
                // m16n8k16 .f16: a0..a7
                let row = if i < 2 || (4..6).contains(&i) { g } else { g + 8 };
                let col = t * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
                assert_eq!(a_position(Element::F16, 16, lane, i / 2, i % 2), (row, col));
            }
            for i in 0..4 {
                let row = t * 2 + (i & 1) + if i >= 2 { 8 } else { 0 };
                assert_eq!(b_position(Element::F16, lane, i / 2, i % 2), (row, g));
                // m16n8k8 .tf32
                let row = if i == 0 || i == 2 { g } else { g + 8 };
                let col = if i < 2 { t } else { t + 4 };
                assert_eq!(a_position(Element::Tf32, 16, lane, i, 0), (row, col));
                let row = if i < 2 { g } else { g + 8 };
                assert_eq!(accumulator_position(16, lane, i), (row, t * 2 + (i & 1)));
            }
            for i in 0..16 {
                // m16n8k32 .s8
                let row = if i < 4 || (8..12).contains(&i) { g } else { g + 8 };
                let col = t * 4 + (i & 3) + if i >= 8 { 16 } else { 0 };
                assert_eq!(a_position(Element::S8, 16, lane, i / 4, i % 4), (row, col));
            }
            for i in 0..8 {
                let row = t * 4 + (i & 3) + if i >= 4 { 16 } else { 0 };
                assert_eq!(b_position(Element::S8, lane, i / 4, i % 4), (row, g));
            }
            // m8n8k16 .s8
            assert_eq!(a_position(Element::S8, 8, lane, 0, 3), (g, t * 4 + 3));
            // wgmma accumulator element 6 of n = 16: second n8 block, lower half.
            assert_eq!(accumulator_position(16, lane, 6), (g + 8, 8 + 2 * t));
        }
    }
}
