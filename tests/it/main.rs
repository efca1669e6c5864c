//! The one integration-test binary.

mod acceptance;
mod net_hygiene;
mod net_relay;
mod net_tls;
mod net_tunnels;
mod outbound;
mod outbound_callbacks;
mod outbound_faults;
mod outbound_limits;
mod simulate;
mod support;
