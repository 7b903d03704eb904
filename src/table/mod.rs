//! The tables: each column declared once, with its meaning.
//!
//! A declaration gives the Arrow schema, the builders that decoders fill, the schema of the Parquet files,
//! `DESCRIBE`-style help and the docs page. To add a column: one line in the table's declaration and the decoder that fills it.

mod history;
mod rows;

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::clock::{DAY, MINUTE, Micros};

pub use history::{History, LookBack, Memory};
pub use rows::{Place, Rows, flag, words};

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

/// One table.
#[derive(Debug)]
pub struct Table {
    pub name: &'static str,
    pub doc: &'static str,
    pub columns: &'static [Column],
    /// How long after its event time a row may be appended and still count as on time.
    pub max_delay: Micros,
    /// Columns that get a bloom filter in Parquet files: what people look rows up by.
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

    /// Whether its rows arrive as a stream with an event time (all but `alerts`).
    pub fn is_stream(&self) -> bool {
        !std::ptr::eq(self, &alerts::TABLE)
    }
}

fn schema_of(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|c| Field::new(c.name, c.kind.arrow(), true)).collect::<Vec<_>>()))
}

/// Declares one table as a module: an index constant per column, `COLUMNS` and `TABLE`.
macro_rules! table {
    ($module:ident, $doc:literal, max_delay: $delay:expr, looked_up_by: $looked_up:expr,
     { $($index:ident $name:ident: $kind:ident $meaning:literal,)* }) => {
        #[doc = $doc]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        pub mod $module {
            use super::*;
            enum Index { $($index),* }
            $(#[doc = $meaning] pub const $index: usize = Index::$index as usize;)*
            pub static COLUMNS: &[Column] = &[
                $(Column { name: stringify!($name), kind: Kind::$kind, doc: $meaning }),*
            ];
            pub static TABLE: Table = Table {
                name: stringify!($module),
                doc: $doc,
                columns: COLUMNS,
                max_delay: $delay,
                looked_up_by: $looked_up,
                schema: LazyLock::new(|| schema_of(COLUMNS)),
            };
        }
    };
    // The same with the system columns that every stream row carries in front.
    (stream $module:ident, $doc:literal, max_delay: $delay:expr, looked_up_by: $looked_up:expr,
     { $($index:ident $name:ident: $kind:ident $meaning:literal,)* }) => {
        table!($module, $doc, max_delay: $delay, looked_up_by: $looked_up, {
            EVENT_TIME event_time: Time "When it happened, as the log says. A time in the future of `append_time` is replaced by it and flagged.",
            APPEND_TIME append_time: Time "When the row became readable: Kafka's append time, a delivery file's minute, else the event time.",
            EVENT_ID event_id: Text "The log's own id of the event, else a hash of the record. Two rows with one id are one event.",
            TOPIC topic: Word "Kafka topic or file that the row came from.",
            PARTITION partition: Int "Kafka partition; 0 for files.",
            OFFSET offset: Int "Kafka offset; for files the line on which the record starts.",
            RECORD record: Int "Number of the record inside its message, from 0.",
            LATE late: Bool "Appended later after the event than the table's maximum delay. Late rows never take part in joins and counts live.",
            FLAGS flags: Word "What had to be repaired, comma-separated: `future_time`, `bad_type:FIELD`, `duplicate_key:FIELD`, `invalid_utf8`, …",
            $($index $name: $kind $meaning,)*
            RAW raw: Text "The record as text, secrets replaced by fingerprints.",
        });
    };
}

table!(stream cloudtrail, "One AWS API call of any plane: management, data, network, Bedrock, Mantle, AgentCore.",
    max_delay: 30 * MINUTE,
    looked_up_by: &["access_key_id", "source_ip", "request_id", "event_id", "identity", "minted_access_key_id", "target_access_key_id"],
{
    EVENT_SOURCE event_source: Word "Service, such as `bedrock.amazonaws.com`.",
    EVENT_NAME event_name: Word "API call, such as `InvokeModel`.",
    AWS_REGION aws_region: Word "Region that took the call.",
    ACCOUNT_ID account_id: Word "Account of the caller; of the recipient where the caller has none.",
    RECIPIENT_ACCOUNT_ID recipient_account_id: Word "Account in which the record was delivered.",
    IDENTITY_TYPE identity_type: Word "`userIdentity.type`: IAMUser, AssumedRole, Root, AWSService, …",
    ACCESS_KEY_ID access_key_id: Text "Key that signed the call: AKIA… long-lived, ASIA… session.",
    PRINCIPAL_ID principal_id: Text "`userIdentity.principalId`.",
    PRINCIPAL_ARN principal_arn: Text "`userIdentity.arn` as logged (with the session name for roles).",
    IDENTITY identity: Text "Who acted, stable across sessions: user ARN, role ARN, identity-store user, account root or service.",
    USER_NAME user_name: Text "IAM user, or the user behind a session.",
    SESSION_ISSUER_ARN session_issuer_arn: Text "Role or user that issued the session.",
    SESSION_NAME session_name: Text "Role session name.",
    SESSION_CREATED_AT session_created_at: Time "When the session's credentials were made.",
    SOURCE_IDENTITY source_identity: Text "`sourceIdentity` set when the role was assumed.",
    ON_BEHALF_OF on_behalf_of: Text "Identity-store user on whose behalf the call was made.",
    WORKLOAD workload: Text "`inScopeOf.credentialsIssuedTo`: the function or instance that holds the credentials.",
    INVOKED_BY invoked_by: Word "AWS service that made the call for the caller.",
    MFA mfa: Bool "Session authenticated with a second factor.",
    CONSOLE console: Bool "Session credentials came from the console.",
    BEARER_TOKEN bearer_token: Bool "Called with a Bedrock API key (classic endpoint or Mantle).",
    SOURCE_IP source_ip: Text "Caller's address as logged, where it is one.",
    SOURCE_SERVICE source_service: Word "Where `sourceIPAddress` is a name instead: a service or `AWS Internal`.",
    USER_AGENT user_agent: Word "Caller's user agent.",
    ERROR_CODE error_code: Word "Error code as logged. Its absence is no proof of success in old Bedrock records.",
    ERROR_MESSAGE error_message: Text "Error message.",
    OUTCOME outcome: Word "`success`, `denied`, `throttled`, `invalid` or `other`, from the many spellings of `error_code`.",
    REQUEST_ID request_id: Text "Joins with model invocation logs and spans.",
    SHARED_EVENT_ID shared_event_id: Text "The same across the copies that two accounts get.",
    READ_ONLY read_only: Bool "Call that changes nothing. `InvokeModel` counts as one.",
    EVENT_TYPE event_type: Word "AwsApiCall, AwsServiceEvent, AwsConsoleSignIn, …",
    EVENT_CATEGORY event_category: Word "Management, Data, NetworkActivity, Insight, Aggregated.",
    VPC_ENDPOINT_ID vpc_endpoint_id: Text "VPC endpoint that the call came through.",
    TLS_VERSION tls_version: Word "TLS version.",
    MODEL_ID model_id: Word "`requestParameters.modelId` (or `model`): model id or inference profile.",
    INFERENCE_REGION inference_region: Word "Region that ran the model.",
    INPUT_TOKENS input_tokens: Int "Tokens in, where the record counts them.",
    OUTPUT_TOKENS output_tokens: Int "Tokens out.",
    BYTES_IN bytes_in: Int "Bytes received (S3 data events).",
    BYTES_OUT bytes_out: Int "Bytes sent (S3 data events).",
    RESOURCE_ARN resource_arn: Text "First ARN of `resources`, else knowledge base, agent or bucket named in the request.",
    POLICY_ARN policy_arn: Text "Managed policy in the request.",
    POLICY_NAME policy_name: Text "Inline policy in the request.",
    TARGET_USER_NAME target_user_name: Text "User that the request is about.",
    TARGET_ROLE_ARN target_role_arn: Text "Role that the request is about (`AssumeRole`).",
    TARGET_ACCESS_KEY_ID target_access_key_id: Text "Long-lived key that was created, changed or deleted.",
    TARGET_KEY_STATUS target_key_status: Word "Status set on that key: Active, Inactive.",
    MINTED_ACCESS_KEY_ID minted_access_key_id: Text "Session key handed out by STS in the response.",
    MINTED_EXPIRES_AT minted_expires_at: Time "When that session key expires.",
});

table!(stream exposure_reports, "One statement that a credential was seen where it should not be. `event_time` is when it became exposed.",
    max_delay: 90 * DAY,
    looked_up_by: &["credential", "event_id"],
{
    CREDENTIAL credential: Text "AWS access key id in clear, any other secret as its fingerprint `fp:…`.",
    CREDENTIAL_CLASS credential_class: Word "long_lived, session, bearer, provider or unknown.",
    CREDENTIAL_KIND credential_kind: Word "What it is: aws_access_key_id, openai_api_key, …, or the reporter's own rule name.",
    SECRET_FINGERPRINT secret_fingerprint: Text "Fingerprint of the secret itself, where the report carried it.",
    ACCOUNT_ID account_id: Word "AWS account that the key id decodes to, or that the report names.",
    REPORTER reporter: Word "gitleaks, trufflehog, github, aws_health or operator.",
    LOCATION location: Text "Where it was seen: URL, or repository, file and line.",
    COMMIT_ID commit_id: Text "Commit, where the place is a repository.",
    STATUS status: Word "active, inactive or unknown, as the reporter says.",
    FOUND_AT found_at: Time "When the reporter found it.",
});

table!(stream rejects, "One record that could not become a row, with its place and a bounded reason.",
    max_delay: 0,
    looked_up_by: &[],
{
    FORMAT format: Word "Log format that refused it.",
    REASON reason: Word "Why, from a fixed list: truncated, not_json, too_deep, too_large, unknown_format, missing_field, …",
    DETAIL detail: Text "The same in words, at most 200 characters.",
    BYTES bytes: Int "Size of the refused record.",
});

table!(alerts, "One row per alert as it stands. `alert_revisions` has the same columns and one row for each revision that was told.",
    max_delay: 0,
    looked_up_by: &["alert_id"],
{
    ALERT_ID alert_id: Text "Hash of detection, alert key and dedup bucket: the same live, in replay and in a backtest.",
    REVISION revision: Int "Counts up with each change.",
    DETECTION detection: Word "Name of the detection, such as `EXP-01`.",
    DETECTION_ID detection_id: Word "Its UUID.",
    TITLE title: Word "Its title.",
    LEVEL level: Word "informational, low, medium, high or critical.",
    ALERT_KEY alert_key: Text "JSON object of the alert-key columns.",
    FIRST_TIME first_time: Time "Earliest `alert_time` of its findings.",
    LAST_TIME last_time: Time "Latest `alert_time` of its findings.",
    FINDINGS findings: Int "Distinct findings; 1000 means at least that.",
    EVIDENCE evidence: Text "JSON array of up to ten event ids.",
    PAYLOAD payload: Text "JSON object of the other columns of the detection.",
    DECIDED_AT decided_at: Time "When keyfuse decided this revision (wall clock; not part of the equality contract).",
});

/// Every table, in the order of the docs page.
pub static TABLES: &[&Table] = &[&cloudtrail::TABLE, &exposure_reports::TABLE, &rejects::TABLE, &alerts::TABLE];

/// The tables that detections read.
pub static STREAMS: &[&Table] = &[&cloudtrail::TABLE, &exposure_reports::TABLE];

/// The table of that name.
pub fn by_name(name: &str) -> Option<&'static Table> {
    TABLES.iter().copied().find(|table| table.name == name)
}

/// All tables as a Markdown page (`docs/tables.md`).
pub fn docs_page() -> String {
    let mut page = String::from("# Tables\n\nGenerated by `keyfuse docs tables`; a test keeps it fresh.\n");
    for table in TABLES {
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
];
