//! SplitMix64 as a counter-based generator: number `index` of stream `seed`. Integers only until the last step, so that
//! `reference.py` draws the same weights and batches.

/// Number `index` of stream `seed`.
pub fn draw(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Number `index` of stream `seed`, evenly spread around 0 with this standard deviation.
pub fn spread(seed: u64, index: u64, deviation: f64) -> f32 {
    let unit = (draw(seed, index) >> 40) as f64 / 16_777_216.0 - 0.5;
    (unit * (2.0 * 3f64.sqrt() * deviation)) as f32
}
