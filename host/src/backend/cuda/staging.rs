//! Small copies from ordinary memory that do not wait for the stream: through page-locked memory of our own.

use std::sync::PoisonError;

use driver::calls;

use super::{
    CudaBackend,
    stream::{EventState, StreamState},
};
use crate::Result;

/// Largest copy that is staged, bytes.
pub(super) const SLOT_BYTES: usize = 64 << 10;
/// Copies that can be under way.
const SLOT_COUNT: usize = 16;
/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIME: u32 = 2;

/// Page-locked memory in slots, used in turn; each has an event that says when its last copy has been read.
pub(super) struct Staging {
    memory: *mut u8,
    passed: Vec<EventState>,
    next: usize,
}

// SAFETY: the memory belongs to this object alone, and is only touched under its mutex.
unsafe impl Send for Staging {}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: the memory came from `mem_host_alloc` and copies from it have ended: its backend waits before it goes.
        let _ = unsafe { calls::mem_free_host(self.memory.cast()) };
    }
}

impl CudaBackend {
    fn new_staging(&self) -> Result<Staging> {
        let memory = self.take_pinned(SLOT_BYTES * SLOT_COUNT)?;
        let mut staging = Staging {
            memory,
            passed: Vec::with_capacity(SLOT_COUNT),
            next: 0,
        };
        for _ in 0..SLOT_COUNT {
            staging.passed.push(self.event(WITHOUT_TIME)?);
        }
        Ok(staging)
    }

    /// Copies at most [`SLOT_BYTES`] in order in `stream`; `source` has been read when the call returns.
    ///
    /// # Safety
    /// - `target .. target + source.len()` lies in one live allocation; the context is current.
    pub(super) unsafe fn copy_staged(&self, target: u64, source: &[u8], stream: &StreamState) -> Result<()> {
        debug_assert!(source.len() <= SLOT_BYTES);
        let mut guard = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *guard {
            Some(staging) => staging,
            empty => empty.insert(self.new_staging()?),
        };
        let slot = staging.next;
        let event = staging.passed[slot].raw;
        // An event that was never recorded has passed.
        // SAFETY: the event is alive.
        self.check(unsafe { calls::event_synchronize(event) })?;
        staging.next = (slot + 1) % SLOT_COUNT;
        // SAFETY: the slot holds `SLOT_BYTES` bytes, nobody else has it while the lock is held, and the copy that last
        // read it has ended. The copy and its event are in order in `stream`.
        unsafe {
            let place = staging.memory.add(slot * SLOT_BYTES);
            place.copy_from_nonoverlapping(source.as_ptr(), source.len());
            self.check_on(
                stream,
                calls::memcpy_htod_async(target, place.cast(), source.len(), stream.raw),
            )?;
            self.check_on(stream, calls::event_record(event, stream.raw))
        }
    }
}
