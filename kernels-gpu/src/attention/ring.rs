//! Tiles of keys that go round the tiles of queries together.
//!
//! Place `j` of a ring of `size` tiles of keys begins at tile `⌊j·tiles/size⌋` of `tiles` tiles of queries and goes on to
//! the last, then from the first: whoever adds to a tile of dQ before it did so about `tiles/size` steps ago.

/// A tile of keys in its ring.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Tiles of keys in the rings before.
    pub first: u32,
    /// Place in the ring.
    pub place: u32,
    /// Places of the ring.
    pub size: u32,
    /// Tiles of queries, at least as many.
    pub tiles: u32,
}

impl Ring {
    /// The ring of tile `key` of `keys`, where rings have `most` places but the last, which has what is left.
    ///
    /// # Safety
    /// - `most` and `tiles` are not 0, `key` is below `keys`.
    #[inline(always)]
    pub const unsafe fn of(key: u32, keys: u32, most: u32, tiles: u32) -> Ring {
        // SAFETY: forwarded to the caller.
        unsafe { core::hint::assert_unchecked(most != 0) };
        let first = key / most * most;
        let rest = keys - first;
        Ring {
            first,
            place: key - first,
            size: if rest < most { rest } else { most },
            tiles,
        }
    }

    /// The tile of queries at which it begins.
    #[inline(always)]
    pub const fn begin(self) -> u32 {
        // SAFETY: a ring has a place.
        unsafe { core::hint::assert_unchecked(self.size != 0) };
        self.place * self.tiles / self.size
    }

    /// How many tiles of keys have added to tile `n` of queries when it is this one's turn.
    #[inline(always)]
    pub const fn before(self, n: u32) -> u32 {
        // SAFETY: there are tiles of queries.
        unsafe { core::hint::assert_unchecked(self.tiles != 0) };
        // Those that begin at tile `n` or before it.
        let begun = ((n + 1) * self.size).div_ceil(self.tiles);
        // Who begins after tile `n` comes to it only after its last tile, and this one before all who begin before it.
        let passed = if n >= self.begin() { begun } else { begun + self.size };
        self.first + passed - (self.place + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn turns_are_those_of_a_clock() {
        for (keys, most, tiles) in [
            (1, 1, 1),
            (3, 3, 65),
            (5, 2, 4),
            (7, 4, 9),
            (16, 16, 16),
            (10, 4, 64),
            (33, 32, 70),
        ] {
            // SAFETY: nothing is 0.
            let rings: Vec<Ring> = (0..keys)
                .map(|key| unsafe { Ring::of(key, keys, most, tiles) })
                .collect();
            for n in 0..tiles {
                // All places step together, ring after ring.
                let time = |ring: &Ring| (ring.first, (n + tiles - ring.begin()) % tiles);
                for ring in &rings {
                    let earlier = rings.iter().filter(|other| time(other) < time(ring)).count();
                    assert_eq!(ring.before(n) as usize, earlier, "{ring:?} of {keys}, tile {n}");
                }
            }
        }
    }
}
