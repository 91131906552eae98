//! A tile attended by the blocks of a cluster, joined through their shared memory: a lone sequence, where a second launch
//! would take longer than the keys.
//!
//! Each block has a few pieces that follow each other. The elements of a tile's rows are dealt out to the blocks, 32 in
//! turn; at the end of a piece a block stores each element of its result in the block that owns it. Behind the cluster's
//! barrier each block folds its elements over all pieces, in their order: the operations of the merging kernel.

use super::{
    DecodeParams,
    finish::{finished, output_address, write_lse, write_output},
    merge::fold_pieces,
    stream::Engine,
    work::Work,
};
use crate::tile::element::Element;
use cuda_std::{
    barrier::{cluster_arrive, cluster_wait},
    shared::{self, mapa, st_cluster},
    thread,
};

/// Elements that a block owns in a row of them.
const GRAIN: u32 = super::GATHER_GRAIN;

/// Whether the blocks of a cluster share a tile: never where registers are few.
#[inline(always)]
pub fn is_on<E: Engine>(params: &DecodeParams) -> bool {
    E::SHAPE.folds && params.cluster > 1
}

/// The tile of this block's cluster.
///
/// # Safety
/// - `params` are those of the launch.
#[inline(always)]
pub unsafe fn work<E: Engine>(params: &DecodeParams) -> Work {
    unsafe {
        let (heads, tiles) = (params.heads_kv, params.tiles);
        core::hint::assert_unchecked(heads != 0);
        core::hint::assert_unchecked(tiles != 0);
        let number = thread::block_idx_x() >> params.cluster.trailing_zeros();
        let (rest, head) = (number / heads, number % heads);
        Work::new(params, E::SHAPE.rows, rest / tiles, head, rest % tiles)
    }
}

/// Pieces of a block.
#[inline(always)]
pub fn share(params: &DecodeParams, pieces: u32) -> u32 {
    (pieces + params.cluster - 1) >> params.cluster.trailing_zeros()
}

/// Where the maximum and sum of a row of a piece are, in each block.
#[inline(always)]
fn statistics_at<E: Engine>(params: &DecodeParams, piece: u32, row: u32) -> u32 {
    let tokens = if super::fresh::is_on::<E>(params) {
        params.seq_q
    } else {
        0
    };
    shared::dynamic_base() + E::SHAPE.gather_at(params.rows, tokens) + (piece * params.rows + row) * 8
}

/// Where an owned element of a piece is.
#[inline(always)]
fn part_at<E: Engine>(params: &DecodeParams, piece: u32, own: u32) -> u32 {
    let count = super::gathered(params.rows, E::SHAPE.dim, params.cluster);
    statistics_at::<E>(params, params.splits, 0) + (piece * count + own) * 4
}

/// Says a piece's maximum and sum of a row to all blocks.
///
/// # Safety
/// - All blocks of the cluster have begun; no other thread says the same.
#[inline(always)]
pub unsafe fn put_statistics<E: Engine>(params: &DecodeParams, piece: u32, row: u32, statistics: [f32; 2]) {
    let to = statistics_at::<E>(params, piece, row);
    let mut rank = 0;
    while rank < params.cluster {
        // SAFETY: forwarded to the caller.
        unsafe { st_cluster(mapa(to, rank), statistics) };
        rank += 1;
    }
}

/// Gives four neighbouring elements of a piece's result to their owner.
///
/// # Safety
/// - As for [`put_statistics`].
#[inline(always)]
pub unsafe fn put_part<E: Engine>(params: &DecodeParams, piece: u32, row: u32, column: u32, [a, b, c, d]: [f32; 4]) {
    let element = row * E::SHAPE.dim + column;
    let grain = element / GRAIN;
    let (own, owner) = (grain >> params.cluster.trailing_zeros(), grain & (params.cluster - 1));
    let to = mapa(part_at::<E>(params, piece, own * GRAIN + element % GRAIN), owner);
    // SAFETY: forwarded to the caller.
    unsafe {
        st_cluster(to, [a, b]);
        st_cluster(to + 8, [c, d]);
    }
}

/// Gives an element of a piece's result to its owner.
///
/// # Safety
/// - As for [`put_statistics`].
#[inline(always)]
pub unsafe fn put_element<E: Engine>(params: &DecodeParams, piece: u32, row: u32, column: u32, value: f32) {
    let element = row * E::SHAPE.dim + column;
    let grain = element / GRAIN;
    let (own, owner) = (grain >> params.cluster.trailing_zeros(), grain & (params.cluster - 1));
    let to = mapa(part_at::<E>(params, piece, own * GRAIN + element % GRAIN), owner);
    // SAFETY: forwarded to the caller.
    unsafe { st_cluster(to, value) };
}

/// Folds this block's elements over all pieces and writes them.
///
/// # Safety
/// - All threads of the cluster call this together, behind the last piece of each.
#[inline(always)]
pub unsafe fn merge<E: Engine, O: Element>(params: &DecodeParams) {
    unsafe {
        cluster_arrive();
        let work = work::<E>(params);
        cluster_wait();
        if work.pieces == 1 {
            return;
        }
        let rank = thread::cluster_block_rank();
        let count = super::gathered(params.rows, E::SHAPE.dim, params.cluster);
        let mut own = thread::thread_idx_x();
        while own < count {
            let grain = own / GRAIN * params.cluster + rank;
            let element = grain * GRAIN + own % GRAIN;
            let (row, column) = (element / E::SHAPE.dim, element % E::SHAPE.dim);
            if row < work.rows {
                let (total, [out]) = fold_pieces::<1, { super::merge::AHEAD }>(work.pieces, E::SHAPE.bundle, |piece| {
                    (
                        shared::ld(statistics_at::<E>(params, piece, row)),
                        [shared::ld(part_at::<E>(params, piece, own))],
                    )
                });
                let (factor, lse) = finished(params, &work, row, total);
                if column == 0 {
                    write_lse(params, &work, row, lse);
                }
                if column < params.value_dim {
                    write_output::<O>(output_address::<O>(params, &work, row), column, out * factor);
                }
            }
            own += const { E::SHAPE.warps * 32 };
        }
    }
}
