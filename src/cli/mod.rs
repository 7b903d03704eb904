//! Verbs, arguments and exit codes; each verb is a page of its own.

mod backtest;
mod check;
mod coverage;
mod diff;
mod docs;
mod doctor;
mod explain;
mod explain_format;
mod generate;
mod investigate;
mod learn;
mod place;
mod play;
mod replay;
mod run;
mod sql;
mod terminal;
mod test;
mod top;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use keyfuse::alert::{Alert, AlertBook};
use keyfuse::archive::Archive;
use keyfuse::decode;
use keyfuse::detect::{Detection, read_files, read_folder};
use keyfuse::dimension::{Dimensions, Files, Statement};
use keyfuse::error::Error;
use keyfuse::network::Networks;
use keyfuse::secret::Fingerprinter;
use keyfuse::text::visible_lines;

/// Catches the misuse of AI credentials while it happens.
///
/// Reads cloud, model and exposure logs from Kafka or from files, runs SQL detections over them continuously, keeps
/// everything in a Parquet archive that you can ask in SQL, and says what it could not see.
///
/// Try it: `keyfuse run --demo`. Look at files: `keyfuse replay LOGS…`. Ask: `keyfuse sql --from LOGS… "SELECT …"`.
#[derive(Parser)]
#[command(version, max_term_width = 120, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// How much to log: error, warn, info, debug, or a filter such as `keyfuse=debug`.
    #[arg(long, global = true, default_value = "warn", env = "KEYFUSE_LOG")]
    log: String,
}

const EXIT_CODES: &str =
    "Exit codes: 0 all is well; 1 findings, failed tests or refused files, as the verb says; 2 bad arguments, settings or input; 3 something outside failed.";

#[derive(Subcommand)]
enum Verb {
    /// Run the service: consume, detect, archive, alert.
    Run(run::Args),
    /// Run the detections over log files; exit 1 if anything was found.
    Replay(replay::Args),
    /// Ask SQL of the archive or of log files; a prompt without a query.
    Sql(sql::Args),
    /// What would a detection have found in the archive?
    Backtest(backtest::Args),
    /// Run the tests inside detection files.
    Test(test::Args),
    /// Check config and detections without touching a broker.
    Check(check::Args),
    /// Which framework items the detections serve, and which logs they need and get.
    Coverage(coverage::Args),
    /// Which alerts a changed detection gains and loses, over the archive.
    Diff(diff::Args),
    /// What can be seen with the logs that arrive, what cannot, and what to switch on.
    Doctor(doctor::Args),
    /// Why an alert came: every row, clause and moment; or why a detection did not see an event.
    Explain(explain::Args),
    /// Show what is recognised in log files, which columns it fills, and what is left over.
    ExplainFormat(explain_format::Args),
    /// One page about a key, identity, agent, trace or alert.
    Investigate(investigate::Args),
    /// Watch a running service on the terminal: rates, lag, what is blind, alerts as they come.
    Top(top::Args),
    /// Propose an inventory of agents from what was seen.
    Learn(learn::Args),
    /// Write a seeded story of logs with a truth file.
    Generate(generate::Args),
    /// Print generated pages: detections, tables, man page, shell completions.
    Docs(docs::Args),
}

/// Alerts of each detection.
fn by_detection<'a>(alerts: impl Iterator<Item = &'a Alert>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    alerts.for_each(|alert| *counts.entry(alert.detection.clone()).or_default() += 1);
    counts
}

/// Counts, each before its name.
fn list(counts: &BTreeMap<String, u64>) -> String {
    match counts.is_empty() {
        true => "0".to_owned(),
        false => counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", "),
    }
}

/// Which alerts over files or an archive are held back, and why: there is nobody to ask for silence or to promote.
fn held_back(book: &AlertBook) -> Option<String> {
    let held = by_detection(book.all().into_iter().filter(|alert| alert.held.is_some()));
    (!held.is_empty()).then(|| format!("{}: the past that they are measured against is not there whole", list(&held)))
}

/// Where detections and the allow-list come from.
#[derive(clap::Args)]
struct Rules {
    /// Folder of detection files, or single files. Default: the detections that came with this program.
    #[arg(long = "detections", value_name = "PATH")]
    detections: Vec<PathBuf>,
    /// Accepted findings, with owner, reason and end (TOML or CSV).
    #[arg(long, value_name = "FILE")]
    allow_list: Option<PathBuf>,
    /// Inventory of agents and services: what each may do (TOML or CSV).
    #[arg(long, value_name = "FILE")]
    agents: Option<PathBuf>,
    /// Work approved in advance (TOML or CSV).
    #[arg(long, value_name = "FILE")]
    approvals: Option<PathBuf>,
    /// Logs that ought to arrive (TOML or CSV).
    #[arg(long, value_name = "FILE")]
    expected_sources: Option<PathBuf>,
    /// To whom addresses belong: MaxMind-format files, or CSV with network, asn, country.
    #[arg(long, value_name = "FILE")]
    networks: Vec<PathBuf>,
    /// Mapping file: a log format of your own.
    #[arg(long = "mapping", value_name = "FILE")]
    mappings: Vec<PathBuf>,
    /// Key that secrets are fingerprinted with, as written by `keyfuse run`. Without it a public key is used.
    #[arg(long, value_name = "FILE")]
    fingerprint_key: Option<PathBuf>,
}

impl Rules {
    fn detections(&self) -> Result<Vec<Detection>, Vec<Error>> {
        match &self.detections[..] {
            [] => shipped(),
            [folder] if folder.is_dir() => read_folder(folder),
            files => {
                if let Some(folder) = files.iter().find(|path| path.is_dir()) {
                    return Err(vec![Error::user(format!("{}: name one folder, or files", folder.display()))]);
                }
                read_files(files)
            }
        }
    }

    fn files(&self) -> Files {
        Files {
            agents: self.agents.clone(),
            approvals: self.approvals.clone(),
            allow_list: self.allow_list.clone(),
            expected_sources: self.expected_sources.clone(),
        }
    }

    fn dimensions(&self) -> Result<Dimensions, Vec<Error>> {
        Dimensions::read(&self.files())
    }

    /// What files and, in this archive, topics state.
    fn dimensions_of(&self, runtime: &tokio::runtime::Runtime, archive: &Archive) -> Result<Dimensions, Vec<Error>> {
        let mut dimensions = self.dimensions()?;
        let archived = runtime.block_on(archive.all(&keyfuse::table::statements::TABLE)).map_err(|error| vec![error])?;
        for error in dimensions.add_statements(&Statement::of_rows(&archived)) {
            eprintln!("keyfuse: a statement was left out: {error}");
        }
        Ok(dimensions)
    }

    fn decoding(&self) -> Result<decode::Settings, Vec<Error>> {
        let one = |error: Error| vec![error];
        Ok(decode::Settings {
            fingerprinter: self.fingerprinter()?,
            networks: Arc::new(Networks::open(&self.networks).map_err(one)?),
            mappings: decode::read_mappings(&self.mappings).map_err(one)?,
            keep_raw: true,
        })
    }

    /// The format of that name, a mapping file's among them; `auto` is none.
    fn format(&self, name: &str, decoding: &decode::Settings) -> Result<Option<&'static dyn decode::Format>, Vec<Error>> {
        let all = || decoding.mappings.iter().chain(decode::FORMATS).copied();
        match (name, all().find(|format| format.name() == name)) {
            ("auto", _) => Ok(None),
            (_, Some(format)) => Ok(Some(format)),
            (_, None) => {
                let known: Vec<&str> = all().map(|format| format.name()).collect();
                Err(vec![Error::user(format!("--format {name}: no such log format; write auto or one of {}", known.join(", ")))])
            }
        }
    }

    fn fingerprinter(&self) -> Result<Fingerprinter, Vec<Error>> {
        match &self.fingerprint_key {
            Some(path) if path.exists() => Fingerprinter::from_file(path).map_err(|error| vec![error]),
            Some(path) => Err(vec![Error::user(format!("{}: no such fingerprint key", path.display()))]),
            None => Ok(Fingerprinter::public()),
        }
    }
}

/// The detections compiled into the program, so that it works from anywhere.
fn shipped() -> Result<Vec<Detection>, Vec<Error>> {
    let parsed = keyfuse::shipped::detections().into_iter().map(|(name, text)| Detection::parse(text, Path::new(name)));
    let (good, bad): (Vec<_>, Vec<_>) = parsed.partition(Result::is_ok);
    if bad.is_empty() { Ok(good.into_iter().filter_map(Result::ok).collect()) } else { Err(bad.into_iter().filter_map(Result::err).collect()) }
}

/// How a verb ended well.
enum Outcome {
    Clean,
    /// Findings, failures: what exit code 1 stands for.
    Found,
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    #[cfg(unix)]
    if !matches!(cli.verb, Verb::Run(_)) {
        // A reader that has seen enough (`| head`) ends the program quietly, as it does other tools.
        // SAFETY: sets the default action of one signal, before any other thread runs.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    // A bare level is about keyfuse; libraries speak up only when something is wrong.
    let wanted = if cli.log.contains(['=', ',']) { cli.log.clone() } else { format!("warn,keyfuse={},keyfuse::audit=info", cli.log) };
    let filter = tracing_subscriber::EnvFilter::try_new(&wanted).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    let outcome = match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Replay(args) => replay::run(args),
        Verb::Sql(args) => sql::run(args),
        Verb::Investigate(args) => investigate::run(args),
        Verb::Top(args) => top::run(args),
        Verb::Backtest(args) => backtest::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Check(args) => check::run(args),
        Verb::Coverage(args) => coverage::run(args),
        Verb::Diff(args) => diff::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Explain(args) => explain::run(args),
        Verb::ExplainFormat(args) => explain_format::run(args),
        Verb::Learn(args) => learn::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Docs(args) => docs::run(args, Cli::command()),
    };
    match outcome {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(1),
        Err(errors) => {
            for error in &errors {
                eprintln!("keyfuse: {}", visible_lines(&error.to_string()));
            }
            let outside = errors.iter().any(|error| error.fault != keyfuse::error::Fault::User);
            ExitCode::from(if outside { 3 } else { 2 })
        }
    }
}

/// Refuses a folder that holds no archive: an empty answer from the wrong place would read as a clean bill of health.
fn must_be_archive(place: &str) -> Result<(), Vec<Error>> {
    if place.contains("://") || Path::new(place).join("rejects/_delta_log").is_dir() {
        return Ok(());
    }
    Err(vec![Error::user(format!("{place}: no archive there; name one with --archive"))])
}

/// A runtime for verbs that read files and archives.
fn runtime() -> Result<tokio::runtime::Runtime, Vec<Error>> {
    keyfuse::query::runtime().map_err(|error| vec![error])
}
