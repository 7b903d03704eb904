//! AWS CloudTrail records, versions 1.0 to 1.11, from any of their envelopes.
//!
//! <https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html>

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::draft::{Draft, first, scalar};
use super::field::{Field, Object};
use super::{Format, Out, Reason, Record, Refusal, hashed_id};
use crate::table::cloudtrail as c;
use crate::table::{Table, exposure_reports, flag, retrievals, tool_calls};

pub struct CloudTrail;

const TABLES: &[&Table] = &[&c::TABLE, &retrievals::TABLE, &tool_calls::TABLE, &exposure_reports::TABLE];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    #[serde(borrow, default)]
    event_time: Field<'a>,
    #[serde(borrow, default, rename = "@timestamp")]
    timestamp: Field<'a>,
    #[serde(borrow, default)]
    event_source: Field<'a>,
    #[serde(borrow, default)]
    event_name: Field<'a>,
    #[serde(borrow, default)]
    aws_region: Field<'a>,
    #[serde(borrow, default, rename = "sourceIPAddress")]
    source_ip_address: Field<'a>,
    #[serde(borrow, default)]
    user_agent: Field<'a>,
    #[serde(borrow, default)]
    error_code: Field<'a>,
    #[serde(borrow, default)]
    error_message: Field<'a>,
    #[serde(borrow, default, rename = "requestID")]
    request_id: Field<'a>,
    #[serde(borrow, default, rename = "eventID")]
    event_id: Field<'a>,
    #[serde(borrow, default, rename = "sharedEventID")]
    shared_event_id: Field<'a>,
    #[serde(borrow, default)]
    read_only: Field<'a>,
    #[serde(borrow, default)]
    event_type: Field<'a>,
    #[serde(borrow, default)]
    event_category: Field<'a>,
    #[serde(borrow, default)]
    recipient_account_id: Field<'a>,
    #[serde(borrow, default)]
    vpc_endpoint_id: Field<'a>,
    #[serde(borrow, default)]
    session_credential_from_console: Field<'a>,
    #[serde(borrow, default)]
    user_identity: Object<UserIdentity<'a>>,
    #[serde(borrow, default)]
    tls_details: Object<TlsDetails<'a>>,
    #[serde(borrow, default)]
    request_parameters: Object<RequestParameters<'a>>,
    #[serde(borrow, default)]
    response_elements: Object<ResponseElements<'a>>,
    #[serde(borrow, default)]
    additional_event_data: Object<AdditionalEventData<'a>>,
    #[serde(borrow, default)]
    resources: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct UserIdentity<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default)]
    principal_id: Field<'a>,
    #[serde(borrow, default)]
    arn: Field<'a>,
    #[serde(borrow, default)]
    account_id: Field<'a>,
    #[serde(borrow, default)]
    access_key_id: Field<'a>,
    #[serde(borrow, default)]
    user_name: Field<'a>,
    #[serde(borrow, default)]
    invoked_by: Field<'a>,
    #[serde(borrow, default)]
    identity_provider: Field<'a>,
    #[serde(borrow, default)]
    session_context: Object<SessionContext<'a>>,
    #[serde(borrow, default)]
    on_behalf_of: Object<OnBehalfOf<'a>>,
    #[serde(borrow, default)]
    in_scope_of: Object<InScopeOf<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SessionContext<'a> {
    #[serde(borrow, default)]
    session_issuer: Object<SessionIssuer<'a>>,
    #[serde(borrow, default)]
    attributes: Object<Attributes<'a>>,
    #[serde(borrow, default)]
    source_identity: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SessionIssuer<'a> {
    #[serde(borrow, default)]
    arn: Field<'a>,
    #[serde(borrow, default)]
    user_name: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Attributes<'a> {
    #[serde(borrow, default)]
    creation_date: Field<'a>,
    #[serde(borrow, default)]
    mfa_authenticated: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct OnBehalfOf<'a> {
    #[serde(borrow, default)]
    user_id: Field<'a>,
    #[serde(borrow, default)]
    identity_store_arn: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct InScopeOf<'a> {
    #[serde(borrow, default)]
    credentials_issued_to: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct TlsDetails<'a> {
    #[serde(borrow, default)]
    tls_version: Field<'a>,
}

/// What detections need of `requestParameters`; the rest stays reachable through `raw`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RequestParameters<'a> {
    #[serde(borrow, default)]
    model_id: Field<'a>,
    #[serde(borrow, default)]
    model: Field<'a>,
    #[serde(borrow, default)]
    user_name: Field<'a>,
    #[serde(borrow, default)]
    role_arn: Field<'a>,
    #[serde(borrow, default)]
    policy_arn: Field<'a>,
    #[serde(borrow, default)]
    policy_name: Field<'a>,
    #[serde(borrow, default)]
    access_key_id: Field<'a>,
    #[serde(borrow, default)]
    status: Field<'a>,
    #[serde(borrow, default)]
    knowledge_base_id: Field<'a>,
    #[serde(borrow, default)]
    agent_id: Field<'a>,
    #[serde(borrow, default)]
    bucket_name: Field<'a>,
    #[serde(borrow, default)]
    key: Field<'a>,
    #[serde(borrow, default)]
    secret_id: Field<'a>,
    #[serde(borrow, default)]
    service_name: Field<'a>,
    #[serde(borrow, default)]
    credential_age_days: Field<'a>,
    #[serde(borrow, default)]
    call_with_bearer_token: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ResponseElements<'a> {
    #[serde(borrow, default)]
    credentials: Object<Minted<'a>>,
    #[serde(borrow, default)]
    access_key: Object<Minted<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Minted<'a> {
    #[serde(borrow, default)]
    access_key_id: Field<'a>,
    #[serde(borrow, default)]
    user_name: Field<'a>,
    #[serde(borrow, default)]
    status: Field<'a>,
    #[serde(borrow, default)]
    expiration: Field<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct AdditionalEventData<'a> {
    #[serde(borrow, default)]
    inference_region: Field<'a>,
    #[serde(borrow, default)]
    input_tokens: Field<'a>,
    #[serde(borrow, default)]
    output_tokens: Field<'a>,
    #[serde(borrow, default)]
    call_with_bearer_token: Field<'a>,
    #[serde(borrow, default)]
    bytes_transferred_in: Field<'a>,
    #[serde(borrow, default)]
    bytes_transferred_out: Field<'a>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default, alias = "ARN")]
    arn: Field<'a>,
}

/// Objects that a wrong type at their place would make unreadable as a whole.
const OBJECTS: &[&str] = &[
    "userIdentity",
    "sessionContext",
    "sessionIssuer",
    "attributes",
    "tlsDetails",
    "onBehalfOf",
    "inScopeOf",
    "requestParameters",
    "responseElements",
    "additionalEventData",
    "credentials",
    "accessKey",
];

impl Format for CloudTrail {
    fn name(&self) -> &str {
        "cloudtrail"
    }

    fn doc(&self) -> &str {
        "AWS CloudTrail: S3 delivery files, EventBridge, CloudWatch Logs subscriptions, LookupEvents, bare records"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn objects(&self) -> &[&str] {
        OBJECTS
    }

    fn recognises(&self, text: &str) -> bool {
        let has = |mark: &str| memchr::memmem::find(text.as_bytes(), mark.as_bytes()).is_some();
        has("\"eventVersion\"") || (has("\"eventSource\"") && has("\"eventName\""))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let event: Event = serde_json::from_str(record.text).map_err(|error| Refusal::new(Reason::BadRecord, error.to_string()))?;
        let mut flags = record.flags.clone();
        let category = event.event_category.text();
        let source = event.event_source.text();
        if source.is_some_and(|source| source.starts_with("aws:")) {
            return Err(Refusal::new(Reason::OtherEvent, "a storage notification, not an API call: eventSource starts with aws:"));
        }
        let is_api_call = source.is_some() && event.event_name.text().is_some();
        if !is_api_call && !matches!(category, Some("Insight" | "Aggregated")) {
            return Err(Refusal::new(Reason::MissingField, "neither eventSource with eventName nor an Insight or Aggregated event"));
        }
        let event_time = event.event_time.time().or_else(|| event.timestamp.time());
        if event_time.is_none() {
            if record.append_time.is_none() {
                return Err(Refusal::new(Reason::MissingField, "no readable eventTime, and nothing tells when the record arrived"));
            }
            flag(&mut flags, "bad_time:eventTime");
        }
        let request = event.request_parameters.0.unwrap_or_default();
        let response = event.response_elements.0.unwrap_or_default();
        let extra = event.additional_event_data.0.unwrap_or_default();
        let session_key = response.credentials.0.unwrap_or_default();
        let long_key = response.access_key.0.unwrap_or_default();
        let identity = event.user_identity.0.unwrap_or_default();
        let session = identity.session_context.0.unwrap_or_default();
        let issuer = session.session_issuer.0.unwrap_or_default();
        let attributes = session.attributes.0.unwrap_or_default();

        let source_ip = event.source_ip_address.scalar("sourceIPAddress", &mut flags);
        let user_agent = event.user_agent.scalar("userAgent", &mut flags);
        let error_code = event.error_code.scalar("errorCode", &mut flags);
        let error_message = event.error_message.scalar("errorMessage", &mut flags);
        let region = event.aws_region.scalar("awsRegion", &mut flags);
        let request_id = event.request_id.scalar("requestID", &mut flags);
        let access_key_id = identity.access_key_id.scalar("accessKeyId", &mut flags);
        let model = request.model_id.scalar("modelId", &mut flags).or_else(|| request.model.scalar("model", &mut flags));
        let event_name = event.event_name.text();
        let about_keys = matches!(event_name, Some("CreateAccessKey" | "UpdateAccessKey" | "DeleteAccessKey"));
        let resource = resource_arn(event.resources, &request);
        let event_id = match event.event_id.text() {
            Some(id) => Cow::Borrowed(id),
            None => Cow::Owned(hashed_id(record.text)),
        };
        let (ip, service) = match source_ip.as_deref() {
            Some(text) if looks_like_address(text) => (Some(text), None),
            other => (None, other),
        };
        let who = WhoActed {
            kind: identity.kind.text(),
            arn: identity.arn.text(),
            issuer: issuer.arn.text(),
            principal: identity.principal_id.text(),
            user_name: identity.user_name.text(),
            account: identity.account_id.text(),
            service: identity.invoked_by.text(),
            provider: identity.identity_provider.text(),
            on_behalf_of: identity.on_behalf_of.0.as_ref().and_then(|o| o.user_id.text()),
            store: identity.on_behalf_of.0.as_ref().and_then(|o| o.identity_store_arn.text()),
        };

        // AgentCore's gateway hides the caller in token claims and the error in the response.
        let gateway = Gateway::of(source, event_name, record.text);
        let identity_key = gateway.as_ref().and_then(|gateway| gateway.caller.clone().map(Cow::Owned)).or_else(|| who.identity());
        let outcome = match gateway.as_ref().and_then(|gateway| gateway.failure) {
            Some(failure) => failure,
            None => outcome(error_code.as_deref()),
        };
        let network = ip.map(|ip| out.networks.of(ip)).unwrap_or_default();
        if let Some(gateway) = gateway {
            let mut d = gateway.tool_call();
            d.event_time = event_time;
            d.event_id = Some(event_id.clone().into_owned());
            d.set("source_ip", ip.map(str::to_owned)).set("request_id", request_id.as_deref().map(str::to_owned)).set("outcome", Some(outcome));
            d.finish(record, out)?;
        }
        if matches!(event_name, Some("Retrieve" | "RetrieveAndGenerate" | "RetrieveAndGenerateStream" | "AgenticRetrieveStream" | "GetDocumentContent")) {
            // A knowledge base's data event is a retrieval too: what was asked and found is not in it.
            let mut d = Draft::new(&retrievals::TABLE);
            d.event_time = event_time;
            d.event_id = Some(event_id.clone().into_owned());
            d.set("store", Some("bedrock_kb")).set("operation", event_name.map(str::to_owned)).set("outcome", Some(outcome));
            d.set("data_source", resource.as_deref().map(|arn| arn.rsplit('/').next().unwrap_or(arn).to_owned()));
            d.set("identity", identity_key.as_deref().map(str::to_owned)).set("credential", access_key_id.as_deref().map(str::to_owned));
            d.set("account_id", identity.account_id.text().map(str::to_owned)).set("source_ip", ip.map(str::to_owned));
            d.set("request_id", request_id.as_deref().map(str::to_owned)).set("error_code", error_code.as_deref().map(str::to_owned));
            d.finish(record, out)?;
        }

        let raw = out.raw(record.text);
        let rows = out.rows(&c::TABLE);
        rows.stamp(&record.place, event_time, record.append_time, &event_id, &mut flags);
        rows.text(c::EVENT_SOURCE, source);
        rows.text(c::EVENT_NAME, event_name);
        rows.text(c::AWS_REGION, region.as_deref());
        rows.text(c::ACCOUNT_ID, identity.account_id.text().or(event.recipient_account_id.text()));
        rows.text(c::RECIPIENT_ACCOUNT_ID, event.recipient_account_id.text());
        rows.text(c::IDENTITY_TYPE, identity.kind.text());
        rows.text(c::ACCESS_KEY_ID, access_key_id.as_deref());
        rows.text(c::PRINCIPAL_ID, identity.principal_id.text());
        rows.text(c::PRINCIPAL_ARN, identity.arn.text());
        rows.text(c::IDENTITY, identity_key.as_deref());
        rows.text(c::USER_NAME, identity.user_name.text().or(issuer.user_name.text()));
        rows.text(c::SESSION_ISSUER_ARN, issuer.arn.text());
        rows.text(c::SESSION_NAME, session_name(identity.kind.text(), identity.arn.text()));
        rows.time(c::SESSION_CREATED_AT, attributes.creation_date.time());
        rows.text(c::SOURCE_IDENTITY, session.source_identity.text());
        rows.text(c::ON_BEHALF_OF, who.on_behalf_of);
        rows.text(c::WORKLOAD, identity.in_scope_of.0.as_ref().and_then(|scope| scope.credentials_issued_to.text()));
        rows.text(c::INVOKED_BY, identity.invoked_by.text());
        rows.bool(c::MFA, attributes.mfa_authenticated.bool());
        rows.bool(c::CONSOLE, event.session_credential_from_console.bool());
        rows.bool(c::BEARER_TOKEN, extra.call_with_bearer_token.bool().or(request.call_with_bearer_token.bool()));
        rows.text(c::SOURCE_IP, ip);
        rows.text(c::SOURCE_NETWORK, network.name.as_deref());
        rows.text(c::SOURCE_COUNTRY, network.country.as_deref());
        rows.text(c::SOURCE_SERVICE, service);
        rows.text(c::USER_AGENT, user_agent.as_deref());
        rows.text(c::ERROR_CODE, error_code.as_deref());
        rows.text(c::ERROR_MESSAGE, error_message.as_deref());
        rows.text(c::OUTCOME, Some(outcome));
        rows.text(c::REQUEST_ID, request_id.as_deref());
        rows.text(c::SHARED_EVENT_ID, event.shared_event_id.text());
        rows.bool(c::READ_ONLY, event.read_only.bool());
        rows.text(c::EVENT_TYPE, event.event_type.text());
        rows.text(c::EVENT_CATEGORY, category);
        rows.text(c::VPC_ENDPOINT_ID, event.vpc_endpoint_id.text());
        rows.text(c::TLS_VERSION, event.tls_details.0.as_ref().and_then(|tls| tls.tls_version.text()));
        rows.text(c::MODEL_ID, model.as_deref());
        rows.text(c::INFERENCE_REGION, extra.inference_region.text());
        rows.int(c::INPUT_TOKENS, extra.input_tokens.int());
        rows.int(c::OUTPUT_TOKENS, extra.output_tokens.int());
        rows.int(c::BYTES_IN, extra.bytes_transferred_in.int());
        rows.int(c::BYTES_OUT, extra.bytes_transferred_out.int());
        rows.text(c::RESOURCE_ARN, resource.as_deref());
        rows.text(c::OBJECT_KEY, request.key.text());
        rows.text(c::SECRET_NAME, request.secret_id.text());
        rows.text(c::TARGET_SERVICE, request.service_name.text());
        rows.int(c::CREDENTIAL_AGE_DAYS, request.credential_age_days.int());
        rows.text(c::POLICY_ARN, request.policy_arn.text());
        rows.text(c::POLICY_NAME, request.policy_name.text());
        rows.text(c::TARGET_USER_NAME, request.user_name.text().or(long_key.user_name.text()));
        rows.text(c::TARGET_ROLE_ARN, request.role_arn.text());
        if about_keys {
            rows.text(c::TARGET_ACCESS_KEY_ID, request.access_key_id.text().or(long_key.access_key_id.text()));
            rows.text(c::TARGET_KEY_STATUS, request.status.text().or(long_key.status.text()));
        }
        rows.text(c::MINTED_ACCESS_KEY_ID, session_key.access_key_id.text());
        rows.time(c::MINTED_EXPIRES_AT, session_key.expiration.time());
        rows.text(c::RAW, raw);
        rows.end_row();
        Ok(())
    }
}

/// What an AgentCore gateway record says beside its envelope.
struct Gateway {
    record: serde_json::Value,
    caller: Option<String>,
    failure: Option<&'static str>,
}

impl Gateway {
    fn of(source: Option<&str>, name: Option<&str>, text: &str) -> Option<Self> {
        if source != Some("bedrock-agentcore.amazonaws.com") || !matches!(name, Some("InvokeGateway" | "InvokeMcp")) {
            return None;
        }
        let record: serde_json::Value = serde_json::from_str(text).ok()?;
        let caller = record.pointer("/additionalEventData/jwt/claims/sub").and_then(scalar).map(Cow::into_owned);
        let status = record.pointer("/responseElements/statusCode").and_then(super::draft::int);
        let error = first(&record, &["/responseElements/body/error/message", "/responseElements/body/error"]).and_then(scalar);
        let failure = Some(super::otlp::outcome(error.as_deref(), status, false)).filter(|outcome| *outcome != "success");
        Some(Self { record, caller, failure })
    }

    /// The same call as a row of `tool_calls`; contents are redacted in the log.
    fn tool_call(&self) -> Draft<'_> {
        let v = &self.record;
        let mut d = Draft::new(&tool_calls::TABLE);
        let server =
            first(v, &["/requestParameters/gatewayIdentifier", "/requestParameters/gatewayId", "/resources/0/ARN", "/resources/0/arn"]).and_then(scalar);
        d.set("server", server.map(|server| server.rsplit('/').next().unwrap_or(&server).to_owned()));
        d.set_json("method", v.pointer("/requestParameters/body/method")).set_json("call_id", v.pointer("/requestParameters/body/id"));
        d.set_json("tool", v.pointer("/requestParameters/body/params/name"))
            .set_json("error_code", first(v, &["/responseElements/body/error/code", "/responseElements/statusCode"]));
        d.set_json("error_message", v.pointer("/responseElements/body/error/message")).set_json("account_id", v.get("recipientAccountId"));
        d.set_json("identity", v.pointer("/additionalEventData/jwt/claims/sub")).set_json("user_id", v.pointer("/additionalEventData/jwt/claims/act/sub"));
        d
    }
}

/// An address in the log's own spelling. Anonymised logs carry leading zeros that no strict parser takes.
fn looks_like_address(text: &str) -> bool {
    let dotted = text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.contains('.');
    let colons = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.') && text.contains(':');
    dotted || colons
}

/// One of `success`, `denied`, `throttled`, `invalid`, `other`, from the many spellings of an error code.
fn outcome(error_code: Option<&str>) -> &'static str {
    let Some(code) = error_code else { return "success" };
    let has = |words: &[&str]| words.iter().any(|word| code.contains(word));
    if has(&[
        "AccessDenied",
        "Unauthorized",
        "NotAuthorized",
        "Forbidden",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "UnrecognizedClient",
        "InvalidAccessKeyId",
        "AuthFailure",
    ]) {
        "denied"
    } else if has(&["Throttl", "TooManyRequests", "RequestLimitExceeded", "SlowDown", "RateExceeded"]) {
        "throttled"
    } else if has(&["Validation", "Invalid", "Malformed", "NotFound", "NoSuch", "Missing", "AlreadyExists", "EntityAlreadyExists", "BadRequest"]) {
        "invalid"
    } else {
        "other"
    }
}

struct WhoActed<'a> {
    kind: Option<&'a str>,
    arn: Option<&'a str>,
    issuer: Option<&'a str>,
    principal: Option<&'a str>,
    user_name: Option<&'a str>,
    account: Option<&'a str>,
    service: Option<&'a str>,
    provider: Option<&'a str>,
    on_behalf_of: Option<&'a str>,
    store: Option<&'a str>,
}

impl<'a> WhoActed<'a> {
    /// Who acted, the same across sessions of one identity.
    fn identity(&self) -> Option<Cow<'a, str>> {
        let pair = |a: Option<&str>, b: Option<&str>| match (a, b) {
            (Some(a), Some(b)) => Some(Cow::Owned(format!("{a}/{b}"))),
            (a, b) => a.or(b).map(|one| Cow::Owned(one.to_owned())),
        };
        match self.kind {
            Some("AssumedRole" | "Role") => self.issuer.or(self.arn).map(Cow::Borrowed),
            Some("FederatedUser") => match (self.issuer, self.arn.and_then(|arn| arn.rsplit('/').next())) {
                (None, _) => self.arn.map(Cow::Borrowed),
                (issuer, name) => pair(issuer, name),
            },
            Some("WebIdentityUser" | "SAMLUser") => pair(self.provider, self.user_name.or(self.principal)),
            Some("IdentityCenterUser") => pair(self.store, self.on_behalf_of.or(self.principal)),
            Some("AWSService") => self.service.map(Cow::Borrowed),
            Some("AWSAccount") => pair(self.account, self.principal.filter(|p| !p.is_empty())),
            _ => self.arn.or(self.principal).or(self.service).map(Cow::Borrowed),
        }
    }
}

fn session_name<'a>(kind: Option<&str>, arn: Option<&'a str>) -> Option<&'a str> {
    match kind {
        Some("AssumedRole") => arn?.rsplit_once('/').map(|(_, name)| name),
        _ => None,
    }
}

fn resource_arn<'a>(resources: Option<&'a RawValue>, request: &'a RequestParameters) -> Option<Cow<'a, str>> {
    let listed = resources
        .filter(|list| list.get().starts_with('['))
        .and_then(|list| serde_json::from_str::<Vec<Resource>>(list.get()).ok())
        .and_then(|list| list.into_iter().find_map(|resource| resource.arn.text().map(|arn| Cow::Owned(arn.to_owned()))));
    listed.or_else(|| {
        let named = request.knowledge_base_id.text().or(request.agent_id.text()).or(request.bucket_name.text());
        named.map(Cow::Borrowed)
    })
}
