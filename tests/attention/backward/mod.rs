//! Gradients: against the f64 reference, finite differences, and themselves.

mod calls;
mod gradients;
mod packed;
mod properties;
mod shapes;

pub use gradients::*;
pub use packed::packed;

use crate::support::causal;
