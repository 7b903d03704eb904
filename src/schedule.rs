//! Class C4: questions that no key and no bound in time hold together (shares, silence, baselines of weeks), asked over the
//! archive at fixed times.
//!
//! A detection with `schedule` and `over` is asked at every multiple of `schedule` (UTC), as soon as append time has come that far
//! on all partitions. It sees the rows that were appended in the `over` before that moment, late ones included, and `run_at()`
//! is the moment. So its findings, too, are a function of the archived rows, whenever it is asked.
//!
//! A detection that is evaluated live and had to be switched off is asked in the same way, but of the rows that live evaluation
//! sees: those on time, each event once.

use std::sync::Arc;

use crate::archive::Archive;
use crate::clock::{Micros, rfc3339};
use crate::detect::{Detection, Finding, Scheduled, Standing, analyse::Merge, findings_of};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::query::{Door, Limits, Moment, Rows};
use crate::secret::Fingerprinter;
use crate::table::Memory;

/// Most moments that are made up for after a time without service, for each detection.
pub const MAKE_UP: usize = 96;

/// Where the rows are.
#[derive(Clone)]
pub enum Past {
    Archive(Arc<Archive>),
    Memory(Arc<Memory>),
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
    let rows = match past {
        Past::Archive(archive) => Rows::Archive(archive),
        Past::Memory(memory) => Rows::Memory(memory),
    };
    let moment = Moment { at, over: schedule.over, as_live: instead.is_some() };
    let door = Door::open_at(rows, Some(moment), dimensions, fingerprinter, Limits::default()).await?;
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
