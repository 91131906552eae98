//! Every function of `cuda_std`, and the tile building blocks, on every device and tier: launches the kernels of
//! `kernels-gpu/src/device_tests` and compares what their instructions returned with what the CPU computes.

#[path = "../common/mod.rs"]
mod common;

mod arithmetic;
mod copies;
mod matrices;
mod memory;
mod schedules;
mod support;
mod threads;
