//! What the teams of a cluster give each other where it has a tile: each block is given its rows' parts by all, and folds them.

use super::{
    super::{
        DecodeParams,
        finish::{ended, lse_address, output_address},
        merge::fold_pieces,
    },
    PackedShape,
    kernel::COMPUTING,
    produce::Item,
};
use crate::tile::opaque::opaque;
use crate::{attention::hopper::Half, tile::element::Element};
use cuda_std::{
    global, mbarrier,
    shared::{self, dynamic_base, mapa, st_async_2},
    thread,
};

/// Rows of a cluster's tile.
const ROWS: u32 = 32;

/// The barrier for what this block is given.
#[inline(always)]
pub fn given_barrier<const DIM: u32, const P: u32>() -> u32 {
    dynamic_base() + const { PackedShape::new(DIM, false, P).given_at() }
}

/// Where the part of a piece for the row that is number `own` of its block is: statistics and output.
#[inline(always)]
fn given_at<const DIM: u32, const P: u32>(piece: u32, own: u32, shift: u32) -> (u32, u32) {
    let part = piece * (ROWS >> shift) + own;
    (
        given_barrier::<DIM, P>() + 16 + part * 8,
        dynamic_base() + const { PackedShape::new(DIM, false, P).given_output_at() } + part * (DIM * 4),
    )
}

/// Blocks of a cluster are two to this power.
#[inline(always)]
fn blocks_shift<const P: u32>(params: &DecodeParams) -> u32 {
    (params.cluster / P).trailing_zeros()
}

/// Gives what a thread has of a row of a piece, pairs of columns eight apart, to the block that folds the row.
///
/// # Safety
/// - The warp calls this; all blocks of the cluster have begun; the tile has the row, and more than one piece.
#[inline(always)]
pub unsafe fn give<const DIM: u32, const Q: usize, const P: u32>(
    params: &DecodeParams,
    piece: u32,
    row: u32,
    statistics: [f32; 2],
    pair: impl Fn(usize) -> [f32; 2],
) {
    let lane = opaque(thread::lane_id());
    let shift = blocks_shift::<P>(params);
    let (own, rank) = (row >> shift, row & ((1 << shift) - 1));
    let (statistics_at, output_at) = given_at::<DIM, P>(piece, own, shift);
    // SAFETY: each place is one thread's, and its block expects it.
    unsafe {
        let mut i = 0;
        let barrier = mapa(given_barrier::<DIM, P>(), rank);
        if lane % 4 == 0 {
            st_async_2(mapa(statistics_at, rank), statistics, barrier);
        }
        let to = mapa(output_at, rank) + lane % 4 * 8;
        while i < Q {
            st_async_2(to + i as u32 * 32, pair(i), barrier);
            i += 1;
        }
    }
}

/// What a computing thread folds and writes of its cluster's tile in a turn: eight columns of a row. Known before the parts are
/// waited for.
pub struct Share {
    turn: u32,
    own: u32,
    column: u32,
    /// Rows and pieces of the tile; no pieces where there is nothing to fold.
    rows: u32,
    count: u32,
    to: u64,
    lse: u64,
    sink: f32,
}

impl Share {
    /// The share of turn `turn`.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn new<T: Element, const DIM: u32, const P: u32>(params: &DecodeParams, turn: u32) -> Share {
        let index = turn * (P * COMPUTING) + thread::thread_idx_x();
        let (own, column) = (index / (DIM / 8), index % (DIM / 8) * 8);
        let row = (own << blocks_shift::<P>(params)) + thread::cluster_block_rank();
        let mut share = Share {
            turn,
            own,
            column,
            rows: 0,
            count: 0,
            to: 0,
            lse: 0,
            sink: f32::NEG_INFINITY,
        };
        // SAFETY: a row that exists.
        unsafe {
            let item = Item::new(params, (thread::block_idx_x() * P) >> params.cluster.trailing_zeros());
            if let Some(Item { work, count, .. }) = item
                && count > 1
            {
                (share.rows, share.count) = (work.rows, count);
                if row < work.rows {
                    share.to = output_address::<T>(params, &work, row) + column as u64 * 2;
                    share.lse = lse_address(params, &work, row);
                    if params.sinks != 0 {
                        let head = work.query_head(params, row) as u64;
                        share.sink = global::ld_nc((params.sinks + head * 4) as *const f32) * core::f32::consts::LOG2_E;
                    }
                }
            }
        }
        share
    }

    /// Has the barrier expect what this block is given.
    ///
    /// # Safety
    /// - All computing threads of the block call this together, once; the barrier is initialised.
    #[inline(always)]
    pub unsafe fn expect<const DIM: u32, const P: u32>(&self, params: &DecodeParams) {
        let (blocks, rank) = (params.cluster / P, thread::cluster_block_rank());
        let rows = (self.rows + blocks - 1 - rank) >> blocks.trailing_zeros();
        let bytes = self.count * rows * (DIM * 4 + 8);
        // SAFETY: forwarded to the caller.
        unsafe { mbarrier::arrive_expect_tx_if(given_barrier::<DIM, P>(), bytes, thread::thread_idx_x() == 0) };
    }
}

/// Folds this block's rows of the cluster's tile, and writes them.
///
/// # Safety
/// - All computing threads of the cluster call this together, behind what they [give].
#[inline(always)]
pub unsafe fn gather<E: Half, T: Element, const DIM: u32, const P: u32>(params: &DecodeParams, mut share: Share) {
    const AT_A_TIME: usize = 4;
    // SAFETY: forwarded to the caller.
    unsafe {
        let shift = blocks_shift::<P>(params);
        mbarrier::wait_parity_cluster(given_barrier::<DIM, P>(), 0);
        loop {
            let Share { own, column, .. } = share;
            if share.to != 0 && column < params.value_dim {
                let (total, out) = fold_pieces::<8, AT_A_TIME>(share.count, 0, |piece| {
                    let (statistics, output) = given_at::<DIM, P>(piece, own, shift);
                    let output = output + column * 4;
                    let ([a, b, c, d], [e, f, g, h]): ([f32; 4], [f32; 4]) =
                        (shared::ld(output), shared::ld(output + 16));
                    (shared::ld(statistics), [a, b, c, d, e, f, g, h])
                });
                let (factor, lse) = ended(total, share.sink);
                let factor = if total[1] == 0.0 { 0.0 } else { factor };
                if column == 0 {
                    global::st(share.lse as *mut f32, lse);
                }
                let pack = |i: usize| E::pack(out[i] * factor, out[i + 1] * factor);
                global::st(share.to as *mut [u32; 4], [pack(0), pack(2), pack(4), pack(6)]);
            }
            let turn = opaque(share.turn + 1);
            if turn * (P * COMPUTING / (DIM / 8)) << shift >= ROWS {
                break;
            }
            share = Share::new::<T, DIM, P>(params, turn);
        }
    }
}
