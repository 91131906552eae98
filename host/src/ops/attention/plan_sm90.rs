//! Launch of the Hopper kernels: tensor maps and a persistent grid.

use kernels_gpu::attention::params::{AttentionParams, BackwardParams, PANEL, SM90, SM90_EXTENDED, flags};

use super::{
    plan::{self, Blocks, Target},
    validate::{Problem, View},
};
use crate::{
    AnyTensor, DType, Result, Tier,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Keys from which on a counter is worth its launch under a causal mask.
const COUNTED: u64 = 4096;

/// Launches the Hopper kernel of the problem.
pub fn launch(problem: &Problem, blocks: &Blocks, target: &Target) -> Result<()> {
    let table: &[_] = if problem.extended() { &SM90_EXTENDED } else { &SM90 };
    let choice = blocks.choose(problem, table, Tier::Sm90a)?;
    let tiles = choice.tiles;
    let count = plan::tile_count(problem, tiles)?;
    let mut params = plan::params(problem, tiles, target);
    maps(problem, [tiles.rows, tiles.keys], &mut params)?;
    let resident = u64::from(problem.q.device().properties().multiprocessors);
    let sides = problem.options.mask_flags() & (flags::RIGHT | flags::LEFT);
    // Packed sequences differ in length, and so do the tiles of long ones under a causal mask, where a row sees the more keys
    // the later it is, and those at the ends of a window: blocks take tiles from a counter, so that they end together.
    let packed = problem.packed.is_some();
    let causal = sides == flags::RIGHT && !packed;
    let windowed = sides & flags::LEFT != 0 && !packed;
    let counted = (causal && problem.seq_kv >= COUNTED || windowed) && count >= 4 * resident;
    if !counted {
        // One key head after the other: the blocks that run together read the same keys, and little else competes for L2.
        params.section = problem.group() as u32;
    }
    if causal && !counted {
        params.flags |= flags::PAIRED;
    }
    let counter = (packed || counted)
        .then(|| {
            let counter = AnyTensor::empty(problem.q.device(), DType::I32, &[1])?;
            counter.fill_bytes_on(0, target.stream)?;
            Ok::<_, crate::Error>(counter)
        })
        .transpose()?;
    if let Some(counter) = &counter {
        params.next = counter.address();
    }
    let entry = plan::entry(problem, choice);
    plan::start_early(
        problem,
        target,
        (&entry, count.min(resident), tiles.shared_bytes()),
        &params,
        counter.as_ref(),
    )
}

/// Maps of Q, K and V with boxes of so many rows and keys.
fn maps(problem: &Problem, [rows, keys]: [u32; 2], params: &mut AttentionParams) -> Result<()> {
    let (q, kv) = ([problem.seq_q, problem.heads_q], [problem.seq_kv, problem.heads_kv]);
    params.q_map = map(problem, problem.q, [problem.head_dim, q[0], q[1]], rows)?;
    params.k_map = map(problem, problem.k, [problem.head_dim, kv[0], kv[1]], keys)?;
    params.v_map = map(problem, problem.v, [problem.value_dim, kv[0], kv[1]], keys)?;
    Ok(())
}

/// The same for the gradients, and of dO.
pub fn backward_maps(
    problem: &Problem,
    grad_out: &AnyTensor,
    boxes: [u32; 2],
    params: &mut BackwardParams,
) -> Result<()> {
    maps(problem, boxes, &mut params.attention)?;
    let extents = [problem.value_dim, problem.seq_q, problem.heads_q];
    params.grad_out_map = map(problem, grad_out, extents, boxes[0])?;
    Ok(())
}

/// The map of a tensor as (dim, tokens, heads, batch). Beyond its extents the copies write zeros.
fn map(problem: &Problem, tensor: &AnyTensor, [dim, tokens, heads]: [u64; 3], rows: u32) -> Result<[u64; 16]> {
    if tensor.elements() == 0 {
        // No keys at all: the kernel loads nothing.
        return Ok([0; 16]);
    }
    let View { address, strides } = problem.view(tensor);
    let batch = if problem.packed.is_some() { 1 } else { problem.batch };
    let size = tensor.dtype().size();
    // The stride of an axis of extent 1 is never used, but must be a legal one.
    let stride = |extent: u64, stride: u64| if extent == 1 { 16 } else { stride * size };
    let request = TensorMapRequest {
        dtype: tensor.dtype(),
        address,
        extents: vec![dim, tokens, heads, batch],
        strides: vec![
            stride(tokens, strides[1]),
            stride(heads, strides[2]),
            stride(batch, strides[0]),
        ],
        box_extents: vec![PANEL, rows, 1, 1],
        swizzle: Swizzle::B128,
    };
    tensor.device().backend().encode_tensor_map(&request)
}
