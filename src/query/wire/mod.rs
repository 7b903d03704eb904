//! The SQL door on the PostgreSQL wire: psql, Grafana, drivers.
//!
//! Protocol and types are pgwire's and arrow-pg's; what may be asked, how much it may cost and who is told about it is ours. A loop of
//! our own carries the connections: pgwire's goes on reading after a failed login, and answers what it then reads.

mod catalog;
mod clients;
mod copy;
mod parameters;
mod patience;
mod rows;
mod session;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Sink, SinkExt, StreamExt};
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::{ScramAuth, gen_salted_password};
use pgwire::api::auth::{AuthSource, LoginInfo, Password, StartupHandler, finish_authentication, protocol_negotiation, save_startup_parameters_to_metadata};
use pgwire::api::cancel::DefaultCancelHandler;
use pgwire::api::{ClientInfo, ConnectionManager, METADATA_USER, NoopHandler, PgWireConnectionState, PidSecretKeyGenerator, RandomPidSecretKeyGenerator};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::server::{negotiate_tls, process_error, process_message};
use pgwire::tokio::{TlsAcceptor, tokio_rustls::rustls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::codec::{Framed, FramedParts};

use super::Doors;
use crate::error::{At, Error, Result};
use crate::limits::{SQL_IDLE, SQL_UNREAD};
use crate::secret::Fingerprinter;
use catalog::PgCatalog;
use parameters::Announced;
use patience::Patient;
use session::{Question, Session};

/// How the door listens, and to whom.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub user: String,
    /// File that holds the password; without one, everybody who can connect may ask.
    pub password: Option<PathBuf>,
    /// Certificate chain and key, as PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub connections: usize,
}

impl Settings {
    /// Why these settings must not be used.
    ///
    /// # Errors
    /// Beyond this machine nobody may ask without a password, nor be heard asking.
    pub fn proven(self) -> Result<Self, String> {
        if !self.listen.ip().is_loopback() && (self.password.is_none() || self.tls.is_none()) {
            return Err(format!("{} can be reached from other machines: that needs password_file, tls_cert and tls_key", self.listen));
        }
        Ok(self)
    }

    /// Whether the files that these settings name can be used.
    ///
    /// # Errors
    /// One of them cannot be read, or is not what it should be.
    pub fn opens(&self) -> Result<()> {
        self.opened().map(|_| ())
    }

    fn opened(&self) -> Result<(Option<Arc<OneUser>>, Option<TlsAcceptor>)> {
        let login = match &self.password {
            Some(path) => {
                let password = std::fs::read_to_string(path).user_at(|| format!("[sql] password_file {}", path.display()))?;
                let password = password.trim_end_matches(['\r', '\n']);
                if password.is_empty() {
                    return Err(Error::user(format!("[sql] password_file {}: is empty", path.display())));
                }
                Some(Arc::new(OneUser::new(&self.user, password)))
            }
            None => None,
        };
        Ok((login, self.tls.as_ref().map(|(certificate, key)| acceptor(certificate, key)).transpose()?))
    }
}

/// Time from connecting to having logged in.
const LOGIN: Duration = Duration::from_secs(10);
/// Connections beyond those that have a place: to cancel questions where all have one, and to be told that there is none.
const STANDING: usize = 8;
/// A peer that has vanished is noticed by probes from then on.
const PROBED_AFTER: Duration = Duration::from_secs(60);
/// RFC 7677's least.
const ITERATIONS: usize = 4096;

/// A door that is open.
pub struct Listening {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens until the value is dropped. Call it on the runtime of [`super::runtime`]: questions are planned on its deep stacks.
///
/// # Errors
/// The address is taken, or a file cannot be read.
pub async fn listen(settings: &Settings, doors: Arc<Doors>, fingerprinter: &Fingerprinter) -> Result<Listening> {
    let listener = TcpListener::bind(settings.listen).await.user_at(|| format!("[sql] listen {}", settings.listen))?;
    let address = listener.local_addr().at(|| "the SQL address".into())?;
    let (login, tls) = settings.opened()?;
    let catalog = PgCatalog::of(&doors.open().await?.ctx).await?;
    let manager = Arc::new(ConnectionManager::new());
    let shared = Arc::new(Shared {
        question: Question { doors, catalog: Arc::new(catalog), fingerprinter: fingerprinter.clone() },
        login,
        tls,
        cancel: Arc::new(DefaultCancelHandler::new(Arc::clone(&manager))),
        manager,
        places: Arc::new(Semaphore::new(settings.connections.min(Semaphore::MAX_PERMITS))),
        connections: settings.connections,
    });
    let standing = Arc::new(Semaphore::new(settings.connections.saturating_add(STANDING).min(Semaphore::MAX_PERMITS)));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((socket, from)) = accepted else {
                        // Out of file descriptors, most likely: others must end first.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    let Ok(room) = Arc::clone(&standing).try_acquire_owned() else {
                        tracing::warn!(%from, "no room to even refuse another SQL connection");
                        continue;
                    };
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        let ended = connection(socket, &shared).await;
                        if let Err(error) = ended {
                            tracing::debug!(%from, %error, "a SQL connection ended");
                        }
                        drop(room);
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    Ok(Listening { address, task })
}

struct Shared {
    question: Question,
    login: Option<Arc<OneUser>>,
    tls: Option<TlsAcceptor>,
    manager: Arc<ConnectionManager>,
    cancel: Arc<DefaultCancelHandler>,
    /// Of those who log in, each until its connection ends.
    places: Arc<Semaphore>,
    connections: usize,
}

async fn connection(socket: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBED_AFTER))?;
    let login_by = Instant::now() + LOGIN;
    let Ok(socket) = timeout_at(login_by, negotiate_tls::<session::Statement>(socket, shared.tls.clone())).await else { return Ok(()) };
    let Some(socket) = socket? else { return Ok(()) };
    let parts = socket.into_parts();
    let mut patient = FramedParts::new(Patient::new(parts.io, SQL_UNREAD), parts.codec);
    (patient.read_buf, patient.write_buf) = (parts.read_buf, parts.write_buf);
    let mut socket = Framed::from_parts(patient);
    let startup = Arc::new(Startup::new(shared));
    let session = Arc::new(Session::new(shared.question.clone()));
    loop {
        let early = matches!(socket.state(), PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress);
        let until = if early { login_by } else { Instant::now() + SQL_IDLE };
        let message = match timeout_at(until, socket.next()).await {
            Ok(Some(Ok(message))) => message,
            Err(_) if !early => {
                let idle = ErrorInfo::new("FATAL".into(), "57P05".into(), format!("nothing was asked for {} s: connect again", SQL_IDLE.as_secs()));
                return socket.send(PgWireBackendMessage::ErrorResponse(idle.into())).await;
            }
            _ => return Ok(()),
        };
        if matches!(message, PgWireFrontendMessage::Terminate(_)) {
            return Ok(());
        }
        let is_extended = message.is_extended_query();
        let (startup, simple, extended) = (Arc::clone(&startup), Arc::clone(&session), Arc::clone(&session));
        let done = process_message(message, &mut socket, startup, simple, extended, Arc::new(NoopHandler), Arc::clone(&shared.cancel)).await;
        if let Err(error) = done {
            let info: ErrorInfo = error.into();
            // Whoever fails to log in has said all that is heard of him.
            let ends = info.is_fatal() || early;
            if early {
                let user = socket.metadata().get(METADATA_USER).cloned().unwrap_or_default();
                tracing::warn!(target: "keyfuse::audit", user, from = %socket.socket_addr(), reason = info.message, "a login was refused");
            }
            process_error(&mut socket, PgWireError::UserError(Box::new(info)), is_extended).await?;
            if ends {
                return Ok(());
            }
        }
    }
}

fn acceptor(certificate: &std::path::Path, key: &std::path::Path) -> Result<TlsAcceptor> {
    let place = |what: &str, path: &std::path::Path| format!("[sql] {what} {}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate).user_at(|| place("tls_cert", certificate))?;
    let chain = chain.collect::<std::result::Result<Vec<_>, _>>().user_at(|| place("tls_cert", certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).user_at(|| place("tls_key", key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().at(|| "TLS versions".into())?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, private).user_at(|| place("tls_cert", certificate))?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// An error as the wire says it.
fn failure(severity: &str, code: &str, message: &str) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new(severity.into(), code.into(), message.into())))
}

/// The user who may ask. The password itself is not kept.
struct OneUser {
    name: String,
    salt: Vec<u8>,
    salted: Vec<u8>,
    /// What a name that is not known is compared with.
    decoy: [u8; 32],
}

impl std::fmt::Debug for OneUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OneUser({})", self.name)
    }
}

impl OneUser {
    fn new(name: &str, password: &str) -> Self {
        let salt: [u8; 16] = rand::random();
        Self { name: name.into(), salted: gen_salted_password(password, &salt, ITERATIONS), salt: salt.into(), decoy: rand::random() }
    }
}

#[async_trait]
impl AuthSource for OneUser {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let known = login.user() == Some(self.name.as_str());
        Ok(Password::new(Some(self.salt.clone()), if known { self.salted.clone() } else { self.decoy.to_vec() }))
    }
}

/// Who is let in: whoever knows the password, or everybody who can connect.
struct Startup {
    shared: Arc<Shared>,
    scram: Option<SASLAuthStartupHandler<Announced>>,
}

impl Startup {
    fn new(shared: &Arc<Shared>) -> Self {
        let scram = shared.login.as_ref().map(|login| {
            let mut scram = ScramAuth::new(Arc::clone(login) as Arc<dyn AuthSource>);
            scram.set_iterations(ITERATIONS);
            SASLAuthStartupHandler::new(Arc::new(Announced)).with_scram(scram).with_connection_manager(Arc::clone(&shared.manager))
        });
        Self { shared: Arc::clone(shared), scram }
    }

    /// Lets in without a password.
    async fn trust<C>(&self, client: &mut C, startup: &pgwire::messages::startup::Startup) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        protocol_negotiation(client, startup).await?;
        save_startup_parameters_to_metadata(client, startup);
        let (number, key) = NUMBERS.generate(client);
        client.set_pid_and_secret_key(number, key.clone());
        let (handle, registered) = self.shared.manager.register(number, key);
        client.session_extensions().insert(handle);
        client.session_extensions().insert(registered);
        finish_authentication(client, &Announced).await
    }
}

/// Numbers and keys by which those without a password cancel what they ask.
static NUMBERS: LazyLock<RandomPidSecretKeyGenerator> = LazyLock::new(RandomPidSecretKeyGenerator::default);

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let PgWireFrontendMessage::Startup(_) = &message {
            if self.scram.is_some() && self.shared.tls.is_some() && !client.is_secure() {
                return Err(failure("FATAL", "28000", "TLS is required: connect with sslmode=require or better"));
            }
            let taken =
                || failure("FATAL", "53300", &format!("all {} places are taken: end another connection, or raise [sql] connections", self.shared.connections));
            let place = Arc::clone(&self.shared.places).try_acquire_owned().map_err(|_| taken())?;
            client.session_extensions().insert(place);
        }
        match (&self.scram, &message) {
            (Some(scram), _) => scram.on_startup(client, message).await?,
            (None, PgWireFrontendMessage::Startup(startup)) => self.trust(client, startup).await?,
            (None, _) => {}
        }
        if matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            let user = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
            client.session_extensions().insert(session::LoggedIn { user });
        }
        Ok(())
    }
}
