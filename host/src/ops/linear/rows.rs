//! Few rows on Hopper: which kernel, and in which order k is added up.

use kernels_gpu::linear::{
    LANES_DEEP, LANES_DEPTH, LANES_STAGES, LANES16_STAGES, PASSING16_COLUMNS, PASSING16_STAGES, ROWS_COLUMNS,
    ROWS_DEPTH, ROWS_SLICES, ROWS8_STAGE, ROWS8_STAGES, STREAMING_NK_COLUMNS, lanes_norm_shared, lanes_shared,
    lanes16_shared, passing16_shared, rows_shared, rows8_shared, staying16_shared,
};

use super::{
    plan::{Extra, Lay, Plan},
    problem::Geometry,
};
use crate::{DType, Device, Result, Tier, tensor_map::TensorMapRequest};

/// Most rows of `linear_rows8_*`.
const ROWS8: u64 = 8;
/// Most rows of `linear_staying16_*`.
const STAYING: u64 = 16;
/// Loads of a slice from which on `linear_staying16_*` are known to be faster than clusters.
const STAYING_DEPTH: u32 = 4;
/// Stages without which `linear_staying16_*` would wait for each load.
const STAYING_STAGES: u32 = 3;
/// Shared memory of a block, at least: a multiprocessor holds one such block. The blocks of the next kernel come as those of
/// this one leave; if two had room, the first multiprocessors to be free would get two, and others none.
const LEAST_SHARED: u32 = 117 << 10;
/// And at most, so that blocks of attention have room beside it, unless x needs more.
const MOST_SHARED: u32 = 158 << 10;
/// Stages below which x needs more.
const ENOUGH_STAGES: u32 = 4;
/// Bytes of a weight that are asked for at once, before x.
const LITTLE: u64 = 5 << 20;
/// Stages of which half a weight's loads may be asked for before x, unless a slice is deep.
const AHEAD: u64 = 4;
/// Shared memory of a block of `linear_staying16_*`, unless x needs more: further stages gained nothing.
const MOST_STAYING: u32 = 212 << 10;
/// Blocks that a large GPU holds at a time, two a multiprocessor.
const MANY_BLOCKS: u64 = 264;
/// Blocks that leave few of them with one.
const FULL_BLOCKS: u64 = 240;
/// Loads of a block from which on a cluster of eight pays: it takes longer to meet than one of four.
const DEEP_LOADS: u32 = 16;

/// The kernels with x in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lanes {
    Plain,
    Deep,
    /// With a norm in front.
    Norm,
}

/// The kernels of few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `linear_rows8_*`: blocks stay and take tiles in turn, with x in their shared memory; the norm in front too.
    Rows8,
    /// `linear_lanes8_*`: the same with x in registers.
    Lanes8(Lanes),
    /// `linear_passing16_*`: 9 to 16 rows, a block a tile of twice the columns; x passes through the rings.
    Passing16,
    /// `linear_lanes16_*`: 9 to 16 rows, with x in shared memory; like `Lanes8`, each lane copies its own part.
    Lanes16,
    /// `linear_staying16_*`: 9 to 16 rows, with x in shared memory; all comes by TMA.
    Staying16,
    /// `linear_rows16_*` and `linear_rows64_*`: so many rows at a time, the parts of k a cluster.
    Clusters(u32),
}

/// What the kernels of few rows on Hopper are told beside the problem.
#[derive(Clone, Debug)]
pub(super) struct RowsPlan {
    kind: Kind,
    /// For those that load by TMA.
    pub(super) maps: Option<RowsMaps>,
    /// Stages of a warp's ring, of blocks that stay.
    pub(super) stages: u32,
    /// Those of them that are asked for before x.
    pub(super) ahead: u32,
    pub(super) order: Order,
    shared: u32,
}

/// Tensor maps of the kernels of few rows.
#[derive(Clone, Debug)]
pub(super) struct RowsMaps {
    pub(super) w: TensorMapRequest,
    /// For those that load x by TMA too.
    pub(super) x: Option<TensorMapRequest>,
}

/// The order in which k is added up: it follows from the weight alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    /// Loads of a slice.
    pub(super) depth: u32,
    /// Slices.
    pub(super) slices: u32,
    /// Slices that are added to one another first: those that a block of a cluster takes.
    pub(super) together: u32,
}

impl Lanes {
    /// What it adds to the kernel's name.
    fn suffix(self) -> &'static str {
        match self {
            Lanes::Plain => "",
            Lanes::Deep => "_deep",
            Lanes::Norm => "_norm",
        }
    }
}

impl Order {
    fn new(columns: u64, k: u64) -> Order {
        let loads = k.div_ceil(ROWS_DEPTH.into()) as u32;
        let depth = loads.div_ceil(ROWS_SLICES);
        let tiles = columns.div_ceil(ROWS_COLUMNS.into());
        let blocks = |parts: u32| tiles * u64::from(parts);
        let parts = if blocks(8) <= MANY_BLOCKS && loads >= 8 * DEEP_LOADS {
            8
        } else if blocks(4) <= MANY_BLOCKS {
            4
        } else if (FULL_BLOCKS..=MANY_BLOCKS).contains(&blocks(2)) {
            2
        } else {
            1
        };
        Order {
            depth,
            slices: loads.div_ceil(depth),
            together: ROWS_SLICES / parts,
        }
    }

    /// Blocks of a cluster.
    fn parts(self) -> u32 {
        ROWS_SLICES / self.together
    }
}

impl RowsPlan {
    /// For a problem that the streaming kernels take, unless it is one of the others'.
    pub(super) fn new(geometry: &Geometry, lay: Lay, device: &Device) -> Option<RowsPlan> {
        if device.tier() != Tier::Sm90a || geometry.dtype == DType::F32 || lay != Lay::Nk {
            return None;
        }
        let order = Order::new(geometry.columns(), geometry.k);
        let maps = |rows: u32, columns: u32, with_x: bool| {
            let [x, w] = geometry.maps(lay, rows, columns);
            RowsMaps {
                w,
                x: with_x.then_some(x),
            }
        };
        let Some((kind, stages, shared)) = staying(geometry, order, device) else {
            let rows = if geometry.m <= 16 { 16 } else { 64 };
            return Some(RowsPlan {
                kind: Kind::Clusters(rows),
                maps: Some(maps(rows, ROWS_COLUMNS, true)),
                stages: 0,
                ahead: 0,
                order,
                shared: rows_shared(rows),
            });
        };
        let ahead = ahead(geometry, order, stages, device);
        let (ahead, by_tma, x_too) = match kind {
            // The last stage of a full ring would hold up x.
            Kind::Staying16 => (ahead.min(stages - 1), true, true),
            Kind::Rows8 => (ahead, true, false),
            // A norm takes time that the rest of the loads can have.
            Kind::Lanes8(Lanes::Norm) => (ahead, false, false),
            _ => (stages, false, false),
        };
        Some(RowsPlan {
            kind,
            maps: by_tma.then(|| maps(STAYING as u32, STREAMING_NK_COLUMNS, x_too)),
            stages,
            ahead,
            order,
            shared: shared.max(LEAST_SHARED),
        })
    }

    /// Whether the kernel normalises rows itself.
    pub(super) fn normalises(&self) -> bool {
        matches!(self.kind, Kind::Rows8 | Kind::Lanes8(Lanes::Norm))
    }

    /// Blocks of a cluster.
    pub(super) fn cluster(&self) -> u32 {
        match self.kind {
            Kind::Clusters(_) => self.order.parts(),
            _ => 1,
        }
    }

    pub(super) fn plan(self, geometry: &Geometry, device: &Device) -> Result<Plan> {
        let (kernel, rows, columns) = match self.kind {
            Kind::Rows8 => ("rows8".to_owned(), ROWS8 as u32, STREAMING_NK_COLUMNS),
            Kind::Lanes8(lanes) => (format!("lanes8{}", lanes.suffix()), ROWS8 as u32, STREAMING_NK_COLUMNS),
            Kind::Passing16 => ("passing16".to_owned(), STAYING as u32, PASSING16_COLUMNS),
            Kind::Lanes16 => ("lanes16".to_owned(), STAYING as u32, STREAMING_NK_COLUMNS),
            Kind::Staying16 => ("staying16".to_owned(), STAYING as u32, STREAMING_NK_COLUMNS),
            Kind::Clusters(rows) => (format!("rows{rows}"), rows, ROWS_COLUMNS),
        };
        let entry = format!("linear_{kernel}_nk_{}", geometry.dtype);
        let plan = Plan::of_tiles(geometry, entry, [rows, columns], self.shared)?;
        let [tiles, ..] = plan.grid;
        let blocks = match self.kind {
            Kind::Clusters(_) => tiles * u64::from(self.cluster()),
            _ => tiles.min(device.properties().multiprocessors.into()),
        };
        Ok(Plan {
            grid: [blocks, 1, geometry.batch],
            extra: Extra::Rows(self),
            ..plan
        })
    }
}

/// The kernel whose blocks stay, or pass, that takes a problem; its stages and its shared memory.
fn staying(geometry: &Geometry, order: Order, device: &Device) -> Option<(Kind, u32, u32)> {
    if let Some((lanes, shared)) = lanes_of(geometry, order) {
        return Some((Kind::Lanes8(lanes), LANES_STAGES, shared));
    }
    if geometry.m <= ROWS8
        && let Some((stages, shared)) = stages_of_rows8(geometry, device)
    {
        return Some((Kind::Rows8, stages, shared));
    }
    if geometry.m > STAYING || order.depth < STAYING_DEPTH {
        return None;
    }
    if passes(geometry, device) {
        return Some((Kind::Passing16, PASSING16_STAGES, passing16_shared()));
    }
    if let Some(shared) = shared_of_lanes16(geometry, device) {
        return Some((Kind::Lanes16, LANES16_STAGES, shared));
    }
    stages_of_staying16(geometry, device).map(|(stages, shared)| (Kind::Staying16, stages, shared))
}

/// Whether all tiles of so many columns, and all loads, of a weight are whole.
fn is_whole(geometry: &Geometry, columns: u32) -> bool {
    geometry.columns().is_multiple_of(columns.into()) && geometry.k.is_multiple_of(ROWS_DEPTH.into())
}

/// Whether `linear_passing16_*` take a problem: tiles and loads are whole, and tiles are one for each multiprocessor, or
/// nearly.
fn passes(geometry: &Geometry, device: &Device) -> bool {
    let tiles = geometry.columns() / u64::from(PASSING16_COLUMNS) * geometry.batch;
    let multiprocessors = u64::from(device.properties().multiprocessors);
    is_whole(geometry, PASSING16_COLUMNS)
        && tiles <= multiprocessors
        && 10 * tiles >= 9 * multiprocessors
        && passing16_shared() <= device.properties().shared_per_block
}

/// The kernel of `linear_lanes8_*` that takes a problem, and its shared memory: tiles and loads are whole, and x has room.
fn lanes_of(geometry: &Geometry, order: Order) -> Option<(Lanes, u32)> {
    if geometry.m > ROWS8 || !is_whole(geometry, STREAMING_NK_COLUMNS) {
        return None;
    }
    let rows = geometry.m as u32;
    if geometry.normed {
        let fits = order.depth <= LANES_DEPTH;
        let shared = fits.then(|| lanes_norm_shared(rows, geometry.k as u32))?;
        return (shared <= MOST_SHARED).then_some((Lanes::Norm, shared));
    }
    let lanes = if order.depth <= LANES_DEPTH {
        Lanes::Plain
    } else {
        Lanes::Deep
    };
    (order.depth <= LANES_DEEP).then_some((lanes, lanes_shared(rows)))
}

/// Shared memory of `linear_lanes16_*`, if tiles and loads are whole and x has room.
fn shared_of_lanes16(geometry: &Geometry, device: &Device) -> Option<u32> {
    if geometry.k > 1 << 17 || !is_whole(geometry, STREAMING_NK_COLUMNS) {
        return None;
    }
    let shared = lanes16_shared(geometry.k as u32);
    (shared <= device.properties().shared_per_block).then_some(shared)
}

/// Stages and shared memory of `linear_rows8_*`, if x has room beside them.
fn stages_of_rows8(geometry: &Geometry, device: &Device) -> Option<(u32, u32)> {
    // More than a block's shared memory in any case.
    if geometry.k > 1 << 17 {
        return None;
    }
    let shared = |stages: u32| rows8_shared(stages, geometry.m as u32, geometry.k as u32);
    let most = |limit: u32| (1..=ROWS8_STAGES).rev().find(|&stages| shared(stages) <= limit);
    let stages = most(MOST_SHARED)
        .filter(|&stages| stages >= ENOUGH_STAGES)
        .or_else(|| most(device.properties().shared_per_block))?;
    Some((stages, shared(stages)))
}

/// Stages and shared memory of `linear_staying16_*`, if x leaves room for enough.
fn stages_of_staying16(geometry: &Geometry, device: &Device) -> Option<(u32, u32)> {
    if geometry.k > 1 << 17 {
        return None;
    }
    let shared = |stages: u32| staying16_shared(stages, geometry.k as u32);
    let most = |limit: u32| {
        (STAYING_STAGES..=ROWS8_STAGES)
            .rev()
            .find(|&stages| shared(stages) <= limit)
    };
    let limit = device.properties().shared_per_block;
    let stages = most(MOST_STAYING.min(limit)).or_else(|| most(limit))?;
    Some((stages, shared(stages)))
}

/// Stages that blocks that stay ask for before x, which waits behind them: half of the weight, but few enough for x to come
/// soon, and all where the weight is small.
fn ahead(geometry: &Geometry, order: Order, stages: u32, device: &Device) -> u32 {
    let bytes = geometry.columns() * geometry.k * geometry.dtype.size();
    if bytes <= LITTLE {
        return stages;
    }
    let tiles = geometry.columns().div_ceil(STREAMING_NK_COLUMNS.into());
    let blocks = tiles.min(device.properties().multiprocessors.into()).max(1);
    let half = bytes / 2 / (blocks * u64::from(ROWS_SLICES * ROWS8_STAGE));
    let most = AHEAD.max(u64::from(order.depth) / 2);
    (half.clamp(2, most) as u32).min(stages)
}
