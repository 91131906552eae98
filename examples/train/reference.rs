//! What PyTorch computes from the same start: see `reference.py`.

use serde::Deserialize;

use crate::{gpt::Shape, trainer::Settings};

/// How far a loss may be from PyTorch's, as a part of it: both sum in f32, in different orders, and what one step rounds
/// away the next ones start from.
pub const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct File {
    runs: std::collections::BTreeMap<String, Run>,
}

/// A run of PyTorch.
#[derive(Deserialize)]
pub struct Run {
    layers: u64,
    heads: u64,
    width: u64,
    context: u64,
    batch: u64,
    learning_rate: f64,
    weight_decay: f64,
    seed: u64,
    /// Of the first steps.
    pub losses: Vec<f32>,
}

impl Run {
    /// The run of this name.
    pub fn named(name: &str) -> Result<Run, Box<dyn std::error::Error>> {
        let mut file: File = serde_json::from_str(include_str!("reference.json"))?;
        let names: Vec<String> = file.runs.keys().cloned().collect();
        file.runs
            .remove(name)
            .ok_or_else(|| format!("there is no run {name}; there are {}", names.join(", ")).into())
    }

    /// What it was trained with.
    pub fn settings(&self) -> Settings {
        Settings {
            shape: Shape {
                layers: self.layers,
                heads: self.heads,
                width: self.width,
                context: self.context,
            },
            batch: self.batch,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            dropout: 0.0,
            seed: self.seed,
        }
    }
}
