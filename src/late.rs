//! The late sweep: what rows that came too late for joins and counts add after all.
//!
//! A row is late by what it says itself, so live evaluation and backtest leave out the same rows. The sweep decides the keys that
//! late rows touch once with them and once without; alerts that only the first gives are raised, marked `late`. Late rows add
//! alerts, they never take one back and never change one.

use std::collections::HashSet;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, col, lit};

use crate::alert::{Alert, AllowList, alerts_of};
use crate::clock::Micros;
use crate::detect::{Detection, Engine};
use crate::dimension::Dimensions;
use crate::error::Error;
use crate::secret::Fingerprinter;
use crate::table::{History, LookBack, STREAMS};

/// The rows that a sweep is about: those appended after `after` and up to `until`.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub after: Micros,
    pub until: Micros,
}

/// Alerts that late rows add.
///
/// # Errors
/// The history cannot be read.
pub fn sweep(
    detections: &[Detection],
    window: Window,
    history: &dyn History,
    dimensions: &Dimensions,
    fingerprinter: &Fingerprinter,
    allow: &AllowList,
) -> Result<Vec<Alert>, Vec<Error>> {
    let one = |error: Error| vec![error];
    let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
    let filters: Vec<Expr> = vec![col("late").eq(lit(true)), col("append_time").gt(time(window.after)), col("append_time").lt_eq(time(window.until))];
    let mut rows = Vec::new();
    for table in STREAMS {
        let ask = LookBack { table, keys: None, filters: &filters, since: Micros::MIN, raw: true };
        rows.extend(history.rows(&ask).map_err(one)?.into_iter().filter(|batch| batch.num_rows() > 0).map(|batch| (*table, batch)));
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let decide = |with_late: bool| -> Result<_, Vec<Error>> {
        let mut engine = Engine::new(detections, fingerprinter, dimensions)?;
        engine.advance(window.until);
        let findings = engine.decide_touched(&rows, history, with_late).map_err(one)?;
        if let Some((detection, problem)) = engine.take_problems().into_iter().next() {
            return Err(one(Error::user(format!("{detection}: {problem}"))));
        }
        Ok(alerts_of(&findings, allow.clone()))
    };
    let (with, without) = (decide(true)?, decide(false)?);
    let known: HashSet<&str> = without.all().into_iter().map(|alert| alert.alert_id.as_str()).collect();
    let added = with.all().into_iter().filter(|alert| !known.contains(alert.alert_id.as_str()));
    Ok(added.cloned().collect())
}
