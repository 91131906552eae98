//! What a build tells while it runs.

use std::fmt;

use crate::Arch;

/// A step of a build, or something its user should see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The device toolchain is missing and is being installed by this command.
    Installing {
        /// The rustup command.
        command: String,
    },
    /// `core` and the crates that the kernels depend on are being built.
    Dependencies,
    /// Units are being compiled.
    Compiling {
        /// Units, counted once for each architecture, whose sources changed.
        stale: usize,
        /// All of them.
        total: usize,
    },
    /// rustc warned about a unit.
    Warning {
        /// The unit.
        unit: String,
        /// The architecture.
        arch: Arch,
        /// rustc's diagnostics, several lines.
        diagnostics: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Installing { command } => write!(f, "installing the device toolchain, once: {command}"),
            Event::Dependencies => f.write_str("building core and the device crates for the GPU"),
            Event::Compiling { stale, total } => write!(f, "compiling {stale} of {total} kernel units for the GPU"),
            Event::Warning {
                unit,
                arch,
                diagnostics,
            } => write!(f, "unit `{unit}` for {arch}:\n{diagnostics}"),
        }
    }
}
