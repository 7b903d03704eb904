//! What a detection's plan says about it: scans, key, reach in time, class. Inferred, or refused with the way out.
//!
//! The optimised logical plan is walked once, bottom up. Each output column of each node is described by where it comes
//! from (for keys), which scan's clock it follows (for time bounds) and whether more rows can still change it (for classes).
//!
//! - **Key**: a union-find over columns that joins equate. A detection is keyed by a class in which every scan has a column
//!   and through which every join, grouping and window goes: then it can be run for one key at a time.
//! - **Reach**: a difference-bound matrix over the event times of all scans and `alert_time`, closed by Floyd–Warshall.
//! - **Class**: C0 one row, C1 monotone joins, C2 thresholds that only rise. Everything else is refused here.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, InList, WindowFunction};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Distinct, Expr, ExprSchemable, Join, LogicalPlan, Operator, Volatility, Window, WindowFrameBound, WindowFrameUnits,
};

use crate::clock::{DAY, HOUR, MINUTE, Micros, SECOND, spoken};
use crate::function::THRESHOLD;
use crate::table::{self, DIMENSIONS, STREAMS, by_name};

/// How a detection may be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One row decides: on the batch, late rows included.
    C0,
    /// Joins that more rows can only add to: at once.
    C1,
    /// Counts that can only rise past a threshold: at once.
    C2,
    /// What more rows can take back (absence, first-seen, "fewer than"): when the watermark has passed.
    C3,
    /// What nothing bounds: asked on a schedule, over the archive.
    C4,
}

/// How an output column of an alert merges when several findings share one alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// From the earliest finding.
    First,
    Max,
    Min,
    /// The highest level.
    Level,
}

/// One scan of the plan, in plan order.
#[derive(Clone, Debug)]
pub struct ScanInfo {
    pub table: String,
    /// Column indices of the table, in output order.
    pub projection: Vec<usize>,
    /// Predicates that the optimiser pushed down to it, over the table's own column names.
    pub filters: Vec<Expr>,
    /// Name of its column in the detection's key class; none for class C0.
    pub key: Option<String>,
    /// How far before `alert_time` its rows may lie, and how far after.
    pub back: Micros,
    pub ahead: Micros,
    /// A row of it is not needed for a result: the right side of NOT EXISTS or of an outer join.
    pub optional: bool,
    /// A row of it can take a result back: the result waits for its watermark.
    pub waits: bool,
    /// A row of it can do nothing else: it never makes a result.
    pub silent: bool,
    /// Only whether a row is there counts, and of rows that are equal but for their time and lie at least this far before (below
    /// zero) or after `alert_time`, the latest stands for all.
    pub latest: Option<Micros>,
}

impl ScanInfo {
    /// `lineage` is derived, not stored and not bounded in time.
    pub fn is_lineage(&self) -> bool {
        self.table == "lineage"
    }

    /// A dimension is there whole and does not grow by rows.
    pub fn is_dimension(&self) -> bool {
        DIMENSIONS.iter().any(|table| table.name == self.table)
    }

    /// Rows of a stream: what is kept, keyed and bounded in time.
    pub fn is_stream(&self) -> bool {
        !self.is_lineage() && !self.is_dimension()
    }

    /// Whether no predicate picks few rows: such a scan is probed, not kept.
    pub fn is_broad(&self) -> bool {
        !self.filters.iter().flat_map(split_conjunction).any(picks_few)
    }
}

fn picks_few(predicate: &Expr) -> bool {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            // `outcome = 'success'` is most of the traffic.
            Operator::Eq => !matches!(right.as_ref(), Expr::Literal(ScalarValue::Boolean(_), _)) && !names_column(left, "outcome"),
            Operator::Or => picks_few(left) && picks_few(right),
            Operator::And => picks_few(left) || picks_few(right),
            _ => false,
        },
        Expr::InList(InList { negated, expr, .. }) => !negated && !names_column(expr, "outcome"),
        Expr::Like(like) => !like.negated,
        _ => false,
    }
}

fn names_column(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Column(column) => column.name == name,
        Expr::Cast(cast) => names_column(&cast.expr, name),
        _ => false,
    }
}

/// Which scans must have rows before a result is possible at all.
#[derive(Clone, Debug)]
pub enum Needs {
    Scan(usize),
    All(Vec<Needs>),
    Any(Vec<Needs>),
}

impl Needs {
    /// Whether the requirement holds, given which scans have rows.
    pub fn met(&self, has_rows: &impl Fn(usize) -> bool) -> bool {
        match self {
            Needs::Scan(scan) => has_rows(*scan),
            Needs::All(parts) => parts.iter().all(|part| part.met(has_rows)),
            Needs::Any(parts) => parts.iter().any(|part| part.met(has_rows)),
        }
    }
}

/// A number or length that a detection compares with, as `threshold(value, 'name', 'source')` states it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold {
    pub name: String,
    pub value: String,
    pub source: String,
}

/// The thresholds that a query states, in its own order; each once. Read from the plan before the optimiser folds them.
///
/// # Errors
/// One that is not made of literals, or says nothing of its source.
pub fn thresholds(plan: &LogicalPlan) -> Result<Vec<Threshold>, String> {
    let (mut found, mut wrong): (Vec<Threshold>, Option<String>) = (Vec::new(), None);
    let _ = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && call.func.name() == THRESHOLD
                {
                    let text = |at: usize| match call.args.get(at) {
                        Some(Expr::Literal(value, _)) => value.try_as_str().flatten().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned),
                        _ => None,
                    };
                    let value = call.args.first().and_then(|value| {
                        interval(value).map(spoken).or_else(|| match value {
                            Expr::Literal(value, _) => Some(value.to_string()),
                            _ => None,
                        })
                    });
                    match (value, text(1), text(2)) {
                        (Some(value), Some(name), Some(source)) => {
                            let threshold = Threshold { name, value, source };
                            if !found.contains(&threshold) {
                                found.push(threshold);
                            }
                        }
                        _ => wrong = Some(format!("{expr}: write threshold(value, 'name', 'where the value comes from'), with literals")),
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    wrong.map_or(Ok(found), Err)
}

/// All that is inferred.
#[derive(Clone, Debug)]
pub struct Analysis {
    pub thresholds: Vec<Threshold>,
    pub class: Class,
    pub scans: Vec<ScanInfo>,
    pub needs: Needs,
    /// The columns that predicates on streams cannot do without, each with its table. Those that may well be empty (`invoked_by IS NULL`)
    /// and alternatives (`… OR …`) are not among them.
    pub reads: BTreeSet<(String, String)>,
    /// Output columns and how they merge.
    pub columns: Vec<(String, Merge)>,
    /// Dimensions without which it finds nothing (inner and semi joins; those that only take away are not among them).
    pub required: BTreeSet<String>,
    /// Widest reach of any scan before and after `alert_time`.
    pub back: Micros,
    pub ahead: Micros,
    /// How far append time must have come past `alert_time` before a result of class C3 is final; zero for the others.
    pub wait: Micros,
    /// The scan of whose rows each gives results of its own moment only: `alert_time` is its `event_time` plus so much, exactly.
    pub anchor: Option<(usize, Micros)>,
}

/// The tables that a plan reads, each time with the predicates on its rows.
pub fn scans_of(plan: &LogicalPlan) -> Vec<(String, Vec<Expr>)> {
    let mut scans = Vec::new();
    // It has no error of its own.
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            scans.push((scan.table_name.table().to_owned(), scan.filters.clone()));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    scans
}

/// The columns that predicates on streams cannot do without, each with its table.
fn columns_of_predicates(plan: &LogicalPlan) -> BTreeSet<(String, String)> {
    let of_scan = |(table, filters): (String, Vec<Expr>)| {
        let conjuncts = filters.iter().flat_map(split_conjunction).filter(|conjunct| !may_be_empty(conjunct));
        let columns = conjuncts.flat_map(|conjunct| conjunct.column_refs().into_iter().map(|column| (table.clone(), column.name.clone())));
        columns.collect::<Vec<_>>()
    };
    scans_of(plan).into_iter().filter(|(table, _)| STREAMS.iter().any(|stream| stream.name == table)).flat_map(of_scan).collect()
}

fn may_be_empty(conjunct: &Expr) -> bool {
    matches!(conjunct, Expr::IsNull(_) | Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }))
}

/// What the author declared, as far as the analysis needs it.
pub struct Declared<'a> {
    pub alert_key: &'a [String],
}

/// Refuses functions whose value is not a function of the row: a kept plan would freeze `now()`.
///
/// # Errors
/// Names the function.
pub fn refuse_volatile(plan: &LogicalPlan) -> Result<(), String> {
    let mut found = None;
    let _ = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && call.func.signature().volatility != Volatility::Immutable
                {
                    found = Some(call.func.name().to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    match found {
        Some(name) => Err(format!("{name}() depends on the clock or on chance: use event_time columns only, so that live and backtest agree")),
        None => Ok(()),
    }
}

/// Analyses an optimised plan.
///
/// # Errors
/// In words for the author: which join, window or column is the trouble, and how to write it.
pub fn analyse(plan: &LogicalPlan, declared: &Declared<'_>) -> Result<Analysis, String> {
    let attempt = |patient: bool| {
        let mut walk = Walk { patient, ..Walk::default() };
        let top = walk.plan(plan)?;
        walk.finish(plan, top, declared)
    };
    // What cannot be decided at once may still be decided when the watermark has passed.
    let analysis = attempt(false).or_else(|_| attempt(true))?;
    Ok(Analysis { reads: columns_of_predicates(plan), ..analysis })
}

/// What can be said of a detection with a schedule, as it was planned and optimised: the tables and columns that it reads and what it
/// returns.
///
/// # Errors
/// What it must return, and does not.
pub fn analyse_scheduled(plan: &LogicalPlan, optimised: &LogicalPlan, declared: &Declared<'_>) -> Result<Analysis, String> {
    let names: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    for wanted in declared.alert_key.iter().map(String::as_str).chain(["alert_time"]) {
        if !names.iter().any(|name| name == wanted) {
            return Err(format!("the query must return `{wanted}` (it returns {})", names.join(", ")));
        }
    }
    let alert_time = plan.schema().fields().iter().find(|field| field.name() == "alert_time");
    if !alert_time.is_some_and(|field| matches!(field.data_type(), DataType::Timestamp(..))) {
        return Err("alert_time must be a timestamp: an event_time, a bin of one, or run_at()".into());
    }
    let tables: BTreeSet<String> = scans_of(plan).into_iter().map(|(table, _)| table).collect();
    let scan = |table: String| ScanInfo {
        table,
        projection: Vec::new(),
        filters: Vec::new(),
        key: None,
        back: 0,
        ahead: 0,
        optional: false,
        waits: false,
        silent: false,
        latest: None,
    };
    let scans: Vec<ScanInfo> = tables.into_iter().map(scan).collect();
    let streams = (0..scans.len()).filter(|scan| scans[*scan].is_stream()).map(Needs::Scan).collect();
    Ok(Analysis {
        thresholds: Vec::new(),
        class: Class::C4,
        needs: Needs::Any(streams),
        reads: columns_of_predicates(optimised),
        columns: names.into_iter().map(|name| if name == "level" { (name, Merge::Level) } else { (name, Merge::First) }).collect(),
        required: BTreeSet::new(),
        back: 0,
        ahead: 0,
        wait: 0,
        anchor: None,
        scans,
    })
}

/// Longest wait for a watermark: an absence that takes longer to be sure of is a question for a schedule.
const LONGEST_WAIT: Micros = 7 * DAY;

/// A value that follows a clock: it lies within `[lo, hi]` of the clock's reading.
#[derive(Clone, Copy, Debug)]
struct Term {
    clock: usize,
    lo: Micros,
    hi: Micros,
}

/// Whether more rows can still change a column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Never,
    Rises,
    Falls,
    AnyWay,
}

/// What is known of one output column.
#[derive(Clone, Debug)]
struct Col {
    /// Node in the union-find of key columns.
    key: Option<usize>,
    term: Option<Term>,
    change: Change,
    /// A count or size, never below zero: sums of it only rise.
    natural: bool,
}

const OPAQUE: Col = Col { key: None, term: None, change: Change::Never, natural: false };

struct Rel {
    cols: Vec<Col>,
    needs: Needs,
    has_stream: bool,
    /// Reads dimensions only: nothing that arrives can change it.
    fixed: bool,
}

/// Bounds that hold only for rows that are found on the optional side of a join.
struct Optional {
    scans: std::ops::Range<usize>,
    bounds: Vec<(usize, usize, Micros)>,
}

#[derive(Default)]
struct Walk {
    /// Class C3: results are looked at only when nothing on time can change them.
    patient: bool,
    optional: Vec<Optional>,
    /// Scan of which only the presence of a row counts, the clock on the other side, and how far after that it may lie.
    presence: Vec<(usize, usize, Micros)>,
    scans: Vec<ScanInfo>,
    /// Clock of each scan; none for lineage.
    scan_clock: Vec<Option<usize>>,
    /// Key-column nodes of each scan: node and column name.
    scan_keys: Vec<Vec<(usize, String)>>,
    parents: Vec<usize>,
    clocks: usize,
    /// `(a, b, c)`: clock a is at most c after clock b.
    bounds: Vec<(usize, usize, Micros)>,
    /// Each needs one of its nodes in the key class: joins, groupings, windows.
    keyed: Vec<(Vec<usize>, String)>,
    class: Option<Class>,
    required: BTreeSet<String>,
}

impl Walk {
    fn node(&mut self) -> usize {
        self.parents.push(self.parents.len());
        self.parents.len() - 1
    }

    fn root(&self, mut node: usize) -> usize {
        while self.parents[node] != node {
            node = self.parents[node];
        }
        node
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parents[a] = b;
    }

    fn clock(&mut self) -> usize {
        self.clocks += 1;
        self.clocks - 1
    }

    /// Whether a value that more rows can change stands in the way.
    fn disturbed(&self, change: Change) -> bool {
        change != Change::Never && !self.patient
    }

    fn at_least(&mut self, class: Class) {
        self.class = Some(self.class.map_or(class, |known| known.max(class)));
    }

    fn plan(&mut self, plan: &LogicalPlan) -> Result<Rel, String> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                if scan.fetch.is_some() {
                    return Err("LIMIT depends on the order of arrival: remove it".into());
                }
                let schema = scan.source.schema();
                let projection = scan.projection.clone().unwrap_or_else(|| (0..schema.fields().len()).collect());
                self.scan(scan.table_name.table(), &schema, projection, &scan.filters)
            }
            LogicalPlan::SubqueryAlias(alias) => self.plan(&alias.input),
            LogicalPlan::Projection(projection) => {
                let input = self.plan(&projection.input)?;
                let cols = projection.expr.iter().map(|expr| column_of(expr, projection.input.schema(), &input.cols)).collect();
                Ok(Rel { cols, ..input })
            }
            LogicalPlan::Filter(filter) => {
                let input = self.plan(&filter.input)?;
                self.filter(&filter.predicate, filter.input.schema(), &input.cols)?;
                Ok(input)
            }
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Union(union) => self.union(&union.inputs),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                self.at_least(Class::C1);
                let rel = self.plan(input)?;
                if rel.cols.iter().any(|col| self.disturbed(col.change)) {
                    return Err("DISTINCT over a count: the count may still change; leave DISTINCT away".into());
                }
                Ok(rel)
            }
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => self.window(window),
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.plan(&sort.input),
            LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => Err("LIMIT depends on what else arrives: remove it".into()),
            LogicalPlan::EmptyRelation(_) => Err("the query can never return a row: its predicates contradict each other".into()),
            other => Err(format!("{} has no place in a detection", other.display())),
        }
    }

    fn scan(&mut self, table: &str, schema: &arrow::datatypes::Schema, projection: Vec<usize>, filters: &[Expr]) -> Result<Rel, String> {
        let number = self.scans.len();
        let info = ScanInfo {
            table: table.to_owned(),
            projection: projection.clone(),
            filters: filters.to_vec(),
            key: None,
            back: 0,
            ahead: 0,
            optional: false,
            waits: false,
            silent: false,
            latest: None,
        };
        let (lineage, fixed) = (info.is_lineage(), info.is_dimension());
        let clock = info.is_stream().then(|| self.clock());
        let mut keys = Vec::new();
        let mut cols = Vec::new();
        for index in &projection {
            let name = schema.field(*index).name();
            let key = self.node();
            keys.push((key, name.clone()));
            let term = (name == "event_time").then_some(clock).flatten().map(|clock| Term { clock, lo: 0, hi: 0 });
            let natural = by_name(table).and_then(|table| table.column(name)).is_some_and(table::Column::is_natural);
            cols.push(Col { key: Some(key), term, change: Change::Never, natural });
        }
        if lineage {
            // One family of credentials is one key: a parent and its children are evaluated together.
            let ends: Vec<usize> = keys.iter().filter(|(_, name)| name == "credential" || name == "ancestor").map(|(node, _)| *node).collect();
            if let [a, b] = ends[..] {
                self.unite(a, b);
            }
        }
        if table == "rejects" || table == "alerts" {
            return Err(format!("{table} cannot be read by a detection"));
        }
        self.scans.push(info);
        self.scan_clock.push(clock);
        self.scan_keys.push(keys);
        let needs = if fixed { Needs::All(Vec::new()) } else { Needs::Scan(number) };
        Ok(Rel { cols, needs, has_stream: !lineage && !fixed, fixed })
    }

    fn join(&mut self, join: &Join) -> Result<Rel, String> {
        let start = self.scans.len();
        let left = self.plan(&join.left)?;
        let middle = self.scans.len();
        let right = self.plan(&join.right)?;
        let with_dimension = left.fixed || right.fixed;
        let equates = matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi);
        // The scans whose rows a result can do without.
        let dispensable = match join.join_type {
            JoinType::LeftAnti | JoinType::RightAnti if join.null_aware => {
                return Err("NOT IN (SELECT …) is empty as soon as the subquery returns one NULL: write NOT EXISTS".into());
            }
            JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi => 0..0,
            // A dimension is there whole: what is absent from it stays absent.
            JoinType::Left | JoinType::LeftAnti if right.fixed => 0..0,
            JoinType::Right | JoinType::RightAnti if left.fixed => 0..0,
            JoinType::Left | JoinType::LeftAnti if self.patient => middle..self.scans.len(),
            JoinType::Right | JoinType::RightAnti if self.patient => start..middle,
            JoinType::Left | JoinType::LeftAnti | JoinType::Right | JoinType::RightAnti => {
                return Err(format!("{} JOIN: what is absent now may still arrive (class C3)", join.join_type));
            }
            other => return Err(format!("{other} JOIN has no place in a detection: write one SELECT per side and join them with UNION ALL")),
        };
        if with_dimension {
            as_of(join, if right.fixed { &join.right } else { &join.left })?;
        } else {
            self.at_least(Class::C1);
        }
        if with_dimension && equates {
            self.required.extend(table_names(if right.fixed { &join.right } else { &join.left }));
        }
        let other_side = if dispensable.start == start { &join.left } else { &join.right };
        let silent = matches!(join.join_type, JoinType::LeftAnti | JoinType::RightAnti) && only_adds(other_side);
        for scan in dispensable.clone() {
            (self.scans[scan].optional, self.scans[scan].waits, self.scans[scan].silent) = (true, true, silent);
        }
        let before = self.bounds.len();
        let mut pairs = Vec::new();
        for (l, r) in &join.on {
            let (l, r) = (column_of(l, join.left.schema(), &left.cols), column_of(r, join.right.schema(), &right.cols));
            self.bound_equal(l.term, r.term);
            if let (Some(a), Some(b), true) = (l.key, r.key, equates || !dispensable.is_empty()) {
                self.unite(a, b);
                pairs.push(a);
            }
            if self.disturbed(l.change) || self.disturbed(r.change) {
                return Err("a join on a count: the count may still change".into());
            }
        }
        let both: Vec<Col> = left.cols.iter().chain(&right.cols).cloned().collect();
        let schema = join.left.schema().join(join.right.schema()).map_err(|error| error.to_string())?;
        if let Some(filter) = &join.filter {
            if equates || !dispensable.is_empty() {
                self.filter(filter, &schema, &both)?;
            } else if filter.column_refs().iter().any(|column| self.disturbed(lookup(column, &schema, &both).change)) {
                // What is joined away comes back or goes as a count rises; and such a filter bounds nothing that is returned.
                return Err(format!("`{filter}` compares a count inside an outer or NOT EXISTS join: compare it in HAVING or WHERE"));
            }
        }
        if !dispensable.is_empty() {
            // What these bounds say is true of rows that are found, not of results.
            let bounds = self.bounds.split_off(before);
            self.optional.push(Optional { scans: dispensable.clone(), bounds });
        }
        if matches!(join.join_type, JoinType::LeftAnti | JoinType::LeftSemi) && self.scans.len() == middle + 1 && is_plain_scan(&join.right) {
            self.presence.extend(presence(join, &schema, &both, left.cols.len()).map(|(clock, after)| (middle, clock, after)));
        }
        if !with_dimension {
            self.keyed.push((pairs, format!("JOIN of {} and {}", tables_of(&join.left), tables_of(&join.right))));
        }
        // Where no partner was found its columns are null: no key, no time.
        let padded = |cols: Vec<Col>, padded: bool| cols.into_iter().map(move |col| if padded { Col { key: None, term: None, ..col } } else { col });
        let (is_left, is_right) = (join.join_type == JoinType::Left && !right.fixed, join.join_type == JoinType::Right && !left.fixed);
        let cols = match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti => left.cols,
            JoinType::RightSemi | JoinType::RightAnti => right.cols,
            _ => padded(left.cols, is_right).chain(padded(right.cols, is_left)).collect(),
        };
        let needs = match join.join_type {
            JoinType::Left | JoinType::LeftAnti => left.needs,
            JoinType::Right | JoinType::RightAnti => right.needs,
            _ => Needs::All(vec![left.needs, right.needs]),
        };
        let (has_stream, fixed) = (left.has_stream || right.has_stream, left.fixed && right.fixed);
        Ok(Rel { cols, needs, has_stream, fixed })
    }

    fn union(&mut self, inputs: &[std::sync::Arc<LogicalPlan>]) -> Result<Rel, String> {
        self.at_least(Class::C1);
        let rels = inputs.iter().map(|input| self.plan(input)).collect::<Result<Vec<_>, _>>()?;
        let width = rels.first().map_or(0, |rel| rel.cols.len());
        let mut cols = Vec::with_capacity(width);
        for index in 0..width {
            let branch: Vec<Col> = rels.iter().map(|rel| rel.cols[index].clone()).collect();
            let key = branch.iter().all(|col| col.key.is_some()).then(|| {
                let node = self.node();
                branch.iter().filter_map(|col| col.key).for_each(|key| self.unite(key, node));
                node
            });
            let term = branch.iter().all(|col| col.term.is_some()).then(|| {
                let clock = self.clock();
                for term in branch.iter().filter_map(|col| col.term) {
                    self.bound_equal(Some(Term { clock, lo: 0, hi: 0 }), Some(term));
                }
                Term { clock, lo: 0, hi: 0 }
            });
            let only = |allowed: &[Change]| branch.iter().all(|col| allowed.contains(&col.change));
            let change = match () {
                () if only(&[Change::Never]) => Change::Never,
                () if only(&[Change::Never, Change::Rises]) => Change::Rises,
                () if only(&[Change::Never, Change::Falls]) => Change::Falls,
                () => Change::AnyWay,
            };
            cols.push(Col { key, term, change, natural: branch.iter().all(|col| col.natural) });
        }
        let (has_stream, fixed) = (rels.iter().any(|rel| rel.has_stream), rels.iter().all(|rel| rel.fixed));
        Ok(Rel { cols, needs: Needs::Any(rels.into_iter().map(|rel| rel.needs).collect()), has_stream, fixed })
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Result<Rel, String> {
        let start = self.scans.len();
        let input = self.plan(&aggregate.input)?;
        self.wait_for(start, !aggregate.aggr_expr.is_empty());
        let schema = aggregate.input.schema();
        let mut cols: Vec<Col> = aggregate.group_expr.iter().map(|expr| column_of(expr, schema, &input.cols)).collect();
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err("GROUPING SETS, CUBE and ROLLUP have no single key: write one detection per grouping".into());
        }
        if cols.iter().any(|col| self.disturbed(col.change)) {
            return Err("GROUP BY a count: the count may still change".into());
        }
        self.keyed.push((cols.iter().filter_map(|col| col.key).collect(), "GROUP BY".into()));
        self.at_least(if aggregate.aggr_expr.is_empty() { Class::C1 } else { Class::C2 });
        for expr in &aggregate.aggr_expr {
            if let Some(name) = aggregate_name(expr).filter(|name| !ORDER_FREE.contains(name)) {
                return Err(format!(
                    "{name}() depends on the order of rows, which is not the same live and in a backtest; there are {}",
                    ORDER_FREE.join(", ")
                ));
            }
            cols.push(Col { change: aggregate_change(expr, schema, &input.cols), natural: natural_aggregate(expr, schema, &input.cols), ..OPAQUE });
        }
        Ok(Rel { cols, ..input })
    }

    /// When results are final only, everything below an aggregate or a window can still change them.
    fn wait_for(&mut self, start: usize, counts: bool) {
        if self.patient && counts {
            self.scans[start..].iter_mut().for_each(|scan| scan.waits |= scan.is_stream());
        }
    }

    fn window(&mut self, window: &Window) -> Result<Rel, String> {
        self.at_least(Class::C2);
        let start = self.scans.len();
        let mut input = self.plan(&window.input)?;
        self.wait_for(start, true);
        let schema = window.input.schema();
        let mut added = Vec::new();
        let mut moved: Option<(usize, usize)> = None;
        let (mut farthest_before, mut farthest_after) = (0, 0);
        for expr in &window.window_expr {
            let Some(call) = window_call(expr) else { return Err(format!("{expr} is no window function that can be followed")) };
            let params = &call.params;
            let name = call.fun.name().to_owned();
            let keys: Vec<usize> = params.partition_by.iter().filter_map(|expr| column_of(expr, schema, &input.cols).key).collect();
            self.keyed.push((keys, format!("PARTITION BY of {name}()")));
            let change = match name.as_str() {
                "count" | "max" | "bool_or" => Change::Rises,
                "min" => Change::Falls,
                "sum" | "avg" | "bool_and" if self.patient => Change::AnyWay,
                _ if self.patient => {
                    let lag = if name == "lag" {
                        ", or keep of `lag(event_time) OVER (PARTITION BY … ORDER BY event_time, event_id) AS before` only `before IS NULL OR before < event_time - INTERVAL '…'`, and read it nowhere else"
                    } else {
                        ""
                    };
                    return Err(format!("{name}() over a window has no bound in time: write NOT EXISTS with an interval for what came before or after{lag}"));
                }
                _ => {
                    return Err(format!(
                        "{name}() over a window can change when an earlier row arrives (class C3); count, min and max over RANGE … PRECEDING can be decided at once"
                    ));
                }
            };
            let order = params.order_by.first().and_then(|sort| column_of(&sort.expr, schema, &input.cols).term);
            let (Some(term), true) = (order, params.window_frame.units == WindowFrameUnits::Range) else {
                return Err(format!("{name}() OVER (…): order by event_time and use RANGE BETWEEN INTERVAL '…' PRECEDING AND CURRENT ROW"));
            };
            let before = frame_bound(&params.window_frame.start_bound, true);
            let after = frame_bound(&params.window_frame.end_bound, false);
            let (Some(before), Some(after)) = (before, after) else {
                return Err(format!("{name}() OVER (…): the frame has no bound in time; use RANGE BETWEEN INTERVAL '…' PRECEDING AND CURRENT ROW"));
            };
            // The output row has a clock of its own; the rows it counts lie around it.
            match moved {
                Some((from, _)) if from == term.clock => {}
                None => moved = Some((term.clock, self.clock())),
                Some(_) => return Err("two windows over different times in one query: split the detection".into()),
            }
            if params.order_by.first().is_some_and(|sort| !sort.asc) {
                return Err(format!("{name}() OVER (… DESC): order by event_time ascending"));
            }
            if params.filter.as_deref().is_some_and(|filter| self.disturbed(derived(filter, schema, &input.cols).change)) {
                return Err(format!("{name}() FILTER over a count: the count may still change"));
            }
            // Several frames over one clock: the widest holds.
            farthest_before = farthest_before.max(before + term.hi - term.lo);
            farthest_after = farthest_after.max(after + term.hi - term.lo);
            added.push(Col { change, ..OPAQUE });
        }
        if let Some((from, to)) = moved {
            self.bounds.push((from, to, farthest_after));
            self.bounds.push((to, from, farthest_before));
            for col in &mut input.cols {
                col.term = col.term.filter(|term| term.clock == from).map(|term| Term { clock: to, ..term });
            }
        }
        input.cols.extend(added);
        Ok(input)
    }

    /// Takes time bounds from a predicate, and refuses one that more rows could make false again.
    fn filter(&mut self, predicate: &Expr, schema: &DFSchema, cols: &[Col]) -> Result<(), String> {
        for conjunct in split_conjunction(predicate) {
            if !self.patient && !keeps_true(conjunct, schema, cols) {
                return Err(format!("`{conjunct}` can become false again when more rows arrive (class C3); thresholds must be of the form count(…) >= n"));
            }
            self.bounds_from(conjunct, schema, cols);
        }
        Ok(())
    }

    fn bounds_from(&mut self, predicate: &Expr, schema: &DFSchema, cols: &[Col]) {
        match predicate {
            Expr::Between(between) if !between.negated => {
                self.compare(&between.low, Operator::LtEq, &between.expr, schema, cols);
                self.compare(&between.expr, Operator::LtEq, &between.high, schema, cols);
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
                self.bounds_from(left, schema, cols);
                self.bounds_from(right, schema, cols);
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => self.compare(left, *op, right, schema, cols),
            _ => {}
        }
    }

    fn compare(&mut self, left: &Expr, op: Operator, right: &Expr, schema: &DFSchema, cols: &[Col]) {
        let (left, op, right) = match op {
            Operator::Gt | Operator::GtEq => (right, Operator::LtEq, left),
            other => (left, other, right),
        };
        // a - b <= INTERVAL
        if let (Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Minus, right: b }), Some(limit)) = (left, difference(right)) {
            let (a, b) = (column_of(a, schema, cols).term, column_of(b, schema, cols).term);
            if let (Some(a), Some(b), Operator::Lt | Operator::LtEq) = (a, b, op) {
                self.bounds.push((a.clock, b.clock, limit + b.hi - a.lo));
            }
        }
        // INTERVAL <= a - b
        if let (Some(limit), Expr::BinaryExpr(BinaryExpr { left: a, op: Operator::Minus, right: b })) = (difference(left), right) {
            let (a, b) = (column_of(a, schema, cols).term, column_of(b, schema, cols).term);
            if let (Some(a), Some(b), Operator::Lt | Operator::LtEq) = (a, b, op) {
                self.bounds.push((b.clock, a.clock, a.hi - b.lo - limit));
            }
        }
        let (l, r) = (column_of(left, schema, cols).term, column_of(right, schema, cols).term);
        match (l, r, op) {
            (Some(l), Some(r), Operator::Lt | Operator::LtEq) => self.bounds.push((l.clock, r.clock, r.hi - l.lo)),
            (l, r, Operator::Eq) => self.bound_equal(l, r),
            _ => {}
        }
    }

    fn bound_equal(&mut self, a: Option<Term>, b: Option<Term>) {
        if let (Some(a), Some(b)) = (a, b) {
            self.bounds.push((a.clock, b.clock, b.hi - a.lo));
            self.bounds.push((b.clock, a.clock, a.hi - b.lo));
        }
    }

    fn finish(mut self, plan: &LogicalPlan, top: Rel, declared: &Declared<'_>) -> Result<Analysis, String> {
        let class = if self.patient { Class::C3 } else { self.class.unwrap_or(Class::C0) };
        let names: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
        let find = |name: &str| names.iter().position(|n| n == name);
        for name in declared.alert_key {
            let Some(index) = find(name) else {
                return Err(format!("alert_key names `{name}`, which the query does not return (it returns {})", names.join(", ")));
            };
            if self.disturbed(top.cols[index].change) {
                return Err(format!("alert_key `{name}` is a count that may still change: it cannot name an alert"));
            }
        }
        let Some(at) = find("alert_time") else { return Err("the query must return a column `alert_time`".into()) };
        if !matches!(plan.schema().field(at).data_type(), arrow::datatypes::DataType::Timestamp(..)) {
            return Err("alert_time must be a timestamp".into());
        }
        if self.disturbed(top.cols[at].change) {
            return Err("alert_time comes from an aggregate that may still change: group by date_bin(…, event_time) and return that".into());
        }
        if top.cols[at].term.is_none() {
            return Err("alert_time must be an event_time, or date_bin() of one: nothing else is the same live and in a backtest".into());
        }
        let mut columns = Vec::new();
        for (name, col) in names.iter().zip(&top.cols) {
            let merge = match (name.as_str(), col.change) {
                ("level", Change::Never) => Merge::Level,
                ("level", _) if self.patient => Merge::Level,
                // Final when it is looked at.
                _ if self.patient => Merge::First,
                ("level", _) => return Err("column `level` is computed from a count that may still change: give each level a detection of its own".into()),
                (_, Change::Never) => Merge::First,
                (_, Change::Rises) => Merge::Max,
                (_, Change::Falls) => Merge::Min,
                (_, Change::AnyWay) => {
                    return Err(format!("column `{name}` is computed from a value that may still change either way: return the count, min or max itself"));
                }
            };
            columns.push((name.clone(), merge));
        }
        let (mut back, mut ahead) = (0, 0);
        if class > Class::C0 {
            self.choose_key()?;
            let Some(alert) = top.cols[at].term else {
                return Err("alert_time must be an event_time, or date_bin() of one, so that its distance to each table is known".into());
            };
            let distance = self.closure(&[]);
            if (0..self.clocks).any(|clock| distance[clock][clock].is_some_and(|d| d < 0)) {
                return Err("the time bounds contradict each other (in a UNION, give all branches the same meaning of each time column)".into());
            }
            for number in 0..self.scans.len() {
                let Some(clock) = self.scan_clock[number] else { continue };
                let around: Vec<&Optional> = self.optional.iter().filter(|optional| optional.scans.contains(&number)).collect();
                let distance = if around.is_empty() { distance.clone() } else { self.closure(&around) };
                // alert_time - scan <= back, scan - alert_time <= ahead.
                let before = distance[alert.clock][clock].map(|d| (d + alert.hi).max(0));
                let after = distance[clock][alert.clock].map(|d| (d - alert.lo).max(0));
                let (Some(before), Some(after)) = (before, after) else {
                    let table = &self.scans[number].table;
                    let missing = match (before.is_none(), after.is_none()) {
                        (true, true) => "how long before and how long after",
                        (true, false) => "how long before",
                        (false, _) => "how long after",
                    };
                    return Err(format!(
                        "no time bound between alert_time and {table} (scan {}): nothing says {missing} it its rows may lie; both sides need one, such as `{table}.event_time BETWEEN other.event_time - INTERVAL '17 minutes' AND other.event_time`",
                        number + 1
                    ));
                };
                (self.scans[number].back, self.scans[number].ahead) = (before, after);
                (back, ahead) = (back.max(before), ahead.max(after));
            }
            for (scan, clock, after) in &self.presence {
                // What lies that far before the other side's row lies so far before every alert_time that the row can give.
                self.scans[*scan].latest = distance[alert.clock][*clock].map(|d| after - (d + alert.hi));
            }
        }
        let mut wait = 0;
        for scan in self.scans.iter().filter(|scan| scan.waits) {
            let delay = by_name(&scan.table).map_or(0, |table| table.max_delay);
            wait = wait.max(scan.ahead + delay);
            if scan.ahead + delay > LONGEST_WAIT {
                return Err(format!(
                    "what is absent from {} is sure only {} later ({} of window, {} of allowed lateness): more than {}, too long to wait for; ask on a schedule, with `schedule: 1h` and `over: 28d` in the front matter",
                    scan.table,
                    spoken(scan.ahead + delay),
                    spoken(scan.ahead),
                    spoken(delay),
                    spoken(LONGEST_WAIT)
                ));
            }
        }
        if !top.has_stream {
            return Err("the query reads no stream".into());
        }
        let exact = top.cols[at].term.filter(|term| term.lo == term.hi);
        let anchor = exact.and_then(|term| Some((self.scan_clock.iter().position(|clock| *clock == Some(term.clock))?, term.lo)));
        let anchor = anchor.filter(|(scan, _)| !self.scans[*scan].optional);
        Ok(Analysis {
            thresholds: Vec::new(),
            class,
            scans: self.scans,
            needs: top.needs,
            reads: BTreeSet::new(),
            columns,
            required: self.required,
            back,
            ahead,
            wait,
            anchor,
        })
    }

    /// Finds the class of equated columns that goes through everything, and notes each scan's column of it.
    fn choose_key(&mut self) -> Result<(), String> {
        let mut candidates: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (node, name) in self.scan_keys.iter().flatten() {
            candidates.entry(self.root(*node)).or_default().push(name.clone());
        }
        let holds = |walk: &Walk, root: usize, nodes: &[usize]| nodes.iter().any(|node| walk.root(*node) == root);
        let covers = |walk: &Walk, root: usize| {
            // Two columns of one scan in the class (branches of a UNION can do that) leave open by which its rows belong to a key.
            let of_scan = |keys: &Vec<(usize, String)>| keys.iter().filter(|(node, _)| walk.root(*node) == root).count();
            let scans = walk.scan_keys.iter().zip(&walk.scans).all(|(keys, scan)| match scan {
                scan if scan.is_dimension() => true,
                scan if scan.is_lineage() => of_scan(keys) >= 1,
                _ => of_scan(keys) == 1,
            });
            scans && walk.keyed.iter().all(|(nodes, _)| holds(walk, root, nodes))
        };
        // Times equate too (`date_bin` groups), but only identifying columns spread rows over keys.
        let usable = |names: &[String]| !names.iter().any(|name| name == "event_time" || name == "append_time");
        let mut keys: Vec<(usize, usize)> = candidates
            .iter()
            .filter(|(root, names)| usable(names) && covers(self, **root))
            .map(|(root, names)| (if names.iter().any(|n| n == "access_key_id") { 0 } else { 1 }, *root))
            .collect();
        keys.sort_unstable();
        let Some((_, root)) = keys.first().copied() else {
            let trouble = self.keyed.iter().find(|(nodes, _)| nodes.is_empty()).map_or("its joins and groups", |(_, what)| what.as_str());
            return Err(format!(
                "no key: {trouble} must go through one identifying column (access_key_id, identity, source_ip, …) that equates all tables of the query, as a plain column"
            ));
        };
        for (number, keys) in self.scan_keys.iter().enumerate() {
            self.scans[number].key = keys.iter().find(|(node, _)| self.root(*node) == root).map(|(_, name)| name.clone());
        }
        Ok(())
    }

    /// Shortest distances between all clocks; with what holds for rows found on the optional sides of these joins.
    fn closure(&self, found: &[&Optional]) -> Vec<Vec<Option<Micros>>> {
        let n = self.clocks;
        let mut d = vec![vec![None; n]; n];
        for (clock, row) in d.iter_mut().enumerate() {
            row[clock] = Some(0);
        }
        for (a, b, c) in self.bounds.iter().chain(found.iter().flat_map(|optional| &optional.bounds)) {
            d[*a][*b] = Some(d[*a][*b].map_or(*c, |known: Micros| known.min(*c)));
        }
        for via in 0..n {
            for a in 0..n {
                for b in 0..n {
                    if let (Some(x), Some(y)) = (d[a][via], d[via][b]) {
                        d[a][b] = Some(d[a][b].map_or(x + y, |known| known.min(x + y)));
                    }
                }
            }
        }
        d
    }
}

/// Aggregates whose value does not depend on the order of rows.
const ORDER_FREE: [&str; 10] = ["count", "sum", "avg", "min", "max", "bool_and", "bool_or", "approx_distinct", "median", "percentile_cont"];

fn aggregate_name(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Alias(alias) => aggregate_name(&alias.expr),
        Expr::AggregateFunction(AggregateFunction { func, .. }) => Some(func.name()),
        _ => None,
    }
}

/// Whether more rows of its scans can only give more rows.
fn only_adds(plan: &LogicalPlan) -> bool {
    let monotone = match plan {
        LogicalPlan::TableScan(_) | LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Union(_) => true,
        LogicalPlan::Distinct(Distinct::All(_)) => true,
        LogicalPlan::Join(join) => matches!(join.join_type, JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi),
        LogicalPlan::Aggregate(aggregate) => aggregate.aggr_expr.is_empty(),
        _ => false,
    };
    monotone && plan.inputs().into_iter().all(only_adds)
}

/// Whether a plan gives the rows of one scan as they are.
fn is_plain_scan(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(_) => true,
        LogicalPlan::SubqueryAlias(alias) => is_plain_scan(&alias.input),
        LogicalPlan::Projection(projection) => {
            projection.expr.iter().all(|expr| matches!(expr.clone().unalias(), Expr::Column(_))) && is_plain_scan(&projection.input)
        }
        _ => false,
    }
}

/// If of the right side's rows only the presence counts, and time matters only against one clock of the left side: that clock,
/// and how long after its reading a row may lie.
fn presence(join: &Join, schema: &DFSchema, cols: &[Col], left: usize) -> Option<(usize, Micros)> {
    let is_right_time =
        |expr: &Expr| expr.column_refs().iter().any(|column| schema.index_of_column(column).is_ok_and(|at| at >= left && cols[at].term.is_some()));
    if join.on.iter().any(|(_, right)| is_right_time(right)) {
        return None;
    }
    let mut found: Option<(usize, Micros)> = None;
    for conjunct in join.filter.iter().flat_map(split_conjunction) {
        if !is_right_time(conjunct) {
            continue;
        }
        let pairs: Vec<(&Expr, Operator, &Expr)> = match conjunct {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => vec![(left, *op, right)],
            Expr::Between(between) if !between.negated => {
                vec![(between.expr.as_ref(), Operator::GtEq, between.low.as_ref()), (between.expr.as_ref(), Operator::LtEq, between.high.as_ref())]
            }
            _ => return None,
        };
        for (a, op, b) in pairs {
            let (a, op, b) = if is_right_time(a) { (a, op, b) } else { (b, op.swap()?, a) };
            let (row, other) = (column_of(a, schema, cols).term?, column_of(b, schema, cols).term?);
            if row.lo != row.hi || is_right_time(b) {
                return None;
            }
            match op {
                // The later the row, the sooner it is after a moment.
                Operator::GtEq | Operator::Gt => {}
                Operator::LtEq | Operator::Lt => {
                    let after = other.lo - row.hi - i64::from(op == Operator::Lt);
                    match found {
                        Some((clock, _)) if clock != other.clock => return None,
                        Some((_, known)) if known <= after => {}
                        _ => found = Some((other.clock, after)),
                    }
                }
                _ => return None,
            }
        }
    }
    found
}

/// A dimension is joined as of the row's append time: an entry that is edited today must not change last month.
fn as_of(join: &Join, dimension: &LogicalPlan) -> Result<(), String> {
    let of_dimension = |name: &str| dimension.schema().columns().into_iter().filter(|column| column.name == name).collect::<Vec<_>>();
    let (from, to) = (of_dimension("valid_from"), of_dimension("valid_to"));
    // `append_time >= valid_from` and `append_time < valid_to`, either way round, as conditions of their own.
    let is_bound = |conjunct: &Expr, column: &Column, wanted: Operator| {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = conjunct else { return false };
        let sides = |arrival: &Expr, bound: &Expr| matches!((arrival, bound), (Expr::Column(a), Expr::Column(b)) if a.name == "append_time" && b == column);
        (*op == wanted && sides(left, right)) || (op.swap() == Some(wanted) && sides(right, left))
    };
    let bounds = |columns: &[Column], wanted: Operator| {
        let conjuncts: Vec<&Expr> = join.filter.iter().flat_map(split_conjunction).collect();
        !columns.is_empty() && columns.iter().all(|column| conjuncts.iter().any(|conjunct| is_bound(conjunct, column, wanted)))
    };
    if bounds(&from, Operator::GtEq) && bounds(&to, Operator::Lt) {
        return Ok(());
    }
    let name = tables_of(dimension);
    Err(format!(
        "JOIN with {name}: as of which row's arrival does an entry count? Compare it with one row by the row's alias, or write `AND u.append_time >= a.valid_from AND u.append_time < a.valid_to`, where `u` is the row and `a` is {name}: otherwise editing the file today would change last month's alerts"
    ))
}

fn tables_of(plan: &LogicalPlan) -> String {
    table_names(plan).join(" and ")
}

/// The tables of a plan, in its order.
fn table_names(plan: &LogicalPlan) -> Vec<String> {
    let mut names = Vec::new();
    let _ = plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            names.push(scan.table_name.table().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    names.dedup();
    names
}

/// What is known of an expression over the given columns.
fn column_of(expr: &Expr, schema: &DFSchema, cols: &[Col]) -> Col {
    match expr {
        Expr::Column(column) => lookup(column, schema, cols),
        Expr::Alias(alias) => column_of(&alias.expr, schema, cols),
        Expr::Cast(cast) => casted(column_of(&cast.expr, schema, cols), &cast.expr, cast.field.data_type(), schema),
        Expr::TryCast(cast) => casted(column_of(&cast.expr, schema, cols), &cast.expr, cast.field.data_type(), schema),
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Plus | Operator::Minus), right }) => {
            let base = column_of(left, schema, cols);
            let shift = interval(right).map(|length| if *op == Operator::Plus { length } else { -length });
            match (base.term, shift) {
                (Some(term), Some(shift)) => {
                    Col { term: Some(Term { clock: term.clock, lo: term.lo + shift, hi: term.hi + shift }), change: base.change, ..OPAQUE }
                }
                _ => derived(expr, schema, cols),
            }
        }
        Expr::ScalarFunction(call) => {
            let width = match (call.func.name(), call.args.first()) {
                ("date_bin", Some(stride)) => interval(stride),
                ("date_trunc", Some(Expr::Literal(unit, _))) => unit.try_as_str().flatten().and_then(|unit| match unit {
                    "second" => Some(SECOND),
                    "minute" => Some(MINUTE),
                    "hour" => Some(HOUR),
                    "day" => Some(DAY),
                    "week" => Some(7 * DAY),
                    _ => None,
                }),
                _ => None,
            };
            match (width, call.args.get(1).map(|arg| column_of(arg, schema, cols))) {
                (Some(width), Some(Col { term: Some(term), change, .. })) => {
                    Col { term: Some(Term { clock: term.clock, lo: term.lo - width, hi: term.hi }), change, ..OPAQUE }
                }
                _ => derived(expr, schema, cols),
            }
        }
        _ => derived(expr, schema, cols),
    }
}

/// A cast keeps a key only from text to text, and a clock only from timestamp to timestamp: a date lies up to a day off.
fn casted(col: Col, from: &Expr, to: &DataType, schema: &DFSchema) -> Col {
    let is_text = |kind: &DataType| match kind {
        DataType::Dictionary(_, values) => values.is_string(),
        kind => kind.is_string(),
    };
    let text = is_text(to) && from.get_type(schema).is_ok_and(|from| is_text(&from));
    let number = to.is_numeric();
    Col { key: col.key.filter(|_| text), term: col.term.filter(|_| matches!(to, DataType::Timestamp(..))), change: col.change, natural: col.natural && number }
}

/// A value computed from columns: fixed as long as they are.
fn derived(expr: &Expr, schema: &DFSchema, cols: &[Col]) -> Col {
    let fixed = expr.column_refs().iter().all(|column| lookup(column, schema, cols).change == Change::Never);
    Col { change: if fixed { Change::Never } else { Change::AnyWay }, natural: fixed && natural(expr, schema, cols), ..OPAQUE }
}

/// Whether a value is never below zero: sums, products and choices of counts.
fn natural(expr: &Expr, schema: &DFSchema, cols: &[Col]) -> bool {
    match expr {
        Expr::Column(column) => lookup(column, schema, cols).natural,
        Expr::Alias(alias) => natural(&alias.expr, schema, cols),
        Expr::Cast(cast) => cast.field.data_type().is_numeric() && natural(&cast.expr, schema, cols),
        Expr::Literal(value, _) => matches!(value, ScalarValue::Int64(Some(0..)) | ScalarValue::UInt64(Some(_)) | ScalarValue::Int32(Some(0..))),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Plus | Operator::Divide, right }) => natural(left, schema, cols) && natural(right, schema, cols),
        Expr::ScalarFunction(call) if call.func.name() == "coalesce" => call.args.iter().all(|arg| natural(arg, schema, cols)),
        Expr::Case(case) => {
            let mut branches = case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr);
            branches.all(|then| natural(then, schema, cols) || matches!(then.as_ref(), Expr::Literal(value, _) if value.is_null()))
        }
        _ => false,
    }
}

fn lookup(column: &Column, schema: &DFSchema, cols: &[Col]) -> Col {
    schema.index_of_column(column).ok().and_then(|index| cols.get(index).cloned()).unwrap_or(OPAQUE)
}

/// Whether a predicate, once true of a row, stays true however many rows are added.
fn keeps_true(predicate: &Expr, schema: &DFSchema, cols: &[Col]) -> bool {
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And | Operator::Or, right }) => keeps_true(left, schema, cols) && keeps_true(right, schema, cols),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (l, r) = (column_of(left, schema, cols).change, column_of(right, schema, cols).change);
            matches!(
                (l, op, r),
                (Change::Never, _, Change::Never)
                    | (Change::Rises, Operator::GtEq | Operator::Gt, Change::Never | Change::Falls)
                    | (Change::Falls, Operator::LtEq | Operator::Lt, Change::Never | Change::Rises)
                    | (Change::Never, Operator::LtEq | Operator::Lt, Change::Rises)
                    | (Change::Never, Operator::GtEq | Operator::Gt, Change::Falls)
            )
        }
        other => derived(other, schema, cols).change == Change::Never,
    }
}

fn aggregate_change(expr: &Expr, schema: &DFSchema, cols: &[Col]) -> Change {
    match expr {
        Expr::Alias(alias) => aggregate_change(&alias.expr, schema, cols),
        Expr::AggregateFunction(AggregateFunction { func, params }) => {
            if params.filter.as_deref().is_some_and(|filter| derived(filter, schema, cols).change != Change::Never) {
                return Change::AnyWay;
            }
            let inner = params.args.first().map_or(Change::Never, |arg| column_of(arg, schema, cols).change);
            let counts = params.args.first().is_some_and(|arg| natural(arg, schema, cols));
            match (func.name(), inner) {
                ("count" | "approx_distinct" | "bool_or", Change::Never) => Change::Rises,
                ("max", Change::Never | Change::Rises) => Change::Rises,
                ("min", Change::Never | Change::Falls) => Change::Falls,
                // The second stage of a rewritten count(DISTINCT …) sums counts.
                ("sum", Change::Rises) if counts => Change::Rises,
                // Counts and sizes are never below zero: the decoders see to it.
                ("sum", Change::Never) if counts => Change::Rises,
                _ => Change::AnyWay,
            }
        }
        _ => Change::AnyWay,
    }
}

/// Whether an aggregate is never below zero.
fn natural_aggregate(expr: &Expr, schema: &DFSchema, cols: &[Col]) -> bool {
    match expr {
        Expr::Alias(alias) => natural_aggregate(&alias.expr, schema, cols),
        Expr::AggregateFunction(AggregateFunction { func, params }) => match func.name() {
            "count" | "approx_distinct" => true,
            "sum" | "min" | "max" => params.args.first().is_some_and(|arg| natural(arg, schema, cols)),
            _ => false,
        },
        _ => false,
    }
}

fn window_call(expr: &Expr) -> Option<&WindowFunction> {
    match expr {
        Expr::WindowFunction(call) => Some(call),
        Expr::Alias(alias) => window_call(&alias.expr),
        _ => None,
    }
}

/// How far a frame bound lies from the current row, towards the past for a start and towards the future for an end.
fn frame_bound(bound: &WindowFrameBound, is_start: bool) -> Option<Micros> {
    let (length, forward) = match bound {
        WindowFrameBound::CurrentRow => return Some(0),
        WindowFrameBound::Preceding(value) => (scalar_interval(value)?, false),
        WindowFrameBound::Following(value) => (scalar_interval(value)?, true),
    };
    Some(if is_start == forward { 0 } else { length })
}

/// The length of an interval literal; months have none.
fn interval(expr: &Expr) -> Option<Micros> {
    match expr {
        Expr::Literal(value, _) => scalar_interval(value),
        Expr::Cast(cast) => interval(&cast.expr),
        Expr::Alias(alias) => interval(&alias.expr),
        _ => None,
    }
}

/// An interval literal with which a difference of times is compared. That has no days, and SQL compares days first: one that has some is no bound.
fn difference(expr: &Expr) -> Option<Micros> {
    match expr {
        Expr::Literal(value, _) => scalar_interval(value).filter(|_| is_exact(value)),
        Expr::Cast(cast) => difference(&cast.expr),
        Expr::Alias(alias) => difference(&alias.expr),
        _ => None,
    }
}

/// Whether an interval is hours and less: what a difference of times can be compared with.
pub(super) fn is_exact(value: &ScalarValue) -> bool {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(v)) => v.months == 0 && v.days == 0,
        ScalarValue::IntervalDayTime(Some(v)) => v.days == 0,
        _ => true,
    }
}

pub(super) fn scalar_interval(value: &ScalarValue) -> Option<Micros> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(v)) if v.months == 0 => Some(i64::from(v.days) * DAY + v.nanoseconds / 1000),
        ScalarValue::IntervalDayTime(Some(v)) => Some(i64::from(v.days) * DAY + i64::from(v.milliseconds) * 1000),
        ScalarValue::DurationMicrosecond(Some(v)) => Some(*v),
        ScalarValue::DurationNanosecond(Some(v)) => Some(*v / 1000),
        ScalarValue::DurationMillisecond(Some(v)) => Some(*v * 1000),
        ScalarValue::DurationSecond(Some(v)) => Some(*v * SECOND),
        _ => None,
    }
}

impl std::fmt::Display for Analysis {
    /// One line: class, key, and how far each scan is looked for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.class)?;
        if let Some(key) = self.scans.iter().find_map(|scan| scan.key.as_deref()) {
            write!(f, ", keyed by {key}")?;
        }
        for scan in self.scans.iter().filter(|scan| !scan.is_lineage()) {
            write!(f, "; {}", scan.table)?;
            if scan.is_dimension() {
                continue;
            }
            if self.class > Class::C0 && self.class < Class::C4 {
                write!(f, " [-{}, +{}]", spoken(scan.back), spoken(scan.ahead))?;
            }
            if self.class < Class::C4 && scan.is_broad() {
                f.write_str(" (broad)")?;
            }
        }
        Ok(())
    }
}
