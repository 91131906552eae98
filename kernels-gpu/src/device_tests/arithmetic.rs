//! Arithmetic and conversions: each thread applies every function to its own inputs.

#[cfg(target_arch = "nvptx64")]
use super::{DeviceTestParams, table::write_row};
#[cfg(target_arch = "nvptx64")]
use cuda_std::{global, half, math, thread::*};

/// Words of a row of `device_test_math`.
pub const MATH_WORDS: usize = 18;
/// Words of a row of `device_test_half`.
pub const HALF_WORDS: usize = 11;
/// Words of a row of `device_test_half_sm80`.
pub const HALF_SM80_WORDS: usize = 9;
/// Words of a row of `device_test_half_sm90`.
pub const HALF_SM90_WORDS: usize = 6;

/// The thread's three floats.
///
/// # Safety
/// - `input` holds three floats for each thread of the grid.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn inputs(input: u64) -> [f32; 3] {
    let first = (input as *const f32).wrapping_add(3 * global_idx_x() as usize);
    // SAFETY: forwarded to the caller.
    unsafe { [global::ld(first), global::ld(first.add(1)), global::ld(first.add(2))] }
}

/// Reads eight elements of the input in three ways and writes three times eight to the output: `2x + 1` of what
/// `load8` and `load8_nc` read, and one element's way through [`Element::from_f32`].
///
/// # Safety
/// - `input` holds eight elements for each thread, `output` three sections of as many.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn elements<T: crate::tile::element::Element>(params: DeviceTestParams) {
    let at = 8 * global_idx_x() as usize;
    let section = 8 * grid_stride_x() as usize;
    let (input, output) = (
        (params.input as *const T).wrapping_add(at),
        (params.output as *mut T).wrapping_add(at),
    );
    // SAFETY: forwarded to the caller.
    unsafe {
        T::store8(output, T::load8(input).map(|x| math::fma(x, 2.0, 1.0)));
        T::store8(
            output.wrapping_add(section),
            T::load8_nc(input).map(|x| math::fma(x, 2.0, 1.0)),
        );
        let mut element = 0;
        while element < 8 {
            let x = global::ld(input.wrapping_add(element)).to_f32();
            let place = output.wrapping_add(2 * section + element);
            global::st(place, T::from_f32(math::fma(x, 2.0, 1.0)));
            element += 1;
        }
    }
}

cuda_std::kernel! {
    /// `2x + 1` by [`Element`](crate::tile::element::Element) for f32.
    #[launch(threads = 64)]
    pub fn device_test_elements_f32(params: DeviceTestParams) {
        elements::<f32>(params)
    }

    /// `2x + 1` by [`Element`](crate::tile::element::Element) for f16.
    #[launch(threads = 64)]
    pub fn device_test_elements_f16(params: DeviceTestParams) {
        elements::<crate::tile::element::F16>(params)
    }

    /// `2x + 1` by [`Element`](crate::tile::element::Element) for bf16.
    #[launch(threads = 64)]
    pub fn device_test_elements_bf16(params: DeviceTestParams) {
        elements::<crate::tile::element::Bf16>(params)
    }

    /// Single precision and bit arithmetic; inputs are three floats a thread.
    #[launch(threads = 64)]
    pub fn device_test_math(params: DeviceTestParams) {
        let [x, y, z] = inputs(params.input);
        let (a, b, c) = (x.to_bits(), y.to_bits(), z.to_bits());
        write_row::<MATH_WORDS>(params.output, global_idx_x() as u32, [
            math::fma(x, y, z).to_bits(), math::ex2(x).to_bits(), math::lg2(y).to_bits(), math::rcp(x).to_bits(),
            math::rsqrt(y).to_bits(), math::sqrt(y).to_bits(), math::sqrt_rn(y).to_bits(), math::sin(x).to_bits(),
            math::cos(x).to_bits(), math::tanh(x).to_bits(), math::fmax(x, z).to_bits(), math::fmin(x, z).to_bits(),
            math::prmt(a, b, c), math::lop3::<0xEA>(a, b, c), math::lop3::<0x96>(a, b, c),
            math::bfe(a, b % 32, c % 32), math::bfe(a, 20, 32), math::prmt(a, b, 0x5410),
        ]);
    }

    /// Half-precision conversions and arithmetic of every architecture. The first two floats make one pair, the last
    /// two another.
    #[launch(threads = 64)]
    pub fn device_test_half(params: DeviceTestParams) {
        let [x, y, z] = inputs(params.input);
        let (p, q) = (half::f16x2_from_f32(x, y), half::f16x2_from_f32(y, z));
        let (u, v) = (half::bf16x2_from_f32(x, y), half::f32_from_bf16x2(half::bf16x2_from_f32(y, z)));
        let w = half::f32_from_f16x2(q);
        write_row::<HALF_WORDS>(params.output, global_idx_x() as u32, [
            p, w[0].to_bits(), w[1].to_bits(), u, v[0].to_bits(), v[1].to_bits(),
            half::fma_rn_f16x2(p, q, p), half::add_rn_f16x2(p, q), half::mul_rn_f16x2(p, q),
            half::ex2_approx_f16x2(p), half::tanh_approx_f16x2(p),
        ]);
    }

    /// Half-precision instructions of sm_80.
    #[launch(threads = 64)]
    #[cfg(not(tier = "sm_75"))]
    pub fn device_test_half_sm80(params: DeviceTestParams) {
        let [x, y, z] = inputs(params.input);
        let (p, q) = (half::cvt_rn_f16x2_f32(x, y), half::cvt_rn_f16x2_f32_in_order(y, z));
        let (u, v) = (half::cvt_rn_bf16x2_f32(x, y), half::cvt_rn_bf16x2_f32_in_order(y, z));
        write_row::<HALF_SM80_WORDS>(params.output, global_idx_x() as u32, [
            p, u, half::max_f16x2(p, q), half::fma_rn_bf16x2(u, v, u), half::max_bf16x2(u, v), half::cvt_rna_tf32_f32(x),
            math::fmax_nan(x, z).to_bits(), math::fmin_nan(x, z).to_bits(), half::f32_from_bf16(v as u16).to_bits(),
        ]);
    }

    /// Half-precision and 8-bit instructions of sm_90.
    #[launch(threads = 64)]
    #[cfg(tier = "sm_90a")]
    pub fn device_test_half_sm90(params: DeviceTestParams) {
        let [x, y, z] = inputs(params.input);
        let (u, v) = (half::cvt_rn_bf16x2_f32(x, y), half::cvt_rn_bf16x2_f32(y, z));
        let (p, q) = (half::cvt_rn_satfinite_e4m3x2_f32(x, y), half::cvt_rn_satfinite_e5m2x2_f32(y, z));
        write_row::<HALF_SM90_WORDS>(params.output, global_idx_x() as u32, [
            half::add_rn_bf16x2(u, v), half::mul_rn_bf16x2(u, v), p as u32, q as u32,
            half::cvt_rn_f16x2_e4m3x2(p), half::cvt_rn_f16x2_e5m2x2(q),
        ]);
    }
}
