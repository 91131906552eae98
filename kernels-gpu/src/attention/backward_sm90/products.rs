//! The warpgroups that compute.

use super::{ROWS, Shared, THREADS, TOGETHER, own_work, tiles};
use crate::attention::{
    hopper::{Half, PANEL_BYTES, clear_rows, issue_scores, issue_weighted, round, store_rows},
    params::{BackwardParams, flags},
    rows::Rows,
};
use crate::pipeline::Cursor;
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier,
    math::{ex2, fma},
    shared::ld,
    thread,
    wgmma::{Acc, InFlight, MmaShape},
};

/// Computes and writes the block's rows that belong to computing warpgroup `group`.
///
/// # Safety
/// - The whole warpgroup calls this; rings are initialised, parameters those of the launch.
#[inline(always)]
pub unsafe fn consume<
    E: Half,
    const S: usize,
    const O: usize,
    const OWN: u32,
    const STAGES: u32,
    const LATER: u32,
    const KEYS: bool,
    const FIRST: bool,
    const SECOND: bool,
>(
    shared: &Shared<S, O, OWN, STAGES, LATER>,
    params: &BackwardParams,
    group: u32,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let forward = &params.attention;
    let columns = Shared::<S, O, OWN, STAGES, LATER>::COLUMNS;
    let (warp, lane) = (thread::thread_idx_x() / 32 % 4, thread::lane_id());
    // SAFETY: rings as initialised; all warpgroups run the same tiles, so arrivals match.
    unsafe {
        let work = own_work::<KEYS>(params);
        let (begin, end) = tiles(&work, work.first, ROWS, columns);
        let first = work.first + group * 64;
        let (whole_begin, whole_end) = work
            .mask
            .whole_tiles(first as i32, work.last(first, 64), columns as i32);
        // Those of them that its warpgroup needs.
        let (seen_begin, seen_end) = tiles(&work, first, 64, columns);
        let row = first + warp * 16 + lane / 4;
        // Of the own rows, if they are queries: base-2 LSE and Δ.
        let own_statistics = if KEYS {
            [[0.0; 2]; 2]
        } else {
            [
                work.statistics(params, 0, row, work.own_len),
                work.statistics(params, 0, row + 8, work.own_len),
            ]
        };
        let mut sum = Acc::<O>::ZERO;
        let mut values = Acc::<O>::ZERO;
        let mut at = Cursor::<STAGES>::start();
        let mut later = Cursor::<LATER>::start();
        if begin < end {
            shared.own_ring().wait_full(Cursor::start());
        }

        // LSE (0) or Δ (1) of registers `4i` to `4i + 3`; staged ones from `at` on.
        let statistics = |at: u32, which: usize, i: usize| {
            if KEYS {
                let pair: [f32; 2] = ld(at + which as u32 * 4 * columns + 32 * i as u32);
                [pair[0], pair[1], pair[0], pair[1]]
            } else {
                let [a, b] = own_statistics;
                [a[which], a[which], b[which], b[which]]
            }
        };
        let joint = Shared::<S, O, OWN, STAGES, LATER>::JOINT;
        let panels = Shared::<S, O, OWN, STAGES, LATER>::PANELS;
        macro_rules! arrived {
            ($n:expr) => {{
                shared.ring().wait_full(at);
                if KEYS {
                    shared.statistics_ring().wait_full(at);
                }
                let valid = work.mask.seq_kv - $n * columns as i32;
                if forward.flags & flags::VARLEN != 0 && valid < columns as i32 {
                    let me = (opaque(thread::thread_idx_x()) - 128, THREADS);
                    let rows = (opaque(valid as u32), columns);
                    if !joint {
                        shared.later_ring().wait_full(later);
                    }
                    clear_rows(shared.other(at), panels, rows, me);
                    clear_rows(shared.later(later), panels, rows, me);
                    barrier::sync(TOGETHER, THREADS);
                }
            }};
        }
        macro_rules! next {
            () => {
                at = at.next();
                later = later.next();
            };
        }
        macro_rules! tile {
            ($n:expr, $masked:expr) => {{
                arrived!($n);
                // Descriptors are made again for each tile: all together they would not fit the registers.
                let base = opaque(shared.base + group * 64 * PANEL_BYTES);
                let own = [
                    (base, Shared::<S, O, OWN, STAGES, LATER>::OWN_PANEL),
                    (
                        base + Shared::<S, O, OWN, STAGES, LATER>::OWN_BYTES,
                        Shared::<S, O, OWN, STAGES, LATER>::OWN_PANEL,
                    ),
                ];
                let other = [
                    (shared.other(at), Shared::<S, O, OWN, STAGES, LATER>::OTHER_PANEL),
                    (
                        opaque(shared.later(later)),
                        Shared::<S, O, OWN, STAGES, LATER>::OTHER_PANEL,
                    ),
                ];
                let dim = Shared::<S, O, OWN, STAGES, LATER>::DIM;
                let staged = shared.statistics(at, 0) + opaque(thread::thread_idx_x()) % 4 * 8;
                let scores = issue_scores::<E, S>(dim, own[0], other[0]);
                if FIRST && !joint {
                    shared.later_ring().wait_full(later);
                }
                // dV alone has no use for dP: an empty product.
                let gradients = issue_scores::<E, S>(if FIRST { dim } else { 0 }, own[1], other[1]);
                let mut scores = scores.wait::<1>();
                if $masked {
                    let work = own_work::<KEYS>(params);
                    let first = work.first + group * 64 + opaque(thread::thread_idx_x()) / 32 % 4 * 16;
                    let own = Rows::of_plane::<false>(forward, (work.batch, work.head), work.mask, first);
                    own.mask(&mut scores.0, $n * columns as i32);
                }
                let mut i = 0;
                while i < S / 4 {
                    let lse = statistics(staged, 0, i);
                    let mut j = 0;
                    while j < 4 {
                        scores.0[4 * i + j] = ex2(fma(scores.0[4 * i + j], forward.scale_log2, -lse[j]));
                        j += 1;
                    }
                    i += 1;
                }
                macro_rules! derivative {
                    ($gradients:ident) => {{
                        let mut i = 0;
                        while i < S / 4 {
                            let delta = statistics(staged, 1, i);
                            let mut j = 0;
                            while j < 4 {
                                let r = 4 * i + j;
                                $gradients.0[r] = scores.0[r] * ($gradients.0[r] - delta[j]);
                                j += 1;
                            }
                            i += 1;
                        }
                        round::<E, S>(&$gradients.0)
                    }};
                }
                if FIRST && SECOND {
                    let weights = round::<E, S>(&scores.0);
                    let more_values = issue_weighted::<E, S, O>(values, &weights, other[1]);
                    let mut gradients = gradients.wait::<1>();
                    let weights = derivative!(gradients);
                    let more = issue_weighted::<E, S, O>(sum, &weights, other[0]);
                    sum = more.wait::<0>();
                    values = more_values.complete();
                } else if FIRST {
                    let mut gradients = gradients.wait::<0>();
                    if !joint {
                        shared.later_ring().release(later);
                    }
                    let weights = derivative!(gradients);
                    sum = issue_weighted::<E, S, O>(sum, &weights, other[0]).wait::<0>();
                } else {
                    // There are more stages of dO: what Q takes is free early.
                    shared.ring().release(at);
                    shared.statistics_ring().release(at);
                    let weights = round::<E, S>(&scores.0);
                    shared.later_ring().wait_full(later);
                    values = issue_weighted::<E, S, O>(values, &weights, other[1]).wait::<0>();
                }
                if SECOND && !joint {
                    shared.later_ring().release(later);
                }
                if FIRST {
                    shared.ring().release(at);
                    if KEYS {
                        shared.statistics_ring().release(at);
                    }
                }
                next!();
            }};
        }
        // Gives back a tile of which all scores are masked.
        macro_rules! pass {
            ($n:expr) => {{
                arrived!($n);
                if !joint {
                    shared.later_ring().wait_full(later);
                    shared.later_ring().release(later);
                }
                shared.ring().release(at);
                if KEYS {
                    shared.statistics_ring().release(at);
                }
                next!();
            }};
        }

        let mut turn = 0;
        while turn < work.turns {
            let mut n = begin;
            while n < seen_begin {
                pass!(n);
                n += 1;
            }
            while n < seen_end && n < whole_begin {
                tile!(n, true);
                n += 1;
            }
            while n < seen_end && n < whole_end {
                tile!(n, false);
                n += 1;
            }
            while n < seen_end {
                tile!(n, true);
                n += 1;
            }
            while n < end {
                pass!(n);
                n += 1;
            }
            turn += 1;
        }

        let work = own_work::<KEYS>(params);
        let own = (
            work.first + group * 64 + opaque(thread::thread_idx_x()) / 32 % 4 * 16,
            work.own_len,
        );
        if FIRST {
            let to = if KEYS {
                (params.dk, &params.dk_strides, work.keys(params))
            } else {
                (params.dq, &params.dq_strides, work.queries(params, 0))
            };
            store_rows::<E, O>(to, own, forward.head_dim, &sum.0, forward.scale);
        }
        if SECOND {
            let to = (params.dv, &params.dv_strides, work.keys(params));
            store_rows::<E, O>(to, own, forward.value_dim, &values.0, 1.0);
        }
    }
}
