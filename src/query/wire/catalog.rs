//! `pg_catalog`: what psql, Grafana and drivers ask about tables before they ask anything else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use async_trait::async_trait;
use datafusion::common::{Result, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{ColumnarValue, Signature, TableType, TypeSignature, Volatility, create_udf};
use datafusion::logical_expr::{ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl};
use datafusion::prelude::SessionConfig;
use datafusion_pg_catalog::pg_catalog::catalog_info::CatalogInfo;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::{PgCatalogSchemaProvider, PgCatalogStaticTables};
use datafusion_pg_catalog::setup_pg_catalog;

use super::parameters;
use crate::error::Error;
use crate::query::CATALOG;
use crate::table::{DIMENSIONS, TABLES, VIEWS};

/// Only what is keyfuse's own: `public`, and the name of `pg_catalog`.
#[derive(Clone, Debug)]
struct Listed(Arc<HashMap<String, (SchemaRef, TableType)>>);

#[async_trait]
impl CatalogInfo for Listed {
    async fn catalog_names(&self) -> Result<Vec<String>> {
        Ok(vec![CATALOG.into()])
    }

    async fn schema_names(&self, _: &str) -> Result<Option<Vec<String>>> {
        Ok(Some(vec!["public".into(), "pg_catalog".into()]))
    }

    async fn table_names(&self, _: &str, schema: &str) -> Result<Option<Vec<String>>> {
        let mut names: Vec<String> = if schema == "public" { self.0.keys().cloned().collect() } else { Vec::new() };
        names.sort_unstable();
        Ok(Some(names))
    }

    async fn table_schema(&self, _: &str, _: &str, table: &str) -> Result<Option<SchemaRef>> {
        Ok(self.0.get(table).map(|(schema, _)| Arc::clone(schema)))
    }

    async fn table_type(&self, _: &str, _: &str, table: &str) -> Result<Option<TableType>> {
        Ok(self.0.get(table).map(|(_, kind)| *kind))
    }
}

/// The same for all sessions: object ids are counted by the provider, and clients remember them.
pub struct PgCatalog {
    schema: Arc<PgCatalogSchemaProvider<Listed, EmptyContextProvider>>,
    meanings: Arc<Meanings>,
}

impl PgCatalog {
    /// Describes the tables of a context.
    ///
    /// # Errors
    /// A bug: the shipped tables of the catalog cannot be read.
    pub async fn of(ctx: &SessionContext) -> crate::error::Result<Self> {
        let mut listed = HashMap::new();
        if let Some(public) = ctx.catalog(CATALOG).and_then(|catalog| catalog.schema("public")) {
            for name in public.table_names() {
                if let Some(table) = public.table(&name).await? {
                    listed.insert(name, (super::rows::sent_schema(&table.schema()), table.table_type()));
                }
            }
        }
        let bug = |error: DataFusionError| Error::bug("pg_catalog").because(error);
        let tables = Arc::new(PgCatalogStaticTables::try_new().map_err(|error| bug(*Box::new(error)))?);
        let schema = PgCatalogSchemaProvider::try_new(Listed(Arc::new(listed)), tables, EmptyContextProvider).map_err(bug)?;
        let schema = Arc::new(schema);
        let meanings = Arc::new(Meanings(meanings(&schema).await.map_err(bug)?));
        Ok(Self { schema, meanings })
    }

    /// Adds the catalog to a context that answers questions.
    ///
    /// # Errors
    /// Never in practice.
    pub fn add_to(&self, ctx: &SessionContext) -> Result<()> {
        setup_pg_catalog(ctx, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        let catalog = ctx.state().catalog_list().catalog(CATALOG).ok_or_else(|| DataFusionError::Internal("no catalog".into()))?;
        catalog.register_schema("pg_catalog", Arc::clone(&self.schema) as _)?;
        let text = |text: Option<&str>| ScalarValue::Utf8(text.map(str::to_owned));
        let yes = || ScalarValue::Boolean(Some(true));
        for (name, value) in [
            ("version", text(Some(concat!("PostgreSQL 15.0 (keyfuse ", env!("CARGO_PKG_VERSION"), ")")))),
            ("pg_get_function_result", text(None)),
            ("pg_get_function_arguments", text(None)),
            ("pg_get_viewdef", text(None)),
            ("pg_get_indexdef", text(None)),
            ("shobj_description", text(None)),
            ("pg_size_pretty", text(None)),
            ("set_config", text(None)),
            ("pg_advisory_unlock_all", text(None)),
            ("pg_function_is_visible", yes()),
            ("pg_type_is_visible", yes()),
        ] {
            ctx.register_udf(ScalarUDF::from(Says { name, value, signature: any_arguments() }));
        }
        for name in ["obj_description", "col_description"] {
            ctx.register_udf(ScalarUDF::from(Means { name, meanings: Arc::clone(&self.meanings), signature: any_arguments() }));
        }
        ctx.register_udf(create_udf("current_setting", vec![DataType::Utf8], DataType::Utf8, Volatility::Stable, Arc::new(current_setting)));
        ctx.register_udf(create_udf(
            "pg_is_in_recovery",
            Vec::new(),
            DataType::Boolean,
            Volatility::Stable,
            Arc::new(|_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::Boolean(Some(false))))),
        ));
        Ok(())
    }
}

/// What tables (column zero) and their columns mean, by object id and number of the column.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Meanings(BTreeMap<(i64, i64), &'static str>);

async fn meanings(schema: &Arc<PgCatalogSchemaProvider<Listed, EmptyContextProvider>>) -> Result<BTreeMap<(i64, i64), &'static str>> {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_default_catalog_and_schema(CATALOG, "public"));
    let catalog = ctx.catalog(CATALOG).ok_or_else(|| DataFusionError::Internal("no catalog".into()))?;
    catalog.register_schema("pg_catalog", Arc::clone(schema) as _)?;
    let listed = ctx.sql("SELECT CAST(oid AS BIGINT) AS oid, CAST(relname AS VARCHAR) AS name FROM pg_catalog.pg_class").await?.collect().await?;
    let mut meanings = BTreeMap::new();
    for batch in &listed {
        let (ids, names) = (batch.column(0).as_primitive::<Int64Type>(), arrow::compute::cast(batch.column(1), &DataType::Utf8)?);
        for (id, name) in ids.iter().zip(names.as_string::<i32>()) {
            let (Some(id), Some(name)) = (id, name) else { continue };
            if let Some(table) = TABLES.iter().chain(DIMENSIONS).find(|table| table.name == name) {
                let columns = table.columns.iter().zip(1..).map(|(column, number)| ((id, number), column.doc));
                meanings.extend(columns.chain([((id, 0), table.doc)]));
            }
            meanings.extend(VIEWS.iter().filter(|(view, ..)| *view == name).map(|(.., doc)| ((id, 0), *doc)));
        }
    }
    Ok(meanings)
}

/// `obj_description(oid, 'pg_class')` and `col_description(oid, number)`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Means {
    name: &'static str,
    meanings: Arc<Meanings>,
    signature: Signature,
}

impl ScalarUDFImpl for Means {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, asked: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arguments = ColumnarValue::values_to_arrays(&asked.args)?;
        let numbers = |index: usize| match arguments.get(index) {
            Some(column) if self.name == "col_description" || index == 0 => arrow::compute::cast(column, &DataType::Int64).map(Some),
            _ => Ok(None),
        };
        let (objects, columns) = (numbers(0)?, numbers(1)?);
        let number = |column: &Option<ArrayRef>, row: usize| {
            column.as_ref().filter(|column| column.is_valid(row)).map(|column| column.as_primitive::<Int64Type>().value(row))
        };
        let meaning = |row: usize| {
            let column = if self.name == "col_description" { number(&columns, row)? } else { 0 };
            self.meanings.0.get(&(number(&objects, row)?, column)).copied()
        };
        Ok(ColumnarValue::Array(Arc::new((0..asked.number_rows.min(arguments.first().map_or(0, |column| column.len()))).map(meaning).collect::<StringArray>())))
    }
}

/// Whatever a client gives it.
fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Stable)
}

fn current_setting(arguments: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arguments = ColumnarValue::values_to_arrays(arguments)?;
    let values: StringArray = arguments[0].as_string::<i32>().iter().map(|name| name.and_then(parameters::fixed)).collect();
    Ok(ColumnarValue::Array(Arc::new(values)))
}

/// A function that gives the same value for whatever it is asked.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Says {
    name: &'static str,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Says {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}
