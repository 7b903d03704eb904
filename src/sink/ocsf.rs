//! OCSF Detection Finding: <https://schema.ocsf.io/1.4.0/classes/detection_finding>.

use serde_json::{Value, json};

use super::Parcel;
use crate::alert::Status;
use crate::detect::Level;

/// Detection Finding, of the category Findings.
const CLASS: i64 = 2004;
const CATEGORY: i64 = 2;

pub fn finding(parcel: &Parcel) -> Value {
    let (alert, document) = (&parcel.alert, &parcel.document);
    let severity = match Level::parse(&alert.level).unwrap_or_default() {
        Level::Informational => 1,
        Level::Low => 2,
        Level::Medium => 3,
        Level::High => 4,
        Level::Critical => 5,
    };
    let activity = match (alert.status, alert.revision) {
        (Status::Retracted, _) => (3, "Close"),
        (_, 1) => (1, "Create"),
        _ => (2, "Update"),
    };
    let status = if alert.status == Status::Retracted { (4, "Resolved") } else { (1, "New") };
    let milliseconds = |micros: i64| micros / 1000;
    let attacks: Vec<Value> = document["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter_map(|tag| tag.strip_prefix("attack.t"))
        .map(|technique| json!({"technique": {"uid": format!("T{}", technique.to_uppercase())}}))
        .collect();
    let observables: Vec<Value> = alert
        .alert_key
        .keys()
        .chain(alert.payload.keys())
        .filter_map(|name| Some((name, alert.column(name)?)))
        .filter_map(|(name, value)| {
            let kind = match name.as_str() {
                "source_ip" => 2,
                "user_name" => 4,
                "resource_arn" => 10,
                "credential" | "access_key_id" | "exposed_credential" => 19,
                _ => return None,
            };
            Some(json!({"name": name, "type_id": kind, "value": value}))
        })
        .collect();
    json!({
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "category_uid": CATEGORY,
        "category_name": "Findings",
        "activity_id": activity.0,
        "activity_name": activity.1,
        "type_uid": CLASS * 100 + activity.0,
        "time": milliseconds(alert.decided_at),
        "severity_id": severity,
        "severity": document["level"],
        "status_id": status.0,
        "status": status.1,
        "message": document["summary"],
        "finding_info": {
            "uid": alert.alert_id,
            "title": alert.title,
            "desc": document["summary"],
            "first_seen_time": milliseconds(alert.first_time),
            "last_seen_time": milliseconds(alert.last_time()),
            "created_time": milliseconds(alert.decided_at),
            "analytic": {"type_id": 1, "type": "Rule", "name": alert.detection, "uid": alert.detection_id},
            "attacks": attacks,
            "related_events": document["evidence"].as_array().into_iter().flatten().map(|id| json!({"uid": id})).collect::<Vec<_>>(),
        },
        "remediation": {"desc": document["what_to_do"]},
        "observables": observables,
        "evidences": [{"data": {"alert_key": alert.alert_key, "payload": alert.payload, "sql": document["more"]}}],
        "metadata": {
            "version": "1.4.0",
            "product": {"name": "keyfuse", "vendor_name": "keyfuse", "version": env!("CARGO_PKG_VERSION")},
            "correlation_uid": document["incident"],
            "uid": format!("{}:{}", alert.alert_id, alert.revision),
        },
    })
}
