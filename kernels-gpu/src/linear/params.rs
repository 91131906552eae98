//! Arguments of the linear kernels, and the tile sizes that the host computes grids from.

use crate::kernel_params;

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

/// Threads of a block of `linear_tiled*`.
pub const TILED_THREADS: u32 = 128;
/// Depth of a stage of `linear_tiled*`.
pub const TILED_DEPTH: u32 = 32;
/// Stages of `linear_tiled*`.
pub const TILED_STAGES: u32 = 4;

/// Dynamic shared memory of `linear_tiled*` with tiles of `tile × tile`: the stages, which the accumulators replace.
pub const fn tiled_shared(tile: u32) -> u32 {
    let stages = TILED_STAGES * 2 * tile * TILED_DEPTH * 2;
    let accumulators = tile * tile * 4;
    if stages > accumulators { stages } else { accumulators }
}

kernel_params! {
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
        /// Fills the struct to a multiple of 8 bytes.
        pub reserved: u32,
    }
}
