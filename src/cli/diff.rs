//! `keyfuse diff`: what a changed detection gains and loses.

use std::collections::{BTreeMap, BTreeSet};

use keyfuse::alert::{Alert, AlertBook};
use keyfuse::clock::Micros;
use keyfuse::detect::Detection;
use keyfuse::error::Error;
use keyfuse::text::visible;

use super::Outcome;
use super::backtest::{Stretch, chosen};
use super::terminal::{Style, coloured};

/// Which alerts does a changed detection gain and lose, over the archive? Exit code 1 if there are any.
///
/// Alerts are the same if alert key and dedup bucket are (the longer of the two): the two may have different ids.
#[derive(clap::Args)]
pub struct Args {
    /// The detection as it is: a name such as EXP-01, or a file.
    before: String,
    /// The detection as it would be: a file, or a name.
    after: String,
    #[command(flatten)]
    stretch: Stretch,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one_of = |wanted: &String| -> Result<Detection, Vec<Error>> {
        let mut found = chosen(std::slice::from_ref(wanted), &args.stretch.rules)?;
        found.pop().filter(|_| found.is_empty()).ok_or_else(|| vec![Error::user(format!("{wanted}: one detection is wanted"))])
    };
    let (before, after) = (one_of(&args.before)?, one_of(&args.after)?);
    let past = args.stretch.open()?;
    let (old, _) = past.alerts(std::slice::from_ref(&before), false)?;
    let (new, _) = past.alerts(std::slice::from_ref(&after), false)?;
    let bucket = before.dedup.max(after.dedup);
    let (old, new) = (by_identity(&old, bucket), by_identity(&new, bucket));
    let style = Style { colour: coloured() };
    let all: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let (mut gained, mut lost, mut changed) = (0, 0, 0);
    for identity in all {
        match (old.get(identity), new.get(identity)) {
            (None, Some(alert)) => {
                gained += 1;
                println!("+ {}", style.alert(alert, Some(&after), None, false));
            }
            (Some(alert), None) => {
                lost += 1;
                println!("- {}", style.alert(alert, Some(&before), None, false));
            }
            (Some(a), Some(b)) if a.level != b.level => {
                changed += 1;
                println!("~ {} {}: {} becomes {}", b.detection, visible(&identity.0), a.level, b.level);
            }
            _ => {}
        }
    }
    println!("{} before, {} after: {gained} gained, {lost} lost, {changed} of another level", old.len(), new.len());
    Ok(if gained + lost + changed == 0 { Outcome::Clean } else { Outcome::Found })
}

/// Alerts by key and bucket; within one, the first.
fn by_identity(book: &AlertBook, bucket: Micros) -> BTreeMap<(String, i64), &Alert> {
    let identity = |alert: &Alert| (serde_json::json!(alert.alert_key).to_string(), alert.first_time.div_euclid(bucket));
    let mut all = book.all();
    all.sort_by_key(|alert| std::cmp::Reverse(alert.first_time));
    all.into_iter().map(|alert| (identity(alert), alert)).collect()
}
