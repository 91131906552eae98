//! `ptxas` over every image: the registers a kernel takes, and whether it spills.
//!
//! Needed for no build: CUDA's assembler only judges here what the driver's will do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Bundle, Error, Kernel, parallel};

/// What `ptxas -v` says about a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// `sm_90a/reduce_f32`.
    pub image: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread.
    pub stack: u32,
    /// Bytes written to spilled registers.
    pub spill_stores: u32,
    /// Bytes read from spilled registers.
    pub spill_loads: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// The kernel keeps accumulators in registers, so that a stack frame is an error.
    pub tensor_core: bool,
    /// Errors, and warnings that are as bad.
    pub complaints: Vec<String>,
}

/// The assembler that `FERROFLASH_PTXAS` names, else the one on `PATH`.
pub fn find_ptxas() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FERROFLASH_PTXAS") {
        return Some(path.into());
    }
    let name = format!("ptxas{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
}

/// Assembles every image of a bundle for its architecture, several at a time.
///
/// # Errors
/// [`Error::Start`] when ptxas does not start; [`Error::Io`]. What ptxas says against a kernel is in its report:
/// see [`verdict`].
pub fn assemble(bundle: &Bundle, ptxas: &Path) -> Result<Vec<Report>, Error> {
    // ptxas reads no standard input, so images go through files.
    let folder = std::env::temp_dir().join(format!("ferroflash-ptxas-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let reports = parallel::map(&bundle.images, |(kernel, text)| {
        assemble_one(kernel, text, ptxas, &folder)
    });
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    reports
}

fn assemble_one(kernel: &Kernel, text: &str, ptxas: &Path, folder: &Path) -> Result<Report, Error> {
    let failed = |source| Error::Start {
        program: ptxas.display().to_string(),
        source,
    };
    let path = folder.join(format!("{}-{}.ptx", kernel.tier, kernel.entry));
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    let object = path.with_extension("cubin");
    let mut command = Command::new(ptxas);
    command
        .args(["-v", "-arch", kernel.tier.name(), "-o"])
        .arg(&object)
        .arg(&path)
        .stdin(Stdio::null());
    let output = command.output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let mut report = read(&said);
    report.image = format!("{}/{}", kernel.tier, kernel.entry);
    report.tensor_core = kernel.tensor_core;
    if !output.status.success() && report.complaints.is_empty() {
        report.complaints.push(said.trim().to_string());
    }
    Ok(report)
}

/// Reads what `ptxas -v` prints.
fn read(text: &str) -> Report {
    let mut report = Report::default();
    for line in text.lines() {
        report.registers = report.registers.max(number_before(line, " registers"));
        report.stack = report.stack.max(number_before(line, " bytes stack frame"));
        report.spill_stores = report.spill_stores.max(number_before(line, " bytes spill stores"));
        report.spill_loads = report.spill_loads.max(number_before(line, " bytes spill loads"));
        report.shared = report.shared.max(number_before(line, " bytes smem"));
        // C7508: setmaxnreg ignored. C7509 to C7519: wgmma serialised, or its registers touched in flight.
        let bad_code = (7508..=7519).any(|code| line.contains(&format!("C{code}")));
        if bad_code || line.contains("error") || line.contains("fatal") || line.contains("setmaxnreg ignored") {
            report.complaints.push(line.trim().to_string());
        }
    }
    report
}

/// The number that stands right before `unit`; 0 when the line has none.
fn number_before(line: &str, unit: &str) -> u32 {
    let Some(end) = line.find(unit) else { return 0 };
    let digits = line[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    line[digits..end].parse().unwrap_or(0)
}

/// The reports as a table.
pub fn table(reports: &[Report]) -> String {
    let width = reports
        .iter()
        .map(|report| report.image.len())
        .max()
        .unwrap_or(0)
        .max("kernel".len());
    let mut text = format!("{:width$}  registers  spill bytes  stack bytes  smem bytes\n", "kernel");
    for report in reports {
        let spills = report.spill_stores + report.spill_loads;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:width$}  {:9}  {:11}  {:11}  {:10}",
            report.image, report.registers, spills, report.stack, report.shared
        );
    }
    text
}

/// Fails on complaints, on spills, and on a stack frame in a kernel that keeps accumulators in registers.
///
/// # Errors
/// [`Error::Assemble`] with a line for each.
pub fn verdict(reports: &[Report]) -> Result<(), Error> {
    let mut problems = Vec::new();
    for report in reports {
        let image = &report.image;
        problems.extend(
            report
                .complaints
                .iter()
                .map(|complaint| format!("  {image}: {complaint}")),
        );
        if report.spill_stores + report.spill_loads > 0 {
            problems.push(format!(
                "  {image}: spills ({} bytes stored, {} loaded)",
                report.spill_stores, report.spill_loads
            ));
        } else if report.tensor_core && report.stack > 0 {
            problems.push(format!(
                "  {image}: {} bytes of stack in a tensor-core kernel",
                report.stack
            ));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Assemble(problems))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]
ptxas info    : Compile time = 3.202 ms
";

    #[test]
    fn a_clean_kernel_passes() {
        let report = read(CLEAN);
        assert_eq!((report.registers, report.shared, report.stack), (168, 1024, 0));
        verdict(&[report]).unwrap();
    }

    #[test]
    fn spills_stack_and_serialised_wgmma_fail() {
        let spilling = read(&CLEAN.replace("0 bytes spill stores", "4 bytes spill stores"));
        assert!(verdict(&[spilling]).unwrap_err().to_string().contains("4 bytes stored"));
        let mut stack = read(&CLEAN.replace("0 bytes stack frame", "16 bytes stack frame"));
        verdict(std::slice::from_ref(&stack)).unwrap();
        stack.tensor_core = true;
        assert!(verdict(&[stack]).unwrap_err().to_string().contains("16 bytes of stack"));
        let warning =
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to...";
        assert!(
            verdict(&[read(&format!("{CLEAN}{warning}\n"))])
                .unwrap_err()
                .to_string()
                .contains("C7510")
        );
    }
}
