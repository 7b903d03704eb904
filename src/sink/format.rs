//! How an alert is written.

use super::{Parcel, ocsf};

/// The JSON Schema of the native format, as `keyfuse docs alert-schema` prints it.
pub const SCHEMA: &str = include_str!("alert.schema.json");

/// The formats that sinks write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// keyfuse's own, see [`SCHEMA`].
    #[default]
    Keyfuse,
    /// OCSF Detection Finding (class 2004).
    Ocsf,
}

impl Format {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "keyfuse" => Some(Format::Keyfuse),
            "ocsf" => Some(Format::Ocsf),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Keyfuse => "keyfuse",
            Format::Ocsf => "ocsf",
        }
    }

    pub fn write(self, parcel: &Parcel) -> serde_json::Value {
        match self {
            Format::Keyfuse => parcel.document.clone(),
            Format::Ocsf => ocsf::finding(parcel),
        }
    }
}
