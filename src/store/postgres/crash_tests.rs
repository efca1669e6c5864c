//! What a write is told whose COMMIT met a crash of the server.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::block_in_place;

use super::tests::{server, settings};
use super::*;
use crate::store::Store as _;
use crate::store::conformance::new_call;

/// A relay before a server that tells when the next COMMIT has come, keeps it, and drops it when it may go on.
struct Relay {
    port: u16,
    armed: Arc<std::sync::Mutex<Option<oneshot::Sender<()>>>>,
    go_on: Arc<Notify>,
}

impl Relay {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::<std::sync::Mutex<Option<oneshot::Sender<()>>>>::default();
        let go_on = Arc::<Notify>::default();
        let relay = Self { port, armed: armed.clone(), go_on: go_on.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, to, armed.clone(), go_on.clone()));
            }
        });
        relay
    }

    fn keep_next_commit(&self) -> oneshot::Receiver<()> {
        let (came, comes) = oneshot::channel();
        *self.armed.lock().unwrap() = Some(came);
        comes
    }
}

async fn pass(
    mut client: TcpStream,
    to: u16,
    armed: Arc<std::sync::Mutex<Option<oneshot::Sender<()>>>>,
    go_on: Arc<Notify>,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    let (mut from_client, mut from_server) = ([0; 65_536], [0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let sent = &from_client[..read?];
                let is_commit = sent.windows(7).any(|w| w == b"COMMIT\0");
                let kept = if is_commit { armed.lock().unwrap().take() } else { None };
                if let Some(came) = kept {
                    let _ = came.send(());
                    go_on.notified().await;
                    return Ok(());
                }
                if sent.is_empty() {
                    return Ok(());
                }
                server.write_all(sent).await?;
            }
            read = server.read(&mut from_server) => match read? {
                0 => return Ok(()),
                said => client.write_all(&from_server[..said]).await?,
            },
        }
    }
}

/// How a server loses what it has not written to its log.
#[derive(Debug, Clone, Copy)]
enum Crash {
    /// All of it ends, and is started again.
    Server,
    /// One session is killed; the server throws the others out and goes on.
    Session,
}

impl Crash {
    fn happens(self, server: &mut server::Server, pid: i64) {
        match self {
            Self::Server => {
                server.stop("QUIT");
                server.start_again();
            }
            Self::Session => {
                let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
                assert!(killed.success());
            }
        }
    }
}

/// Makes transactions until one has this number, once the one that had it before is over.
async fn give_number_away(url: &str, xid: i64) {
    let mut is_over = false;
    loop {
        // Nobody is let in while the server recovers.
        let made: Sql<(i64, Option<String>)> = async {
            let mut c = PgConnection::connect(url).await?;
            if !is_over {
                let status = sqlx::query("SELECT txid_status($1) AS status").bind(xid).fetch_one(&mut c).await;
                is_over = match status {
                    Ok(row) => row.try_get::<String, _>("status")? != "in progress",
                    Err(error) => transaction::is_from_future(&error),
                };
                return Ok((0, None));
            }
            let made: i64 = sqlx::query("SELECT txid_current() AS xid").fetch_one(&mut c).await?.try_get("xid")?;
            if made < xid {
                return Ok((made, None));
            }
            let status = sqlx::query("SELECT txid_status($1) AS status").bind(xid).fetch_one(&mut c).await?;
            Ok((made, status.try_get("status")?))
        }
        .await;
        match made {
            Ok((made, status)) if made >= xid => return assert_eq!(status.as_deref(), Some("committed")),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A crashed server gives the numbers of transactions that left no trace in its log to later ones. What such a one did is no
/// news of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_commit_does_not_lend_a_write_the_outcome_of_another() {
    if server::is_missing() {
        return;
    }
    let mut server = block_in_place(|| server::Server::start_as(true));
    let database = block_in_place(|| server.database_over_tcp());
    // Otherwise the log is written within 200 ms.
    block_in_place(|| server.psql("postgres", "ALTER SYSTEM SET wal_writer_delay = '10s'"));
    block_in_place(|| server.stop("INT"));
    block_in_place(|| server.start_again());
    let relay = Relay::start(server.port).await;
    let mut settings = settings(&database.replace(&server.port.to_string(), &relay.port.to_string()));
    settings.pooler = Pooler::None;
    let store = PostgresStore::open(&settings, true, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap();
    // Nobody else's COMMIT writes the log.
    store.beating.lock().await.take().unwrap().abort();
    let store = Arc::new(store);
    for crash in [Crash::Server, Crash::Session] {
        let came = relay.keep_next_commit();
        let call = new_call(&[]);
        let opening = tokio::spawn({
            let (store, call) = (store.clone(), call.clone());
            async move { store.open(call, None).await }
        });
        came.await.unwrap();
        let sql = "SELECT backend_xid::text || ' ' || pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
        let open = block_in_place(|| server.psql("postgres", sql));
        let (xid, pid) = open.trim().split_once(' ').unwrap();
        let (xid, pid): (i64, i64) = (xid.parse().unwrap(), pid.parse().unwrap());
        block_in_place(|| crash.happens(&mut server, pid));
        give_number_away(&database, xid).await;
        relay.go_on.notify_one();
        let opened = opening.await.unwrap();
        assert!(matches!(opened, Err(StoreError::Unknown(_))), "{crash:?}: {opened:?}");
        store.settle_doubt(&call.id).await.unwrap();
        assert!(store.call(&call.id).await.unwrap().is_none(), "{crash:?}");
    }
    store.close().await;
}
