//! Any other JSON log, by a mapping file: which path fills which column.
//!
//! ```toml
//! name = "acme_proxy"            # format name, for `[[topics]] format`
//! table = "tool_calls"
//! recognised_by = ["/acme/version"]  # paths that a record of this log has
//! time = "/ts"                   # any time that keyfuse reads, or a number since the epoch
//! id = "/call/id"                # optional; else a hash of the record
//!
//! [columns]
//! tool = "/call/tool"            # a JSON pointer …
//! agent_id = ["/agent/id", "/agent"]  # … or several: the first that is filled
//! outcome = { path = "/status", words = { ok = "success", refused = "denied" } }
//! method = { constant = "tools/call" }
//!
//! [texts]                        # read for credentials and suspicious patterns; only numbers of them are kept
//! argument = ["/call/arguments"]
//! result = "/call/result"
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::draft::{Draft, all_text, first, parse, scalar, time};
use super::{FORMATS, Format, Out, Reason, Record, Refusal};
use crate::error::{At, Error, Result as KeyfuseResult};
use crate::table::{Table, by_name, exposure_reports, flag};

/// A log format that a file describes.
pub struct Mapping {
    name: String,
    doc: String,
    tables: [&'static Table; 2],
    recognised_by: Vec<String>,
    time: Vec<String>,
    id: Vec<String>,
    columns: Vec<(&'static str, Source)>,
    texts: Vec<(&'static str, Vec<String>)>,
}

enum Source {
    Paths(Vec<String>, BTreeMap<String, String>),
    Constant(Value),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    table: String,
    #[serde(default)]
    recognised_by: Paths,
    #[serde(default)]
    time: Paths,
    #[serde(default)]
    id: Paths,
    columns: BTreeMap<String, Column>,
    #[serde(default)]
    texts: BTreeMap<String, Paths>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

impl Default for Paths {
    fn default() -> Self {
        Paths::Several(Vec::new())
    }
}

impl Paths {
    fn list(self) -> Vec<String> {
        match self {
            Paths::One(path) => vec![path],
            Paths::Several(paths) => paths,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Column {
    Paths(Paths),
    Constant(Constant),
    Words(Words),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Constant {
    constant: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    path: Paths,
    words: BTreeMap<String, String>,
}

/// The words of `outcome`: detections compare with them.
const OUTCOMES: [&str; 5] = ["success", "denied", "throttled", "invalid", "other"];

/// Where texts may stand; the words of `exposure_reports.place`.
const PLACES: [&str; 5] = ["prompt", "output", "argument", "result", "document"];

/// Columns that keyfuse fills itself.
const OWN: [&str; 9] = ["event_time", "append_time", "event_id", "topic", "partition", "offset", "record", "late", "raw"];

impl Mapping {
    /// Reads a mapping file.
    ///
    /// # Errors
    /// Every unknown column, path that is none, and name that is taken, with the file.
    pub fn read(path: &Path) -> KeyfuseResult<Self> {
        let text = std::fs::read_to_string(path).user_at(|| format!("reading the mapping {}", path.display()))?;
        let file: File = toml::from_str(&text).user_at(|| format!("mapping {}", path.display()))?;
        let mut wrong = Vec::new();
        let table = by_name(&file.table).filter(|table| table.is_stream() && table.name != "rejects");
        if table.is_none() {
            wrong.push(format!("table: `{}` is no stream", file.table));
        }
        if FORMATS.iter().any(|format| format.name() == file.name) || file.name == "auto" || file.name.is_empty() {
            wrong.push(format!("name: `{}` is empty or the name of a format that keyfuse knows", file.name));
        }
        let (time, id, recognised_by) = (file.time.list(), file.id.list(), file.recognised_by.list());
        let mut columns = Vec::new();
        for (name, column) in file.columns {
            let known = table.and_then(|table| table.column(&name)).filter(|_| !OWN.contains(&name.as_str()));
            let Some(known) = known else {
                wrong.push(match table {
                    Some(table) => format!("columns: {} has no column `{name}` that a mapping could fill", table.name),
                    None => continue,
                });
                continue;
            };
            columns.push((
                known.name,
                match column {
                    Column::Paths(paths) => Source::Paths(paths.list(), BTreeMap::new()),
                    Column::Words(Words { path, words }) => Source::Paths(path.list(), words),
                    Column::Constant(Constant { constant }) if super::draft::cell_of(known.kind, &constant).is_some() => Source::Constant(constant),
                    Column::Constant(Constant { constant }) => {
                        wrong.push(format!("columns.{name}: {constant} is no {:?}", known.kind));
                        continue;
                    }
                },
            ));
        }
        for (name, source) in columns.iter().filter(|(name, _)| *name == "outcome") {
            let words: Vec<&str> = match source {
                Source::Paths(_, words) => words.values().map(String::as_str).collect(),
                Source::Constant(value) => value.as_str().into_iter().collect(),
            };
            wrong.extend(
                words.iter().filter(|word| !OUTCOMES.contains(word)).map(|word| format!("columns.{name}: `{word}` is none of {}", OUTCOMES.join(", "))),
            );
        }
        if time.is_empty() {
            wrong.push("time: name the path that tells when it happened".to_owned());
        }
        let mut texts = Vec::new();
        for (place, paths) in file.texts {
            match PLACES.iter().find(|known| **known == place) {
                Some(place) => texts.push((*place, paths.list())),
                None => wrong.push(format!("texts: `{place}` is none of {}", PLACES.join(", "))),
            }
        }
        let all = [&time, &id, &recognised_by].into_iter().chain(texts.iter().map(|(_, paths)| paths)).flatten();
        let of_columns = columns.iter().filter_map(|(_, source)| if let Source::Paths(paths, _) = source { Some(paths) } else { None }).flatten();
        wrong.extend(all.chain(of_columns).filter(|path| !path.starts_with('/')).map(|path| format!("`{path}` is no JSON pointer: write /a/b/0")));
        match (table, wrong.is_empty()) {
            (Some(table), true) => Ok(Self {
                doc: format!("mapping file {}", path.display()),
                name: file.name,
                tables: [table, &exposure_reports::TABLE],
                recognised_by,
                time,
                id,
                columns,
                texts,
            }),
            _ => Err(Error::user(format!("mapping {}: {}", path.display(), wrong.join("; ")))),
        }
    }
}

fn pick<'v>(value: &'v Value, paths: &[String]) -> Option<&'v Value> {
    first(value, &paths.iter().map(String::as_str).collect::<Vec<_>>())
}

impl Format for Mapping {
    fn name(&self) -> &str {
        &self.name
    }

    fn doc(&self) -> &str {
        &self.doc
    }

    fn tables(&self) -> &[&'static Table] {
        &self.tables
    }

    fn recognises(&self, text: &str) -> bool {
        // The last step of each path must stand there as a key; then the record is parsed to be sure.
        let names = |path: &String| path.rsplit('/').next().is_some_and(|name| text.contains(&format!("\"{name}\"")));
        !self.recognised_by.is_empty()
            && self.recognised_by.iter().all(names)
            && serde_json::from_str::<Value>(text).is_ok_and(|value| self.recognised_by.iter().all(|path| value.pointer(path).is_some()))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let mut d = Draft::new(self.tables[0]);
        d.event_time = pick(&v, &self.time).and_then(time);
        // Call ids start again with each session: only together with the time do they name one event.
        let at = d.event_time.or(record.append_time).unwrap_or_default();
        d.event_id = pick(&v, &self.id).and_then(scalar).map(|id| format!("{}:{id}:{at}", self.name));
        let mut filled = 0;
        for (column, source) in &self.columns {
            match source {
                Source::Constant(value) => {
                    d.set_json(column, Some(value));
                }
                Source::Paths(paths, words) => {
                    let Some(value) = pick(&v, paths) else { continue };
                    filled += 1;
                    match scalar(value).and_then(|text| words.get(text.as_ref())) {
                        Some(word) => d.set(column, Some(word.clone())),
                        None if *column == "outcome" && !scalar(value).is_some_and(|text| OUTCOMES.contains(&text.as_ref())) => {
                            flag(&mut d.flags, "unknown_outcome");
                            d.set(column, Some("other"))
                        }
                        None => d.set_json(column, Some(value)),
                    };
                }
            }
        }
        if filled == 0 {
            return Err(Refusal::new(Reason::MissingField, format!("none of the paths of {} is in the record", self.doc)));
        }
        for (place, paths) in &self.texts {
            for value in paths.iter().filter_map(|path| v.pointer(path)) {
                if *place == "argument" && self.tables[0].column("argument_hash").is_some() {
                    d.arguments(value);
                    continue;
                }
                let mut text = String::new();
                all_text(value, &mut text);
                d.read(place, if text.is_empty() { value.as_str().unwrap_or_default() } else { &text });
            }
        }
        d.finish(record, out)
    }
}
