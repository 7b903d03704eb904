//! Answers as a table, JSON lines, CSV or Parquet.

use std::io::Write;

use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;

use super::Answer;
use crate::error::{At, Result};

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
            let options = FormatOptions::default().with_null("").with_display_error(true).with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
            let batches =
                if answer.batches.is_empty() { vec![arrow::record_batch::RecordBatch::new_empty(answer.schema.clone())] } else { answer.batches.clone() };
            let table = pretty_format_batches_with_options(&batches, &options).at(place)?;
            writeln!(out, "{table}").at(place)?;
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
                writer.write(&arrow::record_batch::RecordBatch::new_empty(answer.schema.clone())).at(place)?;
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
