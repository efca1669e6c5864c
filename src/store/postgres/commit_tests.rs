//! The outcome of a write whose COMMIT got no answer: the connection broke, or the server crashed.

use std::sync::{Arc, Mutex};

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::block_in_place;

use super::sql::Sql;
use super::tests::{server, settings};
use super::*;
use crate::store::Store as _;
use crate::store::conformance::new_call;

/// The action of a relay on the next COMMIT that it sees.
enum AtCommit {
    Pass,
    /// The COMMIT gets there; its answer does not.
    LoseTheAnswer,
    /// The COMMIT does not get there.
    LoseIt,
    /// The relay tells that the COMMIT has come, and loses it once it may go on.
    Hold(oneshot::Sender<()>, oneshot::Receiver<()>),
}

/// Between us and the server. Returns its port.
async fn relay(to: u16, at_commit: Arc<Mutex<AtCommit>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, to, at_commit.clone()));
        }
    });
    port
}

async fn pass(mut client: TcpStream, to: u16, at_commit: Arc<Mutex<AtCommit>>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    let (mut from_client, mut from_server) = ([0; 65_536], [0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let sent = &from_client[..read?];
                let commit = sent.windows(7).any(|w| w == b"COMMIT\0");
                let fault = match commit {
                    true => std::mem::replace(&mut *at_commit.lock().unwrap(), AtCommit::Pass),
                    false => AtCommit::Pass,
                };
                if sent.is_empty() {
                    return Ok(());
                }
                match fault {
                    AtCommit::Pass => server.write_all(sent).await?,
                    AtCommit::LoseTheAnswer => {
                        server.write_all(sent).await?;
                        let _ = server.read(&mut from_server).await?;
                        return Ok(());
                    }
                    AtCommit::LoseIt => return Ok(()),
                    AtCommit::Hold(came, go_on) => {
                        let _ = came.send(());
                        let _ = go_on.await;
                        return Ok(());
                    }
                }
            }
            read = server.read(&mut from_server) => match read? {
                0 => return Ok(()),
                said => client.write_all(&from_server[..said]).await?,
            },
        }
    }
}

#[tokio::test]
async fn what_became_of_a_commit_without_an_answer_is_found_out() {
    if server::is_missing() {
        return;
    }
    let (url, port) =
        tokio::task::spawn_blocking(|| (server::shared().database_over_tcp(), server::shared().port)).await.unwrap();
    let at_commit = Arc::new(Mutex::new(AtCommit::Pass));
    let through = relay(port, at_commit.clone()).await;
    let mut settings = settings(&url.replace(&port.to_string(), &through.to_string()));
    settings.pooler = Pooler::None;
    let store =
        PostgresStore::open(&settings, Migrate::Run, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap();
    // No COMMIT but those of this test.
    store.beating.lock().await.take().unwrap().abort();
    for (fault, written) in [(AtCommit::LoseTheAnswer, true), (AtCommit::LoseIt, false)] {
        let call = new_call(&[]);
        let what = format!("written: {written}");
        *at_commit.lock().unwrap() = fault;
        let opened = store.insert_call(call.clone(), None).await;
        assert!(matches!(*at_commit.lock().unwrap(), AtCommit::Pass), "it met a COMMIT");
        assert_eq!(opened.is_ok(), written, "{what}: {opened:?}");
        assert_eq!(store.call(&call.id).await.unwrap().is_some(), written, "{what}");
    }
    store.close().await;
}

/// A way in which a server loses what it has not written to its log.
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
    let at_commit = Arc::new(Mutex::new(AtCommit::Pass));
    let through = relay(server.port, at_commit.clone()).await;
    let mut settings = settings(&database.replace(&server.port.to_string(), &through.to_string()));
    settings.pooler = Pooler::None;
    let store =
        PostgresStore::open(&settings, Migrate::Run, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap();
    // Nobody else's COMMIT writes the log.
    store.beating.lock().await.take().unwrap().abort();
    let store = Arc::new(store);
    for crash in [Crash::Server, Crash::Session] {
        let ((came, comes), (go_on, goes_on)) = (oneshot::channel(), oneshot::channel());
        *at_commit.lock().unwrap() = AtCommit::Hold(came, goes_on);
        let call = new_call(&[]);
        let opening = tokio::spawn({
            let (store, call) = (store.clone(), call.clone());
            async move { store.insert_call(call, None).await }
        });
        comes.await.unwrap();
        let sql = "SELECT backend_xid::text || ' ' || pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL";
        let open = block_in_place(|| server.psql("postgres", sql));
        let (xid, pid) = open.trim().split_once(' ').unwrap();
        let (xid, pid): (i64, i64) = (xid.parse().unwrap(), pid.parse().unwrap());
        block_in_place(|| crash.happens(&mut server, pid));
        give_number_away(&database, xid).await;
        go_on.send(()).unwrap();
        let opened = opening.await.unwrap();
        assert!(matches!(opened, Err(StoreError::Unknown(_))), "{crash:?}: {opened:?}");
        store.settle_doubt(&call.id).await.unwrap();
        assert!(store.call(&call.id).await.unwrap().is_none(), "{crash:?}");
    }
    store.close().await;
}
