//! Which keys a query sees, and which tiles of keys a tile of queries needs.
//!
//! Query `i` stands at position `i + shift` among the keys: `shift = seq_kv − seq_q` puts the last query at the last
//! key (flash-attn), 0 the first at the first (PyTorch). It sees key `j` when
//! `position − left ≤ j ≤ position + right` and `j < seq_kv`.

use super::params::{AttentionParams, flags};

/// No bound on this side. Far from overflow when positions are added.
pub const UNBOUNDED: i32 = 1 << 29;

/// The bounds of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Keys.
    pub seq_kv: i32,
    /// Position of query 0.
    pub shift: i32,
    /// Keys before the own position, or [`UNBOUNDED`].
    pub left: i32,
    /// Keys after the own position, or [`UNBOUNDED`].
    pub right: i32,
}

impl Mask {
    /// The bounds that a launch's options give a sequence of `seq_q` queries and `seq_kv` keys.
    #[inline(always)]
    pub const fn new(params: &AttentionParams, seq_q: u32, seq_kv: u32) -> Mask {
        Mask::by_flags(params, params.flags, seq_q, seq_kv)
    }

    /// The same with the flags of `params` given apart, for kernels that shall not keep what follows from them.
    #[inline(always)]
    pub const fn by_flags(params: &AttentionParams, all: u32, seq_q: u32, seq_kv: u32) -> Mask {
        const fn bound(all: u32, flag: u32, keys: u32) -> i32 {
            if all & flag != 0 { keys as i32 } else { UNBOUNDED }
        }
        Mask {
            seq_kv: seq_kv as i32,
            shift: if all & flags::TOP_LEFT != 0 {
                0
            } else {
                seq_kv as i32 - seq_q as i32
            },
            left: bound(all, flags::LEFT, params.window_left),
            right: bound(all, flags::RIGHT, params.window_right),
        }
    }

    /// The same bounds seen from the keys, `seq_q` queries: its rows are keys and its columns queries.
    #[inline(always)]
    pub const fn transposed(self, seq_q: i32) -> Mask {
        Mask {
            seq_kv: seq_q,
            shift: -self.shift,
            left: self.right,
            right: self.left,
        }
    }

    /// First key that query `row` sees.
    #[inline(always)]
    pub const fn begin(self, row: i32) -> i32 {
        let begin = row + self.shift - self.left;
        if begin < 0 { 0 } else { begin }
    }

    /// One past the last key that query `row` sees; at most [`Mask::begin`] when it sees none.
    #[inline(always)]
    pub const fn end(self, row: i32) -> i32 {
        let end = row + self.shift + self.right + 1;
        if end > self.seq_kv { self.seq_kv } else { end }
    }

    /// The tiles of `keys` keys that rows `first..=last` need, as (first, one past the last).
    #[inline(always)]
    pub const fn tiles(self, first: i32, last: i32, keys: i32) -> (i32, i32) {
        let (begin, end) = (self.begin(first), self.end(last));
        if end <= begin {
            (0, 0)
        } else {
            (begin / keys, (end + keys - 1) / keys)
        }
    }

    /// Among those tiles, the ones that no row of `first..=last` sees only in part, as (first, one past the last).
    #[inline(always)]
    pub const fn whole_tiles(self, first: i32, last: i32, keys: i32) -> (i32, i32) {
        let (begin, end) = (self.begin(last), self.end(first));
        let whole = ((begin + keys - 1) / keys, if end < 0 { 0 } else { end / keys });
        if whole.1 < whole.0 { (whole.0, whole.0) } else { whole }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_exactly_the_keys_that_some_row_sees() {
        for (seq_q, seq_kv) in [(1, 1), (5, 9), (9, 5), (33, 70), (64, 64)] {
            for shift in [0, seq_kv - seq_q] {
                for (left, right) in [(UNBOUNDED, UNBOUNDED), (UNBOUNDED, 0), (7, 0), (3, 2), (0, UNBOUNDED)] {
                    let mask = Mask {
                        seq_kv,
                        shift,
                        left,
                        right,
                    };
                    for first in 0..seq_q {
                        let last = (first + 15).min(seq_q - 1);
                        check(mask, first, last, 8);
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_bounds_hold_the_same_pairs() {
        for (seq_q, seq_kv) in [(5, 9), (9, 5), (8, 8)] {
            for shift in [0, seq_kv - seq_q] {
                for (left, right) in [(UNBOUNDED, UNBOUNDED), (UNBOUNDED, 0), (2, 0), (1, 3)] {
                    let mask = Mask {
                        seq_kv,
                        shift,
                        left,
                        right,
                    };
                    let turned = mask.transposed(seq_q);
                    for (row, key) in (0..seq_q).flat_map(|row| (0..seq_kv).map(move |key| (row, key))) {
                        assert_eq!(
                            (mask.begin(row)..mask.end(row)).contains(&key),
                            (turned.begin(key)..turned.end(key)).contains(&row),
                            "{mask:?} {row} {key}"
                        );
                    }
                }
            }
        }
    }

    fn check(mask: Mask, first: i32, last: i32, keys: i32) {
        let sees = |row: i32, key: i32| {
            let ahead = key - row - mask.shift;
            key < mask.seq_kv && ahead <= mask.right && -ahead <= mask.left
        };
        let (begin, end) = mask.tiles(first, last, keys);
        let whole = mask.whole_tiles(first, last, keys);
        for tile in 0..mask.seq_kv / keys + 2 {
            let seen = (first..=last).flat_map(|row| (0..keys).map(move |k| (row, tile * keys + k)));
            let (any, all) = seen.fold((false, true), |(any, all), (row, key)| {
                (any | sees(row, key), all & sees(row, key))
            });
            assert!(
                (begin..end).contains(&tile) || !any,
                "{mask:?} rows {first}..={last} tile {tile} is left out"
            );
            assert!(
                !(whole.0..whole.1).contains(&tile) || all,
                "{mask:?} rows {first}..={last} tile {tile} is not whole"
            );
            assert!(
                !all || !any || (whole.0..whole.1).contains(&tile),
                "{mask:?} tile {tile} is whole"
            );
        }
    }
}
