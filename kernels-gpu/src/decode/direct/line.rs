//! Many sequences, or long ones: a block has whole tiles, or a part of the line of all pieces of a head.
//!
//! The parts, pieces and folds are those of [`plan`](super::super::plan) and `finish`, and so are the bits. What is left out is what
//! a launch of the general kernels begins and ends with: here copies start behind one or two loads (length, page), whatever
//! computes comes later, and where a part begins each warp finds for itself. Places are looked up 32 steps at a time and as
//! many ahead, those of the next sequence too, so that copies run on from tile to tile.

use super::{
    super::{
        KEYS, MIN_SPLIT,
        few::{Few, Product},
        finish::{ended, fold, join, shift, write_output},
        fresh::Quad,
        quotient, split_tokens,
        stream::opaque,
        tensor::Scoring,
    },
    DIRECT_KEYS, DIRECT_LOOKUPS, DIRECT_ROWS, DIRECT_WARPS, DirectParams, LINE_STAGES, LineShape,
    rows::Tile,
};
use crate::tile::element::{Bf16, F16};
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    cp_async, global, grid_dependency,
    math::{ex2, fma, fmax},
    shared, thread, warp,
};

/// Tokens of sequence `batch`, on their way from memory; 0 behind the last.
///
/// # Safety
/// - `params` are those of the launch.
#[inline(always)]
unsafe fn length_of(params: &DirectParams, batch: u32) -> i32 {
    if batch < params.batch {
        // SAFETY: the sequence exists.
        unsafe { global::ld_nc((params.lengths + batch as u64 * 4) as *const i32) }
    } else {
        0
    }
}

/// Tokens with those of this step.
#[inline(always)]
fn whole_length(params: &DirectParams, before: i32) -> u32 {
    let length = if before < 0 { 0 } else { before as u32 } + params.appended;
    if length > params.capacity {
        params.capacity
    } else {
        length
    }
}

/// How a sequence of so many tokens is cut: pieces, and the power of two that the tokens of one are.
#[inline(always)]
fn pieces_of(params: &DirectParams, length: u32) -> (u32, u32) {
    let shift = split_tokens(0, length, params.most, params.least, 0).trailing_zeros();
    let pieces = (length + (1 << shift) - 1) >> shift;
    (if pieces == 0 { 1 } else { pieces }, shift)
}

/// What a piece costs, as in [`plan`](super::super::plan).
#[inline(always)]
const fn unit(shift: u32) -> u32 {
    (1 << shift) / MIN_SPLIT + 1
}

/// Where a block is in the line of the pieces of one head.
#[derive(Clone, Copy)]
struct Line<const FOLD: bool> {
    batch: u32,
    piece: u32,
    /// Cost from here to the end of the block's part.
    left: i32,
    /// Tokens of the sequence as loaded.
    length: i32,
}

/// Pieces of one sequence that follow each other.
#[derive(Clone, Copy)]
struct Segment {
    batch: u32,
    length: u32,
    shift: u32,
    pieces: u32,
    begin: u32,
    end: u32,
}

impl<const FOLD: bool> Line<FOLD> {
    /// Where this block's part begins; each warp finds it for itself.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    unsafe fn new(params: &DirectParams, part: u32) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe {
            if FOLD {
                return Line {
                    batch: part,
                    piece: 0,
                    left: 1,
                    length: length_of(params, part),
                };
            }
            let lane = thread::lane_id();
            // Each lane has a stretch of the sequences.
            let each = (params.batch + 31) / 32;
            let cost = |batch: u32| {
                let (pieces, shift) = pieces_of(params, whole_length(params, length_of(params, batch)));
                if batch < params.batch { pieces * unit(shift) } else { 0 }
            };
            let (mut own, mut batch) = (0, lane * each);
            let mut i = 0;
            while i < each {
                own += cost(batch + i);
                i += 1;
            }
            let mut up_to = own;
            let mut distance = 1;
            while distance < 32 {
                let other = warp::shfl_up(up_to, distance);
                up_to += if lane >= distance { other } else { 0 };
                distance *= 2;
            }
            let total = warp::shfl_idx(up_to, 31);
            let size = quotient(total + params.parts - 1, params.parts);
            let begin = part * size;
            let mut rest = begin - (up_to - own);
            let here = begin < up_to && begin >= up_to - own;
            let (mut piece, mut left) = (0, 0);
            if here {
                loop {
                    let (pieces, shift) = pieces_of(params, whole_length(params, length_of(params, batch)));
                    let unit = unit(shift);
                    if rest < pieces * unit {
                        core::hint::assert_unchecked(unit != 0);
                        piece = (rest + unit - 1) / unit;
                        left = size - (piece * unit - rest);
                        break;
                    }
                    rest -= pieces * unit;
                    batch += 1;
                }
            }
            let found = warp::vote_ballot(warp::FULL, here);
            let from = found.trailing_zeros() & 31;
            let (batch, piece, left) = (
                warp::shfl_idx(batch, from),
                warp::shfl_idx(piece, from),
                warp::shfl_idx(left, from),
            );
            Line {
                batch: if found == 0 { params.batch } else { batch },
                piece,
                left: left as i32,
                length: length_of(params, batch),
            }
        }
    }

    /// The next segment of the block.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    unsafe fn next(&mut self, params: &DirectParams) -> Option<Segment> {
        loop {
            if self.left <= 0 || self.batch >= params.batch {
                return None;
            }
            let (batch, piece) = (self.batch, self.piece);
            let length = whole_length(params, self.length);
            let (pieces, shift) = pieces_of(params, length);
            let mut count = pieces - piece;
            if FOLD {
                self.batch += params.parts;
            } else {
                let unit = unit(shift);
                if (count * unit) as i32 > self.left {
                    // SAFETY: at least 1.
                    unsafe { core::hint::assert_unchecked(unit != 0) };
                    count = (self.left as u32 + unit - 1) / unit;
                }
                self.left -= (count * unit) as i32;
                self.piece += count;
                if self.piece == pieces {
                    self.piece = 0;
                    self.batch += 1;
                }
            }
            // SAFETY: forwarded to the caller.
            self.length = unsafe { length_of(params, self.batch) };
            // The place that was found may be behind the last piece of its tile.
            if count == 0 {
                continue;
            }
            let (begin, end) = (piece << shift, (piece + count) << shift);
            return Some(Segment {
                batch,
                length,
                shift,
                pieces,
                begin,
                end: if end < length { end } else { length },
            });
        }
    }
}

/// A warp's supply of keys and values: the steps of all segments of the block.
struct Feed<'a, const DIM: u32, const FOLD: bool> {
    tile: Tile<'a, DIM>,
    line: Line<FOLD>,
    /// One past the segment's last token.
    end: u32,
    /// This warp's first token of the next step.
    first: u32,
    /// Steps that are left.
    left: u32,
    /// The lane that knows the next step's place, and places as far as all lanes know them.
    lane: u32,
    units: [u32; 2],
    ahead: [u32; 2],
    /// Where the next stage is.
    fill: u32,
}

impl<'a, const DIM: u32, const FOLD: bool> Feed<'a, DIM, FOLD> {
    /// Places of the steps from token `first` of a sequence on, one each lane, as far as it has tokens below `end`.
    ///
    /// # Safety
    /// - The table has entries up to there.
    #[inline(always)]
    unsafe fn look_up(&self, batch: u32, first: u32, end: u32) -> [u32; 2] {
        let token = first + thread::lane_id() * DIRECT_KEYS;
        let tile = Tile { batch, ..self.tile };
        // SAFETY: the sequence has an entry for the token.
        if token < end {
            unsafe { tile.place(token) }
        } else {
            [0; 2]
        }
    }

    /// Looks up what comes behind the steps that are looked up: of this segment, or of the next one, whose sequence may be shorter.
    ///
    /// # Safety
    /// - `self.first` is the first token of what is looked up.
    #[inline(always)]
    unsafe fn look_ahead(&mut self, own_warp: u32) {
        let params = self.tile.params;
        let first = self.first + DIRECT_LOOKUPS * DIRECT_KEYS;
        // SAFETY: entries of the table, in use only where the sequence has their tokens.
        unsafe {
            self.ahead = if first < self.end {
                self.look_up(self.tile.batch, first, self.end)
            } else if self.line.batch < params.batch {
                self.look_up(self.line.batch, own_warp * KEYS, params.capacity)
            } else {
                [0; 2]
            };
        }
    }

    /// Goes on to the next segment that has tokens; it is `known` where the first one's pages are looked up.
    ///
    /// # Safety
    /// - The segment is loaded.
    #[inline(always)]
    unsafe fn seek(&mut self, own_warp: u32, mut known: bool) {
        let params = self.tile.params;
        // SAFETY: forwarded to the caller.
        unsafe {
            while self.left == 0
                && let Some(segment) = self.line.next(params)
            {
                self.tile.batch = segment.batch;
                self.end = segment.end;
                self.left = (segment.end - segment.begin + DIRECT_KEYS - 1) / DIRECT_KEYS;
                self.first = segment.begin + own_warp * KEYS;
                self.lane = 0;
                self.units = if known {
                    self.ahead
                } else {
                    self.look_up(segment.batch, self.first, self.end)
                };
                known = false;
                if self.left != 0 {
                    self.look_ahead(own_warp);
                }
            }
        }
    }

    /// Starts the copies of a step, if there is one.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the stage any more.
    #[inline(always)]
    unsafe fn load(&mut self, own_warp: u32, ring: u32) {
        let params = self.tile.params;
        let shape = const { LineShape::new(DIM) };
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.left != 0 {
                let chunks = const { DIM / 8 };
                let lane = thread::lane_id();
                let (chunk, key) = (lane % chunks, lane / chunks);
                let to = ring + self.fill + key * shape.row_bytes() + (chunk ^ key) * 16;
                let k_units = warp::shfl_idx(self.units[0], self.lane) + key * params.k_steps[1];
                let v_units = warp::shfl_idx(self.units[1], self.lane) + key * params.v_steps[1];
                let k_from = params.k + chunk as u64 * 16 + k_units as u64 * 16;
                let v_from = params.v + chunk as u64 * 16 + v_units as u64 * 16;
                let left = self.end as i32 - (self.first + key) as i32;
                let mut turn = 0;
                while turn < const { KEYS * DIM * 2 / 512 } {
                    let first = turn * 32 / chunks;
                    let bytes = if left > first as i32 { 16 } else { 0 };
                    let to = (to ^ (first % 8 * 16)) + first * shape.row_bytes();
                    let k_from = k_from + (first * params.k_steps[1]) as u64 * 16;
                    cp_async::copy_16(to, k_from as *const u8, bytes);
                    turn += 1;
                }
                turn = 0;
                while turn < const { KEYS * DIM * 2 / 512 } {
                    let first = turn * 32 / chunks;
                    let bytes = if left > first as i32 { 16 } else { 0 };
                    let to = (to ^ (first % 8 * 16)) + first * shape.row_bytes();
                    let v_from = v_from + (first * params.v_steps[1]) as u64 * 16;
                    cp_async::copy_16(to + KEYS * shape.row_bytes(), v_from as *const u8, bytes);
                    turn += 1;
                }
                self.first += DIRECT_KEYS;
                self.left -= 1;
                self.lane += 1;
                if self.left == 0 {
                    self.seek(own_warp, true);
                } else if self.lane == DIRECT_LOOKUPS {
                    self.lane = 0;
                    self.units = self.ahead;
                    self.look_ahead(own_warp);
                }
            }
            cp_async::commit_group();
        }
        self.fill += DIRECT_WARPS * shape.stage_bytes();
        if self.fill == const { LINE_STAGES * DIRECT_WARPS * LineShape::new(DIM).stage_bytes() } {
            self.fill = 0;
        }
    }
}

/// A lane's words of the queries of a head of sequence `batch`.
///
/// # Safety
/// - What wrote the queries is over.
#[inline(always)]
unsafe fn queries<const DIM: u32, const S: usize>(params: &DirectParams, batch: u32, head: u32) -> [[u32; 2]; S] {
    let mut words = [[0; 2]; S];
    if batch < params.batch {
        let tile = Tile::<DIM> { params, batch, head };
        let lane = thread::lane_id();
        let row = lane / 4;
        let row = if row < params.rows { row } else { params.rows - 1 };
        let (query, head) = tile.query(row);
        let strides = &params.q_strides;
        let offset = tile.batch * strides[0] + query * strides[1] + head * strides[2] + lane % 4 * 2;
        let at = params.q + offset as u64 * 2;
        let mut s = 0;
        while s < S {
            // SAFETY: of the row.
            unsafe {
                words[s] = [
                    global::ld_nc((at + s as u64 * 32) as *const u32),
                    global::ld_nc((at + s as u64 * 32 + 16) as *const u32),
                ];
            }
            s += 1;
        }
    }
    words
}

/// The whole kernel.
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`LineShape::shared_bytes`].
#[inline(always)]
unsafe fn run<E: Quad + Product<2>, const DIM: u32, const S: usize, const FOLD: bool>(params: &DirectParams) {
    unsafe {
        let shape = const { LineShape::new(DIM) };
        let base = shared::dynamic_base();
        let (lane, own_warp) = (thread::lane_id(), thread::uniform_warp_idx());
        let ring = base + shape.stages_at() + own_warp * shape.stage_bytes();
        let part = quotient(thread::block_idx_x(), params.heads_kv);
        let head = thread::block_idx_x() - part * params.heads_kv;
        if FOLD {
            // Of the line, which sequences a part has follows from lengths that are not there yet.
            prefetch::<DIM>(&Tile {
                params,
                batch: part,
                head,
            });
        }
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        let mut line = Line::<FOLD>::new(params, part);
        let mut feed = Feed::<DIM, FOLD> {
            tile: Tile { params, batch: 0, head },
            line,
            end: 0,
            first: 0,
            left: 0,
            lane: 0,
            units: [0; 2],
            ahead: [0; 2],
            fill: 0,
        };
        feed.seek(own_warp, false);
        let mut ahead = opaque(LINE_STAGES);
        while ahead > 0 {
            feed.load(own_warp, ring);
            ahead -= 1;
        }
        let mut words = queries::<DIM, S>(params, line.batch, head);
        let scoring = Scoring {
            scale: params.scale,
            cap: 0.0,
        };
        let mut engine = Few::<E, DIM, S, 2, 0, false>::of([[0; 2]; S], [scoring; 2]);
        let own_row = Few::<E, DIM, S, 2, 0, false>::query();
        let mut read = 0;
        while let Some(segment) = line.next(params) {
            let Segment {
                batch, length, pieces, ..
            } = segment;
            let tile = Tile::<DIM> { params, batch, head };
            let size = 1 << segment.shift;
            let mut piece = segment.begin >> segment.shift;
            let whole = FOLD || segment.begin == 0 && segment.end == length;
            engine.queries = words;
            words = queries::<DIM, S>(params, line.batch, head);
            // One past the last key that a row sees; rows that are none see nothing.
            let end_of = |row: u32| {
                let mut end = length as i32;
                if params.causal != 0 {
                    end += tile.query(row).0 as i32 + 1 - params.seq_q as i32;
                }
                if row < params.rows { end } else { 0 }
            };
            let (ends, inner) = ([end_of(own_row), end_of(own_row + 1)], end_of(0));
            // What this thread folds: four columns of rows that its warp owns.
            let mut statistics = [[f32::NEG_INFINITY, 0.0]; 2];
            let mut total = [[0.0f32; 4]; 2];
            let mut first = segment.begin + own_warp * KEYS;
            let mut steps = (segment.end - segment.begin + DIRECT_KEYS - 1) / DIRECT_KEYS;
            loop {
                if steps != 0 {
                    cp_async::wait_group::<{ LINE_STAGES - 1 }>();
                    syncwarp(warp::FULL);
                    let keys = ring + read;
                    let values = keys + KEYS * shape.row_bytes();
                    let mut x = engine.products(keys, lane);
                    let mut i = 0;
                    while i < 4 {
                        x[i] *= params.scale;
                        i += 1;
                    }
                    if (first + KEYS) as i32 > inner {
                        i = 0;
                        while i < 4 {
                            if (first + lane / 4 + i as u32 / 2 * 8) as i32 >= ends[i % 2] {
                                x[i] = f32::NEG_INFINITY;
                            }
                            i += 1;
                        }
                    }
                    engine.attend([x], values, lane);
                    syncwarp(warp::FULL);
                    read += DIRECT_WARPS * shape.stage_bytes();
                    if read == const { LINE_STAGES * DIRECT_WARPS * LineShape::new(DIM).stage_bytes() } {
                        read = 0;
                    }
                    feed.load(own_warp, ring);
                    first += DIRECT_KEYS;
                    steps -= 1;
                }
                if steps != 0 && first & (size - 1) & !(DIRECT_KEYS - 1) != 0 {
                    continue;
                }
                // The piece ends: its warps are joined, and it is folded.
                let sums = [engine.sum_of_keys(0), engine.sum_of_keys(1)];
                let mut q = 0;
                while q < 2 {
                    let row = own_row + q as u32;
                    if row < params.rows {
                        let to = base + shape.parts_at(own_warp, row) + lane / 4 * 16;
                        let mut t = 0;
                        while t < S {
                            let (even, odd) = (engine.out[t], engine.out[t + 1]);
                            shared::st(to + t as u32 * 64, [even[q], even[q + 2], odd[q], odd[q + 2]]);
                            t += 2;
                        }
                        if lane < 4 {
                            shared::st(base + shape.statistics_at(own_warp, row), [engine.maximum[q], sums[q]]);
                        }
                    }
                    q += 1;
                }
                engine.forget();
                syncthreads();
                let mut own = 0;
                while own < 2 {
                    let row = own_warp + own as u32 * DIRECT_WARPS;
                    if row < params.rows {
                        let mut parts = [[0.0f32; 2]; DIRECT_WARPS as usize];
                        let mut maximum = f32::NEG_INFINITY;
                        let mut w = 0;
                        while w < DIRECT_WARPS as usize {
                            parts[w] = shared::ld(base + shape.statistics_at(w as u32, row));
                            maximum = fmax(maximum, parts[w][0]);
                            w += 1;
                        }
                        let (mut sum, mut piece_out) = (0.0, [0.0f32; 4]);
                        w = 0;
                        while w < DIRECT_WARPS as usize {
                            let factor = ex2(parts[w][0] - shift(maximum));
                            sum = fma(parts[w][1], factor, sum);
                            let part: [f32; 4] = shared::ld(base + shape.parts_at(w as u32, row) + lane * 16);
                            let mut c = 0;
                            while c < 4 {
                                piece_out[c] = fma(part[c], factor, piece_out[c]);
                                c += 1;
                            }
                            w += 1;
                        }
                        let number = (tile.batch * params.heads_kv + head) as u64;
                        if !whole {
                            let place =
                                (number * params.splits as u64 + piece as u64) * params.rows as u64 + row as u64;
                            let to = params.partial + place * const { DIM as u64 * 4 };
                            let mut c = 0;
                            while c < 4 {
                                let column = lane / 8 * 32 + lane % 8 + c as u32 * 8;
                                global::st((to + column as u64 * 4) as *mut f32, piece_out[c]);
                                c += 1;
                            }
                            if lane == 0 {
                                global::st((params.statistics + place * 8) as *mut [f32; 2], [maximum, sum]);
                            }
                        }
                        // Of a tile that is nobody's whole, the block with its first piece says so.
                        if !FOLD && pieces > 1 && row == 0 && lane == 0 && (piece == 0 || whole) {
                            let at = params.batch as u64
                                * params.heads_kv as u64
                                * params.splits as u64
                                * params.rows as u64;
                            global::st((params.statistics + (at + number) * 8) as *mut u32, whole.into());
                        }
                        let (joined, factors) = join(statistics[own], [maximum, sum]);
                        statistics[own] = joined;
                        let mut c = 0;
                        while c < 4 {
                            total[own][c] = fold(total[own][c], factors, piece_out[c]);
                            c += 1;
                        }
                        if steps == 0 && whole {
                            let (factor, lse) = ended(joined, f32::NEG_INFINITY);
                            let factor = if joined[1] == 0.0 { 0.0 } else { factor };
                            let (query, head) = tile.query(row);
                            let line = (tile.batch * params.seq_q + query) * params.heads + head;
                            let to = params.out + (line * DIM) as u64 * 2;
                            // As the products leave them: columns g, 8 + g, 16 + g, 24 + g of 32 side by side.
                            c = 0;
                            while c < 4 {
                                let column = lane / 8 * 32 + lane % 8 + c as u32 * 8;
                                write_output::<E>(to, column, total[own][c] * factor);
                                c += 1;
                            }
                            if lane == 0 {
                                let at = (tile.batch * params.heads + head) * params.seq_q + query;
                                global::st((params.lse + at as u64 * 4) as *mut f32, lse);
                            }
                        }
                    }
                    own += 1;
                }
                syncthreads();
                piece += 1;
                if steps == 0 {
                    break;
                }
            }
        }
    }
}

/// Brings what a tile begins with into L2 while the kernel before this one still runs: the length, the first pages' entries and
/// queries, wherever they are now. Nothing is taken from it.
///
/// # Safety
/// - `params` are those of the launch, the sequence is one of its.
#[inline(always)]
unsafe fn prefetch<const DIM: u32>(tile: &Tile<'_, DIM>) {
    let params = tile.params;
    let thread = thread::thread_idx_x();
    // SAFETY: only places of these tensors are touched.
    unsafe {
        if thread < params.rows * const { DIM * 2 / 128 } {
            let (query, head) = tile.query(thread / const { DIM * 2 / 128 });
            let strides = &params.q_strides;
            let offset = tile.batch * strides[0] + query * strides[1] + head * strides[2];
            let column = thread % const { DIM * 2 / 128 } * 128;
            global::prefetch_l2((params.q + offset as u64 * 2 + column as u64) as *const u8);
        }
        let token = thread * DIRECT_KEYS;
        if params.table != 0 && token < params.capacity {
            let at = tile.batch * params.table_stride + (token >> params.page_shift);
            global::prefetch_l2((params.table + at as u64 * 4) as *const u8);
        }
        if thread == 0 {
            global::prefetch_l2((params.lengths + tile.batch as u64 * 4) as *const u8);
        }
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal $fold:literal)*) => {
        cuda_std::kernel! {$(
            /// Plain decode attention of at most eight rows, of whole tiles or parts of the line of pieces; see [`crate::decode::direct`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing; no token is new.
            #[launch(threads = DIRECT_WARPS * 32, min_blocks = 2, tensor_core = 1)]
            pub fn $name(params: DirectParams) {
                const { assert!(DIRECT_ROWS == 2 * DIRECT_WARPS) };
                run::<$element, $dim, { $dim / 16 }, $fold>(&params)
            }
        )*}
    };
}

kernels! {
    decode_line_f16_d128 F16 128 false
    decode_line_bf16_d128 Bf16 128 false
    decode_tiles_f16_d128 F16 128 true
    decode_tiles_bf16_d128 Bf16 128 true
}
