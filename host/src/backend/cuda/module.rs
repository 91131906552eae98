//! Loading kernels, and what the driver says of them.

use std::{
    ffi::CString,
    sync::{Arc, PoisonError},
};

use cust::module::Module;
use driver::{DriverError, calls, code, handle};

use super::{
    CudaBackend,
    errors::{is_fault, load_problem},
};
use crate::{
    Error, Result, Tier,
    backend::{KernelAttributes, KernelId},
    images::{Image, ImageInfo},
};

/// `CUfunction_attribute`.
mod attribute {
    pub const MAX_THREADS_PER_BLOCK: u32 = 0;
    pub const SHARED_SIZE_BYTES: u32 = 1;
    pub const CONST_SIZE_BYTES: u32 = 2;
    pub const LOCAL_SIZE_BYTES: u32 = 3;
    pub const NUM_REGS: u32 = 4;
    pub const PTX_VERSION: u32 = 5;
    pub const BINARY_VERSION: u32 = 6;
    pub const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
    pub const NON_PORTABLE_CLUSTER_SIZE_ALLOWED: u32 = 14;
}

/// Blocks of a cluster that every GPU with clusters grants.
const PORTABLE_CLUSTER: u32 = 8;

/// A kernel and the module that holds it.
pub(super) struct LoadedKernel {
    info: ImageInfo,
    /// Bytes of the argument.
    pub(super) param_bytes: usize,
    pub(super) function: handle::Function,
    /// Keeps the code loaded.
    _module: Module,
}

impl LoadedKernel {
    pub(super) fn entry(&self) -> &str {
        &self.info.entry
    }
}

impl CudaBackend {
    pub(super) fn load_kernel(&self, image: &Image) -> Result<KernelId> {
        self.bind()?;
        let info = &image.info;
        let refuse = |log: String| Error::Load {
            kernel: info.entry.clone(),
            log,
        };
        // `cust` panics on these.
        let text = CString::new(image.ptx.as_str())
            .map_err(|error| refuse(format!("its PTX has a NUL byte at {}", error.nul_position())))?;
        if info.entry.contains('\0') {
            return Err(refuse("its name has a NUL byte".to_owned()));
        }
        let module = Module::from_ptx_cstr(&text, &[]).map_err(|error| self.load_error(image, &text, error as u32))?;
        let function = module
            .get_function(&info.entry)
            .map_err(|error| self.refused_load(image, error as u32, ""))?
            .to_raw();
        let function = handle::Function(function.cast());
        self.allow_shared_memory(function)?;
        // A kernel that declares no cluster may be launched in any.
        let declared = info.cluster.into_iter().fold(1, u32::saturating_mul);
        if declared > PORTABLE_CLUSTER || (declared == 1 && info.tier == Tier::Sm90a) {
            // SAFETY: the function is alive: its module is.
            self.check(unsafe {
                calls::func_set_attribute(function, attribute::NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
            })?;
        }
        let param_bytes = self
            .declared_param_bytes(function)?
            .unwrap_or(info.param_bytes as usize);
        if param_bytes != info.param_bytes as usize {
            return Err(refuse(format!(
                "its PTX declares an argument of {param_bytes} bytes, the manifest says {}",
                info.param_bytes
            )));
        }
        let mut kernels = self.kernels.write().unwrap_or_else(PoisonError::into_inner);
        kernels.push(Arc::new(LoadedKernel {
            info: info.clone(),
            param_bytes,
            function,
            _module: module,
        }));
        Ok(KernelId(kernels.len() as u64 - 1))
    }

    /// Lets a kernel use all shared memory that a block can have beside what it declares: without this a launch gets
    /// 48 KB.
    fn allow_shared_memory(&self, function: handle::Function) -> Result<()> {
        let declared = self.function_attribute(function, attribute::SHARED_SIZE_BYTES)?;
        let dynamic = self.properties.shared_per_block.saturating_sub(declared);
        // SAFETY: the function is alive: its caller holds its module.
        self.check(unsafe {
            calls::func_set_attribute(function, attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic as i32)
        })
    }

    /// Size of a kernel's only argument as its PTX declares it; `None` where the driver is too old to say.
    fn declared_param_bytes(&self, function: handle::Function) -> Result<Option<usize>> {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is alive; writes two words to live locals.
        match unsafe { calls::func_get_param_info(function, 0, &mut offset, &mut size) } {
            Ok(()) => Ok(Some(size)),
            Err(DriverError::TooOld { .. }) => Ok(None),
            // There is no parameter 0.
            Err(DriverError::Failed {
                code: code::INVALID_VALUE,
                ..
            }) => Ok(Some(0)),
            Err(error) => Err(self.error(error, None)),
        }
    }

    /// Loads a refused image again, this time with a log and the driver's exact code, to say why.
    #[cold]
    fn load_error(&self, image: &Image, text: &CString, first: u32) -> Error {
        // SAFETY: the context is current.
        match unsafe { driver::load_module(text, None, false) } {
            Err(failure) => match failure.cause {
                DriverError::Failed { code, .. } => self.refused_load(image, code, &failure.log.error),
                other => self.error(other, None),
            },
            Ok((module, _)) => {
                // SAFETY: the module is ours and nothing of it runs.
                let _ = unsafe { calls::module_unload(module) };
                self.refused_load(image, first, "")
            }
        }
    }

    #[cold]
    fn refused_load(&self, image: &Image, code: u32, log: &str) -> Error {
        let failed = || {
            Err(DriverError::Failed {
                function: "cuModuleLoadDataEx",
                code,
            })
        };
        if code == code::OUT_OF_MEMORY {
            let requested = image.ptx.len() as u64;
            return self
                .check_memory(requested, failed())
                .expect_err("the code is an error");
        }
        if is_fault(code) {
            return self.check(failed()).expect_err("the code is an error");
        }
        let (major, minor) = self.properties.compute_capability;
        let device = format!("{} (compute capability {major}.{minor})", self.properties.name);
        Error::Load {
            kernel: image.info.entry.clone(),
            log: load_problem(code, &image.info, &device, log),
        }
    }

    fn function_attribute(&self, function: handle::Function, which: u32) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the function is alive: its module is; writes one int to a live local.
        self.check(unsafe { calls::func_get_attribute(&mut value, which, function) })?;
        Ok(value.max(0) as u32)
    }

    pub(super) fn attributes_of(&self, kernel: KernelId) -> Result<KernelAttributes> {
        self.bind()?;
        let function = self.kernel(kernel)?.function;
        let attribute = |which| self.function_attribute(function, which);
        Ok(KernelAttributes {
            registers: attribute(attribute::NUM_REGS)?,
            static_shared: attribute(attribute::SHARED_SIZE_BYTES)?,
            local: attribute(attribute::LOCAL_SIZE_BYTES)?,
            constant: attribute(attribute::CONST_SIZE_BYTES)?,
            max_threads: attribute(attribute::MAX_THREADS_PER_BLOCK)?,
            ptx_version: attribute(attribute::PTX_VERSION)?,
            binary_version: attribute(attribute::BINARY_VERSION)?,
        })
    }

    pub(super) fn blocks_per_multiprocessor(&self, kernel: KernelId, threads: u32, shared: u32) -> Result<u32> {
        self.bind()?;
        let threads = i32::try_from(threads).map_err(|_| Error::range("threads", threads, "at most 1024"))?;
        let kernel = self.kernel(kernel)?;
        let mut blocks = 0;
        // SAFETY: the function is alive: its module is; writes one int to a live local.
        self.check(unsafe {
            calls::occupancy_max_active_blocks_per_multiprocessor(
                &mut blocks,
                kernel.function,
                threads,
                shared as usize,
            )
        })?;
        Ok(blocks.max(0) as u32)
    }
}
