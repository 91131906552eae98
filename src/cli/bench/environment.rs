//! Where figures come from: machine, driver, clocks, date.

use std::process::Command;

use host::Device;
use serde::{Deserialize, Serialize};

/// What a figure is nothing without.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// The command line.
    pub command: String,
    /// Version of this program.
    pub version: String,
    /// Commit of the checkout that the command ran in, or what `FERROFLASH_COMMIT` says: that of the kernels.
    pub commit: Option<String>,
    /// Date and time, UTC.
    pub date: String,
    /// The GPU's name, or the emulator's.
    pub device: String,
    /// Tier of the images.
    pub tier: String,
    /// CUDA version that the driver speaks, such as 13000.
    pub driver_cuda_version: u32,
    /// What nvidia-smi says, where there is one.
    pub gpu: Option<GpuState>,
}

/// The GPU as nvidia-smi sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GpuState {
    /// Driver version.
    pub driver: String,
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: f64,
    /// Its limit, MHz.
    pub max_sm_mhz: f64,
    /// Clock of the memory, MHz.
    pub memory_mhz: f64,
    /// Power, W.
    pub power_w: f64,
    /// Its limit, W.
    pub power_limit_w: f64,
    /// Temperature, °C.
    pub celsius: f64,
}

/// Fields of [`GpuState`] in nvidia-smi's words.
const QUERY: &str = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu";

impl GpuState {
    /// Asks nvidia-smi about the GPU with this ordinal.
    pub fn now(ordinal: u32) -> Option<GpuState> {
        let output = Command::new("nvidia-smi")
            .args([
                &format!("--query-gpu={QUERY}"),
                "--format=csv,noheader,nounits",
                "-i",
                &visible(ordinal, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()),
            ])
            .output()
            .ok()?;
        GpuState::parse(&String::from_utf8(output.stdout).ok()?)
    }

    fn parse(line: &str) -> Option<GpuState> {
        let fields: Vec<&str> = line.trim().split(", ").collect();
        let [driver, rest @ ..] = &fields[..] else { return None };
        if rest.len() != 6 {
            return None;
        }
        // A field that the GPU does not report is a word in brackets.
        let number = |index: usize| rest[index].parse().unwrap_or(0.0);
        Some(GpuState {
            driver: (*driver).to_owned(),
            sm_mhz: number(0),
            max_sm_mhz: number(1),
            memory_mhz: number(2),
            power_w: number(3),
            power_limit_w: number(4),
            celsius: number(5),
        })
    }
}

/// What nvidia-smi calls the GPU with this ordinal of CUDA's, which `CUDA_VISIBLE_DEVICES` may have chosen by index or UUID.
fn visible(ordinal: u32, chosen: Option<&str>) -> String {
    let names = chosen.map(|names| names.split(',').map(str::trim).collect::<Vec<_>>());
    let name = names.as_ref().and_then(|names| names.get(ordinal as usize));
    name.map_or_else(|| ordinal.to_string(), |name| (*name).to_owned())
}

impl Environment {
    /// The environment of this process and device.
    pub fn of(device: &Device) -> Environment {
        let commit = Command::new("git")
            .args(["rev-parse", "--short=12", "HEAD"])
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .map(|text| text.trim().to_owned())
            .or_else(|| std::env::var("FERROFLASH_COMMIT").ok());
        // Of files only the names: where they were written is nobody's business.
        let file = |word: String| word.rsplit('/').next().map(str::to_owned).unwrap_or(word);
        let words: Vec<String> = ["ferroflash".to_owned()]
            .into_iter()
            .chain(std::env::args().skip(1).map(file))
            .collect();
        Environment {
            command: words.join(" "),
            version: env!("CARGO_PKG_VERSION").into(),
            commit,
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            device: device.properties().name.clone(),
            tier: device.tier().to_string(),
            driver_cuda_version: device.properties().driver_version,
            gpu: match device.kind() {
                host::DeviceKind::Cuda(ordinal) => GpuState::now(ordinal),
                host::DeviceKind::Emulator => None,
            },
        }
    }

    /// One line for a page.
    pub fn words(&self) -> String {
        let driver = self.gpu.as_ref().map_or(String::new(), |gpu| {
            format!(", driver {}, {} W limit", gpu.driver, gpu.power_limit_w)
        });
        let commit = self
            .commit
            .as_ref()
            .map_or(String::new(), |commit| format!(", commit `{commit}`"));
        format!("`{}` on {}{driver}, {}{commit}", self.command, self.device, self.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_nvidia_smi_prints() {
        let state = GpuState::parse("580.159.04, 1980, 1980, 3201, 312.45, 700.00, 41\n").unwrap();
        assert_eq!(
            (state.driver.as_str(), state.power_w, state.celsius),
            ("580.159.04", 312.45, 41.0)
        );
        let state = GpuState::parse("580.1, [N/A], 1980, 3201, 80, 700, 41").unwrap();
        assert_eq!(state.sm_mhz, 0.0);
        assert!(GpuState::parse("NVIDIA-SMI has failed").is_none());
    }

    #[test]
    fn asks_about_the_gpu_that_cuda_uses() {
        assert_eq!(visible(1, None), "1");
        assert_eq!(visible(0, Some("3")), "3");
        assert_eq!(visible(1, Some("2, GPU-5e1c")), "GPU-5e1c");
        assert_eq!(visible(4, Some("2")), "4");
    }
}
