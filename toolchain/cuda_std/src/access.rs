//! What one load or store instruction moves, and the macros that write those instructions.

/// Plain data of 1, 2, 4, 8 or 16 bytes: what one load or store moves.
///
/// # Safety
/// - Every bit pattern is a value of the type, and the type has no padding.
pub unsafe trait Value: Copy {}

/// Declares types to be [`Value`]s.
macro_rules! values {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: integers, floats and arrays of them: no padding, no invalid patterns.
        unsafe impl Value for $type {}
    )*};
}

values! {
    u8, i8, u16, i16, f16, u32, i32, f32, u64, i64, f64,
    [u8; 2], [u8; 4], [u8; 8], [u8; 16], [i8; 4], [i8; 8], [i8; 16],
    [u16; 2], [u16; 4], [u16; 8], [f16; 2], [f16; 4], [f16; 8],
    [u32; 2], [u32; 4], [i32; 2], [i32; 4], [f32; 2], [f32; 4],
    [u64; 2], [i64; 2], [f64; 2],
}

/// Writes functions that are one load instruction each: `ld…` with the width of the value, up to `.v4.b32`.
macro_rules! loads {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident($address_type:ty, $class:ident) = $instruction:literal, $options:tt;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        $visibility unsafe fn $name<T: $crate::access::Value>(address: $address_type) -> T {
            const { assert!(matches!(size_of::<T>(), 1 | 2 | 4 | 8 | 16)) };
            // SAFETY: forwarded to the caller; `T` is plain data as wide as what was loaded.
            unsafe {
                match size_of::<T>() {
                    1 => {
                        let value: u16;
                        core::arch::asm!(concat!($instruction, ".u8 {0}, [{1}];"),
                            out(reg16) value, in($class) address, options $options);
                        core::mem::transmute_copy(&(value as u8))
                    }
                    2 => {
                        let value: u16;
                        core::arch::asm!(concat!($instruction, ".u16 {0}, [{1}];"),
                            out(reg16) value, in($class) address, options $options);
                        core::mem::transmute_copy(&value)
                    }
                    4 => {
                        let value: u32;
                        core::arch::asm!(concat!($instruction, ".b32 {0}, [{1}];"),
                            out(reg32) value, in($class) address, options $options);
                        core::mem::transmute_copy(&value)
                    }
                    8 => {
                        let (x, y): (u32, u32);
                        core::arch::asm!(concat!($instruction, ".v2.b32 {{{0}, {1}}}, [{2}];"),
                            out(reg32) x, out(reg32) y, in($class) address, options $options);
                        core::mem::transmute_copy(&[x, y])
                    }
                    _ => {
                        let (x, y, z, w): (u32, u32, u32, u32);
                        core::arch::asm!(concat!($instruction, ".v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}];"),
                            out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in($class) address, options $options);
                        core::mem::transmute_copy(&[x, y, z, w])
                    }
                }
            }
        }
    )*};
}
pub(crate) use loads;

/// Writes functions that are one store instruction each: `st…` with the width of the value, up to `.v4.b32`.
macro_rules! stores {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident($address_type:ty, $class:ident) = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        $visibility unsafe fn $name<T: $crate::access::Value>(address: $address_type, value: T) {
            const { assert!(matches!(size_of::<T>(), 1 | 2 | 4 | 8 | 16)) };
            // SAFETY: forwarded to the caller; `T` is plain data as wide as what is stored.
            unsafe {
                match size_of::<T>() {
                    1 => {
                        let value: u8 = core::mem::transmute_copy(&value);
                        core::arch::asm!(concat!($instruction, ".u8 [{0}], {1};"),
                            in($class) address, in(reg16) value as u16, options(nostack));
                    }
                    2 => {
                        let value: u16 = core::mem::transmute_copy(&value);
                        core::arch::asm!(concat!($instruction, ".u16 [{0}], {1};"),
                            in($class) address, in(reg16) value, options(nostack));
                    }
                    4 => {
                        let value: u32 = core::mem::transmute_copy(&value);
                        core::arch::asm!(concat!($instruction, ".b32 [{0}], {1};"),
                            in($class) address, in(reg32) value, options(nostack));
                    }
                    8 => {
                        let [x, y]: [u32; 2] = core::mem::transmute_copy(&value);
                        core::arch::asm!(concat!($instruction, ".v2.b32 [{0}], {{{1}, {2}}};"),
                            in($class) address, in(reg32) x, in(reg32) y, options(nostack));
                    }
                    _ => {
                        let [x, y, z, w]: [u32; 4] = core::mem::transmute_copy(&value);
                        core::arch::asm!(concat!($instruction, ".v4.b32 [{0}], {{{1}, {2}, {3}, {4}}};"),
                            in($class) address, in(reg32) x, in(reg32) y, in(reg32) z, in(reg32) w, options(nostack));
                    }
                }
            }
        }
    )*};
}
pub(crate) use stores;
