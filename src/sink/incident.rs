//! One message per incident: what one credential, identity or agent does is one story, however many detections see it.
//!
//! The first alert is told at once. What follows within a minute comes as one message; after that one in ten minutes at most,
//! unless it gets worse.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::Parcel;
use crate::clock::{DAY, MINUTE, Micros};
use crate::detect::Level;

/// After this time without an alert, the next one begins another incident.
const OVER_AFTER: Micros = DAY;
/// What follows the first message is gathered for so long, and what follows that.
const GATHER: [Micros; 2] = [MINUTE, 10 * MINUTE];

/// A story as far as it has been told.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Column and value that its alerts share.
    pub subject: (String, String),
    pub since: Micros,
    /// All its alerts so far, by id: detection, title, level.
    pub alerts: BTreeMap<String, (String, String, Level)>,
    /// How many messages were told of it before.
    pub told: usize,
}

impl Incident {
    /// The highest of its levels.
    pub fn level(&self) -> Level {
        self.alerts.values().map(|(.., level)| *level).max().unwrap_or_default()
    }

    /// Names and titles of its detections.
    pub fn detections(&self) -> BTreeSet<(&str, &str)> {
        self.alerts.values().map(|(name, title, _)| (name.as_str(), title.as_str())).collect()
    }
}

struct Open {
    incident: Incident,
    /// Newest revision of each alert that is not told yet, by id.
    waiting: BTreeMap<String, Parcel>,
    told_at: Option<Micros>,
    told_level: Level,
    last: Micros,
}

impl Open {
    fn due_at(&self) -> Option<Micros> {
        if self.waiting.is_empty() {
            return None;
        }
        let Some(told_at) = self.told_at else { return Some(Micros::MIN) };
        if self.incident.level() > self.told_level {
            return Some(Micros::MIN);
        }
        Some(told_at + GATHER[(self.incident.told - 1).min(GATHER.len() - 1)])
    }
}

/// The incidents that go on.
#[derive(Default)]
pub struct Incidents {
    open: HashMap<(String, String), Open>,
}

impl Incidents {
    /// Takes note of an alert that was told before a restart.
    pub fn recall(&mut self, parcel: &Parcel, now: Micros) {
        if now - parcel.alert.decided_at < OVER_AFTER && self.add(parcel.clone(), parcel.alert.decided_at).is_none() {
            self.due(parcel.alert.decided_at, true);
        }
    }

    /// Takes an alert into its incident; gives it back where it is no news to a person.
    pub fn add(&mut self, parcel: Parcel, now: Micros) -> Option<Parcel> {
        self.open.retain(|_, open| !open.waiting.is_empty() || now - open.last < OVER_AFTER);
        let alert = &parcel.alert;
        let subject = alert.subject();
        let open = self.open.entry(subject.clone()).or_insert_with(|| Open {
            incident: Incident { subject, since: alert.first_time, alerts: BTreeMap::new(), told: 0 },
            waiting: BTreeMap::new(),
            told_at: None,
            told_level: Level::default(),
            last: now,
        });
        open.last = now;
        open.incident.since = open.incident.since.min(alert.first_time);
        let level = Level::parse(&alert.level).unwrap_or_default();
        let known = open.incident.alerts.insert(alert.alert_id.clone(), (alert.detection.clone(), alert.title.clone(), level));
        // A count that has risen is no news to a person.
        let is_news = known.is_none_or(|(.., before)| before < level) || alert.status == crate::alert::Status::Retracted;
        if is_news || open.waiting.contains_key(&alert.alert_id) {
            open.waiting.insert(alert.alert_id.clone(), parcel);
            return None;
        }
        Some(parcel)
    }

    /// What is to be told now.
    pub fn due(&mut self, now: Micros, all: bool) -> Vec<(Vec<Parcel>, Incident)> {
        let mut due = Vec::new();
        for open in self.open.values_mut() {
            if open.due_at().is_some_and(|at| all || at <= now) {
                let parcels: Vec<Parcel> = std::mem::take(&mut open.waiting).into_values().collect();
                due.push((parcels, open.incident.clone()));
                open.incident.told += 1;
                (open.told_at, open.told_level) = (Some(now), open.incident.level());
            }
        }
        due.sort_by_key(|(_, incident)| (std::cmp::Reverse(incident.level()), incident.since));
        due
    }

    /// How long until something is.
    pub fn next(&self, now: Micros) -> Option<Duration> {
        let at = self.open.values().filter_map(Open::due_at).min()?;
        Some(Duration::from_micros(at.saturating_sub(now).max(0).unsigned_abs()))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.open.values().all(|open| open.waiting.is_empty())
    }
}
