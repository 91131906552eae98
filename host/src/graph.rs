//! CUDA graphs: a sequence of launches recorded once and started as one.

use std::fmt;

use crate::{Device, Result, backend::GraphId, memory::CapturedMemory};

/// A recorded sequence of launches. It keeps all memory that they use alive.
pub struct Graph {
    device: Device,
    id: GraphId,
    _memory: CapturedMemory,
}

impl Device {
    /// Records what `work` launches on the main stream instead of running it.
    ///
    /// Kernels must have been loaded before (run `work` once), and `work` must not copy between host and device:
    /// both are errors while recording. Tensors made inside keep their addresses for the life of the graph.
    ///
    /// # Errors
    /// What `work` returns, or the driver's refusal; the stream is usable again either way.
    pub fn capture<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        self.check_health()?;
        let inner = self.inner();
        inner.pool.begin_capture()?;
        let started = inner.backend.begin_capture(self.stream().id());
        if let Err(error) = started {
            drop(inner.pool.end_capture());
            return self.guard(Err(error));
        }
        // Ends the recording on every way out, a panic of `work` included.
        let recording = Recording {
            device: self,
            ended: false,
        };
        let value = work()?;
        let graph = recording.end()?;
        Ok((graph, value))
    }
}

/// A capture that is running.
struct Recording<'a> {
    device: &'a Device,
    ended: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Graph> {
        self.ended = true;
        let inner = self.device.inner();
        let id = inner.backend.end_capture(self.device.stream().id());
        let memory = inner.pool.end_capture();
        Ok(Graph {
            id: self.device.guard(id)?,
            device: self.device.clone(),
            _memory: memory,
        })
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let inner = self.device.inner();
        if let Ok(id) = inner.backend.end_capture(self.device.stream().id()) {
            inner.backend.destroy_graph(id);
        }
        drop(inner.pool.end_capture());
    }
}

impl Graph {
    /// Starts all recorded launches on the main stream.
    ///
    /// # Errors
    /// [`crate::Error::Poisoned`] when a kernel faulted before.
    pub fn launch(&self) -> Result<()> {
        let inner = self.device.inner();
        // SAFETY: the graph holds every buffer its launches use.
        self.device
            .guard(unsafe { inner.backend.launch_graph(self.id, self.device.stream().id()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Replays may still be running; their memory returns to the pool in stream order after them.
        self.device.inner().backend.destroy_graph(self.id);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} on {})", self.id.0, self.device)
    }
}
