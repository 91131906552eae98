//! Memory and copies.

use driver::calls;

use super::{CudaBackend, staging, stream::StreamState};
use crate::{
    Error, Result,
    backend::{MemoryInfo, StreamId},
};

impl CudaBackend {
    pub(super) fn memory_info(&self) -> Result<MemoryInfo> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two words to live locals; the context is current.
        self.check(unsafe { calls::mem_get_info(&mut free, &mut total) })?;
        Ok(MemoryInfo {
            free: free as u64,
            total: total as u64,
        })
    }

    pub(super) fn take_memory(&self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Err(Error::range("bytes", bytes, "at least 1"));
        }
        self.bind()?;
        let mut address = 0;
        // SAFETY: writes one word to a live local; the context is current.
        self.check_memory(bytes, unsafe { calls::mem_alloc(&mut address, bytes as usize) })?;
        Ok(address)
    }

    /// # Safety
    /// - As `Backend::free`.
    pub(super) unsafe fn free_memory(&self, address: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        self.check(unsafe { calls::mem_free(address) })
    }

    pub(super) fn take_pinned(&self, bytes: usize) -> Result<*mut u8> {
        if bytes == 0 {
            return Err(Error::range("bytes", bytes, "at least 1"));
        }
        self.bind()?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: writes one pointer to a live local; the context is current.
        self.check(unsafe { calls::mem_host_alloc(&mut pointer, bytes, 0) })?;
        Ok(pointer.cast())
    }

    /// # Safety
    /// - As `Backend::free_pinned`.
    pub(super) unsafe fn give_pinned(&self, pointer: *mut u8) {
        // A failure is an earlier kernel's fault, which is reported where its result is asked for.
        if self.bind().is_ok() {
            // SAFETY: by contract.
            let _ = unsafe { calls::mem_free_host(pointer.cast()) };
        }
    }

    /// # Safety
    /// - As `Backend::write`.
    pub(super) unsafe fn copy_from_host(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        self.refuse_capture(&stream, "a copy from ordinary host memory")?;
        if source.len() <= staging::SLOT_BYTES {
            // SAFETY: by contract.
            return unsafe { self.copy_staged(target, source, &stream) };
        }
        // SAFETY: by contract; the wait below ends all reads of `source`. The driver alone does not promise that: it
        // may read page-locked memory, and on some systems any memory, after the call has returned.
        unsafe {
            self.check_on(
                &stream,
                calls::memcpy_htod_async(target, source.as_ptr().cast(), source.len(), stream.raw),
            )?;
            self.check_on(&stream, calls::stream_synchronize(stream.raw))
        }
    }

    /// # Safety
    /// - As `Backend::read`.
    pub(super) unsafe fn copy_to_host(&self, source: u64, target: &mut [u8], stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        self.refuse_capture(&stream, "a copy to ordinary host memory")?;
        // SAFETY: by contract; the wait ends all writes to `target`. An empty copy only waits.
        unsafe {
            if !target.is_empty() {
                let pointer = target.as_mut_ptr().cast();
                self.check_on(
                    &stream,
                    calls::memcpy_dtoh_async(pointer, source, target.len(), stream.raw),
                )?;
            }
            self.check_on(&stream, calls::stream_synchronize(stream.raw))
        }
    }

    /// # Safety
    /// - As `Backend::write_async`.
    pub(super) unsafe fn start_copy_from_host(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        if source.is_empty() {
            return Ok(());
        }
        let pointer = source.as_ptr().cast();
        // SAFETY: by contract.
        self.check_on(&stream, unsafe {
            calls::memcpy_htod_async(target, pointer, source.len(), stream.raw)
        })
    }

    /// # Safety
    /// - As `Backend::read_async`.
    pub(super) unsafe fn start_copy_to_host(
        &self,
        source: u64,
        target: *mut u8,
        bytes: usize,
        stream: StreamId,
    ) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: by contract.
        self.check_on(&stream, unsafe {
            calls::memcpy_dtoh_async(target.cast(), source, bytes, stream.raw)
        })
    }

    /// # Safety
    /// - As `Backend::copy`.
    pub(super) unsafe fn copy_on_device(&self, target: u64, source: u64, bytes: u64, stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: by contract.
        self.check_on(&stream, unsafe {
            calls::memcpy_dtod_async(target, source, bytes as usize, stream.raw)
        })
    }

    /// # Safety
    /// - As `Backend::fill`.
    pub(super) unsafe fn fill_bytes(&self, target: u64, value: u8, bytes: u64, stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: by contract.
        self.check_on(&stream, unsafe {
            calls::memset_d8_async(target, value, bytes as usize, stream.raw)
        })
    }

    /// Waiting in a stream that is being captured would end the capture; a graph would read the memory at each run.
    fn refuse_capture(&self, stream: &StreamState, what: &str) -> Result<()> {
        let mut status = 0;
        // SAFETY: the stream is alive; writes one int to a live local.
        self.check_on(stream, unsafe { calls::stream_is_capturing(stream.raw, &mut status) })?;
        match status {
            0 => Ok(()),
            _ => Err(Error::unsupported(format!(
                "{what} while the stream is recorded into a graph (page-locked memory and the async forms are)"
            ))),
        }
    }
}
