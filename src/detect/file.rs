//! A detection file: runbook, query and proof in one Markdown page.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use serde::Deserialize;

use super::as_of::with_dimensions_as_of;
use crate::clock::{MINUTE, Micros, parse_length};
use crate::error::{At, Error, Result};

/// How bad it is. Ordered: the level of an alert is the highest of its findings.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    #[default]
    Informational,
    Low,
    Medium,
    High,
    Critical,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Informational, Level::Low, Level::Medium, Level::High, Level::Critical];

    pub fn name(self) -> &'static str {
        match self {
            Level::Informational => "informational",
            Level::Low => "low",
            Level::Medium => "medium",
            Level::High => "high",
            Level::Critical => "critical",
        }
    }

    pub fn parse(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// How far a detection is trusted; Sigma's words.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Stable,
    Test,
    Experimental,
    Deprecated,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FrontMatter {
    title: String,
    id: uuid::Uuid,
    name: String,
    status: Status,
    level: Level,
    #[serde(default)]
    tags: Vec<String>,
    alert_key: Vec<String>,
    dedup: String,
    #[serde(default)]
    early: bool,
    schedule: Option<String>,
    over: Option<String>,
    #[serde(default)]
    falsepositives: Vec<String>,
    #[serde(default)]
    references: Vec<String>,
}

/// When a detection is asked over the archive, and how far back it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub every: Micros,
    pub over: Micros,
}

/// One detection as its file declares it. Everything else is inferred from the plan of its SQL.
#[derive(Clone, Debug)]
pub struct Detection {
    /// Short name, such as `EXP-01`: how people, metrics and `alerts.detection` call it.
    pub name: String,
    pub title: String,
    /// Stable for ever; part of every alert id.
    pub id: uuid::Uuid,
    pub status: Status,
    pub level: Level,
    /// The level that a config gives all its alerts, whatever the file and its query say.
    pub own_level: Option<Level>,
    pub tags: Vec<String>,
    pub falsepositives: Vec<String>,
    pub references: Vec<String>,
    /// Columns whose values make two findings the same alert.
    pub alert_key: Vec<String>,
    /// Width of the buckets of `alert_time` within which findings merge.
    pub dedup: Micros,
    /// What only the watermark can make sure is told at once, as provisional, and confirmed or taken back later.
    pub early: bool,
    /// Asked at fixed times over the archive (class C4).
    pub schedule: Option<Schedule>,
    /// The query as it is asked: the file's, its dimensions joined as of the row's append time.
    pub sql: String,
    /// The query as the file has it.
    pub written: String,
    /// Line of the file on which the SQL starts.
    pub sql_line: usize,
    /// Sections by heading: "What it finds", "What it misses", "What to do".
    pub sections: BTreeMap<String, String>,
    pub tests: Vec<Test>,
    pub path: PathBuf,
}

/// One test of a detection: rows in arrival order, and the alerts that must come of them.
#[derive(Clone, Debug)]
pub struct Test {
    pub title: String,
    pub line: usize,
    /// Blocks in the order in which they stand: table, and one JSON object per row.
    pub rows: Vec<(String, Vec<(usize, serde_json::Value)>)>,
    /// Objects that the alerts must contain, in order of their first time. Empty: must stay silent.
    pub expect: Vec<(usize, serde_json::Value)>,
}

/// The runbook sections that every detection must have.
pub const SECTIONS: [&str; 3] = ["What it finds", "What it misses", "What to do"];

impl Detection {
    /// Reads one file.
    ///
    /// # Errors
    /// Names the file, the line and what is missing or wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(|| format!("reading the detection {}", path.display()))?;
        Self::parse(&text, path)
    }

    /// Parses the text of a detection file.
    ///
    /// # Errors
    /// Names the file, the line and what is missing or wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let fail = |line: usize, message: String| Error::user(format!("{}:{line}: {message}", path.display()));
        let matter = text
            .strip_prefix("---\n")
            .and_then(|rest| rest.split_once("\n---\n").map(|(matter, _)| matter))
            .ok_or_else(|| fail(1, "must start with front matter between two lines of ---".into()))?;
        let head: FrontMatter =
            serde_norway::from_str(matter).map_err(|error| fail(1 + error.location().map_or(0, |l| l.line()), format!("front matter: {error}")))?;
        let dedup = parse_length(&head.dedup)
            .filter(|length| *length > 0)
            .ok_or_else(|| fail(1, format!("dedup: `{}` is not a length such as 1h, 30m or 1d", head.dedup)))?;
        let length = |name: &str, text: &str| {
            parse_length(text)
                .filter(|length| *length >= MINUTE)
                .ok_or_else(|| fail(1, format!("{name}: `{text}` is not a length of a minute or more, such as 15m, 1h or 28d")))
        };
        let schedule = match (&head.schedule, &head.over) {
            (None, None) => None,
            (Some(every), Some(over)) => Some(Schedule { every: length("schedule", every)?, over: length("over", over)? }),
            _ => return Err(fail(1, "schedule and over belong together: how often it is asked, and how far back it sees".into())),
        };
        if schedule.is_some_and(|schedule| schedule.over < schedule.every) {
            return Err(fail(1, "over is shorter than schedule: what lies between two looks would never be seen".into()));
        }
        if schedule.is_some() && head.early {
            return Err(fail(1, "early has no meaning with a schedule: what is asked over the archive is final".into()));
        }
        let body = Body::read(text).map_err(|(line, message)| fail(line, message))?;
        let (sql_line, written) = body.sql.ok_or_else(|| fail(1, "no ```sql block".into()))?;
        let sql = with_dimensions_as_of(&written).unwrap_or_else(|| written.clone());
        for section in SECTIONS {
            if body.sections.get(section).is_none_or(|text| text.trim().is_empty()) {
                return Err(fail(1, format!("section `## {section}` is missing or empty")));
            }
        }
        if head.alert_key.is_empty() {
            return Err(fail(1, "alert_key: name at least one column of the query".into()));
        }
        Ok(Self {
            name: head.name,
            title: head.title,
            id: head.id,
            status: head.status,
            level: head.level,
            own_level: None,
            tags: head.tags,
            falsepositives: head.falsepositives,
            references: head.references,
            alert_key: head.alert_key,
            dedup,
            early: head.early,
            schedule,
            sql,
            written,
            sql_line,
            sections: body.sections,
            tests: body.tests,
            path: path.to_owned(),
        })
    }

    /// The runbook's "What to do".
    pub fn what_to_do(&self) -> &str {
        self.sections.get("What to do").map_or("", |text| text.trim())
    }
}

#[derive(Default)]
struct Body {
    sql: Option<(usize, String)>,
    sections: BTreeMap<String, String>,
    tests: Vec<Test>,
}

impl Body {
    fn read(text: &str) -> Result<Self, (usize, String)> {
        let mut body = Body::default();
        let starts: Vec<usize> = std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|at| at + 1)).collect();
        let line_of = |offset: usize| starts.partition_point(|start| *start <= offset);
        let mut heading: Option<(HeadingLevel, String)> = None;
        let mut section: Option<(String, usize)> = None;
        let mut block: Option<(String, usize, String)> = None;
        let close = |body: &mut Body, section: &mut Option<(String, usize)>, end: usize| {
            if let Some((title, from)) = section.take() {
                body.sections.insert(title, text[from..end].trim().to_owned());
            }
        };
        for (event, range) in Parser::new_ext(text, Options::ENABLE_YAML_STYLE_METADATA_BLOCKS).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { level, .. }) => {
                    close(&mut body, &mut section, range.start);
                    heading = Some((level, String::new()));
                }
                Event::End(TagEnd::Heading(_)) => {
                    let Some((level, title)) = heading.take() else { continue };
                    match title.strip_prefix("Test:") {
                        Some(title) => {
                            body.tests.push(Test { title: title.trim().into(), line: line_of(range.start), rows: Vec::new(), expect: Vec::new() });
                        }
                        None if level == HeadingLevel::H2 => section = Some((title, range.end)),
                        None => {}
                    }
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    close(&mut body, &mut section, range.start);
                    block = Some((info.to_string(), line_of(range.start) + 1, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => {
                    if let Some((info, line, code)) = block.take() {
                        body.code(&info, line, code)?;
                    }
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some((_, _, code)) = &mut block {
                        code.push_str(&part);
                    } else if let Some((_, title)) = &mut heading {
                        title.push_str(&part);
                    }
                }
                _ => {}
            }
        }
        close(&mut body, &mut section, text.len());
        Ok(body)
    }

    fn code(&mut self, info: &str, line: usize, code: String) -> Result<(), (usize, String)> {
        let mut words = info.split_whitespace();
        match (words.next(), words.next(), self.tests.last_mut()) {
            (Some("sql"), None, None) => match &self.sql {
                Some((first, _)) => Err((line, format!("a second ```sql block; the first is on line {first}"))),
                None => {
                    self.sql = Some((line, code));
                    Ok(())
                }
            },
            (Some("jsonl"), Some(table), Some(test)) => {
                test.rows.push((table.to_owned(), json_lines(&code, line)?));
                Ok(())
            }
            (Some("expect"), None, Some(test)) => {
                test.expect.extend(json_lines(&code, line)?);
                Ok(())
            }
            (Some("jsonl" | "expect"), _, _) => Err((line, format!("```{info} must stand under a `## Test:` heading, with a table's name for jsonl"))),
            // Commands to paste and other examples belong to the runbook.
            _ => Ok(()),
        }
    }
}

fn json_lines(code: &str, line: usize) -> Result<Vec<(usize, serde_json::Value)>, (usize, String)> {
    let rows = code.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
    rows.map(|(number, text)| match serde_json::from_str(text) {
        Ok(value @ serde_json::Value::Object(_)) => Ok((line + number, value)),
        Ok(_) => Err((line + number, "each line must be a JSON object".to_owned())),
        Err(error) => Err((line + number, format!("not JSON: {error}"))),
    })
    .collect()
}

/// All detections of a folder (`*.md` but the README), by name; every problem of every file at once.
///
/// # Errors
/// The list of what is wrong in which files.
pub fn read_folder(folder: &Path) -> Result<Vec<Detection>, Vec<Error>> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(error) => return Err(vec![Error::user(format!("reading the detections folder {}", folder.display())).because(error)]),
    };
    paths.retain(|path| path.extension().is_some_and(|e| e == "md") && path.file_stem().is_some_and(|stem| stem != "README"));
    paths.sort();
    read_files(&paths)
}

/// The detections of these files; every problem at once, doubled names and ids among them.
///
/// # Errors
/// The list of what is wrong in which files.
pub fn read_files(paths: &[PathBuf]) -> Result<Vec<Detection>, Vec<Error>> {
    let (mut detections, mut problems): (Vec<Detection>, Vec<Error>) = (Vec::new(), Vec::new());
    for path in paths {
        match Detection::read(path) {
            Ok(detection) => match detections.iter().find(|d| d.id == detection.id || d.name == detection.name) {
                Some(twin) => problems.push(Error::user(format!("{}: has the name or id of {}", path.display(), twin.path.display()))),
                None => detections.push(detection),
            },
            Err(error) => problems.push(error),
        }
    }
    if detections.is_empty() && problems.is_empty() {
        problems.push(Error::user("no detection files there: nothing would be found, whatever the logs hold"));
    }
    if problems.is_empty() { Ok(detections) } else { Err(problems) }
}
