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

/// A past that is held in memory whole: for tests, for replays, and for the rows that are not in the archive yet.
#[derive(Default)]
pub struct Memory {
    batches: Mutex<Vec<(&'static Table, RecordBatch)>>,
}

impl Memory {
    pub fn add(&self, table: &'static Table, batch: &RecordBatch) {
        self.lock().push((table, batch.clone()));
    }

    /// Takes all batches out, in the order in which they came.
    pub fn take(&self) -> Vec<(&'static Table, RecordBatch)> {
        std::mem::take(&mut *self.lock())
    }

    /// All batches of a table.
    pub fn of(&self, table: &'static Table) -> Vec<RecordBatch> {
        self.lock().iter().filter(|(of, _)| std::ptr::eq(*of, table)).map(|(_, batch)| batch.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(&'static Table, RecordBatch)>> {
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
