//! Linear layers on every device and tier: exact on small integers for every layout and tail, within the 2× rule on
//! normal data, deterministic, independent of the number of rows, and errors for what does not fit.

#[path = "../common/mod.rs"]
mod common;

mod backward;
mod epilogue;
mod errors;
mod norm;
mod properties;
mod shapes;
mod support;
