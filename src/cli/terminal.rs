//! What a person sees: alerts as short blocks, with colour where the terminal has it.

use std::fmt::Write as _;
use std::io::IsTerminal;

use keyfuse::alert::{Alert, Status};
use keyfuse::clock::parse_time;
use keyfuse::clock::{Micros, rfc3339, spoken};
use keyfuse::detect::Detection;
use keyfuse::text::visible;

/// Whether standard output shows colours.
pub fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

pub struct Style {
    pub colour: bool,
}

impl Style {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn level(&self, level: &str) -> String {
        let code = match level {
            "critical" => "1;97;41",
            "high" => "1;31",
            "medium" => "33",
            _ => "36",
        };
        self.paint(code, &format!(" {} ", level.to_uppercase()))
    }

    /// One alert: what, who, how fast, what it touched, what to do. A change of an alert already shown is one line.
    pub fn alert(&self, alert: &Alert, detection: Option<&Detection>, delay: Option<Micros>, steps: bool) -> String {
        let keys: Vec<String> = alert.alert_key.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
        let keys = keys.join(", ");
        if alert.revision > 1 {
            let change = format!("{} {}: now {}, {} findings", alert.detection, keys, alert.level, alert.findings());
            return self.dim(&change);
        }
        let mut out = String::new();
        let _ = writeln!(out, "{} {} {}  {keys}", self.level(&alert.level), self.bold(&alert.detection), self.bold(&alert.title));
        let since = alert.column("since").and_then(|text| parse_time(&text)).unwrap_or(alert.first_time);
        let mut facts = vec![rfc3339(since)];
        if let Some(exposed) = alert.column("exposed_at").and_then(|text| parse_time(&text)) {
            let (gap, word) = if since < exposed { (exposed - since, "before") } else { (since - exposed, "after") };
            facts.push(format!("{} {word} exposure", spoken(gap)));
        }
        if alert.status == Status::Provisional || alert.status == Status::Retracted {
            facts.push(if alert.status == Status::Provisional { "provisional: rows that still come may take it back".into() } else { "taken back".into() });
        }
        if alert.late {
            facts.push("from rows that came late".into());
        }
        if let Some(held) = alert.held {
            facts.push(format!("not delivered: {}", held.name()));
        }
        if let Some(delay) = delay {
            facts.push(format!("alerted {} after the row arrived", spoken(delay.max(0))));
        }
        if alert.findings() > 1 {
            facts.push(format!("{} findings", alert.findings()));
        }
        let _ = writeln!(out, "   {}", facts.join(" · "));
        let told = ["exposed_at", "since", "event_id", "depth", "account_id", "location"];
        let details = alert.payload.iter().filter(|(name, value)| !value.is_null() && !told.contains(&name.as_str()));
        let details: Vec<String> = details.map(|(name, value)| format!("{name}={}", plain(value))).collect();
        for line in wrapped(&details, "  ") {
            let _ = writeln!(out, "   {}", self.dim(&line));
        }
        if let (true, Some(detection)) = (steps, detection) {
            let steps = alert.what_to_do(detection);
            let lines = steps.lines().skip_while(|line| !line.starts_with("1."));
            let first: Vec<&str> = lines.take_while(|line| !line.starts_with("2.")).map(|line| line.trim_start_matches("1.").trim()).collect();
            let words: Vec<String> = first.join(" ").split(' ').map(str::to_owned).collect();
            for (number, line) in wrapped(&words, " ").into_iter().enumerate() {
                let _ = writeln!(out, "   {} {line}", if number == 0 { "→" } else { " " });
            }
        }
        out
    }
}

/// Columns that text is wrapped to: what most terminals have.
const WIDTH: usize = 116;

fn wrapped(parts: &[String], between: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + between.len() + part.chars().count() <= WIDTH => {
                line.push_str(between);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| visible(&value.to_string()).into_owned(), |text| visible(text).into_owned())
}
