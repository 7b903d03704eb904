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
use crate::clock::{HOUR, rfc3339};
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
pub fn to_parquet(table: &Table, batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let options = ArrowWriterOptions::new().with_properties(properties(table)).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), table.schema(), options).at(|| format!("Parquet writer for {}", table.name))?;
    for batch in batches {
        writer.write(batch).at(|| format!("encoding {}", table.name))?;
    }
    writer.into_inner().at(|| format!("encoding {}", table.name))
}

/// Writes the rows of one flush, one file per append hour, durable before it returns.
pub async fn write(location: &Location, table: &'static Table, batches: &[RecordBatch], positions: &Positions) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for (hour, batches) in by_hour(table, batches)? {
        let bytes = to_parquet(table, &batches)?;
        let date = rfc3339(hour * HOUR);
        let (date, hour_of_day) = (date[..10].to_owned(), hour.rem_euclid(24) as i32);
        let name = name_of(table, hour, positions, &bytes);
        let path = format!("dt={date}/h={hour_of_day:02}/{name}");
        let (size, rows) = (bytes.len() as u64, batches.iter().map(|batch| batch.num_rows() as u64).sum());
        put(location, table, &path, bytes).await?;
        files.push(DataFile { path, bytes: size, rows, date, hour: hour_of_day, stats: stats(table, &batches, rows) });
    }
    Ok(files)
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
fn name_of(table: &Table, hour: i64, positions: &Positions, bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(table.name.as_bytes()).update(&hour.to_le_bytes());
    for ((topic, partition), offset) in positions {
        hasher.update(topic.as_bytes()).update(&partition.to_le_bytes()).update(&offset.to_le_bytes());
    }
    // Alerts and statements have no positions; their content tells them apart.
    hasher.update(&(bytes.len() as u64).to_le_bytes()).update(blake3::hash(bytes).as_bytes());
    format!("part-{}.parquet", &hasher.finalize().to_hex()[..24])
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

/// Delta statistics: row count and the bounds of the time columns, by which readers skip files.
fn stats(table: &Table, batches: &[RecordBatch], rows: u64) -> String {
    let mut lowest = serde_json::Map::new();
    let mut highest = serde_json::Map::new();
    let mut nulls = serde_json::Map::new();
    for (index, column) in table.columns.iter().enumerate().filter(|(_, column)| column.kind == Kind::Time).take(4) {
        let times = || batches.iter().map(|batch| batch.column(index).as_primitive::<TimestampMicrosecondType>());
        nulls.insert(column.name.into(), times().map(Array::null_count).sum::<usize>().into());
        if let (Some(low), Some(high)) = (times().filter_map(min).min(), times().filter_map(max).max()) {
            // Delta keeps milliseconds: round outwards, or a reader would skip rows that are there.
            lowest.insert(column.name.into(), millis(low.div_euclid(1000)).into());
            highest.insert(column.name.into(), millis(high.div_euclid(1000) + i64::from(high.rem_euclid(1000) > 0)).into());
        }
    }
    serde_json::json!({ "numRecords": rows, "minValues": lowest, "maxValues": highest, "nullCount": nulls }).to_string()
}

fn millis(time: i64) -> String {
    chrono::DateTime::from_timestamp_millis(time).map_or_else(String::new, |t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}
