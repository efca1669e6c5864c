//! Ways to a server: TLS, a Unix socket, Sentinel, Cluster.

use std::process::Command;

use super::server::Folder;
use super::*;

fn openssl(folder: &Folder, args: &str) {
    let made = Command::new("openssl").args(args.split_whitespace()).current_dir(&folder.0).output();
    let made = made.expect("openssl is needed: bash tests/run.sh installs it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An authority of our own in a folder, and a certificate of it for `localhost`.
fn authority(folder: &Folder) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(folder, &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority"));
    openssl(folder, &format!("req {key} -keyout own.key -out own.csr -subj /CN=localhost"));
    std::fs::write(folder.path("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(
        folder,
        "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out own.pem",
    );
}

#[tokio::test]
async fn tls_takes_the_authority_that_is_named_and_no_other() {
    let (folder, other) = (Folder::new(), Folder::new());
    authority(&folder);
    authority(&other);
    let (port, ca) = (spare_port(), folder.0.join("ca.pem"));
    let (tls_port, cert, key) = (port.to_string(), folder.path("own.pem"), folder.path("own.key"));
    let ca_file = folder.path("ca.pem");
    let with =
        ["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca_file];
    let _server = Server::start(&[&with[..], &["--tls-auth-clients", "no"]].concat()).await;
    let to = |host: &str, ca: &std::path::Path| {
        let mut settings = settings(&format!("rediss://{host}:{port}"));
        settings.ca_file = Some(ca.to_owned());
        settings
    };
    let gate = up(to("localhost", &ca)).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 1)])).await, admitted(1));
    for (settings, why) in [
        (to("localhost", &other.0.join("ca.pem")), "certificate"),
        (to("127.0.0.1", &ca), "certificate"),
        (to("localhost", &folder.0.join("nowhere.pem")), "nowhere.pem"),
    ] {
        let gate = RedisGate::new(settings).unwrap();
        until("it was looked for", async || gate.health().last_error.is_some()).await;
        let health = gate.health();
        assert!(!health.up && health.last_error.as_ref().unwrap().contains(why), "{health:?}");
    }
}

#[tokio::test]
async fn a_unix_socket_and_a_database_of_its_own_will_do() {
    let folder = Folder::new();
    let socket = folder.path("redis.sock");
    let _server = Server::start(&["--unixsocket", &socket]).await;
    let gate = up(settings(&format!("unix://{socket}?db=3"))).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 1)])).await, admitted(1));
}

/// A sentinel among three that watch a master.
async fn sentinel(master: u16) -> Server {
    let folder = Folder::new();
    let conf = format!(
        "sentinel monitor gate 127.0.0.1 {master} 2\nsentinel down-after-milliseconds gate 500\n\
         sentinel failover-timeout gate 3000\n"
    );
    let path = folder.path("sentinel.conf");
    std::fs::write(&path, conf).unwrap();
    Server::start_sentinel(folder, &path).await
}

#[tokio::test]
async fn the_sentinels_master_is_followed() {
    let mut master = Server::start(&[]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    until("the replica follows", async || replica.info("master_link_status").await == "up").await;
    let (a, b, c) = tokio::join!(sentinel(master.port), sentinel(master.port), sentinel(master.port));
    let hosts = [&a, &b, &c].map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).join(",");
    let gate = up(settings(&format!("redis+sentinel://{hosts}/gate"))).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 2)])).await, admitted(1));
    for one in [&a, &b, &c] {
        until("the sentinels know each other", async || {
            let master: Vec<String> = one.say(&["SENTINEL", "MASTER", "gate"]).await;
            let of = |field: &str| master.iter().skip_while(|word| *word != field).nth(1).cloned().unwrap_or_default();
            of("num-other-sentinels") == "2" && of("num-slaves") == "1"
        })
        .await;
    }
    master.kill();
    until("the replica was promoted and found", async || {
        is_unfilled(gate.admit(1, &request(&[concurrent("g", 2)])).await)
    })
    .await;
    assert_eq!(replica.info("role").await, "master");
    gate.rebuild(2, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(2, &request(&[concurrent("g", 2)])).await, admitted(1));
    let nobody = RedisGate::new(settings(&format!("redis+sentinel://{hosts}/other"))).unwrap();
    until("it was looked for", async || nobody.health().last_error.is_some()).await;
    assert!(nobody.health().last_error.unwrap().contains("does not know master"));
}

#[tokio::test]
async fn a_cluster_is_followed_to_the_node_that_has_the_pool() {
    let node = async || {
        let bus = spare_port().to_string();
        Server::start(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1000"]).await
    };
    let nodes = [node().await, node().await, node().await];
    for (node, (from, to)) in nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")]) {
        node.say::<()>(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await;
    }
    for node in &nodes[1..] {
        let bus = node.say::<Vec<String>>(&["CONFIG", "GET", "cluster-port"]).await[1].clone();
        nodes[0].say::<()>(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), &bus]).await;
    }
    for node in &nodes {
        until("the cluster is whole", async || {
            let info: String = node.say(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    let url = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", nodes[0].port, nodes[1].port);
    let gate = up(settings(&url)).await;
    gate.rebuild(1, &[], &[]).await.unwrap();
    let one = request(&[concurrent("g", 2)]);
    assert_eq!(gate.admit(1, &one).await, admitted(1));
    assert_eq!(gate.inspect().await, Ok(vec![]));
    // Every pool finds its own node.
    let other = up(pool(&url, "another")).await;
    other.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(other.admit(1, &one).await, admitted(1));
    // What is said at one node is heard at all.
    let (gate, far) = (Arc::new(gate), Arc::new(up(settings(&url)).await));
    let listener = channel::Listener::of(&far);
    channel::all_hear(&gate, &[&listener], "one").await;

    // The slot moves to another node, with what is in it.
    let slot: u64 = nodes[0].say(&["CLUSTER", "KEYSLOT", "{default}"]).await;
    let has = (slot / 5461).min(2) as usize;
    let (from, to) = (&nodes[has], &nodes[(has + 1) % 3]);
    let (from_id, to_id): (String, String) = (from.say(&["CLUSTER", "MYID"]).await, to.say(&["CLUSTER", "MYID"]).await);
    let slot = slot.to_string();
    to.say::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
    from.say::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    loop {
        let names: Vec<String> = from.say(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
        if names.is_empty() {
            break;
        }
        let port = to.port.to_string();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(names.iter().map(String::as_str));
        from.say::<()>(&words).await;
    }
    for node in [to, from] {
        node.say::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
    }
    until("the new node was found", async || is_unfilled(gate.admit(1, &one).await)).await;
    gate.rebuild(2, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(2, &one).await, admitted(1));
    assert_eq!(other.admit(1, &one).await, admitted(1), "the other pool stays where it is");
}
