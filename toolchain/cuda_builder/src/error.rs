//! What can go wrong between device sources and a checked archive of PTX.

use std::path::{Path, PathBuf};

use crate::Arch;
use crate::lint::LintFailure;

/// A failure of the device build. Every variant names what it happened to and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`: {source}")]
    Start {
        /// The program, as it was called.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An architecture that is none of [`Arch::ALL`].
    #[error("unknown architecture `{name}`: expected sm_75, sm_80 or sm_90a")]
    UnknownArch {
        /// What was asked for.
        name: String,
    },
    /// A unit that `units.toml` does not list.
    #[error("unknown unit `{name}`: units.toml lists {known}")]
    UnknownUnit {
        /// What was asked for.
        name: String,
        /// The units there are.
        known: String,
    },
    /// A configuration file (`units.toml`, `Cargo.toml`, `rust-toolchain.toml`) does not hold what it must.
    #[error("{path}: {message}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        message: String,
    },
    /// The pinned device toolchain is not installed and could not be, or must not be, installed.
    #[error(
        "the device toolchain {channel} is needed to build kernels from source, {reason}. Install it with\n    {command}"
    )]
    Toolchain {
        /// The pinned channel.
        channel: String,
        /// Why it is not there.
        reason: String,
        /// The command that installs it.
        command: String,
    },
    /// Cargo could not build `core` and the crates the kernels depend on.
    #[error("the device crates did not build:\n{output}")]
    Dependencies {
        /// What Cargo printed.
        output: String,
    },
    /// rustc rejected a unit.
    #[error("unit `{unit}` did not compile for {arch}:\n{diagnostics}")]
    Compile {
        /// The unit.
        unit: String,
        /// The architecture.
        arch: Arch,
        /// rustc's diagnostics.
        diagnostics: String,
    },
    /// The compiler's output is not the PTX this crate knows how to split.
    #[error("PTX of unit `{unit}` for {arch}, line {line}: {message}")]
    Ptx {
        /// The unit.
        unit: String,
        /// The architecture.
        arch: Arch,
        /// Line in the compiler's output, from 1.
        line: usize,
        /// What was found.
        message: String,
    },
    /// An entry without annotation, an annotation without entry, or one that makes no sense.
    #[error("kernel `{entry}` of unit `{unit}` for {arch}: {message}")]
    Annotation {
        /// The unit.
        unit: String,
        /// The architecture.
        arch: Arch,
        /// The entry the annotation names.
        entry: String,
        /// What is wrong.
        message: String,
    },
    /// Two units define the same entry for one architecture.
    #[error("kernel `{entry}` for {arch} is defined by unit `{first}` and by unit `{second}`")]
    Duplicate {
        /// The entry.
        entry: String,
        /// The architecture.
        arch: Arch,
        /// One unit.
        first: String,
        /// The other.
        second: String,
    },
    /// Images broke rules of [`crate::lint`].
    #[error("{} in the generated PTX:\n{}", count(.0.len(), "rule broken", "rules broken"), list(.0))]
    Lint(Vec<LintFailure>),
    /// An archive is not one that this crate wrote.
    #[error("{origin}: not a kernel archive: {message}")]
    Archive {
        /// Where the archive came from.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
    /// The archive in the repository is not what the sources give.
    #[error("{path} is stale: {message}\nRewrite it with\n    cargo run -p cuda_builder -- write", path = path.display())]
    Stale {
        /// The archive.
        path: PathBuf,
        /// How it differs.
        message: String,
    },
    /// ptxas rejected images, or they spill.
    #[error("{} found by ptxas:\n{}", count(.0.len(), "problem", "problems"), .0.join("\n"))]
    Assemble(Vec<String>),
}

impl Error {
    /// Wraps an I/O error with the path it happened to.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// A configuration file that does not hold what it must.
    pub(crate) fn config(path: impl AsRef<Path>, message: impl ToString) -> Error {
        Error::Config {
            path: path.as_ref().to_path_buf(),
            message: message.to_string(),
        }
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn list(failures: &[LintFailure]) -> String {
    failures
        .iter()
        .map(|failure| format!("  {failure}"))
        .collect::<Vec<_>>()
        .join("\n")
}
