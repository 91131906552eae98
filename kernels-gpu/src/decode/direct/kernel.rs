//! A block's way from the end of the kernel in front to its row's output.

use super::{
    super::{
        KEYS,
        few::{Few, Product},
        finish::{ended, fold, shift, write_output},
        fresh::Quad,
        split_tokens,
        tensor::Scoring,
    },
    DIRECT_KEYS, DIRECT_LOOKUPS, DIRECT_PIECES, DIRECT_STAGES, DIRECT_WARPS, DirectParams, DirectShape,
    rows::{Fresh, Tile},
    steps::{hide, lay, queries_at},
};
use crate::tile::element::{Bf16, F16};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier::{cluster_arrive_relaxed, cluster_wait, syncthreads, syncwarp},
    cp_async, global, grid_dependency,
    math::{ex2, fma, fmax},
    mbarrier,
    shared::{self, mapa, st_async_2, st_async_4},
    thread, warp,
};

/// The whole kernel.
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`DirectShape::shared_bytes`].
#[inline(always)]
unsafe fn run<E: Quad + Product<2>, const DIM: u32, const S: usize>(params: &DirectParams) {
    unsafe {
        let shape = DirectShape::new(DIM);
        let base = shared::dynamic_base();
        let (thread, lane, own_warp) = (thread::thread_idx_x(), thread::lane_id(), thread::uniform_warp_idx());
        let rank = thread::cluster_block_rank();
        let tile = Tile::<DIM> {
            params,
            batch: thread::block_idx_y(),
            head: thread::block_idx_x() >> params.cluster_shift,
        };
        // For what all warps of all pieces send of the row that this block owns.
        let barrier = base;
        if thread == 0 {
            mbarrier::init(barrier, 1);
            mbarrier::fence_init();
        }
        cluster_arrive_relaxed();
        grid_dependency::wait();
        grid_dependency::launch_dependents();

        let before: i32 = global::ld_nc((params.lengths + tile.batch as u64 * 4) as *const i32);
        let fetched = tile.fetch::<E>(thread);
        let fresh = if before < 0 { 0 } else { before as u32 };
        let length = fresh + params.appended;
        let length = if length > params.capacity {
            params.capacity
        } else {
            length
        };
        let size_shift = split_tokens(0, length, params.most, params.least, 0).trailing_zeros();
        let pieces = (length + (1 << size_shift) - 1) >> size_shift;
        let pieces = if pieces == 0 { 1 } else { pieces };
        let appends = params.k_new != 0;

        let ring = base + params.stages_at + own_warp * shape.stage_bytes();
        let stage =
            |step: u32| ring + step % DIRECT_STAGES * const { DIRECT_WARPS * DirectShape::new(DIM).stage_bytes() };
        let chunks = const { DIM / 8 };
        let (chunk, key) = (lane % chunks, lane / chunks);
        let to = key * shape.row_bytes() + (chunk ^ key) * 16;
        let (k_from, v_from) = (params.k + chunk as u64 * 16, params.v + chunk as u64 * 16);
        let scoring = Scoring {
            scale: params.scale,
            cap: 0.0,
        };
        let mut engine = Few::<E, DIM, S, 2, 0, false>::of([[0; 2]; S], [scoring; 2]);
        let own_row = Few::<E, DIM, S, 2, 0, false>::query();
        // One past the last key that a row sees; rows that are none see nothing.
        let end_of = |row: u32| {
            let mut end = length as i32;
            if params.causal != 0 {
                end += tile.query(row).0 as i32 + 1 - params.seq_q as i32;
            }
            if row < params.rows { end } else { 0 }
        };
        let (ends, inner) = ([end_of(own_row), end_of(own_row + 1)], end_of(0));

        let mut fetched = Some(fetched);
        let mut piece = rank;
        // A block without a piece rotates queries for nobody.
        loop {
            let begin = piece << size_shift;
            let end = begin + (1 << size_shift);
            let end = if end < length { end } else { length };
            let steps = if end > begin {
                (end - begin + DIRECT_KEYS - 1) / DIRECT_KEYS
            } else {
                0
            };
            // What this step appends is not read from the cache.
            let cached = if appends && fresh < end { fresh } else { end };
            let first_new = if begin > fresh { begin } else { fresh };
            let first_key = begin + own_warp * KEYS;
            // Each lane looks up the page of a step: all its 16 tokens are in it.
            let look_up = |step: u32| {
                let token = first_key + (step + lane) * DIRECT_KEYS;
                if token < cached { tile.place(token) } else { [0; 2] }
            };
            let mut units = look_up(0);
            let load = |units: [u32; 2], step: u32| {
                let k_units = warp::shfl_idx(units[0], step % DIRECT_LOOKUPS) + key * params.k_steps[1];
                let v_units = warp::shfl_idx(units[1], step % DIRECT_LOOKUPS) + key * params.v_steps[1];
                let left = cached as i32 - (first_key + step * DIRECT_KEYS + key) as i32;
                let to = stage(step) + to;
                let mut turn = 0;
                while turn < const { KEYS * DIM * 2 / 512 } {
                    let first = turn * 32 / chunks;
                    let bytes = if left > first as i32 { 16 } else { 0 };
                    let to = (to ^ (first % 8 * 16)) + first * shape.row_bytes();
                    let k_from = k_from + (k_units + first * params.k_steps[1]) as u64 * 16;
                    let v_from = v_from + (v_units + first * params.v_steps[1]) as u64 * 16;
                    cp_async::copy_16(to, k_from as *const u8, bytes);
                    cp_async::copy_16(to + KEYS * shape.row_bytes(), v_from as *const u8, bytes);
                    turn += 1;
                }
            };
            let ahead = opaque(DIRECT_STAGES);
            let mut step = 0;
            while step < ahead {
                if step < steps {
                    load(units, step);
                }
                cp_async::commit_group();
                step += 1;
            }

            if let Some(fetched) = fetched.take() {
                let of_step = Fresh {
                    first: fresh,
                    end: length,
                    shift: size_shift,
                    rank,
                };
                tile.put::<E>(base, thread, fetched, of_step);
                let mut index = thread + DIRECT_WARPS * 32;
                while index < tile.items() {
                    tile.put::<E>(base, index, tile.fetch::<E>(index), of_step);
                    index += DIRECT_WARPS * 32;
                }
                syncthreads();
                // Parts may come before: the phase waits for this arrival too.
                if thread == 0 && rank < params.rows {
                    mbarrier::arrive_expect_tx(barrier, pieces * const { DIRECT_WARPS * (DIM * 4 + 8) });
                }
                engine.queries = queries_at::<DIM, S>(base, params.rows);
            }

            step = 0;
            let mut first = first_key;
            while step < opaque(steps) {
                cp_async::wait_group::<{ DIRECT_STAGES - 1 }>();
                syncwarp(warp::FULL);
                let keys = stage(step);
                let values = keys + KEYS * shape.row_bytes();
                // Tokens of this step are laid among those that arrived.
                let until = if first + KEYS < end { first + KEYS } else { end };
                let from = if first > first_new { first } else { first_new };
                if appends {
                    lay::<DIM>(base, [keys, values], first, fresh, [from, until]);
                }
                let mut x = engine.products(keys, thread::lane_id());
                let mut i = 0;
                while i < 4 {
                    x[i] *= params.scale;
                    i += 1;
                }
                if (first + KEYS) as i32 > inner {
                    hide(&mut x, first, ends);
                }
                engine.attend([x], values, thread::lane_id());
                syncwarp(warp::FULL);
                let next = step + DIRECT_STAGES;
                if next < steps {
                    if next % DIRECT_LOOKUPS == 0 {
                        units = look_up(next);
                    }
                    load(units, next);
                }
                cp_async::commit_group();
                first += DIRECT_KEYS;
                step += 1;
            }

            let sums = [engine.sum_of_keys(0), engine.sum_of_keys(1)];
            // All blocks have begun: their memory may be written.
            if piece == rank {
                cluster_wait();
            }
            // Each row goes to the block of its number.
            if piece < pieces {
                let part = piece * DIRECT_WARPS + own_warp;
                let mut q = 0;
                while q < 2 {
                    let row = own_row + q as u32;
                    if row < params.rows {
                        let barrier = mapa(barrier, row);
                        let to = mapa(base + shape.parts_at() + part * (DIM * 4) + lane / 4 * 16, row);
                        let mut t = 0;
                        while t < S {
                            let (even, odd) = (engine.out[t], engine.out[t + 1]);
                            st_async_4(to + t as u32 * 64, [even[q], even[q + 2], odd[q], odd[q + 2]], barrier);
                            t += 2;
                        }
                        if lane < 4 {
                            let to = mapa(base + shape.statistics_at() + part * 8, row);
                            st_async_2(to, [engine.maximum[q], sums[q]], barrier);
                        }
                    }
                    q += 1;
                }
            }
            piece += 1 << params.cluster_shift;
            if piece >= pieces {
                break;
            }
            engine.forget();
        }
        if rank >= params.rows {
            return;
        }
        mbarrier::wait_parity_cluster(barrier, 0);
        join::<E, DIM>(&tile, base, pieces, rank);
    }
}

/// Joins the parts of row `row`, and writes its output.
///
/// # Safety
/// - All threads of the block call this together; all parts are there.
#[inline(always)]
unsafe fn join<E: Quad, const DIM: u32>(tile: &Tile<'_, DIM>, base: u32, pieces: u32, row: u32) {
    unsafe {
        let shape = DirectShape::new(DIM);
        let (params, thread, lane) = (tile.params, thread::thread_idx_x(), thread::lane_id());
        // Lane p joins the warps of piece p.
        let (mut maximum, mut sum, mut factors) = (f32::NEG_INFINITY, 0.0, [0.0f32; DIRECT_WARPS as usize]);
        if lane < pieces {
            let at = base + shape.statistics_at() + lane * (DIRECT_WARPS * 8);
            let (a, b): ([f32; 4], [f32; 4]) = (shared::ld(at), shared::ld(at + 16));
            let parts = [[a[0], a[1]], [a[2], a[3]], [b[0], b[1]], [b[2], b[3]]];
            maximum = fmax(fmax(parts[0][0], parts[1][0]), fmax(parts[2][0], parts[3][0]));
            let mut w = 0;
            while w < DIRECT_WARPS as usize {
                factors[w] = ex2(parts[w][0] - shift(maximum));
                sum = fma(parts[w][1], factors[w], sum);
                w += 1;
            }
        }
        // The maximum of the pieces up to this one: a maximum does not mind the order.
        let mut top = maximum;
        let mut distance = 1;
        while distance < DIRECT_PIECES {
            let other = warp::shfl_up(top, distance);
            top = fmax(top, if lane >= distance { other } else { f32::NEG_INFINITY });
            distance *= 2;
        }
        let above = warp::shfl_up(top, 1);
        let above = if lane == 0 { f32::NEG_INFINITY } else { above };
        let (old, new) = (ex2(above - shift(top)), ex2(maximum - shift(top)));
        let factors_at = base + shape.factors_at() + thread / 32 * (DIRECT_PIECES * 32);
        if lane < pieces {
            shared::st(factors_at + lane * 32, factors);
            shared::st(factors_at + lane * 32 + 16, [old, new, sum * new, 0.0]);
        }
        let top = warp::shfl_idx(top, pieces - 1);
        syncwarp(warp::FULL);
        if thread >= DIM {
            return;
        }
        // Each thread folds a column.
        let (mut total, mut sum) = (0.0, 0.0);
        let mut piece = 0;
        while piece < pieces {
            let factors: [f32; 4] = shared::ld(factors_at + piece * 32);
            let [old, new, weight, _]: [f32; 4] = shared::ld(factors_at + piece * 32 + 16);
            let at = base + shape.parts_at() + piece * (DIRECT_WARPS * DIM * 4) + thread * 4;
            let mut out = 0.0;
            let mut w = 0;
            while w < DIRECT_WARPS {
                let part: f32 = shared::ld(at + w * (DIM * 4));
                out = fma(part, factors[w as usize], out);
                w += 1;
            }
            total = fold(total, [old, new], out);
            sum = fma(sum, old, weight);
            // The assembler unrolls it by four, which is enough.
            piece = opaque(piece + 1);
        }
        let (factor, lse) = ended([top, sum], f32::NEG_INFINITY);
        let factor = if sum == 0.0 { 0.0 } else { factor };
        // As the products leave them: columns g, 8 + g, 16 + g, 24 + g of 32 side by side.
        let column = thread / 32 * 32 + thread % 4 * 8 + thread % 32 / 4;
        let (query, head) = tile.query(row);
        let line = (tile.batch * params.seq_q + query) * params.heads + head;
        write_output::<E>(params.out + (line * DIM) as u64 * 2, column, total * factor);
        if thread == 0 {
            let at = (tile.batch * params.heads + head) * params.seq_q + query;
            global::st((params.lse + at as u64 * 4) as *mut f32, lse);
        }
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Plain decode attention of at most eight rows of few sequences; see [`crate::decode::direct`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs overlap nothing; a cluster has at least as many blocks as a tile has rows.
            #[launch(threads = DIRECT_WARPS * 32, min_blocks = 1, tensor_core = 1)]
            pub fn $name(params: DirectParams) {
                run::<$element, $dim, { $dim / 16 }>(&params)
            }
        )*}
    };
}

kernels! {
    decode_direct_f16_d64 F16 64
    decode_direct_f16_d128 F16 128
    decode_direct_bf16_d64 Bf16 64
    decode_direct_bf16_d128 Bf16 128
}
