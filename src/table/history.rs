//! The past, as the engine asks for it.

use std::sync::{Mutex, PoisonError};

use arrow::record_batch::RecordBatch;
use datafusion::logical_expr::Expr;

use super::Table;
use crate::clock::Micros;
use crate::error::Result;

/// Rows of the past, as an archive (and what is not yet in it) can give them.
pub trait History {
    /// Rows of a table, in its schema. May give more than was asked for, and one row twice; must not miss one.
    ///
    /// # Errors
    /// The archive cannot be read.
    fn rows(&self, ask: &LookBack<'_>) -> Result<Vec<RecordBatch>>;

    /// Whether it still has rows that the engine lets go of.
    fn is_kept(&self) -> bool;
}

/// A question to the past.
pub struct LookBack<'a> {
    pub table: &'static Table,
    /// Column and wanted values; none for all rows.
    pub keys: Option<(&'static str, &'a [String])>,
    pub filters: &'a [Expr],
    /// Earliest event time of interest.
    pub since: Micros,
    /// The columns that are wanted, by number; the others may be null. None: all of them.
    pub columns: Option<&'a [usize]>,
}

/// Rows in memory, by table, in the order in which they came.
type Batches = Vec<(&'static Table, RecordBatch)>;

/// A past that is held in memory whole: for tests, for replays, and for the rows that are not in the archive yet.
#[derive(Default)]
pub struct Memory {
    batches: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    fresh: Batches,
    /// On their way into the archive.
    flushing: Batches,
}

impl Memory {
    pub fn add(&self, table: &'static Table, batch: &RecordBatch) {
        self.lock().fresh.push((table, batch.clone()));
    }

    /// All batches that are not on their way yet; they stay to be seen until [`Memory::archived`].
    pub fn flush(&self) -> Batches {
        let mut held = self.lock();
        let fresh = std::mem::take(&mut held.fresh);
        held.flushing.extend(fresh.iter().cloned());
        fresh
    }

    /// Lets go of what was on its way: the archive has it now.
    pub fn archived(&self, table: &Table) {
        self.lock().flushing.retain(|(of, _)| !std::ptr::eq(*of, table));
    }

    /// All batches of a table.
    pub fn of(&self, table: &'static Table) -> Vec<RecordBatch> {
        let held = self.lock();
        held.flushing.iter().chain(&held.fresh).filter(|(of, _)| std::ptr::eq(*of, table)).map(|(_, batch)| batch.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for Memory {
    fn rows(&self, ask: &LookBack<'_>) -> Result<Vec<RecordBatch>> {
        Ok(self.of(ask.table))
    }

    fn is_kept(&self) -> bool {
        true
    }
}
