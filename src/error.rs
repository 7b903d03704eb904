//! One error type: what was wrong, where, what to do; and whose fault it is.

use std::fmt;

/// Whose move it is after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The person at the keyboard or the author of a file: config, arguments, a detection, a query.
    User,
    /// A disk, a broker, a network: the same call may work later.
    Environment,
    /// Someone else changed what this process thought it owned. Only starting again helps.
    Conflict,
    /// keyfuse itself. Please report it.
    Bug,
}

/// An error that names its cause, its place and the way out.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    pub fault: Fault,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error {
    pub fn user(message: impl Into<String>) -> Self {
        Self { fault: Fault::User, message: message.into(), source: None }
    }

    pub fn environment(message: impl Into<String>) -> Self {
        Self { fault: Fault::Environment, message: message.into(), source: None }
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self { fault: Fault::Conflict, message: message.into(), source: None }
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self { fault: Fault::Bug, message: message.into(), source: None }
    }

    /// The same error with its cause attached.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// Adds the place to a foreign error: `read(path).at(|| format!("reading {path}"))?`.
pub trait At<T> {
    /// The environment's fault: a file, a socket, a broker.
    fn at(self, place: impl FnOnce() -> String) -> Result<T>;
    /// The user's fault: a query, a config value, a detection.
    fn user_at(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> At<T> for Result<T, E> {
    fn at(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::environment(place()).because(error))
    }

    fn user_at(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::user(place()).because(error))
    }
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Error::user("SQL").because(error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::bug("Arrow").because(error)
    }
}
