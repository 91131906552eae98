//! `linear_any_*`: products by f32 FMA, for any dtype, strides and alignment on every tier.
//!
//! A block computes 64×64 elements, a thread 4×4 of them, over tiles of depth 16 that all threads widen to f32 in
//! shared memory. Every element is one chain of FMAs over k in ascending order.

use super::epilogue::{Columns, Epilogue, tile_of};
use super::params::*;
use crate::tile::element::{Bf16, Element, F16};
use cuda_std::{barrier::syncthreads, global, math::fma, shared, thread};

/// Bytes of an operand's tile in shared memory.
const OPERAND: u32 = ANY_TILE * ANY_DEPTH * 4;

/// Copies an operand's tile to shared memory as `[k][row]`, zeros outside. `place` maps a row of the tile to its
/// offset and whether it exists.
#[inline(always)]
unsafe fn fill<T: Element>(target: u32, source: u64, k_stride: u64, k_left: u64, place: impl Fn(u32) -> (u64, bool)) {
    let mut i = 0;
    while i < ANY_TILE * ANY_DEPTH / ANY_THREADS {
        let element = thread::thread_idx_x() + i * ANY_THREADS;
        // Neighbouring threads take neighbouring addresses, whichever way the operand lies.
        let (row, depth) = if k_stride == 1 {
            (element / ANY_DEPTH, element % ANY_DEPTH)
        } else {
            (element % ANY_TILE, element / ANY_TILE)
        };
        let (offset, exists) = place(row);
        // SAFETY: an element of the operand, by the caller's description of it; a slot of the tile.
        unsafe {
            let value = if exists && (depth as u64) < k_left {
                global::ld((source as *const T).add((offset + depth as u64 * k_stride) as usize)).to_f32()
            } else {
                0.0
            };
            shared::st(target + (depth * ANY_TILE + row) * 4, value);
        }
        i += 1;
    }
}

/// The kernel.
///
/// # Safety
/// - `params` describes tensors of the device; the launch has the threads and the shared memory of [`ANY_THREADS`] and
///   [`ANY_SHARED`], and a block for each tile and problem.
#[inline(always)]
unsafe fn linear<T: Element>(params: &LinearParams) {
    let batch = thread::block_idx_z() as u64;
    let (tile_m, tile_n) = tile_of::<8>(params, thread::block_idx_x());
    let columns = Columns::new(params, tile_n, ANY_TILE);
    let first_row = tile_m as u64 * ANY_TILE as u64;
    let size = size_of::<T>() as u64;
    let mut x = params.x + batch * params.x_batch_stride * size;
    let mut w = params.w + batch * params.w_batch_stride * size;
    let base = shared::dynamic_base();
    let (tx, ty) = (thread::thread_idx_x() % 16, thread::thread_idx_x() / 16);
    let mut acc = [[0.0f32; 4]; 4];
    let mut k = 0;
    // SAFETY: the caller's description of operands; barriers are reached by all threads, k being the same for all.
    unsafe {
        while k < params.k {
            let left = params.k - k;
            fill::<T>(base, x, params.x_k_stride, left, |row| {
                let row = first_row + row as u64;
                (row * params.x_row_stride, row < params.m)
            });
            fill::<T>(base + OPERAND, w, params.w_k_stride, left, |row| {
                let (output, column) = columns.of(row);
                (column * params.w_n_stride, output < params.n)
            });
            syncthreads();
            // Threads whose rows do not exist have nothing to compute.
            if first_row + (4 * ty as u64) < params.m {
                let mut depth = 0;
                while depth < ANY_DEPTH {
                    let a: [f32; 4] = shared::ld(base + (depth * ANY_TILE + 4 * ty) * 4);
                    let b: [f32; 4] = shared::ld(base + OPERAND + (depth * ANY_TILE + 4 * tx) * 4);
                    let mut i = 0;
                    while i < 4 {
                        let mut j = 0;
                        while j < 4 {
                            acc[i][j] = fma(a[i], b[j], acc[i][j]);
                            j += 1;
                        }
                        i += 1;
                    }
                    depth += 1;
                }
            }
            syncthreads();
            x += ANY_DEPTH as u64 * params.x_k_stride * size;
            w += ANY_DEPTH as u64 * params.w_k_stride * size;
            k += ANY_DEPTH as u64;
        }
        let mut i = 0;
        while i < 4 {
            shared::st(base + ((4 * ty + i as u32) * ANY_TILE + 4 * tx) * 4, acc[i]);
            i += 1;
        }
        syncthreads();
        let epilogue = Epilogue::new(params, batch);
        let groups = if params.gated != 0 { 4 } else { 8 };
        let mut unit = thread::thread_idx_x();
        while unit < ANY_TILE * groups {
            let (row, group) = if groups == 4 {
                (unit / 4, unit % 4 * 16)
            } else {
                (unit / 8, unit % 8 * 8)
            };
            if first_row + (row as u64) < params.m {
                let at = base + (row * ANY_TILE + group) * 4;
                // The factors of a pair lie behind the gates; without a gate this reads a neighbour and ignores it.
                let up = if groups == 4 { at + 32 } else { at };
                epilogue.finish(first_row + row as u64, columns.of(group).0, staged(at), staged(up));
            }
            unit += ANY_THREADS;
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

/// Entries of one element type.
macro_rules! entries {
    ($($name:ident: $type:ty;)*) => {
        cuda_std::kernel! {$(
            /// A linear layer of any strides by FMA, a block a 64×64 tile of the weight's columns.
            ///
            /// # Safety
            /// - `params` describes tensors of this element type.
            #[launch(threads = ANY_THREADS)]
            pub fn $name(params: LinearParams) {
                linear::<$type>(&params)
            }
        )*}
    };
}

entries! {
    linear_any_f32: f32;
    linear_any_f16: F16;
    linear_any_bf16: Bf16;
}
