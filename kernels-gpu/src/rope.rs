//! Rotary position embedding of queries and keys, optionally with the append of keys and values to a cache.
//!
//! One launch takes up to three tensors: queries and keys are rotated, values are copied. A thread has a *chunk* of a
//! token (16 elements where everything is aligned, one pair otherwise) and takes that chunk of several heads, so
//! that the cosines and sines, loaded or computed, serve them all. What is not rotated moves bit for bit; a cache may hold
//! 8-bit floats, to which the rounded result is rounded again.
//!
//! Angles are those of [`crate::angles`].

use crate::{kernel_params, paging::Paging};

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Bits of [`RopeParams::flags`].
pub mod flags {
    /// Pairs are `(2i, 2i + 1)`, not `(i, i + pairs)`.
    pub const INTERLEAVED: u32 = 1;
    /// By the negative angle.
    pub const INVERSE: u32 = 2;
    /// Every row starts at a multiple of 16 bytes and every extent fills whole vectors.
    pub const VECTOR: u32 = 4;
    /// The tables are f32, not of the tensors' dtype.
    pub const TABLE_F32: u32 = 8;
    /// Outputs 1 and 2 are caches.
    pub const TO_CACHE: u32 = 16;
}

kernel_params! {
    /// Arguments of `rope_*`. Tensor 0 is Q, 1 is K, 2 is V; those without heads are absent.
    pub struct RopeParams {
        /// Where tokens go in the cache.
        pub paging: Paging,
        /// Inputs.
        pub inputs: [u64; 3],
        /// Outputs; equal to the inputs when in place.
        pub outputs: [u64; 3],
        /// Strides of the inputs, in elements: batch, token, head.
        pub input_strides: [[u64; 3]; 3],
        /// Strides of the outputs: batch, token, head; of caches page, slot, head.
        pub output_strides: [[u64; 3]; 3],
        /// Factor of each head of a cache of e4m3, f32: of keys, of values; 0 for 1.
        pub scales: [u64; 2],
        /// Position of each token, i32, `batch · seq`; or 0.
        pub positions: u64,
        /// Tokens before the first one of each sequence, i32, `batch`; or 0. Added to the position, and to the place.
        pub lengths: u64,
        /// Slot of each token, i64, `batch · seq`; or 0 to take the place from `lengths` and the table.
        pub slots: u64,
        /// Cosines, `[table_rows, pairs]`; or 0 to compute them.
        pub cos: u64,
        /// Sines, as `cos`.
        pub sin: u64,
        /// Radians a position, f32, `pairs`; where there is no table.
        pub frequencies: u64,
        /// `batch · seq`.
        pub tokens: u64,
        /// Tokens that a sequence can have in the cache.
        pub capacity: u64,
        /// Heads of each tensor.
        pub heads: [u32; 3],
        /// Elements of a head of each tensor.
        pub dims: [u32; 3],
        /// Tokens of a sequence.
        pub seq: u32,
        /// Rotated pairs of a head.
        pub pairs: u32,
        /// Rows of the tables.
        pub table_rows: u32,
        /// Position of the first token where there is no tensor of positions.
        pub offset: i32,
        /// Factor of cosines and sines.
        pub magnitude: f32,
        /// Chunks of a token.
        pub chunks: u32,
        /// Threads among which the heads of a chunk are dealt out.
        pub lanes: u32,
        /// See [`flags`].
        pub flags: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::angles::sin_cos;
    use crate::paging::Place;
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{global, kernel, math::fma, thread};

    /// What a thread knows of its token.
    #[derive(Clone, Copy)]
    struct Token {
        batch: u64,
        index: u64,
        place: Place,
    }

    /// The addresses of tensor `t`, head `head`, for the token; the output is 0 where the cache has no place for it.
    #[inline(always)]
    unsafe fn addresses<E: Element, const NARROW: bool>(
        params: &RopeParams,
        token: Token,
        t: usize,
        head: u32,
    ) -> (u64, u64) {
        let size = size_of::<E>() as u64;
        let strides = &params.input_strides[t];
        let input =
            params.inputs[t] + (token.batch * strides[0] + token.index * strides[1] + head as u64 * strides[2]) * size;
        let strides = &params.output_strides[t];
        let output = if t > 0 && params.flags & flags::TO_CACHE != 0 {
            if !token.place.exists() {
                return (input, 0);
            }
            token.place.offset(strides)
        } else {
            token.batch * strides[0] + token.index * strides[1]
        };
        let size = if NARROW && t > 0 { 1 } else { size };
        (input, params.outputs[t] + (output + head as u64 * strides[2]) * size)
    }

    /// Factor of a head of such a cache.
    #[inline(always)]
    unsafe fn factor(params: &RopeParams, t: usize, head: u32) -> f32 {
        let scales = if t == 1 { params.scales[0] } else { params.scales[1] };
        if scales == 0 {
            return 1.0;
        }
        // SAFETY: forwarded to the caller.
        unsafe { global::ld_nc((scales + head as u64 * 4) as *const f32) }
    }

    /// Stores as e4m3 what was rounded to `E` before.
    #[inline(always)]
    unsafe fn store_narrow<E: Element, const V: usize>(_address: u64, _values: [f32; 8], _scale: f32) {
        #[cfg(tier = "sm_90a")]
        // SAFETY: forwarded to the caller.
        unsafe {
            if V == 8 {
                let values = E::unpack8(E::pack8(_values));
                global::st(
                    _address as *mut [u32; 2],
                    crate::tile::quantise::quantise8(values, _scale),
                );
            } else {
                let value = E::from_f32(_values[0]).to_f32();
                let pair = crate::tile::quantise::quantise2(value, 0.0, _scale);
                global::st(_address as *mut u8, pair as u8);
            }
        }
    }

    /// Moves `V` elements, bit for bit.
    #[inline(always)]
    unsafe fn copy<E: Element, const V: usize>(from: u64, to: u64) {
        unsafe {
            if V == 8 {
                let mut at = 0;
                while at < 8 * size_of::<E>() as u64 {
                    let bits: [u32; 4] = global::ld((from + at) as *const [u32; 4]);
                    global::st((to + at) as *mut [u32; 4], bits);
                    at += 16;
                }
            } else {
                let value: E = global::ld(from as *const E);
                global::st(to as *mut E, value);
            }
        }
    }

    #[inline(always)]
    unsafe fn load<E: Element, const V: usize>(address: u64) -> [f32; 8] {
        unsafe {
            if V == 8 {
                return E::load8(address as *const E);
            }
            let mut values = [0.0; 8];
            values[0] = global::ld(address as *const E).to_f32();
            values
        }
    }

    #[inline(always)]
    unsafe fn store<E: Element, const V: usize>(address: u64, values: [f32; 8]) {
        unsafe {
            if V == 8 {
                E::store8(address as *mut E, values);
            } else {
                global::st(address as *mut E, E::from_f32(values[0]));
            }
        }
    }

    /// Rotates a chunk of a head: `V` pairs.
    #[inline(always)]
    unsafe fn rotate<E: Element, const V: usize>(
        params: &RopeParams,
        chunk: u32,
        cos: &[f32; 8],
        sin: &[f32; 8],
        from: u64,
        to: u64,
        narrow: Option<f32>,
    ) {
        unsafe {
            let size = size_of::<E>() as u64;
            let interleaved = params.flags & flags::INTERLEAVED != 0;
            let first = chunk as u64 * V as u64;
            // Interleaved, the pairs of a chunk are the elements of both vectors, one after the other.
            let (low, high) = if interleaved {
                (2 * first, 2 * first + V as u64)
            } else {
                (first, first + params.pairs as u64)
            };
            let a = load::<E, V>(from + low * size);
            let b = load::<E, V>(from + high * size);
            let (mut x, mut y) = (a, b);
            if V == 8 && interleaved {
                x = [a[0], a[2], a[4], a[6], b[0], b[2], b[4], b[6]];
                y = [a[1], a[3], a[5], a[7], b[1], b[3], b[5], b[7]];
            }
            let (mut u, mut w) = ([0.0; 8], [0.0; 8]);
            let mut i = 0;
            while i < V {
                u[i] = fma(x[i], cos[i], -(y[i] * sin[i]));
                w[i] = fma(y[i], cos[i], x[i] * sin[i]);
                i += 1;
            }
            if V == 8 && interleaved {
                (u, w) = (
                    [u[0], w[0], u[1], w[1], u[2], w[2], u[3], w[3]],
                    [u[4], w[4], u[5], w[5], u[6], w[6], u[7], w[7]],
                );
            }
            if let Some(scale) = narrow {
                store_narrow::<E, V>(to + low, u, scale);
                store_narrow::<E, V>(to + high, w, scale);
            } else {
                store::<E, V>(to + low * size, u);
                store::<E, V>(to + high * size, w);
            }
        }
    }

    #[inline(always)]
    unsafe fn chunk_of_token<E: Element, const V: usize, const NARROW: bool>(params: &RopeParams, item: u64) {
        unsafe {
            let (chunks, lanes, seq) = (params.chunks as u64, params.lanes as u64, params.seq as u64);
            core::hint::assert_unchecked(chunks != 0);
            core::hint::assert_unchecked(lanes != 0);
            core::hint::assert_unchecked(seq != 0);
            let rest = item / chunks;
            let chunk = (item - rest * chunks) as u32;
            let number = rest / lanes;
            let lane = (rest - number * lanes) as u32;
            if number >= params.tokens {
                return;
            }
            let batch = number / seq;
            let index = number - batch * seq;
            let mut position = params.offset + index as i32;
            if params.positions != 0 {
                position = global::ld_nc((params.positions + number * 4) as *const i32);
            }
            let mut before = 0;
            if params.lengths != 0 {
                before = global::ld_nc((params.lengths + batch * 4) as *const i32);
                if params.positions == 0 {
                    position += before;
                }
            }
            let mut place = Place::NONE;
            if params.flags & flags::TO_CACHE != 0 {
                if params.slots != 0 {
                    place = params
                        .paging
                        .of_slot(global::ld_nc((params.slots + number * 8) as *const i64));
                } else if before >= 0 && (before as u64 + index) < params.capacity {
                    place = params.paging.place(batch as u32, before as u32 + index as u32);
                }
            }
            let token = Token { batch, index, place };
            // Chunks that are rotated, of Q and K; the others are copied, two vectors at a time.
            let rotated = params.pairs / V as u32;
            let (mut cos, mut sin) = ([0.0; 8], [0.0; 8]);
            if chunk < rotated {
                let mut i = 0;
                while i < V {
                    let pair = chunk * V as u32 + i as u32;
                    if params.cos != 0 {
                        // A position that the table lacks makes its token NaN.
                        (sin[i], cos[i]) = (f32::NAN, f32::NAN);
                        if (position as u32) < params.table_rows {
                            let at = position as u64 * params.pairs as u64 + pair as u64;
                            if params.flags & flags::TABLE_F32 != 0 {
                                cos[i] = global::ld_nc((params.cos + at * 4) as *const f32);
                                sin[i] = global::ld_nc((params.sin + at * 4) as *const f32);
                            } else {
                                let at = at * size_of::<E>() as u64;
                                cos[i] = global::ld_nc((params.cos + at) as *const E).to_f32();
                                sin[i] = global::ld_nc((params.sin + at) as *const E).to_f32();
                            }
                        }
                    } else {
                        let frequency = global::ld_nc((params.frequencies + pair as u64 * 4) as *const f32);
                        (sin[i], cos[i]) = sin_cos(position as f32 * frequency);
                        sin[i] *= params.magnitude;
                        cos[i] *= params.magnitude;
                    }
                    if params.flags & flags::INVERSE != 0 {
                        sin[i] = -sin[i];
                    }
                    i += 1;
                }
            }
            let heads = params.heads[0] + params.heads[1] + params.heads[2];
            let mut head = lane;
            while head < heads {
                let (mut t, mut own, mut dim, mut start) = (0, head, params.dims[0], rotated);
                let (from, to);
                if head < params.heads[0] {
                    (from, to) = addresses::<E, NARROW>(params, token, 0, own);
                } else if head < params.heads[0] + params.heads[1] {
                    (t, own, dim) = (1, head - params.heads[0], params.dims[1]);
                    (from, to) = addresses::<E, NARROW>(params, token, 1, own);
                } else {
                    (t, own, dim, start) = (2, head - params.heads[0] - params.heads[1], params.dims[2], 0);
                    (from, to) = addresses::<E, NARROW>(params, token, 2, own);
                }
                if to != 0 {
                    let narrow = if NARROW && t > 0 {
                        Some(factor(params, t, own))
                    } else {
                        None
                    };
                    if t < 2 && chunk < rotated {
                        rotate::<E, V>(params, chunk, &cos, &sin, from, to, narrow);
                    } else if from != to {
                        let skipped = if t < 2 { 2 * params.pairs } else { 0 };
                        let element = skipped + (chunk - start) * 2 * V as u32;
                        let at = element as u64 * size_of::<E>() as u64;
                        let mut half = 0;
                        while half < 2 {
                            let further = half * V as u64;
                            let at = at + further * size_of::<E>() as u64;
                            if element + further as u32 >= dim {
                            } else if let Some(scale) = narrow {
                                let values = load::<E, V>(from + at);
                                store_narrow::<E, V>(to + element as u64 + further, values, scale);
                            } else {
                                copy::<E, V>(from + at, to + at);
                            }
                            half += 1;
                        }
                    }
                }
                head += params.lanes;
            }
        }
    }

    macro_rules! rotations {
        ($($(#[$attribute:meta])* $name:ident $element:ident $narrow:literal)*) => {
            kernel! {$(
                /// Rotates queries and keys and copies values, a chunk of a token a thread.
                ///
                /// # Safety
                /// - The tensors have the extents and strides that the parameters say; outputs overlap nothing, except
                ///   that they may be their inputs.
                #[launch(threads = THREADS, barriers = 0)]
                $(#[$attribute])*
                pub fn $name(params: RopeParams) {
                    let item = thread::global_idx_x();
                    if params.flags & flags::VECTOR != 0 {
                        chunk_of_token::<$element, 8, $narrow>(&params, item);
                    } else {
                        chunk_of_token::<$element, 1, $narrow>(&params, item);
                    }
                }
            )*}
        };
    }

    rotations! {
        rope_f32 f32 false
        rope_f16 F16 false
        rope_bf16 Bf16 false
        #[cfg(tier = "sm_90a")]
        rope_e4m3_f32 f32 true
        #[cfg(tier = "sm_90a")]
        rope_e4m3_f16 F16 true
        #[cfg(tier = "sm_90a")]
        rope_e4m3_bf16 Bf16 true
    }
}
