//! Delta as the commit log: files and Kafka positions in one atomic log entry, and a fence against a second owner.
//!
//! <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>. Only the commit protocol of delta-rs is used. It does not
//! refuse a stale re-commit by itself, so positions go in as `txn` actions: a concurrent commit of the same partition then
//! conflicts, and what this log believes the positions to be is compared before it commits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, DataType, PrimitiveType, StructField, Transaction};
use deltalake_core::logstore::logstore_factories;
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::checkpoints::cleanup_metadata;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::state::DeltaTableState;
use deltalake_core::{DeltaTable, DeltaTableBuilder, DeltaTableError, TableProperty};

use url::Url;

use super::{CommitLog, DataFile, Location, Partition, Positions};
use crate::clock::{self, DAY, Micros};
use crate::error::{At, Error, Result};
use crate::limits;
use crate::table::{Kind, Table};

/// Commits between checkpoints: each commit looks for the positions of its partitions in all entries since the last one.
const CHECKPOINT_EVERY: &str = "25";
/// How long entries of the log stay behind a checkpoint that holds them: each flush writes one, and whoever opens the table lists them.
const LOG_STAYS: &str = "interval 6 hours";
/// How long a file that was replaced stays for readers who began before: longer than any question may take.
const REPLACED_STAY: Micros = DAY;
/// How long the log knows of it: longer, or it would be forgotten before it is deleted.
const REMOVALS_STAY: &str = "interval 3 days";

/// The Delta log of one table.
pub struct DeltaLog {
    name: &'static str,
    delta: DeltaTable,
    state: DeltaTableState,
    local: Option<std::path::PathBuf>,
    /// Positions of the partitions that this writer owns, as it last saw or set them.
    known: Positions,
}

impl DeltaLog {
    /// Opens the table, or creates it.
    ///
    /// # Errors
    /// Storage that cannot be reached.
    pub async fn open(location: &Location, table: &'static Table) -> Result<Self> {
        let place = || format!("opening the archive table {} at {}", table.name, location.url);
        let mut url = location.url.clone();
        url.path_segments_mut().map_err(|()| Error::user(place()))?.pop_if_empty().push(table.name).push("");
        let local = location.local.as_ref().map(|root| root.join(table.name));
        if let Some(folder) = &local {
            std::fs::create_dir_all(folder).at(place)?;
        }
        if local.is_none() {
            know_scheme(url.scheme());
        }
        let builder = DeltaTableBuilder::from_url(url.clone()).user_at(place)?;
        let builder = match local {
            Some(_) => builder,
            None => builder.with_storage_backend(Arc::clone(&location.store), url),
        };
        let mut delta = builder.build().at(place)?;
        if !delta.verify_deltatable_existence().await.at(place)? {
            let created = CreateBuilder::new()
                .with_log_store(delta.log_store())
                .with_table_name(table.name)
                .with_comment(table.doc)
                .with_columns(fields(table))
                .with_partition_columns(["dt", "h"])
                .with_configuration_property(TableProperty::CheckpointInterval, Some(CHECKPOINT_EVERY))
                .with_configuration_property(TableProperty::LogRetentionDuration, Some(LOG_STAYS))
                .with_configuration_property(TableProperty::DeletedFileRetentionDuration, Some(REMOVALS_STAY))
                .with_save_mode(SaveMode::Ignore)
                .await;
            // Another process may have created it in the same moment.
            if let Err(error) = created
                && !delta.verify_deltatable_existence().await.at(place)?
            {
                return Err(Error::environment(place()).because(error));
            }
        }
        delta.load().await.at(place)?;
        let state = delta.snapshot().at(place)?.clone();
        Ok(Self { name: table.name, delta, state, local, known: Positions::new() })
    }

    fn place(&self) -> String {
        format!("commit log of {} at {}", self.name, self.delta.table_url())
    }
}

/// delta-rs knows only local schemes by itself; for the others the same log over our own object store is right.
fn know_scheme(scheme: &str) {
    let known = logstore_factories();
    if let (Ok(memory), Ok(scheme)) = (Url::parse("memory://"), Url::parse(&format!("{scheme}://")))
        && let Some(default) = known.get(&memory).map(|entry| Arc::clone(entry.value()))
    {
        known.insert(scheme, default);
    }
}

/// Name of a partition in Delta's `txn` actions.
fn app_id((topic, partition): &Partition) -> String {
    format!("keyfuse/{topic}/{partition}")
}

fn fields(table: &Table) -> Vec<StructField> {
    let kind = |kind: Kind| match kind {
        Kind::Time => PrimitiveType::Timestamp,
        Kind::Word | Kind::Text => PrimitiveType::String,
        Kind::Int => PrimitiveType::Long,
        Kind::Bool => PrimitiveType::Boolean,
    };
    let columns = table.columns.iter().map(|column| StructField::new(column.name, DataType::Primitive(kind(column.kind)), true));
    let layout = [("dt", PrimitiveType::String), ("h", PrimitiveType::Integer)];
    columns.chain(layout.map(|(name, kind)| StructField::new(name, DataType::Primitive(kind), true))).collect()
}

#[async_trait::async_trait]
impl CommitLog for DeltaLog {
    async fn positions(&mut self, partitions: &[Partition]) -> Result<Positions> {
        let log_store = self.delta.log_store();
        self.state.update(log_store.as_ref(), None).await.at(|| self.place())?;
        let mut found = Positions::new();
        for partition in partitions {
            if let Some(offset) = self.state.transaction_version(log_store.as_ref(), app_id(partition)).await.at(|| self.place())? {
                found.insert(partition.clone(), offset);
            }
            // Whoever asks is about to own the partition.
            match found.get(partition) {
                Some(offset) => self.known.insert(partition.clone(), *offset),
                None => self.known.remove(partition),
            };
        }
        Ok(found)
    }

    async fn commit(&mut self, files: &[DataFile], positions: &Positions) -> Result<()> {
        let log_store = self.delta.log_store();
        let place = self.place();
        self.state.update(log_store.as_ref(), None).await.at(|| place.clone())?;
        for partition in positions.keys() {
            let now = self.state.transaction_version(log_store.as_ref(), app_id(partition)).await.at(|| place.clone())?;
            let believed = self.known.get(partition).copied();
            if now != believed {
                return Err(Error::conflict(format!(
                    "{place}: {}/{} stands at {now:?}, this process believed {believed:?}: another keyfuse writes here. Stop one of the two, or give them different archives",
                    partition.0, partition.1
                )));
            }
        }
        let adds = files.iter().map(|file| Action::Add(add(file, true)));
        let now = Some(clock::now() / 1000);
        let txns = positions.iter().map(|(partition, offset)| Action::Txn(Transaction { app_id: app_id(partition), version: *offset, last_updated: now }));
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec!["dt".into(), "h".into()]), predicate: None };
        self.commit_actions(adds.chain(txns).collect(), operation).await?;
        self.known.extend(positions.clone());
        Ok(())
    }

    async fn files(&mut self) -> Result<Vec<DataFile>> {
        let log_store = self.delta.log_store();
        self.state.update(log_store.as_ref(), None).await.at(|| self.place())?;
        let data = self.state.log_data();
        let files = data.iter().map(|file| {
            let partition = file.partition_values_map();
            DataFile {
                path: file.path().into_owned(),
                bytes: file.size().max(0) as u64,
                rows: file.num_records().unwrap_or(0) as u64,
                date: partition.get("dt").cloned().flatten().unwrap_or_default(),
                hour: partition.get("h").cloned().flatten().and_then(|h| h.parse().ok()).unwrap_or(0),
                stats: file.stats().unwrap_or_default(),
                written_at: file.modification_time().saturating_mul(1000),
            }
        });
        Ok(files.collect())
    }

    async fn replace(&mut self, old: &[DataFile], new: &[DataFile]) -> Result<()> {
        let log_store = self.delta.log_store();
        self.state.update(log_store.as_ref(), None).await.at(|| self.place())?;
        let gone: HashSet<&str> = old.iter().map(|file| file.path.as_str()).collect();
        // Without new files the rows are gone too.
        let rows_change = new.is_empty();
        let data = self.state.log_data();
        let removes: Vec<Action> =
            data.iter().filter(|file| gone.contains(file.path().as_ref())).map(|file| Action::Remove(file.remove_action(rows_change))).collect();
        if removes.len() < gone.len() {
            return Err(Error::conflict(format!("{}: files that were to be replaced are gone: another process compacts this archive", self.place())));
        }
        let operation = match rows_change {
            true => DeltaOperation::Delete { predicate: None },
            false => DeltaOperation::Optimize { predicate: None, target_size: limits::COMPACTED_FILE as i64 },
        };
        let adds = new.iter().map(|file| Action::Add(add(file, false)));
        self.commit_actions(removes.into_iter().chain(adds).collect(), operation).await
    }

    async fn tidy(&mut self) -> Result<()> {
        self.state.update(self.delta.log_store().as_ref(), None).await.at(|| self.place())?;
        let mut table = self.delta.clone();
        table.state = Some(self.state.clone());
        let kept = chrono::Duration::microseconds(REPLACED_STAY);
        let (mut table, _) = table.vacuum().with_retention_period(kept).with_enforce_retention_duration(false).await.at(|| self.place())?;
        // What deleting committed is not what cleaning up must leave.
        table.update_state().await.at(|| self.place())?;
        cleanup_metadata(&table, None).await.at(|| self.place())?;
        Ok(())
    }
}

impl DeltaLog {
    async fn commit_actions(&mut self, actions: Vec<Action>, operation: DeltaOperation) -> Result<()> {
        let place = self.place();
        // Cleaning up lists the whole log: that is for once an hour ([`CommitLog::tidy`]), not for every commit.
        let committed = CommitBuilder::from(CommitProperties::default().with_cleanup_expired_logs(Some(false)))
            .with_actions(actions)
            .build(Some(&self.state), self.delta.log_store(), operation)
            .await
            .map_err(|error| match error {
                DeltaTableError::Transaction { .. } => Error::conflict(place.clone()).because(error),
                other => Error::environment(place.clone()).because(other),
            })?;
        if let Some(folder) = &self.local {
            sync_log(folder, committed.version).at(|| place)?;
        }
        self.state = committed.snapshot;
        Ok(())
    }
}

fn add(file: &DataFile, data_change: bool) -> Add {
    Add {
        path: file.path.clone(),
        partition_values: HashMap::from([("dt".to_owned(), Some(file.date.clone())), ("h".to_owned(), Some(file.hour.to_string()))]),
        size: file.bytes as i64,
        modification_time: file.written_at / 1000,
        data_change,
        stats: Some(file.stats.clone()),
        tags: None,
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
        clustering_provider: None,
    }
}

/// Makes a commit survive a power cut: delta-rs's local store links the log file into place without fsync.
fn sync_log(table: &std::path::Path, version: impl std::fmt::Display) -> std::io::Result<()> {
    let log = table.join("_delta_log");
    let name = format!("{:0>20}.json", version.to_string());
    std::fs::File::open(log.join(name))?.sync_all()?;
    std::fs::File::open(log)?.sync_all()
}
