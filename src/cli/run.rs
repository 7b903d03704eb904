//! `keyfuse run`: the service, and the demo that is the same service on an embedded broker.

use std::collections::{BTreeSet, HashMap};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Path as Name, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use keyfuse::alert::Alert;
use keyfuse::clock::{self, Micros, SECOND};
use keyfuse::config::{Canaries, Config, Topic};
use keyfuse::detect::Detection;
use keyfuse::dimension::Files;
use keyfuse::error::{At, Error};
use keyfuse::metrics::Metrics;
use keyfuse::pipeline::{Health, Order, Promotion, Service, Show};
use keyfuse::query::{Limits, wire};
use keyfuse::secret::Fingerprinter;
use keyfuse::source::broker::Broker;
use keyfuse::text::shell_word;
use tokio::sync::oneshot;

use super::play::play;
use super::terminal::{Style, coloured};
use super::{Outcome, shipped};

/// Run the service: consume, detect, archive, alert. SIGHUP or a changed file reloads the detections; Ctrl-C drains and ends.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  keyfuse run --demo\n  keyfuse run --config keyfuse.toml")]
pub struct Args {
    /// Config file.
    #[arg(long, value_name = "FILE", required_unless_present = "demo")]
    config: Option<PathBuf>,
    /// Play a story through an embedded broker: a key is leaked, found and used, and you watch.
    #[arg(long, conflicts_with = "config")]
    demo: bool,
    /// Folder of the demo's archive and alert log. Default: a fresh one in the system's temporary folder.
    #[arg(long, requires = "demo")]
    demo_data: Option<PathBuf>,
    /// How many times faster than life the story is played.
    #[arg(long, default_value = "20", requires = "demo", value_parser = clap::value_parser!(u32).range(1..=1000))]
    speed: u32,
    /// End the demo when its story has been told.
    #[arg(long, requires = "demo")]
    once: bool,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let one = |error: Error| vec![error];
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().at(|| "starting the runtime".into()).map_err(one)?;
    let demo = if args.demo { Some(Demo::prepare(&args)?) } else { None };
    let config = match (&demo, &args.config) {
        (Some(demo), _) => demo.config.clone(),
        (None, Some(path)) => Config::read(path)?,
        (None, None) => return Err(one(Error::user("name a config with --config, or try --demo"))),
    };
    let listener = runtime.block_on(tokio::net::TcpListener::bind(config.listen)).user_at(|| format!("[http] listen {}", config.listen)).map_err(one)?;
    let address = listener.local_addr().at(|| "the HTTP address".into()).map_err(one)?;
    let (show_in, show) = sync_channel(256);
    let service = Service::start(&config, runtime.handle().clone(), Some(show_in))?;
    let web = Web { metrics: Arc::clone(&service.metrics), health: Arc::clone(&service.health), orders: service.orders() };
    runtime.spawn(async move { axum::serve(listener, router(web).into_make_service_with_connect_info::<SocketAddr>()).await });

    let questions = keyfuse::query::runtime().map_err(one)?;
    let sql = match &config.sql {
        Some((settings, _)) => {
            let (settings, doors, fingerprinter) =
                (settings.clone(), Arc::clone(&service.doors), Fingerprinter::from_file(&config.data.join("fingerprint.key")).map_err(one)?);
            let listening = keyfuse::query::on_deep_stacks(&questions, async move { wire::listen(&settings, doors, &fingerprinter).await });
            Some(listening.map_err(one)?)
        }
        None => None,
    };

    let stop = Arc::new(AtomicBool::new(false));
    let reload = Arc::new(AtomicBool::new(false));
    signals(&runtime, &stop, &reload);
    let _watcher = watch(&config, &reload);
    let detections: HashMap<String, Detection> =
        keyfuse::detect::read_folder(&config.detections)?.into_iter().map(|detection| (detection.name.clone(), detection)).collect();
    println!("keyfuse {}: {} detections, {} topics", env!("CARGO_PKG_VERSION"), detections.len(), config.topics.len());
    println!("  metrics  http://{address}/metrics  (also /healthz, /readyz)");
    println!("  archive  {}", config.archive);
    // A path as one word, so that the line can be pasted.
    let word = |path: &Path| shell_word(&path.to_string_lossy()).into_owned();
    match &args.config {
        Some(path) => println!("  watch    keyfuse top --config {}", word(path)),
        None => println!("  watch    keyfuse top --data {} --at {address}", word(&config.data)),
    }
    if let (Some(sql), Some((settings, _))) = (&sql, &config.sql) {
        println!(
            "  psql     psql \"host={} port={} user={}\"{}",
            sql.address.ip(),
            sql.address.port(),
            settings.user,
            if settings.password.is_some() { "" } else { "  (no password: everybody on this machine may ask)" }
        );
    }
    println!("  ask      keyfuse sql --archive {} \"SELECT event_name, count(*) FROM cloudtrail GROUP BY 1 ORDER BY 2 DESC\"\n", shell_word(&config.archive));

    let told = Arc::new(AtomicU64::new(0));
    let player = match &demo {
        Some(demo) => {
            let (stop, told, address, speed) = (Arc::clone(&stop), Arc::clone(&told), demo.broker.address(), Micros::from(args.speed));
            let once = args.once;
            let player = std::thread::Builder::new().name("story".into()).spawn(move || play(&address, speed, once, &stop, &told));
            Some(player.at(|| "starting the story".into()).map_err(one)?)
        }
        None => None,
    };
    let screen = Screen { style: Style { colour: coloured() }, live: std::io::stdout().is_terminal(), detections, quiet: !args.demo };
    let story_ends = args.once.then_some(&told);
    screen.watch(&show, &service, &stop, &reload, story_ends.map(AsRef::as_ref));
    stop.store(true, Ordering::Relaxed);
    println!("\nstopping: draining, writing the archive, delivering");
    let ended = service.stop();
    // What was decided while it drained.
    show.try_iter().for_each(|shown| match shown {
        Show::Alert(alert, delay) => screen.tell(&alert, delay),
        Show::Rows(_) => {}
    });
    drop(sql);
    questions.shutdown_background();
    if let Some(player) = player {
        player.join().map_err(|_| one(Error::bug("the story's thread panicked")))?.map_err(one)?;
    }
    ended.map_err(one)?;
    println!("stopped");
    // Threads that are on their way out would complain of a broker that went before them: it goes with the process.
    std::mem::forget(demo);
    Ok(Outcome::Clean)
}

/// A metric, summed over its labels.
fn sum_of(service: &Service, prefix: &str) -> u64 {
    let page = service.metrics.page();
    page.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn signals(runtime: &tokio::runtime::Runtime, stop: &Arc<AtomicBool>, reload: &Arc<AtomicBool>) {
    let stop_on_interrupt = Arc::clone(stop);
    runtime.spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop_on_interrupt.store(true, Ordering::Relaxed);
    });
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (stop, reload) = (Arc::clone(stop), Arc::clone(reload));
        runtime.spawn(async move {
            let (Ok(mut hangup), Ok(mut terminate)) = (signal(SignalKind::hangup()), signal(SignalKind::terminate())) else { return };
            loop {
                tokio::select! {
                    _ = hangup.recv() => reload.store(true, Ordering::Relaxed),
                    _ = terminate.recv() => stop.store(true, Ordering::Relaxed),
                }
            }
        });
    }
}

/// Watches the detections folder and the files of what is known of the own world.
fn watch(config: &Config, reload: &Arc<AtomicBool>) -> Option<notify::RecommendedWatcher> {
    use notify::Watcher;
    let reload = Arc::clone(reload);
    // Events name paths below what is watched: all are made absolute, so that they can be compared.
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let files: Vec<PathBuf> = config.known.each().map(|(_, path)| path).chain(&config.networks).map(absolute).collect();
    // Editors put a new file in the place of the old, and Kubernetes turns a link named `..data`: so the folder is watched, not the file.
    let folders: BTreeSet<PathBuf> = files.iter().filter_map(|file| file.parent()).map(Path::to_path_buf).collect();
    let detections = absolute(&config.detections);
    let watched: Vec<PathBuf> = folders.into_iter().chain([detections.clone()]).collect();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let wanted = |path: &PathBuf| path.starts_with(&detections) || files.contains(path) || path.file_name().is_some_and(|name| name == "..data");
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(wanted)) {
            reload.store(true, Ordering::Relaxed);
        }
    })
    .map_err(|error| tracing::warn!(%error, "files are not watched; send SIGHUP after a change"))
    .ok()?;
    for path in &watched {
        if let Err(error) = watcher.watch(path, notify::RecursiveMode::NonRecursive) {
            tracing::warn!(%error, path = %path.display(), "not watched; send SIGHUP after a change");
        }
    }
    Some(watcher)
}

#[derive(Clone)]
struct Web {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    orders: std::sync::mpsc::Sender<Order>,
}

fn router(web: Web) -> Router {
    let sweep = |State(web): State<Web>| async move {
        match web.orders.send(Order::Sweep) {
            Ok(()) => (StatusCode::ACCEPTED, "late rows are looked at; keyfuse_late_sweeps_total counts when it is done\n"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the service is ending\n"),
        }
    };
    let promote = |State(web): State<Web>, Name(name): Name<String>| async move {
        let (answer, answered) = oneshot::channel();
        let _ = web.orders.send(Order::Promote(name.clone(), answer));
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(Ok(Promotion::Done)) => (StatusCode::OK, format!("{name}: its new alerts are delivered from now on\n")),
            Ok(Ok(Promotion::Unknown)) => (StatusCode::NOT_FOUND, format!("{name}: no detection of that name is loaded\n")),
            Ok(Ok(Promotion::NotInShadow)) => (StatusCode::CONFLICT, format!("{name} is not in shadow: there is nothing to promote\n")),
            Ok(Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, "the service is ending\n".to_owned()),
            Err(_) => (StatusCode::ACCEPTED, format!("{name}: the engine is busy and has not answered yet; ask again to see\n")),
        }
    };
    let orders = Router::new().route("/sweep", post(sweep)).route("/promote/{detection}", post(promote)).route_layer(from_fn(from_here));
    let alive = |State(web): State<Web>| async move {
        let silent = clock::now() - web.health.last_progress.load(Ordering::Relaxed) as Micros;
        match (web.health.ready.load(Ordering::Relaxed) && silent > 60 * SECOND, web.health.trouble()) {
            (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "the engine has not moved for a minute\n".to_owned()),
            (false, Some(trouble)) => (StatusCode::OK, format!("working, with trouble: {trouble}\n")),
            (false, None) => (StatusCode::OK, "ok\n".to_owned()),
        }
    };
    let ready = |State(web): State<Web>| async move {
        match web.health.ready.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "no partitions assigned yet\n"),
        }
    };
    Router::new()
        .route("/metrics", get(|State(web): State<Web>| async move { ([("content-type", "text/plain; version=0.0.4")], web.metrics.page()) }))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .merge(orders)
        .with_state(web)
}

/// How long an order waits for the engine's answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Nobody logs in here, so orders are taken from the machine itself alone.
async fn from_here(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    match peer.ip().to_canonical() {
        ip if ip.is_loopback() => next.run(request).await,
        ip => (StatusCode::FORBIDDEN, format!("you ask from {ip}: orders are taken from this machine only, at 127.0.0.1 or [::1]\n")).into_response(),
    }
}

struct Screen {
    style: Style,
    live: bool,
    detections: HashMap<String, Detection>,
    /// Only alerts of the demo are shown on the terminal; a service has sinks for that.
    quiet: bool,
}

impl Screen {
    fn watch(&self, show: &Receiver<Show>, service: &Service, stop: &AtomicBool, reload: &AtomicBool, story: Option<&AtomicU64>) {
        let mut rows: Vec<(&'static str, u64)> = Vec::new();
        let mut last: (Instant, Vec<(&'static str, u64)>) = (Instant::now(), Vec::new());
        let mut heard: Option<(u64, Instant)> = None;
        while !stop.load(Ordering::Relaxed) && service.is_running() {
            if reload.swap(false, Ordering::Relaxed) {
                // An editor writes a file in several steps: wait for it to be done.
                std::thread::sleep(Duration::from_millis(300));
                reload.store(false, Ordering::Relaxed);
                service.reload();
            }
            match show.recv_timeout(Duration::from_millis(100)) {
                Ok(Show::Alert(alert, delay)) => self.tell(&alert, delay),
                Ok(Show::Rows(now)) => {
                    rows = now;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.quiet && last.0.elapsed() >= Duration::from_secs(2) {
                self.rates(&rows, &last, service);
                last = (Instant::now(), rows.clone());
            }
            if let Some(told) = story.map(|told| told.load(Ordering::Relaxed)).filter(|told| *told > 0) {
                let read = sum_of(service, "keyfuse_messages_total{");
                let (still, since) = heard.get_or_insert((read, Instant::now()));
                if *still != read {
                    heard = Some((read, Instant::now()));
                } else if read >= told && since.elapsed() > Duration::from_secs(3) {
                    return;
                }
            }
        }
    }

    fn tell(&self, alert: &Alert, delay: Option<Micros>) {
        if !self.quiet {
            self.line("");
            println!("{}", self.style.alert(alert, self.detections.get(&alert.detection), delay, alert.revision == 1));
        }
    }

    /// Rows per second by table, and what waits in the broker.
    fn rates(&self, rows: &[(&'static str, u64)], last: &(Instant, Vec<(&'static str, u64)>), service: &Service) {
        let seconds = last.0.elapsed().as_secs_f64();
        let rate = |(table, count): &(&'static str, u64)| {
            let before = last.1.iter().find(|(name, _)| name == table).map_or(0, |(_, count)| *count);
            format!("{table} {:.0}/s ({count})", (count - before) as f64 / seconds)
        };
        let lag = sum_of(service, "keyfuse_lag_messages{");
        let text = format!("rows {} · lag {lag} messages", rows.iter().map(rate).collect::<Vec<_>>().join(", "));
        self.line(&self.style.dim(&text));
    }

    /// Replaces the status line on a terminal; prints a line elsewhere.
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = match (self.live, text.is_empty()) {
            (true, _) => write!(out, "\r\x1b[K{text}"),
            (false, true) => Ok(()),
            (false, false) => writeln!(out, "{text}"),
        };
        let _ = out.flush();
    }
}

/// The embedded broker and the config of the service that reads from it.
struct Demo {
    broker: Broker,
    config: Config,
}

impl Demo {
    fn prepare(args: &Args) -> Result<Self, Vec<Error>> {
        let one = |error: Error| vec![error];
        let folder = match &args.demo_data {
            Some(folder) => folder.clone(),
            None => std::env::temp_dir().join(format!("keyfuse-demo-{}", std::process::id())),
        };
        if folder.join("alerts.log").exists() {
            return Err(one(Error::user(format!("{}: a demo was run there already; name a fresh folder", folder.display()))));
        }
        let detections = folder.join("detections");
        std::fs::create_dir_all(&detections).at(|| format!("creating {}", detections.display())).map_err(one)?;
        shipped()?;
        for (name, text) in keyfuse::shipped::detections() {
            std::fs::write(detections.join(name), text).at(|| format!("writing {name}")).map_err(one)?;
        }
        let broker = Broker::start().map_err(one)?;
        let topics: Vec<&str> = keyfuse::shipped::STORY.iter().map(|(topic, ..)| *topic).collect();
        let (agents, approvals) = (folder.join("agents.toml"), folder.join("approvals.toml"));
        for (path, text) in [(&agents, keyfuse::shipped::INVENTORY.0), (&approvals, keyfuse::shipped::INVENTORY.1)] {
            std::fs::write(path, text).at(|| format!("writing {}", path.display())).map_err(one)?;
        }
        for topic in &topics {
            broker.create_topic(topic, 2).map_err(one)?;
        }
        let config = Config {
            kafka: [("bootstrap.servers".to_owned(), broker.address())].into(),
            topics: topics.iter().map(|name| Topic { name: (*name).to_owned(), format: None }).collect(),
            dead_letter: None,
            detections,
            known: Files { agents: Some(agents), approvals: Some(approvals), ..Files::default() },
            dimension_topics: Default::default(),
            networks: Vec::new(),
            mappings: Vec::new(),
            archive: folder.join("archive").to_string_lossy().into_owned(),
            data: folder,
            archive_options: HashMap::new(),
            keep: None,
            commit_every: Duration::from_secs(5),
            keep_raw: true,
            listen: ([127, 0, 0, 1], 0).into(),
            sinks: Vec::new(),
            silences: Vec::new(),
            levels: Default::default(),
            residue_budget: 1 << 30,
            shadow: None,
            sql: Some((
                wire::Settings { listen: ([127, 0, 0, 1], 0).into(), user: "keyfuse".into(), password: None, tls: None, connections: 32 },
                Limits { time: Duration::from_secs(60), ..Limits::default() },
            )),
            canaries: Some(Canaries { every: 10 * clock::MINUTE, within: clock::MINUTE }),
        };
        Ok(Self { broker, config })
    }
}
