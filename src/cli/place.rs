//! Where a verb asks its questions: an archive, or log files.

use std::collections::HashMap;

use keyfuse::archive::Archive;
use keyfuse::dimension::Dimensions;
use keyfuse::error::Error;
use keyfuse::query::{Answer, Door, Limits, Rows, on_deep_stacks};
use keyfuse::replay::{Settings, replay};
use keyfuse::source::files;

use super::{Rules, runtime};

#[derive(clap::Args)]
pub struct Place {
    /// Log files instead of the archive: folders, globs, gzip, s3://…
    #[arg(long, value_name = "PATH")]
    from: Vec<String>,
    /// Log format of --from.
    #[arg(long, default_value = "auto")]
    log_format: String,
    /// Archive: a folder or a URL.
    #[arg(long, default_value = "keyfuse-data/archive")]
    archive: String,
    #[command(flatten)]
    pub rules: Rules,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

/// An open door, and what is known of the own world.
pub struct Open {
    pub runtime: tokio::runtime::Runtime,
    pub door: Door,
    pub dimensions: Dimensions,
}

impl Place {
    /// Opens the archive, or reads the files; says how many of their records were refused.
    pub fn open(&self, limits: Limits) -> Result<Open, Vec<Error>> {
        let one = |error: Error| vec![error];
        let (fingerprinter, stated) = (self.rules.fingerprinter()?, self.rules.dimensions()?);
        let options: HashMap<String, String> = self.storage_options.iter().cloned().collect();
        let runtime = runtime()?;
        if self.from.is_empty() {
            super::must_be_archive(&self.archive)?;
            let archive = runtime.block_on(Archive::open(&self.archive, &options)).map_err(one)?;
            let door = runtime.block_on(Door::open(Rows::Archive(&archive), &stated, &fingerprinter, limits)).map_err(one)?;
            let dimensions = self.rules.dimensions_of(&runtime, &archive)?;
            return Ok(Open { runtime, door, dimensions });
        }
        let inputs = runtime.block_on(files::resolve(&self.from, &options)).map_err(one)?;
        let decoding = self.rules.decoding()?;
        let format = self.rules.format(&self.log_format, &decoding)?;
        let replayed = replay(&inputs, Settings { format, decoding, dimensions: Dimensions::default(), detections: &[] }, runtime.handle(), |_, _| {})?;
        let refused: u64 = replayed.summary.rejects.values().sum();
        if refused > 0 {
            eprintln!("keyfuse: {refused} of {} records were refused and are not in the answer; see the table rejects", replayed.summary.records());
        }
        let door = runtime.block_on(Door::open(Rows::Memory(&replayed.rows), &stated, &fingerprinter, limits)).map_err(one)?;
        Ok(Open { runtime, door, dimensions: stated })
    }
}

impl Open {
    /// Asks one question.
    pub fn ask(&self, sql: &str) -> Result<Answer, Vec<Error>> {
        let (door, sql) = (self.door.clone(), sql.to_owned());
        on_deep_stacks(&self.runtime, async move { door.ask(&sql).await }).map_err(|error| vec![error])
    }
}
