//! The norm in front of a product of few rows: in the product's own shared memory, or by `linear_norm_*` where there are
//! more rows than fit. Both ways are this code, so a row has the same bits.

use super::params::*;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{barrier, cp_async, global, grid_dependency, math, shared, thread, warp};

/// What rows are normalised by.
#[derive(Clone, Copy)]
pub struct Norm {
    /// `NORM_*`.
    pub kind: u32,
    /// Address of the factor.
    pub weight: u64,
    /// Address of the summand, or 0.
    pub bias: u64,
    pub epsilon: f32,
    /// Elements of a row.
    pub k: u32,
    /// 1 / k.
    pub reciprocal: f32,
}

/// This thread's first vectors of factor and summand, asked for long before they are needed.
#[derive(Clone, Copy)]
pub struct Affine {
    weight: [[u32; 4]; 2],
    bias: [[u32; 4]; 2],
}

impl Norm {
    /// Loads what [`normalise`] begins with.
    ///
    /// # Safety
    /// - The norm's tensors are what the host says, and nothing writes them.
    #[inline(always)]
    pub unsafe fn affine(&self) -> Affine {
        let first = thread::thread_idx_x();
        let load = |address: u64, i: u32| {
            let v = first + i * ROWS8_THREADS;
            if self.kind != NORM_NONE && address != 0 && v < self.k / 8 {
                // SAFETY: forwarded to the caller.
                unsafe { global::ld((address + v as u64 * 16) as *const [u32; 4]) }
            } else {
                [0; 4]
            }
        };
        Affine {
            weight: [load(self.weight, 0), load(self.weight, 1)],
            bias: [load(self.bias, 0), load(self.bias, 1)],
        }
    }
}

impl Norm {
    /// What [`normalise`] counts from: the row's first element, or 0.
    ///
    /// # Safety
    /// - The row is complete.
    #[inline(always)]
    pub unsafe fn shift<T: Element>(&self, row: u64) -> T {
        if self.kind == NORM_LAYER {
            // SAFETY: forwarded to the caller.
            unsafe { global::ld(row as *const T) }
        } else {
            T::from_f32(0.0)
        }
    }
}

/// Starts this thread's copies of a row into shared memory, zeros up to `padded` vectors of eight; one group.
///
/// # Safety
/// - All threads of the block call this; the row has `vectors` vectors, and `to` room for `padded`, which are fewer than
///   [`ROWS8_THREADS`] more.
#[inline(always)]
pub unsafe fn copy_row(to: u32, row: u64, vectors: u32, padded: u32) {
    let first = thread::thread_idx_x();
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut v = first;
        while v < vectors {
            cp_async::copy_16(to + v * 16, (row + v as u64 * 16) as *const u8, 16);
            v += ROWS8_THREADS;
        }
        if vectors + first < padded {
            shared::st(to + (vectors + first) * 16, [0u32; 4]);
        }
    }
}

/// Normalises a row in shared memory, of which each thread has the vectors that it copied itself. `turn` counts the
/// block's exchanges.
///
/// Mean and variance come from one pass over the distances from `shift`, an element of the row: it is at most `√k`
/// deviations from the mean, so what cancels is at most `k` times the variance.
///
/// # Safety
/// - All threads call this together, their copies have ended, and `exchange` has [`NORM_EXCHANGE`] bytes.
#[inline(always)]
pub unsafe fn normalise<T: Element>(norm: &Norm, affine: &Affine, shift: f32, at: u32, exchange: u32, turn: &mut u32) {
    let first = thread::thread_idx_x();
    let vectors = norm.k / 8;
    // SAFETY: forwarded to the caller.
    unsafe {
        let values = |v: u32| T::unpack8(T::of_words(shared::ld(at + v * 16)));
        let distances = |v: u32| values(v).map(|x| x - shift);
        // The first two vectors stay in registers.
        let second = first + ROWS8_THREADS;
        let has = [first < vectors, second < vectors];
        let mut own = [[0.0; 8]; 2];
        let mut sums = [0.0; 2];
        let mut take = #[inline(always)]
        |x: [f32; 8]| {
            sums[0] += add_up(x);
            sums[1] += add_up(x.map(|x| x * x));
        };
        if has[0] {
            own[0] = distances(first);
            take(own[0]);
        }
        if has[1] {
            own[1] = distances(second);
            take(own[1]);
        }
        let mut v = second + ROWS8_THREADS;
        while v < vectors {
            take(distances(v));
            v += ROWS8_THREADS;
        }
        let [total, square] = both(sums, exchange, turn).map(|sum| sum * norm.reciprocal);
        let mean = if norm.kind == NORM_LAYER { total } else { 0.0 };
        // Of x all alike, rounding may leave less than 0.
        let variance = math::fmax_nan(math::fma(-mean, mean, square), 0.0);
        let scale = 1.0 / math::sqrt_rn(variance + norm.epsilon);
        let finish = #[inline(always)]
        |v: u32, x: [f32; 8], weight: [u32; 4], bias: [u32; 4]| {
            let mut y = x.map(|x| (x - mean) * scale);
            let (w, b) = (T::unpack8(T::of_words(weight)), T::unpack8(T::of_words(bias)));
            let mut i = 0;
            while i < 8 {
                y[i] = math::fma(y[i], w[i], b[i]);
                i += 1;
            }
            let words = [
                T::pack(y[0], y[1]),
                T::pack(y[2], y[3]),
                T::pack(y[4], y[5]),
                T::pack(y[6], y[7]),
            ];
            shared::st(at + v * 16, words);
        };
        if has[0] {
            finish(first, own[0], affine.weight[0], affine.bias[0]);
        }
        if has[1] {
            finish(second, own[1], affine.weight[1], affine.bias[1]);
        }
        let mut v = second + ROWS8_THREADS;
        while v < vectors {
            let load = |address: u64| global::ld((address + v as u64 * 16) as *const [u32; 4]);
            finish(
                v,
                distances(v),
                load(norm.weight),
                if norm.bias != 0 { load(norm.bias) } else { [0; 4] },
            );
            v += ROWS8_THREADS;
        }
    }
}

/// The sum of eight, by pairs.
#[inline(always)]
fn add_up(v: [f32; 8]) -> f32 {
    ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
}

/// The block's sums of two values: of lanes by butterflies, of warps in their order.
///
/// # Safety
/// - All threads call this together; `exchange` has [`NORM_EXCHANGE`] bytes, of which every other call uses the other half.
#[inline(always)]
unsafe fn both(values: [f32; 2], exchange: u32, turn: &mut u32) -> [f32; 2] {
    // SAFETY: forwarded to the caller. A warp that writes a half again has passed the barrier of the turn between, which
    // all others reach after they have read it.
    unsafe {
        let totals = values.map(|value| warp::reduce_sum::<32>(value));
        let slots = exchange + (*turn & 1) * (NORM_EXCHANGE / 2);
        *turn += 1;
        if thread::lane_id() == 0 {
            shared::st(slots + thread::warp_idx() * 4, totals[0]);
            shared::st(slots + 32 + thread::warp_idx() * 4, totals[1]);
        }
        barrier::syncthreads();
        let of = |at: u32| {
            let [a, b]: [[f32; 4]; 2] = [shared::ld(at), shared::ld(at + 16)];
            (((a[0] + a[1]) + a[2]) + a[3]) + (((b[0] + b[1]) + b[2]) + b[3])
        };
        [of(slots), of(slots + 32)]
    }
}

/// A row a block.
#[inline(always)]
unsafe fn rows<T: Element>(params: &NormRowsParams) {
    let at = shared::dynamic_base() + NORM_EXCHANGE;
    let row = thread::block_idx_x() as u64;
    let vectors = params.k / 8;
    let norm = Norm {
        kind: params.norm,
        weight: params.weight,
        bias: params.bias,
        epsilon: params.epsilon,
        k: params.k,
        reciprocal: params.reciprocal,
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        let affine = norm.affine();
        grid_dependency::wait();
        grid_dependency::launch_dependents();
        copy_row(at, params.x + row * params.x_row_stride * 2, vectors, vectors);
        cp_async::commit_group();
        let shift = norm.shift::<T>(params.x + row * params.x_row_stride * 2);
        cp_async::wait_group::<0>();
        normalise::<T>(&norm, &affine, shift.to_f32(), at, shared::dynamic_base(), &mut 0);
        // Each thread has written what it stores.
        let mut v = thread::thread_idx_x();
        while v < vectors {
            let words: [u32; 4] = shared::ld(at + v * 16);
            global::st(
                (params.y + (row * params.k as u64 + v as u64 * 8) * 2) as *mut [u32; 4],
                words,
            );
            v += ROWS8_THREADS;
        }
    }
}

cuda_std::kernel! {
    /// Normalises rows of f16.
    ///
    /// # Safety
    /// - `params` describes tensors of this element type aligned to 16 bytes; a block a row, dynamic shared memory of
    ///   the row and `NORM_EXCHANGE`.
    #[launch(threads = ROWS8_THREADS)]
    pub fn linear_norm_f16(params: NormRowsParams) {
        rows::<F16>(&params)
    }

    /// Normalises rows of bf16.
    ///
    /// # Safety
    /// - As for f16.
    #[launch(threads = ROWS8_THREADS)]
    pub fn linear_norm_bf16(params: NormRowsParams) {
        rows::<Bf16>(&params)
    }
}
