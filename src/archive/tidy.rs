//! Tidying: what a flush every few seconds leaves in small files becomes one sorted file an hour, and what has had its time goes.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, make_comparator};
use arrow::compute::{SortOptions, concat_batches, filter_record_batch};
use arrow::record_batch::RecordBatch;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::SortExpr;
use datafusion::prelude::{SessionConfig, col};
use futures::StreamExt;

use super::write::{FileInMaking, Holds};
use super::{Archive, ArchiveTable, DataFile, Positions};
use crate::clock::{HOUR, MINUTE, Micros};
use crate::error::{Error, Result};
use crate::limits;
use crate::table::{STREAMS, Table, cloudtrail as system};

/// An hour is compacted when nothing was added to it for so long: a backlog that is read fills hours that have long passed.
const QUIET: Micros = 10 * MINUTE;

/// What tidying did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Files whose rows now lie in others.
    pub compacted: usize,
    /// Files that took their place.
    pub written: usize,
    /// Rows that were there twice: the same record, delivered again.
    pub duplicates: u64,
    /// Files that were older than rows are kept.
    pub expired: usize,
}

impl std::ops::AddAssign for Tidied {
    fn add_assign(&mut self, other: Self) {
        self.compacted += other.compacted;
        self.written += other.written;
        self.duplicates += other.duplicates;
        self.expired += other.expired;
    }
}

impl Archive {
    /// Rewrites the hours of a table that have passed and lie in several files, sorted by account, credential and time. The same
    /// record that was delivered twice in an hour stays once, as it came first. Readers see all rows of an hour before and after.
    ///
    /// # Errors
    /// Storage, or another process that compacts the same hour.
    pub async fn compact(&self, table: &'static Table, now: Micros) -> Result<Tidied> {
        let mut hours: BTreeMap<Micros, Vec<DataFile>> = BTreeMap::new();
        for file in self.log(table)?.lock().await.files().await? {
            if let Some(hour) = file.hour_start() {
                hours.entry(hour).or_default().push(file);
            }
        }
        let mut tidied = Tidied::default();
        for (hour, files) in hours {
            let is_quiet = files.iter().all(|file| file.written_at + QUIET <= now);
            // One file of full size is as good as it gets; several of them are what compacting left of a large hour. What one flush
            // left is neither sorted nor without repeats.
            let small = files.iter().filter(|file| file.bytes < limits::COMPACTED_FILE as u64 / 2).count();
            let is_flushed = files.iter().all(|file| Holds::of(&file.path) == Holds::Flushed);
            if hour + HOUR <= now && is_quiet && (small > 1 || is_flushed) {
                tidied += self.compact_hour(table, hour.div_euclid(HOUR), files).await?;
            }
        }
        Ok(tidied)
    }

    async fn compact_hour(&self, table: &'static Table, hour: i64, files: Vec<DataFile>) -> Result<Tidied> {
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(limits::COMPACTING))).build_arc()?;
        let ctx = SessionContext::new_with_config_rt(SessionConfig::new().with_target_partitions(1), runtime);
        let source = ArchiveTable::new(&self.location, table, files.clone(), Arc::clone(&self.footers));
        source.register_store(&ctx);
        let mut rows = ctx.read_table(Arc::new(source))?.sort(order(table))?.execute_stream().await?;
        let mut tidied = Tidied { compacted: files.len(), ..Tidied::default() };
        let (mut new, mut file, mut last) = (Vec::new(), FileInMaking::new(table)?, None);
        // Repeats lie beside each other; different records of one id need not.
        let (hasher, mut ids, mut holds) = (RandomState::new(), HashSet::new(), Holds::EachEventOnce);
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(Error::from)?;
            let once = without_repeats(table, last.as_ref(), &batch)?;
            tidied.duplicates += (batch.num_rows() - once.num_rows()) as u64;
            last = Some(batch.slice(batch.num_rows().saturating_sub(1), 1));
            if has_ids(table) && !once.column(system::EVENT_ID).as_string_view().iter().all(|id| id.is_some_and(|id| ids.insert(hasher.hash_one(id)))) {
                holds = Holds::Compacted;
            }
            file.add(&once)?;
            if file.size() >= limits::COMPACTED_FILE {
                new.push(std::mem::replace(&mut file, FileInMaking::new(table)?).put(&self.location, hour, holds, &Positions::new()).await?);
            }
        }
        if !file.is_empty() || new.is_empty() {
            new.push(file.put(&self.location, hour, holds, &Positions::new()).await?);
        }
        tidied.written = new.len();
        self.log(table)?.lock().await.replace(&files, &new).await?;
        Ok(tidied)
    }

    /// Takes away the hours of a table that ended before a moment.
    ///
    /// # Errors
    /// Storage, or another process that does the same.
    pub async fn expire(&self, table: &'static Table, before: Micros) -> Result<Tidied> {
        let mut log = self.log(table)?.lock().await;
        let mut old = log.files().await?;
        old.retain(|file| file.hour_start().is_some_and(|start| start + HOUR <= before));
        if !old.is_empty() {
            log.replace(&old, &[]).await?;
        }
        Ok(Tidied { expired: old.len(), ..Tidied::default() })
    }

    /// Deletes files that were replaced or taken away a day ago, and old entries of the commit log.
    ///
    /// # Errors
    /// Storage.
    pub async fn sweep_out(&self, table: &'static Table) -> Result<()> {
        self.log(table)?.lock().await.tidy().await
    }
}

/// The order of rows in compacted files: what is looked up together lies together.
fn order(table: &Table) -> Vec<SortExpr> {
    let known = |name: &'static str| table.column(name).map(|column| column.name);
    let first = ["account_id"].into_iter().chain(table.looked_up_by.first().copied());
    let then = ["event_time", "event_id", table.columns[table.known_at()].name, "topic", "partition", "offset", "record"];
    let mut names: Vec<&str> = Vec::new();
    for name in first.chain(then).filter_map(known) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| col(name).sort(true, true)).collect()
}

/// Whether an id says of two rows that they are one event.
fn has_ids(table: &Table) -> bool {
    STREAMS.iter().any(|stream| std::ptr::eq(*stream, table))
}

/// Leaves out rows that say the same as the one before them, but for where and when they came. Only where an id says
/// that two rows are one event: a record that is refused twice is two rejects.
fn without_repeats(table: &Table, last: Option<&RecordBatch>, batch: &RecordBatch) -> Result<RecordBatch> {
    if !has_ids(table) || batch.num_rows() == 0 {
        return Ok(batch.clone());
    }
    let before = last.map_or(0, RecordBatch::num_rows);
    let joined = concat_batches(&batch.schema(), last.into_iter().chain([batch]))?;
    let ids = joined.column(system::EVENT_ID).as_string_view();
    let same_id = |row: usize| row > 0 && ids.is_valid(row) && ids.value(row) == ids.value(row - 1);
    let suspects: Vec<usize> = (before..joined.num_rows()).filter(|row| same_id(*row)).collect();
    if suspects.is_empty() {
        return Ok(batch.clone());
    }
    let place = [system::APPEND_TIME, system::TOPIC, system::PARTITION, system::OFFSET, system::RECORD, system::LATE];
    let said = joined.columns().iter().enumerate().filter(|(index, _)| !place.contains(index));
    let compare = said.map(|(_, column)| make_comparator(column, column, SortOptions::default())).collect::<Result<Vec<_>, _>>()?;
    let mut keep = vec![true; batch.num_rows()];
    for row in suspects {
        keep[row - before] = !compare.iter().all(|compare| compare(row - 1, row).is_eq());
    }
    Ok(filter_record_batch(batch, &BooleanArray::from(keep))?)
}
