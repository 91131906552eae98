//! The machine: memory, launches, and the public face.

pub(crate) mod cluster;
mod joins;
pub(crate) mod launch;
pub(crate) mod memory;
pub(crate) mod warp;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::checks::Checks;
use crate::fault::Error;
use crate::machine::launch::{Launch, LaunchState};
use crate::machine::memory::{GlobalMemory, Purpose};
use crate::module::Module;
use crate::statistics::Statistics;
use crate::target::Target;

/// An address in the machine's global memory, as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// The address so many bytes further.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        DeviceAddress(self.0.wrapping_add(bytes))
    }
}

struct State {
    memory: GlobalMemory,
    /// Addresses of the variables of each module that was launched here.
    modules: HashMap<u64, Vec<u64>>,
}

/// A GPU on the CPU.
///
/// All methods take `&self`; a machine may be shared between threads, whose launches and copies then run one after
/// the other, as on one CUDA stream.
pub struct Machine {
    target: Target,
    checks: Checks,
    seed: Option<u64>,
    step_budget: u64,
    threads: usize,
    state: Mutex<State>,
}

impl Machine {
    /// A machine with no checks, an unlimited step budget, 64 GiB of memory and one thread for each core.
    pub fn new(target: Target) -> Self {
        Machine {
            target,
            checks: Checks::none(),
            seed: None,
            step_budget: u64::MAX,
            threads: rayon::current_num_threads(),
            state: Mutex::new(State {
                memory: GlobalMemory::new(64 << 30),
                modules: HashMap::new(),
            }),
        }
    }

    /// Chooses the checks.
    #[must_use]
    pub fn checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self.lock().memory.tracked = checks != Checks::none();
        self
    }

    /// Explores the schedule of this seed: warps are switched and asynchronous operations complete at random moments.
    /// Without a seed a warp runs until it blocks. With one, clusters run one after the other, so that a seed always
    /// gives the same schedule.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Warp instructions after which a launch is a runaway.
    #[must_use]
    pub fn step_budget(mut self, warp_instructions: u64) -> Self {
        self.step_budget = warp_instructions;
        self
    }

    /// Threads of the CPU to use.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Limits device memory.
    #[must_use]
    pub fn memory_limit(self, bytes: u64) -> Self {
        let mut memory = GlobalMemory::new(bytes);
        memory.tracked = self.checks != Checks::none();
        self.lock().memory = memory;
        self
    }

    /// The GPU that is imitated.
    pub fn target(&self) -> Target {
        self.target
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Allocates zeroed (but, for the checks, uninitialised) global memory at a multiple of 256 bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the machine's limit or the host's memory does not hold it.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceAddress, Error> {
        self.lock()
            .memory
            .allocate(bytes as u64, Purpose::Global, None)
            .map(DeviceAddress)
    }

    /// Frees an allocation. Its addresses are not used again.
    ///
    /// # Errors
    /// [`Error::Address`] when the address is not the start of an allocation.
    pub fn free(&self, address: DeviceAddress) -> Result<(), Error> {
        self.lock().memory.free(address.0)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// [`Error::Address`] when the range is not within one allocation.
    pub fn write(&self, address: DeviceAddress, bytes: &[u8]) -> Result<(), Error> {
        let state = self.lock();
        let to = state.memory.range("write", address.0, bytes.len())?;
        // SAFETY: the range is allocated, and the lock keeps launches and other copies away.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        state.memory.defined(address.0, bytes.len());
        Ok(())
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// [`Error::Address`] when the range is not within one allocation.
    pub fn read(&self, address: DeviceAddress, bytes: &mut [u8]) -> Result<(), Error> {
        let state = self.lock();
        let from = state.memory.range("read", address.0, bytes.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Sets bytes.
    ///
    /// # Errors
    /// [`Error::Address`] when the range is not within one allocation.
    pub fn fill(&self, address: DeviceAddress, value: u8, bytes: usize) -> Result<(), Error> {
        let state = self.lock();
        let to = state.memory.range("fill", address.0, bytes)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(to, value, bytes) };
        state.memory.defined(address.0, bytes);
        Ok(())
    }

    /// Copies within the device; the ranges may overlap.
    ///
    /// # Errors
    /// [`Error::Address`] when a range is not within one allocation.
    pub fn copy(&self, from: DeviceAddress, to: DeviceAddress, bytes: usize) -> Result<(), Error> {
        let state = self.lock();
        let source = state.memory.range("copy", from.0, bytes)?;
        let target = state.memory.range("copy", to.0, bytes)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy(source, target, bytes) };
        state.memory.defined(to.0, bytes);
        Ok(())
    }

    /// Marks a range as secret or not secret, for [`Checks::taint`].
    ///
    /// # Errors
    /// [`Error::Address`] when the range is not within one allocation.
    pub fn mark_secret(&self, address: DeviceAddress, bytes: usize, secret: bool) -> Result<(), Error> {
        let state = self.lock();
        state.memory.range("mark", address.0, bytes)?;
        state.memory.secret(address.0, bytes, secret);
        Ok(())
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::NoEntry`], [`Error::Load`] when the entry reaches something that is not modelled,
    /// [`Error::Argument`] when the target does not allow the launch, [`Error::Fault`] when the kernel faults.
    pub fn launch(&self, module: &Module, entry: &str, launch: &Launch<'_>) -> Result<Statistics, Error> {
        let program = module.program(entry)?;
        self.validate(&program, launch)?;
        let mut state = self.lock();
        let State { memory, modules } = &mut *state;
        let symbols = match modules.get(&module.id()) {
            Some(symbols) => symbols.clone(),
            None => {
                let symbols = module.place(memory)?;
                modules.insert(module.id(), symbols.clone());
                symbols
            }
        };
        if launch.grid.contains(&0) {
            return Ok(Statistics::default());
        }
        let mut params = vec![0u128; launch.params.len().div_ceil(16)];
        for (i, byte) in launch.params.iter().enumerate() {
            params[i / 16] |= u128::from(*byte) << (i % 16 * 8);
        }
        let shape = LaunchState {
            program: &program,
            global: memory,
            params: &params,
            checks: self.checks,
            labels: self.checks.uninitialised || self.checks.taint,
            watched: self.checks != Checks::none(),
            registers_watched: self.checks.asynchronous && program.kinds.iter().any(|k| k.starts_with("wgmma")),
            seed: self.seed.unwrap_or(0),
            random_schedule: self.seed.is_some(),
            target: self.target,
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            dynamic_shared: launch.dynamic_shared_bytes,
            symbols: &symbols,
            objects: Mutex::default(),
        };
        if shape.watched {
            memory.forget_accesses();
        }
        launch::run(&shape, self.step_budget, self.threads)
    }

    fn validate(&self, program: &crate::program::Program, launch: &Launch<'_>) -> Result<(), Error> {
        let refuse = |argument, value: String, allowed: String| {
            Err(Error::Argument {
                argument,
                value,
                allowed,
            })
        };
        let entry = &program.entry;
        let limits = [
            ("grid.x", 0, i32::MAX as u32),
            ("grid.y", 1, 65535),
            ("grid.z", 2, 65535),
        ];
        for (argument, i, limit) in limits {
            if launch.grid[i] > limit {
                return refuse(argument, launch.grid[i].to_string(), format!("up to {limit}"));
            }
        }
        let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
        let limit = u64::from(self.target.block_threads);
        if threads == 0 || threads > limit || launch.block[2] > 64 {
            return refuse(
                "block",
                format!("{:?}", launch.block),
                format!("1 to {limit} threads, z up to 64"),
            );
        }
        if let Some(required) = entry.required_block
            && launch.block != required
        {
            return refuse(
                "block",
                format!("{:?}", launch.block),
                format!("the entry's .reqntid, {required:?}"),
            );
        }
        if let Some(largest) = entry.largest_block {
            let most: u64 = largest.iter().map(|&n| u64::from(n)).product();
            if threads > most {
                return refuse(
                    "block",
                    format!("{:?}", launch.block),
                    format!("the entry's .maxntid, {most} threads"),
                );
            }
        }
        let ctas: u64 = launch.cluster.iter().map(|&n| u64::from(n)).product();
        if ctas == 0 || ctas > u64::from(self.target.cluster_ctas) {
            let allowed = format!("1 to {} CTAs on {}", self.target.cluster_ctas, self.target.name);
            return refuse("cluster", format!("{:?}", launch.cluster), allowed);
        }
        if let Some(required) = entry.required_cluster
            && launch.cluster != required
        {
            return refuse(
                "cluster",
                format!("{:?}", launch.cluster),
                format!("the entry's, {required:?}"),
            );
        }
        if (0..3).any(|i| !launch.grid[i].is_multiple_of(launch.cluster[i])) {
            return refuse(
                "grid",
                format!("{:?}", launch.grid),
                format!("multiples of {:?}", launch.cluster),
            );
        }
        let shared = u64::from(program.dynamic_shared_at) + u64::from(launch.dynamic_shared_bytes);
        if shared > u64::from(self.target.shared_bytes) {
            let allowed = format!("up to {} bytes on {}", self.target.shared_bytes, self.target.name);
            return refuse("shared memory (static and dynamic)", shared.to_string(), allowed);
        }
        if launch.params.len() != entry.parameter_bytes {
            let allowed = format!(
                "{} bytes for {} parameters",
                entry.parameter_bytes,
                entry.parameters.len()
            );
            return refuse("params", format!("{} bytes", launch.params.len()), allowed);
        }
        Ok(())
    }
}
