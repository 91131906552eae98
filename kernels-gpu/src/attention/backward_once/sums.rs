//! The thread that adds dQ to global memory.

use super::{CHUNK, EMPTY, END, KEYS, Shared, steps};
use crate::attention::{backward_turns as turns, params::BackwardParams};
use crate::pipeline::Cursor;
use cuda_std::{
    atomic::{self, Acquire, Gpu, Release},
    barrier, bulk, mbarrier,
    shared::ld,
};

/// Adds the parts of dQ to global memory, each when it is its turn.
///
/// # Safety
/// - One thread of the block calls this; rings are initialised, parameters those of the launch.
#[inline(always)]
pub unsafe fn write<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
) {
    let rows = Shared::<S, O, STAGES, PARTS>::ROWS;
    const NONE: u32 = u32::MAX;
    let own_ring = shared.own_ring();
    let (mut tiles, mut step) = (0, 0);
    // The counter that the last step's sums must reach before it is advanced.
    let mut unpublished = NONE;
    // SAFETY: one thread; rings as initialised; parts lie within the buffer of dQ, and nobody else adds to them before it
    // is said that these are there.
    unsafe {
        loop {
            let own = Cursor::nth(tiles);
            own_ring.wait_full(own);
            let index: u32 = ld(shared.slot());
            mbarrier::arrive(own_ring.empty(own));
            tiles += 1;
            if index == END {
                break;
            }
            if index & EMPTY != 0 {
                continue;
            }
            let work = turns::tile::<KEYS>(params, index);
            let (begin, end) = steps(params, &work, rows);
            let start = turns::start::<KEYS>(params, &work, begin);
            let mut turn = 0;
            while turn < work.turns {
                let place = turns::place(params, work.batch, work.start_q, work.head + turn);
                let counter = turns::counter(params, work.batch, work.head + turn);
                let (mut n, mut left) = (start, end - begin);
                while left > 0 {
                    let before = turns::before::<KEYS>(params, &work, n as u32);
                    loop {
                        let there = turns::address(params, counter + n as u32);
                        let there = atomic::load_u32::<Acquire, Gpu>(there);
                        // While this one waits (or, in any case, looks) the last ones land.
                        if unpublished != NONE {
                            bulk::wait_group::<0>();
                            atomic::add_u32::<Release, Gpu>(turns::address(params, unpublished), 1);
                            unpublished = NONE;
                        }
                        if there == before {
                            break;
                        }
                    }
                    barrier::fence_proxy_async();
                    unpublished = counter + n as u32;
                    let part = Cursor::<PARTS>::nth(step);
                    shared.part_ring().wait_full(part);
                    // Chunks of the two parts, the second behind the first.
                    let chunks = params.attention.head_dim / 8;
                    let (first, second) = if Shared::<S, O, STAGES, PARTS>::BY_ROWS {
                        (chunks * CHUNK, chunks * CHUNK)
                    } else {
                        let first = if chunks < 8 { chunks } else { 8 };
                        (first * CHUNK, (chunks - first) * CHUNK)
                    };
                    let tile_bytes = (4 * rows * params.attention.head_dim) as u64;
                    let to = params.dq_sum + (place + n as u32) as u64 * tile_bytes;
                    if before == 0 {
                        bulk::store(to as *mut u8, shared.part(part, 0), first);
                        if second != 0 {
                            bulk::store((to + first as u64) as *mut u8, shared.part(part, 1), second);
                        }
                    } else {
                        bulk::reduce_add_f32(to as *mut u8, shared.part(part, 0), first);
                        if second != 0 {
                            bulk::reduce_add_f32((to + first as u64) as *mut u8, shared.part(part, 1), second);
                        }
                    }
                    bulk::commit_group();
                    bulk::wait_group_read::<0>();
                    shared.part_ring().release(part);
                    step += 1;
                    n = turns::next(n, (begin, end));
                    left -= 1;
                }
                turn += 1;
            }
        }
        if unpublished != NONE {
            bulk::wait_group::<0>();
            atomic::add_u32::<Release, Gpu>(turns::address(params, unpublished), 1);
        }
    }
}
