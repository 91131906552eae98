//! Software arithmetic: the roundings and number formats that the host CPU does not have.
//!
//! Every function here is pure and works on raw bit patterns or host floats; nothing in this module knows
//! of registers, lanes or memory. The machine calls, per lane:
//!
//! * `Rounding`: the four IEEE modes and `NearestAway` (`cvt.rna.tf32`).
//! * `f32_add / f32_mul / f32_fma / f32_div / f32_sqrt / f32_rcp (.., Rounding) -> f32` and the `f64_` ones.
//! * `f16_to_f32(u16) -> f32`, `bf16_to_f32(u16) -> f32`, `f32_to_f16(f32, Rounding) -> u16`,
//!   `f32_to_bf16(f32, Rounding) -> u16`, `f64_to_f32(f64, Rounding) -> f32`, `f64_to_f16(f64, Rounding) -> u16`,
//!   `f32_to_tf32(f32, Rounding) -> u32`.
//! * `f32_to_e4m3(f32) -> u8`, `f32_to_e5m2(f32) -> u8` (saturating to finite, as `cvt.rn.satfinite`), and back to f16 bits.
//! * `f16_fma / bf16_fma (u16, u16, u16) -> u16` with one rounding.
//! * `ex2_approx, lg2_approx, rcp_approx, rsqrt_approx, sqrt_approx, sin_approx, cos_approx, tanh_approx (f32) -> f32`.

/// How a result that is not representable is rounded (PTX ISA, "Rounding Modifiers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// `.rn`, `.rni`: to nearest, ties to even.
    NearestEven,
    /// `.rz`, `.rzi`: towards zero.
    Zero,
    /// `.rm`, `.rmi`: towards negative infinity.
    Down,
    /// `.rp`, `.rpi`: towards positive infinity.
    Up,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
}
