//! The one config file: text in, a proven [`Config`] out, with every problem named at once.

mod sinks;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::alert::AllowEntry;
use crate::clock::{DAY, Micros, SECOND, parse_length, parse_time};
use crate::decode::{FORMATS, Format, format_by_name, read_mappings};
use crate::detect::{Detection, Level};
use crate::dimension::{Dimensions, Files};
use crate::error::{At, Error, Result};
use crate::network::Networks;
use crate::query::{Limits, wire};
use crate::sink;
use sinks::SinksSection;

/// Everything `keyfuse run` needs to know.
#[derive(Clone)]
pub struct Config {
    /// librdkafka settings, passed through.
    pub kafka: BTreeMap<String, String>,
    pub topics: Vec<Topic>,
    /// Topic that refused records are also sent to.
    pub dead_letter: Option<String>,
    pub detections: PathBuf,
    /// Files that say what is known of one's own world: agents, approvals, allow-list, logs that are expected.
    pub known: Files,
    /// Compacted topics that state entries of dimensions, by dimension.
    pub dimension_topics: BTreeMap<&'static str, String>,
    /// MaxMind-format or CSV files that say to whom an address belongs.
    pub networks: Vec<PathBuf>,
    /// Mapping files: log formats of one's own.
    pub mappings: Vec<PathBuf>,
    /// Folder of the alert log and the fingerprint key.
    pub data: PathBuf,
    pub archive: String,
    pub archive_options: HashMap<String, String>,
    /// How long rows are kept; for ever where it says nothing.
    pub keep: Option<Micros>,
    pub commit_every: Duration,
    pub keep_raw: bool,
    /// Address of `/metrics`, `/healthz`, `/readyz`.
    pub listen: std::net::SocketAddr,
    /// Where alerts go.
    pub sinks: Vec<sink::Settings>,
    /// Of what nobody is to be told for a while.
    pub silences: Vec<AllowEntry>,
    /// Levels of one's own, by detection.
    pub levels: BTreeMap<String, Level>,
    pub residue_budget: usize,
    /// How long a new or changed detection must be quiet before its alerts are delivered; none: at once.
    pub shadow: Option<Micros>,
    /// The SQL door on the PostgreSQL wire, and what one question may cost there.
    pub sql: Option<(wire::Settings, Limits)>,
    /// Whether, and how, it is proven over and over that detections see.
    pub canaries: Option<Canaries>,
}

/// When canaries are sent (microseconds).
#[derive(Clone, Copy, Debug)]
pub struct Canaries {
    pub every: Micros,
    /// What is not back by then is missing.
    pub within: Micros,
}

/// A topic to read.
#[derive(Clone)]
pub struct Topic {
    pub name: String,
    /// `None` is `auto`.
    pub format: Option<&'static dyn Format>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    kafka: BTreeMap<String, toml::Value>,
    topics: Vec<TopicSection>,
    dead_letter: Option<String>,
    detections: Option<PathBuf>,
    allow_list: Option<PathBuf>,
    agents: Option<PathBuf>,
    approvals: Option<PathBuf>,
    expected_sources: Option<PathBuf>,
    dimension_topics: BTreeMap<String, String>,
    networks: Vec<PathBuf>,
    mappings: Vec<PathBuf>,
    data: Option<PathBuf>,
    archive: ArchiveSection,
    http: HttpSection,
    sinks: SinksSection,
    limits: LimitsSection,
    #[serde(default)]
    rollout: RolloutSection,
    #[serde(default)]
    silences: Vec<SilenceSection>,
    #[serde(default)]
    levels: BTreeMap<String, Level>,
    canaries: Option<CanariesSection>,
    sql: Option<SqlSection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlSection {
    listen: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    connections: Option<usize>,
    time: Option<String>,
    memory: Option<String>,
    rows: Option<usize>,
}

impl SqlSection {
    fn prove(self, near: impl Fn(PathBuf) -> PathBuf) -> Result<(wire::Settings, Limits), String> {
        let listen = self.listen.as_deref().unwrap_or("127.0.0.1:5433");
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some((near(certificate), near(key))),
            (None, None) => None,
            _ => return Err("tls_cert and tls_key belong together".into()),
        };
        let settings = wire::Settings {
            listen: listen.parse().map_err(|_| format!("listen: `{listen}`: write an address and port, such as 127.0.0.1:5433"))?,
            user: self.user.unwrap_or_else(|| "keyfuse".into()),
            password: self.password_file.map(&near),
            tls,
            connections: self.connections.unwrap_or(32).max(1),
        };
        let length = |text: &str| parse_length(text).filter(|length| *length > 0).ok_or_else(|| format!("time: `{text}`: write a length such as 60s or 5m"));
        let limits = Limits {
            time: Duration::from_micros(self.time.as_deref().map_or(Ok(60 * SECOND), length)?.unsigned_abs()),
            memory: self.memory.as_deref().map_or(Some(1 << 30), parse_bytes).ok_or("memory: write a size such as 512MiB or 2GiB")?,
            rows: self.rows.unwrap_or(1_000_000),
        };
        Ok((settings.proven()?, limits))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanariesSection {
    every: String,
    within: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutSection {
    shadow: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicSection {
    name: String,
    #[serde(default = "auto")]
    format: String,
}

fn auto() -> String {
    "auto".into()
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ArchiveSection {
    path: Option<String>,
    options: HashMap<String, String>,
    commit_every: Option<String>,
    raw: Option<bool>,
    keep: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct HttpSection {
    listen: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SilenceSection {
    detection: String,
    column: String,
    value: String,
    owner: String,
    reason: String,
    from: Option<String>,
    until: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    residue_budget: Option<String>,
}

impl Config {
    /// Names of detections that levels and silences are about, and that are not among these: such an entry has no effect.
    pub fn unknown_detections<'a>(&'a self, detections: &'a [Detection]) -> impl Iterator<Item = &'a str> {
        let named = self.levels.keys().chain(self.silences.iter().map(|silence| &silence.detection));
        named.map(String::as_str).filter(|name| *name != "*" && !detections.iter().any(|detection| detection.name == *name))
    }

    /// Reads and proves a config file; relative paths in it start at its own folder.
    ///
    /// # Errors
    /// All problems at once.
    pub fn read(path: &Path) -> Result<Self, Vec<Error>> {
        let text = std::fs::read_to_string(path).user_at(|| format!("reading the config {}", path.display())).map_err(|error| vec![error])?;
        Self::parse(&text, path)
    }

    /// Proves the text of a config file.
    ///
    /// # Errors
    /// All problems at once, each with the file, the setting and what to write.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Vec<Error>> {
        let file: File = toml::from_str(text).map_err(|error| vec![Error::user(format!("{}: {error}", path.display()))])?;
        let mut problems = Vec::new();
        let mut problem = |setting: &str, message: String| problems.push(Error::user(format!("{}: {setting}: {message}", path.display())));
        let base = path.parent().unwrap_or(Path::new("."));
        let near = |path: PathBuf| base.join(path);

        let kafka: BTreeMap<String, String> = file.kafka.iter().filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect();
        for (name, _) in file.kafka.iter().filter(|(_, value)| plain(value).is_none()) {
            problem(&format!("[kafka] {name}"), "must be text, a number or true/false; quote the name, as in \"bootstrap.servers\"".into());
        }
        if !kafka.contains_key("bootstrap.servers") {
            problem("[kafka]", "\"bootstrap.servers\" is missing, as in \"bootstrap.servers\" = \"localhost:9092\"".into());
        }
        if let Err(error) = crate::source::kafka::client_config(&kafka) {
            problem("[kafka]", error.to_string());
        }
        if file.topics.is_empty() {
            problem("[[topics]]", "name at least one topic, as in [[topics]] name = \"cloudtrail\"".into());
        }
        let mappings: Vec<PathBuf> = file.mappings.into_iter().map(near).collect();
        let own = read_mappings(&mappings).unwrap_or_else(|error| {
            problem("mappings", error.to_string());
            Vec::new()
        });
        let networks: Vec<PathBuf> = file.networks.into_iter().map(near).collect();
        if let Err(error) = Networks::open(&networks) {
            problem("networks", error.to_string());
        }
        let mut topics: Vec<Topic> = Vec::new();
        for section in file.topics {
            let format = format_by_name(&section.format).or_else(|| own.iter().copied().find(|own| own.name() == section.format));
            if format.is_none() && section.format != "auto" {
                let known: Vec<&str> = FORMATS.iter().chain(&own).map(|format| format.name()).collect();
                problem("[[topics]] format", format!("`{}` is no log format; write auto or one of {}", section.format, known.join(", ")));
            }
            if topics.iter().any(|topic| topic.name == section.name) {
                problem("[[topics]] name", format!("`{}` is named twice", section.name));
            }
            topics.push(Topic { name: section.name, format });
        }
        if file.dead_letter.as_ref().is_some_and(|dead| topics.iter().any(|topic| topic.name == *dead)) {
            problem("dead_letter", "is also read: every refused record would be refused again, for ever".into());
        }
        let detections = near(file.detections.unwrap_or_else(|| "detections".into()));
        if !detections.is_dir() {
            problem("detections", format!("{} is no folder", detections.display()));
        }
        let known = Files {
            agents: file.agents.map(near),
            approvals: file.approvals.map(near),
            allow_list: file.allow_list.map(near),
            expected_sources: file.expected_sources.map(near),
        };
        for error in Dimensions::read(&known).err().into_iter().flatten() {
            problem("agents, approvals, allow_list, expected_sources", error.to_string());
        }
        let mut dimension_topics = BTreeMap::new();
        for (name, topic) in file.dimension_topics {
            match crate::dimension::TOPICS.into_iter().find(|known| *known == name) {
                Some(known) => drop(dimension_topics.insert(known, topic)),
                None => problem("[dimension_topics]", format!("`{name}` is no dimension; there are {}", crate::dimension::TOPICS.join(", "))),
            }
        }
        let commit_every = file.archive.commit_every.as_deref().map_or(Some(5_000_000), parse_length).filter(|length| *length > 0);
        if commit_every.is_none() {
            problem("[archive] commit_every", "write a length such as 5s or 1m".into());
        }
        let keep = file.archive.keep.as_deref().and_then(|text| {
            let length = parse_length(text).filter(|length| *length >= DAY);
            if length.is_none() {
                problem("[archive] keep", format!("`{text}`: write how long rows are kept, a day at least, such as 400d; without it they are kept for ever"));
            }
            length
        });
        let listen = file.http.listen.unwrap_or_else(|| "127.0.0.1:9464".into()).parse();
        if listen.is_err() {
            problem("[http] listen", "write an address and port, such as 127.0.0.1:9464".into());
        }
        let shadow = match file.rollout.shadow.as_deref() {
            None | Some("off") => None,
            Some(text) => parse_length(text).or_else(|| {
                problem("[rollout] shadow", format!("`{text}`: write how long a new detection must be quiet, such as 7d, or off"));
                None
            }),
        };
        let canaries = file.canaries.and_then(|section| {
            let mut length = |setting: &str, text: &str| {
                let found = parse_length(text).filter(|length| *length >= SECOND);
                if found.is_none() {
                    problem(&format!("[canaries] {setting}"), format!("`{text}`: write a length such as 1h or 30s"));
                }
                found
            };
            let (every, within) = (length("every", &section.every)?, length("within", section.within.as_deref().unwrap_or("1m"))?);
            if within >= every {
                problem("[canaries] within", "must be shorter than every: a round ends before the next begins".into());
            }
            Some(Canaries { every, within })
        });
        let sql = file.sql.and_then(|section| section.prove(near).map_err(|message| problem("[sql]", message)).ok());
        let residue_budget = file.limits.residue_budget.as_deref().map_or(Some(1 << 30), parse_bytes);
        if residue_budget.is_none() {
            problem("[limits] residue_budget", "write a size such as 512MiB or 2GiB".into());
        }
        let data = near(file.data.unwrap_or_else(|| "keyfuse-data".into()));
        let archive = match file.archive.path {
            Some(place) if place.contains("://") => place,
            Some(place) => near(place.into()).to_string_lossy().into_owned(),
            None => data.join("archive").to_string_lossy().into_owned(),
        };
        let sinks = file.sinks.prove(near).unwrap_or_else(|messages| {
            messages.into_iter().for_each(|message| problem("[sinks]", message));
            Vec::new()
        });
        for sink in &sinks {
            if let sink::Kind::Kafka { topic, .. } = &sink.kind
                && (topic.is_empty()
                    || topics.iter().any(|read| read.name == *topic)
                    || dimension_topics.values().chain(&file.dead_letter).any(|used| used == topic))
            {
                problem("[sinks] kafka", format!("topic `{topic}`: name one for alerts alone, that keyfuse uses for nothing else"));
            }
        }
        let mut silences = Vec::new();
        for silence in file.silences {
            let from = silence.from.as_deref().map_or(Some(Micros::MIN), parse_time);
            let (Some(valid_from), Some(valid_to)) = (from, parse_time(&silence.until)) else {
                problem("[[silences]]", format!("from and until of the one for {} must be times, such as 2026-12-24T18:00:00Z", silence.value));
                continue;
            };
            let SilenceSection { detection, column, value, owner, reason, .. } = silence;
            if owner.trim().is_empty() || reason.trim().is_empty() {
                problem("[[silences]]", format!("the one for {value} needs an owner and a reason"));
            }
            silences.push(AllowEntry { detection, column, value, owner, reason, valid_from, valid_to });
        }
        match (commit_every, listen, residue_budget) {
            (Some(commit_every), Ok(listen), Some(residue_budget)) if problems.is_empty() => Ok(Self {
                kafka,
                topics,
                dead_letter: file.dead_letter,
                detections,
                known,
                dimension_topics,
                networks,
                mappings,
                data,
                archive,
                archive_options: file.archive.options,
                keep,
                commit_every: Duration::from_micros(commit_every.unsigned_abs()),
                keep_raw: file.archive.raw.unwrap_or(true),
                listen,
                sinks,
                silences,
                levels: file.levels,
                residue_budget,
                shadow,
                canaries,
                sql,
            }),
            _ => Err(problems),
        }
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// `512MiB`, `2GiB`, `1000000`.
pub fn parse_bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named_at_once() {
        let text = r#"
            detections = "nowhere"
            dead_letter = "a"
            [kafka]
            "enable.auto.commit" = true
            [[topics]]
            name = "a"
            format = "syslog"
            [http]
            listen = "everywhere"
        "#;
        let problems = Config::parse(text, Path::new("/etc/keyfuse.toml")).err().unwrap();
        let all: String = problems.iter().map(|p| format!("{p}\n")).collect();
        for wanted in ["bootstrap.servers", "enable.auto.commit", "syslog", "every refused record", "nowhere is no folder", "127.0.0.1:9464"] {
            assert!(all.contains(wanted), "{wanted} in\n{all}");
        }
        assert!(problems.iter().all(|p| p.to_string().starts_with("/etc/keyfuse.toml: ")));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("512MiB"), Some(512 << 20));
        assert_eq!(parse_bytes("12 parsecs"), None);
    }
}
