//! The threads that add dQ to global memory: one waits for turns, one adds, one says that it has. Each of the three is a
//! round trip to L2; one thread that made them all took longer than a step.

use super::{CHUNK, EMPTY, END, KEYS, Shared, steps};
use crate::attention::{backward_turns as turns, gradient::Work, params::BackwardParams};
use crate::pipeline::Cursor;
use cuda_std::{
    atomic::{self, Acquire, Gpu, Release},
    barrier, bulk, mbarrier,
    shared::ld,
};

/// A step as those see it that add dQ.
struct Step<'a> {
    /// How many came before, of all tiles.
    nth: u32,
    /// The tile of keys.
    work: &'a Work,
    /// The head's place among those of its group.
    turn: u32,
    /// The tile of queries.
    tile: u32,
}

impl Step<'_> {
    /// How many tiles of keys add to this tile of queries before.
    #[inline(always)]
    unsafe fn before(&self, params: &BackwardParams) -> u32 {
        // SAFETY: the step is one of the launch.
        unsafe { turns::before::<KEYS>(params, self.work, self.tile) }
    }

    /// Where that is counted.
    #[inline(always)]
    fn counter(&self, params: &BackwardParams) -> *mut u32 {
        let counter = turns::counter(params, self.work.batch, self.work.head + self.turn);
        turns::address(params, counter + self.tile)
    }
}

/// Calls `each` for all steps of this block, in order.
///
/// # Safety
/// - One thread calls this, of those that `WithWriters` counts; rings are initialised, parameters
///   those of the launch.
#[inline(always)]
unsafe fn walk<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
    mut each: impl FnMut(Step),
) {
    let rows = Shared::<S, O, STAGES, PARTS>::ROWS;
    let own_ring = shared.own_ring();
    let (mut tiles, mut nth) = (0, 0);
    // SAFETY: forwarded to the caller.
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
                let (mut n, mut left) = (start, end - begin);
                while left > 0 {
                    each(Step {
                        nth,
                        work: &work,
                        turn,
                        tile: n as u32,
                    });
                    nth += 1;
                    n = turns::next(n, (begin, end));
                    left -= 1;
                }
                turn += 1;
            }
        }
    }
}

/// Waits for the turns of this block.
///
/// # Safety
/// - As for `walk`; one thread of the block calls this.
#[inline(always)]
pub unsafe fn await_turns<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
) {
    // SAFETY: forwarded to the caller; what the counter acquires passes on by the ring.
    unsafe {
        walk(shared, params, |step| {
            let (before, counter) = (step.before(params), step.counter(params));
            let turn = Cursor::nth(step.nth);
            shared.turn_ring().wait_empty(turn);
            while atomic::load_u32::<Acquire, Gpu>(counter) != before {}
            shared.turn_ring().publish(turn);
        });
    }
}

/// Adds the parts of dQ to global memory, each when it is its turn.
///
/// # Safety
/// - As for `walk`; one thread of the block calls this.
#[inline(always)]
pub unsafe fn add<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
) {
    let rows = Shared::<S, O, STAGES, PARTS>::ROWS;
    // SAFETY: rings as initialised; parts lie within the buffer of dQ, and nobody else adds to them before it is said that
    // these are there.
    unsafe {
        walk(shared, params, |step| {
            let (work, first) = (step.work, step.before(params) == 0);
            let place = turns::place(params, work.batch, work.start_q, work.head + step.turn);
            let turn = Cursor::nth(step.nth);
            shared.turn_ring().wait_full(turn);
            shared.turn_ring().release(turn);
            barrier::fence_proxy_async();
            let part = Cursor::<PARTS>::nth(step.nth);
            shared.part_ring().wait_full(part);
            // Chunks of the two parts, the second behind the first.
            let chunks = params.attention.head_dim / 8;
            let (low, high) = if Shared::<S, O, STAGES, PARTS>::BY_ROWS {
                (chunks * CHUNK, chunks * CHUNK)
            } else {
                let low = if chunks < 8 { chunks } else { 8 };
                (low * CHUNK, (chunks - low) * CHUNK)
            };
            let tile_bytes = (4 * rows * params.attention.head_dim) as u64;
            let to = params.dq_sum + (place + step.tile) as u64 * tile_bytes;
            if first {
                bulk::store(to as *mut u8, shared.part(part, 0), low);
                if high != 0 {
                    bulk::store((to + low as u64) as *mut u8, shared.part(part, 1), high);
                }
            } else {
                bulk::reduce_add_f32(to as *mut u8, shared.part(part, 0), low);
                if high != 0 {
                    bulk::reduce_add_f32((to + low as u64) as *mut u8, shared.part(part, 1), high);
                }
            }
            bulk::commit_group();
            bulk::wait_group_read::<0>();
            shared.part_ring().release(part);
            bulk::wait_group::<0>();
            shared.sent_ring().wait_empty(turn);
            shared.sent_ring().publish(turn);
        });
    }
}

/// Says of each part of dQ that it has been added.
///
/// # Safety
/// - As for `walk`; one thread of the block calls this.
#[inline(always)]
pub unsafe fn publish<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
) {
    // SAFETY: forwarded to the caller; what was added before is released with the counter.
    unsafe {
        walk(shared, params, |step| {
            let sent = Cursor::nth(step.nth);
            shared.sent_ring().wait_full(sent);
            atomic::add_u32::<Release, Gpu>(step.counter(params), 1);
            shared.sent_ring().release(sent);
        });
    }
}
