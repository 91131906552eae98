//! The archive of images that travels with the repository.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::image::{Image, Param};
use crate::{Arch, Error};

/// The archive's table of contents.
const MANIFEST: &str = "manifest.json";

/// No image and no manifest is larger; an archive that claims more is not ours.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A kernel of an archive: all that a launch must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The entry's name.
    pub entry: String,
    /// The compilation unit it comes from.
    pub unit: String,
    /// The architecture.
    pub tier: Arch,
    /// Threads of a block; a launch has exactly these.
    pub threads: [u32; 3],
    /// Blocks that fit on one multiprocessor together.
    pub min_blocks: Option<u32>,
    /// Blocks of a cluster; all ones without clusters.
    pub cluster: [u32; 3],
    /// The parameters in order.
    pub params: Vec<Param>,
    /// Bytes of the whole parameter block.
    pub param_bytes: u32,
    /// Bytes of shared memory of fixed size.
    pub static_shared: u32,
    /// Alignment of the shared memory whose size the launch gives; absent when the kernel uses none.
    pub dynamic_shared_align: Option<u32>,
    /// The kernel keeps accumulators in registers.
    pub tensor_core: bool,
    /// The version of the PTX language, `major.minor`: it decides the oldest driver.
    pub ptx_version: String,
    /// SHA-256 of the PTX.
    pub sha256: String,
    /// The image's name in the archive.
    pub file: String,
}

/// The manifest: which sources the archive was made from, and its kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of the device sources ([`Sources::hash`](crate::Sources::hash)).
    pub sources: String,
    /// The kernels, sorted by architecture and name.
    pub kernels: Vec<Kernel>,
}

/// Images with their metadata, sorted by architecture and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Hash of the device sources.
    pub sources: String,
    /// Kernels and their PTX.
    pub images: Vec<(Kernel, String)>,
}

impl Bundle {
    /// Gathers images.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when two units define one entry for the same architecture.
    pub(crate) fn new(sources: String, mut images: Vec<Image>) -> Result<Bundle, Error> {
        images.sort_by(|a, b| (a.arch, &a.annotation.name).cmp(&(b.arch, &b.annotation.name)));
        for pair in images.windows(2) {
            if (pair[0].arch, &pair[0].annotation.name) == (pair[1].arch, &pair[1].annotation.name) {
                return Err(Error::Duplicate {
                    entry: pair[0].annotation.name.clone(),
                    arch: pair[0].arch,
                    first: pair[0].unit.clone(),
                    second: pair[1].unit.clone(),
                });
            }
        }
        Ok(Bundle {
            sources,
            images: images.into_iter().map(|image| (kernel(&image), image.text)).collect(),
        })
    }

    /// The image of a kernel for an architecture.
    pub fn get(&self, tier: Arch, entry: &str) -> Option<&(Kernel, String)> {
        self.images
            .iter()
            .find(|(kernel, _)| kernel.tier == tier && kernel.entry == entry)
    }

    /// The archive: a zip file, the same bytes for the same images.
    ///
    /// # Errors
    /// [`Error::Archive`] when zip refuses, which it does for archives over its limits.
    pub fn to_zip(&self) -> Result<Vec<u8>, Error> {
        let manifest = Manifest {
            sources: self.sources.clone(),
            kernels: self.images.iter().map(|(kernel, _)| kernel.clone()).collect(),
        };
        let manifest = serde_json::to_string_pretty(&manifest).map_err(|error| unusable("new archive", error))?;
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        // No time and no permissions of the machine: equal images give equal bytes.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(9))
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644);
        let files = self
            .images
            .iter()
            .map(|(kernel, text)| (kernel.file.clone(), text.as_str()));
        for (name, text) in std::iter::once((MANIFEST.to_string(), manifest.as_str())).chain(files) {
            archive
                .start_file(name, options)
                .map_err(|error| unusable("new archive", error))?;
            archive
                .write_all(text.as_bytes())
                .map_err(|error| unusable("new archive", error))?;
        }
        Ok(archive
            .finish()
            .map_err(|error| unusable("new archive", error))?
            .into_inner())
    }

    /// Reads an archive and checks it against its manifest. `origin` names it in errors.
    ///
    /// # Errors
    /// [`Error::Archive`] when it is no zip file, a file is missing, too large or not the one the manifest describes.
    pub fn from_zip(bytes: &[u8], origin: &str) -> Result<Bundle, Error> {
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| unusable(origin, error))?;
        let manifest = read_manifest(&mut archive, origin)?;
        let mut images = Vec::with_capacity(manifest.kernels.len().min(archive.len()));
        for kernel in manifest.kernels {
            let text = read_file(&mut archive, &kernel.file, origin)?;
            if sha256(&text) != kernel.sha256 {
                return Err(unusable(
                    origin,
                    format!("{} is not the image the manifest describes", kernel.file),
                ));
            }
            images.push((kernel, text));
        }
        Ok(Bundle {
            sources: manifest.sources,
            images,
        })
    }

    /// The hash of the sources that the archive at `path` was made from; `None` when there is no archive.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Archive`] when there is one and it cannot be read.
    pub fn sources_of(path: &Path) -> Result<Option<String>, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(path)(error)),
        };
        let origin = path.display().to_string();
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| unusable(&origin, error))?;
        Ok(Some(read_manifest(&mut archive, &origin)?.sources))
    }

    /// How `other` differs, a line for each kernel; empty when the kernels are the same.
    pub fn differences(&self, other: &Bundle) -> Vec<String> {
        let mut lines = Vec::new();
        for (kernel, text) in &self.images {
            match other.get(kernel.tier, &kernel.entry) {
                None => lines.push(format!("{} is missing", kernel.file)),
                Some((_, other_text)) if other_text != text => {
                    let same = text.lines().zip(other_text.lines()).take_while(|(a, b)| a == b).count();
                    lines.push(format!("{} differs from line {}", kernel.file, same + 1));
                }
                Some((other_kernel, _)) if other_kernel != kernel => {
                    lines.push(format!("{} has other metadata", kernel.file));
                }
                Some(_) => {}
            }
        }
        let added = other
            .images
            .iter()
            .filter(|(kernel, _)| self.get(kernel.tier, &kernel.entry).is_none());
        lines.extend(added.map(|(kernel, _)| format!("{} is no longer made", kernel.file)));
        lines
    }
}

fn kernel(image: &Image) -> Kernel {
    let annotation = &image.annotation;
    Kernel {
        entry: annotation.name.clone(),
        unit: image.unit.clone(),
        tier: image.arch,
        threads: annotation.threads,
        min_blocks: annotation.min_blocks,
        cluster: annotation.cluster.unwrap_or([1; 3]),
        params: image.params.clone(),
        param_bytes: image.params.last().map_or(0, |last| last.offset + last.bytes),
        static_shared: image.static_shared,
        dynamic_shared_align: image.dynamic_shared_align,
        tensor_core: annotation.tensor_core,
        ptx_version: image.ptx_version.clone(),
        sha256: sha256(&image.text),
        file: format!("{}/{}.ptx", image.arch, annotation.name),
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn unusable(origin: &str, message: impl ToString) -> Error {
    Error::Archive {
        origin: origin.to_string(),
        message: message.to_string(),
    }
}

fn read_manifest<R: Read + std::io::Seek>(archive: &mut ZipArchive<R>, origin: &str) -> Result<Manifest, Error> {
    let text = read_file(archive, MANIFEST, origin)?;
    serde_json::from_str(&text).map_err(|error| unusable(origin, format!("{MANIFEST}: {error}")))
}

fn read_file<R: Read + std::io::Seek>(archive: &mut ZipArchive<R>, name: &str, origin: &str) -> Result<String, Error> {
    let file = archive
        .by_name(name)
        .map_err(|error| unusable(origin, format!("{name}: {error}")))?;
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| unusable(origin, format!("{name}: {error}")))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(
            origin,
            format!("{name} is larger than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(body: &str) -> Bundle {
        let text = format!(
            "// @kernel name=k threads=32,\n.version 8.3\n.target sm_90a\n.visible .entry k(\n .param .b64 k_param_0\n)\n{{\n{body}\n}}\n"
        );
        Bundle::new("hash".into(), crate::image::split("u", Arch::Sm90a, &text).unwrap()).unwrap()
    }

    #[test]
    fn an_archive_reads_back_and_is_reproducible() {
        let bundle = bundle("ret;");
        let bytes = bundle.to_zip().unwrap();
        assert_eq!(bytes, bundle.to_zip().unwrap());
        assert_eq!(Bundle::from_zip(&bytes, "test").unwrap(), bundle);
        assert_eq!(bundle.images[0].0.param_bytes, 8);
    }

    #[test]
    fn a_changed_kernel_is_named_with_its_line() {
        let differences = bundle("ret;").differences(&bundle("trap;"));
        assert_eq!(differences, ["sm_90a/k.ptx differs from line 10"]);
        assert!(bundle("ret;").differences(&bundle("ret;")).is_empty());
    }

    #[test]
    fn a_broken_archive_is_an_error() {
        let bytes = bundle("ret;").to_zip().unwrap();
        assert!(
            Bundle::from_zip(b"not a zip", "x")
                .unwrap_err()
                .to_string()
                .starts_with("x: not a kernel archive")
        );
        for cut in [1, bytes.len() / 2, bytes.len() - 1] {
            assert!(Bundle::from_zip(&bytes[..cut], "x").is_err());
        }
        let mut wrong = bundle("ret;");
        wrong.images[0].1.push_str("// changed\n");
        let message = Bundle::from_zip(&wrong.to_zip().unwrap(), "x").unwrap_err().to_string();
        assert!(message.contains("sm_90a/k.ptx is not the image"), "{message}");
    }

    #[test]
    fn two_units_cannot_define_one_kernel() {
        let text = "// @kernel name=k threads=32,\n.version 8.3\n.target sm_80\n.visible .entry k()\n{\nret;\n}\n";
        let mut images = crate::image::split("a", Arch::Sm80, text).unwrap();
        images.extend(crate::image::split("b", Arch::Sm80, text).unwrap());
        let message = Bundle::new(String::new(), images).unwrap_err().to_string();
        assert!(message.contains("unit `a` and by unit `b`"), "{message}");
    }
}
