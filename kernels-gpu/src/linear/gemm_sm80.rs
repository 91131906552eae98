//! `linear_tiled*`: products by `mma.sync`, for 16-bit types whose rows are aligned to 16 bytes.
//!
//! A block of four warps, 2×2, computes a tile of 64×64 or 128×128 elements; stages of depth 32 are copied ahead by
//! `cp.async` (sm_80) or through registers (sm_75). Operands lie in shared memory the way they lie in global memory,
//! swizzled; `ldmatrix` transposes those that run the other way. The accumulators go to the epilogue through shared
//! memory, each warp its own part.

use super::epilogue::{Columns, Epilogue, tile_of};
use super::params::*;
#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;
use crate::tile::element::F16;
use crate::tile::layout::Swizzle;
use crate::tile::mma::Mma;
#[cfg(not(tier = "sm_75"))]
use cuda_std::cp_async;
use cuda_std::{barrier, matrix, shared, thread, warp};

/// 16 bytes from global to shared memory, of which the first `bytes` exist and the others become 0.
#[inline(always)]
unsafe fn copy_16(target: u32, source: u64, bytes: u32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        #[cfg(not(tier = "sm_75"))]
        cp_async::copy_16(target, source as *const u8, bytes);
        #[cfg(tier = "sm_75")]
        {
            use cuda_std::global;
            let mut words = [0u32; 4];
            if bytes == 16 {
                words = global::ld(source as *const [u32; 4]);
            } else {
                let mut i = 0;
                while i < 4 {
                    let low = if 4 * i as u32 + 2 <= bytes {
                        global::ld((source as *const u16).add(2 * i))
                    } else {
                        0
                    };
                    let high = if 4 * i as u32 + 4 <= bytes {
                        global::ld((source as *const u16).add(2 * i + 1))
                    } else {
                        0
                    };
                    words[i] = low as u32 | (high as u32) << 16;
                    i += 1;
                }
            }
            shared::st(target, words);
        }
    }
}

#[inline(always)]
unsafe fn commit() {
    // SAFETY: no condition.
    #[cfg(not(tier = "sm_75"))]
    unsafe {
        cp_async::commit_group()
    }
}

#[inline(always)]
unsafe fn wait<const N: u32>() {
    // SAFETY: no condition; a barrier follows.
    #[cfg(not(tier = "sm_75"))]
    unsafe {
        cp_async::wait_group::<N>()
    }
}

/// How a thread copies its chunks of an operand into the stages. `CHUNKS` chunks of 16 bytes a stage; the tile has
/// `32·CHUNKS` rows (of x, or columns of the weight). `ALONG` says that the operand is dense along its rows, not along
/// k.
struct Loader<const CHUNKS: usize, const ALONG: bool> {
    /// Address of the first chunk in the next stage.
    source: u64,
    /// From one of this thread's chunks to the next but where the tile's columns are split among halves of a pair.
    row_step: u64,
    /// From one stage to the next.
    k_step: u64,
    /// Offset of the first chunk in a stage; the others follow at distances of 2048.
    target: u32,
    /// This thread's place along k in a stage, elements.
    k: u32,
    /// For each chunk, how many of its elements exist along the rows: 0 to 8.
    rows: [u32; CHUNKS],
}

impl<const CHUNKS: usize, const ALONG: bool> Loader<CHUNKS, ALONG> {
    /// `place` maps a row of the tile to its offset in elements and the number of rows that exist from there on.
    /// Offsets of chunks that exist lie at equal distances.
    #[inline(always)]
    fn new(base: u64, k_stride: u64, place: impl Fn(u32) -> (u64, u64)) -> Self {
        let t = thread::thread_idx_x();
        // A row of 32 k is four chunks; a panel of 64 rows at one k is eight.
        let (row, k) = if ALONG { (t % 8 * 8, t / 8) } else { (t / 4, t % 4 * 8) };
        let target = if ALONG {
            Swizzle::B128.apply(k * 128 + row * 2)
        } else {
            Swizzle::B64.apply(row * 64 + k * 2)
        };
        let mut rows = [0; CHUNKS];
        let mut i = 0;
        while i < CHUNKS {
            let (_, left) = place(row + Self::row_of(i));
            rows[i] = if left < 8 { left as u32 } else { 8 };
            i += 1;
        }
        let first = place(row).0;
        let step = place(row + Self::row_of(if ALONG { 2 } else { 1 }))
            .0
            .wrapping_sub(first);
        Self {
            source: base.wrapping_add(first.wrapping_add(k as u64 * k_stride).wrapping_mul(2)),
            row_step: step.wrapping_mul(2),
            k_step: k_stride * 2,
            target,
            k,
            rows,
        }
    }

    /// First row of chunk `i`, relative to the first chunk's.
    #[inline(always)]
    const fn row_of(i: usize) -> u32 {
        if ALONG { i as u32 / 2 * 64 } else { i as u32 * 32 }
    }

    /// Starts the copies of the next stage, of which `k_left` elements along k exist.
    #[inline(always)]
    unsafe fn load(&mut self, stage: u32, base: u64, k_left: u64) {
        let mut i = 0;
        while i < CHUNKS {
            let (source, bytes) = if ALONG {
                // Chunks 2j and 2j + 1 are 16 apart along k.
                let k = self.k + if i % 2 == 1 { 16 } else { 0 };
                let source = self
                    .source
                    .wrapping_add((i as u64 / 2).wrapping_mul(self.row_step))
                    .wrapping_add(if i % 2 == 1 { 16 * self.k_step } else { 0 });
                (source, if (k as u64) < k_left { 2 * self.rows[i] } else { 0 })
            } else {
                let source = self.source.wrapping_add((i as u64).wrapping_mul(self.row_step));
                let left = k_left.saturating_sub(self.k as u64);
                let left = if left < 8 { left as u32 } else { 8 };
                (source, if self.rows[i] > 0 { 2 * left } else { 0 })
            };
            // Nothing is read from the address where no byte exists; it is kept valid all the same.
            let source = if bytes == 0 { base } else { source };
            // SAFETY: the bytes exist by the caller's description; the chunk is this thread's in a free stage.
            unsafe { copy_16(stage + self.target + 2048 * i as u32, source, bytes) };
            i += 1;
        }
        self.source = self.source.wrapping_add(TILED_DEPTH as u64 * self.k_step);
    }
}

/// The kernel: tiles of `32·MT` rows and `32·NT` columns of the weight. `X_ALONG` and `W_ALONG` as for [`Loader`].
///
/// # Safety
/// - `params` describes tensors of the device, with dense and 16-byte aligned rows in the sense of the two constants;
///   the launch has [`TILED_THREADS`] threads, [`tiled_shared`] bytes, and a block for each tile and problem.
#[inline(always)]
unsafe fn linear<T: Mma, const MT: usize, const NT: usize, const X_ALONG: bool, const W_ALONG: bool>(
    params: &LinearParams,
) {
    let x_bytes = MT as u32 * 2048;
    let stage_bytes = (MT + NT) as u32 * 2048;
    let batch = thread::block_idx_z() as u64;
    let (tile_m, tile_n) = tile_of::<8>(params, thread::block_idx_x());
    let columns = Columns::new(params, tile_n, 32 * NT as u32);
    let first_row = tile_m as u64 * (32 * MT as u64);
    let x_base = params.x + batch * params.x_batch_stride * 2;
    let w_base = params.w + batch * params.w_batch_stride * 2;
    let base = shared::dynamic_base();
    let mut x = Loader::<MT, X_ALONG>::new(x_base, params.x_k_stride, |row| {
        let row = first_row + row as u64;
        (row * params.x_row_stride, params.m.saturating_sub(row))
    });
    let mut w = Loader::<NT, W_ALONG>::new(w_base, params.w_k_stride, |column| {
        let (output, column) = columns.of(column);
        (column * params.w_n_stride, params.n.saturating_sub(output))
    });

    let lane = thread::lane_id();
    let warp_idx = thread::warp_idx();
    let (warp_m, warp_n) = (warp_idx / 2, warp_idx % 2);
    let (r, mat) = (lane % 8, lane / 8);
    // Shared offsets of this lane's rows for ldmatrix, for each of the two 16-deep steps of a stage.
    let mut x_at = [0; 2];
    let mut w_at = [0; 2];
    let mut step = 0;
    while step < 2 {
        let k = 16 * step as u32;
        x_at[step] = if X_ALONG {
            let row = warp_m * (16 * MT as u32) + mat % 2 * 8;
            row / 64 * 4096 + Swizzle::B128.apply((k + r + mat / 2 * 8) * 128 + row % 64 * 2)
        } else {
            Swizzle::B64.apply((warp_m * (16 * MT as u32) + r + mat % 2 * 8) * 64 + (k + mat / 2 * 8) * 2)
        };
        w_at[step] = x_bytes
            + if W_ALONG {
                let column = warp_n * (16 * NT as u32) + mat / 2 * 8;
                column / 64 * 4096 + Swizzle::B128.apply((k + r + mat % 2 * 8) * 128 + column % 64 * 2)
            } else {
                Swizzle::B64.apply((warp_n * (16 * NT as u32) + r + mat / 2 * 8) * 64 + (k + mat % 2 * 8) * 2)
            };
        step += 1;
    }

    let mut acc = [[[[0.0f32; 4]; 2]; NT]; MT];
    // SAFETY: the caller's description of operands; barriers are reached by all threads, k being the same for all.
    unsafe {
        let mut ahead = 0;
        while ahead < TILED_STAGES - 1 {
            let at = ahead as u64 * TILED_DEPTH as u64;
            if at < params.k {
                x.load(base + ahead * stage_bytes, x_base, params.k - at);
                w.load(base + ahead * stage_bytes + x_bytes, w_base, params.k - at);
            }
            commit();
            ahead += 1;
        }
        let mut k = 0;
        let mut stage = 0;
        let mut free = TILED_STAGES - 1;
        while k < params.k {
            wait::<{ TILED_STAGES - 2 }>();
            barrier::syncthreads();
            let at = k + (TILED_STAGES as u64 - 1) * TILED_DEPTH as u64;
            if at < params.k {
                x.load(base + free * stage_bytes, x_base, params.k - at);
                w.load(base + free * stage_bytes + x_bytes, w_base, params.k - at);
            }
            commit();
            let tile = base + stage * stage_bytes;
            let mut step = 0;
            while step < 2 {
                let mut a = [[0u32; 4]; MT];
                let mut i = 0;
                while i < MT {
                    a[i] = if X_ALONG {
                        // 16 rows further are 32 bytes, exchanged with their neighbours by the swizzle, and panels of 64.
                        let at = x_at[step] ^ (i as u32 % 4 * 32);
                        matrix::ldmatrix_x4_trans(tile + at + i as u32 / 4 * 4096)
                    } else {
                        matrix::ldmatrix_x4(tile + x_at[step] + i as u32 * 1024)
                    };
                    i += 1;
                }
                let mut j = 0;
                while j < NT {
                    let b = if W_ALONG {
                        let at = (w_at[step] - x_bytes) ^ (j as u32 % 4 * 32);
                        matrix::ldmatrix_x4_trans(tile + x_bytes + at + j as u32 / 4 * 4096)
                    } else {
                        matrix::ldmatrix_x4(tile + w_at[step] + j as u32 * 1024)
                    };
                    let mut i = 0;
                    while i < MT {
                        acc[i][j][0] = T::mma(a[i], [b[0], b[1]], acc[i][j][0]);
                        acc[i][j][1] = T::mma(a[i], [b[2], b[3]], acc[i][j][1]);
                        i += 1;
                    }
                    j += 1;
                }
                step += 1;
            }
            stage = if stage + 1 == TILED_STAGES { 0 } else { stage + 1 };
            free = if free + 1 == TILED_STAGES { 0 } else { free + 1 };
            k += TILED_DEPTH as u64;
        }
        wait::<0>();
        barrier::syncthreads();

        // Each warp has its own 16·MT × 16·NT floats; groups of 8 columns are exchanged by XOR with the row.
        let staging = base + warp_idx * (256 * 4 * (MT * NT) as u32);
        let pitch = 16 * NT as u32 * 4;
        let groups = 2 * NT as u32;
        let (row, pair) = (lane / 4, lane % 4);
        let mut i = 0;
        while i < MT {
            let mut j = 0;
            while j < NT {
                let mut h = 0;
                while h < 2 {
                    let group = (2 * j + h) as u32 ^ (row % groups);
                    let at = staging + (16 * i as u32 + row) * pitch + group * 32 + pair * 8;
                    let d = acc[i][j][h];
                    shared::st(at, [d[0], d[1]]);
                    // Eight rows further the XOR is the same.
                    shared::st(at + 8 * pitch, [d[2], d[3]]);
                    h += 1;
                }
                j += 1;
            }
            i += 1;
        }
        barrier::syncwarp(warp::FULL);
        let epilogue = Epilogue::new(params, batch);
        let gated = params.gated != 0;
        let outputs = if gated { NT as u32 } else { groups };
        let warp_row = warp_m * (16 * MT as u32);
        let mut unit = lane;
        while unit < 16 * MT as u32 * outputs {
            // NT and groups are powers of two.
            let (row, group) = if gated {
                (unit / NT as u32, unit % NT as u32 * 2)
            } else {
                (unit / groups, unit % groups)
            };
            let y_row = first_row + (warp_row + row) as u64;
            if y_row < params.m {
                let column = columns.of(warp_n * (16 * NT as u32) + group * 8).0;
                let at = staging + row * pitch;
                let swizzle = row % 8 % groups;
                let z = staged(at + (group ^ swizzle) * 32);
                let up = if gated {
                    staged(at + ((group + 1) ^ swizzle) * 32)
                } else {
                    z
                };
                epilogue.finish(y_row, column, z, up);
            }
            unit += 32;
        }
    }
}

/// Eight floats of shared memory.
#[inline(always)]
unsafe fn staged(address: u32) -> [f32; 8] {
    // SAFETY: forwarded to the caller.
    let [a, b]: [[f32; 4]; 2] = unsafe { [shared::ld(address), shared::ld(address + 16)] };
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// Entries of one element type: `nk` and `kn` name the weight's layout, `tn` has both operands dense across k.
macro_rules! entries {
    ($type:ty: $($name:ident($mt:literal, $nt:literal, $x:literal, $w:literal);)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of 16-bit elements by `mma.sync`, a block a square tile of the weight's columns.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type and layout.
            #[launch(threads = TILED_THREADS, min_blocks = 8 / $mt, tensor_core = 1)]
            pub fn $name(params: LinearParams) {
                linear::<$type, $mt, $nt, $x, $w>(&params)
            }
        )*}
    };
}

entries! { F16:
    linear_tiled64_nk_f16(2, 2, false, false);
    linear_tiled64_kn_f16(2, 2, false, true);
    linear_tiled64_tn_f16(2, 2, true, true);
    linear_tiled128_nk_f16(4, 4, false, false);
    linear_tiled128_kn_f16(4, 4, false, true);
    linear_tiled128_tn_f16(4, 4, true, true);
}
#[cfg(not(tier = "sm_75"))]
entries! { Bf16:
    linear_tiled64_nk_bf16(2, 2, false, false);
    linear_tiled64_kn_bf16(2, 2, false, true);
    linear_tiled64_tn_bf16(2, 2, true, true);
    linear_tiled128_nk_bf16(4, 4, false, false);
    linear_tiled128_kn_bf16(4, 4, false, true);
    linear_tiled128_tn_bf16(4, 4, true, true);
}
