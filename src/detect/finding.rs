//! A finding: one row that a detection's SQL returned.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::analyse::Merge;
use super::file::{Detection, Level};
use crate::clock::{Micros, rfc3339};

/// A value of a result column, ordered so that minimum and maximum mean what they say.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Time(Micros),
    Text(String),
}

impl Scalar {
    pub fn json(&self) -> serde_json::Value {
        match self {
            Scalar::Null => serde_json::Value::Null,
            Scalar::Bool(value) => (*value).into(),
            Scalar::Int(value) => (*value).into(),
            Scalar::Float(value) => (*value).into(),
            Scalar::Time(value) => rfc3339(*value).into(),
            Scalar::Text(value) => value.clone().into(),
        }
    }

    /// The value as text, as an allow-list compares it.
    pub fn text(&self) -> String {
        match self {
            Scalar::Text(value) => value.clone(),
            other => match other.json() {
                serde_json::Value::Null => String::new(),
                value => value.to_string().trim_matches('"').to_owned(),
            },
        }
    }
}

/// How much a finding can still change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that arrives takes it back; it can only grow.
    Open,
    /// Told early: it is confirmed or taken back when append time has come this far.
    Provisional(Micros),
    /// The watermark has passed: it stays as it is.
    Final,
}

/// One row of a detection's result. The words are never swapped: an alert is a finding with an identity and a life.
#[derive(Clone, Debug)]
pub struct Finding {
    pub detection: Arc<Detection>,
    pub alert_time: Micros,
    /// From the `level` column where the query returns one, else the detection's.
    pub level: Level,
    /// Values of the alert-key columns, in the order in which the file names them.
    pub key: Vec<(String, Scalar)>,
    /// The other columns and how they merge.
    pub columns: Vec<(String, Merge, Scalar)>,
    /// Values of `event_id` and of columns ending in `_event_id`.
    pub evidence: Vec<String>,
    pub standing: Standing,
    /// The past that it is measured against reaches back beyond the first row that there is.
    pub warming: bool,
}

/// Turns a result into findings.
///
/// # Errors
/// Arrow's, where a column's type cannot be shown.
pub fn findings_of(detection: &Arc<Detection>, merges: &[(String, Merge)], batch: &RecordBatch) -> Result<Vec<Finding>, ArrowError> {
    let columns = merges
        .iter()
        .enumerate()
        .map(|(index, (name, merge))| Ok((name.as_str(), *merge, scalars(batch.column(index))?)))
        .collect::<Result<Vec<_>, ArrowError>>()?;
    for (_, merge, values) in &columns {
        if let (Merge::Level, Some(Scalar::Text(name))) =
            (merge, values.iter().find(|value| matches!(value, Scalar::Text(name) if Level::parse(name).is_none())))
        {
            return Err(ArrowError::InvalidArgumentError(format!("`{name}` is no level; write informational, low, medium, high or critical")));
        }
    }
    let row_of = |row: usize| {
        let value = |wanted: &str| columns.iter().find(|(name, ..)| *name == wanted).map(|(.., values)| values[row].clone());
        let Some(Scalar::Time(alert_time)) = value("alert_time") else { return None };
        let said = match value("level") {
            Some(Scalar::Text(name)) => Level::parse(&name),
            _ => None,
        };
        let level = detection.own_level.or(said).unwrap_or(detection.level);
        let is_key = |name: &str| detection.alert_key.iter().any(|key| key == name);
        // A smallest id of a group may still fall: it is read from the merged payload instead.
        let is_evidence = |name: &str, merge: Merge| is_event_id(name) && merge == Merge::First;
        let evidence = columns.iter().filter(|(name, merge, _)| is_evidence(name, *merge)).filter_map(|(.., values)| match &values[row] {
            Scalar::Text(id) => Some(id.clone()),
            _ => None,
        });
        Some(Finding {
            detection: Arc::clone(detection),
            alert_time,
            level,
            key: detection.alert_key.iter().map(|name| (name.clone(), value(name).unwrap_or(Scalar::Null))).collect(),
            evidence: evidence.collect(),
            standing: Standing::Open,
            warming: false,
            columns: columns
                .iter()
                .filter(|(name, ..)| !is_key(name) && *name != "alert_time" && *name != "level")
                .map(|(name, merge, values)| ((*name).to_owned(), *merge, values[row].clone()))
                .collect(),
        })
    };
    Ok((0..batch.num_rows()).filter_map(row_of).collect())
}

/// Whether a column names an event.
pub fn is_event_id(column: &str) -> bool {
    column == "event_id" || column.ends_with("_event_id")
}

fn scalars(column: &arrow::array::ArrayRef) -> Result<Vec<Scalar>, ArrowError> {
    let len = column.len();
    let all = |value: &dyn Fn(usize) -> Scalar| (0..len).map(|row| if column.is_null(row) { Scalar::Null } else { value(row) }).collect();
    Ok(match column.data_type() {
        DataType::Null => vec![Scalar::Null; len],
        DataType::Boolean => all(&|row| Scalar::Bool(column.as_boolean().value(row))),
        DataType::Timestamp(..) => {
            let times = arrow::compute::cast(column, &DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())))?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            all(&|row| Scalar::Time(times.value(row)))
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let floats = arrow::compute::cast(column, &DataType::Float64)?;
            let floats = floats.as_primitive::<Float64Type>();
            all(&|row| Scalar::Float(floats.value(row)))
        }
        kind if kind.is_integer() => {
            let ints = arrow::compute::cast(column, &DataType::Int64)?;
            let ints = ints.as_primitive::<Int64Type>();
            all(&|row| Scalar::Int(ints.value(row)))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            let texts = arrow::compute::cast(column, &DataType::Utf8)?;
            let texts = texts.as_string::<i32>();
            all(&|row| Scalar::Text(texts.value(row).to_owned()))
        }
        _ => {
            // Lists, intervals, decimals: as Arrow prints them.
            let options = arrow::util::display::FormatOptions::default();
            let shown = arrow::util::display::ArrayFormatter::try_new(column, &options)?;
            all(&|row| Scalar::Text(shown.value(row).to_string()))
        }
    })
}
