//! The door before the server: it can be slammed.
//!
//! The edge answers every request, as an edge should. A provider whose connection dies after it
//! accepted a call does not, and that is the case that matters most. So connections come in
//! through a splice that knows which of them to cut.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that came in, by the address they have inside.
#[derive(Default)]
pub(super) struct Door {
    open: Mutex<HashMap<SocketAddr, CancellationToken>>,
}

impl Door {
    /// Resets the connection that is known inside by this address.
    pub(super) fn slam(&self, inside: SocketAddr) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = open.get(&inside) {
            connection.cancel();
        }
    }

    /// Lets connections in until stopped.
    pub(super) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        server: SocketAddr,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, _)) => {
                    let door = Arc::clone(&self);
                    let cut = stop.child_token();
                    tasks.spawn(async move {
                        if let Err(error) = door.let_in(client, server, cut).await {
                            tracing::debug!(%error, "simulated connection broke");
                        }
                    });
                }
                // Mostly "too many open files": wait for some to close.
                Err(error) => {
                    tracing::warn!(%error, "simulation cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn let_in(&self, mut client: TcpStream, server: SocketAddr, cut: CancellationToken) -> io::Result<()> {
        let mut inner = TcpStream::connect(server).await?;
        inner.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let inside = inner.local_addr()?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(inside, cut.clone());
        let spliced = tokio::select! {
            biased;
            () = cut.cancelled() => {
                // A reset, not an orderly end.
                client.set_zero_linger()?;
                Ok(())
            }
            spliced = tokio::io::copy_bidirectional(&mut client, &mut inner) => spliced.map(drop),
        };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&inside);
        spliced
    }
}
