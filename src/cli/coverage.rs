//! `keyfuse coverage`: what the detections serve, which logs they need, which of those arrive.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use keyfuse::archive::Archive;
use keyfuse::clock::DAY;
use keyfuse::coverage::{Arrival, Coverage, frameworks};
use keyfuse::detect::Engine;
use keyfuse::error::Error;
use keyfuse::table::{DIMENSIONS, STREAMS};

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, runtime};

/// Which framework items the detections serve, which logs they need, and which of those logs arrive.
#[derive(clap::Args)]
pub struct Args {
    /// Archive in which to look for what arrives (default: keyfuse-data/archive where there is one). Without one, arrivals are unknown.
    #[arg(long)]
    archive: Option<String>,
    #[command(flatten)]
    rules: Rules,
    /// How it is written; `navigator` is an ATT&CK Navigator layer.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Table,
    Json,
    Markdown,
    Navigator,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let mut dimensions = args.rules.dimensions()?;
    let detections = args.rules.detections()?;
    let engine = Engine::new(&detections, &args.rules.fingerprinter()?, &dimensions)?;
    let mut arrivals: BTreeMap<String, Arrival> = BTreeMap::new();
    args.rules.decoding()?;
    let usual = "keyfuse-data/archive";
    let archive = match args.archive {
        Some(place) => {
            super::must_be_archive(&place)?;
            Some(place)
        }
        None => Path::new(usual).join("rejects/_delta_log").is_dir().then(|| usual.to_owned()),
    };
    let there = archive.is_some();
    if let Some(place) = archive {
        let runtime = runtime()?;
        let options: HashMap<String, String> = args.storage_options.iter().cloned().collect();
        let archive = std::sync::Arc::new(runtime.block_on(Archive::open(&place, &options)).map_err(one)?);
        dimensions = args.rules.dimensions_of(&runtime, &archive)?;
        let spans = runtime.block_on(archive.spans()).map_err(one)?;
        let latest: Vec<_> =
            STREAMS.iter().map(|table| (table.name, spans.iter().find(|(known, _)| known.name == table.name).map(|(_, (_, last))| *last))).collect();
        let newest = latest.iter().filter_map(|(_, time)| *time).max();
        for (table, time) in latest {
            let arrival = match (time, newest) {
                (None, _) => Arrival::Never,
                (Some(time), Some(newest)) if newest - time < DAY => Arrival::Arriving,
                _ => Arrival::Stopped,
            };
            arrivals.insert(table.to_owned(), arrival);
        }
    }
    let known = |table: &&'static keyfuse::table::Table| (table.name.to_owned(), if dimensions.knows(table) { Arrival::Arriving } else { Arrival::Never });
    arrivals.extend(DIMENSIONS.iter().map(known));
    let coverage = Coverage::of(&engine, &frameworks().map_err(one)?, arrivals);
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&coverage).unwrap_or_default()),
        Format::Navigator => println!("{}", serde_json::to_string_pretty(&coverage.navigator_layer()).unwrap_or_default()),
        Format::Markdown => print!("{}", markdown(&coverage)),
        Format::Table => table(&coverage, there),
    }
    Ok(Outcome::Clean)
}

fn word(arrival: Arrival) -> &'static str {
    match arrival {
        Arrival::Arriving => "arriving",
        Arrival::Stopped => "stopped",
        Arrival::Never => "never seen",
        Arrival::Unknown => "unknown",
    }
}

/// The frameworks in order, each with its items.
fn by_framework(coverage: &Coverage) -> Vec<(String, Vec<&keyfuse::coverage::Item>)> {
    let mut groups: Vec<(String, Vec<&keyfuse::coverage::Item>)> = Vec::new();
    for item in &coverage.items {
        let name = format!("{} {}", item.framework, item.version);
        match groups.last_mut().filter(|(known, _)| *known == name) {
            Some((_, items)) => items.push(item),
            None => groups.push((name, vec![item])),
        }
    }
    groups
}

fn table(coverage: &Coverage, looked: bool) {
    let style = Style { colour: coloured() };
    for (name, items) in by_framework(coverage) {
        let served = items.iter().filter(|item| !item.detections.is_empty()).count();
        println!("{}  {served} of {} listed items served", style.bold(&name), items.len());
        for item in items {
            let which = if item.detections.is_empty() { "—".to_owned() } else { item.detections.join(" ") };
            let blind = !item.detections.is_empty() && matches!(item.seen, Arrival::Never | Arrival::Stopped);
            println!("  {:<22} {}{}", item.tag, item.title, if blind { "  (blind: no detection of it gets all that it reads)" } else { "" });
            println!("  {:<22} {}", "", style.dim(&which));
        }
    }
    println!("\n{}", style.bold("Logs"));
    for table in STREAMS.iter().chain(DIMENSIONS) {
        let readers: Vec<&str> = coverage.detections.iter().filter(|needs| needs.tables.contains(table.name)).map(|needs| needs.detection.as_str()).collect();
        let arrival = coverage.arrivals.get(table.name).copied().unwrap_or(Arrival::Unknown);
        // A dimension is a file that is given or not.
        let word = if STREAMS.iter().any(|stream| stream.name == table.name) {
            word(arrival)
        } else if arrival == Arrival::Arriving {
            "given"
        } else {
            "not given"
        };
        println!("  {:<20} {word:<11} read by {} detections", table.name, readers.len());
    }
    let blind: Vec<&str> =
        coverage.detections.iter().filter(|needs| matches!(needs.seen, Arrival::Never | Arrival::Stopped)).map(|n| n.detection.as_str()).collect();
    match (blind.is_empty(), looked) {
        (true, true) => println!("\nEvery detection gets what it reads."),
        (true, false) => println!("\nNo archive was looked at: name one with --archive to see what arrives."),
        (false, _) => {
            println!("\n{} of {} detections do not get all that they read: {}", blind.len(), coverage.detections.len(), blind.join(" "));
            println!(
                "A log that is missing is switched on at its source, then its topic is named in the config; agents and approvals are files: --agents, --approvals."
            );
        }
    }
}

fn markdown(coverage: &Coverage) -> String {
    use std::fmt::Write as _;
    let mut page = String::from("# Coverage\n");
    for (name, items) in by_framework(coverage) {
        let _ = write!(page, "\n## {name}\n\n| item | title | detections | logs | arriving |\n|---|---|---|---|---|\n");
        for item in items {
            let tables = item.tables.iter().cloned().collect::<Vec<_>>().join(", ");
            let arriving = if item.detections.is_empty() { "" } else { word(item.seen) };
            let _ = writeln!(page, "| {} | {} | {} | {tables} | {arriving} |", item.tag, item.title, item.detections.join(", "));
        }
    }
    let _ =
        write!(page, "\n## Detections and the logs that they need\n\n| detection | level | reads | formats that fill it | arriving |\n|---|---|---|---|---|\n");
    for needs in &coverage.detections {
        let list = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            page,
            "| {} {} | {} | {} | {} | {} |",
            needs.detection,
            needs.title,
            needs.level,
            list(&needs.tables),
            list(&needs.formats),
            word(needs.seen)
        );
    }
    page
}
