//! Joining warps to pieces, and pieces to rows, by a warp of its own, where a block has a multiprocessor and a tile for itself.
//!
//! The warps that read keys and values meet nobody: at the end of a piece each leaves its part in a slot and goes on. Where warps
//! wait for each other at every piece, those that are ahead have full rings meanwhile, and nothing on its way. Several groups of
//! warps take pieces in turns, so that the joiner has them in their order: it folds what it joins, in registers.

use super::{
    DecodeParams,
    finish::{self, finished, fold, join, output_address, shift, write_lse, write_quad},
    fresh::Quad,
    plan,
    stream::Engine,
};
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    math::{ex2, fma, fmax},
    mbarrier, shared, thread, warp,
};

/// Most rows of a tile.
const ROWS: usize = 8;

/// Where the barriers of a group's slot are: that it is full, and that it is free.
#[inline(always)]
fn barriers<E: Engine>(group: u32) -> [u32; 2] {
    let at = E::base_of(group) + finish::PLAN_AT;
    [at, at + 8]
}

/// Makes the barriers, and tells the joiner from the others.
///
/// # Safety
/// - All threads of the block call this together, before anything else is in shared memory.
#[inline(always)]
pub unsafe fn begin<E: Engine>() -> bool {
    unsafe {
        let thread = thread::thread_idx_x();
        if thread < E::SHAPE.groups {
            let [full, free] = barriers::<E>(thread);
            mbarrier::init(full, E::SHAPE.warps);
            mbarrier::init(free, 1);
            mbarrier::fence_init();
        }
        syncthreads();
        thread >= const { E::SHAPE.groups * E::SHAPE.warps * 32 }
    }
}

/// Times that a slot is filled for a piece.
#[inline(always)]
fn turns<E: Engine>(rows: u32) -> u32 {
    if rows > E::SHAPE.join_rows { 2 } else { 1 }
}

/// Leaves this warp's part of a piece in its group's slot, which has been filled `filled` times; how often it has been then.
///
/// # Safety
/// - The warp calls this together; the joiner runs.
#[inline(always)]
pub unsafe fn leave<E: Engine>(rows: u32, engine: &E, mut filled: u32) -> u32 {
    unsafe {
        let [full, free] = barriers::<E>(E::group());
        let mut turn = 0;
        while turn < 2 {
            if turn < turns::<E>(rows) {
                if filled > 0 {
                    mbarrier::wait_parity(free, (filled - 1) & 1);
                }
                if turn == 0 {
                    engine.put_statistics(rows);
                }
                engine.put_output(turn as usize, rows);
                syncwarp(warp::FULL);
                mbarrier::arrive_if(full, thread::lane_id() == 0);
                filled += 1;
            }
            turn += 1;
        }
        filled
    }
}

/// Joins and folds all pieces of the block's tile, and writes its output.
///
/// # Safety
/// - One warp calls this; the others [`leave`] all pieces.
#[inline(always)]
pub unsafe fn run<E: Engine, O: Quad>(params: &DecodeParams) {
    unsafe {
        let work = plan::tile_of_block::<E>(params);
        let column = thread::lane_id() * 4;
        let mut total = [[f32::NEG_INFINITY, 0.0]; ROWS];
        let mut out = [[0.0f32; 4]; ROWS];
        let at_a_time = E::SHAPE.join_rows as usize;
        let (mut piece, mut group, mut round) = (0, 0, 0);
        while piece < work.pieces {
            let [full, free] = barriers::<E>(group);
            let mut turn = 0;
            while turn < ROWS / at_a_time {
                if turn == 0 || turns::<E>(work.rows) == 2 {
                    let filled = round * turns::<E>(work.rows) + turn as u32;
                    mbarrier::wait_parity(full, filled & 1);
                    let mut r = turn * at_a_time;
                    while r < (turn + 1) * at_a_time {
                        let row = r as u32;
                        if row < work.rows {
                            let mut parts = [[0.0f32; 2]; 4];
                            let mut maximum = f32::NEG_INFINITY;
                            let mut warp = 0;
                            while warp < 4 {
                                parts[warp] = finish::statistics::<E>(group, warp as u32, row);
                                maximum = fmax(maximum, parts[warp][0]);
                                warp += 1;
                            }
                            let (mut sum, mut joined) = (0.0, [0.0; 4]);
                            warp = 0;
                            while warp < 4 {
                                let factor = ex2(parts[warp][0] - shift(maximum));
                                sum = fma(parts[warp][1], factor, sum);
                                let from = finish::output_of::<E>(group, warp as u32, row, work.rows);
                                let part: [f32; 4] = shared::ld(from + column * 4);
                                let mut c = 0;
                                while c < 4 {
                                    joined[c] = fma(part[c], factor, joined[c]);
                                    c += 1;
                                }
                                warp += 1;
                            }
                            let (both, factors) = join(total[r], [maximum, sum]);
                            total[r] = both;
                            let mut c = 0;
                            while c < 4 {
                                out[r][c] = fold(out[r][c], factors, joined[c]);
                                c += 1;
                            }
                        }
                        r += 1;
                    }
                    syncwarp(warp::FULL);
                    mbarrier::arrive_if(free, thread::lane_id() == 0);
                }
                turn += 1;
            }
            piece += 1;
            group += 1;
            if group == E::SHAPE.groups {
                group = 0;
                round += 1;
            }
        }
        let mut r = 0;
        while r < ROWS {
            let row = r as u32;
            if row < work.rows {
                let (factor, lse) = finished(params, &work, row, total[r]);
                if column == 0 {
                    write_lse(params, &work, row, lse);
                }
                if column < params.value_dim {
                    write_quad::<O>(output_address::<O>(params, &work, row), column, out[r], factor);
                }
            }
            r += 1;
        }
    }
}
