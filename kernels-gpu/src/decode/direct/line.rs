//! Many sequences, or long ones: a block has a part of the line of all pieces of a head.
//!
//! As for [`tiles`](super::tiles), what is left out is what a launch of the general kernels begins and ends with: here copies start behind one or two loads (length,
//! page), whatever computes comes later, and where a part begins each warp finds for itself.

use super::{
    super::{
        KEYS,
        few::{Few, Product},
        fresh::Quad,
        quotient,
        tensor::Scoring,
    },
    DIRECT_KEYS, DIRECT_ROWS, DIRECT_WARPS, DirectParams, TilesShape,
    feed::Feed,
    owned::{Owned, Slots, column},
    rows::Tile,
    segments::{Line, Segment},
    steps::hide,
};
use crate::tile::element::{Bf16, F16};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    cp_async, global, grid_dependency, shared, thread, warp,
};

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
/// - The parameters describe the tensors; shared memory is [`TilesShape::shared_bytes`].
#[inline(always)]
unsafe fn run<E: Quad + Product<2>, const DIM: u32, const S: usize, const WAIT: u32>(params: &DirectParams) {
    unsafe {
        let shape = const { TilesShape::new(DIM, 2) };
        let base = shared::dynamic_base();
        let (lane, own_warp) = (thread::lane_id(), thread::uniform_warp_idx());
        let ring = base + shape.stages_at() + own_warp * shape.stage_bytes();
        let slots = Slots {
            statistics: base,
            parts: base + shape.parts_at(),
        };
        let part = quotient(thread::block_idx_x(), params.heads_kv);
        let head = thread::block_idx_x() - part * params.heads_kv;
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        let mut line = Line::new(params, part);
        let mut feed = Feed::<DIM>::new(params, head, line, own_warp);
        const { assert!(WAIT + 1 == TilesShape::new(DIM, 2).stages()) };
        let mut ahead = opaque(shape.stages());
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
            let whole = segment.begin == 0 && segment.end == length;
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
            let mut owned = [Owned::NONE; 2];
            let mut first = segment.begin + own_warp * KEYS;
            let mut steps = (segment.end - segment.begin + DIRECT_KEYS - 1) / DIRECT_KEYS;
            loop {
                if steps != 0 {
                    cp_async::wait_group::<WAIT>();
                    syncwarp(warp::FULL);
                    let keys = ring + read;
                    let values = keys + KEYS * const { DIM * 2 };
                    let mut x = engine.products(keys, lane);
                    let mut i = 0;
                    while i < 4 {
                        x[i] *= params.scale;
                        i += 1;
                    }
                    if (first + KEYS) as i32 > inner {
                        hide(&mut x, first, ends);
                    }
                    engine.attend([x], values, lane);
                    syncwarp(warp::FULL);
                    read += shape.ring_bytes();
                    if read == shape.stages() * shape.ring_bytes() {
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
                slots.leave(own_warp, params.rows, &engine);
                engine.forget();
                syncthreads();
                let mut own = 0;
                while own < 2 {
                    let row = own_warp + own as u32 * DIRECT_WARPS;
                    if row < params.rows {
                        let (statistics, part) = slots.join(row, DIM);
                        let number = (tile.batch * params.heads_kv + head) as u64;
                        if !whole {
                            let place =
                                (number * params.splits as u64 + piece as u64) * params.rows as u64 + row as u64;
                            let to = params.partial + place * const { DIM as u64 * 4 };
                            let mut c = 0;
                            while c < 4 {
                                global::st((to + column::<2>(c) as u64 * 4) as *mut f32, part[c as usize]);
                                c += 1;
                            }
                            if lane == 0 {
                                global::st((params.statistics + place * 8) as *mut [f32; 2], statistics);
                            }
                        }
                        // Of a tile that is nobody's whole, the block with its first piece says so.
                        if pieces > 1 && row == 0 && lane == 0 && (piece == 0 || whole) {
                            let at = params.batch as u64
                                * params.heads_kv as u64
                                * params.splits as u64
                                * params.rows as u64;
                            global::st((params.statistics + (at + number) * 8) as *mut u32, whole.into());
                        }
                        owned[own].fold(statistics, part);
                        if steps == 0 && whole {
                            owned[own].write::<E, DIM, 2>(&tile, row, 1.0);
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

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Plain decode attention of at most eight rows, of parts of the line of pieces; see [`crate::decode::direct`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing; no token is new.
            #[launch(threads = DIRECT_WARPS * 32, min_blocks = 2, tensor_core = 1)]
            pub fn $name(params: DirectParams) {
                const { assert!(DIRECT_ROWS == 2 * DIRECT_WARPS) };
                run::<$element, $dim, { $dim / 16 }, { TilesShape::new($dim, 2).stages() - 1 }>(&params)
            }
        )*}
    };
}

kernels! {
    decode_line_f16_d128 F16 128
    decode_line_bf16_d128 Bf16 128
}
