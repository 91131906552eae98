//! Tight loops over 32 lanes.

/// A lane's value of some width, zero-extended in its slot.
pub(crate) trait Value: Copy {
    fn get(slot: u64) -> Self;
    fn put(self) -> u64;
}

macro_rules! values {
    ($($t:ty as $u:ty),*) => { $(
        impl Value for $t {
            #[inline(always)]
            fn get(slot: u64) -> Self {
                slot as $t
            }
            #[inline(always)]
            fn put(self) -> u64 {
                self as $u as u64
            }
        }
    )* };
}
values!(
    u8 as u8, u16 as u16, u32 as u32, u64 as u64, i8 as u8, i16 as u16, i32 as u32, i64 as u64
);

impl Value for bool {
    #[inline(always)]
    fn get(slot: u64) -> Self {
        slot != 0
    }
    #[inline(always)]
    fn put(self) -> u64 {
        u64::from(self)
    }
}

/// A kernel of one register: `map1!(|a: u32| a.count_ones())`.
macro_rules! map1 {
    (|$a:ident: $ta:ty| $e:expr) => {{
        fn kernel(out: &mut $crate::Lanes, a: &$crate::Lanes) {
            for i in 0..32 {
                let $a = <$ta as $crate::exec::kernels::Value>::get(a[i]);
                out[i] = $crate::exec::kernels::Value::put($e);
            }
        }
        kernel as $crate::program::Map1
    }};
}

/// A kernel of two registers.
macro_rules! map2 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $e:expr) => {{
        fn kernel(out: &mut $crate::Lanes, a: &$crate::Lanes, b: &$crate::Lanes) {
            for i in 0..32 {
                let $a = <$ta as $crate::exec::kernels::Value>::get(a[i]);
                let $b = <$tb as $crate::exec::kernels::Value>::get(b[i]);
                out[i] = $crate::exec::kernels::Value::put($e);
            }
        }
        kernel as $crate::program::Map2
    }};
}

/// A kernel of three registers.
macro_rules! map3 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| $e:expr) => {{
        fn kernel(out: &mut $crate::Lanes, a: &$crate::Lanes, b: &$crate::Lanes, c: &$crate::Lanes) {
            for i in 0..32 {
                let $a = <$ta as $crate::exec::kernels::Value>::get(a[i]);
                let $b = <$tb as $crate::exec::kernels::Value>::get(b[i]);
                let $c = <$tc as $crate::exec::kernels::Value>::get(c[i]);
                out[i] = $crate::exec::kernels::Value::put($e);
            }
        }
        kernel as $crate::program::Map3
    }};
}

/// A kernel of four registers.
macro_rules! map4 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty, $d:ident: $td:ty| $e:expr) => {{
        fn kernel(out: &mut $crate::Lanes, a: &$crate::Lanes, b: &$crate::Lanes, c: &$crate::Lanes, d: &$crate::Lanes) {
            for i in 0..32 {
                let $a = <$ta as $crate::exec::kernels::Value>::get(a[i]);
                let $b = <$tb as $crate::exec::kernels::Value>::get(b[i]);
                let $c = <$tc as $crate::exec::kernels::Value>::get(c[i]);
                let $d = <$td as $crate::exec::kernels::Value>::get(d[i]);
                out[i] = $crate::exec::kernels::Value::put($e);
            }
        }
        kernel as $crate::program::Map4
    }};
}

/// A comparison of two registers.
macro_rules! test2 {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $e:expr) => {{
        fn kernel(a: &$crate::Lanes, b: &$crate::Lanes) -> u32 {
            let mut mask = 0u32;
            for i in 0..32 {
                let $a = <$ta as $crate::exec::kernels::Value>::get(a[i]);
                let $b = <$tb as $crate::exec::kernels::Value>::get(b[i]);
                mask |= u32::from($e) << i;
            }
            mask
        }
        kernel as $crate::program::Test
    }};
}

/// One of several integer types, bound to `T`: `by_type!(ty, [U32 u32, S32 i32], |T| map1!(|a: T| a))`; `None` for
/// other types.
macro_rules! by_type {
    ($ty:expr, [$($variant:ident $host:ty),*], |$t:ident| $e:expr) => {
        match $ty {
            $( $crate::lower::types::Type::$variant => { type $t = $host; Some($e) } )*
            _ => None,
        }
    };
}

/// Picks the instance of a kernel that has a floating-point mode as its constant.
macro_rules! by_mode {
    ($mode:expr, $kernel:ident) => {
        match $crate::exec::kernels::mode_index($mode) {
            0 => $kernel::<0>,
            1 => $kernel::<1>,
            2 => $kernel::<2>,
            3 => $kernel::<3>,
            4 => $kernel::<4>,
            5 => $kernel::<5>,
            6 => $kernel::<6>,
            7 => $kernel::<7>,
            8 => $kernel::<8>,
            9 => $kernel::<9>,
            10 => $kernel::<10>,
            11 => $kernel::<11>,
            12 => $kernel::<12>,
            13 => $kernel::<13>,
            14 => $kernel::<14>,
            _ => $kernel::<15>,
        }
    };
}

pub(crate) use {by_mode, by_type, map1, map2, map3, map4, test2};

use crate::numeric::{Mode, Rounding};

/// A floating-point mode as a constant: rounding in two bits, then `.ftz`, then `.sat`.
pub(crate) const fn mode_index(mode: Mode) -> u8 {
    let rounding = match mode.rounding {
        Rounding::NearestEven | Rounding::NearestAway => 0,
        Rounding::Zero => 1,
        Rounding::Down => 2,
        Rounding::Up => 3,
    };
    rounding | (mode.ftz as u8) << 2 | (mode.sat as u8) << 3
}

/// The mode of a constant.
pub(crate) const fn mode_of(index: u8) -> Mode {
    let rounding = match index & 3 {
        0 => Rounding::NearestEven,
        1 => Rounding::Zero,
        2 => Rounding::Down,
        _ => Rounding::Up,
    };
    Mode {
        rounding,
        ftz: index & 4 != 0,
        sat: index & 8 != 0,
    }
}
