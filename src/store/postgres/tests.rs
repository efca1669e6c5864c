use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::provider::secret::Secret;
use crate::store::suite::{self, Fresh, new_call};

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/postgres.rs"]
mod server;

/// A database of a test's own, straight or through a pooler.
struct Fence {
    settings: Settings,
    straight: PgPool,
    url: String,
}

fn settings(url: &str) -> Settings {
    Settings::new(Secret::new(url)).unwrap()
}

/// A database, unless there is no Postgres here. The first that asks starts the server, which blocks.
async fn fresh() -> Option<Fence> {
    if server::is_missing() {
        return None;
    }
    let url = tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap();
    let options = PgConnectOptions::from_str(&url).unwrap().options([("search_path", "ringfence")]);
    let straight = PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
    Some(Fence { settings: settings(&url), straight, url })
}

/// The same behind PgBouncer.
async fn pooled() -> Option<Fence> {
    let fence = fresh().await?;
    if server::Bouncer::is_missing() {
        return None;
    }
    let bouncer = tokio::task::spawn_blocking(server::shared_bouncer).await.unwrap();
    Some(Fence { settings: settings(&bouncer.url(&fence.url)), ..fence })
}

impl Fence {
    async fn store(&self) -> PostgresStore {
        PostgresStore::open(&self.settings, true, |why| panic!("{why}")).await.unwrap()
    }
    async fn refused(&self) -> String {
        let Err(error) = PostgresStore::open(&self.settings, true, |_| {}).await else { panic!("it opened") };
        error.to_string()
    }
}

#[async_trait]
impl Fresh for Fence {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.store().await)
    }
    async fn execute(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.straight).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&self.straight).await.unwrap()
    }
}

suite::behaves_as_a_store!(fresh);

mod behind_pgbouncer {
    use super::pooled;

    super::suite::behaves_as_a_store!(pooled);

    #[tokio::test]
    async fn a_pooler_is_found_out_and_no_server_is_taken_for_one() {
        let (Some(pooled), Some(straight)) = (pooled().await, super::fresh().await) else { return };
        for _ in 0..5 {
            assert!(super::inspect::server(&pooled.settings).await.unwrap().pooled);
            assert!(!super::inspect::server(&straight.settings).await.unwrap().pooled);
        }
    }
}

#[test]
fn both_back_ends_have_the_same_migrations() {
    let names = |folder: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("postgres"), names("sqlite"));
}

#[tokio::test]
async fn a_schema_is_made_once_by_many_and_goes_down_again() {
    for fence in [fresh().await, pooled().await].into_iter().flatten() {
        let applied = async || {
            let all = migrate::status(&fence.settings).await.unwrap();
            all.iter().map(|one| one.applied).collect::<Vec<_>>()
        };
        assert!(!applied().await.contains(&true), "looking makes nothing");
        assert_eq!(fence.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'ringfence'").await, 0);
        let Err(error) = PostgresStore::open(&fence.settings, false, |_| {}).await else { panic!("it opened") };
        assert!(error.to_string().contains("ringfence migrate up"), "{error}");
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let settings = fence.settings.clone();
            tasks.spawn(async move { migrate::up(&settings).await });
        }
        assert_eq!(tasks.join_all().await, vec![Ok(()); 8]);
        assert!(!applied().await.contains(&false));
        assert_eq!(fence.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
        migrate::down(&fence.settings, None).await.unwrap();
        assert_eq!(applied().await.iter().filter(|applied| !**applied).count(), 1, "one at a time");
        migrate::down(&fence.settings, Some(0)).await.unwrap();
        assert!(!applied().await.contains(&true));
        migrate::up(&fence.settings).await.unwrap();
        fence.execute("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1").await;
        assert!(fence.refused().await.contains("newer ringfence"));
    }
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let Some(fence) = fresh().await else { return };
    let store = fence.store().await;
    let error = fence.refused().await;
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    let error = migrate::down(&fence.settings, None).await.unwrap_err();
    assert!(error.contains("stop it first"), "{error}");
    let found = inspect::inspect(&fence.settings).await.unwrap();
    assert!(found.missing.is_empty() && found.holder.unwrap().contains("ringfence, process"));
    store.close().await;
    assert_eq!(inspect::inspect(&fence.settings).await.unwrap().holder, None);
    // No waiting: it was given up.
    fence.store().await;
}

#[tokio::test]
async fn the_record_of_a_process_that_died_here_is_taken_at_once_and_of_one_elsewhere_in_time() {
    let Some(fence) = fresh().await else { return };
    fence.store().await.close().await;
    // A process of this machine, in this namespace, that is no more.
    let me = holder::Me::new();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let place = me.place().rsplit_once(' ').unwrap().0.to_owned();
    fence.execute(&format!("UPDATE holders SET beat_at = 1, process = {}, place = '{place} 1'", gone.id())).await;
    fence.store().await.close().await;
    fence.execute("UPDATE holders SET beat_at = 1, host = 'web-1', place = 'another boot 7 1'").await;
    let told = Mutex::new(Vec::new());
    let store =
        PostgresStore::open(&fence.settings, true, |why| told.lock().unwrap().push(why.to_owned())).await.unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].contains("on web-1"), "{told:?}");
    assert_eq!(store.open(new_call(&[])).await.unwrap(), Opened::New(None));
}

#[tokio::test]
async fn who_lost_the_record_writes_nothing_any_more_and_what_was_under_way_is_seen() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let call = new_call(&[]);
    // In the middle of a write when the other takes over: either the other sees it, or it fails.
    let slow = {
        let (db, call) = (store.db.clone(), call.clone());
        tokio::spawn(async move {
            db.write(move |c| {
                let call = call.clone();
                Box::pin(async move {
                    sqlx::query("SELECT pg_sleep(1)").execute(&mut *c).await?;
                    calls::open(c, call).await
                })
            })
            .await
        })
    };
    while fence.number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(1)%' AND datname = current_database()").await == 0 {
        tokio::task::yield_now().await;
    }
    let mut taken = store.db.begin_unbound().await.unwrap();
    let seen = holder::look(&mut taken).await.unwrap();
    // A beat may come in between; then it is looked at again, as the start does.
    let mut generation = holder::take(&mut taken, &holder::Me::new(), seen.as_ref()).await.unwrap();
    while generation.is_none() {
        let seen = holder::look(&mut taken).await.unwrap();
        generation = holder::take(&mut taken, &holder::Me::new(), seen.as_ref()).await.unwrap();
    }
    let open = calls::open_calls(&mut taken).await.unwrap();
    assert_eq!(open.iter().map(|c| &c.id).collect::<Vec<_>>(), [&call.id], "it was waited for");
    taken.commit().await.unwrap();
    assert_eq!(slow.await.unwrap().unwrap(), Opened::New(None));
    let late = store.open(new_call(&[])).await.unwrap_err();
    assert!(matches!(&late, StoreError::Failed(why) if why.contains("taken")), "{late}");
    let ends = Change { event: Some(suite::END), ..suite::change(&call.id, suite::END) };
    assert!(store.apply(ends).await.is_err() && store.ping().await.is_err());
    assert_eq!(fence.number("SELECT count(*) FROM calls").await, 1);
    assert_eq!(fence.number("SELECT count(*) FROM calls WHERE phase = 'ended'").await, 0);
    // Nor does it give up what is another's.
    store.close().await;
    assert_eq!(fence.number("SELECT count(*) FROM holders WHERE beat_at IS NULL").await, 0);
}

#[tokio::test]
async fn sessions_that_the_server_ends_cost_no_write() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    for _ in 0..3 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let store = store.clone();
            tasks.spawn(async move { store.open(new_call(&[])).await.unwrap() });
        }
        tasks.join_all().await;
        fence.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'ringfence'").await;
    }
    assert_eq!(store.open_calls().await.unwrap().len(), 120);
    store.ping().await.unwrap();
}

/// What a proxy does with the next COMMIT that it sees.
#[derive(Clone, Copy, PartialEq, Debug)]
enum AtCommit {
    Pass,
    /// It gets there; its answer does not.
    LoseTheAnswer,
    /// It does not get there.
    LoseIt,
}

/// Between us and the server.
async fn proxy(to: u16, at_commit: Arc<Mutex<AtCommit>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let at_commit = at_commit.clone();
            tokio::spawn(async move {
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
                            if sent.is_empty() || fault == AtCommit::LoseIt {
                                break;
                            }
                            server.write_all(sent).await?;
                            if fault == AtCommit::LoseTheAnswer {
                                let _ = server.read(&mut from_server).await?;
                                break;
                            }
                        }
                        read = server.read(&mut from_server) => {
                            let said = read?;
                            if said == 0 {
                                break;
                            }
                            client.write_all(&from_server[..said]).await?;
                        }
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    port
}

#[tokio::test]
async fn what_became_of_a_commit_without_an_answer_is_found_out() {
    if server::is_missing() {
        return;
    }
    let (url, port) =
        tokio::task::spawn_blocking(|| (server::shared().database_over_tcp(), server::shared().port)).await.unwrap();
    let at_commit = Arc::new(Mutex::new(AtCommit::Pass));
    let through = proxy(port, at_commit.clone()).await;
    let mut settings = settings(&url.replace(&port.to_string(), &through.to_string()));
    settings.pooler = Pooler::None;
    let store = PostgresStore::open(&settings, true, |why| panic!("{why}")).await.unwrap();
    // No COMMIT but those of this test.
    store.beating.lock().await.take().unwrap().abort();
    for (fault, written) in [(AtCommit::LoseTheAnswer, true), (AtCommit::LoseIt, false)] {
        let call = new_call(&[]);
        *at_commit.lock().unwrap() = fault;
        let opened = store.open(call.clone()).await;
        assert_eq!(*at_commit.lock().unwrap(), AtCommit::Pass, "it met a COMMIT");
        assert_eq!(opened.is_ok(), written, "{fault:?}: {opened:?}");
        assert_eq!(store.call(&call.id).await.unwrap().is_some(), written, "{fault:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_server_that_forgets_is_refused_and_a_database_that_is_not_there_is_named() {
    let Some(fence) = fresh().await else { return };
    let name = fence.url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let error = Settings::new(Secret::new(&fence.url.replace(&name, "nowhere"))).unwrap();
    let Err(error) = PostgresStore::open(&error, true, |_| {}).await else { panic!("it opened") };
    assert!(error.to_string().contains("\"nowhere\" does not exist"), "{error}");
    fence.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    assert!(fence.refused().await.contains("ALTER ROLE"));
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_and_its_password_is_told_to_nobody() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let settings = settings(&format!("postgres://ring:hunter2@127.0.0.1:{port}/fence"));
    let told = Arc::new(Mutex::new(String::new()));
    let (tell, waiting) = (told.clone(), settings.clone());
    let opening = tokio::spawn(async move {
        PostgresStore::open(&waiting, true, move |why| why.clone_into(&mut tell.lock().unwrap())).await.map(drop)
    });
    while told.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!opening.is_finished());
    opening.abort();
    let told = told.lock().unwrap().clone();
    assert!(told.contains("cannot be reached") && !told.contains("hunter2"), "{told}");
    let why = inspect::inspect(&settings).await.unwrap_err();
    assert!(!why.contains("hunter2"), "{why}");
}
