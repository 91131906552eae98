//! A device: an NVIDIA GPU, or the emulator.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use crate::{
    Error, Result,
    backend::{Backend, KernelId, LaunchRequest, MemoryInfo, cuda::CudaBackend, emulated::EmulatedBackend},
    images::{ImageInfo, Images, Tier},
    memory::Pool,
    stream::Stream,
};

/// What kind of machine a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// An NVIDIA GPU, by ordinal.
    Cuda(u32),
    /// The PTX emulator on the CPU.
    Emulator,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceKind::Emulator => f.write_str("emulator"),
        }
    }
}

/// Facts of a device that launches depend on.
#[derive(Clone, Debug)]
pub struct DeviceProperties {
    /// GPU or emulator.
    pub kind: DeviceKind,
    /// The vendor's name of it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most dynamic plus static shared memory of a block, bytes.
    pub shared_per_block: u32,
    /// Shared memory of a multiprocessor, bytes.
    pub shared_per_multiprocessor: u32,
    /// L2 cache, bytes.
    pub l2_bytes: u64,
    /// Device memory, bytes.
    pub memory_bytes: u64,
    /// CUDA version that the driver speaks, such as 13000 for 13.0; 0 on the emulator.
    pub driver_version: u32,
}

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Run the images of this tier instead of the best one: an H200 then tests all of them.
    pub tier: Option<Tier>,
    /// One driver allocation a tensor, no reuse: what `compute-sanitizer` needs to see overruns.
    pub exact_allocation: bool,
    /// Wait for each kernel, so that a fault names the kernel that raised it.
    pub blocking_launches: bool,
    /// How the emulator runs; ignored on a GPU.
    pub emulator: EmulatorOptions,
}

/// How the emulator runs kernels.
#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    /// Report out-of-bounds and uninitialised accesses, races, barrier and pipeline misuse; about 5 times slower.
    pub checks: bool,
    /// Seed of the schedule and of the moments at which asynchronous copies complete; `None` runs a warp until it
    /// blocks and completes copies at once.
    pub seed: Option<u64>,
    /// Multiprocessors that persistent kernels are told of; small, so that small problems still share blocks.
    pub multiprocessors: u32,
    /// Shared memory of a block in bytes, from 48 to 227 KiB; `None` is that of the tier's first GPUs (64 KiB on sm_75,
    /// 163 on sm_80, 227 on sm_90a). GPUs that came later have less (99 KiB on sm_86 and sm_89) or more (227 on sm_100).
    pub shared_per_block: Option<u32>,
    /// Warp instructions after which a launch counts as a runaway.
    pub step_budget: u64,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        EmulatorOptions {
            checks: false,
            seed: None,
            multiprocessors: 4,
            shared_per_block: None,
            step_budget: u64::MAX,
        }
    }
}

/// A handle to an opened device. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    inner: Arc<DeviceInner>,
}

pub(crate) struct DeviceInner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) images: &'static Images,
    pub(crate) tier: Tier,
    pub(crate) options: DeviceOptions,
    pub(crate) pool: Pool,
    kernels: RwLock<HashMap<&'static str, Kernel>>,
    loading: Mutex<()>,
    /// What the driver said of a kernel's clusters of so many blocks with so much shared memory.
    clusters: RwLock<HashMap<(KernelId, u32, u64), u64>>,
    poison: OnceLock<Error>,
    reason: String,
}

/// A kernel that is loaded on a device.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) id: KernelId,
    pub(crate) info: Arc<ImageInfo>,
}

impl Device {
    /// The first usable GPU, else the emulator. [`Device::selection`] says which, and why.
    ///
    /// # Errors
    /// [`Error::Driver`] when a GPU is there and does not open.
    pub fn new() -> Result<Device> {
        Device::with_options(None, DeviceOptions::default())
    }

    /// The GPU with this ordinal.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or any GPU, [`Error::Range`] when there are fewer.
    pub fn cuda(ordinal: u32) -> Result<Device> {
        Device::with_options(Some(DeviceKind::Cuda(ordinal)), DeviceOptions::default())
    }

    /// The emulator.
    pub fn emulator() -> Result<Device> {
        Device::with_options(Some(DeviceKind::Emulator), DeviceOptions::default())
    }

    /// Opens a device; `None` takes the first usable GPU, else the emulator.
    ///
    /// # Errors
    /// - [`Error::NoDevice`] without a driver or any GPU, [`Error::Range`] when there are fewer.
    /// - [`Error::Unsupported`] when the GPU cannot run the images of the wanted tier.
    pub fn with_options(kind: Option<DeviceKind>, options: DeviceOptions) -> Result<Device> {
        let (backend, reason): (Arc<dyn Backend>, String) = match kind {
            Some(DeviceKind::Cuda(ordinal)) => (
                Arc::new(CudaBackend::open(ordinal)?),
                format!("cuda:{ordinal} was asked for"),
            ),
            Some(DeviceKind::Emulator) => (
                Arc::new(EmulatedBackend::new(&options)?),
                "the emulator was asked for".into(),
            ),
            None => match CudaBackend::open(0) {
                Ok(backend) => (Arc::new(backend), "the first NVIDIA GPU".into()),
                Err(Error::NoDevice { reason }) => (Arc::new(EmulatedBackend::new(&options)?), reason),
                Err(error) => return Err(error),
            },
        };
        Device::from_backend(backend, Images::embedded(), options, reason)
    }

    /// A device over any backend and set of images: how tests and tools plug their own in.
    pub fn from_backend(
        backend: Arc<dyn Backend>,
        images: &'static Images,
        options: DeviceOptions,
        reason: String,
    ) -> Result<Device> {
        let (major, minor) = backend.properties().compute_capability;
        let best = Tier::best_for(major, minor).ok_or_else(|| Error::NoDevice {
            reason: format!(
                "{} has compute capability {major}.{minor}; 7.5 is the least",
                backend.properties().name
            ),
        })?;
        let tier = match options.tier {
            Some(tier) if !tier.runs_on(major, minor) => {
                return Err(Error::Unsupported {
                    what: format!("{} (compute capability {major}.{minor})", backend.properties().name),
                    tier: Some(tier),
                });
            }
            Some(tier) => tier,
            None => best,
        };
        let pool = Pool::new(backend.clone(), options.exact_allocation)?;
        Ok(Device {
            inner: Arc::new(DeviceInner {
                backend,
                images,
                tier,
                options,
                pool,
                kernels: RwLock::default(),
                loading: Mutex::default(),
                clusters: RwLock::default(),
                poison: OnceLock::new(),
                reason,
            }),
        })
    }

    /// Facts of the device.
    pub fn properties(&self) -> &DeviceProperties {
        self.inner.backend.properties()
    }

    /// GPU or emulator.
    pub fn kind(&self) -> DeviceKind {
        self.properties().kind
    }

    /// Whether kernels run on the CPU.
    pub fn is_emulator(&self) -> bool {
        self.kind() == DeviceKind::Emulator
    }

    /// Why this device was taken, in words.
    pub fn selection(&self) -> &str {
        &self.inner.reason
    }

    /// The tier whose images it runs.
    pub fn tier(&self) -> Tier {
        self.inner.tier
    }

    /// Images that it can run.
    pub fn images(&self) -> &'static Images {
        self.inner.images
    }

    /// The backend below, for what this crate does not wrap.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// Free and total memory. What the pool keeps for reuse counts as used.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.guard(self.inner.backend.memory())
    }

    /// Bytes in live tensors now, and the most there ever were.
    pub fn allocated(&self) -> (u64, u64) {
        self.inner.pool.allocated()
    }

    /// Returns pooled memory that no tensor uses to the device.
    pub fn trim(&self) -> Result<()> {
        self.guard(self.inner.pool.trim())
    }

    /// The stream that ops use unless told otherwise.
    pub fn stream(&self) -> &Stream {
        self.inner.pool.main_stream()
    }

    /// A new stream, concurrent with all others.
    pub fn create_stream(&self) -> Result<Stream> {
        self.guard(Stream::create(&self.inner.backend))
    }

    /// Waits for the main stream.
    ///
    /// # Errors
    /// [`Error::Poisoned`] when a kernel faulted.
    pub fn synchronize(&self) -> Result<()> {
        self.synchronize_stream(self.stream())
    }

    /// Waits for a stream.
    pub fn synchronize_stream(&self, stream: &Stream) -> Result<()> {
        self.guard(self.inner.backend.synchronize(stream.id()))
    }

    /// Attributes of a kernel, loading it if need be.
    pub fn kernel_attributes(&self, entry: &str) -> Result<crate::backend::KernelAttributes> {
        let kernel = self.kernel(entry)?;
        self.guard(self.inner.backend.kernel_attributes(kernel.id))
    }

    /// Clusters of `blocks` blocks of a kernel that run at once, at least one; the driver is asked once.
    pub(crate) fn clusters_at_once(&self, entry: &str, blocks: u32, dynamic_shared: u64) -> Result<u64> {
        let kernel = self.kernel(entry)?;
        let of = (kernel.id, blocks, dynamic_shared);
        if let Some(&clusters) = self.inner.clusters.read().unwrap_or_else(|e| e.into_inner()).get(&of) {
            return Ok(clusters);
        }
        let request = LaunchRequest {
            kernel: kernel.id,
            grid: [blocks, 1, 1],
            block: kernel.info.threads,
            cluster: [blocks, 1, 1],
            dynamic_shared: dynamic_shared as u32,
            params: &[],
            stream: self.stream().id(),
            programmatic: false,
        };
        let clusters = u64::from(self.guard(self.inner.backend.clusters(&request))?.max(1));
        self.inner
            .clusters
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .insert(of, clusters);
        Ok(clusters)
    }

    /// Whether both handles are one device.
    pub fn same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Fails when a kernel faulted before.
    pub fn check_health(&self) -> Result<()> {
        self.inner.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Latches a fault; every later call reports the first one.
    pub(crate) fn guard<T>(&self, result: Result<T>) -> Result<T> {
        self.check_health()?;
        if let Err(error @ Error::Poisoned { .. }) = &result {
            let _ = self.inner.poison.set(error.clone());
        }
        result
    }

    pub(crate) fn inner(&self) -> &DeviceInner {
        &self.inner
    }

    /// Finds a loaded kernel or loads it: the driver compiles its PTX, once.
    pub(crate) fn kernel(&self, entry: &str) -> Result<Kernel> {
        self.check_health()?;
        if let Some(kernel) = self.inner.kernels.read().unwrap_or_else(|e| e.into_inner()).get(entry) {
            return Ok(kernel.clone());
        }
        let _one_at_a_time = self.inner.loading.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(kernel) = self.inner.kernels.read().unwrap_or_else(|e| e.into_inner()).get(entry) {
            return Ok(kernel.clone());
        }
        let image = self.inner.images.load(self.inner.tier, entry)?;
        let id = self.guard(self.inner.backend.load(&image))?;
        let kernel = Kernel {
            id,
            info: Arc::new(image.info),
        };
        // Entries come from the embedded manifest, a bounded set: leaking each name once is what a static would cost.
        let name: &'static str = Box::leak(entry.to_owned().into_boxed_str());
        self.inner
            .kernels
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .insert(name, kernel.clone());
        Ok(kernel)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Device({}, {}, {})",
            self.kind(),
            self.properties().name,
            self.tier()
        )
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.kind(), self.properties().name, self.tier())
    }
}
