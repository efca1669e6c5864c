//! Limits and deadlines of a listener.

use std::time::Duration;

use super::headers::TrustedPeers;

/// Limits and deadlines of a listener.
#[derive(Debug, Clone)]
pub struct EdgeSettings {
    /// From a request's first byte to the end of its head; also for TLS and HTTP/2 handshakes. Then 408. Default 10 s.
    pub header_timeout: Duration,
    /// The time for which a connection may wait for its next request. Default 75 s (nginx's `keepalive_timeout`).
    pub keepalive: Duration,
    /// For [`Exchange::read_body`](super::Exchange::read_body): the complete body. For relays: the longest pause within a body. Default 30 s.
    pub body_timeout: Duration,
    /// The time for which a client may read nothing of what is written to it. Default 30 s.
    pub write_timeout: Duration,
    /// Maximum bytes of a request's head; then 431. Default 64 KiB.
    pub max_header_bytes: usize,
    /// Maximum header fields of a request; then 431. Default 100.
    pub max_headers: usize,
    /// Maximum connections. A further one evicts the one idle for longest, or is closed if none is idle. Default 10 000.
    pub max_connections: usize,
    /// Maximum connections per peer (an IPv4 address, or 64 bits of an IPv6 one), except `trusted_peers`. Default 5 000.
    pub max_connections_of_peer: usize,
    /// Maximum requests in progress, except tunnels; further ones get a 503. Default 10 000.
    pub max_in_flight: usize,
    /// Maximum bytes of all bodies that are read into memory, counted as they arrive. A body that would exceed it waits a few
    /// seconds for room, and is then rejected. Default 24 MiB.
    pub max_body_bytes: usize,
    /// Additional room for the parts of bodies beyond their first MiB, so that large ones never take that of small ones. Default:
    /// none.
    pub max_large_body_bytes: usize,
    /// The part of the latter that bodies of one peer may take; of the former it is three quarters. For trusted peers, the client that they
    /// forward counts. Default 0.
    pub max_large_body_bytes_of_peer: usize,
    /// Maximum WebSocket tunnels. Default 5 000.
    pub max_tunnels: usize,
    /// Maximum concurrent requests per HTTP/2 connection. Default 100.
    pub max_h2_streams: u32,
    /// Peers whose `X-Forwarded-*` headers are trusted. Default: none.
    pub trusted_peers: TrustedPeers,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        EdgeSettings {
            header_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_header_bytes: 64 * 1024,
            max_headers: 100,
            max_connections: 10_000,
            max_connections_of_peer: 5_000,
            max_in_flight: 10_000,
            max_body_bytes: 24 * 1024 * 1024,
            max_large_body_bytes: 0,
            max_large_body_bytes_of_peer: 0,
            max_tunnels: 5_000,
            max_h2_streams: 100,
            trusted_peers: TrustedPeers::default(),
        }
    }
}
