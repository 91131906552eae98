//! Whether two views share memory.

use std::sync::Arc;

use smallvec::SmallVec;

use super::AnyTensor;

impl AnyTensor {
    /// Whether two views share memory. Exact for views with up to some hundred ways to place one among the other's
    /// strides, as all views cut from one dense tensor have; beyond that it may say yes for a no.
    pub fn overlaps(&self, other: &AnyTensor) -> bool {
        if !Arc::ptr_eq(&self.buffer, &other.buffer) || self.elements() == 0 || other.elements() == 0 {
            return false;
        }
        let start = |tensor: &AnyTensor| i128::from(tensor.offset) * i128::from(tensor.dtype.size());
        meet(
            &common_axes(self, other),
            (self.dtype.size(), other.dtype.size()),
            start(other) - start(self),
            &mut 256,
        )
    }
}

/// A stride in bytes and how many steps along it each of two views takes at most.
struct CommonAxis {
    stride: i128,
    steps: [i128; 2],
}

/// The strides of both views, largest first; a view without a stride takes no step along it.
fn common_axes(first: &AnyTensor, second: &AnyTensor) -> SmallVec<[CommonAxis; 8]> {
    let mut axes: SmallVec<[CommonAxis; 8]> = SmallVec::new();
    for (view, tensor) in [first, second].into_iter().enumerate() {
        for (&stride, &extent) in tensor
            .strides
            .iter()
            .zip(&tensor.shape)
            .filter(|(_, extent)| **extent > 1)
        {
            let stride = i128::from(stride) * i128::from(tensor.dtype.size());
            let at = axes.iter().position(|axis| axis.stride <= stride).unwrap_or(axes.len());
            if axes.get(at).is_none_or(|axis| axis.stride != stride) {
                axes.insert(at, CommonAxis { stride, steps: [0; 2] });
            }
            axes[at].steps[view] += i128::from(extent) - 1;
        }
    }
    axes
}

/// Whether an element of the first view and one of the second, which starts `delta` bytes later, share a byte.
///
/// Along the largest stride the two elements are some number of steps apart; for each number that leaves the inner
/// parts within reach of each other, the question is the same one with an axis less. `budget` bounds the numbers
/// tried; when it is spent the answer is yes.
fn meet(axes: &[CommonAxis], sizes: (u64, u64), delta: i128, budget: &mut u32) -> bool {
    let reach = |view: usize, size: u64| {
        axes.iter().map(|axis| axis.stride * axis.steps[view]).sum::<i128>() + i128::from(size)
    };
    if delta >= reach(0, sizes.0) || -delta >= reach(1, sizes.1) {
        return false;
    }
    let Some((outer, inner)) = axes.split_first() else {
        return true;
    };
    if outer.stride == 0 {
        return true;
    }
    let inner_reach = |view: usize, size: u64| {
        inner.iter().map(|axis| axis.stride * axis.steps[view]).sum::<i128>() + i128::from(size)
    };
    // The inner parts are `delta - stride · apart` from each other, which must lie in (-second's, first's reach).
    let least = (delta - inner_reach(0, sizes.0)).div_euclid(outer.stride) + 1;
    let most = -(-delta - inner_reach(1, sizes.1)).div_euclid(outer.stride) - 1;
    (least.max(-outer.steps[1])..=most.min(outer.steps[0])).any(|apart| {
        if *budget == 0 {
            return true;
        }
        *budget -= 1;
        meet(inner, sizes, delta - outer.stride * apart, budget)
    })
}
