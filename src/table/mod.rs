//! The tables: each column declared once, with its meaning.
//!
//! A declaration gives the Arrow schema, the builders that decoders fill, the schema of the Parquet files,
//! `DESCRIBE`-style help and the docs page. To add a column: one line in the table's declaration and the decoder that fills it.

#[macro_use]
mod declare;
mod dimensions;
mod history;
mod rows;
mod streams;

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::clock::Micros;

pub use dimensions::{agents, allow_list, approvals, expected_sources};
pub use history::{History, LookBack, Memory};
pub use rows::{Place, Rows, flag, words};
pub use streams::{
    agent_spans, alerts, canaries, cloudtrail, detection_health, exposure_reports, model_invocations, outbound_calls, provider_activity, rejects, retrievals,
    statements, tool_calls,
};

/// What a column holds, and with that how it lies in memory and in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A moment: microseconds, UTC.
    Time,
    /// One of few words: dictionary-encoded in memory.
    Word,
    /// An id, address or text with many values.
    Text,
    /// A count, a size, micro-dollars: never a float.
    Int,
    Bool,
}

impl Kind {
    /// The type in memory.
    pub fn arrow(self) -> DataType {
        match self {
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Kind::Word => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            Kind::Text => DataType::Utf8View,
            Kind::Int => DataType::Int64,
            Kind::Bool => DataType::Boolean,
        }
    }
}

/// One column: its name in SQL, what it holds, and what that means.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    pub doc: &'static str,
}

impl Column {
    /// A count or a size, which decoders never let fall below zero. Places in a stream are none.
    pub fn is_natural(&self) -> bool {
        self.kind == Kind::Int && !matches!(self.name, "partition" | "offset" | "record" | "max_tokens")
    }
}

/// One table.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub doc: &'static str,
    pub columns: &'static [Column],
    /// How long after its event time a row may be appended and still count as on time.
    pub max_delay: Micros,
    /// Columns that get a bloom filter in Parquet files: what people look rows up by. Compacted files are sorted by the first.
    pub looked_up_by: &'static [&'static str],
    schema: LazyLock<SchemaRef>,
}

impl Table {
    /// The schema of batches in memory.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub fn column(&self, name: &str) -> Option<&'static Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns that say where a row came from: account, region and kind of log, each the first of some that is filled. The view
    /// `arrivals` says the same in SQL.
    pub fn origin(&self) -> [Vec<usize>; 3] {
        let named = |names: &[&str]| names.iter().filter_map(|name| self.columns.iter().position(|column| column.name == *name)).collect::<Vec<_>>();
        let kind = named(&["event_category", "provider", "reporter", "service_name"]).into_iter().take(1).collect();
        // That of an exposure is the key's: reports are delivered in none.
        let account = if std::ptr::eq(self, &exposure_reports::TABLE) { Vec::new() } else { named(&["recipient_account_id", "account_id"]) };
        [account, named(&["aws_region", "region"]), kind]
    }

    /// The column by whose hours its files lie: when a row became known.
    pub fn known_at(&self) -> usize {
        match self.is_stream() {
            true => cloudtrail::APPEND_TIME,
            false if std::ptr::eq(self, &alerts::TABLE) => alerts::DECIDED_AT,
            // `statements` and `detection_health` begin with it.
            false => statements::READ_AT,
        }
    }

    /// Whether its rows arrive as a stream with an event time (all but `alerts`, `statements` and the dimensions).
    pub fn is_stream(&self) -> bool {
        std::ptr::eq(self, &rejects::TABLE) || STREAMS.iter().any(|stream| std::ptr::eq(*stream, self))
    }
}

fn schema_of(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| Field::new(c.name, c.kind.arrow(), true)).collect::<Vec<_>>()))
}

/// A stream with the append time of its first and its last row.
pub type Span = (&'static Table, (Micros, Micros));

/// Every table, in the order of the docs page.
pub static TABLES: &[&Table] = &[
    &cloudtrail::TABLE,
    &model_invocations::TABLE,
    &retrievals::TABLE,
    &tool_calls::TABLE,
    &outbound_calls::TABLE,
    &agent_spans::TABLE,
    &provider_activity::TABLE,
    &canaries::TABLE,
    &exposure_reports::TABLE,
    &rejects::TABLE,
    &alerts::TABLE,
    &statements::TABLE,
    &detection_health::TABLE,
];

/// The tables that detections read.
pub static STREAMS: &[&Table] = &[
    &cloudtrail::TABLE,
    &model_invocations::TABLE,
    &retrievals::TABLE,
    &tool_calls::TABLE,
    &outbound_calls::TABLE,
    &agent_spans::TABLE,
    &provider_activity::TABLE,
    &canaries::TABLE,
    &exposure_reports::TABLE,
];

/// What may come of a canary: `canaries.outcome`, and the label of its metric.
pub const CANARY_OUTCOMES: [&str; 4] = ["seen", "wrong", "missing", "off"];

/// What is known of one's own world, from files or compacted topics: small, with a validity, joined as of the row's append time.
pub static DIMENSIONS: &[&Table] = &[&agents::TABLE, &approvals::TABLE, &allow_list::TABLE, &expected_sources::TABLE];

/// The table of that name.
pub fn by_name(name: &str) -> Option<&'static Table> {
    TABLES.iter().chain(DIMENSIONS).copied().find(|table| table.name == name)
}

/// All tables as a Markdown page (`docs/tables.md`).
pub fn docs_page() -> String {
    let mut page = String::from("# Tables\n\nGenerated by `keyfuse docs tables`; a test keeps it fresh.\n");
    for table in TABLES.iter().chain(DIMENSIONS) {
        let _ = write!(page, "\n## {}\n\n{}\n\n| column | type | meaning |\n|---|---|---|\n", table.name, table.doc);
        for column in table.columns {
            let _ = writeln!(page, "| `{}` | {:?} | {} |", column.name, column.kind, column.doc);
        }
    }
    page.push_str("\n## lineage (derived)\n\nOne row per credential and each of its ancestors, resolved from `lineage_links`, any depth.\n\n| column | meaning |\n|---|---|\n| `credential` | the credential that was made, directly or through others |\n| `ancestor` | a credential that it descends from |\n| `depth` | links between the two; 1 is parent and child |\n| `minted_at` | when the credential itself was made |\n| `left_at` | when the chain left the ancestor: its first link |\n");
    for (name, sql, doc) in VIEWS {
        let _ = write!(page, "\n## {name} (view)\n\n{doc}\n\n```sql\n{sql}\n```\n");
    }
    page
}

/// Derived tables: name, SQL, meaning. Plain SQL over the streams and nothing else.
pub static VIEWS: &[(&str, &str, &str)] = &[
    (
        "exposures",
        include_str!("exposures.sql"),
        "Every fact that says a credential is exposed: reports, and what AWS itself does about a leaked key. `exposed_at` starts the clock.",
    ),
    ("key_state", include_str!("key_state.sql"), "What became of long-lived keys: created, active, inactive, deleted, quarantined."),
    (
        "lineage_links",
        include_str!("lineage_links.sql"),
        "Credentials that made credentials: each link from a key to one that it minted. `lineage` holds the chains.",
    ),
    (
        "exposed_credentials",
        include_str!("exposed_credentials.sql"),
        "Exposed credentials and every descendant minted from one after it was exposed, any depth.",
    ),
    (
        "model_calls",
        include_str!("model_calls.sql"),
        "Model calls of CloudTrail, one row each, with what invocation log and span say of them (`told_by`: how many did), joined on the request id.",
    ),
    (
        "activity",
        include_str!("activity.sql"),
        "One line per act over all streams: what a credential, identity, agent, trace or address did, in order of time.",
    ),
    (
        "arrivals",
        include_str!("arrivals.sql"),
        "Where each row of a log came from: account that it was delivered in, region and kind of log. `kind` is the event category of CloudTrail, the provider of `model_invocations` and `provider_activity`, the reporter of an exposure (not keyfuse itself), and elsewhere the service that reports. See `expected_sources`.",
    ),
    ("approved_reads", include_str!("approved_reads.sql"), "What went through under which approval, per day: silent in alerts, counted here."),
];
