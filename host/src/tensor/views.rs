//! Views of a tensor: parts, other orders of axes, other shapes.

use std::ops::Range;

use smallvec::SmallVec;

use super::{AnyTensor, Dims, checked_elements, contiguous_strides};
use crate::{Error, Result};

impl AnyTensor {
    /// A part of one axis.
    ///
    /// # Errors
    /// [`Error::Range`] when the range leaves the axis.
    pub fn slice(&self, axis: usize, range: Range<u64>) -> Result<AnyTensor> {
        if axis >= self.rank() {
            return Err(Error::range("axis", axis, format!("below the rank {}", self.rank())));
        }
        if range.start > range.end || range.end > self.shape[axis] {
            return Err(Error::range(
                "range",
                format!("{range:?}"),
                format!("within 0..{}", self.shape[axis]),
            ));
        }
        let mut part = self.clone();
        part.shape[axis] = range.end - range.start;
        if part.elements() > 0 {
            part.offset += range.start * self.strides[axis];
        }
        Ok(part)
    }

    /// One index of an axis, which disappears.
    pub fn select(&self, axis: usize, index: u64) -> Result<AnyTensor> {
        let mut part = self.slice(axis, index..index.saturating_add(1))?;
        part.shape.remove(axis);
        part.strides.remove(axis);
        Ok(part)
    }

    /// Axes in another order.
    ///
    /// # Errors
    /// [`Error::Range`] when `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Result<AnyTensor> {
        let mut sorted: SmallVec<[usize; 5]> = order.into();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.rank()) {
            return Err(Error::range(
                "order",
                format!("{order:?}"),
                format!("a permutation of 0..{}", self.rank()),
            ));
        }
        let mut view = self.clone();
        view.shape = order.iter().map(|&axis| self.shape[axis]).collect();
        view.strides = order.iter().map(|&axis| self.strides[axis]).collect();
        Ok(view)
    }

    /// Two axes exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Result<AnyTensor> {
        let mut order: SmallVec<[usize; 5]> = (0..self.rank()).collect();
        if a >= order.len() || b >= order.len() {
            return Err(Error::range(
                "axis",
                a.max(b),
                format!("below the rank {}", self.rank()),
            ));
        }
        order.swap(a, b);
        self.permute(&order)
    }

    /// The same elements in another shape, without a copy.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements differs, [`Error::Layout`] when strides do not allow it.
    pub fn reshape(&self, shape: &[u64]) -> Result<AnyTensor> {
        if checked_elements("shape", shape)? != self.elements() {
            return Err(Error::shape(
                "shape",
                shape,
                format!("{} elements are needed", self.elements()),
            ));
        }
        let strides = reshape_strides(&self.shape, &self.strides, shape).ok_or_else(|| {
            Error::layout(
                "reshape",
                format!("{self:?} cannot be viewed as {shape:?} without a copy"),
            )
        })?;
        let mut view = self.clone();
        view.shape = shape.into();
        view.strides = strides;
        Ok(view)
    }
}

/// Strides that view `(shape, strides)` as `target`, if there are any.
fn reshape_strides(shape: &[u64], strides: &[u64], target: &[u64]) -> Option<Dims> {
    if shape.contains(&0) {
        return Some(contiguous_strides(target));
    }
    // Runs of axes that are dense among themselves: (elements, innermost stride).
    let mut runs: SmallVec<[(u64, u64); 5]> = SmallVec::new();
    for (&extent, &stride) in shape.iter().zip(strides).filter(|(extent, _)| **extent != 1) {
        match runs.last_mut() {
            Some((elements, innermost)) if *innermost == extent * stride => {
                *elements *= extent;
                *innermost = stride;
            }
            _ => runs.push((extent, stride)),
        }
    }
    let mut result: Dims = target.iter().map(|_| 1).collect();
    let mut run = runs.len();
    let (mut left, mut stride) = (1, 1);
    for axis in (0..target.len()).rev() {
        if target[axis] == 1 {
            result[axis] = stride;
            continue;
        }
        if left == 1 {
            run = run.checked_sub(1)?;
            (left, stride) = runs[run];
        }
        if left % target[axis] != 0 {
            return None;
        }
        result[axis] = stride;
        stride *= target[axis];
        left /= target[axis];
    }
    (left == 1 && run == 0).then_some(result)
}
