//! Live = SQL. Random streams with late, doubled and shuffled rows and forged times, over partitions that lag behind or fall silent, go
//! through the engine in random batches, with evictions and crashes; the final alerts, ids and content, must be those of one plain SQL
//! run over all rows. One detection with a schedule a stream is asked meanwhile, of what is archived; what it says must be what plain SQL
//! says of each moment. Five deliberately broken engines must be caught, or the test proves nothing.
//!
//! `KEYFUSE_SEEDS=2000 cargo test --release equality` runs more streams, `KEYFUSE_FIRST_SEED` begins with another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::concat_batches;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::execution::context::SessionContext;
use keyfuse::alert::{AlertBook, AllowList, Status, alerts_of};
use keyfuse::clock::{HOUR, MINUTE, Micros, SECOND};
use keyfuse::detect::analyse::{Class, Merge};
use keyfuse::detect::catalog::{LINEAGE, register_tables};
use keyfuse::detect::{Detection, Engine, Finding, Plans, Schedule, Scheduled, findings_of};
use keyfuse::dimension::Dimensions;
use keyfuse::late::{Window, sweep};
use keyfuse::pipeline::{BROKER_SKEW, Lag, Progress, watermark};
use keyfuse::schedule::{self, Calendar};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{Kind, Memory, Place, Rows, STREAMS, Table, agents, approvals, cloudtrail as c, exposure_reports as e, rejects};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{START, of_book, shipped};

/// How an engine may be broken on purpose.
#[derive(Clone, Copy, PartialEq)]
enum Broken {
    No,
    /// Late rows take part.
    LateRuleOff,
    /// Time runs ahead of the rows: absence is believed, and rows are let go of, before their partners can have arrived.
    WatermarkAhead,
    /// Time goes on with the fastest partition.
    SlowestIgnored,
    /// A crash forgets the alerts that were raised.
    AlertLogOff,
    /// What was told early is never taken back.
    NeverRetracts,
}

struct Row {
    table: &'static Table,
    partition: usize,
    /// What its log says when it happened.
    claimed: Micros,
    append_time: Micros,
    batch: RecordBatch,
}

impl Row {
    /// The same event, delivered again: where and when it came, and so whether it is late, are its own.
    fn again(&self, partition: usize, append_time: Micros, offset: i64) -> Self {
        let mut rows = Rows::new(self.table);
        stamp(&mut rows, partition, offset, self.claimed, append_time, &event_id(self));
        rows.end_row();
        let mut columns = rows.finish().columns().to_vec();
        columns.splice(c::FLAGS + 1.., self.batch.columns()[c::FLAGS + 1..].iter().cloned());
        let batch = RecordBatch::try_new(self.table.schema(), columns).expect("same schema");
        Self { table: self.table, partition, claimed: self.claimed, append_time, batch }
    }
}

fn stamp(rows: &mut Rows, partition: usize, offset: i64, claimed: Micros, append_time: Micros, event_id: &str) {
    let place = Place { topic: "t".into(), partition: partition as i32, offset, record: 0 };
    rows.stamp(&place, Some(claimed), Some(append_time), event_id, &mut String::new());
}

fn pick<'a>(rng: &mut StdRng, words: &[&'a str]) -> &'a str {
    words[rng.random_range(0..words.len())]
}

const KEYS: [&str; 6] =
    ["AKIAONE0000000000001", "AKIATWO0000000000001", "ASIATHREE00000000001", "ASIAFOUR000000000001", "ASIAFIVE000000000001", "AKIASIX0000000000001"];

/// Partitions with rows; beside them stands one without.
const PARTITIONS: usize = 4;

const REQUESTS: [&str; 8] = ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"];

/// Shapes of class C3 that no shipped detection has (yet): name, alert key, early, query.
const SHAPES: [(&str, &str, bool, &str); 11] = [
    ("counted on the optional side", "credential", false, "SELECT u.access_key_id AS credential, date_bin(INTERVAL '1 hour', u.event_time) AS alert_time, count(k.event_id) AS after
        FROM cloudtrail u LEFT JOIN (SELECT access_key_id, event_time, event_id FROM cloudtrail WHERE event_source = 'iam.amazonaws.com') k
          ON k.access_key_id = u.access_key_id AND k.event_time > u.event_time AND k.event_time <= u.event_time + INTERVAL '2 hours'
        WHERE u.event_name = 'InvokeModel' GROUP BY u.access_key_id, date_bin(INTERVAL '1 hour', u.event_time) HAVING count(k.event_id) >= 2"),
    ("none that is not taken back", "credential", true, "SELECT u.access_key_id AS credential, u.event_time AS alert_time, u.event_id
        FROM cloudtrail u WHERE u.event_name = 'CreateInference' AND NOT EXISTS (SELECT 1 FROM cloudtrail k WHERE k.access_key_id = u.access_key_id
            AND k.event_source = 'iam.amazonaws.com' AND k.event_time BETWEEN u.event_time - INTERVAL '2 hours' AND u.event_time + INTERVAL '10 minutes'
            AND NOT EXISTS (SELECT 1 FROM cloudtrail r WHERE r.access_key_id = k.access_key_id AND r.event_name = 'Converse'
                AND r.event_time BETWEEN k.event_time AND k.event_time + INTERVAL '30 minutes'))"),
    ("fewer than", "identity", false, "SELECT identity, date_bin(INTERVAL '1 hour', event_time) AS alert_time, count(*) AS calls, max(source_ip) AS source_ip, min(event_id) AS event_id
        FROM cloudtrail WHERE event_source = 'bedrock.amazonaws.com' AND identity IS NOT NULL GROUP BY identity, date_bin(INTERVAL '1 hour', event_time) HAVING count(*) < 3"),
    ("share", "identity", true, "SELECT identity, date_bin(INTERVAL '30 minutes', event_time) AS alert_time, count(*) AS calls, sum(CASE WHEN outcome = 'denied' THEN 1 ELSE 0 END) AS denied
        FROM cloudtrail WHERE event_source IN ('bedrock.amazonaws.com', 'iam.amazonaws.com') AND identity IS NOT NULL GROUP BY identity, date_bin(INTERVAL '30 minutes', event_time)
        HAVING sum(CASE WHEN outcome = 'denied' THEN 1 ELSE 0 END) * 5 > count(*)"),
    ("outer join", "credential", true, "SELECT u.access_key_id AS credential, u.event_time AS alert_time, u.event_id, k.event_name AS after_name, k.event_time AS after_at
        FROM cloudtrail u LEFT JOIN (SELECT access_key_id, event_time, event_name FROM cloudtrail WHERE event_source = 'iam.amazonaws.com') k
          ON k.access_key_id = u.access_key_id AND k.event_time > u.event_time AND k.event_time <= u.event_time + INTERVAL '20 minutes'
        WHERE u.event_name = 'CreateInference'"),
    ("then nothing", "credential", true, "SELECT u.access_key_id AS credential, u.event_time + INTERVAL '40 minutes' AS alert_time, u.event_id
        FROM cloudtrail u JOIN cloudtrail b ON b.access_key_id = u.access_key_id AND b.event_time BETWEEN u.event_time - INTERVAL '1 hour' AND u.event_time
        WHERE u.event_source = 'iam.amazonaws.com' AND b.event_name = 'InvokeModel'
          AND NOT EXISTS (SELECT 1 FROM cloudtrail n WHERE n.access_key_id = u.access_key_id AND n.event_source = 'bedrock.amazonaws.com'
            AND n.event_time > u.event_time AND n.event_time <= u.event_time + INTERVAL '40 minutes')"),
    ("after a pause", "credential", true, "SELECT access_key_id AS credential, event_time AS alert_time, event_id, event_name FROM (SELECT access_key_id, event_time, event_id, event_name,
          lag(event_time) OVER (PARTITION BY access_key_id ORDER BY event_time, event_id) AS before FROM cloudtrail WHERE event_source = 'bedrock.amazonaws.com')
        WHERE before IS NULL OR event_time - before > INTERVAL '1 hour'"),
    ("first in two days", "credential", false, "SELECT access_key_id AS credential, event_time AS alert_time FROM (SELECT access_key_id, event_time,
          lag(event_time) OVER (PARTITION BY access_key_id ORDER BY event_time, event_id) AS before FROM cloudtrail) WHERE before IS NULL OR before < event_time - INTERVAL '2 days'"),
    ("days apart", "credential", true, "SELECT access_key_id AS credential, event_time AS alert_time, event_id FROM (SELECT access_key_id, event_time, event_id,
          lag(event_time) OVER (PARTITION BY access_key_id ORDER BY event_time, event_id) AS before FROM cloudtrail WHERE event_name = 'InvokeModel')
        WHERE before IS NULL OR event_time - before > INTERVAL '1 day 2 hours'"),
    ("seldom seen", "identity", false, "SELECT identity, event_time AS alert_time, event_id FROM (SELECT identity, event_time, event_id, outcome,
          lag(event_time) OVER (PARTITION BY identity ORDER BY event_time, event_id) AS before FROM retrievals)
        WHERE outcome = 'success' AND (before <= event_time - INTERVAL '40 minutes' OR before IS NULL)"),
    ("moving mean", "identity", false, "SELECT identity, event_time AS alert_time, cost, mean, event_id FROM (SELECT identity, event_time, cost_microdollars AS cost, event_id,
          avg(cost_microdollars) OVER (PARTITION BY identity ORDER BY event_time RANGE BETWEEN INTERVAL '2 hours' PRECEDING AND INTERVAL '1 second' PRECEDING) AS mean
        FROM model_invocations WHERE identity IS NOT NULL) WHERE cost > mean * 2"),
];

/// Shapes of class C4, which small streams move as the shipped ones of that class seldom are: name, alert key, how often (minutes), over how
/// long (minutes), query.
const ASKED: [(&str, &str, i64, i64, &str); 6] = [
    ("late share", "source_ip", 15, 90, "SELECT source_ip, run_at() AS alert_time, count(*) AS total, count(*) FILTER (WHERE late) AS late_rows, min(event_id) FILTER (WHERE late) AS event_id
        FROM cloudtrail GROUP BY source_ip HAVING count(*) FILTER (WHERE late) > 0"),
    ("over the mean of all", "who", 60, 240, "SELECT identity AS who, date_bin(INTERVAL '1 hour', run_at() - INTERVAL '1 hour') AS alert_time, sum(cost_microdollars) AS cost, count(*) AS calls
        FROM model_invocations WHERE identity IS NOT NULL GROUP BY identity HAVING sum(cost_microdollars) > (SELECT avg(cost_microdollars) FROM model_invocations) * 2"),
    ("gone silent", "identity", 15, 360, "SELECT identity, run_at() AS alert_time, max(append_time) AS last_at, count(*) AS sent FROM cloudtrail WHERE identity IS NOT NULL
        GROUP BY identity HAVING max(append_time) < run_at() - INTERVAL '40 minutes'"),
    ("busiest network", "net", 30, 120, "SELECT source_network AS net, run_at() AS alert_time, count(*) AS calls, max(event_id) AS event_id FROM cloudtrail WHERE source_network IS NOT NULL
        GROUP BY source_network ORDER BY count(*) DESC, source_network LIMIT 1"),
    ("without its log", "key", 30, 150, "SELECT c.access_key_id AS key, run_at() AS alert_time, count(*) AS calls, count(m.request_id) AS logged FROM cloudtrail c
        LEFT JOIN (SELECT DISTINCT request_id FROM model_invocations WHERE request_id IS NOT NULL) m ON m.request_id = c.request_id
        WHERE c.outcome = 'success' GROUP BY c.access_key_id HAVING count(m.request_id) * 2 < count(*)"),
    ("usual of a key", "key", 20, 400, "WITH hourly AS (SELECT access_key_id AS key, date_bin(INTERVAL '1 hour', event_time) AS hour, count(*) AS calls FROM cloudtrail GROUP BY 1, 2),
          usual AS (SELECT key, percentile_cont(0.5) WITHIN GROUP (ORDER BY calls) AS calls FROM hourly GROUP BY key)
        SELECT h.key, h.hour AS alert_time, h.calls, CAST(u.calls AS BIGINT) AS usual FROM hourly h JOIN usual u ON u.key = h.key WHERE h.calls > u.calls AND h.hour > run_at() - INTERVAL '2 hours'"),
];

fn shape(number: usize, name: &str, key: &str, sql: &str) -> Detection {
    let id = uuid::Uuid::from_u128(number as u128 + 1);
    Detection {
        name: name.into(),
        id,
        sql: sql.into(),
        alert_key: vec![key.into()],
        dedup: HOUR,
        schedule: None,
        tests: Vec::new(),
        ..shipped().swap_remove(0)
    }
}

/// The shipped detections that are evaluated live, and those shapes.
fn live_detections() -> Vec<Detection> {
    let shapes = SHAPES.into_iter().enumerate().map(|(number, (name, key, early, sql))| Detection { early, ..shape(number, name, key, sql) });
    shipped().into_iter().filter(|detection| detection.schedule.is_none()).chain(shapes).collect()
}

/// The shipped detections with a schedule, and those shapes.
fn scheduled_detections() -> Vec<Arc<Detection>> {
    let shapes = ASKED.into_iter().enumerate().map(|(number, (name, key, every, over, sql))| Detection {
        schedule: Some(Schedule { every: every * MINUTE, over: over * MINUTE }),
        ..shape(100 + number, name, key, sql)
    });
    shipped().into_iter().filter(|detection| detection.schedule.is_some()).chain(shapes).map(Arc::new).collect()
}

/// When the first moment comes about which a detection with a schedule is asked.
const ASKED_SINCE: Micros = START - 30 * MINUTE;

/// The moment up to which one is asked: some time after the last row.
fn asked_to(detection: &Detection, stream: &[Row]) -> Micros {
    end(stream) + 2 * detection.schedule.map_or(0, |schedule| schedule.every)
}

/// Who makes whom, each once: that is how STS and IAM hand out ids.
const MINTED: [(usize, usize); 4] = [(0, 2), (2, 3), (1, 4), (3, 5)];

/// When what is known of the own world changes.
const TURN: Micros = START + 3 * HOUR;

/// What is known of agents and approvals: one entry begins to hold in the middle of the stream, one ends there.
fn known() -> Dimensions {
    let turn = keyfuse::clock::rfc3339(TURN);
    let agents = [
        serde_json::json!({"agent_id": "agent-1", "identity": "alice", "tools": ["search", "read*"], "data_sources": ["kb-1"], "hosts": ["partner.example"],
            "networks": ["198.51.100.0/29"], "user_agents": ["boto3*"], "max_token_age_seconds": 600, "roles": ["agent", "batch"]}),
        serde_json::json!({"agent_id": "agent-2", "identity": "bob", "data_sources": ["kb-2"], "tools": [], "valid_from": turn}),
        serde_json::json!({"agent_id": "agent-2", "identity": "bob", "roles": ["pipeline", "shared"], "valid_to": turn}),
    ];
    let approvals = [
        serde_json::json!({"approval": "T-1", "identity": "alice", "data_sources": ["kb-*"], "approver": "x", "reason": "y", "valid_from": "2026-01-01", "valid_to": turn}),
    ];
    let mut known = Dimensions::default();
    known.state(&agents::TABLE, agents.iter(), |_| String::new()).expect("good entries");
    known.state(&approvals::TABLE, approvals.iter(), |_| String::new()).expect("good entries");
    known
}

/// A row of one of the tables around the model, its columns filled from small pools so that rows meet.
fn row_around(rng: &mut StdRng, table: &'static Table, rows: &mut Rows) {
    for (index, column) in table.columns.iter().enumerate().skip(c::FLAGS + 1) {
        let words: &[&str] = match column.name {
            "identity" => &["alice", "bob", "carol"],
            "agent_id" => &["agent-1", "agent-2", "agent-3", "agent-4", "agent-5"],
            "trace_id" => &["t1", "t1", "t2", "t2", "t3", "t3", "t4", "t5", "t6", "t7", "t8"],
            "conversation_id" => &["t1", "t2", "t3"],
            "provider" => &["aws.bedrock"],
            "request_id" => &REQUESTS,
            "parent_span_id" => &["s1"],
            "environment" => &["production", "staging"],
            "tenant" | "user_id" => &["acme", "globex"],
            "outcome" => &["success", "success", "denied", "invalid"],
            "tool" => &["search", "read_file", "send_mail"],
            "header_tool" => &["search"],
            "data_source" => &["kb-1", "kb-2", "payroll"],
            "server" => &["files", "mail"],
            "definition_hash" => &["d1", "d2"],
            "method" => &["tools/call", "tools/call", "tools/list"],
            "host" => &["partner.example", "paste.example"],
            "kind" => &["agent", "agent", "workflow", "other"],
            "markers" => &["injection", "metadata_service"],
            "guardrail" => &["intervened", "none"],
            "source_ip" => &["198.51.100.1", "203.0.113.9"],
            "model_id" => &["m1", "m2"],
            "operation" => &["chat"],
            "argument_hash" => &["h1"],
            "action" => &["rate_limit.updated", "api_key.created"],
            _ => &[],
        };
        match column.kind {
            Kind::Text | Kind::Word if !words.is_empty() && rng.random_range(0..4) > 0 => rows.text(index, Some(pick(rng, words))),
            Kind::Int => {
                let most = match column.name {
                    "cost_microdollars" => 60_000_000,
                    "bytes_out" => 40_000,
                    _ => 300,
                };
                rows.int(index, Some(rng.random_range(-1..most)));
            }
            Kind::Bool => rows.bool(index, Some(rng.random_bool(0.5))),
            _ => {}
        }
    }
}

/// One random row that has a chance to matter to some detection.
fn row(rng: &mut StdRng, number: i64) -> Row {
    let partition = rng.random_range(0..PARTITIONS);
    // A few keys were last used months ago.
    let long_ago = if number >= MINTED.len() as i64 && rng.random_range(0..30) == 0 { rng.random_range(85..100) * 24 * 60 * MINUTE } else { 0 };
    let event = START - long_ago + rng.random_range(0..6 * 60) * MINUTE + rng.random_range(0..60) * SECOND;
    let is_report = number >= MINTED.len() as i64 && rng.random_range(0..30) == 0;
    let around = number >= MINTED.len() as i64 && !is_report && rng.random_bool(0.5);
    let table: &'static Table = match (is_report, around) {
        (true, _) => &e::TABLE,
        (_, true) => STREAMS[rng.random_range(1..STREAMS.len() - 1)],
        _ => &c::TABLE,
    };
    // One in ten rows of the logs is later than its table allows.
    let delay = match rng.random_range(0..10) {
        0 => rng.random_range(31..120) * MINUTE,
        _ => rng.random_range(0..29) * MINUTE,
    };
    let append_time = event + delay;
    // Whoever writes a log can write any time into it.
    let forged = match rng.random_range(0..40) {
        _ if number < MINTED.len() as i64 => 0,
        0 => rng.random_range(1..500 * 24 * 60) * MINUTE,
        1 => -rng.random_range(1..3000 * 24 * 60) * MINUTE,
        _ => 0,
    };
    let claimed = event + forged;
    let mut rows = Rows::new(table);
    stamp(&mut rows, partition, number, claimed, append_time, &format!("event-{number}"));
    if around {
        row_around(rng, table, &mut rows);
        rows.end_row();
        return Row { table, partition, claimed, append_time, batch: rows.finish() };
    }
    if is_report {
        rows.text(e::CREDENTIAL, Some(pick(rng, &[KEYS[0], KEYS[1], "fp:1"])));
        rows.text(e::REPORTER, Some(pick(rng, &["gitleaks", "keyfuse"])));
        rows.text(e::CREDENTIAL_KIND, Some(pick(rng, &["aws_access_key_id", "canary"])));
        rows.text(e::PLACE, Some(pick(rng, &["prompt", "argument", "document"])));
        rows.text(e::CONVERSATION_ID, Some(pick(rng, &["t1", "t2"])));
        rows.end_row();
        return Row { table, partition, claimed, append_time, batch: rows.finish() };
    }
    let minting = usize::try_from(number).ok().and_then(|number| MINTED.get(number)).copied();
    // Nothing is used months before it is made: of those days there are only the keys that nobody minted.
    let keys = if long_ago > 0 || forged < 0 { &KEYS[..2] } else { &KEYS[..] };
    let key = minting.map_or_else(|| pick(rng, keys), |(parent, _)| KEYS[parent]);
    rows.text(c::ACCESS_KEY_ID, Some(key));
    rows.text(c::IDENTITY, Some(pick(rng, &["alice", "bob", "carol"])));
    rows.text(c::USER_NAME, Some("svc"));
    rows.text(c::SOURCE_IP, Some(&format!("198.51.100.{}", rng.random_range(1..9))));
    rows.text(c::SOURCE_NETWORK, Some(pick(rng, &["AS1", "AS2", "AS3"])));
    rows.time(c::SESSION_CREATED_AT, Some(event - rng.random_range(0..30) * MINUTE));
    rows.text(c::IDENTITY_TYPE, Some("IAMUser"));
    rows.text(c::USER_AGENT, Some(pick(rng, &["boto3", "Mozilla/5.0"])));
    rows.text(c::OUTCOME, Some(pick(rng, &["success", "success", "success", "denied", "invalid"])));
    rows.text(c::AWS_REGION, Some(pick(rng, &["us-east-1", "us-west-2", "eu-west-1"])));
    let (source, name) = match rng.random_range(0..12) {
        _ if minting == Some(MINTED[3]) => ("iam.amazonaws.com", "CreateAccessKey"),
        _ if minting.is_some() => ("sts.amazonaws.com", "AssumeRole"),
        0 | 1 => ("iam.amazonaws.com", pick(rng, &["UpdateAccessKey", "DeleteAccessKey"])),
        2 => ("iam.amazonaws.com", pick(rng, &["PutUserPolicy", "AttachUserPolicy"])),
        3 => ("cloudtrail.amazonaws.com", pick(rng, &["StopLogging", "PutEventSelectors"])),
        4 | 5 => ("bedrock.amazonaws.com", pick(rng, &["ListFoundationModels", "GetFoundationModelAvailability"])),
        6 => ("bedrock.amazonaws.com", pick(rng, &["PutUseCaseForModelAccess", "CreateFoundationModelAgreement", "PutFoundationModelEntitlement"])),
        7 => ("bedrock.amazonaws.com", pick(rng, &["DeleteGuardrail", "GetModelInvocationLoggingConfiguration", "StartIngestionJob", "UpdateAgent"])),
        8 => ("bedrock-mantle.amazonaws.com", "CreateInference"),
        _ => ("bedrock.amazonaws.com", pick(rng, &["InvokeModel", "Converse"])),
    };
    rows.text(c::REQUEST_ID, Some(pick(rng, &REQUESTS)));
    rows.text(c::EVENT_SOURCE, Some(source));
    rows.text(c::EVENT_NAME, Some(name));
    rows.bool(c::BEARER_TOKEN, Some(rng.random_range(0..4) == 0));
    rows.text(c::MODEL_ID, Some(&format!("m{}", rng.random_range(0..7))));
    match name {
        "AssumeRole" => rows.text(c::MINTED_ACCESS_KEY_ID, minting.map(|(_, child)| KEYS[child])),
        "CreateAccessKey" => rows.text(c::TARGET_ACCESS_KEY_ID, minting.map(|(_, child)| KEYS[child])),
        "UpdateAccessKey" => {
            rows.text(c::TARGET_ACCESS_KEY_ID, Some(pick(rng, &KEYS[..2])));
            rows.text(c::TARGET_KEY_STATUS, Some("Inactive"));
            rows.text(c::TARGET_USER_NAME, Some("svc"));
        }
        "DeleteAccessKey" => rows.text(c::TARGET_ACCESS_KEY_ID, Some(pick(rng, &KEYS[..2]))),
        "PutUserPolicy" => {
            rows.text(c::TARGET_USER_NAME, Some("svc"));
            rows.text(c::POLICY_NAME, Some("AWSExposedCredentialPolicy_DO_NOT_REMOVE"));
        }
        "AttachUserPolicy" => {
            rows.text(c::TARGET_USER_NAME, Some("svc"));
            rows.text(c::POLICY_ARN, Some("arn:aws:iam::aws:policy/AWSCompromisedKeyQuarantineV4"));
        }
        _ => {}
    }
    rows.end_row();
    Row { table, partition, claimed, append_time, batch: rows.finish() }
}

fn is_late(batch: &RecordBatch) -> bool {
    batch.column(c::LATE).as_boolean().value(0)
}

/// The same row with the late flag cleared: what an engine without the rule would see.
fn as_timely(batch: &RecordBatch) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    columns[c::LATE] = Arc::new(BooleanArray::from(vec![false]));
    RecordBatch::try_new(batch.schema(), columns).expect("same schema")
}

/// What plain SQL gives: the alerts that are settled at the end of the stream, and those told early that are still open then.
struct Expected {
    settled: BTreeMap<String, serde_json::Value>,
    open: BTreeMap<String, serde_json::Value>,
}

/// Plain SQL over all rows: on-time rows, each event once, for what joins and counts (late ones too, if asked to); every row for what
/// one row decides.
async fn oracle(plans: &Plans, stream: &[Row], with_late: bool) -> Expected {
    let once = |row: &Row| (event_id(row), 0);
    let counted = stream.iter().filter(|row| with_late || !is_late(&row.batch));
    let (counted, all) = (world(each_once(counted, once)).await, world(stream.iter().collect()).await);
    let (mut settled, mut open) = (Vec::new(), Vec::new());
    for (detection, analysis) in plans.detections() {
        let ctx = if analysis.class == Class::C0 { &all } else { &counted };
        // What waits for time to pass counts as far as time has passed.
        let sure_to = if analysis.class == Class::C3 { end(stream) - analysis.wait } else { Micros::MAX };
        for batch in ctx.sql(&detection.sql).await.expect("plans").collect().await.expect("runs") {
            let (sure, waits): (Vec<_>, Vec<_>) =
                findings_of(detection, &analysis.columns, &batch).expect("findings").into_iter().partition(|finding| finding.alert_time < sure_to);
            settled.extend(sure);
            open.extend(waits.into_iter().filter(|finding| detection.early && finding.alert_time <= end(stream)));
        }
    }
    let alerts = |findings: &[Finding]| of_book(&alerts_of(findings, AllowList::default()));
    Expected { settled: alerts(&settled), open: alerts(&open) }
}

/// How far append time comes.
fn end(stream: &[Row]) -> Micros {
    stream.iter().map(|row| row.append_time).max().unwrap_or_default()
}

/// What plain SQL says of each moment at which a detection with a schedule is asked.
async fn asked_oracle(detection: &Arc<Detection>, stream: &[Row]) -> BTreeMap<String, serde_json::Value> {
    let Schedule { every, over } = detection.schedule.expect("a schedule");
    let mut findings = Vec::new();
    for at in (ASKED_SINCE.div_euclid(every) + 1..=asked_to(detection, stream).div_euclid(every)).map(|number| number * every) {
        let once = each_once(stream.iter(), |row| (event_id(row), row.append_time.div_euclid(HOUR)));
        let ctx = world(once.into_iter().filter(|row| (at - over..at).contains(&row.append_time)).collect()).await;
        ctx.register_udf(keyfuse::function::run_at(at));
        ctx.register_table("rejects", Arc::new(MemTable::try_new(rejects::TABLE.schema(), vec![vec![]]).expect("no rows"))).expect("new");
        for batch in ctx.sql(&detection.sql).await.expect("plans").collect().await.expect("runs") {
            let merge = |name: &String| if name == "level" { Merge::Level } else { Merge::First };
            let merges: Vec<_> = batch.schema().fields().iter().map(|field| (field.name().clone(), merge(field.name()))).collect();
            findings.extend(findings_of(detection, &merges, &batch).expect("findings"));
        }
    }
    of_book(&alerts_of(&findings, AllowList::default()))
}

fn event_id(row: &Row) -> String {
    row.batch.column(c::EVENT_ID).as_string_view().value(0).to_owned()
}

/// The rows that are the first of their kind, in order of arrival.
fn each_once<'s, K: std::hash::Hash + Eq>(rows: impl Iterator<Item = &'s Row>, kind: impl Fn(&Row) -> K) -> Vec<&'s Row> {
    let mut seen = HashSet::new();
    rows.filter(|row| seen.insert(kind(row))).collect()
}

/// Plain tables of rows, and the views over them.
async fn world(rows: Vec<&Row>) -> SessionContext {
    let ctx = SessionContext::new();
    let mut tables: BTreeMap<&str, Vec<RecordBatch>> = STREAMS.iter().map(|t| (t.name, Vec::new())).collect();
    for row in rows {
        tables.get_mut(row.table.name).expect("a stream").push(row.batch.clone());
    }
    let tables: BTreeMap<&str, Vec<RecordBatch>> =
        STREAMS.iter().map(|t| (t.name, vec![concat_batches(&t.schema(), &tables[t.name]).expect("one schema")])).collect();
    // Lineage by a recursive query: nothing of the engine's own resolution is used.
    let links = SessionContext::new();
    let batches = tables["cloudtrail"].clone();
    links.register_table("cloudtrail", Arc::new(MemTable::try_new(c::TABLE.schema(), vec![batches]).expect("rows"))).expect("new");
    let sql = format!(
        "WITH RECURSIVE link AS (SELECT child, parent, minted_at FROM (SELECT child, parent, minted_at,
             row_number() OVER (PARTITION BY child ORDER BY minted_at, parent) AS nth FROM ({}) AS l WHERE child <> parent) WHERE nth = 1),
         chain AS (SELECT child AS credential, parent AS ancestor, 1 AS depth, minted_at, minted_at AS left_at FROM link
             UNION ALL SELECT chain.credential, link.parent, chain.depth + 1, chain.minted_at, link.minted_at
             FROM chain JOIN link ON link.child = chain.ancestor WHERE chain.depth < 8 AND link.parent <> chain.credential)
         SELECT credential, ancestor, depth, minted_at, left_at FROM chain",
        include_str!("../../src/table/lineage_links.sql")
    );
    let chains = links.sql(&sql).await.expect("plans").collect().await.expect("runs");
    let chains = chains.iter().map(|batch| {
        let columns = batch.columns().iter().zip(LINEAGE.fields()).map(|(column, field)| arrow::compute::cast(column, field.data_type()).expect("casts"));
        RecordBatch::try_new(Arc::clone(&LINEAGE), columns.collect()).expect("lineage")
    });
    let chains: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(Arc::clone(&LINEAGE), vec![chains.collect()]).expect("rows"));
    register_tables(&ctx, &Fingerprinter::public(), |name, schema| match tables.get(name) {
        Some(batches) => Arc::new(MemTable::try_new(schema, vec![batches.clone()]).expect("rows")),
        None if name != "lineage" => {
            let table = keyfuse::dimension::by_name(name).expect("a dimension");
            Arc::new(MemTable::try_new(schema, vec![vec![known().of(table)]]).expect("rows"))
        }
        None => Arc::clone(&chains),
    })
    .expect("views plan");
    ctx
}

/// A broker with some partitions, as a consumer sees it while its clock goes on.
struct Partitions<'s> {
    rows: Vec<Vec<&'s Row>>,
    /// How long after it was appended each partition hands out a row.
    behind: Vec<Micros>,
    /// The next row to read of each.
    at: Vec<usize>,
    heard: HashMap<(String, i32), Progress>,
    lag: Lag,
    now: Micros,
    end: Micros,
}

impl<'s> Partitions<'s> {
    fn new(stream: &'s [Row], rng: &mut StdRng) -> Self {
        let mut rows = vec![Vec::new(); PARTITIONS + 1];
        stream.iter().for_each(|row| rows[row.partition].push(row));
        // One in order of arrival, the others minutes or hours behind it.
        let behind = (0..rows.len()).map(|_| [0, rng.random_range(0..20), rng.random_range(0..240)][rng.random_range(0..3)] * MINUTE).collect();
        let now = stream.first().map_or(START, |row| row.append_time);
        let mut partitions = Self { at: vec![0; rows.len()], rows, behind, heard: HashMap::new(), lag: Lag::default(), now, end: end(stream) };
        partitions.begin_at(vec![0; PARTITIONS + 1]);
        partitions
    }

    /// A new process: it has heard nothing yet.
    fn begin_at(&mut self, at: Vec<usize>) {
        let unheard = Progress { append_time: None, heard_at: self.now, by_broker: false };
        self.heard = (0..self.rows.len()).map(|partition| (("t".to_owned(), partition as i32), unheard)).collect();
        (self.at, self.lag) = (at, Lag::default());
    }

    fn is_read(&self) -> bool {
        self.rows.iter().zip(&self.at).all(|(rows, at)| *at == rows.len())
    }

    /// Time goes on, to where there is something to read; then some rows of each partition.
    fn poll(&mut self, rng: &mut StdRng) -> Vec<&'s Row> {
        let next = |partition: usize| self.rows[partition].get(self.at[partition]).map(|row| row.append_time + self.behind[partition]);
        let soonest = (0..self.rows.len()).filter_map(next).min().unwrap_or(self.now);
        self.now = self.now.max(soonest) + rng.random_range(0..90 * 60) * SECOND;
        let mut polled = Vec::new();
        for partition in 0..self.rows.len() {
            let there = self.rows[partition][self.at[partition]..].iter().take_while(|row| row.append_time + self.behind[partition] <= self.now);
            let taken: Vec<&Row> = there.take(rng.random_range(0..60)).copied().collect();
            self.at[partition] += taken.len();
            if let Some(last) = taken.last() {
                let heard = Progress { append_time: Some(last.append_time), heard_at: self.now, by_broker: true };
                self.heard.insert(("t".to_owned(), partition as i32), heard);
            }
            polled.extend(taken);
        }
        if rng.random_bool(0.5) || self.is_read() {
            // What has been appended and not read; nothing is appended after the end, so nothing is asked of then.
            let waits = |partition: usize| self.rows[partition][self.at[partition]..].iter().filter(|row| row.append_time <= self.now).count();
            let waiting = (0..self.rows.len()).map(|partition| (("t".to_owned(), partition as i32), waits(partition) as i64));
            self.lag = Lag { asked_at: self.now.min(self.end + BROKER_SKEW), waiting: waiting.collect() };
        }
        polled
    }

    fn watermark(&self, broken: Broken) -> Option<Micros> {
        let fastest = || self.heard.values().filter_map(|heard| heard.append_time).max();
        match broken {
            Broken::SlowestIgnored => fastest(),
            Broken::WatermarkAhead => fastest().map(|time| time + 24 * 60 * MINUTE),
            _ => watermark(&self.heard, &self.lag, self.now),
        }
    }
}

/// What a detection with a schedule is asked of what is archived.
struct Asking<'r> {
    asked: Scheduled,
    calendar: Calendar,
    /// What of the calendar is on disk.
    noted: Micros,
    runtime: &'r tokio::runtime::Runtime,
}

impl<'r> Asking<'r> {
    fn new(detection: &Arc<Detection>, runtime: &'r tokio::runtime::Runtime) -> Self {
        let asked = Scheduled { detection: Arc::clone(detection), instead: None };
        let mut asking = Self { asked, calendar: Calendar::default(), noted: ASKED_SINCE, runtime };
        asking.begin();
        asking
    }

    /// A new process.
    fn begin(&mut self) {
        self.calendar = Calendar::since([(self.asked.detection.id, self.noted)].into());
    }

    /// Asks what is due. Some questions fail, and not all that is known of the answers reaches the disk.
    fn ask(&mut self, archived: Memory, archived_to: Micros, mut fails: impl FnMut() -> bool) -> Vec<Finding> {
        let (past, mut findings, mut failed) = (schedule::Past::Memory(Arc::new(archived)), Vec::new(), 0);
        for (asked, at) in self.calendar.due(self.asked.clone(), archived_to) {
            if failed < 3 && fails() {
                failed += 1;
                self.calendar.failed(&asked.detection, at);
                continue;
            }
            findings.extend(self.runtime.block_on(schedule::ask(&asked, at, &past, &known(), &Fingerprinter::public())).expect("an answer"));
            if !fails() {
                self.noted = self.calendar.answered(&asked.detection, at);
            }
        }
        findings
    }
}

/// The engine over the same rows, each partition in append order, in random batches, with evictions and crashes.
fn live(plans: &Plans, mut asking: Asking<'_>, stream: &[Row], rng: &mut StdRng, broken: Broken) -> (BTreeMap<String, serde_json::Value>, usize) {
    let fresh = || Engine::of(plans, &known()).expect("an engine");
    // Half of the engines look at a few rows at a time, and are behind most of the time; half of those have no time for more than one
    // detection in a tick, and let keys rest that they looked at.
    let rows = if rng.random_bool(0.5) { usize::MAX } else { rng.random_range(1..2_000) };
    let time = if (200..usize::MAX).contains(&rows) && rng.random_bool(0.5) { Duration::ZERO } else { Duration::MAX };
    let fresh = || fresh().with_tick_bounds(rows, time);
    let mut engine = fresh();
    let mut book = AlertBook::default();
    let as_read = |row: &Row| if broken == Broken::LateRuleOff { as_timely(&row.batch) } else { row.batch.clone() };
    // Archive and memory in one: all that has been read. What is committed survives a crash.
    let mut past = Memory::default();
    let mut partitions = Partitions::new(stream, rng);
    let by_partition = partitions.rows.clone();
    let archived = |at: &[usize]| {
        let past = Memory::default();
        by_partition.iter().zip(at).for_each(|(rows, at)| rows[..*at].iter().for_each(|row| past.add(row.table, &as_read(row))));
        past
    };
    let (mut committed, mut decided, mut crashes) = ((partitions.at.clone(), None), None, 0);
    while !partitions.is_read() {
        for row in partitions.poll(rng) {
            let batch = as_read(row);
            past.add(row.table, &batch);
            engine.push(row.table, &batch).expect("push");
        }
        let progress = partitions.watermark(broken);
        if let Some(progress) = progress {
            engine.advance(progress);
        }
        let mut findings = engine.tick(&past).expect("tick");
        while partitions.is_read() && engine.decided() < Some(engine.progress()) {
            engine.wake();
            findings.extend(engine.tick(&past).expect("tick"));
        }
        let problems = engine.take_problems();
        assert!(problems.is_empty(), "{problems:?}");
        book.merge(&findings, 0, None);
        if let Some(progress) = progress {
            if broken != Broken::NeverRetracts {
                book.settle(progress, &engine.sure_to());
            }
            // As the service does: what still waits to be looked at is not decided.
            decided = decided.max(engine.decided());
            if rng.random_range(0..3) == 0 {
                engine.let_go(&past).expect("let go");
            }
        }
        match rng.random_range(0..12) {
            _ if partitions.is_read() => {}
            0..2 => {
                committed = (partitions.at.clone(), decided);
                if let Some(decided) = decided {
                    book.merge(&asking.ask(archived(&committed.0), decided, || rng.random_range(0..12) == 0), 0, None);
                }
            }
            2 => {
                // Crash: everything in memory is gone; the archive and the alert log are not.
                crashes += 1;
                engine = fresh();
                past = archived(&committed.0);
                asking.begin();
                decided = committed.1;
                partitions.begin_at(committed.0.clone());
                if broken == Broken::AlertLogOff {
                    book = AlertBook::default();
                } else {
                    engine.advance(decided.unwrap_or(Micros::MIN));
                    engine.restore(&past, decided).expect("restore");
                }
            }
            _ => {}
        }
    }
    book.merge(&asking.ask(archived(&partitions.at), asked_to(&asking.asked.detection, stream), || false), 0, None);
    let settled =
        book.all().into_iter().filter(|alert| alert.status != Status::Retracted && (alert.status != Status::Provisional || broken == Broken::NeverRetracts));
    (settled.map(|alert| (alert.alert_id.clone(), alert.content())).collect(), crashes)
}

/// What the late sweep adds, once everything is there.
fn swept(plans: &Plans, stream: &[Row]) -> BTreeMap<String, serde_json::Value> {
    let past = Memory::default();
    stream.iter().for_each(|row| past.add(row.table, &row.batch));
    let window = Window { after: Micros::MIN, until: end(stream) };
    let settings = keyfuse::late::Settings { dimensions: &known(), allow: &AllowList::default(), budget: usize::MAX };
    let (added, problems) = sweep(plans, window, &past, &[], &settings).expect("a sweep");
    assert!(problems.is_empty(), "{problems:?}");
    added.iter().map(|alert| (alert.alert_id.clone(), alert.content())).collect()
}

fn stream(rng: &mut StdRng) -> Vec<Row> {
    let mut rows: Vec<Row> = (0..rng.random_range(80..320)).map(|number| row(rng, number)).collect();
    // Delivered twice, some minutes apart.
    let again: Vec<usize> = (0..rows.len()).filter(|_| rng.random_range(0..12) == 0).collect();
    for index in again {
        let (row, offset) = (&rows[index], rows.len() as i64);
        let append_time = row.append_time + rng.random_range(0..20) * MINUTE;
        // What is judged by when it came is judged by the copy that is read first: on one partition that is the one that came first.
        let is_judged_by_it = row.claimed > row.append_time || (row.append_time < TURN) != (append_time < TURN);
        let partition = if is_judged_by_it { row.partition } else { rng.random_range(0..PARTITIONS) };
        let again = row.again(partition, append_time, offset);
        rows.push(again);
    }
    rows.sort_by_key(|row| row.append_time);
    rows
}

#[test]
fn live_alerts_equal_plain_sql_and_broken_engines_are_caught() {
    let scheduled = scheduled_detections();
    let plans = Plans::new(&live_detections(), &Fingerprinter::public()).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let seeds: u64 = std::env::var("KEYFUSE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let first: u64 = std::env::var("KEYFUSE_FIRST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (mut alerts, mut asked_alerts, mut late_alerts, mut crashes) = (0, 0, 0, 0);
    let mut caught = [None; 5];
    for seed in first..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let stream = stream(&mut rng);
        // Mostly a shape: of the shipped ones few say anything of so few rows.
        let first = if rng.random_bool(0.7) { scheduled.len() - ASKED.len() } else { 0 };
        let asked = &scheduled[rng.random_range(first..scheduled.len())];
        let expected = runtime.block_on(oracle(&plans, &stream, false));
        let mut all = runtime.block_on(asked_oracle(asked, &stream));
        asked_alerts += all.len();
        all.extend(expected.settled.clone());
        alerts += all.len();
        let (got, crashed) = live(&plans, Asking::new(asked, &runtime), &stream, &mut rng, Broken::No);
        crashes += crashed;
        assert_same(seed, &all, &got);
        let added = swept(&plans, &stream);
        let mut late = runtime.block_on(oracle(&plans, &stream, true)).settled;
        // What rows on time have told already, early ones included, late rows do not add.
        late.retain(|id, _| !expected.settled.contains_key(id) && !expected.open.contains_key(id));
        late_alerts += late.len();
        assert_same(seed, &late, &added);
        // Each broken engine runs until a stream has caught it.
        let broken = [Broken::LateRuleOff, Broken::WatermarkAhead, Broken::SlowestIgnored, Broken::AlertLogOff, Broken::NeverRetracts];
        for (broken, caught) in broken.into_iter().zip(&mut caught) {
            if caught.is_none() && live(&plans, Asking::new(asked, &runtime), &stream, &mut StdRng::seed_from_u64(seed), broken).0 != all {
                *caught = Some(seed);
            }
        }
    }
    println!(
        "{} streams, {crashes} crashes, {alerts} alerts ({asked_alerts} asked for on a schedule), all equal, and {late_alerts} that late rows add; broken engines caught by stream {caught:?} (late rule, watermark, slowest partition, alert log, retraction)",
        seeds - first
    );
    assert!(late_alerts as u64 > seeds - first, "late rows add alerts");
    assert!(alerts as u64 > (seeds - first) * 5, "the streams raise alerts at all");
    assert!(caught.iter().all(Option::is_some), "a broken engine went unnoticed: {caught:?}");
}

fn assert_same(seed: u64, expected: &BTreeMap<String, serde_json::Value>, got: &BTreeMap<String, serde_json::Value>) {
    for (id, content) in expected {
        assert_eq!(got.get(id), Some(content), "seed {seed}: missing or different");
    }
    let extra: Vec<_> = got.keys().filter(|id| !expected.contains_key(*id)).collect();
    assert!(extra.is_empty(), "seed {seed}: {} alerts that SQL does not give, such as {}", extra.len(), got[extra[0]]);
}
