//! The thread that loads.

use super::{EMPTY, END, KEYS, LAST, MASKED, RAGGED, Shared, steps, whole_steps};
use crate::attention::{
    backward_turns as turns,
    hopper::load_panels,
    params::{AttentionParams, BackwardParams, flags},
};
use crate::pipeline::Cursor;
use core::mem::offset_of;
use cuda_std::{
    atomic::{self, Gpu, Relaxed},
    bulk,
    launch::ParamAddress,
    shared::st,
};

/// Takes tiles of keys, loads each once, and streams queries and dO, the heads of a group one after the other.
///
/// # Safety
/// - One thread of the block calls this; rings are initialised, parameters those of the launch.
#[inline(always)]
pub unsafe fn produce<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
    address: ParamAddress,
) {
    const ATTENTION: usize = offset_of!(BackwardParams, attention);
    let q_map = address.tensor_map(ATTENTION + offset_of!(AttentionParams, q_map));
    let k_map = address.tensor_map(ATTENTION + offset_of!(AttentionParams, k_map));
    let v_map = address.tensor_map(ATTENTION + offset_of!(AttentionParams, v_map));
    let grad_map = address.tensor_map(offset_of!(BackwardParams, grad_out_map));
    let rows = Shared::<S, O, STAGES, PARTS>::ROWS;
    let row_box = (
        Shared::<S, O, STAGES, PARTS>::PANELS,
        Shared::<S, O, STAGES, PARTS>::ROW_PANEL,
    );
    let key_box = (
        Shared::<S, O, STAGES, PARTS>::PANELS,
        Shared::<S, O, STAGES, PARTS>::KEY_PANEL,
    );
    let row_bytes = Shared::<S, O, STAGES, PARTS>::ROW_BYTES;
    let statistics_bytes = Shared::<S, O, STAGES, PARTS>::STATISTICS_BYTES;
    let own_ring = shared.own_ring();
    let (mut tiles, mut step) = (0, 0);
    // SAFETY: one thread; rings as initialised; boxes and copies have the size that is expected.
    unsafe {
        loop {
            let index = atomic::add_u32::<Relaxed, Gpu>(params.next as *mut u32, 1);
            if index >= turns::tiles(params) {
                break;
            }
            let work = turns::tile::<KEYS>(params, index);
            if work.first >= work.own_len {
                continue;
            }
            let (begin, end) = steps(params, &work, rows);
            let own = Cursor::nth(tiles);
            if begin >= end {
                // Keys that no query sees: gradients of 0.
                own_ring.wait_empty(own);
                st(shared.slot(), index | EMPTY);
                own_ring.publish(own);
                tiles += 1;
                continue;
            }
            let sequence = work.sequence(params) as i32;
            let (whole_begin, whole_end) = whole_steps(&work, rows);
            // Packed queries whose tile is not all theirs, if there is one.
            let ragged = if params.attention.flags & flags::VARLEN != 0 {
                work.mask.seq_kv / rows as i32
            } else {
                i32::MAX
            };
            let place = [(work.start_k + work.first) as i32, work.kv_head as i32, sequence];
            own_ring.wait_empty(own);
            st(shared.slot(), index);
            own_ring.expect(own, 2 * Shared::<S, O, STAGES, PARTS>::KEY_BYTES);
            load_panels(k_map, shared.own(0), key_box, place, own_ring.full(own));
            load_panels(v_map, shared.own(1), key_box, place, own_ring.full(own));
            let start = turns::start::<KEYS>(params, &work, begin);
            let mut turn = 0;
            while turn < work.turns {
                let head = work.head + turn;
                let first = turns::place(params, work.batch, work.start_q, head);
                let (mut n, mut left) = (start, end - begin);
                while left > 0 {
                    let statistics = params.statistics + (first + n as u32) as u64 * statistics_bytes as u64;
                    let place = [work.start_q as i32 + n * rows as i32, head as i32, sequence];
                    let mut info = n as u32;
                    if n < whole_begin || n >= whole_end {
                        info |= MASKED;
                    }
                    if n == ragged {
                        info |= RAGGED;
                    }
                    n = turns::next(n, (begin, end));
                    left -= 1;
                    if left == 0 && turn + 1 == work.turns {
                        info |= LAST;
                    }
                    let (ring, q) = (shared.q_ring(), Cursor::nth(step));
                    ring.wait_empty(q);
                    st(shared.info(q), info);
                    ring.expect(q, row_bytes + statistics_bytes);
                    load_panels(q_map, shared.q(q), row_box, place, ring.full(q));
                    let to = shared.statistics(q);
                    bulk::load(to, statistics as *const u8, statistics_bytes, ring.full(q));
                    let (ring, grad) = (shared.grad_ring(), Cursor::nth(step));
                    ring.wait_empty(grad);
                    ring.expect(grad, row_bytes);
                    load_panels(grad_map, shared.grad(grad), row_box, place, ring.full(grad));
                    step += 1;
                }
                turn += 1;
            }
            tiles += 1;
        }
        let own = Cursor::nth(tiles);
        own_ring.wait_empty(own);
        st(shared.slot(), END);
        own_ring.publish(own);
    }
}
