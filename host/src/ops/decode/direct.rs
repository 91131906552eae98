//! When few sequences have a kernel of their own, and how that is launched.

use kernels_gpu::{
    angles::INTERLEAVED,
    decode::{
        DecodeParams, UNBOUNDED,
        direct::{DIRECT_PIECES, DIRECT_ROWS, DirectParams, DirectShape, TilesShape, most_pieces_and_steps},
    },
};

use super::division::{ALONE_CAPACITY, Division, ENOUGH_TILES, MAX_RESIDENT, SHARED_MEMORY, fills};
use crate::AnyTensor;

/// A launch.
pub(super) struct Direct {
    pub(super) params: DirectParams,
    pub(super) kernel: &'static str,
    pub(super) grid: [u64; 3],
    pub(super) cluster: u32,
    pub(super) shared: u64,
    /// A merging kernel folds what is in the workspace.
    pub(super) apart: bool,
}

/// Most slots of all sequences together: beyond, it is bytes that count, and the general kernels deal them out evenly.
const MOST_SLOTS: u64 = 65_536;
/// Most slots of all sequences together that the line of pieces counts in 32 bits.
const MOST_TOKENS: u64 = 1 << 31;
/// Blocks for each that the GPU holds at once, up to which one after the other they are still sooner done.
const ROUNDS: u64 = 3;
/// Most blocks of a cluster.
const MAX_CLUSTER: u32 = 16;
/// Pages of fewer tokens would have to be looked up for each of them.
const LEAST_PAGE: u32 = 16;

/// Whether attention is plain, over rows and pages that these kernels can address. `q`, and new keys and values, are the tensors
/// behind the addresses.
fn suits(params: &DecodeParams, padded: u64, q: &AnyTensor, new: Option<[&AnyTensor; 2]>) -> bool {
    let plain = [
        params.left_padding,
        params.alibi_slopes,
        params.sinks,
        params.rotation.cos,
    ] == [0; 4]
        && params.softcap == 0.0
        && params.rotation.flags & INTERLEAVED == 0
        && params.window_left == UNBOUNDED
        && [UNBOUNDED, 0].contains(&params.window_right);
    let paging = &params.paging;
    let dims = u64::from(params.head_dim) == padded && u64::from(params.value_dim) == padded;
    let sizes = params.tiles == 1
        && params.rows <= DIRECT_ROWS
        && paging.table_stride * u64::from(params.batch) < 1 << 32
        && (paging.table == 0 || (paging.page_size.is_power_of_two() && paging.page_size >= LEAST_PAGE));
    // Offsets have 32 bits, and quads one load.
    let near = |tensor: &AnyTensor| tensor.span() < 1 << 31 && tensor.rows_aligned_to(8);
    plain && dims && sizes && near(q) && new.iter().flatten().all(|tensor| near(tensor))
}

/// What these kernels are told of `params`; not how the work is cut.
fn arguments(params: &DecodeParams) -> DirectParams {
    let paging = &params.paging;
    let paged = paging.table != 0;
    let narrow = |strides: [u64; 3]| strides.map(|stride| stride as u32);
    DirectParams {
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
        partial: params.partial,
        statistics: params.statistics,
        k_scale: params.k_scale,
        v_scale: params.v_scale,
        q_strides: narrow(params.q_strides),
        k_new_strides: narrow(params.k_new_strides),
        v_new_strides: narrow(params.v_new_strides),
        k_steps: params.k_steps,
        v_steps: params.v_steps,
        table_stride: if paged { paging.table_stride as u32 } else { 1 },
        // A row of a contiguous cache is a page of all tokens.
        page_shift: if paged { paging.page_size.trailing_zeros() } else { 31 },
        cluster_shift: 0,
        group: params.group,
        per_group: (1u32 << 16).div_ceil(params.group),
        batch: params.batch,
        seq_q: params.seq_q,
        rows: params.rows,
        heads: params.heads_kv * params.group,
        heads_kv: params.heads_kv,
        appended: params.appended,
        capacity: params.capacity,
        most: params.most,
        least: params.least,
        causal: u32::from(params.window_right == 0),
        pairs: params.rotation.pairs,
        magnitude: params.rotation.magnitude,
        scale: params.scale * core::f32::consts::LOG2_E,
        stages_at: 0,
        parts: 0,
        splits: params.splits,
    }
}

/// The launch of few sequences that does what `params` ask for of few rows of 16-bit elements, where there is one; the bits are
/// the same.
pub(super) fn direct(
    params: &DecodeParams,
    padded: u64,
    [multiprocessors, shared_per_block]: [u64; 2],
    q: &AnyTensor,
    new: Option<[&AnyTensor; 2]>,
) -> Option<Direct> {
    if !suits(params, padded, q, new) || u64::from(params.batch) * u64::from(params.capacity) > MOST_SLOTS {
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
    Some(Direct {
        params: DirectParams {
            cluster_shift: cluster.trailing_zeros(),
            stages_at: shape.stages_at(pieces),
            ..arguments(params)
        },
        kernel: "direct_",
        grid,
        cluster,
        shared,
        apart: false,
    })
}

/// The launch of many sequences, or long ones, that does what `params` ask for in the same way; the bits are the same. Of caches of
/// 8-bit floats (`narrow`), and of heads of 64, there are whole tiles only.
pub(super) fn line(
    params: &DecodeParams,
    padded: u64,
    division: &Division,
    q: &AnyTensor,
    new: Option<[&AnyTensor; 2]>,
    multiprocessors: u64,
    narrow: bool,
) -> Option<Direct> {
    let (batch, heads) = (u64::from(params.batch), u64::from(params.heads_kv));
    let slots = MAX_RESIDENT * multiprocessors;
    // A pool with room for less than half of what all sequences may have says that most are short, and a long one waits for
    // nobody only in parts. (Where a block has twice the mean, it reads faster behind the end of the others.)
    let paging = params.paging;
    let roomy = 2 * u64::from(paging.pages) * u64::from(paging.page_size) >= batch * u64::from(params.capacity);
    // Whole tiles, where they are as many as blocks, or fill their rounds.
    let whole = division.splits == 1
        || division.alone
        || division.fold && batch * heads >= ENOUGH_TILES * slots
        || roomy
            && (fills(batch * heads, slots) || fills(batch * heads, multiprocessors))
            && u64::from(params.capacity) <= ALONE_CAPACITY;
    let parts = if whole {
        batch
    } else {
        division.blocks.min(slots) / heads
    };
    let appends = params.k_new != 0;
    if ![64, 128].contains(&padded)
        || narrow && (padded != 128 || appends)
        || !whole && (narrow || appends || padded != 128 || !division.apart || u64::from(params.side) != heads)
        || batch * u64::from(params.capacity) > MOST_TOKENS
        || !suits(params, padded, q, new)
    {
        return None;
    }
    let arguments = DirectParams {
        parts: parts as u32,
        ..arguments(params)
    };
    let shape = TilesShape::new(padded as u32, if narrow { 1 } else { 2 });
    Some(Direct {
        params: if narrow {
            // A factor of the keys comes between.
            DirectParams {
                scale: params.scale,
                ..arguments
            }
        } else {
            arguments
        },
        kernel: match (whole, appends) {
            (true, false) => "tiles_",
            (true, true) => "tiles_append_",
            (false, _) => "line_",
        },
        grid: [parts * heads, 1, 1],
        cluster: 1,
        shared: shape.shared_bytes(params.rows, appends).into(),
        apart: !whole,
    })
}
