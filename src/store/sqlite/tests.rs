use std::sync::Arc;

use super::*;
use crate::store::suite::{self, Fresh};

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("ringfence-store-{}", CallId::new())))
    }
    fn file(&self) -> PathBuf {
        self.0.join("ringfence.db")
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
        Arc::new(SqliteStore::open(&self.file(), true, Sharing::Alone).await.unwrap())
    }
    async fn open_shared(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.file(), true, Sharing::Shared).await.unwrap())
    }
    async fn one_migration_back(&self) {
        let pool = SqliteStore::connect(&self.file()).await.unwrap();
        migrate::down(&pool, None).await.unwrap();
        pool.close().await;
    }
    async fn execute(&self, sql: &str) {
        let pool = SqliteStore::connect(&self.file()).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    }
    async fn number(&self, sql: &str) -> i64 {
        let pool = SqliteStore::connect(&self.file()).await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&pool).await.unwrap()
    }
}

async fn fresh() -> Option<Folder> {
    Some(Folder::new())
}

crate::store::suite::behaves_as_a_store!(fresh);

#[tokio::test]
async fn ended_calls_are_found_by_their_index() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "EXPLAIN QUERY PLAN SELECT id FROM calls WHERE phase = 'ended' AND ended_at < 1 ORDER BY ended_at, id LIMIT 1",
    )
    .fetch_all(&store.readers)
    .await
    .unwrap();
    assert!(plan.iter().any(|step| step.3.contains("calls_ended")), "{plan:?}");
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), true, Sharing::Alone).await else {
        panic!("two gates over one file")
    };
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    store.close().await;
    drop(store);
    SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
}

#[tokio::test]
async fn a_file_is_one_processs_alone_or_shared_by_several() {
    let folder = Folder::new();
    let refused = async |sharing| {
        let Err(error) = SqliteStore::open(&folder.file(), true, sharing).await else { panic!("it opened") };
        error.to_string()
    };
    let alone = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    assert!(refused(Sharing::Shared).await.contains("shares with nobody"));
    alone.close().await;
    let (one, two) = (folder.open_shared().await, folder.open_shared().await);
    let error = refused(Sharing::Alone).await;
    assert!(error.contains("or another that shares it") && error.contains("belongs to one process"), "{error}");
    assert!(inspect::holder(&folder.file()).await.is_some());
    one.close().await;
    assert!(refused(Sharing::Alone).await.contains("in use"), "one is left");
    two.close().await;
    assert_eq!(inspect::holder(&folder.file()).await, None);
    SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
}

#[tokio::test]
async fn a_schema_is_not_changed_under_processes_that_run() {
    let folder = Folder::new();
    let running = folder.open_shared().await;
    folder.execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)").await;
    let refused = SqliteStore::open(&folder.file(), true, Sharing::Shared).await;
    let Err(error) = refused else { panic!("it opened") };
    assert!(error.to_string().contains("older schema"), "{error}");
    running.ping().await.unwrap();
}

#[tokio::test]
async fn a_schema_goes_up_and_down_and_a_strange_one_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    let pool = SqliteStore::connect(&folder.file()).await.unwrap();
    let applied = async || migrate::status(&pool).await.unwrap().iter().map(|s| s.applied).collect::<Vec<_>>();
    assert!(!applied().await.contains(&true));
    assert!(migrate::check(&pool).await.unwrap_err().contains("ringfence migrate up"));
    migrate::up(&pool).await.unwrap();
    assert!(!applied().await.contains(&false));
    migrate::check(&pool).await.unwrap();
    migrate::down(&pool, None).await.unwrap();
    assert_eq!(applied().await.iter().filter(|a| !**a).count(), 1, "one at a time");
    migrate::down(&pool, Some(0)).await.unwrap();
    assert!(!applied().await.contains(&true));
    migrate::up(&pool).await.unwrap();
    sqlx::query("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1").execute(&pool).await.unwrap();
    assert!(migrate::check(&pool).await.unwrap_err().contains("newer ringfence"));
}

#[tokio::test]
async fn a_newer_schema_that_only_adds_is_used() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    let pool = SqliteStore::connect(&folder.file()).await.unwrap();
    migrate::up(&pool).await.unwrap();
    let execute = async |sql: &'static str| drop(sqlx::query(sql).execute(&pool).await.unwrap());
    execute("ALTER TABLE calls ADD COLUMN tomorrow TEXT").await;
    execute("CREATE TABLE tomorrow (call_id TEXT REFERENCES calls (id) ON DELETE CASCADE)").await;
    execute("INSERT INTO _sqlx_migrations VALUES (9998, 'expand tomorrow', 0, true, '', 0)").await;
    let store = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    let call = suite::new_call(&[("call_sid", "CA1")]);
    assert!(matches!(store.open(call.clone(), None).await, Ok(Opened::New(None))));
    assert!(store.call(&call.id).await.unwrap().is_some());
    store.close().await;
    assert!(migrate::down(&pool, None).await.unwrap_err().contains("newer ringfence"), "it knows no way back");
    execute("INSERT INTO _sqlx_migrations VALUES (9999, 'contract tomorrow', 0, true, '', 0)").await;
    assert!(migrate::check(&pool).await.unwrap_err().contains("has migration 9999, of a newer ringfence"));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_and_left_alone() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.file(), vec![b'x'; 8192]).unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), true, Sharing::Alone).await else { panic!("opened") };
    assert!(error.to_string().contains("damaged or no SQLite file"), "{error}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), vec![b'x'; 8192]);
}

#[tokio::test]
async fn a_full_disk_is_called_so_in_a_migration() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    // A database that may not grow is to SQLite what a full disk is.
    let options = options(&folder.file()).pragma("max_page_count", "1");
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let why = migrate::up(&pool).await.unwrap_err();
    assert!(why.contains("the disk is full; make room"), "{why}");
}

#[tokio::test]
async fn a_store_is_looked_at_without_a_trace() {
    use inspect::{Inspected, holder, inspect};
    let folder = Folder::new();
    let path = folder.file();
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Absent);
    assert!(!path.exists() && holder(&path).await.is_none());

    let store = SqliteStore::open(&path, true, Sharing::Alone).await.unwrap();
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Ready);
    assert!(holder(&path).await.is_some_and(|who| who.contains(&format!("process {}", std::process::id()))));
    store.close().await;
    assert_eq!(holder(&path).await, None);

    let pool = SqliteStore::connect(&path).await.unwrap();
    migrate::down(&pool, Some(0)).await.unwrap();
    let all: Vec<i64> = migrate::status(&pool).await.unwrap().iter().map(|s| s.version).collect();
    pool.close().await;
    assert!(!all.is_empty());
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Behind(all));

    std::fs::write(&path, [7; 5000]).unwrap();
    let error = inspect(&path).await.unwrap_err().to_string();
    assert!(error.contains("no SQLite file"), "{error}");
    let below = path.join("below.db");
    let error = inspect(&below).await.unwrap_err().to_string();
    assert!(error.contains("is no folder"), "{error}");
}

/// Both parts in one: the process that dies, and the one that started it.
#[tokio::test]
async fn a_move_that_dies_half_way_was_none() {
    const FILE: &str = "RINGFENCE_TEST_MOVES";
    let policy = suite::policy(7, None);
    if let Some(file) = std::env::var_os(FILE) {
        let store = SqliteStore::open(Path::new(&file), true, Sharing::Alone).await.unwrap();
        let moved = store.advance(1, GateMode::Database, policy, 1).await;
        panic!("it lives: {moved:?}");
    }
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    store.open(suite::new_call(&[]), Some(1)).await.unwrap();
    let before = store.leases().await.unwrap();
    store.close().await;
    drop(store);
    suite::dies_at("store.advancing", "sqlite::tests::a_move_that_dies_half_way_was_none", FILE, folder.file()).await;
    let store = SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap();
    assert_eq!(store.gate_state().await.unwrap(), GateState { epoch: 1, mode: GateMode::Memory });
    assert_eq!(store.leases().await.unwrap(), before);
    assert!(store.advance(1, GateMode::Database, policy, 1).await.unwrap().is_some());
}

/// `cargo test --lib measures_decisions -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, and asserts nothing of time"]
async fn measures_decisions() {
    let folder = Folder::new();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.file(), true, Sharing::Alone).await.unwrap());
    suite::measure(&store, &folder).await;
}
