//! `linear_rows16_*` and `linear_rows64_*`: up to so many rows at a time on Hopper. The weights pass once, with the bits of
//! `linear_rows8_*`.
//!
//! A block takes 128 columns and a part of k; the blocks of a cluster take the parts, so that narrow weights too occupy all
//! multiprocessors and x is not read once for every few columns. Both operands come by TMA. Each of the four warps has
//! 32 columns, whose weights are the A fragments of `mma.sync` as in `linear_rows8_*`, and all rows. At the end the
//! blocks read each other's sums and finish some rows each.

use super::epilogue::{Columns, Epilogue};
use super::params::*;
use super::rows8::column_of;
use crate::pipeline::{Cursor, OneThread, Ring, Warps};
use crate::tile::element::{Bf16, F16};
use crate::tile::mma::Mma;
use crate::tile::opaque::opaque;
use core::mem::offset_of;
use cuda_std::{barrier, grid_dependency, launch::ParamAddress, mbarrier, shared, thread, tma, warp};

/// Warps that compute.
const WARPS: u32 = 4;
/// Bytes of a stage's weights.
const W_BYTES: u32 = ROWS_COLUMNS * ROWS_DEPTH * 2;
type Stages = Ring<ROWS_STAGES, OneThread, Warps<WARPS>>;
/// Sums of a thread: two fragments of 16 columns by `N` of eight rows.
type Sums<const N: usize> = [[[f32; 4]; N]; 2];

/// A block's place.
struct Place {
    batch: u32,
    tile_m: u32,
    tile_n: u32,
    /// This block's part of k, and how many parts have a sum.
    rank: u32,
    size: u32,
    parts: u32,
    /// Its slices.
    first: u32,
    end: u32,
}

impl Place {
    #[inline(always)]
    fn new(params: &StreamParams) -> Self {
        let (rank, size) = (thread::cluster_block_rank(), thread::cluster_size());
        let (tiles_m, together) = (params.linear.tiles_m, params.together);
        // SAFETY: there is a tile, this block's; the host never puts together no slices.
        unsafe {
            core::hint::assert_unchecked(tiles_m != 0);
            core::hint::assert_unchecked(size != 0);
            core::hint::assert_unchecked(together != 0);
        }
        let tile = thread::block_idx_x() / size;
        let first = rank * together;
        let end = first + together;
        Self {
            batch: thread::block_idx_z(),
            tile_m: tile % tiles_m,
            tile_n: tile / tiles_m,
            rank,
            size,
            parts: params.slices.div_ceil(together),
            first,
            end: if params.slices < first {
                first
            } else if end < params.slices {
                end
            } else {
                params.slices
            },
        }
    }
}

/// The loads of a block, which its first warp starts.
struct Loads {
    ring: Stages,
    x_map: *const u8,
    w_map: *const u8,
    stage_bytes: u32,
    gated: bool,
    /// Row of x, column of the weight (of a gated one: group of eight pairs), problem of each.
    row: i32,
    column: i32,
    x_batch: i32,
    w_batch: i32,
    /// The next one, its place, and one past the last.
    next: u32,
    at: Cursor<ROWS_STAGES>,
    end: u32,
}

impl Loads {
    /// Starts those of the weights into stage `at`, which may be written.
    #[inline(always)]
    unsafe fn weights(&self, at: Cursor<ROWS_STAGES>, load: u32) {
        let to = shared::dynamic_base() + at.stage() * self.stage_bytes;
        let (k, full) = ((load * ROWS_DEPTH) as i32, self.ring.full(at));
        // SAFETY: forwarded to the caller.
        unsafe {
            self.ring.expect(at, self.stage_bytes);
            if self.gated {
                tma::load_5d(to, self.w_map, [k, 0, 0, self.column, self.w_batch], full);
            } else {
                tma::load_3d(to, self.w_map, [k, self.column, self.w_batch], full);
            }
        }
    }

    /// Starts those of x.
    #[inline(always)]
    unsafe fn inputs(&self, at: Cursor<ROWS_STAGES>, load: u32) {
        let to = shared::dynamic_base() + at.stage() * self.stage_bytes + W_BYTES;
        // SAFETY: forwarded to the caller.
        unsafe {
            let at_k = [(load * ROWS_DEPTH) as i32, self.row, self.x_batch];
            tma::load_3d(to, self.x_map, at_k, self.ring.full(at));
        }
    }

    /// Fills the ring. The weights do not wait for the kernels in front, if they need not.
    #[inline(always)]
    unsafe fn begin(&mut self, early: bool) {
        // SAFETY: forwarded to the caller.
        unsafe {
            if !early {
                grid_dependency::wait();
            }
            let first = self.next;
            let end = if first + ROWS_STAGES < self.end {
                first + ROWS_STAGES
            } else {
                self.end
            };
            while self.next < end {
                self.weights(self.at, self.next);
                self.at = self.at.next();
                self.next += 1;
            }
            grid_dependency::wait();
            let (mut at, mut load) = (Cursor::start(), first);
            while load < end {
                self.inputs(at, load);
                at = at.next();
                load += 1;
            }
        }
    }

    /// What [`begin`](Self::begin) does to the counters.
    #[inline(always)]
    fn skip(&mut self, first: u32) {
        let count = if first + ROWS_STAGES < self.end {
            ROWS_STAGES
        } else {
            self.end - first
        };
        self.next = first + count;
        self.at = Cursor::start();
        let mut i = 0;
        while i < count {
            self.at = self.at.next();
            i += 1;
        }
    }

    /// Starts the next load when all warps have given its stage back.
    #[inline(always)]
    unsafe fn follow(&mut self, leader: bool) {
        if self.next < self.end {
            // SAFETY: forwarded to the caller.
            unsafe {
                self.ring.wait_empty(self.at);
                if leader {
                    self.weights(self.at, self.next);
                    self.inputs(self.at, self.next);
                }
                barrier::syncwarp(warp::FULL);
            }
            self.at = self.at.next();
            self.next += 1;
        }
    }
}

/// Up to `8·N` rows at a time.
///
/// # Safety
/// - As for the entries.
#[inline(always)]
unsafe fn rows<T: Mma, const N: usize>(params: &StreamParams, address: ParamAddress) {
    let rows = 8 * N as u32;
    let linear = &params.linear;
    let (lane, warp_idx) = (thread::lane_id(), thread::warp_idx());
    let base = shared::dynamic_base();
    let stage_bytes = W_BYTES + rows * ROWS_DEPTH * 2;
    let ring = Stages::new(base + ROWS_STAGES * stage_bytes);
    let place = Place::new(params);
    let chunks = (linear.k as u32).div_ceil(ROWS_DEPTH);
    let within = |load: u32| if load < chunks { load } else { chunks };
    let begin = place.first * params.depth;
    // SAFETY: the caller's description; the ring's participants are one thread and four warps; all threads meet at the
    // cluster's barriers.
    unsafe {
        if thread::thread_idx_x() == 0 {
            ring.init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        let first = within(begin);
        let mut loads = Loads {
            ring,
            x_map: address.tensor_map(offset_of!(StreamParams, x_map)),
            w_map: address.tensor_map(offset_of!(StreamParams, w_map)),
            stage_bytes,
            gated: linear.gated != 0,
            row: (place.tile_m * rows) as i32,
            column: (place.tile_n
                * if linear.gated != 0 {
                    ROWS_COLUMNS / 16
                } else {
                    ROWS_COLUMNS
                }) as i32,
            x_batch: place.batch as i32,
            w_batch: if linear.w_batch_stride == 0 {
                0
            } else {
                place.batch as i32
            },
            next: first,
            at: Cursor::start(),
            end: within(place.end * params.depth),
        };
        if warp_idx == 0 {
            if lane == 0 {
                loads.begin(params.early != 0);
            }
            // The other lanes count along.
            barrier::syncwarp(warp::FULL);
            loads.skip(first);
        }
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        // 0, which the compiler does not know.
        let nothing = linear.reserved;
        let (group, pair) = (lane / 4, lane % 4);
        let place_of_eight = column_of(group);
        let own = place_of_eight * 128;
        let chunk = (pair ^ place_of_eight) * 16;
        let mut total: Sums<N> = [[[0.0; 4]; N]; 2];
        let mut at = Cursor::<ROWS_STAGES>::start();
        let mut slice = place.first;
        while slice < place.end {
            let mut d: Sums<N> = [[[0.0; 4]; N]; 2];
            let mut load = within(slice * params.depth);
            let end = within((slice + 1) * params.depth);
            while load < end {
                ring.wait_full(at);
                let w = base + at.stage() * stage_bytes + warp_idx * (32 * 128) + own;
                let x = base + at.stage() * stage_bytes + W_BYTES + own;
                // A loop: both halves at once would need more registers than there are.
                let (mut turn, turns) = (0, opaque(2));
                while turn < turns {
                    let half = chunk ^ (turn * 64);
                    let mut a = [[[0u32; 4]; 2]; 2];
                    let mut c = 0;
                    while c < 2 {
                        a[c][0] = shared::ld(w + c as u32 * 2048 + half);
                        a[c][1] = shared::ld(w + c as u32 * 2048 + 1024 + half);
                        c += 1;
                    }
                    // Sums, though of nothing: ptxas would gather the registers of a fragment anew for each product.
                    let mut fragments = [[[0u32; 4]; 2]; 2];
                    let mut c = 0;
                    while c < 2 {
                        let mut i = 0;
                        while i < 2 {
                            let of = [a[c][0][2 * i], a[c][1][2 * i], a[c][0][2 * i + 1], a[c][1][2 * i + 1]];
                            let mut word = 0;
                            while word < 4 {
                                fragments[c][i][word] = of[word] ^ nothing;
                                word += 1;
                            }
                            i += 1;
                        }
                        c += 1;
                    }
                    // Four by four: between two products that wait for one another there are eight others.
                    let mut n = 0;
                    while n < N {
                        let mut b = [[0u32; 4]; 4];
                        let mut j = 0;
                        while j < 4 && n + j < N {
                            b[j] = shared::ld(x + (n + j) as u32 * 1024 + half);
                            j += 1;
                        }
                        let mut i = 0;
                        while i < 2 {
                            let mut j = 0;
                            while j < 4 && n + j < N {
                                let mut c = 0;
                                while c < 2 {
                                    let b = [b[j][2 * i], b[j][2 * i + 1]];
                                    d[c][n + j] = T::mma(fragments[c][i], b, d[c][n + j]);
                                    c += 1;
                                }
                                j += 1;
                            }
                            i += 1;
                        }
                        n += 4;
                    }
                    turn += 1;
                }
                ring.release(at);
                at = at.next();
                // Of the stage before: this one the other warps may still read.
                if warp_idx == 0 && load > first {
                    loads.follow(lane == 0);
                }
                load += 1;
            }
            let mut c = 0;
            while c < 2 {
                let mut n = 0;
                while n < N {
                    let mut i = 0;
                    while i < 4 {
                        total[c][n][i] += d[c][n][i];
                        i += 1;
                    }
                    n += 1;
                }
                c += 1;
            }
            slice += 1;
        }
        // All have read the last stages, which the sums replace.
        barrier::syncthreads();
        let mut c = 0;
        while c < 2 {
            let mut n = 0;
            while n < N {
                let mut i = 0;
                while i < 4 {
                    let row = n as u32 * 8 + column_of(2 * pair + i as u32 % 2);
                    let column = warp_idx * 32 + c as u32 * 16 + i as u32 / 2 * 8 + place_of_eight;
                    shared::st(base + (row * ROWS_PITCH + column) * 4, total[c][n][i]);
                    i += 1;
                }
                n += 1;
            }
            c += 1;
        }
        barrier::cluster_sync();
        finish(params, &place, rows);
        // Nobody leaves while others read its sums.
        barrier::cluster_sync();
    }
}

/// Adds the parts' sums and writes this block's share of the rows, eight columns of a row each thread.
#[inline(always)]
unsafe fn finish(params: &StreamParams, place: &Place, rows: u32) {
    let linear = &params.linear;
    let gated = linear.gated != 0;
    // A power of two.
    let groups = if gated { ROWS_COLUMNS / 16 } else { ROWS_COLUMNS / 8 };
    let step = if gated { 16 } else { 8 };
    // SAFETY: this block is one of the cluster's.
    unsafe { core::hint::assert_unchecked(place.size != 0) };
    let share = rows / place.size;
    let mut unit = thread::thread_idx_x();
    let columns = Columns::new(linear, place.tile_n, ROWS_COLUMNS);
    let epilogue = Epilogue::new(linear, place.batch as u64);
    while unit < share * groups {
        let (row, column) = (place.rank * share + unit / groups, unit % groups * step);
        let y_row = place.tile_m as u64 * rows as u64 + row as u64;
        if y_row < linear.m {
            // SAFETY: forwarded to the caller.
            unsafe {
                let z = total(place.parts, row, column);
                let up = if gated { total(place.parts, row, column + 8) } else { z };
                epilogue.finish(y_row, columns.of(column).0, z, up);
            }
        }
        unit += 32 * WARPS;
    }
}

/// The sum over the cluster's blocks of eight columns.
#[inline(always)]
unsafe fn total(parts: u32, row: u32, column: u32) -> [f32; 8] {
    let at = shared::dynamic_base() + (row * ROWS_PITCH + column) * 4;
    let mut total = [0.0; 8];
    let mut first = 0;
    while first < parts {
        // Asked for together: each comes from another multiprocessor.
        let mut of_parts = [[[0.0f32; 4]; 2]; 4];
        let mut i = 0;
        while i < 4 {
            if first + (i as u32) < parts {
                let from = shared::mapa(at, first + i as u32);
                // SAFETY: forwarded to the caller.
                of_parts[i] = unsafe { [shared::ld_cluster(from), shared::ld_cluster(from + 16)] };
            }
            i += 1;
        }
        let mut i = 0;
        while i < 4 {
            if first + (i as u32) < parts {
                let mut j = 0;
                while j < 4 {
                    total[j] += of_parts[i][0][j];
                    total[j + 4] += of_parts[i][1][j];
                    j += 1;
                }
            }
            i += 1;
        }
        first += 4;
    }
    total
}

/// Entries, by element type and eights of rows.
macro_rules! entries {
    ($($name:ident: $type:ty, $eights:literal;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of few rows. Along x: the parts of k of a tile, which are a cluster, and tiles, those of the same
            /// columns side by side; problems along z.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type, the weight `[n, k]`, and the maps.
            #[launch(threads = ROWS_THREADS, min_blocks = 2, tensor_core = 1, param_align = 64)]
            pub fn $name(params: StreamParams, address: ParamAddress) {
                rows::<$type, $eights>(&params, address)
            }
        )*}
    };
}

entries! {
    linear_rows16_nk_f16: F16, 2;
    linear_rows16_nk_bf16: Bf16, 2;
    linear_rows64_nk_f16: F16, 8;
    linear_rows64_nk_bf16: Bf16, 8;
}
