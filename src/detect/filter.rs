//! The shared filter pass: every distinct predicate over a batch is evaluated once, whoever asks for it.
//!
//! Predicates on one dictionary column are evaluated on its distinct values and spread over the rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, DictionaryArray, Int32Array};
use arrow::compute::kernels::boolean::and;
use arrow::datatypes::{DataType, Int32Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DFSchema, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::physical_expr::PhysicalExpr;

struct Conjunct {
    expr: Expr,
    physical: Arc<dyn PhysicalExpr>,
    /// For a predicate on one dictionary column: the column, and the predicate over that column alone.
    lifted: Option<(usize, Arc<dyn PhysicalExpr>)>,
    /// Rows on which it failed (a division by zero, a cast): they do not match.
    failures: AtomicU64,
}

/// All predicates over one table, each distinct conjunct once.
pub struct FilterPass {
    schema: SchemaRef,
    conjuncts: Vec<Conjunct>,
    /// Conjuncts of each registered scan.
    scans: Vec<Vec<usize>>,
}

/// The results of one batch, filled in as scans ask for them.
pub struct Masks<'p> {
    pass: &'p FilterPass,
    batch: &'p RecordBatch,
    done: Vec<Option<BooleanArray>>,
}

impl FilterPass {
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema, conjuncts: Vec::new(), scans: Vec::new() }
    }

    /// Adds the predicates of one scan; gives the number to ask for its rows with.
    ///
    /// # Errors
    /// A predicate that does not compile.
    pub fn add(&mut self, filters: &[Expr], state: &SessionState) -> Result<usize> {
        let mut wanted = Vec::new();
        for conjunct in filters.iter().flat_map(split_conjunction) {
            let expr = unnormalize_col(conjunct.clone());
            let known = self.conjuncts.iter().position(|known| known.expr == expr);
            let index = match known {
                Some(index) => index,
                None => {
                    self.conjuncts.push(compile(expr, &self.schema, state)?);
                    self.conjuncts.len() - 1
                }
            };
            if !wanted.contains(&index) {
                wanted.push(index);
            }
        }
        // Cheap ones first: an empty result spares the rest.
        wanted.sort_by_key(|index| self.conjuncts[*index].lifted.is_none());
        self.scans.push(wanted);
        Ok(self.scans.len() - 1)
    }

    /// Distinct predicates and scans registered.
    pub fn size(&self) -> (usize, usize) {
        (self.conjuncts.len(), self.scans.len())
    }

    /// Predicates that failed on rows since the last call, and on how many.
    pub fn take_failures(&self) -> Vec<(String, u64)> {
        let failed = self.conjuncts.iter().map(|conjunct| (conjunct.expr.to_string(), conjunct.failures.swap(0, Ordering::Relaxed)));
        failed.filter(|(_, rows)| *rows > 0).collect()
    }

    /// Starts the pass over one batch.
    pub fn over<'p>(&'p self, batch: &'p RecordBatch) -> Masks<'p> {
        Masks { pass: self, batch, done: vec![None; self.conjuncts.len()] }
    }
}

impl Masks<'_> {
    /// The rows that a scan keeps; none means all of them.
    ///
    /// # Errors
    /// A predicate that fails on these rows.
    pub fn rows_of(&mut self, scan: usize) -> Result<Option<BooleanArray>> {
        let mut mask: Option<BooleanArray> = None;
        for index in &self.pass.scans[scan] {
            if self.done[*index].is_none() {
                self.done[*index] = Some(self.pass.conjuncts[*index].evaluate(self.batch)?);
            }
            let Some(bits) = &self.done[*index] else { continue };
            mask = Some(match mask {
                Some(mask) => and(&mask, bits)?,
                None => bits.clone(),
            });
            if mask.as_ref().is_some_and(|mask| !mask.has_true()) {
                break;
            }
        }
        Ok(mask)
    }
}

fn compile(expr: Expr, schema: &SchemaRef, state: &SessionState) -> Result<Conjunct> {
    let physical = state.create_physical_expr(expr.clone(), &DFSchema::try_from(Arc::clone(schema))?)?;
    let columns: Vec<usize> = expr.column_refs().iter().filter_map(|column| schema.index_of(column.name()).ok()).collect();
    let lifted = match columns[..] {
        [column] if matches!(schema.field(column).data_type(), DataType::Dictionary(..)) => {
            let alone = Arc::new(Schema::new(vec![schema.field(column).clone()]));
            Some((column, state.create_physical_expr(expr.clone(), &DFSchema::try_from(alone)?)?))
        }
        _ => None,
    };
    Ok(Conjunct { expr, physical, lifted, failures: AtomicU64::new(0) })
}

impl Conjunct {
    /// The rows on which the predicate is true. One row that it fails on must not cost the others.
    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        if let Ok(bits) = self.evaluate_all(batch) {
            return Ok(bits);
        }
        let row = |row: usize| match truth(&self.physical, &batch.slice(row, 1)) {
            Ok(bits) => bits.value(0),
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                false
            }
        };
        Ok((0..batch.num_rows()).map(|number| Some(row(number))).collect())
    }

    fn evaluate_all(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        let Some((column, predicate)) = &self.lifted else { return truth(&self.physical, batch) };
        let rows = batch.column(*column).as_dictionary::<Int32Type>();
        let values = rows.values();
        // Each distinct value once, and null as one more.
        let keys: Int32Array = (0..values.len() as i32).map(Some).chain([None]).collect();
        let distinct: ArrayRef = Arc::new(DictionaryArray::try_new(keys, Arc::clone(values))?);
        let schema = Arc::new(Schema::new(vec![batch.schema().field(*column).clone()]));
        let verdicts = truth(predicate, &RecordBatch::try_new(schema, vec![distinct])?)?;
        let verdicts = verdicts.values();
        let mut bits = BooleanBufferBuilder::new(rows.len());
        match rows.keys().nulls() {
            None => rows.keys().values().iter().for_each(|key| bits.append(verdicts.value(*key as usize))),
            Some(_) => rows.keys().iter().for_each(|key| bits.append(verdicts.value(key.map_or(values.len(), |key| key as usize)))),
        }
        Ok(BooleanArray::new(bits.finish(), None))
    }
}

/// Evaluates a predicate; NULL is not true.
fn truth(predicate: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<BooleanArray> {
    let result = predicate.evaluate(batch)?.into_array(batch.num_rows())?;
    let result = result.as_boolean();
    Ok(match result.nulls() {
        Some(nulls) => BooleanArray::new(result.values() & nulls.inner(), None),
        None => result.clone(),
    })
}
