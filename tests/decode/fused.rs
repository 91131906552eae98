//! Rotation, append and attention in one launch have the bits of three.

use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Decoded, Device, Float, RopeAngles, RopeFrequencies, RopePairing,
    Tensor, Tier, bf16, decode, f16, rope_table,
};
use host::{
    compare::same_bits,
    reference::data::{normal, permutation},
};

use crate::common;

/// A decode step that rotates, appends and attends, in one launch or in several.
struct Step {
    heads: (usize, usize),
    dims: (usize, usize),
    seq: usize,
    page: Option<usize>,
    before: Vec<i32>,
    rotary: Option<(RopePairing, usize)>,
    table: bool,
    window: Option<u32>,
    causal: bool,
}

impl Step {
    /// Out, LSE, keys and values behind the step.
    fn run<T: Float>(&self, device: &Device, fused: bool) -> [Vec<u8>; 4] {
        let (batch, capacity) = (self.before.len(), 16 * 60);
        let tensor = |seed, shape: [usize; 4]| {
            let values = normal::<T>(seed, shape.iter().product());
            Tensor::from_slice(device, &values, &shape.map(|n| n as u64)).unwrap()
        };
        let q = tensor(1, [batch, self.seq, self.heads.0, self.dims.0]);
        // As a model has them: side by side with other heads.
        let new = tensor(2, [batch, self.seq, 3 * self.heads.1, self.dims.0]);
        let heads = self.heads.1 as u64;
        let (k, v) = (new.slice(2, 0..heads).unwrap(), new.slice(2, heads..2 * heads).unwrap());
        let v = v.slice(3, 0..self.dims.1 as u64).unwrap();
        let rows = self.page.unwrap_or(capacity);
        let columns = capacity.div_ceil(rows);
        let (k_cache, v_cache) = (
            tensor(4, [batch * columns, rows, self.heads.1, self.dims.0]),
            tensor(5, [batch * columns, rows, self.heads.1, self.dims.1]),
        );
        let pages: Vec<i32> = permutation(7, batch * columns)
            .iter()
            .map(|page| *page as i32)
            .collect();
        let table = Tensor::from_slice(device, &pages, &[batch as u64, columns as u64]).unwrap();
        let lengths = Tensor::from_slice(device, &self.before, &[batch as u64]).unwrap();
        let view = match self.page {
            Some(_) => CacheView::paged(&k_cache, &v_cache, &table),
            None => CacheView::contiguous(&k_cache, &v_cache),
        };
        let pairs = self.rotary.map_or(4, |(_, pairs)| pairs);
        let inverse: Vec<f32> = (0..pairs).map(|i| 0.7f32.powi(i as i32)).collect();
        let frequencies = RopeFrequencies::new(device, &inverse, 1.25).unwrap();
        let (cos, sin) = rope_table(device, capacity as u64, &inverse, 1.25).unwrap();
        let angles = if self.table {
            RopeAngles::Table { cos: &cos, sin: &sin }
        } else {
            RopeAngles::Frequencies(&frequencies)
        };
        let options = DecodeOptions {
            causal: self.causal,
            window_left: self.window,
            rotary: self.rotary.map(|(pairing, _)| (pairing, angles)),
            ..DecodeOptions::default()
        };
        let step = decode(&q, view, &lengths).append(&k, &v).options(options).fused(fused);
        let Decoded { out, lse } = step.run().unwrap();
        [&out, &lse, k_cache.any(), v_cache.any()].map(|tensor| tensor.to_bytes().unwrap())
    }

    fn check<T: Float>(&self, device: &Device, name: &str) {
        let (one, three) = (self.run::<T>(device, true), self.run::<T>(device, false));
        for (what, (one, three)) in ["out", "lse", "keys", "values"].iter().zip(one.iter().zip(&three)) {
            same_bits(one, three).unwrap_or_else(|e| panic!("{name}, {} on {device}: {what}: {e}", T::DTYPE));
        }
    }
}

#[test]
fn one_launch_has_the_bits_of_three() {
    let base = || Step {
        heads: (4, 2),
        dims: (64, 64),
        seq: 1,
        page: Some(16),
        before: vec![5, 63, 0],
        rotary: Some((RopePairing::HalfSplit, 32)),
        table: false,
        window: None,
        causal: true,
    };
    let steps = [
        ("pages", base()),
        (
            "rows",
            Step {
                page: None,
                table: true,
                ..base()
            },
        ),
        (
            "a lone sequence",
            Step {
                before: vec![700],
                ..base()
            },
        ),
        (
            "pieces apart",
            Step {
                before: vec![300, 130],
                heads: (2, 2),
                ..base()
            },
        ),
        (
            "plain",
            Step {
                rotary: None,
                dims: (128, 128),
                heads: (8, 1),
                ..base()
            },
        ),
        (
            "neighbours",
            Step {
                rotary: Some((RopePairing::Interleaved, 20)),
                dims: (128, 64),
                ..base()
            },
        ),
        // New tokens lie in two pieces; several tiles share them, and see only some.
        (
            "several",
            Step {
                seq: 8,
                before: vec![60, 121, 0, 64],
                heads: (8, 1),
                ..base()
            },
        ),
        (
            "many heads",
            Step {
                heads: (32, 1),
                dims: (128, 128),
                before: vec![63, 600, 0],
                page: Some(32),
                ..base()
            },
        ),
        (
            "many heads, pages of few",
            Step {
                heads: (20, 1),
                page: Some(8),
                ..base()
            },
        ),
        (
            "many rows",
            Step {
                seq: 3,
                heads: (20, 1),
                dims: (128, 128),
                before: vec![62, 573],
                page: None,
                rotary: Some((RopePairing::Interleaved, 64)),
                ..base()
            },
        ),
        (
            "no mask",
            Step {
                seq: 3,
                before: vec![62, 126],
                causal: false,
                page: None,
                ..base()
            },
        ),
        (
            "a window",
            Step {
                seq: 7,
                before: vec![59, 500],
                heads: (6, 1),
                window: Some(2),
                dims: (40, 40),
                rotary: Some((RopePairing::HalfSplit, 8)),
                ..base()
            },
        ),
    ];
    for device in common::devices().iter().filter(|device| device.tier() != Tier::Sm75) {
        for (name, step) in &steps {
            step.check::<bf16>(device, name);
            step.check::<f16>(device, name);
            if step.dims.0 <= 64 {
                step.check::<f32>(device, name);
            }
        }
        let wide = Step {
            dims: (256, 256),
            seq: 2,
            ..base()
        };
        wide.check::<f16>(device, "wide heads");
    }
}

/// What one launch cannot do is said, and done in three unless one was asked for.
#[test]
fn one_launch_takes_few_tokens() {
    let device = common::devices()
        .into_iter()
        .find(|device| device.tier() == Tier::Sm90a)
        .unwrap();
    let tensor = |shape: &[u64]| AnyTensor::zeros(&device, DType::F16, shape).unwrap();
    let lengths = Tensor::from_slice(&device, &[3i32], &[1]).unwrap();
    let (q, k, cache) = (
        tensor(&[1, 9, 2, 64]),
        tensor(&[1, 9, 2, 64]),
        [tensor(&[1, 32, 2, 64]), tensor(&[1, 32, 2, 64])],
    );
    let step = || decode(&q, CacheView::contiguous(&cache[0], &cache[1]), &lengths).append(&k, &k);
    let error = step().fused(true).run().unwrap_err().to_string();
    assert!(error.contains("one launch"), "{error}");
    step().run().unwrap();
}
