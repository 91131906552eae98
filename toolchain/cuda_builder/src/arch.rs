//! The GPU architectures kernels are compiled for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A GPU architecture, and with it the version of the PTX language its images are written in.
///
/// The PTX version decides the oldest driver that can load the image, so each architecture takes the lowest that has
/// the instructions its kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// Turing and every later GPU: `mma.sync` on f16, `ldmatrix`; PTX 7.4 for cache hints.
    #[serde(rename = "sm_75")]
    Sm75,
    /// Ampere, Ada and every later GPU: `cp.async`, bf16 and tf32 `mma.sync`; PTX 7.4 for L2 cache hints.
    #[serde(rename = "sm_80")]
    Sm80,
    /// Hopper only: TMA, `wgmma`, clusters, `setmaxnreg`. PTX 8.3.
    #[serde(rename = "sm_90a")]
    Sm90a,
}

impl Arch {
    /// Every architecture, oldest first.
    pub const ALL: [Arch; 3] = [Arch::Sm75, Arch::Sm80, Arch::Sm90a];

    /// The name `rustc -Ctarget-cpu` and `ptxas -arch` take.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm75 => "sm_75",
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// The LLVM feature that selects the PTX version.
    pub fn ptx_feature(self) -> &'static str {
        match self {
            Arch::Sm75 => "ptx74",
            Arch::Sm80 => "ptx74",
            Arch::Sm90a => "ptx83",
        }
    }

    /// Whether blocks can be launched in clusters.
    pub fn has_clusters(self) -> bool {
        self == Arch::Sm90a
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Arch, Error> {
        Arch::ALL
            .into_iter()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| Error::UnknownArch { name: name.into() })
    }
}
