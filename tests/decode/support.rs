//! A problem over a cache: its data, the reference's answer, the device's.

use ferroflash::{CacheView, DecodeOptions, Decoded, Device, Float, PoolLayout, Tensor, Tier, bf16, decode, f16};
use host::reference::{
    Eager, Exact, Precision,
    attention::{AttentionOptions, AttentionShape, Causal},
    cache::{append, exchange_axes},
    data::normal,
    decode::{Cache, decode as reference},
    widen,
};

use crate::caches::{Place, assert_decoded};
use crate::common;

/// A problem: sequences of some lengths over a paged or contiguous cache.
#[derive(Clone, Debug)]
pub struct Case {
    pub heads: (usize, usize),
    pub seq_q: usize,
    pub dims: (usize, usize),
    pub lengths: Vec<usize>,
    /// Slots of a page, or nothing for a contiguous cache.
    pub page: Option<usize>,
    pub layout: PoolLayout,
    pub causal: bool,
    pub window: (Option<u32>, Option<u32>),
    pub softcap: Option<f32>,
    pub slopes: bool,
    pub sinks: bool,
    pub padding: Option<Vec<usize>>,
    pub rows: Option<Vec<usize>>,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            heads: (4, 2),
            seq_q: 1,
            dims: (64, 64),
            lengths: vec![5, 70, 0],
            page: Some(16),
            layout: PoolLayout::Nhd,
            causal: true,
            window: (None, None),
            softcap: None,
            slopes: false,
            sinks: false,
            padding: None,
            rows: None,
        }
    }
}

/// What a case amounts to on the CPU.
pub struct Data<T> {
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    pub place: Place,
    pub slopes: Vec<f32>,
    pub sinks: Vec<f32>,
}

impl Case {
    fn batch(&self) -> usize {
        self.lengths.len()
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            batch: self.batch(),
            heads_q: self.heads.0,
            heads_kv: self.heads.1,
            seq_q: self.seq_q,
            seq_kv: 0,
            head_dim: self.dims.0,
            value_dim: self.dims.1,
        }
    }

    /// Random tokens in shuffled pages; NaN in every slot that holds none.
    pub fn data<T: Float>(&self) -> Data<T> {
        let spare = if self.page.is_some() { 2 } else { 0 };
        let place = Place::new(&self.lengths, self.page, self.rows.clone(), spare);
        let (row_k, row_v) = (self.heads.1 * self.dims.0, self.heads.1 * self.dims.1);
        let nan = T::from_f32(f32::NAN);
        let mut k = vec![nan; place.pages * place.page * row_k];
        let mut v = vec![nan; place.pages * place.page * row_v];
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let slots: Vec<i64> = (0..length)
                .map(|token| place.layout().slot(sequence, token) as i64)
                .collect();
            append(&mut k, &normal(100 + sequence as u64, length * row_k), &slots, row_k);
            append(&mut v, &normal(200 + sequence as u64, length * row_v), &slots, row_v);
        }
        Data {
            q: (0..self.batch())
                .flat_map(|b| normal::<T>(300 + b as u64, self.seq_q * self.heads.0 * self.dims.0))
                .collect(),
            k,
            v,
            place,
            slopes: (0..self.heads.0).map(|head| 0.01 + 0.03 * head as f32).collect(),
            sinks: (0..self.heads.0).map(|head| head as f32 - 1.5).collect(),
        }
    }

    fn expected<T: Float, P: Precision>(&self, data: &Data<T>) -> host::reference::attention::Forward {
        let options = AttentionOptions {
            scale: None,
            causal: if self.causal { Causal::BottomRight } else { Causal::None },
            window_left: self.window.0,
            window_right: self.window.1,
            softcap: self.softcap.map(f64::from),
            alibi_slopes: self
                .slopes
                .then(|| data.slopes.iter().copied().map(f64::from).collect()),
            sinks: self.sinks.then(|| data.sinks.iter().copied().map(f64::from).collect()),
            dropout: None,
        };
        let cache = Cache {
            k: &widen(&data.k),
            v: &widen(&data.v),
            layout: data.place.layout(),
            lengths: &self.lengths,
            left_padding: self.padding.as_deref(),
        };
        reference::<P>(&self.shape(), &options, &widen(&data.q), &cache)
    }

    pub fn run<T: Float>(&self, device: &Device, data: &Data<T>) -> host::Result<Decoded> {
        let (heads, dims) = (self.heads, self.dims);
        let (page, pages, table) = (data.place.page, data.place.pages, &data.place.table);
        let tensor = |values: &[T], shape: [usize; 4]| Tensor::from_slice(device, values, &shape.map(|n| n as u64));
        let ints = |values: Vec<i32>, shape: &[u64]| Tensor::from_slice(device, &values, shape);
        let pool = |values: &[T], dim: usize| match self.layout {
            PoolLayout::Nhd => tensor(values, [pages, page, heads.1, dim]),
            PoolLayout::Hnd => tensor(
                &exchange_axes(values, (page, heads.1), dim),
                [pages, heads.1, page, dim],
            ),
        };
        let batch = self.batch() as u64;
        let q = tensor(&data.q, [self.batch(), self.seq_q, heads.0, dims.0])?;
        let (k, v) = (pool(&data.k, dims.0)?, pool(&data.v, dims.1)?);
        let table = ints(table.clone(), &[batch, table.len() as u64 / batch.max(1)])?;
        let lengths = ints(self.lengths.iter().map(|&n| n as i32).collect(), &[batch])?;
        let index = self
            .rows
            .as_ref()
            .map(|rows| ints(rows.iter().map(|&n| n as i32).collect(), &[batch]))
            .transpose()?;
        let padding = self
            .padding
            .as_ref()
            .map(|p| ints(p.iter().map(|&n| n as i32).collect(), &[batch]))
            .transpose()?;
        let floats = |values: &[f32]| Tensor::from_slice(device, values, &[values.len() as u64]);
        let (slopes, sinks) = (floats(&data.slopes)?, floats(&data.sinks)?);
        let mut view = match self.page {
            Some(_) => CacheView::paged(&k, &v, &table),
            None => CacheView::contiguous(&k, &v),
        }
        .layout(self.layout);
        if let Some(index) = &index {
            view = view.batch_index(index);
        }
        view.validate(&lengths, 0)?;
        let options = DecodeOptions {
            causal: self.causal,
            window_left: self.window.0,
            window_right: self.window.1,
            softcap: self.softcap,
            alibi_slopes: self.slopes.then_some(&slopes),
            sinks: self.sinks.then_some(&sinks),
            left_padding: padding.as_deref(),
            ..DecodeOptions::default()
        };
        decode(&q, view, &lengths).options(options).run()
    }

    fn check<T: Float>(&self, device: &Device) {
        let data = self.data::<T>();
        let result = self
            .run(device, &data)
            .unwrap_or_else(|error| panic!("{self:?} on {device}: {error}"));
        let (exact, eager) = (self.expected::<T, Exact>(&data), self.expected::<T, Eager<T>>(&data));
        assert_decoded::<T>(self, device, &result, &exact, &eager);
    }
}

pub fn on_every_device(check: impl Fn(&Device)) {
    common::devices().iter().for_each(check);
}

pub fn check_all(case: Case) {
    on_every_device(|device| {
        case.check::<f16>(device);
        case.check::<f32>(device);
        if device.tier() != Tier::Sm75 {
            case.check::<bf16>(device);
        }
    });
}
