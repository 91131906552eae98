//! Arguments of the linear kernels, and the tile sizes that the host computes grids from.

use crate::{kernel_params, params::TensorMap, tile::division::Divisor};

/// [`LinearParams::activation`]: nothing.
pub const ACTIVATION_IDENTITY: u32 = 0;
/// [`LinearParams::activation`]: `max(z, 0)`.
pub const ACTIVATION_RELU: u32 = 1;
/// [`LinearParams::activation`]: `z · sigmoid(z)`.
pub const ACTIVATION_SILU: u32 = 2;
/// [`LinearParams::activation`]: `z · Φ(z)`.
pub const ACTIVATION_GELU_ERF: u32 = 3;
/// [`LinearParams::activation`]: GELU by the hyperbolic tangent.
pub const ACTIVATION_GELU_TANH: u32 = 4;

/// [`Operand::dtype`]: f32.
pub const DTYPE_F32: u32 = 0;
/// [`Operand::dtype`]: f16.
pub const DTYPE_F16: u32 = 1;
/// [`Operand::dtype`]: bf16.
pub const DTYPE_BF16: u32 = 2;

/// Threads of a block of `linear_any_*`.
pub const ANY_THREADS: u32 = 256;
/// Rows of its tile, and columns of the weight.
pub const ANY_TILE: u32 = 64;
/// Depth of its tile.
pub const ANY_DEPTH: u32 = 16;
/// Its dynamic shared memory, bytes: the accumulators on their way to the epilogue (the operands' tiles are smaller).
pub const ANY_SHARED: u32 = ANY_TILE * ANY_TILE * 4;

/// Depth of a stage of `linear_tiled*`.
pub const TILED_DEPTH: u32 = 32;
/// Stages of `linear_tiled*`.
pub const TILED_STAGES: u32 = 4;

/// Dynamic shared memory of `linear_tiled*` with tiles of `rows × columns`: the stages, which the accumulators replace.
pub const fn tiled_shared([rows, columns]: [u32; 2]) -> u32 {
    TILED_STAGES * (rows + columns) * TILED_DEPTH * 2
}

/// Threads of a block of `linear_streaming_*`; those with a number in their name have so many warps.
pub const STREAMING_THREADS: u32 = 256;
/// Rows that a block takes, 16-bit types.
pub const STREAMING_ROWS: u32 = 16;
/// Rows that a block takes, f32.
pub const STREAMING_F32_ROWS: u32 = 8;
/// Columns that a block takes of a weight `[n, k]`.
pub const STREAMING_NK_COLUMNS: u32 = 16;
/// Columns that a block takes of a 16-bit weight `[k, n]`.
pub const STREAMING_KN_COLUMNS: u32 = 64;
/// Columns that a block takes of an f32 weight `[k, n]`.
pub const STREAMING_KN_F32_COLUMNS: u32 = 128;

/// Dynamic shared memory of `linear_streaming*` for tiles of this size: a sum for each of `warps` warps.
pub const fn streaming_shared(rows: u32, columns: u32, warps: u32) -> u32 {
    warps * rows * columns * 4
}

/// Threads of a block of `linear_rows8_*`: eight warps, of which each takes a slice of k.
pub const ROWS8_THREADS: u32 = 256;
/// Depth of a load of `linear_rows*`, elements.
pub const ROWS_DEPTH: u32 = 64;
/// Slices that `linear_rows*` cut k into, at most: each is a sum of its own, and the sums are added in their order.
pub const ROWS_SLICES: u32 = 8;
/// Bytes of a stage of `linear_rows8_*`, of which each warp has its own.
pub const ROWS8_STAGE: u32 = STREAMING_NK_COLUMNS * ROWS_DEPTH * 2;
/// Most stages of a warp of `linear_rows8_*`.
pub const ROWS8_STAGES: u32 = 8;
/// [`StreamParams::norm`]: x as it is.
pub const NORM_NONE: u32 = 0;
/// [`StreamParams::norm`]: by the root of the mean square.
pub const NORM_RMS: u32 = 1;
/// [`StreamParams::norm`]: by mean and deviation.
pub const NORM_LAYER: u32 = 2;
/// Threads of a block of `linear_rows16_*` and `linear_rows64_*`.
pub const ROWS_THREADS: u32 = 128;
/// Columns of their tiles.
pub const ROWS_COLUMNS: u32 = 128;
/// Their stages.
pub const ROWS_STAGES: u32 = 4;
/// Words between rows of a tile's sums in shared memory: eight lanes of neighbouring columns and four of neighbouring rows
/// lie in different banks.
pub const ROWS_PITCH: u32 = ROWS_COLUMNS + 8;

/// Dynamic shared memory of `linear_rows{rows}_*`: stages, which the sums replace, and barriers.
pub const fn rows_shared(rows: u32) -> u32 {
    ROWS_STAGES * ((ROWS_COLUMNS + rows) * ROWS_DEPTH * 2 + 16)
}

/// Dynamic shared memory of `linear_norm_*` besides the row: where warps exchange sums.
pub const NORM_EXCHANGE: u32 = 128;

/// Bytes between rows of x in the shared memory of `linear_rows8_*`: whole loads, and half a line more, so that
/// neighbouring rows lie in different banks.
pub const fn rows8_pitch(k: u32) -> u32 {
    k.div_ceil(ROWS_DEPTH) * ROWS_DEPTH * 2 + 64
}

/// Dynamic shared memory of `linear_rows8_*`: rings of so many stages, their barriers, two sets of the warps' sums, the
/// exchange of norms, x.
pub const fn rows8_shared(stages: u32, rows: u32, k: u32) -> u32 {
    let warps = ROWS8_THREADS / 32;
    warps * stages * (ROWS8_STAGE + 8) + NORM_EXCHANGE + rows * (2 * warps * STREAMING_NK_COLUMNS * 4 + rows8_pitch(k))
}

/// Bytes of a slice's sums of a tile in the shared memory of `linear_staying16_*`: 16 columns of 16 rows.
pub const STAYING_SUMS: u32 = 16 * STREAMING_NK_COLUMNS * 4;
/// The same of all slices: a set.
pub const STAYING_SET: u32 = ROWS8_THREADS / 32 * STAYING_SUMS;

/// Dynamic shared memory of `linear_staying16_*`: rings of so many stages, x in boxes of [`ROWS_DEPTH`] × 16, two sets of
/// the slices' sums, the rings' barriers and theirs.
pub const fn staying16_shared(stages: u32, k: u32) -> u32 {
    ROWS8_THREADS / 32 * stages * (ROWS8_STAGE + 8)
        + 2 * STAYING_SET
        + k.div_ceil(ROWS_DEPTH) * 16 * ROWS_DEPTH * 2
        + 16
}

/// Stages of a warp of `linear_lanes8_*`.
pub const LANES_STAGES: u32 = 8;
/// Stages of a warp of `linear_lanes16_*`.
pub const LANES16_STAGES: u32 = 4;

/// Dynamic shared memory of `linear_lanes16_*`: rings, x, two sets of the slices' sums, their barriers.
pub const fn lanes16_shared(k: u32) -> u32 {
    ROWS8_THREADS / 32 * LANES16_STAGES * ROWS8_STAGE
        + 2 * STAYING_SET
        + k.div_ceil(ROWS_DEPTH) * 16 * ROWS_DEPTH * 2
        + 16
}

/// Columns of a tile of `linear_passing16_*`.
pub const PASSING16_COLUMNS: u32 = 2 * STREAMING_NK_COLUMNS;
/// Stages of one of its warps.
pub const PASSING16_STAGES: u32 = 4;

/// Dynamic shared memory of `linear_passing16_*`: rings with x in them, the slices' sums.
pub const fn passing16_shared() -> u32 {
    let tiles = PASSING16_COLUMNS / STREAMING_NK_COLUMNS;
    let stage = tiles * ROWS8_STAGE + 16 * ROWS_DEPTH * 2;
    ROWS8_THREADS / 32 * PASSING16_STAGES * stage + tiles * STAYING_SET
}

/// Most loads of a slice of `linear_lanes8_*`, whose lanes keep what they multiply of x in registers.
pub const LANES_DEPTH: u32 = 8;
/// The same of `linear_lanes8_deep_*`.
pub const LANES_DEEP: u32 = 16;

/// Dynamic shared memory of `linear_lanes8_*`: rings, two sets of the warps' sums.
pub const fn lanes_shared(rows: u32) -> u32 {
    let warps = ROWS8_THREADS / 32;
    warps * (LANES_STAGES * ROWS8_STAGE + 2 * rows * STREAMING_NK_COLUMNS * 4)
}

/// Dynamic shared memory of `linear_lanes8_norm_*`: the exchange of norms and x besides.
pub const fn lanes_norm_shared(rows: u32, k: u32) -> u32 {
    lanes_shared(rows) + NORM_EXCHANGE + rows * rows8_pitch(k)
}

/// Threads of a block of `linear_hopper*`: one warpgroup loads, two compute.
pub const HOPPER_THREADS: u32 = 384;
/// Rows of its tiles.
pub const HOPPER_ROWS: u32 = 128;
/// Depth of a stage.
pub const HOPPER_DEPTH: u32 = 64;
/// Bytes through which eight warps pass 16 rows of 64 accumulators each.
pub const HOPPER_STAGING: u32 = 8 * 16 * 64 * 4;

/// Stages of `linear_hopper*` with tiles of so many columns.
pub const fn hopper_stages(columns: u32) -> u32 {
    if columns == 256 { 4 } else { 6 }
}

/// Dynamic shared memory of `linear_hopper*` with tiles of so many columns: stages, staging, barriers.
pub const fn hopper_shared(columns: u32) -> u32 {
    let stages = hopper_stages(columns);
    stages * (HOPPER_ROWS + columns) * HOPPER_DEPTH * 2 + HOPPER_STAGING + stages * 16
}

/// How a kernel of `linear_cluster*` or `linear_cooperative*` cuts its problem.
#[derive(Clone, Copy, Debug)]
pub struct ClusterShape {
    /// Rows that a warpgroup computes at a time: 64 or 128.
    pub rows: u32,
    /// Columns of a block's tile: 128 or 192.
    pub columns: u32,
    /// Columns of the tiles behind those; as many where there are none.
    pub narrow: u32,
    /// Stages of operands; of x, if it has a ring of its own.
    pub stages: u32,
    /// Stages of the weight.
    pub weight_stages: u32,
    /// Blocks of a cluster, whose tiles lie below one another, or side by side if they are computed cooperatively.
    pub blocks: u32,
    /// Whether both warpgroups compute halves of a tile of twice the rows, and the cluster shares those of x.
    pub cooperative: bool,
    /// Boxes of 16 rows and 64 columns that each warp can have on their way to memory.
    pub buffers: u32,
}

impl ClusterShape {
    /// Columns of the weight's boxes: a block's part of a tile, or what divides that of both widths.
    pub const fn box_columns(self) -> u32 {
        match (self.columns == self.narrow, self.cooperative) {
            (true, false) => self.columns / self.blocks,
            (true, true) => self.columns,
            (false, false) => 32,
            (false, true) => 64,
        }
    }

    /// Rows of a block's tile.
    pub const fn block_rows(self) -> u32 {
        if self.cooperative { 2 * self.rows } else { self.rows }
    }

    /// Rows of x's boxes: a block's part of a tile.
    pub const fn box_rows(self) -> u32 {
        if self.cooperative {
            self.rows / self.blocks
        } else {
            self.rows
        }
    }

    /// Rows and columns of a cluster's tile, and columns of a narrow one.
    pub const fn cluster_tile(self) -> [u32; 3] {
        if self.cooperative {
            [self.block_rows(), self.columns * self.blocks, self.narrow * self.blocks]
        } else {
            [self.rows * self.blocks, self.columns, self.narrow]
        }
    }

    /// Dynamic shared memory of a block: stages, boxes on their way out, a bias for each of two warpgroups, barriers.
    pub const fn shared(self) -> u32 {
        let rings = if self.cooperative { 3 } else { 1 };
        (self.stages * self.block_rows() + self.weight_stages * self.columns) * HOPPER_DEPTH * 2
            + 2 * (4 * self.buffers * 16 * 128 + self.columns * 4)
            + rings * self.weight_stages * 16
    }
}

/// Few tiles.
pub const CLUSTER_64: ClusterShape = ClusterShape {
    rows: 64,
    columns: 128,
    narrow: 128,
    stages: 7,
    weight_stages: 7,
    blocks: 1,
    cooperative: false,
    buffers: 2,
};
/// Most problems.
pub const CLUSTER_128: ClusterShape = ClusterShape {
    rows: 128,
    columns: 128,
    narrow: 128,
    stages: 6,
    weight_stages: 6,
    blocks: 2,
    cooperative: false,
    buffers: 2,
};
/// Fewer bytes a product; narrow tiles fill the last rounds.
pub const CLUSTER_192: ClusterShape = ClusterShape {
    rows: 128,
    columns: 192,
    narrow: 128,
    stages: 4,
    weight_stages: 4,
    blocks: 2,
    cooperative: false,
    buffers: 4,
};
/// The fewest bytes a product, and an epilogue that nothing hides.
pub const COOPERATIVE_192: ClusterShape = ClusterShape {
    rows: 128,
    columns: 192,
    narrow: 128,
    stages: 3,
    weight_stages: 4,
    blocks: 2,
    cooperative: true,
    buffers: 2,
};
kernel_params! {
    /// Arguments of `linear_cluster*` and `linear_cooperative*`.
    pub struct ClusterParams {
        /// As for [`HopperParams`], the box's rows being those of a tile.
        pub x_map: TensorMap,
        /// As for [`HopperParams`], the box's columns being [`ClusterShape::box_columns`].
        pub w_map: TensorMap,
        /// `y` as (n, m, batch), box 64 × 16 × 1.
        pub y_map: TensorMap,
        /// Clusters' tiles of all problems; those of full width come first.
        pub pairs: u32,
        /// Steps along k.
        pub steps: u32,
        /// Those of full width among the tiles.
        pub wide: u32,
        /// Tiles of full width side by side, which are the first columns of each problem.
        pub wide_n: u32,
        /// Tiles of full width of a problem, and narrow ones.
        pub of_problem: [Divisor; 2],
        /// Tiles of full width, and narrow ones, of so many rows of clusters' tiles as are computed column by column.
        pub of_group: [Divisor; 2],
        /// Rows of clusters' tiles that are computed column by column, and those of a problem's last rows.
        pub group: [Divisor; 2],
        /// The arguments of all linear kernels; `tiles_m` counts a cluster's tiles, which lie below one another, as one, and
        /// `tiles_n` tiles of both widths.
        pub linear: LinearParams,
    }

    /// Arguments of the Hopper kernels.
    pub struct HopperParams {
        /// `x` as (k, m, batch), box 64 × 128 × 1.
        pub x_map: TensorMap,
        /// The weight. `[n, k]`: (k, n, batch), box 64 × columns × 1; gated: (k, 8, 2, n / 8, batch), box
        /// 64 × 8 × 2 × columns / 16 × 1. `[k, n]`: (n, k, batch), box 64 × 64 × 1.
        pub w_map: TensorMap,
        /// The arguments of all linear kernels.
        pub linear: LinearParams,
        /// Tiles of all problems.
        pub tiles: u32,
        /// Steps along k.
        pub steps: u32,
    }

    /// Arguments of `linear_rows*`.
    pub struct StreamParams {
        /// The weight `[n, k]` as (k, n, batch), box 64 × columns × 1; gated: (k, 8, 2, n / 8, batch), box
        /// 64 × 8 × 2 × columns / 16 × 1.
        pub w_map: TensorMap,
        /// `x` as (k, m, batch), box 64 × rows × 1; not for `linear_rows8_*`.
        pub x_map: TensorMap,
        /// The arguments of all linear kernels.
        pub linear: LinearParams,
        /// Factor of the norm in front, `k`, in the type of x.
        pub norm_weight: u64,
        /// Its summand, or 0.
        pub norm_bias: u64,
        /// Its ε.
        pub epsilon: f32,
        /// `NORM_*`.
        pub norm: u32,
        /// Stages of a ring.
        pub stages: u32,
        /// Loads of [`ROWS_DEPTH`] in a slice of k; the last slice may have fewer.
        pub depth: u32,
        /// Slices of k.
        pub slices: u32,
        /// Slices that are added to one another before others are.
        pub together: u32,
        /// 1: nothing writes the weight while kernels before this one still run, so its loads do not wait for them.
        pub early: u32,
        /// 1 / k.
        pub reciprocal: f32,
        /// Stages that are asked for before x is; the others follow it.
        pub ahead: u32,
        /// Fills the struct to a multiple of 8 bytes.
        pub reserved: u32,
    }

    /// Arguments of `linear_lanes*` and `linear_passing16_*`: what the first loads need lies in one line of constant memory.
    pub struct LanesParams {
        /// The weight, `[n, k]`.
        pub w: u64,
        /// Bytes from one of its rows to the next.
        pub w_row: u64,
        /// Bytes from a tile's first eight rows to the others.
        pub w_eight: u64,
        /// Bytes from one tile to the next.
        pub w_tile: u64,
        /// Bytes from problem to problem.
        pub w_batch: u64,
        /// Tiles of columns.
        pub tiles: u32,
        /// Loads of [`ROWS_DEPTH`] in a slice of k; the last slice may have fewer.
        pub depth: u32,
        /// Loads of all slices.
        pub loads: u32,
        /// 1: nothing writes the weight while kernels before this one still run, so its loads do not wait for them.
        pub early: u32,
        /// Rows of x.
        pub rows: u32,
        /// Slices that are added to one another before others are.
        pub together: u32,
        /// `x`, `m × k`.
        pub x: u64,
        /// Bytes from one of its rows to the next.
        pub x_row: u64,
        /// Bytes from problem to problem.
        pub x_batch: u64,
        /// Factor of the norm in front, `k`, in the type of x.
        pub norm_weight: u64,
        /// Its summand, or 0.
        pub norm_bias: u64,
        /// Its ε.
        pub epsilon: f32,
        /// `NORM_*`.
        pub norm: u32,
        /// 1 / k.
        pub reciprocal: f32,
        /// Stages that are asked for before x is; the others follow it.
        pub ahead: u32,
        /// The arguments of all linear kernels.
        pub linear: LinearParams,
    }

    /// Arguments of `linear_norm_*`.
    pub struct NormRowsParams {
        /// Rows, `k` elements each.
        pub x: u64,
        /// Normalised rows, dense.
        pub y: u64,
        /// Factor, `k`.
        pub weight: u64,
        /// Summand, `k`, or 0.
        pub bias: u64,
        /// Elements from one row of x to the next.
        pub x_row_stride: u64,
        /// Elements of a row, a multiple of 8.
        pub k: u32,
        /// ε.
        pub epsilon: f32,
        /// `NORM_*`, not `NORM_NONE`.
        pub norm: u32,
        /// 1 / k.
        pub reciprocal: f32,
    }

    /// A matrix of the epilogue: bias, residual, output or pre-activation.
    pub struct Operand {
        /// Address; 0 when there is none.
        pub address: u64,
        /// Elements from one row to the next (0 for a bias).
        pub row_stride: u64,
        /// Elements from one problem of a batch to the next.
        pub batch_stride: u64,
        /// `DTYPE_*`.
        pub dtype: u32,
        /// 1 when every eighth element of every row is aligned to 16 bytes.
        pub aligned: u32,
    }

    /// Arguments of the linear kernels.
    pub struct LinearParams {
        /// `x`, `m × k`.
        pub x: u64,
        /// Weight, `k × columns`, where `columns` is `n`, or `2n` when gated: first the gates, then their factors.
        pub w: u64,
        /// Rows of `x`.
        pub m: u64,
        /// Columns of `y`.
        pub n: u64,
        /// Depth of the product.
        pub k: u64,
        /// Elements of `x` from row to row.
        pub x_row_stride: u64,
        /// Elements of `x` from column to column.
        pub x_k_stride: u64,
        /// Elements of `x` from problem to problem.
        pub x_batch_stride: u64,
        /// Elements of the weight from one output feature to the next.
        pub w_n_stride: u64,
        /// Elements of the weight along k.
        pub w_k_stride: u64,
        /// Elements of the weight from problem to problem.
        pub w_batch_stride: u64,
        /// Bias, `columns`.
        pub bias: Operand,
        /// Added to the result, `m × n`.
        pub residual: Operand,
        /// The result, `m × n`.
        pub y: Operand,
        /// What enters the activation, `m × columns`.
        pub pre_activation: Operand,
        /// Tiles along m.
        pub tiles_m: u32,
        /// Tiles along n.
        pub tiles_n: u32,
        /// Factor of the product.
        pub alpha: f32,
        /// `ACTIVATION_*`.
        pub activation: u32,
        /// 1 for gated pairs.
        pub gated: u32,
        /// 0, which a compiler does not know; fills the struct to a multiple of 8 bytes.
        pub reserved: u32,
    }
}
