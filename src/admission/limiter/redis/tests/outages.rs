//! Servers that lose data, restart, stall, fill up, or may not do what they should.

use redis::Client;

use super::server::LID;
use super::*;

/// The next two decisions after a loss: none before a rebuild, and one after it.
async fn has_to_be_filled(gate: &RedisGate, epoch: i64) {
    let call = request(&[concurrent("g", 1)]);
    until("the server answers", async || !is_away(gate.admit(epoch, &call).await)).await;
    let said = gate.admit(epoch, &call).await;
    assert!(is_unfilled(said.clone()), "{said:?}");
    gate.rebuild(epoch + 1, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(epoch + 1, &call).await, admitted(1));
}

#[tokio::test]
async fn what_was_flushed_is_noticed() {
    let (server, gate) = fresh().await;
    let bindings = [concurrent("g", 3), rate("cps", 9, 1000)];
    assert_eq!(gate.admit(1, &request(&bindings)).await, admitted(1));
    server.say::<()>(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(gate.admit(1, &request(&bindings)).await, admitted(1));
    server.say::<()>(&["FLUSHALL"]).await;
    has_to_be_filled(&gate, 1).await;
    for (epoch, part) in [(2, "leases"), (3, "rates")] {
        let name = format!("ringfence:1:{{default}}:none:{epoch}:{part}");
        assert_eq!(server.say::<i64>(&["DEL", &name]).await, 1);
        has_to_be_filled(&gate, epoch).await;
    }
}

#[tokio::test]
async fn a_restart_is_noticed_with_and_without_a_file() {
    for more in [["--appendonly", "no"], ["--appendonly", "yes"]] {
        let mut server = Server::start(&more).await;
        let gate = up(settings(&server.url())).await;
        gate.rebuild(1, &[held(&["g"], 1, 0)], &[]).await.unwrap();
        server.restart().await;
        has_to_be_filled(&gate, 1).await;
        assert!(!server.say::<bool>(&["EXISTS", "ringfence:1:{default}:none:1:leases"]).await);
    }
}

#[tokio::test]
async fn a_replica_that_lagged_is_not_taken_for_its_master() {
    let (master, gate) = fresh().await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    until("the replica follows", async || replica.info("master_link_status").await == "up").await;
    // The first replica makes another line of a master that had none.
    gate.rebuild(2, &[], &[]).await.unwrap();
    let bindings = [concurrent("g", 1)];
    let said = master.say::<i64>(&["WAIT", "1", "5000"]).await;
    assert_eq!(said, 1);
    replica.say::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(gate.admit(2, &request(&bindings)).await, admitted(1), "the replica does not see it");
    replica.say::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    let promoted = up(settings(&replica.url())).await;
    assert!(is_unfilled(promoted.admit(2, &request(&bindings)).await));
    // The other way round: the old master takes over the gap, and is promoted again without a rebuild between.
    master.say::<()>(&["REPLICAOF", "127.0.0.1", &replica.port.to_string()]).await;
    until("the old master follows", async || master.info("master_link_status").await == "up").await;
    assert!(is_away(gate.admit(2, &request(&bindings)).await) || is_unfilled(gate.admit(2, &request(&bindings)).await));
    master.say::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    until_up(&gate).await;
    has_to_be_filled(&gate, 2).await;
}

#[tokio::test]
async fn what_was_filled_in_on_another_line_is_not_published() {
    let (server, gate) = fresh().await;
    let keys = gate.shared.keys.of_epoch(2);
    let [leases, rates] = gate.shared.keys.filling(2, "x");
    server.say::<()>(&["ZADD", &leases, "0", "!"]).await;
    server.say::<()>(&["HSET", &rates, "!", ""]).await;
    let (said, line) = gate.before(2).await.unwrap();
    let publish = async |said: &str, line: &str, members: &str| {
        let before = ["{default}a".to_owned(), "{default}b".to_owned()];
        let others = [leases.clone(), rates.clone()].into_iter().chain(before).chain([gate.shared.keys.databases()]);
        let keys: Vec<_> = keys.iter().cloned().chain(others).collect();
        let args = ["2", said, line, members, "none", gate.shared.keys.prefix()].map(str::to_owned);
        gate.ask(Script::Publish, &keys, &args, ADMIN_TIMEOUT).await
    };
    assert!(is_unfilled(publish(&said, "another", "1").await));
    assert!(is_unfilled(publish(&said, &line, "2").await));
    assert_eq!(publish("0 x", &line, "1").await.unwrap(), ["again"]);
    assert_eq!(publish(&said, &line, "1").await.unwrap(), ["published"]);
}

#[tokio::test]
async fn a_stalled_server_is_waited_for_three_times_and_then_not() {
    let server = Server::start(&[]).await;
    let mut settings = settings(&server.url());
    settings.timeout = Duration::from_millis(300);
    let gate = up(settings).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    server.stop();
    let late = request(&[concurrent("g", 9)]);
    until("it is given up", async || {
        assert!(is_away(tokio::time::timeout(LID, gate.admit(1, &late)).await.unwrap()));
        !gate.health().up
    })
    .await;
    let before = gate.health();
    assert!(before.last_error.as_ref().unwrap().contains("3 times in a row"), "{before:?}");
    for _ in 0..50 {
        assert!(is_away(gate.admit(1, &late).await));
    }
    let after = gate.health();
    assert_eq!((after.round_trips, after.failed_fast), (before.round_trips, before.failed_fast + 50));
    server.go_on();
    until_up(&gate).await;
    // What was asked in the stall happens now. Whoever asked takes it back.
    until("the late admission was made", async || gate.release(1, &late.call).await == Ok(true)).await;
    gate.forbid(1, &late.call).await.unwrap();
    assert_eq!(gate.counts(1).await, Ok(Counts::default()));
    for _ in 0..20 {
        assert_eq!(gate.admit(1, &request(&[concurrent("g", 99)])).await, admitted(1), "it does not flap");
    }
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let port = spare_port();
    let gate = RedisGate::new(settings(&format!("redis://127.0.0.1:{port}"))).unwrap();
    assert!(is_away(gate.ping().await));
    until("it was looked for", async || gate.health().last_error.is_some()).await;
    assert!(is_away(gate.inspect().await));
    let port = port.to_string();
    let _server = Server::start(&["--port", &port]).await;
    until_up(&gate).await;
    gate.ping().await.unwrap();
    assert_eq!(gate.inspect().await, Ok(vec![]));
}

#[tokio::test]
async fn a_full_server_is_away_until_it_has_room() {
    let (server, gate) = fresh().await;
    server.say::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(is_away(gate.admit(1, &request(&[concurrent("g", 1)])).await));
    let health = gate.health();
    assert!(!health.up && health.last_error.unwrap().contains("OOM"));
    server.say::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    until_up(&gate).await;
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 1)])).await, admitted(1), "nothing was lost");
}

#[tokio::test]
async fn what_is_wrong_with_a_server_is_told() {
    let master = Server::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    let told = async |server: &Server| {
        let problems = RedisGate::new(settings(&server.url())).unwrap().inspect().await.unwrap();
        problems.into_iter().map(|problem| problem.what).collect::<Vec<_>>()
    };
    let evicts = told(&master).await;
    assert!(matches!(&evicts[..], [what] if what.contains("maxmemory-policy is allkeys-lru")), "{evicts:?}");
    until("the replica follows", async || replica.info("master_link_status").await == "up").await;
    let follows = told(&replica).await;
    assert!(matches!(&follows[..], [what] if what.contains("it is a replica")), "{follows:?}");
    let gate = RedisGate::new(settings(&replica.url())).unwrap();
    until("it was looked at", async || gate.health().last_error.is_some()).await;
    assert!(gate.health().last_error.unwrap().contains("READONLY"));
}

/// The rights that the module's documentation writes down, as they stand there.
pub(super) fn documented_rights() -> String {
    let lines = include_str!("../mod.rs").lines().skip_while(|line| !line.starts_with("//! ACL SETUSER"));
    let lines = lines.map(|line| line.trim_start_matches("//!")).take_while(|line| !line.contains("```"));
    lines.collect::<Vec<_>>().join(" ").replace(">PASSWORD", ">hunter2")
}

#[tokio::test]
async fn the_least_rights_are_enough_and_less_are_told() {
    let server = Server::start(&[]).await;
    let grant = documented_rights();
    let words: Vec<_> = grant.split_whitespace().collect();
    server.say::<()>(&words).await;
    let url = format!("redis://ringfence:hunter2@127.0.0.1:{}", server.port);
    let gate = up(settings(&url)).await;
    assert_eq!(gate.inspect().await, Ok(vec![]));
    gate.rebuild(1, &[held(&["g"], 2, 0)], &[("r".to_owned(), RateLog::default())]).await.unwrap();
    let one = request(&[concurrent("g", 9), rate("r", 9, 1000)]);
    assert_eq!(gate.admit(1, &one).await, admitted(1));
    gate.adopt(1, &held(&["g"], 1, 0)).await.unwrap();
    gate.forbid(1, &one.call).await.unwrap();
    gate.rebuild(2, &gate.held(1).await.unwrap(), &[]).await.unwrap();
    assert_eq!(gate.counts(2).await.unwrap().calls, 3);
    for (right, named) in
        [("+info", "INFO"), ("+zlexcount", "ZLEXCOUNT"), ("+rename", "RENAME"), ("+script|load", "script")]
    {
        let less: Vec<_> = words.iter().copied().filter(|word| *word != right).collect();
        server.say::<()>(&["ACL", "DELUSER", "ringfence"]).await;
        server.say::<()>(&less).await;
        server.say::<()>(&["SCRIPT", "FLUSH"]).await;
        let problems = gate.inspect().await.unwrap();
        let told = problems.iter().any(|p| p.what.contains(named) && p.hint.starts_with("ACL SETUSER ringfence"));
        assert!(told, "{right}: {problems:?}");
        let other = RedisGate::new(settings(&url)).unwrap();
        until("it was refused", async || other.health().last_error.is_some()).await;
        assert!(!other.health().up);
        assert!(is_away(other.admit(2, &one).await));
        assert!(!format!("{problems:?}{:?}{:?}", other.health(), gate.health()).contains("hunter2"));
    }
}

#[tokio::test]
async fn a_new_password_is_used_by_new_connections() {
    let server = Server::start(&[]).await;
    let connection = Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let say = async |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async::<()>(&mut connection.clone()).await.unwrap();
    };
    say(&["CONFIG", "SET", "requirepass", "first"]).await;
    say(&["AUTH", "first"]).await;
    let with = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port);
    let gate = up(settings(&with("first"))).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    say(&["CONFIG", "SET", "requirepass", "second"]).await;
    Gate::renew_credential(&gate, &Secret::new(&with("second")));
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 3)])).await, admitted(1), "the open connection stays");
    say(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    let bindings = [concurrent("g", 3)];
    until("it is connected again", async || gate.admit(1, &request(&bindings)).await == admitted(1)).await;
}
