//! Runs the tests inside detection files through the real engine.
//!
//! Rows are given in arrival order as JSON objects of our tables' columns; absent columns are null. Times may be written
//! relative to the test's own zero, `2026-01-01T00:00:00Z`: `"at": "9m"` is when the event happened, `"arrives": "20m"`
//! when it was appended (default: when it happened).

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use serde_json::Value;

use crate::alert::{Alert, AlertBook, AllowList, Status, alerts_of};
use crate::clock::{Micros, parse_length, parse_time};
use crate::detect::{Detection, Engine, Finding, Scheduled, Test};
use crate::dimension::{self, Dimensions};
use crate::error::{Error, Result};
use crate::query;
use crate::schedule::{self, Past};
use crate::secret::Fingerprinter;
use crate::table::{Kind, Memory, Place, Rows, Table, by_name, cloudtrail};

/// The zero of relative times: 2026-01-01T00:00:00Z.
pub const ZERO: Micros = 1_767_225_600_000_000;

/// The outcome of one test.
#[derive(Debug)]
pub struct Outcome {
    pub detection: String,
    pub title: String,
    /// What went wrong, if anything.
    pub failure: Option<String>,
    pub seconds: f64,
}

/// The alerts that the rows of a test give, in order of time.
///
/// # Errors
/// In words: what is wrong with the rows or the detection.
pub fn raise(detection: &Detection, test: &Test) -> Result<Vec<Alert>, String> {
    let dimensions = stated(test)?;
    let engine = Engine::new(std::slice::from_ref(detection), &Fingerprinter::public(), &dimensions);
    let mut engine = engine.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let book = match detection.schedule {
        Some(_) => raise_scheduled(detection, &dimensions, test)?,
        None => raise_live(&mut engine, test)?,
    };
    Ok(book.all().into_iter().filter(|alert| alert.status != Status::Retracted).cloned().collect())
}

/// The same test at another time: all its moments are moved, and none of them is relative any more.
pub fn restamped(test: &Test, by: Micros) -> Test {
    let moved = |table: Option<&Table>, row: &mut Value| {
        for (name, value) in row.as_object_mut().into_iter().flatten() {
            let is_time =
                matches!(name.as_str(), "at" | "arrives") || table.and_then(|table| table.column(name)).is_some_and(|column| column.kind == Kind::Time);
            let relative = if table.is_some() { moment(value).filter(|_| is_time) } else { relative_time(name, value).and_then(|value| moment(&value)) };
            // Not every number is a moment: an account's id could be one.
            let absolute = value.as_str().filter(|text| text.len() >= 10 && text.as_bytes()[4] == b'-').and_then(parse_time);
            if let Some(time) = relative.or(absolute) {
                *value = crate::clock::rfc3339(time + by).into();
            }
        }
    };
    let mut test = test.clone();
    for (table, rows) in &mut test.rows {
        rows.iter_mut().for_each(|(_, row)| moved(by_name(table), row));
    }
    test.expect.iter_mut().for_each(|(_, row)| moved(None, row));
    test
}

/// Runs all tests of a detection.
///
/// # Errors
/// A detection that does not compile.
pub fn run(detection: &Detection) -> Result<Vec<Outcome>, Vec<Error>> {
    Engine::new(std::slice::from_ref(detection), &Fingerprinter::public(), &Dimensions::default())?;
    let fires = detection.tests.iter().any(|test| !test.expect.is_empty());
    let silent = detection.tests.iter().any(|test| test.expect.is_empty());
    let mut outcomes = Vec::new();
    for test in &detection.tests {
        let started = std::time::Instant::now();
        let failure = raise(detection, test).and_then(|alerts| compare(&alerts, test)).err();
        outcomes.push(Outcome { detection: detection.name.clone(), title: test.title.clone(), failure, seconds: started.elapsed().as_secs_f64() });
    }
    for (present, what) in [(fires, "at least one test that fires"), (silent, "at least one test that stays silent")] {
        if !present {
            outcomes.push(Outcome { detection: detection.name.clone(), title: what.into(), failure: Some("there is none".into()), seconds: 0.0 });
        }
    }
    Ok(outcomes)
}

/// The rows of a test, in order of arrival.
fn rows_of(test: &Test) -> Result<Vec<(usize, &'static Table, RecordBatch)>, String> {
    let mut all = Vec::new();
    for (table, rows) in test.rows.iter().filter(|(table, _)| dimension::by_name(table).is_none()) {
        let table = by_name(table).filter(|table| table.is_stream()).ok_or_else(|| format!("line {}: no stream named {table}", test.line))?;
        for (line, row) in rows {
            let batch = batch_of(table, row, all.len() as i64 + 1).map_err(|message| format!("line {line}: {message}"))?;
            all.push((*line, table, batch));
        }
    }
    Ok(all)
}

fn appended(batch: &RecordBatch) -> Micros {
    batch.column(cloudtrail::APPEND_TIME).as_primitive::<TimestampMicrosecondType>().value(0)
}

/// Asks at every moment of the schedule, from the first row until the first moment after the last.
fn raise_scheduled(detection: &Detection, dimensions: &Dimensions, test: &Test) -> Result<AlertBook, String> {
    let (past, mut first, mut last) = (Memory::default(), Micros::MAX, Micros::MIN);
    for (_, table, batch) in rows_of(test)? {
        (first, last) = (first.min(appended(&batch)), last.max(appended(&batch)));
        past.add(table, &batch);
    }
    let every = detection.schedule.map_or(1, |schedule| schedule.every);
    let (asked, past) = (Scheduled { detection: Arc::new(detection.clone()), instead: None }, Past::Memory(Arc::new(past)));
    let moments = if first > last { Vec::new() } else { schedule::moments(detection, first, last + every, 2_000) };
    let runtime = query::runtime().map_err(|error| error.to_string())?;
    let mut findings = Vec::new();
    for at in moments {
        let found = runtime.block_on(schedule::ask(&asked, at, &past, dimensions, &Fingerprinter::public()));
        findings.extend(found.map_err(|error| error.to_string())?);
    }
    Ok(alerts_of(&findings, AllowList::default()))
}

fn raise_live(engine: &mut Engine, test: &Test) -> Result<AlertBook, String> {
    let mut findings: Vec<Finding> = Vec::new();
    let (past, mut arrived) = (Memory::default(), Micros::MIN);
    for (line, table, batch) in rows_of(test)? {
        past.add(table, &batch);
        arrived = arrived.max(appended(&batch));
        engine.push(table, &batch).map_err(|error| error.to_string())?;
        engine.advance(arrived);
        findings.extend(engine.tick(&past).map_err(|error| error.to_string())?);
        if let Some((_, problem)) = engine.take_problems().into_iter().next() {
            return Err(format!("line {line}: {problem}"));
        }
    }
    // The test's world goes on after its last row: what waits for time to pass is decided.
    engine.advance(Micros::MAX);
    findings.extend(engine.tick(&past).map_err(|error| error.to_string())?);
    let mut book = alerts_of(&findings, AllowList::default());
    book.settle(Micros::MAX, &Default::default());
    Ok(book)
}

/// Whether alerts are those that a test expects.
///
/// # Errors
/// In words: what was raised in the place of what was expected.
pub fn compare(alerts: &[Alert], test: &Test) -> Result<(), String> {
    let mut alerts: Vec<&Alert> = alerts.iter().collect();
    let shown = |alerts: &[&Alert]| alerts.iter().map(|alert| flat(alert).to_string()).collect::<Vec<_>>().join("\n  ");
    if alerts.len() != test.expect.len() {
        return Err(format!("{} alerts expected, {} raised:\n  {}", test.expect.len(), alerts.len(), shown(&alerts)));
    }
    for (number, (line, expected)) in test.expect.iter().enumerate() {
        // Alerts of the same moment have no order that a reader could know.
        let same_moment = (number..alerts.len()).filter(|other| alerts[*other].first_time == alerts[number].first_time);
        let fits = same_moment.into_iter().find(|other| differs(alerts[*other], expected).is_none());
        match fits {
            Some(fits) => alerts.swap(number, fits),
            None => return Err(format!("line {line}: {}", differs(alerts[number], expected).unwrap_or_default())),
        }
    }
    Ok(())
}

/// In what an alert is not as expected.
fn differs(alert: &Alert, expected: &Value) -> Option<String> {
    let got = flat(alert);
    expected.as_object().into_iter().flatten().find_map(|(name, value)| {
        let wanted = relative_time(name, value).unwrap_or_else(|| value.clone());
        match got.get(name) {
            Some(found) if *found == wanted => None,
            Some(found) => Some(format!("`{name}` is {found}, expected {wanted}")),
            None => Some(format!("alerts of {} have no `{name}`; they have {got}", alert.detection)),
        }
    })
}

/// The dimensions of a test: blocks named after them, entries as in their files.
fn stated(test: &Test) -> Result<Dimensions, String> {
    let mut dimensions = Dimensions::default();
    for (name, rows) in &test.rows {
        let Some(table) = dimension::by_name(name) else { continue };
        let stated = dimensions.state(table, rows.iter().map(|(_, row)| row), |number| format!("line {}", rows[number].0));
        stated.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    }
    Ok(dimensions)
}

/// Alert key, payload and the alert's own fields in one object, as `expect` blocks name them.
fn flat(alert: &Alert) -> Value {
    let mut all: HashMap<String, Value> = alert.payload.clone().into_iter().chain(alert.alert_key.clone()).collect();
    all.insert("level".into(), alert.level.clone().into());
    all.insert("findings".into(), alert.findings().into());
    all.insert("first_time".into(), crate::clock::rfc3339(alert.first_time).into());
    all.insert("last_time".into(), crate::clock::rfc3339(alert.last_time()).into());
    all.insert("status".into(), alert.status.name().into());
    serde_json::json!(all.into_iter().collect::<std::collections::BTreeMap<_, _>>())
}

fn relative_time(name: &str, value: &Value) -> Option<Value> {
    let is_time = name.ends_with("_time") || name.ends_with("_at") || name == "since";
    let length = parse_offset(value.as_str().filter(|_| is_time)?)?;
    Some(crate::clock::rfc3339(ZERO + length).into())
}

fn parse_offset(text: &str) -> Option<Micros> {
    match text.strip_prefix('-') {
        Some(rest) => parse_length(rest).map(|length| -length),
        None => parse_length(text),
    }
}

fn moment(value: &Value) -> Option<Micros> {
    let text = value.as_str()?;
    parse_offset(text).map(|length| ZERO + length).or_else(|| parse_time(text))
}

/// One test row as a batch.
fn batch_of(table: &'static Table, row: &Value, number: i64) -> Result<RecordBatch, String> {
    let Some(row) = row.as_object() else { return Err("each line must be a JSON object".into()) };
    let event = row.get("at").or_else(|| row.get("event_time")).and_then(moment).ok_or("`at` must say when, such as \"9m\" or a timestamp")?;
    let append = row.get("arrives").or_else(|| row.get("append_time")).map_or(Some(event), moment).ok_or("`arrives` is not a time")?;
    let id = row.get("event_id").and_then(Value::as_str).map_or_else(|| format!("row-{number}"), str::to_owned);
    let place = Place { topic: Arc::from("test"), partition: 0, offset: number, record: 0 };
    let mut rows = Rows::new(table);
    rows.stamp(&place, Some(event), Some(append), &id, &mut String::new());
    for (name, value) in row {
        if matches!(name.as_str(), "at" | "arrives" | "event_time" | "append_time" | "event_id") || value.is_null() {
            continue;
        }
        let Some(index) = table.columns.iter().position(|column| column.name == name) else {
            return Err(format!("{} has no column `{name}`", table.name));
        };
        let wrong = || format!("`{name}` cannot be {value}");
        match table.columns[index].kind {
            Kind::Text | Kind::Word => rows.text(index, Some(value.as_str().ok_or_else(wrong)?)),
            Kind::Int => rows.int(index, Some(value.as_i64().ok_or_else(wrong)?)),
            Kind::Bool => rows.bool(index, Some(value.as_bool().ok_or_else(wrong)?)),
            Kind::Time => rows.time(index, Some(moment(value).ok_or_else(wrong)?)),
        }
    }
    rows.end_row();
    Ok(rows.finish())
}
