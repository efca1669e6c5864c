//! The record of a call on a real disk, fsync included: put there, and bound to its ids. One at a time every write waits for a
//! commit of its own; 64 at once share commits.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to measure")]

use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use ringfence::call::{Deadlines, Direction, Event, Origin, Phase, Source, Step};
use ringfence::ids::{AccountName, Alias, BusinessId, CallId};
use ringfence::policy::CallAttributes;
use ringfence::store::sqlite::SqliteStore;
use ringfence::store::{Change, InsertOutcome, Migrate, NewCall, OwnershipMode, Store};
use tokio::task::JoinSet;

fn new_call() -> NewCall {
    NewCall {
        id: CallId::new(),
        attributes: CallAttributes {
            business: BusinessId::parse("business_1").unwrap(),
            plan: "PRO".to_owned(),
            account: AccountName::parse("elevenlabs").unwrap(),
            provider: "elevenlabs".to_owned(),
            carrier: None,
            direction: Direction::Outbound,
            operation: "twilio_outbound_call".to_owned(),
            agent: Some("agent_1".to_owned()),
            own_number: Some("phnum_1".to_owned()),
            other_number: Some("+15550002222".to_owned()),
        },
        origin: Origin::Create,
        phase: Phase::Reserved,
        over_limit: false,
        polled: true,
        slots: 1,
        fingerprint: None,
        keys: vec![],
        replica: None,
        notice: ringfence::store::AppNotice::Omit,
        at_ms: 1_000,
        deadline_at: 91_000,
        callback: None,
        aliases: vec![],
    }
}

/// What a create writes: its record before it is sent, its ids when it is answered.
async fn create(store: &SqliteStore) {
    let call = new_call();
    assert_eq!(store.insert_call(call.clone(), None).await.unwrap(), InsertOutcome::New(None));
    let ids = [("conversation_id", "conv"), ("call_sid", "CA")];
    let bind = ids.iter().filter_map(|(kind, id)| Alias::new(kind, &format!("{id}_{}", call.id))).collect();
    let created = Change {
        event: Some(Event::Reached(Phase::Dialing)),
        bind,
        ..Change::of(&call.id, Source::Answer, 2_000, &Deadlines::default())
    };
    let applied = store.apply(created).await.unwrap().unwrap();
    assert_eq!(applied.step, Step::Move(Phase::Dialing));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(CallId::new().to_string());
    let store = runtime
        .block_on(SqliteStore::open(&folder.join("ringfence.db"), Migrate::Run, OwnershipMode::Exclusive))
        .unwrap();
    let store = Arc::new(store);
    let mut group = criterion.benchmark_group("store, open and apply");
    for at_once in [1, 64] {
        group.throughput(Throughput::Elements(at_once));
        group.bench_function(format!("{at_once} at once"), |b| {
            b.to_async(&runtime).iter(|| async {
                let mut creates = JoinSet::new();
                for _ in 0..at_once {
                    let store = store.clone();
                    creates.spawn(async move { create(&store).await });
                }
                creates.join_all().await;
            });
        });
    }
    group.finish();
    criterion.final_summary();
    runtime.block_on(store.close());
    let _ = std::fs::remove_dir_all(&folder);
}
