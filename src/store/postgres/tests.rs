use std::str::FromStr as _;
use std::sync::Mutex;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::*;
use crate::net::spare_port;
use crate::policy::decision::GateMode;
use crate::provider::secret::Secret;
use crate::store::conformance::{self, Fresh, new_call};
use crate::store::queries::calls;
use crate::store::{AppNotice, Change, InsertOutcome, NewUtterance, Replica, ReplicaSignal, Store};

mod limiter;
mod processes;

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../../../tests/it/support/postgres.rs"]
pub(super) mod server;

/// A database of a test's own, straight or through a pooler.
struct Fence {
    settings: PostgresSettings,
    straight: PgPool,
    url: String,
}

/// The tests step the time. Dozens of them share one server: one that is slow is not away.
pub(super) fn settings(url: &str) -> PostgresSettings {
    let mut settings = PostgresSettings::new(Secret::new(url)).unwrap();
    settings.acquire_timeout = Duration::from_secs(60);
    settings.statement_timeout = Duration::from_secs(30);
    settings.time_of = TimeOf::Caller;
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
        PostgresStore::open(&self.settings, Migrate::Run, OwnershipMode::Exclusive, |why| panic!("{why}"))
            .await
            .unwrap()
    }
    async fn refused(&self) -> String {
        let Err(error) = PostgresStore::open(&self.settings, Migrate::Run, OwnershipMode::Exclusive, |_| {}).await
        else {
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
        let store = PostgresStore::open(&self.settings, Migrate::Run, OwnershipMode::Shared, |why| panic!("{why}"));
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
        let Err(error) = PostgresStore::open(&fence.settings, Migrate::Reject, OwnershipMode::Exclusive, |_| {}).await
        else {
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
async fn sessions_that_the_server_ends_cost_no_write() {
    let Some(fence) = fresh().await else { return };
    let store = Arc::new(fence.store().await);
    for _ in 0..3 {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let store = store.clone();
            tasks.spawn(async move { store.insert_call(new_call(&[]), None).await.unwrap() });
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
    assert!(matches!(store.insert_call(call.clone(), None).await, Ok(InsertOutcome::New(None))));
    assert!(store.call(&call.id).await.unwrap().is_some());
    store.close().await;
    assert!(
        migrate::down(&fence.settings, None).await.unwrap_err().contains("newer ringfence"),
        "it knows no way back"
    );
    fence.execute("INSERT INTO _sqlx_migrations VALUES (9999, 'contract tomorrow', now(), true, '', 0)").await;
    assert!(fence.refused().await.contains("has migration 9999, of a newer ringfence"));
}

/// The tables may differ, so nothing is read from them or written to them.
#[tokio::test]
async fn a_schema_that_other_scripts_made_is_refused_and_left_alone() {
    let Some(fence) = fresh().await else { return };
    migrate::up(&fence.settings).await.unwrap();
    fence.execute("UPDATE _sqlx_migrations SET checksum = '\\x00'").await;
    assert!(fence.refused().await.contains("another build of ringfence"));
    for refused in [migrate::up(&fence.settings).await, migrate::down(&fence.settings, None).await] {
        assert!(refused.unwrap_err().contains("another build of ringfence"));
    }
    assert!(migrate::status(&fence.settings).await.unwrap()[0].differs);
}

#[tokio::test]
async fn a_server_that_forgets_is_refused_and_a_database_that_is_not_there_is_named() {
    let Some(fence) = fresh().await else { return };
    let name = fence.url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let error = PostgresSettings::new(Secret::new(&fence.url.replace(&name, "nowhere"))).unwrap();
    let Err(error) = PostgresStore::open(&error, Migrate::Run, OwnershipMode::Exclusive, |_| {}).await else {
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
    let store =
        PostgresStore::open(&at("localhost", &cert), Migrate::Run, OwnershipMode::Exclusive, |why| panic!("{why}"))
            .await
            .unwrap();
    assert!(matches!(store.insert_call(new_call(&[]), None).await, Ok(InsertOutcome::New(None))));
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
        PostgresStore::open(&waiting, Migrate::Run, OwnershipMode::Exclusive, move |why| {
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

/// News that one process writes is heard by another over a direct connection; behind a pooler it is only seen.
#[tokio::test]
async fn what_is_said_at_one_replica_is_heard_at_another() {
    let Some(fence) = fresh().await else { return };
    let (says, hears) = (fence.open_shared().await, fence.open_shared().await);
    let call = new_call(&[]);
    says.insert_call(call.clone(), None).await.unwrap();
    let (heard, mut signals) = tokio::sync::mpsc::unbounded_channel();
    // Where nobody listens nobody is told.
    let told = says.clone();
    let also = tokio::spawn(async move { told.listen(Box::new(|_| {})).await });
    let listening = hears.clone();
    let listens = tokio::spawn(async move {
        listening
            .listen(Box::new(move |signal| {
                let _ = heard.send(match signal {
                    ReplicaSignal::Call(call) => Some(call.clone()),
                    ReplicaSignal::Dial => None,
                });
            }))
            .await;
    });
    let mut n = 0;
    // Until the other listens nothing is heard.
    let signal = loop {
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
        says.add_utterance(&call.id, said).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(200), signals.recv()).await {
            Ok(signal) => break signal,
            Err(_) => assert!(n < 100, "nothing is heard"),
        }
    };
    assert_eq!(signal, Some(Some(call.id)));
    // Diallers hear of what others have freed, and not themselves.
    while let Ok(signal) = signals.try_recv() {
        assert!(signal.is_some(), "nobody has woken diallers");
    }
    hears.wake_remote_diallers().await.unwrap();
    says.wake_remote_diallers().await.unwrap();
    assert_eq!(signals.recv().await, Some(None));
    assert!(signals.try_recv().is_err(), "once");
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

/// Queries that the dialler makes all the time find their rows by indexes alone, however many jobs there are.
#[tokio::test]
async fn runs_are_read_by_their_indexes() {
    let Some(fence) = fresh().await else { return };
    let store = fence.open().await;
    conformance::runs::running(&store, 20_000).await;
    let mut session = fence.straight.acquire().await.unwrap();
    let mut run = async |sql: String| -> Vec<String> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *session).await.unwrap()
    };
    run("SET plan_cache_mode = force_generic_plan".to_owned()).await;
    let mut explain = async |sql: &str| -> Vec<String> {
        let given = (1..).take_while(|n| sql.contains(&format!("${n}"))).map(|_| "NULL").collect::<Vec<_>>().join(", ");
        run(format!("PREPARE look AS {sql}")).await;
        let given = if given.is_empty() { given } else { format!("({given})") };
        let plan = run(format!("EXPLAIN EXECUTE look{given}")).await;
        run("DEALLOCATE look".to_owned()).await;
        plan
    };
    // Before the statistics of a loaded list are known, indexes look alike.
    let plan = explain(crate::store::queries::run_jobs::CLAIM).await;
    assert!(plan.iter().any(|step| step.contains("run_jobs_due")), "{plan:#?}");
    assert!(!plan.iter().any(|step| step.contains("Sort") || step.contains("run_jobs_counts")), "{plan:#?}");
    fence.execute("ANALYZE").await;
    let text_and_number = ["text", "bigint"];
    let columns = [0, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1].map(|kind| text_and_number[kind]);
    let places = (1..=columns.len()).map(|n| format!("${n}::{}", columns[n - 1])).collect::<Vec<_>>().join(", ");
    let settle = crate::store::queries::run_jobs::SETTLE.replace("{rows}", &format!("({places})"));
    for sql in crate::store::queries::runs::LOOKS.into_iter().chain([settle.as_str()]) {
        let plan = explain(sql).await;
        assert!(!plan.iter().any(|step| step.contains("Seq Scan on run_jobs")), "{sql}: {plan:#?}");
    }
    store.close().await;
}

/// A run whose jobs are queued again just when it is ended goes on, whichever comes first.
#[tokio::test]
async fn a_run_is_not_ended_with_jobs_that_are_just_queued_again() {
    let Some(fence) = fresh().await else { return };
    let store = fence.open().await;
    conformance::runs::running(&store, 2).await;
    assert_eq!(store.cancel_jobs("run_1", 5).await.unwrap(), 2);
    let until_one_waits = async || {
        let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE NOT l.granted AND a.datname = current_database()";
        let since = Instant::now();
        while fence.number(waiting).await == 0 {
            assert!(since.elapsed() < Duration::from_secs(30), "nobody waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut other = fence.straight.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM runs WHERE id = 'run_1' FOR SHARE").execute(&mut *other).await.unwrap();
    let ends = tokio::spawn({
        let store = store.clone();
        async move { store.finish_runs(6, AppNotice::Omit).await.unwrap() }
    });
    until_one_waits().await;
    let again = "UPDATE run_jobs SET state = 'queued', outcome = NULL, settled_at = NULL WHERE run_id = 'run_1'";
    sqlx::query(again).execute(&mut *other).await.unwrap();
    other.commit().await.unwrap();
    assert_eq!(ends.await.unwrap(), Vec::<String>::new(), "it was filled meanwhile");
    assert_eq!(store.cancel_jobs("run_1", 7).await.unwrap(), 2);
    let mut other = fence.straight.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM runs WHERE id = 'run_1' FOR UPDATE").execute(&mut *other).await.unwrap();
    let fills = tokio::spawn({
        let store = store.clone();
        async move { store.retry_jobs("run_1", vec![crate::call::Outcome::Canceled], 8).await.unwrap() }
    });
    until_one_waits().await;
    other.commit().await.unwrap();
    assert_eq!(fills.await.unwrap(), 2);
    assert_eq!(store.finish_runs(9, AppNotice::Omit).await.unwrap(), Vec::<String>::new());
    store.close().await;
}

#[tokio::test]
async fn a_new_credential_is_used_by_new_connections() {
    let Some(fence) = fresh().await else { return };
    let store = fence.store().await;
    let joined = if fence.url.contains('?') { '&' } else { '?' };
    let renewed = format!("{}{joined}application_name=renewed", fence.url);
    store.renew_credential(&Secret::new(&renewed));
    let ours = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ringfence'";
    let end = format!("SELECT pg_terminate_backend(pid) FROM ({ours}) old");
    sqlx::raw_sql(sqlx::AssertSqlSafe(end)).execute(&fence.straight).await.unwrap();
    let since = Instant::now();
    while store.identity().await.is_err() {
        assert!(since.elapsed() < Duration::from_secs(20), "it does not connect again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counted =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'renewed'";
    let there: i64 = sqlx::query_scalar(counted).fetch_one(&fence.straight).await.unwrap();
    assert!(there > 0);
}
