//! When few sequences have a kernel of their own, and how that is launched.

use kernels_gpu::{
    angles::INTERLEAVED,
    decode::{
        DecodeParams, UNBOUNDED,
        direct::{DIRECT_PIECES, DIRECT_ROWS, DirectParams, DirectShape, most_pieces_and_steps},
    },
};

use super::division::{MAX_RESIDENT, SHARED_MEMORY};
use crate::AnyTensor;

/// A launch.
pub(super) struct Direct {
    pub(super) params: DirectParams,
    pub(super) grid: [u64; 3],
    pub(super) cluster: u32,
    pub(super) shared: u64,
}

/// Most slots of all sequences together: beyond, it is bytes that count, and the general kernels deal them out evenly.
const MOST_SLOTS: u64 = 65_536;
/// Blocks for each that the GPU holds at once, up to which one after the other they are still sooner done.
const ROUNDS: u64 = 3;
/// Most blocks of a cluster.
const MAX_CLUSTER: u32 = 16;
/// Pages of fewer tokens would have to be looked up for each of them.
const LEAST_PAGE: u32 = 16;

/// The launch that does what `params` ask for of few rows of 16-bit elements, where there is one; the bits are the same.
/// `q`, and new keys and values, are the tensors behind the addresses.
pub(super) fn direct(
    params: &DecodeParams,
    padded: u64,
    [multiprocessors, shared_per_block]: [u64; 2],
    q: &AnyTensor,
    new: Option<[&AnyTensor; 2]>,
) -> Option<Direct> {
    let plain = [
        params.left_padding,
        params.alibi_slopes,
        params.sinks,
        params.k_scale,
        params.v_scale,
        params.rotation.cos,
    ] == [0; 6]
        && params.softcap == 0.0
        && params.rotation.flags & INTERLEAVED == 0
        && params.window_left == UNBOUNDED
        && [UNBOUNDED, 0].contains(&params.window_right);
    let paging = &params.paging;
    let paged = paging.table != 0;
    let dims = u64::from(params.head_dim) == padded && u64::from(params.value_dim) == padded;
    let sizes = params.tiles == 1
        && params.rows <= DIRECT_ROWS
        && u64::from(params.batch) * u64::from(params.capacity) <= MOST_SLOTS
        && paging.table_stride * u64::from(params.batch) < 1 << 32
        && (!paged || (paging.page_size.is_power_of_two() && paging.page_size >= LEAST_PAGE));
    // Offsets have 32 bits, and quads one load.
    let near = |tensor: &AnyTensor| tensor.span() < 1 << 31 && tensor.rows_aligned_to(8);
    if !(plain && dims && sizes && near(q) && new.iter().flatten().all(|tensor| near(tensor))) {
        return None;
    }
    let (pieces, steps) = most_pieces_and_steps(params.capacity, params.most, params.least);
    let cluster = pieces.max(params.rows).clamp(2, MAX_CLUSTER).next_power_of_two();
    let shape = DirectShape::new(padded as u32);
    let shared = u64::from(shape.shared_bytes(pieces, steps));
    let grid = [u64::from(params.heads_kv * cluster), params.batch.into(), 1];
    let resident = (SHARED_MEMORY / (shared + 1024)).min(MAX_RESIDENT);
    if pieces > DIRECT_PIECES || shared > shared_per_block || grid[0] * grid[1] > ROUNDS * multiprocessors * resident {
        return None;
    }
    let narrow = |strides: [u64; 3]| strides.map(|stride| stride as u32);
    Some(Direct {
        params: DirectParams {
            lengths: params.lengths,
            table: if paged { paging.table } else { paging.batch_index },
            q: params.q,
            k: params.k,
            v: params.v,
            out: params.out,
            lse: params.lse,
            k_new: params.k_new,
            v_new: params.v_new,
            frequencies: params.rotation.frequencies,
            q_strides: narrow(params.q_strides),
            k_new_strides: narrow(params.k_new_strides),
            v_new_strides: narrow(params.v_new_strides),
            k_steps: params.k_steps,
            v_steps: params.v_steps,
            table_stride: if paged { paging.table_stride as u32 } else { 1 },
            // A row of a contiguous cache is a page of all tokens.
            page_shift: if paged { paging.page_size.trailing_zeros() } else { 31 },
            cluster_shift: cluster.trailing_zeros(),
            group: params.group,
            per_group: (1u32 << 16).div_ceil(params.group),
            seq_q: params.seq_q,
            rows: params.rows,
            heads: params.heads_kv * params.group,
            appended: params.appended,
            capacity: params.capacity,
            most: params.most,
            least: params.least,
            causal: u32::from(params.window_right == 0),
            pairs: params.rotation.pairs,
            magnitude: params.rotation.magnitude,
            scale: params.scale * core::f32::consts::LOG2_E,
            stages_at: shape.stages_at(pieces),
        },
        grid,
        cluster,
        shared,
    })
}
