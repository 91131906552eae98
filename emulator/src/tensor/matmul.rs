//! The inner product loop of the tensor instructions.

/// `d[m][n] = Σ_k a[m][k] · b[k][n]`, rows packed, summed in f32 in order of increasing k.
///
/// `n` is a multiple of 8, `m` of 2. Multiplication and addition are never fused, so the bits do not depend on the CPU.
///
/// # Panics
/// If a slice is shorter than its matrix, which is a bug of the caller.
#[inline(always)]
pub fn multiply(a: &[f32], b: &[f32], d: &mut [f32], m: usize, n: usize, k: usize) {
    assert!(a.len() >= m * k && b.len() >= k * n && d.len() >= m * n);
    multiply_in_tiles(a, b, d, m, n, k);
}

/// Runs `f` compiled for AVX2 where the CPU has it: the same code with 8 lanes a vector. `f` must be `#[inline(always)]` throughout
/// to profit.
#[inline]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, the only requirement of the function.
            return unsafe { with_avx2(f) };
        }
    }
    f()
}

#[inline(always)]
fn multiply_in_tiles(a: &[f32], b: &[f32], d: &mut [f32], m: usize, n: usize, k: usize) {
    let mut column = 0;
    while column + 16 <= n {
        rows::<16>(a, b, d, m, n, k, column);
        column += 16;
    }
    if column < n {
        rows::<8>(a, b, d, m, n, k, column);
    }
}

/// One stripe of `W` columns, two rows at a time so that the sums stay in registers.
#[inline(always)]
fn rows<const W: usize>(a: &[f32], b: &[f32], d: &mut [f32], m: usize, n: usize, k: usize, column: usize) {
    for row in (0..m).step_by(2) {
        let (a0, a1) = (&a[row * k..][..k], &a[(row + 1) * k..][..k]);
        let mut sums = [[0.0f32; W]; 2];
        for (i, (x, y)) in a0.iter().zip(a1).enumerate() {
            let line: &[f32; W] = b[i * n + column..][..W].try_into().expect("a slice of W elements");
            for j in 0..W {
                sums[0][j] += x * line[j];
                sums[1][j] += y * line[j];
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            d[(row + r) * n + column..][..W].copy_from_slice(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition() {
        for (m, n, k) in [(2, 8, 4), (16, 8, 16), (64, 40, 16), (64, 256, 32)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 23) as f32 - 11.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 19) as f32 - 9.0).collect();
            let mut d = vec![f32::NAN; m * n];
            vectorised(|| multiply(&a, &b, &mut d, m, n, k));
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = (0..k).map(|x| a[i * k + x] * b[x * n + j]).sum();
                    assert_eq!(d[i * n + j], want);
                }
            }
        }
    }
}
