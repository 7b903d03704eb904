//! Parquet files as strangers' tools like them: plain types, statistics, bloom filters on what people look up.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::{filter_record_batch, max, min};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use object_store::ObjectStoreExt as _;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{DataFile, Location, Positions};
use crate::clock::{self, HOUR, rfc3339};
use crate::error::{At, Result};
use crate::table::{Kind, Table};

/// Rows per row group: small enough that a look-up by key reads little, large enough to compress.
const ROW_GROUP: usize = 128 << 10;

fn properties(table: &Table) -> WriterProperties {
    let level = ZstdLevel::try_new(1).unwrap_or_default();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_data_page_row_count_limit(20_000)
        .set_statistics_enabled(EnabledStatistics::Page)
        // The raw record is never equal to another and never compared: a dictionary and bounds of it only cost.
        .set_column_dictionary_enabled(ColumnPath::from("raw"), false)
        .set_column_statistics_enabled(ColumnPath::from("raw"), EnabledStatistics::None);
    for column in table.looked_up_by {
        properties = properties.set_column_bloom_filter_enabled(ColumnPath::from(*column), true);
    }
    properties.build()
}

/// Batches as the bytes of one Parquet file.
///
/// # Errors
/// Parquet's, never in practice: the bytes stay in memory.
pub fn to_parquet(table: &'static Table, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut file = FileInMaking::new(table)?;
    batches.iter().try_for_each(|batch| file.add(batch))?;
    file.bytes()
}

/// Writes the rows of one flush, one file per append hour, durable before it returns.
pub async fn write(location: &Location, table: &'static Table, batches: &[RecordBatch], positions: &Positions) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for (hour, batches) in by_hour(table, batches)? {
        let mut file = FileInMaking::new(table)?;
        batches.iter().try_for_each(|batch| file.add(batch))?;
        files.push(file.put(location, hour, Holds::Flushed, positions).await?);
    }
    Ok(files)
}

/// What is known of the rows of a data file; its name says it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// What one flush had.
    Flushed,
    /// Rows of an hour that was compacted, and no event of them twice, nor in a file of the hour that was written before.
    EachEventOnce,
    /// Rows of an hour that was compacted, in which different records have one id.
    Compacted,
}

impl Holds {
    fn prefix(self) -> &'static str {
        match self {
            Holds::Flushed => "part-",
            Holds::EachEventOnce => "once-",
            Holds::Compacted => "hour-",
        }
    }

    /// Of a file, by its path.
    pub fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        let known = [Holds::EachEventOnce, Holds::Compacted].into_iter().find(|holds| name.starts_with(holds.prefix()));
        known.unwrap_or(Holds::Flushed)
    }
}

/// A data file that is being written, and what the commit log will say of it.
pub struct FileInMaking {
    table: &'static Table,
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
    times: Vec<Times>,
}

/// What the statistics say of one time column.
struct Times {
    column: usize,
    nulls: usize,
    bounds: Option<(i64, i64)>,
}

impl FileInMaking {
    pub fn new(table: &'static Table) -> Result<Self> {
        let options = ArrowWriterOptions::new().with_properties(properties(table)).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), table.schema(), options).at(|| format!("Parquet writer for {}", table.name))?;
        let times = table.columns.iter().enumerate().filter(|(_, column)| column.kind == Kind::Time).take(4);
        Ok(Self { table, writer, rows: 0, times: times.map(|(column, _)| Times { column, nulls: 0, bounds: None }).collect() })
    }

    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).at(|| format!("encoding {}", self.table.name))?;
        self.rows += batch.num_rows() as u64;
        for Times { column, nulls, bounds } in &mut self.times {
            let times = batch.column(*column).as_primitive::<TimestampMicrosecondType>();
            *nulls += times.null_count();
            if let (Some(low), Some(high)) = (min(times), max(times)) {
                *bounds = Some(bounds.map_or((low, high), |(lowest, highest)| (lowest.min(low), highest.max(high))));
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// About how large it has become (bytes).
    pub fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    fn bytes(self) -> Result<Vec<u8>> {
        self.writer.into_inner().at(|| format!("encoding {}", self.table.name))
    }

    /// Ends it and stores it, durable before it returns. `hour`: hours since 1970, of the append time of all its rows.
    pub async fn put(self, location: &Location, hour: i64, holds: Holds, positions: &Positions) -> Result<DataFile> {
        let (table, rows, stats) = (self.table, self.rows, self.stats());
        let bytes = self.bytes()?;
        let date = rfc3339(hour * HOUR);
        let (date, hour_of_day) = (date[..10].to_owned(), hour.rem_euclid(24) as i32);
        let path = format!("dt={date}/h={hour_of_day:02}/{}", name_of(table, hour, holds, positions, &bytes));
        let size = bytes.len() as u64;
        put(location, table, &path, bytes).await?;
        Ok(DataFile { path, bytes: size, rows, date, hour: hour_of_day, stats, written_at: clock::now() })
    }

    /// Delta statistics: row count and the bounds of the time columns, by which readers skip files.
    fn stats(&self) -> String {
        let mut lowest = serde_json::Map::new();
        let mut highest = serde_json::Map::new();
        let mut nulls = serde_json::Map::new();
        for Times { column, nulls: null_count, bounds } in &self.times {
            let name = self.table.columns[*column].name;
            nulls.insert(name.into(), (*null_count).into());
            if let Some((low, high)) = bounds {
                // Delta keeps milliseconds: round outwards, or a reader would skip rows that are there.
                lowest.insert(name.into(), millis(low.div_euclid(1000)).into());
                highest.insert(name.into(), millis(high.div_euclid(1000) + i64::from(high.rem_euclid(1000) > 0)).into());
            }
        }
        serde_json::json!({ "numRecords": self.rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls }).to_string()
    }
}

/// The rows by the hour in which they were appended. Nearly always a batch lies in one hour and is not copied.
fn by_hour(table: &'static Table, batches: &[RecordBatch]) -> Result<BTreeMap<i64, Vec<RecordBatch>>> {
    let mut hours: BTreeMap<i64, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches {
        let times = batch.column(table.known_at()).as_primitive::<TimestampMicrosecondType>();
        let hour_of = |time: Option<i64>| time.unwrap_or(0).div_euclid(HOUR);
        let (first, last) = (hour_of(min(times)), hour_of(max(times)));
        if first == last {
            hours.entry(first).or_default().push(batch.clone());
            continue;
        }
        for hour in times.iter().map(hour_of).collect::<BTreeSet<_>>() {
            let rows: BooleanArray = times.iter().map(|time| Some(hour_of(time) == hour)).collect();
            hours.entry(hour).or_default().push(filter_record_batch(batch, &rows)?);
        }
    }
    Ok(hours)
}

/// The same range gives the same name: writing it again after a crash replaces the orphan instead of adding another.
fn name_of(table: &Table, hour: i64, holds: Holds, positions: &Positions, bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(table.name.as_bytes()).update(&hour.to_le_bytes());
    for ((topic, partition), offset) in positions {
        hasher.update(topic.as_bytes()).update(&partition.to_le_bytes()).update(&offset.to_le_bytes());
    }
    // Alerts and statements have no positions; their content tells them apart.
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(blake3::hash(bytes).as_bytes());
    format!("{}{}.parquet", holds.prefix(), &hasher.finalize().to_hex()[..24])
}

async fn put(location: &Location, table: &Table, path: &str, bytes: Vec<u8>) -> Result<()> {
    let place = || format!("writing {}/{path} to the archive {}", table.name, location.url);
    match &location.local {
        // The local object store does not fsync: the file, its name and new folders must be on disk before the commit says so.
        Some(root) => {
            let file = root.join(table.name).join(path);
            tokio::task::spawn_blocking(move || write_durably(&file, &bytes)).await.at(place)?.at(place)
        }
        None => {
            let target = object_store::path::Path::parse(format!("{}/{path}", location.table(table.name))).at(place)?;
            location.store.put(&target, bytes.into()).await.at(place).map(|_| ())
        }
    }
}

fn write_durably(file: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let folder = file.parent().unwrap_or(file);
    std::fs::create_dir_all(folder)?;
    let mut out = std::fs::File::create(file)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    for folder in folder.ancestors().take(3) {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn millis(time: i64) -> String {
    chrono::DateTime::from_timestamp_millis(time).map_or_else(String::new, |t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}
