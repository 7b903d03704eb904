//! Dimensions from files and compacted topics: what an operator states about agents, approvals, accepted behaviour and the logs that
//! ought to arrive.
//!
//! TOML with one `[[agents]]` (`[[approvals]]`, `[[allow]]`) table per entry, or CSV with the column names as header. A change
//! is a new entry with its own `valid_from`, so that last month's answers stay what they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use serde_json::Value;

use crate::clock::{DAY, Micros, SECOND, parse_length, parse_time, rfc3339};
use crate::error::{At, Error, Result};
use crate::limits;
use crate::table::{DIMENSIONS, Kind, Rows, STREAMS, Table, agents, allow_list, approvals, canaries, expected_sources, exposure_reports, statements};

/// Rows of every dimension; a dimension without a file has none.
#[derive(Clone, Debug, Default)]
pub struct Dimensions {
    rows: BTreeMap<&'static str, RecordBatch>,
}

/// The files that dimensions come from.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub agents: Option<PathBuf>,
    pub approvals: Option<PathBuf>,
    pub allow_list: Option<PathBuf>,
    pub expected_sources: Option<PathBuf>,
}

impl Files {
    /// Each file with its dimension.
    pub fn each(&self) -> impl Iterator<Item = (&'static Table, &PathBuf)> {
        let all = [
            (&agents::TABLE, &self.agents),
            (&approvals::TABLE, &self.approvals),
            (&allow_list::TABLE, &self.allow_list),
            (&expected_sources::TABLE, &self.expected_sources),
        ];
        all.into_iter().filter_map(|(table, path)| Some((table, path.as_ref()?)))
    }
}

/// What a compacted topic can state.
pub const TOPICS: [&str; 5] = ["agents", "approvals", "allow_list", "expected_sources", "networks"];

/// What a compacted topic says under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The dimension that it is about, or `networks`.
    pub dimension: String,
    pub key: String,
    /// An entry as a JSON object of column names; none takes back what was stated.
    pub entry: Option<String>,
    /// From when it counts.
    pub holds_from: Micros,
    pub stated_at: Micros,
    /// Where it stands, to be named in errors and known again: `topic/partition@offset`.
    pub place: String,
}

impl Statement {
    /// Statements as rows of the table `statements`.
    pub fn rows(read: &[Statement], read_at: Micros) -> RecordBatch {
        let mut rows = Rows::new(&statements::TABLE);
        for statement in read {
            rows.time(statements::READ_AT, Some(read_at));
            rows.time(statements::HOLDS_FROM, Some(statement.holds_from));
            rows.time(statements::STATED_AT, Some(statement.stated_at));
            rows.text(statements::DIMENSION, Some(&statement.dimension));
            rows.text(statements::KEY, Some(&statement.key));
            rows.text(statements::ENTRY, statement.entry.as_deref());
            rows.text(statements::PLACE, Some(&statement.place));
            rows.end_row();
        }
        rows.finish()
    }

    /// The order in which statements were made; within a millisecond, that of their offsets.
    pub fn cmp_in_time(&self, other: &Statement) -> std::cmp::Ordering {
        let offset = |place: &str| place.rsplit_once('@').and_then(|(_, offset)| offset.parse::<i64>().ok());
        let order = |statement: &Statement| (statement.holds_from, statement.stated_at, offset(&statement.place));
        order(self).cmp(&order(other)).then_with(|| self.place.cmp(&other.place))
    }

    /// What such rows state, in order of time. A message that two processes read counts from when the first did.
    pub fn of_rows(batches: &[RecordBatch]) -> Vec<Statement> {
        let mut by_place: BTreeMap<String, Statement> = BTreeMap::new();
        for batch in batches {
            let text = |column: usize| arrow::compute::cast(batch.column(column), &DataType::Utf8View).unwrap_or_else(|_| batch.column(column).clone());
            let (dimension, key, entry, place) = (text(statements::DIMENSION), text(statements::KEY), text(statements::ENTRY), text(statements::PLACE));
            let time = |column: usize, row: usize| batch.column(column).as_primitive::<TimestampMicrosecondType>().value(row);
            for row in 0..batch.num_rows() {
                let statement = Statement {
                    dimension: dimension.as_string_view().value(row).to_owned(),
                    key: key.as_string_view().value(row).to_owned(),
                    entry: entry.is_valid(row).then(|| entry.as_string_view().value(row).to_owned()),
                    holds_from: time(statements::HOLDS_FROM, row),
                    stated_at: time(statements::STATED_AT, row),
                    place: place.as_string_view().value(row).to_owned(),
                };
                let known = by_place.entry(statement.place.clone()).or_insert_with(|| statement.clone());
                if statement.holds_from < known.holds_from {
                    *known = statement;
                }
            }
        }
        let mut all: Vec<Statement> = by_place.into_values().collect();
        all.sort_by(Statement::cmp_in_time);
        all
    }
}

/// What an agent or service can be, as detections ask for it.
const ROLES: [&str; 8] = ["agent", "batch", "serving", "pipeline", "gateway", "auditor", "shared", "human"];

/// What an entry cannot do without, and why.
static REQUIRED: [(&Table, &[&str], &str); 3] = [
    (&expected_sources::TABLE, &["source"], "an entry names the stream that a log fills"),
    (
        &approvals::TABLE,
        &["identity", "approver", "reason", "valid_from", "valid_to"],
        "an approval names who may, who approved it, why, and from when to when",
    ),
    (
        &allow_list::TABLE,
        &["detection", "column", "value", "owner", "reason", "valid_from", "valid_to"],
        "an entry that nobody owns and that never expires is how an attacker stays allowed",
    ),
];

/// How long a log may be silent of which nothing else is said (seconds): four times the usual delivery of CloudTrail.
const USUAL_SILENCE: i64 = 3600;

/// An entry that says nothing of its end holds until then.
const FOR_EVER: Micros = 4_102_444_800 * SECOND;

impl Dimensions {
    /// Reads all files.
    ///
    /// # Errors
    /// Everything that is wrong in any of them, with file, entry and field.
    pub fn read(files: &Files) -> Result<Self, Vec<Error>> {
        let (mut dimensions, mut problems) = (Self::default(), Vec::new());
        for (table, path) in files.each() {
            match entries(table, path) {
                Ok(entries) => {
                    let place = |number: usize| format!("{}: entry {}", path.display(), number + 1);
                    problems.extend(dimensions.state(table, entries.iter(), place).err().into_iter().flatten());
                }
                Err(error) => problems.push(error),
            }
        }
        if problems.is_empty() { Ok(dimensions) } else { Err(problems) }
    }

    /// Adds what topics stated, in order of time: an entry holds until the next one under its key, or a tombstone. An entry's
    /// own `valid_from` and `valid_to` narrow that. Gives what could not be read.
    pub fn add_statements(&mut self, statements: &[Statement]) -> Vec<Error> {
        DIMENSIONS.iter().flat_map(|table| self.add_statements_of(table, statements)).collect()
    }

    fn add_statements_of(&mut self, table: &'static Table, statements: &[Statement]) -> Vec<Error> {
        let mut problems = Vec::new();
        let mut good = vec![self.of(table)];
        // Who states everything again every hour changes nothing.
        let mut standing: std::collections::HashMap<&str, Option<&String>> = std::collections::HashMap::new();
        let own = statements.iter().filter(|statement| statement.dimension == table.name);
        let statements: Vec<&Statement> =
            own.filter(|statement| standing.insert(&statement.key, statement.entry.as_ref()) != Some(statement.entry.as_ref())).collect();
        // From the newest backwards: what stands under a key now ends where the one after it began.
        let mut ends: std::collections::HashMap<&str, Micros> = std::collections::HashMap::new();
        for statement in statements.into_iter().rev() {
            let Some(entry) = &statement.entry else {
                ends.insert(&statement.key, statement.holds_from);
                continue;
            };
            let Some(mut entry) = serde_json::from_str::<Value>(entry).ok().filter(Value::is_object) else {
                problems.push(Error::user(format!("{}: no JSON object", statement.place)));
                continue;
            };
            let until = ends.get(statement.key.as_str()).copied().unwrap_or(FOR_EVER);
            let own = |name: &str| entry.get(name).and_then(Value::as_str).and_then(parse_time);
            let (from, to) =
                (own("valid_from").map_or(statement.holds_from, |own| own.max(statement.holds_from)), own("valid_to").map_or(until, |to| to.min(until)));
            entry["valid_from"] = rfc3339(from).into();
            // Where an end is asked for, the next statement does not stand in for it.
            if entry.get("valid_to").is_some() || !REQUIRED.iter().any(|(of, needed, _)| std::ptr::eq(*of, table) && needed.contains(&"valid_to")) {
                entry["valid_to"] = rfc3339(to.max(from + 1)).into();
            }
            let mut rows = Rows::new(table);
            match append(&mut rows, table, &entry) {
                Ok(()) => {
                    ends.insert(&statement.key, from);
                    if from < to {
                        good.push(rows.finish());
                    }
                }
                Err(message) => problems.push(Error::user(format!("{}: {message}", statement.place))),
            }
        }
        good[1..].reverse();
        if let Ok(all) = arrow::compute::concat_batches(&table.schema(), &good) {
            self.rows.insert(table.name, all);
        }
        problems
    }

    /// The rows of a dimension.
    pub fn of(&self, table: &'static Table) -> RecordBatch {
        self.rows.get(table.name).cloned().unwrap_or_else(|| RecordBatch::new_empty(table.schema()))
    }

    /// Whether a dimension has any rows.
    pub fn knows(&self, table: &'static Table) -> bool {
        self.rows.get(table.name).is_some_and(|rows| rows.num_rows() > 0)
    }

    /// Sets the entries of one dimension, given as objects of column names.
    ///
    /// # Errors
    /// Each entry and field that cannot be read.
    pub fn state<'v>(&mut self, table: &'static Table, entries: impl Iterator<Item = &'v Value>, place: impl Fn(usize) -> String) -> Result<(), Vec<Error>> {
        let (mut rows, mut problems) = (Rows::new(table), Vec::new());
        for (number, entry) in entries.enumerate() {
            match append(&mut rows, table, entry) {
                Ok(()) => {}
                Err(message) => problems.push(Error::user(format!("{}: {message}", place(number)))),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.rows.insert(table.name, rows.finish());
        Ok(())
    }
}

/// Whether a column holds a list of texts.
fn is_list(table: &Table, index: usize) -> bool {
    table.columns[index].doc.starts_with("List of")
}

fn append(rows: &mut Rows, table: &'static Table, entry: &Value) -> Result<(), String> {
    let entry = entry.as_object().ok_or("must be a table of fields")?;
    let mut cells: BTreeMap<usize, Value> = BTreeMap::new();
    for (name, value) in entry {
        let index = table.columns.iter().position(|column| column.name == name).ok_or_else(|| {
            let known: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
            format!("`{name}` is no field of {}; there are {}", table.name, known.join(", "))
        })?;
        let wrong = |what: &str| format!("{name}: {value} is no {what}");
        let cell = match (table.columns[index].kind, value) {
            (_, Value::Null) => continue,
            (Kind::Text, Value::Array(items)) if is_list(table, index) && items.iter().all(Value::is_string) => Value::from(value.to_string()),
            // CSV has no lists: `search;read_file`.
            (Kind::Text, Value::String(text)) if is_list(table, index) && text.contains([',', '|', '[']) => {
                return Err(format!("{name}: `{text}`: items of a list are separated by semicolons, as in search;read_file"));
            }
            (Kind::Text, Value::String(text)) if is_list(table, index) => {
                Value::from(Value::from_iter(text.split(';').map(str::trim).filter(|item| !item.is_empty())).to_string())
            }
            (Kind::Text, _) if is_list(table, index) => return Err(wrong("list of texts")),
            (Kind::Text | Kind::Word, Value::String(_)) => value.clone(),
            (Kind::Time, Value::String(text)) => Value::from(parse_time(text).ok_or_else(|| wrong("date or time"))?),
            (Kind::Int, Value::Number(number)) => Value::from(number.as_i64().ok_or_else(|| wrong("whole number"))?),
            // Lengths may be written as `60m`.
            (Kind::Int, Value::String(text)) => Value::from(
                text.parse::<i64>().ok().or_else(|| parse_length(text).map(|length| length / SECOND)).ok_or_else(|| wrong("number or length such as 60m"))?,
            ),
            (kind, _) => return Err(wrong(&format!("{kind:?}"))),
        };
        cells.insert(index, cell);
    }
    let column = |name: &str| table.columns.iter().position(|column| column.name == name);
    let (from, to) = (column("valid_from"), column("valid_to"));
    let text_of = |name: &str| column(name).and_then(|index| cells.get(&index)?.as_str());
    if let Some((_, needed, why)) = REQUIRED.iter().find(|(of, ..)| std::ptr::eq(*of, table)) {
        let is_there =
            |name: &str| column(name).and_then(|index| cells.get(&index)).is_some_and(|cell| cell.as_str().is_none_or(|text| !text.trim().is_empty()));
        if let Some(missing) = needed.iter().find(|name| !is_there(name)) {
            return Err(format!("{missing} is missing: {why}"));
        }
    }
    if std::ptr::eq(table, &allow_list::TABLE)
        && let (Some(column), Some(value)) = (text_of("column"), text_of("value"))
        && column.contains("ip")
        && value.contains('/')
        && value.parse::<ipnet::IpNet>().is_err()
    {
        return Err(format!("value: `{value}` is no network"));
    }
    if std::ptr::eq(table, &agents::TABLE) {
        if ["agent_id", "identity"].iter().all(|name| column(name).is_none_or(|index| !cells.contains_key(&index))) {
            return Err("neither agent_id nor identity: the entry is about nobody".into());
        }
        let items = |name: &str| -> Vec<String> { column(name).and_then(|index| serde_json::from_str(cells.get(&index)?.as_str()?).ok()).unwrap_or_default() };
        if let Some(role) = items("roles").iter().find(|role| !ROLES.contains(&role.as_str())) {
            return Err(format!("roles: `{role}` is none of {}", ROLES.join(", ")));
        }
        if let Some(network) = items("networks").iter().find(|network| network.contains('/') && network.parse::<ipnet::IpNet>().is_err()) {
            return Err(format!("networks: `{network}` is no network such as 10.30.1.0/24 or AS64500"));
        }
    }
    if std::ptr::eq(table, &expected_sources::TABLE) {
        let name = text_of("source").unwrap_or_default();
        let stream = STREAMS.iter().find(|stream| stream.name == name && !std::ptr::eq(**stream, &canaries::TABLE)).ok_or_else(|| {
            let known: Vec<&str> = STREAMS.iter().map(|stream| stream.name).filter(|name| *name != canaries::TABLE.name).collect();
            format!("source: `{name}` is no stream; there are {}", known.join(", "))
        })?;
        if let Some(blank) = ["account_id", "region", "kind"].into_iter().find(|part| text_of(part).is_some_and(|text| text.trim().is_empty())) {
            return Err(format!("{blank}: is empty; leave it out for any"));
        }
        if name == exposure_reports::TABLE.name && text_of("kind") == Some("keyfuse") {
            return Err("kind: what keyfuse itself finds says nothing of what reports exposures".into());
        }
        let mut parts = ["account_id", "region", "kind"].into_iter().zip(stream.origin());
        if let Some((part, _)) = parts.find(|(part, columns)| columns.is_empty() && text_of(part).is_some()) {
            return Err(format!("{part}: rows of {name} have none; leave it out"));
        }
        let silence = column("silence_seconds").and_then(|index| cells.get(&index)?.as_i64());
        if silence.is_some_and(|silence| !(60..=limits::SILENCE_HOURS * 3600).contains(&silence)) {
            return Err(format!("silence_seconds: write a length from 1m to {}h: what is silent is looked for in a day of rows", limits::SILENCE_HOURS));
        }
        if let (None, Some(index)) = (silence, column("silence_seconds")) {
            cells.insert(index, Value::from(USUAL_SILENCE));
        }
    }
    if let Some((index, value)) =
        cells.iter().find(|(index, value)| table.columns[**index].kind == Kind::Int && value.as_i64().is_some_and(|number| number < 0))
    {
        return Err(format!("{}: {value} is below zero", table.columns[*index].name));
    }
    if let (Some(from), Some(to)) = (from, to) {
        cells.entry(from).or_insert(Value::from(-DAY * 36_500));
        cells.entry(to).or_insert(Value::from(FOR_EVER));
        if cells[&from].as_i64() >= cells[&to].as_i64() {
            return Err("valid_from lies behind valid_to: it would never hold".into());
        }
    }
    for (index, value) in &cells {
        match table.columns[*index].kind {
            Kind::Time => rows.time(*index, value.as_i64()),
            Kind::Int => rows.int(*index, value.as_i64()),
            _ => rows.text(*index, value.as_str()),
        }
    }
    rows.end_row();
    Ok(())
}

fn entries(table: &'static Table, path: &Path) -> Result<Vec<Value>> {
    let place = || format!("reading the {} file {}", table.name, path.display());
    if path.extension().is_some_and(|extension| extension == "csv") {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).user_at(place)?;
        let names = reader.headers().user_at(place)?.clone();
        let object = |row: csv::StringRecord| {
            let cells = names.iter().zip(row.iter()).filter(|(_, cell)| !cell.is_empty());
            Value::Object(cells.map(|(name, cell)| (name.to_owned(), Value::from(cell))).collect())
        };
        return reader.records().map(|row| row.map(object).user_at(place)).collect();
    }
    let text = std::fs::read_to_string(path).user_at(place)?;
    let mut file: BTreeMap<String, Value> = toml::from_str(&text).user_at(place)?;
    let key = if std::ptr::eq(table, &allow_list::TABLE) { "allow" } else { table.name };
    let list = file.remove(key);
    if let Some(other) = file.keys().next() {
        return Err(Error::user(format!("{}: `{other}` does not belong here; entries are [[{key}]] tables", path.display())));
    }
    match list {
        Some(Value::Array(entries)) => Ok(entries),
        None => Ok(Vec::new()),
        Some(_) => Err(Error::user(format!("{}: write one [[{key}]] table per entry", path.display()))),
    }
}

/// The dimension of that name.
pub fn by_name(name: &str) -> Option<&'static Table> {
    DIMENSIONS.iter().copied().find(|table| table.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_holds_until_the_next_one_under_its_key() {
        let state = |key: &str, value: Option<&str>, at: Micros| Statement {
            dimension: "agents".into(),
            key: key.into(),
            entry: value.map(str::to_owned),
            holds_from: at * DAY,
            stated_at: at * DAY,
            place: format!("agents/0@{at}"),
        };
        let statements = [
            state("a", Some(r#"{"agent_id": "a", "tools": ["search"]}"#), 1),
            state("b", Some("no json"), 2),
            state("a", Some(r#"{"agent_id": "a", "tools": []}"#), 3),
            state("a", None, 5),
        ];
        let mut dimensions = Dimensions::default();
        let read = Statement::of_rows(&[Statement::rows(&statements, 9), Statement::rows(&statements, 12)]);
        assert_eq!(read, statements, "through the archive and back, read by two processes");
        let problems = dimensions.add_statements(&read);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("agents/0@2"));
        let rows = dimensions.of(&agents::TABLE);
        let times = |column: usize| {
            let times = rows.column(column).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
            (0..rows.num_rows()).map(|row| times.value(row) / DAY).collect::<Vec<_>>()
        };
        assert_eq!((times(agents::VALID_FROM), times(agents::VALID_TO)), (vec![1, 3], vec![3, 5]));
    }

    #[test]
    fn toml_and_csv_say_the_same_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (toml, csv) = (folder.path().join("agents.toml"), folder.path().join("agents.csv"));
        std::fs::write(&toml, "[[agents]]\nagent_id = \"a\"\ntools = [\"search\", \"read*\"]\nmax_token_age_seconds = \"60m\"\nvalid_from = \"2026-01-01\"\n")
            .unwrap();
        std::fs::write(&csv, "agent_id,tools,max_token_age_seconds,valid_from\na,search;read*,3600,2026-01-01\n").unwrap();
        let read = |path: &PathBuf| Dimensions::read(&Files { agents: Some(path.clone()), ..Files::default() });
        let (a, b) = (read(&toml).unwrap().of(&agents::TABLE), read(&csv).unwrap().of(&agents::TABLE));
        assert_eq!(a, b);
        assert_eq!(a.column(agents::TOOLS).as_string_view().value(0), r#"["search","read*"]"#);
        std::fs::write(&toml, "[[agents]]\nagent = \"a\"\n[[agents]]\ntools = 5\n").unwrap();
        let problems: Vec<String> = read(&toml).unwrap_err().iter().map(ToString::to_string).collect();
        assert!(problems[0].contains("entry 1: `agent` is no field") && problems[1].contains("entry 2: tools: 5 is no list of texts"), "{problems:?}");
        let approvals = Files { approvals: Some(csv), ..Files::default() };
        assert!(Dimensions::read(&approvals).is_err());
    }
}
