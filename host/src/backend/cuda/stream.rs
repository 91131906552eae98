//! Streams and events.

use std::sync::atomic::{AtomicU64, Ordering};

use driver::{DriverError, calls, code, handle};

use super::CudaBackend;
use crate::{
    Result,
    backend::{EventId, StreamId},
};

/// `CU_STREAM_NON_BLOCKING`: no implicit order with the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// Launches of a stream that are remembered for the report of a fault.
const REMEMBERED: usize = 4;

/// A stream, and what was last started on it.
pub(super) struct StreamState {
    pub(super) raw: handle::Stream,
    context: handle::Context,
    started: AtomicU64,
    recent: [AtomicU64; REMEMBERED],
}

/// What a stream remembers of a launch: one more than the kernel's index, or a graph's identifier with this bit.
const GRAPH: u64 = 1 << 63;

impl StreamState {
    /// Notes that a kernel is about to start.
    #[inline]
    pub(super) fn note_kernel(&self, index: u64) {
        self.note(index + 1);
    }

    /// Notes that a graph is about to start.
    pub(super) fn note_graph(&self, id: u64) {
        self.note(id | GRAPH);
    }

    #[inline]
    fn note(&self, entry: u64) {
        let place = self.started.fetch_add(1, Ordering::Relaxed) as usize % REMEMBERED;
        self.recent[place].store(entry, Ordering::Relaxed);
    }
}

impl Drop for StreamState {
    fn drop(&mut self) {
        // SAFETY: the stream is this object's own and the context outlives it; the driver destroys it when its work is
        // done. A failure is an earlier kernel's fault, which is reported where its result is asked for.
        unsafe {
            let _ = calls::ctx_set_current(self.context);
            let _ = calls::stream_destroy(self.raw);
        }
    }
}

/// An event.
pub(super) struct EventState {
    pub(super) raw: handle::Event,
    context: handle::Context,
}

impl Drop for EventState {
    fn drop(&mut self) {
        // SAFETY: as for a stream.
        unsafe {
            let _ = calls::ctx_set_current(self.context);
            let _ = calls::event_destroy(self.raw);
        }
    }
}

impl CudaBackend {
    pub(super) fn raw_context(&self) -> handle::Context {
        handle::Context(self.context.as_raw().cast())
    }

    pub(super) fn new_stream(&self) -> Result<StreamId> {
        self.bind()?;
        let mut raw = handle::Stream::NULL;
        // SAFETY: writes one pointer to a live local; the context is current.
        self.check(unsafe { calls::stream_create(&mut raw, NON_BLOCKING) })?;
        Ok(StreamId(self.streams.insert(StreamState {
            raw,
            context: self.raw_context(),
            started: AtomicU64::new(0),
            recent: Default::default(),
        })))
    }

    pub(super) fn wait_for_stream(&self, stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        // SAFETY: the stream is alive.
        self.check_on(&stream, unsafe { calls::stream_synchronize(stream.raw) })
    }

    /// Names of what was last started on a stream, oldest first.
    pub(super) fn recent_on(&self, stream: &StreamState) -> Vec<String> {
        let started = stream.started.load(Ordering::Relaxed) as usize;
        let entries = (0..REMEMBERED).map(|step| stream.recent[(started + step) % REMEMBERED].load(Ordering::Relaxed));
        entries.filter_map(|entry| self.launch_name(entry)).collect()
    }

    fn launch_name(&self, entry: u64) -> Option<String> {
        if entry & GRAPH != 0 {
            let graph = self.graphs.get(entry & !GRAPH).ok();
            return Some(graph.map_or_else(|| "a CUDA graph since dropped".to_owned(), |graph| graph.name()));
        }
        let id = crate::backend::KernelId(entry.checked_sub(1)?);
        Some(self.kernel(id).ok()?.entry().to_owned())
    }

    pub(super) fn new_event(&self) -> Result<EventId> {
        self.bind()?;
        Ok(EventId(self.events.insert(self.event(0)?)))
    }

    /// An event of this device, with the flags of `cuEventCreate`; the context is current.
    pub(super) fn event(&self, flags: u32) -> Result<EventState> {
        let mut raw = handle::Event::NULL;
        // SAFETY: writes one pointer to a live local.
        self.check(unsafe { calls::event_create(&mut raw, flags) })?;
        Ok(EventState {
            raw,
            context: self.raw_context(),
        })
    }

    pub(super) fn record_event(&self, event: EventId, stream: StreamId) -> Result<()> {
        self.bind()?;
        let (event, stream) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        // SAFETY: both are alive and of this context.
        self.check_on(&stream, unsafe { calls::event_record(event.raw, stream.raw) })
    }

    pub(super) fn make_stream_wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.bind()?;
        let (event, stream) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        // SAFETY: both are alive and of this context.
        self.check_on(&stream, unsafe { calls::stream_wait_event(stream.raw, event.raw, 0) })
    }

    pub(super) fn has_passed(&self, event: EventId) -> Result<bool> {
        self.bind()?;
        let event = self.events.get(event.0)?;
        // SAFETY: the event is alive.
        match unsafe { calls::event_query(event.raw) } {
            Err(DriverError::Failed {
                code: code::NOT_READY, ..
            }) => Ok(false),
            other => self.check(other).map(|()| true),
        }
    }

    pub(super) fn wait_for_event(&self, event: EventId) -> Result<()> {
        self.bind()?;
        let event = self.events.get(event.0)?;
        // SAFETY: the event is alive.
        self.check(unsafe { calls::event_synchronize(event.raw) })
    }

    pub(super) fn time_between(&self, start: EventId, end: EventId) -> Result<f32> {
        self.bind()?;
        let (start, end) = (self.events.get(start.0)?, self.events.get(end.0)?);
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; writes one float to a live local.
        self.check(unsafe { calls::event_elapsed_time(&mut milliseconds, start.raw, end.raw) })?;
        Ok(milliseconds)
    }
}
