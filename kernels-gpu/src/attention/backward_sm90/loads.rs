//! The warps that load: one thread by TMA, and a warp for LSE and Δ.

use super::{ROWS, Shared, own_work, tiles};
use crate::attention::{
    hopper::load_panels,
    params::{AttentionParams, BackwardParams},
};
use crate::pipeline::Cursor;
use crate::tile::opaque::opaque;
use core::mem::offset_of;
use cuda_std::{global, launch::ParamAddress, shared::st, thread};

/// Loads the own matrices once and streams the others, the heads of a group one after the other.
///
/// # Safety
/// - One thread of the block calls this; rings are initialised, parameters those of the launch.
#[inline(always)]
pub unsafe fn produce<
    const S: usize,
    const O: usize,
    const OWN: u32,
    const STAGES: u32,
    const LATER: u32,
    const KEYS: bool,
>(
    shared: &Shared<S, O, OWN, STAGES, LATER>,
    params: &BackwardParams,
    address: ParamAddress,
) {
    const ATTENTION: usize = offset_of!(BackwardParams, attention);
    let q = address.tensor_map(ATTENTION + offset_of!(AttentionParams, q_map));
    let k = address.tensor_map(ATTENTION + offset_of!(AttentionParams, k_map));
    let v = address.tensor_map(ATTENTION + offset_of!(AttentionParams, v_map));
    let grad_out = address.tensor_map(offset_of!(BackwardParams, grad_out_map));
    // SAFETY: one thread; rings as initialised; boxes have the size that is expected.
    unsafe {
        let work = own_work::<KEYS>(params);
        let (begin, end) = tiles(&work, work.first, ROWS, Shared::<S, O, OWN, STAGES, LATER>::COLUMNS);
        if begin >= end {
            return;
        }
        let sequence = work.sequence(params) as i32;
        let (own, others) = if KEYS {
            ([k, v], [q, grad_out])
        } else {
            ([q, grad_out], [k, v])
        };
        let (own_start, other_start) = if KEYS {
            (work.start_k, work.start_q)
        } else {
            (work.start_q, work.start_k)
        };
        let own_head = if KEYS { work.kv_head } else { work.head };
        let own_place = [(own_start + work.first) as i32, own_head as i32, sequence];
        let own_box = (
            Shared::<S, O, OWN, STAGES, LATER>::PANELS,
            Shared::<S, O, OWN, STAGES, LATER>::OWN_PANEL,
        );
        let (ring, at) = (shared.own_ring(), Cursor::start());
        ring.expect(at, OWN * Shared::<S, O, OWN, STAGES, LATER>::OWN_BYTES);
        load_panels(own[0], shared.own(0), own_box, own_place, ring.full(at));
        if OWN == 2 {
            load_panels(own[1], shared.own(1), own_box, own_place, ring.full(at));
        }

        let other_box = (
            Shared::<S, O, OWN, STAGES, LATER>::PANELS,
            Shared::<S, O, OWN, STAGES, LATER>::OTHER_PANEL,
        );
        let (ring, mut at) = (shared.ring(), Cursor::<STAGES>::start());
        let (later_ring, mut later) = (shared.later_ring(), Cursor::<LATER>::start());
        let mut turn = 0;
        while turn < work.turns {
            let head = if KEYS { work.head + turn } else { work.kv_head };
            let mut n = begin;
            while n < end {
                let row = other_start as i32 + n * Shared::<S, O, OWN, STAGES, LATER>::COLUMNS as i32;
                let place = [row, head as i32, sequence];
                ring.wait_empty(at);
                let bytes = Shared::<S, O, OWN, STAGES, LATER>::OTHER_BYTES;
                if Shared::<S, O, OWN, STAGES, LATER>::JOINT {
                    ring.expect(at, 2 * bytes);
                    load_panels(others[0], shared.other(at), other_box, place, ring.full(at));
                    load_panels(others[1], shared.later(later), other_box, place, ring.full(at));
                } else {
                    ring.expect(at, bytes);
                    load_panels(others[0], shared.other(at), other_box, place, ring.full(at));
                    later_ring.wait_empty(later);
                    later_ring.expect(later, bytes);
                    load_panels(others[1], shared.later(later), other_box, place, later_ring.full(later));
                }
                at = at.next();
                later = later.next();
                n += 1;
            }
            turn += 1;
        }
    }
}

/// Puts base-2 LSE and Δ of the streamed queries beside them, such that P is 0 where there is no query or it sees no
/// key; one warp, with few registers.
///
/// # Safety
/// - A whole warp calls this; rings are initialised, parameters those of the launch.
#[inline(always)]
pub unsafe fn stage_statistics<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32>(
    shared: &Shared<S, O, OWN, STAGES, LATER>,
    params: &BackwardParams,
) {
    let columns = Shared::<S, O, OWN, STAGES, LATER>::COLUMNS;
    // SAFETY: a whole warp; the ring as initialised; rows beyond the sequence are not read.
    unsafe {
        let work = own_work::<true>(params);
        let (begin, end) = tiles(&work, work.first, ROWS, columns);
        if begin >= end {
            return;
        }
        let strides = &params.attention.lse_strides;
        let first = work.sequence(params) * strides[0] + work.head as u64 * strides[1] + work.start_q as u64;
        let rows = work.mask.seq_kv as u32;
        let (begin, end) = (begin as u32 * columns, end as u32 * columns);
        let (ring, mut at) = (shared.statistics_ring(), Cursor::<STAGES>::start());
        // LSE and Δ of a tile: loaded while the one before is in use.
        let load = |plane: u64, tile: u32| {
            let mut values = [[f32::NEG_INFINITY, 0.0]; 4];
            let mut i = 0;
            while 32 * i < columns {
                let row = opaque(tile) + 32 * i + thread::lane_id();
                if row < rows {
                    let from = plane + 4 * row as u64;
                    values[i as usize] = [
                        global::ld_nc((params.attention.lse + from) as *const f32),
                        global::ld_nc((params.delta + from) as *const f32),
                    ];
                }
                i += 1;
            }
            values
        };
        let (mut plane, mut left, mut tile) = (4 * first, work.turns, begin);
        let mut values = load(plane, tile);
        while left > 0 {
            ring.wait_empty(at);
            let target = opaque(shared.statistics(at, 0) + 4 * thread::lane_id());
            let mut i = 0;
            while 32 * i < columns {
                let [natural, delta] = values[i as usize];
                let seen = natural != f32::NEG_INFINITY;
                let lse = if seen {
                    natural * core::f32::consts::LOG2_E
                } else {
                    f32::INFINITY
                };
                st(target + 128 * i, lse);
                st(target + 4 * columns + 128 * i, if seen { delta } else { 0.0 });
                i += 1;
            }
            ring.publish(at);
            at = at.next();
            tile += columns;
            if tile == end {
                tile = begin;
                plane += 4 * strides[1];
                left -= 1;
            }
            if left > 0 {
                values = load(plane, tile);
            }
        }
    }
}
