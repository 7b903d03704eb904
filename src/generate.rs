//! A seeded world of logs: an AI application at work, and a story planted in it, with the truth written beside.
//!
//! The same seed gives the same bytes. Used by the demo, tests and benches, and by `keyfuse generate`.

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
pub struct World {
    pub cloudtrail: Vec<Generated>,
    pub exposure_reports: Vec<Generated>,
    /// What was planted: detection, credential, time of the act.
    pub truth: Vec<Value>,
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

    fn planted(&mut self, at: Micros, detection: &str, credential: &str, what: &str) {
        self.world.truth.push(json!({"detection": detection, "credential": credential, "event_time": rfc3339(at / SECOND * SECOND), "what": what}));
    }

    fn ip(&mut self) -> String {
        format!("198.51.100.{}", self.rng.random_range(1..255))
    }
}

const MODELS: [&str; 4] =
    ["anthropic.claude-sonnet-4-5-20250929-v1:0", "amazon.nova-pro-v1:0", "meta.llama4-maverick-17b-instruct-v1:0", "amazon.titan-embed-text-v2:0"];

/// The story of a leaked key, over `length`, in ordinary traffic of about `ordinary` events.
pub fn llmjacking(seed: u64, start: Micros, length: Micros, ordinary: usize) -> World {
    let mut w = Writer { rng: StdRng::seed_from_u64(seed), world: World { cloudtrail: Vec::new(), exposure_reports: Vec::new(), truth: Vec::new() } };
    traffic(&mut w, start, length, ordinary);
    leak(&mut w, start, length);
    w.world.cloudtrail.sort_by(|a, b| (a.append_time, &a.text).cmp(&(b.append_time, &b.text)));
    w.world
}

/// Ordinary traffic alone: agents that answer questions, a nightly index job, a pipeline, a person in the console.
pub fn ordinary(seed: u64, start: Micros, length: Micros, events: usize) -> World {
    let mut w = Writer { rng: StdRng::seed_from_u64(seed), world: World { cloudtrail: Vec::new(), exposure_reports: Vec::new(), truth: Vec::new() } };
    traffic(&mut w, start, length, events);
    w.world.cloudtrail.sort_by(|a, b| (a.append_time, &a.text).cmp(&(b.append_time, &b.text)));
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
                let document = w.rng.random_range(0..5000);
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

/// The acts of the leak, at fractions of the length: exposed, found, checked, unlocked, used, persisted, cut off too late.
fn leak(w: &mut Writer, start: Micros, length: Micros) {
    let at = |w: &mut Writer, minute: f64| {
        let jitter = Micros::from(w.rng.random_range(0..900)) * 1000;
        start + (length as f64 * minute / 20.0) as Micros + jitter
    };
    let key = access_key_id("AKIA", ACCOUNT, &mut w.rng);
    let child = access_key_id("ASIA", ACCOUNT, &mut w.rng);
    let second = access_key_id("AKIA", ACCOUNT, &mut w.rng);
    let mut thief = Caller {
        access_key_id: key.clone(),
        user: Some("svc-rag-ci"),
        role: None,
        ip: w.ip(),
        agent: "python-requests/2.32 boto3/1.35.0",
        region: "us-east-1",
    };

    let exposed = at(w, 3.0) / SECOND * SECOND;
    let secret: String = (0..40).map(|_| b"ABCDEFGHabcdefgh0123456789+/"[w.rng.random_range(0..28)] as char).collect();
    let report = json!({"Description": "AWS credentials", "StartLine": 12, "EndLine": 12, "Match": format!("AWS_ACCESS_KEY_ID={key}"), "Secret": key,
        "File": "deploy/.env.example", "Commit": "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432", "Author": "dev", "Date": rfc3339(exposed), "Message": "try the new index",
        "RuleID": "aws-access-token", "Entropy": 3.6, "Fingerprint": format!("9f8e7d6c5b4a:deploy/.env.example:aws-access-token:12:{key}"),
        "Link": "https://github.com/acme/support-rag/blob/9f8e7d6c/deploy/.env.example#L12", "Line": format!("AWS_ACCESS_KEY_ID={key} # \"secretAccessKey\": \"{secret}\"")});
    w.world.exposure_reports.push(Generated { event_time: exposed, append_time: exposed + 45 * SECOND, text: report.to_string() });

    let t = at(w, 4.1);
    w.call(t, &thief, "sts.amazonaws.com", "GetCallerIdentity", json!({}));
    w.planted(t, "EXP-01", &key, "first use of the key after it was pushed");
    for (minute, name) in [(4.15, "ListFoundationModels"), (4.18, "GetFoundationModelAvailability"), (4.2, "ListInferenceProfiles")] {
        let t = at(w, minute);
        w.call(t, &thief, "bedrock.amazonaws.com", name, json!({}));
    }
    let aws = Caller { ip: "AWS Internal".into(), agent: "aws-internal/3", ..thief.clone() };
    let t = at(w, 4.6);
    w.call(
        t,
        &aws,
        "iam.amazonaws.com",
        "PutUserPolicy",
        json!({"readOnly": false,
        "requestParameters": {"userName": "svc-rag-ci", "policyName": "AWSExposedCredentialPolicy_DO_NOT_REMOVE", "policyDocument": "{}"}}),
    );
    for number in 0..6 {
        let t = at(w, 5.0 + f64::from(number) * 0.05);
        thief.ip = w.ip();
        w.call(
            t,
            &thief,
            "bedrock.amazonaws.com",
            "InvokeModel",
            json!({"requestParameters": {"modelId": format!("anthropic.claude-locked-{number}-v1:0")},
            "errorCode": "AccessDenied", "errorMessage": "You don't have access to the model with the specified model ID."}),
        );
        if number == 5 {
            w.planted(t, "LLM-05", &key, "six different models denied within a minute");
            w.planted(t, "EXP-03", &key, "the key used from many addresses");
        }
    }
    for (minute, name, error) in [
        (6.0, "PutUseCaseForModelAccess", false),
        (6.1, "ListFoundationModelAgreementOffers", false),
        (6.2, "CreateFoundationModelAgreement", false),
        (6.3, "PutFoundationModelEntitlement", false),
    ] {
        let t = at(w, minute);
        w.call(t, &thief, "bedrock.amazonaws.com", name, if error { json!({"errorCode": "AccessDenied"}) } else { json!({"readOnly": false}) });
        w.planted(t, if name == "PutFoundationModelEntitlement" { "LLM-02" } else { "LLM-03" }, &key, name);
    }
    for number in 0..25 {
        let t = at(w, 7.0 + f64::from(number) * 0.08);
        thief.ip = w.ip();
        let tokens = w.rng.random_range(2000..60_000);
        w.call(
            t,
            &thief,
            "bedrock.amazonaws.com",
            "InvokeModel",
            json!({"requestParameters": {"modelId": MODELS[0]},
            "additionalEventData": {"inferenceRegion": "us-east-1", "inputTokens": tokens, "outputTokens": tokens / 3}}),
        );
        if number == 0 {
            w.planted(t, "LLM-01", &key, "models listed, then invoked");
            w.planted(t, "EXP-04", &key, "used after AWS quarantined the key");
        }
    }
    let t = at(w, 9.5);
    w.call(
        t,
        &thief,
        "sts.amazonaws.com",
        "AssumeRole",
        json!({"requestParameters": {"roleArn": format!("arn:aws:iam::{ACCOUNT}:role/support-agent"), "roleSessionName": "s1"},
        "responseElements": {"credentials": {"accessKeyId": child, "sessionToken": format!("FwoGZXIvYXdzE{secret}"), "expiration": rfc3339(t + 60 * MINUTE)}}}),
    );
    w.planted(t, "EXP-09", &key, "a session minted with the exposed key");
    let session = Caller {
        access_key_id: child.clone(),
        user: None,
        role: Some(("support-agent", "s1")),
        ip: w.ip(),
        agent: "aws-cli/2.31 md/Botocore",
        region: "us-east-1",
    };
    for number in 0..8 {
        let t = at(w, 10.0 + f64::from(number) * 0.1);
        w.call(
            t,
            &session,
            "s3.amazonaws.com",
            "GetObject",
            json!({"requestParameters": {"bucketName": "acme-support-corpus", "key": format!("contracts/{number}.pdf")},
            "eventCategory": "Data", "managementEvent": false, "additionalEventData": {"bytesTransferredOut": 5_000_000.0}}),
        );
    }
    let t = at(w, 11.0);
    w.call(t, &session, "bedrock.amazonaws.com", "DeleteModelInvocationLoggingConfiguration", json!({"readOnly": false}));
    w.planted(t, "COV-03", &child, "invocation logging switched off");
    let t = at(w, 11.5);
    w.call(
        t,
        &thief,
        "iam.amazonaws.com",
        "CreateAccessKey",
        json!({"readOnly": false, "requestParameters": {"userName": "svc-rag-ci"},
        "responseElements": {"accessKey": {"accessKeyId": second, "status": "Active", "userName": "svc-rag-ci"}}}),
    );
    w.planted(t, "EXP-09", &key, "a second long-lived key made with the exposed one");
    let bearer = Caller { access_key_id: access_key_id("AKIA", ACCOUNT, &mut w.rng), user: Some("BedrockAPIKey-x7q2"), ip: w.ip(), ..thief.clone() };
    let t = at(w, 12.0);
    w.call(
        t,
        &bearer,
        "bedrock.amazonaws.com",
        "DeleteGuardrail",
        json!({"readOnly": false, "requestParameters": {"guardrailIdentifier": "gr-support"},
        "additionalEventData": {"callWithBearerToken": true}}),
    );
    w.planted(t, "LLM-10", &bearer.access_key_id, "a guardrail deleted with a Bedrock API key");
    let owner = Caller {
        access_key_id: access_key_id("ASIA", ACCOUNT, &mut w.rng),
        user: None,
        role: Some(("PlatformAdmin", "rosa")),
        ip: "203.0.113.20".into(),
        agent: "aws-cli/2.31 md/Botocore",
        region: "us-east-1",
    };
    let t = at(w, 13.0);
    w.call(
        t,
        &owner,
        "iam.amazonaws.com",
        "UpdateAccessKey",
        json!({"readOnly": false, "requestParameters": {"userName": "svc-rag-ci", "accessKeyId": key, "status": "Inactive"}}),
    );
    let t = at(w, 16.5);
    w.call(
        t,
        &thief,
        "sts.amazonaws.com",
        "GetCallerIdentity",
        json!({"errorCode": "InvalidClientTokenId", "errorMessage": "The security token included in the request is invalid."}),
    );
    w.planted(t, "EXP-05", &key, "the deactivated key tried again");
    let t = at(w, 17.0);
    w.call(t, &session, "s3.amazonaws.com", "ListObjects", json!({"requestParameters": {"bucketName": "acme-support-corpus"}}));
    w.planted(t, "EXP-06", &child, "the session outlives the key that minted it");
}
