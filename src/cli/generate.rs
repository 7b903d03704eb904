//! `keyfuse generate`: a seeded story with its truth.

use std::io::Write;
use std::path::PathBuf;

use keyfuse::clock::parse_length;
use keyfuse::clock::parse_time;
use keyfuse::clock::{Micros, SECOND};
use keyfuse::error::{At, Error, Result};
use keyfuse::generate::{Generated, llmjacking, ordinary};

use super::Outcome;

/// Write a seeded story of logs with a truth file. The same seed gives the same bytes.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write cloudtrail.jsonl, exposure_reports.jsonl and truth.jsonl to.
    #[arg(long)]
    out: PathBuf,
    /// llmjacking: a leaked key, raced, used and cut off too late. ordinary: nothing bad at all.
    #[arg(long, value_enum, default_value = "llmjacking")]
    story: Story,
    #[arg(long, default_value = "7")]
    seed: u64,
    /// Ordinary events around the story.
    #[arg(long, default_value = "300")]
    events: usize,
    /// When the story starts.
    #[arg(long, default_value = "2026-05-01T10:00:00Z")]
    start: String,
    /// How long it takes.
    #[arg(long, default_value = "20m")]
    length: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Story {
    Llmjacking,
    Ordinary,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let start = parse_time(&args.start).ok_or_else(|| vec![Error::user(format!("--start `{}` is not a time", args.start))])?;
    let length = parse_length(&args.length).filter(|l| *l > 0).ok_or_else(|| vec![Error::user(format!("--length `{}`: write 20m or 2h", args.length))])?;
    let world = match args.story {
        Story::Llmjacking => llmjacking(args.seed, start, length, args.events),
        Story::Ordinary => ordinary(args.seed, start, length, args.events),
    };
    let truth: Vec<Generated> = world.truth.iter().map(|act| Generated { event_time: 0, append_time: 0, text: act.to_string() }).collect();
    std::fs::create_dir_all(&args.out).at(|| format!("creating {}", args.out.display())).map_err(|error| vec![error])?;
    for (name, records) in [("cloudtrail", &world.cloudtrail), ("exposure_reports", &world.exposure_reports), ("truth", &truth)] {
        write(&args.out.join(format!("{name}.jsonl")), records).map_err(|error| vec![error])?;
    }
    let last = world.cloudtrail.iter().map(|record| record.append_time).max().unwrap_or(0);
    eprintln!(
        "{} CloudTrail records, {} reports, {} planted acts over {} s",
        world.cloudtrail.len(),
        world.exposure_reports.len(),
        world.truth.len(),
        (last - start as Micros) / SECOND
    );
    Ok(Outcome::Clean)
}

fn write(path: &std::path::Path, records: &[Generated]) -> Result<()> {
    let place = || format!("writing {}", path.display());
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).at(place)?);
    for record in records {
        writeln!(file, "{}", record.text).at(place)?;
    }
    file.flush().at(place)
}
