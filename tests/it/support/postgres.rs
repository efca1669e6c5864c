//! A Postgres server of a test's own, or one that tests share. Needs its programs (Debian: `postgresql`); as root it runs as the
//! user `postgres`, since Postgres refuses root.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A server. It ends when this is dropped, and when the test process ends, however that ends.
pub struct Server {
    programs: PathBuf,
    folder: PathBuf,
    /// A TCP port of 127.0.0.1, beside the socket.
    pub port: u16,
    flushes: bool,
    running: Option<Child>,
}

/// The folder of the programs of Postgres; the newest, if there are several.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|v| v.path().join("bin")).filter(|b| b.join("postgres").exists()).collect();
    found.sort_by_key(|bin| bin.parent().and_then(|v| v.file_name()?.to_str()?.parse::<u32>().ok()));
    found.pop()
}

/// Skips a test where there is no Postgres, except in CI.
pub fn is_missing() -> bool {
    if programs().is_some() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "there is no Postgres here: apt-get install postgresql");
    eprintln!("skipped: there is no Postgres here (Debian: postgresql)");
    true
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n")
}

/// A command as the user that Postgres runs as.
pub fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

fn ran(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A folder that the user of Postgres owns. Its path is short: that of a socket has about a hundred bytes.
pub fn folder_of_postgres() -> PathBuf {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let n = LAST.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(format!("/tmp/rf-pg-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    if is_root() {
        ran(Command::new("chown").arg("postgres:postgres").arg(&folder));
    }
    folder
}

impl Server {
    /// Makes a server and starts it. It flushes nothing: no test pulls a plug.
    pub fn start() -> Self {
        Self::start_as(false)
    }

    /// The same; `flushes`: what is committed is on the disk.
    pub fn start_as(flushes: bool) -> Self {
        let programs = programs().expect("Postgres is installed");
        let folder = folder_of_postgres();
        let mut init = as_postgres(&programs.join("initdb"));
        init.arg("-D").arg(folder.join("data"));
        ran(init.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]));
        let port = super::spare_port();
        let mut server = Self { programs, folder, port, flushes, running: None };
        server.start_again();
        server
    }

    /// Starts it, after [`Server::stop`].
    pub fn start_again(&mut self) {
        // A shell stands between: when its input ends, as it does when the tests end in whatever way, it ends the server.
        let script = r#"
            "$0" -D "$1/data" -k "$1" -p "$2" -c listen_addresses=127.0.0.1 -c max_connections=1000 -c fsync="$4" \
                -c shared_buffers=32MB -c max_prepared_transactions=0 -c autovacuum=off </dev/null >"$1/log" 2>&1 &
            server=$!
            for _ in $(seq 600); do
                if "$3" -q -h "$1" -p "$2" -U postgres; then echo up; break; fi
                sleep 0.05
            done
            read -r how
            kill -"${how:-QUIT}" $server
            wait $server
            [ -n "$how" ] || rm -rf "$1"
        "#;
        let mut command = as_postgres(Path::new("/bin/sh"));
        command.args(["-c", script]).arg(self.programs.join("postgres")).arg(&self.folder).arg(self.port.to_string());
        command.arg(self.programs.join("pg_isready")).arg(if self.flushes { "on" } else { "off" }).current_dir("/");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let mut log = String::new();
        let _ = std::fs::File::open(self.folder.join("log")).and_then(|mut file| file.read_to_string(&mut log));
        assert_eq!(said, "up\n", "Postgres does not start: {log}");
        self.running = Some(child);
    }

    /// Stops it: `INT` ends sessions and then itself, `QUIT` is as a crash.
    pub fn stop(&mut self, how: &str) {
        use std::io::Write as _;
        let Some(mut child) = self.running.take() else { return };
        let _ = writeln!(child.stdin.take().unwrap(), "{how}");
        child.wait().unwrap();
    }

    /// A new, empty database's URL, over the socket.
    pub fn database(&self) -> String {
        let name = self.create_database();
        format!("postgres://postgres@localhost:{}/{name}?host={}", self.port, self.folder.display())
    }

    /// The same over TCP.
    pub fn database_over_tcp(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}", self.port, self.create_database())
    }

    fn create_database(&self) -> String {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", LAST.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Has it speak TLS as `localhost`, from the next session on. Returns the certificate that vouches for it.
    #[allow(clippy::disallowed_methods, reason = "whoever starts a server is blocked anyhow")]
    pub fn speak_tls(&self) -> PathBuf {
        let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext \
                     subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE";
        let (cert, key) = (self.folder.join("cert.pem"), self.folder.join("key.pem"));
        let mut openssl = as_postgres(Path::new("openssl"));
        ran(openssl.args(words.split_whitespace()).arg("-keyout").arg(&key).arg("-out").arg(&cert));
        for (name, value) in
            [("ssl_cert_file", &*cert.to_string_lossy()), ("ssl_key_file", &key.to_string_lossy()), ("ssl", "on")]
        {
            self.psql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        self.psql("postgres", "SELECT pg_reload_conf()");
        while self.psql("postgres", "SHOW ssl") != "on" {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        cert
    }

    /// Runs SQL in a database.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut command = Command::new(self.programs.join("psql"));
        command.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string(), "-U", "postgres", "-d", database]);
        let out = command.args(["-XAtqc", sql]).current_dir("/").output().unwrap();
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("QUIT");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The server that tests of this process share, each with databases of its own. Started by the first that asks.
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(Server::start)
}

/// PgBouncer before a server, which gives every transaction another session, as it does by its usual config.
pub struct Bouncer {
    folder: PathBuf,
    pub port: u16,
    running: Option<Child>,
}

impl Bouncer {
    const PROGRAM: &'static str = "/usr/sbin/pgbouncer";

    /// Skips a test where there is none, except in CI.
    pub fn is_missing() -> bool {
        if Path::new(Self::PROGRAM).exists() {
            return false;
        }
        assert!(std::env::var_os("CI").is_none(), "there is no PgBouncer here: apt-get install pgbouncer");
        eprintln!("skipped: there is no PgBouncer here (Debian: pgbouncer)");
        true
    }

    #[allow(clippy::disallowed_methods, reason = "whoever starts a server is blocked anyhow")]
    pub fn start(server: &Server) -> Self {
        let folder = folder_of_postgres();
        let port = super::spare_port();
        let config = format!(
            "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 8\nmax_client_conn = 2000\n\
             server_idle_timeout = 3\n",
            server.folder.display(),
            server.port,
        );
        std::fs::write(folder.join("pgbouncer.ini"), config).unwrap();
        let script =
            r#""$0" -q "$1/pgbouncer.ini" </dev/null >"$1/log" 2>&1 & read -r how; kill -TERM $!; wait; rm -rf "$1""#;
        let mut command = as_postgres(Path::new("/bin/sh"));
        command.args(["-c", script, Self::PROGRAM]).arg(&folder).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Some(command.spawn().unwrap());
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { folder, port, running }
    }

    /// The URL of the same database through it.
    pub fn url(&self, straight: &str) -> String {
        let database = straight.split('?').next().and_then(|u| u.rsplit('/').next()).unwrap();
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The one that tests of this process share, before the server that they share.
pub fn shared_bouncer() -> &'static Bouncer {
    static SHARED: OnceLock<Bouncer> = OnceLock::new();
    SHARED.get_or_init(|| Bouncer::start(shared()))
}
