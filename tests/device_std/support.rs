//! Launching a test kernel and reading its output; random data.

use host::launch::Contract;
use host::{AnyTensor, DType, Device, Tier};
use kernels_gpu::device_tests::DeviceTestParams;

/// The devices whose tier is one of `tiers`.
pub fn devices(tiers: &[Tier]) -> Vec<Device> {
    crate::common::devices()
        .into_iter()
        .filter(|device| tiers.contains(&device.tier()))
        .collect()
}

/// Every tier.
pub const ALL: &[Tier] = &[Tier::Sm75, Tier::Sm80, Tier::Sm90a];
/// Tiers with `cp.async`, mbarriers and `redux`.
pub const FROM_SM80: &[Tier] = &[Tier::Sm80, Tier::Sm90a];
/// The tier with TMA, wgmma and clusters.
pub const SM90: &[Tier] = &[Tier::Sm90a];

/// A tensor of bytes.
pub fn upload(device: &Device, bytes: &[u8]) -> AnyTensor {
    AnyTensor::from_bytes(device, DType::U8, &[bytes.len() as u64], bytes).unwrap()
}

/// Launches a test kernel on the given input and output and returns both as they are afterwards.
pub fn launch_on(
    device: &Device,
    entry: &str,
    grid: [u64; 3],
    shared: u64,
    input: &[u8],
    output: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let (input, output) = (upload(device, input), upload(device, output));
    let params = DeviceTestParams {
        input: input.address(),
        output: output.address(),
    };
    let prepared = Contract::new(device, entry)
        .grid(grid)
        .shared(shared)
        .writes("input", &input)
        .writes("output", &output)
        .prepare()
        .unwrap_or_else(|error| panic!("{entry}: {error}"));
    // SAFETY: every test kernel takes these arguments, and each test sizes input and output for its kernel.
    unsafe { prepared.launch(&params) }.unwrap_or_else(|error| panic!("{entry}: {error}"));
    let output = output.to_bytes().unwrap_or_else(|error| panic!("{entry}: {error}"));
    (input.to_bytes().unwrap(), output)
}

/// Launches a test kernel with `words` words of output, poisoned before.
pub fn launch(device: &Device, entry: &str, grid: [u64; 3], shared: u64, input: &[u8], words: usize) -> Vec<u32> {
    words_of(&launch_on(device, entry, grid, shared, input, &vec![0xFF; 4 * words]).1)
}

/// Little-endian words.
pub fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// Little-endian bytes.
pub fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// SplitMix64: the same data on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// Uniform between the bounds.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1 << 24) as f32)
    }

    /// A small integer, from −4 to 4.
    pub fn small(&mut self) -> i32 {
        self.below(9) as i32 - 4
    }
}
