//! The live view of `keyfuse top`: what a running service says of itself, and its alerts as they come.
//!
//! It knows the service from outside, by its metrics page and its alert log, and draws one screen of both. What it cannot reach it says.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use prometheus_parse::{Scrape, Value};
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table, TableState, Wrap};

use crate::alert::{Alert, Status};
use crate::clock::{Micros, SECOND, rfc3339, spoken};
use crate::text::shell_word;

/// Readings that a small chart shows.
const CHART: usize = 120;
/// How long a detection that has failed is said to have.
const FAILED: Duration = Duration::from_secs(120);

/// One reading of a metrics page.
struct Reading {
    at: Instant,
    /// By name, then by the values of its labels.
    values: HashMap<String, Vec<(Vec<String>, f64)>>,
}

impl Reading {
    fn of(page: &str, at: Instant) -> Self {
        let mut values: HashMap<String, Vec<(Vec<String>, f64)>> = HashMap::new();
        let scraped = Scrape::parse(page.lines().map(|line| Ok(line.to_owned()))).map(|scrape| scrape.samples).unwrap_or_default();
        for sample in scraped {
            if let Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) = sample.value {
                let mut labels: Vec<(String, String)> = sample.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                labels.sort();
                values.entry(sample.metric).or_default().push((labels.into_iter().map(|(_, value)| value).collect(), value));
            }
        }
        Self { at, values }
    }

    fn series(&self, name: &str) -> &[(Vec<String>, f64)] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    fn sum(&self, name: &str) -> f64 {
        // From zero: the sum of nothing is minus zero.
        self.series(name).iter().fold(0.0, |sum, (_, value)| sum + value)
    }

    fn of_label(&self, name: &str, label: &str) -> f64 {
        self.series(name).iter().filter(|(labels, _)| labels.iter().any(|value| value == label)).fold(0.0, |sum, (_, value)| sum + value)
    }

    /// Label values of the series that are above zero, the highest first.
    fn above_zero(&self, name: &str) -> Vec<&str> {
        let mut found: Vec<(&str, f64)> =
            self.series(name).iter().filter(|(_, value)| *value > 0.0).filter_map(|(labels, value)| Some((labels.first()?.as_str(), *value))).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        found.into_iter().map(|(label, _)| label).collect()
    }
}

/// What is on the screen.
pub struct Top {
    /// Where the service is reached, where its alert log should be, and its archive.
    address: String,
    log: String,
    archive: String,
    log_is_there: bool,
    last: Option<Reading>,
    before: Option<Reading>,
    health: Result<String, String>,
    rates: BTreeMap<String, VecDeque<u64>>,
    /// Detections whose failures have risen while this looked on, and when last.
    failed: BTreeMap<String, Instant>,
    /// By id; the newest revision of each.
    alerts: HashMap<String, Alert>,
    /// Their ids, the one decided last on top.
    order: Vec<String>,
    /// Alerts above the first that is shown.
    above: usize,
    /// By id: what comes meanwhile must not put another in its place.
    chosen: Option<String>,
    is_open: bool,
    /// Lines of the open alert that are scrolled past.
    scroll: u16,
}

impl Top {
    /// An empty screen about the service at an address, with its alert log and its archive.
    pub fn new(address: &str, log: &str, archive: &str) -> Self {
        Self {
            address: address.to_owned(),
            log: log.to_owned(),
            archive: archive.to_owned(),
            log_is_there: false,
            last: None,
            before: None,
            health: Err("not asked yet".into()),
            rates: BTreeMap::new(),
            failed: BTreeMap::new(),
            alerts: HashMap::new(),
            order: Vec::new(),
            above: 0,
            chosen: None,
            is_open: false,
            scroll: 0,
        }
    }

    /// Takes what the service answered: its metrics page and its word on its health, or why there was no answer.
    pub fn take(&mut self, answer: Result<(String, String), String>, at: Instant) {
        let answer = answer.map(|(page, health)| (Reading::of(&page, at), health)).and_then(|(reading, health)| {
            // Another's page would look like a service with nothing to say.
            let is_keyfuse = !reading.series("keyfuse_detections_loaded").is_empty();
            if is_keyfuse { Ok((reading, health)) } else { Err("what answers there is no keyfuse".to_owned()) }
        });
        let (reading, health) = match answer {
            Ok((reading, health)) => (reading, health),
            Err(trouble) => {
                // Old numbers would look like a service that stands still.
                (self.last, self.before, self.health) = (None, None, Err(trouble));
                return;
            }
        };
        self.health = Ok(health.trim().to_owned());
        self.before = self.last.take();
        for (labels, _) in reading.series("keyfuse_detection_errors_total") {
            let Some(detection) = labels.first() else { continue };
            if per_second(self.before.as_ref(), &reading, "keyfuse_detection_errors_total", detection).is_some_and(|rate| rate > 0.0) {
                self.failed.insert(detection.clone(), at);
            }
        }
        self.failed.retain(|_, last| at.saturating_duration_since(*last) < FAILED);
        for (labels, _) in reading.series("keyfuse_rows_total") {
            let Some(table) = labels.first() else { continue };
            let rate = per_second(self.before.as_ref(), &reading, "keyfuse_rows_total", table);
            let chart = self.rates.entry(table.clone()).or_default();
            chart.push_back(rate.unwrap_or(0.0).round() as u64);
            while chart.len() > CHART {
                chart.pop_front();
            }
        }
        self.last = Some(reading);
    }

    /// Takes alerts, new ones or newer revisions; none where there is no alert log.
    pub fn take_alerts(&mut self, alerts: Option<Vec<Alert>>) {
        self.log_is_there = alerts.is_some();
        let mut is_changed = false;
        for alert in alerts.into_iter().flatten() {
            match self.alerts.get(&alert.alert_id) {
                Some(known) if known.revision > alert.revision => {}
                _ => {
                    self.alerts.insert(alert.alert_id.clone(), alert);
                    is_changed = true;
                }
            }
        }
        if is_changed {
            let mut alerts: Vec<&Alert> = self.alerts.values().collect();
            alerts.sort_by(|a, b| (b.decided_at, &b.detection, &b.alert_id).cmp(&(a.decided_at, &a.detection, &a.alert_id)));
            self.order = alerts.into_iter().map(|alert| alert.alert_id.clone()).collect();
        }
    }

    /// Handles a key; false ends the view.
    pub fn key(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('q') => return false,
            KeyCode::Esc if !self.is_open => return false,
            KeyCode::Esc | KeyCode::Enter if self.is_open => self.is_open = false,
            KeyCode::Enter => (self.is_open, self.scroll) = (self.chosen().is_some(), 0),
            key if self.is_open => {
                self.scroll = match key {
                    KeyCode::Down | KeyCode::Char('j') => self.scroll.saturating_add(1),
                    KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
                    KeyCode::PageDown | KeyCode::Char(' ') => self.scroll.saturating_add(10),
                    KeyCode::PageUp => self.scroll.saturating_sub(10),
                    KeyCode::Home => 0,
                    _ => self.scroll,
                }
            }
            key => {
                let (at, last) = (self.place(), self.order.len().saturating_sub(1));
                let next = match key {
                    KeyCode::Down | KeyCode::Char('j') => at.map_or(0, |at| (at + 1).min(last)),
                    KeyCode::Up | KeyCode::Char('k') => at.unwrap_or(0).saturating_sub(1),
                    KeyCode::Home => 0,
                    KeyCode::End => last,
                    _ => return true,
                };
                self.chosen = self.order.get(next).cloned();
            }
        }
        true
    }

    /// Where the chosen alert stands.
    fn place(&self) -> Option<usize> {
        let chosen = self.chosen.as_ref()?;
        self.order.iter().position(|id| id == chosen)
    }

    fn chosen(&self) -> Option<&Alert> {
        self.alerts.get(self.chosen.as_ref()?)
    }

    /// Draws the screen as it is at a moment.
    pub fn draw(&mut self, frame: &mut Frame<'_>, now: Micros) {
        let tables = self.last.as_ref().map_or(0, |last| last.series("keyfuse_rows_total").len());
        let said = self.sight(now);
        // What cannot be seen is shown whole, however narrow the terminal; of the logs, those that come.
        let inside = usize::from(frame.area().width.saturating_sub(2).max(1));
        let lines: usize = said.iter().map(|line| line.width().div_ceil(inside).max(1)).sum();
        let sight = (lines as u16 + 3).min(frame.area().height / 2);
        let logs = (tables as u16).clamp(1, frame.area().height.saturating_sub(sight + 8).max(1)) + 2;
        let [title, above, sight, below, help] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(logs), Constraint::Length(sight), Constraint::Min(3), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(self.title()), title);
        self.logs(frame, above);
        let text = Paragraph::new(said).wrap(Wrap { trim: true });
        frame.render_widget(text.block(Block::bordered().title(" What can be seen ")), sight);
        self.alerts(frame, below);
        let keys = if self.is_open { " ↑↓ scroll   Esc close   q quit" } else { " ↑↓ choose   Enter read   q quit" };
        frame.render_widget(Paragraph::new(keys.dim()), help);
        if self.is_open
            && let Some(alert) = self.chosen()
        {
            let area = frame.area();
            let [_, area, _] = Layout::vertical([Constraint::Length(2), Constraint::Min(0), Constraint::Length(2)]).areas(area);
            let [_, area, _] = Layout::horizontal([Constraint::Length(3), Constraint::Min(0), Constraint::Length(3)]).areas(area);
            frame.render_widget(Clear, area);
            let block = Block::bordered().title(format!(" {} {} ", alert.detection, alert.title)).border_style(level_style(&alert.level));
            frame.render_widget(Paragraph::new(story(alert, &self.archive)).wrap(Wrap { trim: false }).scroll((self.scroll, 0)).block(block), area);
        }
    }

    fn title(&self) -> Line<'_> {
        let state = match &self.health {
            Ok(health) if health == "ok" => Span::from(" working ").black().on_green(),
            Ok(health) => Span::from(format!(" {health} ")).black().on_yellow(),
            Err(trouble) => Span::from(format!(" not reached: {trouble} ")).white().on_red(),
        };
        let mut spans = vec![Span::from("keyfuse top ").bold(), Span::from(format!("{}  ", self.address)).dim(), state];
        if let Some(last) = &self.last {
            spans.push(Span::from(format!("  {} detections", last.sum("keyfuse_detections_loaded"))));
            let shadow = last.sum("keyfuse_detections_in_shadow");
            if shadow > 0.0 {
                spans.push(Span::from(format!(", {shadow} in shadow")));
            }
            spans.push(Span::from(format!("  memory {}", bytes(last.sum("process_resident_memory_bytes")))));
        }
        Line::from(spans)
    }

    /// A line for each stream: how fast its rows come, how many there were, and the last two minutes as a chart.
    fn logs(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title(" Logs ").title_bottom(Line::from(" rows a second, the last two minutes ").right_aligned().dim());
        let inside = block.inner(area);
        frame.render_widget(block, area);
        let Some(last) = &self.last else { return };
        // What comes is shown before what never came.
        let mut streams: Vec<(&str, f64)> =
            last.series("keyfuse_rows_total").iter().filter_map(|(labels, total)| Some((labels.first()?.as_str(), *total))).collect();
        streams.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        for ((table, total), line) in streams.into_iter().zip(inside.rows()) {
            let [text, chart] = Layout::horizontal([Constraint::Length(62), Constraint::Min(0)]).areas(line);
            let rate = per_second(self.before.as_ref(), last, "keyfuse_rows_total", table);
            let rate = rate.map_or_else(|| "…".to_owned(), |rate| if rate > 0.0 && rate < 10.0 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") });
            let late = last.of_label("keyfuse_late_rows_total", table);
            let words =
                format!(" {table:<20}{rate:>10} {:>14} rows {}", grouped(total), if late > 0.0 { format!("{} late", grouped(late)) } else { String::new() });
            frame.render_widget(if total == 0.0 { Span::from(words).dim() } else { Span::from(words) }, text);
            if let Some(rates) = self.rates.get(table) {
                let shown: Vec<u64> = rates.iter().rev().take(usize::from(chart.width)).rev().copied().collect();
                frame.render_widget(Sparkline::default().data(shown).style(Style::new().cyan()), chart);
            }
        }
    }

    /// Lag, progress, rejects, what is blind, what sinks take.
    fn sight(&self, now: Micros) -> Vec<Line<'_>> {
        let Some(last) = &self.last else { return vec![Line::from("Nothing is known of the service while it is not reached.")] };
        let since = |name: &str| {
            let at = last.sum(name);
            if at > 0.0 { format!("{} ago", spoken((now - (at * SECOND as f64) as Micros).max(0))) } else { "not yet".to_owned() }
        };
        let lag = last.sum("keyfuse_lag_messages");
        let rejects = last.sum("keyfuse_rejects_total");
        let good = |is_good: bool, text: String| if is_good { Span::from(text) } else { Span::from(text).yellow() };
        let first = Line::from(vec![
            good(lag < 10_000.0, format!("{} messages wait in Kafka", grouped(lag))),
            Span::from(format!(" · time has come to {}", since("keyfuse_progress_timestamp_seconds"))),
            Span::from(format!(" · archived {}", since("keyfuse_archive_last_commit_timestamp_seconds"))),
            good(last.sum("keyfuse_archive_failures_total") == 0.0, format!(", {} failures", grouped(last.sum("keyfuse_archive_failures_total")))),
        ]);
        let reasons = last.above_zero("keyfuse_rejects_total").into_iter().take(3).collect::<Vec<_>>().join(", ");
        let second = Line::from(vec![
            good(rejects == 0.0, format!("{} records refused{}", grouped(rejects), if reasons.is_empty() { String::new() } else { format!(" ({reasons})") })),
            Span::from(format!(
                " · {} rows kept, {} · {} keys to look at · {} wait for time",
                grouped(last.sum("keyfuse_residue_rows")),
                bytes(last.sum("keyfuse_residue_bytes")),
                grouped(last.sum("keyfuse_pending_keys")),
                grouped(last.sum("keyfuse_undecided_keys"))
            )),
        ]);
        let named = |word: &'static str, found: Vec<&str>, colour: Color| {
            let more = if found.len() > 8 { format!(" and {} more", found.len() - 8) } else { String::new() };
            (!found.is_empty())
                .then(|| Span::from(format!("{} {word}: {}{more}  ", found.len(), found.iter().take(8).copied().collect::<Vec<_>>().join(" "))).fg(colour))
        };
        let mut third: Vec<Span<'_>> = [
            named("switched off", last.above_zero("keyfuse_detection_suspended"), Color::Red),
            named("failed just now", self.failed.keys().map(String::as_str).collect(), Color::Red),
            named("behind", last.above_zero("keyfuse_detection_behind_seconds"), Color::Yellow),
            named("blind", last.above_zero("keyfuse_detection_blind"), Color::Yellow),
        ]
        .into_iter()
        .flatten()
        .collect();
        if third.is_empty() {
            third.push(Span::from("every detection sees, and keeps up").green());
        }
        let sinks: Vec<String> = last
            .series("keyfuse_deliveries_total")
            .iter()
            .filter_map(|(labels, taken)| {
                let sink = labels.first()?;
                let (failed, dead) = (last.of_label("keyfuse_delivery_failures_total", sink), last.of_label("keyfuse_dead_letters_total", sink));
                let trouble = match (failed > 0.0, dead > 0.0) {
                    (_, true) => format!(", {} refused for good", grouped(dead)),
                    (true, false) => format!(", {} attempts failed", grouped(failed)),
                    _ => String::new(),
                };
                Some(format!("{sink} took {}{trouble}", grouped(*taken)))
            })
            .collect();
        let fourth = if sinks.is_empty() { "no sink: alerts are in the archive and in the log only".to_owned() } else { sinks.join(" · ") };
        // What is wrong before what is merely so.
        vec![Line::from(third), Line::from(fourth), first, second]
    }

    fn alerts(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let title = if self.log_is_there { format!(" Alerts: {} ", self.order.len()) } else { " Alerts: not known ".to_owned() };
        let block = Block::bordered().title(title);
        // Only what fits is built, however many there are; the chosen one is always part of it.
        let (chosen, fits) = (self.place(), usize::from(block.inner(area).height).max(1));
        self.above = self.above.min(self.order.len().saturating_sub(fits));
        if let Some(chosen) = chosen {
            self.above = self.above.clamp((chosen + 1).saturating_sub(fits), chosen);
        }
        let rows: Vec<Row<'_>> = self.order[self.above..]
            .iter()
            .take(fits)
            .filter_map(|id| self.alerts.get(id))
            .map(|alert| {
                let (kind, name) = alert.subject();
                let what = match (alert.status, alert.held) {
                    (Status::Retracted, _) => format!("(taken back) {}", alert.title),
                    (_, Some(held)) => format!("(not told: {}) {}", held.name(), alert.title),
                    (Status::Provisional, None) => format!("(provisional) {}", alert.title),
                    _ => alert.title.clone(),
                };
                let dim = alert.status == Status::Retracted || alert.held.is_some();
                let style = if dim { Style::new().dim() } else { Style::new() };
                let findings = if alert.findings() > 1 { format!("×{}", alert.findings()) } else { String::new() };
                Row::new([
                    Line::from(rfc3339(alert.decided_at).get(11..19).unwrap_or_default().to_owned()),
                    Line::from(Span::styled(alert.level.clone(), level_style(&alert.level))),
                    Line::from(alert.detection.clone().bold()),
                    Line::from(format!(
                        "{} {}",
                        kind.replace('_', " "),
                        if name.starts_with("arn:") { name.rsplit(':').next().unwrap_or_default() } else { &name }
                    )),
                    Line::from(what),
                    Line::from(findings),
                ])
                .style(style)
            })
            .collect();
        let widths = [Constraint::Length(8), Constraint::Length(8), Constraint::Length(8), Constraint::Fill(2), Constraint::Fill(3), Constraint::Length(5)];
        let empty = rows.is_empty();
        let table = Table::new(rows, widths).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED)).block(block);
        frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(chosen.map(|chosen| chosen - self.above)));
        if empty {
            let inside = Block::bordered().inner(area);
            let said = match self.log_is_there {
                true => Span::from("None so far. They are shown here as they are decided.").dim(),
                false => Span::from(format!("There is no alert log {}: is that the service's data folder?", self.log)).yellow(),
            };
            frame.render_widget(Paragraph::new(said).wrap(Wrap { trim: true }), inside);
        }
    }
}

/// What a responder reads of one alert.
fn story<'a>(alert: &'a Alert, archive: &str) -> Vec<Line<'a>> {
    let (id, archive) = (&alert.alert_id, shell_word(archive));
    let mut lines = vec![
        Line::from(alert.sentence().bold()),
        Line::from(format!("keyfuse investigate {id} --archive {archive}").cyan()),
        Line::from(format!("keyfuse explain {id} --archive {archive}").cyan()),
        Line::from(""),
    ];
    let mut fact = |name: &'static str, value: String| lines.push(Line::from(vec![Span::from(format!("{name:<12}")).dim(), Span::from(value)]));
    fact("since", rfc3339(alert.first_time));
    fact("until", rfc3339(alert.last_time()));
    fact("decided", rfc3339(alert.decided_at));
    fact("status", alert.status.name().to_owned());
    if let Some(held) = alert.held {
        fact("held", format!("{}: no sink is told", held.name()));
    }
    alert.touched().into_iter().for_each(|(word, value)| fact(word, value));
    fact("evidence", alert.evidence().into_iter().take(5).collect::<Vec<_>>().join(" "));
    lines
}

fn level_style(level: &str) -> Style {
    match level {
        "critical" => Style::new().white().on_red().bold(),
        "high" => Style::new().red().bold(),
        "medium" => Style::new().yellow(),
        _ => Style::new().cyan(),
    }
}

/// None without two readings, and where the service began again between them.
fn per_second(before: Option<&Reading>, now: &Reading, name: &str, label: &str) -> Option<f64> {
    let before = before?;
    let (seconds, risen) = ((now.at - before.at).as_secs_f64(), now.of_label(name, label) - before.of_label(name, label));
    (seconds > 0.0 && risen >= 0.0).then(|| risen / seconds)
}

fn bytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// A count with its thousands apart.
fn grouped(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (number, digit) in digits.chars().enumerate() {
        if number > 0 && (digits.len() - number).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
