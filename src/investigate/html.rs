//! The dossier as one self-contained page: no script, no network, light and dark, wide and narrow.

use std::fmt::Write as _;

use super::{Dossier, GAPS, Part, Sheet, graph, moment};
use crate::clock::{MINUTE, Micros};
use crate::detect::Level;

const STYLE: &str = include_str!("page.css");

/// Text as it may stand in HTML.
pub(super) fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub fn page(dossier: &Dossier, made_at: &str) -> String {
    let mut out = String::new();
    let Dossier { kind, name, .. } = dossier;
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0} {1}</title>\n<style>{STYLE}</style></head>\n<body><main>\n<header><p class=\"kind\">{0} · times are UTC</p><h1>{1}</h1>\n",
        kind.name(),
        plain(name)
    );
    let worst = dossier.worst().map_or("none", Level::name);
    let _ = writeln!(out, "<ul class=\"verdict {worst}\">{}</ul>", dossier.verdict.iter().map(|line| format!("<li>{}</li>", plain(line))).collect::<String>());
    let facts = dossier.facts.iter().map(|(title, text)| format!("<div><dt>{title}</dt><dd>{}</dd></div>", plain(text)));
    let _ = writeln!(out, "<dl>{}</dl></header>", facts.collect::<String>());
    if !dossier.steps.is_empty() {
        out.push_str("<section><h2>What to do now</h2><p class=\"note\">Ready to paste. Nothing of this was run.</p><ol class=\"steps\">");
        for (why, command) in &dossier.steps {
            let _ = write!(out, "<li><p>{}</p><pre><code>{}</code></pre></li>", plain(why), plain(command));
        }
        out.push_str("</ol></section>\n");
    }
    let _ = writeln!(out, "<section class=\"wide\"><h2>When</h2><p class=\"note\">{}</p>{}</section>", legend(dossier), lanes(dossier));
    table(&mut out, &dossier.alerts, None);
    if !dossier.lineage.sheet.rows.is_empty() {
        let _ = writeln!(
            out,
            "<section class=\"wide\"><h2>{}</h2><p class=\"note\">{}{}</p>{}</section>",
            dossier.lineage.title,
            dossier.lineage.note,
            not_drawn(&dossier.lineage.sheet, "of them"),
            graph::lineage(dossier)
        );
    }
    if let Some(part) = &dossier.delegation {
        table(&mut out, part, graph::delegation(dossier));
    }
    dossier.parts.iter().for_each(|part| table(&mut out, part, None));
    table(&mut out, &dossier.timeline, None);
    let _ = write!(out, "<footer><p>Made by keyfuse at {} from the rows that were there then.</p></footer>\n</main></body></html>\n", plain(made_at));
    out
}

/// Digits with their thousands apart, where it is digits.
fn grouped(text: &str) -> String {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return plain(text);
    }
    let digits = text.chars().enumerate().flat_map(|(at, digit)| [(at > 0 && (text.len() - at).is_multiple_of(3)).then_some(','), Some(digit)]);
    digits.flatten().collect()
}

fn is_number(sheet: &Sheet, column: usize) -> bool {
    let mut cells = sheet.rows.iter().filter_map(|row| row[column].as_deref()).peekable();
    cells.peek().is_some() && cells.all(|cell| cell.parse::<f64>().is_ok())
}

/// A part as a table, below its drawing if it has one.
fn table(out: &mut String, part: &Part, drawing: Option<String>) {
    let sheet = &part.sheet;
    let wide = if drawing.is_some() { " class=\"wide\"" } else { "" };
    let _ = write!(out, "<section{wide}><h2>{}</h2><p class=\"note\">{}</p>{}", part.title, plain(part.note), drawing.unwrap_or_default());
    if let Some(trouble) = &sheet.trouble {
        let _ = write!(out, "<p class=\"trouble\">Could not be asked: {}</p>", plain(trouble));
    } else if sheet.rows.is_empty() {
        let none = if part.title == GAPS { "None is known." } else { "Nothing in these rows." };
        let _ = write!(out, "<p class=\"empty\">{none}</p>");
    } else {
        // What no row fills is left out.
        let shown: Vec<usize> =
            (0..sheet.columns.len()).filter(|column| sheet.rows.iter().any(|row| row[*column].as_deref().is_some_and(|cell| !cell.is_empty()))).collect();
        let numbers: Vec<bool> = (0..sheet.columns.len()).map(|column| is_number(sheet, column)).collect();
        out.push_str("<div class=\"scroll\"><table><thead><tr>");
        for column in &shown {
            let _ = write!(out, "<th{}>{}</th>", if numbers[*column] { " class=\"n\"" } else { "" }, plain(&sheet.columns[*column].replace('_', " ")));
        }
        out.push_str("</tr></thead><tbody>");
        for (number, row) in sheet.rows.iter().enumerate() {
            if sheet.gap() == Some(number) {
                let _ = write!(out, "<tr><td class=\"gap\" colspan=\"{}\">{} lines between: ask the question below.</td></tr>", shown.len(), sheet.left_out);
            }
            out.push_str("<tr>");
            for column in &shown {
                let text = row[*column].as_deref().unwrap_or_default();
                let name = sheet.columns[*column].as_str();
                let class = match name {
                    _ if numbers[*column] => "n",
                    "level" => "level",
                    "first" | "last" | "since" | "exposed_at" | "first_time" | "last_time" | "event_time" | "minted_at" | "left_at" => "t",
                    "credential" | "alert_id" | "source_ip" | "span_id" | "parent_span_id" => "id",
                    "detection" | "kind" | "outcome" | "source" | "state" | "status" => "short",
                    _ => "",
                };
                let text = if class == "t" { text.replace('T', " ").trim_end_matches('Z').to_owned() } else { text.to_owned() };
                let inner = match name {
                    "bytes" | "input_tokens" | "output_tokens" => grouped(&text),
                    "level" => format!("<b class=\"{0}\">{0}</b>", plain(&text)),
                    "outcome" if text == "denied" => format!("<b class=\"denied\">{}</b>", plain(&text)),
                    _ => plain(&text),
                };
                let _ = write!(out, "<td class=\"{class}\">{inner}</td>");
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }
    let _ = writeln!(out, "<details><summary>The question</summary><pre><code>{}</code></pre></details></section>", plain(&part.sql));
}

fn legend(dossier: &Dossier) -> String {
    let exposed = dossier.exposed_at.map(|time| ("exposure", format!("exposed {}", moment(time))));
    let words = [("act", "acts".to_owned()), ("denied", "denied".to_owned()), ("alert", "alerts, coloured by level".to_owned())];
    let keys = words.into_iter().chain(exposed).map(|(class, words)| format!("<span class=\"legend\"><span class=\"key {class}\"></span>{words}</span> "));
    let (acts, alerts) = (not_drawn(&dossier.timeline.sheet, "lines of acts"), not_drawn(&dossier.alerts.sheet, "alerts"));
    format!("{}{acts}{alerts}", keys.collect::<String>())
}

/// What a drawing leaves out.
fn not_drawn(sheet: &Sheet, what: &str) -> String {
    if sheet.left_out > 0 { format!(" {} {what} in the middle are not drawn.", sheet.left_out) } else { String::new() }
}

/// Acts by log over time, alerts above them, exposure as a line.
fn lanes(dossier: &Dossier) -> String {
    const WIDTH: f64 = 1000.0;
    const LEFT: f64 = 150.0;
    const LANE: f64 = 30.0;
    let sheet = &dossier.timeline.sheet;
    let alerts = &dossier.alerts.sheet;
    let times = (0..sheet.rows.len()).flat_map(|row| [sheet.time(row, "first"), sheet.time(row, "last")]);
    let times = times.chain((0..alerts.rows.len()).map(|row| alerts.time(row, "first_time"))).chain([dossier.exposed_at]).flatten();
    let (mut first, mut last) = (Micros::MAX, Micros::MIN);
    times.for_each(|time| (first, last) = (first.min(time), last.max(time)));
    if first > last {
        return "<p class=\"empty\">Nothing in these rows.</p>".into();
    }
    let span = (last - first).max(1_000_000) as f64;
    let x = |time: Micros| LEFT + 12.0 + (WIDTH - LEFT - 30.0) * (time - first) as f64 / span;
    let mut sources: Vec<&str> = (0..sheet.rows.len()).filter_map(|row| sheet.cell(row, "source")).collect();
    sources.sort_unstable();
    sources.dedup();
    let names: Vec<&str> = std::iter::once("alerts").chain(sources).collect();
    let height = names.len() as f64 * LANE + 42.0;
    let mut svg = format!("<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"acts and alerts over time\">");
    let y = |lane: usize| 20.0 + lane as f64 * LANE;
    for (lane, name) in names.iter().enumerate() {
        let _ = write!(
            svg,
            "<line class=\"lane\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0}\" y2=\"{0}\"/><text x=\"{1}\" y=\"{2}\" text-anchor=\"end\">{3}</text>",
            y(lane),
            LEFT - 10.0,
            y(lane) + 4.0,
            plain(&name.replace('_', " "))
        );
    }
    // Minutes are told apart by the clock's minutes, seconds by its seconds.
    let digits = if last - first < 10 * MINUTE { 11..19 } else { 5..16 };
    for tick in 0..=4 {
        let time = first + (span * f64::from(tick) / 4.0) as Micros;
        let anchor = ["start", "middle", "middle", "middle", "end"][tick as usize];
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x(time),
            height - 6.0,
            moment(time).get(digits.clone()).unwrap_or_default()
        );
    }
    for row in 0..sheet.rows.len() {
        let (Some(from), Some(to), Some(lane)) =
            (sheet.time(row, "first"), sheet.time(row, "last"), sheet.cell(row, "source").and_then(|source| names.iter().position(|name| *name == source)))
        else {
            continue;
        };
        let times = sheet.number(row, "times").max(1);
        let radius = 3.0 + (times as f64).ln().min(5.0);
        let class = match sheet.cell(row, "outcome") {
            _ if sheet.cell(row, "source") == Some("exposure_reports") => "exposure",
            Some("denied") => "denied",
            _ => "act",
        };
        let told = format!(
            "{} {} {} {} from {} ×{times}",
            moment(from),
            sheet.cell(row, "act").unwrap_or_default(),
            sheet.cell(row, "target").unwrap_or_default(),
            sheet.cell(row, "outcome").unwrap_or_default(),
            sheet.cell(row, "source_ip").unwrap_or("-")
        );
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"{radius:.1}\"><title>{}</title></rect>",
            x(from) - radius,
            y(lane) - radius,
            x(to) - x(from) + 2.0 * radius,
            2.0 * radius,
            plain(&told)
        );
    }
    for row in 0..alerts.rows.len() {
        let Some(time) = alerts.time(row, "first_time") else { continue };
        let (at, level) = (x(time), alerts.cell(row, "level").unwrap_or("low"));
        let told = format!("{} {} {}", moment(time), alerts.cell(row, "detection").unwrap_or_default(), alerts.cell(row, "title").unwrap_or_default());
        let _ = write!(svg, "<path class=\"alert {}\" d=\"M{at:.1} {:.1} l7 12 h-14 z\"><title>{}</title></path>", plain(level), y(0) - 8.0, plain(&told));
    }
    if let Some(exposed) = dossier.exposed_at {
        let at = x(exposed);
        let _ = write!(
            svg,
            "<line class=\"exposed\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{:.1}\"><title>exposed {}</title></line>",
            height - 22.0,
            moment(exposed)
        );
    }
    svg.push_str("</svg></div>");
    svg
}
