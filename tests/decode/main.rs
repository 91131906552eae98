//! Attention over caches, against the f64 reference, on every device.

#[path = "../common/caches.rs"]
mod caches;
#[path = "../common/mod.rs"]
mod common;

mod errors;
mod fused;
mod lone;
mod pool;
mod problems;
mod properties;
mod support;
