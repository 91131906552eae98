//! `cargo run -p cuda_builder -- COMMAND`: what contributors and CI do with the kernels outside of a build.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cuda_builder::{Arch, Bundle, CudaBuilder, Error, Sources, assemble};

const HELP: &str = "\
Builds ferroflash's kernels from source and keeps the archive of PTX that travels with the repository.

Usage: cargo run -p cuda_builder -- COMMAND [OPTIONS]

Commands:
  build      Compile, check, and write one PTX file a kernel (a look at what the compiler made of a kernel)
  write      Build every kernel and rewrite kernels-gpu/images.zip
  check      Build every kernel and fail when kernels-gpu/images.zip is stale or differs
  assemble   Build, and assemble every image with ptxas: fails on spills and on warnings about wgmma

Options:
  --unit NAME      build and assemble: only this unit of units.toml (repeatable)
  --tier ARCH      build and assemble: only sm_75, sm_80 or sm_90a (repeatable)
  --out FOLDER     build: where the PTX files go [default: target/nvptx/images]
  --ptxas PATH     assemble: the ptxas to use [default: $FERROFLASH_PTXAS, else the one on PATH]
  --kernels FOLDER the kernel crate [default: kernels-gpu]
  --offline        never install the device toolchain
  --deny-warnings  make rustc's warnings errors
";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    units: Vec<String>,
    tiers: Vec<Arch>,
    out: Option<PathBuf>,
    ptxas: Option<PathBuf>,
    kernels: Option<PathBuf>,
    offline: bool,
    deny_warnings: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(command) = arguments.first().map(String::as_str) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    if matches!(command, "help" | "-h" | "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(&arguments[1..]) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("error: {message}; see --help");
            return ExitCode::from(2);
        }
    };
    let result = match command {
        "build" => build(&options),
        "write" => write(&options),
        "check" => check(&options),
        "assemble" => assemble(&options),
        _ => {
            eprintln!("error: unknown command `{command}`: expected build, write, check or assemble; see --help");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("`{option}` needs a value"));
        match option.as_str() {
            "--unit" => options.units.push(value()?.clone()),
            "--tier" => options
                .tiers
                .push(value()?.parse().map_err(|error: Error| error.to_string())?),
            "--out" => options.out = Some(value()?.into()),
            "--ptxas" => options.ptxas = Some(value()?.into()),
            "--kernels" => options.kernels = Some(value()?.into()),
            "--offline" => options.offline = true,
            "--deny-warnings" => options.deny_warnings = true,
            _ => return Err(format!("unknown option `{option}`")),
        }
    }
    Ok(options)
}

impl Options {
    /// The kernel crate: as given, else the one of the repository this command runs in (Cargo names it), or was
    /// compiled in.
    fn kernels(&self) -> PathBuf {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let repository = Path::new(&package).ancestors().nth(2).unwrap_or(Path::new("."));
        self.kernels.clone().unwrap_or_else(|| repository.join("kernels-gpu"))
    }

    fn archive(&self) -> PathBuf {
        self.kernels().join(cuda_builder::script::ARCHIVE)
    }

    fn cache(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        target
            .unwrap_or_else(|| self.kernels().parent().unwrap_or(Path::new(".")).join("target"))
            .join("nvptx")
    }

    /// A builder of what was asked for; `write` and `check` always build all.
    fn builder(&self, all: bool) -> CudaBuilder {
        let mut builder = CudaBuilder::new(self.kernels())
            .target_dir(self.cache())
            .offline(self.offline || cuda_builder::script::offline())
            .deny_warnings(self.deny_warnings);
        if !all {
            builder = self.tiers.iter().fold(builder, |builder, tier| builder.arch(*tier));
            builder = self.units.iter().fold(builder, |builder, unit| builder.unit(unit));
        }
        builder
    }
}

fn build(options: &Options) -> Result<(), Error> {
    let bundle = options.builder(false).build()?;
    let out = options.out.clone().unwrap_or_else(|| options.cache().join("images"));
    for (kernel, text) in &bundle.images {
        let path = out.join(&kernel.file);
        write_file(&path, text.as_bytes())?;
        println!("{}", path.display());
    }
    Ok(())
}

fn write(options: &Options) -> Result<(), Error> {
    let bundle = options.builder(true).build()?;
    let (path, bytes) = (options.archive(), bundle.to_zip()?);
    write_file(&path, &bytes)?;
    println!(
        "{}: {} kernels, {} bytes",
        path.display(),
        bundle.images.len(),
        bytes.len()
    );
    Ok(())
}

fn check(options: &Options) -> Result<(), Error> {
    let path = options.archive();
    let stale = |message: String| Error::Stale {
        path: path.clone(),
        message,
    };
    let wanted = Sources::find(&options.kernels())?.hash()?;
    let built = options.builder(true).build()?;
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(stale("it does not exist".into()));
        }
        Err(source) => return Err(Error::Io { path, source }),
    };
    let archived = Bundle::from_zip(&bytes, &path.display().to_string())?;
    let differences = built.differences(&archived);
    if !differences.is_empty() {
        return Err(stale(format!(
            "{} kernels differ\n    {}",
            differences.len(),
            differences.join("\n    ")
        )));
    }
    if archived.sources != wanted {
        return Err(stale(
            "its kernels are right, but the device sources changed since it was written".into(),
        ));
    }
    if built.to_zip()? != bytes {
        return Err(stale(
            "its kernels are right, but its bytes are not those this command writes".into(),
        ));
    }
    println!(
        "{}: {} kernels, equal to what the sources give",
        path.display(),
        built.images.len()
    );
    Ok(())
}

fn assemble(options: &Options) -> Result<(), Error> {
    let Some(ptxas) = options.ptxas.clone().or_else(assemble::find_ptxas) else {
        println!("SKIPPED: no ptxas on PATH and FERROFLASH_PTXAS is not set");
        return Ok(());
    };
    let bundle = options.builder(false).build()?;
    let reports = assemble::assemble(&bundle, &ptxas)?;
    print!("{}", assemble::table(&reports));
    assemble::verdict(&reports)
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    let io = |source| Error::Io {
        path: path.to_path_buf(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    std::fs::write(path, content).map_err(io)
}
