//! The pinned device toolchain: found, or installed through rustup.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::{Error, Event};

/// An installed device toolchain.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// rustc of the pinned night.
    rustc: PathBuf,
    /// Cargo of the same night.
    cargo: PathBuf,
    /// What `rustc -vV` says; part of every fingerprint.
    pub version: String,
}

impl Toolchain {
    /// Finds the toolchain that `rust-toolchain.toml` in `kernel_crate` pins, and installs it when it is missing
    /// and `offline` allows; `report` hears about the installation.
    ///
    /// # Errors
    /// [`Error::Config`] when the file pins nothing; [`Error::Toolchain`], with the command to run, when the
    /// toolchain is missing and could not be installed.
    pub fn find(kernel_crate: &Path, offline: bool, report: &dyn Fn(&Event)) -> Result<Toolchain, Error> {
        let channel = pinned_channel(&kernel_crate.join("rust-toolchain.toml"))?;
        let arguments = [
            "toolchain",
            "install",
            &channel,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
            "--no-self-update",
        ];
        let command = format!("rustup {}", arguments.join(" "));
        let missing = |reason: &str| Error::Toolchain {
            channel: channel.clone(),
            reason: reason.to_string(),
            command: command.clone(),
        };
        if let Some(found) = locate(&channel) {
            return Ok(found);
        }
        if offline {
            return Err(missing("it is not installed, and this build must not use the network"));
        }
        report(&Event::Installing {
            command: command.clone(),
        });
        let output = clean(Command::new("rustup").args(arguments))
            .output()
            .map_err(|error| missing(&format!("and rustup did not start ({error})")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said
                .lines()
                .rev()
                .find(|line| line.contains("error"))
                .unwrap_or("no error message")
                .trim();
            return Err(missing(&format!("and installing it failed ({last})")));
        }
        locate(&channel).ok_or_else(|| missing("and it is not usable although rustup says it is installed"))
    }

    /// The pinned rustc, ready for arguments.
    pub fn rustc(&self) -> Command {
        let mut command = Command::new(&self.rustc);
        clean(&mut command);
        command
    }

    /// The pinned Cargo, which calls the pinned rustc.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        clean(&mut command).env("RUSTC", &self.rustc);
        command
    }
}

/// The toolchain of this channel, when rustc, Cargo and the sources of `core` are all there.
fn locate(channel: &str) -> Option<Toolchain> {
    let output = |program: &OsStr, arguments: &[&str]| {
        let mut command = Command::new(program);
        let output = clean(command.args(arguments))
            .env("RUSTUP_AUTO_INSTALL", "0")
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let sysroot = output("rustup".as_ref(), &["run", channel, "rustc", "--print=sysroot"])?;
    let sysroot = Path::new(&sysroot);
    let program = |name: &str| {
        sysroot
            .join("bin")
            .join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    };
    let (rustc, cargo) = (program("rustc"), program("cargo"));
    let version = output(rustc.as_os_str(), &["-vV"])?;
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    (cargo.exists() && core.exists()).then_some(Toolchain { rustc, cargo, version })
}

fn pinned_channel(path: &Path) -> Result<String, Error> {
    #[derive(Deserialize)]
    struct File {
        toolchain: Pinned,
    }
    #[derive(Deserialize)]
    struct Pinned {
        channel: String,
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let file: File = toml::from_str(&text).map_err(|error| Error::config(path, error))?;
    Ok(file.toolchain.channel)
}

/// Removes from a command's environment what an outer Cargo, rustup or build script left there.
///
/// A build script sees `CARGO_CFG_*` of the CPU it runs on; `compiler_builtins` believes them and LLVM then stops with
/// "unsupported library call operation". `RUSTC_WRAPPER` and its kin would let clippy drive the device build, and
/// `RUSTUP_TOOLCHAIN` would choose another night. Cargo's own settings for the network stay.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    const OUTER: [&str; 11] = [
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
        "HOST",
        "OPT_LEVEL",
        "PROFILE",
        "DEBUG",
        "OUT_DIR",
        "NUM_JOBS",
        "MAKEFLAGS",
        "MFLAGS",
    ];
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let from_cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let from_rustc = text.starts_with("RUSTC") || text.starts_with("RUSTDOC");
        if from_cargo || from_rustc || OUTER.contains(&text) {
            command.env_remove(&name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_channel_is_read_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rust-toolchain.toml");
        std::fs::write(&path, "[toolchain]\nchannel = \"nightly-2026-05-20\"\n").unwrap();
        assert_eq!(pinned_channel(&path).unwrap(), "nightly-2026-05-20");
    }

    #[test]
    fn a_missing_toolchain_names_the_command_that_installs_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("rust-toolchain.toml"),
            "[toolchain]\nchannel = \"nightly-1999-01-01\"\n",
        )
        .unwrap();
        let error = Toolchain::find(folder.path(), true, &|_| {}).unwrap_err().to_string();
        assert!(
            error.contains("rustup toolchain install nightly-1999-01-01 --profile minimal"),
            "{error}"
        );
        assert!(error.contains("rust-src"), "{error}");
    }
}
