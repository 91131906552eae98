//! Exact software semantics of the PTX arithmetic types.
//!
//! Every function works on bit patterns of one lane (`u16`, `u32`, `u64`), has no state and is
//! cheap to inline, so that a loop over 32 lanes with a constant [`Mode`] vectorises. The common
//! case (round to nearest even) uses the host's IEEE arithmetic; the directed modes go through
//! the integer implementation in [`soft`], which the tests hold against the host's.
//!
//! NaN results are canonical as the PTX ISA documents: `0x7fffffff` for f32, `0x7fff` for f16 and
//! bf16. The ISA leaves the f64 payload open; the emulator returns [`NAN_F64`].

pub mod approx;
pub mod convert;
pub mod double;
pub mod fp8;
pub mod half;
mod host;
pub mod single;
pub mod soft;

pub use host::*;

/// The canonical NaN of `.f32` and `.tf32` results.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The canonical NaN of `.f16` and `.bf16` results.
pub const NAN_F16: u16 = 0x7fff;
/// The NaN that `.f64` operations return. PTX leaves its bits open; this is the constant of CUDA's own headers.
pub const NAN_F64: u64 = 0xfff8_0000_0000_0000;

/// A PTX rounding modifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// `.rn`, `.rni`: to nearest, ties to even.
    #[default]
    NearestEven,
    /// `.rz`, `.rzi`: toward zero.
    Zero,
    /// `.rm`, `.rmi`: toward minus infinity.
    Down,
    /// `.rp`, `.rpi`: toward plus infinity.
    Up,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
}

/// The modifiers that most floating-point instructions share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mode {
    /// Rounding of the result.
    pub rounding: Rounding,
    /// `.ftz`: subnormal inputs and results become zero of the same sign.
    pub ftz: bool,
    /// `.sat`: the result is clamped to `[0, 1]`, NaN becomes +0.
    pub sat: bool,
}

impl Mode {
    /// `.rn` without `.ftz` and `.sat`.
    pub const RN: Self = Self {
        rounding: Rounding::NearestEven,
        ftz: false,
        sat: false,
    };

    /// This mode with another rounding.
    #[must_use]
    pub const fn rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// This mode with `.ftz` set or cleared.
    #[must_use]
    pub const fn ftz(self, ftz: bool) -> Self {
        Self { ftz, ..self }
    }

    /// This mode with `.sat` set or cleared.
    #[must_use]
    pub const fn sat(self, sat: bool) -> Self {
        Self { sat, ..self }
    }
}
