//! The PTX images: one per kernel entry and GPU tier, compiled from `kernels-gpu` and embedded compressed.
//!
//! An archive is a zip file with `manifest.json` and one `.ptx` member an image, written by `cuda_builder`. Images are
//! unpacked one at a time, when a kernel is first launched.

use std::{collections::HashMap, io::Read, sync::OnceLock};

use serde::Deserialize;

use crate::{Error, Result};

/// A generation of GPUs that kernels are compiled for. Later tiers run the images of earlier ones, except that
/// `sm_90a` images run on compute capability 9.0 alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum Tier {
    /// Turing (T4) and later: `mma.m16n8k8`, `ldmatrix`.
    #[serde(rename = "sm_75")]
    Sm75,
    /// Ampere (A100, L4) and later: `mma.m16n8k16`, bf16, `cp.async`.
    #[serde(rename = "sm_80")]
    Sm80,
    /// Hopper (H100, H200) only: `wgmma`, TMA, `mbarrier`, clusters.
    #[serde(rename = "sm_90a")]
    Sm90a,
}

impl Tier {
    /// All tiers, best first.
    pub const ALL: [Tier; 3] = [Tier::Sm90a, Tier::Sm80, Tier::Sm75];

    /// The architecture's name, as rustc and ptxas spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Sm75 => "sm_75",
            Tier::Sm80 => "sm_80",
            Tier::Sm90a => "sm_90a",
        }
    }

    /// The tier whose kernels serve this one too where it has none of its own. Nothing of sm_75 is left to later tiers:
    /// what they have no kernel for, they do in another way.
    pub const fn before(self) -> Option<Tier> {
        match self {
            Tier::Sm90a => Some(Tier::Sm80),
            Tier::Sm80 | Tier::Sm75 => None,
        }
    }

    /// Whether a GPU of this compute capability runs images of this tier.
    pub const fn runs_on(self, major: u32, minor: u32) -> bool {
        match self {
            Tier::Sm75 => major * 10 + minor >= 75,
            Tier::Sm80 => major >= 8,
            Tier::Sm90a => major == 9 && minor == 0,
        }
    }

    /// The best tier that a GPU of this compute capability runs.
    pub fn best_for(major: u32, minor: u32) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| tier.runs_on(major, minor))
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Tier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Tier> {
        Tier::ALL
            .into_iter()
            .find(|tier| tier.name() == text)
            .ok_or_else(|| Error::range("tier", text, "sm_75, sm_80 or sm_90a"))
    }
}

/// What the builder knows of one image.
#[derive(Clone, Debug, Deserialize)]
pub struct ImageInfo {
    /// Entry name, unique within a tier.
    pub entry: String,
    /// Compilation unit that it comes from.
    pub unit: String,
    /// GPU generation.
    pub tier: Tier,
    /// Exact block shape (`.reqntid`).
    pub threads: [u32; 3],
    /// Blocks of a cluster; all ones without clusters.
    pub cluster: [u32; 3],
    /// Size of the argument, bytes.
    pub param_bytes: u32,
    /// PTX ISA version of the image, such as `8.3`.
    pub ptx_version: String,
    /// Member of the archive.
    pub file: String,
}

impl ImageInfo {
    /// What no kernel can have, if there is such a thing: limits of CUDA on blocks, clusters and arguments.
    fn problem(&self) -> Option<String> {
        let count = |extents: [u32; 3]| extents.into_iter().map(u64::from).try_fold(1u64, u64::checked_mul);
        if !count(self.threads).is_some_and(|threads| (1..=1024).contains(&threads)) {
            return Some(format!(
                "has blocks of {:?} threads; 1 to 1024 are allowed",
                self.threads
            ));
        }
        if !count(self.cluster).is_some_and(|blocks| (1..=16).contains(&blocks)) {
            return Some(format!(
                "has clusters of {:?} blocks; 1 to 16 are allowed",
                self.cluster
            ));
        }
        if self.param_bytes > 32_764 {
            return Some(format!("takes {} bytes; at most 32764 are allowed", self.param_bytes));
        }
        None
    }
}

/// One kernel's PTX, unpacked.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the builder knows of it.
    pub info: ImageInfo,
    /// PTX text.
    pub ptx: String,
}

#[derive(Deserialize)]
struct Manifest {
    kernels: Vec<ImageInfo>,
}

/// A set of images.
pub struct Images {
    archive: &'static [u8],
    index: HashMap<(Tier, String), ImageInfo>,
}

/// The largest PTX member that is unpacked; ours are below 1 MB.
const MEMBER_LIMIT: u64 = 64 << 20;

impl Images {
    /// Opens an archive.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not one.
    pub fn open(archive: &'static [u8]) -> Result<Images> {
        let text = member(archive, "manifest.json")?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| format_error("manifest.json", error.to_string()))?;
        let mut index = HashMap::with_capacity(manifest.kernels.len());
        for info in manifest.kernels {
            let problem = info.problem().or_else(|| {
                index
                    .contains_key(&(info.tier, info.entry.clone()))
                    .then(|| "is listed twice".to_owned())
            });
            if let Some(problem) = problem {
                let problem = format!("kernel {} of {} {problem}", info.entry, info.tier);
                return Err(format_error("manifest.json", problem));
            }
            index.insert((info.tier, info.entry.clone()), info);
        }
        Ok(Images { archive, index })
    }

    /// The images that travel with this build of the library.
    pub fn embedded() -> &'static Images {
        static EMBEDDED: OnceLock<Images> = OnceLock::new();
        EMBEDDED.get_or_init(|| {
            Images::open(include_bytes!(env!("FERROFLASH_IMAGES"))).expect("the build script wrote this archive")
        })
    }

    /// What is known of the image that a tier runs for an entry: its own, or that of the tier before, where there is no
    /// better one to have.
    pub fn info(&self, tier: Tier, entry: &str) -> Option<&ImageInfo> {
        let of = |tier: Tier| self.index.get(&(tier, entry.to_owned()));
        of(tier).or_else(|| of(tier.before()?))
    }

    /// All images, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &ImageInfo> {
        self.index.values()
    }

    /// Unpacks one image.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none of that name for that tier.
    pub fn load(&self, tier: Tier, entry: &str) -> Result<Image> {
        let info = self
            .info(tier, entry)
            .ok_or_else(|| Error::Unsupported {
                what: format!("kernel {entry}"),
                tier: Some(tier),
            })?
            .clone();
        let ptx = member(self.archive, &info.file)?;
        Ok(Image { info, ptx })
    }
}

fn member(archive: &[u8], name: &str) -> Result<String> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive))
        .map_err(|error| format_error("PTX archive", error.to_string()))?;
    let file = zip
        .by_name(name)
        .map_err(|error| format_error(name, error.to_string()))?;
    let mut text = String::new();
    file.take(MEMBER_LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(|error| format_error(name, error.to_string()))?;
    if text.len() as u64 > MEMBER_LIMIT {
        return Err(format_error(name, format!("unpacks to more than {MEMBER_LIMIT} bytes")));
    }
    Ok(text)
}

fn format_error(what: &str, problem: String) -> Error {
    Error::Format {
        what: what.to_owned(),
        problem,
    }
}
