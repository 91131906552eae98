//! The build script of a crate that embeds the archive of PTX.
//!
//! A fresh clone, a crate that depends on this one and a docs build want stable Rust only: they take the archive in the
//! repository, whose hash says that it was made from the device sources beside it. Who changes device sources builds
//! from source.

use std::path::{Path, PathBuf};

use crate::{Bundle, CudaBuilder, Error, Event, Sources};

/// The archive's name in the kernel crate.
pub const ARCHIVE: &str = "images.zip";

/// Makes this build compile the kernels even if the archive fits.
pub const BUILD_KERNELS: &str = "FERROFLASH_BUILD_KERNELS";

/// Rewrites the archive in the repository after building from source.
pub const WRITE_ARCHIVE: &str = "FERROFLASH_WRITE_ARCHIVE";

/// Where the archive came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Archive,
    Source,
    Empty,
}

/// Puts the archive of the kernel crate into `OUT_DIR` and names it to the crate being compiled in the environment
/// variable `FERROFLASH_IMAGES`: `include_bytes!(env!("FERROFLASH_IMAGES"))`.
///
/// # Errors
/// Whatever stops a build from source; see [`CudaBuilder::build`].
pub fn embed(kernel_crate: &Path) -> Result<(), Error> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let sources = Sources::find(kernel_crate)?;
    let archive = kernel_crate.join(ARCHIVE);
    for path in sources
        .watched()
        .into_iter()
        .chain(archive.exists().then(|| archive.clone()))
    {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    for name in [BUILD_KERNELS, WRITE_ARCHIVE, "FERROFLASH_OFFLINE", "DOCS_RS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }

    let images = out_dir.join(ARCHIVE);
    let hash = sources.hash()?;
    let fits = Bundle::sources_of(&archive)?.is_some_and(|archived| archived == hash);
    let origin = choose(
        set("DOCS_RS"),
        set(BUILD_KERNELS) || set(WRITE_ARCHIVE),
        archive.exists(),
        fits,
    );
    match origin {
        Origin::Archive => {
            std::fs::copy(&archive, &images).map_err(Error::io(&archive))?;
            let made = if fits {
                "made from these device sources"
            } else {
                "although it is of other device sources"
            };
            println!("cargo:warning=GPU kernels: taken from kernels-gpu/{ARCHIVE}, {made}");
        }
        Origin::Empty => {
            println!("cargo:warning=GPU kernels: none, for this is a docs build and there is no kernels-gpu/{ARCHIVE}");
            let empty = Bundle {
                sources: hash,
                images: Vec::new(),
            };
            std::fs::write(&images, empty.to_zip()?).map_err(Error::io(&images))?;
        }
        Origin::Source => {
            let reason = match (fits, archive.exists()) {
                (true, _) => "as asked for".to_string(),
                (false, true) => format!("for kernels-gpu/{ARCHIVE} is of other device sources"),
                (false, false) => format!("for there is no kernels-gpu/{ARCHIVE}"),
            };
            println!("cargo:warning=GPU kernels: built from source, {reason}");
            let bundle = CudaBuilder::new(kernel_crate)
                .target_dir(target_dir(&out_dir).join("nvptx"))
                .offline(offline())
                .report(tell)
                .build()?;
            let bytes = bundle.to_zip()?;
            std::fs::write(&images, &bytes).map_err(Error::io(&images))?;
            if set(WRITE_ARCHIVE) {
                std::fs::write(&archive, &bytes).map_err(Error::io(&archive))?;
            }
        }
    }
    println!("cargo:rustc-env=FERROFLASH_IMAGES={}", images.display());
    Ok(())
}

/// What a user of Cargo should see becomes a warning, as Cargo shows nothing else; the rest goes to the script's output.
fn tell(event: &Event) {
    let prefix = match event {
        Event::Installing { .. } | Event::Warning { .. } => "cargo:warning=",
        _ => "",
    };
    for line in event.to_string().lines() {
        println!("{prefix}{line}");
    }
}

/// Archive or source: a docs build never compiles kernels, and an archive that fits is taken unless told otherwise.
fn choose(docs: bool, forced: bool, exists: bool, fits: bool) -> Origin {
    match (docs, forced, exists, fits) {
        (true, _, true, _) => Origin::Archive,
        (true, _, false, _) => Origin::Empty,
        (false, false, _, true) => Origin::Archive,
        _ => Origin::Source,
    }
}

/// Whether the network must not be used: `FERROFLASH_OFFLINE`, or Cargo's own `CARGO_NET_OFFLINE`.
pub fn offline() -> bool {
    set("FERROFLASH_OFFLINE") || set("CARGO_NET_OFFLINE")
}

/// Whether a variable is set to anything but nothing, `0` or `false`.
fn set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// Cargo's target folder: the one above `OUT_DIR` that Cargo tagged. A folder that Cargo did not make itself has no tag;
/// then it is where `OUT_DIR` (`target/PROFILE/build/…/out`) says.
fn target_dir(out_dir: &Path) -> PathBuf {
    let tagged = out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let named = || {
        out_dir
            .ancestors()
            .find(|folder| folder.ends_with("build"))?
            .ancestors()
            .nth(2)
    };
    tagged.or_else(named).unwrap_or(out_dir).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitting_archive_is_taken_unless_source_is_asked_for() {
        assert_eq!(choose(false, false, true, true), Origin::Archive);
        assert_eq!(choose(false, true, true, true), Origin::Source);
        assert_eq!(choose(false, false, true, false), Origin::Source);
        assert_eq!(choose(false, false, false, false), Origin::Source);
    }

    #[test]
    fn a_docs_build_never_compiles() {
        assert_eq!(choose(true, true, true, false), Origin::Archive);
        assert_eq!(choose(true, true, false, false), Origin::Empty);
    }

    #[test]
    fn the_target_folder_is_the_tagged_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("CACHEDIR.TAG"), "").unwrap();
        let out = folder.path().join("release/build/host-1/out");
        std::fs::create_dir_all(&out).unwrap();
        assert_eq!(target_dir(&out), folder.path());
        assert_eq!(
            target_dir(Path::new("/x/out-of/release/build/host-1/out")),
            Path::new("/x/out-of")
        );
    }
}
