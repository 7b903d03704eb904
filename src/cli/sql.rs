//! `keyfuse sql`: questions to the archive or to log files.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use keyfuse::error::Error;
use keyfuse::function::FUNCTIONS;
use keyfuse::query::output::{Format, write};
use keyfuse::query::{Door, Limits, wire};
use keyfuse::table::{DIMENSIONS, TABLES, VIEWS};
use keyfuse::text::visible_lines;
use rustyline::error::ReadlineError;

use super::Outcome;
use super::place::Place;

/// Ask SQL of the archive or of log files; a prompt without a query.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  keyfuse sql \"SELECT event_name, count(*) FROM cloudtrail GROUP BY 1 ORDER BY 2 DESC LIMIT 10\"\n  keyfuse sql --from AWSLogs/ \"SELECT DISTINCT source_ip FROM cloudtrail WHERE outcome = 'denied'\"\n  keyfuse sql --archive s3://security/keyfuse --format csv \"SELECT * FROM alerts\""
)]
pub struct Args {
    /// The question; without one, a prompt (or standard input, where that is no terminal).
    query: Option<String>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    #[command(flatten)]
    place: Place,
    /// Longest time for one question (seconds).
    #[arg(long, default_value = "300")]
    timeout: u64,
    /// Most memory for one question, such as 2GiB.
    #[arg(long, default_value = "2GiB")]
    memory: String,
    /// Answer on the PostgreSQL wire instead, for psql, Grafana and drivers: an address and port, such as 127.0.0.1:5433.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "query")]
    listen: Option<std::net::SocketAddr>,
    /// Who may ask on the wire.
    #[arg(long, default_value = "keyfuse", requires = "listen")]
    user: String,
    /// File with the password; without one everybody on this machine may ask.
    #[arg(long, requires = "listen")]
    password_file: Option<PathBuf>,
    /// Certificate chain as PEM.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key as PEM.
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let memory = keyfuse::config::parse_bytes(&args.memory)
        .ok_or_else(|| one(Error::user(format!("--memory `{}`: write a size in KiB, MiB or GiB, such as 2GiB", args.memory))))?;
    let limits = Limits { memory, time: Duration::from_secs(args.timeout.max(1)), ..Limits::default() };
    let place = args.place.open(limits)?;
    if let Some(listen) = args.listen {
        let settings = wire::Settings { listen, user: args.user, password: args.password_file, tls: args.tls_cert.zip(args.tls_key), connections: 32 };
        let settings = settings.proven().map_err(|message| one(Error::user(format!("--listen {message}").replace('_', "-"))))?;
        let listening = place.listen(settings.clone(), args.place.rules.fingerprinter()?)?;
        println!("psql \"host={} port={} user={}\"   (Ctrl-C ends it)", listening.address.ip(), listening.address.port(), settings.user);
        place.runtime.block_on(tokio::signal::ctrl_c()).map_err(|error| one(Error::environment("waiting for Ctrl-C").because(error)))?;
        place.runtime.shutdown_background();
        return Ok(Outcome::Clean);
    }
    let query = match args.query {
        None if std::io::stdin().is_terminal() => return prompt(&place.runtime, &place.door, args.format),
        None => Some(std::io::read_to_string(std::io::stdin()).map_err(|error| one(Error::environment("reading standard input").because(error)))?),
        query => query,
    };
    let answer = place.ask(&query.unwrap_or_default());
    // A query that was stopped may still be busy: do not wait for it.
    place.runtime.shutdown_background();
    let answer = answer?;
    write(&answer, args.format, &mut std::io::stdout()).map_err(one)?;
    Ok(Outcome::Clean)
}

const HELP: &str = "\\dt tables   \\d TABLE columns   \\df functions   \\q quit   End a question with ;";

fn prompt(runtime: &tokio::runtime::Runtime, door: &Door, format: Format) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let mut words: Vec<String> = door.tables();
    words.extend(TABLES.iter().chain(DIMENSIONS).flat_map(|table| table.columns.iter().map(|column| column.name.to_owned())));
    words.extend(FUNCTIONS.iter().map(|(name, ..)| (*name).to_owned()));
    words.extend(["SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "LIMIT", "JOIN", "INTERVAL", "count(*)"].map(str::to_owned));
    words.sort();
    words.dedup();
    let mut editor =
        rustyline::Editor::<Words, rustyline::history::FileHistory>::new().map_err(|e| one(Error::environment("opening the terminal").because(e)))?;
    editor.set_helper(Some(Words(words)));
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".keyfuse_history"));
    if let Some(path) = &history {
        let _ = editor.load_history(path);
    }
    println!("{HELP}");
    let mut question = String::new();
    loop {
        match editor.readline(if question.is_empty() { "keyfuse> " } else { "      -> " }) {
            Ok(line) => {
                let line = line.trim_end();
                if question.is_empty() && (line.starts_with('\\') || matches!(line, "help" | "exit" | "quit")) {
                    if line == "\\q" || line == "exit" || line == "quit" {
                        break;
                    }
                    println!("{}", help(line, door));
                    continue;
                }
                question.push_str(line);
                question.push('\n');
                if !line.ends_with(';') {
                    continue;
                }
                let _ = editor.add_history_entry(question.trim());
                let (asked, text) = (door.clone(), std::mem::take(&mut question));
                let answer = runtime.block_on(async move {
                    let work = tokio::spawn(async move { asked.ask(&text).await });
                    let stop = work.abort_handle();
                    tokio::select! {
                        answer = work => answer.unwrap_or_else(|_| Err(Error::bug("the query panicked"))),
                        _ = tokio::signal::ctrl_c() => {
                            stop.abort();
                            Err(Error::user("stopped"))
                        }
                    }
                });
                match answer {
                    Ok(answer) => write(&answer, format, &mut std::io::stdout()).map_err(one)?,
                    Err(error) => eprintln!("{}", visible_lines(&error.to_string())),
                }
            }
            Err(ReadlineError::Interrupted) => question.clear(),
            Err(_) => break,
        }
    }
    if let Some(path) = &history {
        let _ = editor.save_history(path);
    }
    Ok(Outcome::Clean)
}

fn help(line: &str, door: &Door) -> String {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some("\\d"), Some(name)) => match (TABLES.iter().chain(DIMENSIONS).find(|table| table.name == name), VIEWS.iter().find(|(view, ..)| *view == name)) {
            (Some(table), _) => {
                let columns = table.columns.iter().map(|column| format!("  {:<24} {:<5} {}", column.name, format!("{:?}", column.kind), column.doc));
                format!("{}\n{}", table.doc, columns.collect::<Vec<_>>().join("\n"))
            }
            (None, Some((_, sql, doc))) => format!("{doc}\n{sql}"),
            (None, None) => format!("no table or view `{name}`; \\dt lists them"),
        },
        (Some("\\d" | "\\dt"), None) => {
            let doc = |name: &str| {
                TABLES
                    .iter()
                    .chain(DIMENSIONS)
                    .find(|t| t.name == name)
                    .map(|t| t.doc)
                    .or_else(|| VIEWS.iter().find(|(view, ..)| *view == name).map(|(.., doc)| *doc))
            };
            let mut tables = door.tables();
            tables.sort();
            tables.iter().map(|name| format!("  {name:<22} {}", doc(name).unwrap_or_default())).collect::<Vec<_>>().join("\n")
        }
        (Some("\\df"), None) => FUNCTIONS.iter().map(|(name, args, doc)| format!("  {name}({args})  {doc}")).collect::<Vec<_>>().join("\n"),
        _ => HELP.to_owned(),
    }
}

/// Completes table, column and function names.
#[derive(rustyline::Helper, rustyline::Hinter, rustyline::Highlighter, rustyline::Validator)]
struct Words(Vec<String>);

impl rustyline::completion::Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, position: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let start = line[..position].rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        let typed = &line[start..position];
        let found = self.0.iter().filter(|word| !typed.is_empty() && word.to_lowercase().starts_with(&typed.to_lowercase()));
        Ok((start, found.cloned().collect()))
    }
}
