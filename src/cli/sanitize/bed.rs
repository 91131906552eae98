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
    /// An emulated GPU of this tier, with the shared memory of its first ones or with so much, that follows the schedule
    /// of the seed.
    pub fn new(tier: Tier, shared_per_block: Option<u32>, seed: u64, taint: bool) -> Result<Bed> {
        let options = DeviceOptions {
            tier: Some(tier),
            exact_allocation: true,
            emulator: EmulatorOptions {
                checks: true,
                seed: Some(seed),
                shared_per_block,
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
        self.secret(&tensor)?;
        Ok(tensor)
    }

    /// Indices from 0 to below `bound`, not secret: addresses depend on them.
    pub fn indices(&self, shape: &[u64], bound: u64) -> Result<AnyTensor> {
        let len = shape.iter().product::<u64>() as usize;
        let data = indices(7, len, 0, bound as i64 - 1);
        Ok(Tensor::from_slice(&self.device, &data, shape)?.any().clone())
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Entries that were launched.
    pub fn launched(&self) -> Vec<String> {
        self.backend.loaded_entries()
    }

    /// Zeros.
    pub fn zeros(&self, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
        AnyTensor::zeros(&self.device, dtype, shape)
    }

    /// Elements of any type that are only copied; every byte differs from its neighbours.
    pub fn bits(&self, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
        let len = shape.iter().product::<u64>() * dtype.size();
        let bytes: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
        let tensor = AnyTensor::from_bytes(&self.device, dtype, shape, &bytes)?;
        self.secret(&tensor)?;
        Ok(tensor)
    }

    /// 32-bit integers that addresses depend on: lengths, tables, positions.
    pub fn integers(&self, values: &[i32], shape: &[u64]) -> Result<AnyTensor> {
        Ok(Tensor::from_slice(&self.device, values, shape)?.any().clone())
    }

    /// 64-bit integers that addresses depend on: slots.
    pub fn longs(&self, values: &[i64]) -> Result<AnyTensor> {
        Ok(Tensor::from_slice(&self.device, values, &[values.len() as u64])?
            .any()
            .clone())
    }

    fn secret(&self, tensor: &AnyTensor) -> Result<()> {
        if self.taint && tensor.elements() > 0 {
            let bytes = tensor.span() * tensor.dtype().size();
            self.backend.mark_secret(tensor.address(), bytes)?;
        }
        Ok(())
    }
}
