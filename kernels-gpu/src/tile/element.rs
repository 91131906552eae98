//! Element types of tensors, for kernels that are written once for f32, f16 and bf16: values in memory, f32 in
//! registers.

use cuda_std::global::{self, Value};
use cuda_std::half;

/// The bits of an IEEE half-precision number.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct F16(pub u16);

/// The bits of a bfloat16 number.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Bf16(pub u16);

// SAFETY: transparent over u16.
unsafe impl Value for F16 {}
// SAFETY: transparent over u16.
unsafe impl Value for Bf16 {}

/// A floating-point type of tensors. Conversions to f32 are exact, those from it round to nearest even.
pub trait Element: Value {
    /// The value as f32.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(x: f32) -> Self;

    /// Two neighbouring elements, of 16 bits each, packed into a word. `f32` has no packed form: it keeps `low`'s bits.
    fn pack(low: f32, high: f32) -> u32;

    /// Eight elements as they lie in memory, in registers: four words of 16-bit elements.
    type Packed: Copy;
    /// Zeros.
    const ZEROS: Self::Packed;
    /// The elements as f32.
    fn unpack8(packed: Self::Packed) -> [f32; 8];
    /// The nearest elements.
    fn pack8(values: [f32; 8]) -> Self::Packed;
    /// Eight elements of 16 bits from their words; `f32` has no such form, and gives zeros.
    fn of_words(words: [u32; 4]) -> Self::Packed;

    /// Eight elements by `ld.global` of 16 bytes each.
    ///
    /// # Safety
    /// - `address` is readable global memory for eight elements, aligned to 16 bytes.
    unsafe fn load8_packed(address: *const Self) -> Self::Packed;

    /// Eight elements by `ld.global.nc` of 16 bytes each.
    ///
    /// # Safety
    /// - As for [`load8_packed_nc`](Self::load8_packed_nc).
    unsafe fn load8_packed_cached(address: *const Self) -> Self::Packed;

    /// Eight elements by `ld.global.nc.L1::no_allocate` of 16 bytes each.
    ///
    /// # Safety
    /// - As for [`load8_packed`](Self::load8_packed), and nothing writes the memory while the kernel runs.
    unsafe fn load8_packed_nc(address: *const Self) -> Self::Packed;

    /// Eight elements by `ld.global` of 16 bytes each.
    ///
    /// # Safety
    /// - `address` is readable global memory for eight elements, aligned to 16 bytes.
    unsafe fn load8(address: *const Self) -> [f32; 8];

    /// Eight elements by `ld.global.nc.L1::no_allocate` of 16 bytes each.
    ///
    /// # Safety
    /// - As for [`load8`](Self::load8), and nothing writes the memory while the kernel runs.
    unsafe fn load8_nc(address: *const Self) -> [f32; 8];

    /// Eight elements by `st.global` of 16 bytes each.
    ///
    /// # Safety
    /// - `address` is writable global memory for eight elements, aligned to 16 bytes.
    unsafe fn store8(address: *mut Self, values: [f32; 8]);
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn pack(low: f32, _high: f32) -> u32 {
        low.to_bits()
    }

    type Packed = [f32; 8];
    const ZEROS: [f32; 8] = [0.0; 8];

    #[inline(always)]
    fn unpack8(packed: [f32; 8]) -> [f32; 8] {
        packed
    }

    #[inline(always)]
    fn pack8(values: [f32; 8]) -> [f32; 8] {
        values
    }

    #[inline(always)]
    fn of_words(_: [u32; 4]) -> [f32; 8] {
        Self::ZEROS
    }

    #[inline(always)]
    unsafe fn load8_packed(address: *const Self) -> [f32; 8] {
        // SAFETY: forwarded to the caller.
        unsafe { Self::load8(address) }
    }

    #[inline(always)]
    unsafe fn load8_packed_cached(address: *const Self) -> [f32; 8] {
        // SAFETY: forwarded to the caller.
        let [a, b]: [[f32; 4]; 2] = unsafe { [global::ld_nc(address.cast()), global::ld_nc(address.add(4).cast())] };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    #[inline(always)]
    unsafe fn load8_packed_nc(address: *const Self) -> [f32; 8] {
        // SAFETY: forwarded to the caller.
        unsafe { Self::load8_nc(address) }
    }

    #[inline(always)]
    unsafe fn load8(address: *const Self) -> [f32; 8] {
        // SAFETY: forwarded to the caller.
        let [a, b]: [[f32; 4]; 2] = unsafe { [global::ld(address.cast()), global::ld(address.add(4).cast())] };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    #[inline(always)]
    unsafe fn load8_nc(address: *const Self) -> [f32; 8] {
        // SAFETY: forwarded to the caller.
        let [a, b]: [[f32; 4]; 2] = unsafe {
            [
                global::ld_nc_no_allocate(address.cast()),
                global::ld_nc_no_allocate(address.add(4).cast()),
            ]
        };
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    #[inline(always)]
    unsafe fn store8(address: *mut Self, v: [f32; 8]) {
        // SAFETY: forwarded to the caller.
        unsafe {
            global::st(address.cast(), [v[0], v[1], v[2], v[3]]);
            global::st(address.add(4).cast(), [v[4], v[5], v[6], v[7]]);
        }
    }
}

/// Implements [`Element`] for a 16-bit type by its conversions.
macro_rules! sixteen_bits {
    ($type:ident, $to_f32:expr, $from_f32:expr, $unpack:path, $pack:path) => {
        impl Element for $type {
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to_f32(self.0)
            }

            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                Self($from_f32(x))
            }

            #[inline(always)]
            fn pack(low: f32, high: f32) -> u32 {
                $pack(low, high)
            }

            type Packed = [u32; 4];
            const ZEROS: [u32; 4] = [0; 4];

            #[inline(always)]
            fn unpack8(packed: [u32; 4]) -> [f32; 8] {
                unpack8(packed, $unpack)
            }

            #[inline(always)]
            fn pack8(v: [f32; 8]) -> [u32; 4] {
                [
                    $pack(v[0], v[1]),
                    $pack(v[2], v[3]),
                    $pack(v[4], v[5]),
                    $pack(v[6], v[7]),
                ]
            }

            #[inline(always)]
            fn of_words(words: [u32; 4]) -> [u32; 4] {
                words
            }

            #[inline(always)]
            unsafe fn load8_packed(address: *const Self) -> [u32; 4] {
                // SAFETY: forwarded to the caller.
                unsafe { global::ld(address.cast()) }
            }

            #[inline(always)]
            unsafe fn load8_packed_cached(address: *const Self) -> [u32; 4] {
                // SAFETY: forwarded to the caller.
                unsafe { global::ld_nc(address.cast()) }
            }

            #[inline(always)]
            unsafe fn load8_packed_nc(address: *const Self) -> [u32; 4] {
                // SAFETY: forwarded to the caller.
                unsafe { global::ld_nc_no_allocate(address.cast()) }
            }

            #[inline(always)]
            unsafe fn load8(address: *const Self) -> [f32; 8] {
                // SAFETY: forwarded to the caller.
                Self::unpack8(unsafe { Self::load8_packed(address) })
            }

            #[inline(always)]
            unsafe fn load8_nc(address: *const Self) -> [f32; 8] {
                // SAFETY: forwarded to the caller.
                Self::unpack8(unsafe { Self::load8_packed_nc(address) })
            }

            #[inline(always)]
            unsafe fn store8(address: *mut Self, v: [f32; 8]) {
                // SAFETY: forwarded to the caller.
                unsafe { global::st(address.cast(), Self::pack8(v)) }
            }
        }
    };
}

/// Four words of two elements each as eight f32.
#[inline(always)]
fn unpack8(words: [u32; 4], unpack: impl Fn(u32) -> [f32; 2]) -> [f32; 8] {
    let [a, b, c, d] = words.map(unpack);
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
}

#[cfg(tier = "sm_75")]
use half::{bf16x2_from_f32 as pack_bf16x2, f16x2_from_f32 as pack_f16x2};
#[cfg(not(tier = "sm_75"))]
use half::{cvt_rn_bf16x2_f32 as pack_bf16x2, cvt_rn_f16x2_f32 as pack_f16x2};

sixteen_bits!(
    F16,
    |bits| f16::from_bits(bits) as f32,
    |x: f32| (x as f16).to_bits(),
    half::f32_from_f16x2,
    pack_f16x2
);
sixteen_bits!(
    Bf16,
    half::f32_from_bf16,
    |x: f32| pack_bf16x2(x, 0.0) as u16,
    half::f32_from_bf16x2,
    pack_bf16x2
);
