//! Tensor maps: what the copy engine (TMA) needs to know of a tensor.
//!
//! Every rule of `cuTensorMapEncodeTiled` (CUDA driver API, "Tensor Map Object Managment"; PTX ISA, "Tensors") is
//! checked here, once for both backends, so that a refused map names the rule and not "invalid value".

use crate::{Error, Result, element::DType};

/// Shared-memory swizzle of a box (PTX ISA, "Swizzling Modes"). The inner box extent must not exceed the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Rows follow one another unchanged.
    None,
    /// 16-byte chunks permuted within 32-byte spans.
    B32,
    /// 16-byte chunks permuted within 64-byte spans.
    B64,
    /// 16-byte chunks permuted within 128-byte spans.
    B128,
}

impl Swizzle {
    /// Widest inner box extent, bytes.
    pub const fn span(self) -> u64 {
        match self {
            Swizzle::None => u64::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tiled tensor map, innermost dimension first, to be encoded by a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapRequest {
    /// Element type.
    pub dtype: DType,
    /// Global address of element 0.
    pub address: u64,
    /// Extents, innermost first; 1 to 5 of them.
    pub extents: Vec<u64>,
    /// Byte strides of dimensions 1.. (the innermost is dense), one fewer than `extents`.
    pub strides: Vec<u64>,
    /// Box extents, one for each dimension.
    pub box_extents: Vec<u32>,
    /// Swizzle of the box in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMapRequest {
    /// Checks every rule of a tiled map.
    pub fn check(&self) -> Result<()> {
        let rank = self.extents.len();
        if !(1..=5).contains(&rank) || self.strides.len() + 1 != rank || self.box_extents.len() != rank {
            return Err(Error::range(
                "tensor map rank",
                rank,
                "1 to 5, one stride fewer, one box extent each",
            ));
        }
        if !self.address.is_multiple_of(16) {
            return Err(Error::range(
                "tensor map address",
                format!("{:#x}", self.address),
                "a multiple of 16",
            ));
        }
        for &extent in &self.extents {
            if extent == 0 || extent > 1 << 32 {
                return Err(Error::range("tensor map extent", extent, "1 to 2^32"));
            }
        }
        for &stride in &self.strides {
            if stride % 16 != 0 || stride >= 1 << 40 {
                return Err(Error::range(
                    "tensor map byte stride",
                    stride,
                    "a multiple of 16 below 2^40",
                ));
            }
        }
        for &extent in &self.box_extents {
            if extent == 0 || extent > 256 {
                return Err(Error::range("tensor map box extent", extent, "1 to 256"));
            }
        }
        let inner = self.box_extents[0] as u64 * self.dtype.size();
        if !inner.is_multiple_of(16) || inner > self.swizzle.span() {
            return Err(Error::range(
                "tensor map inner box bytes",
                inner,
                format!("a multiple of 16 up to the swizzle span of {:?}", self.swizzle),
            ));
        }
        Ok(())
    }
}
