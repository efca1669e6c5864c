//! The one integration-test binary.

mod acceptance;
mod inbound;
mod inbound_native;
mod net_hygiene;
mod net_relay;
mod net_tls;
mod net_tunnels;
mod simulate;
mod support;
mod webhooks;
mod webhooks_to_app;
