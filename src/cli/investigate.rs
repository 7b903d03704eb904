//! `keyfuse investigate`: one page about one key.

use std::path::PathBuf;

use keyfuse::clock;
use keyfuse::error::{At, Error};
use keyfuse::investigate::{Dossier, Part, investigate, page};
use keyfuse::query::{Limits, on_deep_stacks};
use keyfuse::text::{visible, visible_lines};

use super::Outcome;
use super::place::Place;
use super::terminal::{Style, coloured};

/// One page about a credential, identity, agent, trace or alert: what it did, where it came from, what it reached, what cannot be seen.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  keyfuse investigate AKIA…\n  keyfuse investigate --html page.html 3f0c…   (an alert's id)\n  keyfuse investigate --from AWSLogs/ arn:aws:iam::111122223333:user/build"
)]
pub struct Args {
    /// Credential, identity, agent, trace id or alert id.
    name: String,
    /// Write the page as one HTML file that needs no network; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let place = args.place.open_with_alerts(Limits::default())?;
    let (door, name) = (place.door.clone(), args.name.clone());
    let mut dossier = on_deep_stacks(&place.runtime, async move { investigate(&door, &name).await }).map_err(one)?;
    dossier.steps = dossier.steps.into_iter().filter_map(|(why, command)| Some((why, args.place.again(&command)?))).collect();
    match args.html {
        None => print(&dossier),
        Some(path) => {
            let text = page(&dossier, &clock::rfc3339(clock::now()));
            match path.as_os_str() == "-" {
                true => print!("{text}"),
                false => {
                    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                        std::fs::create_dir_all(folder).user_at(|| format!("creating {}", folder.display())).map_err(one)?;
                    }
                    std::fs::write(&path, text).user_at(|| format!("writing {}", path.display())).map_err(one)?;
                    println!("{}", path.display());
                }
            }
        }
    }
    Ok(Outcome::Clean)
}

/// Lines of a part that fit a terminal's reader; of a longer one, beginning and end are shown.
const LINES: usize = 40;

fn print(dossier: &Dossier) {
    let style = Style { colour: coloured() };
    println!("{} {}  {}\n", style.dim(dossier.kind.name()), style.bold(&visible(&dossier.name)), style.dim("(times are UTC)"));
    dossier.verdict.iter().for_each(|line| println!("  {}", visible(line)));
    println!();
    dossier.facts.iter().for_each(|(title, text)| println!("  {:<24}{}", format!("{title}:"), visible(text)));
    let parts = [&dossier.alerts, &dossier.lineage].into_iter().chain(&dossier.delegation).chain(&dossier.parts).chain([&dossier.timeline]);
    parts.for_each(|part| sheet(part, &style));
    if !dossier.steps.is_empty() {
        println!("\n{}  {}", style.bold("What to do now"), style.dim("(nothing of this was run)"));
        for (number, (why, command)) in dossier.steps.iter().enumerate() {
            println!("{:>3}. {why}\n     {}", number + 1, visible(command));
        }
    }
}

fn sheet(part: &Part, style: &Style) {
    let sheet = &part.sheet;
    if sheet.rows.is_empty() && sheet.trouble.is_none() {
        return;
    }
    println!("\n{}  {}", style.bold(part.title), style.dim(part.note));
    if let Some(trouble) = &sheet.trouble {
        println!("  could not be asked: {}", visible_lines(trouble));
        return;
    }
    let filled: Vec<usize> =
        (0..sheet.columns.len()).filter(|column| sheet.rows.iter().any(|row| row[*column].as_deref().is_some_and(|cell| !cell.is_empty()))).collect();
    let cell = |row: &Vec<Option<String>>, column: usize| visible(row[column].as_deref().unwrap_or_default()).chars().take(52).collect::<String>();
    let widths: Vec<usize> = filled
        .iter()
        .map(|column| sheet.rows.iter().map(|row| cell(row, *column).chars().count()).chain([sheet.columns[*column].len()]).max().unwrap_or(0))
        .collect();
    let line = |cells: Vec<String>| cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>().join("  ");
    println!("  {}", style.dim(line(filled.iter().map(|column| sheet.columns[*column].clone()).collect()).trim_end()));
    let left_out = if sheet.rows.len() > LINES { LINES / 2..sheet.rows.len() - LINES / 2 } else { 0..0 };
    for (number, row) in sheet.rows.iter().enumerate() {
        if number == left_out.start && !left_out.is_empty() {
            let question = part.sql.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            println!("  … {} lines between: {}", left_out.len() + sheet.left_out, visible(&question));
        }
        if !left_out.contains(&number) {
            println!("  {}", line(filled.iter().map(|column| cell(row, *column)).collect()).trim_end());
        }
    }
}
