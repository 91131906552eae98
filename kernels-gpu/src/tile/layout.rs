//! Swizzled tiles in shared memory, as TMA writes and wgmma reads them.
//!
//! A tile of `rows × columns` elements is a sequence of *panels*, each all rows of as many columns as fit the swizzle's
//! width (128, 64 or 32 bytes). Within a panel, rows follow each other, and the 16-byte chunks of a row are permuted by
//! XOR with bits of the row number, so that the same column of 8 consecutive rows lies in different banks.

/// A permutation of the 16-byte chunks of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// 32-byte rows; bit 4 of the offset XOR bit 7.
    B32,
    /// 64-byte rows; bits 4–5 of the offset XOR bits 7–8.
    B64,
    /// 128-byte rows; bits 4–6 of the offset XOR bits 7–9.
    B128,
}

impl Swizzle {
    /// Bytes of a panel's row.
    pub const fn width(self) -> u32 {
        match self {
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// What a tile's address must be a multiple of: 8 rows.
    pub const fn alignment(self) -> u32 {
        8 * self.width()
    }

    /// Where the byte at linear offset `offset` of a panel lies.
    pub const fn apply(self, offset: u32) -> u32 {
        offset ^ ((offset >> 3) & (self.width() - 16))
    }

    /// This swizzle in a matrix descriptor.
    #[cfg(target_arch = "nvptx64")]
    pub const fn descriptor(self) -> cuda_std::wgmma::Swizzle {
        match self {
            Self::B32 => cuda_std::wgmma::Swizzle::B32,
            Self::B64 => cuda_std::wgmma::Swizzle::B64,
            Self::B128 => cuda_std::wgmma::Swizzle::B128,
        }
    }
}

/// Shape and swizzle of a tile.
#[derive(Clone, Copy, Debug)]
pub struct TileLayout {
    rows: u32,
    columns: u32,
    element_bytes: u32,
    swizzle: Swizzle,
}

impl TileLayout {
    /// A tile of `rows × columns` elements. Meant for constants: panics unless `rows` is a multiple of 8 and the
    /// columns fill whole panels.
    pub const fn new(rows: u32, columns: u32, element_bytes: u32, swizzle: Swizzle) -> Self {
        assert!(rows.is_multiple_of(8) && element_bytes.is_power_of_two() && element_bytes <= 16);
        assert!(columns > 0 && (columns * element_bytes).is_multiple_of(swizzle.width()));
        Self {
            rows,
            columns,
            element_bytes,
            swizzle,
        }
    }

    /// Bytes of the tile.
    pub const fn bytes(self) -> u32 {
        self.rows * self.columns * self.element_bytes
    }

    /// What the tile's address must be a multiple of.
    pub const fn alignment(self) -> u32 {
        self.swizzle.alignment()
    }

    /// Columns of a panel: the innermost extent of the TMA box.
    pub const fn panel_columns(self) -> u32 {
        self.swizzle.width() / self.element_bytes
    }

    /// Bytes of a panel.
    pub const fn panel_bytes(self) -> u32 {
        self.rows * self.swizzle.width()
    }

    /// Panels of the tile.
    pub const fn panels(self) -> u32 {
        self.columns / self.panel_columns()
    }

    /// Byte offset of an element from the tile's address.
    pub const fn offset(self, row: u32, column: u32) -> u32 {
        let panel = column / self.panel_columns();
        let within = row * self.swizzle.width() + column % self.panel_columns() * self.element_bytes;
        panel * self.panel_bytes() + self.swizzle.apply(within)
    }

    /// Byte offset of the `step`-th 32 bytes along the columns, for an operand that is K-major in this tile.
    pub const fn k_step(self, step: u32) -> u32 {
        let byte = 32 * step;
        byte / self.swizzle.width() * self.panel_bytes() + byte % self.swizzle.width()
    }

    /// Byte offset of the `step`-th 16 rows, for a 16-bit operand that is MN-major in this tile.
    pub const fn mn_step(self, step: u32) -> u32 {
        16 * self.swizzle.width() * step
    }

    /// The descriptor of a wgmma operand whose k runs along the columns, in the tile at `address` plus a multiple of 8
    /// rows; step along k by [`k_step`](Self::k_step).
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    pub const fn k_major(self, address: u32) -> cuda_std::wgmma::Descriptor {
        cuda_std::wgmma::Descriptor::new(address, 16, self.swizzle.alignment(), self.swizzle.descriptor())
    }

    /// The descriptor of a 16-bit wgmma operand whose k runs along the rows ("transposed"), in the tile at `address`;
    /// step along k by [`mn_step`](Self::mn_step).
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    pub const fn mn_major(self, address: u32) -> cuda_std::wgmma::Descriptor {
        cuda_std::wgmma::Descriptor::new(
            address,
            self.panel_bytes(),
            self.swizzle.alignment(),
            self.swizzle.descriptor(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Swizzle; 3] = [Swizzle::B32, Swizzle::B64, Swizzle::B128];

    #[test]
    fn swizzles_are_cutlass_swizzles() {
        // Swizzle<BITS, 4, 3>: bits 4.. XOR bits 7.., of which there are log2(width / 16).
        for (swizzle, bits) in ALL.into_iter().zip(1..) {
            for offset in 0..4096 {
                let mask = ((1 << bits) - 1) << 7;
                assert_eq!(swizzle.apply(offset), offset ^ ((offset & mask) >> 3));
                assert_eq!(swizzle.apply(swizzle.apply(offset)), offset);
            }
        }
    }

    #[test]
    fn eight_rows_of_a_chunk_touch_as_many_banks_as_the_swizzle_allows() {
        for swizzle in ALL {
            let tile = TileLayout::new(8, swizzle.width() / 2, 2, swizzle);
            for chunk in 0..swizzle.width() / 16 {
                let mut places: Vec<u32> = (0..8).map(|row| tile.offset(row, 8 * chunk) / 16 % 8).collect();
                places.sort();
                places.dedup();
                // A 32-byte row puts 4 rows into one 128-byte line; all swizzles make 8 rows conflict-free.
                assert_eq!(places.len(), 8, "{swizzle:?}");
            }
        }
    }

    #[test]
    fn every_element_has_its_own_bytes() {
        for swizzle in ALL {
            for element_bytes in [1, 2, 4] {
                let tile = TileLayout::new(24, 256 / element_bytes, element_bytes, swizzle);
                let mut seen = vec![false; tile.bytes() as usize];
                for row in 0..24 {
                    for column in 0..256 / element_bytes {
                        for byte in 0..element_bytes {
                            let place = (tile.offset(row, column) + byte) as usize;
                            assert!(!seen[place]);
                            seen[place] = true;
                        }
                    }
                }
                assert!(seen.into_iter().all(|s| s));
            }
        }
    }

    #[test]
    fn k_steps_cross_panels() {
        // 128 columns of f16 with 128-byte rows: two panels of 64 columns, four steps of 16 columns in each.
        let tile = TileLayout::new(64, 128, 2, Swizzle::B128);
        assert_eq!((tile.panels(), tile.panel_columns(), tile.panel_bytes()), (2, 64, 8192));
        let steps: Vec<u32> = (0..8).map(|step| tile.k_step(step)).collect();
        assert_eq!(steps, [0, 32, 64, 96, 8192, 8224, 8256, 8288]);
        // A step is the unswizzled place of the first row's elements, which row 0 leaves where they are.
        for step in 0..8 {
            assert_eq!(tile.k_step(step), tile.offset(0, 16 * step));
        }
        assert_eq!(tile.mn_step(1), tile.offset(16, 0));
    }
}
