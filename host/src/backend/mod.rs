//! What a machine that runs kernels must offer: an NVIDIA GPU through `cust`, or the emulator.
//!
//! Everything here is untyped and unchecked: addresses, bytes and identifiers. Types, shapes, aliasing and
//! lifetimes are checked once, above, by [`crate::launch`] and [`crate::tensor`]; a backend only reports what the
//! machine itself refuses.

use crate::{Result, device::DeviceProperties, images::Image, tensor_map::TensorMapRequest};

pub mod cuda;
pub mod emulated;

/// A loaded kernel entry of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub u64);

/// A stream of one backend: work in one stream runs in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// An event of one backend: a point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub u64);

/// An instantiated graph of launches of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// What the machine says of a loaded kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelAttributes {
    /// Registers of one thread (0 when the backend does not allocate registers).
    pub registers: u32,
    /// Statically allocated shared memory of a block, bytes.
    pub static_shared: u32,
    /// Local memory of one thread, bytes: spills and indexed arrays.
    pub local: u32,
    /// Constant memory, bytes.
    pub constant: u32,
    /// Most threads a block may have.
    pub max_threads: u32,
    /// PTX version of the source, 10·major + minor.
    pub ptx_version: u32,
    /// Version of the machine code, 10·major + minor (0 when interpreted).
    pub binary_version: u32,
}

/// One launch, completely described. `params` is the byte image of the kernel's only argument.
#[derive(Clone, Debug)]
pub struct LaunchRequest<'a> {
    /// Entry to run.
    pub kernel: KernelId,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y, z; `[1, 1, 1]` launches without clusters.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub dynamic_shared: u32,
    /// The argument buffer.
    pub params: &'a [u8],
    /// Stream that runs it.
    pub stream: StreamId,
    /// Programmatic dependent launch: may start before the previous kernel of the stream has ended; the kernel itself
    /// waits with `griddepcontrol.wait`.
    pub programmatic: bool,
}

/// Free and total memory of a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that can still be allocated.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A machine that holds memory and runs kernels.
///
/// Every method may be called from any thread. After a fault inside a kernel the device latches
/// [`crate::Error::Poisoned`] above this trait; a backend need not remember it.
pub trait Backend: Send + Sync + 'static {
    /// Name, tier, limits.
    fn properties(&self) -> &DeviceProperties;

    /// Memory of the device.
    fn memory(&self) -> Result<MemoryInfo>;

    /// Takes `bytes` (> 0) of device memory, aligned to 256 bytes at least.
    fn allocate(&self, bytes: u64) -> Result<u64>;

    /// Gives memory back.
    ///
    /// # Safety
    /// - `address` came from [`Backend::allocate`] and was not freed before.
    /// - No work that touches it is pending.
    unsafe fn free(&self, address: u64) -> Result<()>;

    /// Copies host bytes to the device, in order in `stream`; `source` may be reused when the call returns.
    ///
    /// # Safety
    /// - `target .. target + source.len()` lies in one live allocation.
    unsafe fn write(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()>;

    /// Copies device bytes to the host after all earlier work of `stream`; returns when they are there.
    ///
    /// # Safety
    /// - `source .. source + target.len()` lies in one live allocation.
    unsafe fn read(&self, source: u64, target: &mut [u8], stream: StreamId) -> Result<()>;

    /// Copies between device addresses, in order in `stream`.
    ///
    /// # Safety
    /// - Both ranges lie in live allocations and do not overlap.
    unsafe fn copy(&self, target: u64, source: u64, bytes: u64, stream: StreamId) -> Result<()>;

    /// Fills device memory with one byte value, in order in `stream`.
    ///
    /// # Safety
    /// - `target .. target + bytes` lies in one live allocation.
    unsafe fn fill(&self, target: u64, value: u8, bytes: u64, stream: StreamId) -> Result<()>;

    /// Page-locked host memory, or ordinary memory where that means nothing.
    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8>;

    /// Gives page-locked memory back.
    ///
    /// # Safety
    /// - `pointer` came from [`Backend::allocate_pinned`] with the same `bytes`, once.
    unsafe fn free_pinned(&self, pointer: *mut u8, bytes: usize);

    /// As [`Backend::write`] from pinned memory, without waiting.
    ///
    /// # Safety
    /// - As [`Backend::write`], and `source` lives and does not change until the stream has passed this point.
    unsafe fn write_async(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()>;

    /// As [`Backend::read`] into pinned memory, without waiting.
    ///
    /// # Safety
    /// - As [`Backend::read`], and `target` lives and is not touched until the stream has passed this point.
    unsafe fn read_async(&self, source: u64, target: *mut u8, bytes: usize, stream: StreamId) -> Result<()>;

    /// Loads one kernel; called once an entry, the result is cached above.
    fn load(&self, image: &Image) -> Result<KernelId>;

    /// What the machine made of it.
    fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes>;

    /// Blocks of this kernel that fit a multiprocessor at once.
    fn occupancy(&self, kernel: KernelId, threads: u32, dynamic_shared: u32) -> Result<u32>;

    /// Clusters of this launch that the device runs at once, whatever its grid.
    fn clusters(&self, request: &LaunchRequest<'_>) -> Result<u32> {
        let threads = request.block.into_iter().product();
        let blocks =
            self.occupancy(request.kernel, threads, request.dynamic_shared)? * self.properties().multiprocessors;
        Ok(blocks / request.cluster.into_iter().product::<u32>())
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// - `params` matches the kernel's argument and every address in it is valid for what the kernel does until the
    ///   launch has ended.
    unsafe fn launch(&self, request: &LaunchRequest<'_>) -> Result<()>;

    /// Encodes a TMA tensor map (PTX ISA, tensor-map object; rules of `cuTensorMapEncodeTiled`).
    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Result<[u64; 16]>;

    /// Creates a stream that does not synchronise with any other.
    fn create_stream(&self) -> Result<StreamId>;

    /// Destroys a stream when its work is done.
    fn destroy_stream(&self, stream: StreamId);

    /// Waits for all work of a stream; reports a fault of any kernel before.
    fn synchronize(&self, stream: StreamId) -> Result<()>;

    /// Creates an event.
    fn create_event(&self) -> Result<EventId>;

    /// Destroys an event.
    fn destroy_event(&self, event: EventId);

    /// Marks the present end of `stream`.
    fn record(&self, event: EventId, stream: StreamId) -> Result<()>;

    /// Later work of `stream` waits for `event`.
    fn wait(&self, stream: StreamId, event: EventId) -> Result<()>;

    /// Whether the stream has passed the event.
    fn query(&self, event: EventId) -> Result<bool>;

    /// Waits until the stream has passed the event.
    fn synchronize_event(&self, event: EventId) -> Result<()>;

    /// Milliseconds between two recorded events.
    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32>;

    /// From here, work given to `stream` is recorded instead of run.
    fn begin_capture(&self, stream: StreamId) -> Result<()>;

    /// Ends recording and makes the graph runnable.
    fn end_capture(&self, stream: StreamId) -> Result<GraphId>;

    /// Runs a graph.
    ///
    /// # Safety
    /// - All memory that its launches use is still alive.
    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<()>;

    /// Destroys a graph.
    fn destroy_graph(&self, graph: GraphId);
}
