//! Tensor maps (CUDA Driver API, "Tensor Map Object Management").

use std::ffi::c_void;

use driver::calls;

use super::CudaBackend;
use crate::{
    Error, Result,
    element::DType,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// `CU_TENSOR_MAP_L2_PROMOTION_L2_128B`: a touched sector brings its whole cache line.
const L2_PROMOTION_128B: u32 = 2;
/// `CU_TENSOR_MAP_INTERLEAVE_NONE`.
const NO_INTERLEAVE: u32 = 0;
/// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: elements outside read as zero.
const FILL_ZERO: u32 = 0;

/// `CUtensorMapDataType`.
fn element_code(dtype: DType) -> u32 {
    match dtype {
        DType::U8 | DType::E4M3 => 0,
        DType::I32 => 3,
        DType::I64 => 5,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::BF16 => 9,
    }
}

/// `CUtensorMapSwizzle`.
fn swizzle_code(swizzle: Swizzle) -> u32 {
    match swizzle {
        Swizzle::None => 0,
        Swizzle::B32 => 1,
        Swizzle::B64 => 2,
        Swizzle::B128 => 3,
    }
}

/// `CUtensorMap`: opaque, aligned.
#[repr(C, align(64))]
struct TensorMap([u64; 16]);

impl CudaBackend {
    pub(super) fn encode(&self, request: &TensorMapRequest) -> Result<[u64; 16]> {
        request.check()?;
        let (major, minor) = self.properties.compute_capability;
        if major < 9 {
            return Err(Error::unsupported(format!(
                "a tensor map on {} (compute capability {major}.{minor}; 9.0 is the least)",
                self.properties.name
            )));
        }
        self.bind()?;
        let mut map = TensorMap([0; 16]);
        // The driver reads one stride fewer than the rank, but wants a valid pointer for rank 1 too.
        let mut strides = [0u64; 5];
        strides[..request.strides.len()].copy_from_slice(&request.strides);
        let every_element = [1u32; 5];
        // SAFETY: `check` has proved that extents, strides and box have the lengths that the rank says; the map is 128
        // bytes aligned to 64; the driver only encodes the address and does not read there.
        let encoded = unsafe {
            calls::tensor_map_encode_tiled(
                (&raw mut map).cast(),
                element_code(request.dtype),
                request.extents.len() as u32,
                request.address as *mut c_void,
                request.extents.as_ptr(),
                strides.as_ptr(),
                request.box_extents.as_ptr(),
                every_element.as_ptr(),
                NO_INTERLEAVE,
                swizzle_code(request.swizzle),
                L2_PROMOTION_128B,
                FILL_ZERO,
            )
        };
        self.check(encoded)?;
        Ok(map.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_map_is_128_bytes_aligned_to_64() {
        assert_eq!((size_of::<TensorMap>(), align_of::<TensorMap>()), (128, 64));
    }
}
