//! Device memory: a pool of buffers reused in stream order, and the buffers that tensors share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    Error, Result,
    backend::{Backend, StreamId},
    stream::Stream,
};

/// Memory handed out is rounded up to these steps so that freed blocks fit later requests.
const SMALL_STEP: u64 = 512;
const LARGE_STEP: u64 = 2 << 20;
const LARGE_FROM: u64 = 1 << 20;
/// Of a counter.
pub(crate) const COUNTER_BYTES: u64 = 4;

/// Free blocks by size, reused in the order of the main stream.
///
/// A block that only the main stream used can be reused at once: its next user runs after its last. Use on another
/// stream is noted in the buffer, and the main stream waits for it before the block returns.
pub(crate) struct Pool {
    state: Arc<PoolState>,
}

struct PoolState {
    backend: Arc<dyn Backend>,
    main: Stream,
    exact: bool,
    shelves: Mutex<Shelves>,
}

#[derive(Default)]
struct Shelves {
    free: HashMap<u64, Vec<u64>>,
    live_bytes: u64,
    peak_bytes: u64,
    /// While a graph is recorded: what its launches use and it must keep.
    capture: Option<Capture>,
    /// The counter of the main stream, once there is one.
    counter: Option<u64>,
}

#[derive(Default)]
struct Capture {
    /// Blocks given up while recording.
    blocks: Vec<Block>,
    /// Buffers that recorded work uses, dropped later than that.
    buffers: Vec<Arc<Buffer>>,
}

/// Address and rounded size of a block of the pool.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: u64,
    bytes: u64,
}

impl PoolState {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn rounded(&self, bytes: u64) -> Result<u64> {
        let step = match bytes {
            _ if self.exact => 1,
            0..LARGE_FROM => SMALL_STEP,
            _ => LARGE_STEP,
        };
        bytes.checked_next_multiple_of(step).ok_or(Error::OutOfMemory {
            requested: bytes,
            free: 0,
        })
    }

    fn take(&self, bytes: u64) -> Result<Block> {
        let bytes = self.rounded(bytes)?;
        let reused = self.shelves().free.get_mut(&bytes).and_then(Vec::pop);
        let address = match reused {
            Some(address) => address,
            None => match self.backend.allocate(bytes) {
                // What the pool holds for reuse in other sizes may be what is missing.
                Err(Error::OutOfMemory { .. }) => {
                    self.trim()?;
                    self.backend.allocate(bytes)?
                }
                other => other?,
            },
        };
        let mut shelves = self.shelves();
        shelves.live_bytes += bytes;
        shelves.peak_bytes = shelves.peak_bytes.max(shelves.live_bytes);
        Ok(Block { address, bytes })
    }

    fn give(&self, block: Block) {
        let mut shelves = self.shelves();
        if let Some(kept) = &mut shelves.capture {
            kept.blocks.push(block);
            return;
        }
        shelves.live_bytes -= block.bytes;
        if self.exact {
            drop(shelves);
            // A failure here is the latched fault of an earlier kernel; whoever uses the device next is told.
            let _ = self.backend.synchronize(self.main.id());
            // SAFETY: the block came from `allocate`, its last owner gave it up, and the stream is idle.
            let _ = unsafe { self.backend.free(block.address) };
        } else {
            shelves.free.entry(block.bytes).or_default().push(block.address);
        }
    }

    fn trim(&self) -> Result<()> {
        let free = std::mem::take(&mut self.shelves().free);
        if free.is_empty() {
            return Ok(());
        }
        self.backend.synchronize(self.main.id())?;
        for address in free.into_values().flatten() {
            // SAFETY: shelved blocks belong to nobody, and the only stream that used them is idle.
            unsafe { self.backend.free(address)? };
        }
        Ok(())
    }
}

impl Drop for PoolState {
    fn drop(&mut self) {
        let _ = self.trim();
        if let Some(address) = self.shelves().counter.take() {
            // A failure is the latched fault of an earlier kernel, as for a shelved block.
            let _ = self.backend.synchronize(self.main.id());
            // SAFETY: the address came from `allocate`, and the only stream that used it is idle.
            let _ = unsafe { self.backend.free(address) };
        }
    }
}

impl Pool {
    pub(crate) fn new(backend: Arc<dyn Backend>, exact: bool) -> Result<Pool> {
        let main = Stream::create(&backend)?;
        Ok(Pool {
            state: Arc::new(PoolState {
                backend,
                main,
                exact,
                shelves: Mutex::default(),
            }),
        })
    }

    pub(crate) fn main_stream(&self) -> &Stream {
        &self.state.main
    }

    pub(crate) fn allocated(&self) -> (u64, u64) {
        let shelves = self.state.shelves();
        (shelves.live_bytes, shelves.peak_bytes)
    }

    pub(crate) fn trim(&self) -> Result<()> {
        self.state.trim()
    }

    /// A buffer of `bytes`, uninitialised. Zero bytes take no memory.
    pub(crate) fn buffer(&self, bytes: u64) -> Result<Arc<Buffer>> {
        let block = if bytes == 0 {
            Block { address: 0, bytes: 0 }
        } else {
            self.state.take(bytes)?
        };
        Ok(Arc::new(Buffer {
            pool: self.state.clone(),
            block,
            bytes,
            other_streams: Mutex::default(),
        }))
    }

    /// Address of the main stream's counter, which is made at the first call; none if that comes while a graph is recorded.
    pub(crate) fn counter(&self) -> Result<Option<u64>> {
        let mut shelves = self.state.shelves();
        if shelves.counter.is_none() && shelves.capture.is_none() {
            let backend = &self.state.backend;
            let address = backend.allocate(COUNTER_BYTES)?;
            shelves.counter = Some(address);
            // SAFETY: just allocated.
            unsafe { backend.fill(address, 0, COUNTER_BYTES, self.state.main.id())? };
        }
        Ok(shelves.counter)
    }

    pub(crate) fn begin_capture(&self) -> Result<()> {
        let mut shelves = self.state.shelves();
        if shelves.capture.is_some() {
            return Err(Error::layout("graph", "a capture is already running on this device"));
        }
        shelves.capture = Some(Capture::default());
        Ok(())
    }

    pub(crate) fn is_capturing(&self) -> bool {
        self.state.shelves().capture.is_some()
    }

    /// While a graph is recorded: makes it keep these buffers.
    pub(crate) fn keep_for_capture<'a>(&self, buffers: impl IntoIterator<Item = &'a Arc<Buffer>>) {
        if let Some(capture) = &mut self.state.shelves().capture {
            capture.buffers.extend(buffers.into_iter().cloned());
        }
    }

    pub(crate) fn end_capture(&self) -> CapturedMemory {
        let capture = self.state.shelves().capture.take().unwrap_or_default();
        CapturedMemory {
            pool: self.state.clone(),
            blocks: capture.blocks,
            _buffers: capture.buffers,
        }
    }
}

/// What a graph's launches use although no tensor may hold it any more.
pub(crate) struct CapturedMemory {
    pool: Arc<PoolState>,
    blocks: Vec<Block>,
    _buffers: Vec<Arc<Buffer>>,
}

impl Drop for CapturedMemory {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            self.pool.give(block);
        }
    }
}

/// One allocation, shared by all tensors that view it.
pub(crate) struct Buffer {
    pool: Arc<PoolState>,
    block: Block,
    bytes: u64,
    other_streams: Mutex<Vec<Stream>>,
}

impl Buffer {
    pub(crate) fn address(&self) -> u64 {
        self.block.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes that `stream` uses the buffer, so that it is not reused under it.
    pub(crate) fn used_on(&self, stream: &Stream) {
        if stream.id() == self.pool.main.id() {
            return;
        }
        let mut streams = self
            .other_streams
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let id: StreamId = stream.id();
        if streams.iter().all(|known| known.id() != id) {
            streams.push(stream.clone());
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.block.bytes == 0 {
            return;
        }
        let streams = std::mem::take(
            &mut *self
                .other_streams
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        for stream in streams {
            // A failure means a latched fault: the device refuses everything from now on and reuse no longer matters.
            if let Ok(event) = stream.record() {
                let _ = self.pool.main.wait(&event);
            }
        }
        self.pool.give(self.block);
    }
}
