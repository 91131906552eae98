//! Gradients by central differences, to check the analytic ones.

/// Numerical gradient of `f` at `x`: `(f(x + h·eᵢ) − f(x − h·eᵢ)) / 2h` for every `i`.
///
/// With the step `h = 1e-5 · max(1, |xᵢ|)` the result is good to about 1e-9 for functions whose
/// third derivatives are near 1.
pub fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let h = 1e-5 * x[i].abs().max(1.0);
            at[i] = x[i] + h;
            let above = f(&at);
            at[i] = x[i] - h;
            let below = f(&at);
            at[i] = x[i];
            (above - below) / (2.0 * h)
        })
        .collect()
}

/// Numerical gradient of `Σ weightⱼ · f(x)ⱼ`: what a backward pass returns for the output gradient
/// `weights`.
pub fn vector_jacobian(x: &[f64], weights: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    gradient(x, |x| {
        let y = f(x);
        assert_eq!(y.len(), weights.len(), "one weight per output");
        y.iter().zip(weights).map(|(y, w)| y * w).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn differentiates_polynomials() {
        let f = |x: &[f64]| x[0] * x[0] * x[1] + 3.0 * x[1];
        assert_close(&gradient(&[2.0, -1.0], f), &[-4.0, 7.0], 1e-8);
        let squares = |x: &[f64]| x.iter().map(|x| x * x).collect::<Vec<_>>();
        assert_close(&vector_jacobian(&[1.0, 3.0], &[0.5, 2.0], squares), &[1.0, 12.0], 1e-8);
    }
}
