//! `keyfuse check`: config and detections, without touching a broker.

use std::path::PathBuf;

use keyfuse::config::Config;
use keyfuse::detect::{Engine, read_folder};
use keyfuse::error::Error;

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
    let detections = match &args.config {
        Some(path) => {
            let config = Config::read(path)?;
            println!("{}: good; reads {} topics, archives to {}", path.display(), config.topics.len(), config.archive);
            read_folder(&config.detections)?
        }
        None => args.rules.detections()?,
    };
    let engine = Engine::new(&detections, &args.rules.fingerprinter()?)?;
    let style = Style { colour: coloured() };
    for (detection, analysis) in engine.detections() {
        println!("{:<8} {}\n         {}", style.bold(&detection.name), detection.title, style.dim(&analysis.to_string()));
    }
    let (conjuncts, scans) = engine.filter_size();
    println!("{} detections; {scans} scans share {conjuncts} predicates", detections.len());
    Ok(Outcome::Clean)
}
