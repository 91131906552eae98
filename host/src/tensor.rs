//! Tensors: strided views of device memory.
//!
//! [`AnyTensor`] knows its dtype at run time, [`Tensor`] at compile time; ops take either. A clone or a slice is
//! another view of the same memory. Strides count elements; any view whose strides keep elements apart is allowed, so
//! `BSHD` and `BHSD`, packed QKV and transposed weights need no copies.

mod overlap;
mod views;

use std::{fmt, marker::PhantomData, ops::Deref, ops::Range, sync::Arc};

use smallvec::SmallVec;

use crate::{DType, Device, Element, Error, Float, Result, memory::Buffer};

/// Extents or strides: up to five without an allocation.
pub type Dims = SmallVec<[u64; 5]>;

/// A strided view of device memory with a dtype known at run time.
#[derive(Clone)]
pub struct AnyTensor {
    device: Device,
    buffer: Arc<Buffer>,
    offset: u64,
    dtype: DType,
    shape: Dims,
    strides: Dims,
}

/// A strided view of device memory with elements `T`.
#[derive(Clone)]
pub struct Tensor<T> {
    any: AnyTensor,
    element: PhantomData<T>,
}

/// Strides of a dense tensor, last axis fastest.
pub fn contiguous_strides(shape: &[u64]) -> Dims {
    let mut strides: Dims = shape.iter().map(|_| 1).collect();
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

/// Number of elements of a shape.
///
/// # Errors
/// [`Error::Shape`] when it does not fit 63 bits.
pub fn checked_elements(argument: &'static str, shape: &[u64]) -> Result<u64> {
    let nonzero = shape
        .iter()
        .filter(|&&extent| extent > 0)
        .try_fold(1u64, |total, &extent| total.checked_mul(extent));
    match nonzero.filter(|&total| total <= i64::MAX as u64 / 8) {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(total) => Ok(total),
        None => Err(Error::shape(argument, shape, "the number of bytes must fit 63 bits")),
    }
}

impl AnyTensor {
    /// A dense tensor with undefined content.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Shape`].
    pub fn empty(device: &Device, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
        let elements = checked_elements("shape", shape)?;
        let buffer = device.guard(device.inner().pool.buffer(elements * dtype.size()))?;
        Ok(AnyTensor {
            device: device.clone(),
            buffer,
            offset: 0,
            dtype,
            shape: shape.into(),
            strides: contiguous_strides(shape),
        })
    }

    /// A dense tensor of zeros.
    pub fn zeros(device: &Device, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
        let tensor = AnyTensor::empty(device, dtype, shape)?;
        tensor.fill_bytes(0)?;
        Ok(tensor)
    }

    /// A dense tensor with this content, little-endian bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] when `bytes` does not have the size that dtype and shape say.
    pub fn from_bytes(device: &Device, dtype: DType, shape: &[u64], bytes: &[u8]) -> Result<AnyTensor> {
        let wanted = checked_elements("shape", shape)? * dtype.size();
        if bytes.len() as u64 != wanted {
            return Err(Error::shape(
                "data",
                shape,
                format!("{} bytes were given, {wanted} are needed", bytes.len()),
            ));
        }
        let tensor = AnyTensor::empty(device, dtype, shape)?;
        tensor.write_bytes(bytes)?;
        Ok(tensor)
    }

    /// Overwrites a dense tensor with little-endian bytes.
    pub fn write_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.device.check_health()?;
        let wanted = self.elements() * self.dtype.size();
        if !self.is_contiguous() || bytes.len() as u64 != wanted {
            return Err(Error::layout(
                "data",
                format!("{} bytes for a dense tensor of {wanted}", bytes.len()),
            ));
        }
        self.refuse_capture("copying from the host")?;
        if bytes.is_empty() {
            return Ok(());
        }
        let backend = self.device.backend();
        // SAFETY: a dense view of `wanted` bytes lies inside its buffer.
        self.device
            .guard(unsafe { backend.write(self.address(), bytes, self.device.stream().id()) })
    }

    /// Sets every byte of a dense tensor.
    pub fn fill_bytes(&self, value: u8) -> Result<()> {
        self.fill_bytes_on(value, None)
    }

    /// The same in a stream; `None` is the main one.
    pub(crate) fn fill_bytes_on(&self, value: u8, stream: Option<&crate::Stream>) -> Result<()> {
        if !self.is_contiguous() {
            return Err(Error::layout("fill", "the tensor must be dense"));
        }
        let bytes = self.elements() * self.dtype.size();
        if bytes == 0 {
            return Ok(());
        }
        self.device.check_health()?;
        // A fill that a graph replays must find the memory still its own.
        self.device.inner().pool.keep_for_capture([&self.buffer]);
        let backend = self.device.backend();
        let stream = stream.unwrap_or(self.device.stream()).id();
        // SAFETY: a dense view lies inside its buffer.
        self.device
            .guard(unsafe { backend.fill(self.address(), value, bytes, stream) })
    }

    /// Content in logical order, dense, little-endian, after all earlier work of the main stream.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.refuse_capture("copying to the host")?;
        self.device.check_health()?;
        if self.elements() == 0 {
            return Ok(Vec::new());
        }
        let size = self.dtype.size() as usize;
        let mut span = vec![0u8; self.span() as usize * size];
        let backend = self.device.backend();
        // SAFETY: the span of a view lies inside its buffer.
        let read = unsafe { backend.read(self.address(), &mut span, self.device.stream().id()) };
        self.device.guard(read)?;
        if self.is_contiguous() {
            return Ok(span);
        }
        let mut dense = Vec::with_capacity(self.elements() as usize * size);
        let mut index: Dims = self.shape.iter().map(|_| 0).collect();
        loop {
            let at = index
                .iter()
                .zip(&self.strides)
                .map(|(i, stride)| i * stride)
                .sum::<u64>() as usize
                * size;
            dense.extend_from_slice(&span[at..at + size]);
            let Some(axis) = (0..index.len()).rev().find(|&axis| index[axis] + 1 < self.shape[axis]) else {
                return Ok(dense);
            };
            index[axis] += 1;
            index[axis + 1..].fill(0);
        }
    }

    fn refuse_capture(&self, what: &str) -> Result<()> {
        if self.device.inner().pool.is_capturing() {
            return Err(Error::layout("graph", format!("{what} cannot be recorded in a graph")));
        }
        Ok(())
    }

    /// The same memory with a static element type.
    ///
    /// # Errors
    /// [`Error::Dtype`] when it is another one.
    pub fn typed<T: Element>(&self, argument: &'static str) -> Result<Tensor<T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::Dtype {
                argument,
                dtype: self.dtype,
                allowed: format!("expected {}", T::DTYPE),
            });
        }
        Ok(Tensor {
            any: self.clone(),
            element: PhantomData,
        })
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Strides, in elements.
    pub fn strides(&self) -> &[u64] {
        &self.strides
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Extent of an axis; axes beyond the rank have extent 1.
    pub fn extent(&self, axis: usize) -> u64 {
        self.shape.get(axis).copied().unwrap_or(1)
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Device address of the first element; 0 for an empty tensor.
    pub fn address(&self) -> u64 {
        if self.buffer.bytes() == 0 {
            0
        } else {
            self.buffer.address() + self.offset * self.dtype.size()
        }
    }

    /// Elements from the first to the last, gaps included.
    pub fn span(&self) -> u64 {
        if self.elements() == 0 {
            return 0;
        }
        1 + self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(extent, stride)| (extent - 1) * stride)
            .sum::<u64>()
    }

    /// Whether elements follow one another in logical order.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.elements() == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
                let fits = extent == 1 || stride == expected;
                expected *= extent;
                fits
            })
    }

    /// Whether every row start (all axes but the last) is a multiple of `bytes` and the last axis is dense.
    pub fn rows_aligned_to(&self, bytes: u64) -> bool {
        let Some((&last, outer)) = self.strides.split_last() else {
            return true;
        };
        let size = self.dtype.size();
        (last == 1 || self.extent(self.rank() - 1) <= 1)
            && self.address().is_multiple_of(bytes)
            && outer
                .iter()
                .zip(&self.shape)
                .all(|(stride, &extent)| extent <= 1 || (stride * size).is_multiple_of(bytes))
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }
}

impl<T: Element> Tensor<T> {
    /// A dense tensor with this content.
    ///
    /// # Errors
    /// [`Error::Shape`] when `data` has another number of elements than `shape`.
    pub fn from_slice(device: &Device, data: &[T], shape: &[u64]) -> Result<Tensor<T>> {
        AnyTensor::from_bytes(device, T::DTYPE, shape, bytemuck::cast_slice(data))?.typed("data")
    }

    /// A dense tensor with undefined content.
    pub fn empty(device: &Device, shape: &[u64]) -> Result<Tensor<T>> {
        AnyTensor::empty(device, T::DTYPE, shape)?.typed("shape")
    }

    /// A dense tensor of zeros.
    pub fn zeros(device: &Device, shape: &[u64]) -> Result<Tensor<T>> {
        AnyTensor::zeros(device, T::DTYPE, shape)?.typed("shape")
    }

    /// Content in logical order, after all earlier work of the main stream.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.any.to_bytes()?))
    }

    /// Overwrites a dense tensor.
    pub fn copy_from_slice(&self, data: &[T]) -> Result<()> {
        self.any.write_bytes(bytemuck::cast_slice(data))
    }

    /// The view without its static type.
    pub fn any(&self) -> &AnyTensor {
        &self.any
    }

    /// As [`AnyTensor::slice`].
    pub fn slice(&self, axis: usize, range: Range<u64>) -> Result<Tensor<T>> {
        self.any.slice(axis, range)?.typed("view")
    }

    /// As [`AnyTensor::select`].
    pub fn select(&self, axis: usize, index: u64) -> Result<Tensor<T>> {
        self.any.select(axis, index)?.typed("view")
    }

    /// As [`AnyTensor::permute`].
    pub fn permute(&self, order: &[usize]) -> Result<Tensor<T>> {
        self.any.permute(order)?.typed("view")
    }

    /// As [`AnyTensor::transpose`].
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor<T>> {
        self.any.transpose(a, b)?.typed("view")
    }

    /// As [`AnyTensor::reshape`].
    pub fn reshape(&self, shape: &[u64]) -> Result<Tensor<T>> {
        self.any.reshape(shape)?.typed("view")
    }
}

impl<T: Float> Tensor<T> {
    /// A dense tensor with this content, each value rounded once to `T`.
    pub fn from_f64(device: &Device, data: &[f64], shape: &[u64]) -> Result<Tensor<T>> {
        let rounded: Vec<T> = data.iter().map(|&value| T::from_f64(value)).collect();
        Tensor::from_slice(device, &rounded, shape)
    }

    /// Content in logical order, widened exactly.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(self.to_vec()?.into_iter().map(Float::to_f64).collect())
    }
}

impl<T> Deref for Tensor<T> {
    type Target = AnyTensor;

    fn deref(&self) -> &AnyTensor {
        &self.any
    }
}

impl fmt::Debug for AnyTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape.as_slice())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides.as_slice())?;
        }
        write!(f, " on {}", self.device.kind())
    }
}

impl<T> fmt::Debug for Tensor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any.fmt(f)
    }
}
