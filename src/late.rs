//! The late sweep: what rows that came too late for joins and counts add after all.
//!
//! A row is late by what it says itself, so live evaluation and backtest leave out the same rows. The sweep decides the keys that
//! late rows touch once with them and once without; alerts that only the first gives are raised, marked `late`. Late rows add
//! alerts, they never take one back and never change one.

use std::collections::HashSet;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, col, lit};

use crate::alert::{Alert, AllowList, Status, alerts_of};
use crate::clock::Micros;
use crate::detect::{Engine, Plans};
use crate::dimension::Dimensions;
use crate::error::Result;
use crate::limits;
use crate::table::{History, LookBack, STREAMS, Span, Table};

/// The rows that a sweep is about: those appended after `after` and up to `until`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub after: Micros,
    pub until: Micros,
}

/// Alerts that late rows add, and what went wrong on the way: detection and message.
pub type Swept = (Vec<Alert>, Vec<(String, String)>);

/// What a sweep rests on.
pub struct Settings<'a> {
    pub dimensions: &'a Dimensions,
    pub allow: &'a AllowList,
    /// Memory of kept rows (bytes).
    pub budget: usize,
}

/// Decides what late rows add. `spans` say since when there are rows of each stream.
///
/// # Errors
/// The history cannot be read.
pub fn sweep(plans: &Plans, window: Window, history: &dyn History, spans: &[Span], settings: &Settings<'_>) -> Result<Swept> {
    let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
    let filters: Vec<Expr> = vec![col("late").eq(lit(true)), col("append_time").gt(time(window.after)), col("append_time").lt_eq(time(window.until))];
    let raw = plans.detections().any(|(detection, _)| detection.sql.contains("raw"));
    let wanted = |table: &Table| (0..table.columns.len()).filter(|column| raw || table.columns[*column].name != "raw").collect::<Vec<_>>();
    let (mut rows, mut count) = (Vec::new(), 0);
    for table in STREAMS {
        let columns = wanted(table);
        let ask = LookBack { table, keys: None, filters: &filters, since: Micros::MIN, columns: Some(&columns) };
        for batch in history.rows(&ask)?.into_iter().filter(|batch| batch.num_rows() > 0) {
            count += batch.num_rows();
            rows.push((*table, batch));
        }
    }
    if rows.is_empty() {
        return Ok(Swept::default());
    }
    if count > limits::SWEPT_ROWS {
        // Not a sweep's work any more: everything is late, and a backtest says what that means.
        let much =
            format!("{count} late rows are more than {} at a time: ask with `keyfuse backtest --late`, and look at what delivers them", limits::SWEPT_ROWS);
        return Ok((Vec::new(), vec![("late sweep".into(), much)]));
    }
    let mut problems = Vec::new();
    let mut decide = |with_late: bool| -> Result<_> {
        let mut engine = Engine::of(plans, settings.dimensions)?.with_residue_budget(settings.budget);
        engine.begin(spans);
        engine.advance(window.until);
        let findings = engine.decide_touched(&rows, history, with_late)?;
        problems.extend(engine.take_problems());
        Ok(alerts_of(&findings, settings.allow.clone()))
    };
    let (with, without) = (decide(true)?, decide(false)?);
    let known: HashSet<&str> = without.all().into_iter().map(|alert| alert.alert_id.as_str()).collect();
    // What is not final yet is looked at again: the keys of a late row are swept for a day.
    let added = with.all().into_iter().filter(|alert| !known.contains(alert.alert_id.as_str()) && alert.status != Status::Provisional);
    Ok((added.cloned().collect(), problems))
}
