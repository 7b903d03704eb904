//! `keyfuse backtest`: the alerts that a detection would have raised, from the archive.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use keyfuse::alert::{Alert, AllowList, alerts_of};
use keyfuse::archive::{Archive, ArchiveHistory};
use keyfuse::clock::Micros;
use keyfuse::clock::parse_time;
use keyfuse::detect::{Detection, Engine, Finding};
use keyfuse::dimension::Dimensions;
use keyfuse::error::Error;
use keyfuse::late::{Settings, Window, sweep};
use keyfuse::schedule::{self, Past};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::Span;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, runtime};

/// What would a detection have found in the archive? The same alerts, with the same ids, as the running service.
#[derive(clap::Args)]
pub struct Args {
    /// Names such as EXP-01, or detection files. None: all detections.
    #[arg(value_name = "DETECTION")]
    names: Vec<String>,
    /// Archive to read: a folder or a URL.
    #[arg(long, default_value = "keyfuse-data/archive")]
    archive: String,
    /// Earliest alert time, such as 2026-05-01 or 2026-05-01T10:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// First alert time that no longer counts.
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    rules: Rules,
    /// Add what late rows give, as the service's sweep does.
    #[arg(long)]
    late: bool,
    /// Write alerts as JSON lines.
    #[arg(long)]
    json: bool,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let time = |name: &str, text: &Option<String>, default: Micros| match text {
        None => Ok(default),
        Some(text) => parse_time(text).ok_or_else(|| one(Error::user(format!("{name} `{text}`: write a date or an RFC 3339 time")))),
    };
    let (from, to) = (time("--from", &args.from, Micros::MIN)?, time("--to", &args.to, Micros::MAX)?);
    let detections = chosen(&args)?;
    super::must_be_archive(&args.archive)?;
    if from >= to {
        return Err(one(Error::user("--from lies behind --to: no alert can be between them")));
    }
    let runtime = runtime()?;
    let options: HashMap<String, String> = args.storage_options.iter().cloned().collect();
    let archive = Arc::new(runtime.block_on(Archive::open(&args.archive, &options)).map_err(one)?);
    let dimensions = args.rules.dimensions_of(&runtime, &archive)?;
    let history = ArchiveHistory { archive, runtime: runtime.handle().clone() };
    let mut engine = Engine::new(&detections, &args.rules.fingerprinter()?, &dimensions)?;
    // What time has not made sure yet is told as provisional, where its detection is told early, or counted below.
    let spans = runtime.block_on(history.archive.spans()).map_err(one)?;
    engine.advance(spans.iter().map(|(_, (_, last))| *last).max().unwrap_or(Micros::MIN));
    engine.backtest(&history, from).map_err(one)?;
    let mut findings = engine.tick(&history).map_err(one)?;
    if let Some((detection, problem)) = engine.take_problems().into_iter().next() {
        return Err(one(Error::user(format!("{detection}: {problem}"))));
    }
    findings.extend(scheduled(&engine, &runtime, &history.archive, &spans, (from, to), &dimensions, &args.rules.fingerprinter()?).map_err(one)?);
    findings.retain(|finding| finding.alert_time >= from && finding.alert_time < to);
    let allow = AllowList::of(&dimensions);
    let mut book = alerts_of(&findings, allow.clone());
    if args.late {
        let everything = Window { after: Micros::MIN, until: Micros::MAX };
        let settings = Settings { dimensions: &dimensions, fingerprinter: &args.rules.fingerprinter()?, allow: &allow, budget: 4 << 30 };
        let (added, problems) = sweep(&detections, everything, &history, &spans, &settings)?;
        for (detection, problem) in problems {
            eprintln!("keyfuse: {detection}: {problem}");
        }
        let within = |alert: &Alert| alert.first_time >= from && alert.first_time < to;
        book.take_late(added.into_iter().filter(within).collect(), keyfuse::clock::now());
    }
    let style = Style { colour: coloured() };
    let mut out = std::io::stdout().lock();
    for alert in book.all() {
        let detection = detections.iter().find(|d| d.name == alert.detection);
        let _ = match args.json {
            true => writeln!(out, "{}", alert.document(detection)),
            false => writeln!(out, "{}", style.alert(alert, detection, None, false)),
        };
    }
    let allowed: u64 = book.allowed().values().sum();
    let undecided = match engine.undecided() {
        0 => String::new(),
        keys => format!(", {keys} keys with results that wait for rows which may still come"),
    };
    eprintln!("{} alerts, {allowed} findings allowed{undecided}", book.len());
    Ok(if book.is_empty() { Outcome::Clean } else { Outcome::Found })
}

/// Asks the detections with a schedule about every moment between the bounds for which there are rows.
fn scheduled(
    engine: &Engine,
    runtime: &tokio::runtime::Runtime,
    archive: &Arc<Archive>,
    spans: &[Span],
    (from, to): (Micros, Micros),
    dimensions: &Dimensions,
    fingerprinter: &Fingerprinter,
) -> Result<Vec<Finding>, Error> {
    let (Some(first), Some(last)) = (spans.iter().map(|(_, (first, _))| *first).min(), spans.iter().map(|(_, (_, last))| *last).max()) else {
        return Ok(Vec::new());
    };
    let mut findings = Vec::new();
    for detection in engine.scheduled() {
        for at in schedule::moments(detection, first.max(from.saturating_sub(1)), last.min(to), usize::MAX >> 1) {
            let (asked, past, known, fingerprinter) = (Arc::clone(detection), Past::Archive(Arc::clone(archive)), dimensions.clone(), fingerprinter.clone());
            // On the runtime's own threads: their stacks are deep enough for any plan.
            let work = async move { tokio::spawn(async move { schedule::ask(&asked, at, &past, &known, &fingerprinter).await }).await };
            findings.extend(runtime.block_on(work).map_err(|_| Error::bug("a scheduled detection panicked"))??);
        }
    }
    Ok(findings)
}

fn chosen(args: &Args) -> Result<Vec<Detection>, Vec<Error>> {
    let files: Vec<PathBuf> = args.names.iter().map(PathBuf::from).filter(|path| path.extension().is_some()).collect();
    let mut detections = if files.is_empty() { Vec::new() } else { keyfuse::detect::read_files(&files)? };
    let names: Vec<&String> = args.names.iter().filter(|name| PathBuf::from(name).extension().is_none()).collect();
    if names.is_empty() && !files.is_empty() {
        return Ok(detections);
    }
    let known = args.rules.detections()?;
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
