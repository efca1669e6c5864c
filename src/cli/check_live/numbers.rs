//! The lines about an account's numbers.

use crate::config::Config;
use crate::provider::account::Account;
use crate::provider::check::ItemUrls;
use crate::webhooks::InboundMode;

/// Maximum numbers listed one by one.
const NUMBERS_MAX: usize = 500;

/// Describes what happens to inbound calls of each number, depending on its URLs.
pub(super) fn numbers(config: &Config, account: &Account, places: &[ItemUrls]) -> Vec<String> {
    let mode = match config.webhooks.inbound_mode {
        InboundMode::Front => {
            "front: ringfence answers with the agent's TwiML, and refuses before the call is answered"
        }
        InboundMode::App => "app: your app answers through ringfence, which refuses before the call is answered",
    };
    let native = "native: whoever has it answers; ringfence counts its calls by asking, and cannot refuse them";
    let line = |place: &ItemUrls| {
        let means = if place.urls.first().is_some_and(|url| url.here) { mode } else { native };
        let urls: Vec<String> = place.urls.iter().map(|url| format!("{} {}", url.called, url.is)).collect();
        format!("account {}: number {}: {} ({means})", account.name, place.name, urls.join(", "))
    };
    let mut lines: Vec<String> = places.iter().take(NUMBERS_MAX).map(line).collect();
    if places.len() > NUMBERS_MAX {
        lines.push(format!("account {}: and {} more numbers", account.name, places.len() - NUMBERS_MAX));
    }
    lines
}
