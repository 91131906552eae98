//! The emulator as a backend: the same images, the same launches, executed on the CPU before the call returns.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use emulator::{
    Checks, DeviceAddress, Launch, Machine, Module, Statistics, Target,
    tensor::{DataType, OobFill, TensorMap, Tiled, map::Interleave},
};

use super::{Backend, EventId, GraphId, KernelAttributes, KernelId, LaunchRequest, MemoryInfo, StreamId};
use crate::{
    DType, DeviceKind, DeviceOptions, DeviceProperties, Error, Result, Tier,
    images::Image,
    tensor_map::{Swizzle, TensorMapRequest},
};

/// Memory that the emulated device claims to have.
const MEMORY_BYTES: u64 = 8 << 30;
/// Shared memory of a block that it can be given: what every GPU has, and what the largest have.
const SHARED_BYTES: std::ops::RangeInclusive<u32> = (48 << 10)..=(227 << 10);

/// The emulator, dressed as a device.
pub struct EmulatedBackend {
    machine: Machine,
    properties: DeviceProperties,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kernels: HashMap<KernelId, Arc<Loaded>>,
    events: HashMap<EventId, Instant>,
    graphs: HashMap<GraphId, Vec<Recorded>>,
    capture: Option<Vec<Recorded>>,
    sizes: HashMap<u64, u64>,
    used: u64,
    replaced: HashMap<String, String>,
    statistics: Statistics,
}

struct Loaded {
    entry: String,
    module: Module,
    attributes: KernelAttributes,
}

/// Work that a graph repeats.
#[derive(Clone)]
enum Recorded {
    Launch {
        kernel: KernelId,
        grid: [u32; 3],
        block: [u32; 3],
        cluster: [u32; 3],
        shared: u32,
        params: Vec<u8>,
    },
    Copy {
        target: u64,
        source: u64,
        bytes: u64,
    },
    Fill {
        target: u64,
        value: u8,
        bytes: u64,
    },
}

impl EmulatedBackend {
    /// An emulated GPU of the tier that the options ask for, Hopper by default.
    pub fn new(options: &DeviceOptions) -> Result<EmulatedBackend> {
        let first = match options.tier.unwrap_or(Tier::Sm90a) {
            Tier::Sm75 => Target::SM_75,
            Tier::Sm80 => Target::SM_80,
            Tier::Sm90a => Target::SM_90A,
        };
        let emulation = &options.emulator;
        let shared_bytes = emulation.shared_per_block.unwrap_or(first.shared_bytes);
        if !SHARED_BYTES.contains(&shared_bytes) {
            return Err(Error::range(
                "emulator.shared_per_block",
                shared_bytes,
                format!("{} to {} bytes", SHARED_BYTES.start(), SHARED_BYTES.end()),
            ));
        }
        let target = Target { shared_bytes, ..first };
        if emulation.multiprocessors == 0 {
            return Err(Error::range("emulator.multiprocessors", 0, "at least 1"));
        }
        let mut machine = Machine::new(target)
            .memory_limit(MEMORY_BYTES)
            .step_budget(emulation.step_budget);
        if emulation.checks {
            machine = machine.checks(Checks::all());
        }
        if let Some(seed) = emulation.seed {
            machine = machine.seed(seed);
        }
        let properties = DeviceProperties {
            kind: DeviceKind::Emulator,
            name: format!(
                "PTX emulator as {}{}",
                target.name,
                if emulation.checks { ", checked" } else { "" }
            ),
            compute_capability: (target.capability / 10, target.capability % 10),
            multiprocessors: emulation.multiprocessors,
            shared_per_block: target.shared_bytes,
            shared_per_multiprocessor: target.shared_bytes + 1024,
            l2_bytes: 0,
            memory_bytes: MEMORY_BYTES,
            driver_version: 0,
        };
        Ok(EmulatedBackend {
            machine,
            properties,
            next: AtomicU64::new(1),
            state: Mutex::default(),
        })
    }

    /// What all launches so far did: instructions by kind, bytes by space, bank conflicts.
    pub fn statistics(&self) -> Statistics {
        self.state().statistics.clone()
    }

    /// Runs this PTX instead of an entry's image from now on: how tests ask whether a damaged kernel would be noticed.
    /// It must come before the entry is first launched.
    pub fn replace(&self, entry: &str, ptx: String) {
        self.state().replaced.insert(entry.into(), ptx);
    }

    /// The entries that were loaded, in alphabetical order.
    pub fn loaded_entries(&self) -> Vec<String> {
        let state = self.state();
        let mut entries: Vec<String> = state.kernels.values().map(|kernel| kernel.entry.clone()).collect();
        entries.sort();
        entries
    }

    /// Marks memory as secret: under the checks, a kernel that branches on it or addresses by it faults.
    ///
    /// # Errors
    /// [`Error::Driver`] when the range is not within one allocation.
    pub fn mark_secret(&self, address: u64, bytes: u64) -> Result<()> {
        self.machine
            .mark_secret(DeviceAddress(address), bytes as usize, true)
            .map_err(|error| memory_error("mark_secret", &error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Records the work if a capture is running; says whether it did.
    fn record_work(&self, work: impl FnOnce() -> Recorded) -> bool {
        match &mut self.state().capture {
            Some(capture) => {
                capture.push(work());
                true
            }
            None => false,
        }
    }

    fn run(&self, work: &Recorded) -> Result<()> {
        match work {
            Recorded::Launch {
                kernel,
                grid,
                block,
                cluster,
                shared,
                params,
            } => self.start(*kernel, *grid, *block, *cluster, *shared, params),
            Recorded::Copy { target, source, bytes } => self
                .machine
                .copy(DeviceAddress(*source), DeviceAddress(*target), *bytes as usize)
                .map_err(|error| memory_error("copy", &error)),
            Recorded::Fill { target, value, bytes } => self
                .machine
                .fill(DeviceAddress(*target), *value, *bytes as usize)
                .map_err(|error| memory_error("fill", &error)),
        }
    }

    fn start(
        &self,
        kernel: KernelId,
        grid: [u32; 3],
        block: [u32; 3],
        cluster: [u32; 3],
        dynamic_shared_bytes: u32,
        params: &[u8],
    ) -> Result<()> {
        let loaded = self.loaded(kernel)?;
        let launch = Launch {
            grid,
            block,
            cluster,
            dynamic_shared_bytes,
            params,
        };
        let outcome = self.machine.launch(&loaded.module, &loaded.entry, &launch);
        match outcome {
            Ok(statistics) => {
                absorb(&mut self.state().statistics, statistics);
                Ok(())
            }
            Err(emulator::Error::Fault(fault)) => Err(Error::Poisoned {
                kernel: loaded.entry.clone(),
                cause: fault.to_string(),
            }),
            Err(error) => Err(Error::Load {
                kernel: loaded.entry.clone(),
                log: error.to_string(),
            }),
        }
    }

    fn loaded(&self, kernel: KernelId) -> Result<Arc<Loaded>> {
        self.state()
            .kernels
            .get(&kernel)
            .cloned()
            .ok_or_else(|| Error::range("kernel", kernel.0, "a kernel that this device loaded"))
    }
}

/// Adds the counts of one launch.
fn absorb(total: &mut Statistics, launch: Statistics) {
    for (kind, count) in launch.instructions {
        *total.instructions.entry(kind).or_default() += count;
    }
    for (line, count) in launch.lines {
        *total.lines.entry(line).or_default() += count;
    }
    total.thread_instructions += launch.thread_instructions;
    total.warp_instructions += launch.warp_instructions;
    for (sum, part) in [
        (&mut total.global, launch.global),
        (&mut total.shared, launch.shared),
        (&mut total.local, launch.local),
        (&mut total.constant, launch.constant),
    ] {
        sum.read += part.read;
        sum.written += part.written;
    }
    total.bank_conflicts += launch.bank_conflicts;
    total.flops += launch.flops;
}

fn memory_error(call: &'static str, error: &emulator::Error) -> Error {
    Error::Driver {
        call,
        code: 1,
        name: error.to_string(),
    }
}

impl Backend for EmulatedBackend {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo {
            free: MEMORY_BYTES - self.state().used,
            total: MEMORY_BYTES,
        })
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        let free = MEMORY_BYTES.saturating_sub(self.state().used);
        let none = || Error::OutOfMemory { requested: bytes, free };
        if bytes > free {
            return Err(none());
        }
        let address = self.machine.allocate(bytes as usize).map_err(|_| none())?.0;
        let mut state = self.state();
        state.sizes.insert(address, bytes);
        state.used += bytes;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        self.machine
            .free(DeviceAddress(address))
            .map_err(|error| memory_error("free", &error))?;
        let mut state = self.state();
        state.used -= state.sizes.remove(&address).unwrap_or(0);
        Ok(())
    }

    unsafe fn write(&self, target: u64, source: &[u8], _: StreamId) -> Result<()> {
        self.machine
            .write(DeviceAddress(target), source)
            .map_err(|error| memory_error("write", &error))
    }

    unsafe fn read(&self, source: u64, target: &mut [u8], _: StreamId) -> Result<()> {
        self.machine
            .read(DeviceAddress(source), target)
            .map_err(|error| memory_error("read", &error))
    }

    unsafe fn copy(&self, target: u64, source: u64, bytes: u64, _: StreamId) -> Result<()> {
        let work = Recorded::Copy { target, source, bytes };
        if self.record_work(|| work.clone()) {
            Ok(())
        } else {
            self.run(&work)
        }
    }

    unsafe fn fill(&self, target: u64, value: u8, bytes: u64, _: StreamId) -> Result<()> {
        let work = Recorded::Fill { target, value, bytes };
        if self.record_work(|| work.clone()) {
            Ok(())
        } else {
            self.run(&work)
        }
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8> {
        let layout = pinned_layout(bytes)?;
        // SAFETY: the layout is not empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        if pointer.is_null() {
            Err(Error::OutOfMemory {
                requested: bytes as u64,
                free: 0,
            })
        } else {
            Ok(pointer)
        }
    }

    unsafe fn free_pinned(&self, pointer: *mut u8, bytes: usize) {
        if let Ok(layout) = pinned_layout(bytes) {
            // SAFETY: the caller got `pointer` from `allocate_pinned` with the same size.
            unsafe { std::alloc::dealloc(pointer, layout) };
        }
    }

    unsafe fn write_async(&self, target: u64, source: &[u8], stream: StreamId) -> Result<()> {
        // SAFETY: forwarded to the caller.
        unsafe { self.write(target, source, stream) }
    }

    unsafe fn read_async(&self, source: u64, target: *mut u8, bytes: usize, stream: StreamId) -> Result<()> {
        // SAFETY: the caller gives `bytes` bytes at `target` that nobody else touches.
        let target = unsafe { std::slice::from_raw_parts_mut(target, bytes) };
        // SAFETY: forwarded to the caller.
        unsafe { self.read(source, target, stream) }
    }

    fn load(&self, image: &Image) -> Result<KernelId> {
        let entry = image.info.entry.clone();
        let refused = |log: String| Error::Load {
            kernel: entry.clone(),
            log,
        };
        let replaced = self.state().replaced.get(&entry).cloned();
        let ptx = replaced.as_deref().unwrap_or(&image.ptx);
        let module = Module::parse(ptx).map_err(|error| refused(error.to_string()))?;
        let info = module.entry(&entry).map_err(|error| refused(error.to_string()))?;
        let (major, minor) = image.info.ptx_version.split_once('.').unwrap_or(("0", "0"));
        let attributes = KernelAttributes {
            static_shared: info.static_shared_bytes,
            max_threads: image.info.threads.iter().product(),
            ptx_version: major.parse::<u32>().unwrap_or(0) * 10 + minor.parse::<u32>().unwrap_or(0),
            ..KernelAttributes::default()
        };
        let id = KernelId(self.fresh());
        self.state().kernels.insert(
            id,
            Arc::new(Loaded {
                entry,
                module,
                attributes,
            }),
        );
        Ok(id)
    }

    fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes> {
        Ok(self.loaded(kernel)?.attributes)
    }

    fn occupancy(&self, _: KernelId, threads: u32, dynamic_shared: u32) -> Result<u32> {
        let by_threads = 2048 / threads.max(1);
        let by_shared = self.properties.shared_per_multiprocessor / (dynamic_shared + 1024);
        Ok(by_threads.min(by_shared).max(1))
    }

    unsafe fn launch(&self, request: &LaunchRequest<'_>) -> Result<()> {
        let recorded = self.record_work(|| Recorded::Launch {
            kernel: request.kernel,
            grid: request.grid,
            block: request.block,
            cluster: request.cluster,
            shared: request.dynamic_shared,
            params: request.params.to_vec(),
        });
        if recorded {
            return Ok(());
        }
        self.start(
            request.kernel,
            request.grid,
            request.block,
            request.cluster,
            request.dynamic_shared,
            request.params,
        )
    }

    fn encode_tensor_map(&self, request: &TensorMapRequest) -> Result<[u64; 16]> {
        request.check()?;
        let tiled = Tiled {
            data_type: match request.dtype {
                DType::F32 => DataType::F32,
                DType::F16 => DataType::F16,
                DType::BF16 => DataType::Bf16,
                DType::I32 => DataType::S32,
                DType::I64 => DataType::S64,
                DType::U8 | DType::E4M3 => DataType::U8,
            },
            address: request.address,
            dims: request.extents.clone(),
            strides: request.strides.clone(),
            box_dims: request.box_extents.clone(),
            element_strides: vec![1; request.extents.len()],
            interleave: Interleave::None,
            swizzle: match request.swizzle {
                Swizzle::None => emulator::tensor::Swizzle::None,
                Swizzle::B32 => emulator::tensor::Swizzle::B32,
                Swizzle::B64 => emulator::tensor::Swizzle::B64,
                Swizzle::B128 => emulator::tensor::Swizzle::B128,
            },
            oob_fill: OobFill::Zero,
        };
        let map = TensorMap::new(tiled).map_err(|error| Error::layout("tensor map", error.to_string()))?;
        let bytes = map.encode();
        let mut words = [0; 16];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        Ok(words)
    }

    fn create_stream(&self) -> Result<StreamId> {
        Ok(StreamId(self.fresh()))
    }

    fn destroy_stream(&self, _: StreamId) {}

    fn synchronize(&self, _: StreamId) -> Result<()> {
        Ok(())
    }

    fn create_event(&self) -> Result<EventId> {
        let id = EventId(self.fresh());
        self.state().events.insert(id, Instant::now());
        Ok(id)
    }

    fn destroy_event(&self, event: EventId) {
        self.state().events.remove(&event);
    }

    fn record(&self, event: EventId, _: StreamId) -> Result<()> {
        self.state().events.insert(event, Instant::now());
        Ok(())
    }

    fn wait(&self, _: StreamId, _: EventId) -> Result<()> {
        Ok(())
    }

    fn query(&self, _: EventId) -> Result<bool> {
        Ok(true)
    }

    fn synchronize_event(&self, _: EventId) -> Result<()> {
        Ok(())
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        let state = self.state();
        match (state.events.get(&start), state.events.get(&end)) {
            (Some(start), Some(end)) => Ok(end.saturating_duration_since(*start).as_secs_f32() * 1e3),
            _ => Err(Error::range("event", start.0, "an event of this device")),
        }
    }

    fn begin_capture(&self, _: StreamId) -> Result<()> {
        self.state().capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, _: StreamId) -> Result<GraphId> {
        let id = GraphId(self.fresh());
        let mut state = self.state();
        let work = state.capture.take().unwrap_or_default();
        state.graphs.insert(id, work);
        Ok(id)
    }

    unsafe fn launch_graph(&self, graph: GraphId, _: StreamId) -> Result<()> {
        let work = self.state().graphs.get(&graph).cloned().unwrap_or_default();
        work.iter().try_for_each(|step| self.run(step))
    }

    fn destroy_graph(&self, graph: GraphId) {
        self.state().graphs.remove(&graph);
    }
}

fn pinned_layout(bytes: usize) -> Result<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(bytes.max(1), 64).map_err(|_| Error::OutOfMemory {
        requested: bytes as u64,
        free: 0,
    })
}
