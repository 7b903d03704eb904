//! `keyfuse generate`: a seeded story with its truth.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};

use keyfuse::clock::parse_length;
use keyfuse::clock::parse_time;
use keyfuse::error::{At, Error, Result};
use keyfuse::generate::{self, Generated, tell};

use super::Outcome;

/// Write a seeded story of logs with a truth file. The same seed gives the same bytes.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write the logs to, one file each, with truth.ndjson, agents.toml and approvals.toml.
    #[arg(long, required_unless_present = "play")]
    out: Option<PathBuf>,
    /// Instead: play the demo's story into this Kafka, as if it happened now, then ordinary traffic until interrupted.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "out")]
    play: Option<String>,
    /// How many times faster than life it is played.
    #[arg(long, default_value = "20", requires = "play", value_parser = clap::value_parser!(u32).range(1..=1000))]
    speed: u32,
    /// The story.
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
    /// Nothing bad at all.
    Ordinary,
    /// A leaked key, raced, used and cut off too late.
    Llmjacking,
    /// A document with instructions; a chain of agents reads a corpus and sends it out.
    Injection,
    /// Somebody inside reuses the identity of a batch job.
    Insider,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let Some(out) = &args.out else {
        let stop = AtomicBool::new(false);
        super::play::play(&args.play.unwrap_or_default(), i64::from(args.speed), false, &stop, &AtomicU64::new(0)).map_err(|error| vec![error])?;
        return Ok(Outcome::Clean);
    };
    let start = parse_time(&args.start).ok_or_else(|| vec![Error::user(format!("--start `{}` is not a time", args.start))])?;
    let length = parse_length(&args.length).filter(|l| *l > 0).ok_or_else(|| vec![Error::user(format!("--length `{}`: write 20m or 2h", args.length))])?;
    let story = match args.story {
        Story::Ordinary => generate::Story::Ordinary,
        Story::Llmjacking => generate::Story::Llmjacking,
        Story::Injection => generate::Story::Injection,
        Story::Insider => generate::Story::Insider,
    };
    let world = tell(story, args.seed, start, length, args.events);
    let truth: Vec<Generated> = world.truth.iter().map(|act| Generated { event_time: 0, append_time: 0, text: act.to_string() }).collect();
    std::fs::create_dir_all(out).at(|| format!("creating {}", out.display())).map_err(|error| vec![error])?;
    for (name, records) in world.logs() {
        write(&out.join(format!("{name}.jsonl")), records).map_err(|error| vec![error])?;
    }
    // Under another ending: it is no log, and `*.jsonl` must not take it for one.
    write(&out.join("truth.ndjson"), &truth).map_err(|error| vec![error])?;
    for (name, text) in [("agents.toml", &world.agents), ("approvals.toml", &world.approvals)] {
        let path = out.join(name);
        std::fs::write(&path, text).at(|| format!("writing {}", path.display())).map_err(|error| vec![error])?;
    }
    let counts: Vec<String> = world.logs().iter().map(|(name, records)| format!("{} {name}", records.len())).collect();
    eprintln!("{}; {} planted acts", counts.join(", "), world.truth.len());
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
