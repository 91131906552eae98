//! Starting kernels.

use std::{ffi::c_void, ptr::null_mut};

use driver::{DriverError, LaunchAttribute, LaunchConfig, calls, handle};

use super::{
    CudaBackend,
    errors::{describe_code, is_fault},
};
use crate::{Error, Result, backend::LaunchRequest};

impl CudaBackend {
    /// # Safety
    /// - `params` matches the kernel's argument and every address in it is valid for what the kernel does until the
    ///   launch has ended.
    #[inline]
    pub(super) unsafe fn start_kernel(&self, request: &LaunchRequest<'_>) -> Result<()> {
        self.bind()?;
        let kernel = self.kernel(request.kernel)?;
        let stream = self.streams.get(request.stream.0)?;
        // The driver copies as many bytes as the kernel's PTX declares, whatever it is given.
        if request.params.len() != kernel.param_bytes {
            return Err(Error::layout(
                "params",
                format!(
                    "{} bytes, but kernel {} takes {}",
                    request.params.len(),
                    kernel.entry(),
                    kernel.param_bytes
                ),
            ));
        }
        // A kernel has one argument, passed by value: one pointer, to its bytes. The driver copies before it returns.
        let mut argument = request.params.as_ptr().cast_mut().cast::<c_void>();
        let arguments = &raw mut argument;
        stream.note_kernel(request.kernel.0);
        let attributes = Attributes::of(request);
        let started = if attributes.count == 0 {
            let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (request.grid, request.block);
            // SAFETY: kernel and stream are alive and of the current context; the argument is by contract.
            unsafe {
                calls::launch_kernel(
                    kernel.function,
                    grid_x,
                    grid_y,
                    grid_z,
                    block_x,
                    block_y,
                    block_z,
                    request.dynamic_shared,
                    stream.raw,
                    arguments,
                    null_mut(),
                )
            }
        } else {
            let config = attributes.config(request, stream.raw);
            // SAFETY: as above; the attributes outlive the call.
            unsafe { calls::launch_kernel_ex(&config, kernel.function, arguments, null_mut()) }
        };
        match started {
            Ok(()) => Ok(()),
            Err(DriverError::Failed { function, code }) if !is_fault(code) => {
                Err(refused(function, code, kernel.entry(), request))
            }
            Err(error) => Err(self.error(error, Some(&stream))),
        }
    }

    pub(super) fn clusters_at_once(&self, request: &LaunchRequest) -> Result<u32> {
        self.bind()?;
        let kernel = self.kernel(request.kernel)?;
        let stream = self.streams.get(request.stream.0)?;
        let attributes = Attributes::of(request);
        let config = attributes.config(request, stream.raw);
        let mut clusters = 0;
        // SAFETY: kernel and stream are alive; the attributes outlive the call, which writes one int to a live local.
        self.check(unsafe { calls::occupancy_max_active_clusters(&mut clusters, kernel.function, &config) })?;
        Ok(clusters.max(0) as u32)
    }
}

/// Launch attributes, of which the first `count` count.
struct Attributes {
    list: [LaunchAttribute; 2],
    count: u32,
}

impl Attributes {
    #[inline]
    fn of(request: &LaunchRequest<'_>) -> Attributes {
        let mut attributes = Attributes {
            list: [LaunchAttribute::programmatic(); 2],
            count: 0,
        };
        if request.cluster != [1; 3] {
            attributes.push(LaunchAttribute::cluster(request.cluster));
        }
        if request.programmatic {
            attributes.push(LaunchAttribute::programmatic());
        }
        attributes
    }

    /// The launch that `request` asks for with these, which must outlive the call it is given to.
    fn config(&self, request: &LaunchRequest<'_>, stream: handle::Stream) -> LaunchConfig {
        LaunchConfig {
            grid: request.grid,
            block: request.block,
            dynamic_shared: request.dynamic_shared,
            stream,
            attributes: self.list.as_ptr(),
            attribute_count: self.count,
        }
    }

    fn push(&mut self, attribute: LaunchAttribute) {
        self.list[self.count as usize] = attribute;
        self.count += 1;
    }
}

#[cold]
fn refused(call: &'static str, code: u32, entry: &str, request: &LaunchRequest<'_>) -> Error {
    Error::Driver {
        call,
        code,
        name: format!(
            "{}; kernel {entry}, grid {:?}, block {:?}, cluster {:?}, {} bytes of dynamic shared memory",
            describe_code(code),
            request.grid,
            request.block,
            request.cluster,
            request.dynamic_shared
        ),
    }
}
