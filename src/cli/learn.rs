//! `keyfuse learn`: proposes an `agents` file, or one of `expected_sources`, from what the archive has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type};
use keyfuse::error::{Error, Result as KeyfuseResult};
use keyfuse::limits;
use keyfuse::query::{Answer, Limits};

use super::Outcome;
use super::place::Place;

/// Propose a file (TOML, on standard output) from what was seen: who used what, or which logs arrive. Read it before you use it.
///
/// What an exposed credential did is left out of `agents`: a thief's acts must not become the allowance.
#[derive(clap::Args)]
pub struct Args {
    /// What to propose.
    #[arg(value_enum, default_value = "agents")]
    what: What,
    /// Leave out what was seen fewer times than this: once where nothing is said, and twenty times for logs.
    #[arg(long)]
    at_least: Option<i64>,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// Who uses which tools, data, models, hosts, networks.
    Agents,
    /// Which logs arrive, by account, region and kind, and how long their pauses are.
    ExpectedSources,
}

/// Each log that arrived, with how many rows, and its longest pause (minutes), that which still lasts included.
const SOURCES: &str = "
WITH minutes AS (SELECT source, account_id, region, kind, CAST(date_part('epoch', append_time) AS BIGINT) / 60 AS at, count(*) AS n FROM arrivals GROUP BY 1, 2, 3, 4, 5),
     pauses AS (SELECT *, at - lag(at) OVER (PARTITION BY source, account_id, region, kind ORDER BY at) AS pause FROM minutes)
SELECT CAST(source AS VARCHAR), CAST(account_id AS VARCHAR), CAST(region AS VARCHAR), CAST(kind AS VARCHAR), sum(n),
  greatest(max(pause), (SELECT max(at) FROM minutes) - max(at))
FROM pauses GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4";

/// Of a pause, so many times as long is silence; an hour at least.
const PAUSES: i64 = 4;

/// Longest list that is proposed; a longer one would allow nearly everything and is left open, with a remark.
const LONGEST: usize = 50;

/// What agents used, by agent.
const BY_AGENT: &str = "
SELECT agent_id AS who, 'tools' AS what, tool AS value, count(*) AS times, min(event_time) AS since FROM tool_calls WHERE agent_id IS NOT NULL AND tool IS NOT NULL AND method <> 'tools/list' GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'data_sources', data_source, count(*), min(event_time) FROM retrievals WHERE agent_id IS NOT NULL AND data_source IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'models', CAST(model_id AS VARCHAR), count(*), min(event_time) FROM model_invocations WHERE agent_id IS NOT NULL AND model_id IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'hosts', host, count(*), min(event_time) FROM outbound_calls WHERE agent_id IS NOT NULL AND host IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'identity', identity, count(*), min(event_time) FROM model_invocations WHERE agent_id IS NOT NULL AND identity IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'identity', identity, count(*), min(event_time) FROM tool_calls WHERE agent_id IS NOT NULL AND identity IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'environment', CAST(environment AS VARCHAR), count(*), min(event_time) FROM agent_spans WHERE agent_id IS NOT NULL AND environment IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT agent_id, 'environment', CAST(environment AS VARCHAR), count(*), min(event_time) FROM model_invocations WHERE agent_id IS NOT NULL AND environment IS NOT NULL GROUP BY 1, 2, 3";

/// What identities that call AI services used, by identity.
const BY_IDENTITY: &str = "
WITH own AS (
  SELECT c.* FROM cloudtrail c
  WHERE c.identity IS NOT NULL AND c.invoked_by IS NULL AND c.outcome = 'success'
    AND c.identity IN (SELECT identity FROM cloudtrail WHERE event_source LIKE 'bedrock%' AND identity IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM exposed_credentials e WHERE e.credential = c.access_key_id))
SELECT identity AS who, 'services' AS what, CAST(event_source AS VARCHAR) AS value, count(*) AS times, min(event_time) AS since FROM own GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'regions', CAST(aws_region AS VARCHAR), count(*), min(event_time) FROM own WHERE aws_region IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'networks', source_network, count(*), min(event_time) FROM own WHERE source_network IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'user_agents', user_agent_family(user_agent) || '*', count(*), min(event_time) FROM own WHERE user_agent IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'models', CAST(model_id AS VARCHAR), count(*), min(event_time) FROM own WHERE model_id IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'data_sources', data_source, count(*), min(event_time) FROM retrievals WHERE identity IS NOT NULL AND agent_id IS NULL AND data_source IS NOT NULL GROUP BY 1, 2, 3
UNION ALL SELECT identity, 'credentials', access_key_id, count(*), min(event_time) FROM own WHERE access_key_id LIKE 'AKIA%' GROUP BY 1, 2, 3";

/// Who → what → value → times seen.
type Seen = BTreeMap<String, BTreeMap<String, BTreeMap<String, i64>>>;

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let place = args.place.open(Limits::default())?;
    if matches!(args.what, What::ExpectedSources) {
        print!("{}", sources(&place.ask(SOURCES)?, args.at_least.unwrap_or(20)).map_err(one)?);
        return Ok(Outcome::Clean);
    }
    let at_least = args.at_least.unwrap_or(1);
    let by_agent = seen(&place.ask(BY_AGENT)?, at_least).map_err(one)?;
    let by_identity = seen(&place.ask(BY_IDENTITY)?, at_least).map_err(one)?;
    if by_agent.is_empty() && by_identity.is_empty() {
        return Err(one(Error::user("no agent and no identity that calls AI services was seen: nothing to propose")));
    }
    print!("{}", proposal(by_agent, by_identity));
    Ok(Outcome::Clean)
}

fn seen(answer: &Answer, at_least: i64) -> KeyfuseResult<Seen> {
    let mut all = Seen::new();
    for batch in &answer.batches {
        let text = |column: usize| arrow::compute::cast(batch.column(column), &DataType::Utf8);
        let (who, what, value) = (text(0)?, text(1)?, text(2)?);
        let (who, what, value) = (who.as_string::<i32>(), what.as_string::<i32>(), value.as_string::<i32>());
        let times = batch.column(3).as_primitive::<Int64Type>();
        for row in (0..batch.num_rows()).filter(|row| times.value(*row) >= at_least && !value.is_null(*row)) {
            *all.entry(who.value(row).to_owned())
                .or_default()
                .entry(what.value(row).to_owned())
                .or_default()
                .entry(value.value(row).to_owned())
                .or_default() += times.value(row);
        }
    }
    Ok(all)
}

fn sources(answer: &Answer, at_least: i64) -> KeyfuseResult<String> {
    let mut page = String::from(
        "# Proposed by `keyfuse learn expected-sources` from what arrived. It says what came, not what ought to: add what is missing, take out what may\n# end, and name owners. A log that pauses for longer than three hours cannot be missed soon enough: it is left out.\n",
    );
    for batch in &answer.batches {
        let texts = (0..4).map(|column| arrow::compute::cast(batch.column(column), &DataType::Utf8)).collect::<Result<Vec<_>, _>>()?;
        let (rows, pauses) = (batch.column(4).as_primitive::<Int64Type>(), batch.column(5).as_primitive::<Int64Type>());
        for row in (0..batch.num_rows()).filter(|row| rows.value(*row) >= at_least) {
            let told = [("source", 0), ("account_id", 1), ("region", 2), ("kind", 3)].into_iter().filter(|(_, column)| texts[*column].is_valid(row));
            let told: Vec<String> = told.map(|(name, column)| format!("{name} = {}", quoted(texts[column].as_string::<i32>().value(row)))).collect();
            let pause = pauses.value(row);
            let silence = (pause.saturating_mul(PAUSES).saturating_add(59) / 60).max(1);
            let seen = format!("{} rows, longest pause {pause} min", rows.value(row));
            let _ = match silence <= limits::SILENCE_HOURS {
                true => write!(page, "\n[[expected_sources]]  # {seen}\n{}\nsilence_seconds = \"{silence}h\"\n# owner = \"\"\n", told.join("\n")),
                false => write!(page, "\n# left out, {seen}: {}\n", told.join(", ")),
            };
        }
    }
    Ok(page)
}

fn proposal(mut by_agent: Seen, by_identity: Seen) -> String {
    let mut page = String::from(
        "# Proposed by `keyfuse learn` from what was seen. It says what happened, not what should: read it, take out what does not\n# belong (look up each entry in `alerts` first: a thief's other identities are in here too), name owners and roles, and give it a\n# valid_from. Counts are of log rows: a call that three logs tell of counts three times.\n",
    );
    // An identity of exactly one agent belongs to its entry; others get one of their own.
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (agent, seen) in &by_agent {
        for identity in seen.get("identity").into_iter().flatten().map(|(identity, _)| identity) {
            users.entry(identity.clone()).or_default().insert(agent.clone());
        }
    }
    let mut rest = Seen::new();
    for (identity, seen) in by_identity {
        match users.get(&identity).map(|agents| agents.iter().collect::<Vec<_>>()).as_deref() {
            Some([agent]) => {
                let entry = by_agent.entry((*agent).clone()).or_default();
                for (what, values) in seen {
                    for (value, times) in values {
                        *entry.entry(what.clone()).or_default().entry(value).or_default() += times;
                    }
                }
            }
            _ => {
                rest.insert(identity, seen);
            }
        }
    }
    for (agent, seen) in &by_agent {
        entry(&mut page, agent, None, seen, &users);
    }
    for (identity, seen) in &rest {
        let name = identity.rsplit(['/', ':']).next().unwrap_or(identity);
        entry(&mut page, name, Some(identity), seen, &users);
    }
    page
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn entry(page: &mut String, agent: &str, identity: Option<&str>, seen: &BTreeMap<String, BTreeMap<String, i64>>, users: &BTreeMap<String, BTreeSet<String>>) {
    let _ = write!(page, "\n[[agents]]\nagent_id = {}\n", quoted(agent));
    let identities: Vec<&str> = identity.into_iter().chain(seen.get("identity").into_iter().flatten().map(|(identity, _)| identity.as_str())).collect();
    match identities[..] {
        [] => page.push_str("# identity: none was logged beside the agent\n"),
        [one] => {
            let _ = writeln!(page, "identity = {}", quoted(one));
            if let Some(others) = users.get(one).filter(|agents| agents.len() > 1) {
                let _ = writeln!(page, "# shared by {}: one identity per agent is better (SHR-01)", others.iter().cloned().collect::<Vec<_>>().join(", "));
            }
        }
        [first, ..] => {
            let _ = writeln!(page, "identity = {}  # also seen: {}", quoted(first), identities[1..].join(", "));
        }
    }
    page.push_str("# owner = \"\"\n# roles = []  # agent, batch, serving, pipeline, gateway, auditor, shared, human: detections ask for them\n");
    if let Some(environments) = seen.get("environment") {
        let names: Vec<&String> = environments.keys().collect();
        let _ = writeln!(page, "environment = {}{}", quoted(names[0]), if names.len() > 1 { "  # and others: SHR-02" } else { "" });
    }
    for list in ["tools", "data_sources", "models", "hosts", "services", "regions", "networks", "user_agents", "credentials"] {
        let Some(values) = seen.get(list) else { continue };
        if values.len() > LONGEST {
            let _ = writeln!(page, "# {list}: {} different ones were seen; too many to list. Left open.", values.len());
            continue;
        }
        // One per line with how often: what was seen once is where a reader should look.
        let most = values.values().max().copied().unwrap_or(0);
        let _ = writeln!(page, "{list} = [");
        for (value, times) in values {
            let _ = writeln!(page, "  {},  # {times} times{}", quoted(value), if *times * 20 < most { ", rare" } else { "" });
        }
        page.push_str("]\n");
    }
}
