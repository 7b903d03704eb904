//! Slack-compatible incoming webhooks (Slack, Mattermost, Rocket.Chat): one message per incident, the story inside.

use std::fmt::Write as _;

use serde_json::json;

use super::http::Http;
use super::{Failure, Message, Sink};
use crate::alert::Status;
use crate::clock::rfc3339;
use crate::detect::Level;
use crate::error::Result;

/// Slack's own limit for the text of a block.
const BLOCK: usize = 2_900;
/// Alerts that are told one by one.
const TOLD: usize = 8;

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
    let head = format!("{} {} {} {}", mark(level), level.name().to_uppercase(), kind.replace('_', " "), plain(&name));
    let head = if follows { format!("{head}: there is more") } else { head };
    let mut story = String::new();
    for parcel in parcels.iter().take(TOLD) {
        let taken_back = if parcel.alert.status == Status::Retracted { "~" } else { "" };
        let _ = writeln!(
            story,
            "• {taken_back}*{}* {}{taken_back} _since {}_",
            parcel.alert.detection,
            plain(&parcel.alert.sentence()),
            rfc3339(parcel.alert.first_time)
        );
    }
    if parcels.len() > TOLD {
        let _ = writeln!(story, "… and {} more", parcels.len() - TOLD);
    }
    let touched: Vec<String> = worst.alert.touched().into_iter().map(|(word, value)| format!("{word} `{}`", plain(&value))).collect();
    let mut facts = String::new();
    if let Some(incident) = message.incident {
        let names: Vec<&str> = incident.detections().into_iter().map(|(name, _)| name).collect();
        let _ = writeln!(facts, "*Incident* since {}: {} alerts of {}", rfc3339(incident.since), incident.alerts.len(), names.join(", "));
    }
    if !touched.is_empty() {
        let _ = writeln!(facts, "*Touched* {}", touched.join(", "));
    }
    let _ = writeln!(facts, "*Still live?* {}", message.liveness.map_or_else(|| "not known".into(), plain));
    let text = |name: &str| worst.document[name].as_str().unwrap_or_default();
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": head.chars().take(150).collect::<String>(), "emoji": true}}),
        section(&story),
        section(&facts),
    ];
    if !follows {
        blocks.push(section(&format!("*What to do* (nothing of this was run)\n{}", steps(text("what_to_do")))));
        blocks.push(section(&format!("*What this cannot see*\n{}", plain(text("cannot_see")))));
    }
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": format!("`keyfuse investigate {}` · alert `{}`", plain(&name), worst.alert.alert_id)}]}));
    json!({"text": format!("{head}. {}", plain(&worst.alert.sentence())), "blocks": blocks})
}

fn section(text: &str) -> serde_json::Value {
    let text: String = text.trim_end().chars().take(BLOCK).collect();
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
