//! Attention over caches, against the f64 reference, on every device.

#[path = "../common/caches.rs"]
mod caches;
#[path = "../common/mod.rs"]
mod common;

mod direct;
mod errors;
mod fused;
mod pool;
mod problems;
mod properties;
mod support;
