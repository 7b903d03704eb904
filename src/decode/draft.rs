//! One row in the making, for all formats whose records are not read by typed structs: columns by name, texts read on the way.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::content::{Seen, destination};
use super::{Out, Reason, Record, Refusal, hashed_id};
use crate::clock::{Micros, epoch, parse_time};
use crate::credential;
use crate::limits;
use crate::table::{Kind, Table, exposure_reports, flag};

/// A value on its way into a column.
#[derive(Clone, Debug)]
pub enum Cell<'d> {
    Text(Cow<'d, str>),
    Int(i64),
    Bool(bool),
    Time(Micros),
}

impl<'d> From<&'d str> for Cell<'d> {
    fn from(text: &'d str) -> Self {
        Cell::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Cell<'_> {
    fn from(text: String) -> Self {
        Cell::Text(Cow::Owned(text))
    }
}

impl<'d> From<Cow<'d, str>> for Cell<'d> {
    fn from(text: Cow<'d, str>) -> Self {
        Cell::Text(text)
    }
}

impl From<i64> for Cell<'_> {
    fn from(number: i64) -> Self {
        Cell::Int(number)
    }
}

impl From<bool> for Cell<'_> {
    fn from(flag: bool) -> Self {
        Cell::Bool(flag)
    }
}

/// One row of one table.
pub struct Draft<'d> {
    pub table: &'static Table,
    pub event_time: Option<Micros>,
    pub event_id: Option<String>,
    /// Replaces the record's text in `raw`, where it must not be kept as it came.
    pub raw: Option<String>,
    pub flags: String,
    cells: Vec<(usize, Cell<'d>)>,
    exposed: Vec<Exposed>,
    markers: Vec<&'static str>,
}

/// A credential that stood in a text.
struct Exposed {
    place: &'static str,
    kind: String,
    class: &'static str,
    name: String,
}

impl<'d> Draft<'d> {
    pub fn new(table: &'static Table) -> Self {
        Self { table, event_time: None, event_id: None, raw: None, flags: String::new(), cells: Vec::new(), exposed: Vec::new(), markers: Vec::new() }
    }

    /// Sets a column. The last one wins; empty texts are absent, as they are in logs.
    pub fn set(&mut self, column: &str, value: Option<impl Into<Cell<'d>>>) -> &mut Self {
        let Some(value) = value.map(Into::into) else { return self };
        let Some(index) = self.table.columns.iter().position(|known| known.name == column) else {
            debug_assert!(false, "{} has no column {column}", self.table.name);
            return self;
        };
        self.put(index, value)
    }

    /// Sets a column from a JSON value of any type; a type that cannot be read is flagged, not an error.
    pub fn set_json(&mut self, column: &str, value: Option<&'d Value>) -> &mut Self {
        let Some(index) = self.table.columns.iter().position(|known| known.name == column) else {
            debug_assert!(false, "{} has no column {column}", self.table.name);
            return self;
        };
        let Some(value) = value.filter(|value| !value.is_null()) else { return self };
        match cell_of(self.table.columns[index].kind, value) {
            Some(cell) => self.put(index, cell),
            None if value.as_str().is_some_and(|text| text.trim().is_empty()) => self,
            None => {
                flag(&mut self.flags, &format!("bad_type:{column}"));
                self
            }
        }
    }

    fn put(&mut self, index: usize, value: Cell<'d>) -> &mut Self {
        if matches!(&value, Cell::Text(text) if text.is_empty()) {
            return self;
        }
        self.cells.retain(|(known, _)| *known != index);
        self.cells.push((index, value));
        self
    }

    /// The text in a column, where there is one.
    pub fn text(&self, column: &str) -> Option<&str> {
        self.cells.iter().find_map(|(index, cell)| match cell {
            Cell::Text(text) if self.table.columns[*index].name == column => Some(text.as_ref()),
            _ => None,
        })
    }

    /// Reads a text for credentials and suspicious patterns; `place` says where it stood. Gives hash, length and count.
    pub fn read(&mut self, place: &'static str, text: &str) -> Seen {
        for named in credential::named_in(text) {
            if self.exposed.len() >= limits::CREDENTIALS_PER_RECORD {
                flag(&mut self.flags, "many_credentials");
                break;
            }
            let known = self.exposed.iter().any(|one| one.name == named.name && one.place == place);
            if !known {
                self.exposed.push(Exposed { place, kind: named.kind.to_owned(), class: named.class, name: named.name.to_owned() });
            }
        }
        let seen = Seen::of(text);
        self.markers.extend(&seen.markers);
        seen
    }

    /// The texts of a model call: lengths, hashes and what is recognised in them.
    pub fn model_texts(&mut self, prompt: &str, answer: &str, system: &str) {
        let (prompt, answer) = (self.read("prompt", prompt), self.read("output", answer));
        let system = self.read("prompt", system);
        self.set("system_hash", system.hash);
        if prompt.hash.is_some() {
            self.set("prompt_chars", Some(prompt.chars)).set("prompt_secrets", Some(prompt.secrets)).set("prompt_hash", prompt.hash);
        }
        if answer.hash.is_some() {
            self.set("output_chars", Some(answer.chars)).set("output_secrets", Some(answer.secrets));
        }
    }

    /// What a tool gave back: its length and what is recognised in it.
    pub fn result(&mut self, text: &str) {
        let result = self.read("result", text);
        if result.hash.is_some() {
            self.set("result_chars", Some(result.chars)).set("result_secrets", Some(result.secrets));
        }
    }

    /// The arguments of a tool call: hash, keys, length, secrets, destination.
    pub fn arguments(&mut self, arguments: &Value) {
        // Arguments come as an object, as JSON text, and as text that is no JSON at all.
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let value = parsed.as_ref().unwrap_or(arguments);
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => return,
            other => other.to_string(),
        };
        let seen = self.read("argument", &text);
        let keys = value.as_object().map(|object| object.keys().map(String::as_str).collect::<Vec<_>>().join(","));
        self.set("argument_hash", seen.hash).set("argument_chars", Some(seen.chars)).set("argument_secrets", Some(seen.secrets));
        self.set("argument_keys", keys).set("destination", destination(&text));
    }

    /// Writes the row, and one exposure report for each credential that stood in its texts.
    ///
    /// # Errors
    /// Nothing tells when it happened.
    pub fn finish(mut self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let event_time = self.event_time.or(record.append_time);
        if event_time.is_none() {
            return Err(Refusal::new(Reason::MissingField, "no readable time, and nothing tells when the record arrived"));
        }
        if self.event_time.is_none() {
            flag(&mut self.flags, "no_time");
        }
        let mut flags = record.flags.clone();
        self.flags.split(',').filter(|one| !one.is_empty()).for_each(|one| flag(&mut flags, one));
        let event_id = self.event_id.take().filter(|id| !id.is_empty()).unwrap_or_else(|| hashed_id(record.text));
        self.markers.sort_unstable();
        self.markers.dedup();
        if !self.markers.is_empty() {
            self.set("markers", Some(self.markers.join(",")));
        }
        if let Some(address) = self.text("source_ip").map(str::to_owned) {
            self.set("source_network", out.networks.of(&address).name);
        }
        let about = |column: &str| self.text(column).map(str::to_owned);
        let (identity, agent, tool) = (about("identity"), about("agent_id"), self.table.column("tool").and_then(|_| about("tool")));
        let conversation = about("conversation_id").or_else(|| about("trace_id"));
        let raw = self.raw.take();
        let kept = out.keep_raw.then(|| raw.as_deref().unwrap_or(record.text));
        let fingerprinter = out.fingerprinter.clone();
        let rows = out.rows(self.table);
        rows.stamp(&record.place, event_time, record.append_time, &event_id, &mut flags);
        for (index, cell) in &self.cells {
            match cell {
                // Once more: what a format put together from parts was not whole when the record's text was searched.
                Cell::Text(text) => rows.text(*index, Some(&credential::replace_secrets(text, &fingerprinter))),
                Cell::Int(number) => rows.int(*index, Some(*number)),
                Cell::Bool(flag) => rows.bool(*index, Some(*flag)),
                Cell::Time(time) => rows.time(*index, Some(*time)),
            }
        }
        rows.text(self.table.columns.len() - 1, kept);
        rows.end_row();
        for exposed in &self.exposed {
            let id = format!("seen:{}:{event_id}:{}:{}", self.table.name, exposed.place, exposed.name);
            let location = format!("{} of {} in {}", exposed.place, event_id, self.table.name);
            let rows = out.rows(&exposure_reports::TABLE);
            rows.stamp(&record.place, event_time, record.append_time, &id, &mut String::new());
            for (column, text) in [
                (exposure_reports::CREDENTIAL, Some(exposed.name.as_str())),
                (exposure_reports::CREDENTIAL_CLASS, Some(exposed.class)),
                (exposure_reports::CREDENTIAL_KIND, Some(exposed.kind.as_str())),
                (exposure_reports::ACCOUNT_ID, credential::account_of(&exposed.name).as_deref()),
                (exposure_reports::REPORTER, Some("keyfuse")),
                (exposure_reports::LOCATION, Some(location.as_str())),
                (exposure_reports::STATUS, Some("unknown")),
                (exposure_reports::PLACE, Some(exposed.place)),
                (exposure_reports::IDENTITY, identity.as_deref()),
                (exposure_reports::AGENT_ID, agent.as_deref()),
                (exposure_reports::CONVERSATION_ID, conversation.as_deref()),
                (exposure_reports::TOOL, tool.as_deref()),
            ] {
                rows.text(column, text);
            }
            if exposed.name.starts_with("fp:") {
                rows.text(exposure_reports::SECRET_FINGERPRINT, Some(&exposed.name));
            }
            rows.time(exposure_reports::FOUND_AT, record.append_time.or(event_time));
            rows.end_row();
        }
        Ok(())
    }
}

/// A JSON value as a cell of this kind, where it can be read as one.
pub fn cell_of(kind: Kind, value: &Value) -> Option<Cell<'_>> {
    match kind {
        Kind::Text | Kind::Word => scalar(value).map(Cell::Text),
        Kind::Int => int(value).map(Cell::Int),
        Kind::Bool => match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => text.to_ascii_lowercase().parse().ok(),
            _ => None,
        }
        .map(Cell::Bool),
        Kind::Time => time(value).map(Cell::Time),
    }
}

/// A text, or a number or boolean spelt out.
pub fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) if !text.is_empty() => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(flag) => Some(Cow::Owned(flag.to_string())),
        _ => None,
    }
}

/// A whole number, also from a float or a text.
pub fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().filter(|float| float.abs() < 9e15).map(|float| float as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A moment, from a text or a number since the epoch. A number above 2^63 is none.
pub fn time(value: &Value) -> Option<Micros> {
    match value {
        Value::String(text) => parse_time(text),
        Value::Number(number) => number.as_i64().and_then(epoch).or_else(|| number.as_f64().and_then(|float| epoch(float as i64))),
        _ => None,
    }
}

/// The first of these paths that holds something.
pub fn first<'v>(value: &'v Value, paths: &[&str]) -> Option<&'v Value> {
    paths.iter().filter_map(|path| value.pointer(path)).find(|found| !found.is_null() && found.as_str() != Some(""))
}

/// The record as a JSON object.
///
/// # Errors
/// It is none, or holds a key twice: that goes to repair, so that detection and archive read the same one.
pub fn parse(record: &Record<'_>) -> Result<Value, Refusal> {
    let Strict(value) = serde_json::from_str(record.text).map_err(|error| Refusal::new(Reason::BadRecord, error.to_string()))?;
    Ok(value)
}

/// A JSON value in which no object holds a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            list.push(value);
        }
        Ok(Strict(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut object = serde_json::Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if object.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("duplicate field `{key}`")));
            }
            object.insert(key, value);
        }
        Ok(Strict(Value::Object(object)))
    }
}

/// Whether all marks stand in the text: the cheap test by which `auto` tells formats apart.
pub fn has(text: &str, marks: &[&str]) -> bool {
    marks.iter().all(|mark| memchr::memmem::find(text.as_bytes(), mark.as_bytes()).is_some())
}

/// All text of a message in any of the shapes that providers use: a string, a list of parts, an object with text, content or
/// parts inside. Keys are not text.
pub fn all_text(value: &Value, into: &mut String) {
    match value {
        Value::String(text) => {
            if !into.is_empty() {
                into.push('\n');
            }
            into.push_str(text);
        }
        Value::Array(parts) => parts.iter().for_each(|part| all_text(part, into)),
        Value::Object(object) => {
            const TEXTUAL: [&str; 14] = [
                "text",
                "content",
                "parts",
                "message",
                "messages",
                "prompt",
                "input",
                "inputText",
                "outputText",
                "completion",
                "system",
                "arguments",
                "generation",
                "json",
            ];
            object.iter().filter(|(key, _)| TEXTUAL.contains(&key.as_str())).for_each(|(_, part)| all_text(part, into));
            for nested in ["delta", "guardContent", "contents"] {
                if let Some(part) = object.get(nested) {
                    all_text(part, into);
                }
            }
            // What a tool is given and gives back has keys of its own: every text in it counts.
            for nested in ["toolUse", "toolResult", "tool_use", "tool_result", "structuredContent"] {
                if let Some(part) = object.get(nested) {
                    every_text(part, into);
                }
            }
            if object.get("type").and_then(Value::as_str) == Some("tool_use") {
                object.get("input").iter().for_each(|part| every_text(part, into));
            }
        }
        _ => {}
    }
}

/// Every text below a value, whatever its key.
pub fn every_text(value: &Value, into: &mut String) {
    match value {
        Value::Object(object) => object.values().for_each(|part| every_text(part, into)),
        Value::Array(parts) => parts.iter().for_each(|part| every_text(part, into)),
        other => all_text(other, into),
    }
}

/// The address in `203.0.113.9:51234`, `[2001:db8::1]:443`, `/10.1.2.3`, `2001:db8::1`.
pub fn address(text: &str) -> &str {
    let text = text.trim_start_matches('/');
    if let Some(v6) = text.strip_prefix('[') {
        return v6.split(']').next().unwrap_or(v6);
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => text,
    }
}

/// `arn:aws:sts::1:assumed-role/name/session` → the role, as CloudTrail's `identity` names it (a path is not in the session's ARN).
pub fn identity_of_arn(arn: &str) -> Cow<'_, str> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, "sts", _, account, resource] => match resource.strip_prefix("assumed-role/").and_then(|rest| rest.split('/').next()) {
            Some(role) => Cow::Owned(format!("arn:{partition}:iam::{account}:role/{role}")),
            None => Cow::Borrowed(arn),
        },
        _ => Cow::Borrowed(arn),
    }
}
