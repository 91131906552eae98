//! Rows of a table by index.

use super::Precision;

/// `table[indices[i]]` for every `i`; rows have `columns` elements.
///
/// # Panics
/// When an index is not in the table.
pub fn forward(table: &[f64], columns: usize, indices: &[i64]) -> Vec<f64> {
    let rows = indices.iter().map(|&index| {
        let start = usize::try_from(index).expect("a negative index") * columns;
        &table[start..start + columns]
    });
    rows.flatten().copied().collect()
}

/// Gradient of the table, `[rows, columns]`: those of equal indices are added in order.
///
/// Indices equal to `padding` contribute nothing.
pub fn backward<P: Precision>(
    grad: &[f64],
    columns: usize,
    indices: &[i64],
    rows: usize,
    padding: Option<i64>,
) -> Vec<f64> {
    assert_eq!(grad.len(), columns * indices.len(), "gradient");
    let mut table = vec![0.0; rows * columns];
    for (&index, grad) in indices.iter().zip(grad.chunks(columns.max(1))) {
        if Some(index) == padding {
            continue;
        }
        let start = usize::try_from(index).expect("a negative index") * columns;
        for (sum, grad) in table[start..start + columns].iter_mut().zip(grad) {
            *sum = P::step(*sum + grad);
        }
    }
    table.iter_mut().for_each(|sum| *sum = P::store(*sum));
    table
}

#[cfg(test)]
mod tests {
    use super::super::Exact;
    use super::super::finite_difference::vector_jacobian;
    use super::*;

    #[test]
    fn gathers_and_scatters() {
        let table = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
        assert_eq!(forward(&table, 2, &[2, 0, 2]), [20.0, 21.0, 0.0, 1.0, 20.0, 21.0]);
        let grad = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let dtable = backward::<Exact>(&grad, 2, &[2, 0, 2], 3, None);
        assert_eq!(dtable, [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
        let padded = backward::<Exact>(&grad, 2, &[2, 0, 2], 3, Some(0));
        assert_eq!(padded, [0.0, 0.0, 0.0, 0.0, 6.0, 8.0]);
        let numeric = vector_jacobian(&table, &grad, |table| forward(table, 2, &[2, 0, 2]));
        super::super::assert_close(&dtable, &numeric, 1e-8);
    }

    #[test]
    #[should_panic]
    fn refuses_indices_outside() {
        forward(&[0.0; 6], 2, &[3]);
    }
}
