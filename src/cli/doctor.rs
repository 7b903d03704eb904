//! `keyfuse doctor`: one page on what can be seen, what cannot, and what to switch on.

use std::sync::Arc;

use keyfuse::detect::Engine;
use keyfuse::doctor::{Gap, Report, examine};
use keyfuse::error::Error;
use keyfuse::query::{Limits, on_deep_stacks};
use keyfuse::text::visible;

use super::Outcome;
use super::place::Place;
use super::terminal::{Style, coloured};

/// What can be seen with the logs that arrive, what cannot, and what to switch on, in order of value.
///
/// Exit code 1 if the rows prove a gap.
#[derive(clap::Args)]
pub struct Args {
    /// Write the page as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let detections = args.place.rules.detections()?;
    let place = args.place.open(Limits::default())?;
    let engine = Arc::new(Engine::new(&detections, &args.place.rules.fingerprinter()?, &place.dimensions)?);
    let (looked, door, dimensions) = (Arc::clone(&engine), place.door.clone(), place.dimensions.clone());
    let report = on_deep_stacks(&place.runtime, async move { examine(&door, &looked, &dimensions).await }).map_err(|error| vec![error])?;
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
            println!("{:>3}. {}: {}", number + 1, style.bold(gap.name), visible(&gap.evidence));
            list(&gap.places, 6, |places| println!("     {}", visible(places)));
            list(&gap.detections, 12, |names| {
                println!("     {}, of {detections}: {names}", if gap.proven { "blind or half blind" } else { "it would matter to" })
            });
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
