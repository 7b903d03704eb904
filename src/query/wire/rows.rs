//! Arrow to PostgreSQL: what has no counterpart there goes as its text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch};
use datafusion::execution::memory_pool::MemoryReservation;
use futures::{StreamExt, stream};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{DataRowEncoder, FieldInfo, QueryResponse};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;

use super::failure;
use crate::query::Answer;

/// The type under which a column is sent.
fn sent_as(kind: &DataType) -> DataType {
    let scalar = |kind: &DataType| {
        matches!(
            kind,
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Boolean
                | DataType::Int16
                | DataType::Int32
                | DataType::Int64
                | DataType::UInt8
                | DataType::UInt16
                | DataType::UInt32
                | DataType::Float32
                | DataType::Float64
                | DataType::Date32
                | DataType::Date64
                | DataType::Timestamp(..)
                | DataType::Binary
                | DataType::Null
        )
    };
    match kind {
        DataType::Dictionary(_, values) => sent_as(values),
        DataType::Int8 => DataType::Int16,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Float16 => DataType::Float32,
        // PostgreSQL knows zones in any case of letters; the encoder knows this one in capitals only.
        DataType::Timestamp(unit, Some(zone)) if zone.eq_ignore_ascii_case("utc") => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::Decimal128(precision, scale) if *precision <= 28 && (0..=28).contains(scale) => kind.clone(),
        DataType::List(item) | DataType::LargeList(item) if scalar(item.data_type()) => kind.clone(),
        kind if scalar(kind) => kind.clone(),
        // Maps, unions (JSON values), structs, intervals: clients show text.
        _ => DataType::Utf8,
    }
}

/// The schema under which an answer is sent.
pub fn sent_schema(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| Field::new(field.name(), sent_as(field.data_type()), true).with_metadata(field.metadata().clone());
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn sent(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let kind = sent_as(column.data_type());
    if kind == *column.data_type() {
        return Ok(Arc::clone(column));
    }
    if kind != DataType::Utf8 || matches!(column.data_type(), DataType::Dictionary(..)) {
        return arrow::compute::cast(column, &kind);
    }
    if let DataType::Union(..) = column.data_type() {
        let values = column.as_union();
        let text = |row: usize| {
            let value = values.value(row);
            ArrayFormatter::try_new(&value, &FormatOptions::default())?.value(0).try_to_string().map(|text| (!value.is_null(0)).then_some(text))
        };
        return Ok(Arc::new((0..values.len()).map(text).collect::<Result<StringArray, _>>()?));
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let mut texts = StringBuilder::new();
    for row in 0..column.len() {
        texts.append_option((!column.is_null(row)).then(|| formatter.value(row).try_to_string()).transpose()?);
    }
    Ok(Arc::new(texts.finish()))
}

/// Rows that are turned into what the wire sends at a time: what stands once in a batch may stand in each of its rows.
const ROWS_AT_ONCE: usize = 1_024;

/// An answer as the wire sends it, and the memory that it takes.
pub struct Encoded {
    pub fields: Arc<Vec<FieldInfo>>,
    pub rows: Vec<DataRow>,
    held: Arc<MemoryReservation>,
}

/// Turns an answer into what the wire sends; the memory for it is taken from where the answer's own came from.
///
/// # Errors
/// The client asks for more or fewer formats than there are columns, a value cannot be sent, or it is too much.
pub fn encoded(answer: Answer, format: &Format) -> PgWireResult<Encoded> {
    let Answer { schema, batches, held } = answer;
    let schema = sent_schema(&schema);
    if let Format::Individual(formats) = format
        && formats.len() != schema.fields().len()
    {
        return Err(failure("ERROR", "08P01", &format!("{} result formats for {} columns", formats.len(), schema.fields().len())));
    }
    let fields = Arc::new(arrow_schema_to_pg_fields(&schema, format, None)?);
    let mut rows = Vec::new();
    for batch in batches {
        for from in (0..batch.num_rows()).step_by(ROWS_AT_ONCE) {
            let part = batch.slice(from, ROWS_AT_ONCE.min(batch.num_rows() - from));
            let part = fitted(&part, &schema).map_err(|error| unsent(&error))?;
            // The first that cannot be sent ends it: asked again, the encoder would say so again, for ever.
            let part = encode_recordbatch(Arc::clone(&fields), part).collect::<PgWireResult<Vec<_>>>().map_err(|error| unsent(&error))?;
            let bytes = part.iter().map(|row| row.data.len() + size_of::<DataRow>()).sum();
            held.try_grow(bytes)
                .map_err(|_| failure("ERROR", "54000", "the answer does not fit into the memory for questions; ask for less, or raise the limit"))?;
            rows.extend(part);
        }
        held.shrink(batch.get_array_memory_size().min(held.size()));
    }
    Ok(Encoded { fields, rows, held: Arc::new(held) })
}

/// A batch with its columns as they are sent. A union's branches may come in another kind of text than it says.
fn fitted(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let fitted = |(column, field): (&ArrayRef, &Arc<Field>)| sent(column).and_then(|column| arrow::compute::cast(&column, field.data_type()));
    let columns = batch.columns().iter().zip(schema.fields()).map(fitted).collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &RecordBatchOptions::new().with_row_count(Some(batch.num_rows())))
}

fn unsent(error: &dyn std::fmt::Display) -> PgWireError {
    failure("ERROR", "22000", &format!("a value of the answer cannot be sent: {error}; cast it to text, or name a time zone such as 'UTC' or 'Europe/Berlin'"))
}

impl Encoded {
    /// The memory that it takes, until nobody holds this any more.
    pub fn held(&self) -> Arc<MemoryReservation> {
        Arc::clone(&self.held)
    }

    /// The answer to a query.
    pub fn response(self) -> QueryResponse {
        let Self { fields, rows, held } = self;
        QueryResponse::new(
            fields,
            stream::iter(rows).map(move |row| {
                let _until_sent = &held;
                Ok(row)
            }),
        )
    }
}

/// One text under a name.
///
/// # Errors
/// Never in practice.
pub fn one_text(name: &str, value: &str, format: &Format) -> PgWireResult<QueryResponse> {
    let fields = Arc::new(vec![FieldInfo::new(name.into(), None, None, Type::TEXT, format.format_for(0))]);
    let mut row = DataRowEncoder::new(Arc::clone(&fields));
    row.encode_field(&value)?;
    Ok(QueryResponse::new(fields, stream::iter([Ok(row.take_row())])))
}
