//! The kernels of this repository, as far as the tools of this machine allow.
//!
//! What a machine lacks is said on standard error: `SKIPPED`, with the reason.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cuda_builder::{Arch, Bundle, CudaBuilder, Error, Event, Sources, Toolchain, assemble, script};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the repository's root")
}

/// Whether the device toolchain is there without installing it.
fn has_device_toolchain() -> bool {
    match Toolchain::find(&repository().join("kernels-gpu"), true, &|_| {}) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            false
        }
    }
}

/// The target folder that Cargo gives integration tests, one for all runs: `core` is built there once.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvptx")
}

/// Every image, from the archive if it fits the sources, else compiled.
fn images() -> Option<Bundle> {
    let kernels = repository().join("kernels-gpu");
    let archive = kernels.join(script::ARCHIVE);
    let sources = Sources::find(&kernels).unwrap().hash().unwrap();
    if Bundle::sources_of(&archive).unwrap() == Some(sources) {
        return Some(Bundle::from_zip(&fs::read(&archive).unwrap(), "images.zip").unwrap());
    }
    has_device_toolchain().then(|| {
        CudaBuilder::new(kernels)
            .target_dir(cache())
            .offline(true)
            .build()
            .unwrap()
    })
}

/// No spills, no stack in tensor-core kernels, and no complaint about wgmma in any image.
#[test]
fn ptxas_accepts_every_image() {
    let Some(ptxas) = assemble::find_ptxas() else {
        eprintln!("SKIPPED: no ptxas on PATH and FERROFLASH_PTXAS is not set");
        return;
    };
    let Some(bundle) = images() else { return };
    let reports = assemble::assemble(&bundle, &ptxas).unwrap();
    assert_eq!(reports.len(), bundle.images.len());
    assemble::verdict(&reports).unwrap();
}

/// A kernel crate of two units and a shared file, in a folder of its own.
fn small_crate(folder: &Path) {
    let kernel = |name: &str| {
        format!(
            "cuda_std::kernel! {{\n    /// Stores a number.\n    #[launch(threads = 32)]\n    \
             pub fn {name}(params: crate::shared::Params) {{\n        *params.out = crate::shared::VALUE;\n    }}\n}}\n"
        )
    };
    let cuda_std = repository().join("toolchain/cuda_std");
    let lines = [
        "#![no_std]",
        "#![cfg_attr(target_arch = \"nvptx64\", feature(abi_ptx, asm_experimental_arch))]",
        "pub mod shared;",
        "#[cfg(unit = \"one\")]",
        "pub mod one;",
        "#[cfg(unit = \"two\")]",
        "pub mod two;",
        "#[panic_handler]",
        "fn panic(_: &core::panic::PanicInfo) -> ! {",
        "    unsafe extern \"C\" { fn panic_in_kernel() -> !; }",
        "    unsafe { panic_in_kernel() }",
        "}",
        "",
    ];
    fs::create_dir_all(folder.join("src")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write(
        "Cargo.toml",
        &format!(
            "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
             cuda_std = {{ path = {:?} }}\n",
            cuda_std.display().to_string()
        ),
    );
    write(
        "units.toml",
        "[[unit]]\nname = \"one\"\ntiers = [\"sm_80\"]\n[[unit]]\nname = \"two\"\ntiers = [\"sm_80\", \"sm_90a\"]\n",
    );
    fs::copy(
        repository().join("kernels-gpu/rust-toolchain.toml"),
        folder.join("rust-toolchain.toml"),
    )
    .unwrap();
    write("src/lib.rs", &lines.join("\n"));
    write(
        "src/shared.rs",
        "#[repr(C)]\n#[derive(Clone, Copy)]\npub struct Params {\n    pub out: *mut u32,\n}\npub const VALUE: u32 = 7;\n",
    );
    write("src/one.rs", &kernel("store_one"));
    write("src/two.rs", &kernel("store_two"));
}

/// Builds, and says how many units were compiled.
fn build(folder: &Path) -> (Result<Bundle, Error>, usize) {
    let compiled = Rc::new(Cell::new(0));
    let counter = Rc::clone(&compiled);
    let builder = CudaBuilder::new(folder)
        .target_dir(cache())
        .offline(true)
        .report(move |event| {
            if let Event::Compiling { stale, .. } = event {
                counter.set(*stale);
            }
        });
    (builder.build(), compiled.get())
}

/// One test, for its steps share the compiled units: what is compiled again, what the images say, what is rejected.
#[test]
fn a_change_recompiles_the_units_that_read_it() {
    if !has_device_toolchain() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_crate(folder);
    let (bundle, compiled) = build(folder);
    let bundle = bundle.unwrap();
    assert_eq!(compiled, 3, "one unit for one tier and one for two");
    let files: Vec<&str> = bundle.images.iter().map(|(kernel, _)| kernel.file.as_str()).collect();
    assert_eq!(
        files,
        ["sm_80/store_one.ptx", "sm_80/store_two.ptx", "sm_90a/store_two.ptx"]
    );
    let (kernel, text) = bundle.get(Arch::Sm80, "store_one").unwrap();
    assert_eq!(
        (kernel.threads, kernel.param_bytes, kernel.unit.as_str()),
        ([32, 1, 1], 8, "one")
    );
    assert!(text.contains(".reqntid 32, 1, 1") && text.contains(", 7;"), "{text}");

    assert_eq!(build(folder).1, 0, "nothing changed");

    let one = folder.join("src/one.rs");
    let original = fs::read_to_string(&one).unwrap();
    fs::write(&one, original.replace("threads = 32", "threads = 64")).unwrap();
    let (changed, compiled) = build(folder);
    let changed = changed.unwrap();
    assert_eq!(compiled, 1, "only `one` reads one.rs");
    assert_eq!(changed.get(Arch::Sm80, "store_one").unwrap().0.threads, [64, 1, 1]);
    assert_eq!(
        changed.get(Arch::Sm90a, "store_two"),
        bundle.get(Arch::Sm90a, "store_two")
    );
    assert_ne!(changed.sources, bundle.sources);

    let shared = folder.join("src/shared.rs");
    fs::write(&shared, fs::read_to_string(&shared).unwrap().replace("= 7", "= 8")).unwrap();
    assert_eq!(build(folder).1, 3, "every unit reads shared.rs");

    // A panic that survives is found although nothing in the source says `panic`.
    fs::write(
        &one,
        original.replace("crate::shared::VALUE", "[1, 2, 3][*params.out as usize]"),
    )
    .unwrap();
    match build(folder).0 {
        Err(Error::Lint(failures)) => {
            assert_eq!(failures[0].rule, "panic");
            assert_eq!(failures[0].image, "sm_80/store_one");
        }
        other => panic!("the lints let a panic through: {other:?}"),
    }

    fs::write(&one, "compile_error!(\"on purpose\");").unwrap();
    match build(folder).0 {
        Err(Error::Compile {
            unit,
            arch,
            diagnostics,
        }) => {
            assert_eq!((unit.as_str(), arch), ("one", Arch::Sm80));
            assert!(diagnostics.contains("on purpose"), "{diagnostics}");
        }
        other => panic!("a unit that does not compile was accepted: {other:?}"),
    }
}

/// The same sources in another folder give the same bytes.
#[test]
fn an_archive_does_not_depend_on_the_folder() {
    if !has_device_toolchain() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "a longer name"].map(|name| temporary.path().join(name));
    let bytes = [one, two].map(|folder| {
        small_crate(&folder);
        build(&folder).0.unwrap().to_zip().unwrap()
    });
    assert_eq!(bytes[0], bytes[1]);
}
