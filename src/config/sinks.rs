//! `[sinks]`: where alerts go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use crate::clock::{HOUR, parse_length};
use crate::sink::{Format, Kind, Settings, WebhookSettings};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct SinksSection {
    ndjson: Vec<NdjsonSection>,
    kafka: Vec<KafkaSection>,
    alertmanager: Vec<AlertmanagerSection>,
    webhook: Vec<WebhookSection>,
    slack: Vec<SlackSection>,
}

/// A path, or a path with a format.
#[derive(Deserialize)]
#[serde(untagged)]
enum NdjsonSection {
    Path(PathBuf),
    With { path: PathBuf, format: Option<String>, name: Option<String> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KafkaSection {
    topic: String,
    format: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertmanagerSection {
    url: String,
    resolve_after: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookSection {
    url: Option<String>,
    url_file: Option<PathBuf>,
    format: Option<String>,
    secret_file: Option<PathBuf>,
    template: Option<PathBuf>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlackSection {
    url: Option<String>,
    url_file: Option<PathBuf>,
    name: Option<String>,
}

fn format_of(name: Option<&str>) -> Result<Format, String> {
    name.map_or(Ok(Format::default()), |name| Format::parse(name).ok_or_else(|| format!("format `{name}`: write keyfuse or ocsf")))
}

/// An address may hold a secret: then it is in a file.
fn url_of(url: Option<String>, file: Option<PathBuf>, near: &impl Fn(PathBuf) -> PathBuf) -> Result<String, String> {
    match (url, file.map(near)) {
        (Some(url), None) => Ok(url),
        (None, Some(path)) => {
            std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|error| format!("url_file {}: {error}", path.display()))
        }
        _ => Err("write url, or url_file where it holds a secret".into()),
    }
}

impl SinksSection {
    /// All sinks, each with a name of its own.
    ///
    /// # Errors
    /// What is wrong with each.
    pub fn prove(self, near: impl Fn(PathBuf) -> PathBuf) -> Result<Vec<Settings>, Vec<String>> {
        let mut proven: Vec<Result<(Option<String>, Kind), String>> = Vec::new();
        for section in self.ndjson {
            let (path, format, name) = match section {
                NdjsonSection::Path(path) => (path, None, None),
                NdjsonSection::With { path, format, name } => (path, format, name),
            };
            let path = if path.as_os_str() == "-" { path } else { near(path) };
            proven.push(format_of(format.as_deref()).map(|format| (name, Kind::Ndjson { path, format })));
        }
        for KafkaSection { topic, format, name } in self.kafka {
            proven.push(format_of(format.as_deref()).map(|format| (name, Kind::Kafka { topic, format })));
        }
        for AlertmanagerSection { url, resolve_after, name } in self.alertmanager {
            let after = resolve_after.as_deref().map_or(Some(HOUR), parse_length).filter(|after| *after > 0);
            let after = after.ok_or_else(|| "alertmanager resolve_after: write a length such as 1h".to_owned());
            proven.push(after.map(|resolve_after| (name, Kind::Alertmanager { url, resolve_after })));
        }
        for section in self.webhook {
            let settings = url_of(section.url, section.url_file, &near).and_then(|url| {
                let (secret, template) = (section.secret_file.map(&near), section.template.map(&near));
                Ok(WebhookSettings { url, format: format_of(section.format.as_deref())?, secret, template, headers: section.headers })
            });
            proven.push(settings.map(|settings| (section.name, Kind::Webhook(settings))).map_err(|message| format!("webhook: {message}")));
        }
        for SlackSection { url, url_file, name } in self.slack {
            proven.push(url_of(url, url_file, &near).map(|url| (name, Kind::Slack { url })).map_err(|message| format!("slack: {message}")));
        }
        let (mut settings, mut problems, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for sink in proven {
            let named = sink.and_then(|(name, kind)| {
                let name = name.map_or_else(|| kind.default_name().map_err(|error| error.to_string()), Ok)?;
                Ok(Settings { name, kind })
            });
            match named {
                Ok(sink) if names.insert(sink.name.clone()) => settings.push(sink),
                Ok(sink) => problems.push(format!("two are named {}: give each a name of its own, as in name = \"on-call\"", sink.name)),
                Err(message) => problems.push(message),
            }
        }
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }
}
