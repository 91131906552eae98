//! Angles of rotary position embedding: what rotates a pair, for every kernel that rotates.
//!
//! In-kernel angles are `position · frequency` in f32, as every framework has them, reduced modulo π/2 in two steps that
//! are exact below 4 million turns; sine and cosine are polynomials with errors below 2⁻²³.

use crate::kernel_params;

/// Pairs are `(2i, 2i + 1)`, not `(i, i + pairs)`: a bit of [`Rotation::flags`].
pub const INTERLEAVED: u32 = 1;
/// The tables are f32, not of the tensors' dtype.
pub const TABLE_F32: u32 = 2;

kernel_params! {
    /// A rotation, inside another kernel's arguments.
    pub struct Rotation {
        /// Cosines, `[table_rows, pairs]`; or 0 to compute them.
        pub cos: u64,
        /// Sines, as `cos`.
        pub sin: u64,
        /// Radians a position, f32, `pairs`; where there is no table.
        pub frequencies: u64,
        /// Rotated pairs of a head; 0 rotates nothing.
        pub pairs: u32,
        /// Rows of the tables.
        pub table_rows: u32,
        /// Factor of computed cosines and sines.
        pub magnitude: f32,
        /// [`INTERLEAVED`] and [`TABLE_F32`].
        pub flags: u32,
    }
}

impl Rotation {
    /// Rotates nothing.
    pub const NONE: Rotation = Rotation {
        cos: 0,
        sin: 0,
        frequencies: 0,
        pairs: 0,
        table_rows: 0,
        magnitude: 1.0,
        flags: 0,
    };
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::tile::element::Element;
    use cuda_std::{global, math::fma};

    /// Sine and cosine of any angle below 6 million.
    #[inline(always)]
    pub fn sin_cos(angle: f32) -> (f32, f32) {
        // Adding 1.5·2²³ rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let shifted = fma(angle, core::f32::consts::FRAC_2_PI, ROUND);
        let turns = shifted - ROUND;
        let quadrant = shifted.to_bits();
        // π/2 as the sum of two floats; the first product cancels exactly.
        let r = fma(-turns, 1.570_796_4, angle);
        let r = fma(-turns, -4.371_139e-8, r);
        let z = r * r;
        let sin = fma(z, -1.951_529_6e-4, 8.332_161e-3);
        let sin = fma(sin, z, -1.666_665_5e-1);
        let sin = fma(sin * z, r, r);
        let cos = fma(z, 2.443_315_7e-5, -1.388_731_6e-3);
        let cos = fma(cos, z, 4.166_664_6e-2);
        let cos = fma(cos * z, z, fma(z, -0.5, 1.0));
        let (s, c) = if quadrant & 1 != 0 { (cos, sin) } else { (sin, cos) };
        let s = if quadrant & 2 != 0 { -s } else { s };
        let c = if (quadrant + 1) & 2 != 0 { -c } else { c };
        (s, c)
    }

    /// Sines and cosines of four frequencies at a position, times a factor.
    #[inline(always)]
    pub fn sin_cos_of(position: i32, frequencies: [f32; 4], magnitude: f32) -> ([f32; 4], [f32; 4]) {
        let (mut sin, mut cos) = ([0.0; 4], [0.0; 4]);
        let mut i = 0;
        while i < 4 {
            (sin[i], cos[i]) = sin_cos(position as f32 * frequencies[i]);
            sin[i] *= magnitude;
            cos[i] *= magnitude;
            i += 1;
        }
        (sin, cos)
    }

    impl Rotation {
        /// Sines and cosines of four pairs from `pair` at a position; NaN where the table lacks it.
        ///
        /// # Safety
        /// - `pair` is a multiple of 4; there are four pairs from it on; `E` is the dtype of tables that are not f32.
        #[inline(always)]
        pub unsafe fn sin_cos4<E: Element>(&self, position: i32, pair: u32) -> ([f32; 4], [f32; 4]) {
            let (mut sin, mut cos) = ([f32::NAN; 4], [f32::NAN; 4]);
            // SAFETY: forwarded to the caller; f32 values are four together.
            unsafe {
                if self.cos == 0 {
                    let frequencies: [f32; 4] = global::ld_nc((self.frequencies + pair as u64 * 4) as *const [f32; 4]);
                    (sin, cos) = sin_cos_of(position, frequencies, self.magnitude);
                } else if (position as u32) < self.table_rows {
                    let first = position as u64 * self.pairs as u64 + pair as u64;
                    let mut i = 0;
                    while i < 4 {
                        let at = first + i as u64;
                        if self.flags & TABLE_F32 != 0 {
                            cos[i] = global::ld_nc((self.cos + at * 4) as *const f32);
                            sin[i] = global::ld_nc((self.sin + at * 4) as *const f32);
                        } else {
                            let at = at * size_of::<E>() as u64;
                            cos[i] = global::ld_nc((self.cos + at) as *const E).to_f32();
                            sin[i] = global::ld_nc((self.sin + at) as *const E).to_f32();
                        }
                        i += 1;
                    }
                }
            }
            (sin, cos)
        }
    }
}

#[cfg(target_arch = "nvptx64")]
pub use device::{sin_cos, sin_cos_of};
