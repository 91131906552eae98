//! Small results that are copied to the host while the device goes on working.

use std::fmt;

use crate::{AnyTensor, Device, Error, Event, Result};

/// A place in page-locked memory for the bytes of a tensor: [`start`](ReadBack::start) queues the copy and returns,
/// [`finish`](ReadBack::finish) waits for it and for nothing behind it.
///
/// ```no_run
/// # use host::{AnyTensor, Device, ReadBack, Result};
/// # fn step(device: &Device, token: &AnyTensor, next: impl Fn() -> Result<()>) -> Result<()> {
/// let mut read = ReadBack::new(device, 8)?;
/// read.start(token)?;
/// next()?; // queued behind the copy, and not waited for
/// let bytes = read.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct ReadBack {
    device: Device,
    memory: *mut u8,
    capacity: usize,
    /// Bytes of the copy that was started last.
    filled: usize,
    passed: Event,
}

// SAFETY: the memory belongs to this object alone.
unsafe impl Send for ReadBack {}

impl ReadBack {
    /// Room for `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Range`] for 0 bytes; what the driver says.
    pub fn new(device: &Device, bytes: usize) -> Result<ReadBack> {
        if bytes == 0 {
            return Err(Error::range("bytes", 0, "at least 1"));
        }
        let passed = device.guard(device.stream().record())?;
        let memory = device.guard(device.backend().allocate_pinned(bytes))?;
        Ok(ReadBack {
            device: device.clone(),
            memory,
            capacity: bytes,
            filled: 0,
            passed,
        })
    }

    /// Queues a copy of a dense tensor behind all earlier work of the main stream.
    ///
    /// # Errors
    /// [`Error::Layout`] for a tensor that is not dense, larger than the room, or while a graph is recorded;
    /// [`Error::WrongDevice`]; [`Error::Poisoned`].
    pub fn start(&mut self, tensor: &AnyTensor) -> Result<()> {
        let bytes = tensor.elements() * tensor.dtype().size();
        if !tensor.is_contiguous() || bytes > self.capacity as u64 {
            let allowed = format!(
                "a dense tensor of at most {} bytes is needed, not {bytes}",
                self.capacity
            );
            return Err(Error::layout("tensor", allowed));
        }
        if !tensor.device().same(&self.device) {
            return Err(Error::WrongDevice {
                argument: "tensor",
                device: tensor.device().to_string(),
                expected: self.device.to_string(),
            });
        }
        if self.device.inner().pool.is_capturing() {
            return Err(Error::layout(
                "graph",
                "copying to the host cannot be recorded in a graph",
            ));
        }
        self.device.check_health()?;
        self.filled = bytes as usize;
        if bytes == 0 {
            return Ok(());
        }
        let (backend, stream) = (self.device.backend(), self.device.stream());
        // SAFETY: a dense view lies inside its buffer, which the pool reuses only behind this copy; the memory is as large and
        // lives until the copy has passed: `drop` waits.
        let started = unsafe { backend.read_async(tensor.address(), self.memory, bytes as usize, stream.id()) };
        self.device.guard(started)?;
        self.device.guard(self.passed.record(stream))
    }

    /// Waits for the copy that was started last; its bytes, little-endian.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when a kernel before it faulted.
    pub fn finish(&mut self) -> Result<&[u8]> {
        self.device.guard(self.passed.synchronize())?;
        // SAFETY: as many bytes were written, and nothing writes them before the next `start`.
        Ok(unsafe { std::slice::from_raw_parts(self.memory, self.filled) })
    }
}

impl Drop for ReadBack {
    fn drop(&mut self) {
        // A failure is a latched fault: nothing writes any more.
        let _ = self.passed.synchronize();
        // SAFETY: the memory came from `allocate_pinned` with this size, and no copy into it is under way.
        unsafe { self.device.backend().free_pinned(self.memory, self.capacity) };
    }
}

impl fmt::Debug for ReadBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadBack({} bytes from {})", self.capacity, self.device)
    }
}
