//! The one integration-test binary.

mod acceptance;
mod net_hygiene;
mod net_relay;
mod net_tls;
mod net_tunnels;
mod simulate;
mod support;
