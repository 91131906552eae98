//! Embedding, its gradient and the check of indices on every device.

use crate::common::devices;
use crate::support::{assert_twice, dense, normal, poison_outputs, strided, values};
use host::ops::{check_indices, embedding, embedding_backward, embedding_backward_into};
use host::reference::{Eager, Exact, data::indices, embedding as reference, widen};
use host::{AnyTensor, Device, Error, Float, Tensor, bf16, f16};

fn check<T: Float>(device: &Device, table_rows: usize, columns: usize, tokens: usize) {
    let table: Vec<T> = normal(1, table_rows, columns);
    let ids = indices(2, tokens, 0, table_rows as i64 - 1);
    let narrow: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let wanted = reference::forward(&widen(&table), columns, &ids);
    let dy: Vec<T> = normal(3, tokens, columns);
    for (before, after) in [(0, 0), (1, 2), (8, 8)] {
        let what = format!(
            "{device}: {} {table_rows}×{columns}, {tokens} tokens, before {before}",
            T::DTYPE
        );
        let table = strided(device, &table, table_rows, before, after);
        poison_outputs::<T>(device, tokens * columns);
        let out = embedding(&table, &dense(device, &ids, &[tokens])).unwrap();
        assert_eq!(widen(&values::<T>(&out)), wanted, "{what}");
        let out = embedding(&table, &dense(device, &narrow, &[1, tokens])).unwrap();
        assert_eq!(out.shape(), [1, tokens as u64, columns as u64]);
        assert_eq!(widen(&values::<T>(&out)), wanted, "{what}");
        for padding in [None, Some(ids[0])] {
            let dy_strided = strided(device, &dy, tokens, after, before);
            let dtable = embedding_backward(&dy_strided, &dense(device, &ids, &[tokens]), table_rows as u64, padding);
            let exact = reference::backward::<Exact>(&widen(&dy), columns, &ids, table_rows, padding);
            let naive = reference::backward::<Eager<T>>(&widen(&dy), columns, &ids, table_rows, padding);
            let dtable = dtable.unwrap();
            assert_twice::<T>(&what, &dtable, &exact, &naive);
            // Added in the order of the tokens, in f32: not only near, but the same.
            assert_eq!(widen(&values::<T>(&dtable)), naive, "{what}");
        }
    }
}

#[test]
fn agrees_with_the_reference() {
    for device in devices() {
        check::<f32>(&device, 7, 5, 20);
        check::<f16>(&device, 50, 64, 30);
        // More tokens than a block looks at at once, and more columns than it adds up.
        check::<bf16>(&device, 5, 2056, 300);
    }
}

#[test]
fn indices_outside_give_zeros_and_an_error_on_request() {
    for device in devices() {
        let table = dense(&device, &[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
        let ids = [0i64, 2, -1, 1, i64::MAX, i64::MIN];
        let on_device = dense(&device, &ids, &[6]);
        poison_outputs::<f32>(&device, 12);
        let out = embedding(&table, &on_device).unwrap();
        let wanted = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(values::<f32>(&out), wanted, "{device}");
        let ones = dense(&device, &[1.0f32; 12], &[6, 2]);
        let dtable = embedding_backward(&ones, &on_device, 2, None).unwrap();
        assert_eq!(values::<f32>(&dtable), [1.0; 4]);
        let error = check_indices("ids", &on_device, 2, None).unwrap_err();
        assert_eq!(error.to_string(), "ids = 2 at position 1; allowed: 0 to 1");
        let error = check_indices("ids", &on_device, 3, Some(-1)).unwrap_err();
        assert!(
            error.to_string().ends_with("at position 4; allowed: 0 to 2, or -1"),
            "{error}"
        );
        check_indices("ids", &dense(&device, &[0i32, 1, -100], &[3]), 2, Some(-100)).unwrap();
        check_indices("ids", &Tensor::<i32>::empty(&device, &[0]).unwrap(), 0, None).unwrap();
    }
}

#[test]
fn gradients_add_to_what_is_there() {
    for device in devices() {
        let dtable = dense(&device, &[1.0f32; 6], &[3, 2]);
        let dy = dense(&device, &[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
        embedding_backward_into(&dy, &dense(&device, &[2i32, 2], &[2]), &dtable, None).unwrap();
        assert_eq!(dtable.to_vec().unwrap(), [1.0, 1.0, 1.0, 1.0, 5.0, 7.0]);
    }
}

#[test]
fn nothing_and_errors() {
    let device = &devices()[0];
    let table = Tensor::<f16>::zeros(device, &[4, 8]).unwrap();
    let none = Tensor::<i64>::empty(device, &[0]).unwrap();
    assert_eq!(embedding(&table, &none).unwrap().shape(), [0, 8]);
    let dtable = embedding_backward(&Tensor::<f16>::empty(device, &[0, 8]).unwrap(), &none, 4, None).unwrap();
    assert_eq!(dtable.to_bytes().unwrap(), [0; 64]);
    assert!(matches!(
        embedding(&table, &table),
        Err(Error::Dtype { argument: "ids", .. })
    ));
    let vector: &AnyTensor = &Tensor::<f16>::zeros(device, &[4]).unwrap();
    assert!(matches!(
        embedding(vector, &none),
        Err(Error::Shape { argument: "table", .. })
    ));
    let two = Tensor::<i32>::zeros(device, &[2]).unwrap();
    assert!(matches!(
        embedding_backward(vector, &two, 4, None),
        Err(Error::Shape { argument: "dy", .. })
    ));
}
