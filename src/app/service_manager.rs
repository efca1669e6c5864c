//! Notifies the service manager by systemd's protocol (sd_notify(3), sd_watchdog_enabled(3)): ready, stopping, and the watchdog.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

use crate::net::cores;

/// The socket of the service manager.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    at: SocketAddr,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one of the environment.
    pub fn from_environment() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let found = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let opened = found.and_then(|at| {
            let socket = UnixDatagram::unbound()?;
            // A service manager that does not read must not block us.
            socket.set_nonblocking(true)?;
            Ok((socket, at))
        });
        let (socket, at) = opened.map_err(|error| warn!(%error, "failed to open NOTIFY_SOCKET")).ok()?;
        let of_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let every = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        let watchdog = every.filter(|usec| of_us && *usec > 0).map(Duration::from_micros);
        Some(Self { socket, at, watchdog })
    }

    /// Reports that the program is ready.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Reports that the program is stopping.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Notifies the watchdog, three times within its timeout, as long as every serving thread responds. Returns at once without a
    /// watchdog.
    pub async fn feed_watchdog(&self) {
        let Some(every) = self.watchdog.map(|within| within / 3) else { return };
        loop {
            cores::all_respond().await;
            self.send("WATCHDOG=1");
            tokio::time::sleep(every).await;
        }
    }

    fn send(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.at) {
            warn!(state, %error, "failed to notify the service manager");
        }
    }
}
