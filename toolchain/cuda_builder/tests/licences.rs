//! Every dependency has a licence that `deny.toml` allows, and comes from crates.io.
//!
//! What `cargo deny check licenses sources` does, for machines without cargo-deny. It lies here because this crate reads
//! JSON and TOML anyway.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Whether an SPDX expression can be met with allowed licences only. `/` is the old way to write OR.
fn allowed(expression: &str, allowed_licences: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = either(&tokens, &mut at, allowed_licences);
    value && at == tokens.len()
}

/// `a OR b`
fn either(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let mut value = both(tokens, at, licences);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        // Not `||`: the right side must be read in any case.
        value |= both(tokens, at, licences);
    }
    value
}

/// `a AND b`
fn both(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let mut value = one(tokens, at, licences);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        value &= one(tokens, at, licences);
    }
    value
}

/// `(expression)`, `licence` or `licence WITH exception`
fn one(tokens: &[&str], at: &mut usize, licences: &BTreeSet<String>) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if *token == "(" {
        let value = either(tokens, at, licences);
        let closed = tokens.get(*at) == Some(&")");
        *at += 1;
        return value && closed;
    }
    let mut licence = token.to_string();
    if let [Some(&"WITH"), Some(exception)] = [tokens.get(*at), tokens.get(*at + 1)] {
        licence = format!("{licence} WITH {exception}");
        *at += 2;
    }
    licences.contains(&licence)
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let licences: BTreeSet<String> = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"]
        .map(String::from)
        .into();
    for (expression, wanted) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Zlib", true),
        ("MIT OR GPL-3.0 AND LGPL-2.1", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(allowed(expression, &licences), wanted, "{expression}");
    }
}

#[test]
fn every_dependency_is_permissive_and_from_crates_io() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the repository's root");
    let deny = std::fs::read_to_string(repository.join("deny.toml")).expect("deny.toml");
    let deny: toml::Value = toml::from_str(&deny).expect("deny.toml is TOML");
    let licences = deny["licenses"]["allow"].as_array().expect("a list of licences");
    let licences: BTreeSet<String> = licences
        .iter()
        .map(|licence| licence.as_str().expect("a licence").to_string())
        .collect();

    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(repository)
            .output()
            .expect("a Rust toolchain");
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let version = output("rustc", &["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("rustc names its host");
    // The crates of this platform are the ones that were just built, so nothing has to be fetched.
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let metadata = output(
        &cargo,
        &["metadata", "--format-version=1", "--locked", "--filter-platform", host],
    );
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");

    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 20, "Cargo names {} packages only", packages.len());
    let mut problems = Vec::new();
    for package in packages {
        let name = format!(
            "{} {}",
            package["name"].as_str().unwrap_or("?"),
            package["version"].as_str().unwrap_or("?")
        );
        let licence = package["license"].as_str().unwrap_or_default();
        if !allowed(licence, &licences) {
            problems.push(format!("{name}: licence `{licence}`"));
        }
        let source = package["source"].as_str().unwrap_or("path");
        if source != "path" && source != "registry+https://github.com/rust-lang/crates.io-index" {
            problems.push(format!("{name}: from {source}"));
        }
    }
    assert!(
        problems.is_empty(),
        "not allowed by deny.toml:\n{}",
        problems.join("\n")
    );
}
