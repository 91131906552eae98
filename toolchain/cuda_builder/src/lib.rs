//! Compiles a crate of Rust kernels to PTX with rustc's own NVPTX backend, checks the PTX and packs it.
//!
//! The call has the shape users of Rust-CUDA know:
//!
//! ```no_run
//! use cuda_builder::{Arch, CudaBuilder};
//!
//! let bundle = CudaBuilder::new("kernels-gpu").arch(Arch::Sm80).arch(Arch::Sm90a).build()?;
//! std::fs::write("images.zip", bundle.to_zip()?)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How a kernel becomes an image
//! 1. [`toolchain`](Toolchain): the night that the kernel crate's `rust-toolchain.toml` pins is found, or installed
//!    through rustup.
//! 2. `compile`: Cargo builds `core` and the device crates once. Then rustc compiles each *unit* of `units.toml` for each
//!    of its architectures, in parallel; units whose sources did not change are taken from the cache.
//! 3. [`image`]: the compiler's PTX is split into one image a kernel. Launch bounds, which rustc has no attribute for, are
//!    written from the annotation that `cuda_std::kernel!` leaves beside the entry ([`annotation`]), and names that depend
//!    on the build are replaced: equal sources give equal text.
//! 4. [`lint`]: mistakes that are visible in the PTX stop the build, with kernel, rule and line.
//! 5. [`Bundle`]: images and a manifest become one zip file, equal bytes for equal sources.
//!
//! [`script`] is the build script of a crate that embeds such an archive; the command `cuda_builder` writes, checks
//! and assembles it.

pub mod annotation;
mod arch;
pub mod assemble;
mod bundle;
mod compile;
mod error;
mod event;
mod fingerprint;
pub mod image;
pub mod lint;
mod parallel;
pub mod ptx;
pub mod script;
mod toolchain;
pub mod units;

use std::path::{Path, PathBuf};

pub use arch::Arch;
pub use bundle::{Bundle, Kernel, Manifest};
pub use error::Error;
pub use event::Event;
pub use fingerprint::{BUILDER_VERSION, Sources};
pub use toolchain::Toolchain;

/// Builds the kernels of one crate.
pub struct CudaBuilder {
    kernel_crate: PathBuf,
    archs: Vec<Arch>,
    units: Vec<String>,
    target_dir: Option<PathBuf>,
    offline: bool,
    deny_warnings: bool,
    report: Box<dyn Fn(&Event)>,
}

impl CudaBuilder {
    /// A builder for the kernel crate at this path: its folder holds `Cargo.toml`, `units.toml` and `rust-toolchain.toml`.
    pub fn new(kernel_crate: impl AsRef<Path>) -> CudaBuilder {
        CudaBuilder {
            kernel_crate: kernel_crate.as_ref().to_path_buf(),
            archs: Vec::new(),
            units: Vec::new(),
            target_dir: None,
            offline: false,
            deny_warnings: false,
            report: Box::new(|event| eprintln!("{event}")),
        }
    }

    /// Builds for this architecture, and those of other calls; without a call, for every one that `units.toml` names.
    pub fn arch(mut self, arch: Arch) -> CudaBuilder {
        self.archs.push(arch);
        self
    }

    /// Builds this unit, and those of other calls; without a call, every one.
    pub fn unit(mut self, name: impl Into<String>) -> CudaBuilder {
        self.units.push(name.into());
        self
    }

    /// Where compiled units are kept; `target/nvptx` in the folder above the kernel crate if not set.
    pub fn target_dir(mut self, folder: impl AsRef<Path>) -> CudaBuilder {
        self.target_dir = Some(folder.as_ref().to_path_buf());
        self
    }

    /// Forbids using the network: a missing toolchain is an error.
    pub fn offline(mut self, offline: bool) -> CudaBuilder {
        self.offline = offline;
        self
    }

    /// Makes rustc's warnings errors.
    pub fn deny_warnings(mut self, deny: bool) -> CudaBuilder {
        self.deny_warnings = deny;
        self
    }

    /// Receives what happens; standard error does if not set.
    pub fn report(mut self, report: impl Fn(&Event) + 'static) -> CudaBuilder {
        self.report = Box::new(report);
        self
    }

    /// Compiles, splits and checks the kernels.
    ///
    /// # Errors
    /// Everything in [`Error`] but the variants about existing archives and `ptxas`.
    pub fn build(&self) -> Result<Bundle, Error> {
        let root = std::path::absolute(&self.kernel_crate).map_err(Error::io(&self.kernel_crate))?;
        let sources = Sources::find(&root)?;
        let hash = sources.hash()?;
        let units = units::read(&root.join("units.toml"))?;
        for name in &self.units {
            if !units.iter().any(|unit| unit.name == *name) {
                let known: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
                return Err(Error::UnknownUnit {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
        let units: Vec<&units::Unit> = units
            .iter()
            .filter(|unit| self.units.is_empty() || self.units.contains(&unit.name))
            .collect();
        let jobs: Vec<compile::Job<'_>> = units
            .iter()
            .flat_map(|&unit| unit.tiers.iter().map(move |&arch| compile::Job { unit, arch }))
            .filter(|job| self.archs.is_empty() || self.archs.contains(&job.arch))
            .collect();

        let cache = match &self.target_dir {
            Some(folder) => std::path::absolute(folder).map_err(Error::io(folder))?,
            None => root.parent().unwrap_or(&root).join("target").join("nvptx"),
        };
        let toolchain = Toolchain::find(&root, self.offline, &*self.report)?;
        let compiler = compile::Compiler {
            sources: &sources,
            toolchain: &toolchain,
            cache: &cache,
            offline: self.offline,
            deny_warnings: self.deny_warnings,
        };
        let compiled = compiler.compile(&jobs, &*self.report)?;
        for unit in compiled.iter().filter(|unit| !unit.warnings.is_empty()) {
            (self.report)(&Event::Warning {
                unit: unit.unit.clone(),
                arch: unit.arch,
                diagnostics: unit.warnings.clone(),
            });
        }
        let (mut images, mut failures) = (Vec::new(), Vec::new());
        for (unit_images, unit_failures) in parallel::map(&compiled, |unit| {
            let images = image::split(&unit.unit, unit.arch, &unit.text)?;
            let failures: Vec<lint::LintFailure> = images.iter().flat_map(lint::check).collect();
            Ok((images, failures))
        })? {
            images.extend(unit_images);
            failures.extend(unit_failures);
        }
        if !failures.is_empty() {
            return Err(Error::Lint(failures));
        }
        Bundle::new(hash, images)
    }
}
