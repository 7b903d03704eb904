//! Reports that a credential was seen where it should not be: scanners, GitHub, AWS Health, an operator's own list.
//!
//! Reports carry the secret itself more often than not. It is fingerprinted here and never leaves this file.

use serde::Deserialize;
use serde_json::Value;

use super::draft::{has, parse};
use super::{Format, Out, Reason, Record, Refusal, hashed_id};
use crate::clock::{Micros, parse_time};
use crate::credential;
use crate::table::exposure_reports as e;
use crate::table::{Table, flag};

pub struct Gitleaks;
pub struct TruffleHog;
pub struct GithubSecretScanning;
pub struct AwsHealth;
pub struct Operator;

/// What every report comes down to.
#[derive(Default)]
struct Report {
    reporter: &'static str,
    exposed_at: Option<Micros>,
    found_at: Option<Micros>,
    /// The secret, or a text that holds one. Fingerprinted, never kept.
    secret: Option<String>,
    /// An access key id or a fingerprint that the report names openly.
    credential: Option<String>,
    kind: Option<String>,
    account: Option<String>,
    location: Option<String>,
    commit: Option<String>,
    status: Option<&'static str>,
    event_id: Option<String>,
}

impl Report {
    fn append(self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let secret = self.secret.as_deref().map(str::trim).filter(|secret| !secret.is_empty());
        let named = self.credential.as_deref().map(str::trim).filter(|name| !name.is_empty());
        // The id is what the logs carry: prefer it, wherever in the report it stands.
        let key_id = named.into_iter().chain(secret).find_map(credential::access_key_id_in);
        let fingerprint = secret.filter(|s| !credential::is_access_key_id(s)).map(|s| out.fingerprinter.fingerprint(s));
        let name = key_id.map(str::to_owned).or_else(|| named.map(|n| credential::name_of(n, out.fingerprinter))).or(fingerprint.clone());
        let exposed_at = self.exposed_at.or(self.found_at).or(record.append_time);
        if exposed_at.is_none() {
            return Err(Refusal::new(Reason::MissingField, "no time: neither when it was exposed, found nor received"));
        }
        let mut flags = record.flags.clone();
        if name.is_none() {
            // GitHub never sends the secret. The row says that something leaked; no use can be joined to it.
            flag(&mut flags, "no_credential");
        }
        if self.exposed_at.is_none() {
            flag(&mut flags, "exposed_at_unknown");
        }
        let class = match (key_id, secret) {
            (Some(id), _) => credential::class(id),
            (None, Some(secret)) => credential::class(secret),
            (None, None) => "unknown",
        };
        let account = key_id.and_then(credential::account_of).or(self.account);
        let kind = key_id.map(|_| "aws_access_key_id".to_owned()).or_else(|| secret.and_then(credential::kind_of).map(|k| k.name.to_owned())).or(self.kind);
        // The report's own secret goes from the raw text by name; whatever else is in there by recognition.
        let scrubbed = match secret {
            Some(secret) if !credential::is_access_key_id(secret) => scrub(record.text, secret, fingerprint.as_deref().unwrap_or("[secret]")),
            _ => record.text.to_owned(),
        };
        let clean = |text: Option<String>| text.map(|text| credential::replace_secrets(&text, out.fingerprinter).into_owned());
        let (location, kind, commit, account) = (clean(self.location), clean(kind), clean(self.commit), clean(account));
        let event_id = clean(self.event_id).unwrap_or_else(|| hashed_id(&scrubbed));
        let scrubbed = credential::replace_secrets(&scrubbed, out.fingerprinter).into_owned();
        let raw = out.raw(&scrubbed);
        let rows = out.rows(&e::TABLE);
        rows.stamp(&record.place, exposed_at, record.append_time, &event_id, &mut flags);
        rows.text(e::CREDENTIAL, name.as_deref());
        rows.text(e::CREDENTIAL_CLASS, Some(class));
        rows.text(e::CREDENTIAL_KIND, kind.as_deref());
        rows.text(e::SECRET_FINGERPRINT, fingerprint.as_deref());
        rows.text(e::ACCOUNT_ID, account.as_deref());
        rows.text(e::REPORTER, Some(self.reporter));
        rows.text(e::LOCATION, location.as_deref());
        rows.text(e::COMMIT_ID, commit.as_deref());
        rows.text(e::STATUS, Some(self.status.unwrap_or("unknown")));
        rows.time(e::FOUND_AT, self.found_at.or(record.append_time));
        rows.text(e::RAW, raw);
        rows.end_row();
        Ok(())
    }
}

/// Replaces a secret in JSON text, as it stands and as JSON escapes it (also inside a longer match or context line).
fn scrub(text: &str, secret: &str, name: &str) -> String {
    let escaped = Value::from(secret).to_string();
    let escaped = &escaped[1..escaped.len() - 1];
    let mut scrubbed = text.replace(escaped, name);
    if escaped != secret {
        scrubbed = scrubbed.replace(secret, name);
    }
    // A multi-line secret (a private key) also stands there line by line.
    for line in secret.lines().filter(|line| line.len() >= 16).take(200) {
        scrubbed = scrubbed.replace(line, name);
    }
    scrubbed
}

fn text(value: &Value, path: &str) -> Option<String> {
    match value.pointer(path)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn time(value: &Value, path: &str) -> Option<Micros> {
    parse_time(&text(value, path)?)
}

const TABLES: &[&Table] = &[&e::TABLE];

impl Format for Gitleaks {
    fn name(&self) -> &str {
        "gitleaks"
    }

    fn doc(&self) -> &str {
        "gitleaks JSON report (array or lines)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn is_about_secrets(&self) -> bool {
        true
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"RuleID\"", "\"Secret\"", "\"File\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        if v.get("RuleID").is_none() {
            return Err(Refusal::new(Reason::MissingField, "no RuleID: not a gitleaks finding"));
        }
        let place = [text(&v, "/File"), text(&v, "/StartLine")].into_iter().flatten().collect::<Vec<_>>().join(":");
        Report {
            reporter: "gitleaks",
            exposed_at: time(&v, "/Date"),
            secret: text(&v, "/Secret").or_else(|| text(&v, "/Match")),
            credential: text(&v, "/Match").and_then(|m| credential::access_key_id_in(&m).map(str::to_owned)),
            kind: text(&v, "/RuleID"),
            location: text(&v, "/Link").or(Some(place).filter(|p| !p.is_empty())),
            commit: text(&v, "/Commit"),
            event_id: text(&v, "/Fingerprint").map(|f| format!("gitleaks:{f}")),
            ..Report::default()
        }
        .append(record, out)
    }
}

impl Format for TruffleHog {
    fn name(&self) -> &str {
        "trufflehog"
    }

    fn doc(&self) -> &str {
        "TruffleHog v3 JSON lines"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn is_about_secrets(&self) -> bool {
        true
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"SourceMetadata\"", "\"DetectorName\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(kind) = text(&v, "/DetectorName") else {
            return Err(Refusal::new(Reason::MissingField, "no DetectorName: not a TruffleHog finding"));
        };
        // SourceMetadata.Data holds one object named after the source (Git, Github, S3, …).
        let source = v.pointer("/SourceMetadata/Data").and_then(Value::as_object).and_then(|data| data.values().next()).cloned().unwrap_or_default();
        let place = ["/link", "/repository", "/bucket", "/file", "/line"].iter().filter_map(|path| text(&source, path)).collect::<Vec<_>>();
        // For key pairs RawV2 is id and secret in one; Raw is the id for AWS.
        let secret = text(&v, "/RawV2").or_else(|| text(&v, "/Raw"));
        Report {
            reporter: "trufflehog",
            exposed_at: time(&source, "/timestamp"),
            credential: text(&v, "/Raw").and_then(|raw| credential::access_key_id_in(&raw).map(str::to_owned)),
            secret,
            kind: Some(kind.to_lowercase()),
            account: text(&v, "/ExtraData/account"),
            location: if source.get("link").is_some() { place.first().cloned() } else { Some(place.join(":")).filter(|p| !p.is_empty()) },
            commit: text(&source, "/commit"),
            status: v.get("Verified").and_then(Value::as_bool).map(|verified| if verified { "active" } else { "unknown" }),
            ..Report::default()
        }
        .append(&Record { text: &without_raw_fields(&v), place: record.place.clone(), append_time: record.append_time, flags: record.flags.clone() }, out)
    }
}

/// TruffleHog repeats the secret in `Raw` and `RawV2`, joined differently: both go before the rest is looked at.
fn without_raw_fields(v: &Value) -> String {
    let mut clean = v.clone();
    for field in ["Raw", "RawV2"] {
        if let Some(value) = clean.get_mut(field)
            && value.as_str().is_some_and(|raw| !credential::is_access_key_id(raw))
        {
            *value = Value::from("[secret]");
        }
    }
    clean.to_string()
}

impl Format for GithubSecretScanning {
    fn name(&self) -> &str {
        "github_secret_scanning"
    }

    fn doc(&self) -> &str {
        "GitHub secret_scanning_alert webhook, or the REST alert"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn is_about_secrets(&self) -> bool {
        true
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"secret_type\"", "\"html_url\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let alert = v.get("alert").cloned().unwrap_or_else(|| v.clone());
        let Some(kind) = text(&alert, "/secret_type") else {
            return Err(Refusal::new(Reason::MissingField, "no secret_type: not a secret scanning alert"));
        };
        let repository = text(&v, "/repository/full_name").or_else(|| text(&alert, "/repository/full_name"));
        let number = text(&alert, "/number");
        let action = text(&v, "/action").unwrap_or_else(|| "alert".to_owned());
        let state = text(&alert, "/validity").or_else(|| text(&alert, "/state"));
        Report {
            reporter: "github",
            exposed_at: time(&alert, "/created_at"),
            // Only the REST alert carries it.
            secret: text(&alert, "/secret"),
            kind: Some(kind),
            location: text(&alert, "/html_url"),
            commit: text(&alert, "/first_location_detected/commit_sha"),
            status: match state.as_deref() {
                Some("active") => Some("active"),
                Some("inactive" | "resolved") => Some("inactive"),
                _ => None,
            },
            event_id: repository.zip(number).map(|(repository, number)| format!("github:{repository}#{number}:{action}")),
            ..Report::default()
        }
        .append(record, out)
    }
}

impl Format for AwsHealth {
    fn name(&self) -> &str {
        "aws_health"
    }

    fn doc(&self) -> &str {
        "AWS Health AWS_RISK_CREDENTIALS_EXPOSED through EventBridge"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn is_about_secrets(&self) -> bool {
        true
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"eventTypeCode\"", "AWS_RISK_CREDENTIALS_EXPOSED"])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        if text(&v, "/eventTypeCode").is_none_or(|code| !code.starts_with("AWS_RISK_CREDENTIALS_EXPOSED")) {
            return Err(Refusal::new(Reason::OtherEvent, "an AWS Health event about something else"));
        }
        let entities: Vec<String> =
            v.get("affectedEntities").and_then(Value::as_array).into_iter().flatten().filter_map(|entity| text(entity, "/entityValue")).collect();
        if entities.is_empty() {
            return Err(Refusal::new(Reason::MissingField, "no affectedEntities: the exposed key is not named"));
        }
        let arn = text(&v, "/eventArn").unwrap_or_else(|| hashed_id(record.text));
        for entity in entities {
            Report {
                reporter: "aws_health",
                exposed_at: time(&v, "/startTime"),
                found_at: time(&v, "/lastUpdatedTime"),
                event_id: Some(format!("{arn}:{entity}")),
                credential: Some(entity),
                account: text(&v, "/affectedAccount"),
                location: Some("reported by AWS Health".to_owned()),
                status: Some("active"),
                ..Report::default()
            }
            .append(record, out)?;
        }
        Ok(())
    }
}

/// The operator's own statement, as JSON or as CSV with these column names.
#[derive(Deserialize)]
struct Statement {
    credential: String,
    #[serde(default)]
    exposed_at: Option<String>,
    #[serde(default)]
    found_at: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    location: Option<String>,
    #[serde(default)]
    account_id: Option<String>,
    #[serde(default)]
    status: Option<String>,
}

impl Format for Operator {
    fn name(&self) -> &str {
        "exposure_report"
    }

    fn doc(&self) -> &str {
        "Your own list: JSON or CSV with credential, exposed_at, kind, location, account_id, status"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn is_about_secrets(&self) -> bool {
        true
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"credential\"", "\"exposed_at\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let statement: Statement = serde_json::from_str(record.text).map_err(|error| Refusal::new(Reason::BadRecord, error.to_string()))?;
        let openly = credential::is_access_key_id(&statement.credential) || statement.credential.starts_with("fp:");
        Report {
            reporter: "operator",
            exposed_at: statement.exposed_at.as_deref().and_then(parse_time),
            found_at: statement.found_at.as_deref().and_then(parse_time),
            secret: (!openly).then(|| statement.credential.clone()),
            credential: openly.then_some(statement.credential),
            kind: statement.kind,
            account: statement.account_id,
            location: statement.location,
            status: match statement.status.as_deref() {
                Some("active") => Some("active"),
                Some("inactive") => Some("inactive"),
                _ => None,
            },
            ..Report::default()
        }
        .append(record, out)
    }
}

/// Whether a file starts with the operator's CSV header.
pub fn is_csv_header(bytes: &[u8]) -> bool {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let names: Vec<&str> = line.split(',').map(|name| name.trim().trim_matches('"')).collect();
    names.contains(&"credential") && names.contains(&"exposed_at")
}
