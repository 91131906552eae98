//! `ferroflash info`: what this machine and this build can do.

use clap::Args;
use host::{
    Device, DeviceKind, DeviceOptions, Error, Tier,
    images::{ImageInfo, Images},
};
use serde::Serialize;

use super::{Failure, Outcome};

/// Arguments of `info`.
#[derive(Args)]
pub struct InfoArgs {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Also load every kernel, or those whose names begin with PREFIX, to show registers, local memory and how long the
    /// driver took to compile it (minutes for all on a GPU; CUDA_CACHE_DISABLE=1 keeps its cache out of the times).
    #[arg(long, value_name = "PREFIX", num_args = 0..=1, default_missing_value = "")]
    kernels: Option<String>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    devices: Vec<DeviceReport>,
    no_gpu_because: Option<String>,
    kernels: Vec<KernelReport>,
}

#[derive(Serialize)]
struct DeviceReport {
    device: String,
    name: String,
    compute_capability: String,
    tier: String,
    multiprocessors: u32,
    memory_bytes: u64,
    l2_bytes: u64,
    shared_bytes_per_block: u32,
    driver_cuda_version: Option<String>,
}

#[derive(Serialize)]
struct KernelReport {
    entry: String,
    unit: String,
    tier: String,
    threads: u32,
    param_bytes: u32,
    ptx_version: String,
    registers: Option<u32>,
    static_shared: Option<u32>,
    local: Option<u32>,
    load_ms: Option<f64>,
}

/// What a loaded kernel takes: its attributes, and the time to load it.
struct Loaded {
    attributes: host::backend::KernelAttributes,
    load_ms: f64,
}

/// Prints the report.
pub fn info(args: InfoArgs) -> Outcome {
    let report = collect(args.kernels.as_deref())?;
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::Failed(error.to_string()))?;
        say!("{text}");
    } else {
        print(&report);
    }
    Ok(())
}

/// Kernels whose names begin with `load` are loaded, and then no others are listed.
fn collect(load: Option<&str>) -> Result<Report, Failure> {
    let mut devices = Vec::new();
    let mut opened = Vec::new();
    let mut no_gpu_because = None;
    match host::backend::cuda::devices() {
        Ok(gpus) => {
            for ordinal in 0..gpus.len() as u32 {
                let device = Device::cuda(ordinal)?;
                devices.push(describe(&device));
                opened.push(device);
            }
        }
        Err(Error::NoDevice { reason }) => no_gpu_because = Some(reason),
        Err(error) => return Err(error.into()),
    }
    let emulator = Device::emulator()?;
    devices.push(describe(&emulator));
    opened.push(emulator);

    let mut images: Vec<&ImageInfo> = Images::embedded()
        .iter()
        .filter(|image| image.entry.starts_with(load.unwrap_or_default()))
        .collect();
    images.sort_by(|a, b| (&a.entry, a.tier).cmp(&(&b.entry, b.tier)));
    let mut kernels = Vec::new();
    for image in images {
        let loaded = match load {
            Some(_) => loaded(&opened[0], image)?,
            None => None,
        };
        let attributes = loaded.as_ref().map(|loaded| &loaded.attributes);
        kernels.push(KernelReport {
            entry: image.entry.clone(),
            unit: image.unit.clone(),
            tier: image.tier.to_string(),
            threads: image.threads.iter().product(),
            param_bytes: image.param_bytes,
            ptx_version: image.ptx_version.clone(),
            registers: attributes.map(|attributes| attributes.registers),
            static_shared: attributes.map(|attributes| attributes.static_shared),
            local: attributes.map(|attributes| attributes.local),
            load_ms: loaded.as_ref().map(|loaded| loaded.load_ms),
        });
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        devices,
        no_gpu_because,
        kernels,
    })
}

/// An image, loaded afresh by the device that can run its tier.
fn loaded(device: &Device, image: &ImageInfo) -> Result<Option<Loaded>, Failure> {
    let kind: Option<DeviceKind> = Some(device.kind());
    let options = DeviceOptions {
        tier: Some(image.tier),
        ..DeviceOptions::default()
    };
    match Device::with_options(kind, options) {
        Ok(device) => {
            let begun = std::time::Instant::now();
            let attributes = device.kernel_attributes(&image.entry)?;
            Ok(Some(Loaded {
                attributes,
                load_ms: begun.elapsed().as_secs_f64() * 1e3,
            }))
        }
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn describe(device: &Device) -> DeviceReport {
    let properties = device.properties();
    let (major, minor) = properties.compute_capability;
    let version = properties.driver_version;
    DeviceReport {
        device: properties.kind.to_string(),
        name: properties.name.clone(),
        compute_capability: format!("{major}.{minor}"),
        tier: device.tier().to_string(),
        multiprocessors: properties.multiprocessors,
        memory_bytes: properties.memory_bytes,
        l2_bytes: properties.l2_bytes,
        shared_bytes_per_block: properties.shared_per_block,
        driver_cuda_version: (version > 0).then(|| format!("{}.{}", version / 1000, version % 1000 / 10)),
    }
}

fn print(report: &Report) {
    say!("ferroflash {}", report.version);
    for device in &report.devices {
        say!(
            "  {:<10} {} · compute {} · tier {} · {} multiprocessors · {:.1} GiB{}",
            device.device,
            device.name,
            device.compute_capability,
            device.tier,
            device.multiprocessors,
            device.memory_bytes as f64 / (1u64 << 30) as f64,
            device
                .driver_cuda_version
                .as_ref()
                .map(|v| format!(" · driver for CUDA {v}"))
                .unwrap_or_default(),
        );
    }
    if let Some(reason) = &report.no_gpu_because {
        say!("  no GPU: {reason}");
    }
    let tiers: Vec<&str> = Tier::ALL.iter().map(|tier| tier.name()).collect();
    say!("{} kernel images for tiers {}", report.kernels.len(), tiers.join(", "));
    say!(
        "  {:<44} {:<8} {:>7} {:>6} {:>5} {:>5} {:>6} {:>6} {:>8}",
        "kernel",
        "tier",
        "threads",
        "params",
        "PTX",
        "regs",
        "shared",
        "local",
        "load ms"
    );
    let number = |value: Option<u32>| value.map_or("–".to_owned(), |value| value.to_string());
    for kernel in &report.kernels {
        say!(
            "  {:<44} {:<8} {:>7} {:>6} {:>5} {:>5} {:>6} {:>6} {:>8}",
            kernel.entry,
            kernel.tier,
            kernel.threads,
            kernel.param_bytes,
            kernel.ptx_version,
            number(kernel.registers),
            number(kernel.static_shared),
            number(kernel.local),
            kernel.load_ms.map_or("–".to_owned(), |time| format!("{time:.1}")),
        );
    }
}
