//! Recorded launches.

use driver::{calls, handle};

use super::CudaBackend;
use crate::{
    Result,
    backend::{GraphId, StreamId},
};

/// `CU_STREAM_CAPTURE_MODE_RELAXED`: memory may be taken and modules loaded meanwhile, on any thread, and another thread
/// than the one that began may end it. Neither becomes part of the graph.
const RELAXED: u32 = 2;

/// A graph, ready to run.
pub(super) struct GraphState {
    raw: handle::GraphExec,
    context: handle::Context,
    last_kernels: Vec<String>,
}

impl GraphState {
    /// How a fault inside it is reported.
    pub(super) fn name(&self) -> String {
        match self.last_kernels.as_slice() {
            [] => "a CUDA graph".to_owned(),
            names => format!("a CUDA graph that ends with {}", names.join(", ")),
        }
    }
}

impl Drop for GraphState {
    fn drop(&mut self) {
        // SAFETY: the graph is this object's own and the context outlives it; the driver frees it after its last run.
        unsafe {
            let _ = calls::ctx_set_current(self.context);
            let _ = calls::graph_exec_destroy(self.raw);
        }
    }
}

impl CudaBackend {
    pub(super) fn start_recording(&self, stream: StreamId) -> Result<()> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        // SAFETY: the stream is alive and not the legacy default stream.
        self.check_on(&stream, unsafe { calls::stream_begin_capture(stream.raw, RELAXED) })
    }

    pub(super) fn finish_recording(&self, stream: StreamId) -> Result<GraphId> {
        self.bind()?;
        let stream = self.streams.get(stream.0)?;
        let mut graph = handle::Graph::NULL;
        // SAFETY: the stream is alive; writes one pointer to a live local.
        self.check_on(&stream, unsafe { calls::stream_end_capture(stream.raw, &mut graph) })?;
        let mut raw = handle::GraphExec::NULL;
        // SAFETY: the graph is alive; writes one pointer to a live local.
        let made = unsafe { calls::graph_instantiate_with_flags(&mut raw, graph, 0) };
        // SAFETY: what was instantiated does not refer to the recording any more.
        let _ = unsafe { calls::graph_destroy(graph) };
        self.check_on(&stream, made)?;
        let last_kernels = self.recent_on(&stream);
        Ok(GraphId(self.graphs.insert(GraphState {
            raw,
            context: self.raw_context(),
            last_kernels,
        })))
    }

    /// # Safety
    /// - All memory that its launches use is still alive.
    pub(super) unsafe fn start_graph(&self, graph: GraphId, stream: StreamId) -> Result<()> {
        self.bind()?;
        let (id, graph) = (graph.0, self.graphs.get(graph.0)?);
        let stream = self.streams.get(stream.0)?;
        stream.note_graph(id);
        // SAFETY: both are alive; the memory is by contract.
        self.check_on(&stream, unsafe { calls::graph_launch(graph.raw, stream.raw) })
    }
}
