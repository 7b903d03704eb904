//! `keyfuse replay`: the detections over log files.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};

use keyfuse::decode;
use keyfuse::detect::Level;
use keyfuse::error::Error;
use keyfuse::replay::{Replayed, Settings, replay};
use keyfuse::source::files;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, by_detection, held_back, list, runtime};

/// Run the detections over log files; exit 1 if anything was found.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  keyfuse replay AWSLogs/\n  keyfuse replay 's3://trail/AWSLogs/**' --output json --fail-on high\n  zcat trail.json.gz | keyfuse replay -"
)]
pub struct Args {
    /// Files, folders, globs, `-` for standard input, or URLs such as s3://bucket/prefix; plain or gzip.
    #[arg(required = true)]
    paths: Vec<String>,
    /// Log format; `auto` looks at each record.
    #[arg(long, default_value = "auto")]
    format: String,
    #[command(flatten)]
    rules: Rules,
    /// How alerts are written to standard output; `json` has those too that are held back (`held` says why).
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Lowest level that makes the exit code 1; `never` for always 0.
    #[arg(long, value_enum, default_value = "informational")]
    fail_on: FailOn,
    /// Option of the object store, as NAME=VALUE (region, endpoint, …).
    #[arg(long = "storage-option", value_parser = option)]
    storage_options: Vec<(String, String)>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Human,
    Json,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FailOn {
    Informational,
    Low,
    Medium,
    High,
    Critical,
    Never,
}

pub fn option(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write NAME=VALUE".to_owned())
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let detections = args.rules.detections()?;
    let decoding = decode::Settings { keep_raw: false, ..args.rules.decoding()? };
    let settings = Settings { format: args.rules.format(&args.format, &decoding)?, decoding, dimensions: args.rules.dimensions()?, detections: &detections };
    let options: HashMap<String, String> = args.storage_options.iter().cloned().collect();
    let runtime = runtime()?;
    let inputs = runtime.block_on(files::resolve(&args.paths, &options)).map_err(|error| vec![error])?;
    let total = inputs.iter().map(|input| input.bytes).sum();
    let bar = if std::io::stderr().is_terminal() { indicatif::ProgressBar::new(total) } else { indicatif::ProgressBar::hidden() };
    if let Ok(style) = indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}") {
        bar.set_style(style);
    }
    let replayed = replay(&inputs, settings, runtime.handle(), |input, bytes| {
        bar.inc(bytes);
        bar.set_message(input.name.to_string());
    })?;
    bar.finish_and_clear();
    let by_name: HashMap<&str, &keyfuse::detect::Detection> = detections.iter().map(|d| (d.name.as_str(), d)).collect();
    let style = Style { colour: coloured() };
    let mut out = std::io::stdout().lock();
    for alert in replayed.book.all() {
        let detection = by_name.get(alert.detection.as_str()).copied();
        let _ = match args.output {
            Output::Human if alert.held.is_some() => Ok(()),
            Output::Human => writeln!(out, "{}", style.alert(alert, detection, None, true)),
            Output::Json => writeln!(out, "{}", alert.document(detection)),
        };
    }
    eprint!("{}", summary(&replayed));
    let scheduled: Vec<&str> = detections.iter().filter(|detection| detection.schedule.is_some()).map(|detection| detection.name.as_str()).collect();
    if !scheduled.is_empty() {
        eprintln!("not asked  {}: they have a schedule, and are asked over an archive (`keyfuse backtest`)", scheduled.join(" "));
    }
    if let Some((detection, problem)) = replayed.summary.problems.first() {
        return Err(vec![Error::bug(format!("{detection} failed on these rows, its answer is not complete: {problem}"))]);
    }
    let bar = match args.fail_on {
        FailOn::Never => return Ok(Outcome::Clean),
        FailOn::Informational => Level::Informational,
        FailOn::Low => Level::Low,
        FailOn::Medium => Level::Medium,
        FailOn::High => Level::High,
        FailOn::Critical => Level::Critical,
    };
    let found = replayed.book.told().any(|alert| Level::parse(&alert.level) >= Some(bar));
    Ok(if found { Outcome::Found } else { Outcome::Clean })
}

fn summary(replayed: &Replayed) -> String {
    let summary = &replayed.summary;
    let alerts = by_detection(replayed.book.told());
    let tables: BTreeMap<String, u64> = summary.rows.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let allowed: BTreeMap<String, u64> = replayed.book.allowed().iter().map(|(name, count)| (name.clone(), *count)).collect();
    format!(
        "records    {} in {} files, {:.1} MB\nrows       {}\nduplicates {}\nlate       {}\nrepaired   {}\nrejects    {}\nalerts     {}\nheld back  {}\nundecided  {}\nallowed    {}\nrate       {:.0} records/s, {:.1} MB/s\n",
        summary.records(),
        summary.files,
        summary.bytes as f64 / 1e6,
        list(&tables),
        summary.duplicates,
        summary.late,
        summary.flagged,
        list(&summary.rejects),
        list(&alerts),
        held_back(&replayed.book).map_or_else(|| "0".into(), |held| format!("{held} (--output json shows them)")),
        match summary.undecided {
            0 => "0".to_owned(),
            keys => format!("{keys} keys with results that wait for rows which may still come"),
        },
        list(&allowed),
        summary.records() as f64 / summary.seconds.max(1e-9),
        summary.bytes as f64 / 1e6 / summary.seconds.max(1e-9),
    )
}
