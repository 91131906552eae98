//! The arguments of `cuLaunchKernelEx` (CUDA Driver API, "Execution Control").

use crate::handle;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub dynamic_shared: u32,
    /// Stream that runs it.
    pub stream: handle::Stream,
    /// `attribute_count` attributes.
    pub attributes: *const LaunchAttribute,
    /// How many.
    pub attribute_count: u32,
}

/// `CUlaunchAttribute`: a number that says which, and 64 bytes of which that attribute uses the first few.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
    alignment: [u64; 0],
}

impl LaunchAttribute {
    const CLUSTER_DIMENSION: u32 = 4;
    const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;

    const fn new(id: u32, first: [u32; 3]) -> LaunchAttribute {
        let mut value = [0; 16];
        (value[0], value[1], value[2]) = (first[0], first[1], first[2]);
        LaunchAttribute {
            id,
            padding: 0,
            value,
            alignment: [],
        }
    }

    /// Blocks of a cluster in x, y, z (`CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`).
    pub const fn cluster(blocks: [u32; 3]) -> LaunchAttribute {
        LaunchAttribute::new(LaunchAttribute::CLUSTER_DIMENSION, blocks)
    }

    /// The kernel may start before the previous one of the stream has ended
    /// (`CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`).
    pub const fn programmatic() -> LaunchAttribute {
        LaunchAttribute::new(LaunchAttribute::PROGRAMMATIC_STREAM_SERIALIZATION, [1, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of, size_of};

    #[test]
    fn the_structures_have_the_layout_of_cuda_h() {
        assert_eq!(size_of::<LaunchAttribute>(), 72);
        assert_eq!(align_of::<LaunchAttribute>(), 8);
        assert_eq!(offset_of!(LaunchAttribute, value), 8);
        assert_eq!(offset_of!(LaunchConfig, dynamic_shared), 24);
        assert_eq!(offset_of!(LaunchConfig, stream), 32);
        assert_eq!(offset_of!(LaunchConfig, attributes), 40);
        assert_eq!(offset_of!(LaunchConfig, attribute_count), 48);
        assert_eq!(size_of::<LaunchConfig>(), 56);
    }

    #[test]
    fn an_attribute_carries_its_number_and_value() {
        let cluster = LaunchAttribute::cluster([2, 1, 4]);
        assert_eq!((cluster.id, &cluster.value[..4]), (4, &[2, 1, 4, 0][..]));
        let programmatic = LaunchAttribute::programmatic();
        assert_eq!((programmatic.id, &programmatic.value[..2]), (6, &[1, 0][..]));
    }
}
