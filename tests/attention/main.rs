//! Attention, forward and backward: one body for every device and tier, against the f64 reference.

#[path = "../common/mod.rs"]
mod common;

mod backward;
mod dropout;
mod errors;
mod forward;
mod packed;
mod properties;
mod support;
