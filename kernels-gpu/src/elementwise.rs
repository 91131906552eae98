//! Elementwise kernels over matrices with row strides: activations, gated pairs, sums, conversions, copies.
//!
//! Block `(i, j)` takes vectors of rows `j, j + gridDim.y, …`; a dense tensor is one long row, a bias a row of stride 0.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Vectors of each operand that a thread takes at a time.
pub const AT_ONCE: usize = 2;
/// Edge of the square tile of the transposing copy.
pub const TILE: u64 = 64;
/// Rows and columns that a block of `transpose_vectors_b16` takes.
pub const VECTOR_TILE: u64 = 128;

/// Elements of `size` bytes from one row of the tile in shared memory to the next: columns spread over all banks.
pub const fn tile_pitch(size: u64) -> u64 {
    TILE + if size < 4 { 4 / size } else { 1 }
}
/// Axes of a strided copy.
pub const AXES: usize = 5;

kernel_params! {
    /// Arguments of the elementwise kernels. What an operand means is said at the kernel.
    pub struct ElementwiseParams {
        /// First operand.
        pub a: u64,
        /// Second operand, or 0.
        pub b: u64,
        /// Third operand, or 0.
        pub c: u64,
        /// Result.
        pub out: u64,
        /// Second result, or 0.
        pub out2: u64,
        /// Rows.
        pub rows: u64,
        /// Elements of a row.
        pub columns: u64,
        /// Elements from one row of `a` to the next; 0 repeats the row.
        pub a_stride: u64,
        /// Of `b`.
        pub b_stride: u64,
        /// Of `c`.
        pub c_stride: u64,
        /// Of `out`.
        pub out_stride: u64,
        /// Of `out2`.
        pub out2_stride: u64,
        /// Factor of `a`.
        pub alpha: f32,
        /// Factor of `b`.
        pub beta: f32,
        /// Which activation.
        pub activation: u32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
    }

    /// Arguments of the `copy_strided_*` kernels.
    pub struct CopyParams {
        /// Source.
        pub x: u64,
        /// Target.
        pub out: u64,
        /// Elements.
        pub len: u64,
        /// Extents, slowest axis first, 1 where there is none.
        pub shape: [u64; 5],
        /// Strides of the source, elements.
        pub x_strides: [u64; 5],
        /// Strides of the target, elements.
        pub out_strides: [u64; 5],
    }

    /// Arguments of the `transpose_*` kernels: `out[b, j, i] = x[b, i, j]`.
    pub struct TransposeParams {
        /// Source, `batch × rows × columns`.
        pub x: u64,
        /// Target, `batch × columns × rows`.
        pub out: u64,
        /// Matrices.
        pub batch: u64,
        /// Rows of the source.
        pub rows: u64,
        /// Columns of the source.
        pub columns: u64,
        /// Elements from one matrix of the source to the next.
        pub x_batch_stride: u64,
        /// From one row of the source to the next.
        pub x_stride: u64,
        /// From one matrix of the target to the next.
        pub out_batch_stride: u64,
        /// From one row of the target to the next.
        pub out_stride: u64,
    }
}

#[cfg(target_arch = "nvptx64")]
mod transpose;

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::activation;
    use crate::activation::eight::activate_fast;
    #[cfg(not(tier = "sm_75"))]
    use crate::activation::eight::activate_short;
    use crate::row::{Vector, WIDTH, map, zip};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{barrier::syncthreads, global, global::Value, kernel, shared::Shared, thread};

    /// A matrix whose rows may repeat.
    #[derive(Clone, Copy)]
    struct Operand {
        address: u64,
        stride: u64,
    }

    impl Operand {
        #[inline(always)]
        fn at<E: Value>(self, row: u64, column: u64) -> u64 {
            self.address + (row * self.stride + column) * size_of::<E>() as u64
        }

        /// Eight elements; zeros beyond the row. `LAST` of them may be written by this thread later.
        #[inline(always)]
        unsafe fn load<E: Element>(self, row: u64, column: u64, p: &ElementwiseParams) -> Vector {
            let at = self.at::<E>(row, column) as *const E;
            // SAFETY: within the row; aligned where the parameters say so.
            unsafe {
                if p.aligned != 0 && column + WIDTH as u64 <= p.columns {
                    return E::load8(at);
                }
                let mut values = [0.0; 8];
                let mut i = 0;
                while i < 8 {
                    if column + (i as u64) < p.columns {
                        values[i] = global::ld(at.add(i)).to_f32();
                    }
                    i += 1;
                }
                values
            }
        }

        #[inline(always)]
        unsafe fn store<E: Element>(self, row: u64, column: u64, p: &ElementwiseParams, values: Vector) {
            let at = self.at::<E>(row, column) as *mut E;
            // SAFETY: within the row; aligned where the parameters say so.
            unsafe {
                if p.aligned != 0 && column + WIDTH as u64 <= p.columns {
                    return E::store8(at, values);
                }
                let mut i = 0;
                while i < 8 {
                    if column + (i as u64) < p.columns {
                        global::st(at.add(i), E::from_f32(values[i]));
                    }
                    i += 1;
                }
            }
        }
    }

    /// Applies `f` to the elements of operands of type `I`, into results of type `O`. A thread takes `N` vectors, a
    /// block apart, and asks for those of all operands before it uses the first.
    #[inline(always)]
    unsafe fn stream<I: Element, O: Element, const READ: usize, const WRITTEN: usize, const N: usize>(
        p: &ElementwiseParams,
        operands: [Operand; READ],
        results: [Operand; WRITTEN],
        f: impl Fn([Vector; READ]) -> [Vector; WRITTEN],
    ) {
        const APART: u64 = THREADS as u64 * WIDTH as u64;
        let first = thread::block_idx_x() as u64 * (APART * N as u64) + (thread::thread_idx_x() * WIDTH) as u64;
        let step = thread::grid_dim_x() as u64 * (APART * N as u64);
        let mut row = thread::block_idx_y() as u64;
        while row < p.rows {
            let mut column = first;
            while column < p.columns {
                // SAFETY: the host gives the extents; each element is one thread's.
                unsafe {
                    if p.aligned != 0 && column + (APART * (N as u64 - 1) + WIDTH as u64) <= p.columns {
                        let mut loaded = [[I::ZEROS; READ]; N];
                        let mut u = 0;
                        while u < N {
                            let mut i = 0;
                            while i < READ {
                                loaded[u][i] =
                                    I::load8_packed(operands[i].at::<I>(row, column + u as u64 * APART) as *const I);
                                i += 1;
                            }
                            u += 1;
                        }
                        // Unrolled by hand: the compiler leaves a long `f` in a loop, and `loaded` in memory.
                        let finish = #[inline(always)]
                        |u: usize| {
                            let mut values = [[0.0; 8]; READ];
                            let mut i = 0;
                            while i < READ {
                                values[i] = I::unpack8(loaded[u][i]);
                                i += 1;
                            }
                            let out = f(values);
                            let mut i = 0;
                            while i < WRITTEN {
                                O::store8(results[i].at::<O>(row, column + u as u64 * APART) as *mut O, out[i]);
                                i += 1;
                            }
                        };
                        const { assert!(N == 1 || N == AT_ONCE && AT_ONCE == 2) };
                        finish(0);
                        if N == AT_ONCE {
                            finish(1);
                        }
                    } else {
                        let mut at = column;
                        let mut u = 0;
                        while u < N && at < p.columns {
                            let mut values = [[0.0; 8]; READ];
                            let mut i = 0;
                            while i < READ {
                                values[i] = operands[i].load::<I>(row, at, p);
                                i += 1;
                            }
                            let out = f(values);
                            let mut i = 0;
                            while i < WRITTEN {
                                results[i].store::<O>(row, at, p, out[i]);
                                i += 1;
                            }
                            at += APART;
                            u += 1;
                        }
                    }
                }
                column += step;
            }
            row += thread::grid_dim_y() as u64;
        }
    }

    macro_rules! operands {
        ($p:ident: $($name:ident $stride:ident),*) => {
            $(let $name = Operand { address: $p.$name, stride: $p.$stride };)*
        };
    }

    /// Activation `kind` of eight values, to the precision that `E` can show.
    #[inline(always)]
    fn values<E: Element>(kind: u32, x: Vector) -> Vector {
        #[cfg(not(tier = "sm_75"))]
        if size_of::<E>() == 2 {
            return activate_short(kind, x);
        }
        if size_of::<E>() == 2 {
            activate_fast(kind, x)
        } else {
            map(x, |x| activation::value(kind, x))
        }
    }

    #[inline(always)]
    unsafe fn activate<E: Element>(p: ElementwiseParams) {
        operands!(p: a a_stride, out out_stride);
        // SAFETY: forwarded to the caller, as below.
        unsafe {
            stream::<E, E, 1, 1, AT_ONCE>(
                &p,
                [a],
                [out],
                #[inline(always)]
                |[x]| [values::<E>(p.activation, x)],
            )
        }
    }

    #[inline(always)]
    unsafe fn activate_backward<E: Element>(p: ElementwiseParams) {
        operands!(p: a a_stride, b b_stride, out out_stride);
        let through = #[inline(always)]
        |[x, dy]: [Vector; 2]| [zip(x, dy, |x, dy| dy * activation::derivative(p.activation, x))];
        unsafe { stream::<E, E, 2, 1, AT_ONCE>(&p, [a, b], [out], through) }
    }

    /// SiLU, the usual one, alone has registers for two vectors at a time.
    #[inline(always)]
    unsafe fn gate<E: Element>(p: ElementwiseParams) {
        unsafe {
            if p.activation == activation::SILU {
                gate_by::<E, AT_ONCE>(&p, activation::SILU);
            } else {
                gate_by::<E, 1>(&p, p.activation);
            }
        }
    }

    #[inline(always)]
    unsafe fn gate_by<E: Element, const N: usize>(p: &ElementwiseParams, kind: u32) {
        operands!(p: a a_stride, b b_stride, out out_stride);
        let product = #[inline(always)]
        |[gate, up]: [Vector; 2]| [zip(values::<E>(kind, gate), up, |value, up| value * up)];
        unsafe { stream::<E, E, 2, 1, N>(p, [a, b], [out], product) }
    }

    #[inline(always)]
    unsafe fn gate_backward<E: Element>(p: ElementwiseParams) {
        operands!(p: a a_stride, b b_stride, c c_stride, out out_stride, out2 out2_stride);
        let through = #[inline(always)]
        |[gate, up, dy]: [Vector; 3]| {
            let dgate = zip(zip(dy, up, |dy, up| dy * up), gate, |dy, gate| {
                dy * activation::derivative(p.activation, gate)
            });
            [dgate, zip(dy, values::<E>(p.activation, gate), |dy, value| dy * value)]
        };
        unsafe { stream::<E, E, 3, 2, 1>(&p, [a, b, c], [out, out2], through) }
    }

    #[inline(always)]
    unsafe fn combine<E: Element>(p: ElementwiseParams) {
        operands!(p: a a_stride, b b_stride, out out_stride);
        let scaled = #[inline(always)]
        |a: Vector| map(a, |a| a * p.alpha);
        let sum = #[inline(always)]
        |[a, b]: [Vector; 2]| [zip(scaled(a), b, |sum, b| cuda_std::math::fma(b, p.beta, sum))];
        unsafe {
            if p.b != 0 {
                stream::<E, E, 2, 1, AT_ONCE>(&p, [a, b], [out], sum)
            } else {
                stream::<E, E, 1, 1, AT_ONCE>(
                    &p,
                    [a],
                    [out],
                    #[inline(always)]
                    |[a]| [scaled(a)],
                )
            }
        }
    }

    #[inline(always)]
    unsafe fn convert<From: Element, To: Element>(p: ElementwiseParams) {
        operands!(p: a a_stride, out out_stride);
        unsafe { stream::<From, To, 1, 1, AT_ONCE>(&p, [a], [out], |x| x) }
    }

    macro_rules! per_dtype {
        ($doc:literal $body:ident, $blocks:literal blocks: $($name:ident $element:ty),*) => {
            kernel! {$(
                #[doc = $doc]
                ///
                /// # Safety
                /// - The operands have the extents that the parameters say. A result may be an operand, element
                ///   for element, but not overlap it otherwise.
                #[launch(threads = THREADS, min_blocks = $blocks, barriers = 0)]
                pub fn $name(params: ElementwiseParams) {
                    $body::<$element>(params)
                }
            )*}
        };
    }

    per_dtype! { "`out = act(a)`."
    activate, 4 blocks: activation_f32 f32, activation_f16 F16 }
    per_dtype! { "`out = act(a)`."
    activate, 5 blocks: activation_bf16 Bf16 }
    per_dtype! { "`out = b · act'(a)`: `b` is the gradient of `act(a)`."
    activate_backward, 3 blocks: activation_backward_f32 f32, activation_backward_f16 F16, activation_backward_bf16 Bf16 }
    per_dtype! { "`out = act(a) · b`."
    gate, 3 blocks: gated_f32 f32 }
    per_dtype! { "`out = act(a) · b`."
    gate, 4 blocks: gated_f16 F16, gated_bf16 Bf16 }
    per_dtype! { "Gradients of `act(a) · b`, by `a` in `out` and by `b` in `out2`; `c` is the gradient of the product."
    gate_backward, 3 blocks: gated_backward_f32 f32, gated_backward_f16 F16, gated_backward_bf16 Bf16 }
    per_dtype! { "`out = alpha · a + beta · b`, without the second term where there is no `b`."
    combine, 4 blocks: add_f32 f32, add_f16 F16, add_bf16 Bf16 }

    macro_rules! conversions {
        ($($name:ident $from:ty, $to:ty;)*) => {
            kernel! {$(
                /// `out = a` in another dtype, rounded to nearest even.
                ///
                /// # Safety
                /// - The operands have the extents that the parameters say and do not overlap.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $name(params: ElementwiseParams) {
                    convert::<$from, $to>(params)
                }
            )*}
        };
    }

    conversions! {
        cast_f32_f16 f32, F16;
        cast_f32_bf16 f32, Bf16;
        cast_f16_f32 F16, f32;
        cast_f16_bf16 F16, Bf16;
        cast_bf16_f32 Bf16, f32;
        cast_bf16_f16 Bf16, F16;
    }

    /// Copies between any strides, one element a thread.
    #[inline(always)]
    unsafe fn copy<V: Value>(p: CopyParams) {
        let mut i = thread::global_idx_x();
        while i < p.len {
            let (mut rest, mut from, mut to) = (i, 0, 0);
            let mut axis = AXES;
            while axis > 0 {
                axis -= 1;
                let extent = p.shape[axis];
                // SAFETY: an axis of no extent leaves no elements.
                unsafe { core::hint::assert_unchecked(extent != 0) };
                let index = rest % extent;
                rest /= extent;
                from += index * p.x_strides[axis];
                to += index * p.out_strides[axis];
            }
            // SAFETY: the host gives the extents.
            unsafe {
                global::st(
                    (p.out as *mut V).add(to as usize),
                    global::ld_nc((p.x as *const V).add(from as usize)),
                )
            };
            i += thread::grid_stride_x();
        }
    }

    /// Transposes through a tile in shared memory. A warp takes half a row at a time; a thread asks for all its elements
    /// before it writes the first.
    #[inline(always)]
    unsafe fn transpose<V: Value + Default>(p: TransposeParams) {
        /// Warps that share a row of the tile, 32 elements each, and rows that the block takes at a time.
        const ABREAST: u32 = TILE as u32 / 32;
        const ROWS: u32 = THREADS / TILE as u32;
        const EACH: usize = (TILE as u32 / ROWS) as usize;
        let pitch = tile_pitch(size_of::<V>() as u64) as u32;
        let (lane, warp) = (thread::lane_id(), thread::warp_idx());
        let tile = Shared::<V>::dynamic(0);
        let (row0, column0) = (thread::block_idx_y() as u64 * TILE, thread::block_idx_x() as u64 * TILE);
        // This thread's place along rows, and its first row; both ways.
        let (x, y) = (warp % ABREAST * 32 + lane, warp / ABREAST);
        // Rows and columns that the tile has from there on.
        let left = |extent: u64, first: u64| {
            if extent - first < TILE {
                (extent - first) as u32
            } else {
                TILE as u32
            }
        };
        let (height, width) = (left(p.rows, row0), left(p.columns, column0));
        let size = size_of::<V>() as u64;
        let mut matrix = thread::block_idx_z() as u64;
        while matrix < p.batch {
            let mut values = [V::default(); EACH];
            let from = p.x + (matrix * p.x_batch_stride + (row0 + y as u64) * p.x_stride + column0 + x as u64) * size;
            let to =
                p.out + (matrix * p.out_batch_stride + (column0 + y as u64) * p.out_stride + row0 + x as u64) * size;
            // SAFETY: the host gives the extents and the shared memory of one tile.
            unsafe {
                let mut i = 0;
                while i < EACH {
                    if y + i as u32 * ROWS < height && x < width {
                        values[i] = global::ld_nc((from + (i as u32 * ROWS) as u64 * p.x_stride * size) as *const V);
                    }
                    i += 1;
                }
                let mut i = 0;
                while i < EACH {
                    tile.add((y + i as u32 * ROWS) * pitch + x).write(values[i]);
                    i += 1;
                }
                syncthreads();
                let mut i = 0;
                while i < EACH {
                    if y + i as u32 * ROWS < width && x < height {
                        let value = tile.add(x * pitch + y + i as u32 * ROWS).read();
                        global::st((to + (i as u32 * ROWS) as u64 * p.out_stride * size) as *mut V, value);
                    }
                    i += 1;
                }
                syncthreads();
            }
            matrix += thread::grid_dim_z() as u64;
        }
    }

    macro_rules! copies {
        ($($copy:ident $transpose:ident $type:ty;)*) => {
            kernel! {$(
                /// Copies elements of this width between any strides.
                ///
                /// # Safety
                /// - Source and target have the extents that the parameters say and do not overlap.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $copy(params: CopyParams) {
                    copy::<$type>(params)
                }

                /// Transposes matrices of elements of this width; dynamic shared memory of a tile of 64 rows of
                /// [`tile_pitch`] of them.
                ///
                /// # Safety
                /// - Source and target have the extents that the parameters say and do not overlap.
                #[launch(threads = THREADS, min_blocks = 2)]
                pub fn $transpose(params: TransposeParams) {
                    transpose::<$type>(params)
                }
            )*}
        };
    }

    kernel! {
        /// Transposes matrices of elements of 16 bits, of whole vectors both ways; a block takes 128 × 128.
        ///
        /// # Safety
        /// - As for the others; addresses are multiples of 16 bytes, extents and strides of 8 elements.
        #[launch(threads = THREADS, min_blocks = 3, barriers = 0)]
        pub fn transpose_vectors_b16(params: TransposeParams) {
            super::transpose::transpose(params)
        }
    }

    copies! {
        copy_strided_b8 transpose_b8 u8;
        copy_strided_b16 transpose_b16 u16;
        copy_strided_b32 transpose_b32 u32;
        copy_strided_b64 transpose_b64 u64;
    }
}
