//! `keyfuse explain`: why an alert came, or why one did not.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use keyfuse::archive::{Archive, ArchiveHistory};
use keyfuse::clock::{Micros, rfc3339, spoken};
use keyfuse::detect::{Detection, Schedule};
use keyfuse::error::Error;
use keyfuse::explain::{Clause, Explainer, Seen, clauses};
use keyfuse::query::{Answer, Door, Limits, Rows, on_deep_stacks};
use keyfuse::schedule::Past;
use keyfuse::text::visible;

use super::terminal::{Style, coloured};
use super::{Outcome, Rules, runtime};

/// Which rows are shown of a detection that is evaluated live.
const KEPT: &str = "of its key, within reach of its time, that pass the clauses of a scan; * are the evidence that it names";

/// Why an alert came: every row, clause and moment that led to it. Or, with --why-not, why a detection said nothing about an event:
/// which clause failed, with the values.
#[derive(clap::Args)]
pub struct Args {
    /// Id of an alert, or enough of its beginning.
    #[arg(required_unless_present = "why_not")]
    alert_id: Option<String>,
    /// A detection and an event that it did not alert on.
    #[arg(long, num_args = 2, value_names = ["DETECTION", "EVENT-ID"], conflicts_with = "alert_id")]
    why_not: Vec<String>,
    /// Archive to look in: a folder or a URL.
    #[arg(long, default_value = "keyfuse-data/archive")]
    archive: String,
    #[command(flatten)]
    rules: Rules,
    /// Option of the object store, as NAME=VALUE.
    #[arg(long = "storage-option", value_parser = super::replay::option)]
    storage_options: Vec<(String, String)>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    super::must_be_archive(&args.archive)?;
    let (detections, fingerprinter) = (args.rules.detections()?, args.rules.fingerprinter()?);
    let runtime = runtime()?;
    let options: HashMap<String, String> = args.storage_options.iter().cloned().collect();
    let archive = Arc::new(runtime.block_on(Archive::open(&args.archive, &options)).map_err(one)?);
    let dimensions = args.rules.dimensions_of(&runtime, &archive)?;
    let history = ArchiveHistory { archive: Arc::clone(&archive), runtime: runtime.handle().clone() };
    let past = Past::Archive(Arc::clone(&archive));
    let explainer = Explainer { history: &history, past: &past, dimensions: &dimensions, fingerprinter: &fingerprinter, runtime: &runtime };
    let by_name = |name: &str| {
        detections.iter().find(|detection| detection.name.eq_ignore_ascii_case(name)).ok_or_else(|| one(Error::user(format!("no detection named {name}"))))
    };
    let style = Style { colour: coloured() };
    if let [name, event_id] = &args.why_not[..] {
        let detection = by_name(name)?;
        why_not(&style, detection, event_id, &explainer.why_not(detection, event_id).map_err(one)?);
        return Ok(Outcome::Clean);
    }
    let wanted = args.alert_id.unwrap_or_default();
    if wanted.is_empty() || !wanted.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(one(Error::user(format!("`{wanted}` is no alert id: 32 hex digits, or the first of them"))));
    }
    let door = runtime.block_on(Door::open(Rows::Archive(&archive), &dimensions, &fingerprinter, Limits::default())).map_err(one)?;
    let sql = format!(
        "SELECT alert_id, detection, alert_key, payload, evidence, first_time, status, decided_at, revision, level, held, late, last_time FROM alert_revisions WHERE alert_id LIKE '{wanted}%' ORDER BY alert_id, revision"
    );
    let answer = on_deep_stacks(&runtime, async move { door.ask(&sql).await }).map_err(one)?;
    let ids: std::collections::BTreeSet<String> = (0..answer.rows()).map(|row| text(&answer, row, 0)).collect();
    match ids.len() {
        1 => {}
        0 => return Err(one(Error::user(format!("{}: no alert there has an id that begins with {wanted}", args.archive)))),
        many => return Err(one(Error::user(format!("{many} alerts have an id that begins with {wanted}; give more of it")))),
    }
    let detection = by_name(&text(&answer, 0, 1))?;
    alert(&style, detection, &answer, &explainer).map_err(one)?;
    Ok(Outcome::Clean)
}

fn alert(style: &Style, detection: &Detection, answer: &Answer, explainer: &Explainer<'_>) -> Result<(), Error> {
    let last = answer.rows() - 1;
    let evidence: Vec<String> = serde_json::from_str(&text(answer, last, 4)).unwrap_or_default();
    println!("{} {}  {}", style.bold(&detection.name), style.bold(&detection.title), visible(&text(answer, last, 2)));
    let held = match text(answer, last, 10) {
        why if why.is_empty() => "to be delivered to every sink".to_owned(),
        why => format!("not delivered: {why}"),
    };
    let late = if text(answer, last, 11) == "true" { ", from late rows" } else { "" };
    println!("{}, {}, {held}{late}", text(answer, last, 9), text(answer, last, 6));
    println!("\n{}", style.bold("What it says"));
    let payload: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(&text(answer, last, 3)).unwrap_or_default();
    for (name, value) in payload.iter().filter(|(_, value)| !value.is_null()) {
        println!("  {name:<20} {}", visible(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    }
    let times = (moment(answer, last, 5).unwrap_or_default(), moment(answer, last, 12).unwrap_or_default());
    let (analysis, parts, more) = explainer.parts(detection, &evidence, times.0, times.1.max(times.0))?;
    let (decided, rows) = match detection.schedule {
        Some(Schedule { every, over }) => (format!("asked every {} of what arrived in the {} before", spoken(every), spoken(over)), "that it names"),
        None if analysis.wait > 0 => {
            let early = if detection.early { ", told early before" } else { "" };
            (format!("decided {} after the alert's time{early}", spoken(analysis.wait)), KEPT)
        }
        None => ("decided when the row arrives".into(), KEPT),
    };
    println!("\n{} (class {:?}, {decided})", style.bold("What it asks"), analysis.class);
    match detection.schedule {
        Some(_) => detection.sql.lines().for_each(|line| println!("  {line}")),
        None => clauses(&analysis).iter().for_each(|clause| println!("  {clause}")),
    }
    for threshold in &analysis.thresholds {
        println!("  {} = {}  {}", threshold.name, threshold.value, style.dim(&threshold.source));
    }
    println!("\n{}", style.bold(&format!("The rows ({rows})")));
    for part in &parts {
        let appended = style.dim(&format!("appended {}", part.append_time));
        let mark = if part.is_evidence { '*' } else { ' ' };
        println!("{mark} {}  scan {} {} {}  {appended}", part.event_time, part.scan, part.table, visible(&part.event_id));
        println!("      {}", told(&part.values));
    }
    if more > 0 {
        println!("  and {more} more");
    }
    if parts.is_empty() {
        println!("  none of {} is in the archive (any more)", visible(&evidence.join(", ")));
    }
    println!("\n{}", style.bold("The moments"));
    println!("  {}  first finding", moment(answer, last, 5).map_or_else(String::new, rfc3339));
    for row in 0..answer.rows() {
        println!("  {}  revision {} decided, {}", moment(answer, row, 7).map_or_else(String::new, rfc3339), text(answer, row, 8), text(answer, row, 6));
    }
    Ok(())
}

fn why_not(style: &Style, detection: &Detection, event_id: &str, seen: &[Seen]) {
    println!("{} {} and the event {}", style.bold(&detection.name), detection.title, visible(event_id));
    for seen in seen {
        let asked = seen.asked_at.as_ref().map_or_else(String::new, |at| format!(", asked at {at}"));
        println!("\n{}", style.bold(&format!("As scan {}, {}{asked}", seen.scan, seen.table)));
        seen.clauses.iter().for_each(|clause| show(style, clause));
        if let Some(clause) = seen.clauses.iter().find(|clause| clause.holds != Some(true)) {
            println!("  so it is not looked at: {}", clause.text);
            continue;
        }
        if let Some((name, value)) = &seen.key {
            println!("  looked at, under {name} = {}", visible(value));
        }
        seen.company.iter().for_each(|line| println!("  {}", visible(line)));
        for alert in &seen.returned {
            if seen.asked_at.is_some() {
                println!("  the query returns then: {}", visible(alert));
                continue;
            }
            println!(
                "  the query does return something for it: {}; if it is not there, look in the allow-list, and for results that are not sure yet",
                visible(alert)
            );
        }
        match (seen.returned.is_empty(), seen.in_the_way.is_empty()) {
            (false, _) => {}
            (true, false) => {
                println!("  the query returns nothing; without any one of these it would:");
                seen.in_the_way.iter().for_each(|clause| show(style, clause));
            }
            (true, true) => println!("  the query returns nothing, and no single clause is to blame: a partner is missing, or several clauses fail"),
        }
    }
}

fn show(style: &Style, clause: &Clause) {
    let mark = match clause.holds {
        Some(true) => "holds ",
        Some(false) => "FAILS ",
        None => "null  ",
    };
    println!("    {mark} {}  {}", clause.text, style.dim(&told(&clause.values)));
}

/// Columns and what a row has in them.
fn told(values: &[(String, String)]) -> String {
    values.iter().map(|(name, value)| format!("{name} = {}", visible(value))).collect::<Vec<_>>().join(", ")
}

fn text(answer: &Answer, row: usize, column: usize) -> String {
    cell(answer, row, |batch, row| {
        let texts = arrow::compute::cast(batch.column(column), &DataType::Utf8).ok()?;
        texts.is_valid(row).then(|| texts.as_string::<i32>().value(row).to_owned())
    })
    .unwrap_or_default()
}

fn moment(answer: &Answer, row: usize, column: usize) -> Option<Micros> {
    cell(answer, row, |batch, row| Some(batch.column(column).as_primitive_opt::<TimestampMicrosecondType>()?.value(row)))
}

fn cell<T>(answer: &Answer, mut row: usize, read: impl Fn(&arrow::record_batch::RecordBatch, usize) -> Option<T>) -> Option<T> {
    for batch in &answer.batches {
        if row < batch.num_rows() {
            return read(batch, row);
        }
        row -= batch.num_rows();
    }
    None
}
