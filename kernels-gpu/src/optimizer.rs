//! AdamW: one step over a dense parameter tensor, its gradient and its two f32 moments.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;

kernel_params! {
    /// Arguments of the `adamw_*` kernels.
    pub struct AdamWParams {
        /// Parameters, in the dtype of the gradient; out.
        pub parameters: u64,
        /// f32 copy of the parameters that is updated in their stead and rounded to them, or 0.
        pub master: u64,
        /// Gradient.
        pub gradient: u64,
        /// First moment, f32.
        pub first: u64,
        /// Second moment, f32.
        pub second: u64,
        /// Elements of each.
        pub len: u64,
        /// 1 − learning rate · weight decay.
        pub keep: f32,
        /// Learning rate.
        pub learning_rate: f32,
        /// β₁.
        pub beta1: f32,
        /// β₂.
        pub beta2: f32,
        /// 1 − β₁ᵗ.
        pub correction1: f32,
        /// 1 − β₂ᵗ.
        pub correction2: f32,
        /// ε.
        pub epsilon: f32,
        /// Factor of the gradient.
        pub grad_scale: f32,
        /// 1 − β₁, rounded once.
        pub rest1: f32,
        /// 1 − β₂, rounded once.
        pub rest2: f32,
        /// 1 when every tensor starts at a multiple of 16 bytes.
        pub aligned: u32,
        /// Zero.
        pub reserved: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::{AdamWParams, THREADS};
    use crate::row::{Row, WIDTH};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{kernel, math, thread};

    /// Eight elements from `at` as a row of their own.
    #[inline(always)]
    fn part<E: Element>(address: u64, at: u64, p: &AdamWParams) -> Row {
        let left = p.len - at;
        Row {
            address: address + at * size_of::<E>() as u64,
            columns: if left < WIDTH as u64 { left as u32 } else { WIDTH },
            aligned: p.aligned != 0,
        }
    }

    #[inline(always)]
    unsafe fn step<E: Element>(p: AdamWParams) {
        let mut at = thread::global_idx_x() * WIDTH as u64;
        while at < p.len {
            // SAFETY: the host gives the extents; each element is one thread's.
            unsafe {
                let (parameters, master) = (part::<E>(p.parameters, at, &p), part::<f32>(p.master, at, &p));
                let (first, second) = (part::<f32>(p.first, at, &p), part::<f32>(p.second, at, &p));
                let g = part::<E>(p.gradient, at, &p).load::<E>(0, 0.0);
                let (mut m, mut v) = (first.load_mut::<f32>(0, 0.0), second.load_mut::<f32>(0, 0.0));
                let mut w = if p.master != 0 {
                    master.load_mut::<f32>(0, 0.0)
                } else {
                    parameters.load_mut::<E>(0, 0.0)
                };
                let mut i = 0;
                while i < 8 {
                    let g = g[i] * p.grad_scale;
                    m[i] = math::fma(p.beta1, m[i], p.rest1 * g);
                    v[i] = math::fma(p.beta2, v[i], p.rest2 * (g * g));
                    let root = math::sqrt_rn(v[i] / p.correction2) + p.epsilon;
                    let direction = (m[i] / p.correction1) / root;
                    w[i] = math::fma(-p.learning_rate, direction, w[i] * p.keep);
                    i += 1;
                }
                first.store::<f32>(0, m);
                second.store::<f32>(0, v);
                if p.master != 0 {
                    master.store::<f32>(0, w);
                }
                parameters.store::<E>(0, w);
            }
            at += thread::grid_stride_x() * WIDTH as u64;
        }
    }

    macro_rules! steps {
        ($($name:ident $element:ty;)*) => {
            kernel! {$(
                /// One step.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say and do not overlap.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $name(params: AdamWParams) {
                    step::<$element>(params)
                }
            )*}
        };
    }

    steps! {
        adamw_f32 f32;
        adamw_f16 F16;
        adamw_bf16 Bf16;
    }
}
