//! Which row and column of a product each thread's accumulator registers hold.
//!
//! `mma.m16n8kK` and wgmma share the pattern: a warp holds 16 rows; registers `4i` to `4i + 3` are the columns from
//! `8i`. With wgmma, warp `w` of the warpgroup holds the rows from `16w` (PTX ISA 9.7.14.5, 9.7.15.5.1.2).

/// The row, within a warp's 16, of accumulator register `register` in lane `lane`.
#[inline(always)]
pub const fn row(lane: u32, register: u32) -> u32 {
    lane / 4 + register / 2 % 2 * 8
}

/// The column of accumulator register `register` in lane `lane`.
#[inline(always)]
pub const fn column(lane: u32, register: u32) -> u32 {
    register / 4 * 8 + lane % 4 * 2 + register % 2
}

/// The row, within the warpgroup's 64, of accumulator register `register` in thread `thread` of the block, of which
/// warpgroups are 128 consecutive threads.
#[inline(always)]
pub const fn warpgroup_row(thread: u32, register: u32) -> u32 {
    thread / 32 % 4 * 16 + row(thread % 32, register)
}

/// The four words of the 16-bit A fragment for k step `step` (16 columns), from accumulators of the product before.
///
/// `pack` rounds two neighbouring columns into a word, first column low. The registers of a 16×16 accumulator lie in
/// the threads that need them as A: no exchange.
#[inline(always)]
pub fn a_from_accumulator<const R: usize>(d: &[f32; R], step: usize, pack: impl Fn(f32, f32) -> u32) -> [u32; 4] {
    let at = 8 * step;
    [
        pack(d[at], d[at + 1]),
        pack(d[at + 2], d[at + 3]),
        pack(d[at + 4], d[at + 5]),
        pack(d[at + 6], d[at + 7]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accumulators_cover_the_product_once() {
        const N: u32 = 24;
        let mut seen = [[0; N as usize]; 64];
        for thread in 0..128 {
            for register in 0..N / 2 {
                seen[warpgroup_row(thread, register) as usize][column(thread % 32, register) as usize] += 1;
            }
        }
        assert!(seen.iter().flatten().all(|&count| count == 1));
    }

    #[test]
    fn accumulators_become_the_a_fragment_of_the_same_rows_and_columns() {
        // A word h of the fragment, half j: row lane/4 + 8·(h % 2), column 8·(h / 2) + 2·(lane % 4) + j.
        for lane in 0..32 {
            let d: [f32; 16] = core::array::from_fn(|r| (row(lane, r as u32) * 100 + column(lane, r as u32)) as f32);
            for step in 0..2 {
                let a = a_from_accumulator(&d, step, |low, high| low as u32 * 10_000 + high as u32);
                for (h, word) in (0..).zip(a) {
                    let place = |j| (lane / 4 + h % 2 * 8) * 100 + 16 * step as u32 + h / 2 * 8 + lane % 4 * 2 + j;
                    assert_eq!(word, place(0) * 10_000 + place(1));
                }
            }
        }
    }
}
