//! The allow-list: what is known and accepted, by whom, why and until when.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::clock::Micros;
use crate::clock::parse_time;
use crate::detect::analyse::Merge;
use crate::detect::{Engine, Finding};
use crate::error::{At, Error, Result};
use crate::function::in_network;

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

/// All of them, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    entries: Vec<AllowEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    detection: String,
    column: String,
    value: String,
    owner: String,
    reason: String,
    valid_from: String,
    valid_to: String,
}

impl AllowList {
    /// Reads `[[allow]]` tables from a TOML file. Owner, reason and an end are not optional: an entry that nobody owns
    /// and that never expires is how an attacker stays allowed.
    ///
    /// # Errors
    /// Names the file, the entry and the field.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(|| format!("reading the allow-list {}", path.display()))?;
        let file: File = toml::from_str(&text).user_at(|| format!("allow-list {}", path.display()))?;
        let entries = file.allow.into_iter().enumerate().map(|(number, entry)| {
            let place = |field: &str| format!("allow-list {}: entry {}: {field}", path.display(), number + 1);
            let time = |field: &str, text: &str| parse_time(text).ok_or_else(|| Error::user(format!("{} `{text}` is not a date or time", place(field))));
            if entry.owner.trim().is_empty() || entry.reason.trim().is_empty() {
                return Err(Error::user(place("owner and reason must say something")));
            }
            let (valid_from, valid_to) = (time("valid_from", &entry.valid_from)?, time("valid_to", &entry.valid_to)?);
            if valid_from >= valid_to {
                return Err(Error::user(place("valid_from lies behind valid_to: it would never hold")));
            }
            if entry.column.contains("ip") && entry.value.contains('/') && entry.value.parse::<ipnet::IpNet>().is_err() {
                return Err(Error::user(format!("{} `{}` is no network", place("value"), entry.value)));
            }
            Ok(AllowEntry {
                valid_from,
                valid_to,
                detection: entry.detection,
                column: entry.column,
                value: entry.value,
                owner: entry.owner,
                reason: entry.reason,
            })
        });
        Ok(Self { entries: entries.collect::<Result<_>>()? })
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
        let wrong = |entry: &AllowEntry| {
            let of_name = |name: &str| entry.detection == "*" || entry.detection == name;
            let mut known = engine.detections().filter(|(detection, _)| of_name(&detection.name)).peekable();
            if known.peek().is_none() {
                return Some(Error::user(format!("allow-list: no detection is named `{}`", entry.detection)));
            }
            let fixed = |(_, merge): &&(String, Merge)| *merge == Merge::First;
            let columns: BTreeSet<String> = known.flat_map(|(_, analysis)| analysis.columns.iter().filter(fixed).map(|(name, _)| name.clone())).collect();
            let list = || columns.iter().cloned().collect::<Vec<_>>().join(", ");
            (!columns.contains(&entry.column))
                .then(|| Error::user(format!("allow-list: {} has no fixed column `{}`; it has {}", entry.detection, entry.column, list())))
        };
        let problems: Vec<Error> = self.entries.iter().filter_map(wrong).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
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
