//! Arrow to PostgreSQL: what has no counterpart there goes as its text.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch};
use futures::stream;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldInfo, QueryResponse};
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

fn sent(column: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
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

/// Columns and rows.
type Encoded = (Arc<Vec<FieldInfo>>, Vec<PgWireResult<DataRow>>);

/// Columns and rows of an answer as the wire sends them.
///
/// # Errors
/// The client asks for more or fewer formats than there are columns.
pub fn rows(answer: &Answer, format: &Format) -> PgWireResult<Encoded> {
    let schema = sent_schema(&answer.schema);
    if let Format::Individual(formats) = format
        && formats.len() != schema.fields().len()
    {
        return Err(failure("ERROR", "08P01", &format!("{} result formats for {} columns", formats.len(), schema.fields().len())));
    }
    let fields = Arc::new(arrow_schema_to_pg_fields(&schema, format, None)?);
    let wrong = |error: arrow::error::ArrowError| PgWireError::ApiError(Box::new(error));
    let mut rows = Vec::new();
    for batch in &answer.batches {
        // A union's branches may come in another kind of text than it says.
        let fitted = |(column, field): (&ArrayRef, &Arc<Field>)| sent(column).and_then(|column| arrow::compute::cast(&column, field.data_type()));
        let columns = batch.columns().iter().zip(schema.fields()).map(fitted).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).map_err(wrong)?;
        rows.extend(encode_recordbatch(Arc::clone(&fields), batch));
    }
    Ok((fields, rows))
}

/// An answer as the answer to a query.
///
/// # Errors
/// As of [`rows`].
pub fn response(answer: &Answer, format: &Format) -> PgWireResult<QueryResponse> {
    let (fields, rows) = rows(answer, format)?;
    Ok(QueryResponse::new(fields, stream::iter(rows)))
}
