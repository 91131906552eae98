//! The bytes of a box: where each lies in shared and in global memory.

use super::TensorMap;

impl TensorMap {
    /// Walks the box whose first element has coordinates `coords` (one per dimension, dimension 0 first), as 16-byte units of shared
    /// memory in order. `shared` is the shared-memory address of the box.
    ///
    /// # Panics
    /// If `coords` has another length than the rank.
    pub fn for_each_unit(&self, shared: u32, coords: &[i32], mut f: impl FnMut(Unit)) {
        assert_eq!(coords.len(), self.rank());
        let t = &self.tiled;
        let counts = self.counts();
        let size = t.data_type.size();
        let per_unit = 16 / size;
        let row_bytes = counts[0] * size;
        let mut index = [0u32; 5];
        let mut row = 0u32;
        loop {
            // The line of dimension 0 at this index of the outer dimensions.
            let mut inside = true;
            let mut address = t.address;
            for d in 1..coords.len() {
                let at = i64::from(coords[d]) + i64::from(index[d]) * i64::from(t.element_strides[d]);
                if at < 0 || at as u64 >= t.dims[d] {
                    inside = false;
                } else {
                    address = address.wrapping_add((at as u64).wrapping_mul(t.strides[d - 1]));
                }
            }
            for unit in 0..row_bytes / 16 {
                let first = i64::from(coords[0]) + i64::from(unit * per_unit);
                let (skip, valid) = if inside {
                    let skip = (-first).clamp(0, i64::from(per_unit)) as u32;
                    let end = (t.dims[0] as i64 - first).clamp(0, i64::from(per_unit)) as u32;
                    (skip, end.saturating_sub(skip))
                } else {
                    (0, 0)
                };
                f(Unit {
                    shared: t.swizzle.apply(shared.wrapping_add(row * row_bytes + unit * 16)),
                    global: address.wrapping_add((first + i64::from(skip)).wrapping_mul(i64::from(size)) as u64),
                    skip: skip * size,
                    valid: valid * size,
                });
            }
            row += 1;
            let mut d = 1;
            loop {
                if d >= coords.len() {
                    return;
                }
                index[d] += 1;
                if index[d] < counts[d] {
                    break;
                }
                index[d] = 0;
                d += 1;
            }
        }
    }
}

/// 16 bytes of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Shared-memory address of the unit, swizzled.
    pub shared: u32,
    /// Global address of the first valid byte.
    pub global: u64,
    /// Bytes at the front of the unit that lie outside the tensor.
    pub skip: u32,
    /// Bytes after those that lie inside; 0 when the unit is outside. What remains of 16 is outside too; but see [`Unit::stored`].
    pub valid: u32,
}

impl Unit {
    /// What a store writes of the unit: a row that ends inside it is stored to the unit's end.
    ///
    /// The H200 does so for copies (measured: rows of 16-bit elements whose number is no multiple of 8), and is taken to do
    /// so for reductions; the PTX ISA is silent.
    #[must_use]
    pub const fn stored(self) -> Unit {
        let valid = if self.valid == 0 { 0 } else { 16 - self.skip };
        Unit { valid, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{OobFill, Tiled, tests::tiled},
        *,
    };
    use crate::tensor::Swizzle;

    fn units(map: &TensorMap, shared: u32, coords: &[i32]) -> Vec<Unit> {
        let mut out = Vec::new();
        map.for_each_unit(shared, coords, |u| out.push(u));
        out
    }

    #[test]
    fn box_inside_and_swizzled() {
        let map = TensorMap::new(tiled()).unwrap();
        assert_eq!(map.box_bytes(), 64 * 8 * 2);
        let u = units(&map, 0x400, &[0, 4, 1]);
        assert_eq!(u.len(), 64);
        let base = 0x1000 + 208 * 20 + 4 * 208;
        assert_eq!(
            u[0],
            Unit {
                shared: 0x400,
                global: base,
                skip: 0,
                valid: 16
            }
        );
        // Row 3, unit 2.
        assert_eq!(
            u[26],
            Unit {
                shared: 0x400 + 3 * 128 + 16, // unit 2 ^ 3
                global: base + 3 * 208 + 32,
                skip: 0,
                valid: 16
            }
        );
    }

    #[test]
    fn out_of_bounds_at_every_edge() {
        let map = TensorMap::new(tiled()).unwrap();
        // Starts 3 elements before the tensor, ends past 100 columns; rows from −1.
        let u = units(&map, 0, &[-3, -1, 2]);
        assert!(u[..8].iter().all(|u| u.valid == 0));
        let row = 0x1000 + 2 * 208 * 20;
        assert_eq!((u[8].skip, u[8].valid, u[8].global), (6, 10, row));
        assert_eq!((u[9].skip, u[9].valid, u[9].global), (0, 16, row + 10));
        let u = units(&map, 0, &[96, 0, 0]);
        assert_eq!((u[0].skip, u[0].valid, u[0].global), (0, 8, 0x1000 + 192));
        assert_eq!((u[1].skip, u[1].valid), (0, 0));
        let u = units(&map, 0, &[0, 0, 3]);
        assert!(u.iter().all(|u| u.valid == 0));
        let u = units(&map, 0, &[i32::MIN, i32::MAX, 0]);
        assert!(u.iter().all(|u| u.valid == 0));
    }

    #[test]
    fn element_strides_and_fill() {
        let t = Tiled {
            element_strides: vec![1, 2, 1],
            box_dims: vec![8, 5, 1],
            swizzle: Swizzle::None,
            oob_fill: OobFill::Nan,
            ..tiled()
        };
        let map = TensorMap::new(t).unwrap();
        assert_eq!(map.box_bytes(), 3 * 16);
        let u = units(&map, 0x80, &[8, 1, 0]);
        let globals: Vec<u64> = u.iter().map(|u| u.global).collect();
        assert_eq!(globals, [1, 3, 5].map(|r| 0x1000 + r * 208 + 16));
        assert_eq!(u[2].shared, 0x80 + 32);
        assert_eq!(map.fill()[..2], [0xff, 0x7f]);
    }
}
