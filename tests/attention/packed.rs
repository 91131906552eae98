//! A packed batch: its data, its bounds, and NaN in the tokens of no sequence.

use host::ops::{AttentionCall, Layout, attention};
use host::reference::attention::{AttentionOptions, AttentionShape};
use host::reference::{data::normal, widen};
use host::{Device, Float, Tensor};

use crate::support::{op_options, shape};

/// Head dim.
pub const DIM: usize = 24;
/// Tokens behind the last sequence.
const DEAD: usize = 3;

/// Sequences of 4 query heads and 2 key heads, one behind the other.
pub struct Packed<T: Float> {
    pub shape: AttentionShape,
    pub options: AttentionOptions,
    /// Q, K and V, without the tokens of no sequence.
    pub data: [Vec<T>; 3],
    /// Bounds of queries, and of keys.
    pub cu: [Vec<usize>; 2],
    tensors: [Tensor<T>; 3],
    bounds: [Tensor<i32>; 2],
    longest: [u64; 2],
}

impl<T: Float> Packed<T> {
    /// Sequences of so many queries and keys.
    pub fn new(device: &Device, lengths: &[(usize, usize)], options: AttentionOptions) -> Self {
        let sides = [|l: &(usize, usize)| l.0, |l: &(usize, usize)| l.1];
        let cu = sides.map(|side| {
            let mut cu = vec![0];
            for length in lengths {
                cu.push(cu[cu.len() - 1] + side(length));
            }
            cu
        });
        let [total_q, total_k] = [cu[0][lengths.len()], cu[1][lengths.len()]];
        let data = [(20, total_q, 4), (21, total_k, 2), (22, total_k, 2)]
            .map(|(seed, tokens, heads)| normal::<T>(seed, tokens * heads * DIM));
        Self {
            shape: AttentionShape {
                batch: lengths.len(),
                ..shape(1, (4, 2), (total_q, total_k), DIM)
            },
            options,
            tensors: [(0, 4), (1, 2), (2, 2)].map(|(which, heads)| upload(device, &data[which], heads)),
            bounds: [0, 1].map(|side| {
                let cu: Vec<i32> = cu[side].iter().map(|&bound| bound as i32).collect();
                Tensor::from_slice(device, &cu, &[cu.len() as u64]).unwrap()
            }),
            longest: sides.map(|side| lengths.iter().map(side).max().unwrap_or(0) as u64),
            data,
            cu,
        }
    }

    /// The call of the op.
    pub fn call(&self, device: &Device) -> AttentionCall<'_> {
        let [q, k, v] = &self.tensors;
        let [cu_q, cu_k] = &self.bounds;
        attention(q, k, v)
            .options(op_options(device, &self.options, &self.shape, Layout::Bshd))
            .cu_seqlens(cu_q, cu_k, self.longest[0], self.longest[1])
    }

    /// Q, K and V in f64.
    pub fn wide(&self) -> [Vec<f64>; 3] {
        [0, 1, 2].map(|which| widen(&self.data[which]))
    }
}

/// Tokens of `heads` heads, and NaN in those of no sequence.
pub fn upload<T: Float>(device: &Device, data: &[T], heads: usize) -> Tensor<T> {
    let mut all = data.to_vec();
    all.resize(data.len() + DEAD * heads * DIM, T::from_f32(f32::NAN));
    let tokens = all.len() / (heads * DIM);
    Tensor::from_slice(device, &all, &[tokens as u64, heads as u64, DIM as u64]).unwrap()
}
