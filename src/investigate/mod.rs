//! One page about one key, identity, agent, trace or alert: what it did, where it came from, what it reached, what cannot be seen.
//!
//! Every part is one question to the SQL door, over the same rows as everything else; a part that cannot be asked says why.

mod graph;
mod html;

use std::collections::{BTreeSet, HashMap};

use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::clock::{Micros, parse_time, rfc3339, spoken};
use crate::detect::Level;
use crate::error::{Error, Result};
use crate::query::{Answer, Door};
use crate::text::{is_plain, visible};

pub use html::page;

/// Lines of a part that are shown from its beginning, and as many from its end; how many are left out between is said.
const SHOWN: usize = 200;
/// The part that is better empty.
const GAPS: &str = "Gaps in sight";
/// Credentials that a page is about, beside the one that was asked for: each is named in every question.
const DESCENDANTS: usize = 400;

/// What a name turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Credential,
    Identity,
    Agent,
    Trace,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Credential => "credential",
            Kind::Identity => "identity",
            Kind::Agent => "agent",
            Kind::Trace => "trace",
        }
    }

    /// Its column in `activity`.
    fn column(self) -> &'static str {
        match self {
            Kind::Credential => "credential",
            Kind::Identity => "identity",
            Kind::Agent => "agent_id",
            Kind::Trace => "trace_id",
        }
    }
}

/// The answer to one question, as text.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<String>>>,
    /// Rows that are left out of the middle; where, says [`Sheet::gap`].
    pub left_out: usize,
    /// Why there is no answer.
    pub trouble: Option<String>,
}

impl Sheet {
    /// A cell by the name of its column.
    pub fn cell(&self, row: usize, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(index)?.as_deref()
    }

    pub fn time(&self, row: usize, column: &str) -> Option<Micros> {
        self.cell(row, column).and_then(parse_time)
    }

    pub fn number(&self, row: usize, column: &str) -> i64 {
        self.cell(row, column).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The row before which rows are left out, if any are.
    pub fn gap(&self) -> Option<usize> {
        (self.left_out > 0).then_some(SHOWN)
    }

    /// An answer, or no more of it than so many rows of its beginning and of its end: what came first, and how things stand.
    fn of(answer: &Result<Answer>, shown: usize) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Sheet { trouble: Some(error.to_string()), ..Sheet::default() },
        };
        let options = FormatOptions::default().with_display_error(true).with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%SZ"));
        let between = shown..answer.rows().saturating_sub(shown);
        let mut sheet =
            Sheet { columns: answer.schema.fields().iter().map(|field| field.name().clone()).collect(), left_out: between.len(), ..Sheet::default() };
        let mut before = 0;
        for batch in &answer.batches {
            let columns: Vec<_> = batch.columns().iter().filter_map(|column| Some((column, ArrayFormatter::try_new(column, &options).ok()?))).collect();
            for row in (0..batch.num_rows()).filter(|row| !between.contains(&(before + row))) {
                sheet.rows.push(columns.iter().map(|(column, formatter)| (!column.is_null(row)).then(|| formatter.value(row).to_string())).collect());
            }
            before += batch.num_rows();
        }
        sheet
    }
}

/// One part of the page.
#[derive(Clone, Debug)]
pub struct Part {
    pub title: &'static str,
    /// What it shows, and what it does not.
    pub note: &'static str,
    pub sheet: Sheet,
    /// The question, to be asked again and further.
    pub sql: String,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Dossier {
    pub kind: Kind,
    pub name: String,
    /// The alert that was asked for, if one was.
    pub alert_id: Option<String>,
    /// One sentence each, the most pressing first.
    pub verdict: Vec<String>,
    pub facts: Vec<(&'static str, String)>,
    pub exposed_at: Option<Micros>,
    /// How many alerts of each level name it, the worst level first.
    pub levels: Vec<(Level, i64)>,
    pub alerts: Part,
    pub timeline: Part,
    pub lineage: Part,
    /// Agents and traces: who called whom.
    pub delegation: Option<Part>,
    pub parts: Vec<Part>,
    /// Commands ready to paste; nothing of it was run.
    pub steps: Vec<(String, String)>,
}

impl Dossier {
    /// The worst level of all alerts.
    pub fn worst(&self) -> Option<Level> {
        self.levels.first().map(|(level, _)| *level)
    }
}

/// A moment as people read it: `2026-05-01 10:09:40`.
fn moment(time: Micros) -> String {
    rfc3339(time).replace('T', " ").trim_end_matches('Z').to_owned()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn ask(door: &Door, sql: &str) -> Sheet {
    Sheet::of(&door.ask(sql).await, usize::MAX)
}

/// What a name is: an alert's id, or whatever the rows know it as.
async fn recognise(door: &Door, name: &str) -> Result<(Kind, String, Option<String>)> {
    let alert = ask(door, &format!("SELECT alert_key, payload FROM alerts WHERE alert_id = {}", quoted(name))).await;
    if !alert.rows.is_empty() {
        // The most telling name that it has anywhere: a key before its owner.
        let said: Vec<serde_json::Value> =
            ["payload", "alert_key"].map(|column| serde_json::from_str(alert.cell(0, column).unwrap_or_default()).unwrap_or_default()).into();
        let kinds = [
            ("exposed_credential", Kind::Credential),
            ("credential", Kind::Credential),
            ("access_key_id", Kind::Credential),
            ("identity", Kind::Identity),
            ("agent_id", Kind::Agent),
            ("trace_id", Kind::Trace),
        ];
        if let Some((value, kind)) = kinds.iter().find_map(|(column, kind)| Some((said.iter().find_map(|values| values[column].as_str())?, *kind))) {
            return Ok((kind, value.to_owned(), Some(name.to_owned())));
        }
        return Err(Error::user(format!("alert {name} names no credential, identity, agent or trace: ask `keyfuse explain {name}` what it rests on")));
    }
    for kind in [Kind::Credential, Kind::Identity, Kind::Agent, Kind::Trace] {
        let acts = ask(door, &format!("SELECT 1 FROM activity WHERE {} = {} LIMIT 1", kind.column(), quoted(name))).await;
        if let Some(trouble) = acts.trouble {
            return Err(Error::environment(trouble));
        }
        if !acts.rows.is_empty() {
            return Ok((kind, name.to_owned(), None));
        }
    }
    let known =
        ask(door, &format!("SELECT 1 FROM exposures WHERE credential = {0} UNION ALL SELECT 1 FROM key_state WHERE credential = {0} LIMIT 1", quoted(name)))
            .await;
    if !known.rows.is_empty() {
        return Ok((Kind::Credential, name.to_owned(), None));
    }
    let like = ask(
        door,
        &format!(
            "SELECT DISTINCT name FROM (SELECT credential AS name FROM activity UNION ALL SELECT identity FROM activity UNION ALL SELECT agent_id FROM activity) WHERE strpos(name, {}) > 0 LIMIT 5",
            quoted(&name.chars().take(12).collect::<String>())
        ),
    )
    .await;
    let like: Vec<_> = like.rows.iter().filter_map(|row| row.first()?.as_deref()).map(visible).collect();
    let hint = if like.is_empty() { String::new() } else { format!(" Names like it: {}.", like.join(", ")) };
    Err(Error::user(format!(
        "no row names `{name}` as credential, identity, agent, trace or alert: it did nothing that these logs show, or they do not show it (`keyfuse doctor`).{hint}"
    )))
}

/// Calls between agents in the traces with such rows. Between two agents there may be steps of models and tools: they are climbed,
/// so far that spans which name each other in a circle come to an end.
fn delegation(who: &str) -> String {
    format!(
        "WITH RECURSIVE traces AS (SELECT DISTINCT trace_id FROM agent_spans WHERE {who} AND trace_id IS NOT NULL),
         spans AS (
           SELECT trace_id, span_id, parent_span_id, coalesce(agent_id, agent_name, workflow, kind) AS agent, identity, event_time FROM agent_spans WHERE trace_id IN (SELECT trace_id FROM traces)
           UNION ALL SELECT trace_id, span_id, parent_span_id, NULL AS agent, NULL AS identity, NULL AS event_time FROM tool_calls WHERE trace_id IN (SELECT trace_id FROM traces)
           UNION ALL SELECT trace_id, span_id, parent_span_id, NULL AS agent, NULL AS identity, NULL AS event_time FROM model_invocations WHERE trace_id IN (SELECT trace_id FROM traces)),
         climbed AS (
           SELECT trace_id, span_id, parent_span_id AS above, 0 AS steps FROM spans WHERE agent IS NOT NULL
           UNION ALL SELECT climbed.trace_id, climbed.span_id, spans.parent_span_id, climbed.steps + 1
           FROM climbed JOIN spans ON spans.trace_id = climbed.trace_id AND spans.span_id = climbed.above WHERE spans.agent IS NULL AND climbed.steps < 8),
         callers AS (
           SELECT climbed.trace_id, climbed.span_id, min(spans.agent) AS caller FROM climbed
           JOIN spans ON spans.trace_id = climbed.trace_id AND spans.span_id = climbed.above WHERE spans.agent IS NOT NULL GROUP BY 1, 2)
         SELECT callers.caller, spans.agent, string_agg(DISTINCT spans.identity, ', ') AS identities, count(*) AS times, count(DISTINCT spans.trace_id) AS traces, min(spans.event_time) AS first, max(spans.event_time) AS last
         FROM spans LEFT JOIN callers ON callers.trace_id = spans.trace_id AND callers.span_id = spans.span_id
         WHERE spans.agent IS NOT NULL GROUP BY 1, 2 ORDER BY first, agent"
    )
}

/// Gathers everything about one name.
///
/// # Errors
/// No row knows the name, or the rows cannot be read.
pub async fn investigate(door: &Door, name: &str) -> Result<Dossier> {
    let (kind, name, alert_id) = recognise(door, name).await?;
    let lineage_sql = format!(
        "SELECT l.*, made.parent FROM lineage_of({}) l LEFT JOIN (SELECT child, first_value(parent ORDER BY minted_at, parent) AS parent FROM lineage_links WHERE child <> parent GROUP BY child) made ON made.child = l.credential ORDER BY l.relation, l.depth, l.minted_at, l.credential",
        quoted(&name)
    );
    let (lineage, shown_lineage) = match kind {
        Kind::Credential => {
            let answer = door.ask(&lineage_sql).await;
            (Sheet::of(&answer, usize::MAX), Sheet::of(&answer, SHOWN))
        }
        _ => Default::default(),
    };
    let descends = |row: &usize| lineage.cell(*row, "relation") == Some("descendant");
    let mut children: Vec<String> = (0..lineage.rows.len()).filter(descends).filter_map(|row| lineage.cell(row, "credential").map(str::to_owned)).collect();
    let left_aside = children.len().saturating_sub(DESCENDANTS);
    children.truncate(DESCENDANTS);
    let names = std::iter::once(&name).chain(&children).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    // Everything below is about these.
    let who = format!("{} IN ({names})", kind.column());
    let of = |column: &str| format!("{column} IN ({names})");
    let key = of(if kind == Kind::Credential { "access_key_id" } else { "identity" });
    let part = async |title: &'static str, note: &'static str, sql: String| Part { title, note, sheet: Sheet::of(&door.ask(&sql).await, SHOWN), sql };

    let exposures = part(
        "Exposures",
        "Who said that it lies where it should not, and where.",
        format!("SELECT exposed_at, kind, reporter, location FROM exposures WHERE {} ORDER BY exposed_at", of("credential")),
    )
    .await;
    let exposed_at = (0..exposures.sheet.rows.len()).filter_map(|row| exposures.sheet.time(row, "exposed_at")).min();
    let states = part(
        "State of the key",
        "What IAM calls say became of it: created, inactive, deleted, quarantined.",
        format!("SELECT since, credential, state, changed_by FROM key_state WHERE {} ORDER BY since", of("credential")),
    )
    .await;
    // As JSON has them. Both columns are looked at as one, so that a question of many names stays within its bounds.
    let mentions: Vec<String> = std::iter::once(&name)
        .chain(&children)
        .map(|name| format!("strpos(said, {}) > 0", quoted(&serde_json::Value::from(name.as_str()).to_string())))
        .collect();
    let naming = format!("FROM (SELECT *, concat(alert_key, payload) AS said FROM alerts) WHERE {}", mentions.join(" OR "));
    let levels = ask(door, &format!("SELECT level, count(*) AS times {naming} GROUP BY level")).await;
    let mut levels: Vec<(Level, i64)> =
        (0..levels.rows.len()).filter_map(|row| Some((levels.cell(row, "level").and_then(Level::parse)?, levels.number(row, "times")))).collect();
    levels.sort_by(|a, b| b.cmp(a));
    let alerts = part(
        "Alerts",
        "Every alert that names it, first seen first.",
        format!("SELECT level, detection, title, first_time, last_time, findings, status, held, alert_id {naming} ORDER BY first_time, alert_id"),
    )
    .await;
    let timeline = part(
        "Timeline",
        "Acts over all logs; the same act from the same place within a minute is one line.",
        format!(
            "SELECT min(event_time) AS first, act, target, outcome, source_ip, count(*) AS times, source, max(event_time) AS last FROM activity WHERE {who} GROUP BY date_bin(INTERVAL '1 minute', event_time), source, act, target, outcome, source_ip ORDER BY first"
        ),
    )
    .await;
    let since = exposed_at.map_or_else(|| "NULL".to_owned(), |time| format!("TIMESTAMP '{}'", rfc3339(time)));
    let split = if exposed_at.is_some() {
        format!("count(*) FILTER (WHERE event_time < {since}) AS before_exposure, count(*) FILTER (WHERE event_time >= {since}) AS after_exposure")
    } else {
        "count(*) AS times".to_owned()
    };
    // Only credentials have either; one without exposures has no such part.
    let mut parts = match kind {
        Kind::Credential if exposures.sheet.rows.is_empty() && exposures.sheet.trouble.is_none() => vec![states],
        Kind::Credential => vec![exposures, states],
        _ => Vec::new(),
    };
    parts.push(
        part(
            "Networks and programs",
            "From where and with what it was used; a place that is there only after the exposure is somebody else's until shown otherwise.",
            format!("SELECT source_network, user_agent, count(DISTINCT source_ip) AS addresses, min(source_ip) AS one_of_them, {split}, min(event_time) AS first, max(event_time) AS last FROM activity WHERE {who} AND source_ip IS NOT NULL GROUP BY source_network, user_agent ORDER BY first"),
        )
        .await,
    );
    parts.push(
        part(
            "Models, tokens and money",
            "Tokens where CloudTrail, an invocation log or a span counts them; money, an estimate from list prices, only for calls with a log or a span, which those under \"without log\" do not have.",
            match kind {
                Kind::Credential | Kind::Identity => format!(
                    "SELECT model_id, count(*) AS calls, count(*) FILTER (WHERE outcome = 'denied') AS denied, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, round(sum(cost_microdollars) / 1000000.0, 2) AS dollars, count(*) FILTER (WHERE told_by = 0) AS without_log FROM model_calls WHERE {key} GROUP BY model_id ORDER BY calls DESC"
                ),
                _ => format!(
                    "SELECT model_id, count(*) AS calls, count(*) FILTER (WHERE outcome = 'denied') AS denied, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, round(sum(cost_microdollars) / 1000000.0, 2) AS dollars FROM (SELECT coalesce(request_id, event_id) AS call, max(model_id) AS model_id, min(outcome) AS outcome, max(input_tokens) AS input_tokens, max(output_tokens) AS output_tokens, max(cost_microdollars) AS cost_microdollars FROM model_invocations WHERE {who} GROUP BY 1) GROUP BY model_id ORDER BY calls DESC"
                ),
            },
        )
        .await,
    );
    let reached = format!(
        "SELECT data_source AS what, operation AS how, count(*) AS times, sum(documents) AS documents, sum(bytes) AS bytes, min(event_time) AS first, max(event_time) AS last FROM retrievals WHERE {who} GROUP BY 1, 2"
    );
    let reached = match kind {
        Kind::Credential | Kind::Identity => format!(
            "{reached} UNION ALL SELECT coalesce(resource_arn, secret_name) AS what, concat_ws(' ', event_source, event_name) AS how, count(*) AS times, NULL AS documents, sum(bytes_out) AS bytes, min(event_time) AS first, max(event_time) AS last FROM cloudtrail WHERE {key} AND outcome = 'success' AND (event_source IN ('s3.amazonaws.com', 'secretsmanager.amazonaws.com', 'dynamodb.amazonaws.com') OR event_name IN ('Retrieve', 'RetrieveAndGenerate')) AND coalesce(resource_arn, secret_name) IS NOT NULL GROUP BY 1, 2"
        ),
        _ => reached,
    };
    parts.push(
        part(
            "Data reached",
            "Indexes, buckets and secrets that answered. Data events are off by default in AWS: an empty table is no proof.",
            format!("{reached} ORDER BY first"),
        )
        .await,
    );
    parts.push(
        part(
            "Agents and tools",
            "Tool calls by agent, server and tool.",
            format!("SELECT agent_id, server, tool, outcome, count(*) AS times, min(event_time) AS first, max(event_time) AS last FROM tool_calls WHERE {who} GROUP BY 1, 2, 3, 4 ORDER BY first"),
        )
        .await,
    );
    let delegation = match kind {
        Kind::Agent | Kind::Trace => Some(
            part("Delegation", "Who called whom in the traces that it is part of, through models and tools too, as the spans say.", delegation(&who)).await,
        ),
        _ => None,
    };
    parts.push(
        part(
            GAPS,
            "What these rows cannot show: refused records, late rows, detections that see nothing.",
            "SELECT concat(count(*), ' records were refused: ', max(reason)) AS gap FROM rejects HAVING count(*) > 0
             UNION ALL SELECT concat(count(*), ' rows of cloudtrail came late') AS gap FROM cloudtrail WHERE late HAVING count(*) > 0
             UNION ALL SELECT concat(count(*), ' detections cannot see: ', string_agg(detection, ' ')) AS gap FROM detection_health WHERE state NOT IN ('seeing', 'partial', 'warming') HAVING count(*) > 0
             UNION ALL SELECT concat(count(*), ' detections see only a part, ', max(note)) AS gap FROM detection_health WHERE state = 'partial' HAVING count(*) > 0
             UNION ALL SELECT concat('no rows at all in ', t) AS gap FROM (
               SELECT 'cloudtrail' AS t, count(*) AS n FROM cloudtrail UNION ALL SELECT 'model_invocations', count(*) FROM model_invocations UNION ALL SELECT 'retrievals', count(*) FROM retrievals
               UNION ALL SELECT 'tool_calls', count(*) FROM tool_calls UNION ALL SELECT 'agent_spans', count(*) FROM agent_spans UNION ALL SELECT 'exposure_reports', count(*) FROM exposure_reports) WHERE n = 0"
                .to_owned(),
        )
        .await,
    );
    let mut dossier = Dossier {
        facts: facts(door, kind, &name, &who).await,
        lineage: Part {
            title: "Lineage",
            note: "Sessions and keys that were minted from it, and what it was minted from. Their acts are part of this page.",
            sheet: shown_lineage,
            sql: lineage_sql,
        },
        delegation,
        verdict: Vec::new(),
        steps: Vec::new(),
        kind,
        name,
        alert_id,
        exposed_at,
        levels,
        alerts,
        timeline,
        parts,
    };
    let first_after = match exposed_at {
        Some(_) => {
            ask(door, &format!("SELECT min(event_time) AS first FROM activity WHERE {who} AND source <> 'exposure_reports' AND event_time >= {since} AND event_id NOT IN (SELECT event_id FROM exposures WHERE {} AND event_id IS NOT NULL)", of("credential"))).await
        }
        None => Sheet::default(),
    };
    let keys = match dossier.kind {
        Kind::Credential => Keys::ask(door, children, &of("credential")).await,
        _ => Keys::default(),
    };
    dossier.verdict = verdict(&dossier, &keys, first_after.time(0, "first"));
    if left_aside > 0 {
        dossier.verdict.push(format!("{left_aside} more credentials descend from it than this page is about."));
    }
    dossier.steps = steps(&dossier, &keys);
    Ok(dossier)
}

/// What is known of a key and of those that were minted from it.
#[derive(Default)]
struct Keys {
    /// Credentials that were minted from it, by distance and time.
    children: Vec<String>,
    /// The last state of each, and since when.
    states: HashMap<String, (String, Micros)>,
    /// Users whose key it is, as the rows of that key alone say.
    users: HashMap<String, BTreeSet<String>>,
}

impl Keys {
    async fn ask(door: &Door, children: Vec<String>, of_them: &str) -> Self {
        let mut keys = Self { children, ..Self::default() };
        let states =
            format!("SELECT credential, last_value(state ORDER BY since) AS state, max(since) AS since FROM key_state WHERE {of_them} GROUP BY credential");
        let states = ask(door, &states).await;
        for row in 0..states.rows.len() {
            if let (Some(key), Some(state), Some(since)) = (states.cell(row, "credential"), states.cell(row, "state"), states.time(row, "since")) {
                keys.states.insert(key.to_owned(), (state.to_owned(), since));
            }
        }
        let users =
            format!("SELECT DISTINCT credential, identity FROM activity WHERE {of_them} AND source <> 'exposure_reports' AND strpos(identity, ':user/') > 0");
        let users = ask(door, &users).await;
        for row in 0..users.rows.len() {
            // IAM's commands take the name; what stands before it is a path.
            if let (Some(key), Some(user)) = (users.cell(row, "credential"), users.cell(row, "identity").and_then(|identity| identity.rsplit('/').next())) {
                keys.users.entry(key.to_owned()).or_default().insert(user.to_owned());
            }
        }
        keys
    }

    /// Whether the last that is known of a key is that it was deactivated or deleted.
    fn is_cut_off(&self, key: &str) -> bool {
        matches!(self.states.get(key).map(|(state, _)| state.as_str()), Some("inactive" | "deleted"))
    }

    /// The user of a key, where the rows name one and no other.
    fn user(&self, key: &str) -> Option<&str> {
        let users = self.users.get(key).filter(|users| users.len() == 1)?;
        users.first().map(String::as_str).filter(|user| is_plain(user))
    }
}

async fn facts(door: &Door, kind: Kind, name: &str, who: &str) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if kind == Kind::Credential {
        let of = ask(door, &format!("SELECT credential_class({0}) AS class, access_key_account({0}) AS account", quoted(name))).await;
        facts.extend(of.cell(0, "class").map(|class| ("Class", class.replace('_', " "))));
        facts.extend(of.cell(0, "account").map(|account| ("Account in the key id", account.to_owned())));
    }
    let seen = ask(
        door,
        &format!(
            "SELECT min(event_time) AS first, max(event_time) AS last, count(*) AS acts, count(DISTINCT source_ip) AS addresses, count(*) FILTER (WHERE outcome = 'denied') AS denied, string_agg(DISTINCT identity, ', ') AS identities FROM activity WHERE {who} AND source <> 'exposure_reports'"
        ),
    )
    .await;
    for (title, column) in
        [("First act", "first"), ("Last act", "last"), ("Acts", "acts"), ("Of them denied", "denied"), ("Addresses", "addresses"), ("Identities", "identities")]
    {
        let said = match column {
            "first" | "last" => seen.time(0, column).map(moment),
            _ => seen.cell(0, column).map(str::to_owned),
        };
        facts.extend(said.filter(|text| !text.is_empty()).map(|text| (title, text)));
    }
    facts
}

/// What is to be known first.
fn verdict(dossier: &Dossier, keys: &Keys, first_after: Option<Micros>) -> Vec<String> {
    let mut verdict = Vec::new();
    let fact = |title: &str| dossier.facts.iter().find(|(known, _)| *known == title).map(|(_, text)| text.as_str());
    let last = fact("Last act").and_then(parse_time);
    if let Some(exposed_at) = dossier.exposed_at {
        verdict.push(match first_after {
            Some(first) => format!("Exposed at {}, used {} later.", moment(exposed_at), spoken(first - exposed_at)),
            None => format!("Exposed at {}; no use after that is in these logs.", moment(exposed_at)),
        });
    }
    if dossier.kind == Kind::Credential {
        verdict.push(match keys.states.get(&dossier.name) {
            Some((state, since)) if keys.is_cut_off(&dossier.name) => {
                let after = last.filter(|last| last > since);
                let lives = after.map_or_else(
                    || "and nothing was done with it since".to_owned(),
                    |last| format!("but something was done until {}: sessions live on", moment(last)),
                );
                format!("The key is {state} since {}, {lives}.", moment(*since))
            }
            Some((state, since)) => {
                format!("Treat it as live: its last known state is {state}, since {}. Quarantine does not stop all of its rights.", moment(*since))
            }
            None => "Treat it as live: no log says that it was deactivated, deleted or quarantined.".into(),
        });
    }
    let live: Vec<&str> = keys.children.iter().map(String::as_str).filter(|key| key.starts_with("AKIA") && !keys.is_cut_off(key)).collect();
    if !live.is_empty() {
        verdict.push(format!("Keys that were made with it still live, as far as these logs say: {}.", live.join(", ")));
    }
    let in_all: i64 = dossier.levels.iter().map(|(_, times)| times).sum();
    verdict.push(match (dossier.levels.first(), &dossier.alerts.sheet.trouble) {
        (_, Some(_)) => "Which alerts name it could not be asked.".into(),
        (None, None) => "No alert names it.".into(),
        (Some((level, times)), None) => format!("{times} {} alert{}, {in_all} in all.", level.name(), if *times == 1 { "" } else { "s" }),
    });
    verdict
}

fn steps(dossier: &Dossier, keys: &Keys) -> Vec<(String, String)> {
    let name = &dossier.name;
    let mut steps = Vec::new();
    let mut step = |why: &str, command: String| steps.push((why.to_owned(), command));
    let minted = keys.children.iter().map(String::as_str).filter(|key| is_plain(key));
    let (made, sessions): (Vec<&str>, Vec<&str>) = minted.partition(|key| key.starts_with("AKIA"));
    // What still works comes first; what is cut off already is not asked for again.
    for key in std::iter::once(name.as_str()).filter(|name| name.starts_with("AKIA") && is_plain(name)).chain(made) {
        if keys.is_cut_off(key) {
            continue;
        }
        let why = match key == name {
            true => "Deactivate the key. It can be enabled again; a bill cannot be undone.",
            false => "Deactivate a key that was made with it, and lives.",
        };
        let whose = if keys.user(key).is_none() { " Put its user for USER: these logs name none, or several." } else { "" };
        step(
            &format!("{why}{whose}"),
            format!("aws iam update-access-key --access-key-id {key} --status Inactive --user-name {}", keys.user(key).unwrap_or("USER")),
        );
    }
    if !sessions.is_empty() {
        step(
            "Sessions that were minted live on after the key: end them by a deny for tokens issued before now, on the role that issued them.",
            "aws iam put-role-policy --role-name ROLE --policy-name RevokeOlderSessions --policy-document file://deny-before-now.json".into(),
        );
    }
    if is_plain(name) {
        match dossier.kind {
            Kind::Credential if name.starts_with("AKIA") => {
                step("Look for keys that were made with it.", format!("keyfuse sql \"SELECT * FROM lineage_of('{name}')\""));
            }
            Kind::Credential => step(
                "A session ends by itself or by a deny for tokens issued before now: put it on the role that issued it.",
                "aws iam put-role-policy --role-name ROLE --policy-name RevokeOlderSessions --policy-document file://deny-before-now.json".into(),
            ),
            _ => {}
        }
        step(
            "Everything it did, line by line.",
            match dossier.kind {
                Kind::Credential => format!("keyfuse sql \"SELECT * FROM credential_timeline('{name}') ORDER BY event_time\""),
                kind => format!("keyfuse sql \"SELECT * FROM activity WHERE {} = '{name}' ORDER BY event_time\"", kind.column()),
            },
        );
    }
    if let Some(alert) = dossier.alert_id.as_deref().or_else(|| dossier.alerts.sheet.cell(0, "alert_id")) {
        step("Why the alert came: every row, clause and moment.", format!("keyfuse explain {alert}"));
    }
    step("What cannot be seen at all, and what to switch on.", "keyfuse doctor".into());
    steps
}
