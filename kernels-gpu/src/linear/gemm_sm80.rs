//! `linear_tiled*`: products by `mma.sync`, for 16-bit types whose rows are aligned to 16 bytes.
//!
//! A block computes a tile of 64 × 64, 128 × 128 or, from sm_80 on, 256 × 128 elements, each warp its part of it. Stages of
//! depth 32 are copied ahead by `cp.async` (sm_80) or through registers (sm_75). Operands lie in shared memory the way
//! they lie in global memory, swizzled; `ldmatrix` transposes those that run the other way. Fragments are read one step
//! of 16 ahead of their products, over the end of a stage too. The accumulators go to the epilogue through shared memory,
//! each warp its own part, 32 rows at a time.

use super::copies::Loader;
use super::epilogue::{Columns, Epilogue, tile_of};
use super::params::*;
use crate::tile::copy::{commit, wait};
#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;
use crate::tile::element::F16;
use crate::tile::layout::Swizzle;
use crate::tile::mma::Mma;
use cuda_std::{barrier, matrix, shared, thread, warp};

/// What a warp multiplies in a step: `16·MT` rows and `16·NT` columns.
type Fragments<const MT: usize, const NT: usize> = ([[u32; 4]; MT], [[u32; 4]; NT]);

/// Where a lane reads fragments.
struct Reader<const MT: usize, const NT: usize, const X_ALONG: bool, const W_ALONG: bool> {
    /// Offsets of its first rows in a stage, for both steps of 16.
    x: [u32; 2],
    w: [u32; 2],
}

impl<const MT: usize, const NT: usize, const X_ALONG: bool, const W_ALONG: bool> Reader<MT, NT, X_ALONG, W_ALONG> {
    /// For a warp whose rows and columns begin there; the weight's part of a stage follows `x_bytes`.
    #[inline(always)]
    fn new(row: u32, column: u32, x_bytes: u32) -> Self {
        let lane = thread::lane_id();
        let (r, mat) = (lane % 8, lane / 8);
        let (mut x, mut w) = ([0; 2], [0; 2]);
        let mut step = 0;
        while step < 2 {
            let k = 16 * step as u32;
            x[step] = if X_ALONG {
                let row = row + mat % 2 * 8;
                row / 64 * 4096 + Swizzle::B128.apply((k + r + mat / 2 * 8) * 128 + row % 64 * 2)
            } else {
                Swizzle::B64.apply((row + r + mat % 2 * 8) * 64 + (k + mat / 2 * 8) * 2)
            };
            w[step] = x_bytes
                + if W_ALONG {
                    let column = column + mat / 2 * 8;
                    column / 64 * 4096 + Swizzle::B128.apply((k + r + mat % 2 * 8) * 128 + column % 64 * 2)
                } else {
                    Swizzle::B64.apply((column + r + mat / 2 * 8) * 64 + (k + mat % 2 * 8) * 2)
                };
            step += 1;
        }
        Self { x, w }
    }

    /// The fragments of step `step` of the stage at `stage`.
    ///
    /// # Safety
    /// - The warp calls this together; the stage's copies have arrived.
    #[inline(always)]
    unsafe fn read(&self, stage: u32, step: usize, x_bytes: u32) -> Fragments<MT, NT> {
        let (mut a, mut b) = ([[0; 4]; MT], [[0; 4]; NT]);
        // SAFETY: forwarded to the caller.
        unsafe {
            let mut i = 0;
            while i < MT {
                a[i] = if X_ALONG {
                    // 16 rows further are 32 bytes, exchanged with their neighbours by the swizzle, and panels of 64.
                    let at = self.x[step] ^ (i as u32 % 4 * 32);
                    matrix::ldmatrix_x4_trans(stage + at + i as u32 / 4 * 4096)
                } else {
                    matrix::ldmatrix_x4(stage + self.x[step] + i as u32 * 1024)
                };
                i += 1;
            }
            let mut j = 0;
            while j < NT {
                b[j] = if W_ALONG {
                    let at = (self.w[step] - x_bytes) ^ (j as u32 % 4 * 32);
                    matrix::ldmatrix_x4_trans(stage + x_bytes + at + j as u32 / 4 * 4096)
                } else {
                    matrix::ldmatrix_x4(stage + self.w[step] + j as u32 * 1024)
                };
                j += 1;
            }
        }
        (a, b)
    }
}

/// Adds the products of a step. Neighbours share an operand: a column's rows go up and down in turn.
///
/// # Safety
/// - The warp calls this together.
#[inline(always)]
unsafe fn multiply<T: Mma, const MT: usize, const NT: usize>(
    acc: &mut [[[[f32; 4]; 2]; NT]; MT],
    (a, b): &Fragments<MT, NT>,
) {
    let mut j = 0;
    while j < 2 * NT {
        let b = [b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]];
        let mut i = 0;
        while i < MT {
            let row = if j % 2 == 1 { MT - 1 - i } else { i };
            let d = &mut acc[row][j / 2][j % 2];
            // SAFETY: forwarded to the caller.
            *d = unsafe { T::mma(a[row], b, *d) };
            i += 1;
        }
        j += 1;
    }
}

/// Whether fragments are read ahead: sm_75, whose copies pass through registers, has none left for them.
const READ_AHEAD: bool = cfg!(not(tier = "sm_75"));
/// Whether whole tiles have an epilogue of their own: not on sm_75, for want of registers.
const PLAIN_ROWS: bool = cfg!(not(tier = "sm_75"));
/// Stages ahead of the one that is multiplied.
const AHEAD: u32 = TILED_STAGES - 1;

/// What a warp keeps of the stages.
struct Pipeline<
    const MT: usize,
    const NT: usize,
    const THREADS: u32,
    const X: usize,
    const W: usize,
    const X_ALONG: bool,
    const W_ALONG: bool,
> {
    x: Loader<X, THREADS, X_ALONG>,
    w: Loader<W, THREADS, W_ALONG>,
    reader: Reader<MT, NT, X_ALONG, W_ALONG>,
    /// Shared address of the first stage.
    base: u32,
    /// Of the one that is multiplied, and of the one that is copied into next.
    stage: u32,
    free: u32,
    /// The next products' fragments.
    now: Fragments<MT, NT>,
}

impl<
    const MT: usize,
    const NT: usize,
    const THREADS: u32,
    const X: usize,
    const W: usize,
    const X_ALONG: bool,
    const W_ALONG: bool,
> Pipeline<MT, NT, THREADS, X, W, X_ALONG, W_ALONG>
{
    /// Bytes of x's part of a stage, and of a stage.
    const X_BYTES: u32 = THREADS / 4 * MT as u32 * (TILED_DEPTH * 2);
    const STAGE_BYTES: u32 = Self::X_BYTES + 32 * NT as u32 * (TILED_DEPTH * 2);

    /// Copies the first stages and reads the first fragments. The warp's rows and columns of a tile begin there.
    ///
    /// # Safety
    /// - The block calls this together; the operands are as the loaders were told, and k is not 0.
    #[inline(always)]
    unsafe fn start(
        mut x: Loader<X, THREADS, X_ALONG>,
        mut w: Loader<W, THREADS, W_ALONG>,
        [row, column]: [u32; 2],
        k: u64,
    ) -> Self {
        let base = shared::dynamic_base();
        let reader = Reader::new(row, column, Self::X_BYTES);
        // SAFETY: forwarded to the caller; all threads meet at the barrier.
        unsafe {
            let mut ahead = 0;
            while ahead < AHEAD {
                let at = (ahead * TILED_DEPTH) as u64;
                if at < k {
                    x.load(base + ahead * Self::STAGE_BYTES, k - at);
                    w.load(base + ahead * Self::STAGE_BYTES + Self::X_BYTES, k - at);
                }
                commit();
                ahead += 1;
            }
            wait::<{ AHEAD - 1 }>();
            barrier::syncthreads();
            let now = if READ_AHEAD {
                reader.read(base, 0, Self::X_BYTES)
            } else {
                ([[0; 4]; MT], [[0; 4]; NT])
            };
            Self {
                x,
                w,
                reader,
                base,
                stage: base,
                free: base + AHEAD * Self::STAGE_BYTES,
                now,
            }
        }
    }

    /// Multiplies a stage, of which `k_left` elements along k and more are left. If it is in the `MIDDLE`, so many that the
    /// stage that is copied meanwhile is whole.
    ///
    /// # Safety
    /// - As for `start`.
    #[inline(always)]
    unsafe fn turn<T: Mma, const MIDDLE: bool>(&mut self, acc: &mut [[[[f32; 4]; 2]; NT]; MT], k_left: u64) {
        let ahead = (AHEAD * TILED_DEPTH) as u64;
        // SAFETY: forwarded to the caller; all have read the free stage before the last barrier.
        unsafe {
            let mut next = ([[0; 4]; MT], [[0; 4]; NT]);
            if READ_AHEAD {
                next = self.reader.read(self.stage, 1, Self::X_BYTES);
            } else {
                self.now = self.reader.read(self.stage, 0, Self::X_BYTES);
            }
            if MIDDLE {
                self.x.load_whole(self.free);
            } else if k_left > ahead {
                self.x.load(self.free, k_left - ahead);
            }
            multiply::<T, MT, NT>(acc, &self.now);
            if !READ_AHEAD {
                next = self.reader.read(self.stage, 1, Self::X_BYTES);
            }
            if MIDDLE {
                self.w.load_whole(self.free + Self::X_BYTES);
            } else if k_left > ahead {
                self.w.load(self.free + Self::X_BYTES, k_left - ahead);
            }
            commit();
            wait::<{ AHEAD - 1 }>();
            barrier::syncthreads();
            self.free = self.stage;
            self.stage += Self::STAGE_BYTES;
            if self.stage == self.base + TILED_STAGES * Self::STAGE_BYTES {
                self.stage = self.base;
            }
            if READ_AHEAD && (MIDDLE || k_left > TILED_DEPTH as u64) {
                self.now = self.reader.read(self.stage, 0, Self::X_BYTES);
            }
            multiply::<T, MT, NT>(acc, &next);
        }
    }
}

/// The kernel: tiles of `16·MT·WARPS_M` rows and `16·NT·2` columns of the weight, by `WARPS_M × 2` warps. `X_ALONG` and
/// `W_ALONG` as for [`Loader`], of which a thread has `X` and `W` chunks.
///
/// # Safety
/// - `params` describes tensors of the device, with dense and 16-byte aligned rows in the sense of the two constants;
///   the launch has `THREADS` threads, 64 to a row of warps, [`tiled_shared`] bytes, and a block for each tile and problem.
#[inline(always)]
unsafe fn linear<
    T: Mma,
    const MT: usize,
    const NT: usize,
    const THREADS: u32,
    const X: usize,
    const W: usize,
    const X_ALONG: bool,
    const W_ALONG: bool,
>(
    params: &LinearParams,
) {
    const { assert!(X == MT && W as u32 * THREADS == NT as u32 * 128 && (MT == 2 || MT == 4)) };
    let rows = THREADS / 4 * MT as u32;
    let columns_of_tile = 32 * NT as u32;
    let batch = thread::block_idx_z() as u64;
    let (tile_m, tile_n) = tile_of::<8>(params, thread::block_idx_x());
    let columns = Columns::new(params, tile_n, columns_of_tile);
    let first_row = tile_m as u64 * rows as u64;
    let x_base = params.x + batch * params.x_batch_stride * 2;
    let x = Loader::<X, THREADS, X_ALONG>::new(x_base, params.x_k_stride, params.m, |row| {
        let row = first_row + row as u64;
        (row * params.x_row_stride, params.m.saturating_sub(row))
    });
    let w_base = params.w + batch * params.w_batch_stride * 2;
    let w = Loader::<W, THREADS, W_ALONG>::new(w_base, params.w_k_stride, params.n, |column| {
        let (output, column) = columns.of(column);
        (column * params.w_n_stride, params.n.saturating_sub(output))
    });
    let lane = thread::lane_id();
    let warp_idx = thread::warp_idx();
    let (warp_row, warp_column) = (warp_idx / 2 * (16 * MT as u32), warp_idx % 2 * (16 * NT as u32));

    let mut acc = [[[[0.0f32; 4]; 2]; NT]; MT];
    // SAFETY: the caller's description of operands; barriers are reached by all threads, k being the same for all.
    unsafe {
        let mut left = params.k;
        let mut pipeline =
            Pipeline::<MT, NT, THREADS, X, W, X_ALONG, W_ALONG>::start(x, w, [warp_row, warp_column], left);
        while left >= (TILED_STAGES * TILED_DEPTH) as u64 {
            pipeline.turn::<T, true>(&mut acc, left);
            left -= TILED_DEPTH as u64;
        }
        while left > 0 {
            pipeline.turn::<T, false>(&mut acc, left);
            left = left.saturating_sub(TILED_DEPTH as u64);
        }
        wait::<0>();
        barrier::syncthreads();

        // Each warp has 32 × 16·NT floats; groups of 8 columns are exchanged by XOR with the row.
        let staging = shared::dynamic_base() + warp_idx * (512 * 4 * NT as u32);
        let pitch = 16 * NT as u32 * 4;
        let groups = 2 * NT as u32;
        let (row, pair) = (lane / 4, lane % 4);
        let epilogue = Epilogue::new(params, batch);
        let gated = params.gated != 0;
        let outputs = if gated { NT as u32 } else { groups };
        // Products and what is added to them, of this dtype, in columns that all exist: no choice is left, and each lane
        // has the same eight columns in every fourth row.
        let own = warp_column + lane % groups * 8;
        let plain = PLAIN_ROWS
            && NT == 4
            && !gated
            && params.activation == ACTIVATION_IDENTITY
            && epilogue.is_plain(dtype_of::<T>())
            && columns.first() + columns_of_tile as u64 <= params.n;
        let own_column = columns.of(own).0;
        let bias = if plain { epilogue.bias(own_column) } else { [-0.0; 8] };
        let mut half = 0;
        while half < MT {
            let mut i = 0;
            while i < 2 {
                let mut j = 0;
                while j < groups as usize {
                    let group = j as u32 ^ (row % groups);
                    let at = staging + (16 * i as u32 + row) * pitch + group * 32 + pair * 8;
                    // By constants: registers have no numbers at run time.
                    let d = if half == 0 { acc[i] } else { acc[MT - 2 + i] }[j / 2][j % 2];
                    shared::st(at, [d[0], d[1]]);
                    // Eight rows further the XOR is the same.
                    shared::st(at + 8 * pitch, [d[2], d[3]]);
                    j += 1;
                }
                i += 1;
            }
            barrier::syncwarp(warp::FULL);
            if plain {
                let top = lane / groups;
                let mut first = 0;
                while first < 32 {
                    let mut products = [[[0.0; 8]; 2]; 4];
                    let mut i = 0;
                    while i < 4 {
                        let row = top + first + 4 * i;
                        let at = staging + row * pitch + (lane % groups ^ row % 8) * 32;
                        products[i as usize][0] = staged(at);
                        i += 1;
                    }
                    let y_row = first_row + (warp_row + 16 * half as u32 + top + first) as u64;
                    let bias = [bias, bias];
                    epilogue.finish_rows::<T, 4, false>(y_row, params.m, own_column, bias, products, |_, z| z);
                    first += 16;
                }
            }
            let mut unit = if plain { 32 * outputs } else { lane };
            while unit < 32 * outputs {
                // NT and groups are powers of two.
                let (row, group) = if gated {
                    (unit / NT as u32, unit % NT as u32 * 2)
                } else {
                    (unit / groups, unit % groups)
                };
                let y_row = first_row + (warp_row + 16 * half as u32 + row) as u64;
                if y_row < params.m {
                    let column = columns.of(warp_column + group * 8).0;
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
            barrier::syncwarp(warp::FULL);
            half += 2;
        }
    }
}

/// `DTYPE_*` of a type of 16 bits.
const fn dtype_of<T: Mma>() -> u32 {
    if T::BF16 { DTYPE_BF16 } else { DTYPE_F16 }
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
    ($type:ty: $($name:ident($mt:literal, $nt:literal, $threads:literal, $x:literal, $w:literal);)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of 16-bit elements by `mma.sync`, a block a tile of the weight's columns.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type and layout.
            #[launch(threads = $threads, min_blocks = 1024 / $mt / $threads, tensor_core = 1)]
            pub fn $name(params: LinearParams) {
                linear::<$type, $mt, $nt, $threads, { $mt }, { $nt * 128 / $threads }, $x, $w>(&params)
            }
        )*}
    };
}

entries! { F16:
    linear_tiled64_nk_f16(2, 2, 128, false, false);
    linear_tiled64_kn_f16(2, 2, 128, false, true);
    linear_tiled64_tn_f16(2, 2, 128, true, true);
    linear_tiled128_nk_f16(4, 4, 128, false, false);
    linear_tiled128_kn_f16(4, 4, 128, false, true);
    linear_tiled128_tn_f16(4, 4, 128, true, true);
}
#[cfg(not(tier = "sm_75"))]
entries! { F16:
    linear_tiled256_nk_f16(4, 4, 256, false, false);
    linear_tiled256_kn_f16(4, 4, 256, false, true);
    linear_tiled256_tn_f16(4, 4, 256, true, true);
}
#[cfg(not(tier = "sm_75"))]
entries! { Bf16:
    linear_tiled64_nk_bf16(2, 2, 128, false, false);
    linear_tiled64_kn_bf16(2, 2, 128, false, true);
    linear_tiled64_tn_bf16(2, 2, 128, true, true);
    linear_tiled128_nk_bf16(4, 4, 128, false, false);
    linear_tiled128_kn_bf16(4, 4, 128, false, true);
    linear_tiled128_tn_bf16(4, 4, 128, true, true);
    linear_tiled256_nk_bf16(4, 4, 256, false, false);
    linear_tiled256_kn_bf16(4, 4, 256, false, true);
    linear_tiled256_tn_bf16(4, 4, 256, true, true);
}
