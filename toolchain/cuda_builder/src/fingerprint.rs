//! Hashes of sources: which units are fresh, and which archive fits.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Error;

/// Raised whenever the builder writes other PTX or another archive for the same sources.
pub const BUILDER_VERSION: u32 = 1;

/// A SHA-256 over labelled parts.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(crate) fn new() -> Fingerprint {
        Fingerprint(Sha256::new()).with("builder", BUILDER_VERSION.to_string())
    }

    /// Adds a part. Lengths go in too, so parts cannot flow into one another.
    pub(crate) fn with(mut self, label: &str, content: impl AsRef<[u8]>) -> Fingerprint {
        for bytes in [label.as_bytes(), content.as_ref()] {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
        self
    }

    /// Adds a file under a name that does not depend on where the repository lies. Line ends are counted as `\n`:
    /// Git may have written others.
    pub(crate) fn with_file(self, label: &str, path: &Path) -> Result<Fingerprint, Error> {
        let mut content = std::fs::read(path).map_err(Error::io(path))?;
        if content.contains(&b'\r') {
            content = String::from_utf8_lossy(&content).replace("\r\n", "\n").into_bytes();
        }
        Ok(self.with(label, content))
    }

    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The device sources of a kernel crate: the crate, and the crates it depends on by path.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The kernel crate.
    pub(crate) root: PathBuf,
    /// The crates it depends on, all levels deep, in the order found.
    pub(crate) dependencies: Vec<Dependency>,
}

/// A crate the kernels depend on.
#[derive(Clone, Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) root: PathBuf,
    /// The kernel crate itself names it, rather than another dependency.
    pub(crate) direct: bool,
}

impl Sources {
    /// Finds the path dependencies of the crate at `root`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Config`] for manifests that cannot be read, and for a dependency that is not a path:
    /// its sources would not be part of the hash.
    pub fn find(root: &Path) -> Result<Sources, Error> {
        let mut sources = Sources {
            root: root.to_path_buf(),
            dependencies: Vec::new(),
        };
        let mut queue = vec![(root.to_path_buf(), true)];
        while let Some((folder, direct)) = queue.pop() {
            for (name, path) in path_dependencies(&folder.join("Cargo.toml"))? {
                let at = folder.join(path);
                if !sources.dependencies.iter().any(|known| known.name == name) {
                    sources.dependencies.push(Dependency {
                        name,
                        root: at.clone(),
                        direct,
                    });
                    queue.push((at, false));
                }
            }
        }
        Ok(sources)
    }

    /// Everything whose change may change the PTX: files, and folders whose every file counts. What does not exist
    /// is left out. `Cargo.lock` does not count: device crates depend on paths only.
    pub fn watched(&self) -> Vec<PathBuf> {
        let own = ["src", "units.toml", "Cargo.toml", "rust-toolchain.toml"].map(|name| self.root.join(name));
        let others = self
            .dependencies
            .iter()
            .flat_map(|d| [d.root.join("src"), d.root.join("Cargo.toml")]);
        own.into_iter().chain(others).filter(|path| path.exists()).collect()
    }

    /// The hash the archive carries.
    ///
    /// # Errors
    /// [`Error::Io`] when a source cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        self.hash_of(&self.watched())
    }

    /// The hash of the dependencies alone.
    pub(crate) fn dependency_hash(&self) -> Result<String, Error> {
        let own = ["Cargo.toml", "rust-toolchain.toml"].map(|name| self.root.join(name));
        let others = self
            .dependencies
            .iter()
            .flat_map(|d| [d.root.join("src"), d.root.join("Cargo.toml")]);
        self.hash_of(
            &own.into_iter()
                .chain(others)
                .filter(|path| path.exists())
                .collect::<Vec<_>>(),
        )
    }

    fn hash_of(&self, watched: &[PathBuf]) -> Result<String, Error> {
        let mut files = Vec::new();
        for path in watched {
            collect(path, &mut files)?;
        }
        let mut labelled: Vec<(String, PathBuf)> = files.into_iter().map(|path| (self.label(&path), path)).collect();
        labelled.sort();
        let mut hash = Fingerprint::new();
        for (label, path) in labelled {
            hash = hash.with_file(&label, &path)?;
        }
        Ok(hash.finish())
    }

    /// A name for a source file that is the same on every machine.
    fn label(&self, path: &Path) -> String {
        let inside = |name: &str, root: &Path| {
            let parts: Vec<_> = path
                .strip_prefix(root)
                .ok()?
                .iter()
                .map(|part| part.to_string_lossy())
                .collect();
            Some(format!("{name}/{}", parts.join("/")))
        };
        self.dependencies
            .iter()
            .find_map(|d| inside(&d.name, &d.root))
            .or_else(|| inside("", &self.root))
            .unwrap_or_else(|| path.to_string_lossy().into_owned())
    }
}

/// Every file under `path`, which may be a file itself.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        collect(&entry.map_err(Error::io(path))?.path(), files)?;
    }
    Ok(())
}

fn path_dependencies(manifest: &Path) -> Result<Vec<(String, String)>, Error> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        dependencies: std::collections::BTreeMap<String, toml::Value>,
    }
    let text = std::fs::read_to_string(manifest).map_err(Error::io(manifest))?;
    let file: File = toml::from_str(&text).map_err(|error| Error::config(manifest, error))?;
    let path = |(name, value): (String, toml::Value)| match value.get("path").and_then(|path| path.as_str()) {
        Some(path) => Ok((name, path.to_string())),
        None => Err(Error::config(
            manifest,
            format!("device crates depend on paths only, `{name}` is none"),
        )),
    };
    file.dependencies.into_iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(folder: &Path, text: &str) -> String {
        let root = folder.join("kernels");
        std::fs::create_dir_all(root.join("src")).unwrap();
        std::fs::create_dir_all(folder.join("std/src")).unwrap();
        std::fs::write(
            root.join("Cargo.toml"),
            "[dependencies]\nstd_ = { path = \"../std\" }\n",
        )
        .unwrap();
        std::fs::write(folder.join("std/Cargo.toml"), "").unwrap();
        std::fs::write(folder.join("std/src/lib.rs"), text).unwrap();
        std::fs::write(root.join("src/lib.rs"), "a\nb\n").unwrap();
        Sources::find(&root).unwrap().hash().unwrap()
    }

    #[test]
    fn the_hash_follows_content_not_place() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = sources(one.path(), "x\n");
        assert_eq!(
            first,
            sources(two.path(), "x\r\n"),
            "place and line ends must not count"
        );
        assert_ne!(first, sources(two.path(), "y\n"), "a dependency's source must count");
        std::fs::write(one.path().join("kernels/src/new.rs"), "").unwrap();
        assert_ne!(first, sources(one.path(), "x\n"), "a new file must count");
    }

    #[test]
    fn a_registry_dependency_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Cargo.toml"), "[dependencies]\nlibm = \"0.2\"\n").unwrap();
        assert!(Sources::find(folder.path()).unwrap_err().to_string().contains("`libm`"));
    }
}
