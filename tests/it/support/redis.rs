//! Redis servers of a test's own: plain, with a user, over TLS, a Sentinel group, a Cluster. They can be frozen, killed, set back and
//! wiped. Needs `redis-server` and `redis-cli` (Debian: `redis`); TLS needs `openssl` too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::child::signal;

/// The user and password of servers that have one.
pub const USER: (&str, &str) = ("ringfence", "hunter2");
/// The name that Sentinels know the group by.
pub const MASTER: &str = "gate";
/// The time that a server or a group may take to become what it should be.
const PATIENCE: Duration = Duration::from_secs(30);

/// Skips a test where there is no Redis, except in CI.
pub fn is_missing() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "there is no Redis here: apt-get install redis");
    eprintln!("skipped: there is no Redis here (Debian: redis)");
    true
}

/// The settings of a server.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// It writes an append-only file, and reads it when it starts again.
    pub aof: bool,
    /// Nobody but [`USER`] may do anything, and that one no more than these rules say (as in `ACL SETUSER`).
    pub user: Option<String>,
    /// It speaks TLS alone; its certificate is its own authority.
    pub tls: bool,
    /// More lines of its config.
    pub config: String,
}

/// A server. It ends when this is dropped, and when the test process ends, however that ends.
pub struct Redis {
    folder: PathBuf,
    setup: Setup,
    pub port: u16,
    sentinel: bool,
    running: Option<Running>,
}

struct Running {
    shell: Child,
    pid: u32,
}

fn folder() -> PathBuf {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let n = LAST.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("rf-redis-{}-{n}", std::process::id()));
    std::fs::create_dir_all(folder.join("data")).unwrap();
    folder
}

/// Waits until something is so: long, since a Sentinel that was not scheduled for two seconds acts on nothing for the next thirty
/// (its TILT mode).
#[allow(clippy::disallowed_methods, reason = "whoever starts a server is blocked anyhow")]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < 4 * PATIENCE, "it does not happen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Redis {
    /// A server on a free port, empty.
    pub fn start(setup: Setup) -> Self {
        Self::launch(setup, false)
    }

    /// A usual one: it keeps nothing.
    pub fn plain() -> Self {
        Self::start(Setup::default())
    }

    /// One that has its append-only file.
    pub fn with_aof() -> Self {
        Self::start(Setup { aof: true, ..Setup::default() })
    }

    fn launch(setup: Setup, sentinel: bool) -> Self {
        for _ in 0..5 {
            let (folder, port) = (folder(), super::spare_port());
            let mut server = Self { folder, setup: setup.clone(), port, sentinel, running: None };
            server.write_config();
            if server.try_start() {
                return server;
            }
            eprintln!("another port: {}", server.log());
        }
        panic!("no Redis starts");
    }

    fn write_config(&self) {
        let (folder, port) = (self.folder.display(), self.port);
        let mut config = format!("bind 127.0.0.1\ndir {folder}/data\nprotected-mode no\nloglevel notice\n");
        if self.setup.tls {
            self.certificate();
            config += &format!(
                "port 0\ntls-port {port}\ntls-cert-file {folder}/cert.pem\ntls-key-file {folder}/key.pem\n\
                 tls-ca-cert-file {folder}/cert.pem\ntls-auth-clients no\n"
            );
        } else {
            config += &format!("port {port}\n");
        }
        if !self.sentinel {
            config += "save \"\"\nappendfsync everysec\nrepl-diskless-sync yes\nrepl-diskless-sync-delay 0\n";
            config += if self.setup.aof { "appendonly yes\n" } else { "appendonly no\n" };
        }
        if let Some(rules) = &self.setup.user {
            let (name, password) = USER;
            // The tests themselves come as `tests`.
            config +=
                &format!("user default off\nuser {name} on >{password} {rules}\nuser tests on >tests ~* &* +@all\n");
        }
        config += &self.setup.config;
        config.push('\n');
        std::fs::write(self.folder.join("redis.conf"), config).unwrap();
    }

    fn certificate(&self) {
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext \
                     subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem";
        let made = Command::new("openssl").args(words.split_whitespace()).current_dir(&self.folder).output();
        let made = made.expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The certificate that a client has to trust.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    /// Starts it again over what it kept, on the same port.
    pub fn start_again(&mut self) {
        assert!(self.try_start(), "Redis does not start: {}", self.log());
    }

    fn try_start(&mut self) -> bool {
        assert!(self.running.is_none(), "it runs");
        // A shell stands between: when its input ends, as it does when the tests end in whatever way, it ends the server.
        let script = r#"
            redis-server "$1/redis.conf" $2 </dev/null >>"$1/log" 2>&1 &
            echo $!
            read -r how
            kill -CONT $!; kill -"${how:-KILL}" $!
            wait
            [ -n "$how" ] || rm -rf "$1"
        "#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(&self.folder).arg(if self.sentinel { "--sentinel" } else { "" });
        let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let pid = said.trim().parse().expect("its process id");
        self.running = Some(Running { shell, pid });
        let started = Instant::now();
        while !self.try_cli(&["PING"]).is_some_and(|answer| answer.contains("PONG")) {
            // Not by its command line: that is empty as well for a moment when the shell's child becomes the server.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            let gone = stat.is_ok_and(|stat| stat.contains(") Z ")) || !Path::new(&format!("/proc/{pid}")).exists();
            if gone || started.elapsed() > PATIENCE {
                self.end("KILL");
                return false;
            }
            pause();
        }
        true
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Its URL, as `gate.redis_url` takes it.
    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The same behind a relay.
    pub fn url_at(&self, port: u16) -> String {
        let scheme = if self.setup.tls { "rediss" } else { "redis" };
        let user = self.setup.user.as_ref().map(|_| format!("{}:{}@", USER.0, USER.1)).unwrap_or_default();
        let host = if self.setup.tls { "localhost" } else { "127.0.0.1" };
        format!("{scheme}://{user}{host}:{port}")
    }

    fn try_cli(&self, words: &[&str]) -> Option<String> {
        // A server that stands still answers nothing.
        let mut command = Command::new("timeout");
        command.args(["3", "redis-cli", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if self.setup.tls {
            command.arg("--tls").arg("--cacert").arg(self.certificate_file());
        }
        if self.setup.user.is_some() {
            command.args(["--user", "tests", "--pass", "tests", "--no-auth-warning"]);
        }
        let out = command.args(words).stdin(Stdio::null()).stderr(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        (out.status.success() && !said.starts_with("Could not connect")).then_some(said)
    }

    /// A command, as `redis-cli` takes it, and its answer as `redis-cli` prints it.
    pub fn cli(&self, words: &[&str]) -> String {
        let said = self.try_cli(words).unwrap_or_else(|| panic!("{words:?} got no answer: {}", self.log()));
        assert!(!said.starts_with("ERR ") && !said.starts_with("NOPERM"), "{words:?}: {said}");
        said
    }

    /// A line of INFO.
    pub fn info(&self, section: &str, name: &str) -> Option<String> {
        let all = self.try_cli(&["INFO", section])?;
        all.lines().find_map(|line| Some(line.trim().strip_prefix(name)?.strip_prefix(':')?.to_owned()))
    }

    /// It stands still, and its connections stay.
    pub fn freeze(&self) {
        signal(self.pid(), "STOP");
    }

    /// It goes on.
    pub fn thaw(&self) {
        signal(self.pid(), "CONT");
    }

    fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").pid
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    /// As an operator stops it.
    pub fn stop(&mut self) {
        self.end("TERM");
    }

    fn end(&mut self, how: &str) {
        let Some(mut running) = self.running.take() else { return };
        let _ = writeln!(running.shell.stdin.take().unwrap(), "{how}");
        let _ = running.shell.wait();
    }

    /// Keeps a copy of what is on its disk now.
    pub fn keep_a_copy(&self) {
        let old = self.folder.join("old");
        let _ = std::fs::remove_dir_all(&old);
        ran(Command::new("cp").arg("-r").arg(self.folder.join("data")).arg(&old));
    }

    /// Starts it over the copy, as after a restore from a backup. It must not run.
    pub fn start_over_the_copy(&mut self) {
        assert!(self.running.is_none(), "it runs");
        std::fs::remove_dir_all(self.folder.join("data")).unwrap();
        ran(Command::new("cp").arg("-r").arg(self.folder.join("old")).arg(self.folder.join("data")));
        // The copy may have been taken within a write.
        let manifest = self.folder.join("data/appendonlydir/appendonly.aof.manifest");
        if manifest.exists() {
            let mut check = Command::new("redis-check-aof");
            let mut child =
                check.arg("--fix").arg(&manifest).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            let _ = writeln!(child.stdin.take().unwrap(), "y");
            let _ = child.wait();
        }
        self.start_again();
    }

    /// Everything that it holds is gone.
    pub fn wipe(&self) {
        self.cli(&["FLUSHALL"]);
    }

    pub fn set(&self, name: &str, value: &str) {
        self.cli(&["CONFIG", "SET", name, value]);
    }

    /// Throws out whatever it can, as a server without room does whose policy says so; [`Redis::has_room`] ends it.
    pub fn evict(&self) {
        self.set("maxmemory-policy", "allkeys-random");
        self.set("maxmemory", "1");
    }

    pub fn has_room(&self) {
        self.set("maxmemory", "0");
        self.set("maxmemory-policy", "noeviction");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.end("KILL");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[allow(clippy::disallowed_methods, reason = "whoever starts a server is blocked anyhow")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn ran(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// One master, two replicas, three Sentinels that find a master dead after half a second.
pub struct Group {
    pub servers: Vec<Redis>,
    pub sentinels: Vec<Redis>,
}

impl Group {
    pub fn start() -> Self {
        let master = Redis::plain();
        let port = master.port;
        let replica = |_| {
            Redis::start(Setup { config: format!("replicaof 127.0.0.1 {port}\nrepl-timeout 5"), ..Setup::default() })
        };
        let mut servers: Vec<Redis> = (0..2).map(replica).collect();
        servers.insert(0, master);
        for replica in &servers[1..] {
            until("a replica follows", || replica.info("replication", "master_link_status").as_deref() == Some("up"));
        }
        let config = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 3000\nsentinel parallel-syncs {MASTER} 2"
        );
        let sentinels =
            (0..3).map(|_| Redis::launch(Setup { config: config.clone(), ..Setup::default() }, true)).collect();
        let group = Self { servers, sentinels };
        for sentinel in &group.sentinels {
            // They look around every ten seconds otherwise, and say hello every two.
            sentinel.cli(&["SENTINEL", "DEBUG", "INFO-PERIOD", "200", "PUBLISH-PERIOD", "200"]);
        }
        until("the Sentinels know each other", || {
            group.sentinels.iter().all(|one| {
                let known = one.try_cli(&["SENTINEL", "CKQUORUM", MASTER]).unwrap_or_default();
                let replicas = one.try_cli(&["SENTINEL", "REPLICAS", MASTER]).unwrap_or_default();
                known.starts_with("OK 3") && replicas.lines().filter(|line| *line == "name").count() == 2
            })
        });
        group
    }

    /// Its URL, as `gate.redis_url` takes it.
    pub fn url(&self) -> String {
        Self::url_at(&self.sentinels.iter().map(|s| s.port).collect::<Vec<_>>())
    }

    /// The same, the Sentinels behind relays.
    pub fn url_at(sentinels: &[u16]) -> String {
        let hosts: Vec<String> = sentinels.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
    }

    /// The port that a Sentinel takes for the master's.
    pub fn master_port(&self) -> Option<u16> {
        let said = self.sentinels[0].try_cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER])?;
        said.lines().nth(1)?.trim().parse().ok()
    }

    /// Which of the servers is the master just now.
    pub fn master(&self) -> usize {
        let port = self.master_port();
        self.servers.iter().position(|s| Some(s.port) == port).expect("a master")
    }

    /// Hands over the master, as an operator may ask.
    pub fn hand_over(&self) {
        let before = self.master_port();
        until("the Sentinels hand over", || {
            let _ = self.sentinels[0].try_cli(&["SENTINEL", "FAILOVER", MASTER]);
            self.master_port() != before
        });
    }

    /// The replicas stand still, and hear no more of the master. [`Group::promote_frozen`] makes one of them the master, which then
    /// lacks what was written meanwhile.
    pub fn freeze_replicas(&self) {
        let master = self.master();
        self.others(master).for_each(Redis::freeze);
        // What was sent already waits in their sockets; what comes after is lost to them.
        self.servers[master].cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    /// The master dies, the replicas go on. Returns which server has died.
    pub fn promote_frozen(&mut self) -> usize {
        let dead = self.master();
        self.servers[dead].kill();
        self.others(dead).for_each(Redis::thaw);
        dead
    }

    /// Waits until another server is the master.
    pub fn settled(&self, dead: usize) -> bool {
        let port = self.servers[dead].port;
        let now = self.master_port().filter(|now| *now != port);
        now.and_then(|now| self.servers.iter().find(|s| s.port == now))
            .is_some_and(|s| s.info("replication", "role").as_deref() == Some("master"))
    }

    fn others(&self, master: usize) -> impl Iterator<Item = &Redis> {
        self.servers.iter().enumerate().filter(move |(n, _)| *n != master).map(|(_, server)| server)
    }

    /// All servers follow one master again.
    pub fn whole(&self) -> bool {
        let Some(port) = self.master_port() else { return false };
        let up = |s: &Redis| s.info("replication", "master_link_status").as_deref() == Some("up");
        let follows = |s: &Redis| s.info("replication", "master_port") == Some(port.to_string()) && up(s);
        let master = |s: &Redis| s.port == port && s.info("replication", "role").as_deref() == Some("master");
        self.servers.iter().all(|s| master(s) || follows(s))
    }
}

/// Three masters.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub fn start() -> Self {
        let node = |_| {
            // The usual bus port, 10,000 above, may lie beyond the last one.
            let config =
                format!("cluster-enabled yes\ncluster-port {}\ncluster-node-timeout 2000", super::spare_port());
            Redis::start(Setup { config, ..Setup::default() })
        };
        let nodes: Vec<Redis> = (0..3).map(node).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)));
        ran(create.args(["--cluster-replicas", "0", "--cluster-yes"]));
        let cluster = Self { nodes };
        until("the cluster is up", || {
            let ok = |n: &Redis| n.try_cli(&["CLUSTER", "INFO"]).is_some_and(|i| i.contains("cluster_state:ok"));
            cluster.nodes.iter().all(ok)
        });
        cluster
    }

    /// Its URL, as `gate.redis_url` takes it.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The node that has a key.
    pub fn node_of(&self, key: &str) -> &Redis {
        let slot: u32 = self.nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().unwrap();
        let slots = self.nodes[0].cli(&["CLUSTER", "SLOTS"]);
        // Ranges, as `redis-cli` prints them without a terminal: from, to, host, port, id.
        let lines: Vec<&str> = slots.lines().collect();
        let range = lines.windows(4).find(|w| {
            let number = |at: usize| w[at].trim().parse::<u32>().ok();
            w[2].trim() == "127.0.0.1"
                && number(0).is_some_and(|from| from <= slot)
                && number(1).is_some_and(|to| slot <= to)
        });
        let port: u16 = range.expect("its slot is served")[3].trim().parse().unwrap();
        self.nodes.iter().find(|n| n.port == port).unwrap()
    }
}
