//! Attention backward on Hopper: one warpgroup loads by TMA, two compute by wgmma.
//!
//! See [`gradient`](super::gradient) for the kernels: one owns keys, another queries. A computing warpgroup owns 64
//! rows of the block's 128; `S' = own · otherᵀ` and `dP'` are one product each from shared memory, and what becomes of
//! them, `P'` and `dS'`, are the A operands of the products that follow where they are. While a tile's exponentials are
//! computed `dP'` is under way, and `P'·dO` while `dS'` is; in what gaps are left one warpgroup computes for the other.
//! Where dK and dV do not fit the registers together (head dim 256) they have a kernel each.
//!
//! Numerics: scores, `dP`, `P` and sums in f32; `P` and `dS` are rounded to the element type for their products, the
//! gradients once at the end. Rows beyond a sequence are never multiplied: TMA fills zeros beyond the tensor, and the
//! tail of a packed sequence is cleared in shared memory.

use super::{
    gradient::Work,
    hopper::{Half, PANEL_BYTES, clear_rows, issue_scores, issue_weighted, load_panels, round, store_rows},
    params::{AttentionParams, BackwardParams, PANEL, flags},
    rows::{Rows, forget},
};
use crate::pipeline::{Cursor, OneThread, Ring, Warps, ring_bytes};
use core::mem::offset_of;
use cuda_std::{
    barrier, global, grid_dependency, kernel,
    launch::ParamAddress,
    math::{ex2, fma},
    mbarrier, register,
    shared::{dynamic_base, ld, st},
    thread,
    wgmma::{Acc, Bf16, F16, InFlight, MmaShape},
};

/// Own rows of a block: 64 for each of two computing warpgroups.
const ROWS: u32 = 128;
/// All computing threads, and their warps.
const THREADS: u32 = 256;
type Computing = Warps<8>;
/// Named barrier of all computing warps.
const TOGETHER: u32 = 1;

/// Where the operands lie in shared memory, and the rings that guard them.
struct Shared<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32> {
    base: u32,
}

impl<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32>
    Shared<S, O, OWN, STAGES, LATER>
{
    const COLUMNS: u32 = 2 * S as u32;
    const DIM: u32 = 2 * O as u32;
    const PANELS: u32 = Self::DIM / PANEL;
    const OWN_PANEL: u32 = ROWS * PANEL_BYTES;
    const OWN_BYTES: u32 = Self::PANELS * Self::OWN_PANEL;
    const OTHER_PANEL: u32 = Self::COLUMNS * PANEL_BYTES;
    const OTHER_BYTES: u32 = Self::PANELS * Self::OTHER_PANEL;
    const OTHER: u32 = OWN * Self::OWN_BYTES;
    const STATISTICS: u32 = Self::OTHER + (STAGES + LATER) * Self::OTHER_BYTES;
    const BARRIERS: u32 = Self::STATISTICS + STAGES * 8 * Self::COLUMNS;

    /// Guards the two own matrices.
    #[inline(always)]
    fn own_ring(&self) -> Ring<1, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS)
    }
    /// Guards the streamed tiles of Q or K.
    #[inline(always)]
    fn ring(&self) -> Ring<STAGES, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1))
    }
    /// Guards their statistics.
    #[inline(always)]
    fn statistics_ring(&self) -> Ring<STAGES, Warps<1>, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + ring_bytes(STAGES))
    }
    /// Guards the streamed tiles of dO or V.
    #[inline(always)]
    fn later_ring(&self) -> Ring<LATER, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + 2 * ring_bytes(STAGES))
    }
    /// Own rows of K or Q (0), of V or dO (1).
    #[inline(always)]
    fn own(&self, which: u32) -> u32 {
        self.base + which * Self::OWN_BYTES
    }
    /// A streamed tile of Q or K.
    #[inline(always)]
    fn other(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::OTHER + at.stage() * Self::OTHER_BYTES
    }
    /// A streamed tile of dO or V.
    #[inline(always)]
    fn later(&self, at: Cursor<LATER>) -> u32 {
        self.base + Self::OTHER + (STAGES + at.stage()) * Self::OTHER_BYTES
    }
    /// LSE of a streamed tile of queries (0), Δ (1).
    #[inline(always)]
    fn statistics(&self, at: Cursor<STAGES>, which: u32) -> u32 {
        self.base + Self::STATISTICS + (2 * at.stage() + which) * 4 * Self::COLUMNS
    }
}

/// The block's tile, found again wherever it is needed rather than kept in registers.
#[inline(always)]
unsafe fn own_work<const KEYS: bool>(params: &BackwardParams) -> Work {
    // SAFETY: `params` are those of the launch.
    unsafe {
        let (index, all) = (forget(thread::block_idx_x()), forget(params.attention.flags));
        Work::by_flags::<KEYS>(index, params, all, ROWS)
    }
}

/// The tiles of `columns` streamed rows that the block's own rows need.
#[inline(always)]
fn tiles(work: &Work, columns: u32) -> (i32, i32) {
    if work.first >= work.own_len {
        // Of a sequence that is shorter than the longest one: nothing to load, compute or store.
        return (0, 0);
    }
    work.mask
        .tiles(work.first as i32, work.last(work.first, ROWS), columns as i32)
}

/// The whole kernel: `S` registers of scores (streamed rows of a tile / 2), `O` of a gradient (padded head dim / 2).
/// Own rows are `KEYS` or queries; it sums dQ or dK (`FIRST`), and dV (`SECOND`).
#[inline(always)]
unsafe fn backward<
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
    params: &BackwardParams,
    address: ParamAddress,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let shared = Shared::<S, O, OWN, STAGES, LATER> { base: dynamic_base() };
    // SAFETY: one thread initialises before all meet; whole warpgroups take each arm; register counts add up.
    unsafe {
        // The kernels of a problem need nothing of one another: the next one takes the multiprocessors that this one's last
        // tiles leave idle. Each ends after the one before, so that the last one's end is that of all.
        grid_dependency::launch_dependents();
        if thread::thread_idx_x() == 0 {
            shared.own_ring().init();
            shared.ring().init();
            shared.statistics_ring().init();
            shared.later_ring().init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        let warpgroup = thread::thread_idx_x() / 128;
        if warpgroup == 0 {
            register::setmaxnreg_dec::<40>();
            if thread::thread_idx_x() == 0 {
                produce::<S, O, OWN, STAGES, LATER, KEYS>(&shared, params, address);
            } else if KEYS && thread::thread_idx_x() / 32 == 1 {
                stage_statistics(&shared, params);
            }
        } else {
            register::setmaxnreg_inc::<232>();
            consume::<E, S, O, OWN, STAGES, LATER, KEYS, FIRST, SECOND>(&shared, params, warpgroup - 1);
        }
        grid_dependency::wait();
    }
}

/// Loads the own matrices once and streams the others, the heads of a group one after the other.
#[inline(always)]
unsafe fn produce<
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
        let (begin, end) = tiles(&work, Shared::<S, O, OWN, STAGES, LATER>::COLUMNS);
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
                ring.expect(at, Shared::<S, O, OWN, STAGES, LATER>::OTHER_BYTES);
                load_panels(others[0], shared.other(at), other_box, place, ring.full(at));
                at = at.next();
                later_ring.wait_empty(later);
                later_ring.expect(later, Shared::<S, O, OWN, STAGES, LATER>::OTHER_BYTES);
                load_panels(others[1], shared.later(later), other_box, place, later_ring.full(later));
                later = later.next();
                n += 1;
            }
            turn += 1;
        }
    }
}

/// Puts base-2 LSE and Δ of the streamed queries beside them, such that P is 0 where there is no query or it sees no
/// key; one warp, with few registers.
#[inline(always)]
unsafe fn stage_statistics<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32>(
    shared: &Shared<S, O, OWN, STAGES, LATER>,
    params: &BackwardParams,
) {
    let columns = Shared::<S, O, OWN, STAGES, LATER>::COLUMNS;
    // SAFETY: a whole warp; the ring as initialised; rows beyond the sequence are not read.
    unsafe {
        let work = own_work::<true>(params);
        let (begin, end) = tiles(&work, columns);
        let strides = &params.attention.lse_strides;
        let first = work.sequence(params) * strides[0] + work.head as u64 * strides[1] + work.start_q as u64;
        let mut plane = 4 * first;
        let rows = work.mask.seq_kv as u32;
        let (mut left, begin, end) = (work.turns, begin as u32 * columns, end as u32 * columns);
        let (ring, mut at) = (shared.statistics_ring(), Cursor::<STAGES>::start());
        while left > 0 {
            let mut tile = begin;
            while tile < end {
                ring.wait_empty(at);
                let to = forget(shared.statistics(at, 0) + 4 * thread::lane_id());
                let mut column = 0;
                while column < columns {
                    let row = forget(tile) + column + thread::lane_id();
                    let (mut lse, mut delta) = (f32::INFINITY, 0.0);
                    if row < rows {
                        let from = plane + 4 * row as u64;
                        let natural: f32 = global::ld_nc((params.attention.lse + from) as *const f32);
                        if natural != f32::NEG_INFINITY {
                            lse = natural * core::f32::consts::LOG2_E;
                            delta = global::ld_nc((params.delta + from) as *const f32);
                        }
                    }
                    st(to + 4 * column, lse);
                    st(to + 4 * (columns + column), delta);
                    column = forget(column + 32);
                }
                ring.publish(at);
                at = at.next();
                tile += columns;
            }
            plane += 4 * strides[1];
            left -= 1;
        }
    }
}

/// Computes and writes the block's rows that belong to computing warpgroup `group`.
#[inline(always)]
unsafe fn consume<
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
        let (begin, end) = tiles(&work, columns);
        let first = work.first + group * 64;
        let (whole_begin, whole_end) = work
            .mask
            .whole_tiles(first as i32, work.last(first, 64), columns as i32);
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
        // Registers are scarce: places in rings follow from one counter.
        let mut step = 0;
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
        macro_rules! tile {
            ($n:expr, $masked:expr) => {{
                let (at, later) = (Cursor::<STAGES>::nth(step), Cursor::<LATER>::nth(step));
                shared.ring().wait_full(at);
                if KEYS {
                    shared.statistics_ring().wait_full(at);
                }
                let valid = work.mask.seq_kv - $n * columns as i32;
                if forward.flags & flags::VARLEN != 0 && valid < columns as i32 {
                    let me = (forget(thread::thread_idx_x()) - 128, THREADS);
                    let rows = (forget(valid as u32), columns);
                    shared.later_ring().wait_full(later);
                    clear_rows(
                        shared.other(at),
                        Shared::<S, O, OWN, STAGES, LATER>::PANELS,
                        rows,
                        me,
                    );
                    clear_rows(
                        shared.later(later),
                        Shared::<S, O, OWN, STAGES, LATER>::PANELS,
                        rows,
                        me,
                    );
                    barrier::sync(TOGETHER, THREADS);
                }
                // Descriptors are made again for each tile: all together they would not fit the registers.
                let base = forget(shared.base + group * 64 * PANEL_BYTES);
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
                        forget(shared.later(later)),
                        Shared::<S, O, OWN, STAGES, LATER>::OTHER_PANEL,
                    ),
                ];
                let dim = Shared::<S, O, OWN, STAGES, LATER>::DIM;
                let staged = shared.statistics(at, 0) + forget(thread::thread_idx_x()) % 4 * 8;
                let scores = issue_scores::<E, S>(dim, own[0], other[0]);
                if FIRST {
                    shared.later_ring().wait_full(later);
                }
                // dV alone has no use for dP: an empty product.
                let gradients = issue_scores::<E, S>(if FIRST { dim } else { 0 }, own[1], other[1]);
                let mut scores = scores.wait::<1>();
                if $masked {
                    let work = own_work::<KEYS>(params);
                    let first = work.first + group * 64 + forget(thread::thread_idx_x()) / 32 % 4 * 16;
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
                    shared.later_ring().release(later);
                    let weights = derivative!(gradients);
                    sum = issue_weighted::<E, S, O>(sum, &weights, other[0]).wait::<0>();
                } else {
                    shared.ring().release(at);
                    shared.statistics_ring().release(at);
                    let weights = round::<E, S>(&scores.0);
                    shared.later_ring().wait_full(later);
                    values = issue_weighted::<E, S, O>(values, &weights, other[1]).wait::<0>();
                }
                if SECOND {
                    shared.later_ring().release(later);
                }
                if FIRST {
                    shared.ring().release(at);
                    if KEYS {
                        shared.statistics_ring().release(at);
                    }
                }
                step += 1;
            }};
        }

        let mut turn = 0;
        while turn < work.turns {
            let mut n = begin;
            while n < end {
                tile!(n, n < whole_begin || n >= whole_end);
                n += 1;
            }
            turn += 1;
        }

        let work = own_work::<KEYS>(params);
        let own = (
            work.first + group * 64 + forget(thread::thread_idx_x()) / 32 % 4 * 16,
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

macro_rules! kernels {
    ($($unit:literal: $dim:literal dim, $other:literal other, own $own:literal, $stages:literal and $later:literal stages,
        keys $keys:literal, first $first:literal, second $second:literal: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $dim $other $own $stages $later $keys $first $second $f16 F16 }
        kernels! { @one $unit $dim $other $own $stages $later $keys $first $second $bf16 Bf16 }
    )*};
    (@one $unit:literal $dim:literal $other:literal $own:literal $stages:literal $later:literal
        $keys:literal $first:literal $second:literal $name:ident $element:ident) => {
        kernel! {
            /// Attention backward; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors, the maps were encoded for this kernel's boxes; Δ has been written.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_sm90`; a grid of one block a tile.
            #[launch(threads = 384, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams, address: ParamAddress) {
                backward::<$element, { $other / 2 }, { $dim / 2 }, $own, $stages, $later, $keys, $first, $second>(
                    &params, address,
                )
            }
        }
    };
}

// The same tiles as `params::BACKWARD_SM90`.
kernels! {
    "attention_backward_d64": 64 dim, 96 other, own 2, 3 and 3 stages, keys true, first true, second true:
        attention_backward_kv_f16_d64 attention_backward_kv_bf16_d64;
    "attention_backward_d64": 64 dim, 128 other, own 2, 3 and 3 stages, keys false, first true, second false:
        attention_backward_q_f16_d64 attention_backward_q_bf16_d64;
    "attention_backward_d128": 128 dim, 64 other, own 2, 3 and 3 stages, keys true, first true, second true:
        attention_backward_kv_f16_d128 attention_backward_kv_bf16_d128;
    "attention_backward_d128": 128 dim, 128 other, own 2, 2 and 2 stages, keys false, first true, second false:
        attention_backward_q_f16_d128 attention_backward_q_bf16_d128;
    "attention_backward_d256": 256 dim, 64 other, own 2, 2 and 1 stages, keys true, first true, second false:
        attention_backward_k_f16_d256 attention_backward_k_bf16_d256;
    "attention_backward_d256": 256 dim, 64 other, own 1, 2 and 3 stages, keys true, first false, second true:
        attention_backward_v_f16_d256 attention_backward_v_bf16_d256;
    "attention_backward_d256": 256 dim, 64 other, own 2, 2 and 1 stages, keys false, first true, second false:
        attention_backward_q_f16_d256 attention_backward_q_bf16_d256;
}
