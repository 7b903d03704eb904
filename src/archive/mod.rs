//! The archive: each table a Delta table on Parquet, its commits the truth about what has been read.
//!
//! A flush writes Parquet files, then commits them table by table together with the Kafka positions that they reach up to.
//! `rejects` commits last in every flush, rows or not: its positions say up to where all tables are whole.
//! After a crash between two tables, a table that is ahead skips the rows that it already has. Hours that have passed are
//! compacted ([`Archive::compact`]): many small files become one, sorted.

mod delta;
mod read;
mod tidy;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::cache::default_cache::DefaultCache;
use datafusion::execution::context::SessionContext;
use object_store::ObjectStore;
use object_store::path::Path as StorePath;
use url::Url;

use crate::clock::{HOUR, Micros, parse_time};
use crate::error::{At, Error, Result};
use crate::limits;
use crate::table::{STREAMS, Span, TABLES, Table, rejects};

pub use delta::DeltaLog;
pub use read::{ArchiveHistory, ArchiveTable};
pub use tidy::Tidied;
pub use write::to_parquet;

/// A Kafka partition: topic and number.
pub type Partition = (String, i32);

/// Per partition, the offset behind the last one that is in the archive.
pub type Positions = BTreeMap<Partition, i64>;

/// A data file of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile {
    /// Path below the table's folder.
    pub path: String,
    pub bytes: u64,
    pub rows: u64,
    /// Append date and hour that all its rows share.
    pub date: String,
    pub hour: i32,
    /// Delta statistics, as JSON.
    pub stats: String,
    pub written_at: Micros,
}

impl DataFile {
    /// When the append hour of its rows began.
    pub fn hour_start(&self) -> Option<Micros> {
        parse_time(&self.date).map(|day| day + Micros::from(self.hour) * HOUR)
    }

    /// Its statistics, read; null where there are none.
    pub fn read_stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.stats).unwrap_or_default()
    }
}

/// The commit log of one table: what a table format must give. Small, so that another can take Delta's place.
#[async_trait::async_trait]
pub trait CommitLog: Send {
    /// The positions of these partitions as of the last commit seen; those never committed are left out.
    async fn positions(&mut self, partitions: &[Partition]) -> Result<Positions>;

    /// Adds files and sets positions in one atomic step.
    ///
    /// # Errors
    /// Another writer has moved one of these partitions since this log last looked: nothing is committed.
    async fn commit(&mut self, files: &[DataFile], positions: &Positions) -> Result<()>;

    /// The files of the table now.
    async fn files(&mut self) -> Result<Vec<DataFile>>;

    /// Puts files in the place of others in one atomic step: the same rows in fewer files, or none where rows have had their time.
    ///
    /// # Errors
    /// Another writer took one of the old files away meanwhile: nothing is committed.
    async fn replace(&mut self, old: &[DataFile], new: &[DataFile]) -> Result<()>;

    /// Deletes what no reader needs any more: files that were replaced a day ago, old entries of the log.
    async fn tidy(&mut self) -> Result<()>;
}

/// Where the archive lies and how to reach it.
#[derive(Clone)]
pub struct Location {
    pub url: Url,
    pub store: Arc<dyn ObjectStore>,
    pub prefix: StorePath,
    /// The folder, for archives on a local disk.
    pub local: Option<std::path::PathBuf>,
}

impl Location {
    /// A folder, or a URL such as `s3://bucket/prefix` with object_store's options.
    ///
    /// # Errors
    /// A URL that no store takes, or a folder that cannot be made.
    pub fn parse(place: &str, options: &HashMap<String, String>) -> Result<Self> {
        let url = match Url::parse(place) {
            Ok(url) if url.scheme().len() > 1 => url,
            _ => {
                std::fs::create_dir_all(place).at(|| format!("creating the archive folder {place}"))?;
                let full = std::fs::canonicalize(place).at(|| format!("archive folder {place}"))?;
                Url::from_directory_path(&full).map_err(|()| Error::user(format!("archive folder {place}: not a path that a URL can hold")))?
            }
        };
        let local = (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten();
        let (store, prefix) = object_store::parse_url_opts(&url, options).user_at(|| format!("archive {place}"))?;
        Ok(Self { url, store: Arc::from(store), prefix, local })
    }

    fn table(&self, name: &str) -> StorePath {
        self.prefix.clone().join(name)
    }
}

/// The archive, open for reading and, where this process owns it, for writing.
pub struct Archive {
    location: Location,
    logs: HashMap<&'static str, Arc<tokio::sync::Mutex<Box<dyn CommitLog>>>>,
    /// Footers that were read. Files never change, so a question reads only those that no question read before.
    footers: Arc<FileMetadataCache>,
}

impl Archive {
    /// Opens or creates all tables.
    ///
    /// # Errors
    /// Storage that cannot be reached.
    pub async fn open(place: &str, options: &HashMap<String, String>) -> Result<Self> {
        let location = Location::parse(place, options)?;
        let mut logs: HashMap<&'static str, Arc<tokio::sync::Mutex<Box<dyn CommitLog>>>> = HashMap::new();
        for table in TABLES {
            let log: Box<dyn CommitLog> = Box::new(DeltaLog::open(&location, table).await?);
            logs.insert(table.name, Arc::new(tokio::sync::Mutex::new(log)));
        }
        Ok(Self { location, logs, footers: Arc::new(DefaultCache::new(limits::FOOTERS).with_name("footers")) })
    }

    pub fn location(&self) -> &Location {
        &self.location
    }

    fn log(&self, table: &Table) -> Result<&Arc<tokio::sync::Mutex<Box<dyn CommitLog>>>> {
        self.logs.get(table.name).ok_or_else(|| Error::bug(format!("no commit log for {}", table.name)))
    }

    /// Per table, up to where these partitions are archived.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn positions(&self, table: &'static Table, partitions: &[Partition]) -> Result<Positions> {
        self.log(table)?.lock().await.positions(partitions).await
    }

    /// Writes rows and commits them with the positions that they reach up to: all tables with rows, `rejects` last.
    ///
    /// `committed` collects the tables that are done, so that a failed flush can be tried again from where it stopped. `then` is
    /// called for each, before anybody can read the table again: see [`Archive::read_with`].
    ///
    /// # Errors
    /// Storage, or a second owner of one of the partitions.
    pub async fn flush(
        &self,
        batches: &[(&'static Table, RecordBatch)],
        positions: &Positions,
        committed: &mut BTreeSet<&'static str>,
        then: impl Fn(&'static Table),
    ) -> Result<Flushed> {
        let mut by_table: BTreeMap<&'static str, (&'static Table, Vec<RecordBatch>)> = BTreeMap::new();
        for (table, batch) in batches {
            by_table.entry(table.name).or_insert((table, Vec::new())).1.push(batch.clone());
        }
        let mut flushed = Flushed::default();
        let refused = by_table.remove(rejects::TABLE.name).unwrap_or((&rejects::TABLE, Vec::new()));
        for (table, batches) in by_table.into_values().chain([refused]) {
            if committed.contains(table.name) {
                continue;
            }
            let files = write::write(&self.location, table, &batches, positions).await?;
            flushed.files += files.len();
            flushed.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
            flushed.rows += files.iter().map(|file| file.rows).sum::<u64>();
            let always = std::ptr::eq(table, &rejects::TABLE);
            if always || !files.is_empty() {
                let mut log = self.log(table)?.lock().await;
                log.commit(&files, positions).await?;
                then(table);
            }
            committed.insert(table.name);
        }
        Ok(flushed)
    }

    /// Adds rows that come of no stream, such as statements: durable when it returns.
    ///
    /// # Errors
    /// Storage.
    pub async fn append(&self, table: &'static Table, batch: &RecordBatch) -> Result<()> {
        let files = write::write(&self.location, table, std::slice::from_ref(batch), &Positions::new()).await?;
        self.log(table)?.lock().await.commit(&files, &Positions::new()).await
    }

    /// How many files a table has.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn files(&self, table: &'static Table) -> Result<usize> {
        Ok(self.log(table)?.lock().await.files().await?.len())
    }

    /// Every row of a table. Only for small ones.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub async fn all(&self, table: &'static Table) -> Result<Vec<RecordBatch>> {
        let table = self.read(table).await?;
        if table.rows() == 0 {
            return Ok(Vec::new());
        }
        let ctx = SessionContext::new();
        table.register_store(&ctx);
        Ok(ctx.read_table(Arc::new(table))?.collect().await?)
    }

    /// Per stream with rows, the append time of the first and of the last.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub async fn spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for table in STREAMS {
            spans.extend(self.read(table).await?.span().map(|span| (*table, span)));
        }
        Ok(spans)
    }

    /// A table as DataFusion reads it, as of now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn read(&self, table: &'static Table) -> Result<ArchiveTable> {
        Ok(self.read_with(table, || ()).await?.0)
    }

    /// A table as of now, and something of the same moment: no flush of this process commits in between.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn read_with<T>(&self, table: &'static Table, hot: impl FnOnce() -> T) -> Result<(ArchiveTable, T)> {
        let mut log = self.log(table)?.lock().await;
        let files = log.files().await?;
        Ok((ArchiveTable::new(&self.location, table, files, Arc::clone(&self.footers)), hot()))
    }
}

/// What one flush wrote.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushed {
    pub files: usize,
    pub rows: u64,
    pub bytes: u64,
}
