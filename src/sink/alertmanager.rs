//! Prometheus Alertmanager, API v2: <https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml>.
//!
//! Alertmanager forgets an alert that is not sent again, so what goes on is sent every minute, until nothing new has joined it for
//! `resolve_after`; then it is sent once more with its end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::Http;
use super::{Failure, Message, Parcel, Sink};
use crate::alert::Status;
use crate::clock::{self, MINUTE, Micros, rfc3339};
use crate::error::Result;

/// How often what goes on is sent again. Alertmanager's `resolve_timeout` is five minutes.
const RESEND: Micros = MINUTE;

pub struct Alertmanager {
    http: Http,
    resolve_after: Micros,
    firing: BTreeMap<String, (Parcel, Micros)>,
    sent_at: Micros,
}

impl Alertmanager {
    /// # Errors
    /// An address that is none.
    pub fn new(url: &str, resolve_after: Micros) -> Result<Self> {
        let http = Http::new(url)?;
        Ok(Self { http, resolve_after, firing: BTreeMap::new(), sent_at: 0 })
    }

    fn post(&self, alerts: Vec<Value>) -> std::result::Result<(), Failure> {
        self.http.post("/api/v2/alerts", &[], Value::from(alerts).to_string())
    }

    /// `ends_at` in the future is Alertmanager's word for "goes on unless I say more".
    fn alert(&self, parcel: &Parcel, ends_at: Micros) -> Value {
        let (alert, document) = (&parcel.alert, &parcel.document);
        let (kind, name) = alert.subject();
        let mut labels = BTreeMap::from([
            ("alertname".to_owned(), alert.title.clone()),
            ("detection".into(), alert.detection.clone()),
            ("severity".into(), alert.level.clone()),
            ("alert_id".into(), alert.alert_id.clone()),
            ("incident".into(), format!("{kind}:{name}")),
            (kind, name),
            ("service".into(), "keyfuse".into()),
        ]);
        for name in alert.alert_key.keys() {
            labels.extend(alert.column(name).map(|value| (name.clone(), value)));
        }
        labels.retain(|_, value| !value.is_empty());
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let mut annotations =
            BTreeMap::from([("summary", alert.sentence()), ("what_to_do", text("what_to_do")), ("cannot_see", text("cannot_see")), ("sql", text("more"))]);
        annotations.retain(|_, value| !value.is_empty());
        json!({"labels": labels, "annotations": annotations, "startsAt": rfc3339(alert.first_time), "endsAt": rfc3339(ends_at)})
    }
}

impl Sink for Alertmanager {
    fn deliver(&mut self, message: &Message<'_>) -> std::result::Result<(), Failure> {
        let now = clock::now();
        let ends = |parcel: &Parcel| if parcel.alert.status == Status::Retracted { now } else { now + 5 * MINUTE };
        // Labels are Alertmanager's identity: where a level has risen, what stood under the old ones is over.
        let renamed = |parcel: &&Parcel| {
            let (before, _) = self.firing.get(&parcel.alert.alert_id)?;
            let (old, new) = (self.alert(before, now), self.alert(parcel, now));
            (old["labels"] != new["labels"]).then_some(old)
        };
        let over = message.parcels.iter().filter_map(|parcel| renamed(&parcel));
        self.post(message.parcels.iter().map(|parcel| self.alert(parcel, ends(parcel))).chain(over).collect())?;
        for parcel in message.parcels {
            match parcel.alert.status {
                Status::Retracted => drop(self.firing.remove(&parcel.alert.alert_id)),
                _ => drop(self.firing.insert(parcel.alert.alert_id.clone(), (parcel.clone(), now))),
            }
        }
        Ok(())
    }

    fn recall(&mut self, parcel: &Parcel) {
        if parcel.alert.status != Status::Retracted && clock::now() - parcel.alert.decided_at < self.resolve_after {
            self.firing.insert(parcel.alert.alert_id.clone(), (parcel.clone(), parcel.alert.decided_at));
        }
    }

    fn tick(&mut self, now: Micros) -> std::result::Result<Option<Duration>, Failure> {
        if self.firing.is_empty() {
            return Ok(None);
        }
        let over = |at: &Micros| now - at >= self.resolve_after;
        if now - self.sent_at >= RESEND || self.firing.values().any(|(_, at)| over(at)) {
            let all = self.firing.values().map(|(parcel, at)| self.alert(parcel, if over(at) { now } else { now + 5 * MINUTE }));
            self.post(all.collect())?;
            let resolve_after = self.resolve_after;
            self.firing.retain(|_, (_, at)| now - *at < resolve_after);
            self.sent_at = now;
        }
        let next = self.firing.values().map(|(_, at)| at + self.resolve_after - now).min().unwrap_or(RESEND);
        Ok(Some(Duration::from_micros((self.sent_at + RESEND - now).min(next).max(1).unsigned_abs())))
    }
}
