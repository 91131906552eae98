//! Caches of 8-bit floats (e4m3): tokens are divided by their head's factor and rounded to nearest even on their way in, and
//! multiplied by it on their way out. What is too large becomes ±448.

use super::{
    CONVERTED, CacheMoveParams, THREADS,
    device::{Unit, move_token},
};
use crate::tile::{
    element::{Bf16, Element, F16},
    quantise::{dequantise2, quantise2, quantise8},
};
use core::marker::PhantomData;
use cuda_std::{global, kernel};

/// Sixteen elements on their way in.
struct Narrow<E>(PhantomData<E>);

impl<E: Element> Unit for Narrow<E> {
    type Held = [E::Packed; 2];
    const NOTHING: Self::Held = [E::ZEROS; 2];
    const STEP: u64 = CONVERTED as u64;
    const TENSOR_BYTES: u64 = size_of::<E>() as u64;
    const CACHE_BYTES: u64 = 1;

    #[inline(always)]
    unsafe fn load(address: u64) -> Self::Held {
        let address = address as *const E;
        // SAFETY: forwarded to the caller.
        unsafe { [E::load8_packed(address), E::load8_packed(address.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(address: u64, held: Self::Held, scale: f32) {
        let ([a, b], [c, d]) = (
            quantise8(E::unpack8(held[0]), scale),
            quantise8(E::unpack8(held[1]), scale),
        );
        // SAFETY: forwarded to the caller.
        unsafe { global::st(address as *mut [u32; 4], [a, b, c, d]) };
    }
}

/// One element on its way in.
struct NarrowOne<E>(PhantomData<E>);

impl<E: Element> Unit for NarrowOne<E> {
    type Held = f32;
    const NOTHING: f32 = 0.0;
    const STEP: u64 = 1;
    const TENSOR_BYTES: u64 = size_of::<E>() as u64;
    const CACHE_BYTES: u64 = 1;

    #[inline(always)]
    unsafe fn load(address: u64) -> f32 {
        // SAFETY: forwarded to the caller.
        unsafe { global::ld(address as *const E) }.to_f32()
    }

    #[inline(always)]
    unsafe fn store(address: u64, held: f32, scale: f32) {
        // SAFETY: forwarded to the caller.
        unsafe { global::st(address as *mut u8, quantise2(held, 0.0, scale) as u8) };
    }
}

/// Sixteen elements on their way out.
struct Wide<E>(PhantomData<E>);

impl<E: Element> Unit for Wide<E> {
    type Held = [u32; 4];
    const NOTHING: Self::Held = [0; 4];
    const STEP: u64 = CONVERTED as u64;
    const TENSOR_BYTES: u64 = size_of::<E>() as u64;
    const CACHE_BYTES: u64 = 1;

    #[inline(always)]
    unsafe fn load(address: u64) -> Self::Held {
        // SAFETY: forwarded to the caller.
        unsafe { global::ld(address as *const [u32; 4]) }
    }

    #[inline(always)]
    unsafe fn store(address: u64, held: Self::Held, scale: f32) {
        let mut half = 0;
        while half < 2 {
            let mut values = [0.0; 8];
            let mut i = 0;
            while i < 4 {
                let word = held[2 * half + i / 2] >> (i % 2 * 16);
                [values[2 * i], values[2 * i + 1]] = dequantise2(word as u16, scale);
                i += 1;
            }
            // SAFETY: forwarded to the caller.
            unsafe { E::store8((address as *mut E).add(8 * half), values) };
            half += 1;
        }
    }
}

/// One element on its way out.
struct WideOne<E>(PhantomData<E>);

impl<E: Element> Unit for WideOne<E> {
    type Held = u8;
    const NOTHING: u8 = 0;
    const STEP: u64 = 1;
    const TENSOR_BYTES: u64 = size_of::<E>() as u64;
    const CACHE_BYTES: u64 = 1;

    #[inline(always)]
    unsafe fn load(address: u64) -> u8 {
        // SAFETY: forwarded to the caller.
        unsafe { global::ld(address as *const u8) }
    }

    #[inline(always)]
    unsafe fn store(address: u64, held: u8, scale: f32) {
        let value = dequantise2(held as u16, scale)[0];
        // SAFETY: forwarded to the caller.
        unsafe { global::st(address as *mut E, E::from_f32(value)) };
    }
}

macro_rules! moves {
    ($($append:ident $read:ident $element:ident)*) => {
        kernel! {$(
            /// Writes tokens to their slots as e4m3; tokens without a slot are skipped.
            ///
            /// # Safety
            /// - As for the appends of bits.
            #[launch(threads = THREADS, barriers = 0)]
            pub fn $append(params: CacheMoveParams) {
                if params.elements == CONVERTED {
                    move_token::<Narrow<$element>, false>(&params)
                } else {
                    move_token::<NarrowOne<$element>, false>(&params)
                }
            }

            /// Reads the tokens of each sequence from e4m3, and zeros behind its last.
            ///
            /// # Safety
            /// - As for the reads of bits.
            #[launch(threads = THREADS, barriers = 0)]
            pub fn $read(params: CacheMoveParams) {
                if params.elements == CONVERTED {
                    move_token::<Wide<$element>, true>(&params)
                } else {
                    move_token::<WideOne<$element>, true>(&params)
                }
            }
        )*}
    };
}

moves! {
    cache_append_e4m3_f32 cache_read_e4m3_f32 f32
    cache_append_e4m3_f16 cache_read_e4m3_f16 F16
    cache_append_e4m3_bf16 cache_read_e4m3_bf16 Bf16
}
