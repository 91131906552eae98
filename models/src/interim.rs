//! CPU stand-ins (never merged).
use host::{AnyTensor, DType, Result};
use crate::session::{RopeInput, Step};
fn get(t: &AnyTensor) -> Vec<f32> {
    let b = t.to_bytes().unwrap();
    match t.dtype() {
        DType::F32 => b.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
        DType::BF16 => b.chunks(2).map(|x| half::bf16::from_le_bytes(x.try_into().unwrap()).to_f32()).collect(),
        DType::F16 => b.chunks(2).map(|x| half::f16::from_le_bytes(x.try_into().unwrap()).to_f32()).collect(),
        DType::I32 => b.chunks(4).map(|x| i32::from_le_bytes(x.try_into().unwrap()) as f32).collect(),
        _ => panic!(),
    }
}
fn bytes(v: &[f32], d: DType) -> Vec<u8> {
    match d {
        DType::F32 => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => v.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        DType::F16 => v.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        _ => panic!(),
    }
}
fn put(v: &[f32], like: &AnyTensor, shape: &[u64]) -> Result<AnyTensor> {
    AnyTensor::from_bytes(like.device(), like.dtype(), shape, &bytes(v, like.dtype()))
}
pub fn embedding(table: &AnyTensor, ids: &AnyTensor) -> Result<AnyTensor> {
    let (t, c) = (get(table), table.extent(1) as usize);
    let v: Vec<f32> = get(ids).iter().flat_map(|i| t[*i as usize * c..][..c].to_vec()).collect();
    put(&v, table, &[ids.elements(), c as u64])
}
pub fn add(a: &AnyTensor, b: &AnyTensor) -> Result<AnyTensor> {
    let v: Vec<f32> = get(a).iter().zip(get(b)).map(|(a, b)| a + b).collect();
    put(&v, a, a.shape())
}
pub struct N<'a> { x: &'a AnyTensor, w: Option<&'a AnyTensor>, b: Option<&'a AnyTensor>, eps: f32, layer: bool }
pub struct Normed { pub y: AnyTensor }
pub fn layer_norm(x: &AnyTensor) -> N<'_> { N { x, w: None, b: None, eps: 1e-5, layer: true } }
pub fn rms_norm(x: &AnyTensor) -> N<'_> { N { x, w: None, b: None, eps: 1e-5, layer: false } }
impl<'a> N<'a> {
    pub fn weight(mut self, w: &'a AnyTensor) -> Self { self.w = Some(w); self }
    pub fn bias(mut self, w: &'a AnyTensor) -> Self { self.b = Some(w); self }
    pub fn epsilon(mut self, e: f32) -> Self { self.eps = e; self }
    pub fn run(self) -> Result<Normed> {
        let n = self.x.extent(self.x.rank() - 1) as usize;
        let w = get(self.w.unwrap()); let b = self.b.map_or(vec![0.0; n], get);
        let v: Vec<f32> = get(self.x).chunks(n).flat_map(|r| {
            let mean = if self.layer { r.iter().sum::<f32>() / n as f32 } else { 0.0 };
            let var = r.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n as f32;
            let s = 1.0 / (var + self.eps).sqrt();
            r.iter().zip(&w).zip(&b).map(|((x, w), b)| (x - mean) * s * w + b).collect::<Vec<_>>()
        }).collect();
        Ok(Normed { y: put(&v, self.x, self.x.shape())? })
    }
}
pub fn rope_append(q: &AnyTensor, k: &AnyTensor, v: &AnyTensor, step: &Step, keys: &AnyTensor, values: &AnyTensor) -> Result<AnyTensor> {
    let d = q.extent(3) as usize;
    let pos = get(&step.positions);
    let turn = |t: &AnyTensor| -> Vec<f32> {
        let mut x = get(t);
        let h = t.extent(2) as usize;
        let Some(rope) = &step.rope else { return x };
        for (n, row) in x.chunks_mut(h * d).enumerate() {
            let (cos, sin): (Vec<f32>, Vec<f32>) = match rope {
                RopeInput::Frequencies { frequencies, factor } => get(frequencies).iter().map(|f| { let a = (pos[n] * f) as f64; (a.cos() as f32 * factor, a.sin() as f32 * factor) }).unzip(),
                RopeInput::Tables { cos, sin, rows } => { let p = cos.extent(1) as usize; let r = get(rows)[n] as usize; (get(cos)[r * p..][..p].to_vec(), get(sin)[r * p..][..p].to_vec()) }
            };
            let p = cos.len();
            for head in row.chunks_mut(d) { for i in 0..p { let (a, b) = (head[i], head[i + p]); head[i] = a * cos[i] - b * sin[i]; head[i + p] = b * cos[i] + a * sin[i]; } }
        }
        x
    };
    let (kr, vr) = (turn(k), get(v));
    let (table, lengths) = (get(&step.table), get(&step.lengths));
    let hk = k.extent(2) as usize;
    let page = keys.extent(1) as usize;
    for b in 0..step.batch as usize { for s in 0..step.seq as usize {
        let n = b * step.seq as usize + s;
        let t = lengths[b] as usize + s;
        let p = table[b * step.table.extent(1) as usize + t / page] as u64;
        for (src, dst) in [(&kr, keys), (&vr, values)] {
            dst.select(0, p)?.select(0, (t % page) as u64)?.write_bytes(&bytes(&src[n * hk * d..][..hk * d], dst.dtype()))?;
        }
    } }
    put(&turn(q), q, q.shape())
}
pub fn attend(q: &AnyTensor, step: &Step, keys: &AnyTensor, values: &AnyTensor, scale: f32, window: Option<usize>) -> Result<AnyTensor> {
    let (hq, d, hk) = (q.extent(2) as usize, q.extent(3) as usize, keys.extent(2) as usize);
    let (qs, ks, vs) = (get(q), get(keys), get(values));
    let (table, lengths, page) = (get(&step.table), get(&step.lengths), keys.extent(1) as usize);
    let mut out = Vec::new();
    for b in 0..step.batch as usize { for s in 0..step.seq as usize { for h in 0..hq {
        let i = lengths[b] as usize + s;
        let q = &qs[((b * step.seq as usize + s) * hq + h) * d..][..d];
        let first = window.map_or(0, |w| (i + 1).saturating_sub(w));
        let at = |t: usize| { let p = table[b * step.table.extent(1) as usize + t / page] as usize; ((p * page + t % page) * hk + h / (hq / hk)) * d };
        let sc: Vec<f32> = (first..=i).map(|t| scale * q.iter().zip(&ks[at(t)..][..d]).map(|(a, b)| a * b).sum::<f32>()).collect();
        let m = sc.iter().copied().fold(f32::MIN, f32::max);
        let p: Vec<f32> = sc.iter().map(|x| (x - m).exp()).collect();
        let sum: f32 = p.iter().sum();
        out.extend((0..d).map(|e| p.iter().zip(first..).map(|(p, t)| p * vs[at(t) + e]).sum::<f32>() / sum));
    } } }
    put(&out, q, q.shape())
}
pub fn argmax(x: &AnyTensor) -> Result<AnyTensor> { host::ops::reduce(x, host::ops::ReduceKind::Argmax, host::ops::ReduceAxis::Last) }
