use std::sync::Arc;

use super::*;
use crate::policy::decision::GateMode;
use crate::store::conformance::{self, Fresh};
use crate::store::{InsertOutcome, Store};

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("ringfence-store-{}", CallId::new())))
    }
    fn file(&self) -> PathBuf {
        self.0.join("ringfence.db")
    }
    /// The plan of a statement.
    fn past_plan(&self, sql: &str) -> Vec<String> {
        let past = self.past();
        let mut plan = past.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        // Its parameters are null.
        plan.raw_query().mapped(|row| row.get("detail")).map(|step| step.unwrap()).collect()
    }
    /// The file, past the store.
    fn past(&self) -> Sqlite {
        std::fs::create_dir_all(&self.0).unwrap();
        Sqlite::open_or_create(&self.file()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[async_trait]
impl Fresh for Folder {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap())
    }
    async fn open_shared(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.file(), Migrate::Run, OwnershipMode::Shared).await.unwrap())
    }
    async fn one_migration_back(&self) {
        migrate::down(&self.file(), None).await.unwrap();
    }
    async fn execute(&self, sql: &str) {
        self.past().connection.execute_batch(sql).unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        self.past().connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

async fn fresh() -> Option<Folder> {
    Some(Folder::new())
}

crate::store::conformance::behaves_as_a_store!(fresh);

#[tokio::test]
async fn ended_calls_are_found_by_their_index() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    let plan = store.select(
        "EXPLAIN QUERY PLAN SELECT id FROM calls WHERE phase = 'ended' AND ended_at < 1 ORDER BY ended_at, id LIMIT 1",
        vec![],
        |row| row.text("detail"),
    );
    let plan = plan.await.unwrap();
    assert!(plan.iter().any(|step| step.contains("calls_ended")), "{plan:?}");
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await else {
        panic!("two gates over one file")
    };
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    store.close().await;
    drop(store);
    SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
}

#[tokio::test]
async fn a_file_is_one_processs_alone_or_shared_by_several() {
    let folder = Folder::new();
    let refused = async |sharing| {
        let Err(error) = SqliteStore::open(&folder.file(), Migrate::Run, sharing).await else { panic!("it opened") };
        error.to_string()
    };
    let alone = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    assert!(refused(OwnershipMode::Shared).await.contains("has the database exclusively"));
    alone.close().await;
    let (one, two) = (folder.open_shared().await, folder.open_shared().await);
    let error = refused(OwnershipMode::Exclusive).await;
    assert!(error.contains("or another that shares it") && error.contains("needs the database exclusively"), "{error}");
    assert!(inspect::holder(&folder.file()).await.is_some());
    one.close().await;
    assert!(refused(OwnershipMode::Exclusive).await.contains("in use"), "one is left");
    two.close().await;
    assert_eq!(inspect::holder(&folder.file()).await, None);
    SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
}

#[tokio::test]
async fn a_schema_is_not_changed_under_processes_that_run() {
    let folder = Folder::new();
    let running = folder.open_shared().await;
    folder.execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await;
    let refused = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Shared).await;
    let Err(error) = refused else { panic!("it opened") };
    assert!(error.to_string().contains("older schema"), "{error}");
    running.ping().await.unwrap();
}

#[tokio::test]
async fn a_schema_goes_up_and_down_and_a_strange_one_is_refused() {
    let folder = Folder::new();
    let mut c = folder.past();
    let applied = async || {
        let all = migrate::status(&folder.file()).await.unwrap();
        all.iter().map(|s| s.applied).collect::<Vec<_>>()
    };
    assert!(!applied().await.contains(&true));
    assert!(migrate::check(&mut c).unwrap_err().contains("ringfence migrate up"));
    migrate::up(&folder.file()).await.unwrap();
    assert!(!applied().await.contains(&false));
    migrate::check(&mut c).unwrap();
    migrate::down(&folder.file(), Some(0)).await.unwrap();
    assert!(!applied().await.contains(&true));
    migrate::up(&folder.file()).await.unwrap();
    folder.execute("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1").await;
    assert!(migrate::check(&mut c).unwrap_err().contains("newer ringfence"));
}

/// Later versions bring more migrations than the first.
#[tokio::test]
async fn a_schema_goes_down_one_at_a_time_or_to_a_version() {
    use sqlx::SqlSafeStr as _;
    use sqlx::migrate::{Migration, MigrationType, Migrator};
    let one = |version: i64, kind, sql: String| {
        Migration::new(
            version,
            format!("expand {version}").into(),
            kind,
            sqlx::AssertSqlSafe(sql).into_sql_str(),
            false,
        )
    };
    let mut all: Vec<Migration> = migrate::MIGRATIONS.iter().cloned().collect();
    for n in 2..=3 {
        all.push(one(n, MigrationType::ReversibleUp, format!("CREATE TABLE later_{n} (x)")));
        all.push(one(n, MigrationType::ReversibleDown, format!("DROP TABLE later_{n}")));
    }
    let (later, folder) = (Migrator::with_migrations(all), Folder::new());
    let mut c = folder.past();
    let versions = async || folder.number("SELECT sum(version) FROM _sqlx_migrations").await;
    migrate::up_in(&mut c, &migrate::MIGRATIONS).unwrap();
    assert_eq!(versions().await, 1);
    migrate::up_in(&mut c, &later).unwrap();
    assert_eq!(versions().await, 1 + 2 + 3);
    assert!(migrate::missing(&mut c).is_ok(), "what only adds is used");
    migrate::down_in(&mut c, &later, None).unwrap();
    assert_eq!(versions().await, 1 + 2, "one at a time");
    assert!(migrate::down_in(&mut c, &migrate::MIGRATIONS, None).unwrap_err().contains("newer ringfence"));
    migrate::up_in(&mut c, &later).unwrap();
    migrate::down_in(&mut c, &later, Some(1)).unwrap();
    assert_eq!(versions().await, 1);
    assert_eq!(folder.number("SELECT count(*) FROM sqlite_master WHERE name LIKE 'later%'").await, 0);
}

#[tokio::test]
async fn a_newer_schema_that_only_adds_is_used() {
    let folder = Folder::new();
    let mut c = folder.past();
    migrate::up_in(&mut c, &migrate::MIGRATIONS).unwrap();
    folder.execute("ALTER TABLE calls ADD COLUMN tomorrow TEXT").await;
    folder.execute("CREATE TABLE tomorrow (call_id TEXT REFERENCES calls (id) ON DELETE CASCADE)").await;
    folder.execute("INSERT INTO _sqlx_migrations VALUES (9998, 'expand tomorrow', 0, true, '', 0)").await;
    let store = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    let call = conformance::new_call(&[("call_sid", "CA1")]);
    assert!(matches!(Store::insert_call(&store, call.clone(), None).await, Ok(InsertOutcome::New(None))));
    assert!(store.call(&call.id).await.unwrap().is_some());
    store.close().await;
    assert!(migrate::down(&folder.file(), None).await.unwrap_err().contains("newer ringfence"), "it knows no way back");
    folder.execute("INSERT INTO _sqlx_migrations VALUES (9999, 'contract tomorrow', 0, true, '', 0)").await;
    assert!(migrate::check(&mut c).unwrap_err().contains("has migration 9999, of a newer ringfence"));
}

/// The tables may differ, so nothing is read from them or written to them.
#[tokio::test]
async fn a_schema_that_other_scripts_made_is_refused_and_left_alone() {
    let folder = Folder::new();
    migrate::up_in(&mut folder.past(), &migrate::MIGRATIONS).unwrap();
    folder.execute("UPDATE _sqlx_migrations SET checksum = x'00'").await;
    let refused = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await;
    let said = refused.err().map(|error| error.to_string()).unwrap();
    assert!(said.contains("another build of ringfence") && said.contains("new, empty store"), "{said}");
    let told = inspect::inspect(&folder.file()).await.unwrap_err().to_string();
    assert!(told.contains("another build of ringfence"), "{told}");
    for refused in [migrate::up(&folder.file()).await, migrate::down(&folder.file(), None).await] {
        assert!(refused.unwrap_err().contains("another build of ringfence"));
    }
    assert!(migrate::status(&folder.file()).await.unwrap()[0].differs);
    assert_eq!(folder.number("SELECT count(*) FROM sqlite_master WHERE name = 'calls'").await, 1);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_and_left_alone() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.file(), vec![b'x'; 8192]).unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await else {
        panic!("opened")
    };
    assert!(error.to_string().contains("damaged or no SQLite file"), "{error}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), vec![b'x'; 8192]);
}

#[tokio::test]
async fn a_full_disk_is_called_so_in_a_migration() {
    let folder = Folder::new();
    // A database that may not grow is to SQLite what a full disk is.
    let mut c = folder.past();
    c.connection.execute_batch("PRAGMA max_page_count = 1").unwrap();
    let why = migrate::up_in(&mut c, &migrate::MIGRATIONS).unwrap_err();
    assert!(why.contains("the disk is full; make room"), "{why}");
}

#[tokio::test]
async fn a_store_is_looked_at_without_a_trace() {
    use inspect::{Inspected, holder, inspect};
    let folder = Folder::new();
    let path = folder.file();
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Absent);
    assert!(!path.exists() && holder(&path).await.is_none());

    let store = SqliteStore::open(&path, Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Ready);
    assert!(holder(&path).await.is_some_and(|who| who.contains(&format!("process {}", std::process::id()))));
    store.close().await;
    assert_eq!(holder(&path).await, None);

    migrate::down(&path, Some(0)).await.unwrap();
    let all: Vec<i64> = migrate::status(&path).await.unwrap().iter().map(|s| s.version).collect();
    assert!(!all.is_empty());
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Behind(all));

    std::fs::write(&path, [7; 5000]).unwrap();
    let error = inspect(&path).await.unwrap_err().to_string();
    assert!(error.contains("no SQLite file"), "{error}");
    let below = path.join("below.db");
    let error = inspect(&below).await.unwrap_err().to_string();
    assert!(error.contains("is not a folder"), "{error}");
}

/// Both parts in one: the process that dies, and the one that started it.
#[tokio::test]
async fn a_move_that_dies_half_way_was_none() {
    const FILE: &str = "RINGFENCE_TEST_MOVES";
    let policy = conformance::policy(7, None);
    if let Some(file) = std::env::var_os(FILE) {
        let store = SqliteStore::open(Path::new(&file), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
        let moved = store.bump_epoch(1, 0, GateMode::Database, policy, 1).await;
        panic!("it lives: {moved:?}");
    }
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    Store::insert_call(&store, conformance::new_call(&[]), Some(1)).await.unwrap();
    let before = store.leases().await.unwrap();
    store.close().await;
    drop(store);
    conformance::dies_at("store.advancing", "sqlite::tests::a_move_that_dies_half_way_was_none", FILE, folder.file())
        .await;
    let store = SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap();
    assert_eq!(store.gate_state().await.unwrap(), GateState { epoch: 1, mode: GateMode::Memory });
    assert_eq!(store.leases().await.unwrap(), before);
    assert!(store.bump_epoch(1, 0, GateMode::Database, policy, 1).await.unwrap().is_some());
}

/// `cargo test --lib measures_decisions -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing of time"]
async fn measures_decisions() {
    let folder = Folder::new();
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&folder.file(), Migrate::Run, OwnershipMode::Exclusive).await.unwrap());
    conformance::measure(&store, &folder).await;
}

/// Queries that the dialler makes all the time find their rows by indexes alone, however many jobs there are.
#[tokio::test]
async fn runs_are_read_by_their_indexes() {
    let folder = Folder::new();
    let store = folder.open().await;
    conformance::runs::running(&store, 20_000).await;
    for sql in &crate::store::queries::runs::LOOKS {
        let plan = folder.past_plan(&dialect::translate(sql, 0));
        assert!(!plan.iter().any(|step| step.starts_with("SCAN run") && !step.contains("INDEX")), "{sql}: {plan:?}");
        let of_jobs = |step: &&String| [" run_jobs ", " d ", " j "].iter().any(|name| step.contains(name));
        assert!(
            plan.iter().filter(of_jobs).all(|step| step.contains("INDEX") || step.contains("KEY")),
            "{sql}: {plan:?}"
        );
        // All jobs of a run, one by one.
        assert!(!plan.iter().any(|step| step.contains("PRIMARY KEY (run_id=?)")), "{sql}: {plan:?}");
    }
    store.close().await;
}
