//! Plain attention, for which Hopper has kernels of their own, has the bits that the general kernels give it.

use ferroflash::{
    CacheView, DecodeOptions, Decoded, Device, Float, RopeAngles, RopeFrequencies, RopePairing, Tensor, Tier, bf16,
    decode, f16,
};
use host::{
    compare::same_bits,
    reference::data::{normal, permutation},
};

use crate::common;

/// A decode step of few sequences.
#[derive(Clone, Debug)]
struct Few {
    heads: (usize, usize),
    dim: usize,
    seq: usize,
    /// Tokens before the step.
    before: Vec<i32>,
    capacity: usize,
    page: Option<usize>,
    /// Rotated pairs, of a step that appends.
    append: Option<usize>,
    causal: bool,
}

impl Few {
    /// Out, LSE, keys and values behind the step: of all sequences' slots that hold no token, NaN before. A `window` of all
    /// tokens is none, but only the general kernels have windows.
    fn run<T: Float>(&self, device: &Device, window: Option<u32>) -> [Vec<u8>; 4] {
        let batch = self.before.len();
        let tensor =
            |values: &[T], shape: [usize; 4]| Tensor::from_slice(device, values, &shape.map(|n| n as u64)).unwrap();
        let random = |seed, shape: [usize; 4]| tensor(&normal(seed, shape.iter().product()), shape);
        let heads = self.heads.1 as u64;
        let q = random(1, [batch, self.seq, self.heads.0, self.dim]);
        // As a model has them: side by side.
        let new = random(2, [batch, self.seq, 2 * self.heads.1, self.dim]);
        let (k, v) = (new.slice(2, 0..heads).unwrap(), new.slice(2, heads..2 * heads).unwrap());
        let rows = self.page.unwrap_or(self.capacity);
        let columns = self.capacity / rows;
        let pages = match self.page {
            Some(_) => permutation(7, batch * columns),
            None => (0..batch).collect(),
        };
        let pool = |seed| {
            let (shape, row) = ([batch * columns, rows, self.heads.1, self.dim], self.heads.1 * self.dim);
            // A prime number of them, again and again.
            let some = normal::<T>(seed, 65_521);
            let mut values: Vec<T> = some.iter().copied().cycle().take(shape.iter().product()).collect();
            for (number, &page) in pages.iter().enumerate() {
                let tokens = self.before[number / columns].max(0) as usize;
                let filled = tokens.saturating_sub(number % columns * rows).min(rows);
                values[(page * rows + filled) * row..(page + 1) * rows * row].fill(T::from_f32(f32::NAN));
            }
            tensor(&values, shape)
        };
        let (k_cache, v_cache) = (pool(4), pool(5));
        let pages: Vec<i32> = pages.iter().map(|page| *page as i32).collect();
        let table = Tensor::from_slice(device, &pages, &[batch as u64, columns as u64]).unwrap();
        let lengths = Tensor::from_slice(device, &self.before, &[batch as u64]).unwrap();
        let view = match self.page {
            Some(_) => CacheView::paged(&k_cache, &v_cache, &table),
            None => CacheView::contiguous(&k_cache, &v_cache),
        };
        let inverse: Vec<f32> = (0..self.append.unwrap_or(0).max(4))
            .map(|i| 0.7f32.powi(i as i32))
            .collect();
        let frequencies = RopeFrequencies::new(device, &inverse, 1.25).unwrap();
        let mut options = DecodeOptions {
            causal: self.causal,
            window_left: window,
            ..DecodeOptions::default()
        };
        let mut step = decode(&q, view, &lengths);
        if let Some(pairs) = self.append {
            step = step.append(&k, &v);
            if pairs != 0 {
                options.rotary = Some((RopePairing::HalfSplit, RopeAngles::Frequencies(&frequencies)));
            }
        }
        let Decoded { out, lse } = step.options(options).run().unwrap();
        [&out, &lse, k_cache.any(), v_cache.any()].map(|tensor| tensor.to_bytes().unwrap())
    }

    fn check<T: Float>(&self, device: &Device) {
        let (own, general) = (self.run::<T>(device, None), self.run::<T>(device, Some(1 << 29)));
        for (what, (own, general)) in ["out", "lse", "keys", "values"].iter().zip(own.iter().zip(&general)) {
            same_bits(own, general).unwrap_or_else(|e| panic!("{self:?}, {} on {device}: {what}: {e}", T::DTYPE));
        }
    }
}

#[test]
fn few_sequences_have_the_bits_of_many() {
    let base = Few {
        heads: (12, 12),
        dim: 64,
        seq: 1,
        before: vec![191],
        capacity: 1024,
        page: Some(16),
        append: Some(0),
        causal: true,
    };
    let group = Few {
        heads: (8, 2),
        dim: 128,
        append: Some(64),
        ..base.clone()
    };
    let plain = Few {
        append: None,
        page: None,
        ..group.clone()
    };
    let mut cases = Vec::new();
    for before in [0, 1, 15, 16, 63, 64, 250, 256, 400, 1023, 1024, -3] {
        let before = vec![before];
        cases.push(Few { before, ..base.clone() });
    }
    for before in [0, 130, 447, 900] {
        let before = vec![before];
        cases.push(Few {
            before: before.clone(),
            ..group.clone()
        });
        cases.push(Few {
            before,
            ..plain.clone()
        });
    }
    cases.extend([
        // New tokens lie in two pieces.
        Few {
            seq: 4,
            before: vec![62, 127],
            heads: (4, 2),
            append: Some(20),
            page: Some(32),
            ..base.clone()
        },
        Few {
            seq: 8,
            before: vec![510, 3],
            heads: (2, 2),
            causal: false,
            ..base.clone()
        },
        Few {
            seq: 3,
            before: vec![1, 0, 2],
            append: None,
            heads: (4, 2),
            ..base.clone()
        },
        Few {
            before: vec![300, 5, 129],
            ..plain.clone()
        },
        // Pieces of more steps than a ring has stages.
        Few {
            before: vec![2500],
            capacity: 4096,
            heads: (8, 8),
            ..plain.clone()
        },
        // A block has two pieces, and new tokens are in the second.
        Few {
            before: vec![3000],
            capacity: 4096,
            heads: (4, 2),
            append: Some(32),
            ..base.clone()
        },
    ]);
    // More steps than pages are looked up at a time.
    let long = Few {
        before: vec![4999],
        capacity: 5120,
        heads: (128, 128),
        page: Some(256),
        ..base
    };
    for device in common::devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        for case in &cases {
            case.check::<bf16>(device);
        }
        group.check::<f16>(device);
        plain.check::<f16>(device);
        if !device.is_emulator() {
            long.check::<bf16>(device);
        }
    }
}

#[test]
fn many_sequences_have_the_bits_of_the_general_kernels() {
    let base = Few {
        heads: (8, 2),
        dim: 128,
        seq: 1,
        before: vec![1023, 300],
        capacity: 1024,
        page: None,
        append: None,
        causal: true,
    };
    let mut cases = Vec::new();
    // On the emulator's four multiprocessors: a tile for each, then parts of the line of pieces, more of them than tiles or fewer.
    for before in [
        vec![1023, 300],
        vec![0, 1024],
        vec![-3, 17],
        vec![700, 0, 1024],
        vec![1, 64, 65],
        vec![0, 0, 0],
        vec![16, 900, 1, 250, 1024, 0, 33],
    ] {
        for page in [None, Some(16), Some(64)] {
            cases.push(Few {
                before: before.clone(),
                page,
                ..base.clone()
            });
        }
    }
    cases.extend([
        Few {
            seq: 2,
            before: vec![513, 2],
            ..base.clone()
        },
        Few {
            seq: 4,
            heads: (4, 2),
            causal: false,
            before: vec![500, 777, 4],
            page: Some(32),
            ..base.clone()
        },
        Few {
            heads: (16, 2),
            before: vec![513, 2, 1024],
            ..base.clone()
        },
        Few {
            heads: (3, 3),
            before: vec![90, 1000, 600],
            ..base.clone()
        },
        // More steps than pages are looked up at a time, and pieces in two parts.
        Few {
            heads: (4, 1),
            before: vec![3000, 5, 4096],
            capacity: 40_960,
            page: Some(16),
            ..base.clone()
        },
    ]);
    // Parts begin anywhere: between tiles, between pieces, inside the last piece of a tile.
    for seed in 0..24 {
        let lengths = permutation(seed, 600);
        cases.push(Few {
            dim: [64, 128][seed as usize % 2],
            before: lengths[..3 + seed as usize % 5].iter().map(|n| *n as i32).collect(),
            page: [None, Some(16)][seed as usize / 2 % 2],
            ..base.clone()
        });
    }
    // Whole tiles that rotate and append: new tokens in one piece, in two, in the last slots.
    for seed in 0..16 {
        let lengths = permutation(100 + seed, 600);
        let seq = 1 + seed as usize % 2;
        let dim = [64, 128][seed as usize / 2 % 2];
        let full = 1024 - seq as i32;
        cases.push(Few {
            dim,
            seq,
            before: lengths[..2]
                .iter()
                .map(|n| *n as i32)
                .chain([[63, 511, 0, full][seed as usize / 4], full])
                .collect(),
            page: [None, Some(16), Some(64)][seed as usize % 3],
            append: Some([dim / 2, 0, 8][seed as usize / 3 % 3]),
            causal: seed % 5 != 0,
            ..base.clone()
        });
    }
    // As many on a GPU: a tile for each multiprocessor, and four.
    let large = [(16, 4112), (64, 1040)].map(|(batch, capacity)| Few {
        heads: (32, 8),
        before: (0..batch).map(|i| capacity - i * i % 1000).collect(),
        capacity: capacity as usize,
        page: Some(16),
        ..base.clone()
    });
    for device in common::devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        for case in &cases {
            case.check::<bf16>(device);
        }
        base.check::<f16>(device);
        if !device.is_emulator() {
            large.iter().for_each(|case| case.check::<bf16>(device));
        }
    }
}
