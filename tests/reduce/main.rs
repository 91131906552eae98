//! Reductions on every device and tier, against the f64 reference.

#[path = "../common/mod.rs"]
mod common;

mod errors;
mod extremes;
mod support;
mod values;
