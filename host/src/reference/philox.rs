//! Philox4x32-10, the counter-based random generator of every random operation in the library.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The kernels
//! compute the same function of (key, counter); how an operation maps its elements to counters is
//! part of that operation's definition:
//!
//! | operation | counter | word |
//! |---|---|---|
//! | attention dropout, element (batch, head, row, column) | `[column / 4, row, batch · heads_q + head, offset low]` | `column % 4` |
//! | token sampling, row of the batch | `[row, 0, offset low, offset high]` | 0 |
//!
//! The key is the 64-bit seed, low word first; dropout mixes the high half of its offset into the
//! high word of the key by exclusive or, since its counter has room for the low half only.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits for each counter under a key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A 64-bit seed as a key.
pub fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// The upper 24 bits of a word as a number in [0, 1), exact in `f32`.
pub fn unit(word: u32) -> f64 {
    f64::from(word >> 8) / 16_777_216.0
}

/// Words below this are dropped: `round(p · 2³²)`, saturated.
pub fn dropout_threshold(probability: f64) -> u32 {
    (probability * 4_294_967_296.0).round() as u32
}

/// Whether dropout keeps the attention probability of (`plane` = batch · heads_q + head, `row`,
/// `column`).
pub fn dropout_keeps(seed: u64, offset: u64, threshold: u32, plane: u32, row: u32, column: u32) -> bool {
    let [low, high] = key(seed);
    let counter = [column / 4, row, plane, offset as u32];
    let words = philox4x32_10(counter, [low, high ^ (offset >> 32) as u32]);
    words[(column % 4) as usize] >= threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn dropout_rate_is_the_probability() {
        let threshold = dropout_threshold(0.25);
        let mut kept = 0;
        for row in 0..100 {
            for column in 0..400 {
                kept += usize::from(dropout_keeps(7, 0, threshold, 3, row, column));
            }
        }
        // 40,000 Bernoulli draws: the standard deviation of the rate is 0.0022.
        assert!((kept as f64 / 40_000.0 - 0.75).abs() < 0.01, "{kept}");
    }

    #[test]
    fn every_coordinate_changes_the_mask() {
        let threshold = dropout_threshold(0.5);
        let mask = |seed, offset, plane, row| -> Vec<bool> {
            (0..64)
                .map(|column| dropout_keeps(seed, offset, threshold, plane, row, column))
                .collect()
        };
        let base = mask(1, 2, 3, 4);
        assert_eq!(base, mask(1, 2, 3, 4));
        for other in [
            mask(2, 2, 3, 4),
            mask(1 << 32 | 1, 2, 3, 4),
            mask(1, 3, 3, 4),
            mask(1, 1 << 32 | 2, 3, 4),
            mask(1, 2, 4, 4),
            mask(1, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn nothing_is_dropped_at_zero() {
        assert_eq!(dropout_threshold(0.0), 0);
        assert!(dropout_keeps(1, 0, 0, 0, 0, 0));
        assert_eq!(unit(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
    }
}
