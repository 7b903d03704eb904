//! Which items of which frameworks the detections serve, which logs they need for it, and which of those logs arrive.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::decode::FORMATS;
use crate::detect::{Detection, Engine};
use crate::error::{At, Result};
use crate::shipped;

/// One framework, as `detections/frameworks.toml` states it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Framework {
    /// What a tag of it starts with, such as `attack.`.
    pub tag: String,
    pub name: String,
    pub version: String,
    pub source: String,
    /// The rest of the tag, and the item's title.
    pub items: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct File {
    frameworks: Vec<Framework>,
}

/// The frameworks that come with the program.
///
/// # Errors
/// A mistake in `detections/frameworks.toml`: a bug, which a test finds.
pub fn frameworks() -> Result<Vec<Framework>> {
    let file: File = toml::from_str(shipped::frameworks()).user_at(|| "detections/frameworks.toml".into())?;
    Ok(file.frameworks)
}

/// The tags of a detection that no framework knows.
pub fn unknown_tags<'d>(detection: &'d Detection, frameworks: &[Framework]) -> Vec<&'d str> {
    let known = |tag: &str| frameworks.iter().any(|framework| tag.strip_prefix(&framework.tag).is_some_and(|item| framework.items.contains_key(item)));
    detection.tags.iter().map(String::as_str).filter(|tag| !known(tag)).collect()
}

/// How a table is doing; from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    Never,
    /// Rows, but none on the last day that anything arrived.
    Stopped,
    /// Nobody looked.
    Unknown,
    /// Rows on that day.
    Arriving,
}

/// One item of one framework.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    pub framework: String,
    pub version: String,
    pub tag: String,
    pub title: String,
    pub detections: Vec<String>,
    /// Tables that those detections read.
    pub tables: BTreeSet<String>,
    /// Whether at least one of the detections can see: all that it reads arrives.
    pub seen: Arrival,
}

/// What one detection needs.
#[derive(Clone, Debug, Serialize)]
pub struct Needs {
    pub detection: String,
    pub title: String,
    pub level: &'static str,
    /// Tables and dimensions that it reads.
    pub tables: BTreeSet<String>,
    /// Log formats that fill those tables.
    pub formats: BTreeSet<String>,
    pub seen: Arrival,
}

/// The whole picture.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    pub items: Vec<Item>,
    pub detections: Vec<Needs>,
    pub arrivals: BTreeMap<String, Arrival>,
}

impl Coverage {
    /// Puts frameworks, detections and arrivals together. Tables that `arrivals` leaves out are unknown.
    pub fn of(engine: &Engine, frameworks: &[Framework], arrivals: BTreeMap<String, Arrival>) -> Self {
        let arrival = |table: &str| arrivals.get(table).copied().unwrap_or(Arrival::Unknown);
        let mut detections = Vec::new();
        let mut by_tag: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (detection, analysis) in engine.detections() {
            let tables: BTreeSet<String> = analysis.scans.iter().filter(|scan| !scan.is_lineage()).map(|scan| scan.table.clone()).collect();
            let fills =
                |format: &&&dyn crate::decode::Format| format.tables().iter().any(|table| tables.contains(table.name) && table.name != "exposure_reports");
            let mut formats: BTreeSet<String> = FORMATS.iter().filter(fills).map(|format| format.name().to_owned()).collect();
            // What keyfuse itself recognised in texts comes from the logs that carry texts, not from scanners.
            let own_hits = detection.sql.contains("reporter = 'keyfuse'");
            if own_hits {
                let carries =
                    |format: &&&dyn crate::decode::Format| !format.is_about_secrets() && format.tables().iter().any(|table| table.name == "exposure_reports");
                formats.extend(FORMATS.iter().filter(carries).map(|format| format.name().to_owned()));
            } else if tables.contains("exposure_reports") {
                formats.extend(FORMATS.iter().filter(|format| format.is_about_secrets()).map(|format| format.name().to_owned()));
            }
            for tag in &detection.tags {
                by_tag.entry(tag).or_default().push(detections.len());
            }
            // What its query cannot do without: alternatives of a UNION count as one, dimensions that only take away not at all.
            let streams = analysis.needs.met(&|scan| analysis.scans[scan].is_lineage() || arrival(&analysis.scans[scan].table) == Arrival::Arriving);
            let required = analysis.required.iter().map(|table| arrival(table));
            let seen = match streams {
                true => required.chain([Arrival::Arriving]).min(),
                false => analysis.scans.iter().filter(|scan| scan.is_stream()).map(|scan| arrival(&scan.table)).chain(required).min(),
            };
            let seen = seen.unwrap_or(Arrival::Unknown);
            detections.push(Needs { detection: detection.name.clone(), title: detection.title.clone(), level: detection.level.name(), tables, formats, seen });
        }
        let mut items = Vec::new();
        for framework in frameworks {
            for (item, title) in &framework.items {
                let tag = format!("{}{item}", framework.tag);
                let served: Vec<&Needs> = by_tag.get(tag.as_str()).into_iter().flatten().map(|number| &detections[*number]).collect();
                items.push(Item {
                    framework: framework.name.clone(),
                    version: framework.version.clone(),
                    title: title.clone(),
                    detections: served.iter().map(|needs| needs.detection.clone()).collect(),
                    tables: served.iter().flat_map(|needs| needs.tables.clone()).collect(),
                    seen: served.iter().map(|needs| needs.seen).max().unwrap_or(Arrival::Never),
                    tag,
                });
            }
        }
        Self { items, detections, arrivals }
    }

    /// An ATT&CK Navigator layer (format 4.5): the score of a technique is how many detections serve it.
    pub fn navigator_layer(&self) -> serde_json::Value {
        let techniques: Vec<serde_json::Value> = self
            .items
            .iter()
            .filter(|item| item.tag.starts_with("attack.") && !item.detections.is_empty())
            .map(|item| {
                let id = item.tag.trim_start_matches("attack.").to_uppercase();
                json!({"techniqueID": id, "score": item.detections.len(), "comment": item.detections.join(", "), "enabled": true})
            })
            .collect();
        let version = self.items.iter().find(|item| item.tag.starts_with("attack.")).map_or("", |item| &item.version);
        json!({
            "name": "keyfuse", "domain": "enterprise-attack", "versions": {"attack": version, "navigator": "5.1.0", "layer": "4.5"},
            "description": "Techniques that the keyfuse detections serve", "techniques": techniques,
            "gradient": {"colors": ["#ffffff", "#2e7d32"], "minValue": 0, "maxValue": 10},
        })
    }
}
