//! The story of a leaked key: exposed, found, checked, unlocked, used, persisted, cut off too late.

use rand::Rng;
use serde_json::json;

use super::{ACCOUNT, Caller, Generated, MODELS, Writer, access_key_id};
use crate::clock::{MINUTE, Micros, SECOND, rfc3339};

/// The acts of the leak, at fractions of the length: exposed, found, checked, unlocked, used, persisted, cut off too late.
pub fn leak(w: &mut Writer, start: Micros, length: Micros) {
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
