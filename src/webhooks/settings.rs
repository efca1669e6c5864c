//! Times, addresses and limits of this layer.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;

use crate::calls::ForwardPaths;
use crate::net::TrustedPeers;
use crate::policy::{Rate, WhenFull};

/// The largest body that is stored in the database, in bytes; larger ones are stored in the spool.
pub const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// The largest body that is accepted, in bytes: base64 audio of an hour-long call (ElevenLabs: "many MB").
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// All bodies in memory together, in bytes, up to 1 MiB of each. Counted as they arrive: if room were reserved by
/// `Content-Length`, a few clients that send nothing could block every call.
pub const BODIES_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Memory for the parts of large bodies beyond 1 MiB, in bytes: one of the largest, and some room.
pub const LARGE_BODIES_BYTES_MAX: usize = 72 * 1024 * 1024;

/// Webhook paths that the operator added, by `provider.webhook`.
pub type ExtraPaths = BTreeMap<String, Vec<String>>;

/// The `Host` header that the app receives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AppHost {
    /// The host of `app.public_url`, else of `public_url`, else of the request as it came.
    #[default]
    Public,
    /// The host of `app.forward_url`.
    Forward,
    /// This host, with its port if it has one.
    Name(Authority),
}

impl AppHost {
    /// Parses `public`, `forward` or a host.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "public" => Ok(Self::Public),
            "forward" => Ok(Self::Forward),
            name => match name.parse::<Authority>() {
                Ok(host) if !name.contains('@') && !host.host().is_empty() => Ok(Self::Name(host)),
                _ => Err(format!(
                    "{name:?} is neither \"public\" nor \"forward\" nor a host such as \"app.example.com\""
                )),
            },
        }
    }
}

/// Treatment of a webhook whose signature cannot be checked, because its account has no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// The webhook is rejected.
    Reject,
    /// The webhook is accepted.
    Accept,
}

/// The way in which an inbound call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundMode {
    /// ringfence answers the voice webhook with the TwiML of the agent's provider.
    Front,
    /// The app answers it.
    App,
}

/// Times and addresses of this layer.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// The URL that providers call.
    pub public_url: Option<Uri>,
    /// The URL that webhooks are forwarded to.
    pub forward_url: Option<Uri>,
    /// The app's own public address, where that is not [`WebhookSettings::public_url`].
    pub app_public_url: Option<Uri>,
    /// The `Host` header that the app receives.
    pub app_host: AppHost,
    /// Treatment of webhooks of accounts without a secret.
    pub unsigned: Unsigned,
    /// The way in which an inbound call is answered.
    pub inbound_mode: InboundMode,
    /// The time that the app may take to answer a webhook that waits for its reply. Carriers wait 15 s.
    pub app_timeout: Duration,
    /// The way in which a call is answered when the app does not answer its webhook; `None`: the provider gets the error, and uses its own
    /// fallback.
    pub when_down: Option<WhenFull>,
    /// The agent that answers a number, by its key (`ids::number_key`), in front mode.
    pub agents: BTreeMap<String, String>,
    /// Webhook paths that the operator added, by `provider.webhook`.
    pub extra_paths: ExtraPaths,
    /// Paths that are forwarded to the app although no description matches.
    pub forward_paths: ForwardPaths,
    /// The status for an unknown call, if the sender gets one.
    pub unknown_status: u16,
    /// The spool's quota, in bytes.
    pub spool_bytes_max: u64,
    /// The longest that a body stays in the spool, in days.
    pub spool_days: u32,
    /// Addresses that webhooks may come from. `None`: all.
    pub allow_from: Option<TrustedPeers>,
    /// Requests of one address.
    pub rate_per_address: Option<Rate>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Default settings.
    pub(in crate::webhooks) fn settings() -> WebhookSettings {
        WebhookSettings {
            public_url: None,
            forward_url: None,
            app_public_url: None,
            app_host: AppHost::Public,
            forward_paths: ForwardPaths::default(),
            unsigned: Unsigned::Accept,
            inbound_mode: InboundMode::App,
            app_timeout: Duration::from_secs(1),
            when_down: None,
            agents: BTreeMap::new(),
            extra_paths: ExtraPaths::new(),
            unknown_status: 404,
            spool_bytes_max: 0,
            spool_days: 1,
            allow_from: None,
            rate_per_address: None,
        }
    }

    #[test]
    fn a_host_is_a_name_and_perhaps_a_port() {
        for wrong in ["", "a b", "https://a", "user@a", "a/b", ":80"] {
            assert!(AppHost::parse(wrong).is_err(), "{wrong}");
        }
    }
}
