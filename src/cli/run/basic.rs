//! `run vector-add` and `run reduce`.

use clap::{Args, ValueEnum};
use host::ops::{self, ReduceAxis, ReduceKind};

use super::{Failure, Inputs, Outputs};

/// Options of `run reduce`.
#[derive(Args)]
pub struct ReduceOptions {
    /// What to compute.
    #[arg(long, value_enum, default_value = "sum")]
    kind: Kind,
    /// Over everything, or over the last axis.
    #[arg(long, value_enum, default_value = "all")]
    axis: Axis,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Argmax,
    /// Sum of squares.
    Sumsq,
}

#[derive(Clone, Copy, ValueEnum)]
enum Axis {
    All,
    Last,
}

/// a, b → c.
pub fn vector_add(inputs: &Inputs) -> Result<Outputs, Failure> {
    Ok(Outputs::from([(
        "c",
        ops::vector_add(inputs.get("a")?, inputs.get("b")?)?,
    )]))
}

/// x → y.
pub fn reduce(inputs: &Inputs, options: &ReduceOptions) -> Result<Outputs, Failure> {
    let kind = match options.kind {
        Kind::Sum => ReduceKind::Sum,
        Kind::Mean => ReduceKind::Mean,
        Kind::Max => ReduceKind::Max,
        Kind::Min => ReduceKind::Min,
        Kind::Argmax => ReduceKind::Argmax,
        Kind::Sumsq => ReduceKind::SumOfSquares,
    };
    let axis = match options.axis {
        Axis::All => ReduceAxis::All,
        Axis::Last => ReduceAxis::Last,
    };
    Ok(Outputs::from([("y", ops::reduce(inputs.get("x")?, kind, axis)?)]))
}
