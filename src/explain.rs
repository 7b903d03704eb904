//! Why an alert came, and why one did not: the rows that took part, the clauses with their values, the moments.
//!
//! A detection's own query is planned over the rows around one event or alert, and asked again with one clause left out at a
//! time: the clause without which it returns something is what stood in the way. One with a schedule is asked at the moment at
//! which it took the event, or came closest to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinType, ScalarValue};
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, col, lit};
use datafusion::prelude::{DataFrame, SessionConfig};
use serde::Serialize;

use crate::alert::{Alert, AllowList, alerts_of};
use crate::clock::{self, DAY, Micros, rfc3339, spoken};
use crate::detect::analyse::{Analysis, Class, ScanInfo, scans_of};
use crate::detect::catalog::{self, LINEAGE};
use crate::detect::{Detection, KeyHasher, Lineage, Schedule, Scheduled, compile, findings_of, planner};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::function::run_at;
use crate::query::{self, Door, Limits, Moment, on_deep_stacks};
use crate::schedule::{self, Past};
use crate::secret::Fingerprinter;
use crate::table::{DIMENSIONS, History, LookBack, STREAMS, Table, VIEWS, by_name, cloudtrail as system};

/// Evidence may lie as far back as the longest memory of any detection.
const OLDEST_EVIDENCE: Micros = 400 * DAY;
/// Rows of an alert that are shown.
const SHOWN_ROWS: usize = 200;
/// Moments at which a detection with a schedule is held against an event.
const MOMENTS: usize = 200;

/// One clause of a query, and what it said of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Clause {
    pub text: String,
    /// None where a value that it needs is null.
    pub holds: Option<bool>,
    /// The columns that it reads, with their values.
    pub values: Vec<(String, String)>,
}

/// How one scan of the detection sees a row.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Number of the scan in the query, from 1, and its table.
    pub scan: usize,
    pub table: String,
    /// The moment that it is about, of a detection with a schedule.
    pub asked_at: Option<String>,
    pub clauses: Vec<Clause>,
    /// What it is joined by, and this row's value of it.
    pub key: Option<(String, String)>,
    /// Per other scan, how many rows have the same key within reach.
    pub company: Vec<String>,
    /// Clauses between rows without which the query would have returned something.
    pub in_the_way: Vec<Clause>,
    /// Alerts that the query gives for its key, and since when they are sure.
    pub returned: Vec<String>,
}

/// A row that took part in an alert.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    pub scan: usize,
    pub table: String,
    pub event_time: String,
    pub append_time: String,
    pub event_id: String,
    /// The alert names it.
    pub is_evidence: bool,
    /// The columns that the query reads, where they say something.
    pub values: Vec<(String, String)>,
}

/// What explaining needs.
pub struct Explainer<'a> {
    pub history: &'a dyn History,
    /// The same rows, for detections with a schedule.
    pub past: &'a Past,
    pub dimensions: &'a Dimensions,
    pub fingerprinter: &'a Fingerprinter,
    pub runtime: &'a tokio::runtime::Runtime,
}

impl Explainer<'_> {
    fn analysis(&self, detection: &Detection) -> Result<(SessionContext, Analysis)> {
        let ctx = planner(self.fingerprinter)?;
        let compiled = self.runtime.block_on(compile(&ctx, &Arc::new(detection.clone())))?;
        Ok((ctx, compiled.analysis))
    }

    fn rows(&self, table: &'static Table, filters: &[Expr], keys: Option<(&'static str, &[String])>, since: Micros) -> Result<Vec<RecordBatch>> {
        let rows = self.history.rows(&LookBack { table, keys, filters, since, columns: None })?;
        Ok(rows.into_iter().filter(|batch| batch.num_rows() > 0).collect())
    }

    /// How a detection sees one event: clause by clause, then together with the rows around it.
    ///
    /// # Errors
    /// No stream that the detection reads holds the event, or the history cannot be read.
    pub fn why_not(&self, detection: &Detection, event_id: &str) -> Result<Vec<Seen>> {
        let (ctx, analysis) = self.analysis(detection)?;
        let tables: BTreeSet<&str> = analysis.scans.iter().filter(|scan| scan.is_stream()).map(|scan| scan.table.as_str()).collect();
        let mut seen = Vec::new();
        for name in &tables {
            let Some(table) = by_name(name) else { continue };
            let wanted = col("event_id").eq(lit(ScalarValue::Utf8View(Some(event_id.to_owned()))));
            let Some(row) = self.rows(table, &[wanted], None, Micros::MIN)?.iter().find_map(|batch| one_row(batch, event_id)) else { continue };
            if let Some(schedule) = detection.schedule {
                seen.extend(self.see_asked(&ctx, detection, schedule, table, &row)?);
                continue;
            }
            for (number, scan) in analysis.scans.iter().enumerate().filter(|(_, scan)| scan.table == *name) {
                seen.push(self.see(&ctx, detection, &analysis, number, scan, table, &row)?);
            }
        }
        if seen.is_empty() {
            let tables: Vec<&str> = tables.into_iter().collect();
            return Err(Error::user(format!("no row of {} has the event id {event_id}: {} reads nothing else", tables.join(", "), detection.name)));
        }
        Ok(seen)
    }

    #[allow(clippy::too_many_arguments)]
    fn see(
        &self,
        ctx: &SessionContext,
        detection: &Detection,
        analysis: &Analysis,
        number: usize,
        scan: &ScanInfo,
        table: &'static Table,
        row: &RecordBatch,
    ) -> Result<Seen> {
        let mut clauses = Vec::new();
        let late = row.column(system::LATE).as_boolean().value(0);
        if late && analysis.class > Class::C0 {
            clauses.push(Clause { text: "the row is on time (late rows take part in the sweep only)".into(), holds: Some(false), values: Vec::new() });
        }
        clauses.extend(clauses_of(ctx, table, &scan.filters, row)?);
        let mut seen = Seen {
            scan: number + 1,
            table: table.name.into(),
            asked_at: None,
            key: scan.key.as_ref().map(|key| (key.clone(), value(row, 0, key).unwrap_or_else(|| "null".into()))),
            clauses,
            company: Vec::new(),
            in_the_way: Vec::new(),
            returned: Vec::new(),
        };
        if seen.clauses.iter().any(|clause| clause.holds != Some(true)) {
            return Ok(seen);
        }
        let at = row.column(system::EVENT_TIME).as_primitive::<TimestampMicrosecondType>().value(0);
        let around = self.around(detection, analysis, seen.key.as_ref().map(|(_, key)| key.as_str()), at, at, (table, row))?;
        for (other, scan) in analysis.scans.iter().enumerate().filter(|(other, scan)| *other != number && !scan.is_lineage()) {
            let found = self.runtime.block_on(async { rows_of(&around, scan).await?.count().await })?;
            let what = if scan.is_stream() { "rows with the same key within reach" } else { "entries are stated" };
            seen.company.push(format!("scan {}, {}: {found} {what}", other + 1, scan.table));
        }
        let plan = self.runtime.block_on(around.state().create_logical_plan(&detection.sql))?;
        let plan = around.state().optimize(&plan)?;
        let batches = self.runtime.block_on(async { around.execute_logical_plan(plan.clone()).await?.collect().await })?;
        let shared = Arc::new(detection.clone());
        let mut findings = Vec::new();
        for batch in &batches {
            findings.extend(findings_of(&shared, &analysis.columns, batch)?);
        }
        for alert in alerts_of(&findings, AllowList::default()).all() {
            let sure = match analysis.class {
                Class::C3 => format!(", sure when append time has passed {}", rfc3339(alert.first_time.saturating_add(analysis.wait))),
                _ => String::new(),
            };
            seen.returned.push(format!("alert {} at {}{sure}", alert.alert_id, rfc3339(alert.first_time)));
        }
        if seen.returned.is_empty() {
            seen.in_the_way = self.runtime.block_on(blockers(&around, &plan))?;
        }
        Ok(seen)
    }

    /// How a detection with a schedule sees a row: of each scan, at the first moment at which the most of its clauses hold.
    fn see_asked(&self, ctx: &SessionContext, detection: &Detection, schedule: Schedule, table: &'static Table, row: &RecordBatch) -> Result<Vec<Seen>> {
        let appended = row.column(system::APPEND_TIME).as_primitive::<TimestampMicrosecondType>().value(0);
        let moments = schedule::moments(detection, appended, clock::now().min(appended.saturating_add(schedule.over)), usize::MAX >> 1);
        let mut best: BTreeMap<usize, (Micros, Vec<Clause>)> = BTreeMap::new();
        let holding = |clauses: &[Clause]| clauses.iter().filter(|clause| clause.holds == Some(true)).count();
        for at in moments.into_iter().take(MOMENTS) {
            ctx.register_udf(run_at(at));
            let plan = self.runtime.block_on(ctx.state().create_logical_plan(&detection.sql))?;
            for (number, (_, filters)) in scans_of(&ctx.state().optimize(&plan)?).into_iter().enumerate().filter(|(_, (name, _))| name == table.name) {
                let clauses = clauses_of(ctx, table, &filters, row)?;
                if best.get(&number).is_none_or(|(_, known)| holding(&clauses) > holding(known)) {
                    best.insert(number, (at, clauses));
                }
            }
        }
        if best.is_empty() {
            let text = format!("a moment at which it is asked has come since the row arrived (every {})", spoken(schedule.every));
            best.insert(0, (appended, vec![Clause { text, holds: Some(false), values: values_of(row, 0, ["append_time"].into_iter()) }]));
        }
        let mut all = Vec::new();
        for (number, (at, clauses)) in best {
            let taken = clauses.iter().all(|clause| clause.holds == Some(true));
            let (returned, in_the_way) = if taken { self.asked(detection, schedule, at)? } else { Default::default() };
            let (scan, table, asked_at) = (number + 1, table.name.into(), Some(rfc3339(at)));
            all.push(Seen { scan, table, asked_at, clauses, key: None, company: Vec::new(), in_the_way, returned });
        }
        Ok(all)
    }

    /// The alerts that a detection with a schedule gives at a moment; if none, the clauses without which it would.
    fn asked(&self, detection: &Detection, schedule: Schedule, at: Micros) -> Result<(Vec<String>, Vec<Clause>)> {
        let asked = Scheduled { detection: Arc::new(detection.clone()), instead: None };
        let (past, dimensions, fingerprinter) = (self.past.clone(), self.dimensions.clone(), self.fingerprinter.clone());
        on_deep_stacks(self.runtime, async move {
            let findings = schedule::ask(&asked, at, &past, &dimensions, &fingerprinter).await?;
            let told = |alert: &Alert| format!("alert {} at {} of {}", alert.alert_id, rfc3339(alert.first_time), serde_json::json!(alert.alert_key));
            let returned: Vec<String> = alerts_of(&findings, AllowList::default()).all().into_iter().map(told).collect();
            if !returned.is_empty() {
                return Ok((returned, Vec::new()));
            }
            let moment = Moment { at, over: schedule.over, seen: query::Seen::Once };
            let (ctx, plan) =
                Door::open_at(past.rows(), Some(moment), &dimensions, &fingerprinter, Limits::default()).await?.planned(&asked.detection.sql).await?;
            Ok((returned, blockers(&ctx, &plan).await?))
        })
    }

    /// A context that holds the rows with this key around a stretch of time, and everything that is known of the own world.
    fn around(
        &self,
        detection: &Detection,
        analysis: &Analysis,
        key: Option<&str>,
        first: Micros,
        last: Micros,
        own: (&'static Table, &RecordBatch),
    ) -> Result<SessionContext> {
        let reach = analysis.back.saturating_add(analysis.ahead).saturating_add(detection.dedup);
        let (since, until) = (first.saturating_sub(reach), last.saturating_add(reach));
        let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
        let within = [col("event_time").gt_eq(time(since)), col("event_time").lt_eq(time(until)), col("late").eq(lit(false))];
        let (links, hasher) = self.lineage()?;
        let mut names: Vec<String> = key.map(str::to_owned).into_iter().collect();
        if let Some(key) = key {
            names.extend(links.names(&links.family(hasher.key(key)).into_iter().collect()));
        }
        names.sort_unstable();
        names.dedup();
        let mut held: Vec<(&'static str, Vec<RecordBatch>)> = Vec::new();
        for table in STREAMS {
            let scans = analysis.scans.iter().filter(|scan| scan.table == table.name);
            let keys: BTreeSet<&'static str> = scans.filter_map(|scan| Some(table.column(scan.key.as_deref()?)?.name)).collect();
            let mut batches = Vec::new();
            for column in keys {
                batches.extend(self.rows(table, &within, Some((column, &names)), since)?);
            }
            if batches.is_empty() && std::ptr::eq(own.0, *table) {
                batches.push(own.1.clone());
            }
            held.push((table.name, distinct(batches)?));
        }
        let lineage = Arc::new(MemTable::try_new(Arc::clone(&LINEAGE), vec![vec![links.rows(None)?]])?);
        let mut tables: std::collections::HashMap<&str, Arc<dyn datafusion::catalog::TableProvider>> = std::collections::HashMap::new();
        for (name, batches) in held {
            let Some(table) = by_name(name) else { continue };
            tables.insert(name, Arc::new(MemTable::try_new(table.schema(), vec![batches])?));
        }
        for table in DIMENSIONS {
            tables.insert(table.name, Arc::new(MemTable::try_new(table.schema(), vec![vec![self.dimensions.of(table)]])?));
        }
        Ok(catalog::context(SessionConfig::new().with_target_partitions(1), self.fingerprinter, |name, _| {
            tables.get(name).map_or_else(|| Arc::clone(&lineage) as Arc<dyn datafusion::catalog::TableProvider>, Arc::clone)
        })?)
    }

    fn lineage(&self) -> Result<(Lineage, KeyHasher)> {
        let (table, mut lineage, hasher) = (&system::TABLE, Lineage::default(), KeyHasher::default());
        let filters = [col("outcome").eq(lit("success")), col("minted_access_key_id").is_not_null().or(col("event_name").eq(lit("CreateAccessKey")))];
        let rows = self.rows(table, &filters, None, Micros::MIN)?;
        let ctx = SessionContext::new();
        ctx.register_table("cloudtrail", Arc::new(MemTable::try_new(table.schema(), vec![rows])?))?;
        let links = self.runtime.block_on(async { ctx.sql(view("lineage_links")).await?.collect().await })?;
        for batch in &links {
            lineage.absorb(batch, &hasher)?;
        }
        Ok((lineage, hasher))
    }

    /// The rows that an alert rests on: its evidence, and of each scan the rows of the same key that pass its clauses and lie within its
    /// reach of the alert's first and last time. Also how many more there are than are shown.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn parts(&self, detection: &Detection, evidence: &[String], first: Micros, last: Micros) -> Result<(Analysis, Vec<Part>, usize)> {
        let (_, analysis) = self.analysis(detection)?;
        let mut parts: Vec<Part> = Vec::new();
        let mut own: Option<(&'static Table, RecordBatch, String)> = None;
        let ids: Vec<Expr> = evidence.iter().map(|id| lit(ScalarValue::Utf8View(Some(id.clone())))).collect();
        for (number, scan) in analysis.scans.iter().enumerate().filter(|(_, scan)| scan.is_stream()) {
            let Some(table) = by_name(&scan.table) else { continue };
            let filters: Vec<Expr> = scan.filters.iter().cloned().chain([col("event_id").in_list(ids.clone(), false)]).collect();
            for batch in distinct(self.rows(table, &filters, None, first.saturating_sub(OLDEST_EVIDENCE))?)? {
                for row in 0..batch.num_rows() {
                    let part = Part { is_evidence: true, ..part_of(number, scan, table, &batch, row) };
                    if evidence.contains(&part.event_id) {
                        let key = scan.key.as_ref().and_then(|key| value(&batch, row, key));
                        own = own.or_else(|| Some((table, batch.slice(row, 1), key?)));
                        parts.push(part);
                    }
                }
            }
        }
        let mut known: BTreeSet<(String, String)> = parts.iter().map(|part| (part.table.clone(), part.event_id.clone())).collect();
        let mut more = 0;
        if let Some((table, row, key)) = own {
            let around = self.around(detection, &analysis, Some(&key), first, last, (table, &row))?;
            for (number, scan) in analysis.scans.iter().enumerate().filter(|(_, scan)| scan.is_stream() && !scan.optional) {
                let Some(table) = by_name(&scan.table) else { continue };
                let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
                let within = col("event_time").between(time(first.saturating_sub(scan.back)), time(last.saturating_add(scan.ahead)));
                let rows = self.runtime.block_on(async {
                    let rows = rows_of(&around, scan).await?.filter(within)?;
                    rows.sort(vec![col("event_time").sort(true, false), col("event_id").sort(true, false)])?.collect().await
                })?;
                for (batch, row) in rows.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row))) {
                    let part = part_of(number, scan, table, batch, row);
                    if !known.insert((part.table.clone(), part.event_id.clone())) {
                        continue;
                    }
                    if parts.len() < SHOWN_ROWS { parts.push(part) } else { more += 1 }
                }
            }
        }
        parts.sort_by(|a, b| (&a.event_time, a.scan, &a.event_id).cmp(&(&b.event_time, b.scan, &b.event_id)));
        Ok((analysis, parts, more))
    }
}

fn part_of(number: usize, scan: &ScanInfo, table: &'static Table, batch: &RecordBatch, row: usize) -> Part {
    let names = scan.projection.iter().map(|index| table.columns[*index].name);
    let names = names.filter(|name| !["event_time", "append_time", "event_id", "raw"].contains(name));
    let text = |index: usize| value(batch, row, table.columns[index].name).unwrap_or_default();
    Part {
        scan: number + 1,
        table: table.name.into(),
        event_time: text(system::EVENT_TIME),
        append_time: text(system::APPEND_TIME),
        event_id: text(system::EVENT_ID),
        is_evidence: false,
        values: values_of(batch, row, names),
    }
}

/// The clauses of a detection, as its plan has them: per scan, and between scans.
pub fn clauses(analysis: &Analysis) -> Vec<String> {
    let mut all = Vec::new();
    for (number, scan) in analysis.scans.iter().enumerate() {
        let wanted: Vec<String> = scan.filters.iter().flat_map(split_conjunction).map(in_sql).collect();
        let reach = if analysis.class > Class::C0 && scan.is_stream() {
            format!(", from {} before to {} after the alert's time", spoken(scan.back), spoken(scan.ahead))
        } else {
            String::new()
        };
        let absent = if scan.optional { " (must be absent, or may be)" } else { "" };
        all.push(format!("scan {}: {}{absent}{reach}{}{}", number + 1, scan.table, if wanted.is_empty() { "" } else { ": " }, wanted.join(" AND ")));
    }
    all
}

/// What each of some predicates says of a row.
fn clauses_of(ctx: &SessionContext, table: &'static Table, filters: &[Expr], row: &RecordBatch) -> Result<Vec<Clause>> {
    let schema = DFSchema::try_from(table.schema())?;
    let clause = |conjunct: &Expr| {
        let plain = datafusion::logical_expr::expr_rewriter::unnormalize_col(conjunct.clone());
        let holds = ctx.create_physical_expr(plain.clone(), &schema).and_then(|expr| expr.evaluate(row)?.into_array(1));
        let holds = holds.ok().and_then(|bits| (bits.data_type() == &DataType::Boolean && bits.is_valid(0)).then(|| bits.as_boolean().value(0)));
        Clause { text: in_sql(&plain), holds, values: values_of(row, 0, plain.column_refs().iter().map(|column| column.name())) }
    };
    Ok(filters.iter().flat_map(split_conjunction).map(clause).collect())
}

/// The row of a batch with this event id.
fn one_row(batch: &RecordBatch, event_id: &str) -> Option<RecordBatch> {
    let ids = arrow::compute::cast(batch.column(system::EVENT_ID), &DataType::Utf8View).ok()?;
    let row = ids.as_string_view().iter().position(|id| id == Some(event_id))?;
    Some(batch.slice(row, 1))
}

/// An expression as one would write it.
fn in_sql(expr: &Expr) -> String {
    let plain = expr.clone().transform(|expr| {
        Ok(match &expr {
            Expr::Literal(ScalarValue::Dictionary(_, value), metadata) => Transformed::yes(Expr::Literal(value.as_ref().clone(), metadata.clone())),
            Expr::Literal(ScalarValue::Utf8View(text), metadata) => Transformed::yes(Expr::Literal(ScalarValue::Utf8(text.clone()), metadata.clone())),
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name.clone()))),
            _ => Transformed::no(expr),
        })
    });
    let written = plain.ok().and_then(|plain| datafusion::sql::unparser::expr_to_sql(&plain.data).ok());
    written.map_or_else(|| expr.to_string(), |sql| sql.to_string().replace('"', ""))
}

/// The SQL of a view.
fn view(name: &str) -> &'static str {
    VIEWS.iter().find(|(known, ..)| *known == name).map_or("", |(_, sql, _)| sql)
}

/// Each event once.
fn distinct(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for batch in batches {
        let ids = arrow::compute::cast(batch.column(system::EVENT_ID), &DataType::Utf8View)?;
        let fresh: arrow::array::BooleanArray = ids.as_string_view().iter().map(|id| Some(seen.insert(id.unwrap_or_default().to_owned()))).collect();
        out.push(arrow::compute::filter_record_batch(&batch, &fresh)?);
    }
    Ok(out)
}

fn value(batch: &RecordBatch, row: usize, name: &str) -> Option<String> {
    let column = batch.column_by_name(name)?;
    if column.is_null(row) || column.is_empty() {
        return None;
    }
    if let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() {
        return Some(rfc3339(times.value(row)));
    }
    arrow::util::display::array_value_to_string(column, row).ok()
}

fn values_of<'n>(batch: &RecordBatch, row: usize, names: impl Iterator<Item = &'n str>) -> Vec<(String, String)> {
    let names: BTreeSet<&str> = names.collect();
    names.into_iter().filter_map(|name| Some((name.to_owned(), value(batch, row, name)?.chars().take(120).collect()))).collect()
}

/// Rows of a scan in a context.
async fn rows_of(ctx: &SessionContext, scan: &ScanInfo) -> datafusion::common::Result<DataFrame> {
    let mut rows = ctx.table(scan.table.as_str()).await?;
    for filter in &scan.filters {
        rows = rows.filter(datafusion::logical_expr::expr_rewriter::unnormalize_col(filter.clone()))?;
    }
    Ok(rows)
}

async fn returns(ctx: &SessionContext, plan: &LogicalPlan) -> Result<bool> {
    let batches = ctx.execute_logical_plan(plan.clone()).await?.collect().await?;
    Ok(batches.iter().any(|batch| batch.num_rows() > 0))
}

/// The clauses without which a plan returns something, each alone.
async fn blockers(ctx: &SessionContext, plan: &LogicalPlan) -> Result<Vec<Clause>> {
    let mut found = Vec::new();
    for number in 0.. {
        let mut at = 0;
        let mut left_out: Option<(String, LogicalPlan, Vec<Column>)> = None;
        let without = plan.clone().transform_up(|node| {
            if left_out.is_some() {
                return Ok(Transformed::no(node));
            }
            match &node {
                LogicalPlan::Filter(filter) => {
                    let conjuncts: Vec<Expr> = split_conjunction(&filter.predicate).into_iter().cloned().collect();
                    for (index, conjunct) in conjuncts.iter().enumerate() {
                        if at == number {
                            left_out = Some((in_sql(conjunct), filter.input.as_ref().clone(), conjunct.column_refs().into_iter().cloned().collect()));
                            return Ok(Transformed::yes(filtered(&filter.input, &conjuncts, index)?));
                        }
                        at += 1;
                    }
                }
                LogicalPlan::Join(join) => {
                    let conjuncts: Vec<Expr> = join.filter.iter().flat_map(split_conjunction).cloned().collect();
                    let absent = matches!(join.join_type, JoinType::LeftAnti | JoinType::RightAnti);
                    for (index, conjunct) in conjuncts.iter().enumerate().filter(|_| !absent) {
                        if at == number {
                            let mut free = join.clone();
                            free.filter = conjunction(conjuncts.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, expr)| expr.clone()));
                            left_out = Some((in_sql(conjunct), LogicalPlan::Join(free.clone()), conjunct.column_refs().into_iter().cloned().collect()));
                            return Ok(Transformed::yes(LogicalPlan::Join(free)));
                        }
                        at += 1;
                    }
                    if absent {
                        if at == number {
                            let kept = if join.join_type == JoinType::LeftAnti { &join.left } else { &join.right };
                            let mut present = join.clone();
                            present.join_type = JoinType::Inner;
                            present.schema = Arc::new(join.left.schema().join(join.right.schema())?);
                            let columns = if join.join_type == JoinType::LeftAnti { join.right.schema().columns() } else { join.left.schema().columns() };
                            left_out = Some(("NOT EXISTS (there is such a row)".into(), LogicalPlan::Join(present), columns));
                            return Ok(Transformed::yes(kept.as_ref().clone()));
                        }
                        at += 1;
                    }
                }
                _ => {}
            }
            Ok(Transformed::no(node))
        })?;
        let Some((text, below, columns)) = left_out else { break };
        // Types may not fit where a whole side was taken away: then that clause says nothing alone.
        if !returns(ctx, &without.data).await.unwrap_or(false) {
            continue;
        }
        let mut values = Vec::new();
        // What a semi join does not give on cannot be shown.
        let columns: Vec<Column> = columns.into_iter().filter(|column| below.schema().has_column(column)).collect();
        if !columns.is_empty() {
            let shown = LogicalPlanBuilder::from(below).project(columns.into_iter().map(Expr::Column))?.limit(0, Some(3))?.build()?;
            for batch in ctx.execute_logical_plan(shown).await?.collect().await? {
                let schema = batch.schema();
                for row in 0..batch.num_rows() {
                    values.extend(values_of(&batch, row, schema.fields().iter().map(|field| field.name().as_str())));
                }
            }
            values.dedup();
        }
        found.push(Clause { text, holds: Some(false), values });
    }
    Ok(found)
}

fn filtered(input: &Arc<LogicalPlan>, conjuncts: &[Expr], without: usize) -> datafusion::common::Result<LogicalPlan> {
    let rest = conjunction(conjuncts.iter().enumerate().filter(|(index, _)| *index != without).map(|(_, expr)| expr.clone()));
    Ok(match rest {
        Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, Arc::clone(input))?),
        None => input.as_ref().clone(),
    })
}
