//! Slack-compatible incoming webhooks (Slack, Mattermost, Rocket.Chat): one message per incident, the story inside.

use std::fmt::Write as _;

use serde_json::json;

use super::http::Http;
use super::{Failure, Message, Sink};
use crate::alert::Status;
use crate::clock::rfc3339;
use crate::detect::Level;
use crate::error::Result;
use crate::text::visible;

/// Longest text of a block: Slack refuses a message with one of more than 3,000 for good.
const BLOCK: usize = 2_900;
/// Longest header.
const HEADER: usize = 150;
/// Alerts that are told one by one.
const TOLD: usize = 8;
/// Longest that what a log says may be, so that no name takes the place of the others' lines.
const WORDS: usize = 250;

pub struct Slack {
    http: Http,
}

impl Slack {
    /// # Errors
    /// An address that is none.
    pub fn new(url: &str) -> Result<Self> {
        Ok(Self { http: Http::new(url)? })
    }
}

/// What would be markup, or would call people, is shown as it is.
fn plain(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Mattermost and Rocket.Chat know Markdown and bare mentions.
    text.replace('@', "@\u{200b}").replace('`', "'").replace('*', "∗").replace('~', "∼").replace('[', "(").replace(']', ")")
}

/// What a log says: no more than some words on one line.
fn words(text: &str) -> String {
    cut(&plain(&visible(text)), WORDS)
}

/// No longer than a bound. UTF-16 units are counted: whatever a receiver counts, it counts no more of them.
fn cut(text: &str, bound: usize) -> String {
    if text.encode_utf16().count() <= bound {
        return text.to_owned();
    }
    let (mut units, mut kept) = (1, String::new());
    for c in text.chars() {
        units += c.len_utf16();
        if units > bound {
            break;
        }
        kept.push(c);
    }
    // Half of an `&amp;` would be shown as it is.
    if let Some(at) = kept.rfind('&').filter(|at| !kept[*at..].contains(';')) {
        kept.truncate(at);
    }
    kept.push('…');
    kept
}

/// A runbook's steps: its own Markdown stays, what an alert put in is no more than words.
fn steps(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn mark(level: Level) -> &'static str {
    match level {
        Level::Critical => ":rotating_light:",
        Level::High => ":red_circle:",
        Level::Medium => ":large_orange_circle:",
        Level::Low | Level::Informational => ":large_blue_circle:",
    }
}

/// The message as JSON.
pub fn written(message: &Message<'_>) -> serde_json::Value {
    let Some(first) = message.parcels.first() else { return json!({"text": ""}) };
    let mut parcels: Vec<_> = message.parcels.iter().collect();
    parcels.sort_by_key(|parcel| (std::cmp::Reverse(Level::parse(&parcel.alert.level)), parcel.alert.first_time));
    let worst = parcels.first().copied().unwrap_or(first);
    let (kind, name) = worst.alert.subject();
    let level = message.incident.map_or_else(|| Level::parse(&worst.alert.level).unwrap_or_default(), |incident| incident.level());
    let follows = message.incident.is_some_and(|incident| incident.told > 0);
    let head = format!("{} {} {} {}", mark(level), level.name().to_uppercase(), kind.replace('_', " "), words(&name));
    let head = if follows { format!("{head}: there is more") } else { head };
    let mut story = String::new();
    for parcel in parcels.iter().take(TOLD) {
        let taken_back = if parcel.alert.status == Status::Retracted { "~" } else { "" };
        let _ = writeln!(
            story,
            "• {taken_back}*{}* {}{taken_back} _since {}_",
            parcel.alert.detection,
            words(&parcel.alert.sentence()),
            rfc3339(parcel.alert.first_time)
        );
    }
    if parcels.len() > TOLD {
        let _ = writeln!(story, "… and {} more", parcels.len() - TOLD);
    }
    let touched: Vec<String> = worst.alert.touched().into_iter().map(|(word, value)| format!("{word} `{}`", words(&value))).collect();
    let mut facts = String::new();
    if let Some(incident) = message.incident {
        let names: Vec<&str> = incident.detections().into_iter().map(|(name, _)| name).collect();
        let _ = writeln!(facts, "*Incident* since {}: {} alerts of {}", rfc3339(incident.since), incident.alerts.len(), names.join(", "));
    }
    let _ = writeln!(facts, "*Still live?* {}", message.liveness.map_or_else(|| "not known".into(), words));
    if !touched.is_empty() {
        let _ = writeln!(facts, "*Touched* {}", touched.join(", "));
    }
    let text = |name: &str| worst.document[name].as_str().unwrap_or_default();
    let mut blocks =
        vec![json!({"type": "header", "text": {"type": "plain_text", "text": cut(&head, HEADER), "emoji": true}}), section(&story), section(&facts)];
    if !follows {
        blocks.push(section(&format!("*What to do* (nothing of this was run)\n{}", steps(text("what_to_do")))));
        blocks.push(section(&format!("*What this cannot see*\n{}", plain(text("cannot_see")))));
    }
    // Commands to paste name the alert: its id needs no escaping, and is found whatever the name holds.
    let ask = format!("`keyfuse investigate {0}` · `keyfuse explain {0}`", worst.alert.alert_id);
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": ask}]}));
    json!({"text": format!("{head}. {}", words(&worst.alert.sentence())), "blocks": blocks})
}

fn section(text: &str) -> serde_json::Value {
    let text = cut(text.trim_end(), BLOCK);
    json!({"type": "section", "text": {"type": "mrkdwn", "text": if text.is_empty() { "–".to_owned() } else { text }}})
}

impl Sink for Slack {
    fn groups(&self) -> bool {
        true
    }

    fn deliver(&mut self, message: &Message<'_>) -> std::result::Result<(), Failure> {
        self.http.post("", &[], written(message).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Alert;
    use crate::sink::Parcel;

    /// An alert about an agent of this name.
    fn parcel(agent: &str) -> Parcel {
        let alert = json!({
            "alert_id": "0123456789abcdef0123456789abcdef", "revision": 1, "detection": "COT-01", "detection_id": uuid::Uuid::nil(), "title": "A title",
            "level": "high", "alert_key": {"agent_id": agent}, "first_time": 0, "last_time": 0, "evidence": [], "payload": {"user_agent": agent},
            "findings": [1], "earliest": [0, ""], "decided_at": 0
        });
        let alert: Alert = serde_json::from_value(alert).expect("an alert");
        Parcel { document: alert.document(None), alert }
    }

    fn texts(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) => into.push(text.clone()),
            serde_json::Value::Array(list) => list.iter().for_each(|inner| texts(inner, into)),
            serde_json::Value::Object(object) => object.values().for_each(|inner| texts(inner, into)),
            _ => {}
        }
    }

    #[test]
    fn a_name_of_any_length_and_kind_keeps_no_message_from_being_taken_nor_its_command_from_being_pasted() {
        for name in ["a".repeat(3_000), "&".repeat(3_000), "🔑".repeat(3_000), "@here *[x]*\n• *EXP-01* forged".into()] {
            let parcels: Vec<Parcel> = (0..20).map(|_| parcel(&name)).collect();
            let message = written(&Message { parcels: &parcels, incident: None, liveness: Some(&name) });
            let mut all = Vec::new();
            texts(&message, &mut all);
            assert!(all.iter().all(|text| text.encode_utf16().count() <= 3_000), "{message}");
            assert!(message["blocks"][0]["text"]["text"].as_str().expect("a header").encode_utf16().count() <= 150);
            assert!(all.iter().any(|text| text.contains("`keyfuse investigate 0123456789abcdef0123456789abcdef`")), "{message}");
            assert!(all.iter().any(|text| text.contains("Still live?")) && all.iter().any(|text| text.contains("and 12 more")), "{message}");
            assert!(!all.iter().any(|text| text.contains("\n• *EXP-01*") || text.contains("@here")), "{message}");
        }
        assert_eq!(cut("a&amp;b", 7), "a&amp;b");
        assert_eq!(cut("a&amp;bc", 7), "a&amp;…");
        assert_eq!(cut("a&amp;bc", 6), "a…");
    }
}
