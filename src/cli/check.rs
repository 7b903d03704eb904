//! `keyfuse check`: config and detections, without touching a broker.

use std::path::PathBuf;

use keyfuse::alert::AllowList;
use keyfuse::archive::Location;
use keyfuse::config::Config;
use keyfuse::coverage::{frameworks, unknown_tags};
use keyfuse::detect::{Engine, read_folder};
use keyfuse::dimension::Dimensions;
use keyfuse::error::{At, Error};
use keyfuse::source::kafka::client_config;
use rdkafka::consumer::BaseConsumer;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules};

/// Check config and detections without touching a broker; exit 2 if anything is wrong.
#[derive(clap::Args)]
pub struct Args {
    /// Config file to check; its detections folder is checked too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    rules: Rules,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    args.rules.decoding()?;
    let mut dimensions = args.rules.dimensions()?;
    let detections = match &args.config {
        Some(path) => {
            let config = Config::read(path)?;
            let one = |error: Error| vec![error];
            // librdkafka judges its own settings; nothing is sent before a subscription.
            client_config(&config.kafka)
                .and_then(|settings| settings.create::<BaseConsumer>().user_at(|| format!("{}: [kafka]", path.display())))
                .map_err(one)?;
            if config.archive.contains("://") {
                Location::parse(&config.archive, &config.archive_options).map_err(one)?;
            }
            dimensions = Dimensions::read(&config.known)?;
            println!("{}: good; reads {} topics, archives to {}", path.display(), config.topics.len(), config.archive);
            read_folder(&config.detections)?
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
    Ok(Outcome::Clean)
}
