//! Rules over the generated PTX.

use std::fmt;

use crate::image::Image;

/// A rule broken by an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintFailure {
    /// The image, `sm_90a/reduce_f32`.
    pub image: String,
    /// The rule.
    pub rule: &'static str,
    /// Line of the image, from 1.
    pub line: usize,
    /// What was found.
    pub message: String,
}

impl fmt::Display for LintFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, line {}: {} [{}]",
            self.image, self.line, self.message, self.rule
        )
    }
}

/// Checks one image.
pub fn check(_image: &Image) -> Vec<LintFailure> {
    Vec::new()
}
