//! Joining: warps to a piece, pieces to a row, a row to its output. Fixed order everywhere.

use super::{DecodeParams, end::End, fresh::Quad, stream::Engine, work::Work};
use crate::tile::element::Element;
use crate::tile::opaque::opaque;
use core::marker::PhantomData;
use cuda_std::{
    global,
    math::{ex2, fma, fmax, lg2},
    shared,
};

/// What [`plan`](super::plan) says: the cost of each warp's tiles, then a place, 64 bytes; then cursors and segments.
pub const PLAN_AT: u32 = 0;
/// The keys that all rows see, and whose scores have no cap and no bias: first, one past the last; 16 bytes.
const INNER_AT: u32 = PLAN_AT + 64 + 18 * 32;
/// Bounds of the rows: [`Row`](super::work::Row), 16 bytes each.
const ROWS_AT: u32 = INNER_AT + 16;

/// Where the rest of the header is, for tiles of so many rows.
pub struct Layout<E>(PhantomData<E>);

impl<E: Engine> Layout<E> {
    pub const ROWS: u32 = E::SHAPE.rows;
    /// Maximum and sum of each warp's rows.
    pub const WARPS_AT: u32 = ROWS_AT + Self::ROWS * 16;
    /// Factor of each warp's rows.
    pub const FACTORS_AT: u32 = Self::WARPS_AT + 4 * Self::ROWS * 8;
    /// Factors of what was folded before and of the piece, for each row.
    pub const FOLD_AT: u32 = Self::FACTORS_AT + 4 * Self::ROWS * 4;
    /// Maximum and sum of what was folded, for each row.
    pub const TOTAL_AT: u32 = Self::FOLD_AT + Self::ROWS * 8;
    /// Factor that finishes each row.
    pub const FINAL_AT: u32 = Self::TOTAL_AT + Self::ROWS * 8;
    /// Address of each row's output.
    pub const OUT_AT: u32 = Self::FINAL_AT + Self::ROWS * 4;
    /// Address of each row's query; 0 for rows that do not exist.
    pub const QUERY_AT: u32 = {
        let at = Self::OUT_AT + Self::ROWS * 8;
        assert!(at % 8 == 0 && at + Self::ROWS * 8 <= super::header_bytes(Self::ROWS));
        at
    };
    /// One past the last.
    #[cfg(tier = "sm_90a")]
    pub const END: u32 = Self::QUERY_AT + Self::ROWS * 8;

    /// Where warp `warp` has something of a row, in units.
    #[inline(always)]
    pub const fn of_warp(warp: u32, row: u32) -> u32 {
        warp * Self::ROWS + row
    }
}

/// Bounds of the rows for engines that want them in shared memory, and the empty totals. A barrier follows.
///
/// # Safety
/// - All threads of the block call this together.
#[inline(always)]
pub unsafe fn begin<E: Engine, O: Element>(params: &DecodeParams, work: &Work) {
    unsafe {
        // Nothing of this is kept from tile to tile.
        let row = opaque(E::thread());
        let mut at = row * 16;
        while at < E::SHAPE.total_bytes {
            shared::st(E::base() + E::SHAPE.totals_at() + at, [0u32; 4]);
            at += const { E::SHAPE.warps * 32 * 16 };
        }
        if row < E::SHAPE.rows {
            let base = E::base();
            let bounds = work.row(params, row);
            let words = [
                bounds.begin as u32,
                bounds.end as u32,
                bounds.position as u32,
                bounds.slope.to_bits(),
            ];
            shared::st(base + ROWS_AT + row * 16, words);
            shared::st(base + Layout::<E>::TOTAL_AT + row * 8, [f32::NEG_INFINITY, 0.0]);
            let mut query = 0;
            if row < work.rows {
                shared::st(
                    base + Layout::<E>::OUT_AT + row * 8,
                    output_address::<O>(params, work, row),
                );
                let strides = &params.q_strides;
                let (index, head) = (work.query(params, row) as u64, work.query_head(params, row) as u64);
                let at = work.batch as u64 * strides[0] + index * strides[1] + head * strides[2];
                query = params.q + at * size_of::<O>() as u64;
            }
            shared::st(base + Layout::<E>::QUERY_AT + row * 8, query);
            // Later queries see no earlier first key and no earlier last one.
            let plain = params.softcap == 0.0 && params.alibi_slopes == 0;
            if row == 0 {
                shared::st(base + INNER_AT + 4, if plain { bounds.end } else { 0 });
            }
            if row == work.rows - 1 {
                shared::st(base + INNER_AT, bounds.begin);
            }
        }
    }
}

/// Address of a row's query, 0 for rows that do not exist.
///
/// # Safety
/// - A barrier lies behind [`begin`].
#[inline(always)]
pub unsafe fn query<E: Engine>(row: u32) -> u64 {
    // SAFETY: forwarded to the caller.
    unsafe { shared::ld(E::base() + Layout::<E>::QUERY_AT + row * 8) }
}

/// Whether all rows see the `keys` keys from token `first`, and scores are products times a factor.
///
/// # Safety
/// - A barrier lies behind [`begin`].
#[inline(always)]
pub unsafe fn is_inner<E: Engine>(first: i32, keys: u32) -> bool {
    let [begin, end]: [u32; 2] = unsafe { shared::ld(E::base() + INNER_AT) };
    first >= begin as i32 && first + keys as i32 <= end as i32
}

/// Bounds of a row, from shared memory.
///
/// # Safety
/// - A barrier lies behind [`begin`].
#[inline(always)]
pub unsafe fn row<E: Engine>(row: u32) -> super::work::Row {
    let words: [u32; 4] = unsafe { shared::ld(E::base() + ROWS_AT + row * 16) };
    super::work::Row {
        begin: words[0] as i32,
        end: words[1] as i32,
        position: words[2] as i32,
        slope: f32::from_bits(words[3]),
    }
}

/// Says a warp's maximum and sum of a row.
///
/// # Safety
/// - `warp` and `row` are in range, and no other thread says the same.
#[inline(always)]
pub unsafe fn put_statistics<E: Engine>(warp: u32, row: u32, maximum: f32, sum: f32) {
    unsafe {
        shared::st(
            E::base() + Layout::<E>::WARPS_AT + Layout::<E>::of_warp(warp, row) * 8,
            [maximum, sum],
        )
    }
}

/// What a warp of a group said of a row.
///
/// # Safety
/// - A barrier lies behind [`put_statistics`].
#[inline(always)]
pub unsafe fn statistics<E: Engine>(group: u32, warp: u32, row: u32) -> [f32; 2] {
    // SAFETY: forwarded to the caller.
    unsafe { shared::ld(E::base_of(group) + Layout::<E>::WARPS_AT + Layout::<E>::of_warp(warp, row) * 8) }
}

/// Where a warp puts the output of a row in the row's turn.
#[inline(always)]
pub fn output<E: Engine>(warp: u32, row: u32, rows: u32) -> u32 {
    output_of::<E>(E::group(), warp, row, rows)
}

/// Where a warp of a group puts it.
#[inline(always)]
pub fn output_of<E: Engine>(group: u32, warp: u32, row: u32, rows: u32) -> u32 {
    let most = const { E::SHAPE.join_rows };
    let at_a_time = if rows < most { rows } else { most };
    E::base_of(group) + E::SHAPE.join_at() + (warp * at_a_time + row % most) * E::SHAPE.dim * 4
}

/// What to subtract from exponents: the maximum, or 0 for nothing.
#[inline(always)]
pub fn shift(maximum: f32) -> f32 {
    if maximum == f32::NEG_INFINITY { 0.0 } else { maximum }
}

/// Maximum and sum of two parts, and the factors of their outputs.
#[inline(always)]
pub fn join(a: [f32; 2], b: [f32; 2]) -> ([f32; 2], [f32; 2]) {
    let maximum = fmax(a[0], b[0]);
    let shift = shift(maximum);
    let factors = [ex2(a[0] - shift), ex2(b[0] - shift)];
    ([maximum, fma(a[1], factors[0], b[1] * factors[1])], factors)
}

/// Adds the part of a row's output.
#[inline(always)]
pub fn fold(total: f32, factors: [f32; 2], part: f32) -> f32 {
    fma(total, factors[0], part * factors[1])
}

/// Factor that finishes a row with maximum and sum `total`, and its natural LSE.
///
/// # Safety
/// - `params` are those of the launch; the tile has that row.
#[inline(always)]
pub unsafe fn finished(params: &DecodeParams, work: &Work, row: u32, total: [f32; 2]) -> (f32, f32) {
    unsafe {
        let head = work.query_head(params, row) as u64;
        let mut sink = f32::NEG_INFINITY;
        if params.sinks != 0 {
            sink = global::ld_nc((params.sinks + head * 4) as *const f32) * core::f32::consts::LOG2_E;
        }
        let (mut factor, lse) = ended(total, sink);
        if params.v_scale != 0 {
            factor *= global::ld_nc((params.v_scale + work.head as u64 * 4) as *const f32);
        }
        // A row without keys: 0, and the LSE is the sink's, or −∞.
        if total[1] == 0.0 {
            factor = 0.0;
        }
        (factor, lse)
    }
}

/// Factor and natural LSE of a row with maximum and sum `total`, and a sink's logit in units of log₂; the factor of a row
/// without keys is not a number.
#[inline(always)]
pub fn ended(total: [f32; 2], sink: f32) -> (f32, f32) {
    let top = shift(fmax(total[0], sink));
    let keys = ex2(total[0] - top);
    let sum = fma(total[1], keys, ex2(sink - top));
    (keys / sum, (top + lg2(sum)) * core::f32::consts::LN_2)
}

/// Address of a row's output.
///
/// # Safety
/// - As for [`finished`].
#[inline(always)]
pub unsafe fn output_address<O: Element>(params: &DecodeParams, work: &Work, row: u32) -> u64 {
    let strides = &params.out_strides;
    let (query, head) = (work.query(params, row) as u64, work.query_head(params, row) as u64);
    params.out + (work.batch as u64 * strides[0] + query * strides[1] + head * strides[2]) * size_of::<O>() as u64
}

/// Writes an element of a row's output.
///
/// # Safety
/// - The row's output is at `row`; no other thread writes it.
#[inline(always)]
pub unsafe fn write_output<O: Element>(row: u64, column: u32, value: f32) {
    unsafe {
        global::st(
            (row + column as u64 * size_of::<O>() as u64) as *mut O,
            O::from_f32(value),
        )
    }
}

/// Writes four elements of a row's output, times its factor.
///
/// # Safety
/// - As for [`write_output`]; rows and `column` are multiples of four elements.
#[inline(always)]
pub unsafe fn write_quad<O: Quad>(row: u64, column: u32, [a, b, c, d]: [f32; 4], factor: f32) {
    unsafe {
        global::st(
            (row + column as u64 * size_of::<O>() as u64) as *mut O::Bits,
            O::narrow([a * factor, b * factor, c * factor, d * factor]),
        )
    }
}

/// Writes a row's log-sum-exp.
///
/// # Safety
/// - As for [`write_output`].
#[inline(always)]
pub unsafe fn write_lse(params: &DecodeParams, work: &Work, row: u32, lse: f32) {
    // SAFETY: forwarded to the caller.
    unsafe { global::st(lse_address(params, work, row) as *mut f32, lse) }
}

/// Address of a row's log-sum-exp.
#[inline(always)]
pub fn lse_address(params: &DecodeParams, work: &Work, row: u32) -> u64 {
    let (query, head) = (work.query(params, row) as u64, work.query_head(params, row) as u64);
    let heads = params.heads_kv as u64 * params.group as u64;
    let at = (work.batch as u64 * heads + head) * params.seq_q as u64 + query;
    params.lse + at * 4
}

/// Number of a tile among all.
#[inline(always)]
pub fn tile_number(params: &DecodeParams, work: &Work) -> u64 {
    (work.batch as u64 * params.heads_kv as u64 + work.head as u64) * params.tiles as u64 + work.tile as u64
}

/// The fold of a tile's pieces: `N` elements a thread, four neighbours of a row at a time; see [`Shape::totals`](super::Shape::totals).
pub struct Fold<O, const N: usize> {
    total: [f32; N],
    element: PhantomData<O>,
}

impl<O: Quad, const N: usize> Fold<O, N> {
    /// Nothing yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Fold {
            total: [0.0; N],
            element: PhantomData,
        }
    }

    /// Joins the warps to a piece, and folds it, or writes it to the workspace; behind the `last` piece of a whole tile,
    /// writes output and LSE. A barrier lies behind.
    ///
    /// # Safety
    /// - All threads of the block call this together.
    #[inline(always)]
    pub unsafe fn join_warps<E: Engine>(
        &mut self,
        params: &DecodeParams,
        work: &Work,
        whole: bool,
        engine: &E,
        split: u32,
        last: bool,
    ) {
        let in_registers = const {
            assert!(E::SHAPE.bundle == 0 || E::SHAPE.united);
            let is = E::SHAPE.folds && E::SHAPE.total_bytes == 0 && !E::SHAPE.united && E::SHAPE.groups == 1;
            assert!(N as u32 == if is { E::SHAPE.totals(E::ROWS) } else { 0 });
            is
        };
        unsafe {
            let base = E::base();
            let thread = E::thread();
            let end = End::new::<E>(params, work, whole, split, last);
            engine.put_statistics(work.rows);
            engine.put_output(0, work.rows);
            E::sync();
            if thread < work.rows {
                let mut maximum = f32::NEG_INFINITY;
                let mut warp = 0;
                while warp < E::SHAPE.warps {
                    let part: [f32; 2] =
                        shared::ld(base + Layout::<E>::WARPS_AT + Layout::<E>::of_warp(warp, thread) * 8);
                    maximum = fmax(maximum, part[0]);
                    warp += 1;
                }
                let mut sum = 0.0;
                warp = 0;
                while warp < E::SHAPE.warps {
                    let part: [f32; 2] =
                        shared::ld(base + Layout::<E>::WARPS_AT + Layout::<E>::of_warp(warp, thread) * 8);
                    let factor = ex2(part[0] - shift(maximum));
                    shared::st(
                        base + Layout::<E>::FACTORS_AT + Layout::<E>::of_warp(warp, thread) * 4,
                        factor,
                    );
                    sum = fma(part[1], factor, sum);
                    warp += 1;
                }
                end.join_row::<E>(params, work, thread, [maximum, sum]);
            }
            E::sync();
            let threads = const { E::SHAPE.warps * 32 };
            let (at_a_time, turns) = const { (E::SHAPE.join_rows, E::ROWS / E::SHAPE.join_rows) };
            let mut turn = 0;
            while turn < turns as usize {
                let first = turn as u32 * at_a_time;
                if first < work.rows {
                    if turn > 0 {
                        engine.put_output(turn, work.rows);
                        E::sync();
                    }
                    // Four elements at a time, but where registers are few.
                    let width = const { if E::SHAPE.folds { 4 } else { 1 } };
                    let count = const { E::SHAPE.quads() * 4 / if E::SHAPE.folds { 4 } else { 1 } };
                    let count = if in_registers { count } else { opaque(count) };
                    let mut i = 0;
                    while i < count {
                        let element = (i * threads + thread) * width;
                        let (row, column) = (first + element / E::SHAPE.dim, element % E::SHAPE.dim);
                        if row < work.rows && row < first + at_a_time {
                            let mut piece = [0.0; 4];
                            let mut warp = 0;
                            while warp < E::SHAPE.warps {
                                let from = output::<E>(warp, row, work.rows) + column * 4;
                                let mut part = [0.0; 4];
                                if width == 4 {
                                    part = shared::ld(from);
                                } else {
                                    part[0] = shared::ld(from);
                                }
                                let at = Layout::<E>::FACTORS_AT + Layout::<E>::of_warp(warp, row) * 4;
                                let factor: f32 = shared::ld(base + at);
                                let mut c = 0;
                                while c < width as usize {
                                    piece[c] = fma(part[c], factor, piece[c]);
                                    c += 1;
                                }
                                warp += 1;
                            }
                            if end.apart {
                                if clustered::<E>(params) {
                                    #[cfg(tier = "sm_90a")]
                                    super::cluster::put_part::<E>(params, split, row, column, piece);
                                } else if column < params.value_dim {
                                    let at = (end.place + row as u64) * params.value_dim as u64 + column as u64;
                                    if width == 4 {
                                        global::st((params.partial + at * 4) as *mut [f32; 4], piece);
                                    } else {
                                        global::st((params.partial + at * 4) as *mut f32, piece[0]);
                                    }
                                }
                            } else {
                                let factors: [f32; 2] = shared::ld(base + Layout::<E>::FOLD_AT + row * 8);
                                let own = (turn as u32 * E::SHAPE.quads() + i) as usize * 4;
                                let at = base + E::SHAPE.totals_at() + (row * E::SHAPE.dim + column) * 4;
                                let mut total = [0.0; 4];
                                if E::SHAPE.folds && !in_registers {
                                    total = shared::ld(at);
                                }
                                let mut c = 0;
                                while c < width as usize {
                                    if in_registers {
                                        total[c] = self.total[own + c];
                                    }
                                    total[c] = fold(total[c], factors, piece[c]);
                                    if in_registers {
                                        self.total[own + c] = total[c];
                                    }
                                    c += 1;
                                }
                                if E::SHAPE.folds && !in_registers {
                                    shared::st(at, total);
                                }
                                if last && column < params.value_dim {
                                    let factor: f32 = shared::ld(base + Layout::<E>::FINAL_AT + row * 4);
                                    let to = shared::ld(base + Layout::<E>::OUT_AT + row * 8);
                                    if width == 4 {
                                        write_quad::<O>(to, column, total, factor);
                                    } else {
                                        write_output::<O>(to, column, total[0] * factor);
                                    }
                                }
                            }
                        }
                        i += 1;
                    }
                    E::sync();
                }
                turn += 1;
            }
        }
    }
}

/// Whether the blocks of a cluster share a tile.
#[inline(always)]
pub fn clustered<E: Engine>(params: &DecodeParams) -> bool {
    cfg!(tier = "sm_90a") && E::SHAPE.folds && params.cluster > 1
}
