//! `wgmma.mma_async` for every N from 8 to 256: one implementation of [`MmaShape`] a shape.

use super::{Descriptor, Element, InFlight};
use core::arch::asm;

/// The products of one shape, 64×N with `N / 2` accumulator registers.
pub trait MmaShape: Sized {
    /// Columns of the accumulator.
    const N: u32;

    /// Names every register in an empty instruction: the compiler finishes what it computes for them before, and
    /// begins to use them after.
    fn pin(self) -> Self;

    /// `wgmma.mma_async.sync.aligned.m64nNkK.f32.T.T`: `D = A·B`, plus D when `accumulate`; A (64×K) and B (K×N) in
    /// shared memory, each K-major, or MN-major where its `TRANSPOSE` says so (16-bit types only).
    ///
    /// # Safety
    /// - All 128 threads of the warpgroup execute this together with the same descriptors, in straight-line code
    ///   between [`Acc::start`](super::Acc::start) and a wait.
    /// - Descriptors name operands that are not written before the wait; what threads wrote there is fenced by
    ///   [`fence_proxy_async`](crate::barrier::fence_proxy_async).
    unsafe fn mma_shared<T: Element, const TRANSPOSE_A: bool, const TRANSPOSE_B: bool>(
        self,
        a: Descriptor,
        b: Descriptor,
        accumulate: bool,
    ) -> Self;

    /// The same with A (64×K) in registers: four words of a 16-bit A fragment, or of tf32.
    ///
    /// # Safety
    /// - As for [`mma_shared`](Self::mma_shared); the registers of `a` are not written before the wait.
    unsafe fn mma_registers<T: Element, const TRANSPOSE_B: bool>(
        self,
        a: [u32; 4],
        b: Descriptor,
        accumulate: bool,
    ) -> Self;
}

/// Implements the shapes in order; each has the registers of the one before and four more.
macro_rules! shapes {
    ([$($done:literal)*]) => {};
    ([$($done:literal)*] $n:literal: $($next:literal)*; $($rest:tt)*) => {
        shape! { $n, [$($done)* $($next)*] }
        shapes! { [$($done)* $($next)*] $($rest)* }
    };
}

/// One instruction: `$d` is the accumulator, `$type` its `K` and operand types, `$operands` what follows D.
macro_rules! mma_async {
    ($d:ident, $n:literal, [$first:literal $($index:literal)*], $type:literal, $operands:literal, ($($input:tt)*)) => {
        asm!(
            "{{",
            ".reg .pred accumulate;",
            "setp.ne.b32 accumulate, {accumulate}, 0;",
            concat!(
                "wgmma.mma_async.sync.aligned.m64n", $n, $type, " {{{", $first, "}", $(", {", $index, "}",)* "}}, ",
                $operands, ";"
            ),
            "}}",
            inout(reg32) $d[$first],
            $(inout(reg32) $d[$index],)*
            $($input)*
            options(nostack),
        )
    };
}

/// Implements [`MmaShape`] for one N and its register numbers.
macro_rules! shape {
    ($n:literal, [$($index:literal)*]) => {
        impl MmaShape for InFlight<{ $n / 2 }> {
            const N: u32 = $n;

            #[inline(always)]
            fn pin(self) -> Self {
                let mut d = self.0;
                // SAFETY: no instruction; reads and writes what it names.
                unsafe { asm!(concat!("// pin", $(" {", $index, "}"),*), $(inout(reg32) d[$index],)* options(nostack)) };
                Self(d)
            }

            #[inline(always)]
            unsafe fn mma_shared<T: Element, const TRANSPOSE_A: bool, const TRANSPOSE_B: bool>(
                self,
                a: Descriptor,
                b: Descriptor,
                accumulate: bool,
            ) -> Self {
                const { assert!(T::KIND < 2 || !TRANSPOSE_A && !TRANSPOSE_B, "only 16-bit operands are transposed") };
                let mut d = self.0;
                // SAFETY: forwarded to the caller.
                unsafe {
                    match T::KIND {
                        0 => mma_async!(d, $n, [$($index)*], "k16.f32.f16.f16", "{a}, {b}, accumulate, 1, 1, {ta}, {tb}",
                            (a = in(reg64) a.0, b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,
                             ta = const TRANSPOSE_A as u32, tb = const TRANSPOSE_B as u32,)),
                        1 => mma_async!(d, $n, [$($index)*], "k16.f32.bf16.bf16", "{a}, {b}, accumulate, 1, 1, {ta}, {tb}",
                            (a = in(reg64) a.0, b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,
                             ta = const TRANSPOSE_A as u32, tb = const TRANSPOSE_B as u32,)),
                        _ => mma_async!(d, $n, [$($index)*], "k8.f32.tf32.tf32", "{a}, {b}, accumulate, 1, 1",
                            (a = in(reg64) a.0, b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,)),
                    }
                }
                Self(d)
            }

            #[inline(always)]
            unsafe fn mma_registers<T: Element, const TRANSPOSE_B: bool>(
                self,
                a: [u32; 4],
                b: Descriptor,
                accumulate: bool,
            ) -> Self {
                const { assert!(T::KIND < 2 || !TRANSPOSE_B, "only 16-bit operands are transposed") };
                let mut d = self.0;
                // SAFETY: forwarded to the caller.
                unsafe {
                    match T::KIND {
                        0 => mma_async!(d, $n, [$($index)*], "k16.f32.f16.f16",
                            "{{{a0}, {a1}, {a2}, {a3}}}, {b}, accumulate, 1, 1, {tb}",
                            (a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                             b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,
                             tb = const TRANSPOSE_B as u32,)),
                        1 => mma_async!(d, $n, [$($index)*], "k16.f32.bf16.bf16",
                            "{{{a0}, {a1}, {a2}, {a3}}}, {b}, accumulate, 1, 1, {tb}",
                            (a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                             b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,
                             tb = const TRANSPOSE_B as u32,)),
                        _ => mma_async!(d, $n, [$($index)*], "k8.f32.tf32.tf32",
                            "{{{a0}, {a1}, {a2}, {a3}}}, {b}, accumulate, 1, 1",
                            (a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                             b = in(reg64) b.0, accumulate = in(reg32) accumulate as u32,)),
                    }
                }
                Self(d)
            }
        }
    };
}

shapes! {
    []
    8: 0 1 2 3;
    16: 4 5 6 7;
    24: 8 9 10 11;
    32: 12 13 14 15;
    40: 16 17 18 19;
    48: 20 21 22 23;
    56: 24 25 26 27;
    64: 28 29 30 31;
    72: 32 33 34 35;
    80: 36 37 38 39;
    88: 40 41 42 43;
    96: 44 45 46 47;
    104: 48 49 50 51;
    112: 52 53 54 55;
    120: 56 57 58 59;
    128: 60 61 62 63;
    136: 64 65 66 67;
    144: 68 69 70 71;
    152: 72 73 74 75;
    160: 76 77 78 79;
    168: 80 81 82 83;
    176: 84 85 86 87;
    184: 88 89 90 91;
    192: 92 93 94 95;
    200: 96 97 98 99;
    208: 100 101 102 103;
    216: 104 105 106 107;
    224: 108 109 110 111;
    232: 112 113 114 115;
    240: 116 117 118 119;
    248: 120 121 122 123;
    256: 124 125 126 127;
}
