//! `keyfuse doctor`: one page on what can be seen, what cannot, and what to switch on.

use std::collections::HashMap;
use std::sync::Arc;

use keyfuse::archive::Archive;
use keyfuse::detect::Engine;
use keyfuse::doctor::{Gap, Report, examine};
use keyfuse::error::Error;
use keyfuse::query::{Door, Limits, Rows};
use keyfuse::replay::{Settings, replay};
use keyfuse::source::files;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, runtime};

/// What can be seen with the logs that arrive, what cannot, and what to switch on, in order of value.
///
/// Exit code 1 if the rows prove a gap.
#[derive(clap::Args)]
pub struct Args {
    /// Look at log files instead of the archive.
    #[arg(long, value_name = "PATH")]
    from: Vec<String>,
    /// Archive to look at: a folder or a URL.
    #[arg(long, default_value = "keyfuse-data/archive")]
    archive: String,
    /// Write the page as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rules: Rules,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let (fingerprinter, detections) = (args.rules.fingerprinter()?, args.rules.detections()?);
    let options: HashMap<String, String> = args.storage_options.iter().cloned().collect();
    let runtime = runtime()?;
    let (door, dimensions) = if args.from.is_empty() {
        super::must_be_archive(&args.archive)?;
        let archive = runtime.block_on(Archive::open(&args.archive, &options)).map_err(one)?;
        let dimensions = args.rules.dimensions_of(&runtime, &archive)?;
        (runtime.block_on(Door::open(Rows::Archive(&archive), &dimensions, &fingerprinter, Limits::default())).map_err(one)?, dimensions)
    } else {
        let inputs = runtime.block_on(files::resolve(&args.from, &options)).map_err(one)?;
        let dimensions = args.rules.dimensions()?;
        let settings = Settings { format: None, decoding: args.rules.decoding()?, dimensions: dimensions.clone(), detections: &[] };
        let rows = replay(&inputs, settings, runtime.handle(), |_, _| {})?.rows;
        (runtime.block_on(Door::open(Rows::Memory(&rows), &dimensions, &fingerprinter, Limits::default())).map_err(one)?, dimensions)
    };
    let engine = Arc::new(Engine::new(&detections, &fingerprinter, &dimensions)?);
    let (looked, known) = (Arc::clone(&engine), dimensions);
    // On the runtime's own threads: their stacks are deep enough for any plan.
    let work = async move { tokio::spawn(async move { examine(&door, &looked, &known).await }).await };
    let report = runtime.block_on(work).map_err(|_| one(Error::bug("looking through the rows panicked")))?.map_err(one)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default()),
        false => page(&report, engine.detections().count()),
    }
    Ok(if report.gaps.iter().any(|gap| gap.proven) { Outcome::Found } else { Outcome::Clean })
}

fn page(report: &Report, detections: usize) {
    let style = Style { colour: coloured() };
    println!("{}", style.bold("You see"));
    for sight in &report.sights {
        println!("  {:<18} {:>9} rows of {} sources, {} to {}", sight.source, sight.rows, sight.places, sight.first, sight.last);
    }
    if report.sights.is_empty() {
        println!("  nothing");
    }
    let (proven, possible): (Vec<&Gap>, Vec<&Gap>) = report.gaps.iter().partition(|gap| gap.proven);
    for (title, gaps) in [("You do not see", proven), ("You may not see (nothing shows that you use it)", possible)] {
        if gaps.is_empty() {
            continue;
        }
        println!("\n{}", style.bold(title));
        for (number, gap) in gaps.iter().enumerate() {
            println!("{:>3}. {}: {}", number + 1, style.bold(gap.name), gap.evidence);
            list(&gap.places, 6, |places| println!("     {places}"));
            list(&gap.detections, 12, |names| println!("     blind or half blind, of {detections}: {names}"));
            println!("     {}", style.dim(&gap.switch_on));
        }
    }
}

fn list(items: &[String], most: usize, show: impl Fn(&str)) {
    if items.is_empty() {
        return;
    }
    let more = items.len().saturating_sub(most);
    let mut shown = items.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        shown.push_str(&format!(" and {more} more"));
    }
    show(&shown);
}
