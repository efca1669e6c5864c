//! Finds the server that has the pool's keys, and uses one connection for all decisions.
//!
//! The driver follows no redirections and retries nothing: a pool's keys are in one hash slot, so one connection to the master of
//! that slot is sufficient, and `MOVED` names it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSubStream};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates, Value};
use tokio::time::timeout;

use super::RedisSettings;
use super::keys::Keys;
use super::scripts::{SCRIPTS, SOURCES, Script};
use super::settings::Finding;

/// The longest wait for a connection and its preparation.
const READY_WITHIN: Duration = Duration::from_secs(1);
/// Redirections that are followed in a row.
const HOPS_MAX: usize = 5;

/// The reason why a server gave no usable answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server did not answer in time. The operation may still happen.
    Late(Duration),
    /// The connection or the server failed: it is unusable until it was checked.
    Away(String),
    /// Only this answer failed.
    Answer(String),
    /// Another node has the keys.
    Moved(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Late(bound) => write!(f, "no answer within {} ms", bound.as_millis()),
            Self::Away(why) | Self::Answer(why) => f.write_str(why),
            Self::Moved(to) => write!(f, "the keys are at {to}"),
        }
    }
}

/// Error codes of a server that cannot serve any request.
const OUT_OF_SERVICE: [&str; 13] = [
    "LOADING",
    "READONLY",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "ASK",
    "TRYAGAIN",
    "NOREPLICAS",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "BUSY",
];

impl From<RedisError> for Fault {
    fn from(error: RedisError) -> Self {
        let (code, said) = (error.code().unwrap_or_default(), sentence(&error));
        match error.redirect_node() {
            Some((to, _)) if code == "MOVED" => Self::Moved(to.to_owned()),
            _ if code.is_empty() || OUT_OF_SERVICE.contains(&code) => Self::Away(said),
            _ => Self::Answer(said),
        }
    }
}

/// The server's error message, or the connection's error.
fn sentence(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ => error.to_string(),
    }
}

/// A connection to the server, with all scripts loaded.
pub(super) struct Link {
    connection: MultiplexedConnection,
    hashes: [String; SCRIPTS],
    /// The server's address.
    pub address: String,
    /// The way in which it was opened.
    pub info: ConnectionInfo,
    /// Late answers in a row.
    pub late: AtomicU32,
}

impl Link {
    /// Runs a script, and loads it again if the server has dropped it.
    pub(super) async fn run(&self, script: Script, keys: &[String], args: &[String]) -> Result<Value, Fault> {
        let run = || {
            let mut command = redis::cmd("EVALSHA");
            command.arg(&self.hashes[script as usize]).arg(keys.len()).arg(keys).arg(args);
            command
        };
        let mut connection = self.connection.clone();
        match run().query_async(&mut connection).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                load(&mut connection, script.source()).await?;
                Ok(run().query_async(&mut connection).await?)
            }
            other => Ok(other?),
        }
    }

    /// Runs a command.
    pub(super) async fn command(&self, command: &Cmd) -> Result<Value, Fault> {
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    /// Publishes messages on a channel, in one round trip.
    pub(super) async fn publish(&self, channel: &str, words: &[String]) -> Result<(), Fault> {
        let mut all = redis::pipe();
        for word in words {
            all.publish(channel, word).ignore();
        }
        Ok(all.query_async(&mut self.connection.clone()).await?)
    }

    /// Checks that this server can do all that the limiter needs, within a time.
    pub(super) async fn probe(&self, keys: &Keys, bound: Duration) -> Result<(), Fault> {
        let probed = match timeout(bound, self.run(Script::Probe, &keys.probe(), &[])).await {
            Ok(said) => said?,
            Err(_) => return Err(Fault::Late(bound)),
        };
        match failures(probed)?.into_iter().next() {
            None => Ok(()),
            Some((command, why)) => Err(Fault::Away(format!("{command}: {why}"))),
        }
    }

    /// Notes whether an answer was late. Returns how many were, in a row.
    pub(super) fn note_answer(&self, answer: &Result<(), Fault>) -> u32 {
        if let Err(Fault::Late(_)) = answer {
            return self.late.fetch_add(1, Ordering::Relaxed) + 1;
        }
        self.late.store(0, Ordering::Relaxed);
        0
    }
}

/// The commands that failed in the probe, and why.
pub(super) fn failures(probed: Value) -> Result<Vec<(String, String)>, Fault> {
    let words: Vec<String> = redis::from_redis_value(probed).map_err(|error| Fault::Answer(error.to_string()))?;
    let failed: Vec<_> =
        words[1.min(words.len())..].chunks_exact(2).map(|two| (two[0].clone(), two[1].clone())).collect();
    // A failure that follows from an earlier one is omitted.
    Ok(failed.into_iter().filter(|(_, why)| !why.contains("no such key")).collect())
}

async fn load(connection: &mut MultiplexedConnection, source: &str) -> Result<String, RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(source).query_async(connection).await
}

async fn client(info: &ConnectionInfo, settings: &RedisSettings) -> Result<Client, Fault> {
    Ok(match (info.addr(), &settings.ca_file) {
        (ConnectionAddr::TcpTls { .. }, Some(file)) => {
            let pem = tokio::fs::read(file).await;
            let pem = pem.map_err(|error| Fault::Away(format!("cannot read {}: {error}", file.display())))?;
            Client::build_with_tls(info.clone(), TlsCertificates { client_tls: None, root_cert: Some(pem) })?
        }
        _ => Client::open(info.clone())?,
    })
}

/// Subscribes to a channel.
pub(super) async fn subscribe(
    info: &ConnectionInfo,
    settings: &RedisSettings,
    channel: &str,
) -> Result<PubSubStream, Fault> {
    let client = client(info, settings).await?;
    let opened = async {
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(channel).await?;
        Ok::<_, Fault>(listener.into_on_message())
    };
    timeout(READY_WITHIN, opened).await.unwrap_or(Err(Fault::Late(READY_WITHIN)))
}

/// Opens a bare connection.
async fn open(info: &ConnectionInfo, settings: &RedisSettings) -> Result<MultiplexedConnection, Fault> {
    let client = client(info, settings).await?;
    // Every wait is bounded by its caller: here, and where scripts run.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    match timeout(READY_WITHIN, client.get_multiplexed_async_connection_with_config(&config)).await {
        Ok(opened) => opened.map_err(|error| Fault::Away(format!("{}: {}", info.addr(), sentence(&error)))),
        Err(_) => Err(Fault::Away(format!("{}: no connection within {} ms", info.addr(), READY_WITHIN.as_millis()))),
    }
}

/// A prepared connection to one server: the scripts are loaded, and it answers within a decision's time.
async fn ready(info: &ConnectionInfo, settings: &RedisSettings, keys: &Keys) -> Result<Link, Fault> {
    let link = bare(info, settings).await?;
    link.probe(keys, READY_WITHIN).await?;
    let rest = async {
        for source in &SOURCES[1..] {
            load(&mut link.connection.clone(), source).await?;
        }
        Ok::<_, Fault>(())
    };
    timeout(READY_WITHIN, rest).await.map_err(|_| Fault::Late(READY_WITHIN))??;
    link.probe(keys, settings.timeout).await?;
    Ok(link)
}

/// An unprepared connection to one server.
async fn bare(info: &ConnectionInfo, settings: &RedisSettings) -> Result<Link, Fault> {
    let connection = open(info, settings).await?;
    let hashes = SOURCES.map(hash);
    let late = AtomicU32::new(0);
    Ok(Link { connection, hashes, address: info.addr().to_string(), info: info.clone(), late })
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Decisions: the scripts are loaded, and the server answers in time.
    Decide,
    /// An inspection or a subscription: unprepared.
    Inspect,
}

async fn connect(
    info: &ConnectionInfo,
    settings: &RedisSettings,
    keys: &Keys,
    purpose: Purpose,
) -> Result<Link, Fault> {
    match purpose {
        Purpose::Inspect => bare(info, settings).await,
        Purpose::Decide => ready(info, settings, keys).await,
    }
}

/// The name of a script at the server.
fn hash(source: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes()))
}

/// Connects to the server that has the pool's keys: prepared for decisions, or unprepared for an inspection.
pub(super) async fn find(settings: &RedisSettings, keys: &Keys, purpose: Purpose) -> Result<Link, Fault> {
    let mut last = Fault::Away("no address".to_owned());
    match settings.finding().map_err(Fault::Away)? {
        Finding::Named(info) => return connect(&info, settings, keys, purpose).await,
        Finding::Sentinels { sentinels, name, master } => {
            for sentinel in &sentinels {
                // A partitioned sentinel may name an old master, so each is queried until one names a good one.
                let tried = match ask_sentinel(sentinel, &master, &name, settings).await {
                    Ok(info) => connect(&info, settings, keys, purpose).await,
                    Err(fault) => Err(fault),
                };
                match tried {
                    Ok(link) => return Ok(link),
                    Err(fault) => last = fault,
                }
            }
        }
        Finding::Cluster(nodes) => {
            for node in nodes {
                match follow(node, settings, keys, purpose).await {
                    Ok(link) => return Ok(link),
                    Err(fault) => last = fault,
                }
            }
        }
    }
    Err(last)
}

/// Queries a node of a cluster, and follows its redirection.
async fn follow(
    mut node: ConnectionInfo,
    settings: &RedisSettings,
    keys: &Keys,
    purpose: Purpose,
) -> Result<Link, Fault> {
    for _ in 0..HOPS_MAX {
        let there = match connect(&node, settings, keys, purpose).await {
            // An unprepared node was not queried yet.
            Ok(link) => match timeout(READY_WITHIN, link.command(redis::cmd("GET").arg(keys.epoch()))).await {
                Ok(Err(Fault::Moved(to))) => Err(Fault::Moved(to)),
                _ => Ok(link),
            },
            Err(fault) => Err(fault),
        };
        match there {
            Err(Fault::Moved(to)) => node = moved(&node, &to)?,
            other => return other,
        }
    }
    Err(Fault::Away(format!("{}: redirected more than {HOPS_MAX} times", settings.shown())))
}

fn moved(from: &ConnectionInfo, to: &str) -> Result<ConnectionInfo, Fault> {
    let (host, port) = to.rsplit_once(':').ok_or_else(|| Fault::Away(format!("redirected to {to}")))?;
    // A node that does not know its own name redirects to a port of the queried host.
    let host = match (host, from.addr()) {
        ("", ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host,
        (host, _) => host,
    };
    at(from, host, port)
}

/// The same server at another address.
fn at(info: &ConnectionInfo, host: &str, port: &str) -> Result<ConnectionInfo, Fault> {
    let port = port.parse().map_err(|_| Fault::Away(format!("redirected to {host}:{port}")))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let address = match info.addr() {
        ConnectionAddr::TcpTls { .. } => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        _ => ConnectionAddr::Tcp(host, port),
    };
    Ok(info.clone().set_addr(address))
}

async fn ask_sentinel(
    sentinel: &ConnectionInfo,
    master: &ConnectionInfo,
    name: &str,
    settings: &RedisSettings,
) -> Result<ConnectionInfo, Fault> {
    let said = match named_by(sentinel, name, settings).await {
        // Most sentinels have no password. Where they have one, it is the servers'.
        Err(Fault::Away(why)) if why.contains("NOAUTH") => {
            let credentials = master.redis_settings().clone().set_db(0);
            named_by(&sentinel.clone().set_redis_settings(credentials), name, settings).await
        }
        other => other,
    };
    let unknown = |why: String| Fault::Away(format!("sentinel {}: {why}", sentinel.addr()));
    match said.map_err(|fault| unknown(fault.to_string()))? {
        Some((host, port)) => at(master, &host, &port),
        None => Err(unknown(format!("does not know master {name:?}"))),
    }
}

async fn named_by(
    sentinel: &ConnectionInfo,
    name: &str,
    settings: &RedisSettings,
) -> Result<Option<(String, String)>, Fault> {
    let mut connection = open(sentinel, settings).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    match timeout(READY_WITHIN, command.query_async(&mut connection)).await {
        Ok(said) => Ok(said?),
        Err(_) => Err(Fault::Late(READY_WITHIN)),
    }
}

/// The master's address by the sentinels, if sentinels are configured and one answers.
pub(super) async fn master(settings: &RedisSettings) -> Option<String> {
    let Ok(Finding::Sentinels { sentinels, name, master }) = settings.finding() else { return None };
    for sentinel in &sentinels {
        if let Ok(info) = ask_sentinel(sentinel, &master, &name, settings).await {
            return Some(info.addr().to_string());
        }
    }
    None
}
