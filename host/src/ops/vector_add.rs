//! Elementwise sum: the smallest op, and the pattern of all others.

use kernels_gpu::params::VectorAddParams;

use crate::{AnyTensor, DType, Error, Result, launch::Contract};

/// Elements that one block of the kernel takes at a time.
const BLOCK: u64 = kernels_gpu::vector_add::THREADS as u64;

/// `a + b`, elementwise, f32, any shape; both dense and of one shape.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`] naming the argument.
pub fn vector_add(a: &AnyTensor, b: &AnyTensor) -> Result<AnyTensor> {
    for (argument, tensor) in [("a", a), ("b", b)] {
        if tensor.dtype() != DType::F32 {
            return Err(Error::Dtype {
                argument,
                dtype: tensor.dtype(),
                allowed: "f32".into(),
            });
        }
        if !tensor.is_contiguous() || !tensor.address().is_multiple_of(16) {
            return Err(Error::layout(argument, "must be dense and aligned to 16 bytes"));
        }
    }
    if a.shape() != b.shape() {
        return Err(Error::shape(
            "b",
            b.shape(),
            format!("the shape of a, {:?}, is needed", a.shape()),
        ));
    }
    let out = AnyTensor::empty(a.device(), DType::F32, a.shape())?;
    let len = a.elements();
    if len == 0 {
        return Ok(out);
    }
    let blocks = len
        .div_ceil(BLOCK)
        .min(a.device().properties().multiprocessors as u64 * 16);
    let launch = Contract::new(a.device(), "vector_add")
        .grid([blocks, 1, 1])
        .reads("a", a)
        .reads("b", b)
        .writes("out", &out)
        .prepare()?;
    let params = VectorAddParams {
        a: a.address(),
        b: b.address(),
        out: out.address(),
        len,
    };
    // SAFETY: VectorAddParams is the argument of vector_add; all three tensors are dense with `len` floats.
    unsafe { launch.launch(&params)? };
    Ok(out)
}
