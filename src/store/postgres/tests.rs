use std::str::FromStr as _;
use std::sync::Mutex;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::*;
use crate::admission::GateMode;
use crate::net::spare_port;
use crate::provider::secret::Secret;
use crate::store::conformance::{self, Fresh, new_call};
use crate::store::queries::calls;
use crate::store::{Change, InsertOutcome, NewUtterance, Replica, Store};

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/postgres.rs"]
pub(super) mod server;

/// A database of a test's own, straight or through a pooler.
struct Fence {
    settings: Settings,
    straight: PgPool,
    url: String,
}

/// The tests step the time. Dozens of them share one server: one that is slow is not away.
pub(super) fn settings(url: &str) -> Settings {
    let mut settings = Settings::new(Secret::new(url)).unwrap();
    settings.acquire_timeout = Duration::from_secs(60);
    settings.statement_timeout = Duration::from_secs(30);
    settings.callers_clock = true;
    settings
}

/// The URL of a new database, unless there is no Postgres here. The first that asks starts the server, which blocks.
pub(crate) async fn database() -> Option<String> {
    if server::is_missing() {
        return None;
    }
    Some(tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap())
}

/// A database, unless there is no Postgres here.
async fn fresh() -> Option<Fence> {
    let url = database().await?;
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
        PostgresStore::open(&self.settings, true, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap()
    }
    async fn refused(&self) -> String {
        let Err(error) = PostgresStore::open(&self.settings, true, OwnershipMode::Exclusive, |_| {}).await else {
            panic!("it opened")
        };
        error.to_string()
    }
}

#[async_trait]
impl Fresh for Fence {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.store().await)
    }
    async fn open_shared(&self) -> Arc<dyn Store> {
        let store = PostgresStore::open(&self.settings, true, OwnershipMode::Shared, |why| panic!("{why}"));
        Arc::new(store.await.unwrap())
    }
    async fn one_migration_back(&self) {
        migrate::down(&self.settings, None).await.unwrap();
    }
    async fn execute(&self, sql: &str) {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.straight).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&self.straight).await.unwrap()
    }
}

conformance::behaves_as_a_store!(fresh);

mod behind_pgbouncer {
    use super::pooled;

    super::conformance::behaves_as_a_store!(pooled);

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
        let Err(error) = PostgresStore::open(&fence.settings, false, OwnershipMode::Exclusive, |_| {}).await else {
            panic!("it opened")
        };
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
    let me = ownership::ProcessId::new(OwnershipMode::Exclusive);
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let place = me.place().rsplit_once(' ').unwrap().0.to_owned();
    fence.execute(&format!("UPDATE holders SET beat_at = 1, process = {}, place = '{place} 1'", gone.id())).await;
    fence.store().await.close().await;
    fence.execute("UPDATE holders SET beat_at = 1, host = 'web-1', place = 'another boot 7 1'").await;
    let told = Mutex::new(Vec::new());
    let store = PostgresStore::open(&fence.settings, true, OwnershipMode::Exclusive, |why| {
        told.lock().unwrap().push(why.to_owned())
    })
    .await
    .unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].contains("on web-1"), "{told:?}");
    assert_eq!(store.open(new_call(&[]), None).await.unwrap(), InsertOutcome::New(None));
}

#[tokio::test]
async fn a_record_is_one_processs_alone_or_shared_by_several() {
    let Some(fence) = fresh().await else { return };
    let refused = async |sharing| {
        let Err(error) = PostgresStore::open(&fence.settings, true, sharing, |_| {}).await else { panic!("it opened") };
        error.to_string()
    };
    let alone = fence.store().await;
    let error = refused(OwnershipMode::Shared).await;
    assert!(error.contains("shares with nobody"), "{error}");
    // It dies, and does not know it.
    alone.beating.lock().await.take().unwrap().abort();
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let place = ownership::ProcessId::new(OwnershipMode::Exclusive).place().rsplit_once(' ').unwrap().0.to_owned();
    fence.execute(&format!("UPDATE holders SET process = {}, place = '{place} 1'", gone.id())).await;
    let one = fence.open_shared().await;
    let late = alone.open(new_call(&[]), None).await.unwrap_err();
    assert!(matches!(&late, StoreError::Failed(why) if why.contains("taken")), "{late}");
    let two = fence.open_shared().await;
    for store in [&one, &two] {
        assert_eq!(
            store.open(new_call(&[]), None).await.unwrap(),
            InsertOutcome::New(None),
            "joining locks nobody out"
        );
    }
    let error = refused(OwnershipMode::Exclusive).await;
    assert!(error.contains("and other replicas") && error.contains("belongs to one process"), "{error}");
    // Who leaves leaves it to the others; the last gives it up.
    let [a, b] = ["a", "b"].map(|id| Replica { id: id.to_owned(), ..Replica::new() });
    one.heartbeat(&a).await.unwrap();
    two.heartbeat(&b).await.unwrap();
    one.deregister(&a.id).await.unwrap();
    one.close().await;
    two.open(new_call(&[]), None).await.unwrap();
    assert_eq!(fence.number("SELECT count(*) FROM holders WHERE beat_at IS NULL").await, 0);
    assert!(migrate::down(&fence.settings, None).await.unwrap_err().contains("stop it first"));
    two.deregister(&b.id).await.unwrap();
    two.close().await;
    let again = fence.store().await;
    assert_eq!(again.open_calls().await.unwrap().len(), 3);
}

#[tokio::test]
async fn replicas_that_were_silent_are_locked_out_by_who_has_the_record_alone() {
    let Some(fence) = fresh().await else { return };
    let asleep =
        PostgresStore::open(&fence.settings, true, OwnershipMode::Shared, |why| panic!("{why}")).await.unwrap();
    asleep.beating.lock().await.take().unwrap().abort();
    let waited = Instant::now();
    let alone = PostgresStore::open(&fence.settings, true, OwnershipMode::Exclusive, |_| {}).await.unwrap();
    assert!(waited.elapsed() >= OWNER_TIMEOUT, "a replica cannot be seen to be dead");
    assert!(asleep.open(new_call(&[]), None).await.is_err() && asleep.heartbeat(&Replica::new()).await.is_err());
    alone.open(new_call(&[]), None).await.unwrap();
    alone.close().await;
    let next = fence.open_shared().await;
    assert!(asleep.ping().await.is_err(), "it has to start again");
    assert_eq!(next.open_calls().await.unwrap().len(), 1);
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
                    Ok(calls::open(&mut Pg(c), &call).await?)
                })
            })
            .await
        })
    };
    while fence.number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(1)%' AND datname = current_database()").await == 0 {
        tokio::task::yield_now().await;
    }
    let mut taken = store.db.begin_unbound().await.unwrap();
    let seen = ownership::look(&mut taken).await.unwrap();
    // A beat may come in between; then it is looked at again, as the start does.
    let mut generation =
        ownership::take(&mut taken, &ownership::ProcessId::new(OwnershipMode::Exclusive), seen.as_ref()).await.unwrap();
    while generation.is_none() {
        let seen = ownership::look(&mut taken).await.unwrap();
        generation = ownership::take(&mut taken, &ownership::ProcessId::new(OwnershipMode::Exclusive), seen.as_ref())
            .await
            .unwrap();
    }
    let open: Vec<String> = sqlx::query_scalar("SELECT id FROM calls").fetch_all(&mut *taken).await.unwrap();
    assert_eq!(open, [call.id.as_str()], "it was waited for");
    taken.commit().await.unwrap();
    assert_eq!(slow.await.unwrap().unwrap(), InsertOutcome::New(None));
    let late = store.open(new_call(&[]), None).await.unwrap_err();
    assert!(matches!(&late, StoreError::Failed(why) if why.contains("taken")), "{late}");
    let ends = Change { event: Some(conformance::END), ..conformance::change(&call.id, conformance::END) };
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
            tasks.spawn(async move { store.open(new_call(&[]), None).await.unwrap() });
        }
        tasks.join_all().await;
        fence.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'ringfence'").await;
    }
    assert_eq!(store.open_calls().await.unwrap().len(), 120);
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_that_only_adds_is_used_beside_those_who_know_it() {
    let Some(fence) = fresh().await else { return };
    migrate::up(&fence.settings).await.unwrap();
    for sql in [
        "ALTER TABLE calls ADD COLUMN tomorrow TEXT",
        "CREATE TABLE tomorrow (call_id TEXT REFERENCES calls (id) ON DELETE CASCADE)",
        "INSERT INTO _sqlx_migrations VALUES (9998, 'expand tomorrow', now(), true, '', 0)",
    ] {
        fence.execute(sql).await;
    }
    let store = fence.store().await;
    let call = new_call(&[("call_sid", "CA1")]);
    assert!(matches!(store.open(call.clone(), None).await, Ok(InsertOutcome::New(None))));
    assert!(store.call(&call.id).await.unwrap().is_some());
    store.close().await;
    assert!(
        migrate::down(&fence.settings, None).await.unwrap_err().contains("newer ringfence"),
        "it knows no way back"
    );
    fence.execute("INSERT INTO _sqlx_migrations VALUES (9999, 'contract tomorrow', now(), true, '', 0)").await;
    assert!(fence.refused().await.contains("has migration 9999, of a newer ringfence"));
}

#[tokio::test]
async fn a_server_that_forgets_is_refused_and_a_database_that_is_not_there_is_named() {
    let Some(fence) = fresh().await else { return };
    let name = fence.url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let error = Settings::new(Secret::new(&fence.url.replace(&name, "nowhere"))).unwrap();
    let Err(error) = PostgresStore::open(&error, true, OwnershipMode::Exclusive, |_| {}).await else {
        panic!("it opened")
    };
    assert!(error.to_string().contains("\"nowhere\" does not exist"), "{error}");
    fence.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    assert!(fence.refused().await.contains("ALTER ROLE"));
}

#[tokio::test]
async fn a_server_has_to_prove_its_name_where_that_is_asked_for() {
    crate::net::install_crypto_provider();
    if server::is_missing() {
        return;
    }
    let (server, cert, database) = tokio::task::spawn_blocking(|| {
        let server = server::Server::start();
        let cert = server.speak_tls();
        let url = server.database_over_tcp();
        (server, cert, url.rsplit('/').next().unwrap().to_owned())
    })
    .await
    .unwrap();
    let at = |host: &str, ca: &std::path::Path| {
        let port = server.port;
        let url =
            format!("postgres://postgres@{host}:{port}/{database}?sslmode=verify-full&sslrootcert={}", ca.display());
        settings(&url)
    };
    let store = PostgresStore::open(&at("localhost", &cert), true, OwnershipMode::Exclusive, |why| panic!("{why}"))
        .await
        .unwrap();
    assert!(matches!(store.open(new_call(&[]), None).await, Ok(InsertOutcome::New(None))));
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                 WHERE application_name = 'ringfence' AND NOT ssl";
    assert_eq!(server.psql("postgres", plain), "0", "every session is encrypted");
    store.close().await;
    let why = inspect::inspect(&at("127.0.0.1", &cert)).await.unwrap_err();
    assert!(why.contains("certificate"), "it is not vouched for by this name: {why}");
    let other = std::env::temp_dir().join(format!("ringfence-ca-{}.pem", CallId::new()));
    let made = std::process::Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -keyout /dev/null".split(' '))
        .arg("-out")
        .arg(&other)
        .output();
    assert!(made.unwrap().status.success());
    let why = inspect::inspect(&at("localhost", &other)).await.unwrap_err();
    assert!(why.contains("certificate"), "somebody else vouches for it: {why}");
    let _ = std::fs::remove_file(&other);
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_and_its_password_is_told_to_nobody() {
    let port = spare_port();
    let settings = settings(&format!("postgres://ring:hunter2@127.0.0.1:{port}/fence"));
    let told = Arc::new(Mutex::new(String::new()));
    let (tell, waiting) = (told.clone(), settings.clone());
    let opening = tokio::spawn(async move {
        PostgresStore::open(&waiting, true, OwnershipMode::Exclusive, move |why| {
            why.clone_into(&mut tell.lock().unwrap())
        })
        .await
        .map(drop)
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

/// Both parts in one: the process that dies, and the one that started it.
#[tokio::test]
async fn a_move_that_dies_half_way_was_none() {
    const URL: &str = "RINGFENCE_TEST_MOVES";
    let policy = conformance::policy(7, None);
    if let Ok(url) = std::env::var(URL) {
        let store = PostgresStore::open(&settings(&url), true, OwnershipMode::Exclusive, |_| {}).await.unwrap();
        let moved = store.bump_epoch(1, 0, GateMode::Database, policy, 1).await;
        panic!("it lives: {moved:?}");
    }
    let Some(fence) = fresh().await else { return };
    let store = fence.store().await;
    store.open(new_call(&[]), Some(1)).await.unwrap();
    let before = store.leases().await.unwrap();
    store.close().await;
    let test = "postgres::tests::a_move_that_dies_half_way_was_none";
    conformance::dies_at("store.advancing", test, URL, &fence.url).await;
    let store = fence.store().await;
    assert_eq!(store.gate_state().await.unwrap(), GateState { epoch: 1, mode: GateMode::Memory });
    assert_eq!(store.leases().await.unwrap(), before);
    assert!(store.bump_epoch(1, 0, GateMode::Database, policy, 1).await.unwrap().is_some());
}

/// A writer's transaction that is held open, and says so.
async fn held_open(store: &Arc<PostgresStore>, call: &NewCall) -> (tokio::sync::oneshot::Sender<()>, Opening) {
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let (here, there) = tokio::sync::oneshot::channel::<()>();
    let both = Arc::new(Mutex::new(Some((wait, here))));
    let (db, call) = (store.db.clone(), call.clone());
    let opening = tokio::spawn(async move {
        let opened = db.write_at(Gate::Shared, move |c, _| {
            let (both, call) = (both.clone(), call.clone());
            Box::pin(async move {
                let opened = calls::open(&mut Pg(c), &call).await?;
                let taken = both.lock().unwrap().take();
                if let Some((wait, here)) = taken {
                    here.send(()).unwrap();
                    wait.await.unwrap();
                }
                Ok(opened)
            })
        });
        opened.await.unwrap()
    });
    there.await.unwrap();
    (go, opening)
}

type Opening = tokio::task::JoinHandle<InsertOutcome>;

/// Sessions that wait for a lock.
const WAITING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

#[tokio::test]
async fn a_move_waits_for_who_wrote_before_it_and_counts_the_call() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let call = new_call(&[]);
    let (go, opening) = held_open(&store, &call).await;
    let moving = tokio::spawn({
        let store = store.clone();
        async move { store.bump_epoch(1, 0, GateMode::Database, conformance::policy(7, None), 1).await.unwrap().unwrap() }
    });
    while fence.number(WAITING).await == 0 {
        tokio::task::yield_now().await;
    }
    // Nor does anybody overtake it.
    let late = tokio::spawn({
        let store = store.clone();
        async move { store.open(new_call(&[]), Some(1)).await.unwrap() }
    });
    while fence.number(WAITING).await < 2 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    assert_eq!(opening.await.unwrap(), InsertOutcome::New(None));
    let moved = moving.await.unwrap();
    assert_eq!(moved.held.iter().map(|held| &held.call).collect::<Vec<_>>(), [&call.id]);
    assert_eq!(late.await.unwrap(), InsertOutcome::Outdated(moved.state));
}

#[tokio::test]
async fn who_comes_while_a_move_is_under_way_is_told_the_new_epoch() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let mut moving = store.db.begin_unbound().await.unwrap();
    let (policy, c) = (conformance::policy(1, None), &mut Pg(&mut moving));
    let moved =
        crate::store::queries::gate::bump_epoch(c, 1, 0, GateMode::Database, &policy, Some(1)).await.unwrap().unwrap();
    assert_eq!(moved.held, []);
    let [opens, admits] = [new_call(&[]), new_call(&[])];
    let opening = tokio::spawn({
        let (store, call) = (store.clone(), opens.clone());
        async move { store.open(call, Some(1)).await.unwrap() }
    });
    let admitting = tokio::spawn({
        let store = store.clone();
        let order = conformance::order(&admits, &conformance::policy(1, None));
        async move { store.admit(admits, order, 2).await.unwrap() }
    });
    while fence.number(WAITING).await < 2 {
        tokio::task::yield_now().await;
    }
    moving.commit().await.unwrap();
    assert_eq!(opening.await.unwrap(), InsertOutcome::Outdated(moved.state));
    assert_eq!(admitting.await.unwrap(), AdmitOutcome::New { slots: 1, would: None, news: None });
    assert_eq!(store.call(&opens.id).await.unwrap(), None);
}

#[tokio::test]
async fn decisions_go_by_the_servers_clock() {
    let Some(fence) = fresh().await else { return };
    let mut settings = fence.settings.clone();
    settings.callers_clock = false;
    let store = PostgresStore::open(&settings, true, OwnershipMode::Exclusive, |why| panic!("{why}")).await.unwrap();
    let rate = crate::policy::Rate::parse("1/h").unwrap();
    let policy = conformance::policy(9, Some(rate));
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    let before = fence.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
    // A replica whose clock is years behind, and one that is years ahead.
    let ask = |at_ms| {
        let call = NewCall { at_ms, ..new_call(&[]) };
        let order = conformance::order(&call, &policy);
        store.admit(call, order, 2)
    };
    assert_eq!(ask(1000).await.unwrap(), AdmitOutcome::New { slots: 1, would: None, news: None });
    let AdmitOutcome::Refused(short) = ask(i64::MAX / 2000).await.unwrap() else { panic!("a second token") };
    assert!(short.token_in_ms.is_some_and(|ms| ms > 0 && ms <= 3_600_101), "{short:?}");
    let held = store.leases().await.unwrap();
    let after = fence.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
    assert!(held[0].since_ms >= before && held[0].since_ms <= after, "{held:?}");
    let moved = store.bump_epoch(2, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    assert_eq!(moved.rates.len(), 1, "replayed by the same clock");
}

#[tokio::test]
async fn of_decisions_that_meet_one_that_fails_stands_alone_and_none_is_dropped() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    let policy = conformance::policy(100, None);
    store.bump_epoch(1, 0, GateMode::Database, policy.clone(), 1).await.unwrap().unwrap();
    // As long as somebody has the row, all but the first meet.
    let mut holding = store.db.begin_unbound().await.unwrap();
    sqlx::query("SELECT 1 FROM gate_state FOR UPDATE").execute(&mut *holding).await.unwrap();
    let ask = |call: NewCall| {
        let (store, order) = (store.clone(), conformance::order(&call, &policy));
        tokio::spawn(async move { store.admit(call, order, 2).await })
    };
    let first = ask(new_call(&[]));
    while fence.number(WAITING).await == 0 {
        tokio::task::yield_now().await;
    }
    let good: Vec<NewCall> = (0..20).map(|n| new_call(&[("call_sid", &format!("CA{n}"))])).collect();
    let mut asked: Vec<_> = good.iter().cloned().map(ask).collect();
    let mut bad = new_call(&[]);
    // Postgres has no place for it in a text.
    bad.facts.agent = Some("\0".to_owned());
    let bad = ask(bad);
    let gone = new_call(&[]);
    let dropped = ask(gone.clone());
    // All are handed over; one of them does not wait for its answer.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    dropped.abort();
    holding.rollback().await.unwrap();
    let new = AdmitOutcome::New { slots: 1, would: None, news: None };
    assert_eq!(first.await.unwrap().unwrap(), new);
    for asked in asked.drain(..) {
        assert_eq!(asked.await.unwrap().unwrap(), new);
    }
    let error = bad.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    // Asked again: it is on record, whoever comes first.
    assert_eq!(ask(gone).await.unwrap().unwrap(), new);
    assert_eq!(store.leases().await.unwrap().len(), 22);
}

/// `cargo test --lib measures_decisions -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing of time"]
async fn measures_decisions() {
    let Some(fence) = fresh().await else { return };
    let store = fence.open().await;
    conformance::measure(&store, &fence).await;
}

/// What one process writes another hears, straight; behind a pooler it is only seen.
#[tokio::test]
async fn what_is_said_at_one_replica_is_heard_at_another() {
    let Some(fence) = fresh().await else { return };
    let (says, hears) = (fence.open_shared().await, fence.open_shared().await);
    let call = new_call(&[]);
    says.open(call.clone(), None).await.unwrap();
    let (heard, mut bells) = tokio::sync::mpsc::unbounded_channel();
    // Where nobody listens nobody is told.
    let told = says.clone();
    let also = tokio::spawn(async move { told.listen(Box::new(|_| {})).await });
    let listening = hears.clone();
    let listens = tokio::spawn(async move {
        listening
            .listen(Box::new(move |call| {
                let _ = heard.send(call.clone());
            }))
            .await;
    });
    let mut n = 0;
    // Until the other listens nothing is heard.
    let bell = loop {
        n += 1;
        let said = NewUtterance {
            event_id: format!("ev_{n}"),
            speaker: crate::call::Speaker::User,
            text: "hello".to_owned(),
            said_at: "2026-01-02T03:04:05Z".to_owned(),
            source_sequence: None,
            source: None,
            at_ms: 1,
        };
        says.say(&call.id, said).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(200), bells.recv()).await {
            Ok(bell) => break bell,
            Err(_) => assert!(n < 100, "nothing is heard"),
        }
    };
    assert_eq!(bell, Some(call.id));
    // A store that closes is not kept by who listens.
    hears.close().await;
    listens.await.unwrap();
    says.close().await;
    also.await.unwrap();
    let Some(pooled) = pooled().await else { return };
    let store = pooled.open_shared().await;
    store.listen(Box::new(|_| {})).await;
    store.close().await;
}

/// What the dialler asks all the time finds its rows by indexes alone, however many jobs there are.
#[tokio::test]
async fn runs_are_read_by_their_indexes() {
    let Some(fence) = fresh().await else { return };
    let store = fence.open().await;
    conformance::runs::running(&store, 20_000).await;
    fence.execute("ANALYZE").await;
    let mut session = fence.straight.acquire().await.unwrap();
    let mut explain = async |sql: String| -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *session).await.unwrap()
    };
    explain("SET plan_cache_mode = force_generic_plan".to_owned()).await;
    let text_and_number = ["text", "bigint"];
    let columns = [0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1].map(|kind| text_and_number[kind]);
    let places = (1..=columns.len()).map(|n| format!("${n}::{}", columns[n - 1])).collect::<Vec<_>>().join(", ");
    let settle = crate::store::queries::runs::SETTLE.replace("{rows}", &format!("({places})"));
    for sql in crate::store::queries::runs::LOOKS.into_iter().chain([settle.as_str()]) {
        let given = (1..).take_while(|n| sql.contains(&format!("${n}"))).map(|_| "NULL").collect::<Vec<_>>().join(", ");
        explain(format!("PREPARE look AS {sql}")).await;
        let given = if given.is_empty() { given } else { format!("({given})") };
        let plan = explain(format!("EXPLAIN EXECUTE look{given}")).await;
        assert!(!plan.iter().any(|step| step.contains("Seq Scan on run_jobs")), "{sql}: {plan:#?}");
        explain("DEALLOCATE look".to_owned()).await;
    }
    store.close().await;
}
