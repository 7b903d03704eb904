//! Building rows: one append per column, in any order, absent columns null.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, AsArray, BooleanBuilder, DictionaryArray, Int32Builder, Int64Builder, RecordBatch, StringBuilder, StringViewBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::Int32Type;
use hashbrown::HashMap;

use super::{Kind, Table, cloudtrail as system};
use crate::clock::{MINUTE, Micros};
use crate::limits;

/// Clocks of honest hosts differ by less than this; a time further in the future is not believed.
const CLOCK_SKEW: Micros = 2 * MINUTE;

/// Where a record came from: enough to find it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Kafka topic, or file.
    pub topic: Arc<str>,
    /// Kafka partition; 0 for files.
    pub partition: i32,
    /// Kafka offset, or line of the file.
    pub offset: i64,
    /// Number of the record inside its message.
    pub record: i64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}@{}#{}", self.topic, self.partition, self.offset, self.record)
    }
}

/// A dictionary column under construction. Neighbouring rows mostly repeat their words, so the last one is compared first.
#[derive(Default)]
struct Words {
    numbers: HashMap<Box<str>, i32>,
    values: StringBuilder,
    keys: Int32Builder,
    last: (String, i32),
}

impl Words {
    #[inline]
    fn append(&mut self, word: &str) {
        if self.last.0 != word || self.values.len() == 0 {
            let next = self.numbers.len() as i32;
            let number = match self.numbers.get(word) {
                Some(number) => *number,
                None => {
                    self.numbers.insert(word.into(), next);
                    self.values.append_value(word);
                    next
                }
            };
            self.last.0.clear();
            self.last.0.push_str(word);
            self.last.1 = number;
        }
        self.keys.append_value(self.last.1);
    }

    fn finish(&mut self) -> ArrayRef {
        self.numbers.clear();
        self.last.0.clear();
        let (keys, values) = (self.keys.finish(), Arc::new(self.values.finish()));
        // Every key was given out for a value that was appended.
        Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).expect("keys point at values"))
    }
}

enum Builder {
    Time(TimestampMicrosecondBuilder),
    Word(Box<Words>),
    Text(StringViewBuilder),
    Int(Int64Builder),
    Bool(BooleanBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Time => Builder::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
            Kind::Word => Builder::Word(Box::default()),
            Kind::Text => Builder::Text(StringViewBuilder::new().with_fixed_block_size(256 << 10)),
            Kind::Int => Builder::Int(Int64Builder::new()),
            Kind::Bool => Builder::Bool(BooleanBuilder::new()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Builder::Time(b) => b.len(),
            Builder::Word(b) => b.keys.len(),
            Builder::Text(b) => b.len(),
            Builder::Int(b) => b.len(),
            Builder::Bool(b) => b.len(),
        }
    }

    fn nulls(&mut self, count: usize) {
        match self {
            Builder::Time(b) => b.append_nulls(count),
            Builder::Word(b) => b.keys.append_nulls(count),
            Builder::Text(b) => (0..count).for_each(|_| b.append_null()),
            Builder::Int(b) => b.append_nulls(count),
            Builder::Bool(b) => b.append_nulls(count),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Time(b) => Arc::new(b.finish()),
            Builder::Word(b) => b.finish(),
            Builder::Text(b) => Arc::new(b.finish()),
            Builder::Int(b) => Arc::new(b.finish()),
            Builder::Bool(b) => Arc::new(b.finish()),
        }
    }
}

/// Rows of one table under construction.
pub struct Rows {
    table: &'static Table,
    columns: Vec<Builder>,
    rows: usize,
    bytes: usize,
}

impl Rows {
    pub fn new(table: &'static Table) -> Self {
        Self { table, columns: table.columns.iter().map(|c| Builder::new(c.kind)).collect(), rows: 0, bytes: 0 }
    }

    pub fn table(&self) -> &'static Table {
        self.table
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Text bytes held, roughly: what decides when a batch is full.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The builder of a column, with the nulls of the rows in which it was not set.
    #[inline]
    fn column(&mut self, column: usize) -> &mut Builder {
        let builder = &mut self.columns[column];
        let behind = self.rows - builder.len();
        if behind > 0 {
            builder.nulls(behind);
        }
        builder
    }

    /// Sets a text or word column of the row under construction.
    #[inline]
    pub fn text(&mut self, column: usize, value: Option<&str>) {
        let Some(value) = value else { return };
        self.bytes += value.len();
        match self.column(column) {
            Builder::Word(b) => b.append(value),
            Builder::Text(b) => b.append_value(value),
            _ => debug_assert!(false, "column {column} is not text"),
        }
    }

    #[inline]
    pub fn int(&mut self, column: usize, value: Option<i64>) {
        // A count below zero or beyond all measure is a lie or an overflow: null, so that sums only rise.
        let believed = |value: &i64| (0..=limits::NATURAL).contains(value) || !self.table.columns[column].is_natural();
        let Some(value) = value.filter(believed) else { return };
        match self.column(column) {
            Builder::Int(b) => b.append_value(value),
            _ => debug_assert!(false, "column {column} is not an integer"),
        }
    }

    #[inline]
    pub fn bool(&mut self, column: usize, value: Option<bool>) {
        let Some(value) = value else { return };
        match self.column(column) {
            Builder::Bool(b) => b.append_value(value),
            _ => debug_assert!(false, "column {column} is not a boolean"),
        }
    }

    #[inline]
    pub fn time(&mut self, column: usize, value: Option<Micros>) {
        let Some(value) = value else { return };
        match self.column(column) {
            Builder::Time(b) => b.append_value(value),
            _ => debug_assert!(false, "column {column} is not a time"),
        }
    }

    /// Sets the system columns of a stream row: where it came from, when, and whether it is late.
    ///
    /// Lateness is decided here and nowhere else, from the row alone, so that it is the same live, after a crash and in a backtest.
    pub fn stamp(&mut self, place: &Place, event_time: Option<Micros>, append_time: Option<Micros>, event_id: &str, flags: &mut String) {
        let append = append_time.or(event_time).unwrap_or(0);
        let mut event = event_time.unwrap_or(append);
        if event > append.saturating_add(CLOCK_SKEW) {
            event = append;
            flag(flags, "future_time");
        }
        self.time(system::EVENT_TIME, Some(event));
        self.time(system::APPEND_TIME, Some(append));
        self.text(system::EVENT_ID, Some(event_id));
        self.text(system::TOPIC, Some(&place.topic));
        self.int(system::PARTITION, Some(place.partition.into()));
        self.int(system::OFFSET, Some(place.offset));
        self.int(system::RECORD, Some(place.record));
        self.bool(system::LATE, Some(append.saturating_sub(event) > self.table.max_delay));
        self.text(system::FLAGS, (!flags.is_empty()).then_some(flags.as_str()));
    }

    /// Ends the row: what was not set is null.
    #[inline]
    pub fn end_row(&mut self) {
        self.rows += 1;
    }

    /// The rows so far as a batch; the builders start again, empty.
    pub fn finish(&mut self) -> RecordBatch {
        let columns: Vec<ArrayRef> = (0..self.columns.len()).map(|column| self.column(column).finish()).collect();
        self.rows = 0;
        self.bytes = 0;
        // The builders were made from this very schema and are equally long.
        RecordBatch::try_new(self.table.schema(), columns).expect("builders match their own schema")
    }
}

/// The words of a word column, row by row, nulls left out.
pub fn words(batch: &RecordBatch, column: usize) -> impl Iterator<Item = &str> {
    let column = batch.column(column).as_dictionary::<Int32Type>();
    let values = column.values().as_string::<i32>();
    column.keys().iter().flatten().map(|key| values.value(key as usize))
}

/// Adds one flag to the comma-separated list.
pub fn flag(flags: &mut String, what: &str) {
    if !flags.split(',').any(|known| known == what) {
        if !flags.is_empty() {
            flags.push(',');
        }
        flags.push_str(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{STREAMS, rejects};

    #[test]
    fn system_columns_stand_first_in_every_stream() {
        for table in STREAMS.iter().chain([&&rejects::TABLE]) {
            for (index, column) in system::COLUMNS[..=system::FLAGS].iter().enumerate() {
                assert_eq!(table.columns[index].name, column.name, "in {}", table.name);
            }
            assert_eq!(table.columns.last().map(|c| c.name), Some("raw"), "in {}", table.name);
        }
    }

    #[test]
    fn a_row_from_the_future_is_flagged_and_set_back() {
        let mut rows = Rows::new(&rejects::TABLE);
        let place = Place { topic: "t".into(), partition: 0, offset: 0, record: 0 };
        let mut flags = String::new();
        rows.stamp(&place, Some(10 * MINUTE), Some(MINUTE), "id", &mut flags);
        rows.end_row();
        assert_eq!(flags, "future_time");
        let batch = rows.finish();
        assert_eq!(batch.column(system::EVENT_TIME).as_ref(), batch.column(system::APPEND_TIME).as_ref());
    }
}
