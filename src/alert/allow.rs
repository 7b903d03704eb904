//! The allow-list: what is known and accepted, by whom, why and until when.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;

use crate::clock::Micros;
use crate::detect::analyse::Merge;
use crate::detect::{Engine, Finding};
use crate::dimension::Dimensions;
use crate::error::Error;
use crate::function::in_network;
use crate::table::allow_list;

/// One accepted behaviour.
#[derive(Clone, Debug)]
pub struct AllowEntry {
    /// Detection name, or `*`.
    pub detection: String,
    /// Column of the finding that is compared: `credential`, `identity`, `source_ip`, `user_agent`, …
    pub column: String,
    /// Exact text; `prefix*`; or, for a column with `ip` in its name, a network.
    pub value: String,
    pub owner: String,
    pub reason: String,
    pub valid_from: Micros,
    pub valid_to: Micros,
}

/// All of them, in the order in which they were stated.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    entries: Vec<AllowEntry>,
}

impl AllowList {
    /// The entries of the dimension `allow_list`.
    pub fn of(dimensions: &Dimensions) -> Self {
        let rows = dimensions.of(&allow_list::TABLE);
        let text = |column: usize, row: usize| rows.column(column).as_string_view().value(row).to_owned();
        let time = |column: usize, row: usize| rows.column(column).as_primitive::<TimestampMicrosecondType>().value(row);
        let entry = |row: usize| AllowEntry {
            detection: text(allow_list::DETECTION, row),
            column: text(allow_list::COLUMN, row),
            value: text(allow_list::VALUE, row),
            owner: text(allow_list::OWNER, row),
            reason: text(allow_list::REASON, row),
            valid_from: time(allow_list::VALID_FROM, row),
            valid_to: time(allow_list::VALID_TO, row),
        };
        Self { entries: (0..rows.num_rows()).map(entry).collect() }
    }

    /// Whether an entry that was valid at the finding's own time covers it. Nothing but the finding and the list decides,
    /// so that an entry added today leaves last month's alerts as they were.
    pub fn covers(&self, finding: &Finding) -> bool {
        self.entries.iter().any(|entry| {
            let about = entry.detection == "*" || entry.detection == finding.detection.name;
            let valid = entry.valid_from <= finding.alert_time && finding.alert_time < entry.valid_to;
            about && valid && finding_column(finding, &entry.column).is_some_and(|text| entry.matches(&text))
        })
    }

    /// Refuses entries that could never hold: a detection that is not loaded, or a column that it does not return.
    ///
    /// # Errors
    /// Each such entry, with what there is instead.
    pub fn fits(&self, engine: &Engine) -> std::result::Result<(), Vec<Error>> {
        let problems: Vec<Error> = self.entries.iter().filter_map(|entry| entry.trouble(engine)).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Leaves out entries that could never hold; gives what is wrong with them.
    pub fn keep_fitting(&mut self, engine: &Engine) -> Vec<Error> {
        let problems = self.entries.iter().filter_map(|entry| entry.trouble(engine)).collect();
        self.entries.retain(|entry| entry.trouble(engine).is_none());
        problems
    }

    pub fn entries(&self) -> &[AllowEntry] {
        &self.entries
    }
}

fn finding_column(finding: &Finding, name: &str) -> Option<String> {
    let keys = finding.key.iter().map(|(name, value)| (name, value));
    // A smallest or largest value can still change: whether it is allowed would depend on when one looks.
    let columns = finding.columns.iter().filter(|(_, merge, _)| *merge == Merge::First).map(|(name, _, value)| (name, value));
    keys.chain(columns).find(|(column, _)| *column == name).map(|(_, value)| value.text())
}

impl AllowEntry {
    /// As a silence: whether nobody is to be told of an alert now.
    pub fn silences(&self, alert: &super::Alert, now: Micros) -> bool {
        let about = self.detection == "*" || self.detection == alert.detection;
        about && self.valid_from <= now && now < self.valid_to && alert.column(&self.column).is_some_and(|text| self.matches(&text))
    }

    /// Why it could never hold.
    fn trouble(&self, engine: &Engine) -> Option<Error> {
        let of_name = |name: &str| self.detection == "*" || self.detection == name;
        let mut known = engine.detections().filter(|(detection, _)| of_name(&detection.name)).peekable();
        if known.peek().is_none() {
            return Some(Error::user(format!("allow-list: no detection is named `{}`", self.detection)));
        }
        let fixed = |(_, merge): &&(String, Merge)| *merge == Merge::First;
        let columns: BTreeSet<String> = known.flat_map(|(_, analysis)| analysis.columns.iter().filter(fixed).map(|(name, _)| name.clone())).collect();
        let list = || columns.iter().cloned().collect::<Vec<_>>().join(", ");
        (!columns.contains(&self.column))
            .then(|| Error::user(format!("allow-list: {} has no fixed column `{}`; it has {}", self.detection, self.column, list())))
    }

    fn matches(&self, text: &str) -> bool {
        if self.column.contains("ip") && in_network(&self.value, text) == Some(true) {
            return true;
        }
        match self.value.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => text == self.value,
        }
    }
}
