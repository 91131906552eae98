//! Where one case runs: an emulated device of its own, and the inputs.

use std::sync::Arc;

use host::{
    AnyTensor, DType, Device, DeviceOptions, EmulatorOptions, Result, Tensor, Tier,
    backend::emulated::EmulatedBackend,
    bf16, f16,
    images::Images,
    reference::data::{indices, normal},
};

/// A fresh device with all checks on.
pub struct Bed {
    device: Device,
    backend: Arc<EmulatedBackend>,
    taint: bool,
}

impl Bed {
    /// An emulated GPU of this tier that follows the schedule of the seed.
    pub fn new(tier: Tier, seed: u64, taint: bool) -> Result<Bed> {
        let options = DeviceOptions {
            tier: Some(tier),
            exact_allocation: true,
            emulator: EmulatorOptions {
                checks: true,
                seed: Some(seed),
                ..EmulatorOptions::default()
            },
            ..DeviceOptions::default()
        };
        let backend = Arc::new(EmulatedBackend::new(&options)?);
        let device = Device::from_backend(backend.clone(), Images::embedded(), options, "sanitize".into())?;
        Ok(Bed { device, backend, taint })
    }

    /// Normal numbers, the same on every schedule; secret when taint is looked for.
    pub fn floats(&self, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
        let len = shape.iter().product::<u64>() as usize;
        let seed = 17
            + shape
                .iter()
                .fold(0, |hash: u64, n| hash.wrapping_mul(31).wrapping_add(*n));
        let tensor = match dtype {
            DType::F16 => Tensor::from_slice(&self.device, &normal::<f16>(seed, len), shape)?
                .any()
                .clone(),
            DType::BF16 => Tensor::from_slice(&self.device, &normal::<bf16>(seed, len), shape)?
                .any()
                .clone(),
            _ => Tensor::from_slice(&self.device, &normal::<f32>(seed, len), shape)?
                .any()
                .clone(),
        };
        if self.taint && len > 0 {
            self.backend
                .mark_secret(tensor.address(), tensor.span() * dtype.size())?;
        }
        Ok(tensor)
    }

    /// Indices from 0 to `bound`, not secret: addresses depend on them.
    pub fn indices(&self, shape: &[u64], bound: u64) -> Result<AnyTensor> {
        let len = shape.iter().product::<u64>() as usize;
        let data = indices(7, len, 0, bound as i64);
        Ok(Tensor::from_slice(&self.device, &data, shape)?.any().clone())
    }
}
