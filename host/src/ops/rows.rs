//! What the row ops share: a tensor as a matrix of rows, and which kernel takes rows of a length.

use kernels_gpu::row::{
    BLOCK_COLUMNS, EXCHANGE_BYTES, LARGE_COLUMNS, PAIR_BLOCK_COLUMNS, PAIR_LARGE_COLUMNS, PAIR_WARP_COLUMNS,
    SLICE_BLOCKS, WARP_COLUMNS, WARP_ROWS, WIDE_COLUMNS, slices_bytes,
};

use super::contiguous;
use crate::{AnyTensor, DType, Device, Error, Result, Tier};

/// A tensor viewed as rows: its last axis, and all others together.
pub(crate) struct Rows {
    /// `[rows, columns]`, dense along the columns.
    pub view: AnyTensor,
    pub rows: u64,
    pub columns: u64,
    /// Elements from one row to the next.
    pub stride: u64,
}

impl Rows {
    /// Views `tensor` as rows. Where its strides do not allow that, it is copied.
    pub fn of(argument: &'static str, tensor: &AnyTensor) -> Result<Rows> {
        let Some((&columns, outer)) = tensor.shape().split_last() else {
            return Err(Error::shape(
                argument,
                tensor.shape(),
                "at least one axis is needed: the row",
            ));
        };
        if columns > i32::MAX as u64 {
            return Err(Error::shape(
                argument,
                tensor.shape(),
                format!("rows of at most {} elements", i32::MAX),
            ));
        }
        let rows = outer.iter().product();
        let matrix = [rows, columns];
        let dense = |view: &AnyTensor| columns <= 1 || view.strides()[1] == 1;
        let view = match tensor.reshape(&matrix) {
            Ok(view) if dense(&view) => view,
            _ => {
                tracing::debug!("{argument}: {tensor:?} has no dense rows and is copied");
                contiguous(tensor)?.reshape(&matrix)?
            }
        };
        Ok(Rows {
            rows,
            columns,
            stride: view.strides()[0],
            view,
        })
    }

    /// As [`Rows::of`] of a tensor that is written: it is not copied.
    pub fn written(argument: &'static str, tensor: &AnyTensor) -> Result<Rows> {
        let columns = tensor.shape().last().copied().unwrap_or(1);
        let outer: u64 = tensor.shape().iter().rev().skip(1).product();
        let view = tensor.reshape(&[outer, columns])?;
        if columns > 1 && view.strides()[1] != 1 {
            return Err(Error::layout(argument, "is written, so its last axis must be dense"));
        }
        Rows::of(argument, &view)
    }

    /// Whether every row starts at a multiple of 16 bytes.
    pub fn aligned(&self) -> bool {
        self.view.address().is_multiple_of(16)
            && (self.rows <= 1 || (self.stride * self.view.dtype().size()).is_multiple_of(16))
    }

    /// Address of the first row.
    pub fn address(&self) -> u64 {
        self.view.address()
    }
}

/// The kernels that take rows of one range of lengths. The length alone decides, so that a row's bits do not depend on
/// how many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Warp,
    Block,
    Large,
    Wide,
    Long,
}

impl Width {
    pub fn of(columns: u64) -> Width {
        if columns <= WARP_COLUMNS {
            Width::Warp
        } else if columns <= BLOCK_COLUMNS {
            Width::Block
        } else if columns <= LARGE_COLUMNS {
            Width::Large
        } else if columns <= WIDE_COLUMNS {
            Width::Wide
        } else {
            Width::Long
        }
    }

    /// As [`Width::of`], of kernels that hold two rows and have no form for [`Width::Wide`].
    pub fn of_pair(columns: u64) -> Width {
        if columns <= PAIR_WARP_COLUMNS {
            Width::Warp
        } else if columns <= PAIR_BLOCK_COLUMNS {
            Width::Block
        } else if columns <= PAIR_LARGE_COLUMNS {
            Width::Large
        } else {
            Width::Long
        }
    }

    /// Part of the kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            Width::Warp => "warp",
            Width::Block => "block",
            Width::Large => "large",
            Width::Wide => "wide",
            Width::Long => "long",
        }
    }

    /// Blocks for so many rows; they loop where there are more.
    pub fn grid(self, rows: u64) -> [u64; 3] {
        let blocks = match self {
            Width::Warp => rows.div_ceil(WARP_ROWS as u64),
            _ => rows,
        };
        [blocks.min(1 << 30), 1, 1]
    }

    /// How many rows later those come that start when a row's team ends, about: L2 is asked for them meanwhile.
    pub fn ahead(self, device: &Device) -> u32 {
        let teams = match self {
            Width::Warp => 21,
            Width::Block => 5,
            Width::Large => 3,
            Width::Wide | Width::Long => 1,
        };
        device.properties().multiprocessors * teams
    }

    /// Dynamic shared memory.
    pub fn shared(self) -> u64 {
        match self {
            Width::Warp => 0,
            _ => EXCHANGE_BYTES,
        }
    }
}

/// A cluster whose blocks hold a row in their shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slices {
    /// Blocks of the cluster.
    pub blocks: u32,
    /// Dynamic shared memory of each.
    pub shared: u64,
    /// How many rows ahead a cluster asks L2 for: a quarter of those that run at a time.
    pub ahead: u32,
}

impl Slices {
    /// Of rows of more than `least` columns, `rows` of them together: the smallest cluster of which a multiprocessor holds
    /// `several` blocks. None where the tier has no clusters, and for rows that are too long.
    pub fn of(device: &Device, dtype: DType, columns: u64, rows: u32, least: u64, several: u64) -> Option<Slices> {
        if device.tier() != Tier::Sm90a || columns <= least || columns > u32::MAX as u64 {
            return None;
        }
        // A kilobyte of each block is the system's.
        let limit = SHARED_PER_MULTIPROCESSOR / several - 1024;
        [1, 2, 4, 8].into_iter().find_map(|blocks| {
            let shared = slices_bytes(rows, columns as u32, blocks, dtype.size() as u32);
            let room = (SHARED_PER_MULTIPROCESSOR / (shared + 1024)).min(SLICE_BLOCKS as u64);
            let ahead = (device.properties().multiprocessors as u64 * room / blocks as u64 / 4).max(1) as u32;
            (shared <= limit).then_some(Slices { blocks, shared, ahead })
        })
    }

    /// Blocks for so many rows.
    pub fn grid(self, rows: u64) -> [u64; 3] {
        [rows.saturating_mul(self.blocks as u64), 1, 1]
    }
}

/// Shared memory of a multiprocessor of sm_90; fixed, so that a row's bits do not depend on the device.
const SHARED_PER_MULTIPROCESSOR: u64 = 228 * 1024;

/// Checks that a tensor has one of the dtypes that row kernels compute in.
pub(crate) fn check_float(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    if matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    Err(Error::Dtype {
        argument,
        dtype: tensor.dtype(),
        allowed: "f32, f16 or bf16".into(),
    })
}

/// Checks that a tensor has a dtype.
pub(crate) fn check_dtype(argument: &'static str, tensor: &AnyTensor, dtype: DType) -> Result<()> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(Error::Dtype {
        argument,
        dtype: tensor.dtype(),
        allowed: format!("{dtype} is needed"),
    })
}

/// Checks that a tensor has the dtype and shape of `like`.
pub(crate) fn check_like(argument: &'static str, tensor: &AnyTensor, like: &AnyTensor, of: &str) -> Result<()> {
    check_dtype(argument, tensor, like.dtype())?;
    if tensor.shape() != like.shape() {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("the shape of {of}, {:?}, is needed", like.shape()),
        ));
    }
    Ok(())
}

/// Checks a vector of one value a column, and makes it dense.
pub(crate) fn column_vector(
    argument: &'static str,
    tensor: Option<&AnyTensor>,
    columns: u64,
    dtype: DType,
) -> Result<Option<AnyTensor>> {
    let Some(tensor) = tensor else { return Ok(None) };
    check_dtype(argument, tensor, dtype)?;
    if tensor.shape() != [columns] {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("[{columns}] is needed, one value a column"),
        ));
    }
    contiguous(tensor).map(Some)
}

/// Address of a tensor that may be missing.
pub(crate) fn address(tensor: Option<&AnyTensor>) -> u64 {
    tensor.map_or(0, AnyTensor::address)
}
