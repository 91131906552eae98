//! Errors of parsing and loading.

use crate::syntax::ast::Position;

/// The text is not PTX that this crate can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {message}")]
pub struct ParseError {
    /// Where.
    pub position: Position,
    /// What was found and what was allowed.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(position: Position, message: String) -> Self {
        ParseError { position, message }
    }
}
