//! What a person is told of an alert: one sentence, since when, how fast, what it touched, what cannot be seen.

use serde_json::Value;

use super::{Alert, Status};
use crate::clock::{Micros, parse_time, rfc3339, spoken};

/// Columns that say whom an alert is about, the most telling first: an exposed key before the session that was minted from it.
const SUBJECTS: [&str; 7] = ["exposed_credential", "credential", "access_key_id", "identity", "agent_id", "trace_id", "source_ip"];

/// Columns that say what was touched, and with what word.
const TOUCHED: [(&str, &str); 16] = [
    ("event_source", "service"),
    ("event_name", "call"),
    ("model_id", "model"),
    ("models", "models"),
    ("data_source", "data source"),
    ("document_count", "documents"),
    ("tool", "tool"),
    ("server", "server"),
    ("host", "host"),
    ("resource_arn", "resource"),
    ("secret_name", "secret"),
    ("account_id", "account"),
    ("aws_region", "region"),
    ("source_ip", "from"),
    ("source_network", "network"),
    ("user_agent", "with"),
];

impl Alert {
    /// Whom it is about: the name of the column, and its value. Alerts with the same one belong to one incident.
    pub fn subject(&self) -> (String, String) {
        let known = SUBJECTS.iter().find_map(|name| Some(((*name).to_owned(), self.column(name)?)));
        // Access keys go by many names.
        let named =
            |(name, value): (String, String)| (if name == "exposed_credential" || name == "access_key_id" { "credential".to_owned() } else { name }, value);
        known.map(named).unwrap_or_else(|| {
            let (name, value) = self.alert_key.iter().next().map_or_else(Default::default, |(name, value)| (name.clone(), text(value)));
            (name, value)
        })
    }

    /// What happened, in one sentence.
    pub fn sentence(&self) -> String {
        let (name, value) = self.subject();
        let call = self.column("event_name").or_else(|| self.column("tool")).or_else(|| self.column("operation"));
        let from = self.column("source_ip").or_else(|| self.column("source_network"));
        let mut sentence = format!("{}: {} {value}", self.title, name.replace('_', " "));
        if let Some(call) = call {
            sentence.push_str(&format!(", {call}"));
        }
        if let Some(from) = from.filter(|from| *from != value) {
            sentence.push_str(&format!(" from {from}"));
        }
        if let Some(delay) = self.after_exposure() {
            sentence.push_str(&format!(", {} {} exposure", spoken(delay.abs()), if delay < 0 { "before" } else { "after" }));
        }
        match self.status {
            Status::Provisional => sentence.push_str(" (provisional: rows that still come may take it back)"),
            Status::Retracted => sentence.push_str(" (taken back)"),
            Status::Open | Status::Final => {}
        }
        sentence
    }

    /// From exposure to first use; below zero where it was used before.
    pub fn after_exposure(&self) -> Option<Micros> {
        Some(self.first_time - self.column("exposed_at").and_then(|text| parse_time(&text))?)
    }

    /// What it touched: word and value.
    pub fn touched(&self) -> Vec<(&'static str, String)> {
        TOUCHED.iter().filter_map(|(name, word)| Some((*word, self.column(name)?))).collect()
    }

    /// The same as fields of the alert's document.
    pub(super) fn story(&self) -> Value {
        let (name, value) = self.subject();
        serde_json::json!({
            "summary": self.sentence(),
            "subject": {"kind": name, "name": value},
            "since": rfc3339(self.first_time),
            "seconds_after_exposure": self.after_exposure().map(|delay| delay / 1_000_000),
            "touched": self.touched().into_iter().map(|(word, value)| (word.to_owned(), Value::from(value))).collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
