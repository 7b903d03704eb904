//! Where a verb asks its questions: an archive, or log files.

use std::collections::HashMap;
use std::sync::Arc;

use keyfuse::archive::Archive;
use keyfuse::detect::Detection;
use keyfuse::dimension::Dimensions;
use keyfuse::error::Error;
use keyfuse::query::{Answer, Door, Doors, Limits, on_deep_stacks, wire};
use keyfuse::replay::{Settings, replay};
use keyfuse::secret::Fingerprinter;
use keyfuse::source::files;
use keyfuse::table::{Memory, Rows, alerts};
use keyfuse::text::shell_word;

use super::{Rules, runtime};

const ARCHIVE: &str = "keyfuse-data/archive";

#[derive(clap::Args)]
pub struct Place {
    /// Log files instead of the archive: folders, globs, gzip, s3://…
    #[arg(long, value_name = "PATH")]
    from: Vec<String>,
    /// Log format of --from.
    #[arg(long, default_value = "auto")]
    log_format: String,
    /// Archive: a folder or a URL.
    #[arg(long, default_value = ARCHIVE)]
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
    doors: Arc<Doors>,
}

impl Place {
    /// Opens the archive, or reads the files; says how many of their records were refused.
    pub fn open(&self, limits: Limits) -> Result<Open, Vec<Error>> {
        self.open_as(limits, &[])
    }

    /// The same; files are also put to the detections, so that their alerts can be asked for.
    pub fn open_with_alerts(&self, limits: Limits) -> Result<Open, Vec<Error>> {
        let detections = if self.from.is_empty() { Vec::new() } else { self.rules.detections()? };
        self.open_as(limits, &detections)
    }

    /// A command that a page shows, asked of the same rows; none where it can only be asked of an archive.
    pub fn again(&self, command: &str) -> Option<String> {
        match (&self.from[..], command.strip_prefix("keyfuse ")) {
            (_, None) => Some(command.to_owned()),
            ([], Some(_)) if self.archive == ARCHIVE => Some(command.to_owned()),
            ([], Some(_)) => Some(format!("{command} --archive {}", shell_word(&self.archive))),
            (_, Some(verb)) if verb.starts_with("explain") => None,
            (from, Some(_)) => Some(format!("{command}{}", from.iter().map(|path| format!(" --from {}", shell_word(path))).collect::<String>())),
        }
    }

    fn open_as(&self, limits: Limits, detections: &[Detection]) -> Result<Open, Vec<Error>> {
        let one = |error: Error| vec![error];
        let (fingerprinter, stated) = (self.rules.fingerprinter()?, self.rules.dimensions()?);
        let options: HashMap<String, String> = self.storage_options.iter().cloned().collect();
        let runtime = runtime()?;
        if self.from.is_empty() {
            super::must_be_archive(&self.archive)?;
            let archive = Arc::new(runtime.block_on(Archive::open(&self.archive, &options)).map_err(one)?);
            let dimensions = self.rules.dimensions_of(&runtime, &archive)?;
            return Open::new(runtime, Some(archive), Arc::default(), dimensions, fingerprinter, limits);
        }
        let inputs = runtime.block_on(files::resolve(&self.from, &options)).map_err(one)?;
        let decoding = self.rules.decoding()?;
        let format = self.rules.format(&self.log_format, &decoding)?;
        let replayed = replay(
            &inputs,
            Settings { format, decoding, dimensions: if detections.is_empty() { Dimensions::default() } else { stated.clone() }, detections },
            runtime.handle(),
            |_, _| {},
        )?;
        let refused: u64 = replayed.summary.rejects.values().sum();
        if refused > 0 {
            eprintln!("keyfuse: {refused} of {} records were refused and are not in the answer; see the table rejects", replayed.summary.records());
        }
        let mut alerts = Rows::new(&alerts::TABLE);
        replayed.book.all().into_iter().for_each(|alert| alert.append(&mut alerts));
        if !alerts.is_empty() {
            replayed.rows.add(&alerts::TABLE, &alerts.finish());
        }
        Open::new(runtime, None, Arc::new(replayed.rows), stated, fingerprinter, limits)
    }
}

impl Open {
    fn new(
        runtime: tokio::runtime::Runtime,
        archive: Option<Arc<Archive>>,
        rows: Arc<Memory>,
        dimensions: Dimensions,
        fingerprinter: Fingerprinter,
        limits: Limits,
    ) -> Result<Self, Vec<Error>> {
        let doors = Arc::new(Doors::new(archive, rows, Arc::new(dimensions.clone()), fingerprinter, limits));
        let opened = Arc::clone(&doors);
        let door = on_deep_stacks(&runtime, async move { opened.open().await }).map_err(|error| vec![error])?;
        Ok(Self { runtime, door, dimensions, doors })
    }

    /// Answers on the PostgreSQL wire until the value is dropped.
    pub fn listen(&self, settings: wire::Settings, fingerprinter: Fingerprinter) -> Result<wire::Listening, Vec<Error>> {
        let doors = Arc::clone(&self.doors);
        on_deep_stacks(&self.runtime, async move { wire::listen(&settings, doors, &fingerprinter).await }).map_err(|error| vec![error])
    }

    /// Asks one question.
    pub fn ask(&self, sql: &str) -> Result<Answer, Vec<Error>> {
        let (door, sql) = (self.door.clone(), sql.to_owned());
        on_deep_stacks(&self.runtime, async move { door.ask(&sql).await }).map_err(|error| vec![error])
    }
}
