//! The only way to start a kernel.
//!
//! An op describes a launch as a [`Contract`]; [`Contract::prepare`] checks what can be checked before the machine
//! sees it (grid limits, shared memory, argument size, devices, aliasing) and yields a [`Prepared`] launch.

use std::sync::Arc;

use kernels_gpu::params::KernelParams;
use smallvec::SmallVec;

use crate::{
    Device, Error, Result, Tier, backend::LaunchRequest, device::Kernel, memory::Buffer, stream::Stream,
    tensor::AnyTensor,
};

/// Most blocks of a cluster on any GPU.
const MAX_CLUSTER: u32 = 16;

/// A launch, described: which kernel, how many blocks, what it reads and writes.
pub struct Contract<'a> {
    device: &'a Device,
    stream: Option<&'a Stream>,
    entry: &'a str,
    grid: [u64; 3],
    dynamic_shared: u64,
    cluster: u32,
    programmatic: bool,
    reads: SmallVec<[(&'static str, &'a AnyTensor); 8]>,
    writes: SmallVec<[(&'static str, &'a AnyTensor); 4]>,
}

/// A launch whose preconditions hold.
pub struct Prepared<'a> {
    device: &'a Device,
    stream: &'a Stream,
    kernel: Kernel,
    grid: [u32; 3],
    cluster: [u32; 3],
    dynamic_shared: u32,
    programmatic: bool,
    buffers: SmallVec<[&'a Arc<Buffer>; 12]>,
}

impl<'a> Contract<'a> {
    /// A launch of `entry`, one block, no dynamic shared memory, on the main stream.
    pub fn new(device: &'a Device, entry: &'a str) -> Contract<'a> {
        Contract {
            device,
            stream: None,
            entry,
            grid: [1; 3],
            dynamic_shared: 0,
            cluster: 1,
            programmatic: false,
            reads: SmallVec::new(),
            writes: SmallVec::new(),
        }
    }

    /// Blocks in x, y, z.
    pub fn grid(mut self, grid: [u64; 3]) -> Self {
        self.grid = grid;
        self
    }

    /// Dynamic shared memory of a block, bytes.
    pub fn shared(mut self, bytes: u64) -> Self {
        self.dynamic_shared = bytes;
        self
    }

    /// Blocks of a cluster in x, for a kernel that takes any number and declares none.
    pub fn cluster(mut self, blocks: u32) -> Self {
        self.cluster = blocks;
        self
    }

    /// Stream to run in; `None` is the main stream.
    pub fn on(mut self, stream: Option<&'a Stream>) -> Self {
        self.stream = stream;
        self
    }

    /// Lets the kernel start before its predecessor has ended; it waits itself (`griddepcontrol.wait`), on the tier that
    /// knows this.
    pub fn programmatic(mut self) -> Self {
        self.programmatic = self.device.tier() == Tier::Sm90a;
        self
    }

    /// The kernel reads this tensor.
    pub fn reads(mut self, argument: &'static str, tensor: &'a AnyTensor) -> Self {
        self.reads.push((argument, tensor));
        self
    }

    /// The kernel reads this tensor if it is there.
    pub fn reads_if(self, argument: &'static str, tensor: Option<&'a AnyTensor>) -> Self {
        match tensor {
            Some(tensor) => self.reads(argument, tensor),
            None => self,
        }
    }

    /// The kernel writes this tensor (and may read it). It must not overlap any other argument.
    pub fn writes(mut self, argument: &'static str, tensor: &'a AnyTensor) -> Self {
        self.writes.push((argument, tensor));
        self
    }

    /// The kernel writes this tensor if it is there.
    pub fn writes_if(self, argument: &'static str, tensor: Option<&'a AnyTensor>) -> Self {
        match tensor {
            Some(tensor) => self.writes(argument, tensor),
            None => self,
        }
    }

    /// Checks the launch.
    ///
    /// # Errors
    /// - [`Error::Unsupported`]: no such kernel on the device's tier.
    /// - [`Error::Range`]: a grid or shared memory beyond the limits. An empty grid is refused too: zero work ends in
    ///   the op, not here.
    /// - [`Error::WrongDevice`], [`Error::Layout`]: tensors of another device, or overlapping outputs.
    /// - [`Error::Poisoned`]: a kernel faulted before.
    pub fn prepare(self) -> Result<Prepared<'a>> {
        let kernel = self.device.kernel(self.entry)?;
        let limits = [("grid.x", i32::MAX as u64), ("grid.y", 65_535), ("grid.z", 65_535)];
        let mut grid = [1u32; 3];
        let mut clusters = kernel.info.cluster;
        if self.cluster > 1 {
            if clusters != [1; 3] || self.cluster > MAX_CLUSTER || self.device.tier() != Tier::Sm90a {
                let allowed = format!(
                    "1 to {MAX_CLUSTER} on sm_90a, in a kernel that declares none ({})",
                    self.entry
                );
                return Err(Error::range("cluster", self.cluster, allowed));
            }
            clusters[0] = self.cluster;
        }
        for (axis, (argument, limit)) in limits.into_iter().enumerate() {
            let blocks = self.grid[axis];
            if blocks == 0 || blocks > limit {
                return Err(Error::range(
                    argument,
                    blocks,
                    format!("1 to {limit} (kernel {})", self.entry),
                ));
            }
            let cluster = clusters[axis];
            if !blocks.is_multiple_of(cluster as u64) {
                return Err(Error::range(
                    argument,
                    blocks,
                    format!("a multiple of the cluster extent {cluster}"),
                ));
            }
            grid[axis] = blocks as u32;
        }
        let shared_limit = self.device.properties().shared_per_block as u64;
        if self.dynamic_shared > shared_limit {
            return Err(Error::range(
                "dynamic shared memory",
                self.dynamic_shared,
                format!(
                    "at most {shared_limit} bytes on {} (kernel {})",
                    self.device, self.entry
                ),
            ));
        }
        for &(argument, tensor) in self.reads.iter().chain(&self.writes) {
            if !tensor.device().same(self.device) {
                return Err(Error::WrongDevice {
                    argument,
                    device: tensor.device().to_string(),
                    expected: self.device.to_string(),
                });
            }
        }
        for (index, &(argument, written)) in self.writes.iter().enumerate() {
            let others = self.reads.iter().chain(&self.writes[..index]);
            if let Some((other, _)) = others.into_iter().find(|(_, other)| written.overlaps(other)) {
                return Err(Error::layout(
                    argument,
                    format!("is written but shares memory with {other}; it must not"),
                ));
            }
        }
        let stream = self.stream.unwrap_or(self.device.stream());
        let buffers = self
            .reads
            .iter()
            .chain(&self.writes)
            .map(|(_, tensor)| tensor.buffer())
            .collect();
        Ok(Prepared {
            device: self.device,
            stream,
            kernel,
            grid,
            cluster: clusters,
            dynamic_shared: self.dynamic_shared as u32,
            programmatic: self.programmatic,
            buffers,
        })
    }
}

impl Prepared<'_> {
    /// Starts the kernel.
    ///
    /// # Errors
    /// - [`Error::Layout`] when the size of `P` is not the size of the kernel's argument.
    /// - [`Error::Poisoned`] when a kernel faulted before, or this one on a device that waits for each launch.
    ///
    /// # Safety
    /// - `params` is the argument struct of this kernel, and the tensors it points to are those of the contract, with
    ///   the extents and strides that it says.
    pub unsafe fn launch<P: KernelParams>(self, params: &P) -> Result<()> {
        let bytes = params.as_bytes();
        if bytes.len() != self.kernel.info.param_bytes as usize {
            return Err(Error::layout(
                "params",
                format!(
                    "{} bytes, but kernel {} takes {}",
                    bytes.len(),
                    self.kernel.info.entry,
                    self.kernel.info.param_bytes
                ),
            ));
        }
        for buffer in &self.buffers {
            buffer.used_on(self.stream);
        }
        let inner = self.device.inner();
        inner.pool.keep_for_capture(self.buffers.iter().copied());
        let request = LaunchRequest {
            kernel: self.kernel.id,
            grid: self.grid,
            block: self.kernel.info.threads,
            cluster: self.cluster,
            dynamic_shared: self.dynamic_shared,
            params: bytes,
            stream: self.stream.id(),
            programmatic: self.programmatic,
        };
        // SAFETY: the caller vouches for `params`; the contract's checks cover the rest.
        self.device.guard(unsafe { inner.backend.launch(&request) })?;
        if inner.options.blocking_launches && !inner.pool.is_capturing() {
            self.device.synchronize_stream(self.stream)?;
        }
        Ok(())
    }
}
