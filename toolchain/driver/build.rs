//! Puts the empty `libcuda.so` of `stub/lib64` on the linker's path, so that the `-lcuda` that cust asks for is met
//! in every program that depends on this crate, with or without CUDA on the machine that builds it.

fn main() {
    let stub = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("stub/lib64");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-search=native={}", stub.display());
}
