//! The online softmax of a warpgroup's rows, in base 2.
//!
//! A thread of the accumulator layout holds parts of two rows (registers `4i, 4i+1` and `4i+2, 4i+3`); the four lanes of
//! a quad share them. `maximum` is that of the raw scores so far, `sum` the thread's part of `Σ 2^(score·scale − maximum·scale)`:
//! lanes add their parts only once, at the end. A row without a key has `maximum = −∞`, and 0 stands in for it, so
//! that its exponentials are 0 and not NaN. A NaN score makes its row NaN.

use cuda_std::{
    math::{ex2, fma, fmax, lg2, rcp},
    warp,
};

/// ln 2: from base 2 to natural logarithms.
const LN_2: f32 = core::f32::consts::LN_2;
/// log₂ e.
const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// Powers of two by which a lazy maximum may stay behind: weights stay far from the ends of f16, and as exact.
const SLACK: f32 = 8.0;

/// Statistics of a thread's two rows.
#[derive(Clone, Copy)]
pub struct OnlineSoftmax {
    maximum: [f32; 2],
    sum: [f32; 2],
}

/// What finishes a row: the factor of its output and its LSE.
#[derive(Clone, Copy)]
pub struct Finished {
    /// Factor of O.
    pub factor: [f32; 2],
    /// Natural LSE.
    pub lse: [f32; 2],
}

impl OnlineSoftmax {
    /// No key seen.
    #[inline(always)]
    pub const fn new() -> Self {
        OnlineSoftmax {
            maximum: [f32::NEG_INFINITY; 2],
            sum: [0.0; 2],
        }
    }

    /// Takes the scores of a tile, turns them into weights `2^(score·scale − maximum·scale)` and returns the factors by
    /// which what was accumulated before shrinks.
    ///
    /// # Safety
    /// - All lanes of the warp execute this together.
    #[inline(always)]
    pub unsafe fn update<const R: usize>(&mut self, scores: &mut [f32; R], scale: f32) -> [f32; 2] {
        // SAFETY: forwarded to the caller.
        let maximum = unsafe { join(self.own_maximum(scores)) };
        let shrink = self.move_to(maximum, scale);
        let sum = self.weigh(scores, scale);
        self.sum = [fma(self.sum[0], shrink[0], sum[0]), fma(self.sum[1], shrink[1], sum[1])];
        shrink
    }

    /// The same with a maximum that follows the row's only when that is [`SLACK`] powers of two ahead, so that weights
    /// reach `2^SLACK`: what was accumulated hardly ever shrinks after the first tile. The factors are none where no row of
    /// the warp has moved its maximum; then its lanes have not met either. `scale` is positive.
    ///
    /// # Safety
    /// - All lanes of the warp execute this together.
    #[inline(always)]
    pub unsafe fn update_lazily<const R: usize>(&mut self, scores: &mut [f32; R], scale: f32) -> Option<[f32; 2]> {
        let own = self.own_maximum(scores);
        let ahead = |row: usize| own[row] * scale > fma(self.maximum[row], scale, SLACK);
        let mut shrink = None;
        // SAFETY: forwarded to the caller.
        unsafe {
            if warp::vote_any(warp::FULL, ahead(0) || ahead(1)) {
                let mut maximum = join(own);
                let mut row = 0;
                while row < 2 {
                    // A row's own decision: its bits do not depend on its neighbours.
                    if maximum[row] * scale <= fma(self.maximum[row], scale, SLACK) {
                        maximum[row] = self.maximum[row];
                    }
                    row += 1;
                }
                let factors = self.move_to(maximum, scale);
                self.sum = [self.sum[0] * factors[0], self.sum[1] * factors[1]];
                shrink = Some(factors);
            }
        }
        let sum = self.weigh(scores, scale);
        self.sum = [self.sum[0] + sum[0], self.sum[1] + sum[1]];
        shrink
    }

    /// The largest score of each row among this thread's and its maximum so far.
    #[inline(always)]
    fn own_maximum<const R: usize>(&self, scores: &[f32; R]) -> [f32; 2] {
        let mut maximum = self.maximum;
        let mut i = 0;
        while i < R / 4 {
            maximum[0] = fmax(maximum[0], fmax(scores[4 * i], scores[4 * i + 1]));
            maximum[1] = fmax(maximum[1], fmax(scores[4 * i + 2], scores[4 * i + 3]));
            i += 1;
        }
        maximum
    }

    /// Takes `maximum` as that of the rows; returns the factors of what was accumulated before.
    #[inline(always)]
    fn move_to(&mut self, maximum: [f32; 2], scale: f32) -> [f32; 2] {
        // From rounded exponent to rounded exponent, as the weights before were taken: an unchanged maximum gives 1.
        let shrink = [
            ex2(self.maximum[0] * scale - scaled(maximum[0], scale)),
            ex2(self.maximum[1] * scale - scaled(maximum[1], scale)),
        ];
        self.maximum = maximum;
        shrink
    }

    /// Turns scores into weights and returns the thread's part of their sums.
    #[inline(always)]
    fn weigh<const R: usize>(&self, scores: &mut [f32; R], scale: f32) -> [f32; 2] {
        let base = [scaled(self.maximum[0], scale), scaled(self.maximum[1], scale)];
        let mut sum = [0.0; 2];
        let mut i = 0;
        while i < R / 4 {
            scores[4 * i] = ex2(fma(scores[4 * i], scale, -base[0]));
            scores[4 * i + 1] = ex2(fma(scores[4 * i + 1], scale, -base[0]));
            scores[4 * i + 2] = ex2(fma(scores[4 * i + 2], scale, -base[1]));
            scores[4 * i + 3] = ex2(fma(scores[4 * i + 3], scale, -base[1]));
            sum[0] += scores[4 * i] + scores[4 * i + 1];
            sum[1] += scores[4 * i + 2] + scores[4 * i + 3];
            i += 1;
        }
        sum
    }

    /// Joins the lanes of each quad, adds the sink (a natural logit, −∞ for none) and finishes.
    ///
    /// # Safety
    /// - All lanes of the warp execute this together.
    #[inline(always)]
    pub unsafe fn finish(self, scale: f32, sink: f32) -> Finished {
        let mut finished = Finished {
            factor: [0.0; 2],
            lse: [f32::NEG_INFINITY; 2],
        };
        let mut row = 0;
        while row < 2 {
            // SAFETY: forwarded to the caller.
            let sum = unsafe { warp::reduce_sum::<4>(self.sum[row]) };
            let sink = sink * LOG2_E;
            // A row without keys has no exponent of its own: the sink's, if there is one, must not underflow beside it.
            let absent = sum == 0.0 && sink > f32::NEG_INFINITY;
            let base = if absent { sink } else { scaled(self.maximum[row], scale) };
            // The larger of the two exponents keeps both powers finite.
            let top = fmax(base, sink);
            let keys = ex2(base - top);
            let total = fma(sum, keys, ex2(sink - top));
            // A row without keys: nothing to average, and the LSE is that of the sink alone. NaN is not 0 and stays.
            let empty = sum == 0.0;
            finished.factor[row] = if empty { 0.0 } else { keys * rcp(total) };
            finished.lse[row] = (top + lg2(total)) * LN_2;
            row += 1;
        }
        finished
    }
}

/// The maxima of the quads' lanes.
///
/// # Safety
/// - All lanes of the warp execute this together.
#[inline(always)]
unsafe fn join([first, second]: [f32; 2]) -> [f32; 2] {
    // SAFETY: forwarded to the caller.
    unsafe { [warp::reduce_max::<4>(first), warp::reduce_max::<4>(second)] }
}

/// A maximum in units of the exponent; 0 for a row without a key.
#[inline(always)]
fn scaled(maximum: f32, scale: f32) -> f32 {
    if maximum == f32::NEG_INFINITY {
        0.0
    } else {
        maximum * scale
    }
}
