//! Driver functions by name, resolved on first use, typed, with a typed refusal where the driver lacks them.
//!
//! Result codes are plain numbers here: `cust_raw`'s enumeration ends at CUDA 11 and a newer code in it would be
//! undefined behaviour. Names are the driver's in Rust's spelling, so the driver API manual documents each.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    DriverError, LaunchConfig, Result, handle,
    library::{Lookup, lookup},
    result::code,
};

/// Device ordinal as the driver counts (`CUdevice`).
pub type Device = i32;
/// Address of device memory (`CUdeviceptr`).
pub type DevicePointer = u64;

/// One function of the driver: where it is, or how to say that it is not.
struct Entry {
    symbol: &'static CStr,
    function: &'static str,
    since: (u32, u32),
    address: AtomicUsize,
}

impl Entry {
    #[inline]
    fn address(&self) -> Result<usize> {
        match self.address.load(Ordering::Acquire) {
            0 => self.resolve(),
            address => Ok(address),
        }
    }

    #[cold]
    fn resolve(&self) -> Result<usize> {
        match lookup(self.symbol) {
            Lookup::Found(address) => {
                self.address.store(address, Ordering::Release);
                Ok(address)
            }
            Lookup::NoLibrary(reason) => Err(DriverError::Missing { reason }),
            Lookup::NoSymbol => Err(DriverError::TooOld {
                function: self.function,
                needs: self.since,
                // A library without even this function is no driver, and asking it again would not end.
                has: if self.function == "cuDriverGetVersion" {
                    None
                } else {
                    crate::driver_version().ok()
                },
            }),
        }
    }
}

macro_rules! calls {
    ($(
        $(#[$doc:meta])*
        [$major:literal.$minor:literal] $name:ident = $symbol:ident ( $($argument:ident : $type:ty),* $(,)? );
    )*) => { $(
        $(#[$doc])*
        #[doc = concat!("\n\nCalls `", stringify!($symbol), "`, of CUDA ", $major, ".", $minor, " and later.")]
        ///
        /// # Safety
        /// - Handles are live and pointers valid for what the driver function of this name does with them.
        /// - A context is current on this thread where that function needs one.
        #[inline]
        #[allow(clippy::too_many_arguments, reason = "the driver's signature")]
        pub unsafe fn $name($($argument: $type),*) -> Result<()> {
            static ENTRY: Entry = Entry {
                symbol: match CStr::from_bytes_with_nul(concat!(stringify!($symbol), "\0").as_bytes()) {
                    Ok(symbol) => symbol,
                    Err(_) => panic!("a symbol name has no NUL inside"),
                },
                function: stringify!($symbol),
                since: ($major, $minor),
                address: AtomicUsize::new(0),
            };
            let address = ENTRY.address()?;
            // SAFETY: the address is that of the driver's function of this name, which has this signature.
            let function = unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($type),*) -> u32>(address) };
            // SAFETY: the caller's contract is the function's.
            match unsafe { function($($argument),*) } {
                code::SUCCESS => Ok(()),
                code => Err(DriverError::Failed { function: stringify!($symbol), code }),
            }
        }
    )* };
}

calls! {
    /// Version of CUDA that the driver supports, 1000·major + 10·minor.
    [2 . 2] driver_get_version = cuDriverGetVersion(version: *mut i32);
    /// Name of a result code; static text.
    [6 . 0] get_error_name = cuGetErrorName(error: u32, text: *mut *const c_char);
    /// Meaning of a result code; static text.
    [6 . 0] get_error_string = cuGetErrorString(error: u32, text: *mut *const c_char);

    /// Starts the driver; flags 0. Later calls do nothing.
    [2 . 0] init = cuInit(flags: u32);
    /// Devices that the driver shows to this process.
    [2 . 0] device_get_count = cuDeviceGetCount(count: *mut i32);
    /// One of a device's attributes (`CUdevice_attribute`).
    [2 . 0] device_get_attribute = cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: Device);
    /// A device's 16-byte UUID.
    [11 . 4] device_get_uuid = cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: Device);
    /// Takes a share in a device's primary context.
    [7 . 0] device_primary_ctx_retain = cuDevicePrimaryCtxRetain(context: *mut handle::Context, device: Device);
    /// Gives a share in a device's primary context back.
    [11 . 0] device_primary_ctx_release = cuDevicePrimaryCtxRelease_v2(device: Device);
    /// Waits for all work of the current context.
    [2 . 0] ctx_synchronize = cuCtxSynchronize();
    /// The context current on this thread, or null.
    [4 . 0] ctx_get_current = cuCtxGetCurrent(context: *mut handle::Context);
    /// Makes a context current on this thread.
    [4 . 0] ctx_set_current = cuCtxSetCurrent(context: handle::Context);
    /// Free and total memory of the current context's device, bytes.
    [3 . 2] mem_get_info = cuMemGetInfo_v2(free: *mut usize, total: *mut usize);

    /// Loads an image with compiler options.
    [2 . 1] module_load_data_ex = cuModuleLoadDataEx(
        module: *mut handle::Module, image: *const c_void, count: u32, options: *mut u32, values: *mut *mut c_void,
    );
    /// Unloads a module.
    [2 . 0] module_unload = cuModuleUnload(module: handle::Module);
    /// A kernel of a module.
    [2 . 0] module_get_function =
        cuModuleGetFunction(function: *mut handle::Function, module: handle::Module, name: *const c_char);
    /// One of a kernel's attributes (`CUfunction_attribute`).
    [2 . 2] func_get_attribute = cuFuncGetAttribute(value: *mut i32, attribute: u32, function: handle::Function);
    /// Sets one of a kernel's attributes.
    [9 . 0] func_set_attribute = cuFuncSetAttribute(function: handle::Function, attribute: u32, value: i32);
    /// Offset and size, bytes, of one of a kernel's parameters; invalid value past the last.
    [12 . 4] func_get_param_info =
        cuFuncGetParamInfo(function: handle::Function, index: usize, offset: *mut usize, size: *mut usize);
    /// Blocks of a kernel that fit a multiprocessor at once.
    [6 . 5] occupancy_max_active_blocks_per_multiprocessor = cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut i32, function: handle::Function, threads: i32, dynamic_shared: usize,
    );
    /// Clusters of a launch that the device runs at once.
    [11 . 8] occupancy_max_active_clusters = cuOccupancyMaxActiveClusters(
        clusters: *mut i32, function: handle::Function, config: *const LaunchConfig,
    );

    /// Starts a kernel.
    [4 . 0] launch_kernel = cuLaunchKernel(
        function: handle::Function,
        grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        dynamic_shared: u32, stream: handle::Stream, params: *mut *mut c_void, extra: *mut *mut c_void,
    );
    /// Starts a kernel with attributes: clusters, programmatic dependent launch.
    [11 . 8] launch_kernel_ex = cuLaunchKernelEx(
        config: *const LaunchConfig, function: handle::Function, params: *mut *mut c_void, extra: *mut *mut c_void,
    );
    /// Encodes a tiled tensor map; `map` is 128 bytes, aligned to 64.
    [12 . 0] tensor_map_encode_tiled = cuTensorMapEncodeTiled(
        map: *mut c_void, element: u32, rank: u32, address: *mut c_void, extents: *const u64, strides: *const u64,
        box_extents: *const u32, element_strides: *const u32, interleave: u32, swizzle: u32, l2_promotion: u32,
        out_of_bounds_fill: u32,
    );

    /// Takes device memory.
    [3 . 2] mem_alloc = cuMemAlloc_v2(address: *mut DevicePointer, bytes: usize);
    /// Gives device memory back.
    [3 . 2] mem_free = cuMemFree_v2(address: DevicePointer);
    /// Takes page-locked host memory.
    [2 . 2] mem_host_alloc = cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: u32);
    /// Gives page-locked host memory back.
    [2 . 0] mem_free_host = cuMemFreeHost(pointer: *mut c_void);
    /// Copies host memory to the device in a stream.
    [3 . 2] memcpy_htod_async =
        cuMemcpyHtoDAsync_v2(target: DevicePointer, source: *const c_void, bytes: usize, stream: handle::Stream);
    /// Copies device memory to the host in a stream.
    [3 . 2] memcpy_dtoh_async =
        cuMemcpyDtoHAsync_v2(target: *mut c_void, source: DevicePointer, bytes: usize, stream: handle::Stream);
    /// Copies device memory in a stream.
    [3 . 2] memcpy_dtod_async =
        cuMemcpyDtoDAsync_v2(target: DevicePointer, source: DevicePointer, bytes: usize, stream: handle::Stream);
    /// Fills device memory with a byte in a stream.
    [3 . 2] memset_d8_async =
        cuMemsetD8Async(target: DevicePointer, value: u8, bytes: usize, stream: handle::Stream);

    /// Creates a stream; flag 1 leaves the legacy default stream unsynchronised.
    [2 . 0] stream_create = cuStreamCreate(stream: *mut handle::Stream, flags: u32);
    /// Destroys a stream once its work is done.
    [4 . 0] stream_destroy = cuStreamDestroy_v2(stream: handle::Stream);
    /// Waits for a stream.
    [2 . 0] stream_synchronize = cuStreamSynchronize(stream: handle::Stream);
    /// Makes a stream wait for an event.
    [3 . 2] stream_wait_event = cuStreamWaitEvent(stream: handle::Stream, event: handle::Event, flags: u32);
    /// Whether a stream is being captured: 0 no, 1 yes, 2 invalidated.
    [10 . 0] stream_is_capturing = cuStreamIsCapturing(stream: handle::Stream, status: *mut u32);
    /// Begins to record a stream; mode 0 global, 1 thread-local, 2 relaxed.
    [10 . 1] stream_begin_capture = cuStreamBeginCapture_v2(stream: handle::Stream, mode: u32);
    /// Ends recording.
    [10 . 0] stream_end_capture = cuStreamEndCapture(stream: handle::Stream, graph: *mut handle::Graph);
    /// Makes a graph ready to run.
    [11 . 4] graph_instantiate_with_flags =
        cuGraphInstantiateWithFlags(exec: *mut handle::GraphExec, graph: handle::Graph, flags: u64);
    /// Runs a graph in a stream.
    [10 . 0] graph_launch = cuGraphLaunch(exec: handle::GraphExec, stream: handle::Stream);
    /// Destroys a recorded graph.
    [10 . 0] graph_destroy = cuGraphDestroy(graph: handle::Graph);
    /// Destroys a graph made ready to run.
    [10 . 0] graph_exec_destroy = cuGraphExecDestroy(exec: handle::GraphExec);

    /// Creates an event; flag 2 leaves out the time.
    [2 . 0] event_create = cuEventCreate(event: *mut handle::Event, flags: u32);
    /// Destroys an event once it has passed.
    [4 . 0] event_destroy = cuEventDestroy_v2(event: handle::Event);
    /// Marks the present end of a stream.
    [2 . 0] event_record = cuEventRecord(event: handle::Event, stream: handle::Stream);
    /// Success when the event has passed, `NOT_READY` before.
    [2 . 0] event_query = cuEventQuery(event: handle::Event);
    /// Waits until the event has passed.
    [2 . 0] event_synchronize = cuEventSynchronize(event: handle::Event);
    /// Milliseconds between two events.
    [2 . 0] event_elapsed_time = cuEventElapsedTime(ms: *mut f32, start: handle::Event, end: handle::Event);
}
