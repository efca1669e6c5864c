//! Real servers, each a process of its own in a folder of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, FromRedisValue};
use ulid::Ulid;

use super::spare_port;

/// Longest wait for anything.
pub(crate) const LID: Duration = Duration::from_secs(20);

/// A folder that goes with the test.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-redis-{}", Ulid::new().to_string().to_lowercase()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server process.
pub(crate) struct Server {
    child: Child,
    pub port: u16,
    pub folder: Folder,
    args: Vec<String>,
}

fn spawn(args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is needed: bash tests/run.sh installs it")
}

impl Server {
    pub async fn start(more: &[&str]) -> Self {
        let folder = Folder::new();
        loop {
            let given = more.iter().position(|word| *word == "--port").and_then(|at| more[at + 1].parse().ok());
            let port = given.unwrap_or_else(spare_port);
            let own = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir", &folder.path(""), "--save", ""];
            let args: Vec<_> = own.iter().chain(more).map(ToString::to_string).collect();
            let mut server = Self { child: spawn(&args), port, folder: Folder::new(), args };
            if server.answers().await {
                server.folder = folder;
                return server;
            }
            // Somebody was faster at the port.
        }
    }

    pub async fn start_sentinel(folder: Folder, conf: &str) -> Self {
        loop {
            let port = spare_port();
            let own =
                [conf, "--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1", "--dir", &folder.path("")];
            let args: Vec<_> = own.iter().map(ToString::to_string).collect();
            let mut server = Self { child: spawn(&args), port, folder: Folder::new(), args };
            if server.answers().await {
                server.folder = folder;
                return server;
            }
        }
    }

    /// False if the process ended before it answered.
    async fn answers(&mut self) -> bool {
        let since = Instant::now();
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                && self.child.try_wait().unwrap().is_none()
            {
                let pong = self.try_say::<redis::Value>(&["PING"]).await;
                if !pong.is_err_and(|error| error.code() == Some("LOADING")) {
                    return true;
                }
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(since.elapsed() < LID, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn try_say<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await
    }

    pub async fn say<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_say(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Returns the value of an `INFO` field.
    pub async fn info(&self, field: &str) -> String {
        let info: String = self.say(&["INFO"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Stalls it while it lives.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    pub fn go_on(&self) {
        self.signal("CONT");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it if it still runs, and starts it again where it was, with what it has on disk.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.args);
        assert!(self.answers().await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !is_so().await {
        assert!(since.elapsed() < LID, "it never came to be that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
