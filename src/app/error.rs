//! The reason why the program cannot start.

/// The reason why the program cannot start. A sentence for an operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub(super) String);

/// Any error of a part, as one.
pub(super) fn start_error(error: impl std::fmt::Display) -> StartError {
    StartError(error.to_string())
}
