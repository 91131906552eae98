//! Which kernel computes a layer.

use kernels_gpu::linear::{ANY_SHARED, ANY_TILE, tiled_shared};

use super::problem::Geometry;
use crate::{DType, Device, Error, Result, Tier};

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
}

impl LinearMode {
    /// All of them.
    pub const ALL: [LinearMode; 3] = [LinearMode::Auto, LinearMode::Fma, LinearMode::Tiled];
}

/// A kernel and its grid.
pub(super) struct Plan {
    pub(super) entry: String,
    pub(super) grid: [u64; 3],
    pub(super) shared: u64,
    pub(super) tiles_m: u32,
    pub(super) tiles_n: u32,
}

/// How x and the weight lie, where tensor cores can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lay {
    /// Both dense along k.
    Nk,
    /// x dense along k, the weight along n.
    Kn,
    /// x dense along m, the weight along n.
    Tn,
}

impl Lay {
    fn name(self) -> &'static str {
        match self {
            Lay::Nk => "nk",
            Lay::Kn => "kn",
            Lay::Tn => "tn",
        }
    }
}

impl Plan {
    pub(super) fn new(geometry: &Geometry, mode: LinearMode, device: &Device) -> Result<Plan> {
        let tiled = geometry.tiled(device.tier());
        match (mode, tiled) {
            (LinearMode::Fma, _) => Plan::fma(geometry),
            (LinearMode::Auto | LinearMode::Tiled, Ok(lay)) => Plan::tiled(geometry, lay, device),
            (LinearMode::Tiled, Err(why)) => Err(Error::Unsupported {
                what: format!("linear in mode Tiled: {why}"),
                tier: Some(device.tier()),
            }),
            (LinearMode::Auto, Err(why)) => {
                if geometry.dtype != DType::F32 && geometry.m > 1 {
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
        let tile = ANY_TILE as u64;
        let entry = format!("linear_any_{}", geometry.dtype);
        Plan::of_tiles(geometry, entry, tile, ANY_SHARED)
    }

    fn tiled(geometry: &Geometry, lay: Lay, device: &Device) -> Result<Plan> {
        // Both sizes give the same bits. The large one needs enough tiles to occupy the device.
        let tiles = geometry.m.div_ceil(128) * geometry.columns().div_ceil(128) * geometry.batch;
        let tile = if tiles >= device.properties().multiprocessors as u64 {
            128
        } else {
            64
        };
        let entry = format!("linear_tiled{tile}_{}_{}", lay.name(), geometry.dtype);
        Plan::of_tiles(geometry, entry, tile as u64, tiled_shared(tile))
    }

    fn of_tiles(geometry: &Geometry, entry: String, tile: u64, shared: u32) -> Result<Plan> {
        let outputs = if geometry.gated { tile / 2 } else { tile };
        let (tiles_m, tiles_n) = (geometry.m.div_ceil(tile), geometry.n.div_ceil(outputs));
        let narrow =
            |argument, tiles: u64| u32::try_from(tiles).map_err(|_| Error::range(argument, tiles * tile, "below 2^37"));
        Ok(Plan {
            entry,
            grid: [tiles_m.saturating_mul(tiles_n), 1, geometry.batch],
            shared: shared as u64,
            tiles_m: narrow("m", tiles_m)?,
            tiles_n: narrow("n", tiles_n)?,
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
            along && address % 16 == 0 && aligned(other) && aligned((batch, self.batch))
        };
        let (x_address, w_address) = (self.x[0], self.w[0]);
        let (m, n, k) = (self.m, self.columns(), self.k);
        let x_along_k = takes(x_address, (x_k, k), (x_row, m), x_batch);
        let x_along_m = takes(x_address, (x_row, m), (x_k, k), x_batch);
        let w_along_k = takes(w_address, (w_k, k), (w_n, n), w_batch);
        // The second half of a pair begins n columns on.
        let w_along_n = takes(w_address, (w_n, n), (w_k, k), w_batch) && (!self.gated || self.n % 8 == 0);
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
}
