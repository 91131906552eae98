//! Which kernel computes a layer.

use kernels_gpu::linear::{
    ANY_SHARED, ANY_TILE, HOPPER_DEPTH, HOPPER_ROWS, STREAMING_F32_ROWS, STREAMING_KN_COLUMNS,
    STREAMING_KN_F32_COLUMNS, STREAMING_NK_COLUMNS, STREAMING_ROWS, hopper_shared, streaming_shared, tiled_shared,
};

use super::{
    clustered::{Cluster, Clustered},
    problem::Geometry,
    rows::RowsPlan,
};
use crate::{
    DType, Device, Error, Result, Tier,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// A kind of kernel. Within one kind, a row's bits do not depend on the number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LinearMode {
    /// The fastest that takes the dtype and the layout, by a table of extents.
    #[default]
    Auto,
    /// FMA in f32: every dtype, any strides.
    Fma,
    /// Tensor cores by `mma.sync`: 16-bit types (bf16 from sm_80 on), operands aligned to 16 bytes.
    Tiled,
    /// The weights pass once for every 16 rows (8 in f32), at memory speed: for few rows.
    Streaming,
    /// Tensor cores by `wgmma` and loads by TMA: 16-bit types on Hopper.
    Hopper,
    /// As [`LinearMode::Hopper`] and with the same bits. What otherwise very deep layers take alone (CUTLASS's cooperative
    /// schedule instead of its ping-pong) is taken by all that it can compute: weights `[n, k]`, no residual, no
    /// pre-activation, results of the inputs' dtype.
    HopperCooperative,
}

impl LinearMode {
    /// All of them.
    pub const ALL: [LinearMode; 6] = [
        LinearMode::Auto,
        LinearMode::Fma,
        LinearMode::Tiled,
        LinearMode::Streaming,
        LinearMode::Hopper,
        LinearMode::HopperCooperative,
    ];
}

/// Rows up to which streaming the weights wins.
const STREAMED_ROWS: u64 = 16;

/// Columns from which on four warps a block occupy a large GPU.
const MANY_COLUMNS: u64 = 8192;

/// Tiles of `linear_tiled*`, and the time of one an element relative to the others by what was measured on an H200
/// (docs/performance/linear.md). The last is not for sm_75.
const TILED: [([u32; 2], u64); 3] = [([64, 64], 130), ([128, 128], 105), ([256, 128], 100)];

/// A kernel and its grid.
pub(super) struct Plan {
    pub(super) entry: String,
    pub(super) grid: [u64; 3],
    pub(super) shared: u64,
    pub(super) tiles_m: u32,
    pub(super) tiles_n: u32,
    pub(super) extra: Extra,
}

/// What a kernel is told beside the problem.
pub(super) enum Extra {
    /// Nothing.
    None,
    /// `linear_hopper*`: maps of x and of the weight.
    Hopper([TensorMapRequest; 2]),
    /// `linear_cluster*`.
    Cluster(Cluster),
    /// The kernels of few rows on Hopper.
    Rows(RowsPlan),
}

/// How x and the weight lie, where tensor cores can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lay {
    /// Both dense along k.
    Nk,
    /// x dense along k, the weight along n.
    Kn,
    /// x dense along m, the weight along n.
    Tn,
}

impl Lay {
    pub(super) fn name(self) -> &'static str {
        match self {
            Lay::Nk => "nk",
            Lay::Kn => "kn",
            Lay::Tn => "tn",
        }
    }
}

impl Plan {
    pub(super) fn new(geometry: &Geometry, mode: LinearMode, device: &Device) -> Result<Plan> {
        let tier = device.tier();
        let refuse = |why: String| Error::Unsupported {
            what: format!("linear in mode {mode:?}: {why}"),
            tier: Some(tier),
        };
        match mode {
            LinearMode::Fma => Plan::fma(geometry),
            LinearMode::Tiled => Plan::tiled(geometry, geometry.tiled(tier).map_err(refuse)?, device),
            LinearMode::Streaming => Plan::streaming(geometry, geometry.streaming(tier).map_err(refuse)?, device),
            LinearMode::Hopper | LinearMode::HopperCooperative => {
                let cooperative = mode == LinearMode::HopperCooperative;
                Plan::hopper(geometry, geometry.hopper(tier).map_err(refuse)?, device, cooperative)
            }
            LinearMode::Auto => Plan::fastest(geometry, device),
        }
    }

    fn fastest(geometry: &Geometry, device: &Device) -> Result<Plan> {
        let tier = device.tier();
        if geometry.m <= STREAMED_ROWS
            && let Ok(lay) = geometry.streaming(tier)
        {
            return Plan::streaming(geometry, lay, device);
        }
        if let Ok(lay) = geometry.hopper(tier) {
            return Plan::hopper(geometry, lay, device, false);
        }
        match geometry.tiled(tier) {
            Ok(lay) => Plan::tiled(geometry, lay, device),
            Err(why) => {
                if geometry.dtype != DType::F32 && geometry.k > 0 {
                    static ONCE: std::sync::Once = std::sync::Once::new();
                    ONCE.call_once(|| {
                        tracing::warn!("a linear layer runs by FMA instead of on tensor cores: {why} (said once)");
                    });
                }
                Plan::fma(geometry)
            }
        }
    }

    fn fma(geometry: &Geometry) -> Result<Plan> {
        let entry = format!("linear_any_{}", geometry.dtype);
        Plan::of_tiles(geometry, entry, [ANY_TILE, ANY_TILE], ANY_SHARED)
    }

    fn tiled(geometry: &Geometry, lay: Lay, device: &Device) -> Result<Plan> {
        // All sizes give the same bits. Time is rounds of tiles times what a tile takes.
        let multiprocessors = device.properties().multiprocessors as u64;
        let time = |&([rows, columns], percent): &([u32; 2], u64)| {
            let tiles = geometry.m.div_ceil(rows.into()) * geometry.columns().div_ceil(columns.into()) * geometry.batch;
            tiles
                .div_ceil(multiprocessors)
                .saturating_mul(u64::from(rows * columns) * percent)
        };
        let sizes = if device.tier() == Tier::Sm75 {
            &TILED[..2]
        } else {
            &TILED[..]
        };
        let tile = sizes
            .iter()
            .min_by_key(|size| time(size))
            .map_or(TILED[0].0, |size| size.0);
        let entry = format!("linear_tiled{}_{}_{}", tile[0], lay.name(), geometry.dtype);
        Plan::of_tiles(geometry, entry, tile, tiled_shared(tile))
    }

    fn streaming(geometry: &Geometry, lay: Lay, device: &Device) -> Result<Plan> {
        if let Some(rows) = RowsPlan::new(geometry, lay, device) {
            return rows.plan(geometry, device);
        }
        let f32 = geometry.dtype == DType::F32;
        let rows = if f32 { STREAMING_F32_ROWS } else { STREAMING_ROWS };
        let columns = match (lay, f32) {
            (Lay::Nk, _) => STREAMING_NK_COLUMNS,
            (_, true) => STREAMING_KN_F32_COLUMNS,
            (_, false) => STREAMING_KN_COLUMNS,
        };
        // Both have the same bits.
        let few = geometry.m <= u64::from(STREAMING_ROWS / 2);
        // Warps that share k. The order of a sum depends on it, so it follows from the weight alone.
        let (warps, name) = match (lay, f32) {
            (Lay::Nk, false) if geometry.columns() >= MANY_COLUMNS => (4, if few { "4_few" } else { "4" }),
            (Lay::Nk, false) => (16, if few { "16_few" } else { "16" }),
            _ => (8, ""),
        };
        let entry = format!("linear_streaming{name}_{}_{}", lay.name(), geometry.dtype);
        Plan::of_tiles(geometry, entry, [rows, columns], streaming_shared(rows, columns, warps))
    }

    fn hopper(geometry: &Geometry, lay: Lay, device: &Device, cooperative: bool) -> Result<Plan> {
        let multiprocessors = device.properties().multiprocessors as u64;
        if let Some(y) = geometry.y {
            return Clustered::fastest(geometry, lay, y, multiprocessors, cooperative);
        }
        let tiles = |columns: u32| {
            geometry.m.div_ceil(HOPPER_ROWS as u64) * geometry.columns().div_ceil(columns as u64) * geometry.batch
        };
        // Both widths give the same bits. Time is rounds of tiles times what a tile takes; the narrow one loads more
        // bytes a product.
        let time = |columns: u32, percent: u64| {
            tiles(columns)
                .div_ceil(multiprocessors)
                .saturating_mul(columns as u64 * percent)
        };
        let columns = if time(256, 100) <= time(128, 115) { 256 } else { 128 };
        let entry = format!("linear_hopper{columns}_{}_{}", lay.name(), geometry.dtype);
        let plan = Plan::of_tiles(geometry, entry, [HOPPER_ROWS, columns], hopper_shared(columns))?;
        let tiles = plan.few_tiles(geometry)?;
        Ok(Plan {
            grid: [tiles.min(multiprocessors), 1, 1],
            extra: Extra::Hopper(geometry.maps(lay, HOPPER_ROWS, columns)),
            ..plan
        })
    }

    /// Tiles of all problems.
    pub(super) fn tiles(&self, geometry: &Geometry) -> u64 {
        self.tiles_m as u64 * self.tiles_n as u64 * geometry.batch
    }

    /// Tiles of all problems, which a kernel counts in 32 bits.
    pub(super) fn few_tiles(&self, geometry: &Geometry) -> Result<u64> {
        let tiles = self.tiles(geometry);
        if tiles > i32::MAX as u64 {
            return Err(Error::range("m", geometry.m, "fewer than 2^31 tiles of the product"));
        }
        Ok(tiles)
    }

    /// A block a tile of so many rows and columns of the weight.
    pub(super) fn of_tiles(geometry: &Geometry, entry: String, [rows, columns]: [u32; 2], shared: u32) -> Result<Plan> {
        let outputs = if geometry.gated { columns / 2 } else { columns };
        let tiles = |argument, extent: u64, tile: u32| {
            u32::try_from(extent.div_ceil(tile as u64)).map_err(|_| Error::range(argument, extent, "below 2^35"))
        };
        let (tiles_m, tiles_n) = (tiles("m", geometry.m, rows)?, tiles("n", geometry.n, outputs)?);
        Ok(Plan {
            entry,
            grid: [tiles_m as u64 * tiles_n as u64, 1, geometry.batch],
            shared: shared as u64,
            tiles_m,
            tiles_n,
            extra: Extra::None,
        })
    }
}

impl Geometry {
    /// Columns of the weight.
    pub(super) fn columns(&self) -> u64 {
        if self.gated { 2 * self.n } else { self.n }
    }

    /// How tensor cores take the operands, or why they cannot.
    fn tiled(&self, tier: Tier) -> Result<Lay, String> {
        if self.dtype == DType::F32 {
            return Err("f32 runs by FMA".into());
        }
        if self.dtype == DType::BF16 && tier == Tier::Sm75 {
            return Err("bf16 tensor cores begin with sm_80".into());
        }
        if self.k == 0 {
            return Err("there is nothing to multiply".into());
        }
        let [_, x_row, x_k, x_batch] = self.x;
        let [_, w_n, w_k, w_batch] = self.w;
        // Dense along one axis, and steps along the others that keep 16-byte chunks aligned. A stride over an extent
        // of 1 is never taken.
        let takes = |address: u64, dense: (u64, u64), other: (u64, u64), batch: u64| {
            let along = dense.1 == 1 || dense.0 == 1;
            let aligned = |(stride, extent): (u64, u64)| extent == 1 || stride % 8 == 0;
            along && address.is_multiple_of(16) && aligned(other) && aligned((batch, self.batch))
        };
        let (x_address, w_address) = (self.x[0], self.w[0]);
        let (m, n, k) = (self.m, self.columns(), self.k);
        let x_along_k = takes(x_address, (x_k, k), (x_row, m), x_batch);
        let x_along_m = takes(x_address, (x_row, m), (x_k, k), x_batch);
        let w_along_k = takes(w_address, (w_k, k), (w_n, n), w_batch);
        // The second half of a pair begins n columns on.
        let w_along_n = takes(w_address, (w_n, n), (w_k, k), w_batch) && (!self.gated || self.n.is_multiple_of(8));
        match (x_along_k, x_along_m, w_along_k, w_along_n) {
            (true, _, true, _) => Ok(Lay::Nk),
            (true, _, _, true) => Ok(Lay::Kn),
            (_, true, _, true) => Ok(Lay::Tn),
            _ => Err(format!(
                "rows of x (strides {x_row} and {x_k}) and of w (strides {w_n} and {w_k}) must be dense along k, or \
                 both dense across it, and aligned to 16 bytes"
            )),
        }
    }

    /// How the streaming kernels take the operands, or why they cannot.
    fn streaming(&self, tier: Tier) -> Result<Lay, String> {
        let vector = 16 / self.dtype.size();
        if self.dtype != DType::F32 {
            let lay = self.tiled(tier)?;
            if lay == Lay::Tn {
                return Err("x must be dense along k".into());
            }
            if !self.k.is_multiple_of(8) {
                return Err(format!("k = {} must be a multiple of 8", self.k));
            }
            // Their weights come by TMA.
            if lay == Lay::Nk && tier == Tier::Sm90a {
                if self.gated && !self.n.is_multiple_of(8) {
                    return Err(format!("n = {} of gated pairs must be a multiple of 8", self.n));
                }
                if [self.m, self.columns(), self.k, self.batch]
                    .iter()
                    .any(|&extent| extent >= 1 << 31)
                {
                    return Err("extents must be below 2^31".into());
                }
            }
            if lay == Lay::Kn && !self.columns().is_multiple_of(8) {
                return Err(format!("{} columns of w must be a multiple of 8", self.columns()));
            }
            return Ok(lay);
        }
        let aligned = |(stride, extent): (u64, u64)| extent == 1 || stride % vector == 0;
        let [w_address, w_n, w_k, w_batch] = self.w;
        let [x_address, x_row, x_k, x_batch] = self.x;
        let batch = aligned((w_batch, self.batch));
        if self.k == 0 || x_k != 1 || w_address % 16 != 0 || !batch {
            return Err("x must be dense along k, and w aligned to 16 bytes".into());
        }
        let x_vectors = x_address % 16 == 0
            && aligned((x_row, self.m))
            && aligned((x_batch, self.batch))
            && self.k.is_multiple_of(vector);
        if w_k == 1 && aligned((w_n, self.columns())) && x_vectors {
            return Ok(Lay::Nk);
        }
        if w_n == 1
            && aligned((w_k, self.k))
            && self.columns().is_multiple_of(vector)
            && (!self.gated || self.n.is_multiple_of(8))
        {
            return Ok(Lay::Kn);
        }
        Err("rows of x and w must be dense and aligned to 16 bytes".into())
    }

    /// How TMA takes the operands, or why it cannot.
    fn hopper(&self, tier: Tier) -> Result<Lay, String> {
        if tier != Tier::Sm90a {
            return Err("wgmma exists on sm_90a alone".into());
        }
        let lay = self.tiled(tier)?;
        let limit = 1 << 31;
        match lay {
            Lay::Tn => Err("x must be dense along k".into()),
            Lay::Kn if self.gated => Err("gated pairs need a weight that is dense along k".into()),
            Lay::Nk if self.gated && !self.n.is_multiple_of(8) => {
                Err(format!("n = {} must be a multiple of 8", self.n))
            }
            _ if self.m >= limit || self.columns() >= limit || self.k >= limit || self.batch >= limit => {
                Err("extents must be below 2^31".into())
            }
            lay => Ok(lay),
        }
    }

    /// Tensor maps of x and of the weight for boxes of so many rows and columns.
    pub(super) fn maps(&self, lay: Lay, rows: u32, columns: u32) -> [TensorMapRequest; 2] {
        // A stride over an extent of 1 is never taken, but has to obey the rules.
        let bytes = |stride: u64, extent: u64| if extent == 1 { 16 } else { stride * 2 };
        let request = |address, extents: &[u64], strides: &[u64], box_extents: &[u32]| TensorMapRequest {
            dtype: self.dtype,
            address,
            extents: extents.to_vec(),
            strides: strides.to_vec(),
            box_extents: box_extents.to_vec(),
            swizzle: Swizzle::B128,
        };
        let [x_address, x_row, _, x_batch] = self.x;
        let [w_address, w_n, w_k, w_batch] = self.w;
        let (m, n, k, batch) = (self.m, self.columns(), self.k, self.batch);
        let w_batches = if w_batch == 0 { 1 } else { batch };
        let x = request(
            x_address,
            &[k, m, batch],
            &[bytes(x_row, m), bytes(x_batch, batch)],
            &[HOPPER_DEPTH, rows, 1],
        );
        let w_batch_bytes = bytes(w_batch, w_batches);
        let w = match (lay, self.gated) {
            (Lay::Nk, true) => request(
                w_address,
                &[k, 8, 2, self.n / 8, w_batches],
                &[w_n * 2, self.n * w_n * 2, 8 * w_n * 2, w_batch_bytes],
                &[HOPPER_DEPTH, 8, 2, columns / 16, 1],
            ),
            (Lay::Nk, false) => request(
                w_address,
                &[k, n, w_batches],
                &[bytes(w_n, n), w_batch_bytes],
                &[HOPPER_DEPTH, columns, 1],
            ),
            _ => request(
                w_address,
                &[n, k, w_batches],
                &[bytes(w_k, k), w_batch_bytes],
                &[64, HOPPER_DEPTH, 1],
            ),
        };
        [x, w]
    }
}
