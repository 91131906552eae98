//! The computing warpgroup.

use super::{
    super::{
        DecodeParams, MERGE_THREADS,
        finish::{finished as finish_row, fold, join, output_address, shift, tile_number, write_lse},
        fresh::Quad,
        merge::merge,
        tensor::{Scoring, finished},
        work::Row,
    },
    PACKED_KEYS, PACKED_PANEL_BYTES, PACKED_THREADS, PAIR, PackedParams, PackedShape,
    gather::{Share, gather, give, given_barrier},
    operands::{meet, mend, operand_row, place_in, prefetch_queries, stage_queries, stage_rotated},
    produce::{Feed, Item, base, first_item, ring, tile_of},
};
use crate::tile::opaque::opaque;
use crate::{
    attention::hopper::{Half, issue_scores, issue_weighted},
    pipeline::Cursor,
    tile::element,
};
use cuda_std::{
    barrier::{self, cluster_arrive_relaxed, cluster_wait},
    global, grid_dependency, kernel,
    launch::ParamAddress,
    math::{ex2, fma, fmax},
    mbarrier, register, shared, thread, warp,
    wgmma::{Acc, Bf16, F16, InFlight, MmaShape},
};

/// Registers of the scores of a step.
const S: usize = PACKED_KEYS as usize / 2;
/// Teams of most blocks.
const ONE: u32 = 1;
/// Threads of a team that compute, and the barrier of the first team's.
pub const COMPUTING: u32 = 128;
pub const TOGETHER: u32 = 1;

/// Pieces whose loads a merging thread has under way at a time: one of these blocks fits beside two that compute.
const AHEAD: usize = 6;

/// The whole kernel: `O` registers of output, `K` stages; `H` rows of a thread: 1 where a tile has at most 32; `P` teams.
#[inline(always)]
unsafe fn run<
    E: Half,
    T: Quad,
    const DIM: u32,
    const O: usize,
    const Q: usize,
    const K: u32,
    const H: usize,
    const P: u32,
>(
    params: &PackedParams,
    address: ParamAddress,
) where
    InFlight<O>: MmaShape,
{
    // SAFETY: one thread initialises before all meet.
    unsafe {
        let computes = P * COMPUTING;
        if thread::thread_idx_x() < computes && own_thread::<P>() == 0 {
            ring::<DIM, K, H, P>().init();
            if P > 1 && thread::thread_idx_x() == 0 {
                mbarrier::init(given_barrier::<DIM, P>(), 1);
            }
            mbarrier::fence_init();
        }
        if H == 1 && thread::thread_idx_x() < computes {
            // Rows that do not exist are never read, but multiplied.
            let queries = base::<DIM, H, P>() + const { PackedShape::new(DIM, false, P).queries_at() };
            let mut chunk = own_thread::<P>();
            while chunk < 32 * (DIM / 8) {
                let at = place_in(queries, operand_row(32 + chunk % 32), chunk / 32 * 8);
                shared::st(at, [0u32; 4]);
                chunk += COMPUTING;
            }
        }
        barrier::syncthreads();
        if P > 1 {
            cluster_arrive_relaxed();
        }
        let warp = thread::uniform_warp_idx();
        let loads = warp >= computes / 32;
        let values = warp % 2 == 1;
        if !loads && first_item::<P>(&params.decode) < params.items {
            prefetch_queries::<DIM, P>(
                &params.decode,
                &tile_of(&params.decode, first_item::<P>(&params.decode)),
            );
        }
        if loads {
            Feed::<DIM, K, H, P>::prefetch(params, address, values);
        }
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        if loads {
            if P > 1 {
                register::setmaxnreg_dec::<56>();
            }
            let mut feed = Feed::<DIM, K, H, P>::new(params, address, values);
            while feed.more() {
                feed.load(params);
            }
            if P > 1 {
                cluster_wait();
            }
        } else {
            if P > 1 {
                register::setmaxnreg_inc::<224>();
            }
            consume::<E, T, DIM, O, Q, K, H, P>(&params.decode, params.items);
        }
    }
}

/// A computing thread's number in its team.
#[inline(always)]
pub fn own_thread<const P: u32>() -> u32 {
    // Nobody has a register for it.
    let thread = opaque(thread::thread_idx_x());
    if P > 1 { thread % COMPUTING } else { thread }
}

/// The first of a thread's rows; the other is 32 further.
#[inline(always)]
fn own_row<const P: u32>() -> u32 {
    own_thread::<P>() / 4
}

/// A thread's rows: maximum and own part of the sum, in units of log₂.
struct Rows<const H: usize> {
    row: [Row; H],
    maximum: [f32; H],
    sum: [f32; H],
}

impl<const H: usize> Rows<H> {
    /// Turns the scores of the keys from `first` on into weights; returns the factors of what was seen before, if any is not 1.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    unsafe fn weigh(&mut self, params: &DecodeParams, scale: f32, x: &mut [f32; S], first: u32) -> Option<[f32; H]> {
        // SAFETY: forwarded to the caller.
        unsafe {
            let first = first as i32;
            let mut inner = params.softcap == 0.0 && params.alibi_slopes == 0 && scale >= 0.0;
            let mut h = 0;
            while h < H {
                inner = inner && self.row[h].begin <= first && first + PACKED_KEYS as i32 <= self.row[h].end;
                h += 1;
            }
            let mut factor = scale;
            if !warp::vote_all(warp::FULL, inner) {
                let key = first + (opaque(thread::lane_id()) % 4 * 2) as i32;
                let cap = params.softcap * core::f32::consts::LOG2_E;
                h = 0;
                while h < H {
                    let mut i = 0;
                    while i < S / 2 {
                        let at = i / 2 * 4 + 2 * h + i % 2;
                        let key = key + (i / 2 * 8 + i % 2) as i32;
                        x[at] = finished(x[at] * scale, cap, params, &self.row[h], key);
                        i += 1;
                    }
                    h += 1;
                }
                factor = 1.0;
            }
            let mut shrink = [1.0; H];
            let mut changed = false;
            h = 0;
            while h < H {
                // Four chains.
                let mut here = [f32::NEG_INFINITY; 4];
                let mut i = 0;
                while i < S / 4 {
                    here[i % 4] = fmax(here[i % 4], fmax(x[4 * i + 2 * h], x[4 * i + 2 * h + 1]));
                    i += 1;
                }
                let here = fmax(fmax(here[0], here[1]), fmax(here[2], here[3]));
                let maximum = fmax(self.maximum[h], warp::reduce_max::<4>(here) * factor);
                let base = shift(maximum);
                shrink[h] = ex2(self.maximum[h] - base);
                changed = changed || shrink[h] != 1.0;
                self.maximum[h] = maximum;
                let mut sum = [0.0; 4];
                i = 0;
                while i < S / 4 {
                    let at = 4 * i + 2 * h;
                    x[at] = ex2(fma(x[at], factor, -base));
                    x[at + 1] = ex2(fma(x[at + 1], factor, -base));
                    sum[i % 4] += x[at] + x[at + 1];
                    i += 1;
                }
                let sum = (sum[0] + sum[1]) + (sum[2] + sum[3]);
                self.sum[h] = fma(self.sum[h], shrink[h], sum);
                h += 1;
            }
            // Factors of 1 change nothing.
            warp::vote_any(warp::FULL, changed).then_some(shrink)
        }
    }
}

/// Weights as the A operand of the next product; rows that do not exist have none.
#[inline(always)]
fn round<E: Half, const H: usize>(x: &[f32; S]) -> [u32; S] {
    let mut words = [0; S];
    let mut i = 0;
    while i < S / 2 {
        if i % 2 < H {
            words[i] = E::pack(x[2 * i], x[2 * i + 1]);
        }
        i += 1;
    }
    words
}

/// Computes the block's items.
///
/// # Safety
/// - The warpgroup calls this together.
#[inline(always)]
unsafe fn consume<
    E: Half,
    T: Quad,
    const DIM: u32,
    const O: usize,
    const Q: usize,
    const K: u32,
    const H: usize,
    const P: u32,
>(
    params: &DecodeParams,
    items: u32,
) where
    InFlight<O>: MmaShape,
{
    let shape = const { PackedShape::new(DIM, H == 2, P) };
    let ring = ring::<DIM, K, H, P>();
    let mut at = Cursor::<K>::start();
    let mut index = first_item::<P>(params);
    // SAFETY: forwarded to the caller.
    unsafe {
        // Of several teams each has one item at most.
        while P > 1 || index < items {
            if params.k_new == 0 {
                stage_queries::<DIM, H, P>(params, &tile_of(params, index));
            }
            let item = Item::new(params, index);
            if let Some(item) = &item {
                if params.k_new != 0 {
                    stage_rotated::<T, DIM, H, P>(params, item);
                }
                meet::<P>();
            }
            let mut share = None;
            if P > 1 {
                let own = Share::new::<T, DIM, P>(params, 0);
                own.expect::<DIM, P>(params);
                share = Some(own);
                // The other blocks have begun: their memory may be written.
                cluster_wait();
            }
            if let Some(item) = item {
                let work = item.work;
                let live = thread::uniform_warp_idx() % 4 * 8 < work.rows;
                let scale = Scoring::new(params, work.head).scale;
                let mut rows = Rows::<H> {
                    row: core::array::from_fn(|h| work.row(params, own_row::<P>() + 32 * h as u32)),
                    maximum: [f32::NEG_INFINITY; H],
                    sum: [0.0; H],
                };
                let mut totals = [[f32::NEG_INFINITY, 0.0]; H];
                // Of rows that exist: pairs of neighbours.
                let mut total = [[[0.0f32; 2]; H]; Q];
                let mut out = Acc::<O>::ZERO;
                let queries = base::<DIM, H, P>() + shape.queries_at();
                let mut first = item.begin & !(PACKED_KEYS - 1);
                while first < item.end {
                    let keys = base::<DIM, H, P>() + at.stage() * shape.stage_bytes();
                    let values = keys + shape.tile_bytes();
                    ring.wait_full(at);
                    let edge = first < work.low || first + PACKED_KEYS > work.high;
                    if edge || params.k_new != 0 && first + PACKED_KEYS > work.fresh {
                        mend::<DIM, H, P>(params, &work, [keys, values], first);
                    }
                    let mut x = issue_scores::<E, S>(DIM, (queries, PACKED_PANEL_BYTES), (keys, PACKED_PANEL_BYTES))
                        .wait::<0>();
                    if live && let Some(shrink) = rows.weigh(params, scale, &mut x.0, first) {
                        let mut i = 0;
                        while i < O {
                            if i / 2 % 2 < H {
                                out.0[i] *= shrink[i / 2 % 2];
                            }
                            i += 1;
                        }
                    }
                    let weights = round::<E, H>(&x.0);
                    out = issue_weighted::<E, S, O>(out, &weights, (values, PACKED_PANEL_BYTES)).wait::<0>();
                    ring.release(at);
                    at = at.next();
                    first += PACKED_KEYS;
                    if first & (work.size - 1) == 0 || first >= item.end {
                        // The piece ends.
                        let mut h = 0;
                        while h < H {
                            let sum = warp::reduce_sum::<4>(rows.sum[h]);
                            let (joined, factors) = join(totals[h], [rows.maximum[h], sum]);
                            totals[h] = joined;
                            rows.maximum[h] = f32::NEG_INFINITY;
                            rows.sum[h] = 0.0;
                            let mut i = 0;
                            while i < Q {
                                let at = 4 * i + 2 * h;
                                total[i][h][0] = fold(total[i][h][0], factors, out.0[at]);
                                total[i][h][1] = fold(total[i][h][1], factors, out.0[at + 1]);
                                i += 1;
                            }
                            h += 1;
                        }
                        out = Acc::<O>::ZERO;
                    }
                }
                if P > 1 {
                    if live {
                        write::<E, T, DIM, Q, H, P>(params, &item, &totals, &total);
                    }
                } else if live && let Some(item) = Item::new(params, opaque(index)) {
                    // Found again rather than kept.
                    write::<E, T, DIM, Q, H, P>(params, &item, &totals, &total);
                }
            }
            if let Some(share) = share {
                gather::<E, T, DIM, P>(params, share);
                break;
            }
            index += thread::grid_dim_x();
        }
    }
}

/// Writes what a thread has of its rows: to the workspace, or finished.
///
/// # Safety
/// - The warp calls this together.
#[inline(always)]
unsafe fn write<E: Half, T: Quad, const DIM: u32, const Q: usize, const H: usize, const P: u32>(
    params: &DecodeParams,
    item: &Item,
    totals: &[[f32; 2]; H],
    total: &[[[f32; 2]; H]; Q],
) {
    let lane = opaque(thread::lane_id());
    let work = &item.work;
    let first = lane % 4 * 2;
    let mut h = 0;
    // SAFETY: rows that exist.
    unsafe {
        while h < H {
            let row = own_row::<P>() + 32 * h as u32;
            if row < work.rows && item.count == 1 {
                let (factor, lse) = finish_row(params, work, row, totals[h]);
                if lane % 4 == 0 {
                    write_lse(params, work, row, lse);
                }
                let to = output_address::<T>(params, work, row);
                let mut i = 0;
                while i < Q {
                    let column = first + i as u32 * 8;
                    if column < params.value_dim {
                        let [a, b] = total[i][h];
                        global::st((to + column as u64 * 2) as *mut u32, E::pack(a * factor, b * factor));
                    }
                    i += 1;
                }
            } else if row < work.rows && P > 1 {
                give::<DIM, Q, P>(params, item.number, row, totals[h], |i| total[i][h]);
            } else if row < work.rows {
                let place = (tile_number(params, work) * params.splits as u64 + item.number as u64)
                    * params.rows as u64
                    + row as u64;
                if lane % 4 == 0 {
                    global::st((params.statistics + place * 8) as *mut [f32; 2], totals[h]);
                }
                let to = params.partial + place * params.value_dim as u64 * 4;
                let mut i = 0;
                while i < Q {
                    let column = first + i as u32 * 8;
                    if column < params.value_dim {
                        global::st((to + column as u64 * 4) as *mut [f32; 2], total[i][h]);
                    }
                    i += 1;
                }
            }
            h += 1;
        }
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal $rows:literal $teams:ident;)*) => {
        kernel! {$(
            /// Decode attention of up to 64 rows; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            /// - Of `decode_packed_pair_*` a cluster has a tile, and no team more than one item.
            #[launch(threads = PACKED_THREADS * $teams, min_blocks = PackedShape::new($dim, $rows == 2, $teams).blocks(), tensor_core = 1, param_align = 64)]
            pub fn $name(params: PackedParams, address: ParamAddress) {
                const STAGES: u32 = PackedShape::new($dim, $rows == 2, $teams).stages();
                run::<$element, element::$element, $dim, { $dim / 2 }, { $dim / 8 }, STAGES, $rows, $teams>(&params, address)
            }
        )*}
    };
}

kernels! {
    decode_packed_f16_d64 F16 64 1 ONE;
    decode_packed_f16_d128 F16 128 1 ONE;
    decode_packed_bf16_d64 Bf16 64 1 ONE;
    decode_packed_bf16_d128 Bf16 128 1 ONE;
    decode_packed_tall_f16_d64 F16 64 2 ONE;
    decode_packed_tall_f16_d128 F16 128 2 ONE;
    decode_packed_tall_bf16_d64 Bf16 64 2 ONE;
    decode_packed_tall_bf16_d128 Bf16 128 2 ONE;
    decode_packed_pair_f16_d64 F16 64 1 PAIR;
    decode_packed_pair_f16_d128 F16 128 1 PAIR;
    decode_packed_pair_bf16_d64 Bf16 64 1 PAIR;
    decode_packed_pair_bf16_d128 Bf16 128 1 PAIR;
}

kernel! {
    /// Folds pieces of `decode_packed_f16_*`, beside it on a multiprocessor; see [`crate::decode`].
    ///
    /// # Safety
    /// - The workspace holds what the kernel with the same parameters wrote.
    #[launch(threads = MERGE_THREADS, min_blocks = 6)]
    pub fn decode_merge_packed_f16(params: DecodeParams) {
        merge::<element::F16, AHEAD>(&params)
    }

    /// Folds pieces of `decode_packed_bf16_*`, beside it on a multiprocessor; see [`crate::decode`].
    ///
    /// # Safety
    /// - The workspace holds what the kernel with the same parameters wrote.
    #[launch(threads = MERGE_THREADS, min_blocks = 6)]
    pub fn decode_merge_packed_bf16(params: DecodeParams) {
        merge::<element::Bf16, AHEAD>(&params)
    }
}
