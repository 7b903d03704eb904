//! What keyfuse can see with the logs that it gets, what it cannot, and what to switch on, in order of value.
//!
//! Each check asks the rows themselves: a log that is configured but does not arrive is as blind as one that is not. What logs
//! leave out by default is known from their providers' manuals (CloudTrail: data events; EventBridge: read-only calls; Bedrock:
//! invocation logging, Mantle).

use std::collections::BTreeSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use serde::Serialize;

use crate::detect::analyse::Analysis;
use crate::detect::{Detection, Engine, Level};
use crate::dimension::Dimensions;
use crate::error::Result;
use crate::query::{Answer, Door};
use crate::table::{DIMENSIONS, STREAMS, canaries};

/// One thing that arrives.
#[derive(Clone, Debug, Serialize)]
pub struct Sight {
    pub source: String,
    pub rows: i64,
    pub places: i64,
    pub first: String,
    pub last: String,
}

/// One thing that does not.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    pub name: &'static str,
    /// Account and region, table or column; empty where it is everywhere.
    pub places: Vec<String>,
    /// Whether the rows prove it. What is not proven may simply not be in use.
    pub proven: bool,
    pub evidence: String,
    /// Detections that are blind, or see less, for it.
    pub detections: Vec<String>,
    pub switch_on: String,
    value: u64,
}

/// The whole page.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub sights: Vec<Sight>,
    pub gaps: Vec<Gap>,
}

/// A check that is one question: rows of `place` and `evidence`, one for each gap, and of the stream that it is about, if it is about one.
struct Check {
    name: &'static str,
    proven: bool,
    /// Words in the predicates of detections that suffer.
    hurts: &'static [&'static str],
    sql: &'static str,
    switch_on: &'static str,
}

/// Asks whether CloudTrail arrives and holds no such call at all.
macro_rules! never {
    ($evidence:literal, $such:literal) => {
        concat!("SELECT '' AS place, '", $evidence, "' AS evidence FROM cloudtrail HAVING count(*) > 0 AND count(*) FILTER (WHERE ", $such, ") = 0")
    };
}

static CHECKS: &[Check] = &[
    Check {
        name: "read-only calls",
        proven: true,
        hurts: &["ListFoundationModels", "GetFoundationModelAvailability", "InvokeModel", "GetCallerIdentity", "GetModelInvocationLoggingConfiguration"],
        sql: "SELECT concat_ws(' ', 'account', account_id) AS place, concat_ws(' ', count(*), 'calls, none of them read-only') AS evidence
              FROM cloudtrail WHERE read_only IS NOT NULL AND event_category = 'Management' GROUP BY account_id HAVING count(*) >= 20 AND count(*) FILTER (WHERE read_only) = 0",
        switch_on: "EventBridge rules leave out List, Get, Describe and InvokeModel by default, and so do streams that are set to write-only: read the trail's own files \
                    from S3, or set the rule to ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS.",
    },
    Check {
        name: "calls of models",
        proven: true,
        hurts: &["InvokeModel"],
        sql: "SELECT concat_ws(' ', 'account', account_id, aws_region) AS place, concat_ws(' ', count(*), 'calls to Bedrock, no InvokeModel or Converse among them') AS evidence
              FROM cloudtrail WHERE event_source = 'bedrock.amazonaws.com' GROUP BY account_id, aws_region
              HAVING count(*) >= 5 AND count(*) FILTER (WHERE event_name IN ('InvokeModel', 'InvokeModelWithResponseStream', 'Converse', 'ConverseStream')) = 0",
        switch_on: "CloudTrail counts InvokeModel among read-only management events: a trail or stream that takes write events only does not have it.",
    },
    Check {
        name: "model invocation logging",
        proven: true,
        hurts: &[],
        sql: "SELECT concat_ws(' ', 'account', c.account_id, c.aws_region) AS place, concat_ws(' ', count(*), 'calls of models without any invocation log') AS evidence
              FROM cloudtrail c WHERE c.event_source = 'bedrock.amazonaws.com' AND c.outcome = 'success'
                AND c.event_name IN ('InvokeModel', 'InvokeModelWithResponseStream', 'Converse', 'ConverseStream')
                AND NOT EXISTS (SELECT 1 FROM model_invocations i WHERE i.account_id = c.account_id AND i.region = c.aws_region)
              GROUP BY c.account_id, c.aws_region",
        switch_on: "Off by default, and switched on in each region: aws bedrock put-model-invocation-logging-configuration --region REGION --logging-config file://logging.json",
    },
    Check {
        name: "data events of knowledge bases and agents",
        proven: false,
        hurts: &["Retrieve", "InvokeAgent"],
        sql: never!("no Retrieve, RetrieveAndGenerate, InvokeAgent or InvokeFlow in any account", "event_name IN ('Retrieve', 'RetrieveAndGenerate', 'InvokeAgent', 'InvokeInlineAgent', 'InvokeFlow')"),
        switch_on: "Off by default: add advanced event selectors for AWS::Bedrock::KnowledgeBase, AWS::Bedrock::AgentAlias and AWS::Bedrock::FlowAlias to the trail.",
    },
    Check {
        name: "data events of AgentCore",
        proven: false,
        hurts: &["bedrock-agentcore.amazonaws.com"],
        sql: never!("no call to bedrock-agentcore in any account", "event_source = 'bedrock-agentcore.amazonaws.com'"),
        switch_on: "Off by default: add advanced event selectors for the AWS::BedrockAgentCore resources (Gateway, Runtime, WorkloadIdentity, TokenVault) to the trail.",
    },
    Check {
        name: "calls on the Mantle plane",
        proven: false,
        hurts: &["bedrock-mantle.amazonaws.com"],
        sql: never!("no call to bedrock-mantle in any account", "event_source = 'bedrock-mantle.amazonaws.com'"),
        switch_on: "Inference through the OpenAI-compatible endpoints is a data event of bedrock-mantle, off by default, and never in invocation logs: add its event selectors to the trail.",
    },
    Check {
        name: "data events of S3",
        proven: false,
        hurts: &["GetObject"],
        sql: never!("no GetObject in any account", "event_name = 'GetObject'"),
        switch_on: "Off by default: add an advanced event selector for AWS::S3::Object on the buckets that hold corpora and training data.",
    },
    Check {
        name: "reports of exposed credentials",
        proven: true,
        hurts: &[],
        sql: "SELECT '' AS place, concat_ws(' ', count(*), 'reports, all of keyfuse itself') AS evidence FROM exposure_reports HAVING count(*) > 0 AND count(*) FILTER (WHERE reporter <> 'keyfuse') = 0",
        switch_on: "Send gitleaks, TruffleHog, GitHub secret scanning or AWS Health to a topic, or write your own list (docs/formats.md).",
    },
    Check {
        name: "networks",
        proven: true,
        hurts: &["source_network"],
        sql: "SELECT '' AS place, concat_ws(' ', count(*), 'rows with an address, none with an autonomous system') AS evidence
              FROM cloudtrail WHERE source_ip IS NOT NULL HAVING count(*) > 0 AND count(*) FILTER (WHERE source_network LIKE 'AS%') = 0",
        switch_on: "Name a MaxMind-format or CSV file under networks in the config: without it networks are /24 blocks, and a thief in the owner's cloud region looks like the owner.",
    },
    Check {
        name: "rows on time",
        proven: true,
        hurts: &[],
        sql: "SELECT source AS place, concat_ws(' ', late, 'of', total, 'rows came later than the table allows') AS evidence
              FROM (SELECT 'cloudtrail' AS source, count(*) AS total, count(*) FILTER (WHERE late) AS late FROM cloudtrail
                    UNION ALL SELECT 'model_invocations' AS source, count(*) AS total, count(*) FILTER (WHERE late) AS late FROM model_invocations
                    UNION ALL SELECT 'tool_calls' AS source, count(*) AS total, count(*) FILTER (WHERE late) AS late FROM tool_calls)
              WHERE late * 100 > total",
        switch_on: "Joins and counts see late rows only in the sweep: look at what delivers them.",
    },
    Check {
        name: "records that can be read",
        proven: true,
        hurts: &[],
        sql: "SELECT concat_ws(' ', 'topic', topic) AS place, concat_ws(' ', count(*), 'records refused, first reason:', min(reason)) AS evidence FROM rejects GROUP BY topic",
        switch_on: "Ask why: SELECT reason, detail, count(*) FROM rejects GROUP BY 1, 2. `keyfuse explain-format FILE` shows what is recognised.",
    },
    Check {
        name: "a source that stopped",
        proven: true,
        hurts: &[],
        sql: "SELECT concat_ws(' ', source, 'account', account_id, region) AS place, concat_ws(' ', rows, 'rows, the last at', last_at) AS evidence, source
              FROM (SELECT source, account_id, region, count(*) AS rows, max(append_time) AS last_at FROM arrivals
                    WHERE source IN ('cloudtrail', 'model_invocations', 'retrievals', 'tool_calls') GROUP BY source, account_id, region)
              WHERE rows >= 20 AND last_at < (SELECT max(append_time) FROM arrivals) - INTERVAL '1 day'",
        switch_on: "Find out who ended it (COV-03, COV-04), or take it off.",
    },
    Check {
        name: "expected logs",
        proven: true,
        hurts: &[],
        sql: "WITH arrived AS (SELECT source, account_id, region, kind, min(append_time) AS first_at, max(append_time) AS last_at FROM arrivals GROUP BY source, account_id, region, kind),
                   time AS (SELECT min(first_at) AS begins, max(last_at) AS now FROM arrived),
                   expected AS (SELECT e.source, e.account_id, e.region, e.kind, max(a.last_at) AS last_at, min(e.silence_seconds) * 1000000 AS may,
                                  CAST(max(t.now) AS BIGINT) - greatest(CAST(coalesce(max(a.last_at), max(t.begins)) AS BIGINT), CAST(min(e.valid_from) AS BIGINT)) AS silent
                                FROM expected_sources e CROSS JOIN time t
                                LEFT JOIN arrived a ON a.source = e.source AND (e.account_id IS NULL OR a.account_id = e.account_id)
                                  AND (e.region IS NULL OR a.region = e.region) AND (e.kind IS NULL OR a.kind = e.kind)
                                WHERE e.valid_from <= t.now AND t.now < e.valid_to
                                GROUP BY e.source, e.account_id, e.region, e.kind)
              SELECT concat_ws(' ', source, 'account ' || account_id, region, kind, coalesce('since ' || CAST(last_at AS VARCHAR), '(never came)')) AS place,
                     concat_ws(' ', count(*) OVER (), 'of', (SELECT count(*) FROM expected), 'are silent') AS evidence, source
              FROM expected WHERE silent > may",
        switch_on: "Find out who ended it (COV-03, COV-04), look at bucket, connector and topic, or give the entry of expected_sources its end.",
    },
];

/// What feeds a stream, for those that have no rows.
fn feeds(table: &str) -> &'static str {
    match table {
        "cloudtrail" => "Deliver CloudTrail (S3 notifications, Firehose or CloudWatch Logs) to a topic: without it keyfuse sees nothing of AWS.",
        "model_invocations" => "Switch on Bedrock's model invocation logging, or send the spans of your services (OpenTelemetry GenAI) to a topic.",
        "retrievals" => "Send retrieval spans, Bedrock knowledge-base data events, OpenSearch audit logs or pgaudit to a topic.",
        "tool_calls" => "Send MCP messages, gateway logs or execute_tool spans to a topic.",
        "outbound_calls" => "Send HTTP client spans or proxy logs of agents to a topic.",
        "agent_spans" => "Send the spans of agents, workflows and tasks to a topic: without their ends nothing can be said about use after completion.",
        "provider_activity" => "Send the audit logs of OpenAI, Azure OpenAI or Anthropic to a topic, if you use them.",
        "exposure_reports" => {
            "Send gitleaks, TruffleHog, GitHub secret scanning or AWS Health to a topic, or write your own list: without it the race cannot be seen."
        }
        "canaries" => "Let keyfuse prove that it sees: [canaries] every = \"1h\" in its config sends each detection's own test through the topics.",
        "agents" => "State who may do what: `keyfuse learn` proposes the file.",
        "approvals" => "State which wider reads are approved; without it the volume rules count them.",
        "expected_sources" => {
            "State which logs ought to arrive: `keyfuse learn expected-sources` proposes the file. Without it a log that never came is not missed."
        }
        _ => "Send it to a topic.",
    }
}

/// Looks through the door and says what is there.
///
/// # Errors
/// The rows cannot be read.
pub async fn examine(door: &Door, engine: &Engine, dimensions: &Dimensions) -> Result<Report> {
    let (mut sights, mut gaps) = (Vec::new(), Vec::new());
    for table in STREAMS {
        let place = ["account_id", "service_name", "reporter"].into_iter().find(|name| table.column(name).is_some()).unwrap_or("topic");
        let sql =
            format!("SELECT count(*) AS rows, count(DISTINCT {place}) AS places, min(append_time) AS first, max(append_time) AS last FROM {}", table.name);
        let answer = door.ask(&sql).await?;
        let rows = number(&answer, 0);
        if rows == 0 {
            let detections = hurt(engine, |detection, analysis| {
                let mut reads = analysis.scans.iter().filter(|scan| scan.table == table.name).peekable();
                let is_blind = reads.peek().is_some() && !analysis.needs.met(&|scan| analysis.scans[scan].table != table.name);
                // Of a schedule's query it is not known what it cannot do without.
                is_blind || (detection.schedule.is_none() && reads.any(|scan| !scan.optional))
            });
            // keyfuse's own: that it is off is no gap in what arrives.
            let proven = table.name != canaries::TABLE.name;
            gaps.push(Gap::new(table.name, Vec::new(), proven, "no rows".into(), detections, feeds(table.name).into(), engine));
            continue;
        }
        sights.push(Sight { source: table.name.into(), rows, places: number(&answer, 1), first: text(&answer, 0, 2), last: text(&answer, 0, 3) });
        gaps.extend(empty_columns(door, engine, table.name).await?);
    }
    for table in DIMENSIONS.iter().filter(|table| table.name != "allow_list" && !dimensions.knows(table)) {
        let detections = hurt(engine, |_, analysis| analysis.required.contains(table.name));
        let blinds = !detections.is_empty();
        gaps.push(Gap::new(table.name, Vec::new(), blinds, "nothing is stated".into(), detections, feeds(table.name).into(), engine));
    }
    for check in CHECKS {
        let answer = door.ask(check.sql).await?;
        let mut places: Vec<String> = (0..answer.rows()).map(|row| text(&answer, row, 0)).filter(|place| !place.is_empty()).collect();
        places.sort();
        if answer.rows() > 0 {
            let about: Vec<String> = (0..answer.rows()).filter(|_| answer.schema.fields().len() > 2).map(|row| text(&answer, row, 2)).collect();
            let reads = |analysis: &Analysis| analysis.scans.iter().any(|scan| about.contains(&scan.table));
            let detections = hurt(engine, |detection, analysis| reads(analysis) || check.hurts.iter().any(|word| mentions(detection, analysis, word)));
            gaps.push(Gap::new(check.name, places, check.proven, text(&answer, 0, 1), detections, check.switch_on.into(), engine));
        }
    }
    // What the rows prove first, then by what it would bring.
    gaps.sort_by_key(|gap| (!gap.proven, std::cmp::Reverse(gap.value), gap.name));
    Ok(Report { sights, gaps })
}

impl Gap {
    fn new(name: &'static str, places: Vec<String>, proven: bool, evidence: String, detections: Vec<String>, switch_on: String, engine: &Engine) -> Self {
        let weight = |level: Level| [0, 1, 2, 4, 8][level as usize];
        let value = engine.detections().filter(|(detection, _)| detections.contains(&detection.name)).map(|(detection, _)| weight(detection.level)).sum();
        Self { name, places, proven, evidence, detections, switch_on, value }
    }
}

/// Columns that detections read and no row fills.
async fn empty_columns(door: &Door, engine: &Engine, table: &str) -> Result<Option<Gap>> {
    let mut read: BTreeSet<String> = BTreeSet::new();
    let columns_of = |analysis: &Analysis| analysis.reads.iter().filter(|(of, _)| of == table).map(|(_, column)| column.clone()).collect::<Vec<_>>();
    engine.detections().for_each(|(_, analysis)| read.extend(columns_of(analysis)));
    if read.is_empty() {
        return Ok(None);
    }
    let read: Vec<String> = read.into_iter().collect();
    let counts: Vec<String> = read.iter().map(|name| format!("count({name})")).collect();
    let answer = door.ask(&format!("SELECT {} FROM {table}", counts.join(", "))).await?;
    let empty: Vec<String> = read.iter().enumerate().filter(|(index, _)| number(&answer, *index) == 0).map(|(_, name)| format!("{table}.{name}")).collect();
    if empty.is_empty() {
        return Ok(None);
    }
    let hurts = |_: &Detection, analysis: &Analysis| columns_of(analysis).iter().any(|name| empty.contains(&format!("{table}.{name}")));
    let detections = hurt(engine, hurts);
    let why = "The log does not carry them, or a field has another name there: `keyfuse explain-format FILE` shows what is left over.".to_owned();
    Ok(Some(Gap::new("columns that nothing fills", empty.clone(), false, "null in every row".into(), detections, why, engine)))
}

fn hurt(engine: &Engine, suffers: impl Fn(&Detection, &Analysis) -> bool) -> Vec<String> {
    let mut names: Vec<String> =
        engine.detections().filter(|(detection, analysis)| suffers(detection, analysis)).map(|(detection, _)| detection.name.clone()).collect();
    names.sort();
    names
}

/// Whether a detection's query names something: in its predicates, or where it has a schedule in its text.
fn mentions(detection: &Detection, analysis: &Analysis, word: &str) -> bool {
    analysis.scans.iter().flat_map(|scan| &scan.filters).any(|filter| filter.to_string().contains(word))
        || (detection.schedule.is_some() && detection.sql.contains(word))
}

fn number(answer: &Answer, column: usize) -> i64 {
    let batch = answer.batches.iter().find(|batch| batch.num_rows() > 0);
    batch.map_or(0, |batch| batch.column(column).as_primitive::<Int64Type>().value(0))
}

fn text(answer: &Answer, row: usize, column: usize) -> String {
    let (mut row, mut found) = (row, String::new());
    for batch in &answer.batches {
        if row < batch.num_rows() {
            let texts = arrow::compute::cast(batch.column(column), &DataType::Utf8);
            found =
                texts.map_or_else(|_| String::new(), |texts| if texts.is_null(row) { String::new() } else { texts.as_string::<i32>().value(row).to_owned() });
            break;
        }
        row -= batch.num_rows();
    }
    found
}
