//! A seeded world of logs: an AI application at work, and a story planted in it, with the truth written beside.
//!
//! The same seed gives the same bytes. Used by the demo, tests and benches, and by `keyfuse generate`.

mod injection;
mod insider;
mod leak;
mod workplace;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::clock::{MINUTE, Micros, SECOND, rfc3339};

/// The account that everything happens in: one that AWS reserves for documentation.
pub const ACCOUNT: &str = "111122223333";

/// One generated record: when it happened, when it is delivered, and the JSON text.
#[derive(Clone, Debug)]
pub struct Generated {
    pub event_time: Micros,
    pub append_time: Micros,
    pub text: String,
}

/// A generated world.
#[derive(Default)]
pub struct World {
    pub cloudtrail: Vec<Generated>,
    /// Bedrock model invocation logs.
    pub invocations: Vec<Generated>,
    /// OTLP requests, JSON.
    pub spans: Vec<Generated>,
    /// MCP messages as a proxy logs them.
    pub mcp: Vec<Generated>,
    pub exposure_reports: Vec<Generated>,
    /// What was planted: detection, subject (credential, identity, trace, …), time of the act.
    pub truth: Vec<Value>,
    /// The inventory and the approvals of this world, as TOML.
    pub agents: String,
    pub approvals: String,
}

impl World {
    /// The logs by file name.
    pub fn logs(&self) -> [(&'static str, &[Generated]); 5] {
        [
            ("cloudtrail", &self.cloudtrail),
            ("bedrock_invocations", &self.invocations),
            ("spans", &self.spans),
            ("mcp", &self.mcp),
            ("exposure_reports", &self.exposure_reports),
        ]
    }

    /// Records of all logs.
    pub fn records(&self) -> usize {
        self.logs().iter().map(|(_, records)| records.len()).sum()
    }

    fn sort(&mut self) {
        for records in [&mut self.cloudtrail, &mut self.invocations, &mut self.spans, &mut self.mcp, &mut self.exposure_reports] {
            records.sort_by(|a, b| (a.append_time, &a.text).cmp(&(b.append_time, &b.text)));
        }
    }
}

/// A valid access key id of an account: `prefix` and 16 base32 characters that decode to it.
pub fn access_key_id(prefix: &str, account: &str, rng: &mut StdRng) -> String {
    const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let account: u128 = account.parse().unwrap_or(0);
    // 80 bits: a one, 40 bits of account, the rest chance.
    let bits = 1u128 << 79 | account << 39 | u128::from(rng.random::<u64>() & 0x7f_ffff_ffff);
    let text: String = (0..16).rev().map(|place| BASE32[(bits >> (place * 5) & 31) as usize] as char).collect();
    format!("{prefix}{text}")
}

/// Which of the services of the ordinary traffic this is: answers, index, reports.
fn number_of(caller: &Caller) -> usize {
    ["support-agent", "rag-indexer", "report-writer"].iter().position(|role| caller.role.is_some_and(|(name, _)| name == *role)).unwrap_or(0)
}

/// Someone who calls APIs.
#[derive(Clone)]
struct Caller {
    access_key_id: String,
    /// IAM user, or role and session.
    user: Option<&'static str>,
    role: Option<(&'static str, &'static str)>,
    ip: String,
    agent: &'static str,
    region: &'static str,
}

struct Writer {
    rng: StdRng,
    world: World,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), world: World { agents: workplace::agents(), approvals: workplace::approvals(), ..World::default() } }
    }

    fn id(&mut self) -> String {
        let (a, b) = (self.rng.random::<u64>(), self.rng.random::<u64>());
        uuid::Uuid::from_u64_pair(a, b).to_string()
    }

    /// Adds one CloudTrail record, delivered some seconds to minutes later, as CloudTrail does.
    fn call(&mut self, at: Micros, caller: &Caller, source: &str, name: &str, more: Value) -> String {
        let event_id = self.id();
        let request_id = self.id();
        let delay = Micros::from(self.rng.random_range(2..40)) * SECOND;
        let identity = match (caller.user, caller.role) {
            (Some(user), _) => json!({"type": "IAMUser", "principalId": "AIDAEXAMPLEUSERID000", "arn": format!("arn:aws:iam::{ACCOUNT}:user/{user}"),
                "accountId": ACCOUNT, "accessKeyId": caller.access_key_id, "userName": user}),
            (None, Some((role, session))) => json!({"type": "AssumedRole", "principalId": format!("AROAEXAMPLEROLEID000:{session}"),
                "arn": format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"), "accountId": ACCOUNT, "accessKeyId": caller.access_key_id,
                "sessionContext": {"sessionIssuer": {"type": "Role", "principalId": "AROAEXAMPLEROLEID000", "arn": format!("arn:aws:iam::{ACCOUNT}:role/{role}"),
                    "accountId": ACCOUNT, "userName": role}, "attributes": {"creationDate": rfc3339(at - 20 * MINUTE), "mfaAuthenticated": "false"}}}),
            (None, None) => json!({"type": "AWSService", "invokedBy": "bedrock.amazonaws.com"}),
        };
        let mut record = json!({
            "eventVersion": "1.11", "userIdentity": identity, "eventTime": rfc3339(at / SECOND * SECOND), "eventSource": source, "eventName": name,
            "awsRegion": caller.region, "sourceIPAddress": caller.ip, "userAgent": caller.agent, "requestParameters": null, "responseElements": null,
            "requestID": request_id, "eventID": event_id, "readOnly": true, "eventType": "AwsApiCall", "managementEvent": true,
            "recipientAccountId": ACCOUNT, "eventCategory": "Management",
            "tlsDetails": {"tlsVersion": "TLSv1.3", "cipherSuite": "TLS_AES_128_GCM_SHA256", "clientProvidedHostHeader": format!("{}.{}.amazonaws.com", source.split('.').next().unwrap_or("aws"), caller.region)},
        });
        if let (Some(record), Some(more)) = (record.as_object_mut(), more.as_object()) {
            for (name, value) in more {
                record.insert(name.clone(), value.clone());
            }
        }
        self.world.cloudtrail.push(Generated { event_time: at / SECOND * SECOND, append_time: at + delay, text: record.to_string() });
        event_id
    }

    fn planted(&mut self, at: Micros, detection: &str, subject: &str, what: &str) {
        self.world.truth.push(json!({"detection": detection, "subject": subject, "event_time": rfc3339(at / SECOND * SECOND), "what": what}));
    }

    fn ip(&mut self) -> String {
        format!("198.51.100.{}", self.rng.random_range(1..255))
    }
}

const MODELS: [&str; 4] =
    ["anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-pro-v1:0", "meta.llama4-maverick-17b-instruct-v1:0", "amazon.titan-embed-text-v2:0"];

/// A story that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// Nothing bad at all.
    Ordinary,
    /// A key leaked, raced, used and cut off too late.
    Llmjacking,
    /// Instructions in a document make a chain of agents read a corpus and send it out.
    Injection,
    /// Somebody inside quietly reuses the identity of a batch job.
    Insider,
}

/// Tells a story with all its logs, in ordinary work of about `events` records, and the inventory of that world.
pub fn tell(story: Story, seed: u64, start: Micros, length: Micros, events: usize) -> World {
    let mut w = Writer::new(seed);
    traffic(&mut w, start, length, events / 2);
    workplace::work(&mut w, start, length, events / 2 / workplace::RECORDS_PER_TASK);
    match story {
        Story::Ordinary => {}
        // The race takes minutes, however long the day around it is.
        Story::Llmjacking => leak::leak(&mut w, start + length / 3, length.min(20 * MINUTE)),
        Story::Injection => injection::injection(&mut w, start, length),
        Story::Insider => insider::insider(&mut w, start, length),
    }
    w.world.sort();
    w.world
}

/// The story of a leaked key in CloudTrail and reports alone, over `length`, in ordinary traffic of about `ordinary` events.
pub fn llmjacking(seed: u64, start: Micros, length: Micros, ordinary: usize) -> World {
    let mut w = Writer::new(seed);
    traffic(&mut w, start, length, ordinary);
    leak::leak(&mut w, start, length);
    w.world.sort();
    w.world
}

/// Ordinary traffic alone: agents that answer questions, a nightly index job, a pipeline, a person in the console.
pub fn ordinary(seed: u64, start: Micros, length: Micros, events: usize) -> World {
    let mut w = Writer::new(seed);
    traffic(&mut w, start, length, events);
    w.world.sort();
    w.world
}

fn traffic(w: &mut Writer, start: Micros, length: Micros, events: usize) {
    let agent = "Boto3/1.40.21 md/Botocore#1.40.21 ua/2.1 os/linux#6.8 lang/python#3.12 app/support-agent";
    let services: Vec<Caller> = (0..12)
        .map(|number| {
            let (role, session, region) =
                [("support-agent", "answer", "us-east-1"), ("rag-indexer", "nightly", "us-east-1"), ("report-writer", "batch", "eu-west-1")][number % 3];
            Caller {
                access_key_id: access_key_id("ASIA", ACCOUNT, &mut w.rng),
                user: None,
                role: Some((role, session)),
                ip: format!("10.20.{}.{}", number % 4, w.rng.random_range(2..250)),
                agent,
                region,
            }
        })
        .collect();
    let person = Caller {
        access_key_id: access_key_id("ASIA", ACCOUNT, &mut w.rng),
        user: None,
        role: Some(("PlatformAdmin", "rosa")),
        ip: "203.0.113.20".into(),
        agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 Chrome/141.0 Safari/537.36",
        region: "us-east-1",
    };
    for _ in 0..events {
        let at = start + (w.rng.random::<f64>() * length as f64) as Micros;
        let caller = services[w.rng.random_range(0..services.len())].clone();
        match w.rng.random_range(0..100) {
            0..45 => {
                let (input, output) = (w.rng.random_range(200..4000), w.rng.random_range(50..900));
                let model = MODELS[w.rng.random_range(0..2)];
                let call = ["Converse", "InvokeModel", "ConverseStream"][w.rng.random_range(0..3)];
                w.call(at, &caller, "bedrock.amazonaws.com", call, json!({
                    "requestParameters": {"modelId": model}, "additionalEventData": {"inferenceRegion": caller.region, "inputTokens": input, "outputTokens": output}}));
            }
            45..65 => {
                w.call(at, &caller, "bedrock.amazonaws.com", "Retrieve", json!({
                    "requestParameters": {"knowledgeBaseId": "KBSUPPORT1"}, "eventCategory": "Data", "managementEvent": false,
                    "resources": [{"type": "AWS::Bedrock::KnowledgeBase", "ARN": format!("arn:aws:bedrock:{}:{ACCOUNT}:knowledge-base/KBSUPPORT1", caller.region)}]}));
            }
            65..85 => {
                let bytes = w.rng.random_range(800..200_000);
                // The indexer reads the whole corpus, the others what people ask for.
                let document = w.rng.random_range(0..if number_of(&caller) == 1 { 5000 } else { 600 });
                w.call(at, &caller, "s3.amazonaws.com", "GetObject", json!({
                    "requestParameters": {"bucketName": "acme-support-corpus", "key": format!("docs/{document}.md")}, "eventCategory": "Data", "managementEvent": false,
                    "additionalEventData": {"bytesTransferredIn": 0.0, "bytesTransferredOut": f64::from(bytes)}}));
            }
            85..92 => {
                w.call(at, &caller, "kms.amazonaws.com", "Decrypt", json!({"requestParameters": {"encryptionContext": {"app": "support"}}}));
            }
            92..96 => {
                w.call(at, &caller, "sts.amazonaws.com", "GetCallerIdentity", json!({}));
            }
            96..98 => {
                w.call(at, &person, "bedrock.amazonaws.com", "ListFoundationModels", json!({}));
            }
            98 => {
                w.call(at, &caller, "bedrock.amazonaws.com", "InvokeModel", json!({
                    "requestParameters": {"modelId": MODELS[0]}, "errorCode": "ThrottlingException", "errorMessage": "Too many requests, please wait before trying again."}));
            }
            _ => {
                w.call(at, &person, "ec2.amazonaws.com", "DescribeInstances", json!({}));
            }
        }
    }
}
