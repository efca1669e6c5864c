use super::*;
use crate::call::{Deadlines, Direction, EndProof, Origin, Outcome, Phase, Step};
use crate::ids::{AccountName, BusinessId};
use crate::store::{AppCallback, KEY_KIND};

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

fn new_call(aliases: &[(&str, &str)]) -> NewCall {
    NewCall {
        id: CallId::new(),
        facts: Facts {
            business: BusinessId::default_business(),
            plan: "default".to_owned(),
            account: AccountName::parse("twilio").unwrap(),
            provider: "twilio".to_owned(),
            carrier: None,
            direction: Direction::Outbound,
            operation: "calls".to_owned(),
            agent: None,
            own_number: Some("+15550001111".to_owned()),
            other_number: Some("+15550002222".to_owned()),
        },
        origin: Origin::Order,
        phase: Phase::Reserved,
        overrun: false,
        polled: false,
        places: 1,
        at_ms: 1000,
        deadline_at: 91_000,
        callback: None,
        fingerprint: None,
        aliases: aliases.iter().filter_map(|(k, i)| Alias::new(k, i)).collect(),
    }
}

fn change(call: &CallId, event: Event) -> Change {
    Change { event: Some(event), ..Change::of(call, "webhook", 2000, &Deadlines::default()) }
}

const END: Event = Event::Ended(Outcome::Completed, EndProof::Webhook);

#[tokio::test]
async fn a_call_is_opened_moved_and_ended_once() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let call = new_call(&[]);
    assert_eq!(store.open(call.clone()).await.unwrap(), Opened::New(None));
    let bind = vec![Alias::new("call_sid", "CA1").unwrap()];
    let created = Change { bind: bind.clone(), ..change(&call.id, Event::Reached(Phase::Dialing)) };
    let applied = store.apply(created).await.unwrap().unwrap();
    assert_eq!((applied.step, applied.record.phase), (Step::Move(Phase::Dialing), Phase::Dialing));
    assert_eq!(store.resolve(&bind).await.unwrap(), Some(call.id.clone()));
    assert_eq!(store.open_calls().await.unwrap().len(), 1);

    let ended = store.apply(change(&call.id, END)).await.unwrap().unwrap();
    assert_eq!(ended.step, Step::End(Outcome::Completed, EndProof::Webhook));
    let again =
        store.apply(change(&call.id, Event::Ended(Outcome::Failed, EndProof::Provider))).await.unwrap().unwrap();
    assert_eq!(again.step, Step::Ignore);
    assert_eq!(again.record.outcome, Some(Outcome::Completed), "the first proof stays");
    assert_eq!(store.open_calls().await.unwrap(), []);
    assert_eq!(store.latest_calls(10).await.unwrap()[0].aliases, bind);
}

/// The writer and the readers each have a way of reading a record.
#[tokio::test]
async fn the_writer_and_the_readers_read_the_same_record() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let mut call = new_call(&[("call_sid", "CA1"), (KEY_KIND, "key")]);
    call.facts.carrier = Some(AccountName::parse("carrier").unwrap());
    call.facts.agent = Some("agent_1".to_owned());
    (call.phase, call.overrun, call.polled, call.places) = (Phase::Live, true, true, 7);
    call.fingerprint = Some("fingerprint".to_owned());
    call.callback =
        Some(AppCallback { url: "http://app.test/x".to_owned(), method: "POST".to_owned(), events: vec![] });
    store.open(call.clone()).await.unwrap();
    let bind = vec![Alias::new("conversation_id", "conv_1").unwrap()];
    let unclear = Change {
        bind,
        unsettled: Some(true),
        absent: Some(true),
        ..Change::of(&call.id, "poll", 3000, &Deadlines::default())
    };
    let ended = change(&call.id, END);
    for change in [unclear, ended] {
        let applied = store.apply(change).await.unwrap().unwrap().record;
        assert_eq!(store.call(&call.id).await.unwrap(), Some(applied.clone()));
        assert_eq!((applied.facts, applied.callback), (call.facts.clone(), call.callback.clone()));
        assert_eq!((applied.places, applied.fingerprint), (7, call.fingerprint.clone()));
    }
}

#[tokio::test]
async fn an_end_that_comes_before_its_start_ends_the_start() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let sid = || vec![Alias::new("call_sid", "CA1").unwrap()];
    assert_eq!(store.keep_early(sid(), END, 1).await.unwrap(), None);
    assert_eq!(store.keep_early(sid(), Event::Reached(Phase::Live), 2).await.unwrap(), None);
    let call = new_call(&[]);
    store.open(call.clone()).await.unwrap();
    let created = Change { bind: sid(), ..change(&call.id, Event::Reached(Phase::Dialing)) };
    assert_eq!(store.apply(created).await.unwrap().unwrap().step, Step::End(Outcome::Completed, EndProof::Webhook));
    assert_eq!(store.keep_early(sid(), END, 3).await.unwrap(), Some(call.id), "from here on it is known");
}

#[tokio::test]
async fn one_call_seen_by_two_webhooks_is_one_call() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let first = new_call(&[("call_sid", "CA1")]);
    let second = new_call(&[("conversation_id", "conv_1"), ("call_sid", "CA1")]);
    assert_eq!(store.open(first.clone()).await.unwrap(), Opened::New(None));
    assert_eq!(store.open(second).await.unwrap(), Opened::Known(first.id));
    assert_eq!(store.open_calls().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_id_of_another_call_is_a_conflict_and_stays_where_it_is() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let (first, second) = (new_call(&[("call_sid", "CA1")]), new_call(&[]));
    store.open(first.clone()).await.unwrap();
    store.open(second.clone()).await.unwrap();
    let sid = Alias::new("call_sid", "CA1").unwrap();
    let stolen = Change { bind: vec![sid.clone()], ..change(&second.id, Event::Reached(Phase::Live)) };
    let applied = store.apply(stolen).await.unwrap().unwrap();
    assert_eq!(applied.conflicts, [(sid.clone(), first.id.clone())]);
    assert_eq!(applied.record.aliases, []);
    assert_eq!(store.resolve(&[sid]).await.unwrap(), Some(first.id));
}

#[tokio::test]
async fn a_webhook_is_taken_once() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let event = |id: &str| NewEvent {
        id: id.to_owned(),
        account: "twilio".to_owned(),
        webhook: "status".to_owned(),
        event: "call_status".to_owned(),
        dedupe_key: Some("twilio|status|CA1|completed|3".to_owned()),
        received_at: 1,
        method: "POST".to_owned(),
        path: "/twilio/status".to_owned(),
        headers: vec![],
        body: Some(b"CallSid=CA1".to_vec()),
    };
    assert_eq!(store.receive(event("a")).await.unwrap(), Received::New);
    let before = |outcome: Option<&str>| Received::Before { id: "a".to_owned(), outcome: outcome.map(str::to_owned) };
    assert_eq!(store.receive(event("b")).await.unwrap(), before(None));
    assert_eq!(store.unsettled_events().await.unwrap(), [event("a")]);
    let delivery = Delivery {
        id: "d1".to_owned(),
        event_id: "a".to_owned(),
        call: None,
        url: "http://app.test/x".to_owned(),
        method: "POST".to_owned(),
        headers: vec![],
        body: b"CallSid=CA1".to_vec(),
        attempts: 0,
    };
    store.settle("a", None, "applied", Some(delivery.clone()), 5).await.unwrap();
    let again = Delivery { id: "d2".to_owned(), ..delivery.clone() };
    store.settle("a", None, "applied", Some(again), 5).await.unwrap();
    assert_eq!(store.receive(event("c")).await.unwrap(), before(Some("applied")));
    assert_eq!(store.due_deliveries(4, 10).await.unwrap(), []);
    assert_eq!(store.due_deliveries(5, 10).await.unwrap(), [delivery]);
    store.delivered("d1", 6, Err(("refused".to_owned(), Some(50)))).await.unwrap();
    assert_eq!(store.due_deliveries(49, 10).await.unwrap(), []);
    assert_eq!(store.due_deliveries(50, 10).await.unwrap()[0].attempts, 1);
    assert_eq!(store.purge(1000, 1000).await.unwrap(), 1, "the event goes, what the app waits for stays");
    store.delivered("d1", 51, Err(("refused".to_owned(), None))).await.unwrap();
    assert_eq!(store.due_deliveries(99, 10).await.unwrap(), []);
    assert_eq!(store.purge(1000, 1000).await.unwrap(), 1, "what was given up is not kept for ever");
}

#[tokio::test]
async fn what_is_past_its_retention_goes_little_by_little() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let kept = new_call(&[("call_sid", "CA_kept")]);
    store.open(kept.clone()).await.unwrap();
    let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1234)";
    let like =
        "business, plan, account, provider, direction, operation, origin, admitted_at, phase_at, seen_at, seen_by";
    for insert in [
        format!(
            "{sql} INSERT INTO calls (id, phase, ended_at, {like}) SELECT 'c' || i, 'ended', i, {like} FROM calls, n"
        ),
        format!("{sql} INSERT INTO call_aliases (kind, id, call_id, seen_at) SELECT 'call_sid', i, 'c' || i, 1 FROM n"),
        format!(
            "{sql} INSERT INTO refusals (id, at, business, account, direction, code) SELECT i, i, 'b', 'a', 'outbound', 'x' FROM n"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&store.readers).await.unwrap();
    }
    assert_eq!(store.purge(1_234, 0).await.unwrap(), 2 * 1_233);
    for (left, table) in [(2, "calls"), (2, "call_aliases"), (1, "refusals")] {
        let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let rows: i64 = sqlx::query_scalar(count).fetch_one(&store.readers).await.unwrap();
        assert_eq!(rows, left, "{table}: what is open, and what ended just now");
    }
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "EXPLAIN QUERY PLAN SELECT id FROM calls WHERE phase = 'ended' AND ended_at < 1 ORDER BY ended_at, id LIMIT 1",
    )
    .fetch_all(&store.readers)
    .await
    .unwrap();
    assert!(plan.iter().any(|step| step.3.contains("calls_ended")), "{plan:?}");
}

#[tokio::test]
async fn writes_that_meet_share_a_commit_and_one_that_fails_stands_alone() {
    let folder = Folder::new();
    let store = std::sync::Arc::new(SqliteStore::open(&folder.file(), true).await.unwrap());
    let twice = new_call(&[]);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..200 {
        let store = store.clone();
        // Every tenth has the same primary key: all but one of those fail.
        let call = if i % 10 == 0 { twice.clone() } else { new_call(&[]) };
        tasks.spawn(async move { store.open(call).await.is_ok() });
    }
    let kept = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(kept, 181);
    assert_eq!(store.open_calls().await.unwrap().len(), 181);
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_has_it() {
    let folder = Folder::new();
    let store = SqliteStore::open(&folder.file(), true).await.unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), true).await else { panic!("two gates over one file") };
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    store.close().await;
    drop(store);
    SqliteStore::open(&folder.file(), true).await.unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let folder = Folder::new();
    let call = new_call(&[("call_sid", "CA1")]);
    {
        let store = SqliteStore::open(&folder.file(), true).await.unwrap();
        store.open(call.clone()).await.unwrap();
        store.put_business(&Business::named(BusinessId::parse("acme").unwrap()), 1).await.unwrap();
        store.close().await;
    }
    let store = SqliteStore::open(&folder.file(), false).await.unwrap();
    assert_eq!(store.open_calls().await.unwrap()[0].id, call.id);
    assert_eq!(store.businesses().await.unwrap().len(), 1);
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
async fn a_file_that_is_no_database_is_named_and_left_alone() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.file(), vec![b'x'; 8192]).unwrap();
    let Err(error) = SqliteStore::open(&folder.file(), true).await else { panic!("opened") };
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
    assert!(!path.exists() && holder(&path).is_none());

    let store = SqliteStore::open(&path, true).await.unwrap();
    assert_eq!(inspect(&path).await.unwrap(), Inspected::Ready);
    assert!(holder(&path).is_some_and(|who| who.contains(&format!("process {}", std::process::id()))));
    store.close().await;
    assert_eq!(holder(&path), None);

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
