//! Planning a detection once: SQL → optimised plan → analysis → kept physical plan with slots for leaves.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::catalog::default_table_source::provider_as_source;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::context::{SessionContext, SessionState};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, collect};
use futures::executor::block_on;

use super::analyse::{self, Analysis};
use super::catalog::{self, Slot, SlotTable};
use super::file::Detection;
use super::lag;
use crate::error::{Error, Result};
use crate::function;
use crate::secret::Fingerprinter;
use crate::table::{STREAMS, Table, by_name, rejects};

/// The context in which detections are planned.
///
/// # Errors
/// A view that does not plan: a bug.
pub fn planner(fingerprinter: &Fingerprinter) -> Result<SessionContext> {
    let declared = |name: &str, schema: SchemaRef| catalog::Declared { schema, is_stream: STREAMS.iter().any(|table| table.name == name) };
    let ctx = catalog::context(catalog::session_config(), fingerprinter, |name, schema| Arc::new(declared(name, schema)))?;
    // For detections with a schedule.
    ctx.register_table(rejects::TABLE.name, Arc::new(declared(rejects::TABLE.name, rejects::TABLE.schema())))?;
    ctx.register_udf(function::run_at(0));
    Ok(ctx)
}

/// A plan that is made once and run many times, each time over the rows put into its slots.
pub struct KeptPlan {
    plan: Arc<dyn ExecutionPlan>,
    /// One slot per scan, in plan order.
    pub slots: Vec<Slot>,
    task: Arc<TaskContext>,
}

impl KeptPlan {
    /// The same plan over slots of its own.
    ///
    /// # Errors
    /// DataFusion's, never in practice.
    pub fn another(&self) -> datafusion::common::Result<Self> {
        let slots: Vec<Slot> = self.slots.iter().map(Slot::another).collect();
        let with_own = |node: Arc<dyn ExecutionPlan>| {
            let exchanged = Slot::exchanged(node.as_ref(), &self.slots, &slots);
            Ok(exchanged.map_or_else(|| Transformed::no(node), Transformed::yes))
        };
        let plan = Arc::clone(&self.plan).transform_up(with_own)?.data;
        Ok(Self { plan, slots, task: Arc::clone(&self.task) })
    }

    /// Runs the plan over the rows in its slots, and empties them.
    ///
    /// # Errors
    /// What the query itself runs into, such as an overflow.
    pub async fn run(&mut self) -> datafusion::common::Result<Vec<RecordBatch>> {
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        let result = collect(Arc::clone(&self.plan), Arc::clone(&self.task)).await;
        self.slots.iter().for_each(|slot| slot.set(None));
        result
    }
}

/// A detection with all that was inferred of it.
pub struct Compiled {
    pub detection: Arc<Detection>,
    pub analysis: Analysis,
    /// None for a detection with a schedule: it is planned anew each time.
    pub plan: Option<KeptPlan>,
}

/// Detections, planned and analysed once, for as many engines as need them.
pub struct Plans {
    pub(super) state: SessionState,
    pub(super) compiled: Vec<Compiled>,
    pub(super) links: LinksPlan,
}

/// The kept plan of `lineage_links`, and what it reads.
pub(super) struct LinksPlan {
    pub plan: KeptPlan,
    pub table: &'static Table,
    pub projection: Vec<usize>,
    pub filters: Vec<Expr>,
}

impl Plans {
    /// Plans these detections; every one that cannot be decided safely is named, all at once.
    ///
    /// # Errors
    /// The list of refusals.
    pub fn new(detections: &[Detection], fingerprinter: &Fingerprinter) -> Result<Self, Vec<Error>> {
        let one = |error: Error| vec![error];
        let ctx = planner(fingerprinter).map_err(one)?;
        let (mut compiled, mut refused) = (Vec::new(), Vec::new());
        for detection in detections {
            match block_on(compile(&ctx, &Arc::new(detection.clone()))) {
                Ok(good) => compiled.push(good),
                Err(error) => refused.push(error),
            }
        }
        if !refused.is_empty() {
            return Err(refused);
        }
        let links = block_on(LinksPlan::new(&ctx)).map_err(one)?;
        Ok(Self { state: ctx.state(), compiled, links })
    }

    /// The detections and what was inferred of them.
    pub fn detections(&self) -> impl Iterator<Item = (&Arc<Detection>, &Analysis)> {
        self.compiled.iter().map(|compiled| (&compiled.detection, &compiled.analysis))
    }
}

impl LinksPlan {
    async fn new(ctx: &SessionContext) -> Result<Self> {
        let state = ctx.state();
        let plan = state.create_logical_plan("SELECT child, parent, minted_at FROM lineage_links").await?;
        let plan = state.optimize(&plan)?;
        let mut scans = Vec::new();
        plan.apply(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                scans.push(scan.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let [scan] = &scans[..] else { return Err(Error::bug("lineage_links must read one table")) };
        let table = by_name(scan.table_name.table()).ok_or_else(|| Error::bug("lineage_links reads an unknown table"))?;
        let projection = scan.projection.clone().unwrap_or_else(|| (0..table.columns.len()).collect());
        Ok(Self { plan: keep(ctx, plan).await?, table, projection, filters: scan.filters.clone() })
    }
}

/// Plans and analyses one detection.
///
/// # Errors
/// Names the file and the line of the SQL, what cannot be decided safely, and how to write it.
pub async fn compile(ctx: &SessionContext, detection: &Arc<Detection>) -> Result<Compiled> {
    let place = || format!("{}:{}", detection.path.display(), detection.sql_line);
    let refuse = |message: String| Error::user(format!("{}: {message}", place()));
    let state = ctx.state();
    let refused = |error: DataFusionError| refuse(error.strip_backtrace().replace("datafusion.public.", ""));
    let raw = state.create_logical_plan(&detection.sql).await.map_err(refused)?;
    if !matches!(
        raw,
        LogicalPlan::Projection(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
    ) {
        return Err(refuse("a detection is one SELECT".into()));
    }
    analyse::refuse_volatile(&raw).map_err(refuse)?;
    let thresholds = analyse::thresholds(&raw).map_err(refuse)?;
    let declared = analyse::Declared { alert_key: &detection.alert_key };
    if detection.schedule.is_some() {
        let optimised = state.optimize(&raw).map_err(refused)?;
        let analysis = Analysis { thresholds, ..analyse::analyse_scheduled(&raw, &optimised, &declared).map_err(refuse)? };
        return Ok(Compiled { detection: Arc::clone(detection), analysis, plan: None });
    }
    if let Some(what) = needs_schedule(&raw) {
        return Err(refuse(format!(
            "{what} only in a detection that is asked over the archive: give it `schedule: 15m` and `over: 1d` in the front matter (class C4)"
        )));
    }
    let optimised = state.optimize(&raw).map_err(refused)?;
    let absent = lag::as_absence(optimised).and_then(|absent| if absent.transformed { state.optimize(&absent.data) } else { Ok(absent.data) });
    let optimised = absent.map_err(refused)?;
    if has_subquery(&optimised) {
        return Err(refuse("a scalar subquery over a stream depends on all rows at once (class C4): write a join or EXISTS, or ask on a schedule, with `schedule: 15m` and `over: 1d` in the front matter".into()));
    }
    let analysis = Analysis { thresholds, ..analyse::analyse(&optimised, &declared).map_err(refuse)? };
    if detection.early && analysis.class < analyse::Class::C3 {
        return Err(refuse(format!("early has no meaning in class {:?}: it is told at once, and nothing takes it back", analysis.class)));
    }
    let plan = keep(ctx, optimised).await.map_err(refused)?;
    if plan.slots.len() != analysis.scans.len() {
        return Err(Error::bug(format!("{}: {} scans analysed, {} planned", place(), analysis.scans.len(), plan.slots.len())));
    }
    Ok(Compiled { detection: Arc::clone(detection), analysis, plan: Some(plan) })
}

/// What a plan uses that has a meaning only at a moment.
fn needs_schedule(plan: &LogicalPlan) -> Option<&'static str> {
    let mut found = None;
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.table() == rejects::TABLE.name
        {
            found = Some("rejects can be read");
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "run_at") {
                    found = Some("run_at() means something");
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    found
}

/// Makes the physical plan with a slot for every scan.
///
/// # Errors
/// DataFusion's.
pub async fn keep(ctx: &SessionContext, optimised: LogicalPlan) -> datafusion::common::Result<KeptPlan> {
    let mut slots = Vec::new();
    let with_slots = optimised
        .transform_up(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let schema: SchemaRef = Arc::new(scan.projected_schema.as_arrow().clone());
            let slot = Slot::new(schema);
            slots.push(slot.clone());
            scan.source = provider_as_source(Arc::new(SlotTable { full: scan.source.schema(), slot }));
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        })?
        .data;
    let state = ctx.state();
    let plan = state.query_planner().create_physical_plan(&with_slots, &state).await?;
    Ok(KeptPlan { plan, slots, task: ctx.task_ctx() })
}

fn has_subquery(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let _ = plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found |= matches!(expr, Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    found
}
