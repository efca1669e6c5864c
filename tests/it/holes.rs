//! The holes that a gate over several processes can have, each with the tests that open it: [`HOLES`] says what each is about, and
//! where it is tested. A test that is written for one hole has its number in its name: `hole_3_02_…`.

use std::path::{Path, PathBuf};

use ringfence::call::Phase;
use ringfence_simulator::{Millis, SimSettings};

use crate::outbound::{all_free, id, once, talk};
use crate::support::stage::{Setup, Stage};

/// Beside these the three tests of `tests/it/chaos.rs` come to most of them by chance, and the model to those of one gate.
const HOLES: [(&str, &str, &[&str]); 18] = [
    (
        "3.1",
        "a record is written during a transition of the limiter: either the transition counts it, or the write is rejected",
        &[
            "src/store/postgres/tests/limiter.rs::a_move_waits_for_who_wrote_before_it_and_counts_the_call",
            "src/store/postgres/tests/limiter.rs::who_comes_while_a_move_is_under_way_is_told_the_new_epoch",
            "src/store/conformance/gate.rs::a_call_is_put_on_record_under_the_pools_epoch_alone",
            "src/store/conformance/gate.rs::moves_under_load_lose_no_call_and_let_none_in_over_a_limit",
        ],
    ),
    (
        "3.2",
        "a paused rebuilder resumes after a later epoch was published",
        &[
            "src/admission/races.rs::hole_3_02_a_stale_rebuilder_wakes",
            "src/admission/limiter/redis/tests.rs::epochs_go_upward_and_take_the_one_before_with_them",
            "src/admission/limiter/redis/tests/outages.rs::what_was_filled_in_on_another_line_is_not_published",
        ],
    ),
    (
        "3.3",
        "a replica of Redis that lagged is promoted, or Redis starts from an old file",
        &[
            "src/admission/limiter/redis/tests/outages.rs::a_replica_that_lagged_is_not_taken_for_its_master",
            "src/admission/limiter/redis/tests/outages.rs::a_restart_is_noticed_with_and_without_a_file",
        ],
    ),
    (
        "3.4",
        "Redis evicts leases",
        &[
            "src/admission/limiter/redis/tests/outages.rs::what_was_flushed_is_noticed",
            "src/admission/limiter/redis/tests/outages.rs::what_is_wrong_with_a_server_is_told",
            "src/admission/limiter/redis/tests/outages.rs::a_full_server_is_away_until_it_has_room",
        ],
    ),
    (
        "3.5",
        "one replica falls back to the database, another still sees Redis",
        &[
            "src/admission/races.rs::hole_3_05_one_falls_back_and_another_still_sees_redis",
            "src/admission/supervisor.rs::the_gate_falls_back_late_and_returns_later",
            "src/store/conformance/gate.rs::the_database_decides_in_its_own_mode_and_epoch",
        ],
    ),
    (
        "3.6",
        "a process stands still between admission, record and dialling",
        &[
            "src/admission/races.rs::hole_3_06_an_admission_wakes_after_its_place_was_freed",
            "tests/it/crash.rs::a_process_that_stood_still_sends_nothing_late",
        ],
    ),
    (
        "3.7",
        "the answer to a create comes late",
        &[
            "tests/it/outbound_faults.rs::the_app_is_answered_at_its_timeout_and_the_late_answer_still_binds_the_ids",
            "tests/it/outbound_faults.rs::an_answer_after_the_order_was_given_up_counts_as_an_overrun",
            "tests/it/outbound_faults.rs::a_lost_create_that_made_nothing_is_freed_after_two_lookups",
        ],
    ),
    (
        "3.8",
        "a COMMIT gets no answer",
        &[
            "src/store/postgres/commit_tests.rs::what_became_of_a_commit_without_an_answer_is_found_out",
            "src/store/postgres/commit_tests.rs::a_crash_at_commit_does_not_lend_a_write_the_outcome_of_another",
            "tests/it/store_faults.rs::an_order_that_is_on_record_without_anybody_knowing_is_ended",
            "tests/it/store_faults.rs::an_end_that_is_on_record_without_anybody_knowing_frees_its_slot",
        ],
    ),
    (
        "3.9",
        "an admission gets no answer",
        &[
            "src/admission/races.rs::hole_3_09_an_admission_whose_answer_is_lost",
            "src/admission/races.rs::hole_3_09_a_call_that_was_let_through_is_counted",
            "src/admission/races.rs::hole_3_09_what_is_taken_back_late_is_the_lost_admission_alone",
            "src/admission/limiter/redis/tests.rs::a_forbidden_call_is_not_admitted_late",
            "src/admission/limiter/redis/tests/outages.rs::a_stalled_server_is_waited_for_three_times_and_then_not",
        ],
    ),
    (
        "3.10",
        "a call ends while the gate is being filled",
        &["src/admission/races.rs::hole_3_10_a_call_ends_during_the_rebuild"],
    ),
    (
        "3.11",
        "what is known of a call is lost with Redis",
        &[
            "src/admission/races.rs::hole_3_11_a_live_call_outlives_a_wipe_as_a_live_call",
            "src/store/conformance.rs::what_was_written_is_there_after_a_restart",
        ],
    ),
    (
        "3.12",
        "two processes with a gate in memory each, over one record",
        &[
            "tests/it/cli.rs::a_sidecar_serves_is_asked_and_drains",
            "src/store/sqlite/tests.rs::a_file_is_one_processs_alone_or_shared_by_several",
            "src/store/postgres/tests/processes.rs::a_record_is_one_processs_alone_or_shared_by_several",
            "src/store/postgres/tests/processes.rs::who_lost_the_record_writes_nothing_any_more_and_what_was_under_way_is_seen",
            "tests/it/outbound_faults.rs::a_drain_finishes_the_creates_that_are_under_way",
        ],
    ),
    (
        "3.13",
        "rates start anew after a wipe",
        &[
            "src/admission/races.rs::hole_3_13_a_wipe_gives_no_tokens_back",
            "src/store/conformance/gate.rs::a_rate_gives_out_its_tokens_whoever_asks",
            "tests/it/outbound_limits.rs::rates_refuse_until_their_token_is_there_also_after_a_restart",
        ],
    ),
    (
        "3.14",
        "limits change under calls that are open",
        &[
            "src/admission/races.rs::hole_3_14_what_redis_has_yet_to_be_told_counts_by_the_limits_of_today",
            "src/store/conformance/gate.rs::a_move_counts_every_open_call_by_the_new_policy",
            "tests/it/reload.rs::lowered_limits_only_drain_and_raised_ones_are_in_force_at_once",
            "tests/it/reload.rs::creates_that_race_with_reloads_never_exceed_the_limit_in_force",
            "tests/it/reload.rs::a_create_that_began_before_a_reload_is_decided_by_the_limits_after_it",
        ],
    ),
    (
        "3.15",
        "a call ends before it is known",
        &[
            "src/store/conformance.rs::news_and_its_call_find_each_other_however_they_meet",
            "src/store/conformance.rs::an_end_that_comes_before_its_start_ends_the_start",
            "src/store/conformance.rs::what_is_past_its_retention_goes_little_by_little",
            "tests/it/outbound_faults.rs::an_end_before_the_creates_answer_frees_the_slot_for_good",
        ],
    ),
    (
        "3.16",
        "a provider queues a call for longer than its deadline",
        &["tests/it/holes.rs::hole_3_16_a_deadline_frees_no_call_that_its_provider_has"],
    ),
    (
        "3.17",
        "one bad write among those that share a commit; a waiter that goes away",
        &[
            "src/store/conformance.rs::writes_that_meet_share_a_commit_and_one_that_fails_stands_alone",
            "src/store/postgres/tests/limiter.rs::of_decisions_that_meet_one_that_fails_stands_alone_and_none_is_dropped",
            "tests/it/store_faults.rs::a_write_that_panics_fails_alone",
        ],
    ),
    (
        "3.18",
        "clocks differ, and jump",
        &[
            "src/store/postgres/tests/limiter.rs::decisions_go_by_the_servers_clock",
            "src/admission/limiter/redis/tests.rs::decisions_go_by_the_servers_clock",
            "src/admission/limiter/redis/tests.rs::a_create_of_the_far_future_counts_no_more",
            "src/admission/model/back_ends.rs::redis_over_postgres_agrees_with_the_model",
        ],
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether a file has a test of this name; of the store's suite, whether its back ends run it.
fn is_tested(file: &str, name: &str) -> bool {
    if file.starts_with("src/store/conformance") {
        let runs = |text: &str| text.split([',', '\n']).any(|word| word.trim() == name);
        return read(file).contains(&format!("async fn {name}(")) && runs(&read("src/store/conformance.rs"));
    }
    let text = read(file);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_test =
        |at: usize| lines[..at].iter().rev().take(3).any(|line| line.starts_with("#[") && line.contains("test"));
    lines.iter().enumerate().any(|(at, line)| line.contains(&format!("fn {name}(")) && is_test(at))
}

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
}

#[test]
fn every_hole_has_its_tests() {
    for (at, (number, what, tests)) in HOLES.iter().enumerate() {
        assert_eq!(*number, format!("3.{}", at + 1));
        assert!(!tests.is_empty(), "{number}: {what}");
        for test in *tests {
            let (file, name) = test.split_once("::").unwrap();
            assert!(is_tested(file, name), "{number}, {what}: there is no test {test}");
        }
    }
    // And whatever is named after a hole is in the list.
    let (mut files, marker) = (Vec::new(), concat!("fn ", "hole_"));
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests/it"), &mut files);
    for file in files {
        for rest in read(&file).split(marker).skip(1) {
            let name = format!("hole_{}", rest.split('(').next().unwrap());
            let number: usize = name.split('_').nth(2).unwrap().parse().unwrap();
            let listed = HOLES[number - 1].2.iter().any(|test| test.ends_with(&format!("::{name}")));
            assert!(listed, "{}: {name} is not in the list", file.display());
        }
    }
}

/// Long past every deadline before the answer the provider still says that it is dialling: the call is asked for, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn hole_3_16_a_deadline_frees_no_call_that_its_provider_has() {
    let sim = SimSettings { dial_ms: Millis::exactly(3_600_000), ..Setup::default().sim };
    let stage = Stage::start(Setup { sim, root: "concurrent = 2".to_owned(), ..Setup::default() }).await;
    let conversation = id(&stage.dial(None, "+15550002001").await, "conversation_id");
    let sid = id(&talk(&stage, "+15550002002", &[]).await, "sid");
    for _ in 0..3 {
        stage.clock.advance_ms(2_000_000);
        let now_ms = stage.clock.now_ms();
        for id in [&conversation, &sid] {
            let renewed = once(&stage, id, "its provider is asked", |call| call.deadline_at > Some(now_ms)).await;
            assert!((Phase::Queued..Phase::Live).contains(&renewed.phase), "{renewed:#?}");
        }
        assert_eq!(stage.held().await, 2);
        assert_eq!(stage.dial(None, "+15550002003").await.status, 503);
    }
    let counts = stage.control.counts();
    assert_eq!((counts.creates_el, counts.creates_tw), (1, 1), "nothing was dialled twice");
    for id in [&conversation, &sid] {
        assert!(stage.control.end_call(id));
    }
    all_free(&stage).await;
    stage.finish().await;
}
