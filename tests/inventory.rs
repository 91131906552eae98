//! The table of ops has every kernel, and every op has verification, benchmarks, tests and a page.

use std::{collections::BTreeSet, path::Path, process::Command};

use ferroflash::{
    images::Images,
    inventory::{OPS, TEST_KERNELS, op, op_of_entry, suggestions},
    verify::{GROUPS, STRATEGIES},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_kernel_of_the_archive_belongs_to_an_op() {
    let strangers: BTreeSet<&str> = Images::embedded()
        .iter()
        .map(|image| image.entry.as_str())
        .filter(|entry| !entry.starts_with(TEST_KERNELS) && op_of_entry(entry).is_none())
        .collect();
    assert!(
        strangers.is_empty(),
        "src/inventory.rs lacks the ops of these kernels: {strangers:?}"
    );
}

/// Attention forward is the largest family, and each of its kernels has a variant for every head dim.
#[test]
fn attention_forward_takes_less_than_six_megabytes() {
    let images = Images::embedded();
    let sizes = images
        .iter()
        .filter(|image| image.entry.starts_with("attention_forward_"))
        .map(|image| images.load(image.tier, &image.entry).unwrap().ptx.len());
    let total: usize = sizes.sum();
    assert!((1_000_000..6_000_000).contains(&total), "{total} bytes of PTX");
}

#[test]
fn every_op_has_kernels_for_the_dtypes_that_it_names() {
    for op in OPS {
        for dtype in op.dtypes {
            assert!(!op.tiers(*dtype).is_empty(), "{} has no {dtype} kernel", op.name);
        }
        for prefix in op.kernels {
            let used = Images::embedded().iter().any(|image| image.entry.starts_with(prefix));
            assert!(used, "{}: no kernel begins with {prefix}", op.name);
        }
    }
}

/// Caches are moved bit for bit on every tier; kernels of 8-bit caches, on one tier only, do not hide that.
#[test]
fn caches_of_every_dtype_are_on_every_tier() {
    let cache = OPS.iter().find(|op| op.name == "cache").unwrap();
    for dtype in cache.dtypes {
        assert_eq!(cache.tiers(*dtype).len(), host::Tier::ALL.len(), "{dtype}");
    }
}

#[test]
fn every_op_has_tests_a_page_and_a_strategy() {
    let names: BTreeSet<&str> = OPS.iter().map(|op| op.name).collect();
    assert_eq!(names.len(), OPS.len(), "two ops have one name");
    let verified: BTreeSet<&str> = STRATEGIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, verified, "the inventory and src/verify name different ops");
    for op in OPS {
        assert!(
            !op.tests.is_empty() && !op.bench.is_empty(),
            "{} lacks tests or benchmarks",
            op.name
        );
        for file in op.tests.iter().chain([&op.page]) {
            assert!(root().join(file).is_file(), "{}: there is no {file}", op.name);
        }
    }
    for group in GROUPS {
        assert!(op(group.op).is_some(), "group {} is of no op", group.name);
    }
}

#[test]
fn an_entry_belongs_to_the_longest_prefix() {
    let name = |entry| op_of_entry(entry).map(|op| op.name);
    assert_eq!(name("vector_add"), Some("vector-add"));
    assert_eq!(name("add_f32"), Some("add"));
    assert_eq!(name("adamw_f32"), Some("adamw"));
    assert_eq!(name("address_f32"), None);
    assert_eq!(suggestions("atention", OPS.iter().map(|op| op.name))[0], "attention");
    assert!(suggestions("zzz", OPS.iter().map(|op| op.name)).is_empty());
}

#[test]
fn readme_and_pages_are_as_generated() {
    let output = Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .current_dir(root())
        .args(["docs", "--check"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "run `cargo run --release -- docs --write`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_benchmark_suite_that_ops_name_is_there() {
    let output = Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .args(["bench", "--list"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Whole models are no op.
    let suites: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|suite| *suite != "generate")
        .collect();
    let named: BTreeSet<&str> = OPS.iter().flat_map(|op| op.bench).copied().collect();
    assert_eq!(named, suites, "inventory and `ferroflash bench --list`");
}

#[test]
fn every_fuzz_target_is_built_and_in_the_campaign() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let (manifest, page) = (read("fuzz/Cargo.toml"), read("docs/testing.md"));
    let mut targets = 0;
    for file in std::fs::read_dir(root().join("fuzz/fuzz_targets")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "fuzz/Cargo.toml lacks {name}"
        );
        // A row of the table begins with one name or more.
        let named = page
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
            .any(|cell| cell.split(", ").any(|word| word == format!("`{name}`")));
        assert!(named, "the table of targets in docs/testing.md lacks {name}");
        targets += 1;
    }
    assert_eq!(targets, manifest.matches("[[bin]]").count(), "a target without a file");
}
