//! What is measured: a case, its data, and the check that its result is right.

use std::sync::OnceLock;

use host::{
    AnyTensor, DType, Device, Float, Result, bf16, f16,
    reference::{
        cast::{e4m3_to_f64, f64_to_e4m3},
        data,
    },
};
use serde_json::Value;

/// Work to time.
pub type Run = Box<dyn FnMut(usize) -> Result<()>>;

/// Looks at the result on the same buffers; says what is wrong with it.
pub type Check = Box<dyn Fn() -> Result<Option<String>>>;

/// Allocates and fills the buffers of a case.
pub type Make = Box<dyn FnOnce(&Device) -> Result<Case>>;

/// A case that is not set up yet: only its name is known.
pub struct Spec {
    /// Shape and options; what `--config` filters.
    pub name: String,
    /// Allocates and fills its buffers.
    pub make: Make,
}

impl Spec {
    /// A case by name.
    pub fn new(name: impl Into<String>, make: impl FnOnce(&Device) -> Result<Case> + 'static) -> Spec {
        Spec {
            name: name.into(),
            make: Box::new(make),
        }
    }
}

/// Something to measure.
pub struct Case {
    /// Op of the inventory.
    pub op: &'static str,
    /// Element type.
    pub dtype: DType,
    /// Bytes that must move at least once.
    pub bytes: u64,
    /// Floating-point operations of the maths; 0 where nobody counts them.
    pub flops: u64,
    /// The case for a peer script.
    pub peer: Value,
    /// Sets of buffers that runs rotate over.
    pub copies: usize,
    /// Runs it once; the argument counts runs, so that buffers are rotated.
    pub run: Run,
    /// The check, before anything is timed.
    pub check: Check,
    /// Operands for cuBLASLt, where it computes the same.
    pub product: Option<Product>,
    /// A run of our own to be held against.
    pub beside: Option<Beside>,
}

/// Another run of ours, measured in turns like a peer: what a case would take at the rate of another one.
pub struct Beside {
    /// Its name among the peers.
    pub name: &'static str,
    /// Runs it once.
    pub run: Run,
    /// What its time is multiplied with: the work of the case as a part of its own.
    pub part: f64,
}

/// A product `y [m, n] = x [m, k] · w [n, k]ᵀ`, with a bias and tanh GELU or without.
#[derive(Clone)]
pub struct Product {
    /// Rows of x, rows of w, columns of both.
    pub extents: [u64; 3],
    /// x.
    pub x: AnyTensor,
    /// Copies of w.
    pub w: Vec<AnyTensor>,
    /// Bias; with it comes the GELU.
    pub bias: Option<AnyTensor>,
}

/// Sets of buffers so that a rotation passes through at least twice the L2 cache.
pub fn copies(device: &Device, bytes: u64) -> usize {
    let wanted = 2 * device.properties().l2_bytes;
    wanted.div_ceil(bytes.max(1)).clamp(1, 32) as usize
}

/// `count` sets of buffers, each made from a seed of its own.
pub fn sets<T>(count: usize, make: impl Fn(u64) -> Result<T>) -> Result<Vec<T>> {
    (0..count as u64).map(|index| make(10 * index + 1)).collect()
}

/// A tensor of normal numbers: a random quarter of a million, repeated, which neither caches nor kernels can tell.
pub fn normal(device: &Device, dtype: DType, shape: &[u64], seed: u64) -> Result<AnyTensor> {
    scaled(device, dtype, shape, seed, 1.0)
}

/// The same times a factor.
pub fn scaled(device: &Device, dtype: DType, shape: &[u64], seed: u64, factor: f32) -> Result<AnyTensor> {
    let elements: u64 = shape.iter().product();
    // A prime, so that rows of a matrix differ; each seed begins elsewhere among the numbers.
    const TILE: usize = 262_139;
    static NUMBERS: OnceLock<Vec<f32>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| data::normal(1, 4 * TILE));
    let tile = (elements as usize).min(TILE);
    let start = (seed as usize * 104_729) % (3 * TILE);
    let values = numbers[start..start + tile].iter().map(|x| x * factor);
    let bytes: Vec<u8> = match dtype {
        DType::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::E4M3 => values.map(|x| f64_to_e4m3(x.into())).collect(),
        _ => values.flat_map(|x| x.to_le_bytes()).collect(),
    };
    let tensor = AnyTensor::empty(device, dtype, &[elements])?;
    if elements == 0 {
        return tensor.reshape(shape);
    }
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

/// The elements of a tensor or of a view of one.
pub fn values(tensor: &AnyTensor) -> Result<Vec<f64>> {
    fn of<T: Float>(tensor: &AnyTensor) -> Result<Vec<f64>> {
        Ok(tensor
            .typed::<T>("tensor")?
            .to_vec()?
            .iter()
            .map(|x| x.to_f64())
            .collect())
    }
    match tensor.dtype() {
        DType::F16 => of::<f16>(tensor),
        DType::BF16 => of::<bf16>(tensor),
        DType::E4M3 => Ok(tensor.to_bytes()?.into_iter().map(e4m3_to_f64).collect()),
        _ => of::<f32>(tensor),
    }
}

/// The row of a matrix, or of a tensor with its leading axes joined.
pub fn row(tensor: &AnyTensor, index: u64) -> Result<Vec<f64>> {
    let columns = tensor.extent(tensor.rank() - 1);
    let flat = tensor.reshape(&[tensor.elements() / columns.max(1), columns])?;
    values(&flat.select(0, index)?)
}

/// What is wrong with `out`, if a value is further from `wanted` than the dtype explains. `ferroflash verify` is the
/// strict test; this one sees that the timed buffers hold the op's result.
pub fn differs(what: &str, dtype: DType, out: &[f64], wanted: &[f64]) -> Option<String> {
    if out.len() != wanted.len() {
        return Some(format!("{what}: {} values instead of {}", out.len(), wanted.len()));
    }
    let allowed = match dtype {
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        _ => 1e-4,
    };
    let largest = wanted.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let wrong = out
        .iter()
        .zip(wanted)
        .position(|(out, wanted)| out.is_nan() || (out - wanted).abs() > allowed * largest.max(1e-30))?;
    Some(format!(
        "{what}: element {wrong} is {}, not {}",
        out[wrong], wanted[wrong]
    ))
}
