//! What survives the filter pass and may still join or count: rows by key, bounded in time.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Scalar, StringViewArray};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{concat_batches, filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use hashbrown::{DefaultHashBuilder, HashMap, HashSet};

use crate::clock::Micros;
use crate::table::{Table, cloudtrail as system};

/// Hash of a key value. Two keys that collide are evaluated together, which costs time and changes no result.
pub type Key = u64;

/// The key of rows whose key column is null: `GROUP BY` and `PARTITION BY` make one group of them.
pub const NULL_KEY: Key = 0;

/// Hashes keys and event ids, the same way all over one engine.
#[derive(Clone, Default)]
pub struct KeyHasher {
    keys: DefaultHashBuilder,
    more: DefaultHashBuilder,
}

impl KeyHasher {
    pub fn key(&self, value: &str) -> Key {
        self.keys.hash_one(value).max(1)
    }

    /// 128 bits: event ids decide whether a row is a duplicate, so a collision would lose one.
    fn id(&self, value: &str) -> u128 {
        u128::from(self.keys.hash_one(value)) << 64 | u128::from(self.more.hash_one((value, 1u8)))
    }

    /// The keys of a column, row by row.
    pub fn column(&self, column: &ArrayRef) -> Vec<Key> {
        match column.data_type() {
            DataType::Utf8View => column.as_string_view().iter().map(|v| v.map_or(NULL_KEY, |v| self.key(v))).collect(),
            DataType::Utf8 => column.as_string::<i32>().iter().map(|v| v.map_or(NULL_KEY, |v| self.key(v))).collect(),
            DataType::Dictionary(..) => {
                let words = column.as_dictionary::<Int32Type>();
                let values = self.column(words.values());
                words.keys().iter().map(|key| key.map_or(NULL_KEY, |key| values[key as usize])).collect()
            }
            DataType::Int64 => column.as_primitive::<Int64Type>().iter().map(|v| v.map_or(NULL_KEY, |v| self.keys.hash_one(v).max(1))).collect(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                column.as_primitive::<TimestampMicrosecondType>().iter().map(|v| v.map_or(NULL_KEY, |v| self.keys.hash_one(v).max(1))).collect()
            }
            DataType::Boolean => column.as_boolean().iter().map(|v| v.map_or(NULL_KEY, |v| self.keys.hash_one(v).max(1))).collect(),
            // No table has other types; one group is always right, if slow.
            _ => vec![NULL_KEY; column.len()],
        }
    }
}

struct Chunk {
    /// Number of the first row; the others follow on.
    first: u64,
    rows: RecordBatch,
    ids: Vec<u128>,
    latest: Micros,
}

/// The kept rows of one scan. Each event is in it once, however often it was delivered.
pub struct Store {
    table: &'static Table,
    projection: Vec<usize>,
    key_column: usize,
    schema: SchemaRef,
    chunks: VecDeque<Chunk>,
    by_key: HashMap<Key, Vec<u64>>,
    seen: HashSet<u128>,
    next: u64,
    bytes: usize,
    /// Only presence counts: of old rows that are equal but for their time, the latest stands for all.
    presence: bool,
    /// Rows after they were last condensed.
    condensed: usize,
}

/// No bound on the time of rows.
pub const ALL_TIMES: Range<Micros> = Micros::MIN..Micros::MAX;

/// Small chunks are merged once there are this many of them.
const CHUNKS: usize = 64;

impl Store {
    pub fn new(table: &'static Table, projection: &[usize], key_column: usize, schema: SchemaRef, presence: bool) -> Self {
        Self {
            presence,
            condensed: 0,
            table,
            projection: projection.to_vec(),
            key_column,
            schema,
            chunks: VecDeque::new(),
            by_key: HashMap::new(),
            seen: HashSet::new(),
            next: 0,
            bytes: 0,
        }
    }

    pub fn table(&self) -> &'static Table {
        self.table
    }

    pub fn key_column(&self) -> usize {
        self.key_column
    }

    pub fn is_presence(&self) -> bool {
        self.presence
    }

    pub fn projection(&self) -> &[usize] {
        &self.projection
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.rows.num_rows()).sum()
    }

    /// Rows of these keys.
    pub fn count(&self, keys: &HashSet<Key>) -> usize {
        keys.iter().filter_map(|key| self.by_key.get(key)).map(Vec::len).sum()
    }

    /// Most rows under one key whose times lie within so long.
    pub fn largest_key(&self, within: Micros) -> usize {
        let most = |ids: &Vec<u64>| {
            let mut times: Vec<Micros> = ids.iter().filter_map(|id| self.time_of(self.place(*id)?)).collect();
            times.sort_unstable();
            let counts = times.iter().enumerate().map(|(last, time)| last + 1 - times.partition_point(|first| time.saturating_sub(*first) > within));
            // Without its time in the projection every row counts.
            counts.max().unwrap_or(ids.len())
        };
        self.by_key.values().map(most).max().unwrap_or(0)
    }

    /// Memory held, roughly (bytes).
    pub fn bytes(&self) -> usize {
        self.bytes + self.rows() * 48
    }

    /// The number that the next row will get: rows from here on are new to whoever remembers it.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn has(&self, keys: &HashSet<Key>) -> bool {
        keys.iter().any(|key| self.by_key.contains_key(key))
    }

    /// Keeps the chosen rows of a batch of the table; gives their keys and times.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn insert(&mut self, batch: &RecordBatch, chosen: &BooleanArray, keys: &[Key], hasher: &KeyHasher) -> Result<Vec<(Key, Micros)>, ArrowError> {
        let ids = batch.column(system::EVENT_ID).as_string_view();
        let mut fresh = Vec::with_capacity(chosen.true_count());
        let mut keep = arrow::array::BooleanBufferBuilder::new(batch.num_rows());
        for row in 0..batch.num_rows() {
            let new = chosen.value(row) && {
                let id = hasher.id(ids.value(row));
                let new = self.seen.insert(id);
                if new {
                    fresh.push((row, id));
                }
                new
            };
            keep.append(new);
        }
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let times = batch.column(system::EVENT_TIME).as_primitive::<TimestampMicrosecondType>();
        let rows = filter_record_batch(&batch.project(&self.projection)?, &BooleanArray::new(keep.finish(), None))?;
        let rows = compacted(rows)?;
        let touched: Vec<(Key, Micros)> = fresh.iter().map(|(row, _)| (keys[*row], times.value(*row))).collect();
        for (offset, (key, _)) in touched.iter().enumerate() {
            self.by_key.entry(*key).or_default().push(self.next + offset as u64);
        }
        self.bytes += rows.get_array_memory_size();
        let latest = fresh.iter().map(|(row, _)| times.value(*row)).max().unwrap_or(0);
        self.chunks.push_back(Chunk { first: self.next, rows, ids: fresh.into_iter().map(|(_, id)| id).collect(), latest });
        self.next += touched.len() as u64;
        if self.chunks.len() > CHUNKS {
            self.merge_chunks()?;
        }
        Ok(touched)
    }

    /// The numbers of the rows of these keys, from a number on.
    pub fn ids_from(&self, keys: &HashSet<Key>, from: u64) -> impl Iterator<Item = u64> {
        // Rows of one key are numbered in the order in which they came.
        keys.iter().filter_map(|key| self.by_key.get(key)).flat_map(move |ids| ids[ids.partition_point(|id| *id < from)..].iter().copied())
    }

    /// A range of times, in slices with so many of these keys' rows each, or a few more where they have the same time; none where there
    /// are none.
    pub fn slices(&self, keys: &HashSet<Key>, times: Range<Micros>, rows: usize) -> Vec<Range<Micros>> {
        let of_row = |place: (usize, usize)| self.time_of(place).filter(|time| times.contains(time));
        let mut own: Vec<Micros> = self.ids_from(keys, 0).filter_map(|id| of_row(self.place(id)?)).collect();
        if own.is_empty() {
            return Vec::new();
        }
        own.sort_unstable();
        let mut cuts: Vec<Micros> = own.chunks(rows).skip(1).map(|slice| slice[0]).collect();
        cuts.dedup();
        let ends = cuts.iter().copied().chain([times.end]);
        std::iter::once(times.start).chain(cuts.iter().copied()).zip(ends).map(|(start, end)| start..end).collect()
    }

    fn place(&self, id: u64) -> Option<(usize, usize)> {
        let chunk = self.chunks.partition_point(|chunk| chunk.first <= id).wrapping_sub(1);
        let found = self.chunks.get(chunk).filter(|found| id - found.first < found.rows.num_rows() as u64)?;
        Some((chunk, (id - found.first) as usize))
    }

    fn time_of(&self, (chunk, row): (usize, usize)) -> Option<Micros> {
        let column = self.place_of(system::EVENT_TIME)?;
        Some(self.chunks[chunk].rows.column(column).as_primitive::<TimestampMicrosecondType>().value(row))
    }

    fn is_between(&self, place: (usize, usize), times: &Range<Micros>) -> bool {
        self.time_of(place).is_none_or(|time| times.contains(&time))
    }

    /// The rows of these keys whose number and time are in the ranges, as one batch.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn gather(&self, keys: &HashSet<Key>, numbers: Range<u64>, times: &Range<Micros>) -> Result<Option<RecordBatch>, ArrowError> {
        let mut wanted: Vec<u64> = self.ids_from(keys, numbers.start).filter(|id| *id < numbers.end).collect();
        wanted.sort_unstable();
        let all = *times == ALL_TIMES;
        let places: Vec<(usize, usize)> = wanted.into_iter().filter_map(|id| self.place(id)).filter(|place| all || self.is_between(*place, times)).collect();
        if places.is_empty() {
            return Ok(None);
        }
        if self.schema.fields().is_empty() {
            let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(places.len()));
            return RecordBatch::try_new_with_options(Arc::clone(&self.schema), Vec::new(), &options).map(Some);
        }
        let batches: Vec<&RecordBatch> = self.chunks.iter().map(|chunk| &chunk.rows).collect();
        interleave_record_batch(&batches, &places).map(Some)
    }

    /// All rows of these keys; but of those up to a moment of their key that are equal but for their time, only the latest.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn gather_latest(&self, keys: &HashSet<Key>, until: &dyn Fn(Key) -> Micros) -> Result<Option<RecordBatch>, ArrowError> {
        let (Some(time), Some(_)) = (self.place_of(system::EVENT_TIME), self.place_of(self.key_column)) else {
            return self.gather(keys, 0..u64::MAX, &ALL_TIMES);
        };
        let times: Vec<&[Micros]> =
            self.chunks.iter().map(|chunk| chunk.rows.column(time).as_primitive::<TimestampMicrosecondType>().values().as_ref()).collect();
        let (mut old, mut places) = (Vec::new(), Vec::new());
        for key in keys {
            let until = until(*key);
            let rows = self.by_key.get(key).into_iter().flatten().filter_map(|id| self.place(*id));
            rows.for_each(|(chunk, row)| if times[chunk][row] <= until { old.push((chunk, row)) } else { places.push((chunk, row)) });
        }
        let batches: Vec<&RecordBatch> = self.chunks.iter().map(|chunk| &chunk.rows).collect();
        if !old.is_empty() {
            let latest = latest_of(&interleave_record_batch(&batches, &old)?, time)?;
            places.extend(old.into_iter().zip(latest).filter(|(_, latest)| *latest).map(|(place, _)| place));
        }
        if places.is_empty() { Ok(None) } else { interleave_record_batch(&batches, &places).map(Some) }
    }

    /// Per key, the time of the earliest of its rows whose number and time are in the ranges.
    pub fn earliest(&self, keys: &HashSet<Key>, numbers: &Range<u64>, times: &Range<Micros>) -> HashMap<Key, Micros> {
        let of_key = |key: &Key| {
            let ids = self.by_key.get(key)?;
            let chosen = ids[ids.partition_point(|id| *id < numbers.start)..ids.partition_point(|id| *id < numbers.end)].iter();
            chosen.filter_map(|id| self.time_of(self.place(*id)?)).filter(|time| times.contains(time)).min()
        };
        keys.iter().filter_map(|key| Some((*key, of_key(key)?))).collect()
    }

    fn place_of(&self, column: usize) -> Option<usize> {
        self.projection.iter().position(|index| *index == column)
    }

    /// Drops chunks that lie wholly before the horizon; true if any went.
    pub fn evict_before(&mut self, horizon: Micros) -> bool {
        let before = self.chunks.len();
        let mut gone: Vec<std::ops::Range<u64>> = Vec::new();
        self.chunks.retain(|chunk| {
            let keep = chunk.latest >= horizon;
            if !keep {
                gone.push(chunk.first..chunk.first + chunk.ids.len() as u64);
                for id in &chunk.ids {
                    self.seen.remove(id);
                }
                self.bytes = self.bytes.saturating_sub(chunk.rows.get_array_memory_size());
            }
            keep
        });
        if gone.is_empty() {
            return false;
        }
        let is_gone = |id: &u64| gone[..gone.partition_point(|range| range.start <= *id)].last().is_some_and(|range| range.contains(id));
        self.by_key.retain(|_, ids| {
            ids.retain(|id| !is_gone(id));
            !ids.is_empty()
        });
        before != self.chunks.len()
    }

    /// Of the rows up to `horizon` that are equal but for their time, keeps the latest; none from before `oldest`.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn condense(&mut self, oldest: Micros, horizon: Micros, hasher: &KeyHasher) -> Result<(), ArrowError> {
        // As many old rows again as the last time left: then it is worth to go through all of them.
        let old: usize = self.chunks.iter().filter(|chunk| chunk.latest <= horizon).map(|chunk| chunk.rows.num_rows()).sum();
        if old < 2 * self.condensed + 4096 {
            return Ok(());
        }
        let (Some(time), Some(key)) = (self.place_of(system::EVENT_TIME), self.place_of(self.key_column)) else { return Ok(()) };
        let (old, young): (Vec<Chunk>, Vec<Chunk>) = self.chunks.drain(..).partition(|chunk| chunk.latest <= horizon);
        // What stands for many has no id of its own.
        old.iter().flat_map(|chunk| &chunk.ids).for_each(|id| _ = self.seen.remove(id));
        let rows = concat_batches(&self.schema, old.iter().map(|chunk| &chunk.rows))?;
        let times = rows.column(time).as_primitive::<TimestampMicrosecondType>();
        let keep: Vec<bool> = latest_of(&rows, time)?.into_iter().zip(times.values()).map(|(latest, time)| latest && *time >= oldest).collect();
        let rows = compacted(filter_record_batch(&rows, &BooleanArray::from(keep))?)?;
        self.by_key.clear();
        (self.next, self.bytes) = (0, 0);
        let latest = old.iter().map(|chunk| chunk.latest).max().unwrap_or(0);
        let whole = std::iter::once((vec![0; rows.num_rows()], rows, latest)).chain(young.into_iter().map(|chunk| (chunk.ids, chunk.rows, chunk.latest)));
        for (ids, rows, latest) in whole.filter(|(ids, ..)| !ids.is_empty()) {
            for (offset, key) in hasher.column(rows.column(key)).into_iter().enumerate() {
                self.by_key.entry(key).or_default().push(self.next + offset as u64);
            }
            let first = self.next;
            self.next += rows.num_rows() as u64;
            self.bytes += rows.get_array_memory_size();
            self.chunks.push_back(Chunk { first, ids, rows, latest });
        }
        self.condensed = self.chunks.front().map_or(0, |chunk| chunk.rows.num_rows());
        Ok(())
    }

    /// Merges runs of neighbouring small chunks, so that gathering does not touch hundreds of batches.
    fn merge_chunks(&mut self) -> Result<(), ArrowError> {
        let mut merged: VecDeque<Chunk> = VecDeque::new();
        for chunk in self.chunks.drain(..) {
            match merged.back_mut() {
                Some(last) if last.first + last.ids.len() as u64 == chunk.first && last.ids.len() < 16 * 1024 => {
                    last.rows = compacted(concat_batches(&self.schema, [&last.rows, &chunk.rows])?)?;
                    last.ids.extend(chunk.ids);
                    last.latest = last.latest.max(chunk.latest);
                }
                _ => merged.push_back(chunk),
            }
        }
        self.bytes = merged.iter().map(|chunk| chunk.rows.get_array_memory_size()).sum();
        self.chunks = merged;
        Ok(())
    }
}

/// Which rows are the latest of those that are equal in all columns but their time.
fn latest_of(rows: &RecordBatch, time: usize) -> Result<Vec<bool>, ArrowError> {
    let times = rows.column(time).as_primitive::<TimestampMicrosecondType>();
    let mut is_latest = vec![false; rows.num_rows()];
    let others = || rows.columns().iter().enumerate().filter(|(column, _)| *column != time).map(|(_, values)| values);
    // Rows of one key, mostly.
    let same = |values: &ArrayRef| not_distinct(values, &Scalar::new(values.slice(0, 1))).is_ok_and(|same| same.true_count() == same.len());
    if rows.num_rows() > 0 && others().all(same) {
        (0..rows.num_rows()).max_by_key(|row| times.value(*row)).into_iter().for_each(|row| is_latest[row] = true);
        return Ok(is_latest);
    }
    let fields = others().map(|values| arrow::row::SortField::new(values.data_type().clone())).collect();
    let terms = arrow::row::RowConverter::new(fields)?.convert_columns(&others().cloned().collect::<Vec<_>>())?;
    let mut latest: HashMap<&[u8], usize> = HashMap::new();
    for row in 0..rows.num_rows() {
        let slot = latest.entry(terms.row(row).data()).or_insert(row);
        if times.value(row) > times.value(*slot) {
            *slot = row;
        }
    }
    latest.into_values().for_each(|row| is_latest[row] = true);
    Ok(is_latest)
}

/// Frees the rows from the buffers of the batch that they came in: a kept row must not keep its neighbours' text alive.
fn compacted(rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = rows
        .columns()
        .iter()
        .map(|column| -> Result<ArrayRef, ArrowError> {
            Ok(match column.data_type() {
                DataType::Utf8View => Arc::new(column.as_string_view().gc()) as ArrayRef,
                DataType::Dictionary(..) => {
                    let words = column.as_dictionary::<Int32Type>();
                    if words.values().len() > words.len() {
                        arrow::compute::cast(&arrow::compute::cast(column, &DataType::Utf8)?, column.data_type())?
                    } else {
                        Arc::clone(column)
                    }
                }
                _ => Arc::clone(column),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns, &options)
}

/// The distinct texts of a column whose keys are among `keys`.
pub fn texts_of(column: &ArrayRef, keys: &HashSet<Key>, hasher: &KeyHasher) -> Result<Vec<String>, ArrowError> {
    let column = arrow::compute::cast(column, &DataType::Utf8View)?;
    let texts: &StringViewArray = column.as_string_view();
    let mut found: Vec<String> = texts.iter().flatten().filter(|text| keys.contains(&hasher.key(text))).map(str::to_owned).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
