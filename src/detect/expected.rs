//! Logs that ought to arrive, as the dimension `expected_sources` states them: which do, and which have fallen silent.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use hashbrown::HashMap;

use crate::clock::{Micros, SECOND};
use crate::dimension::Dimensions;
use crate::table::{STREAMS, Table, cloudtrail as system, expected_sources as e, exposure_reports};

/// The reporter of what keyfuse itself found in texts: that says nothing of the logs that tell of exposures.
const OWN: &str = "keyfuse";

/// One log that ought to arrive.
#[derive(Clone, Debug)]
struct Source {
    table: &'static Table,
    /// Account, region, kind; none stands for any.
    origin: [Option<String>; 3],
    silence: Micros,
    valid: Range<Micros>,
    /// Append time of its latest row, or since when it is listened for; none: that is not known yet.
    heard: Option<Micros>,
}

impl Source {
    fn name(&self) -> String {
        let parts = self.origin.iter().flatten().map(String::as_str);
        std::iter::once(self.table.name).chain(parts).collect::<Vec<_>>().join(" ")
    }

    fn is_silent(&self, now: Micros) -> bool {
        let since = self.heard.map(|heard| heard.max(self.valid.start));
        self.valid.contains(&now) && since.is_some_and(|since| now.saturating_sub(since) > self.silence)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Expected {
    sources: Vec<Source>,
    /// The archive has said what it heard: whatever was not heard until now is listened for from the next row on.
    knows_past: bool,
}

impl Expected {
    /// What is stated; nothing is heard yet.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn of(dimensions: &Dimensions) -> Result<Self, ArrowError> {
        let rows = dimensions.of(&e::TABLE);
        let texts = [e::SOURCE, e::ACCOUNT_ID, e::REGION, e::KIND].map(|column| cast(rows.column(column), &DataType::Utf8));
        let [names, account, region, kind] = texts;
        let (names, origin) = (names?, [account?, region?, kind?]);
        let text = |column: &ArrayRef, row: usize| column.is_valid(row).then(|| column.as_string::<i32>().value(row).to_owned());
        let times = |column: usize| rows.column(column).as_primitive::<TimestampMicrosecondType>();
        let silences = rows.column(e::SILENCE_SECONDS).as_primitive::<Int64Type>();
        let source = |row: usize| {
            let name = text(&names, row)?;
            Some(Source {
                table: STREAMS.iter().find(|table| table.name == name)?,
                origin: origin.each_ref().map(|column| text(column, row)),
                silence: silences.value(row).saturating_mul(SECOND),
                valid: times(e::VALID_FROM).value(row)..times(e::VALID_TO).value(row),
                heard: None,
            })
        };
        Ok(Self { sources: (0..rows.num_rows()).filter_map(source).collect(), knows_past: false })
    }

    /// Takes over what another has heard of the same logs.
    pub fn heard_as(&mut self, other: &Self) {
        let mut known: HashMap<(&str, &[Option<String>; 3]), Micros> = HashMap::new();
        for source in &other.sources {
            if let Some(heard) = source.heard {
                let latest = known.entry((source.table.name, &source.origin)).or_insert(heard);
                *latest = heard.max(*latest);
            }
        }
        self.sources.iter_mut().for_each(|source| source.heard = known.get(&(source.table.name, &source.origin)).copied());
        self.knows_past = other.knows_past;
    }

    /// Whether some logs are new here: what the archive has heard of them is to be asked.
    pub fn asks(&mut self) -> bool {
        let asks = self.sources.iter().any(|source| source.heard.is_none());
        self.knows_past &= !asks;
        asks
    }

    /// Takes what the view `arrivals` says of the last day: source, account, region, kind, and the append times of the first and the
    /// latest row. What is not among it has been silent for as long as there are rows.
    ///
    /// # Errors
    /// Arrow's: other columns.
    pub fn hear_all(&mut self, arrivals: &[RecordBatch]) -> Result<(), ArrowError> {
        let mut begins: Option<Micros> = None;
        for batch in arrivals {
            let texts = (0..4).map(|column| cast(batch.column(column), &DataType::Utf8)).collect::<Result<Vec<_>, _>>()?;
            let text = |column: usize, row: usize| Some(texts[column].as_string::<i32>()).filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row));
            let (first, last) = (batch.column(4).as_primitive::<TimestampMicrosecondType>(), batch.column(5).as_primitive::<TimestampMicrosecondType>());
            for row in 0..batch.num_rows() {
                begins = Some(begins.map_or(first.value(row), |begins| begins.min(first.value(row))));
                self.hear(text(0, row).unwrap_or_default(), [text(1, row), text(2, row), text(3, row)], last.value(row));
            }
        }
        begins.into_iter().for_each(|begins| self.listens_since(begins));
        self.knows_past = true;
        Ok(())
    }

    fn listens_since(&mut self, since: Micros) {
        self.sources.iter_mut().for_each(|source| source.heard = source.heard.or(Some(since)));
    }

    /// A row came from there at that append time.
    fn hear(&mut self, table: &str, origin: [Option<&str>; 3], at: Micros) {
        if table == exposure_reports::TABLE.name && origin[2] == Some(OWN) {
            return;
        }
        let fits = |source: &Source| source.origin.iter().zip(&origin).all(|(wanted, origin)| wanted.as_deref().is_none_or(|wanted| *origin == Some(wanted)));
        for source in self.sources.iter_mut().filter(|source| source.table.name == table && fits(source)) {
            source.heard = source.heard.max(Some(at));
        }
    }

    /// Rows have arrived, the latest at that append time.
    pub fn see(&mut self, table: &'static Table, batch: &RecordBatch, at: Micros) {
        self.see_rows(table, batch);
        if self.knows_past {
            self.listens_since(at);
        }
    }

    fn see_rows(&mut self, table: &'static Table, batch: &RecordBatch) {
        if !self.sources.iter().any(|source| std::ptr::eq(source.table, table)) {
            return;
        }
        let origin = table.origin();
        let columns: Vec<_> = origin.iter().flatten().filter_map(|column| batch.column(*column).as_dictionary_opt::<Int32Type>()).collect();
        let appended = batch.column(system::APPEND_TIME).as_primitive::<TimestampMicrosecondType>();
        // Very many rows come from few places.
        let mut latest: HashMap<[i32; 4], Micros> = HashMap::new();
        for row in 0..batch.num_rows() {
            let mut place = [-1; 4];
            for (word, column) in place.iter_mut().zip(&columns) {
                *word = if column.is_valid(row) { column.keys().value(row) } else { -1 };
            }
            let at = latest.entry(place).or_insert(Micros::MIN);
            *at = appended.value(row).max(*at);
        }
        for (place, at) in latest {
            let mut words = place.iter().zip(&columns).map(|(word, column)| {
                let words = column.values().as_string_opt::<i32>()?;
                usize::try_from(*word).ok().filter(|word| *word < words.len()).map(|word| words.value(word))
            });
            // Of each part, the first column that is filled.
            let parts = origin.each_ref().map(|part| words.by_ref().take(part.len()).collect::<Vec<_>>().into_iter().flatten().next());
            self.hear(table.name, parts, at);
        }
    }

    /// The logs that are silent now, each with its stream.
    pub fn silent(&self, now: Micros) -> BTreeMap<String, &'static Table> {
        self.sources.iter().filter(|source| source.is_silent(now)).map(|source| (source.name(), source.table)).collect()
    }

    /// Of each stream, how many logs are expected now.
    pub fn expected(&self, now: Micros) -> impl Iterator<Item = &'static Table> {
        self.sources.iter().filter(move |source| source.valid.contains(&now)).map(|source| source.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MINUTE;
    use crate::table::{Kind, Place, Rows};

    #[test]
    fn a_log_is_silent_from_its_own_rows_on_and_from_no_others() {
        let mut dimensions = Dimensions::default();
        let entries = [
            serde_json::json!({"source": "cloudtrail", "account_id": "1", "region": "us-east-1"}),
            serde_json::json!({"source": "cloudtrail", "account_id": "1", "kind": "Data", "silence_seconds": "10m"}),
            serde_json::json!({"source": "exposure_reports", "valid_to": "1970-01-01T02:00:00Z"}),
        ];
        dimensions.state(&e::TABLE, entries.iter(), |_| String::new()).unwrap();
        let mut expected = Expected::of(&dimensions).unwrap();
        let row = |account: &str, kind: &str, at: Micros| {
            let mut rows = Rows::new(&system::TABLE);
            let place = Place { topic: "t".into(), partition: 0, offset: 0, record: 0 };
            rows.stamp(&place, Some(at), Some(at), "1", &mut String::new());
            rows.text(system::ACCOUNT_ID, Some("9"));
            rows.text(system::RECIPIENT_ACCOUNT_ID, Some(account));
            rows.text(system::AWS_REGION, Some("us-east-1"));
            rows.text(system::EVENT_CATEGORY, Some(kind));
            rows.end_row();
            rows.finish()
        };
        let silent = |expected: &Expected, minute: Micros| expected.silent(minute * MINUTE).into_keys().collect::<Vec<_>>();
        let see = |expected: &mut Expected, account: &str, kind: &str, minute: Micros| {
            expected.see(&system::TABLE, &row(account, kind, minute * MINUTE), minute * MINUTE);
        };
        see(&mut expected, "2", "Management", 0);
        assert!(silent(&expected, 61).is_empty(), "what the archive has heard is not known yet");
        expected.hear_all(&[]).unwrap();
        see(&mut expected, "2", "Management", 0);
        assert_eq!(silent(&expected, 61), ["cloudtrail 1 Data", "cloudtrail 1 us-east-1", "exposure_reports"]);
        see(&mut expected, "1", "Management", 50);
        see(&mut expected, "9", "Data", 55);
        assert_eq!(silent(&expected, 61), ["cloudtrail 1 Data", "exposure_reports"], "another account's data events are not its own");
        let mut next = Expected::of(&dimensions).unwrap();
        next.heard_as(&expected);
        see(&mut next, "1", "Data", 121);
        assert!(silent(&next, 125).is_empty(), "a data event is a row of its account and region, too");
        assert_eq!(silent(&next, 140), ["cloudtrail 1 Data"], "and nobody waits for what is expected no more");
    }

    #[test]
    fn the_view_of_arrivals_has_the_same_columns() {
        let view = include_str!("../table/arrivals.sql");
        for table in STREAMS.iter().filter(|table| table.name != "canaries") {
            let line = view.lines().find(|line| line.contains(&format!(" FROM {}", table.name))).expect(table.name);
            let [account, region, kind] = table.origin().map(|columns| columns.iter().map(|column| table.columns[*column].name).collect::<Vec<_>>());
            let said = |columns: &[&str], name: &str| match columns {
                [] => format!("NULL AS {name},"),
                [one] if *one == name => format!(" {one},"),
                [one] => format!(" {one} AS {name},"),
                many => format!("coalesce({}) AS {name},", many.join(", ")),
            };
            for (columns, name) in [(account, "account_id"), (region, "region"), (kind, "kind")] {
                assert!(line.contains(&said(&columns, name)), "{name} in {line}");
            }
            assert!(table.origin().iter().flatten().all(|column| table.columns[*column].kind == Kind::Word), "{}", table.name);
        }
    }
}
