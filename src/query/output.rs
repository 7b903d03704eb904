//! Answers as a table for people, or as JSON lines, CSV or Parquet for programs.

use std::io::Write;

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;

use super::Answer;
use crate::error::{At, Result};
use crate::text::visible;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Json,
    Csv,
    Parquet,
}

/// Writes an answer.
///
/// # Errors
/// The output cannot be written to.
pub fn write(answer: &Answer, format: Format, out: &mut (impl Write + Send)) -> Result<()> {
    let place = || "writing the answer".to_owned();
    match format {
        Format::Table => {
            let none = [RecordBatch::new_empty(answer.schema.clone())];
            let batches = if answer.batches.is_empty() { &none[..] } else { &answer.batches };
            let texts = batches.iter().map(as_text).collect::<Result<Vec<_>, _>>().at(place)?;
            writeln!(out, "{}", pretty_format_batches(&texts).at(place)?).at(place)?;
            let rows = answer.rows();
            writeln!(out, "{rows} row{}", if rows == 1 { "" } else { "s" }).at(place)
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(out);
            answer.batches.iter().try_for_each(|batch| writer.write(batch)).at(place)?;
            writer.finish().at(place)
        }
        Format::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(out);
            if answer.batches.is_empty() {
                writer.write(&RecordBatch::new_empty(answer.schema.clone())).at(place)?;
            }
            answer.batches.iter().try_for_each(|batch| writer.write(batch)).at(place)
        }
        Format::Parquet => {
            let mut writer = parquet::arrow::ArrowWriter::try_new(out, answer.schema.clone(), None).at(place)?;
            answer.batches.iter().try_for_each(|batch| writer.write(batch)).at(place)?;
            writer.close().at(place).map(|_| ())
        }
    }
}

/// Every value as a terminal may have it. A line of a value that goes on says so with a mark, so that none passes for a row.
fn as_text(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = FormatOptions::default().with_null("").with_display_error(true).with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
    let shown = |text: String| text.split('\n').map(visible).collect::<Vec<_>>().join("↵\n");
    let text = |column: &ArrayRef| -> Result<ArrayRef, ArrowError> {
        let values = ArrayFormatter::try_new(column, &options)?;
        Ok(Arc::new((0..batch.num_rows()).map(|row| Some(shown(values.value(row).to_string()))).collect::<StringArray>()))
    };
    let fields: Vec<Field> = batch.schema().fields().iter().map(|field| Field::new(visible(field.name()), DataType::Utf8, true)).collect();
    let columns = batch.columns().iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)
}
