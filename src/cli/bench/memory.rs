//! Cases that memory bounds: the elementwise sum and the reductions.

use host::{
    AnyTensor, DType, Device, Result,
    ops::{self, ReduceAxis, ReduceKind},
    reference::data,
};

use super::Case;

/// A tensor of normal numbers: one random megabyte, repeated, which neither caches nor kernels can tell.
pub fn normal(device: &Device, dtype: DType, shape: &[u64], seed: u64) -> Result<AnyTensor> {
    let elements: u64 = shape.iter().product();
    let tile = (elements as usize).min(1 << 18);
    let values = data::normal::<f32>(seed, tile);
    let bytes: Vec<u8> = match dtype {
        DType::F16 => values
            .iter()
            .flat_map(|&x| host::f16::from_f32(x).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .iter()
            .flat_map(|&x| host::bf16::from_f32(x).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|&x| x.to_le_bytes()).collect(),
    };
    let tensor = AnyTensor::empty(device, dtype, &[elements])?;
    let mut filled = (tile as u64).min(elements);
    tensor.slice(0, 0..filled)?.write_bytes(&bytes)?;
    while filled < elements {
        let part = filled.min(elements - filled);
        let (size, stream) = (dtype.size(), device.stream().id());
        // SAFETY: both parts lie in the tensor and do not overlap.
        unsafe {
            device
                .backend()
                .copy(tensor.address() + filled * size, tensor.address(), part * size, stream)?;
        }
        filled += part;
    }
    tensor.reshape(shape)
}

/// `vector_add` over 1 GiB inputs.
pub fn vector_add(device: &Device) -> Result<Vec<Case>> {
    let elements = 1 << 28;
    let (a, b) = (
        normal(device, DType::F32, &[elements], 1)?,
        normal(device, DType::F32, &[elements], 2)?,
    );
    Ok(vec![Case {
        name: format!("f32 {elements}"),
        bytes: 3 * elements * 4,
        flops: elements,
        run: Box::new(move |_| ops::vector_add(&a, &b).map(drop)),
    }])
}

/// Reductions of 1 GiB, over everything and over rows of 1k to 1M.
pub fn reduce(device: &Device) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let elements = (1u64 << 30) / dtype.size();
        let x = normal(device, dtype, &[elements], 3)?;
        for kind in ReduceKind::ALL {
            let x = x.clone();
            cases.push(Case {
                name: format!("{kind:?} {dtype} all {elements}"),
                bytes: elements * dtype.size(),
                flops: elements,
                run: Box::new(move |_| ops::reduce(&x, kind, ReduceAxis::All).map(drop)),
            });
        }
        for columns in [1 << 10, 1 << 12, 1 << 14, 1 << 17, 1 << 20] {
            for kind in [ReduceKind::Sum, ReduceKind::Argmax] {
                let rows = x.reshape(&[elements / columns, columns])?;
                cases.push(Case {
                    name: format!("{kind:?} {dtype} rows of {columns}"),
                    bytes: elements * dtype.size(),
                    flops: elements,
                    run: Box::new(move |_| ops::reduce(&rows, kind, ReduceAxis::Last).map(drop)),
                });
            }
        }
    }
    Ok(cases)
}
