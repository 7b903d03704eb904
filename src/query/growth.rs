//! Functions that make much of little. What they make is in no memory pool before it is made, and a question may feed it to the next
//! one: those whose result can be of any size are not offered, the others stop at a bound.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::limits::SQL_MADE;

/// A number decides how much they make. `generate_series` is offered as a relation, which is made as it is read.
const REFUSED: [&str; 9] = ["repeat", "lpad", "rpad", "array_repeat", "list_repeat", "array_resize", "list_resize", "generate_series", "range"];

/// What they make is as large as all that they are given; `encode` and `quote_ident` may double it.
const SUMS: [&str; 15] = [
    "concat",
    "concat_ws",
    "make_array",
    "array_concat",
    "array_append",
    "array_prepend",
    "array_union",
    "arrays_zip",
    "struct",
    "named_struct",
    "map",
    "overlay",
    "translate",
    "encode",
    "quote_ident",
];

/// They may put one of their arguments into each place of another.
const PRODUCTS: [&str; 6] = ["replace", "regexp_replace", "array_to_string", "array_replace", "array_replace_n", "array_replace_all"];

/// Refuses and bounds them in a context.
///
/// # Errors
/// Never in practice.
pub fn bound(ctx: &mut SessionContext) -> Result<()> {
    ctx.deregister_udtf("range");
    for name in REFUSED {
        ctx.register_udf(Arc::new(Refused { name, signature: any_arguments() }.into()))?;
    }
    // By name too: the arguments of a function that gives rows are worked out before any rewriting.
    for name in SUMS.iter().chain(&PRODUCTS) {
        if let Ok(inner) = ctx.udf(name) {
            ctx.register_udf(Arc::new(Bounded { inner }.into()))?;
        }
    }
    ctx.register_function_rewrite(Arc::new(Bounding))
}

fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Immutable)
}

/// A function that is known, and not offered.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Refused {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Refused {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        plan_err!("{}() is not offered here: its result can be of any size", self.name)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.return_type(&[]).map(|_| ColumnarValue::Scalar(ScalarValue::Null))
    }
}

/// Bounds what the planner makes without looking names up: `ARRAY[…]`, and `||`, which is no function.
#[derive(Debug)]
struct Bounding;

impl FunctionRewrite for Bounding {
    fn name(&self) -> &str {
        "bounding"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let bounded = |inner, args| Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(Bounded { inner }.into()), args))));
        match expr {
            Expr::ScalarFunction(ScalarFunction { func, args })
                if (SUMS.contains(&func.name()) || PRODUCTS.contains(&func.name())) && func.inner().downcast_ref::<Bounded>().is_none() =>
            {
                bounded(func, args)
            }
            // Two texts that are bounded give one that is looked at before it becomes part of the next.
            Expr::BinaryExpr(BinaryExpr { op: Operator::StringConcat, .. }) => bounded(Arc::new(Same { signature: any_arguments() }.into()), vec![expr]),
            expr => Ok(Transformed::no(expr)),
        }
    }
}

/// Gives what it is given.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    signature: Signature,
}

impl ScalarUDFImpl for Same {
    fn name(&self) -> &str {
        "||"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        kinds.first().cloned().ok_or_else(|| DataFusionError::Internal("nothing is the same as nothing".into()))
    }

    /// What cannot be null is none here either.
    fn return_field_from_args(&self, given: ReturnFieldArgs) -> Result<FieldRef> {
        given.arg_fields.first().cloned().ok_or_else(|| DataFusionError::Internal("nothing is the same as nothing".into()))
    }

    fn invoke_with_args(&self, mut asked: ScalarFunctionArgs) -> Result<ColumnarValue> {
        asked.args.pop().ok_or_else(|| DataFusionError::Internal("nothing is the same as nothing".into()))
    }
}

/// A function that stops at [`SQL_MADE`] bytes for the rows that are looked at together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
}

impl Bounded {
    /// What it could make at most.
    fn most(&self, asked: &ScalarFunctionArgs) -> usize {
        let rows = asked.number_rows;
        let sizes = || asked.args.iter().map(|value| size(value, rows));
        match asked.args.split_first() {
            Some((first, others)) if PRODUCTS.contains(&self.name()) => {
                let put = others.iter().map(longest).fold(1, usize::saturating_add);
                size(first, rows).saturating_add(rows).saturating_mul(put)
            }
            _ => sizes().fold(0, usize::saturating_add),
        }
    }

    /// Where it could be too much, fewer rows are looked at together, until what is made shows.
    fn made(&self, asked: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if self.most(&asked) <= SQL_MADE {
            return self.inner.invoke_with_args(asked);
        }
        let rows = asked.number_rows;
        let over = || {
            let name = self.name();
            DataFusionError::ResourcesExhausted(format!("{name} would make more than {} MiB at once; ask for fewer or shorter values", SQL_MADE >> 20))
        };
        if rows < 2 || !PRODUCTS.contains(&self.name()) {
            return Err(over());
        }
        let part = |from: usize, rows: usize| {
            let slice = |value: &ColumnarValue| match value {
                ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(from, rows)),
                ColumnarValue::Scalar(_) => value.clone(),
            };
            let args = asked.args.iter().map(slice).collect();
            self.made(ScalarFunctionArgs { args, number_rows: rows, ..asked.clone() })?.into_array(rows)
        };
        let (first, second) = (part(0, rows / 2)?, part(rows / 2, rows - rows / 2)?);
        if bytes(&first).saturating_add(bytes(&second)) > SQL_MADE {
            return Err(over());
        }
        Ok(ColumnarValue::Array(arrow::compute::concat(&[first.as_ref(), second.as_ref()])?))
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        self.inner.return_type(kinds)
    }

    fn return_field_from_args(&self, given: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(given)
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(kinds)
    }

    fn invoke_with_args(&self, asked: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.made(asked)
    }
}

/// Bytes of a value in so many rows.
fn size(value: &ColumnarValue, rows: usize) -> usize {
    match value {
        ColumnarValue::Array(array) => bytes(array),
        ColumnarValue::Scalar(scalar) => scalar.to_array().map_or(0, |one| bytes(&one)).saturating_mul(rows),
    }
}

/// Bytes of the values themselves, wherever they are kept.
fn bytes(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(|length| length as usize).sum(),
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
    }
}

/// Bytes of the longest of the values.
fn longest(value: &ColumnarValue) -> usize {
    match value {
        ColumnarValue::Array(array) => match arrow::compute::cast(array, &DataType::Utf8View) {
            Ok(texts) if !array.data_type().is_nested() => texts.as_string_view().lengths().max().map_or(0, |length| length as usize),
            _ => bytes(array),
        },
        ColumnarValue::Scalar(scalar) => scalar.to_array().map_or(0, |one| bytes(&one)),
    }
}
