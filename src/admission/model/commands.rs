//! Commands, and the limits under which they run.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::call::{Direction, Phase};
use crate::ids::{AccountName, BusinessId};
use crate::policy::decision::Slots;
use crate::policy::{
    AccountLimits, Bound, Business, CallAttributes, Limit, LimitMatch, Mode, OnOutage, OnUnknownBusiness, Per, Plan,
    Policy, PolicySettings, Rate, Scope, WhenFull,
};

/// Numbers of replicas, calls and ids are taken modulo their count.
#[derive(Debug, Clone)]
pub(super) enum Command {
    /// A request at a replica.
    Admit { at: usize, who: usize, slots: Slots, mode: Mode, alias: Option<usize>, how: How },
    /// An existing call: over-limit or foreign.
    Adopt { at: usize, who: usize, slots: u32, over_limit: bool },
    /// A call gets an id.
    Bind { at: usize, call: usize, alias: usize },
    /// News that a call is up.
    Reach { call: usize, phase: Phase },
    /// A call ends, perhaps for the second time.
    End { at: usize, call: usize, how: Ending },
    /// The end of the call that has an id, or will have it.
    EndOf { at: usize, alias: usize },
    /// A process dies, and another takes its place.
    Crash { at: usize },
    /// Time passes, or jumps back.
    Jump { ms: i64 },
    /// Redis loses everything.
    Wipe,
    /// A replica gets other limits.
    Reload { at: usize, limits: usize },
    /// A replica makes a transition, or rebuilds the limiter.
    Move { at: usize, to_database: bool },
    /// A replica compares leases with the call records.
    Compare { at: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Plain,
    /// A repeated request: the first answer was lost.
    Again,
    /// The process dies between the limiter's answer and the record.
    Orphaned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Recorded, and released.
    Told,
    /// The same, and released twice.
    ToldTwice,
    /// Recorded by a process that died before it released the lease.
    Untold,
}

pub(super) fn commands() -> impl Strategy<Value = Vec<Command>> {
    let (at, who, call, alias) = (0..2_usize, 0..4_usize, 0..32_usize, 0..5_usize);
    let mode = prop_oneof![5 => Just(Mode::Enforce), 1 => Just(Mode::Observe)];
    let slots = prop_oneof![
        5 => Just(Slots::ONE),
        1 => (1..6_u32).prop_map(Slots::up_to),
        1 => (1..4_u32).prop_map(Slots::exactly),
    ];
    let how = prop_oneof![8 => Just(How::Plain), 1 => Just(How::Again), 1 => Just(How::Orphaned)];
    let ending = prop_oneof![4 => Just(Ending::Told), 1 => Just(Ending::ToldTwice), 1 => Just(Ending::Untold)];
    let phase = prop::sample::select(&Phase::ALL[..Phase::ALL.len() - 1]);
    let jump = prop_oneof![6 => 0..900_i64, 2 => 1_000..30_000_i64, 1 => -3_600_000..3_600_000_i64];
    let some_alias = prop_oneof![3 => Just(None), 1 => alias.clone().prop_map(Some)];
    let one = prop_oneof![
        12 => (at.clone(), who.clone(), slots, mode, some_alias, how)
            .prop_map(|(at, who, slots, mode, alias, how)| Command::Admit { at, who, slots, mode, alias, how }),
        1 => (at.clone(), who, 1..4_u32, any::<bool>())
            .prop_map(|(at, who, slots, over_limit)| Command::Adopt { at, who, slots, over_limit }),
        2 => (at.clone(), call.clone(), alias.clone()).prop_map(|(at, call, alias)| Command::Bind { at, call, alias }),
        1 => (call.clone(), phase).prop_map(|(call, phase)| Command::Reach { call, phase }),
        7 => (at.clone(), call, ending).prop_map(|(at, call, how)| Command::End { at, call, how }),
        1 => (at.clone(), alias).prop_map(|(at, alias)| Command::EndOf { at, alias }),
        1 => at.clone().prop_map(|at| Command::Crash { at }),
        5 => jump.prop_map(|ms| Command::Jump { ms }),
        1 => Just(Command::Wipe),
        2 => (at.clone(), 0..LIMITS).prop_map(|(at, limits)| Command::Reload { at, limits }),
        2 => (at.clone(), any::<bool>()).prop_map(|(at, to_database)| Command::Move { at, to_database }),
        1 => at.prop_map(|at| Command::Compare { at }),
    ];
    prop::collection::vec(one, 1..30)
}

/// One of two businesses, at one of two accounts.
pub(super) fn attributes(who: usize) -> CallAttributes {
    let account = ["twilio", "elevenlabs"][who / 2];
    CallAttributes {
        business: BusinessId::parse(["acme", "beta"][who % 2]).unwrap(),
        plan: "PRO".to_owned(),
        account: AccountName::parse(account).unwrap(),
        provider: account.to_owned(),
        carrier: None,
        direction: Direction::Outbound,
        operation: "calls".to_owned(),
        agent: None,
        own_number: None,
        other_number: Some(format!("+1555000{who}")),
    }
}

fn rate(count: u32, window_ms: i64, burst: u32) -> Rate {
    Rate { count, window_ms }.with_burst(burst)
}

fn global(concurrent: u32, rate: Option<Rate>, on_outage: OnOutage) -> PolicySettings {
    PolicySettings {
        mode: Mode::Enforce,
        concurrent: Some(concurrent),
        rate,
        accounts: vec![],
        plans: BTreeMap::new(),
        limits: vec![],
        on_outage,
        businesses: vec![],
        rules: None,
        unknown: OnUnknownBusiness::Reject,
        contradictions: Default::default(),
        demo: false,
        when_full: WhenFull::Busy,
        transcripts: Default::default(),
        destinations: Default::default(),
    }
}

/// Limits of the whole platform, and nothing else.
pub(in crate::admission) fn limits(concurrent: u32, rate: Option<Rate>, on_outage: OnOutage) -> Arc<Policy> {
    Arc::new(Policy::new(global(concurrent, rate, on_outage), &[]))
}

/// The number of sets of limits.
const LIMITS: usize = 6;

/// The nth set of limits. Some names hold what separates the parts of a key in one back end or another.
pub(in crate::admission) fn policy(nth: usize) -> Arc<Policy> {
    let named = |name: &str, per, bound| Limit {
        name: name.into(),
        scope: Scope::Named,
        selects: LimitMatch::default(),
        per,
        bound,
        on_outage: None,
    };
    let calls = Bound::Concurrent;
    let account = |name, concurrent, rate| AccountLimits {
        name: AccountName::parse(name).unwrap(),
        concurrent,
        rate,
        business: None,
    };
    let mut settings = global(4, None, OnOutage::Database);
    settings.plans.insert("PRO".to_owned(), Plan { concurrent: Some(3), ..Plan::default() });
    // One business is known, and the other goes by its attributes.
    let acme = Business::named(BusinessId::parse("acme").unwrap());
    settings.businesses = vec![Business { plan: Some("PRO".to_owned()), ..acme }];
    match nth {
        0 => {}
        1 => {
            settings.accounts =
                vec![account("twilio", Some(2), Some(rate(5, 1000, 5))), account("elevenlabs", None, None)];
            settings.concurrent = Some(6);
        }
        2 => {
            settings.limits = vec![
                named("k", Per::All, calls(5)),
                named("k|", Per::Business, calls(2)),
                named("k|1", Per::Destination, calls(1)),
                named("k%7C", Per::Account, Bound::Rate(rate(1, 700, 1))),
                named("{k} \"k\",", Per::Account, Bound::Rate(rate(7, 333, 2))),
            ];
        }
        3 => {
            // Batches have room, and a rate that remembers long.
            settings.concurrent = Some(20);
            settings.plans.clear();
            settings.rate = Some(rate(30, 3_600_000, 400));
        }
        4 => {
            let plan = Plan { concurrent: None, rate: Some(rate(3, 10_000, 1)), ..Plan::default() };
            settings.plans.insert("PRO".to_owned(), plan);
            settings.concurrent = Some(1);
        }
        _ => {
            // While Redis is away nobody decides about beta, and everything else is open.
            let of_beta = LimitMatch { business: vec!["beta".to_owned()], ..LimitMatch::default() };
            let closed =
                Limit { selects: of_beta, on_outage: Some(OnOutage::Closed), ..named("k", Per::All, calls(3)) };
            settings.on_outage = OnOutage::Open;
            settings.limits = vec![closed, named("fast", Per::Business, Bound::Rate(rate(5, 1000, 5)))];
        }
    }
    Arc::new(Policy::new(settings, &[]))
}
