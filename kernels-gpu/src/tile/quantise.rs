//! 8-bit floats with a factor: `x ≈ e4m3(x / scale) · scale`.

use cuda_std::half::{cvt_rn_f16x2_e4m3x2, cvt_rn_satfinite_e4m3x2_f32, f32_from_f16x2};

/// Two elements as e4m3, the first one low: rounded to nearest even, ±448 at most, NaN as `0x7f`.
#[inline(always)]
pub fn quantise2(low: f32, high: f32, scale: f32) -> u16 {
    cvt_rn_satfinite_e4m3x2_f32(low / scale, high / scale)
}

/// Eight elements as e4m3.
#[inline(always)]
pub fn quantise8(x: [f32; 8], scale: f32) -> [u32; 2] {
    let mut words = [0; 2];
    let mut i = 0;
    while i < 4 {
        words[i / 2] |= (quantise2(x[2 * i], x[2 * i + 1], scale) as u32) << (i % 2 * 16);
        i += 1;
    }
    words
}

/// Two elements from e4m3.
#[inline(always)]
pub fn dequantise2(pair: u16, scale: f32) -> [f32; 2] {
    let [low, high] = f32_from_f16x2(cvt_rn_f16x2_e4m3x2(pair));
    [low * scale, high * scale]
}
