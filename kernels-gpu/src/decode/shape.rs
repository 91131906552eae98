//! How a kernel of decode cuts up its work, and what its shared memory holds.

use super::{JOIN_ROWS, KEYS, ROWS, WIDE_ROWS, gathered, header_bytes};

/// How a kernel cuts up its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether a block has a multiprocessor and a tile for itself.
    pub alone: bool,
    /// Groups of such a block, each of which has a part of its tile.
    pub groups: u32,
    /// Warps of a group.
    pub warps: u32,
    /// Keys that a warp takes at a time: a multiple of [`KEYS`].
    pub keys: u32,
    /// Stages of a warp's ring; with one, nothing is loaded ahead and the joining of warps reuses the stages.
    pub stages: u32,
    /// Bytes of a row in a stage.
    pub row_bytes: u32,
    /// Bytes of the queries in shared memory.
    pub query_bytes: u32,
    /// Padded head dim.
    pub dim: u32,
    /// Rows that a tile has room for.
    pub rows: u32,
    /// Rows whose warps are joined at a time.
    pub join_rows: u32,
    /// Whether the warps of a block share out columns of the output instead of keys: nothing of it is joined.
    pub united: bool,
    /// Whether a block may fold all pieces of a tile: where there is room for the totals.
    pub folds: bool,
    /// Bytes of the totals in shared memory; 0 where they are in registers.
    pub total_bytes: u32,
    /// Pieces that are folded together first are two to this power: the more rows a tile has, the more a piece's result weighs
    /// beside its keys.
    pub bundle: u32,
    /// Whether keys and values are read by tensor maps: of rows of 128 bytes.
    pub mapped: bool,
}

impl Shape {
    /// The shape of the kernel for a padded head dim, elements of `element` bytes (4: without tensor cores) and cache
    /// elements of `cache` bytes, on tier `sm` (75, 80 or 90).
    pub const fn new(sm: u32, element: u32, cache: u32, dim: u32) -> Shape {
        let row_bytes = dim * cache;
        let query_bytes = if element == 4 || dim > 128 {
            ROWS * dim * element
        } else {
            0
        };
        // A stage of a warp is 16 keys and 16 values.
        let stage = 2 * KEYS * row_bytes;
        // Turing has 64 KiB of shared memory, the smallest Ampere 99, Hopper 227.
        let (warps, stages) = if sm == 75 {
            if stage <= 8192 {
                (4, 1)
            } else if stage <= 16384 {
                (2, 1)
            } else {
                (1, 1)
            }
        } else if sm == 80 {
            if stage <= 8192 {
                (4, 2)
            } else if stage <= 16384 {
                (4, 1)
            } else {
                (2, 1)
            }
        } else if stage <= 4096 {
            (4, 5)
        } else if stage <= 8192 {
            (4, 3)
        } else if stage <= 16384 {
            (4, 2)
        } else {
            (4, 1)
        };
        Shape {
            alone: false,
            groups: 1,
            warps,
            keys: KEYS,
            stages,
            row_bytes,
            query_bytes,
            dim,
            rows: ROWS,
            join_rows: JOIN_ROWS,
            united: false,
            folds: query_bytes == 0,
            // What is converted leaves no registers.
            total_bytes: if cache == 1 { ROWS * dim * 4 } else { 0 },
            bundle: 0,
            mapped: false,
        }
    }

    /// The shape of the kernel for at most eight rows, on Hopper: three blocks on a multiprocessor.
    pub const fn few(cache: u32, dim: u32) -> Shape {
        let shape = Shape::new(90, 2, cache, dim);
        // Half as many maxima and bounds for as many bytes.
        let keys = if cache == 1 { 2 * KEYS } else { KEYS };
        let stage = 2 * keys * shape.row_bytes;
        Shape {
            keys,
            stages: if stage <= 2048 {
                5
            } else if stage <= 4096 {
                4
            } else if stage <= 8192 {
                2
            } else {
                3
            },
            query_bytes: 0,
            folds: true,
            total_bytes: if dim > 128 { 8 * dim * 4 } else { 0 },
            ..shape
        }
    }

    /// The shape of the kernels for at most eight rows whose blocks have a multiprocessor and a tile for themselves.
    pub const fn alone(cache: u32, dim: u32, groups: u32) -> Shape {
        let shape = Shape::few(cache, dim);
        Shape {
            alone: true,
            groups,
            // Measured: more 16-bit rows under way are read more slowly.
            stages: if cache == 2 {
                3
            } else {
                6 * 8192 / (groups * shape.stage_bytes())
            },
            ..shape
        }
    }

    /// The same, reading by tensor maps.
    pub const fn by_maps(self) -> Shape {
        Shape { mapped: true, ..self }
    }

    /// The shape of the kernel for many rows, on Hopper: of heads of 64 or 128 16-bit elements.
    pub const fn wide(dim: u32) -> Shape {
        Shape {
            query_bytes: WIDE_ROWS * dim * 2,
            // Two blocks on a multiprocessor.
            stages: if dim == 128 { 3 } else { 6 },
            rows: WIDE_ROWS,
            united: true,
            folds: true,
            total_bytes: 0,
            bundle: 2,
            ..Shape::new(90, 2, 2, dim)
        }
    }

    /// Whether a kernel of this shape on tier `sm` can rotate and append: Turing has no registers for that, nor have the widest
    /// heads in f32.
    pub const fn appends(self, sm: u32) -> bool {
        sm != 75 && self.row_bytes <= 512
    }

    /// Threads of a block: those of all groups, and the warp that joins several.
    pub const fn threads(self) -> u32 {
        (self.groups * self.warps + (self.groups > 1) as u32) * 32
    }

    /// Bytes of a warp's stage: keys, then values.
    pub const fn stage_bytes(self) -> u32 {
        2 * self.keys * self.row_bytes
    }

    /// Bytes of the header; queries that have room of their own follow.
    pub const fn header(self) -> u32 {
        header_bytes(self.rows)
    }

    /// Groups of four elements that a thread joins at a time.
    pub const fn quads(self) -> u32 {
        (self.join_rows * self.dim).div_ceil(self.warps * 32 * 4)
    }

    /// Totals of tiles with at most `rows` rows that a thread keeps in registers.
    pub const fn totals(self, rows: u32) -> u32 {
        if self.folds && self.total_bytes == 0 {
            rows / self.join_rows * self.quads() * 4
        } else {
            0
        }
    }

    /// Where the totals are that are in shared memory.
    pub const fn totals_at(self) -> u32 {
        self.header() + self.query_bytes
    }

    /// Where the stages begin.
    pub const fn stages_at(self) -> u32 {
        let at = self.totals_at() + self.total_bytes;
        // The swizzle counts from multiples of 1 KiB.
        if self.mapped { at.next_multiple_of(1024) } else { at }
    }

    /// Where the barriers of all stages are, in what the header has left.
    pub const fn barriers_at(self) -> u32 {
        self.header() - self.warps * self.stages * 8
    }

    /// Where the warps put their results at the end of a piece.
    pub const fn join_at(self) -> u32 {
        if self.stages == 1 {
            self.stages_at()
        } else {
            self.stages_at() + self.warps * self.stages * self.stage_bytes()
        }
    }

    /// Bytes from one group's shared memory to the next one's: a block has all that there is.
    pub const fn group_bytes(self) -> u32 {
        ((227 << 10) / self.groups) & !511
    }

    /// Dynamic shared memory of a block, or of a group of one that has several, when `rows` rows are in use.
    #[inline(always)]
    pub const fn shared_bytes(self, rows: u32) -> u32 {
        if self.united {
            return self.join_at();
        }
        let rows = if rows < self.join_rows { rows } else { self.join_rows };
        let join = self.join_at() + self.warps * rows * self.dim * 4;
        let stages = self.stages_at() + self.warps * self.stages * self.stage_bytes();
        if join > stages { join } else { stages }
    }

    /// Bytes behind those for keys and values of `tokens` tokens of this step.
    #[inline(always)]
    pub const fn fresh_bytes(self, tokens: u32) -> u32 {
        2 * tokens * self.row_bytes
    }

    /// Where the blocks of a cluster put the results of pieces, behind the keys and values of `tokens` tokens of this step.
    #[inline(always)]
    pub const fn gather_at(self, rows: u32, tokens: u32) -> u32 {
        self.shared_bytes(rows) + self.fresh_bytes(tokens)
    }

    /// Bytes of that for `splits` pieces.
    pub const fn gather_bytes(self, rows: u32, splits: u32, cluster: u32) -> u32 {
        splits * (rows * 8 + gathered(rows, self.dim, cluster) * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::MIN_SPLIT, *};

    #[test]
    fn every_kernel_fits_its_smallest_gpu() {
        for (sm, limit) in [(75, 64 << 10), (80, 99 << 10), (90, 227 << 10)] {
            // Only Hopper converts 8-bit floats.
            let pairs: &[(u32, u32)] = if sm == 90 {
                &[(4, 4), (2, 2), (2, 1)]
            } else {
                &[(4, 4), (2, 2)]
            };
            for &(element, cache) in pairs {
                for dim in [64, 128, 256] {
                    let shape = Shape::new(sm, element, cache, dim);
                    assert!(MIN_SPLIT.is_multiple_of(shape.warps * KEYS));
                    assert!(
                        shape.shared_bytes(ROWS) <= limit,
                        "sm_{sm} {element} {cache} {dim}: {shape:?} {}",
                        shape.shared_bytes(ROWS)
                    );
                    assert!(!shape.appends(sm) || shape.shared_bytes(ROWS) + shape.fresh_bytes(8) <= limit);
                }
            }
        }
    }

    #[test]
    fn two_blocks_for_many_rows_fit_a_multiprocessor() {
        for dim in [64, 128] {
            let shape = Shape::wide(dim);
            assert!(shape.folds && shape.appends(90) && MIN_SPLIT.is_multiple_of(shape.warps * KEYS));
            let block = shape.shared_bytes(WIDE_ROWS) + shape.fresh_bytes(8) + 1024;
            assert!(2 * block <= 228 << 10, "{dim}: {shape:?} {block}");
        }
    }

    #[test]
    fn three_blocks_for_few_rows_fit_a_multiprocessor() {
        for cache in [1, 2] {
            for dim in [64, 128] {
                let shape = Shape::few(cache, dim);
                assert!(shape.folds && (cache * MIN_SPLIT).is_multiple_of(2 * KEYS));
                // Each block takes 1 KiB more than it asks for.
                let block = shape.shared_bytes(8) + shape.fresh_bytes(1) + 1024;
                assert!(3 * block <= 228 << 10, "{cache} {dim}: {shape:?} {block}");
            }
        }
    }
}
