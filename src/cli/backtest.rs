//! `keyfuse backtest`: the alerts that a detection would have raised, from the archive.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use keyfuse::alert::{Alert, AlertBook, AllowList, alerts_of};
use keyfuse::archive::{Archive, ArchiveHistory};
use keyfuse::clock::Micros;
use keyfuse::clock::parse_time;
use keyfuse::detect::{Detection, Engine, Finding, Plans};
use keyfuse::dimension::Dimensions;
use keyfuse::error::Error;
use keyfuse::late::{Settings, Window, sweep};
use keyfuse::query::on_deep_stacks;
use keyfuse::schedule::{self, Past};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{DIMENSIONS, Span};

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, held_back, runtime};

/// What would a detection have found in the archive? The same alerts, with the same ids, as the running service.
#[derive(clap::Args)]
pub struct Args {
    /// Names such as EXP-01, or detection files. None: all detections.
    #[arg(value_name = "DETECTION")]
    names: Vec<String>,
    #[command(flatten)]
    stretch: Stretch,
    /// Add what late rows give, as the service's sweep does.
    #[arg(long)]
    late: bool,
    /// Write alerts as JSON lines, also those that are held back (`held` says why).
    #[arg(long)]
    json: bool,
}

/// A stretch of an archive, and what is known of the own world.
#[derive(clap::Args)]
pub struct Stretch {
    /// Archive to read: a folder or a URL.
    #[arg(long, default_value = "keyfuse-data/archive")]
    pub archive: String,
    /// Earliest alert time, such as 2026-05-01 or 2026-05-01T10:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// First alert time that no longer counts.
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    pub rules: Rules,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

impl Stretch {
    /// Opens the archive.
    pub fn open(&self) -> Result<OpenPast, Vec<Error>> {
        let one = |error: Error| vec![error];
        let time = |name: &str, text: &Option<String>, default: Micros| match text {
            None => Ok(default),
            Some(text) => parse_time(text).ok_or_else(|| one(Error::user(format!("{name} `{text}`: write a date or an RFC 3339 time")))),
        };
        let (from, to) = (time("--from", &self.from, Micros::MIN)?, time("--to", &self.to, Micros::MAX)?);
        if from >= to {
            return Err(one(Error::user("--from lies behind --to: no alert can be between them")));
        }
        OpenPast::open(&self.archive, &self.storage_options, &self.rules, (from, to))
    }
}

/// An archive that detections are run over.
pub struct OpenPast {
    runtime: tokio::runtime::Runtime,
    history: ArchiveHistory,
    dimensions: Dimensions,
    fingerprinter: Fingerprinter,
    pub spans: Vec<Span>,
    from: Micros,
    to: Micros,
}

impl OpenPast {
    pub fn open(place: &str, options: &[(String, String)], rules: &Rules, (from, to): (Micros, Micros)) -> Result<Self, Vec<Error>> {
        let one = |error: Error| vec![error];
        super::must_be_archive(place)?;
        let runtime = runtime()?;
        let options: HashMap<String, String> = options.iter().cloned().collect();
        let archive = Arc::new(runtime.block_on(Archive::open(place, &options)).map_err(one)?);
        let (dimensions, fingerprinter) = (rules.dimensions_of(&runtime, &archive)?, rules.fingerprinter()?);
        let spans = runtime.block_on(archive.spans()).map_err(one)?;
        let history = ArchiveHistory { archive, runtime: runtime.handle().clone() };
        Ok(Self { runtime, history, dimensions, fingerprinter, spans, from, to })
    }

    /// The same, for alerts from a time on.
    pub fn since(self, from: Micros) -> Self {
        Self { from, ..self }
    }

    /// Append time of the first and of the last row of any stream.
    pub fn span(&self) -> Option<(Micros, Micros)> {
        let first = self.spans.iter().map(|(_, (first, _))| *first).min()?;
        Some((first, self.spans.iter().map(|(_, (_, last))| *last).max()?))
    }

    /// What detections would have raised, and the engine that says so.
    pub fn alerts(&self, detections: &[Detection], late: bool) -> Result<(AlertBook, Engine), Vec<Error>> {
        let one = |error: Error| vec![error];
        let plans = Plans::new(detections, &self.fingerprinter)?;
        let mut engine = Engine::of(&plans, &self.dimensions).map_err(one)?;
        for table in DIMENSIONS.iter().filter(|table| !self.dimensions.knows(table)) {
            let blind: Vec<&str> =
                engine.detections().filter(|(_, analysis)| analysis.required.contains(table.name)).map(|(detection, _)| detection.name.as_str()).collect();
            if !blind.is_empty() {
                eprintln!("keyfuse: no {} are stated (--{}, or a topic): {} find nothing without them", table.name, table.name, blind.join(" "));
            }
        }
        engine.begin(&self.spans);
        // What time has not made sure yet is told as provisional, where its detection is told early, or counted as undecided.
        engine.advance(self.span().map_or(Micros::MIN, |(_, last)| last));
        engine.backtest(&self.history, self.from).map_err(one)?;
        let mut findings = engine.tick(&self.history).map_err(one)?;
        if let Some((detection, problem)) = engine.take_problems().into_iter().next() {
            return Err(one(Error::user(format!("{detection}: {problem}"))));
        }
        findings.extend(self.scheduled(&engine)?);
        findings.retain(|finding| finding.alert_time >= self.from && finding.alert_time < self.to);
        let allow = AllowList::of(&self.dimensions);
        let mut book = alerts_of(&findings, allow.clone());
        if late {
            let everything = Window { after: Micros::MIN, until: Micros::MAX };
            let settings = Settings { dimensions: &self.dimensions, allow: &allow, budget: 4 << 30 };
            let (added, problems) = sweep(&plans, everything, &self.history, &self.spans, &settings).map_err(one)?;
            for (detection, problem) in problems {
                eprintln!("keyfuse: {detection}: {problem}");
            }
            let within = |alert: &Alert| alert.first_time >= self.from && alert.first_time < self.to;
            book.take_late(added.into_iter().filter(within).collect(), keyfuse::clock::now());
        }
        Ok((book, engine))
    }

    /// Asks the detections with a schedule about every moment between the bounds for which there are rows.
    fn scheduled(&self, engine: &Engine) -> Result<Vec<Finding>, Vec<Error>> {
        let Some((first, last)) = self.span() else { return Ok(Vec::new()) };
        let mut findings = Vec::new();
        for asked in engine.scheduled() {
            for at in schedule::moments(&asked.detection, first.max(self.from.saturating_sub(1)), last.min(self.to), usize::MAX >> 1) {
                let (asked, past) = (asked.clone(), Past::Archive(Arc::clone(&self.history.archive)));
                let (known, fingerprinter) = (self.dimensions.clone(), self.fingerprinter.clone());
                let work = async move { schedule::ask(&asked, at, &past, &known, &fingerprinter).await };
                findings.extend(on_deep_stacks(&self.runtime, work).map_err(|error| vec![error])?);
            }
        }
        Ok(findings)
    }
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let detections = chosen(&args.names, &args.stretch.rules)?;
    let (book, engine) = args.stretch.open()?.alerts(&detections, args.late)?;
    let style = Style { colour: coloured() };
    let mut out = std::io::stdout().lock();
    for alert in book.all() {
        let detection = detections.iter().find(|d| d.name == alert.detection);
        let _ = match args.json {
            true => writeln!(out, "{}", alert.document(detection)),
            false if alert.held.is_some() => Ok(()),
            false => writeln!(out, "{}", style.alert(alert, detection, None, false)),
        };
    }
    let allowed: u64 = book.allowed().values().sum();
    let undecided = match engine.undecided() {
        0 => String::new(),
        keys => format!(", {keys} keys with results that wait for rows which may still come"),
    };
    let told = book.told().count();
    eprintln!("{told} alerts, {allowed} findings allowed{undecided}");
    if let Some(held) = held_back(&book) {
        eprintln!("held back: {held} (--json shows them)");
    }
    Ok(if told == 0 { Outcome::Clean } else { Outcome::Found })
}

/// Detections by name, or from files; all of them if none is named.
pub fn chosen(wanted: &[String], rules: &Rules) -> Result<Vec<Detection>, Vec<Error>> {
    let files: Vec<PathBuf> = wanted.iter().map(PathBuf::from).filter(|path| path.extension().is_some()).collect();
    let mut detections = if files.is_empty() { Vec::new() } else { keyfuse::detect::read_files(&files)? };
    let names: Vec<&String> = wanted.iter().filter(|name| PathBuf::from(name).extension().is_none()).collect();
    if names.is_empty() && !files.is_empty() {
        return Ok(detections);
    }
    let known = rules.detections()?;
    if names.is_empty() {
        return Ok(known);
    }
    for name in names {
        match known.iter().find(|detection| detection.name.eq_ignore_ascii_case(name)) {
            Some(detection) => detections.push(detection.clone()),
            None => return Err(vec![Error::user(format!("no detection named {name}"))]),
        }
    }
    Ok(detections)
}
