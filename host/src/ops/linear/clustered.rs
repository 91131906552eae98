//! The kernels of clusters: Hopper's products whose 16-bit results TMA stores.

use kernels_gpu::linear::{CLUSTER_64, CLUSTER_128, CLUSTER_192, COOPERATIVE_192, ClusterShape};

use super::{
    plan::{Extra, Lay, Plan},
    problem::Geometry,
};
use crate::{
    Result,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Rows of clusters' tiles that are computed column by column.
const GROUP: u32 = 8;

/// Most wide tiles side by side that make room for narrow ones: behind as many rounds as these take, an uneven end costs
/// little.
const MOST_NARROW: u64 = 32;

/// Least k of `linear_cooperative*`: nothing hides their epilogue.
const COOPERATIVE_DEPTH: u64 = 12_288;

/// How the kernels of clusters store, and in which order they compute.
pub(super) struct Cluster {
    /// Maps of x and of the weight.
    pub(super) maps: [TensorMapRequest; 2],
    /// Map of y.
    pub(super) y: TensorMapRequest,
    /// Rows of clusters' tiles that are computed column by column.
    pub(super) group: u32,
    /// Tiles of full width side by side.
    pub(super) wide_n: u32,
    /// Tiles of full width in all.
    pub(super) wide: u32,
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
const CLUSTERED: [Clustered; 4] = [
    Clustered {
        name: "cluster_64",
        shape: CLUSTER_64,
        percent: 138,
    },
    Clustered {
        name: "cluster_128",
        shape: CLUSTER_128,
        percent: 100,
    },
    Clustered {
        name: "cluster_192",
        shape: CLUSTER_192,
        percent: 98,
    },
    COOPERATIVE,
];

const COOPERATIVE: Clustered = Clustered {
    name: "cooperative_192",
    shape: COOPERATIVE_192,
    percent: 93,
};

/// How a kernel cuts a problem's columns: tiles of full width side by side, and narrow ones behind them.
#[derive(Clone, Copy)]
struct Cut {
    wide: u64,
    narrow: u64,
    /// Time of the block that has most to do.
    time: u64,
}

impl Clustered {
    /// Clusters that run at once.
    fn clusters(&self, multiprocessors: u64) -> u64 {
        (multiprocessors / self.shape.blocks as u64).max(1)
    }

    /// The cut into `wide` tiles, and as many narrow ones as are needed behind them.
    fn cut_at(&self, geometry: &Geometry, multiprocessors: u64, wide: u64) -> Cut {
        let shape = self.shape;
        let [rows, columns, narrow] = shape.cluster_tile().map(u64::from);
        let narrow = geometry.columns().saturating_sub(wide * columns).div_ceil(narrow);
        let below = geometry.m.div_ceil(rows) * geometry.batch;
        let clusters = self.clusters(multiprocessors);
        // Tiles are dealt out one after the other, the wide ones first: the first cluster has most of both.
        let wide_rounds = (wide * below).div_ceil(clusters);
        let rounds = ((wide + narrow) * below).div_ceil(clusters);
        let time = wide_rounds
            .saturating_mul(shape.columns as u64 * self.percent)
            .saturating_add((rounds - wide_rounds).saturating_mul(shape.narrow as u64 * 100));
        Cut {
            wide,
            narrow,
            time: time.saturating_mul(shape.block_rows() as u64),
        }
    }

    /// The fastest cut by the table; of two that are as fast the one with more wide tiles.
    fn cut(&self, geometry: &Geometry, multiprocessors: u64) -> Cut {
        let most = geometry.columns().div_ceil(self.shape.cluster_tile()[1] as u64);
        let mut best = self.cut_at(geometry, multiprocessors, most);
        // Gates and factors have tiles of one width.
        let least = if self.shape.columns == self.shape.narrow || geometry.gated {
            most
        } else {
            most.saturating_sub(MOST_NARROW)
        };
        for wide in (least..most).rev() {
            let cut = self.cut_at(geometry, multiprocessors, wide);
            if cut.time < best.time {
                best = cut;
            }
        }
        best
    }

    /// Plans the kernel that takes the least time by the table, rounds of tiles times what a tile takes, for results at y:
    /// address, row stride and batch stride; or, if `cooperative`, the cooperative one where it takes the layer. All have the
    /// same bits.
    pub(super) fn fastest(
        geometry: &Geometry,
        lay: Lay,
        y: [u64; 3],
        multiprocessors: u64,
        cooperative: bool,
    ) -> Result<Plan> {
        // The blocks of a cluster share a weight [k, n] by panels of 64 columns.
        let fits = |kernel: &Clustered| match lay {
            Lay::Nk => !kernel.shape.cooperative || geometry.k >= COOPERATIVE_DEPTH,
            _ => !kernel.shape.cooperative && (kernel.shape.columns / 64).is_multiple_of(kernel.shape.blocks),
        };
        let mut fastest = (CLUSTERED[0], CLUSTERED[0].cut(geometry, multiprocessors));
        for kernel in CLUSTERED.into_iter().skip(1).filter(fits) {
            let cut = kernel.cut(geometry, multiprocessors);
            if cut.time < fastest.1.time {
                fastest = (kernel, cut);
            }
        }
        if cooperative && lay == Lay::Nk {
            fastest = (COOPERATIVE, COOPERATIVE.cut(geometry, multiprocessors));
        }
        let (kernel, cut) = fastest;
        kernel.plan(geometry, lay, y, multiprocessors, cut)
    }

    fn plan(self, geometry: &Geometry, lay: Lay, y: [u64; 3], multiprocessors: u64, cut: Cut) -> Result<Plan> {
        let Clustered { name, shape, .. } = self;
        let entry = format!("linear_{name}_{}_{}", lay.name(), geometry.dtype);
        // Tiles of the narrow width are the most.
        let [rows, _, narrow] = shape.cluster_tile();
        let plan = Plan::of_tiles(geometry, entry, [rows, narrow], shape.shared())?;
        let plan = Plan {
            tiles_n: (cut.wide + cut.narrow) as u32,
            ..plan
        };
        let tiles = plan.few_tiles(geometry)?;
        let clusters = self.clusters(multiprocessors);
        Ok(Plan {
            grid: [tiles.min(clusters) * shape.blocks as u64, 1, 1],
            extra: Extra::Cluster(Cluster {
                maps: geometry.maps(lay, shape.box_rows(), shape.box_columns()),
                // Half of 192 columns are three boxes of 32.
                y: geometry.y_map(y, if geometry.gated && shape.columns == 192 { 32 } else { 64 }),
                group: GROUP,
                wide_n: cut.wide as u32,
                wide: (cut.wide * plan.tiles_m as u64 * geometry.batch) as u32,
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
