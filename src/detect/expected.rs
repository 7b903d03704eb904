//! Logs that ought to arrive, as the dimension `expected_sources` states them: which do, and which have fallen silent.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use hashbrown::HashMap;

use crate::clock::{Micros, SECOND};
use crate::dimension::Dimensions;
use crate::table::{STREAMS, Table, cloudtrail as system, expected_sources as e, exposure_reports};

/// How long a log may be silent of which nothing else is said, as COV-04 has it.
const SILENCE: Micros = 3600 * SECOND;

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
    /// Append time of its latest row, or since when it is listened for; none: nothing was listened to yet.
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
}

impl Expected {
    /// What is stated; nothing is heard yet.
    pub fn of(dimensions: &Dimensions) -> Self {
        let rows = dimensions.of(&e::TABLE);
        let text = |column: usize, row: usize| {
            let texts = cast(rows.column(column), &DataType::Utf8).ok()?;
            texts.is_valid(row).then(|| texts.as_string::<i32>().value(row).to_owned())
        };
        let time = |column: usize, row: usize| rows.column(column).as_primitive::<TimestampMicrosecondType>().value(row);
        let silences = rows.column(e::SILENCE_SECONDS).as_primitive::<Int64Type>();
        let source = |row: usize| {
            let name = text(e::SOURCE, row)?;
            Some(Source {
                table: STREAMS.iter().find(|table| table.name == name)?,
                origin: [e::ACCOUNT_ID, e::REGION, e::KIND].map(|column| text(column, row)),
                silence: if silences.is_valid(row) { silences.value(row).saturating_mul(SECOND) } else { SILENCE },
                valid: time(e::VALID_FROM, row)..time(e::VALID_TO, row),
                heard: None,
            })
        };
        Self { sources: (0..rows.num_rows()).filter_map(source).collect() }
    }

    /// Whether nothing is expected.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Listens since then for what it has not heard.
    pub fn listens_since(&mut self, since: Micros) {
        self.sources.iter_mut().for_each(|source| source.heard = source.heard.or(Some(since)));
    }

    /// Takes over what another has heard of the same logs, and listens for the others from now on.
    pub fn heard_as(&mut self, other: &Self, now: Micros) {
        for source in &mut self.sources {
            let same = other.sources.iter().filter(|known| std::ptr::eq(known.table, source.table) && known.origin == source.origin);
            // Where no row has come yet, there is no now.
            source.heard = same.filter_map(|known| known.heard).max().or(Some(now).filter(|now| *now > Micros::MIN));
        }
    }

    /// Takes what the view `arrivals` says: source, account, region, kind, and the append time of the latest row.
    ///
    /// # Errors
    /// Arrow's: other columns.
    pub fn hear_all(&mut self, arrivals: &[RecordBatch]) -> Result<(), ArrowError> {
        for batch in arrivals {
            let texts = (0..4).map(|column| cast(batch.column(column), &DataType::Utf8)).collect::<Result<Vec<_>, _>>()?;
            let text = |column: usize, row: usize| Some(texts[column].as_string::<i32>()).filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row));
            let times = batch.column(4).as_primitive::<TimestampMicrosecondType>();
            for row in 0..batch.num_rows() {
                self.hear(text(0, row).unwrap_or_default(), [text(1, row), text(2, row), text(3, row)], times.value(row));
            }
        }
        Ok(())
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

    /// Rows have arrived.
    pub fn see(&mut self, table: &'static Table, batch: &RecordBatch) {
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

    /// The logs that are silent now.
    pub fn silent(&self, now: Micros) -> impl Iterator<Item = (&'static Table, String)> {
        self.sources.iter().filter(move |source| source.is_silent(now)).map(|source| (source.table, source.name()))
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
        let mut expected = Expected::of(&dimensions);
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
        let silent = |expected: &Expected, minute: Micros| expected.silent(minute * MINUTE).map(|(_, name)| name).collect::<Vec<_>>();
        assert!(silent(&expected, 600).is_empty(), "nothing was listened to yet");
        expected.listens_since(0);
        assert_eq!(silent(&expected, 61), ["cloudtrail 1 us-east-1", "cloudtrail 1 Data", "exposure_reports"]);
        expected.see(&system::TABLE, &row("1", "Management", 50 * MINUTE));
        expected.see(&system::TABLE, &row("9", "Data", 55 * MINUTE));
        assert_eq!(silent(&expected, 61), ["cloudtrail 1 Data", "exposure_reports"], "another account's data events are not its own");
        let mut next = Expected::of(&dimensions);
        next.heard_as(&expected, 61 * MINUTE);
        next.see(&system::TABLE, &row("1", "Data", 121 * MINUTE));
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
