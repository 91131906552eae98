//! From a unit to the compiler's PTX: `core` and the device crates once through Cargo, then rustc for every unit
//! and architecture, several at a time, and only those whose sources changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fingerprint::{Fingerprint, Sources};
use crate::toolchain::Toolchain;
use crate::units::Unit;
use crate::{Arch, Error, Event, parallel};

/// The compilation target.
const TARGET: &str = "nvptx64-nvidia-cuda";

/// One compilation.
#[derive(Clone, Debug)]
pub(crate) struct Job<'a> {
    pub unit: &'a Unit,
    pub arch: Arch,
}

/// The PTX of one job, as rustc wrote it.
pub(crate) struct Compiled {
    pub unit: String,
    pub arch: Arch,
    pub text: String,
    /// rustc's warnings; empty when the unit was fresh.
    pub warnings: String,
}

/// Compiles kernels into a folder that it keeps between builds.
pub(crate) struct Compiler<'a> {
    pub sources: &'a Sources,
    pub toolchain: &'a Toolchain,
    /// The folder, `target/nvptx`.
    pub cache: &'a Path,
    pub offline: bool,
    pub deny_warnings: bool,
}

/// The libraries that a unit is compiled against.
#[derive(Debug, Serialize, Deserialize)]
struct Dependencies {
    hash: String,
    /// Crate name to rlib.
    externs: BTreeMap<String, PathBuf>,
}

/// What a compiled unit was made from.
#[derive(Serialize, Deserialize)]
struct Stamp {
    fingerprint: String,
    /// The files rustc read, relative to the kernel crate.
    files: Vec<PathBuf>,
}

impl Compiler<'_> {
    /// Compiles all jobs, in parallel, and returns their PTX in the same order.
    ///
    /// # Errors
    /// [`Error::Dependencies`] or [`Error::Compile`] with the compiler's messages; [`Error::Io`] and [`Error::Start`].
    pub fn compile(&self, jobs: &[Job<'_>], report: &dyn Fn(&Event)) -> Result<Vec<Compiled>, Error> {
        std::fs::create_dir_all(self.cache).map_err(Error::io(self.cache))?;
        // Builds of one repository share the folder: the second waits for the first and then finds all fresh.
        let lock_path = self.cache.join("lock");
        let lock = std::fs::File::create(&lock_path).map_err(Error::io(&lock_path))?;
        lock.lock().map_err(Error::io(&lock_path))?;

        let base = self.sources.dependency_hash()?;
        let mut done: Vec<Option<Compiled>> = jobs.iter().map(|job| self.fresh(job, &base)).collect();
        let stale: Vec<usize> = (0..jobs.len()).filter(|&index| done[index].is_none()).collect();
        if !stale.is_empty() {
            let dependencies = self.dependencies(&base, report)?;
            report(&Event::Compiling {
                stale: stale.len(),
                total: jobs.len(),
            });
            let compiled = parallel::map(&stale, |&index| self.rustc(&jobs[index], &base, &dependencies))?;
            for (index, compiled) in stale.into_iter().zip(compiled) {
                done[index] = Some(compiled);
            }
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// A file of one job. Each job has a folder of its own: rustc's intermediate files carry the crate's name, which all
    /// units share; and each kernel crate, for checkouts of one repository may share a target folder.
    fn output(&self, job: &Job<'_>, extension: &str) -> PathBuf {
        let checkout = Fingerprint::new()
            .with("crate", self.sources.root.to_string_lossy().as_bytes())
            .finish();
        let units = self.cache.join(format!("units-{}", &checkout[..8]));
        let folder = units.join(format!("{}-{}", job.unit.name, job.arch));
        folder.join("kernels").with_extension(extension)
    }

    /// The PTX of an earlier build, when everything it was made from is as it was.
    fn fresh(&self, job: &Job<'_>, base: &str) -> Option<Compiled> {
        let stamp = std::fs::read(self.output(job, "json")).ok()?;
        let stamp: Stamp = serde_json::from_slice(&stamp).ok()?;
        if self.fingerprint(job, base, &stamp.files).ok()? != stamp.fingerprint {
            return None;
        }
        let text = std::fs::read_to_string(self.output(job, "s")).ok()?;
        Some(Compiled {
            unit: job.unit.name.clone(),
            arch: job.arch,
            text,
            warnings: String::new(),
        })
    }

    fn fingerprint(&self, job: &Job<'_>, base: &str, files: &[PathBuf]) -> Result<String, Error> {
        let mut hash = Fingerprint::new()
            .with("toolchain", &self.toolchain.version)
            .with("dependencies", base)
            .with("flags", self.flags(job).join("\n"));
        for file in files {
            hash = hash.with_file(&file.to_string_lossy(), &self.sources.root.join(file))?;
        }
        Ok(hash.finish())
    }

    /// rustc's arguments that decide what the PTX says.
    fn flags(&self, job: &Job<'_>) -> Vec<String> {
        let mut flags: Vec<String> = [
            "--crate-name=kernels",
            "--edition=2024",
            "--crate-type=cdylib",
            "--target=nvptx64-nvidia-cuda",
            "-Cpanic=abort",
            "-Copt-level=3",
            "-Ccodegen-units=1",
            "-Clto=fat",
            "-Cdebuginfo=0",
            // One unit uses only some of the crate's features and some of its shared code.
            "-Ainternal_features",
            "-Aunused_features",
            "-Adead_code",
            "--check-cfg=cfg(test)",
            "--check-cfg=cfg(unit, values(any()))",
            "--check-cfg=cfg(tier, values(any()))",
        ]
        .map(String::from)
        .into();
        flags.push(format!("-Ctarget-cpu={}", job.arch));
        flags.push(format!("-Ctarget-feature=+{}", job.arch.ptx_feature()));
        flags.push(format!("--cfg=unit=\"{}\"", job.unit.name));
        flags.push(format!("--cfg=tier=\"{}\"", job.arch));
        if let Some(threshold) = job.unit.unroll {
            flags.push(format!("-Cllvm-args=--unroll-threshold={threshold}"));
        }
        if self.deny_warnings {
            flags.push("-Dwarnings".into());
        }
        flags
    }

    /// Builds `core` and the crates the kernels depend on, unless an earlier build's are still right.
    fn dependencies(&self, base: &str, report: &dyn Fn(&Event)) -> Result<Dependencies, Error> {
        let path = self.cache.join("dependencies.json");
        let hash = Fingerprint::new()
            .with("toolchain", &self.toolchain.version)
            .with("sources", base)
            .with("deny", self.deny_warnings.to_string())
            .finish();
        let known = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Dependencies>(&text).ok());
        if let Some(known) = known
            && known.hash == hash
            && known.externs.values().all(|rlib| rlib.exists())
        {
            return Ok(known);
        }
        report(&Event::Dependencies);
        // Each is built as the root of its own workspace: Cargo hashes the path from there to the crate, which is none, into
        // the crate's identity, and identities decide the order of functions. From elsewhere that would be the whole path,
        // and the PTX would depend on the folder of the checkout.
        let direct = self.sources.dependencies.iter().filter(|dependency| dependency.direct);
        let mut roots: Vec<&Path> = direct.map(|dependency| dependency.root.as_path()).collect();
        if roots.is_empty() {
            roots.push(&self.sources.root);
        }
        let mut externs = BTreeMap::new();
        for root in roots {
            externs.extend(self.crates(root)?);
        }
        if !externs.contains_key("core") {
            return Err(Error::Dependencies {
                output: "Cargo built no `core` for the device".into(),
            });
        }
        let built = Dependencies { hash, externs };
        write(&path, &serde_json::to_vec(&built).unwrap_or_default())?;
        Ok(built)
    }

    /// Builds the crate at `root` for the device, and `core`: their rlibs.
    fn crates(&self, root: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
        let mut command = self.toolchain.cargo();
        command.current_dir(root).args([
            "build",
            "--release",
            "-Zbuild-std=core",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
        ]);
        command
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
        command.arg("--target-dir").arg(self.cache.join("crates"));
        command.args(self.offline.then_some("--offline"));
        let output = command.output().map_err(|source| Error::Start {
            program: "cargo".into(),
            source,
        })?;
        if !output.status.success() {
            return Err(Error::Dependencies {
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if self.deny_warnings && said.lines().any(|line| line.starts_with("warning")) {
            return Err(Error::Dependencies {
                output: said.into_owned(),
            });
        }
        Ok(rlibs(&String::from_utf8_lossy(&output.stdout)))
    }

    fn rustc(&self, job: &Job<'_>, base: &str, dependencies: &Dependencies) -> Result<Compiled, Error> {
        let (assembly, dep_info, stamp) = (self.output(job, "s"), self.output(job, "d"), self.output(job, "json"));
        // A build that fails or is interrupted must not leave an old stamp beside new PTX.
        if stamp.exists() {
            std::fs::remove_file(&stamp).map_err(Error::io(&stamp))?;
        }
        let mut command = self.toolchain.rustc();
        command
            .current_dir(&self.sources.root)
            .arg("src/lib.rs")
            .args(self.flags(job));
        command.args(["-Zunstable-options", "--error-format=json"]);
        let folder = assembly.parent().unwrap_or(self.cache);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        command.arg("--emit=asm,dep-info").arg("--out-dir").arg(folder);
        for rlib in dependencies.externs.values() {
            if let Some(folder) = rlib.parent() {
                command.arg("-L").arg(format!("dependency={}", folder.display()));
            }
        }
        for (name, rlib) in &dependencies.externs {
            let options = if is_sysroot(name) { "noprelude:" } else { "" };
            command
                .arg("--extern")
                .arg(format!("{options}{name}={}", rlib.display()));
        }
        let started = std::time::SystemTime::now();
        let output = command.output().map_err(|source| Error::Start {
            program: "rustc".into(),
            source,
        })?;
        let diagnostics = rendered(&String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(Error::Compile {
                unit: job.unit.name.clone(),
                arch: job.arch,
                diagnostics,
            });
        }
        let text = std::fs::read_to_string(&assembly).map_err(Error::io(&assembly))?;
        let dep_text = std::fs::read_to_string(&dep_info).map_err(Error::io(&dep_info))?;
        let files = read_files(&dep_text);
        // A file saved while rustc ran may not be what rustc read: then the unit stays without stamp, and stale.
        let saved = |file: &PathBuf| std::fs::metadata(self.sources.root.join(file)).and_then(|data| data.modified());
        if files.iter().all(|file| saved(file).is_ok_and(|time| time < started)) {
            let fingerprint = self.fingerprint(job, base, &files)?;
            write(
                &stamp,
                &serde_json::to_vec(&Stamp { fingerprint, files }).unwrap_or_default(),
            )?;
        }
        Ok(Compiled {
            unit: job.unit.name.clone(),
            arch: job.arch,
            text,
            warnings: diagnostics,
        })
    }
}

fn is_sysroot(name: &str) -> bool {
    matches!(name, "core" | "compiler_builtins" | "alloc")
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    std::fs::write(path, content).map_err(Error::io(path))
}

/// Library crates and their rlibs from Cargo's messages.
fn rlibs(messages: &str) -> BTreeMap<String, PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        target: Option<Target>,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| {
            let rlib = message
                .filenames
                .into_iter()
                .find(|path| path.extension().is_some_and(|e| e == "rlib"))?;
            Some((message.target?.name.replace('-', "_"), rlib))
        })
        .collect()
}

/// The text of rustc's JSON diagnostics, and whatever else it printed.
fn rendered(stderr: &str) -> String {
    #[derive(Deserialize)]
    struct Diagnostic {
        message: String,
        rendered: Option<String>,
    }
    let mut text = String::new();
    for line in stderr.lines() {
        match serde_json::from_str::<Diagnostic>(line) {
            // The PTX version can only be chosen by a feature that rustc does not promise to keep.
            Ok(diagnostic) if diagnostic.message.starts_with("unstable feature specified for") => {}
            Ok(diagnostic)
                if diagnostic.message.contains("warnings emitted")
                    || diagnostic.message.contains("warning emitted") => {}
            Ok(diagnostic) => text.push_str(&diagnostic.rendered.unwrap_or_default()),
            Err(_) if line.starts_with('{') => {}
            Err(_) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

/// The files of a Makefile-style dep-info, in order: rustc gives each a rule of its own, `path:`.
fn read_files(dep_info: &str) -> Vec<PathBuf> {
    let rules = dep_info
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.strip_suffix(':'));
    let mut files: Vec<PathBuf> = rules.map(|path| PathBuf::from(path.replace("\\ ", " "))).collect();
    files.sort();
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dep_info_names_every_file_once() {
        let text = "out/k.s: src/lib.rs src/a\\ b.rs\n\nout/k.d: src/lib.rs src/a\\ b.rs\n\nsrc/lib.rs:\nsrc/a\\ b.rs:\n\n# env-dep:X\n";
        assert_eq!(
            read_files(text),
            [PathBuf::from("src/a b.rs"), PathBuf::from("src/lib.rs")]
        );
    }

    #[test]
    fn rlibs_come_from_artifact_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"cuda-std\"},\"filenames\":[\"/t/libcuda_std.rlib\",\"/t/x.rmeta\"]}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"build-script-build\"},\"filenames\":[\"/t/build\"]}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        let found = rlibs(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["cuda_std"], PathBuf::from("/t/libcuda_std.rlib"));
    }

    #[test]
    fn the_unstable_feature_note_is_left_out_and_other_text_kept() {
        let stderr = "{\"$message_type\":\"diagnostic\",\"message\":\"unstable feature specified for `-Ctarget-feature`: `ptx83`\",\"rendered\":\"noise\"}\n\
            {\"$message_type\":\"diagnostic\",\"message\":\"unused variable\",\"rendered\":\"warning: unused variable\\n\"}\n\
            rustc-LLVM ERROR: no\n";
        assert_eq!(rendered(stderr), "warning: unused variable\nrustc-LLVM ERROR: no\n");
    }
}
