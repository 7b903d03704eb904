//! `keyfuse top`: a running service on the terminal.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use keyfuse::alert::Following;
use keyfuse::clock;
use keyfuse::config::Config;
use keyfuse::error::{At, Error};
use keyfuse::top::Top;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::Outcome;

/// Watch a running service: how fast logs come, what waits, what is blind, and alerts as they are decided.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  keyfuse top --config keyfuse.toml\n  keyfuse top --data /tmp/keyfuse-demo-123 --at 127.0.0.1:9187")]
pub struct Args {
    /// Config file of the service.
    #[arg(long, value_name = "FILE", required_unless_present_all = ["data", "at"])]
    config: Option<PathBuf>,
    /// Its data folder, where the alert log is; instead of a config file.
    #[arg(long, value_name = "FOLDER", conflicts_with = "config", requires = "at")]
    data: Option<PathBuf>,
    /// Where its metrics are, as `keyfuse run` prints it.
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<String>,
}

/// How often the service is asked.
const EVERY: Duration = Duration::from_secs(1);
/// Longest that a key waits to be seen.
const LOOK: Duration = Duration::from_millis(100);

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let (data, archive, address) = match (args.config, args.data) {
        (Some(path), _) => {
            let config = Config::read(&path)?;
            (config.data, config.archive, args.at.unwrap_or_else(|| config.listen.to_string()))
        }
        (None, data) => {
            let data = data.unwrap_or_default();
            let archive = data.join("archive").to_string_lossy().into_owned();
            (data, archive, args.at.unwrap_or_default())
        }
    };
    if !std::io::stdout().is_terminal() {
        return Err(one(Error::user("top draws on a terminal; for programs there is http://…/metrics, and the table alerts in SQL")));
    }
    let log = data.join("alerts.log");
    let mut followed = Following::of(&log);
    let mut top = Top::new(&address, &log.to_string_lossy(), &archive);
    top.take_alerts(followed.news().map_err(one)?);
    let answers = ask(&address).map_err(one)?;
    let mut terminal = ratatui::init();
    let watched = watch(&mut terminal, &mut top, &mut followed, &answers);
    ratatui::restore();
    watched.map_err(one)?;
    Ok(Outcome::Clean)
}

type Answered = Result<(String, String), String>;

/// Asks the service again and again, so that one that does not answer does not hold the screen.
fn ask(address: &str) -> Result<Receiver<Answered>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at(|| "starting the runtime".into())?;
    let client = reqwest::Client::builder().timeout(EVERY * 5).no_proxy().build().at(|| "an HTTP client".into())?;
    let urls = ["metrics", "healthz"].map(|page| format!("http://{address}/{page}"));
    let (answers, answered) = sync_channel(1);
    let asking = move || {
        loop {
            let begun = Instant::now();
            let answer: Answered = runtime.block_on(async {
                let get = async |url: &str| client.get(url).send().await?.text().await;
                let pages = async { Ok::<_, reqwest::Error>((get(&urls[0]).await?, get(&urls[1]).await?)) };
                pages.await.map_err(|error| if error.is_timeout() { "no answer in time".to_owned() } else { "nobody answers there".to_owned() })
            });
            if answers.send(answer).is_err() {
                return;
            }
            std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
        }
    };
    std::thread::Builder::new().name("asking".into()).spawn(asking).at(|| "starting to ask".into())?;
    Ok(answered)
}

fn watch(terminal: &mut ratatui::DefaultTerminal, top: &mut Top, followed: &mut Following, answers: &Receiver<Answered>) -> Result<(), Error> {
    loop {
        answers.try_iter().for_each(|answer| top.take(answer, Instant::now()));
        top.take_alerts(followed.news()?);
        terminal.draw(|frame| top.draw(frame, clock::now())).at(|| "drawing on the terminal".into())?;
        if event::poll(LOOK).at(|| "reading keys".into())?
            && let Event::Key(key) = event::read().at(|| "reading keys".into())?
            && key.kind == KeyEventKind::Press
        {
            let interrupted = key.modifiers.contains(event::KeyModifiers::CONTROL) && key.code == event::KeyCode::Char('c');
            if interrupted || !top.key(key.code) {
                return Ok(());
            }
        }
    }
}
