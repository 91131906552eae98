//! The row ops against the f64 reference, on every device and tier.

#[path = "../common/mod.rs"]
mod common;

mod elementwise;
mod embedding;
mod loss;
mod norm;
mod optimizer;
mod sampling;
mod softmax;
mod support;
