//! Sums of tensors, bias, and changes of layout.

use super::Precision;

/// `a + b` elementwise.
pub fn vector_add<P: Precision>(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len(), "addends");
    a.iter().zip(b).map(|(a, b)| P::store(a + b)).collect()
}

/// Adds `bias` to each row.
pub fn bias_add<P: Precision>(x: &[f64], bias: &[f64]) -> Vec<f64> {
    x.iter()
        .enumerate()
        .map(|(i, x)| P::store(x + bias[i % bias.len()]))
        .collect()
}

/// `[rows, columns]` to `[columns, rows]`.
pub fn transpose<T: Copy>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    assert_eq!(x.len(), rows * columns, "matrix");
    (0..x.len()).map(|i| x[(i % rows) * columns + i / rows]).collect()
}

/// `[batch, tokens, heads, dim]` to `[batch, heads, tokens, dim]` (`BSHD` to `BHSD`); with tokens
/// and heads exchanged, back.
pub fn exchange_tokens_and_heads<T: Copy>(x: &[T], tokens: usize, heads: usize, dim: usize) -> Vec<T> {
    super::cache::exchange_axes(x, (tokens, heads), dim)
}

#[cfg(test)]
mod tests {
    use super::super::{Eager, Exact};
    use super::*;
    use half::bf16;

    #[test]
    fn adds() {
        assert_eq!(
            vector_add::<Exact>(&[1.0, 2.0], &[0.5, f64::INFINITY]),
            [1.5, f64::INFINITY]
        );
        assert_eq!(vector_add::<Eager<bf16>>(&[256.0], &[1.0]), [256.0]);
        assert_eq!(
            bias_add::<Exact>(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0]),
            [11.0, 22.0, 13.0, 24.0]
        );
    }

    #[test]
    fn transposes() {
        assert_eq!(transpose(&[1, 2, 3, 4, 5, 6], 2, 3), [1, 4, 2, 5, 3, 6]);
        assert!(transpose::<u8>(&[], 0, 3).is_empty());
        let x: Vec<u32> = (0..2 * 2 * 3 * 2).collect();
        let y = exchange_tokens_and_heads(&x, 2, 3, 2);
        assert_eq!(y[..8], [0, 1, 6, 7, 2, 3, 8, 9]);
        assert_eq!(exchange_tokens_and_heads(&y, 3, 2, 2), x);
    }
}
