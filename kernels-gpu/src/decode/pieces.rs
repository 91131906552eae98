//! How the keys that a tile sees are cut into pieces: by the row alone.

use super::MIN_SPLIT;

/// Most pieces of `1 << shift` tokens: a small piece costs more to begin and to join than to read. Of elements that are
/// narrower than others by `1 << narrow`, as many bytes are more tokens.
#[inline(always)]
pub(super) const fn pieces_of(shift: u32, most: u32, narrow: u32) -> u32 {
    let pieces = if shift < 9 + narrow {
        most / 4
    } else if shift < 11 + narrow {
        most / 2
    } else {
        most
    };
    if pieces == 0 { 1 } else { pieces }
}

/// Tokens up to which nothing but the number of steps counts.
pub const SHORT: u32 = 256;

/// Least tokens of a piece of a tile that sees `tokens` keys: narrow rows are cut up further where they are few.
#[inline(always)]
pub const fn least_of(tokens: u32, least: u32) -> u32 {
    if least == 2 * MIN_SPLIT && tokens <= SHORT {
        MIN_SPLIT
    } else {
        least
    }
}

/// Size of a tile's pieces, in tokens, when it sees keys `low..high`: the smallest power of two from [`least_of`] on that
/// gives at most `most / 4` pieces; from 512 tokens on `most / 2`, and from 2048 on `most`, where `narrow` is 0.
#[inline(always)]
pub const fn split_tokens(low: u32, high: u32, most: u32, least: u32, narrow: u32) -> u32 {
    // Where the search begins: anything smaller cannot be enough, since 2^(shift + 1) · most would be too few tokens.
    let mut shift = most.leading_zeros();
    let (tokens, least) = (
        (high - low).leading_zeros(),
        least_of(high - low, least).trailing_zeros(),
    );
    shift = if shift > tokens + least { shift - tokens } else { least };
    while shift < 30 && ((high + (1 << shift) - 1) >> shift) - (low >> shift) > pieces_of(shift, most, narrow) {
        shift += 1;
    }
    1 << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_few_and_as_small_as_that_allows() {
        for (most, least, narrow) in [
            (1, 64, 0),
            (2, 64, 0),
            (7, 512, 0),
            (32, 64, 0),
            (32, 128, 0),
            (32, 256, 1),
            (128, 64, 0),
        ] {
            for (low, high) in [
                (0, 0),
                (0, 1),
                (0, 64),
                (0, 65),
                (63, 65),
                (100, 5000),
                (131_000, 131_073),
                (0, 1_000_000_000),
            ] {
                let size = split_tokens(low, high, most, least, narrow);
                let count = |size: u32| high.div_ceil(size) - low / size;
                assert!(size.is_power_of_two() && size >= least_of(high - low, least));
                assert!(count(size) <= most, "{low}..{high} in {most}");
                assert!(
                    size == least_of(high - low, least)
                        || count(size / 2) > pieces_of((size / 2).trailing_zeros(), most, narrow)
                );
            }
        }
    }
}
