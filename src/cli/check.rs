//! `keyfuse check`: config and detections, without touching a broker.

use std::path::PathBuf;

use keyfuse::alert::AllowList;
use keyfuse::archive::Location;
use keyfuse::clock::{DAY, Micros, spoken};
use keyfuse::config::Config;
use keyfuse::coverage::{frameworks, unknown_tags};
use keyfuse::detect::analyse::Class;
use keyfuse::detect::{Detection, Engine, read_folder};
use keyfuse::dimension::Dimensions;
use keyfuse::error::{At, Error};
use keyfuse::sink::Kind;
use keyfuse::source::kafka::client_config;
use rdkafka::consumer::BaseConsumer;

use super::backtest::OpenPast;
use super::terminal::{Style, coloured};
use super::{Outcome, Rules, by_detection, held_back};

/// Check config and detections without touching a broker; exit 2 if anything is wrong.
#[derive(clap::Args)]
pub struct Args {
    /// Config file to check; its detections folder is checked too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run the detections over an archive and say what they would cost and how often they would alert.
    #[arg(long, value_name = "ARCHIVE")]
    against: Option<String>,
    #[command(flatten)]
    rules: Rules,
}

/// How much of the archive `--against` looks at.
const ADMISSION: Micros = 30 * DAY;

/// What each detection would keep, cost and raise, measured on the last thirty days of an archive.
fn admission(place: &str, detections: &[Detection], rules: &Rules) -> Result<(), Vec<Error>> {
    let past = OpenPast::open(place, &[], rules, (Micros::MIN, Micros::MAX))?;
    let Some((first, last)) = past.span() else { return Err(vec![Error::user(format!("{place}: it holds no rows to measure on"))]) };
    let from = first.max(last.saturating_sub(ADMISSION));
    // Where all of it is looked at, buckets that begin before the first row count too.
    let past = past.since(if from == first { Micros::MIN } else { from });
    let days = (last - from) as f64 / DAY as f64;
    if days < 1.0 {
        println!("\nless than a day of rows: alerts per day are a guess from it (from an hour at least)");
    }
    println!(
        "\nover {} of {place}\n{:<8} {:>5} {:>12} {:>12} {:>10} {:>8}",
        spoken(last - from),
        "",
        "class",
        "kept rows/s",
        "largest key",
        "alerts/day",
        "time"
    );
    let (book, engine) = past.alerts(detections, false)?;
    let (reports, told) = (engine.report(), by_detection(book.told()));
    let busy: f64 = reports.iter().map(|report| report.tally.busy.as_secs_f64()).sum();
    for report in &reports {
        let per_second = report.tally.candidates as f64 / (days * 86_400.0).max(1.0);
        let per_day = told.get(&report.detection).copied().unwrap_or_default() as f64 / days.max(1.0 / 24.0);
        if report.class == Class::C4 {
            println!("{:<8} {:>5} {:>12} {:>12} {per_day:>10.2} {:>8}", report.detection, "C4", "archive", "-", "-");
            continue;
        }
        let share = if busy > 0.0 { report.tally.busy.as_secs_f64() / busy * 100.0 } else { 0.0 };
        println!(
            "{:<8} {:>5} {per_second:>12.4} {:>12} {per_day:>10.2} {share:>7.1}%",
            report.detection,
            format!("{:?}", report.class),
            engine.largest_key(&report.detection)
        );
    }
    println!("kept rows/s: rows that pass the predicates; largest key: rows kept under one key at a time; time: share of all evaluation");
    if let Some(held) = held_back(&book) {
        println!("not among the alerts, for they would be held back: {held}");
    }
    Ok(())
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    args.rules.decoding()?;
    let mut dimensions = args.rules.dimensions()?;
    let detections = match &args.config {
        Some(path) => {
            let config = Config::read(path)?;
            let one = |error: Error| vec![error];
            let mut problems: Vec<Error> = Vec::new();
            // librdkafka judges its own settings; without servers there is nobody to connect to.
            let kafka = client_config(&config.kafka).map_err(one)?;
            let mut judged = kafka.clone();
            judged.remove("bootstrap.servers");
            problems.extend(judged.create::<BaseConsumer>().user_at(|| format!("{}: [kafka]", path.display())).err());
            if config.archive.contains("://") {
                problems.extend(Location::parse(&config.archive, &config.archive_options).err());
            }
            dimensions = Dimensions::read(&config.known).unwrap_or_else(|errors| {
                problems.extend(errors);
                Dimensions::default()
            });
            // What can be opened without a broker: templates, files of secrets, the door's key and certificate.
            for sink in config.sinks.iter().filter(|sink| !matches!(sink.kind, Kind::Ndjson { .. } | Kind::Kafka { .. })) {
                let at = |error| Error::user(format!("{}: sink {}", path.display(), sink.name)).because(error);
                problems.extend(sink.open(&kafka).err().map(at));
            }
            problems.extend(config.sql.as_ref().and_then(|(door, _)| door.opens().err()));
            let detections = read_folder(&config.detections).unwrap_or_else(|errors| {
                problems.extend(errors);
                Vec::new()
            });
            let unknown: Vec<&str> = if detections.is_empty() { Vec::new() } else { config.unknown_detections(&detections).collect() };
            if !unknown.is_empty() {
                problems.push(Error::user(format!("{}: [levels] or [[silences]] name {}: no such detection", path.display(), unknown.join(", "))));
            }
            if !problems.is_empty() {
                return Err(problems);
            }
            println!("{}: good; reads {} topics, archives to {}", path.display(), config.topics.len(), config.archive);
            detections
        }
        None => args.rules.detections()?,
    };
    let engine = Engine::new(&detections, &args.rules.fingerprinter()?, &dimensions)?;
    AllowList::of(&dimensions).fits(&engine)?;
    let known = frameworks().map_err(|error| vec![error])?;
    for detection in &detections {
        let unknown = unknown_tags(detection, &known);
        if !unknown.is_empty() {
            println!("{}: no framework has {}; `keyfuse coverage` cannot count them", detection.name, unknown.join(", "));
        }
    }
    let style = Style { colour: coloured() };
    for (detection, analysis) in engine.detections() {
        println!("{:<8} {}\n         {}", style.bold(&detection.name), detection.title, style.dim(&analysis.to_string()));
    }
    let (conjuncts, scans) = engine.filter_size();
    println!("{} detections; {scans} scans share {conjuncts} predicates", detections.len());
    if let Some(place) = &args.against {
        admission(place, &detections, &args.rules)?;
    }
    Ok(Outcome::Clean)
}
