//! The same engine over files: decode, decide, count. No broker, no archive, no clock.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, Hasher};

use arrow::array::{Array, AsArray};
use arrow::record_batch::RecordBatch;

use tokio::runtime::Handle;

use crate::alert::{AlertBook, AllowList};
use crate::clock;
use crate::decode::{self, Decoder, Format, Message};
use crate::detect::{Detection, Engine};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::source::files::Input;
use crate::table::{Memory, Table, cloudtrail as system, rejects, words};

/// Rows decoded before the engine is run over them.
const ROWS: usize = 16_384;

/// What a replay counted.
#[derive(Default)]
pub struct Summary {
    pub files: u64,
    pub bytes: u64,
    pub rows: BTreeMap<&'static str, u64>,
    /// Rows whose event was already there.
    pub duplicates: u64,
    pub late: u64,
    /// Rows in which something had to be repaired.
    pub flagged: u64,
    pub rejects: BTreeMap<String, u64>,
    pub problems: Vec<(String, String)>,
    /// Keys with results that wait for rows which may still come.
    pub undecided: usize,
    pub seconds: f64,
}

impl Summary {
    /// Rows of all streams and rejects.
    pub fn records(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// A finished replay.
pub struct Replayed {
    pub summary: Summary,
    pub book: AlertBook,
    /// Every decoded row.
    pub rows: Memory,
}

/// Settings of a replay.
pub struct Settings<'a> {
    pub format: Option<&'static dyn Format>,
    /// Raw text is kept where `decoding` says so, or a detection reads it.
    pub decoding: decode::Settings,
    pub dimensions: Dimensions,
    pub detections: &'a [Detection],
}

/// Replays files, on the calling thread; `io` fetches from object stores. `progress` is told how many bytes of which file were read.
///
/// # Errors
/// All detections that are refused, or the first file that cannot be read.
pub fn replay(inputs: &[Input], settings: Settings<'_>, io: &Handle, mut progress: impl FnMut(&Input, u64)) -> Result<Replayed, Vec<Error>> {
    let started = std::time::Instant::now();
    let one = |error: Error| vec![error];
    let detections = settings.detections;
    let mut engine = Engine::new(detections, &settings.decoding.fingerprinter, &settings.dimensions)?;
    let allow = AllowList::of(&settings.dimensions);
    allow.fits(&engine)?;
    // Of what was before the files nothing is known.
    engine.begin(&[]);
    let keep_raw = settings.decoding.keep_raw || detections.iter().any(|detection| detection.sql.contains("raw"));
    let mut run = Run {
        engine,
        decoder: Decoder::new(settings.format, decode::Settings { keep_raw, ..settings.decoding }),
        rows: Memory::default(),
        book: AlertBook::new(allow),
        summary: Summary::default(),
        seen: HashSet::new(),
        hashers: Default::default(),
    };
    for input in inputs {
        run.summary.files += 1;
        let mut blocks = io.block_on(input.blocks()).map_err(one)?;
        while let Some(block) = blocks.next_block().map_err(one)? {
            run.summary.bytes += block.bytes.len() as u64;
            progress(input, block.bytes.len() as u64);
            let message = Message { bytes: &block.bytes, topic: &input.name, partition: 0, offset: None, line: block.line, append_time: input.delivered_at };
            run.decoder.decode(message);
            if run.decoder.rows() >= ROWS {
                run.step().map_err(one)?;
            }
        }
    }
    run.step().map_err(one)?;
    // Time has come as far as the newest row: what is absent up to there is absent, of the rest nobody knows.
    run.engine.advance(run.engine.newest());
    run.decide().map_err(one)?;
    run.summary.undecided = run.engine.undecided();
    run.summary.seconds = started.elapsed().as_secs_f64();
    Ok(Replayed { summary: run.summary, book: run.book, rows: run.rows })
}

struct Run {
    engine: Engine,
    decoder: Decoder,
    rows: Memory,
    book: AlertBook,
    summary: Summary,
    seen: HashSet<u128>,
    hashers: (std::hash::RandomState, std::hash::RandomState),
}

impl Run {
    fn step(&mut self) -> Result<()> {
        let batches = self.decoder.finish();
        for (table, batch) in &batches {
            self.count(table, batch);
            self.rows.add(table, batch);
        }
        for (table, batch) in &batches {
            self.engine.push(table, batch)?;
        }
        self.decide()
    }

    fn decide(&mut self) -> Result<()> {
        let findings = self.engine.tick(&self.rows)?;
        self.summary.problems.extend(self.engine.take_problems());
        self.book.merge(&findings, clock::now(), None);
        Ok(())
    }

    fn count(&mut self, table: &'static Table, batch: &RecordBatch) {
        *self.summary.rows.entry(table.name).or_default() += batch.num_rows() as u64;
        if std::ptr::eq(table, &rejects::TABLE) {
            for reason in words(batch, rejects::REASON) {
                *self.summary.rejects.entry(reason.to_owned()).or_default() += 1;
            }
            return;
        }
        self.summary.late += batch.column(system::LATE).as_boolean().true_count() as u64;
        self.summary.flagged += (batch.num_rows() - batch.column(system::FLAGS).logical_null_count()) as u64;
        for id in batch.column(system::EVENT_ID).as_string_view().iter().flatten() {
            let hash = |state: &std::hash::RandomState| {
                let mut hasher = state.build_hasher();
                hasher.write(table.name.as_bytes());
                hasher.write(id.as_bytes());
                u128::from(hasher.finish())
            };
            if !self.seen.insert(hash(&self.hashers.0) << 64 | hash(&self.hashers.1)) {
                self.summary.duplicates += 1;
            }
        }
    }
}
