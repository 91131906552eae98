//! Tensor maps: the 128-byte objects that describe a tensor in global memory to `cp.async.bulk.tensor`
//! (CUDA driver API, `cuTensorMapEncodeTiled`; PTX ISA, "Tensors").
//!
//! The hardware encoding is secret. The emulator has its own, which only it reads; a program treats the 128 bytes as opaque
//! on both.

use super::Swizzle;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataType {
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    S32,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    S64,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// bfloat16.
    Bf16,
    /// tf32 in 32 bits.
    Tf32,
}

impl DataType {
    const ALL: [Self; 11] = [
        Self::U8,
        Self::U16,
        Self::U32,
        Self::S32,
        Self::U64,
        Self::S64,
        Self::F16,
        Self::F32,
        Self::F64,
        Self::Bf16,
        Self::Tf32,
    ];

    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::S32 | Self::F32 | Self::Tf32 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    /// Whether elements are floating-point numbers.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32 | Self::F64 | Self::Bf16 | Self::Tf32)
    }
}

/// What a load writes for elements outside the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OobFill {
    /// Zero.
    #[default]
    Zero,
    /// The NaN with all mantissa bits set; floating-point tensors only.
    Nan,
}

/// How elements are grouped in global memory; only [`Interleave::None`] is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Interleave {
    /// Plain layout.
    #[default]
    None,
    /// 16-byte interleave (NC/8HWC8).
    B16,
    /// 32-byte interleave (NC/16HWC16).
    B32,
}

/// The arguments of `cuTensorMapEncodeTiled`; dimension 0 is the contiguous one. L2 promotion has no effect on results and is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiled {
    /// Element type.
    pub data_type: DataType,
    /// Global address of element (0, …, 0).
    pub address: u64,
    /// Extents in elements, one to five.
    pub dims: Vec<u64>,
    /// Byte strides of dimensions 1 and up: `dims.len() - 1` of them.
    pub strides: Vec<u64>,
    /// Extents of the box in elements.
    pub box_dims: Vec<u32>,
    /// Step between elements that are fetched, per dimension.
    pub element_strides: Vec<u32>,
    /// Interleave.
    pub interleave: Interleave,
    /// Shared-memory swizzle.
    pub swizzle: Swizzle,
    /// Out-of-bounds fill.
    pub oob_fill: OobFill,
}

/// Why a tensor map is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorMapError {
    /// Rank outside 1..=5.
    #[error("tensor rank {rank} is outside 1..=5")]
    Rank {
        /// The rank given.
        rank: usize,
    },
    /// A slice has the wrong length.
    #[error("{what} has {got} entries, a map of this rank needs {want}")]
    Length {
        /// Argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length needed.
        want: usize,
    },
    /// The address is not 16-byte aligned.
    #[error("global address {address:#x} is not a multiple of 16")]
    Address {
        /// The address.
        address: u64,
    },
    /// An extent outside 1..=2^32.
    #[error("extent {value} of dimension {dim} is outside 1..=2^32")]
    Extent {
        /// Dimension.
        dim: usize,
        /// Value.
        value: u64,
    },
    /// A stride that is no multiple of 16 or is 2^40 or more.
    #[error("byte stride {value} of dimension {dim} must be a multiple of 16 below 2^40")]
    Stride {
        /// Dimension.
        dim: usize,
        /// Value.
        value: u64,
    },
    /// A box extent outside 1..=256.
    #[error("box extent {value} of dimension {dim} is outside 1..=256")]
    Box {
        /// Dimension.
        dim: usize,
        /// Value.
        value: u32,
    },
    /// The inner box extent is no multiple of 16 bytes.
    #[error("the inner box extent is {bytes} bytes, which is not a multiple of 16")]
    InnerBox {
        /// Bytes.
        bytes: u32,
    },
    /// The inner box extent exceeds the swizzle span.
    #[error("the inner box extent of {bytes} bytes exceeds the {span}-byte swizzle span")]
    SwizzleSpan {
        /// Bytes.
        bytes: u32,
        /// Span of the swizzle.
        span: u32,
    },
    /// An element stride outside 1..=8.
    #[error("element stride {value} of dimension {dim} is outside 1..=8")]
    ElementStride {
        /// Dimension.
        dim: usize,
        /// Value.
        value: u32,
    },
    /// NaN fill for integers.
    #[error("NaN fill needs a floating-point type, not {data_type:?}")]
    NanFill {
        /// The type.
        data_type: DataType,
    },
    /// Legal on hardware but not modelled here.
    #[error("not modelled: {what}")]
    NotModelled {
        /// The feature.
        what: &'static str,
    },
    /// The 128 bytes are no tensor map of this emulator.
    #[error("the 128 bytes are not a tensor map of this emulator (wrong pointer, or changed after encoding)")]
    NotAMap,
}

/// A validated tensor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    tiled: Tiled,
}

const MAGIC: [u8; 8] = *b"ffTMap\x01\0";

impl TensorMap {
    /// Checks the rules of `cuTensorMapEncodeTiled`.
    ///
    /// Strides need not grow with the dimension: the driver accepts any order, and kernels on `[B, S, H, D]` tensors need it.
    ///
    /// # Errors
    /// The first rule that is broken, as [`TensorMapError`].
    pub fn new(tiled: Tiled) -> Result<Self, TensorMapError> {
        let rank = tiled.dims.len();
        if !(1..=5).contains(&rank) {
            return Err(TensorMapError::Rank { rank });
        }
        for (what, got, want) in [
            ("strides", tiled.strides.len(), rank - 1),
            ("box_dims", tiled.box_dims.len(), rank),
            ("element_strides", tiled.element_strides.len(), rank),
        ] {
            if got != want {
                return Err(TensorMapError::Length { what, got, want });
            }
        }
        if tiled.interleave != Interleave::None {
            return Err(TensorMapError::NotModelled {
                what: "interleaved tensors",
            });
        }
        if !tiled.address.is_multiple_of(16) {
            return Err(TensorMapError::Address { address: tiled.address });
        }
        for (dim, &value) in tiled.dims.iter().enumerate() {
            if value == 0 || value > 1 << 32 {
                return Err(TensorMapError::Extent { dim, value });
            }
        }
        for (i, &value) in tiled.strides.iter().enumerate() {
            if !value.is_multiple_of(16) || value >= 1 << 40 {
                return Err(TensorMapError::Stride { dim: i + 1, value });
            }
        }
        for (dim, &value) in tiled.box_dims.iter().enumerate() {
            if !(1..=256).contains(&value) {
                return Err(TensorMapError::Box { dim, value });
            }
        }
        for (dim, &value) in tiled.element_strides.iter().enumerate() {
            if !(1..=8).contains(&value) {
                return Err(TensorMapError::ElementStride { dim, value });
            }
        }
        let bytes = tiled.box_dims[0] * tiled.data_type.size();
        if !bytes.is_multiple_of(16) {
            return Err(TensorMapError::InnerBox { bytes });
        }
        let span = tiled.swizzle.span();
        if tiled.swizzle != Swizzle::None && bytes > span {
            return Err(TensorMapError::SwizzleSpan { bytes, span });
        }
        if tiled.swizzle != Swizzle::None && bytes < span {
            return Err(TensorMapError::NotModelled {
                what: "an inner box extent below the swizzle span",
            });
        }
        if tiled.oob_fill == OobFill::Nan && !tiled.data_type.is_float() {
            return Err(TensorMapError::NanFill {
                data_type: tiled.data_type,
            });
        }
        Ok(Self { tiled })
    }

    /// The arguments it was made from.
    #[must_use]
    pub const fn tiled(&self) -> &Tiled {
        &self.tiled
    }

    /// The number of dimensions.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.tiled.dims.len()
    }

    /// Elements of one transfer along each dimension: box extent over element stride, rounded up (dimension 0 has no stride).
    fn counts(&self) -> [u32; 5] {
        let mut out = [1; 5];
        for (i, (&b, &s)) in self.tiled.box_dims.iter().zip(&self.tiled.element_strides).enumerate() {
            out[i] = if i == 0 { b } else { b.div_ceil(s) };
        }
        out
    }

    /// Bytes that one transfer moves in shared memory, which is what it completes on its mbarrier, out-of-bounds elements included.
    #[must_use]
    pub fn box_bytes(&self) -> u32 {
        self.counts().iter().product::<u32>() * self.tiled.data_type.size()
    }

    /// The bytes of one element outside the tensor.
    #[must_use]
    pub fn fill(&self) -> [u8; 8] {
        match (self.tiled.oob_fill, self.tiled.data_type.size()) {
            (OobFill::Zero, _) => [0; 8],
            (OobFill::Nan, 2) => 0x7fff_7fff_7fff_7fffu64.to_le_bytes(),
            (OobFill::Nan, 4) => 0x7fff_ffff_7fff_ffffu64.to_le_bytes(),
            (OobFill::Nan, _) => 0x7fff_ffff_ffff_ffffu64.to_le_bytes(),
        }
    }

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

    /// The emulator's 128-byte form.
    #[must_use]
    pub fn encode(&self) -> [u8; 128] {
        let t = &self.tiled;
        let mut out = [0u8; 128];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&t.address.to_le_bytes());
        for (i, &d) in t.dims.iter().enumerate() {
            out[16 + 4 * i..20 + 4 * i].copy_from_slice(&((d - 1) as u32).to_le_bytes());
            out[72 + 2 * i..74 + 2 * i].copy_from_slice(&(t.box_dims[i] as u16).to_le_bytes());
            out[82 + i] = t.element_strides[i] as u8;
        }
        for (i, &s) in t.strides.iter().enumerate() {
            out[40 + 8 * i..48 + 8 * i].copy_from_slice(&s.to_le_bytes());
        }
        out[87] = t.dims.len() as u8;
        out[88] = t.data_type as u8;
        out[89] = t.swizzle as u8;
        out[90] = t.oob_fill as u8;
        let sum = checksum(&out[..120]);
        out[120..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the form that [`TensorMap::encode`] writes.
    ///
    /// # Errors
    /// [`TensorMapError::NotAMap`] if the bytes are anything else.
    pub fn decode(bytes: &[u8; 128]) -> Result<Self, TensorMapError> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let rank = usize::from(bytes[87]);
        if bytes[..8] != MAGIC || word(120) != checksum(&bytes[..120]) || !(1..=5).contains(&rank) {
            return Err(TensorMapError::NotAMap);
        }
        let swizzle = match bytes[89] {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            3 => Swizzle::B128,
            _ => return Err(TensorMapError::NotAMap),
        };
        Self::new(Tiled {
            data_type: *DataType::ALL
                .get(usize::from(bytes[88]))
                .ok_or(TensorMapError::NotAMap)?,
            address: word(8),
            dims: (0..rank)
                .map(|i| u64::from(u32::from_le_bytes(std::array::from_fn(|j| bytes[16 + 4 * i + j]))) + 1)
                .collect(),
            strides: (0..rank - 1).map(|i| word(40 + 8 * i)).collect(),
            box_dims: (0..rank)
                .map(|i| u32::from(u16::from_le_bytes([bytes[72 + 2 * i], bytes[73 + 2 * i]])))
                .collect(),
            element_strides: (0..rank).map(|i| u32::from(bytes[82 + i])).collect(),
            interleave: Interleave::None,
            swizzle,
            oob_fill: if bytes[90] == 0 { OobFill::Zero } else { OobFill::Nan },
        })
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

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiled() -> Tiled {
        Tiled {
            data_type: DataType::F16,
            address: 0x1000,
            dims: vec![100, 20, 3],
            strides: vec![208, 208 * 20],
            box_dims: vec![64, 8, 1],
            element_strides: vec![1, 1, 1],
            interleave: Interleave::None,
            swizzle: Swizzle::B128,
            oob_fill: OobFill::Zero,
        }
    }

    #[test]
    fn encoding_goes_round() {
        let map = TensorMap::new(tiled()).unwrap();
        let bytes = map.encode();
        assert_eq!(TensorMap::decode(&bytes), Ok(map));
        for i in 0..128 {
            let mut bad = bytes;
            bad[i] ^= 4;
            assert_eq!(TensorMap::decode(&bad), Err(TensorMapError::NotAMap), "byte {i}");
        }
        assert_eq!(TensorMap::decode(&[0; 128]), Err(TensorMapError::NotAMap));
    }

    #[test]
    fn every_rule() {
        type Break = fn(&mut Tiled);
        let cases: [(Break, TensorMapError); 14] = [
            (|t| t.dims.clear(), TensorMapError::Rank { rank: 0 }),
            (|t| t.dims.extend([1, 1, 1]), TensorMapError::Rank { rank: 6 }),
            (
                |t| t.strides.truncate(1),
                TensorMapError::Length {
                    what: "strides",
                    got: 1,
                    want: 2,
                },
            ),
            (
                |t| t.box_dims.truncate(1),
                TensorMapError::Length {
                    what: "box_dims",
                    got: 1,
                    want: 3,
                },
            ),
            (|t| t.address += 8, TensorMapError::Address { address: 0x1008 }),
            (|t| t.dims[1] = 0, TensorMapError::Extent { dim: 1, value: 0 }),
            (
                |t| t.dims[1] = (1 << 32) + 1,
                TensorMapError::Extent {
                    dim: 1,
                    value: (1 << 32) + 1,
                },
            ),
            (|t| t.strides[0] = 200, TensorMapError::Stride { dim: 1, value: 200 }),
            (
                |t| t.strides[1] = 1 << 40,
                TensorMapError::Stride { dim: 2, value: 1 << 40 },
            ),
            (|t| t.box_dims[2] = 257, TensorMapError::Box { dim: 2, value: 257 }),
            (
                |t| t.element_strides[1] = 9,
                TensorMapError::ElementStride { dim: 1, value: 9 },
            ),
            (|t| t.box_dims[0] = 60, TensorMapError::InnerBox { bytes: 120 }),
            (
                |t| t.box_dims[0] = 72,
                TensorMapError::SwizzleSpan { bytes: 144, span: 128 },
            ),
            (
                |t| {
                    t.data_type = DataType::U16;
                    t.oob_fill = OobFill::Nan;
                },
                TensorMapError::NanFill {
                    data_type: DataType::U16,
                },
            ),
        ];
        for (change, want) in cases {
            let mut t = tiled();
            change(&mut t);
            assert_eq!(TensorMap::new(t), Err(want));
        }
        let t = Tiled {
            interleave: Interleave::B32,
            ..tiled()
        };
        assert!(matches!(TensorMap::new(t), Err(TensorMapError::NotModelled { .. })));
    }

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
