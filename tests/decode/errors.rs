//! What decode attention and the check of a cache refuse, and how they say so.

use ferroflash::{AnyTensor, CacheView, DType, Error, Tensor, decode, kv::PoolError};

use crate::common;

#[test]
fn refuses_what_does_not_fit() {
    let device = &common::devices()[0];
    let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(device, dtype, shape).unwrap();
    let q = tensor(DType::F16, &[2, 1, 4, 64]);
    let pool = tensor(DType::F16, &[6, 4, 2, 64]);
    let table = Tensor::from_slice(device, &[1i32, 2, 3, 4], &[2, 2]).unwrap();
    let lengths = Tensor::from_slice(device, &[8i32, 3], &[2]).unwrap();
    let view = CacheView::paged(&pool, &pool, &table);
    let refused = |q: &AnyTensor, pool: &AnyTensor, lengths: &AnyTensor| {
        decode(q, CacheView::paged(pool, pool, &table), lengths)
            .run()
            .unwrap_err()
            .to_string()
    };
    let message = refused(&tensor(DType::BF16, &[2, 1, 4, 64]), &pool, &lengths);
    assert!(message.contains("k_cache is f16"), "{message}");
    let message = refused(&tensor(DType::F16, &[2, 1, 3, 64]), &pool, &lengths);
    assert!(message.contains("a multiple of the 2 KV heads"), "{message}");
    let message = refused(&tensor(DType::F16, &[3, 1, 4, 64]), &pool, &lengths);
    assert!(message.contains("block_table"), "{message}");
    let message = refused(
        &tensor(DType::F16, &[2, 1, 4, 20]),
        &tensor(DType::F16, &[6, 4, 2, 20]),
        &lengths,
    );
    assert!(message.contains("head dims 20"), "{message}");
    let message = refused(&q, &pool, &tensor(DType::I64, &[2]));
    assert!(message.contains("cache_seqlens is i64"), "{message}");
    view.validate(&lengths, 0).unwrap();
    let error = view.validate(&lengths, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Cache(PoolError::TableTooNarrow {
                row: 0,
                needed_columns: 3,
                columns: 2
            })
        ),
        "{error}"
    );
    let wrong = Tensor::from_slice(device, &[1i32, 6, 3, 4], &[2, 2]).unwrap();
    let error = CacheView::paged(&pool, &pool, &wrong)
        .validate(&lengths, 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Cache(PoolError::PageOutOfRange {
                row: 0,
                column: 1,
                page: 6,
                pages: 6
            })
        ),
        "{error}"
    );
    let shared = Tensor::from_slice(device, &[1i32, 2, 2, 4], &[2, 2]).unwrap();
    CacheView::paged(&pool, &pool, &shared).validate(&lengths, 0).unwrap();
    let error =
        CacheView::paged(&pool, &pool, &shared).validate(&Tensor::from_slice(device, &[7i32, 3], &[2]).unwrap(), 1);
    assert!(
        matches!(error, Err(Error::Cache(PoolError::OverlappingPages { .. }))),
        "{error:?}"
    );
}
