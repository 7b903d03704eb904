//! `keyfuse explain-format`: what was recognised in files, which columns it fills, what is left over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use keyfuse::clock::parse_time;
use keyfuse::decode::{Decoder, FORMATS, Message};
use keyfuse::error::Error;
use keyfuse::source::files;
use keyfuse::table::{cloudtrail as system, rejects};
use keyfuse::text::visible;
use serde_json::Value;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, runtime};

/// Show what is recognised in log files: format, table, columns filled, and what no column holds.
///
/// Exit 1 if a record was refused. A log that is not recognised can be read with a mapping file (--mapping).
#[derive(clap::Args)]
pub struct Args {
    /// Files, folders, globs, `-` for standard input, or URLs; plain or gzip.
    #[arg(required = true)]
    paths: Vec<String>,
    /// Log format; `auto` looks at each record.
    #[arg(long, default_value = "auto")]
    format: String,
    /// Look at this many rows at most.
    #[arg(long, default_value = "10000")]
    rows: usize,
    #[command(flatten)]
    rules: Rules,
}

/// What was seen of one format in one table.
#[derive(Default)]
struct Kind {
    rows: usize,
    /// Column → rows in which it is filled, and one value.
    columns: BTreeMap<String, (usize, String)>,
    /// Path in the record → rows in which no column holds its value, and one value.
    left: BTreeMap<String, (usize, String)>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let decoding = args.rules.decoding()?;
    let format = args.rules.format(&args.format, &decoding)?;
    let names: Vec<&'static dyn keyfuse::decode::Format> = decoding.mappings.iter().chain(FORMATS).copied().collect();
    let mut decoder = Decoder::new(format, decoding);
    let runtime = runtime()?;
    let inputs = runtime.block_on(files::resolve(&args.paths, &HashMap::new())).map_err(one)?;
    'inputs: for input in &inputs {
        let mut blocks = runtime.handle().block_on(input.blocks()).map_err(one)?;
        while let Some(block) = blocks.next_block().map_err(one)? {
            let topic: &Arc<str> = &input.name;
            decoder.decode(Message { bytes: &block.bytes, topic, partition: 0, offset: None, line: block.line, append_time: input.delivered_at });
            if decoder.rows() >= args.rows {
                break 'inputs;
            }
        }
    }
    let mut kinds: BTreeMap<(String, &'static str), Kind> = BTreeMap::new();
    let mut refused: BTreeMap<(String, String), (usize, String)> = BTreeMap::new();
    for (table, batch) in decoder.finish() {
        let texts: Vec<_> =
            batch.columns().iter().map(|column| arrow::compute::cast(column, &DataType::Utf8)).collect::<Result<_, _>>().map_err(|error| one(error.into()))?;
        let text = |column: usize, row: usize| {
            let column = texts[column].as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        for row in 0..batch.num_rows() {
            if std::ptr::eq(table, &rejects::TABLE) {
                let key = (text(rejects::REASON, row).unwrap_or_default(), text(rejects::DETAIL, row).unwrap_or_default());
                let entry = refused.entry(key).or_insert_with(|| (0, text(rejects::RAW, row).unwrap_or_default()));
                entry.0 += 1;
                continue;
            }
            let raw = text(table.columns.len() - 1, row).unwrap_or_default();
            let name = format.or_else(|| names.iter().copied().find(|format| format.recognises(&raw))).map_or("keyfuse", |format| format.name());
            let kind = kinds.entry((name.to_owned(), table.name)).or_default();
            kind.rows += 1;
            let mut held: BTreeSet<String> = BTreeSet::new();
            for (index, column) in table.columns.iter().enumerate().take(table.columns.len() - 1) {
                let Some(value) = text(index, row) else { continue };
                held.insert(spelling(&value));
                if index > system::FLAGS || index == system::EVENT_TIME || index == system::EVENT_ID {
                    let entry = kind.columns.entry(column.name.to_owned()).or_insert_with(|| (0, value.clone()));
                    entry.0 += 1;
                }
            }
            let mut leaves = Vec::new();
            leaves_of(&serde_json::from_str(&raw).unwrap_or(Value::Null), "", &mut leaves);
            // Each path once a row, however long its list.
            let mut told: BTreeSet<String> = BTreeSet::new();
            for (path, value) in leaves.into_iter().filter(|(path, value)| !held.contains(&spelling(value)) && told.insert(path.clone())) {
                kind.left.entry(path).or_insert_with(|| (0, value)).0 += 1;
            }
        }
    }
    let style = Style { colour: coloured() };
    let short = |text: &str| visible(&text.chars().take(60).collect::<String>()).into_owned();
    for ((format, table), kind) in &kinds {
        println!("{}  {} rows of {table}", style.bold(format), kind.rows);
        for (column, (filled, example)) in &kind.columns {
            println!("  {column:<24} {:>3} %  {}", filled * 100 / kind.rows, style.dim(&short(example)));
        }
        if !kind.left.is_empty() {
            println!("  {}", style.bold("in no column (still in raw; of texts only hash, length and hits are kept):"));
            for (path, (times, example)) in &kind.left {
                println!("  {:<48} {:>3} %  {}", visible(path), times * 100 / kind.rows, style.dim(&short(example)));
            }
        }
        println!();
    }
    for ((reason, detail), (times, example)) in &refused {
        println!("{} {times} refused: {}\n  {}", style.bold(reason), visible(detail), style.dim(&short(example)));
    }
    if kinds.is_empty() && refused.is_empty() {
        return Err(one(Error::user("there is no record in these files")));
    }
    Ok(if refused.is_empty() { Outcome::Clean } else { Outcome::Found })
}

/// Times are compared as moments: a column spells them its own way.
fn spelling(value: &str) -> String {
    parse_time(value).map_or_else(|| value.to_lowercase(), |time| (time / 1000).to_string())
}

/// Every scalar of a record with its path; places in lists are `*`, attributes are named by their key.
fn leaves_of(value: &Value, path: &str, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => match (object.get("key").and_then(Value::as_str), object.get("value")) {
            (Some(key), Some(inner)) if object.len() == 2 => leaves_of(inner, &format!("{path}/{key}"), into),
            _ => object.iter().for_each(|(key, inner)| leaves_of(inner, &format!("{path}/{key}"), into)),
        },
        Value::Array(list) => list.iter().for_each(|inner| leaves_of(inner, path, into)),
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => into.push((path.to_owned(), text.clone())),
        other => into.push((path.to_owned(), other.to_string())),
    }
}
