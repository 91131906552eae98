//! NVIDIA GPUs.
//!
//! `cust` opens devices, holds the primary context and loads modules. What runs after the first kernel (copies, launches,
//! streams, events, graphs) goes through [`driver::calls`]: any of those calls may report an earlier kernel's fault with
//! a code that `cust`'s CUDA 11 enumeration lacks, `cust` streams synchronise with the legacy default stream, and
//! clusters, tensor maps and capture are not in `cust` at all. Both find the driver when the program runs.

mod errors;
mod graph;
mod launch;
mod memory;
mod module;
mod slots;
mod staging;
mod stream;
mod tensor_map;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cust::{
    context::Context,
    device::{Device, DeviceAttribute},
};
use driver::{calls, handle};

use self::{
    errors::{cust_error, no_device, opening_error},
    graph::GraphState,
    module::LoadedKernel,
    slots::Slots,
    staging::Staging,
    stream::{EventState, StreamState},
};
use super::{Backend, EventId, GraphId, KernelAttributes, KernelId, LaunchRequest, MemoryInfo, StreamId};
use crate::{
    Error, Result,
    device::{DeviceKind, DeviceProperties},
    images::Image,
    tensor_map::TensorMapRequest,
};

/// Least CUDA version of the driver, (major, minor): the first that instantiates graphs with flags.
const LEAST_DRIVER: (u32, u32) = (11, 4);
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`, which `cust` does not name.
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: u32 = 97;

/// Facts of all GPUs that the driver shows to this process, in its order.
///
/// # Errors
/// [`Error::NoDevice`], saying why: no driver, one too old, no GPU, or a system that is not ready.
pub fn devices() -> Result<Vec<DeviceProperties>> {
    (0..count()?).map(|ordinal| Ok(describe(ordinal)?.1)).collect()
}

/// Starts the driver and counts its GPUs; at least one.
fn count() -> Result<u32> {
    // SAFETY: no precondition.
    unsafe { calls::init(0) }.map_err(|error| opening_error(&error))?;
    let version = driver::driver_version().map_err(|error| opening_error(&error))?;
    if version < LEAST_DRIVER {
        return Err(no_device(format!(
            "the NVIDIA driver supports CUDA {}.{}; {}.{} is the least",
            version.0, version.1, LEAST_DRIVER.0, LEAST_DRIVER.1
        )));
    }
    let mut count = 0;
    // SAFETY: writes one int to a live local.
    unsafe { calls::device_get_count(&mut count) }.map_err(|error| opening_error(&error))?;
    match count {
        1.. => Ok(count as u32),
        _ => Err(no_device("the NVIDIA driver shows no GPU to this process")),
    }
}

fn describe(ordinal: u32) -> Result<(Device, DeviceProperties)> {
    let device = Device::get_device(ordinal).map_err(|error| cust_error("cuDeviceGet", error))?;
    let attribute = |which| {
        let value = device
            .get_attribute(which)
            .map_err(|error| cust_error("cuDeviceGetAttribute", error))?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    let mut shared_per_block = 0;
    // SAFETY: writes one int to a live local; the device is one that the driver listed.
    unsafe {
        calls::device_get_attribute(
            &mut shared_per_block,
            MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            device.as_raw(),
        )
    }
    .map_err(|error| opening_error(&error))?;
    let (major, minor) = driver::driver_version().map_err(|error| opening_error(&error))?;
    let properties = DeviceProperties {
        kind: DeviceKind::Cuda(ordinal),
        name: device.name().map_err(|error| cust_error("cuDeviceGetName", error))?,
        compute_capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        ),
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        shared_per_block: shared_per_block.max(0) as u32,
        shared_per_multiprocessor: attribute(DeviceAttribute::MaxSharedMemoryPerMultiprocessor)?,
        l2_bytes: attribute(DeviceAttribute::L2CacheSize)? as u64,
        memory_bytes: device
            .total_memory()
            .map_err(|error| cust_error("cuDeviceTotalMem", error))? as u64,
        driver_version: major * 1000 + minor * 10,
    };
    Ok((device, properties))
}

/// One GPU, opened.
pub struct CudaBackend {
    properties: DeviceProperties,
    streams: Slots<StreamState>,
    events: Slots<EventState>,
    graphs: Slots<GraphState>,
    kernels: RwLock<Vec<Arc<LoadedKernel>>>,
    staging: Mutex<Option<Staging>>,
    /// Holds the primary context; last, so that what lives in it goes first.
    context: Context,
}

impl CudaBackend {
    /// Opens a GPU by ordinal and retains its primary context, which it shares with whatever else of this process uses it.
    ///
    /// # Errors
    /// - [`Error::NoDevice`], saying why, as [`devices`]; also for a GPU that other processes have filled or hold alone.
    /// - [`Error::Range`] for an ordinal that is not there.
    pub fn open(ordinal: u32) -> Result<CudaBackend> {
        let count = count()?;
        if ordinal >= count {
            let allowed = match count {
                1 => "0, the only GPU of this machine".to_owned(),
                _ => format!("0 to {}, the GPUs of this machine", count - 1),
            };
            return Err(Error::range("CUDA device", ordinal, allowed));
        }
        let (device, properties) = describe(ordinal)?;
        // Retained here first, for the code: `cust` cannot name a GPU that is busy or in exclusive use (46).
        let mut context = handle::Context::NULL;
        // SAFETY: writes one pointer to a live local; the device is one that the driver listed.
        unsafe { calls::device_primary_ctx_retain(&mut context, device.as_raw()) }
            .map_err(|error| opening_error(&error))?;
        let context = Context::new(device).map_err(|error| cust_error("cuDevicePrimaryCtxRetain", error));
        // SAFETY: gives back the share taken above; `cust` holds its own.
        let _ = unsafe { calls::device_primary_ctx_release(device.as_raw()) };
        Ok(CudaBackend {
            properties,
            streams: Slots::new("stream"),
            events: Slots::new("event"),
            graphs: Slots::new("graph"),
            kernels: RwLock::default(),
            staging: Mutex::default(),
            context: context?,
        })
    }

    /// Makes this device's context current on the calling thread. Asked each time, since other code of the process may
    /// have made another one current: reading it costs a few nanoseconds.
    #[inline]
    fn bind(&self) -> Result<()> {
        let own = self.raw_context();
        let mut current = handle::Context::NULL;
        // SAFETY: writes one pointer to a live local.
        self.check(unsafe { calls::ctx_get_current(&mut current) })?;
        if current != own {
            // SAFETY: the context lives as long as `self`.
            self.check(unsafe { calls::ctx_set_current(own) })?;
        }
        Ok(())
    }

    fn kernel(&self, id: KernelId) -> Result<Arc<LoadedKernel>> {
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(id.0)
            .ok()
            .and_then(|index| kernels.get(index).cloned())
            .ok_or_else(|| Error::range("kernel", id.0, "a kernel loaded on this device"))
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Modules must not go while a kernel of theirs runs. Failures are a latched fault that its user was told of.
        if self.bind().is_ok() {
            // SAFETY: the context is current.
            let _ = unsafe { calls::ctx_synchronize() };
        }
    }
}

impl std::fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaBackend({}, {})", self.properties.kind, self.properties.name)
    }
}

impl Backend for CudaBackend {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.memory_info()
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        self.take_memory(bytes)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.free_memory(address) }
    }

    unsafe fn write(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.copy_from_host(target, source, stream) }
    }

    unsafe fn read(&self, source: u64, target: &mut [u8], stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.copy_to_host(source, target, stream) }
    }

    unsafe fn copy(&self, target: u64, source: u64, bytes: u64, stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.copy_on_device(target, source, bytes, stream) }
    }

    unsafe fn fill(&self, target: u64, value: u8, bytes: u64, stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.fill_bytes(target, value, bytes, stream) }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        self.take_pinned(bytes)
    }

    unsafe fn free_pinned(&self, pointer: *mut u8, _bytes: usize) {
        // SAFETY: by contract.
        unsafe { self.give_pinned(pointer) }
    }

    unsafe fn write_async(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.start_copy_from_host(target, source, stream) }
    }

    unsafe fn read_async(&self, source: u64, target: *mut u8, bytes: usize, stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.start_copy_to_host(source, target, bytes, stream) }
    }

    fn load(&self, image: &Image) -> Result<KernelId> {
        self.load_kernel(image)
    }

    fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes> {
        self.attributes_of(kernel)
    }

    fn occupancy(&self, kernel: KernelId, threads: u32, dynamic_shared: u32) -> Result<u32> {
        self.blocks_per_multiprocessor(kernel, threads, dynamic_shared)
    }

    fn clusters(&self, request: &LaunchRequest<'_>) -> Result<u32> {
        self.clusters_at_once(request)
    }

    unsafe fn launch(&self, request: &LaunchRequest<'_>) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.start_kernel(request) }
    }

    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Result<[u64; 16]> {
        self.encode(request)
    }

    fn create_stream(&self) -> Result<StreamId> {
        self.new_stream()
    }

    fn destroy_stream(&self, stream: StreamId) {
        drop(self.streams.remove(stream.0));
    }

    fn synchronize(&self, stream: StreamId) -> Result<()> {
        self.wait_for_stream(stream)
    }

    fn create_event(&self) -> Result<EventId> {
        self.new_event()
    }

    fn destroy_event(&self, event: EventId) {
        drop(self.events.remove(event.0));
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<()> {
        self.record_event(event, stream)
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<()> {
        self.make_stream_wait(stream, event)
    }

    fn query(&self, event: EventId) -> Result<bool> {
        self.has_passed(event)
    }

    fn synchronize_event(&self, event: EventId) -> Result<()> {
        self.wait_for_event(event)
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        self.time_between(start, end)
    }

    fn begin_capture(&self, stream: StreamId) -> Result<()> {
        self.start_recording(stream)
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId> {
        self.finish_recording(stream)
    }

    unsafe fn launch_graph(&self, graph: GraphId, stream: StreamId) -> Result<()> {
        // SAFETY: by contract.
        unsafe { self.start_graph(graph, stream) }
    }

    fn destroy_graph(&self, graph: GraphId) {
        drop(self.graphs.remove(graph.0));
    }
}
