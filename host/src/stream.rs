//! Streams and events.

use std::{fmt, sync::Arc};

use crate::{
    Result,
    backend::{Backend, EventId, StreamId},
};

/// A queue of work that runs in order. Clones are the same stream; the last one destroys it.
#[derive(Clone)]
pub struct Stream {
    inner: Arc<StreamInner>,
}

struct StreamInner {
    backend: Arc<dyn Backend>,
    id: StreamId,
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        self.backend.destroy_stream(self.id);
    }
}

impl Stream {
    pub(crate) fn create(backend: &Arc<dyn Backend>) -> Result<Stream> {
        let id = backend.create_stream()?;
        Ok(Stream {
            inner: Arc::new(StreamInner {
                backend: backend.clone(),
                id,
            }),
        })
    }

    /// The backend's name of it.
    pub fn id(&self) -> StreamId {
        self.inner.id
    }

    /// Later work of this stream waits for `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.inner.backend.wait(self.id(), event.id)
    }

    /// Marks the present end of this stream.
    pub fn record(&self) -> Result<Event> {
        let event = Event {
            backend: self.inner.backend.clone(),
            id: self.inner.backend.create_event()?,
        };
        event.backend.record(event.id, self.id())?;
        Ok(event)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.inner.id.0)
    }
}

/// A point in a stream.
pub struct Event {
    backend: Arc<dyn Backend>,
    id: EventId,
}

impl Event {
    /// Whether the stream has passed it.
    pub fn is_done(&self) -> Result<bool> {
        self.backend.query(self.id)
    }

    /// Waits until the stream has passed it.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize_event(self.id)
    }

    /// Milliseconds from `earlier` to this event; both must have been passed.
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f32> {
        self.backend.elapsed_ms(earlier.id, self.id)
    }

    /// Marks the present end of `stream` again.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.backend.record(self.id, stream.id())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.backend.destroy_event(self.id);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({})", self.id.0)
    }
}
