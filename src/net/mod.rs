//! The network: an HTTP server, and a client that forwards requests.
//!
//! ```text
//! client ──► Edge (accept, TLS, limits, hygiene) ──► Exchange ──► Handler (the layers above)
//!                                                       │
//!                                                       ├─ respond()            an answer of our own
//!                                                       ├─ relay()              streamed through, WebSockets spliced
//!                                                       └─ Upstream::create()   sent once, never again
//! ```
//!
//! Only this module knows the HTTP engines: hyper's server below [`Edge`] and [`Exchange`], hyper's client and pingora's connection
//! pool below [`Upstream`]. No public signature mentions them, so replacing one affects this module only.
//!
//! Reading order: [`edge`] (the listener), [`cores`] (its threads), `connection_slots` (connection limits), `room` (memory of
//! bodies), `connection` (one connection; `turns`: its futures), `wire` (its bytes; `head`, `chunks` and `grammar`: their checks), `refusal` (early
//! rejections), [`exchange`] (one request), `reply` (its answer), `progress` (how far it is), [`headers`] (what crosses a hop), [`relay`](mod@relay), `stream` and
//! `tunnel` (forwarding), [`upstream`] and `pool` (the client), [`callback`] (tenants' URLs), [`local`] and `fetch_local` (Unix sockets), `follow` (streamed answers),
//! [`mod@retry_after`] (`Retry-After`).

mod body;
pub mod callback;
mod chunks;
mod connection;
mod connection_slots;
mod connector;
pub mod cores;
pub mod descriptors;
pub mod edge;
pub mod exchange;
mod fetch_local;
mod follow;
mod grammar;
mod head;
pub mod headers;
pub mod local;
mod own;
mod pool;
pub mod port;
mod progress;
mod redirect;
mod refusal;
pub mod relay;
mod relayed;
mod reply;
pub mod retry_after;
mod room;
mod served;
mod settings;
pub mod socket;
mod stall;
mod stream;
mod tap;
pub mod tls;
mod transport;
mod tunnel;
mod turns;
pub mod upstream;
mod wire;

pub use callback::{CALLBACK_MARK, CallbackError, CallbackErrorReason, CallbackRules};
pub use connection_slots::PeerKey;
pub use edge::{Drained, Edge, Handler, RunningEdge};
pub use exchange::{BodyError, Exchange};
pub use fetch_local::fetch_local;
pub use follow::{Following, follow_local};
pub use headers::TrustedPeers;
pub use local::{LocalSocket, Peer};
pub use own::OwnListener;
pub use port::{PortOwner, port_owner, spare_port};
pub use redirect::Mount;
pub use relay::{HostRule, RelayTarget, ask_with_body, relay, relay_tapped, relay_with_body};
pub use relayed::{RelayError, Relayed};
pub use retry_after::retry_after_secs;
pub use served::served_certificate_expiry;
pub use settings::EdgeSettings;
pub use socket::{SocketError, WebSocket};
pub use tap::{TAP_BYTES_MAX, Tap, Tapped};
pub use tls::{CertificateUse, ReloadingTls, TlsError, install_crypto_provider};
pub use upstream::{SendResult, Upstream, UpstreamError, UpstreamSettings};
