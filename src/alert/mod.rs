//! Alerts: findings with an identity and a life.
//!
//! Findings with one id merge by an operation that is commutative, associative and idempotent. Arrival order, batch size,
//! a crash and a replay can therefore change neither which alerts there are nor what they say.

mod allow;
mod log;
mod story;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::{Micros, rfc3339};
use crate::detect::analyse::Merge;
use crate::detect::{Detection, Finding, Level, Scalar, Standing, is_event_id};
use crate::limits;
use crate::table::{Rows, alerts};
use crate::text;

pub use allow::{AllowEntry, AllowList};
pub use log::{AlertLog, Following};

/// How much an alert can still change.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing takes it back; more findings may join it.
    #[default]
    Open,
    /// Told early: it will be final or retracted.
    Provisional,
    /// The watermark has passed: what was absent stays absent.
    Final,
    /// Told early, and not so after all.
    Retracted,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Open => "open",
            Status::Provisional => "provisional",
            Status::Final => "final",
            Status::Retracted => "retracted",
        }
    }
}

/// One alert as it stands.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Alert {
    /// Hash of the detection's id, the alert key and the dedup bucket: the same live, in replay and in a backtest.
    pub alert_id: String,
    /// Counts what was told of the alert: 1 when it is first logged, one more with each change that is. Sinks that honour
    /// ids keep the highest.
    pub revision: u64,
    pub detection: String,
    pub detection_id: uuid::Uuid,
    pub title: String,
    pub level: String,
    pub alert_key: BTreeMap<String, serde_json::Value>,
    /// Earliest and latest time of its findings (microseconds, UTC): `since` where they count, else `alert_time`.
    pub first_time: Micros,
    last_time: Micros,
    /// The smallest event ids among the findings; see [`Alert::evidence`].
    evidence: BTreeSet<String>,
    /// The other columns: of the earliest finding, or the highest or lowest value where they are counts and bounds.
    pub payload: BTreeMap<String, serde_json::Value>,
    /// Hashes of the distinct findings, the smallest [`limits::ALERT_FINDINGS`].
    findings: BTreeSet<u64>,
    /// What the earliest finding is told by: its time and its fixed columns.
    earliest: (Micros, String),
    /// When this revision was decided (wall clock, not part of the equality contract).
    pub decided_at: Micros,
    /// Latest append time of the rows that were in hand when the alert first came up, for latency (not part of the contract).
    #[serde(default)]
    pub caused_at: Option<Micros>,
    #[serde(default)]
    pub status: Status,
    /// Provisional alerts: how far append time must come until it is known.
    #[serde(default)]
    pub settles_at: Option<Micros>,
    /// Why no sink gets it, if none does.
    #[serde(default)]
    pub held: Option<Held>,
    /// Only the late sweep saw it: it rests on rows that came too late.
    #[serde(default)]
    pub late: bool,
}

/// Why an alert is archived and counted, but not delivered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// The past that it is measured against is not there whole yet.
    Warming,
    /// Its detection is new or changed, and nobody has promoted it yet.
    Shadow,
    /// Somebody has asked not to be told for a while.
    Silenced,
}

impl Held {
    pub const ALL: [Held; 3] = [Held::Warming, Held::Shadow, Held::Silenced];

    pub fn name(self) -> &'static str {
        match self {
            Held::Warming => "warming",
            Held::Shadow => "shadow",
            Held::Silenced => "silenced",
        }
    }
}

impl Alert {
    /// An alert of one finding.
    pub fn new(finding: &Finding) -> Self {
        let detection = &finding.detection;
        let fixed: BTreeMap<String, serde_json::Value> =
            finding.columns.iter().filter(|(_, merge, _)| *merge == Merge::First).map(|(name, _, value)| (name.clone(), value.json())).collect();
        // A count is about its bucket; the first event of it is what a reader wants to see on a time line.
        let since =
            finding.columns.iter().find_map(|(name, _, value)| if let ("since", Scalar::Time(time)) = (name.as_str(), value) { Some(*time) } else { None });
        let first_time = since.unwrap_or(finding.alert_time);
        let fixed_text =
            serde_json::to_string(&(&fixed, finding.alert_time, finding.key.iter().map(|(_, v)| v.json()).collect::<Vec<_>>())).unwrap_or_default();
        let mut hash = [0u8; 8];
        hash.copy_from_slice(&blake3::hash(fixed_text.as_bytes()).as_bytes()[..8]);
        Self {
            alert_id: alert_id(detection, &finding.key, finding.alert_time),
            revision: 0,
            detection: detection.name.clone(),
            detection_id: detection.id,
            title: detection.title.clone(),
            level: finding.level.name().to_owned(),
            alert_key: finding.key.iter().map(|(name, value)| (name.clone(), value.json())).collect(),
            first_time,
            last_time: finding.alert_time,
            evidence: finding.evidence.iter().cloned().collect(),
            payload: finding.columns.iter().map(|(name, _, value)| (name.clone(), value.json())).collect(),
            findings: BTreeSet::from([u64::from_le_bytes(hash)]),
            earliest: (finding.alert_time, fixed_text),
            decided_at: 0,
            caused_at: None,
            status: match finding.standing {
                Standing::Open => Status::Open,
                Standing::Provisional(_) => Status::Provisional,
                Standing::Final => Status::Final,
            },
            settles_at: match finding.standing {
                Standing::Provisional(at) => Some(at),
                _ => None,
            },
            held: finding.warming.then_some(Held::Warming),
            late: false,
        }
    }

    /// Merges another finding of the same alert; true if anything that a reader sees changed.
    fn absorb(&mut self, finding: &Finding) -> bool {
        let mut other = Alert::new(finding);
        // Only what a finding says of itself is taken back by another; shadow and silence are somebody's will.
        other.held = if matches!(self.held, Some(Held::Shadow | Held::Silenced)) { self.held } else { other.held };
        let before = (self.content(), self.status, self.held);
        if self.late {
            // What rows on time say takes the place of what late ones had to tell.
            *self = Self { revision: self.revision, decided_at: self.decided_at, caused_at: self.caused_at, ..other };
            return true;
        }
        match (self.status, other.status) {
            // What is final says all that there is; what was told early, or taken back, gives way to it.
            (Status::Provisional | Status::Retracted, Status::Final) => {
                *self = Self { revision: self.revision, decided_at: self.decided_at, caused_at: self.caused_at, ..other };
                return true;
            }
            (Status::Final, Status::Provisional) => return false,
            (Status::Retracted, Status::Provisional) => self.status = Status::Provisional,
            _ => {}
        }
        self.settles_at = self.settles_at.max(other.settles_at);
        // One finding that is measured against a whole past is enough to be told.
        if self.held == Some(Held::Warming) {
            self.held = other.held;
        }
        let is_earlier = other.earliest < self.earliest;
        for (name, merge, value) in &finding.columns {
            let json = value.json();
            let slot = self.payload.entry(name.clone()).or_insert(serde_json::Value::Null);
            let replace = match merge {
                Merge::First | Merge::Level => is_earlier,
                Merge::Max => more(&json, slot),
                Merge::Min => !json.is_null() && (slot.is_null() || more(slot, &json)),
            };
            if replace {
                *slot = json;
            }
        }
        if is_earlier {
            self.earliest = other.earliest;
        }
        self.first_time = self.first_time.min(other.first_time);
        self.last_time = self.last_time.max(other.last_time);
        if Level::parse(&other.level) > Level::parse(&self.level) {
            self.level = other.level;
        }
        self.findings.extend(other.findings);
        while self.findings.len() > limits::ALERT_FINDINGS {
            self.findings.pop_last();
        }
        self.evidence.extend(other.evidence);
        while self.evidence.len() > limits::ALERT_EVIDENCE {
            self.evidence.pop_last();
        }
        before != (self.content(), self.status, self.held)
    }

    /// Latest time of its findings. A count is about its bucket, which began before its first event: never before that.
    pub fn last_time(&self) -> Micros {
        // Not kept so: `since` falls as earlier rows arrive, and the largest of what it was would depend on their order.
        self.last_time.max(self.first_time)
    }

    /// Event ids to look at: the smallest of all findings, and those in the payload.
    pub fn evidence(&self) -> BTreeSet<String> {
        let in_payload = self.payload.iter().filter(|(name, _)| is_event_id(name)).filter_map(|(_, id)| id.as_str().map(str::to_owned));
        self.evidence.iter().cloned().chain(in_payload).collect()
    }

    /// Distinct findings; at [`limits::ALERT_FINDINGS`] read it as "at least".
    pub fn findings(&self) -> usize {
        self.findings.len()
    }

    /// Everything that the equality contract covers: equal live, in replay and in a backtest.
    pub fn content(&self) -> serde_json::Value {
        serde_json::json!({
            "alert_id": self.alert_id, "detection": self.detection, "level": self.level, "alert_key": self.alert_key,
            "first_time": rfc3339(self.first_time), "last_time": rfc3339(self.last_time()), "findings": self.findings(),
            "evidence": self.evidence(), "payload": self.payload,
        })
    }

    /// The alert as sinks and files carry it: the content, the revision and what to do.
    pub fn document(&self, detection: Option<&Detection>) -> serde_json::Value {
        let mut document = self.content();
        if let Some(object) = document.as_object_mut() {
            object.insert("revision".into(), self.revision.into());
            object.insert("status".into(), self.status.name().into());
            object.insert("late".into(), self.late.into());
            if let Some(held) = self.held {
                object.insert("held".into(), held.name().into());
            }
            object.insert("detection_id".into(), self.detection_id.to_string().into());
            object.insert("title".into(), self.title.clone().into());
            object.insert("decided_at".into(), rfc3339(self.decided_at).into());
            object.insert("more".into(), self.more_sql().into());
            object.insert("incident".into(), format!("{}:{}", self.subject().0, self.subject().1).into());
            if let serde_json::Value::Object(story) = self.story() {
                object.extend(story);
            }
            if let Some(detection) = detection {
                object.insert("tags".into(), detection.tags.clone().into());
                object.insert("what_to_do".into(), self.what_to_do(detection).into());
                object.insert("cannot_see".into(), detection.sections.get("What it misses").map_or("", |text| text.trim()).into());
            }
        }
        document
    }

    /// The runbook's steps, with what the alert knows put in for `<credential>`, `<trace_id>` and the like.
    pub fn what_to_do(&self, detection: &Detection) -> String {
        let mut steps = detection.what_to_do().to_owned();
        let used = self.column("used_with").or_else(|| self.column("credential"));
        let columns = self.alert_key.keys().chain(self.payload.keys()).filter_map(|name| Some((name.as_str(), self.column(name)?)));
        for (name, value) in used.map(|value| ("credential", value)).into_iter().chain(columns) {
            // What goes into a line to be pasted is no more than a word.
            if text::is_plain(&value) {
                steps = steps.replace(&format!("<{name}>"), &value);
            }
        }
        steps
    }

    /// The SQL that shows the evidence.
    pub fn more_sql(&self) -> String {
        let ids: Vec<String> = self.evidence().iter().map(|id| format!("'{}'", id.replace('\'', "''"))).collect();
        format!("SELECT * FROM activity WHERE event_id IN ({}) ORDER BY event_time", if ids.is_empty() { "NULL".into() } else { ids.join(", ") })
    }

    /// The value of an alert-key or payload column, as text.
    pub fn column(&self, name: &str) -> Option<String> {
        match self.alert_key.get(name).or_else(|| self.payload.get(name))? {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Adds the alert as a row of `alerts`.
    pub fn append(&self, rows: &mut Rows) {
        rows.text(alerts::ALERT_ID, Some(&self.alert_id));
        rows.int(alerts::REVISION, Some(self.revision as i64));
        rows.text(alerts::DETECTION, Some(&self.detection));
        rows.text(alerts::DETECTION_ID, Some(&self.detection_id.to_string()));
        rows.text(alerts::TITLE, Some(&self.title));
        rows.text(alerts::LEVEL, Some(&self.level));
        rows.text(alerts::ALERT_KEY, Some(&serde_json::json!(self.alert_key).to_string()));
        rows.time(alerts::FIRST_TIME, Some(self.first_time));
        rows.time(alerts::LAST_TIME, Some(self.last_time()));
        rows.int(alerts::FINDINGS, Some(self.findings() as i64));
        rows.text(alerts::EVIDENCE, Some(&serde_json::json!(self.evidence()).to_string()));
        rows.text(alerts::PAYLOAD, Some(&serde_json::json!(self.payload).to_string()));
        rows.time(alerts::DECIDED_AT, Some(self.decided_at));
        rows.text(alerts::STATUS, Some(self.status.name()));
        rows.text(alerts::HELD, self.held.map(Held::name));
        rows.bool(alerts::LATE, Some(self.late));
        rows.end_row();
    }
}

fn more(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (a, b) {
        (Value::Null, _) => false,
        (_, Value::Null) => true,
        (Value::Number(a), Value::Number(b)) => a.as_f64() > b.as_f64(),
        (Value::String(a), Value::String(b)) => match (crate::clock::parse_time(a), crate::clock::parse_time(b)) {
            (Some(a), Some(b)) => a > b,
            _ => a > b,
        },
        (Value::Bool(a), Value::Bool(b)) => a > b,
        // A column has one type: two kinds of values never meet.
        _ => false,
    }
}

/// The identity of an alert: 128 bits of BLAKE3 over detection id, alert-key values and the bucket of `alert_time`.
fn alert_id(detection: &Detection, key: &[(String, Scalar)], alert_time: Micros) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(detection.id.as_bytes());
    for (_, value) in key {
        hasher.update(&[0x1f]);
        hasher.update(value.json().to_string().as_bytes());
    }
    hasher.update(&[0x1e]);
    hasher.update(&alert_time.div_euclid(detection.dedup).to_le_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

/// All alerts that may still change, and the merge.
#[derive(Default)]
pub struct AlertBook {
    alerts: HashMap<String, Alert>,
    allow: AllowList,
    /// Findings that an allow-list entry covered, by detection.
    allowed: HashMap<String, u64>,
    /// Alerts that were told early and are not settled.
    provisional: BTreeSet<String>,
}

impl AlertBook {
    pub fn new(allow: AllowList) -> Self {
        Self { allow, ..Self::default() }
    }

    /// Takes back an alert from the log.
    pub fn restore(&mut self, alert: Alert) {
        if alert.status == Status::Provisional {
            self.provisional.insert(alert.alert_id.clone());
        }
        match self.alerts.get(&alert.alert_id) {
            Some(known) if known.revision >= alert.revision => {}
            _ => {
                self.alerts.insert(alert.alert_id.clone(), alert);
            }
        }
    }

    /// Merges findings; gives the ids of alerts that are new or changed, each once.
    pub fn merge(&mut self, findings: &[Finding], now: Micros, caused_at: Option<Micros>) -> Vec<String> {
        let mut changed: BTreeSet<String> = BTreeSet::new();
        for finding in findings {
            if self.allow.covers(finding) {
                *self.allowed.entry(finding.detection.name.clone()).or_default() += 1;
                continue;
            }
            let id = alert_id(&finding.detection, &finding.key, finding.alert_time);
            if let Standing::Provisional(_) = finding.standing {
                self.provisional.insert(id.clone());
            }
            match self.alerts.get_mut(&id) {
                Some(alert) => {
                    if alert.absorb(finding) {
                        alert.decided_at = now;
                        changed.insert(id);
                    }
                }
                None => {
                    self.alerts.insert(id.clone(), Alert { decided_at: now, caused_at, ..Alert::new(finding) });
                    changed.insert(id);
                }
            }
        }
        changed.into_iter().collect()
    }

    /// Keeps an alert from the sinks.
    pub fn hold(&mut self, alert_id: &str, why: Held) {
        if let Some(alert) = self.alerts.get_mut(alert_id) {
            alert.held = alert.held.or(Some(why));
        }
    }

    /// Takes alerts that the late sweep adds; gives the ids of those that are new or say something else than before.
    pub fn take_late(&mut self, alerts: Vec<Alert>, now: Micros) -> Vec<String> {
        let mut changed = Vec::new();
        for alert in alerts {
            let known = self.alerts.get(&alert.alert_id);
            if known.is_some_and(|known| !known.late || known.content() == alert.content()) {
                continue;
            }
            changed.push(alert.alert_id.clone());
            let revision = known.map_or(0, |known| known.revision);
            self.alerts.insert(alert.alert_id.clone(), Alert { revision, decided_at: now, late: true, ..alert });
        }
        changed
    }

    /// Takes back what was told early and did not become final, although append time has come so far; gives its ids. Each detection
    /// counts as far as it is sure: beyond that nobody has looked whether an alert still holds.
    pub fn settle(&mut self, progress: Micros, sure_to: &hashbrown::HashMap<&str, Micros>) -> Vec<String> {
        let mut taken_back = Vec::new();
        self.provisional.retain(|id| {
            let Some(alert) = self.alerts.get_mut(id).filter(|alert| alert.status == Status::Provisional) else { return false };
            let sure_to = sure_to.get(alert.detection.as_str()).map_or(progress, |sure_to| progress.min(*sure_to));
            if alert.settles_at.is_some_and(|at| at >= sure_to) {
                return true;
            }
            alert.status = Status::Retracted;
            taken_back.push(id.clone());
            false
        });
        taken_back
    }

    /// The alert as it is to be told now: its revision counts up.
    pub fn tell(&mut self, alert_id: &str) -> Option<Alert> {
        let alert = self.alerts.get_mut(alert_id)?;
        alert.revision += 1;
        Some(alert.clone())
    }

    pub fn get(&self, alert_id: &str) -> Option<&Alert> {
        self.alerts.get(alert_id)
    }

    /// All alerts, oldest first.
    pub fn all(&self) -> Vec<&Alert> {
        let mut all: Vec<&Alert> = self.alerts.values().collect();
        all.sort_by(|a, b| (a.first_time, &a.detection, &a.alert_id).cmp(&(b.first_time, &b.detection, &b.alert_id)));
        all
    }

    /// Those that are not held back.
    pub fn told(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values().filter(|alert| alert.held.is_none())
    }

    /// Findings that the allow-list covered, by detection.
    pub fn allowed(&self) -> &HashMap<String, u64> {
        &self.allowed
    }

    pub fn allow_list(&self) -> &AllowList {
        &self.allow
    }

    /// Replaces the allow-list; alerts that are already out stay.
    pub fn set_allow_list(&mut self, allow: AllowList) {
        self.allow = allow;
    }

    /// Forgets alerts whose last finding is older: no row on time can bring them up again.
    pub fn forget_before(&mut self, horizon: Micros) {
        self.alerts.retain(|_, alert| alert.last_time.max(alert.decided_at) >= horizon);
    }

    pub fn len(&self) -> usize {
        self.alerts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty()
    }
}

/// Alerts of a finished set of findings: what replay and backtest print.
pub fn alerts_of(findings: &[Finding], allow: AllowList) -> AlertBook {
    let mut book = AlertBook::new(allow);
    book.merge(findings, crate::clock::now(), None);
    book
}

/// The detections by name, shared by all that show alerts.
pub type Detections = Arc<HashMap<String, Arc<Detection>>>;
