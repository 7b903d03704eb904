//! Class C4: questions that no key and no bound in time hold together (shares, silence, baselines of weeks), asked over the
//! archive at fixed times.
//!
//! A detection with `schedule` and `over` is asked at every multiple of `schedule` (UTC), as soon as append time has come that far
//! on all partitions. It sees the rows that were appended in the `over` before that moment, late ones included, each event once in
//! an hour of arrival, and `run_at()` is the moment. So its findings, too, are a function of the archived rows, whenever it is asked.
//!
//! A detection that is evaluated live and had to be switched off is asked in the same way, but of the rows that live evaluation
//! sees: those on time, each event once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use crate::archive::Archive;
use crate::clock::{Micros, rfc3339};
use crate::detect::{Detection, Finding, Scheduled, Standing, analyse::Merge, findings_of};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::query::{Door, Limits, Moment, Rows, Seen};
use crate::secret::Fingerprinter;
use crate::table::Memory;

/// Most moments that are made up for after a time without service, for each detection.
pub const MAKE_UP: usize = 96;

/// Failed moments of one detection that are asked again: a question that always fails must not keep the others waiting.
const FAILED: usize = 4;

/// Which moments each detection was asked about, and which are still to be asked.
#[derive(Default)]
pub struct Calendar {
    asked: HashMap<Uuid, Micros>,
    failed: HashMap<Uuid, BTreeSet<Micros>>,
}

impl Calendar {
    /// One that begins with moments up to which detections were answered, as [`Calendar::answered`] gave them.
    pub fn since(asked: HashMap<Uuid, Micros>) -> Self {
        Self { asked, failed: HashMap::new() }
    }

    /// A detection that is new is asked from now on, when every row up to this append time is in the archive. Gives the moment to be
    /// remembered, else a crash before its first answer would begin later.
    pub fn begin(&mut self, detection: &Detection, archived_to: Micros) -> Option<Micros> {
        let every = detection.schedule?.every;
        if self.asked.contains_key(&detection.id) {
            return None;
        }
        let since = archived_to.saturating_sub(every);
        self.asked.insert(detection.id, since);
        Some(since)
    }

    /// What is to be asked of a detection, and about which moments, when every row up to this append time is in the archive.
    pub fn due(&mut self, mut asked: Scheduled, archived_to: Micros) -> Vec<(Scheduled, Micros)> {
        let (id, Some(every)) = (asked.detection.id, asked.detection.schedule.map(|schedule| schedule.every)) else { return Vec::new() };
        let Some(after) = self.asked.get_mut(&id) else { return Vec::new() };
        let mut due = moments(&asked.detection, *after, archived_to, MAKE_UP);
        let Some(last) = due.last().copied() else { return Vec::new() };
        *after = last;
        if asked.instead.is_some() && due.len() > 1 {
            // One question about all that lies between: what was missed is not asked quarter of an hour by quarter of an hour.
            let missed = due.len() as Micros * every;
            Arc::make_mut(&mut asked.detection).schedule.iter_mut().for_each(|schedule| schedule.over += missed);
            due.drain(..due.len() - 1);
        }
        // What failed is asked again when the next moment has come.
        let failed = self.failed.remove(&id).into_iter().flatten();
        failed.chain(due).map(|at| (asked.clone(), at)).collect()
    }

    /// Notes an answer; gives the moment up to which nothing is left to be asked, to be remembered when what came of it is.
    pub fn answered(&self, detection: &Detection, at: Micros) -> Micros {
        let failed = self.failed.get(&detection.id).and_then(|failed| failed.first());
        failed.map_or(at, |first| at.min(first.saturating_sub(1)))
    }

    /// Notes that a question came to nothing.
    pub fn failed(&mut self, detection: &Detection, at: Micros) {
        let failed = self.failed.entry(detection.id).or_default();
        failed.insert(at);
        if failed.len() > FAILED {
            failed.pop_first();
        }
    }
}

/// Where the rows are.
#[derive(Clone)]
pub enum Past {
    Archive(Arc<Archive>),
    Memory(Arc<Memory>),
}

impl Past {
    /// As a question wants them.
    pub fn rows(&self) -> Rows<'_> {
        match self {
            Past::Archive(archive) => Rows::Archive(archive),
            Past::Memory(memory) => Rows::Memory(memory),
        }
    }
}

/// The moments after `after` and up to `until` at which a detection is asked, the latest `most` of them.
pub fn moments(detection: &Detection, after: Micros, until: Micros, most: usize) -> Vec<Micros> {
    let Some(schedule) = detection.schedule else { return Vec::new() };
    let last = until.div_euclid(schedule.every);
    let first = after.div_euclid(schedule.every).saturating_add(1).max(last.saturating_sub(most as i64 - 1));
    (first..=last).map(|number| number * schedule.every).collect()
}

/// Asks one detection about one moment.
///
/// # Errors
/// The archive cannot be read, or the query fails.
pub async fn ask(asked: &Scheduled, at: Micros, past: &Past, dimensions: &Dimensions, fingerprinter: &Fingerprinter) -> Result<Vec<Finding>> {
    let Scheduled { detection, instead } = asked;
    let Some(schedule) = detection.schedule else { return Ok(Vec::new()) };
    let seen = if instead.is_some() { Seen::AsLive } else { Seen::Once };
    let moment = Moment { at, over: schedule.over, seen };
    let door = Door::open_at(past.rows(), Some(moment), dimensions, fingerprinter, Limits::default()).await?;
    let answer = door.ask(&detection.sql).await.map_err(|error| Error::user(format!("{} at {}: {error}", detection.name, rfc3339(at))))?;
    let merges = || answer.schema.fields().iter().map(|field| (field.name().clone(), merge_of(field.name()))).collect();
    let merges: Vec<(String, Merge)> = instead.clone().unwrap_or_else(merges);
    let mut findings = Vec::new();
    for batch in &answer.batches {
        findings.extend(findings_of(detection, &merges, batch)?);
    }
    findings.iter_mut().for_each(|finding| finding.standing = Standing::Final);
    Ok(findings)
}

fn merge_of(column: &str) -> Merge {
    if column == "level" { Merge::Level } else { Merge::First }
}
