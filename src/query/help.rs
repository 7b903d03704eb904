//! What the tables, columns and functions mean, as tables: `SELECT * FROM help_columns WHERE table_name = 'cloudtrail'`.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::execution::context::SessionContext;

use crate::function::{FUNCTIONS, TABLE_FUNCTIONS};
use crate::table::{DIMENSIONS, TABLES, VIEWS};

/// Tables of this kind, with their columns and meaning.
pub const HELP: [(&str, [&str; 3], &str); 3] = [
    ("help_tables", ["table_name", "kind", "meaning"], "Every table and view."),
    ("help_columns", ["table_name", "column_name", "meaning"], "Every column of the tables, with its meaning."),
    ("help_functions", ["function_name", "arguments", "meaning"], "Functions beyond SQL's own."),
];

/// Adds them to a context.
///
/// # Errors
/// Never in practice: a name would have to be taken twice.
pub fn register(ctx: &SessionContext) -> Result<()> {
    let tables = || TABLES.iter().chain(DIMENSIONS);
    let all: [Vec<[&str; 3]>; 3] = [
        tables()
            .map(|table| [table.name, if table.is_stream() { "stream" } else { "table" }, table.doc])
            .chain(VIEWS.iter().map(|(name, _, doc)| [*name, "view", *doc]))
            .chain(HELP.iter().map(|(name, _, doc)| [*name, "help", *doc]))
            .collect(),
        tables().flat_map(|table| table.columns.iter().map(|column| [table.name, column.name, column.doc])).collect(),
        FUNCTIONS.iter().chain(TABLE_FUNCTIONS).map(|(name, arguments, doc)| [*name, *arguments, *doc]).collect(),
    ];
    for ((name, columns, _), rows) in HELP.iter().zip(all) {
        let column = |index: usize| Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[index]))) as ArrayRef;
        let batch = RecordBatch::try_from_iter(columns.iter().enumerate().map(|(index, name)| (*name, column(index))))?;
        ctx.register_batch(*name, batch)?;
    }
    Ok(())
}
