//! The story of an insider who quietly reuses the identity of a batch job.

use serde_json::json;

use super::workplace::{AGENTS, Trace, role_arn};
use super::{ACCOUNT, Caller, Generated, MODELS, Writer, access_key_id};
use crate::clock::{HOUR, MINUTE, Micros, SECOND, rfc3339};

pub fn insider(w: &mut Writer, start: Micros, length: Micros) {
    let begin = start + length / 3;
    // A minute of the story is a minute, or less where the whole is short.
    let minute = (length / 90).min(MINUTE);
    let at = |number: i64| begin + number * minute;
    let batch = role_arn("nightly-batch");
    let laptop = Caller {
        access_key_id: access_key_id("ASIA", ACCOUNT, &mut w.rng),
        user: None,
        role: Some(("nightly-batch", "job")),
        ip: "203.0.113.77".into(),
        agent: "aws-cli/2.31 md/Botocore",
        region: "us-east-1",
    };

    // Signed in with the job's identity, from a browser.
    let browser = Caller { agent: "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0", ..laptop.clone() };
    w.call(at(0), &browser, "s3.amazonaws.com", "ListBuckets", json!({"sessionCredentialFromConsole": "true"}));
    w.planted(at(0), "SHR-06", &batch, "a person in the console with the batch identity");
    w.planted(at(0), "SHR-05", &batch, "the batch identity from a laptop");
    // A session far older than the job's.
    let old = json!({"type": "AssumedRole", "principalId": "AROAEXAMPLEROLEID009:job", "arn": format!("arn:aws:sts::{ACCOUNT}:assumed-role/nightly-batch/job"), "accountId": ACCOUNT,
        "accessKeyId": laptop.access_key_id, "sessionContext": {"sessionIssuer": {"type": "Role", "arn": batch, "userName": "nightly-batch"},
        "attributes": {"creationDate": rfc3339(at(1) - 30 * HOUR), "mfaAuthenticated": "false"}}});
    w.call(at(1), &laptop, "sts.amazonaws.com", "GetCallerIdentity", json!({"userIdentity": old}));
    w.planted(at(1), "LIF-02", &laptop.access_key_id, "a session of thirty hours where twelve are allowed");

    // The knowledge base of payroll, which no approval covers.
    w.call(
        at(2),
        &laptop,
        "bedrock.amazonaws.com",
        "Retrieve",
        json!({"requestParameters": {"knowledgeBaseId": "kb-payroll"}, "eventCategory": "Data", "managementEvent": false}),
    );
    w.planted(at(2), "COT-08", &batch, "a batch read outside its approval");
    w.planted(at(2), "COT-07", "kb-payroll", "an index outside the allowance");
    // The corpus, whole.
    for number in 0..1200 {
        let moment = at(3) + number * minute / 100;
        w.call(
            moment,
            &laptop,
            "s3.amazonaws.com",
            "GetObject",
            json!({"requestParameters": {"bucketName": "acme-contracts", "key": format!("contracts/{number}.pdf")},
            "eventCategory": "Data", "managementEvent": false, "additionalEventData": {"bytesTransferredOut": 12_000_000.0}}),
        );
    }
    w.planted(at(3), "COT-06", &batch, "twelve hundred documents in a quarter of an hour");
    w.planted(at(3), "COST-08", &batch, "fourteen gigabytes");

    // Is anyone watching? Then the model.
    w.call(at(18), &laptop, "bedrock.amazonaws.com", "GetModelInvocationLoggingConfiguration", json!({}));
    w.call(
        at(19),
        &laptop,
        "bedrock.amazonaws.com",
        "Converse",
        json!({"requestParameters": {"modelId": MODELS[0]}, "additionalEventData": {"inputTokens": 90_000, "outputTokens": 4_000}}),
    );
    w.planted(at(19), "LLM-06", &laptop.access_key_id, "looked whether prompts are logged, then asked");

    // A key for later, without an end, and its first use from home.
    w.call(
        at(20),
        &laptop,
        "iam.amazonaws.com",
        "CreateServiceSpecificCredential",
        json!({"readOnly": false,
        "requestParameters": {"userName": "BedrockAPIKey-night", "serviceName": "bedrock.amazonaws.com"}}),
    );
    w.planted(at(20), "LLM-12", "BedrockAPIKey-night", "a Bedrock key that never ends");
    let spare = access_key_id("AKIA", ACCOUNT, &mut w.rng);
    w.call(
        at(21),
        &laptop,
        "iam.amazonaws.com",
        "CreateAccessKey",
        json!({"readOnly": false, "requestParameters": {"userName": "BedrockAPIKey-night"},
        "responseElements": {"accessKey": {"accessKeyId": spare, "status": "Active", "userName": "BedrockAPIKey-night"}}}),
    );
    w.planted(at(21), "LLM-11", "BedrockAPIKey-night", "an access key for the user behind it");
    let bearer = Caller {
        access_key_id: String::new(),
        user: Some("BedrockAPIKey-night"),
        role: None,
        ip: "198.51.100.200".into(),
        agent: "OpenAI/Python 1.50",
        region: "us-east-1",
    };
    for number in 0..5 {
        w.call(
            at(22) + number * SECOND,
            &bearer,
            "bedrock-mantle.amazonaws.com",
            "CreateInference",
            json!({"requestParameters": {"model": "anthropic.claude-sonnet-4-5", "callWithBearerToken": true},
            "eventCategory": "Data", "managementEvent": false}),
        );
    }
    w.planted(at(22), "LLM-08", "BedrockAPIKey-night", "the second inference plane");
    w.planted(at(22), "LLM-07", "BedrockAPIKey-night", "a model called by an identity that nobody registered");
    w.planted(at(22), "SHR-04", "BedrockAPIKey-night", "a static key on a model");

    // The corpus is changed, and a limit lifted, before the trail goes cold.
    w.call(
        at(24),
        &laptop,
        "bedrock.amazonaws.com",
        "IngestKnowledgeBaseDocuments",
        json!({"readOnly": false, "requestParameters": {"knowledgeBaseId": "KBSUPPORT1"}}),
    );
    w.planted(at(24), "COT-09", &batch, "documents put into the knowledge base by hand");
    w.call(
        at(25),
        &laptop,
        "servicequotas.amazonaws.com",
        "RequestServiceQuotaIncrease",
        json!({"readOnly": false, "requestParameters": {"serviceCode": "bedrock"}}),
    );
    w.planted(at(25), "COST-06", &batch, "a quota raised");

    // The same identity under the names of two agents and in a second environment.
    for (number, (agent, environment)) in [("nightly", "production"), ("side-project", "staging")].into_iter().enumerate() {
        let moment = at(26) + number as Micros * minute;
        let log = json!({"schemaType": "ModelInvocationLog", "timestamp": rfc3339(moment / SECOND * SECOND), "accountId": ACCOUNT,
            "identity": {"arn": format!("arn:aws:sts::{ACCOUNT}:assumed-role/nightly-batch/job")}, "region": "us-east-1", "requestId": w.id(), "operation": "Converse", "modelId": MODELS[0],
            "requestMetadata": {"agent": agent, "environment": environment}, "input": {"inputTokenCount": 900}, "output": {"outputTokenCount": 100}});
        w.world.invocations.push(Generated { event_time: moment, append_time: moment + 20 * SECOND, text: log.to_string() });
    }
    w.planted(at(27), "SHR-01", &batch, "one identity, two agents");
    w.planted(at(27), "SHR-02", &batch, "one identity, two environments");
    w.planted(at(27), "SHR-09", "side-project", "an agent that nobody registered");
    // A span that says so, so that the trace can be followed.
    let mut trace = Trace::new("side-project", &mut w.rng);
    let root = trace.root.clone();
    super::workplace::retrieval(w, &mut trace, &root, "side-project", AGENTS[3].data_sources[0], at(28), json!({}));
    trace.finish(w, "side-project", at(28), minute, json!({}));
}
