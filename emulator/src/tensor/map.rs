//! Tensor maps: the 128-byte objects that describe a tensor in global memory to `cp.async.bulk.tensor`
//! (CUDA driver API, `cuTensorMapEncodeTiled`; PTX ISA, "Tensors").
//!
//! The hardware encoding is secret. The emulator has its own, which only it reads; a program treats the 128 bytes as opaque
//! on both.

mod encoding;
mod walk;

pub use walk::Unit;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn tiled() -> Tiled {
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
}
