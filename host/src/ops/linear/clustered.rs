//! The kernels of clusters: Hopper's products whose 16-bit results TMA stores.

use kernels_gpu::linear::{CLUSTER_64, CLUSTER_128, CLUSTER_192, ClusterShape};

use super::{
    plan::{Lay, Plan},
    problem::Geometry,
};
use crate::{
    Result,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Rows of clusters' tiles that are computed column by column.
const GROUP: u32 = 8;

/// How the kernels of clusters store, and in which order they compute.
pub(super) struct Cluster {
    /// Map of y.
    pub(super) y: TensorMapRequest,
    /// Rows of clusters' tiles that are computed column by column.
    pub(super) group: u32,
}

/// A kernel of clusters.
#[derive(Clone, Copy)]
pub(super) struct Clustered {
    name: &'static str,
    shape: ClusterShape,
    /// Time of a tile an element, relative to the others.
    percent: u64,
}

/// By what was measured on an H200 (docs/performance/linear.md).
const CLUSTERED: [Clustered; 3] = [
    Clustered {
        name: "64",
        shape: CLUSTER_64,
        percent: 138,
    },
    Clustered {
        name: "128",
        shape: CLUSTER_128,
        percent: 100,
    },
    Clustered {
        name: "192",
        shape: CLUSTER_192,
        percent: 98,
    },
];

impl Clustered {
    /// The kernel that takes the least time by the table: rounds of tiles times what a tile takes. All have the same
    /// bits.
    pub(super) fn fastest(geometry: &Geometry, lay: Lay, multiprocessors: u64) -> Clustered {
        let time = |kernel: &Clustered| {
            let shape = kernel.shape;
            let tiles = geometry.m.div_ceil((shape.rows * shape.blocks) as u64)
                * geometry.columns().div_ceil(shape.columns as u64)
                * geometry.batch;
            let rounds = tiles.div_ceil((multiprocessors / shape.blocks as u64).max(1));
            rounds.saturating_mul((shape.rows * shape.columns) as u64 * kernel.percent)
        };
        // The blocks of a cluster share a weight [k, n] by panels of 64 columns.
        let fits =
            |kernel: &Clustered| lay == Lay::Nk || (kernel.shape.columns / 64).is_multiple_of(kernel.shape.blocks);
        let mut fastest = CLUSTERED[0];
        for kernel in CLUSTERED {
            if fits(&kernel) && time(&kernel) < time(&fastest) {
                fastest = kernel;
            }
        }
        fastest
    }

    /// Plans this kernel for results at y: address, row stride and batch stride.
    pub(super) fn plan(self, geometry: &Geometry, lay: Lay, y: [u64; 3], multiprocessors: u64) -> Result<Plan> {
        let Clustered { name, shape, .. } = self;
        let entry = format!("linear_cluster_{name}_{}_{}", lay.name(), geometry.dtype);
        let plan = Plan::of_tiles(
            geometry,
            entry,
            [shape.rows * shape.blocks, shape.columns],
            shape.shared(),
        )?;
        let tiles = plan.few_tiles(geometry)?;
        let blocks = shape.blocks as u64;
        let clusters = (multiprocessors / blocks).max(1);
        Ok(Plan {
            grid: [tiles.min(clusters) * blocks, 1, 1],
            maps: Some(geometry.maps(lay, shape.rows, shape.columns / shape.blocks)),
            cluster: Some(Cluster {
                // Half of 192 columns are three boxes of 32.
                y: geometry.y_map(y, if geometry.gated && shape.columns == 192 { 32 } else { 64 }),
                group: GROUP,
            }),
            ..plan
        })
    }
}

impl Geometry {
    /// Tensor map of y, 16 rows of so many columns at a time.
    fn y_map(&self, [address, row, batch]: [u64; 3], columns: u32) -> TensorMapRequest {
        let bytes = |stride: u64, extent: u64| if extent == 1 { 16 } else { stride * 2 };
        TensorMapRequest {
            dtype: self.dtype,
            address,
            extents: vec![self.n, self.m, self.batch],
            strides: vec![bytes(row, self.m), bytes(batch, self.batch)],
            box_extents: vec![columns, 16, 1],
            swizzle: if columns == 64 { Swizzle::B128 } else { Swizzle::B64 },
        }
    }
}
