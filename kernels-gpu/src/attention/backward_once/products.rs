//! The warpgroups that compute.

use super::{
    CHUNK, EMPTY, END, FREE, GRAD_STAGES, KEYS, LAST, MASKED, PART, RAGGED, Shared, THREADS, TILE, TOGETHER,
    operands::{held_at, hold, issue_queries, issue_slopes, store_slopes},
};
use crate::attention::{
    backward_turns as turns,
    hopper::{Half, PANEL_BYTES, clear_rows, issue_scores, issue_weighted, round, store_rows},
    params::{BackwardParams, flags},
    rows::Rows,
};
use crate::pipeline::Cursor;
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier,
    math::{ex2, fma},
    shared::{ld, st},
    thread,
    wgmma::{Acc, InFlight, MmaShape},
};

/// Computes the keys of all tiles that belong to computing warpgroup `group`.
///
/// # Safety
/// - The whole warpgroup calls this; rings are initialised, parameters those of the launch.
#[allow(
    unused_assignments,
    reason = "the last step is the same code, and nobody reads what it leaves"
)]
#[inline(always)]
pub unsafe fn consume<E: Half, const S: usize, const O: usize, const STAGES: u32, const PARTS: u32, const HELD: bool>(
    shared: &Shared<S, O, STAGES, PARTS>,
    params: &BackwardParams,
    group: u32,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let forward = &params.attention;
    let rows = Shared::<S, O, STAGES, PARTS>::ROWS;
    let dim = Shared::<S, O, STAGES, PARTS>::DIM;
    let row_panel = Shared::<S, O, STAGES, PARTS>::ROW_PANEL;
    let (own_ring, part_ring) = (shared.own_ring(), shared.part_ring());
    let (q_ring, grad_ring) = (shared.q_ring(), shared.grad_ring());
    // Registers are scarce: all places in rings follow from two counters, all else is found again where it is needed.
    let (mut tiles, mut step) = (0, 0u32);
    let operand = |which: u32| {
        let at = opaque(shared.own(which) + group * 64 * PANEL_BYTES);
        (at, Shared::<S, O, STAGES, PARTS>::KEY_PANEL)
    };
    // SAFETY: rings as initialised; all warpgroups run the same tiles, so arrivals match.
    unsafe {
        if PARTS == 2 {
            barrier::arrive(FREE + 1 - group, THREADS);
        }
        loop {
            own_ring.wait_full(Cursor::nth(tiles));
            let index: u32 = ld(shared.slot());
            if index == END {
                break;
            }
            let mut keys_sum = Acc::<O>::ZERO.start();
            let mut values = Acc::<O>::ZERO;
            if index & EMPTY == 0 {
                if forward.flags & flags::VARLEN != 0 {
                    let work = turns::tile::<KEYS>(params, index);
                    if work.first + KEYS > work.own_len {
                        let tail = (work.own_len - work.first, KEYS);
                        let me = (opaque(thread::thread_idx_x()) - 128, THREADS);
                        clear_rows(shared.own(0), Shared::<S, O, STAGES, PARTS>::PANELS, tail, me);
                        clear_rows(shared.own(1), Shared::<S, O, STAGES, PARTS>::PANELS, tail, me);
                        barrier::sync(TOGETHER, THREADS);
                    }
                }
                // Clears what of a tile of Q or dO belongs to others.
                let clear = |tile: u32, info: u32| {
                    if info & RAGGED != 0 {
                        let work = turns::tile::<KEYS>(params, opaque(index));
                        let tail = (work.mask.seq_kv as u32 % rows, rows);
                        let me = (opaque(thread::thread_idx_x()) - 128, THREADS);
                        clear_rows(tile, Shared::<S, O, STAGES, PARTS>::PANELS, tail, me);
                        barrier::sync(TOGETHER, THREADS);
                    }
                };
                let q = Cursor::nth(step);
                q_ring.wait_full(q);
                let mut info: u32 = ld(shared.info(q));
                clear(shared.q(q), info);
                let mut scores = issue_scores::<E, S>(dim, operand(0), (shared.q(q), row_panel)).wait::<0>();

                let mut pending = false;

                macro_rules! step {
                    ($more:literal) => {{
                        let (q, grad) = (
                            Cursor::<STAGES>::nth(step),
                            Cursor::<GRAD_STAGES>::nth(step),
                        );
                        grad_ring.wait_full(grad);
                        clear(shared.grad(grad), info);
                        let gradients = issue_scores::<E, S>(dim, operand(1), (shared.grad(grad), row_panel));
                        if info & MASKED != 0 {
                            let work = turns::tile::<KEYS>(params, opaque(index));
                            let first = work.first + group * 64 + opaque(thread::thread_idx_x()) / 32 % 4 * 16;
                            let own = Rows::of_plane::<false>(forward, (work.batch, work.head), work.mask, first);
                            let column = (info & TILE) * rows;
                            own.mask_within(&mut scores.0, column as i32, work.own_len as i32);
                        }
                        let staged = shared.statistics(q) + opaque(thread::thread_idx_x()) % 4 * 8;
                        let (mut weights, mut held) = ([0; S], [0; S]);
                        let mut i = 0;
                        while i < S / 4 {
                            let lse: [f32; 2] = ld(staged + 32 * i as u32);
                            let mut j = 0;
                            while j < 4 {
                                let r = 4 * i + j;
                                scores.0[r] = ex2(fma(scores.0[r], forward.scale_log2, -lse[j % 2]));
                                j += 1;
                            }
                            if HELD {
                                // At once: there are no registers for all of P twice.
                                let four = [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3].map(|r| scores.0[r]);
                                [weights[2 * i], weights[2 * i + 1]] =
                                    [E::pack(four[0], four[1]), E::pack(four[2], four[3])];
                                [held[2 * i], held[2 * i + 1]] = hold::<E>(four);
                            }
                            i += 1;
                        }
                        if !HELD {
                            weights = round::<E, S>(&scores.0);
                        }
                        let more_values = issue_weighted::<E, S, O>(values, &weights, (shared.grad(grad), row_panel));

                        let mut gradients = gradients.wait::<1>();
                        let keys = keys_sum.complete();
                        if step != 0 {
                            q_ring.release(Cursor::nth(step - 1));
                        }
                        let mut i = 0;
                        while i < S / 4 {
                            let delta: [f32; 2] = ld(staged + 4 * rows + 32 * i as u32);
                            let p = if HELD {
                                held_at::<E, S>(&held, i)
                            } else {
                                [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3].map(|r| scores.0[r])
                            };
                            let mut j = 0;
                            while j < 4 {
                                let r = 4 * i + j;
                                gradients.0[r] = p[j] * (gradients.0[r] - delta[j % 2]);
                                j += 1;
                            }
                            i += 1;
                        }
                        let slopes = round::<E, S>(&gradients.0);
                        let buffer = if PARTS == 2 {
                            barrier::sync(FREE + group, THREADS);
                            0
                        } else {
                            opaque(step) % 2
                        };
                        store_slopes::<S>(shared.slopes(buffer), group, &slopes);
                        barrier::fence_proxy_async_shared();
                        if PARTS == 2 && pending {
                            // One fence for dS and the last part of dQ.
                            part_ring.publish(Cursor::nth(opaque(step) - 1));
                        }
                        // The registers of P are needed.
                        values = more_values.wait::<0>();
                        grad_ring.release(Cursor::nth(opaque(step)));
                        let more_scores = if $more {
                            let q = Cursor::<STAGES>::nth(step + 1);
                            q_ring.wait_full(q);
                            info = ld(shared.info(q));
                            clear(shared.q(q), info);
                            Some(issue_scores::<E, S>(
                                dim,
                                operand(0),
                                (shared.q(q), row_panel),
                            ))
                        } else {
                            None
                        };
                        barrier::sync(TOGETHER, THREADS);
                        let queries = issue_queries::<E, S, O, STAGES, PARTS>(shared, buffer, group);
                        let q = Cursor::<STAGES>::nth(opaque(step));
                        keys_sum =
                            issue_slopes::<E, S, O>(keys, shared.slopes(buffer), group, (shared.q(q), row_panel));

                        let queries = queries.wait::<1>();
                        if PARTS == 2 {
                            barrier::arrive(FREE + 1 - group, THREADS);
                        }
                        if let Some(more) = more_scores {
                            scores = more.complete();
                        }
                        if !$more {
                            own_ring.release(Cursor::nth(tiles));
                        }
                        let part = Cursor::<PARTS>::nth(opaque(step));
                        part_ring.wait_empty(part);
                        let to = shared.part(part, group) + opaque(thread::thread_idx_x()) % 128 * 16;
                        let mut i = 0;
                        while i < PART / 4 {
                            let [a, b, c, d] = [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3].map(|r| queries.0[r]);
                            st(to + CHUNK * i as u32, [a, b, c, d]);
                            i += 1;
                        }
                        if PARTS == 1 || !$more {
                            barrier::fence_proxy_async_shared();
                            part_ring.publish(part);
                        }
                        if $more {
                            pending = true;
                        }
                        step += 1;
                    }};
                }
                while info & LAST == 0 {
                    step!(true);
                }
                step!(false);
            } else {
                own_ring.release(Cursor::nth(tiles));
            }
            tiles += 1;
            let work = turns::tile::<KEYS>(params, index & !EMPTY);
            let place = (
                work.first + group * 64 + opaque(thread::thread_idx_x()) / 32 % 4 * 16,
                work.own_len,
            );
            let to = (params.dv, &params.dv_strides, work.keys(params));
            store_rows::<E, O>(to, place, forward.value_dim, &values.0, 1.0);
            let keys = keys_sum.wait::<0>();
            let to = (params.dk, &params.dk_strides, work.keys(params));
            store_rows::<E, O>(to, place, forward.head_dim, &keys.0, forward.scale);
        }
    }
}
